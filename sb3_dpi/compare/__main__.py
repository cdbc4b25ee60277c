"""Train algorithms head to head on one task: ``python -m sb3_dpi.compare --algo mdgps trpo ppo --env Reacher-v5 ...``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import sb3_dpi  # noqa: F401  (registers the environments of this package)
from sb3_dpi.compare.report import plot_curves, summary_table, write_csvs
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import algorithm_class, resolve_hyperparams


def make_parser() -> argparse.ArgumentParser:
    """
    Describe the command line.

    :return: Its parser
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_dpi.compare", description=__doc__)
    parser.add_argument("--algo", nargs="+", required=True, help="algorithms: NAME, or LABEL=NAME for a variant of one")
    parser.add_argument("--env", required=True, help="id of the task")
    parser.add_argument("--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the task")
    parser.add_argument(
        "--steps", nargs="+", default=[], metavar="[LABEL:]STEPS", help="budget of all or of one (default: n_timesteps)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="LABEL.KEY=VALUE", help="hyperparameters to change (YAML)"
    )
    parser.add_argument("--threshold", type=float, help="the return to reach")
    parser.add_argument("--out", default="compare", help="folder to write into (default: compare)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (default: all cores)")
    parser.add_argument("--device", default="cpu", help="device of PyTorch (default: cpu)")
    parser.add_argument("--force", action="store_true", help="run again what is finished already")
    return parser


def parse_value(text: str) -> Any:
    """
    Read a value from the command line.

    :param text: YAML; ``1e-3`` is a number too, although YAML takes it for a string
    :return: The value
    """
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _parse_steps(texts: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    budgets: dict[str, int] = {}
    for text in texts:
        name, _, steps = text.rpartition(":")
        if name and name not in names:
            raise ValueError(f"--steps {text}: {name!r} is not among {', '.join(names)}")
        if name:
            budgets[name] = int(float(steps))
        else:
            budgets = {**dict.fromkeys(names, int(float(steps))), **budgets}
    return budgets


def _parse_overrides(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in texts:
        target, equals, value = text.partition("=")
        name, dot, key = target.partition(".")
        if not equals or not dot or name not in names:
            raise ValueError(f"--set {text}: write LABEL.KEY=VALUE with a label among {', '.join(names)}")
        overrides[name][key] = parse_value(value)
    return overrides


def make_configs(args: argparse.Namespace) -> list[RunConfig]:
    """
    Turn the command line into runs.

    :param args: The parsed command line
    :return: All runs, every algorithm's first seed first
    :raises ValueError: If an argument is wrong
    :raises ImportError: If RL Zoo's hyperparameters are needed and RL Zoo is not installed
    """
    algos = {(label or name): (label, name) for label, _, name in (text.rpartition("=") for text in args.algo)}
    if any(not name.replace("-", "").replace("_", "").isalnum() for name in algos):
        raise ValueError(f"--algo {' '.join(args.algo)}: a label has letters, digits, - and _ only")
    budgets = _parse_steps(args.steps, list(algos))
    overrides = _parse_overrides(args.set, list(algos))
    env_kwargs = {key: parse_value(value) for key, _, value in (text.partition("=") for text in args.env_kwargs)}
    settings = {}
    for key, (_, algo) in algos.items():
        algorithm_class(algo)
        choice = resolve_hyperparams(algo, args.env)
        changed = "".join(f", {name}={value}" for name, value in overrides[key].items())
        settings[key] = ({**choice.hyperparams, **overrides[key]}, choice.source + changed)
    return [
        RunConfig(
            algo=algo,
            env_id=args.env,
            seed=seed,
            n_timesteps=budgets.get(key, int(settings[key][0]["n_timesteps"])),
            hyperparams=settings[key][0],
            source=settings[key][1],
            out=args.out,
            label=label,
            env_kwargs=env_kwargs,
            device=args.device,
        )
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for key, (label, algo) in algos.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a comparison, print its table, write its figure and csv files.

    :param arguments: The command line, that of the process by default
    :return: Exit status: 0, or 1 if a run failed
    """
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        configs = make_configs(args)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    console = Console()
    try:
        results, failed = run_all(configs, args.jobs, args.force, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the same command goes on with the runs that are not finished.")
        return 130
    for failure in failed:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
    if results:
        out = Path(args.out)
        console.print(summary_table(results, args.threshold))
        write_csvs(results, args.threshold, out)
        plot_curves(results, args.threshold, out / "curves.png")
        console.print(f"Written to {out}/: curves.png, summary.csv, runs.csv, evaluations.csv and one folder per run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
