"""Random Fourier features of the Gaussian kernel, as the features of a policy (Rahimi and Recht 2007).

``phi_i(x) = sqrt(2) cos(omega_i' x / bandwidth + b_i)`` with omega ~ N(0, I) and b uniform on [0, 2 pi): the mean of
``phi_i(x) phi_i(y)`` over i tends to ``exp(-|x - y|^2 / (2 bandwidth^2))``.
"""

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dpi.trajopt.units import spread_or_one

MEDIAN_SAMPLES = 500
"""Points whose distances the median is taken of."""


def median_bandwidth(points: np.ndarray) -> float:
    """Choose the kernel's bandwidth by the median trick.

    :param points: ``[n, d]``, in the order in which they were observed: at most ``MEDIAN_SAMPLES`` of them are used, evenly
        spaced
    :return: the median distance of two of them, 1 where it is zero
    """
    chosen = points[np.linspace(0, len(points) - 1, min(len(points), MEDIAN_SAMPLES)).astype(int)].astype(np.float64)
    squares = (chosen**2).sum(1)
    distances = squares[:, None] + squares - 2.0 * chosen @ chosen.T
    above = distances[np.triu_indices(len(chosen), 1)]
    median = math.sqrt(max(float(np.median(above)), 0.0)) if len(above) else 0.0
    return median if median > 0.0 else 1.0


class RandomFourierFeatures(nn.Module):
    """Random features of a Gaussian kernel; nothing in them learns.

    :param n_inputs: d
    :param n_features: n; usual: 100 to 500
    """

    frequencies: th.Tensor
    phases: th.Tensor
    bandwidth: th.Tensor

    def __init__(self, n_inputs: int, n_features: int):
        super().__init__()
        self.register_buffer("frequencies", th.randn(n_features, n_inputs))
        self.register_buffer("phases", 2.0 * math.pi * th.rand(n_features))
        self.register_buffer("bandwidth", th.ones(()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Evaluate the features.

        :param x: ``[b, d]``
        :return: ``[b, n]``, of second moment one
        """
        return math.sqrt(2.0) * th.cos(nn.functional.linear(x / self.bandwidth, self.frequencies, self.phases))


class RandomFourierExtractor(BaseFeaturesExtractor):
    """Features extractor: random Fourier features of standardised observations.

    The scale of the observations and the bandwidth are set once (``fit``), before anything is learned on the features; until
    then the features do not depend on what is observed.

    :param observation_space: of vectors or numbers
    :param n_features: n; usual: 100 to 500
    :param bandwidth: of the kernel, in standard deviations of the observations; None takes the median distance
    :raises ValueError: if there are no features, or a bandwidth is not positive
    """

    reads_doubles = True
    obs_mean: th.Tensor
    obs_std: th.Tensor
    is_fitted: th.Tensor

    def __init__(self, observation_space: spaces.Space[Any], n_features: int = 100, bandwidth: float | None = None):
        if n_features < 1 or (bandwidth is not None and bandwidth <= 0.0):
            raise ValueError(
                f"Random features need n_features of at least 1 and a positive bandwidth, got {n_features} and {bandwidth}"
            )
        super().__init__(observation_space, n_features)
        n_inputs = get_flattened_obs_dim(observation_space)
        self.fixed_bandwidth = bandwidth
        self.features = RandomFourierFeatures(n_inputs, n_features)
        self.register_buffer("obs_mean", th.zeros(n_inputs, dtype=th.float64))
        self.register_buffer("obs_std", th.ones(n_inputs, dtype=th.float64))
        self.register_buffer("is_fitted", th.zeros(()))  # one once it is; averages of state_dicts know no bool

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Evaluate the features.

        :param observations: ``[b, ...]``
        :return: ``[b, n]``
        """
        standard = (observations.flatten(1).double() - self.obs_mean) / self.obs_std
        features: th.Tensor = self.features((standard * self.is_fitted).to(self.features.phases.dtype))
        return features

    def fit(self, observations: th.Tensor) -> None:
        """Set scale and bandwidth by observations; only the first call does something.

        :param observations: preprocessed, ``[b, ...]``
        """
        if self.is_fitted:
            return
        flat = observations.flatten(1).double()
        mean = flat.mean(0)
        std = spread_or_one(flat.std(0, correction=0).cpu().numpy(), mean.cpu().numpy())
        self.obs_mean.copy_(mean)
        self.obs_std.copy_(th.as_tensor(std))
        standard = ((flat - self.obs_mean) / self.obs_std).cpu().numpy()
        self.features.bandwidth.fill_(median_bandwidth(standard) if self.fixed_bandwidth is None else self.fixed_bandwidth)
        self.is_fitted.fill_(1.0)
