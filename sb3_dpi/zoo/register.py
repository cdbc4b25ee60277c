"""The algorithms of this package, by the name that RL Zoo and the command line use."""

import importlib
import inspect
import re
from collections.abc import Iterable, MutableMapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dpi.common.saved_models import renamed_arguments
from sb3_dpi.zoo.cause import in_one_line

ALGORITHMS = {
    "aggrevated_oc": "AggreVaTeDOC",
    "dagger": "DAgger",
    "dpi": "DPI",
    "dual_ac": "DualAC",
    "exit": "ExIt",
    "mdgps": "MDGPS",
    "mpc": "MPC",
}
"""From name to class in ``sb3_dpi``; the name is also that of the file in ``zoo/hyperparams``"""
OTHER_NAMES = {"ppo_lstm": "RecurrentPPO"}
"""Where RL Zoo's name of an algorithm is not that of its class"""


SCHEDULE = re.compile(r"(lin_)?[-+.\deE]+")
"""A text that stands for a number, or for one that falls to zero"""
_NUMBERS = {"class", "int", "float", "None", "NoneType", "typing", "Union", "Optional", "collections", "abc", "Callable"}
"""The words of an annotation that takes numbers and schedules only"""


def _is_algorithm(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseAlgorithm) and candidate is not BaseAlgorithm


@cache
def _library_algorithms() -> dict[str, Any]:
    classes = {}
    for module in map(importlib.import_module, ("stable_baselines3", "sb3_contrib")):
        classes.update({name: getattr(module, name) for name in module.__all__ if _is_algorithm(getattr(module, name))})
    named = {name: classes.pop(attribute) for name, attribute in OTHER_NAMES.items() if attribute in classes}
    return {**{name.lower(): found for name, found in classes.items()}, **named}


def closest(name: str, valid: Iterable[str], n: int = 1, prefix: str = "") -> str:
    """Suggest what may have been meant, up to ``n`` names: ``"did you mean 'x'?"``, or nothing where none is close."""
    by_lower_case = {candidate.lower(): candidate for candidate in valid}
    found = [repr(prefix + by_lower_case[match]) for match in get_close_matches(name.lower(), by_lower_case, n)]
    if len(found) > 1:
        found = [", ".join(found[:-1]), found[-1]]
    return f"did you mean {' or '.join(found)}?" if found else ""


def _unknown_algorithm(name: str) -> ValueError:
    valid = sorted({*ALGORITHMS, *_library_algorithms()})
    text = f"Unknown algorithm {name!r}, choose one of: {', '.join(valid)}, or module:Class for one of your own"
    suggestion = closest(name, valid, 3)
    return ValueError(f"{text}; {suggestion}" if suggestion else text)


def _imported_class(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        hint = "; install it, or run from its folder or with that on PYTHONPATH" if is_missing else ""
        raise ValueError(
            f"Unknown algorithm {name!r}: the module {module_name!r} cannot be imported: {in_one_line(error)}{hint}"
        ) from error
    found = getattr(module, attribute, None)
    if _is_algorithm(found):
        return found
    problem = f"has no class {attribute!r}" if found is None else f"has {attribute!r}, but it is no subclass of BaseAlgorithm"
    valid = [key for key, value in vars(module).items() if _is_algorithm(value)]
    suggestion = closest(attribute, valid, 3) or (f"it has {', '.join(valid)}" if valid else "")
    text = f"Unknown algorithm {name!r}: the module {module_name!r} {problem}"
    raise ValueError(f"{text}; {suggestion}" if suggestion else text)


def algorithm_class(name: str) -> Any:
    """
    Find an algorithm of this package, of Stable-Baselines3, of sb3-contrib or, as ``module:Class``, of any module.

    :param name: Its name as in RL Zoo, for instance ``"mdgps"``, ``"ppo"`` or ``"ppo_lstm"``
    :raises ValueError: If no such algorithm exists; the message offers the closest names
    """
    if name in ALGORITHMS:
        return getattr(importlib.import_module("sb3_dpi"), ALGORITHMS[name])
    if ":" in name:
        return _imported_class(name)
    found = _library_algorithms().get(name)
    if found is None:
        raise _unknown_algorithm(name)
    return found


def unknown_argument(algorithm: type[Any], name: str, also: Iterable[str] = (), without: Iterable[str] = ()) -> str:
    """
    Tell whether an algorithm takes an argument.

    :param also: What else may be written in its place
    :param without: Arguments that are not the user's to give
    :return: What is wrong, with the closest names; empty where it is taken, or where the class takes anything
    """
    parameters = inspect.signature(algorithm).parameters.values()
    valid = [*(parameter.name for parameter in parameters if parameter.name not in without), *also]
    if name in valid or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ""
    if name in (renamed := renamed_arguments(algorithm)):
        return f"{algorithm.__name__} takes other words now, write {renamed[name]}"
    suggestion = closest(name, valid, 3) or f"choose one of: {', '.join(valid)}"
    return f"{algorithm.__name__} takes no such hyperparameter, {suggestion}"


def impossible_value(algorithm: type[Any], name: str, value: Any) -> str:
    """
    Tell whether a value is of a kind that an argument cannot have: no number where it takes numbers only.

    :return: What is wrong; empty where nothing is known to be
    """
    parameter = inspect.signature(algorithm).parameters.get(name)
    if parameter is None:
        return ""
    is_annotated = parameter.annotation is not parameter.empty
    words = set(re.findall(r"\w+", str(parameter.annotation if is_annotated else type(parameter.default))))
    if not words <= _NUMBERS or not words & {"int", "float"}:
        return ""
    if isinstance(value, list | dict) or (isinstance(value, str) and not SCHEDULE.fullmatch(value)):
        return f"a number is needed, not {value!r}"
    # A default of 1 without an annotation may be a fraction all the same
    if is_annotated and "float" not in words and isinstance(value, float) and not value.is_integer():
        return f"a whole number is needed, not {value}"
    return ""


def register_algorithms(registry: MutableMapping[str, Any], *names: str) -> list[str]:
    """
    Add algorithms to RL Zoo.

    :param registry: ``rl_zoo3.ALGOS``, changed in place because every module of RL Zoo holds the same object
    :param names: As for ``algorithm_class``; those of this package by default
    :return: The names under which RL Zoo finds them, and its folders have: of ``module:Class`` the class in lower case
    :raises ValueError: If there is no such algorithm
    """
    found = {name.rpartition(":")[2].lower(): algorithm_class(name) for name in names or ALGORITHMS}
    registry.update(found)
    return list(found)
