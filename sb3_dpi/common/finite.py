"""Environments that return something that is no number, and what it must not stay in."""

import copy
import math
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize


class NotFiniteError(ValueError):
    """An environment returned an observation or reward that is not finite."""


def check_finite(observations: Any, rewards: np.ndarray, n_steps: int, t: int | None = None) -> None:
    """Refuse what would spoil everything learned.

    :param observations: of all environments, ``[n_envs, ...]`` or a dictionary of such
    :param rewards: ``[n_envs]``
    :param n_steps: taken so far
    :param t: the time step of the trajectories; None where there are none
    :raises NotFiniteError: if a number is not finite, naming environment and step
    """
    arrays = observations.values() if isinstance(observations, dict) else (observations,)
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
