"""Ranges of planners' numbers: outside of them a plan would be no number, or the opposite of what is meant."""

import math
from numbers import Integral
from typing import Any


def check_whole(planner: Any, *names: str) -> None:
    """
    Refuse counts that are none.

    :param planner: with its fields
    :param names: of those that must be whole numbers of at least 1
    :raises ValueError: that says which
    """
    for name in names:
        value = getattr(planner, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} of {type(planner).__name__} must be a whole number of at least 1, got {value!r}")


def check_range(planner: Any, name: str, low: float, high: float = math.inf, is_open: str = "") -> None:
    """
    Refuse a number that is out of range.

    :param planner: with its fields
    :param name: of the field
    :param low: lower end
    :param high: upper end
    :param is_open: ``"low"`` or ``"high"`` where that end does not belong to the range; an infinite one does
    :raises ValueError: that says which
    """
    value = getattr(planner, name)
    open_end = {"low": low, "high": high}.get(is_open)
    if hasattr(value, "__float__") and low <= value <= high and value != open_end:
        return
    said = f"{'above' if is_open == 'low' else 'at least'} {low:g}"
    if high < math.inf:
        said += f" and {'below' if is_open == 'high' else 'at most'} {high:g}"
    raise ValueError(f"{name} of {type(planner).__name__} must be a number {said}, got {value!r}")
