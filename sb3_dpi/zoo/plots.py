"""What RL Zoo's plots need of the runs, and pass over in silence or with a traceback."""

import importlib
import itertools
import pickle
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

NO_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
"""Backends of Matplotlib that draw into files only"""


def check_plot(command: str, given: Namespace) -> None:
    """See that a plot will show what was asked for; algorithms and environments become the names of their folders."""
    if command == "plot_from_file":
        _check_file(given)
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
    if given.labels and len(given.labels) != len(given.exp_folders):
        raise ValueError(f"-l has {len(given.labels)} labels for {len(given.exp_folders)} folders of -f: give one for each")
    _check_runs(given.exp_folders, given.algos, given.env)
    places = itertools.product(given.exp_folders, given.algos, given.env)
    if not any([_check_evaluations(Path(folder, algo), env) for folder, algo, env in places]):
        raise ValueError("There is nothing to plot: all_plots needs two evaluations of a run (train --eval-freq STEPS)")


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


def _shapes(folder: Path, env: str) -> dict[Path, tuple[int, int]]:
    """Read the numbers of evaluations and of episodes an evaluation of the runs on an environment."""
    shapes = {}
    for path in sorted(folder.glob(f"*{env}*/evaluations.npz")):
        try:
            with np.load(path) as stored:
                shape = stored["results"].shape
        except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error}); move its folder away") from error
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"{path}: has no evaluations, at which RL Zoo would stop; move its folder away")
        shapes[path.parent] = shape[:2]
    return shapes


def _check_evaluations(folder: Path, env: str) -> bool:
    """
    Name the runs that RL Zoo leaves out of its means without a word, and refuse what it cannot take the mean of.

    :return: Whether any run is left
    """
    shapes = _shapes(folder, env)
    longest = max((shape[0] for shape in shapes.values()), default=0)
    kept = {run: shape for run, shape in shapes.items() if 1 < shape[0] == longest}
    if left_out := [str(run) for run in shapes if run not in kept]:
        print(f"Left out by RL Zoo, a single evaluation or fewer than others: {', '.join(left_out)}")
    if not kept:
        print(f"RL Zoo's table says 0.0 +/- 0.0 for {folder} on {env}: no run there has two evaluations")
        return False
    numbers = {shape[1]: run for run, shape in kept.items()}
    if len(numbers) > 1:
        said = " and ".join(f"{number} ({run})" for number, run in sorted(numbers.items()))
        raise ValueError(f"RL Zoo takes no mean of runs whose evaluations have {said} episodes; keep them in folders apart")
    if 1 in numbers and len(kept) == 1:
        raise ValueError(
            f"{numbers[1]}: RL Zoo cannot plot a single run whose evaluations are of one episode; it needs another "
            "seed, or two episodes (train --eval-episodes 2)"
        )
    if 1 in numbers:
        print(f"RL Zoo's table says +/- 0 for {folder} on {env}: evaluations of one episode have no spread there")
    return True


def _check_file(given: Namespace) -> None:
    """See that a file of ``all_plots`` has what RL Zoo will draw: each algorithm on each environment, one with two runs."""
    if not given.input:
        raise ValueError("-i is needed, the file that all_plots -o wrote")
    path = Path(given.input if given.input.endswith(".pkl") else f"{given.input}.pkl")
    if not path.is_file():
        raise ValueError(f"There is no file {path}: -i names the one that all_plots -o wrote")
    stored, *others = ({**pickle.loads(Path(name).read_bytes()), "results_table": {}} for name in (path, *given.merge))
    for env in stored:
        stored[env] = {key: curve for curves in (stored, *others) for key, curve in curves.get(env, {}).items()}
    del stored["results_table"]
    # The first environment names the algorithms of all
    keys = [key for key in next(iter(stored.values()), {}) if key not in given.skip_keys]
    keys = [key for key in keys if key in given.keep_keys or not given.keep_keys]
    envs = [env for env in stored if env not in given.skip_envs and (env in given.keep_envs or not given.keep_envs)]
    for env, key in itertools.product(envs, keys):
        if key not in stored[env]:
            raise ValueError(f"{path}: has no evaluations of {key} on {env}; add --skip-envs {env} or --skip-keys {key}")
    if not keys or not envs:
        contents = "; ".join(f"{' '.join(curves) or 'nothing'} on {env}" for env, curves in stored.items())
        raise ValueError(f"{path}: nothing of it is left to draw, it has {contents or 'nothing'}")
    for key in keys:
        if not any(np.ndim(stored[env][key]["last_evals"]) for env in envs):
            raise ValueError(
                f"{path}: has a single run of {key} on each environment, or evaluations of one episode; RL Zoo draws final "
                f"scores of two runs or more, with two episodes or more: add a seed, or --skip-keys {key}"
            )


def _contents(stored: dict[str, set[str]]) -> str:
    return ", ".join(f"{algo} on {' '.join(sorted(envs))}" for algo, envs in sorted(stored.items())) or "nothing"
