"""The few numbers to look at first, and what is good."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sb3_dpi.diagnose.world import r_squared
from sb3_dpi.dpi.diagnostics import correlation
from sb3_dpi.trajopt.types import FloatArray

ERROR_LIMITS = {1: 0.3, 5: 0.5, 20: 1.0}
"""Median relative errors that are good, by steps ahead."""
RATIO_LIMITS = (0.5, 2.0)
"""Of error to spread."""
REWARD_LIMIT, RETURN_LIMIT, CRITIC_LIMIT = 0.8, 0.8, 0.7
END_LIMIT = 0.5
"""Mean probability of an end where one came."""
BIAS_LIMIT = 0.5
"""Of a critic, in standard deviations of the returns."""
AHEAD_LIMIT = 0.3
"""Share of what the expert is ahead by in the model that it keeps in reality."""
CERTAIN = 2.0
"""Standard errors above zero from which on the expert counts as ahead in the model."""
SATURATION_LIMIT = 0.5


@dataclass(frozen=True)
class KeyFigure:
    """One number."""

    name: str
    """in the logger, behind ``diagnose/``"""
    title: str
    """on the page"""
    value: float
    good: str = ""
    """what is good"""
    is_good: bool | None = None
    """None where that cannot be said"""
    chapter: str = ""
    """of the page, that shows more"""


def key_figures(tables: Mapping[str, pd.DataFrame]) -> list[KeyFigure]:
    """
    Read the key figures from tables.

    :param tables: of ``Findings``
    :return: those that there are
    """
    found = [_of_episodes(tables["episodes"])]
    for name, read in (
        ("prediction", _of_errors),
        ("calibration", _of_calibration),
        ("one_step", _of_rewards),
        ("returns", _of_returns),
        ("critic", _of_critic),
        ("windows", _of_windows),
        ("ahead", _of_ahead),
        ("kl", _of_kl),
        ("actions", _of_actions),
    ):
        if name in tables and len(tables[name]):
            found += read(tables[name])
    return [figure for figure in found if np.isfinite(figure.value)]


def _of_episodes(table: pd.DataFrame) -> KeyFigure:
    return KeyFigure("return", "Return of the policy without noise, mean", float(table["return"].mean()), chapter="episodes")


def _of_errors(table: pd.DataFrame) -> list[KeyFigure]:
    figures = []
    for steps, part in table.groupby("steps"):
        value, limit = float(part["relative"].median()), ERROR_LIMITS.get(int(steps))
        title = f"Error of the state {steps} step{'s' * (steps > 1)} ahead, median, in real changes"
        good = "" if limit is None else f"below {limit:g}"
        is_good = None if limit is None else value < limit
        figures.append(KeyFigure(f"error_{steps}", title, value, good, is_good, "prediction"))
    return figures


def _of_calibration(table: pd.DataFrame) -> list[KeyFigure]:
    steps = 5 if 5 in table["steps"].values else int(table["steps"].iloc[0])
    part = table[table["steps"] == steps]
    spread, error = (float(np.sqrt((part["n"] * part[name] ** 2).sum() / part["n"].sum())) for name in ("spread", "error"))
    ratio, (low, high) = (error / spread if spread > 0.0 else float("nan")), RATIO_LIMITS
    title = f"Error over predicted spread, {steps} steps ahead"
    good = f"{low:g} to {high:g}"
    return [KeyFigure("error_over_spread", title, ratio, good, low <= ratio <= high, "calibration")]


def _of_rewards(table: pd.DataFrame) -> list[KeyFigure]:
    value = r_squared(table["predicted"].to_numpy(), table["reward"].to_numpy())
    figures = [
        KeyFigure(
            *("r_squared_reward", "Share of the reward's variance that is predicted", value),
            *(f"above {REWARD_LIMIT:g}", value > REWARD_LIMIT, "one_step"),
        )
    ]
    if "ended" in table and table["ended"].any():
        known = float(table.loc[table["ended"], "end_probability"].mean())
        good = f"above {END_LIMIT:g}"
        figures.append(
            KeyFigure("end_probability", "Predicted probability of ends that came", known, good, known > END_LIMIT, "one_step")
        )
    return figures


def _of_returns(table: pd.DataFrame) -> list[KeyFigure]:
    steps = 20 if 20 in table["steps"].values else int(table["steps"].max())
    part = table[table["steps"] == steps] if 20 in table["steps"].values else table
    if len(part) < 3:
        return []
    value = _correlation(part["imagined"].to_numpy(), part["real"].to_numpy())
    title = f"Correlation of imagined and real returns over {steps} steps"
    good = f"above {RETURN_LIMIT:g}"
    return [KeyFigure("return_correlation", title, value, good, value > RETURN_LIMIT, "returns")]


def _of_critic(table: pd.DataFrame) -> list[KeyFigure]:
    critic, realised = table["critic"].to_numpy(), table["realised"].to_numpy()
    related, spread = _correlation(critic, realised), float(realised.std())
    bias = float((critic - realised).mean()) / spread if spread > 0.0 else float("nan")
    good, within = f"above {CRITIC_LIMIT:g}", f"-{BIAS_LIMIT:g} to {BIAS_LIMIT:g}"
    return [
        KeyFigure("critic_correlation", "Correlation of critic and return", related, good, related > CRITIC_LIMIT, "critic"),
        KeyFigure(
            *("critic_bias", "Critic beyond the return, in the returns' standard deviation", bias),
            *(within, abs(bias) <= BIAS_LIMIT, "critic"),
        ),
    ]


def _of_ahead(table: pd.DataFrame) -> list[KeyFigure]:
    steps = 20 if 20 in table["steps"].values else int(table["steps"].max())
    part = table[table["steps"] == steps]
    model, real = float(part["model"].mean()), float(part["real"].mean())
    error = float(part["model"].std()) / np.sqrt(len(part)) if len(part) > 1 else 0.0
    # where the policy has caught up there is nothing that reality could keep
    kept = real > AHEAD_LIMIT * model if model > CERTAIN * error else None
    in_model = "Expert beyond the policy in the model"
    return [
        KeyFigure("ahead_model", f"{in_model}, over {steps} steps", model, "above 0 until the end", chapter="ahead"),
        KeyFigure(
            *("ahead_real", f"The same in the real environment, over {steps} steps", real),
            *(f"above {AHEAD_LIMIT:g} of it", kept, "ahead"),
        ),
    ]


def _of_windows(table: pd.DataFrame) -> list[KeyFigure]:
    steps, value = int(table["steps"].iloc[0]), float(table["gain"].iloc[0])
    title = f"Gain by the expert in its windows of {steps} steps, closed by the critic, in rewards"
    return [KeyFigure("window_gain", title, value, "above 0", value > 0.0, "ahead")]


def _of_kl(table: pd.DataFrame) -> list[KeyFigure]:
    return [KeyFigure("kl", "KL of expert and policy, nats a step", float(table["kl"].mean()), chapter="kl")]


def _of_actions(table: pd.DataFrame) -> list[KeyFigure]:
    value = float(table.groupby("action")["saturated"].first().mean())
    good = f"below {SATURATION_LIMIT:g}"
    return [KeyFigure("saturation", "Share of actions at their bounds", value, good, value < SATURATION_LIMIT, "actions")]


def _correlation(first: FloatArray, second: FloatArray) -> float:
    """NaN, which is not shown, where one does not vary."""
    return correlation(first, second) if np.ptp(first) > 0.0 and np.ptp(second) > 0.0 else float("nan")
