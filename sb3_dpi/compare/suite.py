"""What a comparison runs: algorithms, tasks, budgets and thresholds, from a YAML file or from the command line.

A suite file::

    description: one line for the report
    seeds: 5
    first_seed: 1
    evaluation: {every: 250, episodes: 10}
    algorithms:                     # or a list of names
      ppo: {}
      small: {algo: ppo, set: {batch_size: 32}}
      mine: {algo: my_package.my_module:MyAlgorithm}
    tasks:
      Reacher-v5:
        threshold: -6               # or thresholds: [-8, -6]
        scale: [-43, -6]            # returns that count as 0 and 1 in aggregates over tasks
        steps: {small: 1e5, default: 2e5}
      long_pole:
        env: sb3_dpi/CartPoleBalance-v0
        env_kwargs: {pole_length: 1.0}
        set: {ppo: {learning_rate: 1e-3}}

``algorithms`` and ``tasks`` are required. Every key is checked before anything runs: errors name the key's path.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import yaml

from sb3_dpi.compare.build import ENV_KEYS, NOISE_KEYS, constructor_arguments
from sb3_dpi.compare.checks import (
    SuiteError,
    as_number,
    check_algorithm,
    check_env,
    check_env_kwarg,
    check_hyperparameter,
    fail,
    mapping,
    number,
    offer,
    parse_value,
    read_yaml,
    text,
    whole,
)
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import resolve_hyperparams

SUITES = Path(__file__).parent / "suites"
TASKS = "tasks.yml"
DEFAULT = "default"
"""In the steps of a task: all algorithms that it does not name"""

_LABEL = re.compile(r"[A-Za-z0-9_-]+")
_TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# Where the store keeps what is not a task or a label
_RESERVED = ("set_aside", DEFAULT)


@dataclass(frozen=True)
class Entrant:
    """An algorithm of a suite, or a variant of one."""

    label: str
    """Its name in tables and figures"""
    algo: str
    """Name of the algorithm or ``module:Class``"""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the resolved ones"""


@dataclass(frozen=True)
class Task:
    """A task of a suite."""

    name: str
    """Its name in tables and figures"""
    env_id: str
    """Id of the environment in Gymnasium"""
    thresholds: tuple[float, ...] = ()
    """Returns to reach"""
    scale: tuple[float, float] | None = None
    """The returns that count as 0 and 1 in aggregates over tasks"""
    steps: dict[str, int] = field(default_factory=dict)
    """Budgets by the label of the entrant, ``"default"`` for the others; ``n_timesteps`` of the hyperparameters without it"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment"""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Hyperparameters for this task, by the label of the entrant"""


@dataclass(frozen=True)
class Suite:
    """
    A comparison.

    :raises SuiteError: If a number of it is not a positive whole number
    """

    name: str
    description: str
    entrants: tuple[Entrant, ...]
    tasks: tuple[Task, ...]
    seeds: int = 3
    """How many"""
    first_seed: int = 1
    eval_every: int = 250
    """Environment steps between two evaluations at first"""
    n_eval_episodes: int = 10

    def __post_init__(self) -> None:
        for name in ("seeds", "first_seed", "eval_every", "n_eval_episodes"):
            whole(getattr(self, name), name)

    def replace(self, **changes: Any) -> "Suite":
        """
        Change attributes.

        :param changes: Their new values by name
        :return: A changed copy
        """
        return replace(self, **changes)


def _default_label(algo: str) -> str:
    return algo.rpartition(":")[2].lower() if ":" in algo else algo


def _entrant(label: str, algo: str, path: str) -> Entrant:
    if not _LABEL.fullmatch(label) or label in _RESERVED:
        fail(path, f"a label has letters, digits, - and _ only and is none of {', '.join(_RESERVED)}, not {label!r}")
    check_algorithm(algo, path)
    return Entrant(label, algo)


def _check_labels(entrants: Sequence[Entrant], path: str) -> None:
    for label, times in Counter(entrant.label for entrant in entrants).items():
        if times > 1:
            fail(path, f"{label!r} stands there {times} times; give variants labels of their own")


def _overrides(content: Any, algo: str, path: str) -> dict[str, Any]:
    overrides: dict[str, Any] = as_number(mapping(content, path))
    for key in overrides:
        check_hyperparameter(algo, key, f"{path}.{key}")
    return overrides


def _read_entrants(content: Any) -> tuple[Entrant, ...]:
    path = "algorithms"
    if isinstance(content, list):
        content = [text(name, f"{path}[{i}]") for i, name in enumerate(content)]
        entrants = [_entrant(_default_label(name), name, f"{path}.{name}") for name in content]
        _check_labels(entrants, path)
    else:
        entrants = []
        for key, value in mapping(content, path).items():
            settings = mapping(value, f"{path}.{key}", ("algo", "set"))
            algo = text(settings.get("algo", key), f"{path}.{key}.algo")
            entrant = _entrant(_default_label(key), algo, f"{path}.{key}")
            entrants.append(replace(entrant, overrides=_overrides(settings.get("set"), algo, f"{path}.{key}.set")))
        _check_labels(entrants, path)
    if not entrants:
        fail(path, "at least one algorithm is needed")
    return tuple(entrants)


def _read_thresholds(content: dict[str, Any], path: str) -> tuple[float, ...]:
    if "threshold" in content and "thresholds" in content:
        fail(f"{path}.threshold", "give either threshold or thresholds")
    if "threshold" in content:
        return (number(content["threshold"], f"{path}.threshold"),)
    values = content.get("thresholds", [])
    if not isinstance(values, list):
        fail(f"{path}.thresholds", f"a list of numbers is needed, not {values!r}")
    return tuple(number(value, f"{path}.thresholds[{i}]") for i, value in enumerate(values))


def _read_scale(value: Any, path: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        fail(path, f"two numbers [low, high] are needed, not {value!r}")
    low, high = (number(item, f"{path}[{i}]") for i, item in enumerate(value))
    if not low < high:
        fail(path, f"the first number must be below the second, not {value!r}")
    return low, high


def _read_steps(value: Any, labels: Sequence[str], path: str) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {DEFAULT: whole(value, path)}
    for label in mapping(value, path):
        if label not in (*labels, DEFAULT):
            fail(f"{path}.{label}", f"no algorithm of the suite, {offer(label, [*labels, DEFAULT])}")
    return {label: whole(budget, f"{path}.{label}") for label, budget in value.items()}


def _read_task(name: str, value: Any, entrants: Sequence[Entrant]) -> Task:
    path = f"tasks.{name}"
    content = mapping(value, path, ("env", "threshold", "thresholds", "scale", "steps", "env_kwargs", "set"))
    env_id = text(content.get("env", name), f"{path}.env")
    if name != env_id and (not _TASK_NAME.fullmatch(name) or name in _RESERVED):
        fail(path, f"the name of a task has letters, digits, -, _ and . only and is none of {', '.join(_RESERVED)}")
    spec = check_env(env_id, f"{path}.env" if "env" in content else path)
    env_kwargs = as_number(mapping(content.get("env_kwargs"), f"{path}.env_kwargs"))
    for key in env_kwargs:
        check_env_kwarg(spec, key, f"{path}.env_kwargs.{key}")
    algos = {entrant.label: entrant.algo for entrant in entrants}
    overrides = mapping(content.get("set"), f"{path}.set")
    for label in overrides:
        if label not in algos:
            fail(f"{path}.set.{label}", f"no algorithm of the suite, {offer(label, algos)}")
    return Task(
        name=name,
        env_id=env_id,
        thresholds=_read_thresholds(content, path),
        scale=_read_scale(content.get("scale"), f"{path}.scale"),
        steps=_read_steps(content.get("steps"), list(algos), f"{path}.steps"),
        env_kwargs=env_kwargs,
        overrides={label: _overrides(value, algos[label], f"{path}.set.{label}") for label, value in overrides.items()},
    )


def _read_suite(content: Any, name: str) -> Suite:
    keys = ("name", "description", "seeds", "first_seed", "evaluation", "algorithms", "tasks")
    if not isinstance(content, dict):
        raise SuiteError(f"a mapping with the keys {', '.join(keys)} is needed")
    mapping(content, "", keys)
    for key in ("algorithms", "tasks"):
        if key not in content:
            fail(key, "missing")
    entrants = _read_entrants(content["algorithms"])
    tasks = mapping(content["tasks"], "tasks")
    if not tasks:
        fail("tasks", "at least one task is needed")
    evaluation = mapping(content.get("evaluation"), "evaluation", ("every", "episodes"))
    return Suite(
        name=text(content.get("name", name), "name"),
        description=text(content.get("description", ""), "description"),
        entrants=entrants,
        tasks=tuple(_read_task(task, value, entrants) for task, value in tasks.items()),
        seeds=whole(content.get("seeds", Suite.seeds), "seeds"),
        first_seed=whole(content.get("first_seed", Suite.first_seed), "first_seed"),
        eval_every=whole(evaluation.get("every", Suite.eval_every), "evaluation.every"),
        n_eval_episodes=whole(evaluation.get("episodes", Suite.n_eval_episodes), "evaluation.episodes"),
    )


def load_suite(name_or_path: str) -> Suite:
    """
    Read a suite.

    :param name_or_path: Name of a suite of this package (``"quick"``, ``"mujoco"``, ``"dpi"``, ``"gps"``), or path of a file
        that ends in ``.yml`` or ``.yaml``
    :return: The suite
    :raises SuiteError: If there is no such suite or something in it is wrong
    """
    path = Path(name_or_path)
    if path.suffix not in (".yml", ".yaml"):
        valid = sorted(file.stem for file in SUITES.glob("*.yml"))
        if name_or_path not in valid:
            raise SuiteError(f"Unknown suite {name_or_path!r}, {offer(name_or_path, valid)}, or the path of a .yml file")
        path = SUITES / f"{name_or_path}.yml"
    content = read_yaml(path)
    try:
        return _read_suite(content, path.stem)
    except SuiteError as error:
        raise SuiteError(f"{path.name}: {error}") from error


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for item in texts for part in item.split(",") if part.strip()]


def _assigned(item: str, path: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        fail(path, "write KEY=VALUE")
    try:
        return key, parse_value(value)
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from error


def _steps_from_arguments(texts: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    steps: dict[str, int] = {}
    for item in _split(texts):
        label, _, budget = item.rpartition(":")
        if label and label not in labels:
            fail(f"--steps {item}", f"{label!r} is not among {', '.join(labels)}")
        steps[label or DEFAULT] = whole(budget, f"--steps {item}")
    return steps


def _thresholds_from_arguments(texts: Sequence[str], env_ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
    thresholds: dict[str, tuple[float, ...]] = {}
    for item in _split(texts):
        env_id, _, threshold = item.rpartition(":")
        if env_id and env_id not in env_ids:
            fail(f"--threshold {item}", f"{env_id!r} is not among {', '.join(env_ids)}")
        for name in [env_id] if env_id else env_ids:
            thresholds[name] = (*thresholds.get(name, ()), number(threshold, f"--threshold {item}"))
    return thresholds


def _overrides_from_arguments(texts: Sequence[str], entrants: Sequence[Entrant]) -> dict[str, dict[str, Any]]:
    algos = {entrant.label: entrant.algo for entrant in entrants}
    overrides: dict[str, dict[str, Any]] = {label: {} for label in algos}
    for item in texts:
        label, dot, rest = item.partition(".")
        if not dot or "=" not in rest or label not in algos:
            fail(f"--set {item}", f"write LABEL.KEY=VALUE with a label among {', '.join(algos)}")
        key, value = _assigned(rest, f"--set {item}")
        check_hyperparameter(algos[label], key, f"--set {item}")
        overrides[label][key] = value
    return overrides


def suite_from_arguments(
    algos: Sequence[str],
    envs: Sequence[str],
    steps: Sequence[str] = (),
    overrides: Sequence[str] = (),
    env_kwargs: Sequence[str] = (),
    thresholds: Sequence[str] = (),
    seeds: int = Suite.seeds,
    first_seed: int = Suite.first_seed,
    eval_every: int = Suite.eval_every,
    n_eval_episodes: int = Suite.n_eval_episodes,
) -> Suite:
    """
    Make a suite from arguments of the command line; texts may hold several items with commas between, ``overrides`` apart.

    :param algos: ``NAME``, ``module:Class`` or, for a variant of one, ``LABEL=NAME``
    :param envs: Ids of environments
    :param steps: Budgets, ``STEPS`` of all or ``LABEL:STEPS`` of one; ``n_timesteps`` of the hyperparameters by default
    :param overrides: Hyperparameters to change, ``LABEL.KEY=VALUE``
    :param env_kwargs: Arguments of all environments, ``KEY=VALUE``
    :param thresholds: Returns to reach, ``RETURN`` on all environments or ``ENV:RETURN`` on one
    :param seeds: How many seeds
    :param first_seed: The first of them, from 1
    :param eval_every: Environment steps between two evaluations at first
    :param n_eval_episodes: Episodes of an evaluation
    :return: The suite
    :raises SuiteError: If an argument is wrong; the message names it
    """
    entrants = []
    for item in _split(algos):
        label, _, algo = item.rpartition("=")
        entrants.append(_entrant(label or _default_label(algo), algo, f"--algo {item}"))
    env_ids = list(dict.fromkeys(_split(envs)))
    for values, name in ((entrants, "algo"), (env_ids, "env")):
        if not values:
            fail(f"--{name}", "at least one is needed")
    _check_labels(entrants, "--algo")
    changes = _overrides_from_arguments(overrides, entrants)
    budgets = _steps_from_arguments(steps, [entrant.label for entrant in entrants])
    to_reach = _thresholds_from_arguments(thresholds, env_ids)
    arguments = dict(_assigned(item, f"--env-kwargs {item}") for item in env_kwargs)
    for env_id in env_ids:
        spec = check_env(env_id, f"--env {env_id}")
        for key in arguments:
            check_env_kwarg(spec, key, f"--env-kwargs {key}")
    return Suite(
        name="",
        description="",
        entrants=tuple(replace(entrant, overrides=changes[entrant.label]) for entrant in entrants),
        tasks=tuple(Task(env_id, env_id, to_reach.get(env_id, ()), steps=budgets, env_kwargs=arguments) for env_id in env_ids),
        seeds=seeds,
        first_seed=first_seed,
        eval_every=eval_every,
        n_eval_episodes=n_eval_episodes,
    )


def _resolve(entrant: Entrant, task: Task) -> tuple[dict[str, Any], str]:
    choice = resolve_hyperparams(entrant.algo, task.env_id)
    changes = {**entrant.overrides, **task.overrides.get(entrant.label, {})}
    hyperparams = {**choice.hyperparams, **changes}
    for key in (*ENV_KEYS, *NOISE_KEYS):
        # `normalize: null` in a suite: as if the entry did not have it
        if key in hyperparams and hyperparams[key] is None:
            del hyperparams[key]
    try:
        constructor_arguments(hyperparams)
    except Exception as error:
        raise SuiteError(f"{entrant.label} on {task.name}: {error} (hyperparameters of {choice.source})") from error
    return hyperparams, choice.source + "".join(f", {key}={value}" for key, value in changes.items())


def _make_config(suite: Suite, entrant: Entrant, task: Task, device: str) -> RunConfig:
    hyperparams, source = _resolve(entrant, task)
    steps = task.steps.get(entrant.label, task.steps.get(DEFAULT, hyperparams.get("n_timesteps")))
    if steps is None:
        raise SuiteError(f"{entrant.label} on {task.name}: neither the task's steps nor n_timesteps tell the budget")
    config = RunConfig(
        algo=entrant.algo,
        env_id=task.env_id,
        seed=suite.first_seed,
        n_timesteps=whole(steps, f"{entrant.label} on {task.name}: n_timesteps"),
        hyperparams=hyperparams,
        source=source,
        task=task.name if task.name != task.env_id else "",
        env_kwargs=task.env_kwargs,
        device=device,
        eval_every=suite.eval_every,
        n_eval_episodes=suite.n_eval_episodes,
    )
    return replace(config, label=entrant.label if entrant.label != config.algo_name else "")


def make_configs(suite: Suite, device: str = "cpu") -> list[RunConfig]:
    """
    List the runs of a suite.

    :param suite: The suite
    :param device: Device of PyTorch
    :return: All runs, every algorithm's first seed on every task first
    :raises SuiteError: If two runs would be written into the same folder, or hyperparameters make no sense
    :raises ImportError: If RL Zoo's hyperparameters are needed and RL Zoo is not installed
    """
    configs = [_make_config(suite, entrant, task, device) for task in suite.tasks for entrant in suite.entrants]
    known: dict[str, RunConfig] = {}
    for config in configs:
        other = known.setdefault(config.path, config)
        if other is not config:
            names = " and ".join(f"'{run.name} on {run.task_name}'" for run in (other, config))
            raise SuiteError(f"{names} have the same folder {config.path}: rename a label or a task")
    seeds = range(suite.first_seed, suite.first_seed + suite.seeds)
    return [replace(config, seed=seed) for seed in seeds for config in configs]


def read_tasks(out: Path) -> dict[str, Task]:
    """
    Read what a report needs to know of the tasks of a comparison: their thresholds and scales.

    :param out: Folder of the comparison
    :return: By name; empty where there is no file
    :raises SuiteError: If the file is not what ``write_tasks`` wrote
    """
    path = out / TASKS
    if not path.is_file():
        return {}
    content = read_yaml(path)
    try:
        tasks = {}
        for name, value in mapping(content, "tasks").items():
            entry = mapping(value, name, ("env", "thresholds", "scale"))
            env_id = text(entry.get("env", name), f"{name}.env")
            thresholds, scale = _read_thresholds(entry, name), _read_scale(entry.get("scale"), f"{name}.scale")
            tasks[name] = Task(name, env_id, thresholds, scale)
        return tasks
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from error


def write_tasks(out: Path, suite: Suite) -> None:
    """
    Keep the thresholds and scales of a suite with its results, beside those of other suites with the same folder.

    :param out: Folder of the comparison
    :param suite: The suite
    :raises SuiteError: If the file that is there cannot be read
    """
    merge_tasks(out, suite.tasks)


def merge_tasks(out: Path, new: Iterable[Task]) -> None:
    """
    Keep thresholds and scales of tasks beside those that a folder has.

    :param out: Folder of the comparison; ``tasks.yml`` in it is replaced in one piece
    :param new: The tasks; where one has no thresholds or no scale, those that are there stay
    :raises SuiteError: If the file that is there cannot be read
    """
    out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".tasks.lock"):
        tasks = read_tasks(out)
        for task in new:
            known = tasks.get(task.name, task)
            thresholds, scale = task.thresholds or known.thresholds, task.scale or known.scale
            tasks[task.name] = replace(task, thresholds=thresholds, scale=scale)
        content = {}
        for name, task in sorted(tasks.items()):
            entry = {"env": task.env_id, "thresholds": list(task.thresholds), "scale": list(task.scale or ())}
            content[name] = {key: value for key, value in entry.items() if value}
        unfinished = out / f".{TASKS}.{os.getpid()}"
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        unfinished.replace(out / TASKS)
