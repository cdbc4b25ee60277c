"""Small networks and their optimizer in numpy alone: torch spends most of the time that they take in overhead."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_dpi.world_model.backends.elementwise import SIXTH

Layers = list[tuple[nn.Linear, type[nn.Module] | None]]
"""Linear modules, each with the activation that follows it: ``nn.Tanh``, ``nn.ReLU`` or None for none."""
Weights = list[tuple[np.ndarray, np.ndarray, type[nn.Module] | None]]
"""Weight ``[n_in, n_out]``, bias ``[n_out]`` and activation of each layer, ``nn.Hardswish`` as well."""


def read_layers(modules: Iterable[nn.Module]) -> Layers | None:
    """
    Read what modules do one after the other.

    :param modules: of a network
    :return: its layers; None if one does something that is not known here
    """
    layers: Layers = []
    for module in modules:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append((module, None))
        elif type(module) in (nn.Tanh, nn.ReLU) and layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], type(module))
        else:
            return None
    return layers


def weights_of(layers: Layers) -> Weights:
    """
    Copy the parameters of a network.

    :param layers: on any device
    :return: arrays that later updates do not reach
    """
    found: Weights = []
    for linear, activation in layers:
        weight, bias = (parameter.detach().cpu().numpy() for parameter in (linear.weight, linear.bias))
        found.append((np.array(weight.T, order="C"), bias.copy(), activation))
    return found


def forward(x: np.ndarray, layers: Weights, values: list[np.ndarray] | None = None) -> np.ndarray:
    """Evaluate a network.

    :param x: ``[n, n_in]`` or ``[n_in]``
    :param layers: of the network
    :param values: the output of each layer is put behind what is in it; None keeps none
    :return: ``[n, n_out]`` or ``[n_out]``, a new array
    """
    for weight, bias, activation in layers:
        # with one observation overhead is all: ``dot`` has a third of that of ``@``
        x = x.dot(weight)
        x += bias
        if activation is nn.Tanh:
            np.tanh(x, out=x)
        elif activation is nn.ReLU:
            np.maximum(x, 0.0, out=x)
        elif activation is nn.Hardswish:
            gate = x + 3.0
            np.maximum(gate, 0.0, out=gate)
            np.minimum(gate, 6.0, out=gate)
            gate *= SIXTH
            x *= gate
        if values is not None:
            values.append(x)
    return x


class Network:
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
        pairs = zip(self.parameters, self.activations, strict=True)
        layers = [(weight.T, bias, activation) for (weight, bias), activation in pairs]
        return forward(x, layers, self.values)

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


class Adam:
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
