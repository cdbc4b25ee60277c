"""Gaussian policies in units of the action bounds."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_dpi.common.action_units import AnyBox, check_bounded, is_bounded
from sb3_dpi.common.finite import check_observation
from sb3_dpi.common.standardized import StandardizedCombinedExtractor, StandardizedExtractor, Standardizing

STATE_KEY = "state"
"""Key of a dictionary observation that the planner sees and the policy does not."""


@contextmanager
def being_updated(policy: BasePolicy) -> Iterator[None]:
    """Put a policy into train mode for its own updates, as batch normalisation and dropout must know.

    Whatever else asks it, a plan, a measurement or a bound on its change, is about the policy that acts.

    :param policy: left in evaluation mode
    """
    policy.set_training_mode(True)
    try:
        yield
    finally:
        policy.set_training_mode(False)


class ObservationReader(BasePolicy):
    """What lies between ``BasePolicy`` and policies that are given observations in any units."""

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Convert a numpy observation.

        :param observation: array or dictionary of arrays
        :return: tensors, and whether the observation was vectorized
        :raises NotFiniteError: if it holds NaN or infinity
        """
        tensors, vectorized = super().obs_to_tensor(observation)
        check_observation(tensors)
        return tensors, vectorized

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Extract features; what standardises vectors reads them as they are, not first cut to single precision.

        :param obs: observations, ``[n, ...]``
        :param features_extractor: what reads them
        :return: ``[n, features_dim]``
        """
        space = self.observation_space
        if not getattr(features_extractor, "reads_doubles", False) or not isinstance(space, spaces.Box | spaces.Dict):
            return super().extract_features(obs, features_extractor)
        seen: Any = obs
        if isinstance(obs, dict):
            vectors = {key: obs[key] for key in getattr(features_extractor, "vector_keys", ())}
            seen = {**preprocess_obs(obs, space, self.normalize_images), **vectors}  # type: ignore[dict-item]
        elif self.normalize_images and is_image_space(space):
            seen = preprocess_obs(obs, space)
        features: th.Tensor = features_extractor(seen)
        return features


class StandardizedPolicy(AnyBox, ActorCriticPolicy, ObservationReader):  # type: ignore[misc]
    """``ActorCriticPolicy`` in units that no task has to be scaled for: a Box action space's limits are -1 and 1, and vector
    observations are standardised.

    Exploration, cost of actions and every KL divergence are then in the same units on every task, asymmetric and scaled
    action spaces included. Actions are clipped to the bounds, not squashed, so that a Gaussian stays one. Discrete actions
    are what they are, and where a Box has no bounds to be units all its actions are in those of the environment.

    :param observation_space: observation space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param log_std_init: initial log standard deviation, in units of the bounds; usual: -1.5 to 0
    :param features_extractor_class: features extractor; the default standardises vector observations
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        log_std_init: float = math.log(0.5),
        features_extractor_class: type[BaseFeaturesExtractor] = StandardizedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )
        for extractor in (self.pi_features_extractor, self.vf_features_extractor):
            if isinstance(extractor, Standardizing):
                extractor.sees_raw = self.use_sde  # whose noise is made of the features

    @cached_property  # every action asks
    def squash_output(self) -> bool:
        """True for a bounded Box: actions are in [-1, 1] and ``unscale_action`` leads to the environment's units."""
        return isinstance(self.action_space, spaces.Box) and is_bounded(self.action_space)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        rows = next(iter(observation.values())) if isinstance(observation, dict) else observation
        # an exported policy takes any number of rows: no number may be asked for
        if not (isinstance(self.action_space, spaces.Box) or th.compiler.is_compiling()) and len(rows) == 0:
            return th.zeros((0, *(self.action_space.shape or ())), dtype=th.long)  # torch has no distribution over nothing
        actions = super()._predict(observation, deterministic)
        return actions.clamp(-1.0, 1.0) if self.squash_output else actions

    def set_standardization(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Standardise observations with new statistics; the policy's function stays what it was.

        The layers that read the features are rescaled, so that only the coordinates in which they learn change. The first
        call only sets the statistics: an untrained network has no function to keep.

        :param mean: of the observations, ``[features_dim]``
        :param std: of the observations, ``[features_dim]``, positive
        """
        actor, critic = self.mlp_extractor.policy_net, self.mlp_extractor.value_net
        pairs = (
            (self.pi_features_extractor, actor[0] if len(actor) else self.action_net),
            (self.vf_features_extractor, critic[0] if len(critic) else self.value_net),
        )
        new_mean, new_std = (th.as_tensor(array, dtype=th.float64, device=self.device) for array in (mean, std))
        with th.no_grad():
            for extractor, reader in pairs:
                assert isinstance(extractor, Standardizing) and isinstance(reader, nn.Linear)
                if extractor.is_set:
                    reader.bias.add_((reader.weight.double() @ ((new_mean - extractor.obs_mean) / extractor.obs_std)).float())
                    reader.weight.mul_((new_std / extractor.obs_std).float())
            for extractor, _ in pairs:
                assert isinstance(extractor, Standardizing)
                extractor.obs_mean.copy_(new_mean)
                extractor.obs_std.copy_(new_std)
                extractor.is_set.fill_(1.0)


class BoundedGaussianPolicy(StandardizedPolicy):
    """The same for a bounded Box of actions, beside whose observations the environment may give the planner a ``"state"``.

    :param observation_space: observation space
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule
    :param kwargs: as for ``StandardizedPolicy``
    :raises ValueError: if an action has no bounds
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Schedule, **kwargs: Any
    ):
        if isinstance(action_space, spaces.Box):
            check_bounded(action_space)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def action_mean(self, obs: PyTorchObs) -> th.Tensor:
        """Mean action, without the cost of building a distribution.

        :param obs: observations, ``[n, ...]``
        :return: ``[n, du]``, in units of the bounds, not clipped
        """
        features = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        mean: th.Tensor = self.action_net(self.mlp_extractor.forward_actor(features))
        return mean

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Convert a numpy observation; a missing ``"state"`` is filled with zeros, for the policy never reads it.

        :param observation: array or dictionary of arrays
        :return: tensors, and whether the observation was vectorized
        """
        known = self.observation_space.spaces if isinstance(self.observation_space, spaces.Dict) else {}
        if isinstance(observation, dict) and STATE_KEY in known and STATE_KEY not in observation:
            key, visible = next(iter(observation.items()))
            space = known[STATE_KEY]
            n_batch = visible.ndim - len(known[key].shape or ())
            filler = th.zeros((*visible.shape[:n_batch], *(space.shape or ()))).numpy()
            observation = {**observation, STATE_KEY: filler}
        return super().obs_to_tensor(observation)


class StatelessImageExtractor(NatureCNN):
    """``NatureCNN`` of an image observation, or of the one image beside ``"state"`` in a dictionary.

    :param observation_space: image space, or dictionary space with one image
    :param kwargs: as for ``NatureCNN``
    :raises ValueError: if the policy may see anything but one image
    """

    def __init__(self, observation_space: spaces.Space[Any], **kwargs: Any):
        image, key = observation_space, None
        if isinstance(observation_space, spaces.Dict):
            visible = [name for name in observation_space.spaces if name != STATE_KEY]
            if len(visible) != 1 or not is_image_space(observation_space.spaces[visible[0]], check_channels=False):
                raise ValueError(f'CnnPolicy sees one image beside "{STATE_KEY}", not {visible}: use MultiInputPolicy')
            key = visible[0]
            image = observation_space.spaces[key]
        assert isinstance(image, spaces.Box)
        super().__init__(image, **kwargs)
        self.key = key

    def forward(self, observations: Any) -> th.Tensor:
        """Extract features.

        :param observations: ``[n, ...]``, or a dictionary of such
        :return: ``[n, features_dim]``
        """
        return super().forward(observations if self.key is None else observations[self.key])


class BoundedGaussianCnnPolicy(BoundedGaussianPolicy):
    """The same for one image, beside which the environment may give the planner a ``"state"``.

    :param observation_space: image space, or dictionary space with one image
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: features extractor
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = StatelessImageExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class StatelessCombinedExtractor(StandardizedCombinedExtractor):
    """``StandardizedCombinedExtractor`` that does not look at the key ``"state"``, which only the planner may see.

    :param observation_space: dictionary space
    :param kwargs: as for ``CombinedExtractor``
    :raises ValueError: if nothing but ``"state"`` is left
    """

    def __init__(self, observation_space: spaces.Dict, **kwargs: Any):
        visible = {key: space for key, space in observation_space.spaces.items() if key != STATE_KEY}
        if not visible:
            raise ValueError(f'The observation holds nothing but "{STATE_KEY}", which the policy may not see: add other keys')
        super().__init__(spaces.Dict(visible), **kwargs)


class BoundedGaussianMultiInputPolicy(BoundedGaussianPolicy):
    """The same for dictionary observations; the key ``"state"`` is hidden from it and may be missing when it is deployed.

    :param observation_space: dictionary space
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: features extractor
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = StatelessCombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
