"""What plans by trying ask of a system beyond ``trajopt.systems``: rollouts of many action sequences, with what they earn.

Actions are in units of the bounds, [-1, 1]. Rewards are to be maximised. Shapes: B action sequences of T steps, P particles of
each (members of an ensemble, variants of a simulator; one where nothing is uncertain).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sb3_dpi.trajopt.systems import System
from sb3_dpi.trajopt.types import FloatArray, NotFiniteReturnError

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


@dataclass(frozen=True)
class Trace:
    """What action sequences led to, step by step."""

    rewards: FloatArray
    """of each particle, ``[B, P, T]``"""
    observations: FloatArray
    """before the first step and after each, ``[B, P, T + 1, do]``; what stands behind an end counts for nothing"""
    alive: FloatArray
    """probability that the episode has come so far before each step, and that it goes on after the last, ``[B, P, T + 1]``"""


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


def trace_of(system: Any, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Trace:
    """
    Try action sequences, and see what is observed on the way.

    :param system: a ``RewardSystem`` with a method ``trace`` of the same arguments as ``rollout``, or one of a single particle
        whose states are observations
    :param states: as for ``RewardSystem.rollout``
    :param actions: likewise
    :param rng: likewise
    :return: what they led to
    :raises ValueError: if it is of neither kind
    """
    if hasattr(system, "trace"):
        traced: Trace = system.trace(states, actions, rng)
        return traced
    B, T, _ = actions.shape
    seen = [np.array(np.broadcast_to(states, (B, states.shape[1])))]
    rewards, alive = np.zeros((B, 1, T)), np.ones((B, 1, T + 1))
    for t in range(T):
        one = system.rollout(seen[t], actions[:, t : t + 1], rng)
        if one.last_observations.shape != (B, 1, states.shape[1]):
            raise ValueError(
                "A known cost and guidance need what is observed on the way, and rollouts of the given system end in "
                f"observations of shape {one.last_observations.shape[1:]} where its states have {states.shape[1]} numbers: "
                "give it a method trace, or leave cost_fn and guidance out and let its rewards hold them"
            )
        rewards[:, 0, t], alive[..., t + 1] = one.rewards[:, 0], alive[..., t] * one.continuation
        seen.append(one.last_observations[:, 0])
    return Trace(rewards, np.stack(seen, axis=1)[:, None], alive)


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
        _check_shapes(tried, B * N, T)
        total = tried.returns(gamma)
        if terminal_value is not None:
            seen = tried.last_observations
            values = np.asarray(terminal_value(seen.reshape(-1, seen.shape[-1])))
            if values.size != seen.shape[0] * seen.shape[1]:
                raise ValueError(f"terminal_value must return one number a row of observations, got shape {values.shape}")
            total = total + gamma**T * np.mean(tried.continuation * values.reshape(seen.shape[:2]), axis=1)
        if not np.all(np.isfinite(total)):
            row = int(np.argmin(np.isfinite(total)))
            raise NotFiniteReturnError(
                f"action sequence {row % N} of state {row // N} earned {total[row]} in what is planned in: its rewards or "
                "costs and the terminal value must be finite",
                row // N,
            )
        return total.reshape(B, N)

    return evaluate


def _check_shapes(tried: Rollouts, n: int, T: int) -> None:
    """Refuse rollouts of a system of the user's that would be added up as something else."""
    shapes = [np.shape(array) for array in (tried.rewards, tried.last_observations, tried.continuation)]
    if shapes[0] != (n, T) or len(shapes[1]) != 3 or shapes[1][0] != n or shapes[2] != shapes[1][:2]:
        said = ", ".join(map(str, shapes))
        raise ValueError(
            "rollout of the system must return rewards [B, T], last observations [B, P, do] and continuation [B, P] for "
            f"B {n} and T {T}, got shapes {said}"
        )
