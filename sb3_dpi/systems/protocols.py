"""What plans by trying ask of a system beyond ``trajopt.systems``: rollouts of many action sequences, with what they earn.

Actions are in units of the bounds, [-1, 1]. Rewards are to be maximised. Shapes: B action sequences of T steps, P particles of
each (members of an ensemble, variants of a simulator; one where nothing is uncertain).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sb3_dpi.trajopt.systems import System
from sb3_dpi.trajopt.types import FloatArray

Penalty = Callable[[FloatArray, FloatArray], FloatArray]
"""Of observations in the environment's units ``[n, do]`` and actions in units of the bounds ``[n, du]``: ``[n]``, in units of
the reward, to be subtracted from it."""


@dataclass(frozen=True)
class Rollouts:
    """What action sequences led to."""

    rewards: FloatArray
    """mean over the particles, none of those whose episode is over, ``[B, T]``"""
    last_observations: FloatArray
    """after the last step, or where the episode ended, ``[B, P, do]``"""
    continuation: FloatArray
    """probability that the episode goes on after the last step, ``[B, P]``"""

    def returns(self, gamma: float = 1.0) -> FloatArray:
        """
        Add the rewards up.

        :param gamma: discount factor
        :return: ``[B]``
        """
        total: FloatArray = self.rewards @ gamma ** np.arange(self.rewards.shape[1])
        return total


class RewardSystem(System, Protocol):
    """A system that says what steps earn."""

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """
        Try action sequences.

        :param states: where they begin, ``[B, nx]``, or ``[1, nx]`` where all begin in the same
        :param actions: in units of the bounds, ``[B, T, du]``
        :param rng: all that is drawn comes from it
        :return: what they led to
        """
        ...


def returns_of(
    system: RewardSystem,
    states: FloatArray,
    rng: np.random.Generator,
    gamma: float = 1.0,
    terminal_value: Callable[[FloatArray], FloatArray] | None = None,
) -> Callable[[FloatArray], FloatArray]:
    """
    Make of a system what planners that sample ask for.

    :param system: where sequences are tried
    :param states: of which plans are made, ``[B, nx]``
    :param rng: all that is drawn comes from it
    :param gamma: discount factor
    :param terminal_value: of observations ``[n, do]``, what an episode that goes on is worth after the last step, ``[n]``;
        None counts nothing
    :return: returns ``[B, N]`` of sequences of actions ``[B, N, T, du]``; it raises a ValueError where one is not finite
    """

    def evaluate(actions: FloatArray) -> FloatArray:
        B, N, T, du = actions.shape
        begun = states if B == 1 else np.repeat(states, N, axis=0)
        tried = system.rollout(begun, actions.reshape(B * N, T, du), rng)
        total = tried.returns(gamma)
        if terminal_value is not None:
            seen = tried.last_observations
            values = np.asarray(terminal_value(seen.reshape(-1, seen.shape[-1])))
            if values.size != seen.shape[0] * seen.shape[1]:
                raise ValueError(f"terminal_value must return one number a row of observations, got shape {values.shape}")
            total = total + gamma**T * np.mean(tried.continuation * values.reshape(seen.shape[:2]), axis=1)
        if not np.all(np.isfinite(total)):
            row = int(np.argmin(np.isfinite(total)))
            raise ValueError(
                f"Action sequence {row % N} of state {row // N} earned {total[row]} in what is planned in: its rewards or "
                "costs and the terminal value must be finite"
            )
        return total.reshape(B, N)

    return evaluate
