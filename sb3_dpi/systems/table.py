"""A finite system whose chance is known: a table."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.trajopt.value_iteration import Values, value_iteration


@dataclass(frozen=True)
class Table:
    """States and actions by their numbers; a system for tree search (``trajopt.mcts``), and with exact values.

    :raises ValueError: if shapes do not fit or probabilities do not add up
    """

    transitions: FloatArray
    """P(s' | s, a), ``[S, A, S]``"""
    rewards: FloatArray
    """of the transitions, ``[S, A, S]``"""
    ends: FloatArray
    """probability that a transition ends the episode, ``[S, A, S]``"""
    initial: FloatArray
    """probabilities of the first state, ``[S]``"""

    def __post_init__(self) -> None:
        S, A = self.transitions.shape[:2]
        for name, shape in (("transitions", (S, A, S)), ("rewards", (S, A, S)), ("ends", (S, A, S)), ("initial", (S,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        for name in ("transitions", "initial"):
            array = getattr(self, name)
            if np.any(array < 0.0) or not np.allclose(array.sum(-1), 1.0):
                raise ValueError(f"{name} must be probabilities, which are positive and add up to one")

    @classmethod
    def of(cls, env: gym.Env) -> "Table":
        """
        Read the table of a task that has one, as Gymnasium's FrozenLake, Taxi and CliffWalking do.

        :param env: with attributes ``P[s][a] = [(probability, next state, reward, terminated), ...]`` and
            ``initial_state_distrib``
        :return: its table, without time limit
        :raises ValueError: if it has none
        """
        base: Any = env.unwrapped
        if not hasattr(base, "P") or not hasattr(base, "initial_state_distrib"):
            raise ValueError(
                f"{type(base).__name__} has no table of transitions P and no initial_state_distrib: give Table arrays of your "
                "own, or plan with Simulator"
            )
        S, A = len(base.P), len(base.P[0])
        P, rewards, ends = np.zeros((S, A, S)), np.zeros((S, A, S)), np.zeros((S, A, S))
        for s in range(S):
            for a in range(A):
                for probability, following, reward, terminated in base.P[s][a]:
                    P[s, a, following] += probability
                    rewards[s, a, following] += probability * reward
                    ends[s, a, following] += probability * terminated
        np.divide(rewards, P, out=rewards, where=P > 0.0)  # means, where a state is reached in several ways
        np.divide(ends, P, out=ends, where=P > 0.0)
        return cls(P, rewards, ends, np.asarray(base.initial_state_distrib, dtype=np.float64))

    @property
    def n_actions(self) -> int:
        """A"""
        return int(self.transitions.shape[1])

    @cached_property
    def is_random(self) -> bool:
        """Whether an action may lead elsewhere, or end the episode or not."""
        return any(bool(np.any((array > 0.0) & (array < 1.0))) for array in (self.transitions, self.ends))

    def reset(self, rng: np.random.Generator) -> int:
        """
        Begin an episode.

        :param rng: draws the state
        :return: the first state
        """
        return int(rng.choice(len(self.initial), p=self.initial))

    def step(self, state: int, action: int, rng: np.random.Generator) -> tuple[int, float, bool]:
        """See ``trajopt.mcts.FiniteSystem``."""
        cumulative = np.cumsum(self.transitions[state, action])
        following = min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], "right")), len(cumulative) - 1)
        is_over = rng.random() < self.ends[state, action, following]
        return following, float(self.rewards[state, action, following]), bool(is_over)

    def key(self, state: int) -> int:
        """See ``trajopt.mcts.FiniteSystem``."""
        return state

    def values(self, gamma: float = 1.0, horizon: int | None = None) -> Values:
        """
        Evaluate the best policy exactly.

        :param gamma: discount factor
        :param horizon: time steps that are left; None for all time
        :return: values of states and actions
        """
        return value_iteration(self.transitions, self.rewards, self.ends, gamma, horizon)
