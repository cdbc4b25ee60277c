"""Saved files say which algorithm wrote them and in which format."""

import functools
import inspect
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

SelfSavedModel = TypeVar("SelfSavedModel", bound="SavedModel")

FORMAT_VERSION = 2
"""Version of saved files; raised when older code could not read them."""


class SavedModel(BaseAlgorithm):
    """An algorithm that refuses files that it cannot read; it sets the two attributes in its constructor."""

    format_version: int
    """``FORMAT_VERSION``"""
    algorithm_name: str
    """that of its class"""
    algorithm_version: ClassVar[int] = 1
    """raised with every change after which the same seed gives other numbers"""
    renamed_arguments: ClassVar[dict[str, str]] = {}
    """from former arguments to what is to be written instead"""
    stored_as: ClassVar[dict[str, str]] = {}
    """from arguments to the attributes that hold them, where these have other names"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _refuses_former_arguments(cls.__init__)  # type: ignore[method-assign]

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
        start = path.tell() if isinstance(path, io.BufferedIOBase) else 0
        data, _, _ = load_from_zip_file(path, device=device, custom_objects=custom_objects)
        if isinstance(path, io.BufferedIOBase):
            path.seek(start)
        if data is not None and "algorithm_name" not in data:
            raise ValueError(f"This file holds a model of another algorithm: it cannot be loaded with {cls.__name__}.load")
        _refuse_former(cls, {**kwargs, **(custom_objects or {})})
        if data is not None and data.get("algorithm_name") == cls.__name__:
            known = {*data, *inspect.signature(cls.__init__).parameters}
            for name in kwargs:
                if name not in known:
                    raise TypeError(f"{cls.__name__}.load has no argument {name!r}: see help({cls.__name__})")
            if data.get("format_version", 0) < FORMAT_VERSION:
                raise ValueError(
                    f"This file has format {data.get('format_version')}, this version of sb3_dpi reads format "
                    f"{FORMAT_VERSION}: load it with the version that wrote it, or train anew"
                )
        stored = {cls.stored_as.get(name, name): value for name, value in kwargs.items()}
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **stored)

    def _check_saved_format(self) -> None:
        if self.algorithm_name != type(self).__name__:
            raise ValueError(
                f"This file holds a {self.algorithm_name} model: load it with {self.algorithm_name}.load, "
                f"not {type(self).__name__}.load"
            )
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This file has format {self.format_version}, newer than the format {FORMAT_VERSION} that this version of "
                "sb3_dpi reads: upgrade sb3_dpi"
            )
        self.format_version = FORMAT_VERSION


def _refuse_former(cls: type[SavedModel], given: Mapping[str, Any]) -> None:
    for name in given:
        if name in cls.renamed_arguments:
            raise TypeError(f"{cls.__name__} has no argument {name!r} any more: write {cls.renamed_arguments[name]}")


def _refuses_former_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that names the new word where a former one is given."""

    @functools.wraps(init)
    def checked(self: SavedModel, *args: Any, **kwargs: Any) -> None:
        _refuse_former(type(self), kwargs)
        init(self, *args, **kwargs)

    return checked
