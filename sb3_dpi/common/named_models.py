"""Models that a file can say: the name of a class and the path of what was saved."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dpi.common.saved_files import ExportError, check_statistics, load_normalizer, saved_file, statistics_beside

LIBRARIES = ("sb3_dpi", "stable_baselines3", "sb3_contrib")


def named_algorithm(name: str) -> Any:
    """
    Find a class of models.

    :param name: as RL Zoo writes it, ``"mpc"`` or ``"sac"``, or ``"module:Class"``
    :return: the class
    :raises ValueError: if there is none
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    wanted = name.replace("_", "").lower()
    for library in map(importlib.import_module, LIBRARIES):
        for attribute in library.__all__:
            if attribute.lower() == wanted:
                return getattr(library, attribute)
    raise ValueError(f"Unknown algorithm {name!r}: name one of {', '.join(LIBRARIES)}, or write module:Class")


def load_model(given: Mapping[str, Any]) -> BaseAlgorithm:
    """
    Load a model, and the statistics of ``VecNormalize`` by which it saw observations.

    :param given: the class under ``"algo"``, the file under ``"path"``, the statistics' file under ``"vec_normalize"`` (False:
        there are none; left out: what lies beside the model, as RL Zoo saves it), and arguments of ``load``
    :return: the model; ``get_vec_normalize_env`` tells the statistics
    :raises ValueError: if there is no such class or file, or it is not clear which statistics are meant
    """
    options = dict(given)
    if not {"algo", "path"} <= options.keys():
        raise ValueError(f"A saved model is named by its class under 'algo' and its file under 'path', got {options}")
    algorithm, statistics = named_algorithm(str(options.pop("algo"))), options.pop("vec_normalize", None)
    file = saved_file(Path(options.pop("path")))
    try:
        if statistics is None and "env" not in options:
            statistics = statistics_beside(file)
        model: BaseAlgorithm = algorithm.load(str(file), **options)
        if statistics:
            normalizer = load_normalizer(Path(statistics))
            check_statistics(normalizer, model.observation_space)
            model._vec_normalize_env = normalizer
    except ExportError as error:
        raise ValueError(f"{error}. In a dictionary write 'vec_normalize': FILE, or False for none") from error
    return model
