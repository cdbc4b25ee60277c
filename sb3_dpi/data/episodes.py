"""Logged episodes, whatever they came from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray


class DataError(ValueError):
    """Logged data cannot be read or used; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class Finding:
    """Something about logged data that its owner should know."""

    text: str
    is_error: bool
    """whether nothing should be learned from the data before it is repaired"""

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'note'}: {self.text}"


@dataclass(frozen=True)
class Episode:
    """Consecutive steps of one episode, in the environment's units."""

    observations: Observations
    """the last one included, ``[T + 1, ...]`` or a dictionary of such"""
    actions: FloatArray
    """``[T, du]``"""
    rewards: FloatArray
    """``[T]``"""
    terminated: BoolArray
    """whether the step ended the episode for good, ``[T]``"""
    truncated: BoolArray
    """whether a time limit ended it, ``[T]``"""

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Episodes:
    """Logged episodes, in the order in which they were logged."""

    episodes: tuple[Episode, ...]
    source: str
    """where they come from, for messages"""
    observation_space: spaces.Space[Any] | None = None
    """None where the source does not say"""
    action_space: spaces.Box | None = None
    """None where the source does not say"""
    notes: tuple[Finding, ...] = ()
    """what was found in reading"""

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return sum(map(len, self.episodes))

    @property
    def returns(self) -> FloatArray:
        """Undiscounted sums of rewards, ``[n]``."""
        return np.array([episode.rewards.sum() for episode in self.episodes])

    def first(self, n_steps: int) -> "Episodes":
        """
        Restrict to the beginning.

        :param n_steps: steps that are left, the last episode cut off where it goes on
        :return: the first episodes
        """
        kept, left = list[Episode](), n_steps
        for episode in self.episodes:
            if left <= 0:
                break
            kept.append(episode if len(episode) <= left else part(episode, 0, left))
            left -= len(episode)
        return replace(self, episodes=tuple(kept))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """
        Write one npz file for each episode, which ``read`` reads.

        :param folder: made where it is missing
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for number, episode in enumerate(self.episodes):
            arrays: dict[str, Any] = {
                name: getattr(episode, name) for name in ("actions", "rewards", "terminated", "truncated")
            }
            if isinstance(episode.observations, dict):
                arrays.update({f"observations.{key}": array for key, array in episode.observations.items()})
            else:
                arrays["observations"] = episode.observations
            if self.action_space is not None:
                arrays.update(action_low=self.action_space.low, action_high=self.action_space.high)
            np.savez_compressed(target / f"episode_{number:06d}.npz", **arrays)


def part(episode: Episode, begin: int, end: int) -> Episode:
    """
    Cut steps out of an episode.

    :param episode: where from
    :param begin: first step
    :param end: step behind the last
    :return: these steps, and the observation that followed them
    """
    rest = (getattr(episode, name)[begin:end] for name in ("actions", "rewards", "terminated", "truncated"))
    return Episode(map_observations(lambda array: array[begin : end + 1], episode.observations), *rest)


@dataclass(frozen=True)
class StepTable:
    """Steps one below the other, as files and buffers have them; the rows of an episode may be anywhere."""

    observations: Observations
    """``[n, ...]`` or a dictionary of such"""
    actions: FloatArray
    """in the environment's units, NaN in a row that only shows the last observation of its episode, ``[n, du]``"""
    rewards: FloatArray
    """``[n]``"""
    terminated: BoolArray
    """``[n]``"""
    truncated: BoolArray
    """``[n]``"""
    next_observations: Observations | None = None
    """``[n, ...]``; None where the next row shows it"""
    episode: IntArray | None = None
    """number of the episode, ``[n]``; None where only the ends tell episodes apart"""

    def __len__(self) -> int:
        return len(self.rewards)

    def split(self) -> tuple[list[Episode], list[Finding]]:
        """
        Cut into episodes.

        :return: episodes in the order of the rows, and what was found
        """
        done = self.terminated | self.truncated
        number = np.zeros(len(self), dtype=int) if self.episode is None else self.episode
        ends = np.append(done[:-1] | (np.diff(number) != 0), True)
        if self.next_observations is None:  # the row of the last observation belongs to the step before
            closing: BoolArray = np.asarray(np.isnan(self.actions).all(1), bool)
            ends |= closing
            ends[:-1] &= ~closing[1:] | (np.diff(number) != 0)
        breaks = np.zeros(len(self), dtype=bool)
        if self.next_observations is not None:
            breaks[:-1] = ~ends[:-1] & ~_same(self.next_observations, self.observations)
        findings = list[Finding]()
        if len(np.unique(number)) < 1 + int(np.sum(np.diff(number) != 0)):
            findings.append(Finding("The rows of an episode are not one below the other: sort them by episode and time", True))
        if breaks.any():
            findings.append(Finding(_what_breaks(int(breaks.sum()), int((~ends).sum()), int(np.argmax(breaks))), False))
        if self.next_observations is not None and breaks.sum() > 0.5 * max(int((~ends).sum()), 1):
            findings.append(Finding("Most rows do not follow each other: are they shuffled? Log them in order of time", True))
        episodes, begin = list[Episode](), 0
        for end in np.flatnonzero(ends | breaks) + 1:
            episode, lost_end = self._rows(begin, int(end))
            if lost_end:
                findings.append(Finding(_lost_end(begin, int(end)), True))
            if len(episode):
                episodes.append(episode)
            begin = int(end)
        return episodes, findings

    def _rows(self, begin: int, end: int) -> tuple[Episode, bool]:
        """An episode of these rows, and whether it ended in a state that nobody wrote down."""

        def joined(now: np.ndarray, following: np.ndarray) -> np.ndarray:
            return np.concatenate([now[begin:end], following[end - 1 : end]])

        last, lost_end = end, False
        if self.next_observations is None:
            observations = map_observations(lambda array: array[begin:end], self.observations)
            last = end - 1
            is_step = bool(np.isfinite(self.actions[last]).any())
            lost_end = is_step and bool(self.terminated[last])
        elif isinstance(self.observations, dict):
            assert isinstance(self.next_observations, dict)
            observations = {key: joined(array, self.next_observations[key]) for key, array in self.observations.items()}
        else:
            assert isinstance(self.next_observations, np.ndarray)
            observations = joined(self.observations, self.next_observations)
        terminated, truncated = self.terminated[begin:last].copy(), self.truncated[begin:last].copy()
        if last < end and last > begin and not lost_end:  # the row of the last observation may carry the end's marks
            terminated[-1] |= self.terminated[last] and not np.isfinite(self.actions[last]).any()
            truncated[-1] |= bool(self.truncated[last])
        return Episode(observations, self.actions[begin:last], self.rewards[begin:last], terminated, truncated), lost_end


def _same(following: Observations, observations: Observations) -> BoolArray:
    """Whether what followed a row is what the next one begins with, ``[n - 1]``."""
    keys: Sequence[Any] = list(observations) if isinstance(observations, dict) else [None]
    same: BoolArray = np.ones(0, dtype=bool)
    for number, key in enumerate(keys):
        ended = following if key is None else following[key]
        begun = observations if key is None else observations[key]
        # files keep few digits
        equal = np.isclose(np.asarray(ended)[:-1], np.asarray(begun)[1:], 1e-5, 1e-6).reshape(len(begun) - 1, -1).all(1)
        same = equal if number == 0 else same & equal
    return same


def _what_breaks(n: int, of: int, first: int) -> str:
    return (
        f"After {n} of {of} steps within episodes the next row begins with another observation than the step ended with, "
        f"first after row {first}: episodes are cut there, as if by a reset"
    )


def _lost_end(begin: int, end: int) -> str:
    return (
        f"Rows {begin} to {end - 1} end with a termination whose observation is missing: add a row with the last observation "
        "and an empty action, or columns next_obs_0, next_obs_1, ..."
    )
