"""What steps of a system earn, where a known cost or a penalty says it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_dpi.systems import Rollouts, trace_of
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.known_cost import CostFunction


class CostedSystem:
    """
    A system that earns what a cost says, less a penalty, of what is observed on the way.

    :param system: a ``RewardSystem`` that ``trace_of`` takes
    :param cost_fn: ``cost_fn(obs, action, next_obs) -> cost [n]``, in torch and in the environment's units; None keeps the
        system's own rewards
    :param penalty: subtracted from what a step earns; None for none
    :param to_units: actions in the environment's units, of those in units of the bounds
    """

    def __init__(
        self,
        system: Any,
        cost_fn: CostFunction | None,
        penalty: Penalty | None,
        to_units: Callable[[FloatArray], FloatArray],
    ) -> None:
        self.system, self.cost_fn, self.penalty, self.to_units = system, cost_fn, penalty, to_units

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["system"], name)

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """See ``protocols.RewardSystem``."""
        trace = trace_of(self.system, states, actions, rng)
        alive, earned, shape = trace.alive[..., :-1], trace.rewards, trace.rewards.shape
        before, after = (self._rows(part) for part in (trace.observations[:, :, :-1], trace.observations[:, :, 1:]))
        taken = self._rows(np.repeat(actions[:, None], shape[1], axis=1))
        if self.cost_fn is not None:
            arguments = (before, self.to_units(taken), after)
            cost = self.cost_fn(*(th.as_tensor(np.asarray(array, np.float64)) for array in arguments))
            if not isinstance(cost, th.Tensor) or cost.numel() != len(taken):
                raise ValueError(f"cost_fn must return a tensor of one cost a row, [{len(taken)}], got {cost!r}")
            earned = -cost.detach().double().cpu().numpy().reshape(shape)
        if self.penalty is not None:
            earned = earned - self.penalty(before, taken).reshape(shape)
        rewards = np.where(alive > 0.0, alive * earned, 0.0).mean(1)
        n_taken = np.count_nonzero(alive, axis=-1)
        last = np.take_along_axis(trace.observations, n_taken[..., None, None], axis=2)[:, :, 0]
        return Rollouts(rewards, last, trace.alive[..., -1])

    @staticmethod
    def _rows(array: FloatArray) -> FloatArray:
        return array.reshape(-1, array.shape[-1])
