"""Arguments that are chosen by name, so that a YAML file can say them."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, SupportsFloat, TypeVar, Union, get_args, get_origin

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

Settings = TypeVar("Settings")


def arguments_of_base(given: Mapping[str, Any], base: type) -> dict[str, Any]:
    """Find what a constructor hands on to its base under the same name.

    :param given: ``locals()`` at the constructor's beginning
    :param base: whose constructor is called; where it takes any keyword, so do those of its own bases
    :return: arguments by name
    """
    taken: set[str] = set()
    for cls in base.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters
        taken.update(name for name in parameters if name != "self" and not name.startswith("_"))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return {name: value for name, value in given.items() if name in taken}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Reject an unknown name with the list of known ones.

    :param name: of the argument
    :param value: what was given
    :param choices: what is valid
    :raises ValueError: if ``value`` is not among ``choices``
    """
    if value not in choices:
        raise ValueError(f"Unknown {name} {value!r}: choose one of " + ", ".join(repr(choice) for choice in choices))


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, open_below: bool = False, may_be_inf: bool = False
) -> None:
    """Reject what is out of range, NaN, and infinity where it has no meaning.

    :param name: of the argument
    :param value: what was given
    :param low: smallest that is valid
    :param high: largest that is valid
    :param open_below: whether it must be above ``low``
    :param may_be_inf: whether infinity is valid
    :raises ValueError: that names argument and value
    """
    is_inside = (low < value if open_below else low <= value) and value <= high
    if is_inside and (may_be_inf or math.isfinite(value)):
        return
    if high < math.inf:
        said = f"above {low:g} and at most {high:g}" if open_below else f"from {low:g} to {high:g}"
    else:
        said = (
            ("above" if open_below else "at least") + f" {low:g}" + ("" if may_be_inf or value < math.inf else " and finite")
        )
    raise ValueError(f"{name} must be {said}, got {value}")


def as_number(name: str, value: Any, annotation: Any) -> Any:
    """Read an argument whose annotation says that it is a number.

    :param name: of the argument
    :param value: what was given
    :param annotation: its type, or several; where others than numbers and None are among them, other values are left alone
    :return: the value; a float that is whole as an integer where only integers are meant
    :raises ValueError: if it is no number, or has a fraction where none is meant
    """
    kinds = _kinds(annotation)
    is_whole = int in kinds and float not in kinds
    what = f"{name} must be a {'whole ' if is_whole else ''}number{', or None' if NoneType in kinds else ''}, got {value!r}"
    if int not in kinds and float not in kinds:
        return value
    if all(kind in (int, float, NoneType) for kind in kinds) and not isinstance(value, SupportsFloat):
        if value is None and NoneType in kinds:
            return value
        is_text = isinstance(value, str)
        raise ValueError(what + (": write it without quotes (YAML reads 1e-3 as text, 1.0e-3 as a number)" if is_text else ""))
    if is_whole and isinstance(value, float):
        if not value.is_integer():
            raise ValueError(what)
        return int(value)
    return value


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


KINDS: dict[Any, tuple[str, Any]] = {
    str: ("a name", str),
    int: ("a number", SupportsFloat),
    float: ("a number", SupportsFloat),
    bool: ("True or False", bool),
    dict: ("a dictionary", Mapping),
    Callable: ("a function", Callable),
    NoneType: ("None", NoneType),
}
"""What kinds of arguments are called, and what is taken for them."""


def check_kind(name: str, value: Any, annotation: Any) -> None:
    """Refuse what is of none of the kinds that an annotation names.

    :param name: of the argument
    :param value: what was given
    :param annotation: its type, or several; where these cannot be told, as protocols, or say themselves what they are read
        from (see ``as_settings``), nothing is refused
    :raises ValueError: that says what it must be
    """
    said = []
    for kind in _kinds(annotation):
        origin, base = get_origin(kind) or kind, next(iter(get_args(kind)), object)
        if origin is type and isinstance(base, type):
            what, is_one = f"a class derived from {base.__name__}", isinstance(value, type) and issubclass(value, base)
        elif not isinstance(origin, type) or origin in (Any, Mapping) or getattr(origin, "_is_protocol", False):
            return
        else:
            what, taken = KINDS.get(origin, (f"of the class {origin.__name__}", origin))
            is_one = value in (0, 1) if origin is bool and isinstance(value, int) else isinstance(value, taken)
        if is_one:
            return
        said.append(what)
    quoted = isinstance(value, str) and bool in _kinds(annotation)
    raise ValueError(
        f"{name} must be {' or '.join(dict.fromkeys(said))}, got {value!r}{': write it without quotes' if quoted else ''}"
    )


def parse_choice(name: str, value: str | dict[str, Any], choices: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Split a choice into its name and its options.

    :param name: of the argument
    :param value: a name, or a dictionary of options whose key ``"kind"`` is the name
    :param choices: valid names
    :return: name and options
    :raises ValueError: if the name is unknown or missing
    """
    check_kind(name, value, str | dict)
    options: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
    kind = str(options.pop("kind", None))
    check_choice(name, kind, choices)
    return kind, options


def as_schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    """Read an argument that may change over training: as RL Zoo's files write it, or as SB3 takes it.

    :param name: of the argument, for the error
    :param value: a number, ``"lin_0.1"`` (falls from 0.1 to zero) or a function of the progress remaining, from 1 to 0
    :return: the function
    :raises ValueError: if a string is not of this form
    """
    check_kind(name, value, float | str | Callable)
    if not isinstance(value, str):
        return FloatSchedule(value)
    try:
        start = float(value.removeprefix("lin_"))
    except ValueError:
        raise ValueError(f"{name}={value!r} is no schedule: write a number or lin_NUMBER (falls to zero)") from None
    return FloatSchedule(LinearSchedule(start, 0.0, 1.0) if value.startswith("lin_") else start)


def numbers_of(name: str, cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the numbers in a dictionary of settings.

    :param name: of the argument, for the error
    :param cls: a dataclass
    :param given: some of its fields
    :return: a copy, see ``as_number``
    :raises ValueError: if a number is none
    """
    kinds = {field.name: field.type for field in fields(cls)}
    return {key: as_number(f"{key} of {name}", value, kinds[key]) for key, value in given.items()}


def as_settings(name: str, cls: type[Settings], given: Settings | Mapping[str, Any]) -> Settings:
    """Read what belongs together, as a YAML file writes it or as an object.

    :param name: of the argument, for the error
    :param cls: a dataclass
    :param given: an object of it, or a dictionary of its fields
    :return: the object
    :raises ValueError: if a key is unknown, or a number is none
    """
    if isinstance(given, cls):
        return given
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is a {cls.__name__} or a dictionary of {', '.join(known)}, got {given!r}")
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"Unknown key {unknown[0]!r} of {name}: it has " + ", ".join(known))
    try:
        return cls(**numbers_of(name, cls, given))
    except TypeError as error:
        raise ValueError(f"{name} is not complete: {error}") from None
