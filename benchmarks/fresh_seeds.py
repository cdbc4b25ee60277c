"""
Lay evaluations of fresh seeds beside stored runs of the same tasks: was something lost?

    python benchmarks/fresh_seeds.py results/dpi/fresh_seeds.csv

The file has a line for each evaluation: env, seed, steps, return, cpu_seconds. A fresh run that was stopped early is left out
and named; stored runs are cut where the fresh ones end. ``--before`` adds runs of the former code on the fresh seeds to the
stored ones, a file of the same form.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_dpi.compare.record import read_result
from sb3_dpi.compare.statistics import median_steps, steps_to_threshold, value_at
from sb3_dpi.compare.study import read_runs
from sb3_dpi.trajopt.types import FloatArray

STORED = Path(__file__).parents[1] / "results" / "dpi" / "defaults"
LATEST = 4
"""Evaluations at the end that are averaged too, for one alone is noise."""
ENOUGH = 0.9
"""Share of its steps with which a fresh run counts."""


@dataclass(frozen=True)
class Task:
    """What was asked of a task."""

    steps: int
    """of a run"""
    thresholds: tuple[float, ...]


TASKS = {
    "Pendulum-v1": Task(5000, (-200.0,)),
    "InvertedDoublePendulum-v5": Task(8000, (9000.0,)),
    "Hopper-v5": Task(20000, (2000.0,)),
    "HalfCheetah-v5": Task(10000, (1000.0, 3000.0)),
}
Curve = tuple[FloatArray, FloatArray]
"""Steps and mean returns of the evaluations of a run, ``[k]`` each"""


def read_fresh(path: Path) -> dict[str, dict[int, Curve]]:
    """
    Read evaluations of fresh seeds.

    :param path: of the file, with or without a line of names
    :return: by task and seed; of an evaluation that is there twice the later one
    """
    found: dict[str, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8") as file:
        for row in csv.reader(file):
            if row and row[1] != "seed":
                found[row[0]][int(row[1])][float(row[2])] = float(row[3])
    return {
        env: {seed: (np.array(sorted(points)), np.array([points[k] for k in sorted(points)])) for seed, points in runs.items()}
        for env, runs in found.items()
    }


def read_stored(folder: Path) -> dict[str, dict[int, Curve]]:
    """
    Read what the lab has stored.

    :param folder: of its runs
    :return: by task and seed
    """
    found: dict[str, dict[int, Curve]] = defaultdict(dict)
    runs, problems = read_runs(folder)
    if problems:
        raise problems[0]
    for run in runs:
        curve = read_result(run).curve
        found[run.config.env_id][run.config.seed] = curve.timesteps.astype(float), curve.means
    return found


def missing(fresh: dict[str, dict[int, Curve]], seeds: Sequence[int]) -> list[str]:
    """
    Find what is not there yet.

    :param fresh: evaluations
    :param seeds: that are expected
    :return: in words, empty if all is there
    """
    words = []
    for env, task in TASKS.items():
        for seed in seeds:
            steps = fresh.get(env, {}).get(seed, (np.zeros(1), np.zeros(1)))[0][-1]
            if steps < task.steps:
                words.append(f"{env} {seed}: {steps:.0f} of {task.steps} steps")
    return words


def cut(runs: dict[int, Curve], last: float) -> dict[int, Curve]:
    """
    Forget what came later.

    :param runs: by seed
    :param last: steps of the last evaluation that is kept
    :return: by seed, in their order, with an evaluation at ``last``
    """
    result = {}
    for seed, (steps, returns) in sorted(runs.items()):
        end = value_at(steps, returns, last)
        kept = steps < last
        result[seed] = np.append(steps[kept], last), np.append(returns[kept], end)
    return result


def reached(runs: dict[int, Curve], threshold: float) -> str:
    """
    Say when runs came to a threshold, as the lab counts it.

    :param runs: by seed
    :param threshold: the return to reach
    :return: median, number of seeds that came there, and steps of each in order
    """
    steps = sorted(steps_to_threshold(steps, returns[:, None], threshold) for steps, returns in runs.values())
    each = " ".join("-" if np.isinf(value) else f"{value:,.0f}" for value in steps)
    median = median_steps(steps)
    n_reached = sum(np.isfinite(value) for value in steps)
    return f"{'not reached' if np.isinf(median) else f'{median:,.0f}'} ({n_reached}/{len(steps)}): {each}"


def mean_and_worst(runs: dict[int, Curve], n_latest: int) -> str:
    """
    Say how runs end.

    :param runs: by seed
    :param n_latest: evaluations that are averaged
    :return: mean over the seeds, and the worst of them
    """
    ends = [returns[-n_latest:].mean() for _, returns in runs.values()]
    return f"{np.mean(ends):.0f} ({min(ends):.0f})"


def make_table(fresh: dict[str, dict[int, Curve]], stored: dict[str, dict[int, Curve]]) -> list[str]:
    """
    Lay them side by side.

    :param fresh: evaluations by task and seed
    :param stored: likewise
    :return: lines of Markdown; a task is compared where the shortest fresh run of it ends
    """
    lines = [
        "| task | runs | seeds | steps to the threshold: median (seeds): each "
        f"| return at the end, mean (worst) | of the last {LATEST} evaluations |",
        "|---|---|---|---|---|---|",
    ]
    for env, task in TASKS.items():
        whole = {seed: run for seed, run in fresh.get(env, {}).items() if run[0][-1] >= ENOUGH * task.steps}
        if not whole:
            continue
        last = min([*(steps[-1] for steps, _ in whole.values()), float(task.steps)])
        for name, runs in (("before", cut(stored[env], last)), ("now", cut(whole, last))):
            crossed = "; ".join(f"{threshold:.0f}: {reached(runs, threshold)}" for threshold in task.thresholds)
            seeds = " ".join(map(str, runs))
            ends = f"{mean_and_worst(runs, 1)} | {mean_and_worst(runs, LATEST)}"
            lines.append(f"| {env}, {last:,.0f} steps | {name} | {seeds} | {crossed} | {ends} |")
    return lines


def main() -> None:
    """Print the table, and what is missing."""
    parser = argparse.ArgumentParser(description="Lay evaluations of fresh seeds beside stored runs")
    parser.add_argument("file", type=Path, help="evaluations: env,seed,steps,return,cpu_seconds")
    parser.add_argument("--stored", type=Path, default=STORED, help="folder of stored runs (default: results/dpi/defaults)")
    parser.add_argument("--before", type=Path, help="evaluations of the former code, likewise")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[201, 202, 203, 204, 205], help="fresh seeds that are expected"
    )
    options = parser.parse_args()
    fresh, stored = read_fresh(options.file), read_stored(options.stored)
    for env, runs in (read_fresh(options.before) if options.before else {}).items():
        stored[env] = {**stored[env], **runs}
    print("\n".join(make_table(fresh, stored)))
    for words in missing(fresh, options.seeds):
        print(f"missing: {words}")


if __name__ == "__main__":
    main()
