"""Environments that return something that is no number, and what it must not stay in."""

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize


def check_finite(observations: Any, rewards: np.ndarray, n_steps: int) -> None:
    """Refuse what would spoil everything learned.

    :param observations: of all environments, ``[N, ...]`` or a dictionary of such
    :param rewards: ``[N]``
    :param n_steps: taken so far
    :raises ValueError: if a number is not finite
    """
    fine = np.isfinite(rewards)
    what = "a reward"
    for array in observations.values() if isinstance(observations, dict) else (observations,):
        if fine.all() and array.dtype.kind == "f" and not np.isfinite(array).all():
            fine, what = np.isfinite(array.reshape(len(array), -1)).all(1), "an observation"
    if not fine.all():
        raise ValueError(
            f"Environment {int(np.argmin(fine))} returned {what} that is not finite after {n_steps} steps in all. "
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
