"""Several small networks of one shape as one: what an ensemble, a pair of critics and a policy are made of.

All parameters of all members lie in one array ``flat [E, P]``, layer after layer, weights ``[n_in, n_out]`` before biases. So
five members cost one batched matrix product each layer, one optimizer step updates all, and ``backends`` can work on the same
memory.

Shapes: ``E`` members, ``n`` rows, ``sizes = (n_in, hidden, ..., n_out)``.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch as th
from torch import nn
from torch.nn import functional

from sb3_dpi.world_model.backends import NetworkArrays, array_of, supports
from sb3_dpi.world_model.backends.arrays import NORM_EPSILON


def count_parameters(sizes: Sequence[int]) -> int:
    """Parameters of one member.

    :param sizes: of the layers, input and output included
    :return: P
    """
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


@th.no_grad()
def follow(slow: nn.Module, fast: nn.Module, share: float) -> None:
    """Let a slow copy follow: parameters by a share, what else there is, such as statistics of batches, all the way.

    :param slow: the copy
    :param fast: what learns
    :param share: 1: all the way
    """
    for copied, learned in zip(slow.parameters(), fast.parameters(), strict=True):
        copied.lerp_(learned, share)
    for kept, counted in zip(slow.buffers(), fast.buffers(), strict=True):
        kept.copy_(counted)


class StackedMLP(nn.Module):
    """E multilayer perceptrons with hardswish, side by side.

    Hardswish is as smooth as a planner needs and costs half of what swish and tanh do.

    :param n_members: E
    :param sizes: of the layers, input and output included; usual: ``(dx, 64, 64, 1)``
    :param layer_norm: whether hidden layers are normalised before the activation, without learned scale
    :param last_gain: scale of the last layer's first weights; small ones start near zero; usual: .1 to 1
    :param activation_fn: of the hidden layers
    """

    def __init__(
        self,
        n_members: int,
        sizes: Sequence[int],
        layer_norm: bool = False,
        last_gain: float = 1.0,
        activation_fn: type[nn.Module] = nn.Hardswish,
    ):
        super().__init__()
        self.activation = activation_fn()
        self.sizes = tuple(int(size) for size in sizes)
        self.layer_norm = layer_norm
        self.flat = nn.Parameter(th.zeros(n_members, count_parameters(self.sizes)))
        with th.no_grad():
            layers = self.layers()
            for i, (weight, _) in enumerate(layers):
                gain = last_gain if i == len(layers) - 1 else 1.0
                weight.normal_(0.0, gain * math.sqrt(1.5 / weight.shape[1]))

    @property
    def n_members(self) -> int:
        """E."""
        return len(self.flat)

    @property
    def is_compiled(self) -> bool:
        """Whether compiled jobs can stand in for torch."""
        return isinstance(self.activation, nn.Hardswish) and supports(self.sizes, self.flat.device)

    def arrays(self) -> NetworkArrays:
        """
        Hand out the parameters to compiled jobs.

        :return: torch's own memory
        """
        return NetworkArrays(array_of(self.flat), self.sizes, self.layer_norm)

    def layers(self) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        Views of the parameters.

        :return: of each layer the weights ``[E, n_in, n_out]`` and biases ``[E, 1, n_out]``
        """
        views, start = [], 0
        for n_in, n_out in pairwise(self.sizes):
            end = start + n_in * n_out
            weight = self.flat[:, start:end].view(-1, n_in, n_out)
            views.append((weight, self.flat[:, None, end : end + n_out]))
            start = end + n_out
        return views

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        Evaluate all members.

        :param inputs: the same for all ``[n, n_in]``, or rows for each ``[E, n, n_in]``
        :return: ``[E, n, n_out]``
        """
        return self._through(self.layers(), self.activation, inputs)

    def frozen(self) -> Callable[[th.Tensor], th.Tensor]:
        """
        Prepare for many evaluations between two changes, without derivatives.

        :return: the same function of the parameters as they lie now: layers are found once, hidden ones are overwritten
        """
        layers = [(weight.detach(), bias.detach()) for weight, bias in self.layers()]
        activation = nn.Hardswish(inplace=True) if isinstance(self.activation, nn.Hardswish) else self.activation
        return partial(self._through, layers, activation)

    def _through(self, layers: Sequence[tuple[th.Tensor, th.Tensor]], activation: nn.Module, inputs: th.Tensor) -> th.Tensor:
        hidden = inputs if inputs.ndim == 3 else inputs.expand(self.n_members, *inputs.shape)
        for weight, bias in layers[:-1]:
            hidden = th.baddbmm(bias, hidden, weight)
            if self.layer_norm:
                hidden = functional.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPSILON)
            hidden = activation(hidden)
        weight, bias = layers[-1]
        return th.baddbmm(bias, hidden, weight)

    @th.no_grad()
    def rescale_inputs(self, scale: th.Tensor, shift: th.Tensor) -> None:
        """
        Keep the function where the units of its first inputs change: the new ones are ``(old - shift) / scale``.

        :param scale: ``[k]``, positive
        :param shift: ``[k]``
        """
        weight, bias = self.layers()[0]
        first = weight[:, : len(scale)]
        bias.add_(shift[None, None] @ first)
        first.mul_(scale[:, None])

    @th.no_grad()
    def rescale_outputs(self, scale: th.Tensor | float, shift: th.Tensor | float = 0.0) -> None:
        """
        Follow a change of the outputs' units: the new outputs are ``(old - shift) / scale``.

        :param scale: ``[n_out]`` or a number, positive
        :param shift: ``[n_out]`` or a number
        """
        weight, bias = self.layers()[-1]
        weight.div_(scale)
        bias.sub_(shift).div_(scale)
