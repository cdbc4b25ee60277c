"""Normal noise, white and such that lasts."""

import math

import numpy as np

from sb3_dpi.trajopt.types import FloatArray

IN_CACHE = 65536
"""Numbers that are drawn at a time."""


def correlate(noise: np.ndarray, correlation: float) -> np.ndarray:
    """Make white noise a stationary autoregressive process of first order, of the same variance.

    :param noise: standard normal, ``[T, ...]``
    :param correlation: of successive time steps
    :return: noise with covariance ``correlation ** |t - s|`` over time
    """
    from scipy.signal import lfilter  # a second, that only correlated noise needs

    fresh = float(np.sqrt(1.0 - correlation**2))
    filtered, _ = lfilter([fresh], [1.0, -correlation], noise[1:], axis=0, zi=correlation * noise[:1])
    return np.concatenate([noise[:1], filtered]).astype(noise.dtype)


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal numbers by the transform of Box and Muller (1958), in less than half of numpy's time.

    :param rng: draws them
    :param shape: of what is drawn
    :return: in single precision, none beyond 6.7
    """
    n = math.prod(shape)
    drawn = np.empty(n + n % 2, np.float32)
    for start in range(0, len(drawn), IN_CACHE):
        _box_muller(rng, drawn[start : start + IN_CACHE].reshape(2, -1))
    return drawn[:n].reshape(shape)


def _box_muller(rng: np.random.Generator, out: np.ndarray) -> None:
    """Fill an array of two rows."""
    radius, angle = rng.integers(0, 2**64, out.shape[1], np.uint64).view(np.uint32).astype(np.float32).reshape(2, -1)
    radius += np.float32(1.0)  # no logarithm of zero
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0**-31 * np.pi)
    np.cos(angle, out=out[0])
    np.sin(angle, out=out[1])
    out *= radius


def coloured(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> FloatArray:
    """Draw stationary noise of unit variance whose power falls with frequency (Timmer and Koenig 1995; Pinneri et al. 2020).

    The expected power at k / T cycles a step is proportional to ``max(k, 1) ** -exponent``.

    :param rng: draws it
    :param shape: ``[..., T]``, time last
    :param exponent: 0 is white, 1 pink, 2 red; usual: 0.25 to 4, the more the slower the system
    :return: ``[..., T]``
    """
    if exponent == 0.0:
        return white(rng, shape).astype(np.float64)
    T = shape[-1]
    amplitude = np.maximum(np.arange(T // 2 + 1), 1) ** (-0.5 * exponent)
    parts = rng.standard_normal((2, *shape[:-1], len(amplitude)))
    spectrum = amplitude * (parts[0] + 1j * parts[1])
    weight = np.full(len(amplitude), 4.0)
    # these frequencies have no phase: all of their power is in the real part
    for k in {0, T // 2} if T % 2 == 0 else {0}:
        spectrum[..., k] = np.sqrt(2.0) * spectrum[..., k].real
        weight[k] = 2.0
    drawn: FloatArray = np.fft.irfft(spectrum, n=T, axis=-1) * (T / np.sqrt(weight @ amplitude**2))
    return drawn
