"""Which statistics of VecNormalize a saved model was trained with, as command lines are told and as RL Zoo keeps them."""

import argparse
import re
from pathlib import Path

from sb3_dpi.export.deployed import ExportError
from sb3_dpi.export.names import model_name

FILE = "vecnormalize.pkl"
SETTINGS = ("args.yml", "config.yml")
"""What RL Zoo writes beside the statistics of a run"""
SNAPSHOT = re.compile(r"best_model|rl_model_\d+_steps")
"""What RL Zoo calls models of a run beside the last one, which has the name of the folder of its settings"""


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


def add_statistics(parser: argparse.ArgumentParser) -> None:
    """
    Let a command ask for the statistics of VecNormalize.

    :param parser: of the command
    """
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--vec-normalize", type=Path, metavar="FILE", help=f"its statistics, default: {FILE} beside the model")
    either.add_argument("--no-vec-normalize", action="store_true", help="look for none: it was trained without")


def asked_statistics(args: argparse.Namespace, model: Path) -> Path | None:
    """
    Take what was asked for, or what lies beside the model, and say so.

    :param args: of a parser with ``add_statistics``
    :param model: file of the saved model
    :return: the file, if there is one
    :raises ExportError: if more than one may be meant
    """
    if args.no_vec_normalize:
        return None
    statistics: Path | None = args.vec_normalize or statistics_beside(model)
    if statistics is None:
        print("Observations are not normalised: no statistics of VecNormalize were found. --vec-normalize FILE names others")
    else:
        print(f"Observations are normalised as {statistics} says")
    return statistics
