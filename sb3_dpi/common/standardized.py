"""Feature extractors that standardise the vectors of an observation with statistics that the algorithm sets.

Positions of centimetres and velocities of metres per second otherwise reach the network as they are, and what is small is
learned last.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from torch import nn


class Standardizing(BaseFeaturesExtractor):
    """What such an extractor inherits: the statistics, and which of its features are entries of vectors.

    Before there are statistics it shows nothing of vectors: what an untrained network says must not depend on units.
    """

    reads_doubles = True
    """whether it is given vectors as they are observed"""
    sees_raw = False
    """whether it shows vectors as they are before there are statistics"""

    obs_mean: th.Tensor
    obs_std: th.Tensor
    is_set: th.Tensor
    has_units: th.Tensor
    columns: np.ndarray
    """places of the vectors' entries among the features"""

    def _keep_statistics(self, columns: np.ndarray) -> None:
        self.columns = columns
        has_units = th.zeros(self.features_dim)
        has_units[columns] = 1.0
        self.register_buffer("obs_mean", th.zeros(self.features_dim, dtype=th.float64))
        self.register_buffer("obs_std", th.ones(self.features_dim, dtype=th.float64))
        self.register_buffer("is_set", th.zeros(()))  # one once they are; averages of state_dicts know no bool
        self.register_buffer("has_units", has_units, persistent=False)

    def vectors(self, observations: Any) -> np.ndarray:
        """
        The entries of the vectors.

        :param observations: as the policy sees them, ``[n, ...]`` or a dictionary of such
        :return: ``[n, len(columns)]``
        """
        raise NotImplementedError

    def _show(self, features: th.Tensor) -> th.Tensor:
        if not len(self.columns):
            return features.to(self.has_units.dtype)
        standard = (features.double() - self.obs_mean) / self.obs_std
        # a sum of numbers that are 0 or 1: exported policies know no branches
        shown = standard if self.sees_raw else standard * (1.0 - self.has_units * (1.0 - self.is_set))
        return shown.to(self.has_units.dtype)

    def standardize(self, vectors: np.ndarray) -> np.ndarray:
        """
        The same in numpy, where all features are entries of vectors.

        :param vectors: ``[n, features_dim]``
        :return: ``[n, features_dim]``, float32
        """
        center, scale = self.affine()
        standard: np.ndarray = ((vectors - center) / scale).astype(np.float32)
        return standard

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """
        What is subtracted, and what the difference is divided by.

        :return: both ``[features_dim]``
        """
        center, scale = (array.cpu().numpy().copy() for array in (self.obs_mean, self.obs_std))
        return center, scale if self.sees_raw or self.is_set else np.full_like(scale, np.inf)

    @property
    def sees_vectors_only(self) -> bool:
        """Whether all features are entries of vectors."""
        return len(self.columns) == self.features_dim

    def in_features(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Statistics of all features: what is no vector stays as it is.

        :param mean: of the vectors, ``[len(columns)]``
        :param std: likewise
        :return: mean and standard deviation, ``[features_dim]``
        """
        means, stds = np.zeros(self.features_dim), np.ones(self.features_dim)
        means[self.columns], stds[self.columns] = mean, std
        return means, stds


class StandardizedExtractor(Standardizing, FlattenExtractor):
    """
    ``FlattenExtractor`` that standardises vector observations.

    :param observation_space: Box, or another space whose observations are left as they are
    """

    def __init__(self, observation_space: spaces.Space[Any]):
        super().__init__(observation_space)
        is_vector = isinstance(observation_space, spaces.Box) and not is_image_space(observation_space)
        self._keep_statistics(np.arange(self.features_dim if is_vector else 0))

    def vectors(self, observations: Any) -> np.ndarray:
        """
        The entries of the vector.

        :param observations: ``[n, ...]``
        :return: ``[n, len(columns)]``
        """
        flat = np.asarray(observations).reshape(len(observations), self.features_dim)
        return flat[:, self.columns] if len(self.columns) < self.features_dim else flat

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Standardise.

        :param observations: ``[n, ...]``
        :return: ``[n, features_dim]``
        """
        # also of single numbers, whose axis torch would not flatten
        return self._show(observations.reshape(-1, self.features_dim))


class StandardizedCombinedExtractor(Standardizing, CombinedExtractor):
    """
    ``CombinedExtractor`` that standardises the vectors of a dictionary: one of one key is treated as the Box under it.

    :param observation_space: dictionary space
    :param kwargs: as for ``CombinedExtractor``
    """

    def __init__(self, observation_space: spaces.Dict, **kwargs: Any):
        super().__init__(observation_space, **kwargs)
        self.vector_keys: list[str] = []
        columns, start = [], 0
        for key, extractor in self.extractors.items():
            space = observation_space.spaces[key]
            is_flat = isinstance(extractor, nn.Flatten)
            size = get_flattened_obs_dim(space) if is_flat else int(extractor.features_dim)  # type: ignore[arg-type]
            # what is one-hot, or an image that is not convolved, has units
            if is_flat and isinstance(space, spaces.Box) and not is_image_space(space):
                self.vector_keys.append(key)
                columns.append(np.arange(start, start + size))
            start += size
        self._keep_statistics(np.concatenate([np.arange(0), *columns]))

    def vectors(self, observations: Any) -> np.ndarray:
        """
        The entries of the vectors under all keys.

        :param observations: dictionary of ``[n, ...]``
        :return: ``[n, len(columns)]``
        """
        n = len(next(iter(observations.values())))
        arrays = [np.asarray(observations[key]) for key in self.vector_keys]
        parts = [array.reshape(n, int(np.prod(array.shape[1:]))) for array in arrays]
        return np.concatenate(parts, axis=1) if parts else np.zeros((n, 0))

    def forward(self, observations: Any) -> th.Tensor:
        """
        Extract features.

        :param observations: dictionary of ``[n, ...]``
        :return: ``[n, features_dim]``
        """
        parts = []
        for key, extractor in self.extractors.items():
            array = observations[key]
            parts.append(extractor(array[:, None] if array.ndim == 1 else array))
        return self._show(th.cat(parts, dim=1))
