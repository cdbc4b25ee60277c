"""The table, the figure and the csv files of a comparison, rebuilt from stored evaluations."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from sb3_dpi.compare.statistics import CONSECUTIVE, Spread, curve_band, spread, steps_to_threshold
from sb3_dpi.compare.types import RunResult


def by_name(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """
    Group results.

    :param results: All results
    :return: From the name of an algorithm or variant to its results, in the order of appearance
    """
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.config.name, []).append(result)
    return groups


def _steps(result: RunResult, threshold: float | None) -> float:
    limit = math.inf if threshold is None else threshold
    return steps_to_threshold(result.timesteps, result.results, limit)


def _cell(value: Spread, digits: int = 0, counted: bool = False) -> str:
    text = "not reached" if value.n_finite == 0 else f"{value.mean:,.{digits}f}"
    if value.n_finite > 1:
        text += f" ± {value.std:,.{digits}f}"
    return f"{text} ({value.n_finite}/{value.n_seeds})" if counted else text


def summary_table(results: Sequence[RunResult], threshold: float | None) -> Table:
    """
    Make the table of a comparison.

    :param results: All results
    :param threshold: The return to reach, None for none
    :return: One row per algorithm: mean and standard deviation over seeds
    """
    config = results[0].config
    notes = [
        f"Mean ± standard deviation over seeds, {config.n_eval_episodes} episodes an evaluation.",
        "Wall seconds: of training alone, without the evaluations.",
    ]
    headings = ["final return", "wall seconds"]
    if threshold is not None:
        headings.insert(0, f"steps to {threshold:g}")
        notes.append(
            f"In brackets: seeds with {CONSECUTIVE} consecutive evaluations at or above {threshold:g}; mean over these."
        )
    table = Table(title=config.env_id, caption_justify="left")
    table.add_column("algorithm", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, group in by_name(results).items():
        first = group[0].config
        row = [_cell(spread([result.final_return for result in group]), digits=2)]
        row.append(_cell(spread([result.wall_seconds for result in group]), digits=1))
        if threshold is not None:
            row.insert(0, _cell(spread([_steps(result, threshold) for result in group]), counted=True))
        table.add_row(name, *row)
        notes.append(f"{name}: {first.n_timesteps:,} steps, hyperparameters of {first.source}.")
    table.caption = "\n".join(notes)
    return table


def _episode_rows(results: Sequence[RunResult]) -> Iterator[dict[str, Any]]:
    told = any(result.successes is not None for result in results)
    for result in results:
        config = result.config
        run = {"name": config.name, "algo": config.algo, "env": config.env_id, "seed": config.seed}
        for k, (steps, returns, lengths) in enumerate(zip(result.timesteps, result.results, result.lengths, strict=True)):
            for episode, (value, length) in enumerate(zip(returns, lengths, strict=True)):
                row = {**run, "timesteps": int(steps), "episode": episode, "return": float(value), "length": int(length)}
                if told:
                    row["success"] = "" if result.successes is None else int(result.successes[k][episode])
                yield row


def _run_rows(results: Sequence[RunResult], threshold: float | None) -> Iterator[dict[str, Any]]:
    for result in results:
        config = result.config
        yield {
            "name": config.name,
            "algo": config.algo,
            "env": config.env_id,
            "seed": config.seed,
            "n_timesteps": config.n_timesteps,
            "threshold": threshold,
            "steps_to_threshold": _steps(result, threshold),
            "final_return": result.final_return,
            "wall_seconds": result.wall_seconds,
            "cpu_seconds": result.cpu_seconds,
            "evaluation_seconds": result.evaluation_seconds,
            "source": config.source,
        }


def _summary_rows(results: Sequence[RunResult], threshold: float | None) -> Iterator[dict[str, Any]]:
    for name, group in by_name(results).items():
        config = group[0].config
        row = {"name": name, "env": config.env_id, "n_timesteps": config.n_timesteps, "seeds": len(group)}
        reached = spread([_steps(result, threshold) for result in group])
        row.update(threshold=threshold, seeds_reached=reached.n_finite, steps_median=reached.median)
        spreads = {
            "steps": reached,
            "final": spread([result.final_return for result in group]),
            "wall": spread([result.wall_seconds for result in group]),
            "cpu": spread([result.cpu_seconds for result in group]),
        }
        for quantity, value in spreads.items():
            row.update({f"{quantity}_mean": value.mean, f"{quantity}_std": value.std})
        yield {**row, "source": config.source}


def write_csvs(results: Sequence[RunResult], threshold: float | None, out: Path) -> None:
    """
    Write ``evaluations.csv`` (every episode), ``runs.csv`` (one line a run) and ``summary.csv`` (one line an algorithm).

    :param results: All results
    :param threshold: The return to reach, None for none
    :param out: Folder
    """
    tables = {
        "evaluations": _episode_rows(results),
        "runs": _run_rows(results, threshold),
        "summary": _summary_rows(results, threshold),
    }
    for name, rows in tables.items():
        first = next(rows)
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(first), lineterminator="\n")
            writer.writeheader()
            writer.writerows([first, *rows])


def plot_curves(results: Sequence[RunResult], threshold: float | None, path: Path) -> None:
    """
    Draw return against environment steps: mean over seeds and the range between the worst and the best.

    :param results: All results
    :param threshold: Drawn as a line, None for none
    :param path: The file to write
    :raises ImportError: If matplotlib is not installed
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The figure needs matplotlib: pip install 'sb3_dpi[plots]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, group in by_name(results).items():
        band = curve_band([(result.timesteps, result.results) for result in group])
        (line,) = axes.plot(band.timesteps, band.mean, marker=".", label=f"{name} ({len(group)} seeds)")
        axes.fill_between(band.timesteps, band.low, band.high, color=line.get_color(), alpha=0.2, linewidth=0)
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    axes.set(title=results[0].config.env_id, xlabel="environment steps", ylabel="return of an evaluation episode")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
