"""Which statistics of VecNormalize a saved model was trained with, as command lines are told and as RL Zoo keeps them."""

import argparse
from pathlib import Path

from sb3_dpi.common.saved_files import FILE, statistics_beside


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
