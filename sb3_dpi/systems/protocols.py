"""What plans by trying ask of a system beyond ``trajopt.systems``: rollouts of many action sequences, with what they earn.

Actions are in units of the bounds, [-1, 1]. Rewards are to be maximised. Shapes: B action sequences of T steps, P particles of
each (members of an ensemble, variants of a simulator; one where nothing is uncertain).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sb3_dpi.trajopt.systems import System
from sb3_dpi.trajopt.types import FloatArray


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
