"""Environments that return something that is no number, and what it must not stay in."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.trajopt.types import NotFiniteReturnError

LARGEST_REWARD = float(np.finfo(np.float32).max) / 1e4
"""Buffers of Stable-Baselines3 keep sums of rewards in single precision."""
LARGEST_OBSERVATION = 1e150
"""Whose squares have sums in double precision."""

ADVICE = (
    "The model is as before this rollout and can be saved; fix the environment, end its episodes before it diverges, or take "
    "other units"
)


class NotFiniteError(ValueError):
    """An observation or reward is not finite, or sums of it would not be."""


def check_finite(observations: Any, rewards: np.ndarray, n_steps: int, t: int | None = None, first: int = 0) -> None:
    """Refuse what would spoil everything learned: what is not finite, or so large that what is made of it is not.

    :param observations: of all environments, ``[n_envs, ...]`` or a dictionary of such
    :param rewards: ``[n_envs]``
    :param n_steps: taken so far
    :param t: the time step of the trajectories; None where there are none
    :param first: number of the first environment
    :raises NotFiniteError: if a number is not finite or too large, naming environment and step
    """
    arrays = list(observations.values() if isinstance(observations, dict) else (observations,))
    rewards = np.asarray(rewards)  # some wrappers return a list
    total = 0.0
    for array in arrays:
        if array.dtype.kind == "f":
            flat = array.ravel()
            total += float(flat.dot(flat))  # the fastest way to see a NaN or infinity in a few numbers
    # a sum that is not finite may be one of single precision, of numbers that are sound
    if math.isfinite(total) and sum(map(abs, rewards.tolist())) <= LARGEST_REWARD:
        return
    numbers = [("an observation", a.reshape(len(a), -1).astype(np.float64), LARGEST_OBSERVATION) for a in arrays]
    where = f"after {n_steps} steps in all"
    if t is not None:
        where = f"at step {t} of its trajectory ({where})"
    for what, rows, largest in (*numbers, ("a reward", rewards.reshape(-1, 1), LARGEST_REWARD)):
        for is_bad, why in ((~np.isfinite(rows), "is not finite"), (np.abs(rows) > largest, f"is beyond {largest:.0e}")):
            if is_bad.any():
                raise NotFiniteError(
                    f"Environment {first + int(np.argmax(is_bad.any(1)))} returned {what} that {why} {where}. {ADVICE}"
                )


def check_step(observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], n_steps: int) -> None:
    """Refuse the same in what a step of a VecEnv returned, what episodes ended with included.

    :param observations: of all environments, after their automatic resets, ``[n_envs, ...]`` or a dictionary of such
    :param rewards: ``[n_envs]``
    :param dones: which episodes have ended, ``[n_envs]``
    :param infos: of the environments
    :param n_steps: taken so far
    :raises NotFiniteError: if a number is not finite or too large, naming environment and step
    """
    check_finite(observations, rewards, n_steps)
    for i in np.flatnonzero(dones):
        last: Any = infos[i].get("terminal_observation")
        if last is not None:
            keys = observations if isinstance(observations, dict) else None
            ended: Any = np.asarray(last)[None] if keys is None else {key: np.asarray(last[key])[None] for key in keys}
            check_finite(ended, np.zeros(1), n_steps, first=int(i))


@contextmanager
def planning_for(environment: int) -> Iterator[None]:
    """Say of which environment a plan is.

    :param environment: its number
    """
    try:
        yield
    except NotFiniteReturnError as error:
        raise NotFiniteReturnError(str(error), environment) from error


@contextmanager
def planning_after(n_steps: int) -> Iterator[None]:
    """Say when a plan met what is not finite, for what is planned in is mostly a copy of the environment.

    :param n_steps: of all environments, taken so far
    :raises NotFiniteError: in place of what a plan raises, naming environment and step
    """
    try:
        yield
    except NotFiniteReturnError as error:
        raise NotFiniteError(f"Environment {error.index or 0}, after {n_steps} steps in all: {error}. {ADVICE}") from error


def check_observation(observation: PyTorchObs) -> None:
    """Refuse an observation that no action can be chosen by.

    :param observation: what a policy is asked about, ``[n, ...]`` or a dictionary of such
    :raises NotFiniteError: if a number is not finite, naming the first
    """
    for key, tensor in observation.items() if isinstance(observation, dict) else (("", observation),):
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            continue
        bad = th.nonzero(~th.isfinite(tensor.reshape(len(tensor), -1)))
        if len(bad):
            row, column = bad[0].tolist()
            where = f"number {column} of " + (f"{key!r} in " if key else "") + f"observation {row}"
            raise NotFiniteError(
                f"No action can be predicted: {where} is {float(tensor.reshape(len(tensor), -1)[row, column])}. Look for what "
                "made it: the environment, a wrapper, or a division by zero in what is given to predict()"
            )


class KeptStatistics:
    """VecNormalize's running statistics as they were: what is not finite would stay in them.

    :param normalizer: whose they are; None where there is none
    """

    def __init__(self, normalizer: VecNormalize | None) -> None:
        self._normalizer = normalizer
        # without normalisation of observations it has no statistics of them
        own = {} if normalizer is None else {name: vars(normalizer).get(name) for name in ("obs_rms", "ret_rms")}
        self._statistics = copy.deepcopy({name: value for name, value in own.items() if value is not None})

    def restore(self) -> None:
        """Forget what came since."""
        if self._normalizer is not None:
            vars(self._normalizer).update(self._statistics)
