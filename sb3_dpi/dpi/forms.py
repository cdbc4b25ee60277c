"""The two forms of DPI, and which of them a task calls for.

What a model misses is added to what it foretells for other actions: that is the anchor. Pendulums balance with it and hardly
without; there short blocks, quick critics and many beginnings help as well. Where falls end episodes, speed pays and the model
misses much, as where feet meet the ground, policies stay at the first leap they find in this form. There the model is left
free; long blocks, slow critics that see far, whole episodes and noise that lasts and is strong do better (``docs/dpi.md`` has
the trials).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sb3_dpi.models.data import Transitions
from sb3_dpi.models.ensemble import DivergedError, Ensemble

AUTO = "auto"

ENOUGH_FALLS = 10
"""Random episodes that must have ended by themselves before a task counts as one with falls."""
SPREAD_OF_REWARDS = 0.05
"""Standard deviation of rewards in units of their mean size from which steps pay differently: double pendulums have .02,
humanoids .11, hoppers .35 and more."""
FORESEEN = 0.99
"""R^2 of changes of the state below which a model misses much: a first one of pendulums has .95 to 1, of hoppers .3 to .98."""
MODEL_STEPS, MODEL_BATCH = 1500, 64
"""Of the fit that tells."""


@dataclass(frozen=True)
class Form:
    """What arguments that are left to DPI become."""

    short_start: bool
    """whether random steps end once enough episodes have ended"""
    n_steps: int
    """real steps of all environments between updates"""
    tau: float
    anchor: bool
    target_kl: float | None
    restart_after: int | None
    averaging: float
    noise_correlation: float
    noise_scale: float
    gamma: float
    """where no time limit asks for less"""
    critic_settling: int | None
    branch_length: int


ANCHORED = Form(
    short_start=True,
    n_steps=125,
    tau=0.02,
    anchor=True,
    target_kl=1.0,
    restart_after=125,
    averaging=0.004,
    noise_correlation=0.0,
    noise_scale=1.0,
    gamma=0.99,
    critic_settling=None,
    branch_length=1,
)
FREE = Form(
    short_start=False,
    n_steps=250,
    tau=0.005,
    anchor=False,
    target_kl=None,
    restart_after=None,
    averaging=0.001,
    noise_correlation=0.8,
    noise_scale=2.0,
    gamma=0.995,
    critic_settling=20_000,
    branch_length=10,
)

COUNTS = "restart_after", "critic_settling", "branch_length"
LEFT_TO_DPI = ("tau", "anchor", "target_kl", "averaging", "noise_correlation", *COUNTS)
"""Arguments that may be ``"auto"`` and are no schedules."""
MAY_BE_NONE = "target_kl", "restart_after", "critic_settling"


def adapt(form: Form, arguments: Mapping[str, Any]) -> Form:
    """
    Let what was given stand in place of a form's own.

    :param form: what suits the task
    :param arguments: values of ``LEFT_TO_DPI`` or ``"auto"``, and whatever else
    :return: the form to learn with
    :raises ValueError: if a value is out of range or no number
    """
    given = {name: arguments[name] for name in LEFT_TO_DPI if arguments[name] != AUTO}
    for name, value in given.items():
        if isinstance(value, str) or (value is None and name not in MAY_BE_NONE):
            raise ValueError(f"{name}={value!r}: write a number or {AUTO!r}")
    adapted = replace(form, **given)
    if not 0.0 <= adapted.averaging <= 1.0:
        raise ValueError(f"averaging must be from 0 to 1, got {adapted.averaging}")
    for name in COUNTS:
        value = getattr(adapted, name)
        if value is not None and not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= adapted.noise_correlation < 1.0:
        raise ValueError(f"noise_correlation must be at least 0 and below 1, got {adapted.noise_correlation}")
    for name in ("tau", "target_kl"):
        value = getattr(adapted, name)
        if value is not None and not value > 0.0:
            raise ValueError(f"{name} must be above 0, got {value}")
    return adapted


def foreseen(ensemble: Ensemble, data: Transitions) -> float:
    """
    How much of the latest steps a model tells after it has learned from those before.

    :param ensemble: a model that has learned nothing yet, and stays so
    :param data: random steps
    :return: R^2 of the changes of state in the latest fifth of the steps, the median over the state's dimensions
    """
    learner, latest = copy.deepcopy(ensemble), data.age < np.quantile(data.age, 0.2)
    learner.update_units(data)
    try:
        learner.fit(data.take(np.flatnonzero(~latest)), MODEL_STEPS, MODEL_BATCH, np.random.default_rng(len(data)))
    except DivergedError:
        return -np.inf  # if that lasts, the first fit that counts says so
    return learner.r_squared(data.take(np.flatnonzero(latest)))[0]


def pays_differently(data: Transitions) -> bool:
    """
    Whether there is more to earn than by not falling.

    :param data: random steps
    :return: whether the rewards of steps that do not end an episode vary
    """
    rewards = data.rewards[~data.terminated]
    return len(rewards) > 0 and bool(rewards.std() > SPREAD_OF_REWARDS * np.abs(rewards).mean())


def suited(ensemble: Ensemble, data: Transitions) -> Form:
    """
    Choose a form.

    :param ensemble: a model that has learned nothing yet, and stays so
    :param data: random steps
    :return: ``FREE`` where episodes end by themselves, steps pay differently and the model misses much, else ``ANCHORED``
    """
    falls = int(data.terminated.sum()) >= ENOUGH_FALLS
    return FREE if falls and pays_differently(data) and foreseen(ensemble, data) < FORESEEN else ANCHORED
