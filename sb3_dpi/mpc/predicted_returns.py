"""What plans predicted, beside what came of them."""

from collections.abc import Callable

import numpy as np

from sb3_dpi.trajopt.types import FloatArray


class PredictedReturns:
    """
    Follows one plan of each environment at a time, until its horizon or the end of the episode.

    :param n_envs: environments
    :param horizon: T
    :param gamma: discount factor
    :param terminal_value: of observations ``[n, do]``; None for none
    """

    def __init__(
        self, n_envs: int, horizon: int, gamma: float, terminal_value: Callable[[FloatArray], FloatArray] | None
    ) -> None:
        self.horizon, self.gamma, self.terminal_value = horizon, gamma, terminal_value
        self.predicted: FloatArray = np.full(n_envs, np.nan)
        self.earned: FloatArray = np.zeros(n_envs)
        self.steps = np.zeros(n_envs, dtype=int)
        self.pairs: list[tuple[float, float]] = []
        self.seconds: list[float] = []

    def planned(self, rows: np.ndarray) -> None:
        """
        Look at what was planned.

        :param rows: what is kept of the plans, ``[n_envs]``
        """
        new = rows["age"] == 0
        self.seconds += rows["seconds"][new].tolist()
        for i in np.flatnonzero(new & np.isnan(self.predicted)):
            self.predicted[i], self.earned[i], self.steps[i] = rows["predicted_return"][i], 0.0, 0

    def stepped(self, rewards: FloatArray, dones: np.ndarray, truncated: np.ndarray, following: FloatArray) -> None:
        """
        Look at what came.

        :param rewards: ``[n_envs]``
        :param dones: which episodes ended, ``[n_envs]``
        :param truncated: which of these by a time limit, ``[n_envs]``
        :param following: original observations after the step, ``[n_envs, do]``
        """
        for i in np.flatnonzero(~np.isnan(self.predicted)):
            self.earned[i] += self.gamma ** self.steps[i] * rewards[i]
            self.steps[i] += 1
            is_over, is_whole = bool(dones[i]), self.steps[i] >= self.horizon
            if is_whole and not is_over and self.terminal_value is not None:
                self.earned[i] += self.gamma ** self.steps[i] * float(self.terminal_value(following[i][None])[0])
            if (is_over and not truncated[i]) or (is_whole and not is_over):
                self.pairs.append((float(self.predicted[i]), float(self.earned[i])))
            if is_over or is_whole:
                self.predicted[i] = np.nan

    def summary(self) -> dict[str, float]:
        """
        Average, and begin anew.

        :return: numbers for the logger
        """
        measured = {}
        if self.seconds:
            measured["plan/seconds"] = float(np.mean(self.seconds))
            measured["plan/plans_per_second"] = 1.0 / max(measured["plan/seconds"], 1e-9)
        if self.pairs:
            measured["plan/predicted_return"], measured["plan/real_return"] = np.mean(self.pairs, axis=0).tolist()
        self.seconds, self.pairs = [], []
        return measured
