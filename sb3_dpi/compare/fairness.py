"""What makes a comparison less than fair, or less than complete, in sentences."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sb3_dpi.compare.runs import Group, Run

RANDOM_SHARE = 0.1
"""Share of the budget at random from which a report names it"""


def warnings(groups: Mapping[str, Mapping[str, Group]]) -> list[str]:
    """Check the runs of a report; sentences about the same thing on several tasks are put together."""
    said: dict[str, list[str]] = {}
    for task, algorithms in groups.items():
        for text in _checks([run for group in algorithms.values() for run in group]):
            said.setdefault(text, []).append(task)
    everywhere = len(groups) if len(groups) > 1 else 0
    return [f"{'All tasks' if len(tasks) == everywhere else ', '.join(tasks)}: {text}" for text, tasks in said.items()]


def _grouped(runs: Sequence[Run], value: Callable[[Run], Any] = lambda run: run.config.name) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(value(run), []).append(run)
    return found


def who(runs: Sequence[Run], chosen: Sequence[Run]) -> str:
    """
    Name the algorithms of the chosen runs, with the seeds where only some of an algorithm's are among them: ``"ppo, sac seeds
    1, 3"``.
    """
    words = []
    for name, group in _grouped(chosen).items():
        seeds = [str(run.config.seed) for run in group]
        complete = len(seeds) == len(_grouped(runs)[name])
        words.append(name if complete else f"{name} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    return ", ".join(words)


def _difference(runs: Sequence[Run], value: Callable[[Run], Any], words: str = "{}") -> str:
    """Say who has which value; empty where all have the same."""
    values = _grouped(runs, value)
    if len(values) < 2:
        return ""
    return "; ".join(f"{words.format(value)} ({who(runs, values[value])})" for value in sorted(values))


def _checks(runs: Sequence[Run]) -> Iterable[str]:
    """Say all that is less than fair, or less than complete, on a task."""
    by_name = _grouped(runs)
    if imported := [run for run in runs if run.imported]:
        yield f"imported baselines, matched by configuration and seed: {who(runs, imported)}"
    if said := _difference(runs, lambda run: run.config.n_timesteps, "{:,} steps"):
        yield f"budgets differ, so final returns are not at the same number of steps: {said}"
    seeds = {name: [run.config.seed for run in group] for name, group in by_name.items()}
    if len({tuple(found) for found in seeds.values()}) > 1:
        said = "; ".join(f"{name} has {len(found)} ({', '.join(map(str, found))})" for name, found in seeds.items())
        yield f"seeds differ: {said}"
    if single := [name for name, group in by_name.items() if len(group) == 1]:
        yield f"one seed says nothing about the spread: {', '.join(single)}"
    words = "every {0[0]} steps at first, {0[1]} episodes"
    if said := _difference(runs, lambda run: (run.config.eval_every, run.config.n_eval_episodes), words):
        yield f"evaluations differ, and tables read all on the coarsest grid: {said}"
    for name, group in by_name.items():
        if odd := [run for run in group if run.config.settings != group[0].config.settings]:
            yield f"hyperparameters of {name} are not the same for all seeds: {who(group, odd)} differ from the first"
    if said := _difference(runs, lambda run: f"{run.config.env_id} {json.dumps(run.config.env_kwargs, sort_keys=True)}"):
        yield f"the environment is not the same for all: {said}"
    for name, group in by_name.items():
        # Settings that were made for a longer budget spend much of a short one at random
        steps, budget = group[0].config.hyperparams.get("learning_starts"), group[0].config.n_timesteps
        if isinstance(steps, int | float) and steps >= RANDOM_SHARE * budget:
            yield f"{name} takes the first {steps:,.0f} of {budget:,} steps at random (learning_starts)"
    if odd := [run for run in runs if not np.isfinite(run.curve.results).all()]:
        yield f"returns that are not finite: {who(runs, odd)}"
    for key in sorted({key for run in runs for key in run.environment}):
        # An algorithm's own distribution says nothing about the others
        concerned = [run for run in runs if key in run.environment]
        if said := _difference(concerned, lambda run, key=key: run.environment[key]):  # type: ignore[misc]
            yield f"versions differ, {key}: {said}"
