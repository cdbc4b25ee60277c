"""Environments that return something that is no number, and what it must not stay in."""

import copy
import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize


class NotFiniteError(ValueError):
    """An observation or reward is not finite."""


def check_finite(observations: Any, rewards: np.ndarray, n_steps: int, t: int | None = None) -> None:
    """Refuse what would spoil everything learned.

    :param observations: of all environments, ``[n_envs, ...]`` or a dictionary of such
    :param rewards: ``[n_envs]``
    :param n_steps: taken so far
    :param t: the time step of the trajectories; None where there are none
    :raises NotFiniteError: if a number is not finite, naming environment and step
    """
    arrays = observations.values() if isinstance(observations, dict) else (observations,)
    rewards = np.asarray(rewards)  # some wrappers return a list
    total = sum(rewards.tolist())
    for array in arrays:
        if array.dtype.kind == "f":
            flat = array.ravel()
            total += float(flat.dot(flat))  # the fastest way to see a NaN or infinity in a few numbers
    if math.isfinite(total):
        return
    bad = np.zeros(len(rewards), dtype=bool)
    for array in arrays:
        bad |= ~np.isfinite(array.reshape(len(array), -1)).all(1)
    what = "an observation" if bad.any() else "a reward"
    if not bad.any():
        bad = ~np.isfinite(rewards)
    if not bad.any():  # finite numbers whose sum is not
        return
    where = f"after {n_steps} steps in all"
    if t is not None:
        where = f"at step {t} of its trajectory ({where})"
    raise NotFiniteError(
        f"Environment {int(np.argmax(bad))} returned {what} that is not finite {where}. "
        "The model is as before this rollout and can be saved; fix the environment, or end its episodes before it diverges"
    )


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
