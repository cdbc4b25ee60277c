"""Which hyperparameters an algorithm uses on a task, and where they come from.

RL Zoo looks a task up by its exact id and otherwise falls back, without a word, to an untuned entry. Here an id without an
entry of its own uses the newest older version of the same task; without one of these, an algorithm of this package uses its
own ``default`` entry and a baseline uses the defaults of SB3 with normalized observations. The source is always reported.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sb3_dpi.common.extras import install_command
from sb3_dpi.zoo.register import ALGORITHMS, algorithm_class

HYPERPARAMS_FOLDER = Path(__file__).parent / "hyperparams"
ZOO_HINT = f"Install what is missing with: {install_command('zoo')}"
ENV_KEYS = ("n_timesteps", "n_envs", "normalize", "env_kwargs", "env_wrapper", "vec_env_wrapper", "frame_stack")
NOISE_KEYS = ("noise_type", "noise_std")
OTHER_KEYS = ("callback", "monitor_kwargs")
"""What RL Zoo takes out of an entry before it builds the model, as the two before"""
SB3_DEFAULTS = {
    "n_envs": 1,
    "n_timesteps": 1e6,
    "normalize": {"norm_obs": True, "norm_reward": False},
    "policy": "MlpPolicy",
}

_VERSIONED = re.compile(r"(?P<name>.+)-v(?P<version>\d+)")
_ATARI = re.compile(r"ALE/.+|.+NoFrameskip-v\d+")


@dataclass(frozen=True)
class ResolvedHyperparams:
    """The hyperparameters of one algorithm on one task, in RL Zoo's format."""

    hyperparams: dict[str, Any]
    """Arguments of the constructor, with ``n_timesteps``, ``n_envs``, ``normalize`` and the like among them"""
    source: str
    """Where they come from, in words, for tables and log files"""


def newest_version(keys: list[str], env_id: str) -> str | None:
    """Find among the ids that have an entry the one that fits a task: its own, else its newest older version."""
    wanted = _VERSIONED.fullmatch(env_id)
    if env_id in keys or wanted is None:
        return env_id if env_id in keys else None
    found = {}
    for key in keys:
        match = _VERSIONED.fullmatch(key)
        if match is not None and match["name"] == wanted["name"] and int(match["version"]) < int(wanted["version"]):
            found[int(match["version"])] = key
    return found[max(found)] if found else None


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def zoo_entries(algo: str) -> dict[str, dict[str, Any]]:
    """
    Read RL Zoo's hyperparameters of an algorithm by task, without importing RL Zoo (slow, and it patches Gymnasium); none for
    an algorithm that it has no file of.
    """
    spec = find_spec("rl_zoo3")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"The hyperparameters of {algo} come from RL Zoo, which is not installed. {ZOO_HINT}")
    path = Path(next(iter(spec.submodule_search_locations))) / "hyperparams" / f"{algo}.yml"
    if not path.is_file():
        algorithm_class(algo)
        return {}
    return _read_entries(path)


def _defaults(algo: str) -> ResolvedHyperparams:
    aliases = list(getattr(algorithm_class(algo), "policy_aliases", {}))
    # RecurrentPPO calls its policy MlpLstmPolicy
    for_vectors = [name for name in aliases if name.startswith("Mlp")]
    policy = for_vectors[0] if for_vectors and "MlpPolicy" not in aliases else "MlpPolicy"
    return ResolvedHyperparams({**SB3_DEFAULTS, "policy": policy}, "SB3 defaults, observations normalized")


def resolve_hyperparams(algo: str, env_id: str) -> ResolvedHyperparams:
    """
    Choose the hyperparameters of an algorithm for a task.

    :param algo: Name of the algorithm, one of this package (``"mdgps"``) or one of RL Zoo (``"ppo"``, ``"trpo"``), or
        ``"module:Class"``, which has no entries
    :param env_id: Id of the task in Gymnasium; the module of ``module:Id-v0`` does not matter
    :return: The hyperparameters and their source
    :raises ImportError: If they come from RL Zoo and RL Zoo is not installed
    :raises ValueError: If there is no such algorithm
    """
    env_id = env_id.rpartition(":")[2]
    if algo in ALGORITHMS:
        entries = _read_entries(HYPERPARAMS_FOLDER / f"{algo}.yml")
        key = newest_version(list(entries), env_id) or "default"
        return ResolvedHyperparams(dict(entries[key]), f"sb3_dpi, {key}")
    entries = {} if ":" in algo else zoo_entries(algo)
    key_or_none = newest_version(list(entries), env_id)
    if key_or_none is None and "atari" in entries and _ATARI.fullmatch(env_id):
        key_or_none = "atari"
    if key_or_none is None:
        return _defaults(algo)
    return ResolvedHyperparams(dict(entries[key_or_none]), f"RL Zoo, {key_or_none}")
