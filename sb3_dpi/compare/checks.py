"""Checks of what a user writes, in a suite's file or on the command line, beyond what a type can say.

Each takes the path of what it looks at, such as ``tasks.Reacher-v5.steps``, and raises a ``SuiteError`` that opens with it
and offers the closest valid names.
"""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import yaml
from gymnasium.envs.registration import EnvSpec, load_env_creator

from sb3_dpi.zoo import algorithm_class
from sb3_dpi.zoo.environments import find_environment
from sb3_dpi.zoo.hyperparams import ENV_KEYS, NOISE_KEYS, OTHER_KEYS
from sb3_dpi.zoo.register import closest, impossible_value, unknown_argument

SET_BY_THE_LAB = ("env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of an algorithm that are no hyperparameters"""


class SuiteError(ValueError):
    """A suite or an argument is wrong; the message names the key's path and the closest valid names."""


def fail(path: str, problem: str) -> NoReturn:
    """Refuse what stands at a path."""
    raise SuiteError(f"{path}: {problem}")


def offer(name: str, valid: Iterable[str]) -> str:
    """Name what is closest to what was written, or all that is valid where nothing is close."""
    names = list(valid)
    return closest(name, names, 3) or f"choose one of: {', '.join(names)}"


def check_algorithm(algo: str, path: str) -> None:
    """Look for an algorithm, by its name or as ``module:Class``."""
    try:
        algorithm_class(algo)
    except ValueError as error:
        raise SuiteError(f"{path}: {error}") from error


def check_hyperparameter(algo: str, key: str, path: str, value: Any = None) -> None:
    """See that a key is an argument of the algorithm's constructor that may have a value, or a key of RL Zoo."""
    if key in OTHER_KEYS:
        fail(path, f"a comparison does not support {key}")
    if key in SET_BY_THE_LAB:
        fail(path, f"{key} is set by the comparison itself")
    algorithm = algorithm_class(algo)
    problem = unknown_argument(algorithm, key, (*ENV_KEYS, *NOISE_KEYS), SET_BY_THE_LAB)
    if problem := problem or impossible_value(algorithm, key, value):
        fail(path, problem)


def check_env(env_id: str, path: str) -> EnvSpec:
    """Find how an environment is registered; of ``module:Id-v0`` the module is imported."""
    try:
        return find_environment(env_id)
    except (ImportError, ValueError) as error:
        raise SuiteError(f"{path}: {error}") from error


def check_env_kwarg(spec: EnvSpec, key: str, path: str) -> None:
    """See that an environment takes an argument."""
    if spec.entry_point is None:
        return
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    taken = inspect.signature(creator).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if not takes_all and key not in taken and key not in inspect.signature(gym.make).parameters:
        fail(path, f"{spec.id} takes no such argument, {offer(key, taken)}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML that takes ``1e-3`` for a number, without its silence about a key that is there twice."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return node

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """Read what YAML takes for a text; ``1e5``, without a point, is a whole number."""
        found = float(node.value)
        return int(found) if found.is_integer() and "." not in node.value else found


_Loader.add_implicit_resolver("!number", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789"))
_Loader.add_constructor("!number", _Loader.construct_number)


def _parse(content: Any, where: str) -> Any:
    try:
        return yaml.load(content, _Loader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark is not None and where != content else where
        raise SuiteError(f"{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from error


def parse_value(content: str) -> Any:
    """Read a value from the command line, which is YAML; ``1e-3`` is a number too."""
    return _parse(content, content)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; what is wrong in it is named with its line."""
    try:
        with path.open(encoding="utf-8") as file:
            return _parse(file, str(path))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({error.strerror})") from error
