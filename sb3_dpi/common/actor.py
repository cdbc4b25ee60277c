"""The mean of a policy as a plain function of numpy arrays, for fast rollouts."""

from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_dpi.common.numpy_networks import Layers, Weights, forward
from sb3_dpi.common.policies import BoundedGaussianPolicy, StandardizedExtractor
from sb3_dpi.common.trajectories import Observations

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
    layers: Weights = [(*_arrays(linear), activation) for linear, activation in modules]
    extractor = policy.pi_features_extractor
    center, scale = extractor.affine() if isinstance(extractor, StandardizedExtractor) else (0.0, 1.0)

    def mean(observations: Observations) -> np.ndarray:
        assert isinstance(observations, np.ndarray)
        flat = observations if observations.ndim == 2 else observations.reshape(len(observations), -1)
        # in double precision: single would lose what is small beside a large mean
        return forward(((flat - center) / scale).astype(np.float32), layers)

    return mean


def plain_layers(policy: BoundedGaussianPolicy) -> Layers | None:
    """The layers of a policy whose mean is a plain network of the flattened, perhaps standardised observation.

    :param policy: the policy
    :return: linear modules, each with the activation that follows it (``nn.Tanh``, ``nn.ReLU`` or None for none); None if the
        mean is anything else
    """
    space, extractor = policy.observation_space, policy.pi_features_extractor
    if (
        type(policy).action_mean is not BoundedGaussianPolicy.action_mean
        or type(extractor) not in (FlattenExtractor, StandardizedExtractor)
        or type(policy.mlp_extractor) is not MlpExtractor
        or not isinstance(space, spaces.Box)
        or is_image_space(space)
    ):
        return None
    layers: Layers = []
    for module in [*policy.mlp_extractor.policy_net, policy.action_net]:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append((module, None))
        elif type(module) in (nn.Tanh, nn.ReLU) and layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], type(module))
        else:
            return None
    return layers


def _arrays(module: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = (parameter.detach().cpu().numpy() for parameter in (module.weight, module.bias))
    return np.array(weight.T, order="C"), bias[None].copy()


def _torch_actor(policy: BoundedGaussianPolicy) -> Actor:
    def mean(observations: Observations) -> np.ndarray:
        with th.no_grad():
            return policy.action_mean(obs_as_tensor(observations, policy.device)).cpu().numpy()

    return mean
