"""Forward and backward passes of stacked networks, and the Gaussian that one of them describes.

Shapes: ``E`` members, ``n`` rows; whatever is the same for all members may have one in place of E.
"""

import copy
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
        self.layers: list[Floats] = []
        """of each the weights, and the bias as their last row, ``[E, n_in + 1, n_out]``"""
        start = 0
        for n_in, n_out in pairwise(sizes):
            end = start + (n_in + 1) * n_out
            self.layers.append(flat[:, start:end].reshape(-1, n_in + 1, n_out))
            start = end
        self.transposed = [layer[:, :-1].transpose(0, 2, 1) for layer in self.layers]
        """of each the weights alone, ``[E, n_out, n_in]``"""


class Tape:
    """What a forward pass leaves for the backward pass, and that for the gradient.

    Behind what a layer reads stands a column of ones: so the products with its weights take care of the bias.

    :param network: whose passes
    :param n: rows
    :param n_passes: how many passes of one after the other to keep, see ``at``; None for one
    :param learns: whether ``by_parameters`` will be asked for; if not, passes share what only that needs
    """

    def __init__(self, network: NetworkArrays, n: int, n_passes: int | None = None, learns: bool = True):
        shared = len(network.flat), n
        kept = shared if n_passes is None else (n_passes, *shared)
        n_in, *widths, n_out = network.sizes
        self.stack, self.normalised = Stack(network.flat, network.sizes), network.layer_norm
        self.inputs = with_ones(*kept, n_in)
        self.sums: list[Floats] = [np.empty((*kept, width), f32) for width in widths]
        """inputs of the activations"""
        self.inverse: list[Floats] = [np.empty(kept, f32) for _ in widths]
        """one over the standard deviations by which rows were normalised"""
        self.outputs: Floats = np.empty((*kept, n_out), f32)
        self.shares = n_passes is not None and not learns
        room = shared if self.shares else kept
        self.hidden = [with_ones(*room, width) for width in widths]
        """outputs of the activations"""
        self.slopes: list[Floats] = [np.empty((*room, width), f32) for width in widths]
        """derivatives by what enters a layer's normalisation and activation"""

    def at(self, t: int) -> "Tape":
        """
        One of several passes.

        :param t: which
        :return: its tape, on the same memory
        """
        tape = copy.copy(self)
        tape.inputs, tape.outputs = self.inputs[t], self.outputs[t]
        tape.sums, tape.inverse = [array[t] for array in self.sums], [array[t] for array in self.inverse]
        if not self.shares:
            tape.hidden, tape.slopes = [array[t] for array in self.hidden], [array[t] for array in self.slopes]
        return tape

    def forward(self) -> Floats:
        """
        Evaluate the network on ``inputs``.

        :return: ``outputs``, ``[E, n, n_out]``
        """
        layers, reads = self.stack.layers, self.inputs
        for layer, sums, inverse, hidden in zip(layers, self.sums, self.inverse, self.hidden, strict=False):
            np.matmul(reads, layer, sums)
            elementwise.activate(sums, self.normalised, inverse, hidden)
            reads = hidden
        return np.matmul(reads, layers[-1], self.outputs)

    def backward(self, slope: Floats) -> None:
        """
        Fill ``slopes``.

        :param slope: derivative by the outputs, ``[E, n, n_out]``
        """
        last = len(self.sums) - 1
        for i in range(last, -1, -1):
            by_hidden = self.slopes[i]
            if i == last and slope.shape[2] == 1:
                elementwise.outer(slope, self.stack.flat, by_hidden)
            else:
                np.matmul(slope, self.stack.transposed[i + 1], by_hidden)
            elementwise.activate_backward(self.sums[i], self.normalised, self.inverse[i], by_hidden)
            slope = by_hidden

    def by_inputs(self, out: Floats) -> Floats:
        """
        The derivative by the inputs, after ``backward``.

        :param out: takes it, ``[E, n, n_in]``
        :return: ``out``
        """
        return np.matmul(self.slopes[0], self.stack.transposed[0], out)

    def by_parameters(self, slope: Floats, gradient: Stack) -> None:
        """
        The derivative by the parameters, after ``backward``: of a network with one member, summed over all passes.

        :param slope: derivative by the outputs, ``[E, n, n_out]``
        :param gradient: takes it
        """
        for reads, by_sums, layer in zip([self.inputs, *self.hidden], [*self.slopes, slope], gradient.layers, strict=True):
            if reads.ndim == 4:
                reads, by_sums = reads.reshape(1, -1, reads.shape[-1]), by_sums.reshape(1, -1, by_sums.shape[-1])
            np.matmul(reads.transpose(0, 2, 1), by_sums, layer)


def with_ones(*shape: int) -> Floats:
    """
    Room for what a layer reads.

    :param shape: of that
    :return: one column more, of ones
    """
    room: Floats = np.empty((*shape[:-1], shape[-1] + 1), f32)
    room[..., -1] = 1.0
    return room


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
        half, before, bounded = f32(half_range(policy)), np.empty_like(noise), self.bounded
        elementwise.halves(outputs, before, bounded)  # numpy's functions are slow on columns
        np.tanh(bounded, out=bounded)
        log_stds = bounded * half
        log_stds += f32(policy.log_std_low) + half
        stds = np.exp(log_stds, out=self.stds)
        before += stds * noise
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
