"""Logged episodes, whatever they came from."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
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
    where: str = ""
    """the place, or the first of them; empty where it is about all"""
    n: int = 1
    """in how many places"""

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'note'}: {self.sentence}"

    @property
    def sentence(self) -> str:
        """Place and text."""
        if not self.where:
            return self.text
        return f"{self.where}: {self.text}" if self.n == 1 else f"{self.n} times, first in {self.where}: {self.text}"


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """
    Say once what was found in several places: thirty files have one fault thirty times.

    :param findings: in the order in which they were found
    :return: without repetitions, their texts whole sentences
    """
    places: dict[tuple[str, bool], Finding] = {}
    for each in dict.fromkeys(findings):
        key = each.text, each.is_error
        places[key] = replace(places[key], n=places[key].n + each.n) if key in places else each
    return tuple(Finding(each.sentence, each.is_error) for each in places.values())


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
    origin: str = field(default="", kw_only=True)
    """what it was read from, for messages"""
    rows: tuple[int, int] | None = field(default=None, kw_only=True)
    """its first and last row there; None where it stands alone"""

    def __len__(self) -> int:
        return len(self.rewards)

    def place(self, step: int) -> str:
        """
        Say where a step was read, for messages.

        :param step: its number; that behind the last one is about the last observation
        :return: file and row; empty where they are not known
        """
        return self.origin if self.rows is None else f"{self.origin}, row {min(self.rows[0] + step, self.rows[1])}"


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
    time_limit: int | None = None
    """steps after which the environment ends an episode; None where the source does not say"""

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
    return replace(
        episode,
        observations=map_observations(lambda array: array[begin : end + 1], episode.observations),
        actions=episode.actions[begin:end],
        rewards=episode.rewards[begin:end],
        terminated=episode.terminated[begin:end],
        truncated=episode.truncated[begin:end],
        rows=episode.rows and (episode.rows[0] + begin, min(episode.rows[0] + end, episode.rows[1])),
    )


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

    source: str = ""
    """where it comes from, for messages"""

    def __len__(self) -> int:
        return len(self.rewards)

    def split(self) -> tuple[list[Episode], list[Finding]]:
        """
        Cut into episodes.

        :return: episodes in the order of the rows, and what was found
        """
        done = self.terminated | self.truncated
        number = np.zeros(len(self), dtype=int) if self.episode is None else self.episode
        changes: BoolArray = np.asarray(np.diff(number) != 0)
        ends = np.append(done[:-1] | changes, True)
        if self.next_observations is None:  # the row of the last observation belongs to the step before
            closing = self._closing(changes)
            ends |= closing
            ends[:-1] &= ~closing[1:] | changes
        breaks = np.zeros(len(self), dtype=bool)
        if self.next_observations is not None:
            breaks[:-1] = ~ends[:-1] & ~_same(self.next_observations, self.observations)
        findings = self._out_of_order(number, changes, breaks, int((~ends).sum()))
        episodes, begin = list[Episode](), 0
        for end in (np.flatnonzero(ends | breaks) + 1).tolist():
            episode, is_cut_short = self._rows(begin, end)
            if is_cut_short:
                findings.append(_cut_short(bool(self.terminated[end - 1]), f"{self.source}, row {end - 1}"))
            if len(episode):
                episodes.append(episode)
            begin = end
        return episodes, findings

    def _closing(self, changes: BoolArray) -> BoolArray:
        """Which rows only show the last observation of an episode. Where an action is missing within one, it was lost."""
        after_end = np.append(False, (self.terminated | self.truncated)[:-1])
        is_closing = np.append(changes, True) | after_end
        if self.episode is None:
            is_closing |= np.isnan(self.rewards)
        closing: BoolArray = np.isnan(self.actions).all(1) & is_closing
        return closing

    def _out_of_order(self, number: IntArray, changes: BoolArray, breaks: BoolArray, n_within: int) -> list[Finding]:
        """What the order of the rows says against them."""
        findings = list[Finding]()
        begins = np.append(0, np.flatnonzero(changes) + 1)
        _, first = np.unique(number[begins], return_index=True)
        again = np.setdiff1d(np.arange(len(begins)), first)
        if len(again):
            text = "The rows of an episode are not one below the other: sort them by episode and time"
            findings.append(Finding(text, True, f"{self.source}, row {begins[again[0]]}"))
        if breaks.any():
            text = "The next row begins with another observation than the step ended with: the episode is cut there"
            text += ", as if by a reset"
            findings.append(Finding(text, False, f"{self.source}, after row {int(np.argmax(breaks))}", int(breaks.sum())))
        if breaks.sum() > 0.5 * max(n_within, 1):
            text = "Most rows do not follow each other: are they shuffled? Log them in order of time"
            findings.append(Finding(text, True, self.source))
        return findings

    def _rows(self, begin: int, end: int) -> tuple[Episode, bool]:
        """An episode of these rows, and whether its last step is left out, for nobody wrote down where it led."""

        def joined(now: np.ndarray, following: np.ndarray) -> np.ndarray:
            return np.concatenate([now[begin:end], following[end - 1 : end]])

        last, is_cut_short = end, False
        if self.next_observations is None:
            observations = map_observations(lambda array: array[begin:end], self.observations)
            last = end - 1
            is_cut_short = bool(np.isfinite(self.actions[last]).any())
        elif isinstance(self.observations, dict):
            assert isinstance(self.next_observations, dict)
            observations = {key: joined(array, self.next_observations[key]) for key, array in self.observations.items()}
        else:
            assert isinstance(self.next_observations, np.ndarray)
            observations = joined(self.observations, self.next_observations)
        terminated, truncated = self.terminated[begin:last].copy(), self.truncated[begin:last].copy()
        if begin < last < end:  # the row of the last observation may carry the end's marks
            terminated[-1] |= bool(self.terminated[last]) and not is_cut_short
            truncated[-1] |= bool(self.truncated[last])
        steps = self.actions[begin:last], self.rewards[begin:last], terminated, truncated
        return Episode(observations, *steps, origin=self.source, rows=(begin, end - 1)), is_cut_short


def _same(following: Observations, observations: Observations) -> BoolArray:
    """Whether what followed a row is what the next one begins with, ``[n - 1]``."""
    keys: Sequence[Any] = list(observations) if isinstance(observations, dict) else [None]
    same: BoolArray = np.ones(0, dtype=bool)
    for number, key in enumerate(keys):
        ended = np.asarray(following if key is None else following[key])[:-1]
        begun = np.asarray(observations if key is None else observations[key])[1:]
        # files keep few digits; a number that was lost on its way is no reset
        equal = np.isclose(ended, begun, 1e-5, 1e-6) | ~np.isfinite(ended) | ~np.isfinite(begun)
        whole = equal.all(tuple(range(1, equal.ndim)))
        same = whole if number == 0 else same & whole
    return same


def _cut_short(is_terminated: bool, where: str) -> Finding:
    remedy = "add a row with the last observation and an empty action, or columns next_obs_0, next_obs_1, ..."
    if is_terminated:
        return Finding(f"The observation in which an episode terminated is missing: {remedy}", True, where)
    return Finding(f"The last step of an episode is left out, for the observation after it is missing: {remedy}", False, where)
