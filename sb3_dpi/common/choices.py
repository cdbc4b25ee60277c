"""Arguments that are chosen by name, so that a YAML file can say them."""

from typing import Any


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Reject an unknown name with the list of known ones.

    :param name: of the argument
    :param value: what was given
    :param choices: what is valid
    :raises ValueError: if ``value`` is not among ``choices``
    """
    if value not in choices:
        raise ValueError(f"Unknown {name} {value!r}: choose one of " + ", ".join(repr(choice) for choice in choices))


def parse_choice(name: str, value: str | dict[str, Any], choices: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Split a choice into its name and its options.

    :param name: of the argument
    :param value: a name, or a dictionary of options whose key ``"kind"`` is the name
    :param choices: valid names
    :return: name and options
    :raises ValueError: if the name is unknown or missing
    """
    options: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
    kind = str(options.pop("kind", None))
    check_choice(name, kind, choices)
    return kind, options
