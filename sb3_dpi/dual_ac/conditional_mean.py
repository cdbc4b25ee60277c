"""The mean of what follows a state, as a function of the state: ``E[delta | s]`` of Theorem 6.

Problem: each state of a rollout is seen with one window, whose delta owes something to chance and to the actions that were
drawn. A weight made of that delta would depend on these actions, and their policy gradient would be biased. So delta is
regressed on features of the state, and each state is judged by a regression that has seen neither its window nor one that
shares an action with it (cross-fitting, Chernozhukov et al. 2018).

A rollout has T steps of N environments, arrays are ``[T, N]``, rows of features are in that order, ``[T * N, F]``. Parts of
the rollout, five or more, are whole environments or stretches of time of one. Regressions are linear with a ridge, of which
each is chosen on the parts that it may see; the largest ridge leaves the mean alone.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.types import FloatArray, IntArray

PARTS = 5
RIDGES = np.append(np.logspace(-3.0, 2.0, 11), np.inf)
"""In units of the variance of a feature."""


@dataclass(frozen=True)
class Moments:
    """Sums over samples (x, y) from which regressions and their errors on other samples follow."""

    n: float
    x: FloatArray
    y: float
    xx: FloatArray
    xy: FloatArray
    yy: float

    @classmethod
    def of(cls, x: FloatArray, y: FloatArray) -> "Moments":
        """Sum up.

        :param x: features, ``[n, F]``
        :param y: what is explained, ``[n]``
        :return: sums
        """
        return cls(float(len(y)), x.sum(0), float(y.sum()), x.T @ x, x.T @ y, float(y @ y))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, name) + getattr(other, name) for name in ("n", "x", "y", "xx", "xy", "yy")))

    def regressions(self) -> tuple[FloatArray, FloatArray]:
        """Regress y on x with each ridge.

        :return: slopes ``[R, F]`` and constants ``[R]``
        """
        x, y = self.x / self.n, self.y / self.n
        eigenvalues, basis = np.linalg.eigh(self.xx / self.n - np.outer(x, x))
        along = basis.T @ (self.xy / self.n - x * y)
        slopes = (along / (np.maximum(eigenvalues, 0.0) + RIDGES[:, None])) @ basis.T
        return slopes, y - slopes @ x

    def squared_errors(self, slopes: FloatArray, constants: FloatArray) -> FloatArray:
        """Try regressions on these samples.

        :param slopes: ``[R, F]``
        :param constants: ``[R]``
        :return: sums of squares, ``[R]``
        """
        quadratic: FloatArray = np.einsum("rf,fg,rg->r", slopes, self.xx, slopes)
        linear = 2.0 * (constants * (slopes @ self.x - self.y) - slopes @ self.xy)
        return quadratic + linear + self.n * constants**2 + self.yy


def parts_of(lengths: IntArray) -> tuple[IntArray, np.ndarray]:
    """Divide a rollout into parts, each of some environments and one stretch of time.

    :param lengths: steps of the window that starts with each step, ``[T, N]``
    :return: number of the part of each step; whether its window has no step in common with any that starts in another part;
        both ``[T, N]``
    """
    T, N = lengths.shape
    groups, stretches = min(N, PARTS), min(-(-PARTS // N), T)
    steps = np.arange(T)
    stretch = steps * stretches // T
    starts, ends = (np.searchsorted(stretch, stretch, side=side) for side in ("left", "right"))
    behind = steps[:, None] + lengths
    reached = np.vstack([np.zeros((1, N), int), np.maximum.accumulate(behind)])[starts]  # by windows of the stretch before
    alone = (behind <= ends[:, None]) & (steps[:, None] >= reached)
    return stretch[:, None] * groups + np.arange(N) % groups, alone


def conditional_mean(delta: FloatArray, features: FloatArray, lengths: IntArray) -> FloatArray:
    """Estimate ``E[delta | s]``, each state without its own window.

    :param delta: of the windows, ``[T, N]``
    :param features: of the states, that owe nothing to this rollout's actions, ``[T * N, F]``
    :param lengths: steps of each window, ``[T, N]``
    :return: ``[T, N]``; zero where the rollout is too short for three parts
    """
    part, alone = (x.reshape(-1) for x in parts_of(lengths))
    unit = float(delta.std())
    if unit == 0.0:
        return delta.copy()
    x, y = _standardized(features), delta.reshape(-1) / unit
    names = [name for name in range(int(part.max()) + 1) if np.any(alone & (part == name))]
    if len(names) < 3:
        return np.zeros_like(delta)
    moments = {name: Moments.of(x[alone & (part == name)], y[alone & (part == name)]) for name in names}
    errors = _errors(moments)
    result = np.zeros(len(y))
    for name in range(int(part.max()) + 1):
        slopes, constants = _sum(moments, {name}).regressions()
        best = int(np.argmin(errors[name] if name in errors else sum(errors.values())))
        result[part == name] = x[part == name] @ slopes[best] + constants[best]
    return unit * result.reshape(delta.shape)


def _standardized(features: FloatArray) -> FloatArray:
    """Those that vary: the others explain nothing."""
    spread = features.std(0)
    varies = spread > 1e-9 * np.abs(features).max(0, initial=0.0)
    standardized: FloatArray = (features[:, varies] - features[:, varies].mean(0)) / spread[varies]
    return standardized


def _sum(moments: dict[int, Moments], without: set[int]) -> Moments:
    kept = [moments[name] for name in moments if name not in without]
    return sum(kept[1:], kept[0])


def _errors(moments: dict[int, Moments]) -> dict[int, FloatArray]:
    """Squared errors of each ridge on parts that neither its regression nor the part that is judged belongs to."""
    errors = {name: np.zeros(len(RIDGES)) for name in moments}
    for one, other in itertools.combinations(moments, 2):
        regressions = _sum(moments, {one, other}).regressions()
        errors[one] += moments[other].squared_errors(*regressions)
        errors[other] += moments[one].squared_errors(*regressions)
    return errors
