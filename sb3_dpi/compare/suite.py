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

``algorithms`` and ``tasks`` are required. The command line is turned into the same mapping. Every key is checked before
anything runs: errors name the key's path.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import filelock
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from sb3_dpi.compare.build import constructor_arguments
from sb3_dpi.compare.checks import (
    SuiteError,
    check_algorithm,
    check_env,
    check_env_kwarg,
    check_hyperparameter,
    fail,
    offer,
    parse_value,
    read_yaml,
)
from sb3_dpi.compare.study import TASKS, replace_file
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import resolve_hyperparams
from sb3_dpi.zoo.hyperparams import ENV_KEYS, NOISE_KEYS

SUITES = Path(__file__).parent / "suites"
DEFAULT = "default"
"""In the steps of a task: all algorithms that it does not name"""
_RESERVED = ("set_aside", DEFAULT)
"""Where the store keeps what is not a task or a label"""


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number is needed, not {value}")
    return value


Whole = Annotated[PositiveInt, BeforeValidator(_no_truth)]
Number = Annotated[FiniteFloat, BeforeValidator(_no_truth)]


class _Part(BaseModel):
    """A mapping of a suite. A key without a value is as if it were not there."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_keys(cls, content: Any) -> Any:
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ValueError(f"a mapping (KEY: VALUE) is needed, not {content!r}")
        content = cls._in_full({key: value for key, value in content.items() if value is not None})
        for key in content:
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}, {offer(str(key), cls.model_fields)}")
        return content

    @classmethod
    def _in_full(cls, content: dict[str, Any]) -> dict[str, Any]:
        return content


class Evaluation(_Part):
    """When and how runs are evaluated."""

    every: Whole = 250
    """Environment steps between two evaluations at first"""
    episodes: Whole = 10


class Entrant(_Part):
    """An algorithm of a suite, or a variant of one."""

    algo: str
    """Name of the algorithm or ``module:Class``"""
    set: dict[str, Any] = {}
    """Hyperparameters that differ from the resolved ones"""


class Task(_Part):
    """A task of a suite."""

    env: str
    """Id of the environment in Gymnasium"""
    thresholds: tuple[Number, ...] = ()
    """Returns to reach"""
    scale: tuple[Number, Number] | None = None
    """The returns that count as 0 and 1 in aggregates over tasks"""
    steps: dict[str, Whole] = {}
    """Budgets by the label of the entrant, ``"default"`` for the others; ``n_timesteps`` of the hyperparameters without it"""
    env_kwargs: dict[str, Any] = {}
    """Arguments of the environment"""
    set: dict[str, dict[str, Any]] = {}
    """Hyperparameters for this task, by the label of the entrant"""

    @classmethod
    def _in_full(cls, content: dict[str, Any]) -> dict[str, Any]:
        if "threshold" in content:
            if "thresholds" in content:
                raise ValueError("give either threshold or thresholds")
            content["thresholds"] = [content.pop("threshold")]
        if "steps" in content and not isinstance(content["steps"], dict):
            content["steps"] = {DEFAULT: content["steps"]}
        return content

    @field_validator("scale")
    @classmethod
    def _increases(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not scale[0] < scale[1]:
            raise ValueError(f"the first number must be below the second, not {list(scale)}")
        return scale


def _named_tasks(content: Any) -> Any:
    """A task without an environment is called by it."""
    if not isinstance(content, dict):
        return content
    return {name: {"env": name, **task} if isinstance(task, dict) else task or {"env": name} for name, task in content.items()}


_TASKS = TypeAdapter(Annotated[dict[str, Task], BeforeValidator(_named_tasks)])


class Suite(_Part):
    """A comparison."""

    name: str = ""
    description: str = ""
    algorithms: dict[str, Entrant] = Field(min_length=1)
    """By label, the name in tables and figures"""
    tasks: Annotated[dict[str, Task], BeforeValidator(_named_tasks)] = Field(min_length=1)
    """By their names in tables and figures"""
    seeds: Whole = 3
    """How many"""
    first_seed: Whole = 1
    evaluation: Evaluation = Evaluation()

    @field_validator("algorithms", mode="before")
    @classmethod
    def _label(cls, content: Any) -> Any:
        if not isinstance(content, dict | list):
            return content
        entrants: dict[str, Any] = {}
        for key, value in content.items() if isinstance(content, dict) else ((name, None) for name in content):
            label, _, algo = str(key).rpartition("=") if isinstance(content, list) else ("", "", str(key))
            label = label or (algo.rpartition(":")[2].lower() if ":" in algo else algo)
            if label in entrants:
                raise ValueError(f"{label!r} stands there twice; give variants labels of their own")
            entrants[label] = {"algo": algo, **value} if isinstance(value, dict) else value or {"algo": algo}
        return entrants

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        for label, entrant in self.algorithms.items():
            path = f"algorithms.{label}"
            _check_name(label, r"[\w-]+", path)
            check_algorithm(entrant.algo, path)
            _check_set(entrant.algo, entrant.set, f"{path}.set")
        for name, task in self.tasks.items():
            path = f"tasks.{name}"
            if name != task.env:
                _check_name(name, r"[\w-][\w.-]*", path)
            spec = check_env(task.env, f"{path}.env")
            for key in task.env_kwargs:
                check_env_kwarg(spec, key, f"{path}.env_kwargs.{key}")
            for key, labels, others in (("steps", task.steps, (DEFAULT,)), ("set", task.set, ())):
                for label in labels:
                    if label not in (valid := (*self.algorithms, *others)):
                        fail(f"{path}.{key}.{label}", f"no algorithm of the suite, {offer(label, valid)}")
            for label, changes in task.set.items():
                _check_set(self.algorithms[label].algo, changes, f"{path}.set.{label}")
        return self


def _check_name(name: str, pattern: str, path: str) -> None:
    if not re.fullmatch(pattern, name, re.ASCII) or name in _RESERVED:
        fail(path, f"a name has letters, digits, - and _ only (a task's . too) and is none of {', '.join(_RESERVED)}")


def _check_set(algo: str, changes: Mapping[str, Any], path: str) -> None:
    for key, value in changes.items():
        check_hyperparameter(algo, key, f"{path}.{key}", value)


def _in_one_line(error: ValidationError, where: object) -> SuiteError:
    """Name the first key that is wrong and say why."""
    first = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    problem = str(first.get("ctx", {}).get("error", "")) or f"{first['msg']}, not {first['input']!r}"
    if first["type"] == "missing":
        problem = "missing"
    return SuiteError(": ".join(filter(None, (str(where), path, problem))))


def _make_suite(content: Any, where: str, eval_every: int | None, **numbers: int | None) -> Suite:
    if isinstance(content, dict):
        content = {**content, **{name: value for name, value in numbers.items() if value is not None}}
        written = content.get("evaluation") or {}
        if eval_every is not None and isinstance(written, dict):
            content["evaluation"] = {**written, "every": eval_every}
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise _in_one_line(error, where) from error


def load_suite(
    name_or_path: str, seeds: int | None = None, first_seed: int | None = None, eval_every: int | None = None
) -> Suite:
    """
    Read a suite.

    :param name_or_path: Name of a suite of this package (``"demo"``, ``"quick"``, ``"mujoco"``, ``"dpi"``, ``"gps"``), or path
        of a file that ends in ``.yml`` or ``.yaml``
    :param seeds: How many, instead of those of the file; so the others
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
    if isinstance(content, dict):
        content = {"name": path.stem, **content}
    return _make_suite(content, path.name, eval_every, seeds=seeds, first_seed=first_seed)


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for item in texts for part in item.split(",") if part.strip()]


def _assigned(assignment: str, flag: str, written: str = "") -> tuple[str, Any]:
    key, equals, value = assignment.partition("=")
    place = f"{flag} {written or assignment}"
    if not equals or not key:
        fail(place, "write KEY=VALUE")
    try:
        return key, parse_value(value)
    except SuiteError as error:
        raise SuiteError(f"{place}: {error}") from error


def _put(values: dict[str, Any], key: str, value: Any, place: str) -> None:
    if key in values:
        fail(place, f"{key} is given twice, {values[key]!r} before")
    values[key] = value


def suite_from_arguments(
    algos: Sequence[str],
    envs: Sequence[str],
    steps: Sequence[str] = (),
    overrides: Sequence[str] = (),
    env_kwargs: Sequence[str] = (),
    thresholds: Sequence[str] = (),
    seeds: int | None = None,
    first_seed: int | None = None,
    eval_every: int | None = None,
) -> Suite:
    """
    Make a suite from arguments of the command line; texts may hold several items with commas between, ``overrides`` apart.

    :param algos: ``NAME``, ``module:Class`` or, for a variant of one, ``LABEL=NAME``
    :param envs: Ids of environments
    :param steps: Budgets, ``STEPS`` of all or ``LABEL:STEPS`` of one; ``n_timesteps`` of the hyperparameters by default
    :param overrides: Hyperparameters to change, ``LABEL.KEY=VALUE``
    :param env_kwargs: Arguments of all environments, ``KEY=VALUE``
    :param thresholds: Returns to reach, ``RETURN`` on all environments or ``ENV:RETURN`` on one
    :return: The suite
    :raises SuiteError: If an argument is wrong; the message names it, or the key of a suite that it stands for
    """
    task: dict[str, Any] = {"steps": {}, "set": {}, "env_kwargs": {}}
    for item in env_kwargs:
        _put(task["env_kwargs"], *_assigned(item, "--env-kwargs"), f"--env-kwargs {item}")
    for item in _split(steps):
        label, _, budget = item.rpartition(":")
        _put(task["steps"], label or DEFAULT, parse_value(budget), f"--steps {item}")
    for item in overrides:
        label, dot, rest = item.partition(".")
        if not dot:
            fail(f"--set {item}", "write LABEL.KEY=VALUE")
        key, value = _assigned(rest, "--set", item)
        _put(task["set"].setdefault(label, {}), key, value, f"--set {item}")
    tasks = {env_id: {**task, "thresholds": []} for env_id in _split(envs)}
    for item in _split(thresholds):
        env_id, _, threshold = item.rpartition(":")
        if env_id and env_id not in tasks:
            fail(f"--threshold {item}", f"{env_id!r} is not among {', '.join(tasks)}")
        for name in [env_id] if env_id else tasks:
            tasks[name]["thresholds"].append(parse_value(threshold))
    content = {"algorithms": _split(algos), "tasks": tasks}
    return _make_suite(content, "", eval_every, seeds=seeds, first_seed=first_seed)


def _resolve(entrant: Entrant, task: Task, label: str, name: str) -> tuple[dict[str, Any], str]:
    choice = resolve_hyperparams(entrant.algo, task.env)
    changes = {**entrant.set, **task.set.get(label, {})}
    hyperparams = {**choice.hyperparams, **changes}
    for key in (*ENV_KEYS, *NOISE_KEYS):
        # `normalize: null` in a suite: as if the entry did not have it
        if key in hyperparams and hyperparams[key] is None:
            del hyperparams[key]
    try:
        constructor_arguments(hyperparams)
    except Exception as error:
        raise SuiteError(f"{label} on {name}: {error} (hyperparameters of {choice.source})") from error
    return hyperparams, choice.source + "".join(f", {key}={value}" for key, value in changes.items())


def _make_config(suite: Suite, label: str, name: str, device: str) -> RunConfig:
    entrant, task = suite.algorithms[label], suite.tasks[name]
    hyperparams, source = _resolve(entrant, task, label, name)
    steps = task.steps.get(label, task.steps.get(DEFAULT, hyperparams.get("n_timesteps")))
    if steps is None:
        fail(f"{label} on {name}", "neither the task's steps nor n_timesteps tell the budget")
    try:
        n_timesteps = TypeAdapter(Whole).validate_python(steps)
    except ValidationError as error:
        raise _in_one_line(error, f"{label} on {name}: n_timesteps") from error
    config = RunConfig(
        algo=entrant.algo,
        env_id=task.env,
        seed=suite.first_seed,
        n_timesteps=n_timesteps,
        hyperparams=hyperparams,
        source=source,
        task=name if name != task.env else "",
        env_kwargs=task.env_kwargs,
        device=device,
        eval_every=suite.evaluation.every,
        n_eval_episodes=suite.evaluation.episodes,
    )
    return replace(config, label=label if label != config.algo_name else "")


def make_configs(suite: Suite, device: str = "cpu") -> list[RunConfig]:
    """
    List the runs of a suite.

    :param suite: The suite
    :param device: Device of PyTorch
    :return: All runs, every algorithm's first seed on every task first
    :raises SuiteError: If hyperparameters make no sense
    :raises ImportError: If RL Zoo's hyperparameters are needed and RL Zoo is not installed
    """
    configs = [_make_config(suite, label, name, device) for name in suite.tasks for label in suite.algorithms]
    seeds = range(suite.first_seed, suite.first_seed + suite.seeds)
    return [replace(config, seed=seed) for seed in seeds for config in configs]


def read_tasks(out: Path) -> dict[str, Task]:
    """Read what a report needs to know of the tasks of a comparison, by name; empty where there is no file."""
    path = out / TASKS
    if not path.is_file():
        return {}
    try:
        return _TASKS.validate_python(read_yaml(path))
    except ValidationError as error:
        raise _in_one_line(error, path) from error


def merged(tasks: Iterable[tuple[str, Task]]) -> dict[str, Task]:
    """
    Put tasks together: of the thresholds and scales of a name the first count, and what is missing comes from another one
    only if that agrees with them, for a scale belongs to its highest threshold.
    """
    found: dict[str, Task] = {}
    for name, task in tasks:
        known = found.setdefault(name, task)
        if all(None in pair or pair[0] == pair[1] for pair in ((_goal(known), _goal(task)), (known.scale, task.scale))):
            changes = {"thresholds": known.thresholds or task.thresholds, "scale": known.scale or task.scale}
            found[name] = known.model_copy(update=changes)
    return found


def _goal(task: Task) -> float | None:
    return max(task.thresholds, default=None)


def write_tasks(out: Path, new: Mapping[str, Task]) -> None:
    """
    Keep thresholds and scales of tasks beside those that a folder has.

    :param out: Folder of the comparison; ``tasks.yml`` in it is replaced in one piece
    :param new: The tasks; where one has no thresholds or no scale, those that are there stay, if they agree with the others
    :raises SuiteError: If the file that is there cannot be read
    """
    out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".tasks.lock"):
        tasks = merged([*new.items(), *read_tasks(out).items()])
        named = {"env", "thresholds", "scale"}
        content = {name: tasks[name].model_dump(mode="json", include=named, exclude_defaults=True) for name in sorted(tasks)}
        text = yaml.safe_dump(content, sort_keys=False)
        replace_file(out / TASKS, lambda file: file.write(text.encode()))
