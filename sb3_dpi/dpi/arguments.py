"""What arguments of DPI mean that can be given in several ways."""

from dataclasses import fields
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_dpi.common.choices import as_schedule, parse_choice
from sb3_dpi.dpi.forms import AUTO
from sb3_dpi.models.experts import EXPERTS, Expert

DEFAULT_TEMPERATURE = 0.02


def make_expert(expert: str | dict[str, Any] | Expert, trust_region: float) -> Expert:
    """
    The expert that is meant.

    :param expert: its name, a dictionary of options with the name under ``"kind"``, or the expert itself
    :param trust_region: nats a step, where the options do not say
    :return: what plans
    :raises ValueError: if the name or an option is unknown
    """
    if not isinstance(expert, (str, dict)):
        return expert
    kind, options = parse_choice("expert", expert, tuple(EXPERTS))
    if kind != "pathwise":
        options.setdefault("trust_region", trust_region)
    try:
        return EXPERTS[kind](**options)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(EXPERTS[kind])) or "none"  # type: ignore[arg-type]
        raise ValueError(f"expert={expert!r}: options of {kind!r} are {known}") from error


def noise_scale_schedule(noise_scale: float | str | Schedule) -> Schedule | str:
    """
    What multiplies the noise.

    :param noise_scale: a number, ``"lin_NUMBER"``, a function of the progress remaining, or ``"auto"``
    :return: the function, or ``"auto"``
    :raises ValueError: if it is none of these, or below zero
    """
    if noise_scale == AUTO:
        return AUTO
    schedule = as_schedule("noise_scale", noise_scale)
    if not schedule(1.0) >= 0.0:
        raise ValueError(f"noise_scale must be at least 0, got {schedule(1.0)}")
    return schedule


def first_temperature(ent_coef: str | float) -> float:
    """
    The temperature at first.

    :param ent_coef: a number, ``"auto"`` or ``"auto_NUMBER"``
    :return: in units of value
    :raises ValueError: if it is none of these, or not above zero
    """
    given = str(ent_coef).removeprefix("auto").removeprefix("_")
    try:
        start = float(given) if given else DEFAULT_TEMPERATURE
    except ValueError:
        raise ValueError(f"ent_coef={ent_coef!r}: write a number, 'auto' or 'auto_NUMBER'") from None
    if not start > 0.0:
        raise ValueError(f"ent_coef must be above 0, got {ent_coef}")
    return start
