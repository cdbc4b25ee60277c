"""Train algorithms head to head and report what came out: ``python -m sb3_dpi.compare run|report|export|pack --help``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console

import sb3_dpi  # noqa: F401  (registers the environments of this package)
from sb3_dpi.compare.engines import Engine, LocalEngine, RayEngine
from sb3_dpi.compare.preflight import check_device, check_runs
from sb3_dpi.compare.processes import Workers
from sb3_dpi.compare.record import CorruptRun
from sb3_dpi.compare.report import all_tasks, write_report
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import (
    archive,
    check_apart,
    check_archive,
    export_runs,
    find_without_result,
    pack,
    read_runs,
    studies,
)
from sb3_dpi.compare.suite import Suite, load_suite, make_configs, suite_from_arguments, write_tasks
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo.cause import print_anything
from sb3_dpi.zoo.environments import import_custom_envs


class ExactParser(argparse.ArgumentParser):
    """
    Takes no abbreviations: ``--seed 2`` is not ``--seeds 2``. An option that takes several values may be given several times,
    another once. Its sub-commands are parsers of this class too.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)
        self.register("action", None, Once)


class Once(argparse.Action):
    """Keeps the values of an option: all, where it takes several; one that is given twice is refused."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = namespace.__dict__.setdefault("given", {})
        if self.dest in given and not self.nargs:
            parser.error(f"{option_string} is given twice: {given[self.dest]} and {values}")
        given[self.dest] = [*given.get(self.dest, []), *values] if self.nargs else values
        setattr(namespace, self.dest, given[self.dest])


def _add_run(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to run: a suite, or algorithms on environments")
    what.add_argument("--suite", metavar="NAME|FILE.yml", help="demo, quick, mujoco, dpi, gps, or a YAML file")
    what.add_argument("--algo", nargs="+", default=[], help="NAME, module:Class, or LABEL=NAME for a variant; comma or space")
    what.add_argument("--env", nargs="+", default=[], help="ids of the environments")
    what.add_argument("--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the environments")
    what.add_argument("--steps", nargs="+", default=[], metavar="[LABEL:]STEPS", help="budgets (default: n_timesteps)")
    what.add_argument("--seeds", type=int, help="number of seeds (default: the suite's, else 3)")
    what.add_argument("--first-seed", type=int, help="the first of them (default: the suite's, else 1)")
    what.add_argument("--threshold", nargs="+", default=[], metavar="[ENV:]RETURN", help="the return to reach")
    what.add_argument("--set", nargs="+", default=[], metavar="LABEL.KEY=VALUE", help="hyperparameters to change (YAML)")
    what.add_argument("--eval-every", type=int, help="steps between the first evaluations (default: the suite's, else 250)")
    how = parser.add_argument_group("how and where")
    how.add_argument("--out", default="compare", help="folder to write into (default: compare)")
    how.add_argument("--baselines", nargs="+", default=[], metavar="DIR", help="finished runs to read instead of running them")
    how.add_argument("--engine", choices=["local", "ray"], default="local", help="processes of this machine, or Ray tasks")
    how.add_argument("--address", help="Ray cluster (default: a Ray of this machine alone)")
    how.add_argument("--shared", action="store_true", help="with Ray: all nodes see --out under this path")
    how.add_argument("--jobs", type=int, help="runs at a time, one thread each (default: all cores)")
    how.add_argument("--device", default="cpu", help="device of PyTorch (default: cpu)")
    how.add_argument("--no-report", action="store_true", help="run only")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", default="trpo", help="algorithm that ratios refer to (default: trpo)")
    parser.add_argument("--at", type=int, metavar="STEPS", help="environment steps of the frontier (default: all have them)")
    parser.add_argument("--published", action="store_true", help="draw published curves too, read and not run here")


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = ExactParser(prog="python -m sb3_dpi.compare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not finished yet, then report")
    _add_run(run)
    _add_report(run)
    report = commands.add_parser("report", help="tables and figures from stored evaluations")
    report.add_argument("--out", nargs="+", default=["compare"], help="folders to read, nothing else (default: compare)")
    report.add_argument("--to", default="report", help="folder to write into (default: report)")
    _add_report(report)
    export = commands.add_parser("export", help="copy finished runs without models and logs, as baselines for others")
    export.add_argument("--out", default="compare", help="folder of the comparison (default: compare)")
    export.add_argument("--to", required=True, help="folder to copy into")
    packing = commands.add_parser("pack", help="turn the finished runs of whole studies into one table each, losing nothing")
    packing.add_argument("--out", nargs="+", default=["compare"], help="studies, or folders of studies (default: compare)")
    packing.add_argument("--archive", metavar="FILE.zip", help="then move them into this archive, files of other kinds too")
    return parser


def make_suite(args: argparse.Namespace) -> Suite:
    """Find or make the suite that the command line of ``run`` asks for."""
    numbers = {"seeds": args.seeds, "first_seed": args.first_seed, "eval_every": args.eval_every}
    if args.suite:
        adhoc = ("algo", "env", "env_kwargs", "steps", "threshold", "set")
        given = [f"--{name.replace('_', '-')}" for name in adhoc if getattr(args, name)]
        if given:
            raise ValueError(f"--suite says what to run; leave out {', '.join(given)}, or change a copy of the suite's file")
        return load_suite(args.suite, **numbers)
    if not args.algo or not args.env:
        raise ValueError("Say what to run: --suite NAME, or --algo NAMES --env IDS")
    return suite_from_arguments(args.algo, args.env, args.steps, args.set, args.env_kwargs, args.threshold, **numbers)


def make_engine(args: argparse.Namespace, workers: Workers | None = None) -> Engine:
    """Make the engine that the command line of ``run`` asks for."""
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1 is needed; leave it out for all cores")
    if args.engine == "ray":
        return RayEngine(address=args.address, jobs=args.jobs, shared=args.shared)
    if args.address or args.shared:
        raise ValueError("--address and --shared need --engine ray")
    return LocalEngine(args.jobs or os.cpu_count() or 1, workers)


def _prepare(out: Path) -> None:
    # Nothing is made yet: what cannot run leaves no folder
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    try:
        TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error


def run(args: argparse.Namespace, console: Console) -> int:
    """Run what is not finished, then report; the exit status is 1 if a run failed, 130 after Ctrl-C."""
    check_device(args.device, here=args.engine == "local")
    suite, out = make_suite(args), Path(args.out)
    configs = make_configs(suite, device=args.device)
    # The driver of a GPU bears no fork of a process that has talked to it
    workers = Workers(fork=args.device == "cpu")
    engine = make_engine(args, workers)
    # Without them their runs, hours of them, would be run here in silence
    baselines = _folders(args.baselines, "--baselines")
    check_apart("--out", out, baselines)
    _prepare(out)
    store = Store(out, baselines)

    def check(pending: Sequence[RunConfig]) -> None:
        for note in check_runs(pending, out, workers):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        write_tasks(out, suite.tasks)

    try:
        results, failed = run_all(configs, store, engine, console, check)
    except KeyboardInterrupt:
        console.print("Interrupted: the same command goes on with the runs that are not finished.")
        return 130
    finally:
        workers.end()
    for failure in failed:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
    if results and not args.no_report:
        report(args, console)
    return 1 if failed else 0


def report(args: argparse.Namespace, console: Console) -> int:
    """Write tables and figures."""
    outs = _folders(args.out)
    # A run writes its report into its own folder, a report never into what it reads
    to = outs[0] if args.command == "run" else Path(args.to)
    if args.command != "run":
        check_apart("--to", to, outs)
    tasks = all_tasks(outs)
    write_report(outs, tasks, console=console, published=args.published, baseline=args.baseline, steps=args.at, to=to)
    return 0


def _folders(texts: str | Sequence[str], option: str = "--out", files: bool = False) -> list[Path]:
    folders = [Path(text) for text in ([texts] if isinstance(texts, str) else texts)]
    for folder in folders:
        if not (folder.exists() if files else folder.is_dir()):
            raise ValueError(f"{option} {folder}: no such folder")
    return folders


def pack_studies(args: argparse.Namespace, console: Console) -> int:
    """Turn studies into tables, and move them into an archive where one is named."""
    outs = _folders(args.out, files=bool(args.archive))
    if args.archive:
        check_archive(outs, Path(args.archive))
    for study in [study for out in outs if out.is_dir() for study in studies(out)]:
        if args.archive and not any(read_runs(study)) and not any(find_without_result(study)):
            continue  # Data of another kind
        console.print(f"{study}: {pack(study)} runs in {study / 'study.csv'}", markup=False, highlight=False, soft_wrap=True)
    if args.archive:
        console.print(f"{archive(outs, Path(args.archive))} files moved into {args.archive}", markup=False)
    return 0


def export(args: argparse.Namespace, console: Console) -> int:
    """Copy finished runs without models, with the thresholds and scales of their tasks."""
    (out,), target = _folders(args.out), Path(args.to)
    check_apart("--to", target, [out])
    # Its runs would be packed too, these among them
    check_apart("--out", out, [target])
    tasks = all_tasks([out])
    number = export_runs(out, target)
    if number == 0:
        raise ValueError(f"--out {out}: no finished runs to copy")
    write_tasks(target, tasks)
    console.print(f"{number} runs copied to {args.to}; use them with --baselines {args.to}", markup=False)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, that of the process by default; returns the exit status."""
    print_anything()
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        import_custom_envs()
        return {"run": run, "report": report, "export": export, "pack": pack_studies}[args.command](args, Console())
    except (CorruptRun, ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog} {args.command}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
