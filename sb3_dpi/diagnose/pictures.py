"""The pictures of a page, each in light and dark. Nothing here touches pyplot: notebooks and threads may call it."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.style import context as style_context
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sb3_dpi.compare.figures import COLORS, STYLE

WIDTH, HEIGHT = 5.0, 3.3
"""Inches of a picture that reads well on a telephone."""
DPI = 150
MOST_BARS = 18
"""Numbers of the state in a picture, those with the largest errors; the file has all."""
LIGHT = {"text": "#333333", "grid": "#e4e4e4", "ground": "#ffffff"}
DARK = {"text": "#d0d4d9", "grid": "#3a4049", "ground": "#1d2127"}
DARK_COLORS = ("#56b4e9", "#e69f00", "#2fc398", "#e29cc4")
ALPHA = 0.55
MOST_LABELLED = 100.0
"""Ratio of the ends of a logarithmic axis up to which more than its decades are named."""

Draw = Callable[[Figure, Mapping[str, pd.DataFrame], tuple[str, ...]], None]


def both(draw: Draw, tables: Mapping[str, pd.DataFrame]) -> tuple[bytes, bytes]:
    """
    Draw a picture twice.

    :param draw: fills a figure
    :param tables: of ``Findings``
    :return: PNGs, for light and for dark pages
    """
    return _png(draw, tables, LIGHT, COLORS[:4]), _png(draw, tables, DARK, DARK_COLORS)


def _png(draw: Draw, tables: Mapping[str, pd.DataFrame], theme: Mapping[str, str], colors: tuple[str, ...]) -> bytes:
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    own: dict[str, Any] = {name: theme["text"] for name in names}
    grounds = {name: theme["ground"] for name in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")}
    own = {**own, **grounds, "grid.color": theme["grid"], "font.size": 9.0, "axes.titlesize": 9.5, "lines.markersize": 4.0}
    with style_context([*STYLE, own]), io.BytesIO() as file:
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure, tables, colors)
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=DPI)
        return file.getvalue()


def frame_png(frame: np.ndarray) -> bytes:
    """
    Encode a picture of a film.

    :param frame: ``[h, w, 3]``
    :return: a PNG
    """
    with io.BytesIO() as file:
        imsave(file, frame, format="png")
        return file.getvalue()


def draw_prediction(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Errors of each number of the state, in real changes, at each horizon."""
    table = tables["prediction"].pivot(index="dimension", columns="steps", values="relative")
    table = table.reindex(tables["prediction"]["dimension"].unique())
    shown = table.loc[table.max(axis=1).nlargest(MOST_BARS).index] if len(table) > MOST_BARS else table
    figure.set_figheight(max(HEIGHT, 1.0 + 0.26 * len(shown)))
    axes, places = figure.subplots(), np.arange(len(shown))[::-1]
    for (steps, column), color, marker in zip(shown.items(), colors, "os^D", strict=False):
        axes.plot(np.maximum(column, 1e-4), places, marker, color=color, label=_steps(steps), markersize=5.5)
    axes.axvline(1.0, color=mpl.rcParams["text.color"], linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set(xscale="log", yticks=places, yticklabels=shown.index, xlabel="error, in standard deviations of the real change")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    _log_ticks(axes.xaxis)
    _legend_above(figure, axes)


def draw_calibration(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Predicted spread against error, and the diagonal."""
    axes, table = figure.subplots(), tables["calibration"]
    for (steps, part), color, marker in zip(table.groupby("steps"), colors, "os^D", strict=False):
        axes.plot(
            part["spread"].clip(lower=1e-6), part["error"].clip(lower=1e-6), f"{marker}-", color=color, label=_steps(steps)
        )
    axes.set(xscale="log", yscale="log", xlabel="spread that the model predicts", ylabel="error")
    _diagonal(axes)
    for axis in (axes.xaxis, axes.yaxis):
        _log_ticks(axis)
    _legend_above(figure, axes)


def draw_one_step(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Rewards, and beside them ends, where there were any."""
    table = tables["one_step"]
    has_ends = "ended" in table and bool(table["ended"].any())
    parts = figure.subplots(1, 1 + has_ends, squeeze=False)[0]
    some = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(800, len(table))).astype(int))]
    parts[0].plot(some["reward"], some["predicted"], "o", color=colors[0], alpha=ALPHA, markersize=3.0, markeredgewidth=0.0)
    parts[0].set(xlabel="reward of a step", ylabel="predicted")
    _diagonal(parts[0])
    if has_ends:
        edges = np.linspace(0.0, 1.0, 11)
        for ended, label, color in ((False, "went on", colors[0]), (True, "ended", colors[1])):
            values = table.loc[table["ended"] == ended, "end_probability"]
            weights = np.full(len(values), 1.0 / max(len(values), 1))
            parts[1].hist(values, edges, weights=weights, color=color, alpha=ALPHA, label=label)
        parts[1].set(xlabel="predicted probability of an end", ylabel="share of steps")
        parts[1].legend()


def draw_returns(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Imagined against real returns, for each step, so that all lengths share an axis."""
    axes, table = figure.subplots(), tables["returns"]
    several = table["steps"].nunique() <= len(colors)
    parts = list(table.groupby("steps")) if several else [(None, table)]
    for (steps, part), color, marker in zip(parts, colors, "os^D", strict=False):
        length, label = part["steps"], None if steps is None else _steps(steps)
        bars: dict[str, Any] = {"elinewidth": 0.8, "alpha": ALPHA, "markeredgewidth": 0.0, "markersize": 4.5}
        axes.errorbar(
            part["real"] / length,
            part["imagined"] / length,
            part["spread"] / length,
            fmt=marker,
            color=color,
            label=label,
            **bars,
        )
    axes.set(xlabel="real return, for each step", ylabel="imagined return, for each step")
    _diagonal(axes)
    if several:
        _legend_above(figure, axes)


def draw_critic(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Critic against return, and both along the episode in which returns vary most."""
    table = tables["critic"]
    scatter, line = figure.subplots(1, 2)
    some = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(800, len(table))).astype(int))]
    scatter.plot(some["realised"], some["critic"], "o", color=colors[0], alpha=ALPHA, markersize=3.0, markeredgewidth=0.0)
    scatter.set(xlabel="return that came", ylabel="critic")
    _diagonal(scatter)
    varied = table.groupby("episode")["realised"].std().fillna(0.0).idxmax()
    first = table[table["episode"] == varied]
    line.plot(first["step"], first["realised"], color=colors[1], label="return")
    line.plot(first["step"], first["critic"], color=colors[0], label="critic")
    line.set(xlabel="step of one episode")
    line.legend()


def draw_ahead(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """What the expert earns beyond the policy, in the model and in reality."""
    table, axes = tables["ahead"], figure.subplots()
    if "conditions" in tables:
        groups, label = table.groupby("start"), "condition"
        error = tables["conditions"]["ahead_real_error"].to_numpy()
        errors = {"model": np.zeros(len(table)), "real": error}
    else:
        groups, label = table.groupby("steps"), "steps from the reset"
        errors = {
            name: (groups[name].std() / np.sqrt(groups[name].count())).fillna(0.0).to_numpy() for name in ("model", "real")
        }
    places = np.arange(groups.ngroups)
    for shift, name, words, color in (
        (-0.2, "model", "in the model", colors[0]),
        (0.2, "real", "in the real environment", colors[1]),
    ):
        axes.bar(
            places + shift,
            groups[name].mean(),
            0.38,
            yerr=errors[name],
            color=color,
            label=words,
            ecolor=mpl.rcParams["text.color"],
        )
    axes.axhline(0.0, color=mpl.rcParams["text.color"], linewidth=1.0)
    axes.set(xticks=places, xticklabels=list(groups.groups), xlabel=label, ylabel="return beyond the policy's")
    _legend_above(figure, axes)


def draw_kl(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """KL of expert and policy along time."""
    axes, table = figure.subplots(), tables["kl"]
    axes.fill_between(
        table["step"], table["low"], table["high"], color=colors[0], alpha=0.25, linewidth=0.0, label="10 to 90 %"
    )
    axes.plot(table["step"], table["kl"], color=colors[0], label="mean")
    axes.set(xlabel="step of the episode", ylabel="KL(expert || policy), nats")
    axes.set_ylim(bottom=0.0)
    _legend_above(figure, axes)


def draw_conditions(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """Errors of each condition's model on trajectories that it was not fitted to."""
    axes, table = figure.subplots(), tables["conditions"]
    names = [name for name in table if str(name).startswith("error_")]
    for name, color, marker in zip(names, colors, "os^D", strict=False):
        label = _steps(int(str(name).removeprefix("error_")))
        axes.plot(table["condition"], table[name].clip(lower=1e-4), f"{marker}", color=color, label=label, markersize=5.5)
    axes.axhline(1.0, color=mpl.rcParams["text.color"], linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set(yscale="log", xlabel="condition", ylabel="error, in real changes", xticks=table["condition"])
    _log_ticks(axes.yaxis)
    _legend_above(figure, axes)


def draw_actions(figure: Figure, tables: Mapping[str, pd.DataFrame], colors: tuple[str, ...]) -> None:
    """How actions lie between their bounds, one row an action."""
    table = tables["actions"].pivot(index="action", columns="from", values="share")
    table = table.reindex(tables["actions"]["action"].unique())
    saturated = tables["actions"].groupby("action", sort=False)["saturated"].first()
    figure.set_figheight(max(2.2, 1.1 + 0.26 * len(table)))
    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(table, aspect="auto", cmap=_ramp(colors[0]), extent=(-1.0, 1.0, len(table) - 0.5, -0.5), vmin=0.0)
    labels = [f"{name}: {100 * saturated[name]:.0f} %" for name in table.index]
    axes.set(yticks=range(len(table)), yticklabels=labels, xlabel="action, in units of its bounds", ylabel="at the bounds")
    figure.colorbar(image, ax=axes, label="share of steps")


def _ramp(color: str) -> Any:
    return mpl.colors.LinearSegmentedColormap.from_list("ramp", [mpl.rcParams["axes.facecolor"], color])


def _log_ticks(axis: Axis) -> None:
    """Within two decades 1, 2 and 5 are named, beyond that the decades alone: all digits stand in each other's way."""
    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter(plain if high < MOST_LABELLED * low else NullFormatter())


def _steps(steps: Any) -> str:
    return "1 step" if int(steps) == 1 else f"{int(steps)} steps"


def _diagonal(axes: Axes) -> None:
    """Where both axes agree, over what both show."""
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    low, high = limits[:, 0].min(), limits[:, 1].max()
    axes.plot([low, high], [low, high], color=mpl.rcParams["text.color"], linewidth=1.0, linestyle=(0, (4, 2)), zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high))


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
