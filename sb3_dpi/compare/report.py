"""The report of a comparison, rebuilt from its stored runs: Markdown, one HTML file, csv files and figures.

The same runs give the same files to the last byte. What depends on the clock is kept apart, so that the rest of two reports
can be compared: in csv files in columns with "seconds" in their names, in the texts in sections headed "Time".
"""

import csv
import io
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sb3_dpi.compare.analysis import Aggregate, Comparison, Reached, Row, read_comparison
from sb3_dpi.compare.document import Document, Heading, Image, Items, Paragraph, Table
from sb3_dpi.compare.figures import (
    Line,
    Point,
    Style,
    curves_figure,
    frontier,
    frontier_figure,
    frontier_panels,
    make_styles,
    profile_figure,
    require_matplotlib,
)
from sb3_dpi.compare.statistics import CONSECUTIVE, Interval, profile_interval
from sb3_dpi.compare.suite import Task

PUBLISHED = Path(__file__).with_name("published.yml")
TIME = "Time"
"""Heading of the sections that depend on the clock"""
IQM = "IQM [95 % interval]"
PROFILE_POINTS = 101


def _digits(rows: Sequence[Row]) -> int:
    largest = max((abs(row.final.point) for row in rows if np.isfinite(row.final.point)), default=0.0)
    return 0 if largest >= 100 else 1 if largest >= 10 else 2


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def _interval(value: Interval[float], digits: int, runs: int = 0) -> str:
    point, low, high = (_number(part, digits) for part in (value.point, value.low, value.high))
    # One run has no spread to draw an interval from
    return point if point == "-" or runs == 1 else f"{point} [{low}, {high}]"


def _seeds(aggregate: Aggregate, name: str) -> int:
    """Count the runs of an algorithm on the task where it has most: with one on each the bootstrap has nothing to draw."""
    return max(map(len, aggregate.scores[name]))


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _steps(reached: Reached, row: Row) -> str:
    text = f"{reached.median:,.0f}" if math.isfinite(reached.median) else f"> {row.budget}"
    return f"{text} ({reached.number}/{len(row.runs)})"


def _wall(reached: Reached, row: Row) -> str:
    return f"> {_seconds(row.wall_seconds)}" if reached.wall_seconds == math.inf else _seconds(reached.wall_seconds)


def _ratio(reached: Reached, name: str, baseline: str) -> str:
    return "1" if name == baseline and math.isfinite(reached.median) else str(reached.ratio or "-")


def _threshold(value: float) -> str:
    return f"{value:,.10g}"


def task_table(comparison: Comparison, task: str) -> Table:
    """
    Make the table of a task.

    :param comparison: All runs
    :param task: Name of the task
    :return: One row per algorithm, without what depends on the clock
    """
    rows, baseline = comparison.rows[task], comparison.baseline
    digits = _digits(rows)
    ratios = baseline in comparison.groups[task] and len(rows) > 1
    header = ["algorithm"]
    for threshold in comparison.thresholds(task):
        header += [f"steps to {_threshold(threshold)} (seeds)", *([f"ratio to {baseline}"] if ratios else [])]
    header += [f"final return, {IQM}", "worst seed", f"return at {comparison.common_steps(task):,} steps, {IQM}"]
    header += ["budget", "seeds", "hyperparameters"]
    cells = []
    for row in rows:
        line = [row.name]
        for reached in row.reached:
            line += [_steps(reached, row), *([_ratio(reached, row.name, baseline)] if ratios else [])]
        runs = len(row.runs)
        line += [_interval(row.final, digits, runs), _number(row.worst, digits), _interval(row.common, digits, runs)]
        cells.append([*line, row.budget, str(len(row.runs)), row.source])
    return Table(header, cells, text_columns=(0, len(header) - 1))


def time_table(comparison: Comparison, task: str, steps: int | None = None) -> Table:
    """
    Make the table of a task's times.

    :param comparison: All runs
    :param task: Name of the task
    :param steps: Environment steps at which to show the return beside its cost, by default those that all runs reached
    :return: One row per algorithm
    """
    rows = comparison.rows[task]
    digits = _digits(rows)
    at = comparison.common_steps(task) if steps is None else steps
    header = ["algorithm", *(f"wall seconds to {_threshold(threshold)}" for threshold in comparison.thresholds(task))]
    header += ["wall seconds, all steps", "CPU seconds per 1000 steps", "evaluations' CPU seconds per 1000 steps"]
    header += [f"return at {at:,} steps"]
    cells = []
    for row in rows:
        line = [row.name, *(_wall(reached, row) for reached in row.reached), _seconds(row.wall_seconds)]
        line += [_seconds(row.cpu_per_1000), _seconds(row.evaluation_cpu_per_1000)]
        cells.append([*line, _interval(comparison.value(row.runs, at), digits, len(row.runs))])
    return Table(header, cells)


@cache
def _published() -> dict[str, Any]:
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


def published_curves(comparison: Comparison, task: str) -> list[dict[str, Any]]:
    """
    Look up what others have published on a task.

    :param comparison: All runs
    :param task: Name of the task
    :return: Entries of ``published.yml``; none for an environment with arguments of its own
    """
    configs = [run.config for group in comparison.groups[task].values() for run in group]
    names = {re.sub(r"-v\d+$", "", config.env_name) for config in configs if not config.env_kwargs}
    return list(_published()["tasks"].get(names.pop(), [])) if len(names) == 1 else []


def _published_line(entry: Mapping[str, Any]) -> Line:
    mean, x = np.array(entry["mean"], dtype=float), np.array(entry["steps"], dtype=float)
    return Line(entry["name"], x, mean, mean, mean)


def _published_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    points = sorted({step for entry in entries for step in entry["steps"]})
    rows = []
    for entry in entries:
        values = {
            step: f"{mean:,} ({worst:,})"
            for step, mean, worst in zip(entry["steps"], entry["mean"], entry["worst"], strict=True)
        }
        rows.append([entry["name"], str(entry["seeds"]), *(values.get(step, "-") for step in points)])
    return Table(["as read, not run here", "seeds", *(f"{step:,} steps" for step in points)], rows)


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.-]+", "-", task)


class _Writer:
    """Composes the document of a comparison."""

    def __init__(self, comparison: Comparison, published: bool, steps: int | None) -> None:
        self.comparison = comparison
        self.published = published
        self.steps = steps
        self.styles: dict[str, Style] = make_styles(comparison.names)
        tasks = len(comparison.groups)
        where = next(iter(comparison.groups)) if tasks == 1 else f"{tasks} tasks"
        self.document = Document(f"{', '.join(comparison.names)} on {where}")

    def compose(self, warnings: Sequence[str]) -> Document:
        """Write all of it."""
        self.document.add(Heading("Warnings"))
        self.document.add(Items(warnings, warning=True) if warnings else Paragraph("None."))
        self._guide()
        self._all_tasks()
        for task in self.comparison.groups:
            self._task(task)
        return self.document

    def _guide(self) -> None:
        baseline = self.comparison.baseline
        items = [
            f"Steps to a threshold: at the first of {CONSECUTIVE} evaluations in a row whose mean return is at or above it; "
            'the median over seeds, in brackets the seeds that came there; "> budget" where the median seed did not.',
            "Return: undiscounted, of the deterministic policy, in an environment apart from training. Final: at the end of "
            "the run's own budget. At a number of steps: interpolated between evaluations, so that all are read at the same.",
            "IQM: the interquartile mean, over seeds or over seeds and tasks; its 95 % interval is from a bootstrap over "
            "seeds, within each task.",
            "Times are of training alone, without the evaluations, and are medians over seeds.",
        ]
        if any(baseline in groups for groups in self.comparison.groups.values()):
            items.insert(
                1,
                f'Ratio to {baseline}: of the medians; "<=" where {baseline} did not come there, so that its budget counts, '
                'and ">=" where the algorithm itself did not, so that its own does.',
            )
        elif baseline:
            items.insert(1, f"No ratios: the baseline {baseline} is not among the algorithms.")
        self.document.add(Heading("How to read the tables"), Items(items))

    def _all_tasks(self) -> None:
        comparison, add = self.comparison, self.document.add
        aggregate = comparison.aggregate()
        add(Heading("All tasks"), *self._what_is_aggregated(aggregate))
        if not aggregate.steps:
            self._frontier(None)
            return
        runs = {name: sum(map(len, scores)) for name, scores in aggregate.scores.items()}
        rows = [[n, _interval(aggregate.iqm[n], 3, _seeds(aggregate, n)), str(runs[n])] for n in comparison.names]
        add(Table(["algorithm", f"normalized score, {IQM}", "runs"], rows))
        if lines := comparison.aggregate_lines(aggregate):
            subtitle = "interquartile mean over runs and tasks, band: 95 % stratified bootstrap"
            figure = curves_figure("Score over steps", lines, self.styles, subtitle=subtitle, value="normalized score")
            add(Image("figures/iqm.png", figure, "Interquartile mean of the normalized scores over environment steps"))
        self._improvement(aggregate)
        self._profile(aggregate)
        self._frontier(aggregate if self.steps is None else comparison.aggregate(self.steps))

    def _what_is_aggregated(self, aggregate: Aggregate) -> Iterator[Paragraph | Items | Table]:
        scales = {task: self.comparison.scale(task) or (0.0, 1.0) for task in aggregate.steps}
        if aggregate.steps:
            yield Paragraph(
                "Scores are normalized, (return - low) / (high - low) with low and high from the suite, and taken at the "
                "largest number of steps that all runs of the task reached."
            )
            rows = [[task, *map(_threshold, scales[task]), f"{steps:,}"] for task, steps in aggregate.steps.items()]
            yield Table(["task", "low, score 0", "high, score 1", "common steps"], rows)
        else:
            yield Paragraph("Nothing to put together: no task has both a scale and all algorithms.")
        if aggregate.left_out:
            reasons: dict[str, list[str]] = {}
            for task, reason in aggregate.left_out.items():
                reasons.setdefault(reason, []).append(task)
            yield Paragraph("Tasks left out here:")
            yield Items([f"{', '.join(tasks)}: {reason}" for reason, tasks in reasons.items()])

    def _improvement(self, aggregate: Aggregate) -> None:
        names = self.comparison.names
        if len(names) < 2:
            return

        def cell(x: str, y: str) -> str:
            seeds = max(_seeds(aggregate, x), _seeds(aggregate, y))
            return "" if x == y else _interval(aggregate.improvement[x, y], 2, seeds)

        rows = [[x, *(cell(x, y) for y in names)] for x in names]
        self.document.add(
            Heading("Probability of improvement", 3),
            Paragraph(
                "How probable it is that a run of the row's algorithm scores higher than one of the column's, on a task taken "
                "at random, with the 95 % interval."
            ),
            Table(["better than", *names], rows),
        )

    def _profile(self, aggregate: Aggregate) -> None:
        values = np.concatenate([array for scores in aggregate.scores.values() for array in scores])
        taus = np.linspace(min(max(float(values.min()), -0.5), 0.0), max(float(values.max()), 1.0), PROFILE_POINTS)
        lines = []
        for name, scores in aggregate.scores.items():
            interval = profile_interval(scores, taus)
            lines.append(Line(name, taus, interval.point, interval.low, interval.high))
        subtitle = "fraction of runs above a score, mean over tasks, band: 95 % stratified bootstrap"
        figure = profile_figure("Performance profiles", lines, self.styles, subtitle)
        self.document.add(
            Heading("Performance profiles", 3),
            Image("figures/profile.png", figure, "Fraction of runs above a normalized score"),
        )

    def _frontier(self, aggregate: Aggregate | None) -> None:
        """What is reached against what it costs: over all tasks where there is an aggregate, then for each task."""
        comparison, add = self.comparison, self.document.add
        where = "the tasks' common numbers of steps" if self.steps is None else f"{self.steps:,} steps"
        add(Heading(TIME, 3), Paragraph(f"What is reached at {where} against the CPU seconds of training."))
        if aggregate is not None and aggregate.steps:
            costs = {
                name: float(
                    np.mean(
                        [row.cpu_per_1000 for task in aggregate.steps for row in comparison.rows[task] if row.name == name]
                    )
                )
                for name in comparison.names
            }
            points = [Point(name, costs[name], value.point, value.low, value.high) for name, value in aggregate.iqm.items()]
            best = {point.name for point in frontier(points)}
            header = [
                "algorithm",
                f"normalized score, {IQM}",
                "CPU seconds per 1000 steps, mean over tasks",
                "on the frontier",
            ]
            rows = [
                [name, _interval(value, 3, _seeds(aggregate, name)), _seconds(costs[name]), "yes" if name in best else "no"]
                for name, value in aggregate.iqm.items()
            ]
            subtitle = "interquartile mean at the table's number of steps, bars: 95 % intervals, grey: the frontier"
            figure = frontier_figure("Score against compute", points, self.styles, subtitle)
            add(
                Table(header, rows),
                Image("figures/frontier.png", figure, "Normalized score against CPU seconds per 1000 steps"),
            )
        elif aggregate is not None:
            add(Paragraph(f"No task has evaluations of all algorithms on both sides of {self.steps or 0:,} steps."))
        panels = [(task, points) for task in comparison.groups if len(points := self._points(task)) > 1]
        if panels:
            caption = f"Return at {where} against CPU seconds per 1000 steps"
            add(Image("figures/frontier_tasks.png", frontier_panels(panels, self.styles), caption))

    def _points(self, task: str) -> list[Point]:
        at = self.comparison.common_steps(task) if self.steps is None else self.steps
        points = []
        for row in self.comparison.rows[task]:
            value = self.comparison.value(row.runs, at)
            if math.isfinite(value.point):
                points.append(Point(row.name, row.cpu_per_1000, value.point, value.low, value.high))
        return points

    def _task(self, task: str) -> None:
        comparison, add = self.comparison, self.document.add
        entries = published_curves(comparison, task) if self.published else []
        add(Heading(task))
        if lines := comparison.lines(task):
            figure = curves_figure(
                task,
                lines,
                self.styles,
                comparison.thresholds(task),
                [_published_line(entry) for entry in entries],
                "interquartile mean over seeds, band: worst to best seed",
            )
            add(Image(f"figures/curves_{_file_name(task)}.png", figure, f"Return on {task} over environment steps"))
        add(task_table(comparison, task))
        if entries:
            source = _published()["source"]
            add(Paragraph(f"Mean over seeds, in brackets the worst seed. Source: {source}."), _published_table(entries))
        add(Heading(TIME, 3), time_table(comparison, task, self.steps))


def _summary_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for task, rows in comparison.rows.items():
        common = comparison.common_steps(task)
        for i, threshold in enumerate(comparison.thresholds(task) or (None,)):
            for row in rows:
                reached = row.reached[i] if threshold is not None else None
                ratio = reached.ratio if reached is not None else None
                config = row.runs[0].config
                yield {
                    "task": task,
                    "env": config.env_id,
                    "threshold": threshold,
                    "name": row.name,
                    "algo": config.algo,
                    "seeds": len(row.runs),
                    "n_timesteps": min(run.config.n_timesteps for run in row.runs),
                    "seeds_reached": reached.number if reached else None,
                    "steps_median": reached.median if reached else None,
                    "baseline": comparison.baseline if ratio else None,
                    "ratio": ratio.value if ratio else None,
                    "ratio_bound": ratio.bound if ratio else None,
                    **_named("final", row.final),
                    "final_worst": row.worst,
                    "common_steps": common,
                    **_named("common", row.common),
                    "wall_seconds_to_threshold": reached.wall_seconds if reached else None,
                    "wall_seconds": row.wall_seconds,
                    "cpu_seconds_per_1000_steps": row.cpu_per_1000,
                    "evaluation_cpu_seconds_per_1000_steps": row.evaluation_cpu_per_1000,
                    "source": row.source,
                }


def _named(name: str, value: Interval[float]) -> dict[str, float]:
    return {f"{name}_iqm": value.point, f"{name}_low": value.low, f"{name}_high": value.high}


def _run_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    most = max((len(comparison.thresholds(task)) for task in comparison.groups), default=0)
    for task, rows in comparison.rows.items():
        for row in rows:
            for i, run in enumerate(row.runs):
                config, timing = run.config, run.result.timing
                yield {
                    "task": task,
                    "env": config.env_id,
                    "name": row.name,
                    "algo": config.algo,
                    "seed": config.seed,
                    "n_timesteps": config.n_timesteps,
                    **{
                        key: value
                        for k in range(most)
                        for key, value in {
                            f"threshold_{k + 1}": row.reached[k].threshold if k < len(row.reached) else None,
                            f"steps_to_threshold_{k + 1}": row.reached[k].steps[i] if k < len(row.reached) else None,
                        }.items()
                    },
                    "final_return": run.result.final_return,
                    **vars(timing),
                    "imported": int(run.result.imported),
                    "folder": run.folder,
                    "source": config.source,
                }


def _table_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    rows = list(rows)
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _episodes_csv(comparison: Comparison) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    runs = [run for groups in comparison.groups.values() for group in groups.values() for run in group]
    told = any(run.result.curve.successes is not None for run in runs)
    writer.writerow(["name", "algo", "env", "seed", "timesteps", "episode", "return", "length", *["success"] * told, "task"])
    for run in runs:
        config, curve = run.config, run.result.curve
        number, episodes = curve.results.shape
        columns = [
            np.repeat(curve.timesteps, episodes).tolist(),
            list(range(episodes)) * number,
            curve.results.ravel().tolist(),
            curve.lengths.ravel().tolist(),
        ]
        if told:
            columns.append(
                [""] * curve.results.size if curve.successes is None else curve.successes.ravel().astype(int).tolist()
            )
        who = (config.name, config.algo, config.env_id, config.seed)
        writer.writerows([*who, *values, config.task_name] for values in zip(*columns, strict=True))
    return stream.getvalue()


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_report(
    out: Path,
    tasks: Mapping[str, Task],
    console: Console | None = None,
    published: bool = False,
    baseline: str = "trpo",
    steps: int | None = None,
) -> list[str]:
    """
    Write ``report.md``, ``report.html``, ``summary.csv`` (a row per task, threshold and algorithm), ``runs.csv`` (a row per
    run), ``evaluations.csv`` (a row per episode) and ``figures/`` from the finished runs of a comparison.

    :param out: Folder of the comparison
    :param tasks: Thresholds and scales by name of the task; a task without an entry has none
    :param console: Where to print the warnings and what was written, None for nowhere
    :param published: Whether to show curves that others have published, marked as read, not run
    :param baseline: Name of the algorithm that ratios refer to
    :param steps: Environment steps at which return is set against compute, by default those that all runs of a task reached
    :return: The warnings of the report
    :raises ImportError: If matplotlib is not installed; nothing is written then
    :raises ValueError: If there is no finished run
    """
    require_matplotlib()
    comparison = read_comparison(out, tasks, baseline)
    warnings = comparison.warnings()
    document = _Writer(comparison, published, steps).compose(warnings)
    files: dict[str, str | bytes] = {
        **document.images,
        "evaluations.csv": _episodes_csv(comparison),
        "runs.csv": _table_csv(_run_rows(comparison)),
        "summary.csv": _table_csv(_summary_rows(comparison)),
        "report.md": document.markdown(),
        "report.html": document.html(),
    }
    for name, content in files.items():
        _write(out / name, content)
    if console is not None:
        for warning in warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"Report: {out / 'report.html'}, {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
    return warnings


@dataclass(frozen=True)
class _Column:
    """A column of a terminal's table."""

    header: str
    cells: Sequence[str]
    words: bool = False
    """Whether it is set to the left"""
    rank: int = 0
    """Where the terminal is too narrow, columns are left out from the highest rank on; those of 0 stay"""


def _columns(comparison: Comparison, task: str) -> list[_Column]:
    table, times = task_table(comparison, task), time_table(comparison, task)
    thresholds = len(comparison.thresholds(task))
    # With thresholds the number of seeds is in brackets behind the steps too
    ranks = {"seeds": 5 if thresholds else 1, "worst seed": 4, f"ratio to {comparison.baseline}": 2}
    columns = []
    for i, name in enumerate(table.header):
        if not name.startswith(("return at", "budget", "hyperparameters")):
            header = name.removesuffix(f", {IQM}").replace(" (", "\n(").replace("ratio to ", "ratio to\n")
            columns.append(_Column(header, [row[i] for row in table.rows], i in table.text_columns, ranks.get(name, 0)))
    for i, (name, rank) in enumerate((("wall\nseconds", 3), ("CPU s per\n1000 steps", 1)), 1 + thresholds):
        columns.append(_Column(name, [row[i] for row in times.rows], rank=rank))
    return columns


def _terminal_table(title: str, columns: Sequence[_Column]) -> RichTable:
    rich = RichTable(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        rich.add_column(Text(column.header), justify="left" if column.words else "right", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        rich.add_row(*map(Text, cells))
    return rich


def _fitting_table(console: Console, title: str, columns: Sequence[_Column]) -> tuple[RichTable, list[str]]:
    """Make a table that breaks no cell if it can be, and name what had to be left out."""
    unbounded, shown = console.options.update(max_width=sys.maxsize), list(columns)
    left_out: list[str] = []
    for rank in (5, 4, 3, None, 2, 1):
        if console.measure(_terminal_table(title, shown), options=unbounded).maximum <= console.width:
            break
        if rank is None:
            if any(" [" in cell for column in shown for cell in column.cells):
                left_out.append("intervals")
            shown = [replace(column, cells=[cell.partition(" [")[0] for cell in column.cells]) for column in shown]
        else:
            left_out += [column.header.replace("\n", " ") for column in shown if column.rank == rank]
            shown = [column for column in shown if column.rank != rank]
    return _terminal_table(title, shown), left_out


def print_table(console: Console, out: Path, tasks: Mapping[str, Task], baseline: str = "trpo") -> None:
    """
    Print a table per task. A narrow console gets fewer columns, with a line that names those left out.

    :param console: Where
    :param out: Folder of the comparison
    :param tasks: Thresholds and scales by name of the task
    :param baseline: Name of the algorithm that ratios refer to
    :raises ValueError: If there is no finished run
    """
    comparison = read_comparison(out, tasks, baseline)
    left_out: dict[str, None] = {}
    for task in comparison.groups:
        table, names = _fitting_table(console, task, _columns(comparison, task))
        console.print(table)
        left_out.update(dict.fromkeys(names))
    if left_out:
        console.print(
            f"Left out of tables without room for them, but in {out / 'report.md'}: {', '.join(left_out)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
