"""Gaussian policies in units of the action bounds."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

STATE_KEY = "state"
"""Key of a dictionary observation that the planner sees and the policy does not."""


class BoundedGaussianPolicy(ActorCriticPolicy):
    """``ActorCriticPolicy`` whose Gaussian lives in units of the bounds: -1 and 1 are the action space's limits.

    Exploration, cost of actions and every KL divergence are then in the same units on every task, asymmetric and scaled
    action spaces included. Actions are clipped to the bounds, not squashed, so that the policy stays Gaussian.

    :param observation_space: observation space
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule
    :param log_std_init: initial log standard deviation, in units of the bounds; usual: -1.5 to 0
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        log_std_init: float = math.log(0.5),
        **kwargs: Any,
    ):
        super().__init__(observation_space, action_space, lr_schedule, log_std_init=log_std_init, **kwargs)

    @property
    def squash_output(self) -> bool:
        """True: actions are in [-1, 1] and ``unscale_action`` leads to the environment's units."""
        return True

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return super()._predict(observation, deterministic).clamp(-1.0, 1.0)

    def action_mean(self, obs: PyTorchObs) -> th.Tensor:
        """Mean action, without the cost of building a distribution.

        :param obs: observations, ``[n, ...]``
        :return: ``[n, du]``, in units of the bounds, not clipped
        """
        features = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        return self.action_net(self.mlp_extractor.forward_actor(features))


class BoundedGaussianCnnPolicy(BoundedGaussianPolicy):
    """The same for image observations.

    :param observation_space: observation space
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: features extractor
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class StatelessCombinedExtractor(CombinedExtractor):
    """``CombinedExtractor`` that does not look at the key ``"state"``, which only the planner may see.

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
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = StatelessCombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Convert a numpy observation; a missing ``"state"`` is filled with zeros, for the policy never reads it.

        :param observation: dictionary of arrays
        :return: tensors, and whether the observation was vectorized
        """
        assert isinstance(self.observation_space, spaces.Dict)
        if isinstance(observation, dict) and STATE_KEY in self.observation_space.spaces and STATE_KEY not in observation:
            key, visible = next(iter(observation.items()))
            space = self.observation_space.spaces[STATE_KEY]
            n_batch = visible.ndim - len(self.observation_space.spaces[key].shape or ())
            filler = th.zeros((*visible.shape[:n_batch], *(space.shape or ()))).numpy()
            observation = {**observation, STATE_KEY: filler}
        return super().obs_to_tensor(observation)
