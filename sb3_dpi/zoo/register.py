"""The algorithms of this package, by the name that RL Zoo and the command line use."""

import importlib
from collections.abc import MutableMapping
from typing import Any

ALGORITHMS = {"mdgps": "MDGPS"}
"""From name to class in ``sb3_dpi``; the name is also that of the file in ``zoo/hyperparams``"""


def algorithm_class(name: str) -> Any:
    """
    Find an algorithm: one of this package, of Stable-Baselines3 or of sb3-contrib.

    :param name: Its name in lower case, for instance ``"mdgps"`` or ``"ppo"``
    :return: The class
    :raises ValueError: If no such algorithm exists
    """
    if name in ALGORITHMS:
        return getattr(importlib.import_module("sb3_dpi"), ALGORITHMS[name])
    for module_name in ("stable_baselines3", "sb3_contrib"):
        module = importlib.import_module(module_name)
        for attribute in module.__all__:
            if attribute.lower() == name:
                return getattr(module, attribute)
    raise ValueError(f"Unknown algorithm {name!r}, choose one of this package ({', '.join(ALGORITHMS)}), ppo, trpo, a2c, ...")


def register_algorithms(registry: MutableMapping[str, Any]) -> None:
    """
    Add the algorithms of this package to RL Zoo.

    :param registry: ``rl_zoo3.ALGOS``, changed in place because every module of RL Zoo holds the same object
    """
    registry.update({name: algorithm_class(name) for name in ALGORITHMS})
