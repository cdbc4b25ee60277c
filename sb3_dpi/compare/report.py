"""The report of a comparison, rebuilt from its stored runs: Markdown, one HTML file, csv files and figures.

The same runs give the same files to the last byte. What depends on the clock is kept apart, so that the rest of two reports
can be compared: in csv files in columns with "seconds" in their names, in the texts in sections headed "Time".
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sb3_dpi.compare import fairness
from sb3_dpi.compare.analysis import KEEPS, Aggregate, Comparison, read_comparison
from sb3_dpi.compare.document import LEFT, markdown, page
from sb3_dpi.compare.figures import (
    Drawing,
    Line,
    Point,
    curves_figure,
    frontier,
    frontier_figure,
    make_styles,
    profile_figure,
)
from sb3_dpi.compare.statistics import CONSECUTIVE, Interval, Ratio, profile_interval
from sb3_dpi.compare.study import episodes, replace_file, studies
from sb3_dpi.compare.suite import Task, merged, read_tasks

PUBLISHED = Path(__file__).with_name("published.yml")
TIME = "Time"
"""Heading of the sections that depend on the clock"""
IQM = "IQM [95 % interval]"
PROFILE_POINTS = 101
ANY = "backslashreplace"
"""A folder's name need not be text"""


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


def _threshold(value: float) -> str:
    return f"{value:,.10g}"


def _rows(comparison: Comparison, task: str) -> list[list[dict[str, Any]]]:
    """List the summary's rows of each algorithm on a task: one for each threshold, one where there is none."""
    rows = comparison.summary[comparison.summary["task"] == task].to_dict("records")
    return [[row for row in rows if row["name"] == name] for name in comparison.groups[task]]


def _budget(comparison: Comparison, row: Mapping[str, Any]) -> str:
    budgets = {run.config.n_timesteps for run in comparison.groups[row["task"]][row["name"]]}
    return " to ".join(f"{budget:,}" for budget in sorted({min(budgets), max(budgets)}))


def _steps(comparison: Comparison, row: Mapping[str, Any]) -> str:
    median = row["steps_median"]
    text = f"{median:,.0f}" if math.isfinite(median) else f"> {_budget(comparison, row)}"
    return f"{text} ({row['seeds_reached']}/{row['seeds']})"


def _ratio(row: Mapping[str, Any], baseline: str) -> str:
    if row["name"] == baseline and math.isfinite(row["steps_median"]):
        return "1"
    return "-" if row["ratio"] is None else str(Ratio(row["ratio"], row["ratio_bound"]))


def _cell(row: Mapping[str, Any], name: str, digits: int) -> str:
    return _interval(Interval(*(row[f"{name}_{part}"] for part in ("iqm", "low", "high"))), digits, row["seeds"])


def _digits(rows: Iterable[Sequence[Mapping[str, Any]]]) -> int:
    largest = max((abs(row[0]["final_iqm"]) for row in rows if np.isfinite(row[0]["final_iqm"])), default=0.0)
    return 0 if largest >= 100 else 1 if largest >= 10 else 2


def _table(lines: Sequence[Sequence[tuple[str, str]]]) -> pd.DataFrame:
    """Make a table of lines that all have the same columns: name and text of each cell."""
    return pd.DataFrame([[text for _, text in line] for line in lines], columns=[name for name, _ in lines[0]])


def task_table(comparison: Comparison, task: str) -> pd.DataFrame:
    """Make the table of a task, without what depends on the clock: texts, a row an algorithm."""
    baseline, algorithms, lines = comparison.baseline, _rows(comparison, task), []
    digits, ratios = _digits(algorithms), baseline in comparison.groups[task] and len(algorithms) > 1
    for rows in algorithms:
        row, line = rows[0], [("algorithm", rows[0]["name"])]
        for reached in rows if row["threshold"] is not None else ():
            line.append((f"steps to {_threshold(reached['threshold'])} (seeds)", _steps(comparison, reached)))
            line.append(("keep it", f"{reached['seeds_keeping']}/{row['seeds']}"))
            line += [(f"ratio to {baseline}", _ratio(reached, baseline))] if ratios else []
        line += [(f"final return, {IQM}", _cell(row, "final", digits)), ("worst seed", _number(row["final_worst"], digits))]
        line.append((f"return at {row['common_steps']:,} steps, {IQM}", _cell(row, "common", digits)))
        line += [("budget", _budget(comparison, row)), ("seeds", str(row["seeds"])), ("hyperparameters", row["source"])]
        lines.append(line)
    return _table(lines)


def time_table(comparison: Comparison, task: str, steps: int | None = None) -> pd.DataFrame:
    """
    Make the table of a task's times, with the return at a number of environment steps, by default those that all runs reached.
    """
    algorithms, at, lines = _rows(comparison, task), comparison.common_steps(task) if steps is None else steps, []
    for rows in algorithms:
        row, line, whole = rows[0], [("algorithm", rows[0]["name"])], _seconds(rows[0]["wall_seconds"])
        for reached in rows if row["threshold"] is not None else ():
            seconds = reached["wall_seconds_to_threshold"]
            text = f"> {whole}" if seconds == math.inf else _seconds(seconds)
            line.append((f"wall seconds to {_threshold(reached['threshold'])}", text))
        line += [("wall seconds, all steps", whole)]
        line += [("CPU seconds per 1000 steps", _seconds(row["cpu_seconds_per_1000_steps"]))]
        line += [("evaluations' CPU seconds per 1000 steps", _seconds(row["evaluation_cpu_seconds_per_1000_steps"]))]
        value = comparison.value(comparison.groups[task][row["name"]], at)
        lines.append([*line, (f"return at {at:,} steps", _interval(value, _digits(algorithms), row["seeds"]))])
    return _table(lines)


def reached_table(comparison: Comparison) -> pd.DataFrame | None:
    """Set all algorithms side by side at all thresholds: a row for each task and threshold; None where there is none."""
    cells = []
    for task in comparison.groups:
        for threshold in comparison.tasks[task].thresholds:
            table = comparison.summary[(comparison.summary["task"] == task) & (comparison.summary["threshold"] == threshold)]
            rows = {row["name"]: row for row in table.to_dict("records")}
            fewest = min(row["steps_median"] for row in rows.values())
            line = [f"{task}, {_threshold(threshold)}"]
            for name in comparison.names:
                text = _steps(comparison, rows[name]) if name in rows else "not run"
                best = name in rows and rows[name]["steps_median"] == fewest < math.inf
                line.append(Markup(f"**{text}**") if best else text)
            cells.append(line)
    return pd.DataFrame(cells, columns=["task", *comparison.names]) if cells else None


@cache
def _published() -> dict[str, Any]:
    published: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return published


def published_curves(comparison: Comparison, task: str) -> list[dict[str, Any]]:
    """Look up what others have published on a task; nothing for an environment with arguments of its own."""
    configs = [run.config for group in comparison.groups[task].values() for run in group]
    names = {re.sub(r"-v\d+$", "", config.env_name) for config in configs if not config.env_kwargs}
    return list(_published()["tasks"].get(names.pop(), [])) if len(names) == 1 else []


def _published_table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = {}
    for entry in entries:
        values = zip(entry["steps"], entry["mean"], entry["worst"], strict=True)
        rows[entry["name"], str(entry["seeds"])] = {step: f"{mean:,} ({worst:,})" for step, mean, worst in values}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_index(axis="columns").fillna("-").loc[list(rows)]
    table.columns = [f"{step:,} steps" for step in table.columns]
    table.insert(0, "seeds", [seeds for _, seeds in rows])
    table.insert(0, "as read, not run here", [name for name, _ in rows])
    return table


class _Content:
    """
    What the template of a report names.

    :param published: Whether to show what others have published
    :param steps: Environment steps of the frontier, None: those that all have
    """

    def __init__(self, comparison: Comparison, published: bool, steps: int | None) -> None:
        self.comparison = comparison
        self.published = published
        self.steps = steps
        self.styles = make_styles(comparison.names)
        self.figures: dict[str, Drawing] = {}
        self.names: set[str] = set()
        self.where = "the tasks' common numbers of steps" if steps is None else f"{steps:,} steps"

    def collect(self, warnings: Sequence[str]) -> dict[str, Any]:
        """Draw and write all of it."""
        comparison, groups = self.comparison, self.comparison.groups
        where = next(iter(groups)) if len(groups) == 1 else f"{len(groups)} tasks"
        return {
            "title": f"{', '.join(comparison.names)} on {where}",
            "warnings": warnings,
            "consecutive": CONSECUTIVE,
            "keeps": f"{100 * KEEPS:.0f}",
            "baseline": comparison.baseline,
            "has_baseline": any(comparison.baseline in algorithms for algorithms in groups.values()),
            "time": TIME,
            "where": self.where,
            "source": _published()["source"],
            "reached": reached_table(comparison),
            **self._all_tasks(),
            "tasks": [self._task(task) for task in groups],
            "figures": self.figures,
        }

    def _all_tasks(self) -> dict[str, Any]:
        comparison, aggregate = self.comparison, self.comparison.aggregate()
        left_out: dict[str, list[str]] = {}
        for task, reason in aggregate.left_out.items():
            left_out.setdefault(reason, []).append(task)
        content: dict[str, Any] = dict.fromkeys(("scales", "scores", "improvement", "costs")) | {"left_out": left_out}
        if aggregate.steps:
            scales = {task: comparison.tasks[task].scale or (0.0, 1.0) for task in aggregate.steps}
            rows = [[task, *map(_threshold, scales[task]), f"{steps:,}"] for task, steps in aggregate.steps.items()]
            content["scales"] = pd.DataFrame(rows, columns=["task", "low, score 0", "high, score 1", "common steps"])
            runs = {name: str(sum(map(len, scores))) for name, scores in aggregate.scores.items()}
            rows = [[n, _interval(aggregate.iqm[n], 3, _seeds(aggregate, n)), runs[n]] for n in comparison.names]
            content["scores"] = pd.DataFrame(rows, columns=["algorithm", f"normalized score, {IQM}", "runs"])
            content["improvement"] = self._improvement(aggregate)
            self._draw_aggregate(aggregate)
            content["costs"] = self._costs(aggregate if self.steps is None else comparison.aggregate(self.steps))
        panels = [(task, points) for task in comparison.groups if len(points := self._points(task)) > 1]
        if panels:
            self.figures["frontier_tasks"] = frontier_figure(panels, self.styles, "return")
        return content

    def _draw_aggregate(self, aggregate: Aggregate) -> None:
        band = "band: 95 % stratified bootstrap"
        if lines := self.comparison.aggregate_lines(aggregate):
            subtitle = f"interquartile mean over runs and tasks, {band}"
            figure = curves_figure("Score over steps", lines, self.styles, subtitle=subtitle, value="normalized score")
            self.figures["iqm"] = figure
        values = np.concatenate([array for scores in aggregate.scores.values() for array in scores])
        taus = np.linspace(min(max(float(values.min()), -0.5), 0.0), max(float(values.max()), 1.0), PROFILE_POINTS)
        intervals = {name: profile_interval(scores, taus) for name, scores in aggregate.scores.items()}
        lines = [Line(name, taus, value.point, value.low, value.high) for name, value in intervals.items()]
        subtitle = f"fraction of runs above a score, mean over tasks, {band}"
        self.figures["profile"] = profile_figure("Performance profiles", lines, self.styles, subtitle)

    def _improvement(self, aggregate: Aggregate) -> pd.DataFrame | None:
        names = self.comparison.names
        if len(names) < 2:
            return None

        def cell(x: str, y: str) -> str:
            seeds = max(_seeds(aggregate, x), _seeds(aggregate, y))
            return "" if x == y else _interval(aggregate.improvement[x, y], 2, seeds)

        return pd.DataFrame([[x, *(cell(x, y) for y in names)] for x in names], columns=["better than", *names])

    def _costs(self, aggregate: Aggregate) -> pd.DataFrame | None:
        """Set what is reached over all tasks against what it costs."""
        if not aggregate.steps:
            return None
        summary = self.comparison.summary.drop_duplicates(["task", "name"])
        summary = summary[summary["task"].isin(list(aggregate.steps))]
        costs = summary.groupby("name")["cpu_seconds_per_1000_steps"].apply(lambda seconds: float(np.mean(list(seconds))))
        points = [Point(name, costs[name], value.point, value.low, value.high) for name, value in aggregate.iqm.items()]
        self.figures["frontier"] = frontier_figure([("All tasks", points)], self.styles, "normalized score")
        best = {point.name for point in frontier(points)}
        header = ["algorithm", f"normalized score, {IQM}", "CPU seconds per 1000 steps, mean over tasks", "on the frontier"]
        scores = {name: _interval(value, 3, _seeds(aggregate, name)) for name, value in aggregate.iqm.items()}
        rows = [[name, score, _seconds(costs[name]), "yes" if name in best else "no"] for name, score in scores.items()]
        return pd.DataFrame(rows, columns=header)

    def _points(self, task: str) -> list[Point]:
        at = self.comparison.common_steps(task) if self.steps is None else self.steps
        points = []
        for (row, *_), group in zip(_rows(self.comparison, task), self.comparison.groups[task].values(), strict=True):
            value = self.comparison.value(group, at)
            if math.isfinite(value.point):
                points.append(Point(row["name"], row["cpu_seconds_per_1000_steps"], value.point, value.low, value.high))
        return points

    def _task(self, task: str) -> dict[str, Any]:
        comparison = self.comparison
        entries = published_curves(comparison, task) if self.published else []
        others = [
            Line(entry["name"], np.array(entry["steps"], float), *[np.array(entry["mean"], float)] * 3) for entry in entries
        ]
        # Markdown changes letters of other alphabets in addresses, and two names may look alike without what files cannot have
        name = re.sub(r"[^\w.-]+", "-", f"curves_{task}", flags=re.ASCII)
        while name.lower() in self.names:
            name += "_"
        self.names.add(name.lower())
        if lines := comparison.lines(task):
            subtitle = "interquartile mean over seeds, band: worst to best seed"
            self.figures[name] = curves_figure(task, lines, self.styles, comparison.tasks[task].thresholds, others, subtitle)
        table, times = task_table(comparison, task), time_table(comparison, task, self.steps)
        published = _published_table(entries) if entries else None
        return {"name": task, "figure": name, "table": table, "times": times, "published": published}


def all_tasks(outs: Sequence[Path]) -> dict[str, Task]:
    """Read the thresholds and scales of all tasks in folders and in the studies below them; the first folder's count."""
    return merged(item for out in outs for study in studies(out) for item in read_tasks(study).items())


def write_report(
    outs: Path | Sequence[Path],
    tasks: Mapping[str, Task],
    console: Console | None = None,
    published: bool = False,
    baseline: str = "trpo",
    steps: int | None = None,
    to: Path | None = None,
) -> list[str]:
    """
    Write ``report.md``, ``report.html``, ``summary.csv`` (a row per task, threshold and algorithm), ``runs.csv`` (a row per
    run), ``evaluations.csv`` (a row per episode) and ``figures/`` from the finished runs of a comparison.

    :param outs: Folder of the comparison, or several
    :param tasks: Thresholds and scales by name of the task; a task without an entry has none
    :param console: Where to print the warnings, what was written and a table a task, None for nowhere
    :param published: Whether to show curves that others have published, marked as read, not run
    :param baseline: Name of the algorithm that ratios refer to
    :param steps: Environment steps at which return is set against compute, by default those that all runs of a task reached
    :param to: Folder to write into, that of the comparison by default
    :return: The warnings of the report
    :raises ValueError: If there is no finished run
    """
    comparison = read_comparison(outs, tasks, baseline)
    to = to or (outs if isinstance(outs, Path) else outs[0])
    warnings = [*comparison.problems, *fairness.warnings(comparison.groups)]
    content = _Content(comparison, published, steps).collect(warnings)
    text, figures = markdown(content), content["figures"]
    listed = episodes([run for groups in comparison.groups.values() for group in groups.values() for run in group])
    files = {f"figures/{name}.png": figure.png for name, figure in figures.items()}
    tables = {"evaluations.csv": listed[[*listed.columns.drop("task"), "task"]]}
    tables |= {"runs.csv": comparison.runs, "summary.csv": comparison.summary}
    files |= {name: table.to_csv(index=False, lineterminator="\n").encode(errors=ANY) for name, table in tables.items()}
    files |= {"report.md": text.encode(errors=ANY), "report.html": page(content["title"], text, figures).encode(errors=ANY)}
    for name, data in files.items():
        replace_file(to / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    if console is not None:
        for warning in warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"Report: {to / 'report.html'}, {to / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
        print_table(console, comparison, to)
    return warnings


def _terminal_columns(comparison: Comparison, task: str) -> list[tuple[int, str, list[str]]]:
    """List rank, header and cells; where a terminal is too narrow the highest ranks are left out first, those of 0 stay."""
    table, times = task_table(comparison, task), time_table(comparison, task)
    # With thresholds the number of seeds is in brackets behind the steps too
    thresholds = len(comparison.tasks[task].thresholds)
    ranks = {"seeds": 5 if thresholds else 1, "worst seed": 4, "keep it": 3, f"ratio to {comparison.baseline}": 2}
    columns = []
    for name, (_, cells) in zip(table.columns, table.items(), strict=True):
        if not name.startswith(("return at", "budget", "hyperparameters")):
            header = name.removesuffix(f", {IQM}").replace(" (", "\n(").replace("ratio to ", "ratio to\n")
            columns.append((ranks.get(name, 0), header, list(cells)))
    for i, (rank, header) in enumerate(((3, "wall\nseconds"), (1, "CPU s per\n1000 steps")), 1 + thresholds):
        columns.append((rank, header, list(times.iloc[:, i])))
    return columns


def _fitting_table(console: Console, title: str, shown: list[tuple[int, str, list[str]]]) -> tuple[RichTable, list[str]]:
    """Make a table that breaks no cell if it can be, and name what had to be left out."""
    left_out: list[str] = []
    for narrower in (5, 4, 3, "intervals", 2, 1, None):
        table = RichTable(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for _, header, _ in shown:
            table.add_column(Text(header), justify="left" if header in LEFT else "right", overflow="fold")
        for row in zip(*(cells for _, _, cells in shown), strict=True):
            table.add_row(*map(Text, row))
        if console.measure(table, options=console.options.update(max_width=sys.maxsize)).maximum <= console.width:
            break
        if narrower == "intervals":
            left_out += ["intervals"] * any(" [" in cell for _, _, cells in shown for cell in cells)
            shown = [(rank, header, [cell.partition(" [")[0] for cell in cells]) for rank, header, cells in shown]
        else:
            left_out += [header.replace("\n", " ") for rank, header, _ in shown if rank == narrower]
            shown = [column for column in shown if column[0] != narrower]
    return table, left_out


def print_table(console: Console, comparison: Comparison, to: Path) -> None:
    """Print a table per task. A narrow console gets fewer columns, with a line that names those left out."""
    left_out: dict[str, None] = {}
    for task in comparison.groups:
        table, names = _fitting_table(console, task, _terminal_columns(comparison, task))
        console.print(table)
        left_out.update(dict.fromkeys(names))
    if left_out:
        said = f"Left out of tables without room for them, but in {to / 'report.md'}: {', '.join(left_out)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
