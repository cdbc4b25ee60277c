"""What steps of a system earn, where a known cost or a penalty says it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_dpi.systems import SimulatorState
from sb3_dpi.systems.protocols import Penalty, Rollouts
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.known_cost import CostFunction


class CostedSystem:
    """
    A system that earns what a cost says, less a penalty. It takes its rollouts step by step, to see what is observed on the
    way.

    :param system: a ``RewardSystem`` of one particle
    :param cost_fn: ``cost_fn(obs, action, next_obs) -> cost [n]``, in torch and in the environment's units; None keeps the
        system's own rewards
    :param penalty: subtracted from what a step earns; None for none
    :param observe: observations ``[n, do]`` of states ``[n, nx]``
    :param to_units: actions in the environment's units, of those in units of the bounds
    """

    def __init__(
        self,
        system: Any,
        cost_fn: CostFunction | None,
        penalty: Penalty | None,
        observe: Callable[[FloatArray], FloatArray],
        to_units: Callable[[FloatArray], FloatArray],
    ) -> None:
        self.system, self.cost_fn, self.penalty = system, cost_fn, penalty
        self.observe, self.to_units = observe, to_units
        self.begun: tuple[FloatArray, FloatArray] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["system"], name)

    def begin(self, state: SimulatorState) -> FloatArray:
        """
        Say where plans begin.

        :param state: of the simulator
        :return: ``[nx]``
        """
        vector: FloatArray = self.system.begin(state)
        shown = self.system.simulator.observe(state)
        seen = self.observe(vector[None])[0] if shown is None else np.ravel(shown).astype(np.float64)
        self.begun = vector, seen
        return vector

    def _first(self, states: FloatArray) -> FloatArray:
        """What is observed before the first step; where all begin in one state it is looked up once."""
        if not np.all(states == states[0]):
            return self.observe(states)
        is_known = self.begun is not None and np.array_equal(self.begun[0], states[0], equal_nan=True)
        seen = self.begun[1][None] if self.begun is not None and is_known else self.observe(states[:1])
        return np.repeat(seen, len(states), axis=0)

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """See ``protocols.RewardSystem``."""
        B, T, _ = actions.shape
        now = np.array(np.broadcast_to(states, (B, states.shape[1])))
        seen = self._first(now)
        rewards, alive = np.zeros((B, T)), np.ones(B)
        last = seen
        for t in range(T):
            one = self.system.rollout(now, actions[:, t : t + 1], rng)
            following = one.last_observations.mean(1)
            earned = one.rewards[:, 0]
            if self.cost_fn is not None:
                arguments = (seen, self.to_units(actions[:, t]), following)
                cost = self.cost_fn(*(th.as_tensor(np.asarray(array, np.float64)) for array in arguments))
                if not isinstance(cost, th.Tensor) or cost.numel() != B:
                    raise ValueError(f"cost_fn must return a tensor of one cost a row, [{B}], got {cost!r}")
                earned = -cost.detach().double().cpu().numpy().reshape(B)
            if self.penalty is not None:
                earned = earned - self.penalty(seen, actions[:, t])
            rewards[:, t] = alive * earned
            last = np.where(alive[:, None] > 0.0, following, last)
            alive = alive * one.continuation.mean(1)
            now, seen = self.system.step(now, actions[:, t]), following
        return Rollouts(rewards, last[:, None], alive[:, None])
