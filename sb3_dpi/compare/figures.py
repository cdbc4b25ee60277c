"""The figures of a report: one colour an algorithm, in all reports, in a palette that the colour-blind can tell apart.

Each is a PNG with what a page needs to show the values beneath the pointer. The style is in ``lab.mplstyle``. Nothing here
touches pyplot: a report can be written from a thread, a notebook or a machine without a display.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context as style_context
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sb3_dpi.compare.statistics import FloatArray

STYLE: list[str | Path | dict[str, Any]] = ["default", Path(__file__).with_name("lab.mplstyle")]
"""Styles of matplotlib, one after the other: a report looks the same whatever the process has set, seaborn say"""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#8a8a2d", "#000000")
"""The first six are those of Okabe and Ito, from dark to light; the others are of Tol"""
OWN = ("dpi", "aggrevated_oc", "mdgps", "dual_ac", "ppo", "trpo", "sac", "crossq", "tqc", "td3", "dagger", "exit", "mpc")
"""Algorithms with a colour, or a colour and dashes, of their own in every report, in the order of ``COLORS``"""
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vP*X"
GREY = "#6f6f6f"
DARK = "#333333"
WIDE_RATIO = 5.0
"""Budgets that differ by this factor or more are drawn over a logarithmic axis"""
LEAST_COST = 1e-3
"""CPU seconds per 1000 steps below which a point stands at the edge: the axis is logarithmic"""
COST = "CPU seconds of training per 1000 environment steps, logarithmic"


@dataclass(frozen=True)
class Style:
    """How one algorithm is drawn, in every figure of a report."""

    color: str
    dash: Any
    marker: str


@dataclass(frozen=True)
class Line:
    """A curve with its band, all arrays ``[k]``."""

    name: str
    x: FloatArray
    y: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Point:
    """What an algorithm reaches, and what it costs."""

    name: str
    cost: float
    """CPU seconds per 1000 environment steps"""
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawing:
    """A figure, and what a page needs to tell the values beneath the pointer."""

    png: bytes
    panels: Sequence[dict[str, Any]] = ()
    """Of each axes its box as fractions of the figure (left, top, right, bottom), its range of x, whether that is logarithmic,
    and its series: name, colour, x and y"""


def make_styles(names: Sequence[str]) -> dict[str, Style]:
    """Give each algorithm its colour, line and marker; those of ``OWN`` have the same in all reports."""
    free = [i for i in range(len(COLORS) * len(DASHES)) if i >= len(OWN) or OWN[i] not in names]
    places = {name: OWN.index(name) if name in OWN else free.pop(0) if free else 0 for name in names}
    return {
        name: Style(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)], MARKERS[i % len(MARKERS)])
        for name, i in places.items()
    }


def frontier(points: Sequence[Point]) -> list[Point]:
    """Find the points that no other beats: none reaches as much at a lower cost, none reaches more at the same."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def _figure(width: float = 7.6, height: float = 4.3, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _drawing(figure: Figure, series: Sequence[tuple[Axes, Sequence[dict[str, Any]]]]) -> Drawing:
    stream, layout = io.BytesIO(), figure.get_layout_engine()
    if layout is not None:
        # Once: savefig would draw all of it twice to be sure
        layout.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(stream, format="png", metadata={"Software": None})
    panels = []
    for axes, shown in series:
        box = axes.get_position()
        place = [round(value, 4) for value in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)]
        log = axes.get_xscale() == "log"
        panels.append({"box": place, "x": _rounded(axes.get_xlim(), 6), "log": log, "series": shown})
    return Drawing(stream.getvalue(), panels)


def _rounded(values: Iterable[float], digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def _series(name: str, color: str, x: Any, y: Any) -> dict[str, Any]:
    finite = np.isfinite(y)
    return {"name": name, "color": color, "x": _rounded(np.asarray(x)[finite], 6), "y": _rounded(np.asarray(y)[finite], 4)}


def _text(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.4g}"


def _steps_axis(axes: Axes, low: float, high: float, log: bool) -> None:
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low if log else 0, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,.4g}"))
    axes.set_xlabel("environment steps (thousands)" + (", logarithmic" if log else ""))


def _value_axis(axes: Axes, lines: Sequence[Line], others: Sequence[float]) -> None:
    """Fit the axis to the lines; a band that leaves far downwards, a seed that diverged, does not flatten the rest."""
    middle = np.concatenate([*(line.y[np.isfinite(line.y)] for line in lines), np.asarray(others, dtype=float)])
    bands = np.concatenate([np.concatenate([line.low, line.high]) for line in lines])
    bands = np.concatenate([bands[np.isfinite(bands)], middle])
    if len(middle):
        reach = 0.5 * max(np.ptp(middle), 1e-9 + 0.02 * np.abs(middle).max())
        low, high = max(bands.min(), middle.min() - reach), min(bands.max(), middle.max() + reach)
        margin = 0.04 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(_text))


def _titles(figure: Figure, axes: Axes, title: str, subtitle: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color="#222222")
    axes.set_title(subtitle, fontsize=9, fontweight="normal", color=GREY)


def _draw(axes: Axes, lines: Sequence[Line], styles: dict[str, Style]) -> list[Line2D]:
    handles = []
    for line in lines:
        style = styles[line.name]
        axes.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.15, linewidth=0)
        # No line goes through one evaluation, and it may stand at the very edge
        single: dict[str, Any] = {"marker": "o", "markersize": 4.5, "clip_on": False} if len(line.x) == 1 else {}
        handles += axes.plot(line.x, line.y, color=style.color, linestyle=style.dash, label=line.name, **single)
    return handles


def _cut(line: Line, last: float) -> Line:
    """Cut a curve at ``last``: others' curves do not stretch the axis of those that were run."""
    x = np.append(line.x[line.x < last], min(last, line.x[-1]))
    return replace(line, x=x, **{name: np.interp(x, line.x, getattr(line, name)) for name in ("y", "low", "high")})


@style_context(STYLE)
def curves_figure(
    title: str,
    lines: Sequence[Line],
    styles: dict[str, Style],
    thresholds: Sequence[float] = (),
    published: Sequence[Line] = (),
    subtitle: str = "",
    value: str = "return of an evaluation episode",
) -> Drawing:
    """
    Draw curves over environment steps.

    :param lines: One per algorithm
    :param thresholds: Drawn as dashed lines
    :param published: Curves of others, drawn grey and dashed as far as ``lines`` reach
    :param subtitle: What line and band are
    :param value: Name of the vertical axis
    """
    figure, (axes,) = _figure()
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    published = [_cut(line, last) for line in published if line.x[0] < last]
    _steps_axis(axes, max(first, 1.0), last, last >= WIDE_RATIO * min(line.x[-1] for line in lines))
    _value_axis(axes, [*lines, *published], thresholds)
    handles = sorted(_draw(axes, lines, styles), key=lambda handle: -np.nan_to_num(np.asarray(handle.get_ydata())[-1]))
    grey: dict[str, Any] = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.1, "markersize": 4, "alpha": 0.8}
    for line, marker in zip(published, MARKERS * len(published), strict=False):
        handles += axes.plot(line.x, line.y, marker=marker, label=line.name, **grey)
    for threshold in thresholds:
        words = f"threshold {_text(threshold)}"
        handles.append(axes.axhline(threshold, color=DARK, linestyle=(0, (7, 4)), linewidth=0.9, label=words))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5 if len(handles) < 15 else 8)
    _titles(figure, axes, title, subtitle + ("; grey, dashed: as read, not run here" if published else ""))
    axes.set_ylabel(value)
    shown = [_series(line.name, styles[line.name].color, line.x, line.y) for line in lines]
    return _drawing(figure, [(axes, shown + [_series(line.name, GREY, line.x, line.y) for line in published])])


@style_context(STYLE)
def profile_figure(title: str, lines: Sequence[Line], styles: dict[str, Style], subtitle: str = "") -> Drawing:
    """Draw performance profiles, over normalized scores."""
    figure, (axes,) = _figure()
    axes.legend(handles=_draw(axes, lines, styles), loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set(
        xlim=(lines[0].x[0], lines[0].x[-1]), ylim=(-0.02, 1.02), xlabel="normalized score", ylabel="runs above that score"
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _titles(figure, axes, title, subtitle)
    return _drawing(figure, [(axes, [_series(line.name, styles[line.name].color, line.x, line.y) for line in lines])])


def _draw_points(axes: Axes, points: Sequence[Point], styles: dict[str, Style]) -> list[dict[str, Any]]:
    points = [replace(point, cost=max(point.cost, LEAST_COST)) for point in points]
    best, costs = frontier(points), [point.cost for point in points]
    edges = min(costs) / 2, max(costs) * 3
    axes.set(xscale="log", xlim=edges)
    values = [point.value for point in best]
    axes.step(
        [*(point.cost for point in best), edges[1]], [*values, values[-1]], where="post", color="#c4c4c4", lw=1.4, zorder=1
    )
    for point in points:
        style = styles[point.name]
        axes.vlines(point.cost, point.low, point.high, color=style.color, linewidth=1.4, alpha=0.7)
        axes.plot(point.cost, point.value, color=style.color, marker=style.marker, linestyle="none")
    narrow = max(costs) < 30 * min(costs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(_text))
    return [_series(point.name, styles[point.name].color, [point.cost], [point.value]) for point in points]


@style_context(STYLE)
def frontier_figure(panels: Sequence[tuple[str, Sequence[Point]]], styles: dict[str, Style], value: str) -> Drawing:
    """Draw what is reached against what it costs, a panel with its title per task or one for all."""
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width = 7.6 if columns == 1 else 3.3 * columns + 0.4
    shown = [name for name in styles if any(point.name == name for _, points in panels for point in points)]
    in_line = max(1, min(len(shown), int(width / (0.63 + 0.08 * max(map(len, shown))))))
    figure, axes = _figure(
        width, (3.5 if columns == 1 else 2.6) * rows + 0.5 + 0.22 * math.ceil(len(shown) / in_line), rows, columns
    )
    series = []
    for panel, (title, points) in zip(axes, panels, strict=False):
        series.append((panel, _draw_points(panel, points, styles)))
        panel.set_title(title, fontsize=9.5, color="#222222")
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    handles = [Line2D([], [], color=styles[name].color, marker=styles[name].marker, linestyle="none") for name in shown]
    figure.legend(handles, shown, ncols=in_line, loc="outside upper center")
    figure.supxlabel(COST, fontsize=9.5, color="#444444")
    figure.supylabel(value, fontsize=9.5, color="#444444")
    return _drawing(figure, series)
