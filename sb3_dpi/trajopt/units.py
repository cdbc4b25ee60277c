"""Sizes by which numbers are judged, so that nothing learned depends on the units that they are given in.

Rewards times a power of two must lead to the same bits, other factors, and shifted observations, to the same numbers up to
rounding. So floors are relative, means of logarithms are taken in a unit that is a power of two, and no single number decides
the size of all.
"""

import warnings

import numpy as np

from sb3_dpi.trajopt.types import BoolArray, FloatArray

ROUNDING = 1e-12
"""Standard deviation of a variable, in its mean, below which it is constant but for rounding."""
SMALLEST = 1e-150
"""Spread whose square, and what is divided by that, are numbers in double precision."""
RARE = 1e-3
"""Share of numbers that may be outliers; at least one may."""
FARTHEST = 50.0
"""What outliers are cut to, in root mean squares of the others."""


def varies(std: FloatArray, mean: FloatArray) -> BoolArray:
    """Which variables do more than round. Each is judged by its own mean: others may have any other unit.

    What spans less than ``SMALLEST`` counts as constant, which a warning says.

    :param std: standard deviations, ``[D]``
    :param mean: ``[D]``
    :return: ``[D]``
    """
    size = np.maximum(std, np.abs(mean))
    if np.any(vanishing := (size > 0.0) & (size < SMALLEST)):
        warnings.warn(
            f"Numbers of at most {float(size[vanishing].max()):.0e} are too small to compute with, and count as constant: "
            "rescale these observations or rewards",
            stacklevel=2,
        )
    changes: BoolArray = std > np.maximum(ROUNDING * np.abs(mean), SMALLEST)
    return changes


def spread_or_one(std: FloatArray, mean: FloatArray) -> FloatArray:
    """By what to divide so that variables are of order one.

    :param std: standard deviations, ``[D]``
    :param mean: ``[D]``
    :return: ``std``, and one where a variable is constant
    """
    return np.where(varies(std, mean), std, 1.0)


def power_of_two(sizes: FloatArray) -> FloatArray:
    """Units in which numbers lose no digit.

    :param sizes: at least zero, any shape
    :return: the largest powers of two that are not larger; one where a size is zero or not finite
    """
    sound = np.isfinite(sizes) & (sizes > 0.0)
    _, exponent = np.frexp(np.where(sound, sizes, 1.0))
    return np.asarray(np.ldexp(1.0, exponent - 1), dtype=np.float64)


def geometric_mean(values: FloatArray) -> float:
    """Geometric mean, which a power of two as a factor multiplies exactly.

    :param values: positive, ``[n]``
    :return: the root of their product
    """
    unit = float(power_of_two(np.asarray(values.max())))
    return unit * float(np.exp(np.log(values / unit).mean()))


def outlier_limit(values: FloatArray, n_each: int = 1) -> float:
    """Beyond which size a number is an outlier: one in a thousand must not decide the size of all.

    Where more numbers are large, or all others are zero, none is one.

    :param values: finite, any shape
    :param n_each: numbers that one wrong number spoils, two of differences
    :return: ``FARTHEST`` root mean squares of all but the largest, infinite where these are zero
    """
    sizes = np.abs(np.ravel(values)).astype(np.float64)
    n_rest = len(sizes) - n_each * int(np.ceil(RARE * len(sizes)))
    if n_rest < 1:
        return np.inf
    rest = np.partition(sizes, n_rest - 1)[:n_rest]
    unit = float(power_of_two(np.asarray(rest.max())))
    size = unit * float(np.sqrt(np.mean(np.square(rest / unit))))
    return FARTHEST * size if size > 0.0 else np.inf


def cut_outliers(values: FloatArray) -> FloatArray:
    """Cut numbers to ``outlier_limit``.

    :param values: finite, any shape
    :return: of the same shape
    """
    limit = outlier_limit(values)
    return np.clip(values, -limit, limit)


def replace_outliers(values: FloatArray, known: FloatArray, n_each: int = 1) -> FloatArray:
    """Put medians in place of numbers that are outliers among others of the same variable.

    Cut to its limit, one that is wrong would still move a mean and pull a regression; what is right and that rare tells as
    little to either.

    :param values: finite, ``[n, D]``
    :param known: by which each variable is judged: ``outlier_limit`` about its median, ``[m, D]``
    :param n_each: as for ``outlier_limit``
    :return: ``[n, D]``; a variable that is constant but for rounding has no outliers
    """
    centre = np.median(known, axis=0)
    limit = np.array([outlier_limit(column, n_each) for column in (known - centre).T])
    limit = np.where(varies(limit / FARTHEST, centre), limit, np.inf)
    return np.where(np.abs(values - centre) > limit, centre, values)
