"""What a rollout buffer does not keep: how episodes ended, and the true observations behind their last steps."""

from typing import Any

import numpy as np


def flatten_time(array: Any) -> Any:
    """Join the axes of time and environments.

    :param array: ``[T, N, ...]``, or a dictionary of such
    :return: ``[T * N, ...]``
    """
    if isinstance(array, dict):
        return {key: flatten_time(value) for key, value in array.items()}
    return array.reshape(-1, *array.shape[2:])


def concatenate(first: Any, second: Any) -> Any:
    """Put observations behind others.

    :param first: array ``[n, ...]`` or dictionary of arrays
    :param second: array ``[m, ...]`` or dictionary of arrays, reshaped to fit; None where there are none
    :return: ``[n + m, ...]``
    """
    if second is None:
        return first
    if isinstance(first, dict):
        return {key: concatenate(value, second[key]) for key, value in first.items()}
    return np.concatenate([first, np.asarray(second).reshape(-1, *first.shape[1:]).astype(first.dtype)])


class Endings:
    """How the episodes of a rollout ended.

    :param n_steps: T
    :param n_envs: N
    """

    def __init__(self, n_steps: int, n_envs: int) -> None:
        self.terminated = np.zeros((n_steps, n_envs), dtype=bool)
        self.truncated = np.zeros((n_steps, n_envs), dtype=bool)
        self._cut: list[Any] = []

    @property
    def ends(self) -> np.ndarray:
        """Last step of an episode or of the rollout, ``[T, N]``."""
        ends = self.terminated | self.truncated
        ends[-1] = True
        return ends

    def add(self, t: int, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Note how a step ended.

        :param t: which step
        :param new_obs: of all environments, after their automatic resets
        :param dones: ``[N]``
        :param infos: of the environments
        """
        is_last = t == len(self.terminated) - 1
        if not is_last and not any(dones.tolist()):
            return
        for i, done in enumerate(dones):
            truncated = bool(done) and bool(infos[i].get("TimeLimit.truncated", False))
            self.truncated[t, i], self.terminated[t, i] = truncated, bool(done) and not truncated
            if truncated:
                self._cut.append(infos[i]["terminal_observation"])
            elif is_last and not done:
                self._cut.append(
                    {key: value[i] for key, value in new_obs.items()} if isinstance(new_obs, dict) else new_obs[i]
                )

    def observations(self) -> Any:
        """Those behind the steps at which an episode was cut, by a time limit or the rollout's end, in the order of time.

        :return: array ``[n, ...]`` or dictionary of arrays; None where there are none
        """
        if not self._cut:
            return None
        if isinstance(self._cut[0], dict):
            return {key: np.stack([obs[key] for obs in self._cut]) for key in self._cut[0]}
        return np.stack(self._cut)
