"""RL Zoo's parsers of arguments without abbreviations, and with what RL Zoo would not let pass."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch


class Refused(Exception):
    """A command cannot work; the message is one line."""


def _is_abbreviation(option: str, written: str) -> bool:
    name = written.partition("=")[0]
    return option.startswith(name) and option != name


def _checked(action: Any, text: str) -> str:
    """Evaluate the value of ``KEY:VALUE`` as RL Zoo will do, which would not say where it stands."""
    value = text.partition(":")[2]
    try:
        eval(value, type(action).__call__.__globals__)
    except Exception as error:
        raise Refused(
            f"{action.option_strings[0]} {text}: {value!r} is no value of Python ({type(error).__name__}: {error}); "
            "write KEY:VALUE, a text as KEY:\"'TEXT'\""
        ) from error
    return text


@contextmanager
def completed_by(complete: Callable[[Namespace], None], folder: str | None = None) -> Iterator[None]:
    """
    Let arguments be completed between RL Zoo's parsing and its use of them.

    :param complete: Called with what was parsed, changes it; its ``ImportError`` and ``ValueError`` become ``Refused``
    :param folder: Where runs are by default; None: what RL Zoo says
    """
    # RL Zoo makes its parsers itself, and argparse names its class within its own methods: methods alone can be replaced
    parse_args, option_tuples = ArgumentParser.parse_args, ArgumentParser._get_option_tuples

    def parse_and_complete(self: ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        self.allow_abbrev = False
        for action in self._actions:
            if action.dest in ("algo", "trial_id"):  # "module:Class" and "best"; what is neither is refused by `complete`
                action.choices, action.type = None, str
            elif action.dest in ("folder", "exp_folder", "exp_folders") and folder:
                action.required, action.default = False, [folder] if action.nargs else folder
            elif type(action).__name__ == "StoreDict":
                action.type = partial(_checked, action)
        parsed = parse_args(self, args, namespace)
        try:
            complete(parsed)
        except (ImportError, ValueError) as error:
            raise Refused(str(error)) from error
        return parsed

    def exact(self: ArgumentParser, option_string: str) -> list[Any]:
        # allow_abbrev says nothing of -opt for -optimize
        return [match for match in option_tuples(self, option_string) if not _is_abbreviation(match[1], option_string)]

    with (
        patch.object(ArgumentParser, "parse_args", parse_and_complete),
        patch.object(ArgumentParser, "_get_option_tuples", exact),
    ):
        yield
