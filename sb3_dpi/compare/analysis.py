"""The numbers of a report: a row a run, a row an algorithm and threshold, scores over all tasks, curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import trim_mean

from sb3_dpi.compare.figures import Line
from sb3_dpi.compare.runs import Group, Reader
from sb3_dpi.compare.statistics import (
    FloatArray,
    Interval,
    Ratio,
    improvement_interval,
    iqm_curve,
    iqm_interval,
    median_steps,
    ratio_to,
    steps_to_threshold,
    value_at,
)
from sb3_dpi.compare.suite import Task
from sb3_dpi.compare.types import Curve

GRID = 60
"""Points of an aggregated curve"""
KEEPS = 0.9
"""A run keeps a threshold if at least this share of its evaluations from the crossing on, that included, is at or above it"""


def share_kept(curve: Curve, threshold: float) -> float:
    """
    Tell how much of the time a run stays at a threshold once it has come there.

    :return: The share of its evaluations at or above it, from the first of the three that count as reaching it to the end; NaN
        where it was not reached
    """
    crossing = steps_to_threshold(curve.timesteps, curve.results, threshold)
    later = curve.means[curve.timesteps >= crossing]
    return float((later >= threshold).mean()) if len(later) else math.nan


@dataclass(frozen=True)
class Aggregate:
    """Normalized scores over the tasks that all algorithms have."""

    steps: dict[str, int]
    """From task to the environment steps at which it is scored; empty where there is nothing to aggregate"""
    left_out: dict[str, str]
    """From task to the reason"""
    scores: dict[str, list[FloatArray]]
    """From algorithm to its scores, one array of runs per task"""

    @cached_property
    def iqm(self) -> dict[str, Interval[float]]:
        """From algorithm to the interquartile mean."""
        return {name: iqm_interval(scores) for name, scores in self.scores.items()}

    @cached_property
    def improvement(self) -> dict[tuple[str, str], Interval[float]]:
        """From pair to the probability that the first is better than the second."""
        names = list(self.scores)
        return {(x, y): improvement_interval(self.scores[x], self.scores[y]) for x in names for y in names if x != y}


@dataclass(frozen=True)
class Comparison:
    """The runs of a report in its order: tasks as the suite has them, this package's algorithms first."""

    groups: dict[str, dict[str, Group]]
    """From task and algorithm to runs"""
    names: tuple[str, ...]
    """All algorithms"""
    tasks: Mapping[str, Task]
    """Thresholds and scales of all of them"""
    baseline: str
    problems: Sequence[str]
    """Runs that were left out, in words"""

    def common_steps(self, task: str) -> int:
        """The largest number of environment steps that all runs of a task reached."""
        return min(run.steps for group in self.groups[task].values() for run in group)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run, as in ``runs.csv``."""
        most, rows = max(len(task.thresholds) for task in self.tasks.values()), []
        for task, run in [(task, run) for task, groups in self.groups.items() for group in groups.values() for run in group]:
            config, names = run.config, ("threshold", "steps_to_threshold", "share_kept")
            reached: dict[str, Any] = dict.fromkeys(f"{name}_{k}" for k in range(1, most + 1) for name in names)
            for k, threshold in enumerate(self.tasks[task].thresholds, 1):
                values = threshold, _steps_to([run], threshold)[0], share_kept(run.grid, threshold)
                reached |= {f"{name}_{k}": value for name, value in zip(names, values, strict=True)}
            row = {"task": task, "env": config.env_id, "name": config.name, "algo": config.algo, "seed": config.seed}
            row |= {"n_timesteps": config.n_timesteps, **reached, "final_return": run.final_return, **vars(run.timing)}
            rows.append(row | {"imported": int(run.imported), "folder": run.folder, "source": config.source})
        return pd.DataFrame(rows, dtype=object)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row for each task, threshold and algorithm, as in ``summary.csv``; seconds are medians over seeds."""
        rows = []
        for task, groups in self.groups.items():
            of_runs = {name: self._row(task, group) for name, group in groups.items()}
            for threshold in self.tasks[task].thresholds or (None,):
                for name, group in groups.items():
                    config = group[0].config
                    first = {"task": task, "env": config.env_id, "threshold": threshold, "name": name, "algo": config.algo}
                    rows.append(first | self._reached(task, name, group, threshold) | of_runs[name])
        return pd.DataFrame(rows, dtype=object)

    def _row(self, task: str, group: Group) -> dict[str, Any]:
        finals = np.array([run.final_return for run in group])
        common = self.common_steps(task)
        seconds = pd.DataFrame([vars(run.timing) for run in group])
        steps = np.array([run.curve.timesteps[-1] for run in group])
        return {
            **{"seeds": len(group), "n_timesteps": int(_budget(group)), **_named("final", _iqm(finals))},
            **{"final_worst": float(finals.min()), "common_steps": common, **_named("common", self.value(group, common))},
            "wall_seconds": seconds["wall_seconds"].median(),
            "cpu_seconds_per_1000_steps": (1000 * seconds["cpu_seconds"] / steps).median(),
            "evaluation_cpu_seconds_per_1000_steps": (1000 * seconds["evaluation_cpu_seconds"] / steps).median(),
            "source": "; ".join(sorted({run.config.source or "not recorded" for run in group})),
        }

    def _reached(self, task: str, name: str, group: Group, threshold: float | None) -> dict[str, Any]:
        if threshold is None:
            return dict.fromkeys(_REACHED)
        steps, baseline = _steps_to(group, threshold), self.groups[task].get(self.baseline)
        ratio: Ratio | None = None
        if baseline is not None and name != self.baseline:
            ratio = ratio_to(steps, _budget(group), _steps_to(baseline, threshold), _budget(baseline))
        walls = [run.wall_seconds_at(value) for run, value in zip(group, steps, strict=True)]
        return {
            "seeds_reached": sum(map(math.isfinite, steps)),
            "seeds_keeping": sum(share_kept(run.grid, threshold) >= KEEPS for run in group),
            "steps_median": median_steps(steps),
            "baseline": self.baseline if ratio else None,
            "ratio": ratio.value if ratio else None,
            "ratio_bound": ratio.bound if ratio else None,
            "wall_seconds_to_threshold": math.nan if any(map(math.isnan, walls)) else median_steps(walls),
        }

    @staticmethod
    def value(group: Group, steps: int) -> Interval[float]:
        """Summarize the return at a number of steps; NaN where a run has no evaluations on both sides."""
        return _iqm(_values_at(group, steps))

    def aggregate(self, steps: int | None = None) -> Aggregate:
        """
        Collect normalized scores of the tasks that have a scale and all algorithms, at a number of environment steps, by
        default the largest that all runs of the task reached.
        """
        used: dict[str, int] = {}
        left_out: dict[str, str] = {}
        scores: dict[str, list[FloatArray]] = {name: [] for name in self.names}
        for task, groups in self.groups.items():
            scale = self.tasks[task].scale
            missing = [name for name in self.names if name not in groups]
            at = self.common_steps(task) if steps is None else steps
            values = {name: _values_at(group, at) for name, group in groups.items()}
            unknown = [name for name, array in values.items() if not np.isfinite(array).all()]
            if scale is None:
                left_out[task] = "the suite gives it no scale"
            elif missing:
                left_out[task] = f"not run: {', '.join(missing)}"
            elif unknown:
                left_out[task] = f"no evaluations on both sides of {at:,} steps: {', '.join(unknown)}"
            else:
                used[task] = at
                for name in self.names:
                    scores[name].append((values[name] - scale[0]) / (scale[1] - scale[0]))
        return Aggregate(used, left_out, scores if used else {})

    def lines(self, task: str) -> list[Line]:
        """Make the curves of a task: interquartile mean over seeds, from the worst to the best seed."""
        return [line for name, group in self.groups[task].items() if (line := _line(name, group)) is not None]

    def aggregate_lines(self, aggregate: Aggregate) -> list[Line]:
        """Make the curves of the aggregate: interquartile mean over runs and tasks with its interval."""
        lines = []
        for name in self.names:
            groups = {task: self.groups[task][name] for task in aggregate.steps}
            first, last = _range([run for group in groups.values() for run in group])
            if first >= last:
                continue
            x, curves = np.geomspace(first, last, GRID), []
            for task, group in groups.items():
                low, high = self.tasks[task].scale or (0.0, 1.0)
                curves.append((_returns(group, x) - low) / (high - low))
            finite = np.logical_and.reduce([np.isfinite(curve).all(axis=0) for curve in curves])
            if finite.any():
                x, interval = x[finite], iqm_curve([curve[:, finite] for curve in curves])
                lines.append(Line(name, x, interval.point, interval.low, interval.high))
        return lines


_REACHED = (
    *("seeds_reached", "seeds_keeping", "steps_median", "baseline", "ratio", "ratio_bound"),
    "wall_seconds_to_threshold",
)


def _named(name: str, value: Interval[float]) -> dict[str, float]:
    return {f"{name}_iqm": value.point, f"{name}_low": value.low, f"{name}_high": value.high}


def _iqm(values: FloatArray) -> Interval[float]:
    return iqm_interval([values]) if np.isfinite(values).all() else Interval(math.nan, math.nan, math.nan)


def _budget(group: Group) -> float:
    return float(min(run.config.n_timesteps for run in group))


def _steps_to(group: Group, threshold: float) -> list[float]:
    return [steps_to_threshold(run.grid.timesteps, run.grid.results, threshold) for run in group]


def _values_at(group: Group, steps: int) -> FloatArray:
    return np.array([value_at(run.grid.timesteps, run.grid.means, steps) for run in group])


def _range(runs: Group) -> tuple[float, float]:
    """Find the environment steps between which all runs have evaluations."""
    return max((run.points[0][0] for run in runs), default=0.0), min((run.points[0][-1] for run in runs), default=0.0)


def _returns(group: Group, x: FloatArray) -> FloatArray:
    return np.stack([np.interp(x, *run.points) for run in group])


def _line(name: str, group: Group) -> Line | None:
    first, last = _range(group)
    x = np.unique(np.concatenate([run.points[0] for run in group]))
    x = x[(x >= first) & (x <= last)]
    values = _returns(group, x)
    finite = np.isfinite(values).all(axis=0)
    if not finite.any():
        return None
    x, values = x[finite], values[:, finite]
    return Line(name, x, np.asarray(trim_mean(values, 0.25, axis=0)), values.min(axis=0), values.max(axis=0))


def read_comparison(outs: Path | Sequence[Path], tasks: Mapping[str, Task], baseline: str = "") -> Comparison:
    """Read all finished runs of a comparison, in one folder or several; one that cannot be read is left out and named."""
    reader = Reader([outs] if isinstance(outs, Path) else outs)
    if not reader.runs:
        reasons = "".join(f"\n{problem}" for problem in reader.problems)
        where = ", ".join(map(str, reader.outs))
        raise ValueError(f"{where}: no finished runs to report; start some with `python -m sb3_dpi.compare run`{reasons}")
    groups = reader.groups(tasks)
    all_tasks = {task: tasks.get(task) or Task(env=task) for task in groups}
    return Comparison(groups, reader.names, all_tasks, baseline, reader.problems)
