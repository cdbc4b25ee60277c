"""Saved files say which algorithm wrote them and in which format."""

import io
import pathlib
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

SelfSavedModel = TypeVar("SelfSavedModel", bound="SavedModel")

FORMAT_VERSION = 1
"""Version of saved files; raised when older code could not read them."""


class SavedModel(BaseAlgorithm):
    """An algorithm that refuses files that it cannot read; it sets the two attributes in its constructor."""

    format_version: int
    """``FORMAT_VERSION``"""
    algorithm_name: str
    """that of its class"""

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
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

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
