"""Checks of what a user writes, in a suite's file or on the command line.

Every check takes the path of what it looks at, ``tasks.Reacher-v5.steps`` or ``--steps ppo:abc``, and raises a ``SuiteError``
that opens with it and offers the closest valid names.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import yaml
from gymnasium.envs.registration import EnvSpec, load_env_creator

from sb3_dpi.compare.build import ENV_KEYS, NOISE_KEYS, UNSUPPORTED_KEYS
from sb3_dpi.zoo import algorithm_class
from sb3_dpi.zoo.environments import import_environment
from sb3_dpi.zoo.register import closest, unknown_argument

SET_BY_THE_LAB = ("env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of an algorithm that are no hyperparameters"""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class SuiteError(ValueError):
    """A suite or an argument is wrong; the message names the key's path and the closest valid names."""


def fail(path: str, problem: str) -> NoReturn:
    """
    Refuse a value.

    :param path: Path of its key
    :param problem: What is wrong with it
    :raises SuiteError: Always
    """
    raise SuiteError(f"{path}: {problem}")


def offer(name: str, valid: Iterable[str]) -> str:
    """
    Say what can be written instead.

    :param name: What was written
    :param valid: What could have been
    :return: The closest names, or all where none is close
    """
    names = list(valid)
    return closest(name, names, 3) or f"choose one of: {', '.join(names)}"


def as_number(value: Any) -> Any:
    """
    Turn ``"1e-3"`` into the number that YAML does not see in it.

    :param value: Any value; numbers within lists and mappings are turned too
    :return: The value; ``"1e5"``, without a point, is a whole number
    """
    if isinstance(value, dict):
        return {key: as_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_number(item) for item in value]
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    found = float(value)
    return int(found) if found.is_integer() and "." not in value else found


def parse_value(content: str) -> Any:
    """
    Read a value from the command line.

    :param content: YAML; ``1e-3`` is a number too, although YAML takes it for a string
    :return: The value
    :raises SuiteError: If it is not valid YAML
    """
    try:
        return as_number(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise SuiteError(f"{content}: not valid YAML ({getattr(error, 'problem', None) or error})") from error


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, path: str) -> float:
    """
    Check a number.

    :param value: What was written
    :param path: Path of its key
    :return: The number
    :raises SuiteError: If it is none
    """
    found: float = as_number(value)
    if not _finite(found):
        fail(path, f"a number is needed, not {value!r}")
    return found


def whole(value: Any, path: str) -> int:
    """
    Check a positive whole number.

    :param value: What was written; ``1e5`` is one too
    :param path: Path of its key
    :return: The number
    :raises SuiteError: If it is none
    """
    found = as_number(value)
    if not _finite(found) or found < 1 or found != int(found):
        fail(path, f"a whole number of at least 1 is needed, not {value!r}")
    return int(found)


def text(value: Any, path: str) -> str:
    """
    Check a text.

    :param value: What was written
    :param path: Path of its key
    :return: The text
    :raises SuiteError: If it is none
    """
    if not isinstance(value, str):
        fail(path, f"text is needed, not {value!r}")
    return value


def mapping(value: Any, path: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """
    Check a mapping and its keys.

    :param value: What was written; nothing stands for an empty mapping
    :param path: Path of its key, empty for the whole file
    :param keys: The keys it may have; any text where there are none
    :return: The mapping
    :raises SuiteError: If it is no mapping or has another key
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        fail(path, f"a mapping (KEY: VALUE) is needed, not {value!r}")
    for key in value:
        at_key = f"{path}.{key}" if path else f"{key}"
        if not isinstance(key, str):
            fail(at_key, f"a key must be text, not {key!r}; put it in quotes")
        if keys and key not in keys:
            fail(at_key, f"unknown key, {offer(key, keys)}")
    return value


def check_algorithm(algo: str, path: str) -> None:
    """
    Check the name of an algorithm.

    :param algo: The name or ``module:Class``
    :param path: Path of its key
    :raises SuiteError: If there is no such algorithm
    """
    try:
        algorithm_class(algo)
    except ValueError as error:
        raise SuiteError(f"{path}: {error}") from error


def _parameters(function: Callable[..., Any]) -> list[str] | None:
    """Name what a function takes; None where it takes anything."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def check_hyperparameter(algo: str, key: str, path: str) -> None:
    """
    Check the name of a hyperparameter: an argument of the constructor, or a key of RL Zoo for environment or noise.

    :param algo: The name of a known algorithm
    :param key: The name of the hyperparameter
    :param path: Path of the key
    :raises SuiteError: If the algorithm takes no such hyperparameter
    """
    if key in UNSUPPORTED_KEYS:
        fail(path, f"a comparison does not support {key}")
    if key in SET_BY_THE_LAB:
        fail(path, f"{key} is set by the comparison itself")
    problem = unknown_argument(algorithm_class(algo), key, (*ENV_KEYS, *NOISE_KEYS), SET_BY_THE_LAB)
    if problem:
        fail(path, problem)


def check_env(env_id: str, path: str) -> EnvSpec:
    """
    Check the id of an environment.

    :param env_id: The id; of ``module:Id-v0`` the module is imported
    :param path: Path of its key
    :return: How the environment is registered
    :raises SuiteError: If it is not registered
    """
    try:
        return gym.spec(import_environment(env_id))
    except (gym.error.Error, ImportError, ValueError) as error:
        if isinstance(error, ImportError):
            raise SuiteError(f"{path}: {error}") from error
        prefix, colon, name = env_id.rpartition(":")
        hint = "module:Id-v0 imports a module of yours that registers it"
        suggestion = closest(name, gym.registry, 3, prefix + colon)
        hint = f"{suggestion} ({hint})" if suggestion and not colon else suggestion or hint
        raise SuiteError(f"{path}: unknown environment {env_id!r}, {hint}") from error


def check_env_kwarg(spec: EnvSpec, key: str, path: str) -> None:
    """
    Check the name of an argument of an environment.

    :param spec: How the environment is registered
    :param key: The name of the argument
    :param path: Path of the key
    :raises SuiteError: If the environment takes no such argument
    """
    if spec.entry_point is None:
        return
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    taken = _parameters(creator)
    if taken is not None and key not in [*taken, *inspect.signature(gym.make).parameters]:
        fail(path, f"{spec.id} takes no such argument, {offer(key, taken)}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML without its silence about a key that is there twice."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return node


def read_yaml(path: Path) -> Any:
    """
    Read a YAML file.

    :param path: The file
    :return: Its content
    :raises SuiteError: If it cannot be read, is not valid YAML or has a key twice; the message names file and line
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise SuiteError(f"{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
