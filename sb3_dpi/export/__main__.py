"""``python -m sb3_dpi.export model.zip --to onnx|torchscript|c|numpy``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sb3_dpi  # noqa: F401
from sb3_dpi.common.saved_files import ExportError, model_name, saved_file
from sb3_dpi.export.files import FORMATS, export_policy
from sb3_dpi.export.names import importable
from sb3_dpi.export.statistics import add_statistics, asked_statistics


def beside(model: Path, to: str) -> Path:
    """
    Name the file of a policy after its model.

    :param model: file of the saved model
    :param to: format
    :return: beside it; a name that Python can import where it is to be imported
    """
    name = model_name(model)
    return model.with_name(importable(name) if to == "numpy" else name)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Export a saved model.

    :param arguments: of the command line
    :return: its exit status
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_dpi.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="a saved model (.zip), of this package or of Stable-Baselines3")
    parser.add_argument("--to", choices=list(FORMATS), default="onnx", help="format, default: %(default)s")
    parser.add_argument(
        "--out", type=Path, help="file to write, to which the format's ending is added, default: beside the model, by its name"
    )
    add_statistics(parser)
    args = parser.parse_args(arguments)
    try:
        model = saved_file(args.model)
        statistics = asked_statistics(args, model)
        written = export_policy(model, args.out or beside(model, args.to), args.to, statistics)
    except (ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
