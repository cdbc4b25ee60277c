"""What RL Zoo's plots need of the runs, and pass over in silence or with a traceback."""

import importlib
import itertools
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NO_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
"""Backends of Matplotlib that draw into files only"""


def check_plot(command: str, given: Namespace) -> None:
    """See that a plot will show what was asked for; algorithms and environments become the names of their folders."""
    if command == "plot_from_file":
        return
    # As folders are named
    given.env = [env.rpartition(":")[2].replace("/", "-") for env in given.env or []]
    if command == "plot_train":
        given.algo = given.algo.rpartition(":")[2].lower()
        if importlib.import_module("matplotlib").get_backend().lower() in NO_WINDOWS:
            raise ValueError(
                "plot_train opens a window and writes no file, and there is no display: use all_plots -o and "
                "plot_from_file -o, or the figures of python -m sb3_dpi.compare report"
            )
        _check_runs([given.exp_folder], [given.algo], given.env)
        return
    given.algos = [algo.rpartition(":")[2].lower() for algo in given.algos or []]
    _check_runs(given.exp_folders, given.algos, given.env)
    for folder, algo, env in itertools.product(given.exp_folders, given.algos, given.env):
        _check_evaluations(Path(folder, algo), env)


def _check_runs(folders: Sequence[str], algos: Sequence[str], envs: Sequence[str]) -> None:
    """See that every algorithm and environment has a run; RL Zoo shows zeros or nothing for those that have none."""
    stored: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in Path(folder).glob("[!.]*/*_*") if path.is_dir()):
        stored.setdefault(path.parent.name, set()).add(path.name.rpartition("_")[0])
    for flag, values in {"-a": algos, "-e": envs}.items():
        if not values:
            raise ValueError(f"{flag} is needed; in {', '.join(folders)}: {_contents(stored)}")
    for algo in algos:
        if algo not in stored:
            raise ValueError(f"There are no runs of {algo} in {', '.join(folders)}, only {_contents(stored)}")
    names = {name for algo in algos for name in stored[algo]}
    for env in envs:
        matching = sorted(name for name in names if env in name)
        if not matching:
            raise ValueError(f"There are no runs on {env} in {', '.join(folders)}, only {_contents(stored)}")
        if len(matching) > 1:
            print(f"-e {env} is part of the names {', '.join(matching)}: RL Zoo takes their runs for one environment's")


def _check_evaluations(folder: Path, env: str) -> None:
    """Name the runs that RL Zoo leaves out of its means without a word, and refuse what it cannot take the mean of."""
    shapes = {}
    for path in sorted(folder.glob(f"*{env}*/evaluations.npz")):
        with np.load(path) as stored:
            shapes[path.parent] = stored["results"].shape
    longest = max((shape[0] for shape in shapes.values()), default=0)
    kept = {run: shape for run, shape in shapes.items() if 1 < shape[0] == longest}
    if left_out := [str(run) for run in shapes if run not in kept]:
        print(f"Left out by RL Zoo, a single evaluation or fewer than others: {', '.join(left_out)}")
    if [shape[1] for shape in kept.values()] == [1]:
        raise ValueError(
            f"{next(iter(kept))}: RL Zoo cannot plot a single run whose evaluations are of one episode; it needs another "
            "seed, or two episodes (train --eval-episodes 2)"
        )


def _contents(stored: dict[str, set[str]]) -> str:
    return ", ".join(f"{algo} on {' '.join(sorted(envs))}" for algo, envs in sorted(stored.items())) or "nothing"
