"""The runs of a report: read from one folder or several, by task and algorithm, on one grid of evaluations a task."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dpi.compare.evaluation import evaluation_points
from sb3_dpi.compare.key import ALGORITHM_VERSION, RECORDED
from sb3_dpi.compare.record import CorruptRun, read_result
from sb3_dpi.compare.statistics import FloatArray
from sb3_dpi.compare.study import find_without_result, read_runs
from sb3_dpi.compare.types import Curve, RunResult


@dataclass(frozen=True, kw_only=True)
class Run(RunResult):
    """A finished run, its place and what it ran on."""

    folder: str
    """Relative to that of the comparison, with it where there are several"""
    environment: Mapping[str, str]
    """Versions of its key, of the other packages that matter, of Python, the platform and the device"""
    grid: Curve
    """Its evaluations on the grid of its task, what tables read"""

    @cached_property
    def points(self) -> tuple[FloatArray, FloatArray]:
        """Environment steps and mean return of each evaluation, ``[k]``."""
        return self.curve.timesteps.astype(np.float64), self.curve.means

    @property
    def steps(self) -> int:
        """Environment steps that it has surely done: a last rollout goes on beyond the budget."""
        return min(self.config.n_timesteps, int(self.curve.timesteps[-1]))

    def wall_seconds_at(self, steps: float) -> float:
        """Look up the wall seconds until an evaluation; infinity for infinity, NaN where the run did not store them."""
        if not math.isfinite(steps) or self.curve.wall_seconds is None:
            return math.nan if math.isfinite(steps) else math.inf
        return float(self.curve.wall_seconds[np.searchsorted(self.curve.timesteps, steps)])


Group = Sequence[Run]
"""The runs of one algorithm on one task, by seed"""


def thin(curve: Curve, points: Sequence[int]) -> Curve:
    """Keep of a curve what evaluations at other points would have been: the first at or after each, and the last."""
    first = np.searchsorted(curve.timesteps, points)
    kept = np.union1d(first[first < len(curve.timesteps)], [len(curve.timesteps) - 1])
    return replace(curve, **{name: array[kept] for name, array in vars(curve).items() if array is not None})


def _on_one_grid(groups: Mapping[str, Group]) -> dict[str, Group]:
    """Let all runs of a task be read as if they had been evaluated as rarely as the one that was evaluated most rarely."""
    runs = [run for group in groups.values() for run in group]
    every = {run.config.eval_every for run in runs}
    if len(every) == 1:
        return dict(groups)
    points = evaluation_points(max(every), max(run.config.n_timesteps for run in runs))
    return {name: [replace(run, grid=thin(run.curve, points)) for run in group] for name, group in groups.items()}


def _environment(result: RunResult, provenance: Mapping[str, Any]) -> dict[str, str]:
    # The commit is left out: a run of this package depends on the version of its algorithm, which says nothing of others
    found = {key: str(provenance[key]) for key in ("python", "platform") if key in provenance}
    installed = provenance.get("packages", {})
    packages = {name: str(installed.get(name, "absent")) for name in RECORDED} if installed else {}
    versions = {key: value[:12] if len(value) == 64 else value for key, value in result.versions.items()}
    if ALGORITHM_VERSION in versions:
        versions[f"{ALGORITHM_VERSION} of {result.config.algo_name}"] = versions.pop(ALGORITHM_VERSION)
    return {**found, "device": result.config.device, **packages, **versions}


class Reader:
    """
    Collects the runs of folders; what cannot be read is left out and named. Runs of another folder join those of the same
    algorithm on the same task where their settings are the same; where they are not, the folder that comes first has them all.
    """

    def __init__(self, outs: Sequence[Path]) -> None:
        self.outs = outs
        self.runs: dict[tuple[str, str, int], Run] = {}
        """By task, algorithm and seed"""
        self.problems: list[str] = []
        """What was left out, in words"""
        self._first: dict[tuple[str, str], tuple[Path, Any]] = {}
        for out in outs:
            self._read(out)

    def _read(self, out: Path) -> None:
        found, problems = read_runs(out)
        passed_over: Counter[str] = Counter()
        for stored in found:
            config = stored.config
            said = config.settings, config.env_kwargs
            first, theirs = self._first.setdefault((config.task_name, config.name), (out, said))
            if first != out and said != theirs:
                passed_over[f"runs of {config.name} on {config.task_name} in {out}; those of {first} count"] += 1
                continue
            try:
                result = read_result(stored)
            except CorruptRun as error:
                problems.append(error)
                continue
            place = self._place(stored.folder, out)
            environment = _environment(result, stored.record.get("provenance", {}))
            run = Run(**vars(result), folder=place, environment=environment, grid=result.curve)
            known = self.runs.setdefault((config.task_name, config.name, config.seed), run)
            if known is not run:
                same = np.array_equal(known.curve.results, result.curve.results) and known.versions == result.versions
                words = "The same run twice" if same else "Two different runs by the same name"
                self.problems.append(f"{words}, left out: {place}, which is {config} like {known.folder}")
        folder = f"{out}/" if len(self.outs) == 1 else ""
        for text, number in Counter(map(str, problems)).items():
            times = f" ({number} runs)" if number > 1 else ""
            self.problems.append(f"Corrupt, left out: {text.removeprefix(folder)}{times}")
        self.problems += [f"Other settings, left out: {number} {which}" for which, number in passed_over.items()]
        if missing := [self._place(path, out) for path in find_without_result(out)]:
            self.problems.append(f"No result, failed or not finished; the logs say more: {', '.join(missing)}")

    def _place(self, path: Path, out: Path) -> str:
        return (path.relative_to(out) if len(self.outs) == 1 else path).as_posix()

    @property
    def names(self) -> tuple[str, ...]:
        """All algorithms, those of this package first."""
        ours = {run.config.name for run in self.runs.values() if ALGORITHM_VERSION in run.versions}
        return tuple(sorted({name for _, name, _ in self.runs}, key=lambda name: (name not in ours, name)))

    def groups(self, tasks: Mapping[str, Any]) -> dict[str, dict[str, Group]]:
        """Put the runs, each on its task's grid, in the order of a report: tasks as given, algorithms as in ``names``."""
        found = {task for task, _, _ in self.runs}
        groups: dict[str, dict[str, Group]] = {}
        for task in [name for name in tasks if name in found] + sorted(found - set(tasks)):
            runs = {name: [self.runs[key] for key in sorted(self.runs) if key[:2] == (task, name)] for name in self.names}
            groups[task] = _on_one_grid({name: group for name, group in runs.items() if group})
        return groups
