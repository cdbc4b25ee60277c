"""``python -m sb3_dpi.export model.zip --to onnx|torchscript|c|numpy``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sb3_dpi  # noqa: F401
from sb3_dpi.export.deployed import ExportError
from sb3_dpi.export.files import FORMATS, export_policy


def statistics_beside(model: Path) -> Path | None:
    """
    Find what RL Zoo keeps of VecNormalize.

    :param model: path of a saved model
    :return: ``vecnormalize.pkl`` beside it or in the one folder below that has one; None where there is none
    """
    found = [*model.parent.glob("vecnormalize.pkl"), *model.parent.glob("*/vecnormalize.pkl")]
    return found[0] if len(found) == 1 else None


def add_statistics(parser: argparse.ArgumentParser) -> None:
    """
    Let a command ask for the statistics of VecNormalize.

    :param parser: of the command, which takes the model as ``model``
    """
    parser.add_argument(
        "--vec-normalize", type=Path, help="statistics of VecNormalize, default: vecnormalize.pkl of RL Zoo beside the model"
    )


def asked_statistics(args: argparse.Namespace) -> Path | None:
    """
    Take what was asked for, or what lies beside the model, and say so.

    :param args: of a parser with ``add_statistics``
    :return: the file, if there is one
    """
    statistics: Path | None = args.vec_normalize or statistics_beside(args.model)
    if statistics is not None:
        print(f"Observations are normalised as {statistics} says")
    return statistics


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Export a saved model.

    :param arguments: of the command line
    :return: its exit status
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_dpi.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="a saved model (.zip), of this package or of Stable-Baselines3")
    parser.add_argument("--to", choices=list(FORMATS), default="onnx", help="format, default: %(default)s")
    parser.add_argument("--out", type=Path, help="file to write, default: beside the model")
    add_statistics(parser)
    args = parser.parse_args(arguments)
    statistics = asked_statistics(args)
    try:
        written = export_policy(args.model, args.out or args.model, args.to, statistics)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
