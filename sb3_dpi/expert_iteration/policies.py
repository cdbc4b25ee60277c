"""Policy and value network, as PPO has them, and how a search asks them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.systems import SimulatorState
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.backends.numpy_networks import Weights, forward, read_layers, weights_of

MlpPolicy = ActorCriticPolicy
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy


def logits_and_values(policy: ActorCriticPolicy, observations: Any) -> tuple[th.Tensor, th.Tensor]:
    """
    Ask both networks at once.

    :param policy: of ``Discrete`` actions
    :param observations: tensors as the policy sees them, ``[n, ...]`` or a dictionary of such
    :return: unnormalised log-probabilities ``[n, A]``, and values in units of the value network ``[n]``
    """
    features: Any = policy.extract_features(observations)
    if policy.share_features_extractor:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    else:
        latent_pi, latent_vf = (
            policy.mlp_extractor.forward_actor(features[0]),
            policy.mlp_extractor.forward_critic(features[1]),
        )
    return policy.action_net(latent_pi), policy.value_net(latent_vf).flatten()


class Evaluator:
    """
    What the networks say of states, as a search asks: one state at a time, many thousand times a second.

    :param policy: as it is now; what it learns later is not followed
    :param scale: units of the value network
    :param present: from observations of the environments, ``[n, ...]`` or a dictionary of such, to what the policy sees
    """

    def __init__(self, policy: ActorCriticPolicy, scale: ReturnScale, present: Callable[[Any], Any]) -> None:
        self.policy, self.scale, self.present = policy, scale, present
        space = policy.observation_space
        self.dtype = None if isinstance(space, spaces.Dict) else space.dtype
        self.keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else ()
        self.arrays = _plain_networks(policy)

    def __call__(self, states: list[SimulatorState]) -> tuple[FloatArray, FloatArray]:
        """
        Evaluate states of a simulator.

        :param states: with their observations
        :return: probabilities of the actions ``[n, A]`` and values ``[n]``
        """
        first = states[0].observation
        shown: Any
        if isinstance(first, dict):
            # an environment may show keys beyond its space
            shown = {key: np.stack([np.asarray(state.observation[key]) for state in states]) for key in self.keys}
        else:
            shown = np.array([state.observation for state in states], dtype=self.dtype)
        return self.evaluate(self.present(shown))

    def evaluate(self, observations: Any) -> tuple[FloatArray, FloatArray]:
        """
        Evaluate what the policy sees.

        :param observations: ``[n, ...]`` or a dictionary of such
        :return: probabilities of the actions ``[n, A]`` and values ``[n]``
        """
        if self.arrays is not None:
            logits, values = (forward(self._flat(observations), layers) for layers in self.arrays)
            logits -= logits.max(1, keepdims=True)
            probabilities = np.exp(logits, out=logits)
            probabilities /= probabilities.sum(1, keepdims=True)
            return probabilities, self.scale.restore(values[:, 0])
        with th.inference_mode():
            logit, value = logits_and_values(self.policy, obs_as_tensor(observations, self.policy.device))
            found: FloatArray = value.double().cpu().numpy()
            return th.softmax(logit, 1).double().cpu().numpy(), self.scale.restore(found)

    def _flat(self, observations: np.ndarray) -> np.ndarray:
        space = self.policy.observation_space
        if isinstance(space, spaces.Discrete):
            shown = np.zeros((len(observations), int(space.n)), dtype=np.float32)
            shown[np.arange(len(observations)), np.asarray(observations).reshape(-1)] = 1.0
            return shown
        return observations.reshape(len(observations), -1).astype(np.float32)


def _plain_networks(policy: ActorCriticPolicy) -> tuple[Weights, Weights] | None:
    """:return: layers of both networks, for numpy takes a fraction of torch's time for one state; None of other networks"""
    space, extractor = policy.observation_space, policy.mlp_extractor
    is_vector = isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and space.dtype != np.uint8)
    if not is_vector or type(policy.features_extractor) is not FlattenExtractor or type(extractor) is not MlpExtractor:
        return None
    if policy.device.type != "cpu":
        return None
    policy_layers = read_layers([*extractor.policy_net, policy.action_net])
    value_layers = read_layers([*extractor.value_net, policy.value_net])
    return None if policy_layers is None or value_layers is None else (weights_of(policy_layers), weights_of(value_layers))
