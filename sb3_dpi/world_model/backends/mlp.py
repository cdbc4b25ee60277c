"""Forward and backward passes of stacked networks, and the Gaussian that one of them describes.

Shapes: ``E`` members, ``n`` rows; whatever is the same for all members may have one in place of E.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sb3_dpi.world_model.backends import elementwise
from sb3_dpi.world_model.backends.arrays import Floats, NetworkArrays, PolicyArrays

f32 = np.float32


class Stack:
    """Views of the parameters of a network, or of derivatives by these.

    :param flat: ``[E, P]``
    :param sizes: of the layers
    """

    def __init__(self, flat: Floats, sizes: Sequence[int]):
        self.flat = flat
        self.weights: list[Floats] = []
        """of each layer, ``[E, n_in, n_out]``"""
        self.starts: list[int] = []
        """where the biases begin"""
        start = 0
        for n_in, n_out in pairwise(sizes):
            end = start + n_in * n_out
            self.weights.append(flat[:, start:end].reshape(-1, n_in, n_out))
            self.starts.append(end)
            start = end + n_out


class Tape:
    """What a forward pass leaves for the backward pass, and that for the gradient.

    :param network: whose passes
    :param n: rows
    """

    def __init__(self, network: NetworkArrays, n: int):
        E, sizes = len(network.flat), network.sizes
        self.normalised = network.layer_norm
        self.stack = Stack(network.flat, sizes)
        self.inputs: Floats = np.empty((E, n, sizes[0]), f32)
        self.sums = [np.empty((E, n, width), f32) for width in sizes[1:-1]]
        """inputs of the activations"""
        self.hidden = [np.empty_like(sums) for sums in self.sums]
        """outputs of the activations"""
        self.inverse = [np.empty((E, n), f32) for _ in self.sums]
        """one over the standard deviations by which rows were normalised"""
        self.outputs: Floats = np.empty((E, n, sizes[-1]), f32)
        self.slopes = [np.empty_like(sums) for sums in self.sums]
        """derivatives by what enters a layer's normalisation and activation"""

    def rows(self, start: int, end: int) -> "Tape":
        """
        A part of the tape of a network with one member.

        :param start: its first row
        :param end: behind its last
        :return: on the same memory
        """
        part = object.__new__(Tape)
        part.normalised, part.stack = self.normalised, self.stack
        part.inputs, part.outputs = self.inputs[:, start:end], self.outputs[:, start:end]
        for name in ("sums", "hidden", "inverse", "slopes"):
            setattr(part, name, [array[:, start:end] for array in getattr(self, name)])
        return part

    def forward(self) -> Floats:
        """
        Evaluate the network on ``inputs``.

        :return: ``outputs``, ``[E, n, n_out]``
        """
        stack, hidden = self.stack, self.inputs
        for i, (sums, out) in enumerate(zip(self.sums, self.hidden, strict=True)):
            np.matmul(hidden, stack.weights[i], out=sums)
            elementwise.activate(sums, stack.flat, stack.starts[i], self.normalised, self.inverse[i], out)
            hidden = out
        np.matmul(hidden, stack.weights[-1], out=self.outputs)
        elementwise.add_bias(self.outputs, stack.flat, stack.starts[-1])
        return self.outputs

    def backward(self, slope: Floats) -> None:
        """
        Fill ``slopes``.

        :param slope: derivative by the outputs, ``[E, n, n_out]``
        """
        for i in range(len(self.sums) - 1, -1, -1):
            np.matmul(slope, self.stack.weights[i + 1].transpose(0, 2, 1), out=self.slopes[i])
            elementwise.activate_backward(self.sums[i], self.normalised, self.inverse[i], self.slopes[i])
            slope = self.slopes[i]

    def by_inputs(self, out: Floats) -> Floats:
        """
        The derivative by the inputs, after ``backward``.

        :param out: takes it, ``[E, n, n_in]``
        :return: ``out``
        """
        return np.matmul(self.slopes[0], self.stack.weights[0].transpose(0, 2, 1), out=out)

    def by_parameters(self, slope: Floats, gradient: Stack) -> None:
        """
        The derivative by the parameters, after ``backward``.

        :param slope: derivative by the outputs, ``[E, n, n_out]``
        :param gradient: takes it
        """
        layers = zip([self.inputs, *self.hidden], [*self.slopes, slope], gradient.weights, gradient.starts, strict=True)
        for inputs, by_sums, by_weights, start in layers:
            np.matmul(inputs.transpose(0, 2, 1), by_sums, out=by_weights)
            elementwise.bias_gradient(by_sums, gradient.flat, start)


class Draw:
    """Actions of a squashed Gaussian, and what its derivatives need.

    :param n: rows
    :param du: size of an action
    """

    def __init__(self, n: int, du: int):
        self.actions, self.stds = np.empty((n, du), f32), np.empty((n, du), f32)
        self.bounded = np.empty((n, du), f32)
        """tanh of the raw log standard deviation"""
        self.log_probs = np.empty(n, f32)

    def sample(self, policy: PolicyArrays, outputs: Floats, noise: Floats) -> None:
        """
        Draw.

        :param policy: bounds of the standard deviation
        :param outputs: of its network, ``[n, 2 du]``
        :param noise: standard normal, ``[n, du]``
        """
        du = noise.shape[1]
        half = f32(half_range(policy))
        np.tanh(outputs[:, du:], out=self.bounded)
        log_stds = self.bounded * half
        log_stds += f32(policy.log_std_low) + half
        np.exp(log_stds, out=self.stds)
        before = self.stds * noise
        before += outputs[:, :du]
        np.tanh(before, out=self.actions)
        slopes = np.square(self.actions, out=before)
        np.subtract(f32(1.0) + elementwise.TANH_EPSILON, slopes, out=slopes)
        elementwise.log_density(noise, log_stds, np.log(slopes, out=slopes), self.log_probs)


def half_range(policy: PolicyArrays) -> float:
    """
    Half of what the log standard deviation may span.

    :param policy: bounds of the standard deviation
    :return: half of their distance
    """
    return 0.5 * (policy.log_std_high - policy.log_std_low)


def layers_of(network: NetworkArrays, member: int = 0) -> list[tuple[Floats, Floats]]:
    """
    Views of the parameters of one member.

    :param network: of any number of members
    :param member: which
    :return: of each layer the weights ``[n_in, n_out]`` and the bias ``[n_out]``
    """
    stack, flat = Stack(network.flat, network.sizes), network.flat[member]
    return [
        (weight[member], flat[start : start + weight.shape[2]])
        for weight, start in zip(stack.weights, stack.starts, strict=True)
    ]


def mlp_forward(layers: Sequence[tuple[Floats, Floats]], inputs: Floats) -> Floats:
    """
    Evaluate a network with hardswish and without normalisation in numpy alone, quickly for one row.

    :param layers: of each the weights ``[n_in, n_out]`` and the bias ``[n_out]``
    :param inputs: ``[n, n_in]`` or ``[n_in]``
    :return: ``[n, n_out]`` or ``[n_out]``
    """
    hidden = inputs
    for weight, bias in layers[:-1]:
        sums = hidden.dot(weight)
        sums += bias
        gate = sums + f32(3.0)
        np.maximum(gate, f32(0.0), out=gate)
        np.minimum(gate, f32(6.0), out=gate)
        gate *= elementwise.SIXTH
        gate *= sums
        hidden = gate
    weight, bias = layers[-1]
    outputs: Floats = hidden.dot(weight)
    outputs += bias
    return outputs
