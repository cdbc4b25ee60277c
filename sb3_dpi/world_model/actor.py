"""A Gaussian policy behind tanh, in standardised states and in units of the action bounds.

    u = tanh(mu(x) + sigma(x) eps),   log pi(u|x) = log N(eps; 0, I) - sum log sigma - sum log(1 - u^2).

Shapes: states ``[..., n, dx]``, noise and actions ``[..., n, du]``.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch as th
from torch import nn

from sb3_dpi.world_model.backends import PolicyArrays
from sb3_dpi.world_model.backends.arrays import HALF_LOG_TWO_PI, TANH_EPSILON
from sb3_dpi.world_model.mlp import StackedMLP

Array = TypeVar("Array", th.Tensor, np.ndarray)


def log_std_of(bounded: Array, low: float, high: float) -> Array:
    """
    Bound the log standard deviation smoothly, so that there is a gradient everywhere.

    :param bounded: tanh of a network's output, from -1 to 1
    :param low: log of the smallest standard deviation
    :param high: log of the largest
    :return: between the two
    """
    return low + 0.5 * (high - low) * (bounded + 1.0)


class SquashedGaussian(nn.Module):
    """The policy as planners see it.

    :param state_dim: dx
    :param action_dim: du
    :param hidden: widths of the hidden layers; usual: (64, 64)
    :param log_std_init: first log standard deviation, before tanh; usual: -1 to 0
    :param std_bounds: smallest and largest standard deviation; equal ones fix it
    :param activation_fn: of the hidden layers; hardswish has compiled loops
    :param features: what the network reads of states, a module from ``[n, dx]`` to ``[n, features_dim]`` that says
        ``features_dim``; None: the states. Its units are its own: it does not follow those of states
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (64, 64),
        log_std_init: float = -0.7,
        std_bounds: tuple[float, float] = (0.05, 1.5),
        activation_fn: type[nn.Module] = nn.Hardswish,
        features: nn.Module | None = None,
    ):
        super().__init__()
        self.action_dim = action_dim
        self.features = features
        self.log_std_low, self.log_std_high = (math.log(bound) for bound in std_bounds)
        sizes = (state_dim if features is None else int(features.features_dim), *hidden, 2 * action_dim)  # type: ignore[arg-type]
        self.network = StackedMLP(1, sizes, last_gain=0.1, activation_fn=activation_fn)
        middle, half = 0.5 * (self.log_std_high + self.log_std_low), 0.5 * (self.log_std_high - self.log_std_low)
        share = float(np.clip((log_std_init - middle) / half, -0.99, 0.99)) if half > 0.0 else 0.0
        with th.no_grad():
            self.network.layers()[-1][1][..., action_dim:].fill_(math.atanh(share))

    def forward(self, states: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation before tanh.

        :param states: standardised, ``[..., n, dx]``
        :return: both ``[..., n, du]``
        """
        outputs = self.outputs(states.reshape(-1, states.shape[-1]))
        outputs = outputs.view(*states.shape[:-1], outputs.shape[-1])
        mean, raw = outputs[..., : self.action_dim], outputs[..., self.action_dim :]
        return mean, log_std_of(th.tanh(raw), self.log_std_low, self.log_std_high)

    def outputs(self, states: th.Tensor) -> th.Tensor:
        """
        What the network says.

        :param states: standardised, ``[n, dx]``
        :return: mean before tanh and raw log standard deviation, ``[n, 2 du]``
        """
        outputs: th.Tensor = self.network(states if self.features is None else self.features(states))[0]
        return outputs

    @property
    def is_compiled(self) -> bool:
        """Whether compiled jobs can stand in for torch."""
        return self.features is None and self.network.is_compiled

    @property
    def learned(self) -> list[nn.Parameter]:
        """Parameters that imitation changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """
        Differentiate by all that is learned.

        :param objective: scalar
        :return: behind each other, ``[1, P]``
        """
        slopes = th.autograd.grad(objective, self.learned, materialize_grads=True)
        return th.cat([slope.reshape(1, -1) for slope in slopes], dim=1)

    def set_gradients(self, direction: th.Tensor) -> None:
        """
        Tell an optimizer which way is up.

        :param direction: as from ``gradient``, ``[1, P]``
        """
        parts = (-direction).split([parameter.numel() for parameter in self.learned], dim=1)
        for parameter, part in zip(self.learned, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def rescale_states(self, scale: th.Tensor, shift: th.Tensor) -> None:
        """
        Follow a change of the states' units.

        :param scale: as in ``UnitsChange``
        :param shift: as in ``UnitsChange``
        """
        if self.features is None:
            self.network.rescale_inputs(scale, shift)

    def arrays(self) -> PolicyArrays:
        """
        Hand out the policy to compiled jobs.

        :return: torch's own memory
        """
        return PolicyArrays(self.network.arrays(), self.log_std_low, self.log_std_high)

    def sample(self, states: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Draw actions, differentiable in states and parameters.

        :param states: standardised, ``[..., n, dx]``
        :param noise: standard normal, ``[..., n, du]``
        :return: actions in (-1, 1) ``[..., n, du]`` and their log-probabilities ``[..., n]``
        """
        mean, log_std = self(states)
        actions = th.tanh(mean + log_std.exp() * noise)
        log_probs = -0.5 * noise.square() - log_std - HALF_LOG_TWO_PI - th.log(1.0 - actions.square() + TANH_EPSILON)
        return actions, log_probs.sum(-1)


def gaussian_kl(mean: th.Tensor, log_std: th.Tensor, other_mean: th.Tensor, other_log_std: th.Tensor) -> th.Tensor:
    """
    KL(N || other N) of diagonal Gaussians, the same before and after tanh.

    :param mean: ``[..., du]``
    :param log_std: ``[..., du]``
    :param other_mean: ``[..., du]``
    :param other_log_std: ``[..., du]``
    :return: nats, ``[...]``
    """
    ratio = ((2.0 * log_std).exp() + (mean - other_mean).square()) / (2.0 * (2.0 * other_log_std).exp())
    return (other_log_std - log_std + ratio - 0.5).sum(-1)
