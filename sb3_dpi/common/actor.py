"""The mean of a policy as a plain function of numpy arrays, for fast rollouts."""

from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_dpi.common.policies import BoundedGaussianPolicy, StatelessCombinedExtractor
from sb3_dpi.common.standardized import StandardizedExtractor, Standardizing
from sb3_dpi.common.trajectories import Observations
from sb3_dpi.world_model.backends.numpy_networks import Layers, forward, read_layers, weights_of

Actor = Callable[[Observations], np.ndarray]


def export_actor(policy: BoundedGaussianPolicy) -> Actor:
    """Export the policy's mean to numpy where that is exact, else wrap the torch policy.

    Small networks spend most of a torch forward pass in overhead: in numpy it takes a tenth of the time.

    :param policy: the policy; later changes of its parameters do not reach the exported actor
    :return: from observations ``[n, ...]`` to mean actions ``[n, du]`` in units of the bounds, a new array
    """
    modules = plain_layers(policy)
    if modules is None:
        return _torch_actor(policy)
    layers = weights_of(modules)
    extractor = policy.pi_features_extractor
    center, scale = extractor.affine() if isinstance(extractor, Standardizing) else (0.0, 1.0)

    def mean(observations: Observations) -> np.ndarray:
        # in double precision: single would lose what is small beside a large mean
        return forward(((flat_inputs(policy, observations) - center) / scale).astype(np.float32), layers)

    return mean


def flat_inputs(policy: BoundedGaussianPolicy, observations: Observations) -> np.ndarray:
    """Observations as a plain network reads them.

    :param policy: one that ``plain_layers`` knows
    :param observations: ``[n, ...]``, or a dictionary of such
    :return: ``[n, features_dim]``, as they are observed
    """
    if isinstance(observations, dict):
        extractor = policy.pi_features_extractor
        assert isinstance(extractor, Standardizing)
        return extractor.vectors(observations)
    return observations if observations.ndim == 2 else observations.reshape(len(observations), -1)


def plain_layers(policy: BoundedGaussianPolicy) -> Layers | None:
    """The layers of a policy whose mean is a plain network of the flattened, perhaps standardised observation, or of all
    vectors of a dictionary behind each other.

    :param policy: the policy
    :return: its layers; None if the mean is anything else
    """
    space, extractor = policy.observation_space, policy.pi_features_extractor
    is_vector = isinstance(space, spaces.Box) and not is_image_space(space)
    known = (FlattenExtractor, StandardizedExtractor) if is_vector else (StatelessCombinedExtractor,)
    if (
        type(policy).action_mean is not BoundedGaussianPolicy.action_mean
        or type(extractor) not in known
        or not (is_vector or extractor.sees_vectors_only)
        or type(policy.mlp_extractor) is not MlpExtractor
    ):
        return None
    return read_layers([*policy.mlp_extractor.policy_net, policy.action_net])


def _torch_actor(policy: BoundedGaussianPolicy) -> Actor:
    def mean(observations: Observations) -> np.ndarray:
        with th.no_grad():
            return policy.action_mean(obs_as_tensor(observations, policy.device)).cpu().numpy()

    return mean
