"""Exploration noise that lasts."""

import numpy as np


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
