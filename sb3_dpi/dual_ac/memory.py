"""Rollouts that are kept, and the critic of actions that learns from them."""

from dataclasses import dataclass, replace

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.dual_ac.action_critic import ActionCritic, Guess, Imagined
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.constants import IMAGINED, MOST_KEPT_STEPS
from sb3_dpi.trajopt.types import FloatArray


@dataclass(frozen=True)
class Memory:
    """It changes by giving another one, so that an iteration can be undone."""

    critic: ActionCritic | None = None
    """None before the first rollout is learned"""
    rollouts: tuple[Batch, ...] = ()
    shares: tuple[FloatArray, ...] = ()
    """how much each step of a rollout counts"""

    def to(self, device: th.device | str) -> "Memory":
        """Move.

        :param device: where to
        :return: the same there
        """
        critic = None if self.critic is None else self.critic.to(device)
        return replace(self, critic=critic, rollouts=tuple(batch.to(device) for batch in self.rollouts))

    def __getstate__(self) -> dict[str, object]:
        return vars(self.to("cpu"))  # saved files must open where there is no other device

    def remember(self, batch: Batch, shares: FloatArray) -> "Memory":
        """Keep a rollout, and forget the oldest ones and those of another number of environments.

        :param batch: the rollout
        :param shares: of its steps, ``[T, N]``
        :return: with it
        """
        if self.rollouts and self.rollouts[-1].shape[1] != batch.shape[1]:
            return replace(self, rollouts=(batch,), shares=(shares,))
        rollouts, kept = (*self.rollouts, batch), (*self.shares, shares)
        sizes = np.cumsum([one.rewards.size for one in reversed(rollouts)])
        first = len(rollouts) - max(int(np.searchsorted(sizes, MOST_KEPT_STEPS, side="right")), 1)
        return replace(self, rollouts=rollouts[first:], shares=kept[first:])

    def guess(self, policy: ActorCriticPolicy, batch: Batch) -> Guess | None:
        """Ask Q about a rollout.

        :param policy: that took the actions
        :param batch: the rollout
        :return: what it says; None as long as there is no Q
        """
        return None if self.critic is None else self.critic.guess(policy, batch)

    def imagine(self, policy: ActorCriticPolicy, unit: float, rng: np.random.Generator) -> Imagined | None:
        """Draw states from all rollouts.

        :param policy: whose actions Q is to judge
        :param unit: of what it says
        :param rng: draws
        :return: states; None as long as there is no Q
        """
        if self.critic is None or not unit > 0.0:
            return None
        shares = np.concatenate(self.shares)
        return self.critic.imagine(policy, Batch.joined(self.rollouts), shares, IMAGINED, unit, rng)

    def solved(
        self, policy: ActorCriticPolicy, units: ReturnScale, gamma: float, n_steps: int, rng: np.random.Generator
    ) -> "Memory":
        """Teach Q what the policy earns.

        :param policy: as it is now
        :param units: of the returns; where they do not vary Q stays what it was
        :param gamma: discount factor
        :param n_steps: gradient steps
        :param rng: draws
        :return: with this Q
        """
        if not units.std > 0.0:
            return self
        critic = ActionCritic.untrained(policy) if self.critic is None else self.critic
        return replace(self, critic=critic.solved(policy, Batch.joined(self.rollouts), units, gamma, n_steps, rng))
