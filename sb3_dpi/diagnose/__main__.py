"""``python -m sb3_dpi.diagnose model.zip --env ID``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sb3_dpi  # noqa: F401
from sb3_dpi.common.saved_files import ExportError, model_name, saved_file
from sb3_dpi.diagnose.chapters import left_out
from sb3_dpi.diagnose.run import diagnose
from sb3_dpi.diagnose.subject import DiagnoseError
from sb3_dpi.export.statistics import add_statistics, asked_statistics


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Look inside a saved model.

    :param arguments: of the command line
    :return: its exit status
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_dpi.diagnose", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="a saved model (.zip), of this package; of Stable-Baselines3 its policy")
    parser.add_argument("--env", required=True, help="id of the environment, one like the training's")
    parser.add_argument(
        "--out", type=Path, help="folder for index.html and csv files, default: MODEL_diagnosis beside the model"
    )
    parser.add_argument("--episodes", type=int, default=10, help="real episodes of each kind, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of resets and noise, default: %(default)s")
    add_statistics(parser)
    args = parser.parse_args(arguments)
    try:
        model = saved_file(args.model)
        out = args.out or model.with_name(f"{model_name(model)}_diagnosis")
        findings = diagnose(model, args.env, out, args.episodes, args.seed, asked_statistics(args, model))
    except (DiagnoseError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for key in findings.keys:
        mark = "   look here" if key.is_good is False else ""
        print(f"{key.title}: {key.value:.3g}" + (f" (good: {key.good})" if key.good else "") + mark)
    for title, why in left_out(findings):
        print(f"Left out: {title}. {why}")
    print(f"Wrote {out / 'index.html'}, and csv files beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
