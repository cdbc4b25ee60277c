"""The figures of a report, as PNG: one colour per algorithm in all of them, in a palette that the colour-blind can tell apart.

Nothing here touches pyplot: a report can be written from a thread, a notebook or a machine without a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_dpi.compare.statistics import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#8a8a2d", "#000000")
"""The first six are those of Okabe and Ito, from dark to light; the others are of Tol"""
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vP*X"
GREY = "#6f6f6f"
DPI = 120
WIDE_RATIO = 5.0
"""Budgets that differ by this factor or more are drawn over a logarithmic axis"""


LEAST_COST = 1e-3
"""CPU seconds per 1000 steps below which a point stands at the edge: the axis is logarithmic"""


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


def require_matplotlib() -> None:
    """
    Find out whether figures can be drawn.

    :raises ImportError: If matplotlib is not installed
    """
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise ImportError("The figures of a report need matplotlib: pip install 'sb3_dpi[plots]'") from error


def make_styles(names: Sequence[str]) -> dict[str, Style]:
    """
    Give each algorithm its colour, line and marker.

    :param names: All algorithms of a report, in its order
    :return: From name to style
    """
    return {
        name: Style(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    }


def frontier(points: Sequence[Point]) -> list[Point]:
    """
    Find the points that no other beats: none reaches as much at a lower cost, none reaches more at the same.

    :param points: All points
    :return: From the cheapest to the dearest
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#999999")
        one.tick_params(colors="#444444", labelsize=9)
        one.grid(color="#e4e4e4", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _text(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.4g}"


def _thousands(value: float, _position: object = None) -> str:
    return f"{value / 1000:,.4g}"


def _steps_axis(axes: Axes, low: float, high: float, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low, high)
    else:
        axes.set_xlim(0, high)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlabel("environment steps (thousands)" + (", logarithmic" if log else ""), fontsize=9.5, color="#444444")


def _value_axis(axes: Axes, lines: Sequence[Line], others: Sequence[float]) -> None:
    """Fit the axis to the lines; a band that leaves far downwards, a seed that diverged, does not flatten the rest."""
    from matplotlib.ticker import FuncFormatter

    middle = np.concatenate([*(line.y[np.isfinite(line.y)] for line in lines), np.asarray(others, dtype=float)])
    bands = np.concatenate([np.concatenate([line.low, line.high]) for line in lines])
    bands = np.concatenate([bands[np.isfinite(bands)], middle])
    if len(middle):
        reach = 0.5 * max(np.ptp(middle), 1e-9 + 0.02 * np.abs(middle).max())
        low, high = max(bands.min(), middle.min() - reach), min(bands.max(), middle.max() + reach)
        margin = 0.04 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(_text))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 9.5, gap: float = 0.058) -> None:
    """Write names at the right of the axes, beside the ends ``(x, y, text, color)`` of their lines, clear of each other."""
    (bottom, top), fraction = axes.get_ylim(), axes.transAxes.inverted()
    places = [float(np.clip((y - bottom) / (top - bottom), 0.0, 1.0)) for _, y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: (places[i], ends[i][2]))
    # A name at the very top would touch the subtitle
    heights = dict(zip(order, (0.97 * height for height in _spread(sorted(places), gap / 0.97)), strict=True))
    for i, (x, y, text, color) in enumerate(ends):
        across = float(fraction.transform(axes.transData.transform((x, y)))[0])
        axes.text(1.04, heights[i], text, color=color, transform=axes.transAxes, va="center", fontsize=size)
        if across <= 0.97 and color != GREY:
            axes.plot(x, y, color=color, marker="o", markersize=4.5)
        axes.plot(
            [across, 1.005, 1.03],
            [places[i], places[i], heights[i]] if across > 0.97 else [places[i], heights[i], heights[i]],
            transform=axes.transAxes,
            color=color,
            linewidth=0.8,
            linestyle="-" if across > 0.97 else (0, (1, 3)),
            alpha=0.7,
            clip_on=False,
            scalex=False,
            scaley=False,
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted numbers in [0, 1] apart until neighbours differ by ``gap``, few of them far and none out of [0, 1]."""
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], gap) - _first(groups[-2], gap) < gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_first(group, gap) + gap * i for group in groups for i in range(len(group))]


def _first(group: Sequence[float], gap: float) -> float:
    """Find the lowest place of a group that touches: centred on its mean, inside [0, 1]."""
    width = gap * (len(group) - 1)
    return min(max(sum(group) / len(group) - width / 2, 0.0), 1.0 - width)


def _titles(axes: Axes, title: str, subtitle: str) -> None:
    axes.text(0, 1.095, title, transform=axes.transAxes, fontsize=12.5, fontweight="bold", color="#222222")
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, fontsize=9, color=GREY)


def _draw(axes: Axes, lines: Sequence[Line], styles: dict[str, Style]) -> None:
    for line in lines:
        style = styles[line.name]
        axes.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.15, linewidth=0)
        axes.plot(line.x, line.y, color=style.color, linestyle=style.dash, linewidth=1.9, solid_capstyle="round")
        if len(line.x) == 1:
            # No line goes through one evaluation, and it may stand at the very edge
            axes.plot(line.x, line.y, color=style.color, marker="o", markersize=4.5, clip_on=False)


def _cut(line: Line, last: float) -> Line:
    """Cut a curve at ``last``: others' curves do not stretch the axis of those that were run."""
    inside = line.x < last
    x = np.append(line.x[inside], min(last, line.x[-1]))
    return replace(line, x=x, **{name: np.interp(x, line.x, getattr(line, name)) for name in ("y", "low", "high")})


def curves_figure(
    title: str,
    lines: Sequence[Line],
    styles: dict[str, Style],
    thresholds: Sequence[float] = (),
    published: Sequence[Line] = (),
    subtitle: str = "",
    value: str = "return of an evaluation episode",
) -> bytes:
    """
    Draw curves over environment steps.

    :param title: Its first words
    :param lines: One per algorithm
    :param styles: Of all algorithms
    :param thresholds: Drawn as dashed lines
    :param published: Curves of others, drawn grey and dashed as far as ``lines`` reach
    :param subtitle: What line and band are
    :param value: Name of the vertical axis
    :return: The PNG
    """
    figure, (axes,) = _figure(7.6, 4.3)
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    log = last >= WIDE_RATIO * min(line.x[-1] for line in lines)
    published = [_cut(line, last) for line in published if line.x[0] < last]
    _steps_axis(axes, max(first, 1.0), last, log)
    _value_axis(axes, [*lines, *published], thresholds)
    _draw(axes, lines, styles)
    for line in published:
        axes.plot(line.x, line.y, color=GREY, linestyle=(0, (4, 2)), linewidth=1.1, marker=".", markersize=4, alpha=0.8)
    for threshold in thresholds:
        axes.axhline(threshold, color="#333333", linestyle=(0, (7, 4)), linewidth=0.9)
    figure.subplots_adjust(left=0.1, bottom=0.125, right=0.82, top=0.86)
    ends = [(line.x[-1], line.y[-1], line.name, styles[line.name].color) for line in lines]
    ends += [(line.x[-1], line.y[-1], line.name, GREY) for line in published]
    ends += [(last, threshold, f"threshold {_text(threshold)}", "#333333") for threshold in thresholds]
    small = len(ends) > 14
    _label_ends(axes, ends, size=8 if small else 9.5, gap=0.045 if small else 0.058)
    _titles(axes, title, subtitle + ("; grey, dashed: as read, not run here" if published else ""))
    axes.set_ylabel(value, fontsize=9.5, color="#444444")
    return _png(figure)


def profile_figure(title: str, lines: Sequence[Line], styles: dict[str, Style], subtitle: str = "") -> bytes:
    """
    Draw performance profiles.

    :param title: Its first words
    :param lines: One per algorithm, over normalized scores
    :param styles: Of all algorithms
    :param subtitle: What line and band are
    :return: The PNG
    """
    from matplotlib.lines import Line2D

    figure, (axes,) = _figure(7.6, 4.3)
    figure.subplots_adjust(left=0.1, bottom=0.125, right=0.84, top=0.86)
    _draw(axes, lines, styles)
    axes.set_xlim(lines[0].x[0], lines[0].x[-1])
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    handles = [Line2D([], [], color=styles[line.name].color, linestyle=styles[line.name].dash, lw=1.9) for line in lines]
    axes.legend(
        handles, [line.name for line in lines], frameon=False, fontsize=9.5, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    axes.set_xlabel("normalized score", fontsize=9.5, color="#444444")
    axes.set_ylabel("runs above that score", fontsize=9.5, color="#444444")
    _titles(axes, title, subtitle)
    return _png(figure)


def _on_the_axis(points: Sequence[Point]) -> list[Point]:
    return [replace(point, cost=max(point.cost, LEAST_COST)) for point in points]


def _place_names(axes: Axes, points: Sequence[Point], styles: dict[str, Style], size: float) -> None:
    """Write names beside points, on the first side where none of those before is in the way."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (point.cost, point.value)):
        across, up = axes.transData.transform((point.cost, point.value))
        width, height = 0.66 * size * len(point.name) * DPI / 72, 1.5 * size * DPI / 72
        for dx, dy, side in (
            (7, 6, "left"),
            (7, -12, "left"),
            (-7, 6, "right"),
            (-7, -12, "right"),
            (7, 18, "left"),
            (7, -24, "left"),
        ):
            left = across + dx * DPI / 72 - (width if side == "right" else 0.0)
            bottom = up + dy * DPI / 72
            if all(left > end or left + width < start or abs(bottom - y) > height for start, end, y in taken):
                break
        taken.append((left, left + width, bottom))
        axes.annotate(
            point.name,
            (point.cost, point.value),
            (dx, dy),
            textcoords="offset points",
            ha=side,
            color=styles[point.name].color,
            fontsize=size,
        )


def _draw_points(axes: Axes, points: Sequence[Point], styles: dict[str, Style]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    best = frontier(points)
    costs, values = [point.cost for point in best], [point.value for point in best]
    limits = [point.cost for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(limits) / 2, max(limits) * 3)
    axes.step([*costs, max(limits) * 3], [*values, values[-1]], where="post", color="#c4c4c4", linewidth=1.4, zorder=1)
    for point in points:
        style = styles[point.name]
        axes.vlines(point.cost, point.low, point.high, color=style.color, linewidth=1.4, alpha=0.7)
        axes.plot(point.cost, point.value, color=style.color, marker=style.marker, markersize=6.5, linestyle="none")
    narrow = max(limits) < 30 * min(limits)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(_text))


def frontier_figure(title: str, points: Sequence[Point], styles: dict[str, Style], subtitle: str = "") -> bytes:
    """
    Draw what is reached against what it costs.

    :param title: Its first words
    :param points: One per algorithm
    :param styles: Of all algorithms
    :param subtitle: What the points are
    :return: The PNG
    """
    figure, (axes,) = _figure(7.6, 4.3)
    figure.subplots_adjust(left=0.1, bottom=0.125, right=0.96, top=0.86)
    points = _on_the_axis(points)
    _draw_points(axes, points, styles)
    axes.margins(y=0.12)
    axes.autoscale_view(scalex=False)
    _place_names(axes, points, styles, 9.5)
    axes.set_xlabel("CPU seconds of training per 1000 environment steps, logarithmic", fontsize=9.5, color="#444444")
    axes.set_ylabel("normalized score", fontsize=9.5, color="#444444")
    _titles(axes, title, subtitle)
    return _png(figure)


def frontier_panels(panels: Sequence[tuple[str, Sequence[Point]]], styles: dict[str, Style]) -> bytes:
    """
    Draw what is reached against what it costs, a panel per task.

    :param panels: Title and points of each task
    :param styles: Of all algorithms
    :return: The PNG
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    shown = [name for name in styles if any(point.name == name for _, points in panels for point in points)]
    # One panel is as wide as the words below it; the names above the panels take as many lines as they need
    width = 6.0 if columns == 1 else 3.3 * columns + 0.4
    inches = 0.63 + 0.08 * max(map(len, shown), default=0)
    names_in_line = max(1, min(len(shown), int(width / inches)))
    above = 0.48 + 0.22 * math.ceil(len(shown) / names_in_line)
    height = 2.6 * rows + above
    figure, axes = _figure(width, height, rows, columns)
    for panel, (title, points) in zip(axes, panels, strict=False):
        _draw_points(panel, _on_the_axis(points), styles)
        panel.set_title(title, fontsize=9.5, loc="left", fontweight="bold", color="#222222")
        panel.tick_params(labelsize=8)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=styles[name].color, marker=styles[name].marker, linestyle="none") for name in shown]
    figure.legend(handles, shown, frameon=False, fontsize=9.5, ncols=names_in_line, loc="upper center")
    words = "return at the table's number of steps, over CPU seconds of training per 1000 environment steps, logarithmic"
    if columns < 3:
        words = words.replace(", over", ",\nover")
    figure.supxlabel(words, fontsize=9.5, color="#444444", y=0.08 / height)
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 0.15 / width, bottom=0.75 / height, top=1 - above / height, wspace=0.32, hspace=0.42
    )
    return _png(figure)
