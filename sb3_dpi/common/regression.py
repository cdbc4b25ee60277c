"""Supervised training of a policy's mean: regression on targets, each weighted by a precision matrix.

Minimise the mean over i of 1/2 (mu(o_i) - u_i)' P_i (mu(o_i) - u_i) by minibatches of Adam. Updates of the small networks
that control needs cost torch mostly overhead; where the mean is a plain network and the optimizer plain Adam on the CPU,
the same updates are made in numpy, in a fifth of the time and equal up to rounding. Weights and the optimizer's state are
read from the policy and written back, so that it does not matter who made the last update.

Shapes: observations ``[n, ...]``, targets ``[n, du]``, precisions ``[n, du, du]``, minibatches ``[n_updates, batch_size]``.
"""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_dpi.common.actor import plain_layers
from sb3_dpi.common.policies import BoundedGaussianPolicy, StandardizedExtractor
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.trajopt.types import FloatArray, IntArray

Layers = list[tuple[nn.Linear, type[nn.Module] | None]]


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
    if layers is None or type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return None
    group, parameters = optimizer.param_groups[0], _parameters(layers)
    optimized = {id(parameter) for parameter in group["params"]}
    plain = (
        not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
        and all(isinstance(number, float) for number in (group["lr"], *group["betas"]))
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
    x = np.asarray(observations, dtype=np.float32).reshape(len(targets), -1)
    if isinstance(policy.pi_features_extractor, StandardizedExtractor):
        x = (x - policy.pi_features_extractor.obs_mean.numpy()) / policy.pi_features_extractor.obs_std.numpy()
    target, precision = targets.astype(np.float32), precisions.astype(np.float32)
    adam = _Adam(policy.optimizer, _parameters(layers))
    network = _Network(layers, adam.split(adam.values), adam.split(adam.gradient))
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


class _Network:
    """Forward and backward pass of the layers on arrays.

    :param layers: what the network looks like
    :param parameters: weight ``[n_out, n_in]`` and bias ``[n_out]`` of each layer
    :param gradients: where to write the derivatives of the loss, of the same shapes
    """

    def __init__(self, layers: Layers, parameters: list[np.ndarray], gradients: list[np.ndarray]):
        self.activations = [activation for _, activation in layers]
        self.parameters = list(zip(parameters[::2], parameters[1::2], strict=True))
        self.gradients = list(zip(gradients[::2], gradients[1::2], strict=True))
        self.values: list[np.ndarray] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Evaluate the network and keep what ``backward`` needs.

        :param x: ``[n, n_in]``
        :return: ``[n, n_out]``
        """
        self.values = [x]
        for (weight, bias), activation in zip(self.parameters, self.activations, strict=True):
            x = np.dot(x, weight.T)
            x += bias
            if activation is nn.Tanh:
                np.tanh(x, out=x)
            elif activation is nn.ReLU:
                np.maximum(x, 0.0, out=x)
            self.values.append(x)
        return x

    def backward(self, slope: np.ndarray) -> None:
        """Write the derivatives of the loss with respect to the parameters.

        :param slope: derivative of the loss with respect to the output, ``[n, n_out]``; overwritten
        """
        ones = np.ones(len(slope), dtype=slope.dtype)  # a product is ten times as fast as a sum over the first axis
        for i in reversed(range(len(self.parameters))):
            output = self.values[i + 1]
            if self.activations[i] is nn.Tanh:
                slope *= 1.0 - output * output
            elif self.activations[i] is nn.ReLU:
                slope *= output > 0
            np.dot(slope.T, self.values[i], out=self.gradients[i][0])
            np.dot(ones, slope, out=self.gradients[i][1])
            if i:
                slope = np.dot(slope, self.parameters[i][0])


class _Adam:
    """Adam (Kingma & Ba, 2015) on one flat array, with the state of a torch optimizer.

    :param optimizer: plain ``torch.optim.Adam`` with a single group
    :param parameters: those to update, on the CPU
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[th.Tensor]):
        self.optimizer, self.parameters = optimizer, parameters
        states = [optimizer.state.get(parameter) or {} for parameter in parameters]
        self.values = np.concatenate([parameter.detach().numpy().ravel() for parameter in parameters])
        self.gradient = np.zeros_like(self.values)
        self.mean, self.square = (self._gather(states, name) for name in ("exp_avg", "exp_avg_sq"))
        self.n_updates = int(states[0].get("step", 0))
        self.group: dict[str, Any] = optimizer.param_groups[0]
        self.scratch = np.empty_like(self.values)

    def _gather(self, states: list[dict[str, Any]], name: str) -> np.ndarray:
        pairs = zip(states, self.parameters, strict=True)
        return np.concatenate([(state[name] if state else th.zeros_like(p)).detach().numpy().ravel() for state, p in pairs])

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """View a flat array by parameter.

        :param flat: as long as all parameters together
        :return: views in the parameters' shapes
        """
        ends = np.cumsum([parameter.numel() for parameter in self.parameters])
        return [part.reshape(p.shape) for part, p in zip(np.split(flat, ends[:-1]), self.parameters, strict=True)]

    def update(self) -> None:
        """One step along ``gradient``."""
        beta1, beta2 = self.group["betas"]
        self.n_updates += 1
        self.mean *= beta1
        self.mean += np.multiply(self.gradient, 1.0 - beta1, out=self.scratch)
        self.square *= beta2
        np.multiply(self.gradient, self.gradient, out=self.scratch)
        self.scratch *= 1.0 - beta2
        self.square += self.scratch
        np.sqrt(self.square, out=self.scratch)
        self.scratch /= (1.0 - beta2**self.n_updates) ** 0.5
        self.scratch += self.group["eps"]
        np.divide(self.mean, self.scratch, out=self.scratch)
        self.scratch *= self.group["lr"] / (1.0 - beta1**self.n_updates)
        self.values -= self.scratch

    def write_back(self) -> None:
        """Hand parameters and state over to torch, as its own updates would have left them."""
        flat = (self.split(array) for array in (self.values, self.mean, self.square))
        with th.no_grad():
            for parameter, value, mean, square in zip(self.parameters, *flat, strict=True):
                parameter.copy_(th.from_numpy(value))
                self.optimizer.state[parameter] = {
                    "step": th.tensor(float(self.n_updates)),
                    "exp_avg": th.from_numpy(mean.copy()),
                    "exp_avg_sq": th.from_numpy(square.copy()),
                }
