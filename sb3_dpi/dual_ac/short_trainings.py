"""Trainings so short that each step must tell more: with a critic of actions, and larger steps of the policy."""

from typing import Any

import numpy as np

from sb3_dpi.common.iteration_size import FEWEST
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.constants import ACTION_CRITIC_UPDATES, MOST_HASTE, MOST_KEPT_STEPS, SHORT_ITERATIONS
from sb3_dpi.dual_ac.memory import Memory
from sb3_dpi.dual_ac.scaled_values import ScaledValues


class ShortTrainings(ScaledValues):
    """An algorithm that keeps rollouts, and learns from them what actions are worth."""

    memory: Memory
    n_action_critic_updates: int | None
    gradient: str
    action_critic_suits: bool
    """Whether Q can say what it knows of the policy; found when that is built, and saved"""
    discount: Any
    _rng: np.random.Generator

    @property
    def action_critic_updates(self) -> int:
        """Gradient steps of Q in an iteration at most, the given or the chosen ones; 0: there is no Q."""
        if self.gradient == "literal" or not self.action_critic_suits:
            return 0
        if self.n_action_critic_updates is not None:
            return self.n_action_critic_updates
        return ACTION_CRITIC_UPDATES if self._total_timesteps <= MOST_KEPT_STEPS else 0

    @property
    def wanted_updates(self) -> int:
        """Of a ``learn``, where its steps allow it: Q spares samples."""
        return SHORT_ITERATIONS if self.action_critic_updates else FEWEST

    def _haste(self) -> float:
        """How much larger steps are where few will be taken and Q spares them noise."""
        of_learn = self._total_timesteps - self._num_timesteps_at_start
        if not self.action_critic_updates or of_learn <= 0:
            return 1.0
        return min(max(2 * SHORT_ITERATIONS * self.n_steps * self.n_envs / of_learn, 1.0), MOST_HASTE)

    def _solve_action_critic(self, batch: Batch) -> None:
        if self.action_critic_updates:
            n_steps = min(batch.rewards.size, self.action_critic_updates)
            self.memory = self.memory.solved(self.policy, self._scale(), self.discount, n_steps, self._rng)
