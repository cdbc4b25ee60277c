"""Environments that return something that is no number."""

from typing import Any

import numpy as np


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
