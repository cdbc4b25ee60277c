"""How far a model's predictions are from what happened, whatever kind of model it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sb3_dpi.diagnose.episodes import Episode
from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.trajopt.units import spread_or_one

HORIZONS = (1, 5, 20)
"""Steps ahead."""
MOST_STARTS = 1500
"""Starts of a horizon, evenly over all that there are."""
BINS = 10
"""Of equally many predictions, by their predicted spread."""


@dataclass(frozen=True)
class Starts:
    """Real stretches of h steps."""

    states: FloatArray
    """where they begin, ``[n, dx]``"""
    actions: FloatArray
    """as they were sent to the environment, in units of the bounds, ``[h, n, du]``"""
    truth: FloatArray
    """where they ended, ``[n, dx]``"""


@dataclass(frozen=True)
class Predictions:
    """What was predicted of real stretches, and what became of them, in the environment's units."""

    horizon: int
    """h"""
    start: FloatArray
    """``[n, dx]``"""
    truth: FloatArray
    """``[n, dx]``"""
    predicted: FloatArray
    """``[n, dx]``"""
    spread: FloatArray
    """standard deviation that the model itself gives, ``[n, dx]``"""

    @property
    def change_std(self) -> FloatArray:
        """By how much the state really changes within h steps, ``[dx]``; one where it does not."""
        change = self.truth - self.start
        return spread_or_one(change.std(0), np.abs(self.truth).mean(0))


def real_stretches(episodes: Sequence[Episode], horizon: int, most: int = MOST_STARTS) -> Starts:
    """
    Cut stretches out of episodes.

    :param episodes: real ones
    :param horizon: h
    :param most: how many at most
    :return: stretches, none where all episodes are shorter
    """
    places = [(i, t) for i, episode in enumerate(episodes) for t in range(len(episode) - horizon + 1)]
    chosen: IntArray = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))
    dx, du = episodes[0].states.shape[1], episodes[0].actions.shape[1]
    if not len(chosen):
        return Starts(np.zeros((0, dx)), np.zeros((horizon, 0, du)), np.zeros((0, dx)))
    picked = [places[k] for k in chosen]
    actions = [np.clip(episodes[i].actions[t : t + horizon], -1.0, 1.0) for i, t in picked]
    return Starts(
        np.stack([episodes[i].states[t] for i, t in picked]),
        np.stack(actions, axis=1),
        np.stack([episodes[i].states[t + horizon] for i, t in picked]),
    )


def error_table(predictions: Sequence[Predictions], names: Sequence[str]) -> pd.DataFrame:
    """
    The error of each number of the state.

    :param predictions: of each horizon
    :param names: of the numbers
    :return: a row a horizon and number: root mean square error and bias in the environment's units, the standard deviation
        of the real change, the error in it (``relative``: as good as to predict the mean change at 1), and how many
    """
    rows = []
    for found in predictions:
        error, unit = found.predicted - found.truth, found.change_std
        rmse = np.sqrt(np.square(error).mean(0))
        for k, name in enumerate(names):
            rows.append((found.horizon, name, rmse[k], error[:, k].mean(), unit[k], rmse[k] / unit[k], len(error)))
    return pd.DataFrame(rows, columns=["steps", "dimension", "rmse", "bias", "change_std", "relative", "n"])


def calibration_table(predictions: Sequence[Predictions]) -> pd.DataFrame:
    """
    What the model thinks that it does not know against what it does not know.

    :param predictions: of each horizon
    :return: a row a horizon and bin of equally many numbers, by the predicted spread: root mean squares of spread and error,
        both in standard deviations of the real change
    """
    rows = []
    for found in predictions:
        spread, error = (array.ravel() for array in (found.spread / found.change_std, _standard_error(found)))
        for k, part in enumerate(np.array_split(np.argsort(spread, kind="stable"), min(BINS, max(len(spread), 1)))):
            if len(part):
                rows.append((found.horizon, k, _rms(spread[part]), _rms(error[part]), len(part)))
    return pd.DataFrame(rows, columns=["steps", "bin", "spread", "error", "n"])


def rank_correlation(found: Predictions) -> float:
    """
    Whether the model is less sure where it is more wrong.

    :param found: predictions
    :return: Spearman's, of spread and absolute error; zero where either does not vary
    """
    spread, error = (found.spread / found.change_std).ravel(), np.abs(_standard_error(found)).ravel()
    if len(spread) < 3 or np.ptp(spread) == 0.0 or np.ptp(error) == 0.0:  # a standard deviation rounds
        return 0.0
    return float(spearmanr(spread, error).statistic)


def _standard_error(found: Predictions) -> FloatArray:
    error: FloatArray = (found.predicted - found.truth) / found.change_std
    return error


def _rms(array: FloatArray) -> float:
    return float(np.sqrt(np.square(array).mean()))
