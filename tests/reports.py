"""Synthetic runs as the lab writes them, and what a report says of them."""

import csv
import json
import re
from collections.abc import Iterable
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dpi.compare import report
from sb3_dpi.compare.figures import Drawing
from sb3_dpi.compare.suite import Task
from sb3_dpi.compare.types import RunConfig, Timing

VERSIONS = {"gymnasium": "1.4.0", "mujoco": "4.0.0"}
PROVENANCE = {"python": "3.12.1", "platform": "test", "packages": {**VERSIONS, "torch": "2.13.0"}}


def write_run(
    out: Path,
    algo: str,
    env: str,
    seed: int,
    timesteps: Iterable[float],
    results: Any,
    seconds: float = 10.0,
    **changes: Any,
) -> Path:
    """Write a finished run as the lab does; ``results`` are means ``[k]`` or returns ``[k, episodes]``."""
    steps = np.array(list(timesteps), dtype=np.int64)
    returns = np.asarray(results, dtype=np.float64)
    if returns.ndim == 1:
        returns = returns[:, None] + np.array([-1.0, 1.0])
    record = {key: changes.pop(key) for key in ("versions", "provenance", "imported") if key in changes}
    settings = {"n_timesteps": int(steps[-1]), "hyperparams": {"gamma": 0.99}, "source": "a test", "n_eval_episodes": 2}
    config = RunConfig(algo, env, seed, **{**settings, **changes})
    folder = out / config.path
    folder.mkdir(parents=True)
    lengths = np.full(returns.shape, 50)
    walls = np.linspace(0.0, seconds, len(steps) + 1)[1:]
    np.savez(folder / "evaluations.npz", timesteps=steps, results=returns, ep_lengths=lengths, wall_seconds=walls)
    content = {
        "format": 1,
        "config": config.to_dict(),
        "key": str(config),
        "configuration_key": str(config),
        "versions": VERSIONS,
        "provenance": PROVENANCE,
        "timing": vars(Timing(seconds, 0.9 * seconds, 2.0, 1.5)),
        "evaluations_sha256": sha256((folder / "evaluations.npz").read_bytes()).hexdigest(),
        **record,
    }
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let reports have the names of figures in place of figures."""
    for name in ("curves_figure", "profile_figure", "frontier_figure"):
        patch.setattr(report, name, lambda *_, **__: Drawing(b"a figure"))


def task(name: str, *thresholds: float, scale: tuple[float, float] | None = None) -> Task:
    return Task(env=name, thresholds=thresholds, scale=scale)


def learning(out: Path, n_tasks: int, algos: Iterable[str], seeds: int, evaluations: int, episodes: int) -> dict[str, Task]:
    """Write runs that learn at different speeds."""
    rng = np.random.default_rng(0)
    tasks = {}
    for i in range(n_tasks):
        env = f"Task{i}-v{i}"
        tasks[env] = task(env, 800.0, *([900.0] if i % 4 == 0 else []), scale=(0.0, 1000.0))
        for j, algo in enumerate(algos):
            for seed in range(1, seeds + 1):
                budget = (30_000, 200_000)[j % 2]
                steps = np.linspace(budget / evaluations, budget, evaluations)
                rate = rng.uniform(0.5, 1.5) * (j + 1) / 30_000
                means = 1000 * (1 - np.exp(-rate * steps)) * rng.uniform(0.7, 1.0)
                returns = means[:, None] + rng.normal(0, 40, (evaluations, episodes))
                extra = {"versions": {**VERSIONS, "algorithm_version": "1"}} if j == 0 else {}
                write_run(out, algo, env, seed, steps, returns, 20 * (j + 1), n_eval_episodes=episodes, **extra)
    return tasks


def without_times(markdown: str) -> str:
    return re.sub(r"^### Time$.*?(?=^#|\Z)", "", markdown, flags=re.MULTILINE | re.DOTALL)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(markdown: str, chapter: str) -> dict[str, list[str]]:
    """The first table of a chapter, from the first cell of each row to the others."""
    _, _, text = markdown.partition(f"\n{chapter}\n")
    lines = list(dropwhile(lambda line: not line.startswith("| algorithm"), text.splitlines()))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in takewhile(lambda line: line.startswith("|"), lines)]
    return {name: others for name, *others in cells}


GRID = (1000, 2000, 3000, 4000, 5000)
