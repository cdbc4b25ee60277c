"""The mean of a policy as a plain function of numpy arrays, for fast rollouts."""

from collections.abc import Callable

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_dpi.common.policies import BoundedGaussianPolicy, StandardizedExtractor
from sb3_dpi.common.trajectories import Observations

Actor = Callable[[Observations], np.ndarray]

_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x: np.maximum(x, 0.0, dtype=x.dtype),
}


def export_actor(policy: BoundedGaussianPolicy) -> Actor:
    """Export the policy's mean to numpy where that is exact, else wrap the torch policy.

    Small networks spend most of a torch forward pass in overhead: in numpy it takes a tenth of the time.

    :param policy: the policy; later changes of its parameters do not reach the exported actor
    :return: from observations ``[n, ...]`` to mean actions ``[n, du]`` in units of the bounds
    """
    layers = _numpy_layers(policy)
    if layers is None:
        return _torch_actor(policy)

    def mean(observations: Observations) -> np.ndarray:
        assert isinstance(observations, np.ndarray)
        hidden = observations.reshape(len(observations), -1).astype(np.float32, copy=False)
        for layer in layers:
            hidden = layer(hidden)
        return hidden

    return mean


def _numpy_layers(policy: BoundedGaussianPolicy) -> list[Callable[[np.ndarray], np.ndarray]] | None:
    extractor = policy.pi_features_extractor
    if type(extractor) not in (FlattenExtractor, StandardizedExtractor) or is_image_space(policy.observation_space):
        return None
    layers: list[Callable[[np.ndarray], np.ndarray]] = []
    for module in [*policy.mlp_extractor.policy_net, policy.action_net]:
        if isinstance(module, nn.Linear):
            layers.append(_affine(module, extractor if not layers else None))
        elif type(module) in _ACTIVATIONS:
            layers.append(_ACTIVATIONS[type(module)])
        else:
            return None
    return layers


def _affine(module: nn.Linear, extractor: nn.Module | None) -> Callable[[np.ndarray], np.ndarray]:
    weight, bias = module.weight.detach().double(), module.bias.detach().double()
    if isinstance(
        extractor, StandardizedExtractor
    ):  # standardisation is affine: it costs nothing once folded into the first layer
        weight = weight / extractor.obs_std
        bias = bias - weight @ extractor.obs_mean.double()
    folded, offset = np.ascontiguousarray(weight.float().cpu().numpy().T), bias.float().cpu().numpy()
    return lambda x: x @ folded + offset


def _torch_actor(policy: BoundedGaussianPolicy) -> Actor:
    def mean(observations: Observations) -> np.ndarray:
        with th.no_grad():
            return policy.action_mean(obs_as_tensor(observations, policy.device)).cpu().numpy()

    return mean
