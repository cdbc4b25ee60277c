"""The two forms of DPI, and which of them a task calls for.

Where random actions end episodes within a few steps, errors grow many times over in as many: there the model is anchored in
real steps, and short blocks, quick critics and many beginnings help. Where falls take longer, policies in this form stay at
the first leap that they find: there the model is left free, and long blocks, slow critics and whole episodes do better
(``docs/dpi.md`` has the trials).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sb3_dpi.models.data import Transitions

AUTO = "auto"

ENOUGH_EPISODES = 25
"""Random episodes that tell how fast a task's episodes end."""
QUICK_END = 10.0
"""Steps of a random episode, mean, below which imagination must be anchored: pendulums last 6 or 7, walkers 16 to 22."""


@dataclass(frozen=True)
class Form:
    """What arguments that are left to DPI become."""

    n_steps: int
    """real steps of all environments between updates"""
    tau: float
    anchor: bool
    target_kl: float | None
    restart_after: int | None
    averaging: float


ANCHORED = Form(n_steps=125, tau=0.02, anchor=True, target_kl=1.0, restart_after=125, averaging=0.004)
FREE = Form(n_steps=250, tau=0.005, anchor=False, target_kl=None, restart_after=None, averaging=0.001)

LEFT_TO_DPI = ("tau", "anchor", "target_kl", "restart_after", "averaging")
"""Arguments that may be ``"auto"``."""
MAY_BE_NONE = "target_kl", "restart_after"


def adapt(form: Form, arguments: Mapping[str, Any]) -> Form:
    """
    Let what was given stand in place of a form's own.

    :param form: what suits the task
    :param arguments: values of ``LEFT_TO_DPI``, or ``"auto"``
    :return: the form to learn with
    :raises ValueError: if a value is out of range or no number
    """
    given = {name: value for name, value in arguments.items() if not (isinstance(value, str) and value == AUTO)}
    for name, value in given.items():
        if isinstance(value, str) or (value is None and name not in MAY_BE_NONE):
            raise ValueError(f"{name}={value!r}: write a number or {AUTO!r}")
    adapted = replace(form, **given)
    if not 0.0 <= adapted.averaging <= 1.0:
        raise ValueError(f"averaging must be from 0 to 1, got {adapted.averaging}")
    if adapted.restart_after is not None and not adapted.restart_after >= 1:
        raise ValueError(f"restart_after must be at least 1, got {adapted.restart_after}")
    for name in ("tau", "target_kl"):
        value = getattr(adapted, name)
        if value is not None and not value > 0.0:
            raise ValueError(f"{name} must be above 0, got {value}")
    return adapted


def ends_slowly(n_steps: int, n_episodes: int) -> bool:
    """
    Whether errors have time before an episode ends.

    :param n_steps: random steps
    :param n_episodes: episodes that ended within them
    :return: whether episodes last ``QUICK_END`` steps or more
    """
    return n_steps >= QUICK_END * n_episodes


def suited(data: Transitions) -> Form:
    """
    Choose a form.

    :param data: the random steps at the beginning
    :return: ``FREE`` where enough episodes ended by themselves and slowly, else ``ANCHORED``
    """
    n_ended = int(data.terminated.sum())
    return FREE if n_ended >= ENOUGH_EPISODES and ends_slowly(len(data), n_ended) else ANCHORED
