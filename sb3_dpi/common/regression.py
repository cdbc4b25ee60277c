"""Supervised training of a policy's mean: regression on targets, each weighted by a precision matrix.

Minimise the mean over i of 1/2 (mu(o_i) - u_i)' P_i (mu(o_i) - u_i) by minibatches of Adam. Updates of the small networks
that control needs cost torch mostly overhead; where the mean is a plain network and the optimizer plain Adam on the CPU,
the same updates are made in numpy, in a fifth of the time and equal up to rounding. Weights and the optimizer's state are
read from the policy and written back, so that it does not matter who made the last update.

Shapes: observations ``[n, ...]``, targets ``[n, du]``, precisions ``[n, du, du]``, minibatches ``[n_updates, batch_size]``.
"""

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_dpi.common.actor import flat_inputs, plain_layers
from sb3_dpi.common.policies import BoundedGaussianPolicy, being_updated
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.world_model.backends import supports_optimizer
from sb3_dpi.world_model.backends.numpy_networks import Adam, Layers, Network


def regress_mean(
    policy: BoundedGaussianPolicy,
    observations: Observations,
    targets: FloatArray,
    precisions: FloatArray,
    minibatches: IntArray,
) -> FloatArray:
    """Train the policy's mean with its own optimizer, at the optimizer's present learning rate.

    :param policy: trained in place
    :param observations: as the policy sees them, ``[n, ...]`` or a dictionary of such
    :param targets: actions in units of the bounds, ``[n, du]``
    :param precisions: weights of the squared error, symmetric positive semi-definite, ``[n, du, du]``
    :param minibatches: indices of the samples of each update, ``[n_updates, batch_size]``
    :return: loss of each minibatch before its update, ``[n_updates]``
    """
    layers = _numpy_layers(policy)
    if layers is None:
        with being_updated(policy):
            return _regress_torch(policy, observations, targets, precisions, minibatches)
    return _regress_numpy(policy, layers, observations, targets, precisions, minibatches)


def _regress_torch(
    policy: BoundedGaussianPolicy,
    observations: Observations,
    targets: FloatArray,
    precisions: FloatArray,
    minibatches: IntArray,
) -> FloatArray:
    inputs = obs_as_tensor(observations, policy.device)
    target = th.as_tensor(targets, dtype=th.float32, device=policy.device)
    precision = th.as_tensor(precisions, dtype=th.float32, device=policy.device)
    losses = []
    for chosen in th.as_tensor(minibatches, device=policy.device):
        batch = map_observations(lambda tensor, i=chosen: tensor[i], inputs)  # type: ignore[misc, arg-type]
        error = policy.action_mean(batch) - target[chosen]  # type: ignore[arg-type]
        loss = 0.5 * (error[:, None] @ precision[chosen] @ error[:, :, None]).mean()
        policy.optimizer.zero_grad()
        loss.backward()
        policy.optimizer.step()
        losses.append(loss.detach())
    return th.stack(losses).double().cpu().numpy()


def _numpy_layers(policy: BoundedGaussianPolicy) -> Layers | None:
    """The layers, if numpy can train them as torch would."""
    layers, optimizer = plain_layers(policy), policy.optimizer
    if layers is None or not supports_optimizer(optimizer):
        return None
    group, parameters = optimizer.param_groups[0], _parameters(layers)
    optimized = {id(parameter) for parameter in group["params"]}
    plain = (
        all(isinstance(number, float) for number in (group["lr"], *group["betas"]))
        and all(id(p) in optimized and p.requires_grad and p.dtype == th.float32 for p in parameters)
        and all(p.device.type == "cpu" for p in parameters)
        and len({float(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0.0 for p in parameters}) == 1
    )
    return layers if plain else None


def _parameters(layers: Layers) -> list[th.Tensor]:
    return [parameter for linear, _ in layers for parameter in (linear.weight, linear.bias)]


def _regress_numpy(
    policy: BoundedGaussianPolicy,
    layers: Layers,
    observations: Observations,
    targets: FloatArray,
    precisions: FloatArray,
    minibatches: IntArray,
) -> FloatArray:
    x, extractor = flat_inputs(policy, observations), policy.pi_features_extractor
    x = extractor.standardize(x) if isinstance(extractor, Standardizing) else x.astype(np.float32)
    target, precision = targets.astype(np.float32), precisions.astype(np.float32)
    adam = Adam(policy.optimizer, _parameters(layers))
    network = Network(layers, adam.split(adam.values), adam.split(adam.gradient))
    losses = np.empty(len(minibatches))
    for i, chosen in enumerate(minibatches):
        error = network.forward(x[chosen]) - target[chosen]
        slope = np.matmul(precision[chosen], error[:, :, None])[:, :, 0]
        losses[i] = 0.5 * float(np.vdot(error, slope)) / len(chosen)
        slope /= len(chosen)
        network.backward(slope)
        adam.update()
    adam.write_back()
    return losses
