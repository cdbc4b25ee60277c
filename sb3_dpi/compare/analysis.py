"""What a report says, as data: the runs that it is about, their numbers, and what a reader has to be warned of."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from sb3_dpi.compare.figures import Line
from sb3_dpi.compare.key import ALGORITHM_VERSION, RECORDED
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
from sb3_dpi.compare.store import RECORD, CorruptRun, find_runs, find_without_result, read_record, read_result
from sb3_dpi.compare.suite import Task
from sb3_dpi.compare.types import RunConfig, RunResult

GRID = 60
"""Points of an aggregated curve"""


@dataclass(frozen=True)
class Run:
    """A finished run, its place and what it ran on."""

    result: RunResult
    folder: str
    """Relative to that of the comparison"""
    environment: dict[str, str]
    """Versions of its key, of the other packages that matter, of Python, the platform and the device"""

    @property
    def config(self) -> RunConfig:
        """Its configuration."""
        return self.result.config

    @cached_property
    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Environment steps and mean return of each evaluation, ``[k]``."""
        return self.result.curve.timesteps.astype(np.float64), self.result.curve.means

    @property
    def steps(self) -> int:
        """Environment steps that it has surely done: a last rollout goes on beyond the budget."""
        return min(self.config.n_timesteps, int(self.result.curve.timesteps[-1]))

    def per_1000(self, seconds: float) -> float:
        """
        Divide seconds of the run by its thousands of steps.

        :param seconds: Any of its times
        :return: Seconds per 1000 environment steps
        """
        return 1000 * seconds / float(self.result.curve.timesteps[-1])

    def wall_seconds_at(self, steps: float) -> float:
        """
        Look up when an evaluation took place.

        :param steps: Environment steps of one of its evaluations, or infinity
        :return: Wall seconds of training until then; infinity for infinity, NaN where the run did not store them
        """
        curve = self.result.curve
        if not math.isfinite(steps):
            return math.inf
        if curve.wall_seconds is None:
            return math.nan
        return float(curve.wall_seconds[np.searchsorted(curve.timesteps, steps)])


Group = Sequence[Run]
"""The runs of one algorithm on one task, by seed"""


@dataclass(frozen=True)
class Reached:
    """How an algorithm came to a threshold."""

    threshold: float
    steps: tuple[float, ...]
    """By seed, infinite where it was not reached"""
    median: float
    ratio: Ratio | None
    """To the baseline, None without one"""
    wall_seconds: float
    """Of training, the median of the seeds"""

    @property
    def number(self) -> int:
        """How many seeds reached it."""
        return sum(map(math.isfinite, self.steps))


@dataclass(frozen=True)
class Row:
    """The numbers of one algorithm on one task."""

    name: str
    runs: Group
    final: Interval[float]
    worst: float
    common: Interval[float]
    """Return at the common number of steps"""
    reached: tuple[Reached, ...]
    """One per threshold"""
    wall_seconds: float
    """Of training, like those below the median of the seeds"""
    cpu_per_1000: float
    evaluation_cpu_per_1000: float

    @property
    def budget(self) -> str:
        """Environment steps."""
        return _span(run.config.n_timesteps for run in self.runs)

    @property
    def source(self) -> str:
        """Where the hyperparameters come from."""
        return "; ".join(sorted({run.config.source or "not recorded" for run in self.runs}))


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
    tasks: Mapping[str, Task] = field(default_factory=dict)
    baseline: str = ""
    problems: tuple[str, ...] = ()
    """Runs that were left out, in words"""

    def thresholds(self, task: str) -> tuple[float, ...]:
        """
        Look up the returns to reach.

        :param task: Name of a task
        :return: Its thresholds
        """
        return tuple(self.tasks[task].thresholds) if task in self.tasks else ()

    def scale(self, task: str) -> tuple[float, float] | None:
        """
        Look up the returns that count as 0 and as 1.

        :param task: Name of a task
        :return: Both, None where the suite gives none
        """
        return self.tasks[task].scale if task in self.tasks else None

    def common_steps(self, task: str) -> int:
        """
        Find how far all runs of a task came.

        :param task: Name of a task
        :return: The largest number of environment steps that all of them reached
        """
        return min(run.steps for group in self.groups[task].values() for run in group)

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """From task to one row per algorithm."""
        return {task: [self._row(task, name, group) for name, group in groups.items()] for task, groups in self.groups.items()}

    def _row(self, task: str, name: str, group: Group) -> Row:
        finals = np.array([run.result.final_return for run in group])
        timings = [run.result.timing for run in group]
        pairs = list(zip(group, timings, strict=True))
        return Row(
            name=name,
            runs=group,
            final=_iqm(finals),
            worst=float(finals.min()),
            common=self.value(group, self.common_steps(task)),
            reached=tuple(self._reached(task, name, group, threshold) for threshold in self.thresholds(task)),
            wall_seconds=float(np.median([timing.wall_seconds for timing in timings])),
            cpu_per_1000=float(np.median([run.per_1000(timing.cpu_seconds) for run, timing in pairs])),
            evaluation_cpu_per_1000=float(np.median([run.per_1000(timing.evaluation_cpu_seconds) for run, timing in pairs])),
        )

    def _reached(self, task: str, name: str, group: Group, threshold: float) -> Reached:
        steps = _steps_to(group, threshold)
        baseline = self.groups[task].get(self.baseline)
        ratio = None
        if baseline is not None and name != self.baseline:
            ratio = ratio_to(steps, _budget(group), _steps_to(baseline, threshold), _budget(baseline))
        walls = [run.wall_seconds_at(value) for run, value in zip(group, steps, strict=True)]
        wall = math.nan if any(map(math.isnan, walls)) else median_steps(walls)
        return Reached(threshold, tuple(steps), median_steps(steps), ratio, wall)

    @staticmethod
    def value(group: Group, steps: int) -> Interval[float]:
        """
        Summarize the return at a number of steps.

        :param group: Runs
        :param steps: Environment steps
        :return: Interquartile mean over seeds; NaN where a run has no evaluations on both sides
        """
        return _iqm(_values_at(group, steps))

    def aggregate(self, steps: int | None = None) -> Aggregate:
        """
        Collect normalized scores.

        :param steps: Environment steps at which to take them, by default those that all runs of the task reached
        :return: The scores of the tasks that have a scale and all algorithms
        """
        used: dict[str, int] = {}
        left_out: dict[str, str] = {}
        scores: dict[str, list[FloatArray]] = {name: [] for name in self.names}
        for task, groups in self.groups.items():
            scale = self.scale(task)
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
        """
        Make the curves of a task.

        :param task: Its name
        :return: One per algorithm: interquartile mean over seeds, from the worst to the best seed
        """
        return [line for name, group in self.groups[task].items() if (line := _line(name, group)) is not None]

    def aggregate_lines(self, aggregate: Aggregate) -> list[Line]:
        """
        Make the curves of the aggregate.

        :param aggregate: The scores, for their tasks
        :return: One per algorithm: interquartile mean over runs and tasks with its interval
        """
        lines = []
        for name in self.names:
            groups = [self.groups[task][name] for task in aggregate.steps]
            first, last = _range([run for group in groups for run in group])
            if not groups or first >= last:
                continue
            x = np.geomspace(first, last, GRID)
            # Rounding must not leave the range of any run
            x[0], x[-1] = first, last
            curves = []
            for task, group in zip(aggregate.steps, groups, strict=True):
                low, high = self.scale(task) or (0.0, 1.0)
                curves.append((np.stack([np.interp(x, *run.curve) for run in group]) - low) / (high - low))
            finite = np.logical_and.reduce([np.isfinite(curve).all(axis=0) for curve in curves])
            if not finite.any():
                continue
            x, interval = x[finite], iqm_curve([curve[:, finite] for curve in curves])
            lines.append(Line(name, x, interval.point, interval.low, interval.high))
        return lines

    def warnings(self) -> list[str]:
        """
        Say what makes the comparison less than fair, or less than complete.

        :return: Sentences, those about the same thing on several tasks put together
        """
        found = list(self.problems)
        for check in (_imported, _budgets, _seeds, _single, _points, _settings, _not_finite, _versions):
            said: dict[str, list[str]] = {}
            for task, groups in self.groups.items():
                for text in check([run for group in groups.values() for run in group]):
                    said.setdefault(text, []).append(task)
            for text, tasks in said.items():
                everywhere = len(tasks) == len(self.groups) > 1
                found.append(f"{'All tasks' if everywhere else ', '.join(tasks)}: {text}")
        return found


def _iqm(values: FloatArray) -> Interval[float]:
    return iqm_interval([values]) if np.isfinite(values).all() else Interval(math.nan, math.nan, math.nan)


def _span(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    return f"{ordered[0]:,}" if len(ordered) == 1 else f"{ordered[0]:,} to {ordered[-1]:,}"


def _budget(group: Group) -> float:
    return float(min(run.config.n_timesteps for run in group))


def _steps_to(group: Group, threshold: float) -> list[float]:
    curves = [run.result.curve for run in group]
    return [steps_to_threshold(curve.timesteps, curve.results, threshold) for curve in curves]


def _values_at(group: Group, steps: int) -> FloatArray:
    return np.array([value_at(*run.curve, steps) for run in group])


def _range(runs: Group) -> tuple[float, float]:
    """Find the environment steps between which all runs have evaluations."""
    return max((run.curve[0][0] for run in runs), default=0.0), min((run.curve[0][-1] for run in runs), default=0.0)


def _line(name: str, group: Group) -> Line | None:
    first, last = _range(group)
    x = np.unique(np.concatenate([run.curve[0] for run in group]))
    x = x[(x >= first) & (x <= last)]
    values = np.stack([np.interp(x, *run.curve) for run in group])
    finite = np.isfinite(values).all(axis=0)
    if not finite.any():
        return None
    x, values = x[finite], values[:, finite]
    return Line(name, x, np.asarray(trim_mean(values, 0.25, axis=0)), values.min(axis=0), values.max(axis=0))


def _environment(result: RunResult, provenance: Mapping[str, Any]) -> dict[str, str]:
    # The commit is left out: a run of this package depends on the version of its algorithm, which says nothing of others
    found = {key: str(provenance[key]) for key in ("python", "platform") if key in provenance}
    installed = provenance.get("packages", {})
    packages = {name: str(installed.get(name, "absent")) for name in RECORDED} if installed else {}
    versions = {key: value[:12] if len(value) == 64 else value for key, value in result.versions.items()}
    if ALGORITHM_VERSION in versions:
        versions[f"{ALGORITHM_VERSION} of {result.config.algo_name}"] = versions.pop(ALGORITHM_VERSION)
    return {**found, "device": result.config.device, **packages, **versions}


def read_comparison(out: Path, tasks: Mapping[str, Task], baseline: str = "") -> Comparison:
    """
    Read all finished runs of a comparison; one that cannot be read is left out and named.

    :param out: Its folder
    :param tasks: Thresholds and scales
    :param baseline: Name of the algorithm that ratios refer to
    :return: The runs
    :raises ValueError: If there are none
    """
    runs: dict[tuple[str, str, int], Run] = {}
    problems = []
    for folder in find_runs(out):
        place = folder.relative_to(out).as_posix()
        try:
            result = read_result(read_record(folder))
        except CorruptRun as error:
            problems.append(f"Corrupt, left out: {str(error).replace(str(folder), place)}")
            continue
        provenance = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("provenance", {})
        run = Run(result, place, _environment(result, provenance))
        first = runs.setdefault((run.config.task_name, run.config.name, run.config.seed), run)
        if first is not run:
            problems.append(f"The same run twice, left out: {place}, which is {run.config} like {first.folder}")
    if missing := [path.relative_to(out).as_posix() for path in find_without_result(out)]:
        problems.append(f"No result, failed or not finished; the logs say more: {', '.join(missing)}")
    if not runs:
        reasons = "".join(f"\n{problem}" for problem in problems)
        raise ValueError(f"{out}: no finished runs to report; start some with `python -m sb3_dpi.compare run`{reasons}")
    ours = {run.config.name for run in runs.values() if ALGORITHM_VERSION in run.result.versions}
    names = sorted({name for _, name, _ in runs}, key=lambda name: (name not in ours, name))
    found = {task for task, _, _ in runs}
    order = [task for task in tasks if task in found] + sorted(found - set(tasks))
    groups: dict[str, dict[str, Group]] = {}
    for task in order:
        for name in names:
            group = [runs[key] for key in sorted(runs) if key[:2] == (task, name)]
            if group:
                groups.setdefault(task, {})[name] = group
    return Comparison(groups, tuple(names), tasks, baseline, tuple(problems))


def _who(runs: Group, chosen: Group) -> str:
    """Name the algorithms of the chosen runs, with the seeds where only some of an algorithm's are among them."""
    words = []
    for name in dict.fromkeys(run.config.name for run in chosen):
        seeds = [str(run.config.seed) for run in chosen if run.config.name == name]
        complete = len(seeds) == sum(run.config.name == name for run in runs)
        words.append(name if complete else f"{name} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    return ", ".join(words)


def _difference(runs: Group, value: Callable[[Run], Any], words: str = "{}") -> str:
    """Say who has which value; empty where all have the same."""
    values: dict[Any, list[Run]] = {}
    for run in runs:
        values.setdefault(value(run), []).append(run)
    if len(values) < 2:
        return ""
    return "; ".join(f"{words.format(value)} ({_who(runs, values[value])})" for value in sorted(values))


def _imported(runs: Group) -> Iterable[str]:
    imported = [run for run in runs if run.result.imported]
    if imported:
        yield f"imported baselines, matched by configuration and seed: {_who(runs, imported)}"


def _budgets(runs: Group) -> Iterable[str]:
    if said := _difference(runs, lambda run: run.config.n_timesteps, "{:,} steps"):
        yield f"budgets differ, so final returns are not at the same number of steps: {said}"


def _seeds(runs: Group) -> Iterable[str]:
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(run.config.name, []).append(run.config.seed)
    if len({tuple(found) for found in seeds.values()}) > 1:
        said = "; ".join(f"{name} has {len(found)} ({', '.join(map(str, found))})" for name, found in seeds.items())
        yield f"seeds differ: {said}"


def _single(runs: Group) -> Iterable[str]:
    single = [run for run in runs if sum(other.config.name == run.config.name for other in runs) == 1]
    if single:
        yield f"one seed says nothing about the spread: {', '.join(run.config.name for run in single)}"


def _points(runs: Group) -> Iterable[str]:
    if said := _difference(
        runs, lambda run: f"every {run.config.eval_every} steps at first, {run.config.n_eval_episodes} episodes"
    ):
        yield f"evaluations differ: {said}"


def _settings(runs: Group) -> Iterable[str]:
    for name in dict.fromkeys(run.config.name for run in runs):
        group = [run for run in runs if run.config.name == name]
        settings = [json.dumps([run.config.algo, run.config.hyperparams], sort_keys=True, default=str) for run in group]
        if len(set(settings)) > 1:
            odd = [run for run, setting in zip(group, settings, strict=True) if setting != settings[0]]
            yield f"hyperparameters of {name} are not the same for all seeds: {_who(group, odd)} differ from the first"
    if said := _difference(runs, lambda run: f"{run.config.env_id} {json.dumps(run.config.env_kwargs, sort_keys=True)}"):
        yield f"the environment is not the same for all: {said}"


def _not_finite(runs: Group) -> Iterable[str]:
    odd = [run for run in runs if not np.isfinite(run.result.curve.results).all()]
    if odd:
        yield f"returns that are not finite: {_who(runs, odd)}"


def _versions(runs: Group) -> Iterable[str]:
    for key in sorted({key for run in runs for key in run.environment}):
        # An algorithm's own distribution says nothing about the others
        concerned = [run for run in runs if key in run.environment]
        if said := _difference(concerned, lambda run, key=key: run.environment[key]):  # type: ignore[misc]
            yield f"versions differ, {key}: {said}"
