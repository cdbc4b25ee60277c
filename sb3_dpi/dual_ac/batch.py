"""A rollout as Dual-AC learns from it: what is earned in its windows, and what a V makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th

from sb3_dpi.dual_ac import windows
from sb3_dpi.dual_ac.observations import join, move, n_rows, take
from sb3_dpi.trajopt.discounting import discounted_sums
from sb3_dpi.trajopt.types import FloatArray, IntArray


@dataclass(frozen=True)
class Batch:
    """A rollout, T steps of N environments, rows as in ``windows``."""

    observations: Any
    """of all rows, tensor or dictionary of tensors"""
    actions: th.Tensor
    """``[T * N, ...]``"""
    rewards: FloatArray
    """as the environment gave them, but for outliers, ``[T, N]``"""
    following: IntArray
    """row of the true next observation, ``[T, N]``"""
    ends: np.ndarray
    """last step of an episode or of the rollout, ``[T, N]``"""
    lengths: IntArray
    """of the window that starts with each step, ``[T, N]``"""

    @property
    def shape(self) -> tuple[int, int]:
        """T and N."""
        T, N = self.rewards.shape
        return T, N

    def to(self, device: th.device | str) -> "Batch":
        """Move.

        :param device: where to
        :return: the same there
        """
        return replace(self, observations=move(self.observations, device), actions=self.actions.to(device))

    def temporal_differences(self, values: FloatArray, gamma: float) -> FloatArray:
        """``r + gamma V(s') - V(s)`` of every step.

        :param values: of all rows
        :param gamma: discount factor
        :return: ``[T, N]``
        """
        following = windows.successor_values(values, self.following)
        return self.rewards + gamma * following - values[: self.rewards.size].reshape(self.shape)

    def path_returns(self, values: FloatArray, gamma: float, gae_lambda: float) -> FloatArray:
        """What pi_b earns from each state on, TD(lambda): ``V(s_t) + sum_i (gamma lambda)^i td_{t+i}``.

        :param values: of all rows
        :param gamma: discount factor
        :param gae_lambda: 1: Monte Carlo, 0: one step
        :return: ``[T, N]``
        """
        further = discounted_sums(self.temporal_differences(values, gamma), self.ends, gamma * gae_lambda)
        return values[: self.rewards.size].reshape(self.shape) + further

    def deltas(self, values: FloatArray, gamma: float) -> FloatArray:
        """``sum_i gamma^i R + gamma^{k+1} V(s_{k+1}) - V(s_0)`` of every window, as a sum that telescopes.

        :param values: of all rows
        :param gamma: discount factor
        :return: ``[T, N]``
        """
        return windows.window_sums(self.temporal_differences(values, gamma), self.ends, self.lengths, gamma)

    def windows(self, gamma: float) -> tuple[FloatArray, FloatArray, IntArray]:
        """What every window collects, and how it goes on.

        :param gamma: discount factor
        :return: ``sum_i gamma^i R``; the discount with which it goes on, ``gamma^m``, or 0 after a death; and the row that it
            ends with, any after a death; each ``[T, N]``
        """
        returns = windows.window_sums(self.rewards, self.ends, self.lengths, gamma)
        rows = windows.at_last_step(self.following, self.lengths)
        discounts = np.where(rows == windows.NOTHING, 0.0, gamma**self.lengths)
        return returns, discounts, np.maximum(rows, 0)

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """Put rollouts of the same environments one after the other.

        :param batches: one or more
        :return: one, whose rows are renumbered
        """
        sizes = [batch.rewards.size for batch in batches]
        starts, cut = np.cumsum([0, *sizes[:-1]]), sum(sizes)
        first, behind, following = [], [], []
        for batch, start in zip(batches, starts, strict=True):
            n, rows = batch.rewards.size, batch.following
            first.append(take(batch.observations, slice(0, n)))
            behind.append(take(batch.observations, slice(n, None)))
            following.append(np.where(rows < n, np.where(rows == windows.NOTHING, rows, rows + start), rows - n + cut))
            cut += n_rows(behind[-1])
        actions = th.cat([batch.actions for batch in batches])
        rewards, ends, lengths = (
            np.concatenate([getattr(batch, name) for batch in batches]) for name in ("rewards", "ends", "lengths")
        )
        return cls(join([*first, *behind]), actions, rewards, np.concatenate(following), ends, lengths)
