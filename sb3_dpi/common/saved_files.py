"""Files of what leaves the training: a saved model, and the statistics of VecNormalize by which it saw observations."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecNormalize

FILE = "vecnormalize.pkl"
SETTINGS = ("args.yml", "config.yml")
"""What RL Zoo writes beside the statistics of a run"""
SNAPSHOT = re.compile(r"best_model|rl_model_\d+_steps")
"""What RL Zoo calls models of a run beside the last one, which has the name of the folder of its settings"""


class ExportError(ValueError):
    """A policy that cannot be exported, or a file of one that cannot be read, as asked."""


def model_name(path: Path) -> str:
    """
    Name a saved model.

    :param path: of its file, which may have dots in its name
    :return: its name without ``.zip``
    """
    return path.name.removesuffix(".zip")


def saved_file(path: Path) -> Path:
    """
    Find the file of a saved model.

    :param path: as it was given to ``model.save``, which adds ``.zip``
    :return: what it wrote
    :raises ExportError: if there is none
    """
    for file in (path, Path(f"{path}.zip")):
        if file.is_file():
            return file
    if path.is_dir():
        raise ExportError(f"{path} is a folder: give the file that model.save() wrote, its name ends with .zip")
    raise ExportError(f"There is no file {path}: give what model.save() wrote")


def load_normalizer(path: Path) -> VecNormalize:
    """
    Read the statistics that ``VecNormalize.save`` wrote.

    :param path: the file
    :return: the wrapper, without an environment
    :raises ExportError: if there is no file, or it is none
    """
    if not path.is_file():
        raise ExportError(f"There is no file {path}: give what VecNormalize.save() wrote")
    try:
        normalizer = load_from_pkl(io.BytesIO(path.read_bytes()))
    except Exception as error:
        raise ExportError(f"{path} cannot be read as statistics of VecNormalize: {error}") from error
    if not isinstance(normalizer, VecNormalize):
        raise ExportError(f"{path} holds {type(normalizer).__name__}, not VecNormalize: give what VecNormalize.save() wrote")
    return normalizer


def statistics_by_key(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """Of the observations that it normalises; one empty key for a Box."""
    if not normalizer.norm_obs:  # then it has none
        return {}
    if not isinstance(normalizer.obs_rms, dict):
        return {"": normalizer.obs_rms}
    return {key: normalizer.obs_rms[key] for key in normalizer.norm_obs_keys or ()}


def check_statistics(normalizer: VecNormalize, space: spaces.Space[Any]) -> None:
    """
    Let nobody normalise by the statistics of other observations: shapes that differ may still broadcast.

    :param normalizer: with its statistics
    :param space: of the model's observations
    :raises ExportError: if they do not fit
    """
    known = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    shapes = {key: tuple(known[key].shape or ()) for key in known}
    given = {key: tuple(np.shape(statistics.mean)) for key, statistics in statistics_by_key(normalizer).items()}
    if any(shapes.get(key) != shape for key, shape in given.items()):
        raise ExportError(
            f"The statistics of VecNormalize do not fit the model: they are of {_in_words(given)}, it observes "
            f"{_in_words(shapes)}. Give those that were saved with it (--vec-normalize FILE), or none (--no-vec-normalize)"
        )


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key!r} {shape}" if key else f"shape {shape}" for key, shape in shapes.items())


def statistics_beside(model: Path) -> Path | None:
    """
    Find what was saved with a model, and nothing that was saved with another.

    That is ``NAME/vecnormalize.pkl`` of ``NAME.zip``, else that in a folder which RL Zoo wrote and no other model beside it
    has, or ``vecnormalize.pkl`` in the model's own folder.

    :param model: file of a saved model
    :return: the statistics; None where there are none
    :raises ExportError: if more than one file may be meant
    """
    folder, own = model.parent, model.parent / model_name(model)
    if (own / FILE).is_file() or _is_run(own):
        runs = [own]
    else:
        is_snapshot = SNAPSHOT.fullmatch(own.name) is not None
        runs = [run for run in sorted(folder.iterdir()) if _is_run(run) and (is_snapshot or not _is_of_another(run))]
    found = [place / FILE for place in (*runs, folder) if (place / FILE).is_file()]
    if len(found) > 1 or (found and len(runs) > 1):
        raise ExportError(
            f"Statistics of VecNormalize that may or may not be those of {model}: {', '.join(map(str, found))}. Say which "
            "with --vec-normalize FILE, or --no-vec-normalize where it was trained without"
        )
    return found[0] if found else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SETTINGS)


def _is_of_another(run: Path) -> bool:
    """RL Zoo gives a run's folder the name of its model."""
    return Path(f"{run}.zip").is_file()
