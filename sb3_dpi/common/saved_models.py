"""What all algorithms of this package share as files and classes: formats, versions, and words that have changed.

A saved file says which algorithm wrote it and in which format. It is asked before anything in it is unpickled: an older file
may name modules that are gone.
"""

import functools
import inspect
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_dpi.common.choices import as_number, check_kind
from sb3_dpi.common.conventions import Conventions, plain

SelfSavedModel = TypeVar("SelfSavedModel", bound="SavedModel")

FORMAT_VERSION = 3
"""Version of saved files; raised when older code could not read them, or newer code the older ones."""
ALWAYS_LOADABLE = ("clip_range", "learning_rate", "lr_schedule", "n_envs", "seed", "tensorboard_log", "verbose")
"""What Stable-Baselines3 and RL Zoo hand to ``load``, whether an algorithm has it or not"""
READ_ELSEWHERE = ("device", "env", "policy", "system", "tensorboard_log", "train_freq")
"""Arguments whose kinds are more than their annotations say, or about which others say more"""


class SavedModel(Conventions):
    """An algorithm that refuses files and words that it cannot read.

    It sets the attributes ``format_version`` and ``algorithm_name`` in its constructor.
    """

    format_version: int
    """``FORMAT_VERSION``"""
    algorithm_name: str
    """that of its class"""
    algorithm_version: ClassVar[int] = 1
    """Raised by one whenever the same arguments and seed learn otherwise than before, beyond the rounding of reordered sums.
    It is part of what identifies a run in a comparison: runs of another version are done again, those of the same are not"""
    renamed_arguments: ClassVar[dict[str, str]] = {}
    """From a word that the constructor took once to what to write in its place, ``"early_reset"`` or
    ``"world_model={'width': ...}"``; those of base classes hold too"""

    stored_as: ClassVar[dict[str, str]] = {}
    """From an argument to the attribute that holds it, where that has another name"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _with_plain_arguments(cls.__init__)  # type: ignore[method-assign]

    @classmethod
    def load(
        cls: type[SelfSavedModel],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSavedModel:
        """
        Load the model from a zip-file.

        :param path: Path to the file (or a file-like) where to load the agent from
        :param env: The new environment to run the loaded model on (can be None if you only need prediction from a trained
            model) has priority over any saved environment
        :param device: Device on which the code should run
        :param custom_objects: Objects to take in place of those in the file, by the name of the attribute
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior
        :param kwargs: Arguments to change when loading
        :return: A new model with the loaded parameters
        :raises ValueError: If another algorithm wrote the file, or it has another format
        :raises TypeError: If an argument has another name now, or the model knows none of that name
        """
        saved = _saved_values(path)
        if saved is not None:
            _check_header(cls, saved)
            _refuse_renamed(cls, (*kwargs, *(custom_objects or {})))
            _refuse_unknown(cls, kwargs, {*saved, *cls.stored_as, *ALWAYS_LOADABLE})
        stored = {cls.stored_as.get(name, name): value for name, value in _read(cls.__init__, kwargs).items()}
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **stored)

    def _check_saved_format(self) -> None:
        _check_header(type(self), vars(self))


def _saved_values(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any] | None:
    """
    Read the attributes in a saved file without unpickling any.

    :param path: The file
    :return: Numbers and strings as they are, of what is pickled a description; None of what Stable-Baselines3 refuses itself
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            found = json.loads(archive.read("data"))
        return found if isinstance(found, dict) else None
    except (zipfile.BadZipFile, KeyError):
        return None
    finally:
        if file is path:
            file.seek(start)
        else:
            file.close()


def _check_header(algorithm: type[SavedModel], saved: dict[str, Any]) -> None:
    name, here = saved.get("algorithm_name"), algorithm.__name__
    if name is None:
        raise ValueError(f"This file holds a model of another algorithm: it cannot be loaded with {here}.load")
    if name != here:
        raise ValueError(f"This file holds a {name} model: load it with {name}.load, not {here}.load")
    version = saved.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"This file has format {version}, newer than the format {FORMAT_VERSION} that this version of "
            "sb3_dpi reads: upgrade sb3_dpi"
        )
    if version < FORMAT_VERSION:
        raise ValueError(
            f"This file has format {version}, older than the format {FORMAT_VERSION} that this version of sb3_dpi reads: "
            "train the model again, or load it with the version of sb3_dpi that saved it"
        )


def renamed_arguments(algorithm: type[Any]) -> dict[str, str]:
    """
    Collect the words that an algorithm took once.

    :param algorithm: Any class of an algorithm, of this package or not
    :return: ``renamed_arguments`` of the class and its bases
    """
    renamed: dict[str, str] = {}
    for base in reversed(algorithm.__mro__):
        renamed.update(vars(base).get("renamed_arguments", {}))
    return renamed


def _refuse_renamed(algorithm: type[SavedModel], names: Iterable[str]) -> None:
    renamed = renamed_arguments(algorithm)
    found = [f"instead of {name} write {renamed[name]}" for name in names if name in renamed]
    if found:
        raise TypeError(f"{algorithm.__name__} takes other words now: {', '.join(found)}")


def _refuse_unknown(algorithm: type[SavedModel], names: Iterable[str], valid: set[str]) -> None:
    for name in names:
        if name not in valid:
            public = sorted(known for known in valid if not known.startswith("_"))
            close = get_close_matches(name, public, 3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose among {', '.join(public)}"
            raise TypeError(f"{algorithm.__name__}.load: the saved model has no {name!r} that could be changed; {hint}")


def _with_plain_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor take numpy's numbers, and name the new word for an old one; ``inspect`` and ``help`` see itself."""
    names = list(inspect.signature(init).parameters)

    @functools.wraps(init)
    def checked(self: SavedModel, *args: Any, **kwargs: Any) -> None:
        # A class of the user's may go on taking an old word
        _refuse_renamed(type(self), [name for name in kwargs if name not in names])
        given = _read(init, dict(zip(names[1:], args, strict=False)))
        init(self, *given.values(), *args[len(given) :], **_read(init, kwargs))

    return checked


def _read(init: Callable[..., None], given: dict[str, Any]) -> dict[str, Any]:
    """:return: arguments of a constructor, numbers as Python's; a ValueError says of which kind one of ours must be"""
    parameters = inspect.signature(init).parameters
    kinds = {name: parameter.annotation for name, parameter in parameters.items() if name != "seed"}  # see ``as_seed``
    read = {name: as_number(name, plain(value), kinds.get(name)) for name, value in given.items()}
    is_ours = init.__module__.partition(".")[0] == __name__.partition(".")[0]  # classes of users annotate as they like, or not
    for name, value in read.items():
        if is_ours and name in kinds and name not in READ_ELSEWHERE:
            check_kind(name, value, kinds[name])
    return read
