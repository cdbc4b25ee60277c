"""Early resets: long episodes are left, so that the states where episodes begin are not forgotten.

A policy that balances for a thousand steps otherwise shows one beginning in a thousand. One layer directly above the
environments that step the copies leaves them, beneath every wrapper: Monitor, VecMonitor, VecNormalize, frame stacks and
callbacks all see an episode that a time limit has ended. The layer also hands out the seeds of the next reset.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_dpi.common.asking import allow_early_resets, ask, is_monitored
from sb3_dpi.common.choices import as_settings
from sb3_dpi.trajopt.types import FloatArray, IntArray

LAST = "terminal_observation"
"""In the info of an episode's last step: what followed it."""
EARLY = "early_reset"
"""In the info of an episode's last step: it was left before its end."""
COUNTED = "early_reset_counted"
"""Likewise: whether the episode enters the means of the log. A missing one counts."""


@dataclass(frozen=True)
class EarlyReset:
    """When episodes are left."""

    after: int
    """median of the steps after which an episode is left, 0 leaves none; usual: 100 to 500"""
    spread: bool = True
    """whether each episode draws a limit of its own, half of ``after`` at least, and twice as long half as often, so that
    early and late steps are seen alike. False makes ``after`` the limit of all: no episode then enters
    ``rollout/ep_rew_mean`` whose time limit is longer"""

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"early_reset must be at least 0 (none are left), got {self.after}")


def as_early_reset(given: "EarlyReset | int | Mapping[str, Any]") -> EarlyReset:
    """
    Read the argument as a user or a YAML file gives it.

    :param given: the steps alone, a dictionary of the fields, or the settings themselves
    :return: the settings
    :raises ValueError: if a key is unknown or the steps are negative
    """
    if isinstance(given, int | np.integer):
        return EarlyReset(int(given))
    return as_settings("early_reset", EarlyReset, given)


class ResetLayer(VecEnv):
    """
    Steps the copies as the environments beneath do, and leaves long episodes. Use ``install``.

    It shall not be noticed: what it does not know it asks the environments beneath, and ``isinstance`` takes it for their
    class as well.

    :param base: environments that step the copies
    """

    def __init__(self, base: VecEnv) -> None:
        # not VecEnv's: it asks every copy for its render mode, which not every VecEnv can answer
        self._base = base
        n = base.num_envs
        self.reset_infos = list(getattr(base, "reset_infos", [{} for _ in range(n)]))
        self.steps: IntArray = np.zeros(n, dtype=int)
        """of the episodes that go on, ``[N]``"""
        self.lengths: IntArray = np.zeros(n, dtype=int)
        """of the episodes that ended last, ``[N]``"""
        self.returns: FloatArray = np.zeros(n)
        """rewards of the episodes that go on, ``[N]``"""
        self.takes_seeds: bool | None = None
        """whether the environments began with the seeds that they were given; None as long as none were"""
        self._after: int | None = None
        self._rng: np.random.Generator | None = None
        self._shares: FloatArray = np.full(n, np.nan)
        self._longest = 0
        self._time_limits = self._find_time_limits()
        self._handed_out: list[int] | None = None
        self._has_warned = False
        space = base.observation_space
        self._is_monitored = is_monitored(base)
        self._keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else None
        self._latest: Any = None
        self._began = time.time()

    # ------------------------------------------------------------------ what algorithms use

    def limit_episodes(self, after: int | None, rng: np.random.Generator | None = None) -> None:
        """
        Leave episodes from now on, also those that go on.

        Where one copy cannot be reset alone none is left, which a warning says once.

        :param after: median of the steps after which an episode is left; None or 0 leaves none
        :param rng: draws at the start of an episode how long it may be: half of ``after`` at least, one of two episodes no
            more than ``after``, one of four twice as much or more. None makes ``after`` the limit of all
        """
        self._after, self._rng = after or None, rng
        self._time_limits = self._find_time_limits()
        if self._after is not None and not self.can_reset_one:
            self._after = None
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{type(self._base).__name__} cannot reset one copy before its episode has ended, so no episode is left "
                    "early. Use DummyVecEnv or SubprocVecEnv with Monitor(allow_early_resets=True), or switch early resets "
                    "off with early_reset=0",
                    stacklevel=2,
                )
        self._draw(np.flatnonzero(np.isnan(self._shares)))

    def reset_with_seeds(self, seeds: Sequence[int]) -> None:
        """
        Hand out what the next ``reset()`` seeds each copy with, whichever wrapper it comes through; ``seed`` counts upwards.

        :param seeds: of all copies, ``[N]``, equal ones allowed
        :raises ValueError: if their number is another
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} environments need as many reset seeds, got {len(seeds)}")
        self._handed_out = [int(seed) for seed in seeds]
        self._base._seeds = self._handed_out  # type: ignore[assignment]

    def in_place_of(self, env: VecEnv) -> VecEnv:
        """
        What an algorithm steps once the layer is there.

        :param env: that it has stepped until now
        :return: the layer, or the outermost of the wrappers above it
        """
        return self if env is self._base else env

    @property
    def can_reset_one(self) -> bool:
        """Whether one copy can begin anew while the others go on. A VecEnv of another kind whose
        ``env_method("reset", indices=[i])`` resets copy i alone says so by an attribute ``resets_single_copies``."""
        base = self._base
        if isinstance(base, DummyVecEnv) and len(base.envs) != base.num_envs:  # a batch in the guise of one environment
            return False
        if isinstance(base, DummyVecEnv | SubprocVecEnv):
            return self.can_reset_all
        return bool(getattr(base, "resets_single_copies", False))

    @property
    def can_reset_all(self) -> bool:
        """Whether all copies can begin anew at any time."""
        return allow_early_resets(self._base)

    @property
    def time_limit(self) -> int | None:
        """The most steps of an episode, None where it is not known or there is none."""
        longest = float(self._time_limits.max())
        return int(longest) if math.isfinite(longest) else None

    def _find_time_limits(self) -> FloatArray:
        """Of each copy, infinite where it is not known."""
        found = ask(self._base, "_max_episode_steps") or [None] * self.num_envs
        is_known = [isinstance(value, int | np.integer) and value > 0 for value in found]
        return np.array([value if known else np.inf for value, known in zip(found, is_known, strict=True)], dtype=float)

    # ------------------------------------------------------------------ steps and resets

    def reset(self) -> VecEnvObs:
        """
        Reset all copies, with the seeds that were handed out.

        :return: first observations
        """
        observations: VecEnvObs = self._own(self._base.reset())
        self._latest = observations
        self.reset_infos = list(getattr(self._base, "reset_infos", self.reset_infos))
        if self._handed_out is not None:
            # who uses the seeds replaces the list: they serve once
            self.takes_seeds = self._base._seeds is not self._handed_out
            self._base._seeds = [None for _ in range(self.num_envs)]
            self._handed_out = None
        self._begin(np.arange(self.num_envs))
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step of all copies.

        :param actions: ``[N, ...]``
        """
        self._base.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Finish the step, and leave the episodes that have reached their limit.

        :return: observations, rewards, dones and infos; all arrays are copies, for some environments use theirs again. Where
            one does not tell how an episode ended, its last observation stands for the terminal one
        """
        observations, rewards, ended, infos = self._base.step_wait()
        observations, rewards, dones = self._own(observations), np.array(rewards), np.array(ended, dtype=bool)
        before, self._latest = self._latest, observations
        self.steps += 1
        self.returns += rewards
        ended = dones.copy()
        left = np.flatnonzero((self.steps >= self._limits()) & ~ended) if self._after is not None else ()
        if len(left) == 0 and not any(ended.tolist()):
            return observations, rewards, dones, infos
        infos = list(infos)
        which = np.flatnonzero(ended)
        self._longest = max([self._longest, *self.steps[which]])
        for i in map(int, which):
            infos[i] = {**infos[i], LAST: self._own(infos[i][LAST]) if LAST in infos[i] else _row(before, i)}
            self.reset_infos[i] = getattr(self._base, "reset_infos", self.reset_infos)[i]
            if self._after is not None:
                infos[i] = {**infos[i], COUNTED: self._is_counted(int(i))}
        for i in map(int, left):
            infos[i] = self._left_info(infos[i], _row(observations, i), self._is_monitored, i)
            first, self.reset_infos[i] = self._base.env_method("reset", indices=[int(i)])[0]
            _put(observations, int(i), first)
            dones[i] = True
        self._begin(np.flatnonzero(dones))
        return observations, rewards, dones, infos

    def tell_ends(
        self, dones: np.ndarray, infos: Sequence[dict[str, Any]], observations: VecEnvObs
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """
        What callbacks are told of a step behind which a reset leaves all episodes.

        :param dones: of the step, ``[N]``
        :param infos: likewise
        :param observations: likewise, as the outermost wrapper shows them
        :return: dones and infos with the ends of the others, as by a time limit
        """
        told = list(infos)
        for i in map(int, np.flatnonzero(~dones)):
            told[i] = self._left_info(infos[i], _row(observations, i), True, i)
        return np.ones_like(dones), told

    def _left_info(self, info: dict[str, Any], last: Any, is_monitored: bool, i: int) -> dict[str, Any]:
        """Of the last step of an episode that copy i leaves; Monitor says nothing of it."""
        episode = {"r": float(self.returns[i]), "l": int(self.steps[i]), "t": time.time() - self._began}
        own = {"TimeLimit.truncated": True, LAST: last, EARLY: True, COUNTED: False}
        return {**info, **own, **({"episode": episode} if is_monitored else {})}

    def _own(self, observations: Any) -> Any:
        """Copies of the arrays that the observation space knows."""
        if self._keys is not None and isinstance(observations, dict):
            return {key: np.array(observations[key]) for key in self._keys}
        return _map(np.array, observations)

    def _begin(self, which: IntArray) -> None:
        self.lengths[which] = self.steps[which]
        self.steps[which], self.returns[which] = 0, 0.0
        self._shares[which] = np.nan
        self._draw(which)

    def _draw(self, which: IntArray) -> None:
        if self._after is not None and self._rng is not None:
            self._shares[which] = 1.0 - self._rng.random(len(which))

    def _limits(self) -> FloatArray:
        """Steps after which each episode is left, ``[N]``."""
        if self._after is None:
            return np.full(len(self.steps), np.inf)
        if self._rng is None:
            return np.full(len(self.steps), float(self._after))
        return np.ceil(0.5 * self._after / self._shares)

    def _is_counted(self, i: int) -> bool:
        """Whether the episode would have been left only beyond its time limit; where that is not known, beyond the longest."""
        limit = self._time_limits[i]
        return bool(self._limits()[i] >= (limit if math.isfinite(limit) else self._longest))

    # ------------------------------------------------------------------ passed on

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """EvalCallback and users' code compare kinds of environments."""
        return type(self._base)

    def __reduce__(self) -> Any:  # pickle would take the other class
        return _restore, (), self.__dict__

    def __getattr__(self, name: str) -> Any:
        if name == "_base" or name.startswith("__"):  # while a copy is made there is nothing to ask yet
            raise AttributeError(name)
        return getattr(self._base, name)

    @property
    def unwrapped(self) -> VecEnv:
        """The environments beneath."""
        return self._base.unwrapped

    def close(self) -> None:
        """Close the environments beneath."""
        self._base.close()

    def has_attr(self, attr_name: str) -> bool:
        """
        Ask the environments beneath.

        :param attr_name: of an attribute
        :return: whether all copies have it
        """
        return self._base.has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Ask the environments beneath.

        :param attr_name: of an attribute
        :param indices: of the copies, None for all
        :return: values
        """
        return self._base.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of the environments beneath.

        :param attr_name: its name
        :param value: its value
        :param indices: of the copies, None for all
        """
        self._base.set_attr(attr_name, value, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environments beneath.

        :param method_name: its name
        :param method_args: its arguments
        :param indices: of the copies, None for all
        :param method_kwargs: its keyword arguments
        :return: what it returned
        """
        return self._base.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Ask the environments beneath.

        :param wrapper_class: of Gymnasium
        :param indices: of the copies, None for all
        :return: whether each copy is wrapped with it
        """
        return self._base.env_is_wrapped(wrapper_class, indices)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: an image of each copy"""
        return self._base.get_images()

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """
        Render the environments beneath.

        :param mode: as for ``VecEnv``
        :return: an image, if the mode asks for one
        """
        return self._base.render(mode)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Seed the next reset of the environments beneath.

        :param seed: of the first copy
        :return: of all
        """
        return self._base.seed(seed)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        Set the options of the next reset of the environments beneath.

        :param options: of each copy, or the same for all
        """
        self._base.set_options(options)

    def getattr_depth_check(self, name: str, already_found: bool) -> str | None:
        """
        Tell whether a wrapper hides an attribute.

        :param name: of the attribute
        :param already_found: whether a wrapper has it
        :return: whose attribute is hidden, if one is
        """
        return self._base.getattr_depth_check(name, already_found)


def install(env: VecEnv) -> ResetLayer:
    """
    Put the layer between the environments that step the copies and all wrappers, or find it where it is.

    :param env: wrapped or not; the lowest wrapper reads the layer from now on. Without a wrapper the layer is what is to be
        used in place of ``env``
    :return: the layer, as whoever had it before has left it
    """
    lowest: VecEnvWrapper | None = None
    # beneath the last may be a simulator with methods of its own, which only that wrapper knows how to call
    while isinstance(env, VecEnvWrapper) and isinstance(env.venv, VecEnv):
        lowest, env = env, env.venv
    if isinstance(env, ResetLayer):
        return env
    layer = ResetLayer(env)
    if lowest is not None:
        lowest.venv = layer
    return layer


def counted_infos(infos: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Take out the episodes that must not enter the means of the log: those that last until their early reset are the best of
    those that begin, or the worst.

    :param infos: of a step of all copies
    :return: the same, without ``"episode"`` and ``"is_success"`` where an episode is not counted
    """
    hidden = ("episode", "is_success")
    return [
        info if info.get(COUNTED, True) else {key: value for key, value in info.items() if key not in hidden} for info in infos
    ]


class LeavesEpisodes(BaseAlgorithm):
    """What an algorithm that leaves long episodes inherits beside its base of Stable-Baselines3."""

    reset_layer: ResetLayer | None = None
    """beneath the training environment since the first ``learn``"""

    @contextmanager
    def early_resets(
        self, choose: Callable[[ResetLayer], EarlyReset], rng: np.random.Generator | None = None
    ) -> Iterator[ResetLayer | None]:
        """
        Leave long episodes as long as the algorithm learns: in tests on the same environment episodes go on to their end.

        :param choose: the settings for these environments
        :param rng: draws the limits
        :return: the layer; None without an environment, which Stable-Baselines3 reports
        """
        if self.env is None:
            yield None
            return
        layer = self.reset_layer = install(self.env)
        self.env = layer.in_place_of(self.env)
        settings = choose(layer)
        layer.limit_episodes(settings.after, rng if settings.spread else None)
        try:
            yield layer
        finally:
            layer.limit_episodes(None, rng)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(counted_infos(infos), dones)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reset_layer"]


def _restore() -> ResetLayer:
    return ResetLayer.__new__(ResetLayer)


def _map(function: Callable[[Any], Any], observations: Any) -> Any:
    """Apply to each array of observations."""
    if isinstance(observations, dict):
        return {key: function(array) for key, array in observations.items()}
    if isinstance(observations, tuple):
        return tuple(function(array) for array in observations)
    return function(observations)


def _row(observations: Any, i: int) -> Any:
    """What copy i observes."""
    return _map(lambda array: array[i].copy(), observations)


def _put(observations: Any, i: int, observation: Any) -> None:
    """Set row i of each array."""
    if isinstance(observations, dict):
        for key, array in observations.items():
            array[i] = observation[key]
    elif isinstance(observations, tuple):
        for array, value in zip(observations, observation, strict=True):
            array[i] = value
    else:
        observations[i] = observation
