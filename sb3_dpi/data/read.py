"""Reading logged data: Minari datasets, replay buffers of Stable-Baselines3, files of episodes."""

import csv
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.action_units import bounds, from_units
from sb3_dpi.common.asking import ask
from sb3_dpi.common.extras import need
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.data.columns import ALIASES, read_csv
from sb3_dpi.data.episodes import DataError, Episode, Episodes, Finding, StepTable, merged
from sb3_dpi.trajopt.types import FloatArray

Source = Any
"""A path, a Minari dataset or its id, or a replay buffer."""
UNITS = ("environment", "bounds")
TIMES = ("time", "t", "step", "timestep")
READ = {*ALIASES, *TIMES, "action_low", "action_high"}
"""All that is looked at; more is told."""
ENDS = {"done", "dones"}
"""Names that do not say how an episode ended."""
KINDS = {"O": "Python objects", "U": "text", "S": "text", "c": "complex numbers", "M": "dates", "m": "spans of time"}
"""What arrays may hold that is no number."""


def read(
    source: Source,
    env: "str | gym.Env[Any, Any] | VecEnv | None" = None,
    actions_in: str = "environment",
) -> Episodes:
    """
    Read logged data.

    :param source: a folder of episodes (npz, or csv with a header) or one such file; a Minari dataset, its folder or its id; a
        replay buffer of Stable-Baselines3 or its pickle, whose actions are in units of the bounds, as its algorithms keep them
    :param env: whose spaces and time limit hold; nothing else of it is read. None takes those that the source knows
    :param actions_in: units of the actions in files: those of the ``"environment"``, or of the ``"bounds"`` (from -1 to 1)
    :return: episodes in the environment's units
    :raises DataError: if it cannot be read
    """
    if actions_in not in UNITS:
        raise ValueError(f"actions_in must be one of {', '.join(UNITS)}, got {actions_in!r}")
    observation_space, action_space, time_limit = task_of(env)
    if hasattr(source, "iterate_episodes"):
        episodes = _from_minari(source)
    elif isinstance(source, ReplayBuffer):
        episodes, actions_in = _from_buffer(source, action_space), "environment"
    else:
        episodes, actions_in = _from_path(source, actions_in, action_space)
    if not len(episodes):
        why = "; ".join(note.text for note in merged(episodes.notes))
        raise DataError(f"{episodes.source} holds no step" + (f": {why}" if why else ""))
    episodes = replace(
        episodes,
        observation_space=observation_space or episodes.observation_space or _box_around(episodes),
        action_space=action_space or episodes.action_space,
        time_limit=time_limit or episodes.time_limit,
    )
    return _to_env_units(episodes) if actions_in == "bounds" else episodes


def task_of(
    env: "str | gym.Env[Any, Any] | VecEnv | None",
) -> tuple[spaces.Space[Any] | None, spaces.Box | None, int | None]:
    """
    Look at an environment.

    :param env: an id, which is made and closed again, an environment, or None
    :return: spaces of observations and actions, and its time limit, None where nothing is known
    :raises DataError: if the environment cannot be made, or its actions are no Box
    """
    if env is None:
        return None, None, None
    try:
        made = gym.make(env) if isinstance(env, str) else env
    except (gym.error.Error, ImportError) as error:
        raise DataError(f"The environment {env!r} cannot be made: {error}") from error
    seen, acted, limit = made.observation_space, made.action_space, time_limit_of(made)
    if isinstance(env, str):
        made.close()
    if not isinstance(acted, spaces.Box):
        raise DataError(f"Actions must be a Box, those of the environment are {acted}")
    return seen, acted, limit


def time_limit_of(env: "gym.Env[Any, Any] | VecEnv | None") -> int | None:
    """
    Ask for the steps after which an episode is ended.

    :param env: an environment, a vectorised one, or None
    :return: the limit; None where there is none, it is not known, or copies differ in it
    """
    name, limits, specs = "_max_episode_steps", list[Any](), list[Any]()
    if isinstance(env, VecEnv):
        limits, specs = ask(env, name) or [], ask(env, "spec") or []
    elif isinstance(env, gym.Env):
        limits, specs = [env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None], [env.spec]
    for values in (limits, [getattr(spec, "max_episode_steps", None) for spec in specs]):
        known = [int(value) for value in values if isinstance(value, int | np.integer) and value > 0]
        if known and known == [known[0]] * len(values):
            return known[0]
    return None


def _from_path(source: Any, actions_in: str, action_space: spaces.Box | None) -> tuple[Episodes, str]:
    path = Path(os.fspath(source))
    if path.suffix == ".pkl":
        return _from_buffer(_unpickled(path), action_space, str(path)), "environment"
    if path.is_dir():
        if (path / "data" / "metadata.json").exists() or (path / "metadata.json").exists():
            return _from_minari(_minari_folder(path)), actions_in
        files = sorted(each for each in path.iterdir() if each.suffix in (".npz", ".csv"))
        if not files:
            raise DataError(f"{path} holds no npz or csv file, and is no Minari dataset")
        return _joined([_from_file(file) for file in files], str(path)), actions_in
    if path.exists():
        return _from_file(path), actions_in
    return _from_minari(_minari_dataset(str(source))), actions_in


# ---------------------------------------------------------------------- Minari


def _minari_dataset(name: str) -> Any:
    if "/" not in name.strip("/") and "-v" not in name:
        raise DataError(f"{name} does not exist")
    need("data", "minari")
    import minari

    try:
        return minari.load_dataset(name)
    except FileNotFoundError:
        raise DataError(f"{name} is neither a file nor a Minari dataset on this machine: minari download {name}") from None


def _minari_folder(path: Path) -> Any:
    need("data", "minari")
    import minari

    return minari.MinariDataset(path / "data" if (path / "data").is_dir() else path)


def _from_minari(dataset: Any) -> Episodes:
    if not isinstance(dataset.action_space, spaces.Box):
        raise DataError(f"Actions must be a Box, those of the dataset are {dataset.action_space}")
    seen = dataset.observation_space
    if not all(isinstance(part, spaces.Box) for part in (seen.values() if isinstance(seen, spaces.Dict) else (seen,))):
        raise DataError(f"Observations must be a Box or a Dict of such, those of the dataset are {seen}")
    episodes = [
        Episode(
            map_observations(np.asarray, each.observations),
            _rows(each.actions),
            np.asarray(each.rewards, np.float64),
            np.asarray(each.terminations, bool),
            np.asarray(each.truncations, bool),
        )
        for each in dataset.iterate_episodes()
        if len(each.rewards)
    ]
    name = str(getattr(dataset, "id", None) or "the Minari dataset")
    limit = getattr(getattr(dataset, "env_spec", None), "max_episode_steps", None)
    return Episodes(tuple(episodes), name, dataset.observation_space, dataset.action_space, time_limit=limit)


# ---------------------------------------------------------------------- replay buffers


def _unpickled(path: Path) -> ReplayBuffer:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        buffer = load_from_pkl(path)
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path} cannot be read as pickle of a replay buffer: {error}") from error
    if not isinstance(buffer, ReplayBuffer):
        raise DataError(f"{path} holds a {type(buffer).__name__}, not a ReplayBuffer of Stable-Baselines3")
    return buffer


def _from_buffer(buffer: ReplayBuffer, of_env: spaces.Box | None, source: str = "the replay buffer") -> Episodes:
    if buffer.optimize_memory_usage:
        raise DataError(f"{source} was kept with optimize_memory_usage: the last observations of its episodes are lost")
    if not isinstance(buffer.action_space, spaces.Box):
        raise DataError(f"Actions must be a Box, those of {source} are {buffer.action_space}")
    # of whole numbers a buffer of this package keeps fractions, and not the bounds
    is_held = of_env is not None and of_env.dtype not in (np.float32, np.float64) and buffer.actions.dtype == np.float32
    space = of_env if of_env is not None and is_held else buffer.action_space
    low, high = bounds(space)
    size = buffer.size()
    order = (np.arange(size) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    episodes, findings = list[Episode](), list[Finding]()
    for env in range(buffer.n_envs):

        def rows(array: np.ndarray, env: int = env) -> np.ndarray:
            column: np.ndarray = array[order, env]
            return column

        done, cut = rows(buffer.dones) > 0, rows(buffer.timeouts) > 0
        scaled = rows(buffer.actions).reshape(size, -1)
        table = StepTable(
            map_observations(rows, buffer.observations),
            from_units(scaled, low.ravel(), high.ravel()).astype(np.float64),
            rows(buffer.rewards).astype(np.float64),
            done & ~cut,
            done & cut,
            map_observations(rows, buffer.next_observations),
            source=source if buffer.n_envs == 1 else f"{source}, environment {env}",
        )
        own, found = table.split()
        episodes += own
        findings += found
    if not buffer.handle_timeout_termination:
        findings.append(Finding("The buffer does not know time limits: episodes that they ended look terminated", False))
    return Episodes(tuple(episodes), source, buffer.observation_space, space, tuple(findings))


# ---------------------------------------------------------------------- files


def _from_file(path: Path) -> Episodes:
    if path.suffix not in (".npz", ".csv"):
        raise DataError(f"{path} is of no kind that is known: npz, csv, pkl of a replay buffer, a folder, a Minari dataset")
    try:
        arrays = read_csv(path) if path.suffix == ".csv" else _read_npz(path)
    except DataError:
        raise
    except (ValueError, OSError, EOFError, csv.Error, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    return _from_arrays(arrays, str(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # numpy would speak of pickles
        raise DataError(f"{path} is no npz file, or was damaged")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for given in archive.files:
            name, _ = _our_name(given)
            # what is not read may be of any kind
            arrays[given] = _numbers(archive, given, path) if name in READ else np.empty(0)
    return arrays


def _numbers(archive: Mapping[str, Any], name: str, path: Path) -> np.ndarray:
    """An array of an npz file, if it is one of numbers."""
    try:
        array = np.asarray(archive[name])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        what = KINDS.get(array.dtype.kind, f"values of the type {array.dtype}")
        remedy = "write numbers, as np.asarray(..., float)"
        if array.dtype.kind == "O":
            remedy += "; of episodes of different lengths write one file each, or all steps one below the other"
        raise DataError(f"{path}: the array {name} holds {what}, not numbers: {remedy}")
    return array


def _from_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Episodes:
    named = _named(arrays, source)
    missing = [name for name in ("observations", "actions", "rewards") if name not in named]
    if missing:
        raise DataError(f"{source} has no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}")
    if not np.size(named["actions"]):
        raise DataError(f"{source} holds no step")
    _check_dimensions(named, source)
    actions, notes = _rows(named["actions"]), _unread(named, source)
    n = len(actions)
    marks = {name: _marks(named.get(name), n, f"{source}: {name}") for name in ("terminated", "truncated")}
    if "terminated" not in named:
        notes.append(Finding("Nothing says which steps terminated: none counts as such", False, source))
    rewards = _column(named["rewards"], f"{source}: rewards")
    seen = map_observations(_at_least_2d, named["observations"])
    lengths = _lengths(seen)
    if len(rewards) != n or len(set(lengths)) != 1 or lengths[0] not in (n, n + 1):
        raise DataError(
            f"{source} has {lengths[0]} observations, {n} actions and {len(rewards)} rewards: an episode of T steps has T "
            "actions and rewards and T + 1 observations, the last one included"
        )
    number = _episode_numbers(named.get("episode"), {n, lengths[0]}, source)
    if lengths[0] == n + 1:
        episodes, found = [Episode(seen, actions, rewards, *marks.values(), origin=source)], list[Finding]()
        if number is not None and (number != number[0]).any():
            raise DataError(f"{source} holds several episodes: each needs its last observation, add next_observations")
    else:
        following = _following(named.get("next_observations"), seen, source)
        table = StepTable(seen, actions, rewards, marks["terminated"], marks["truncated"], following, number, source)
        episodes, found = table.split()
    time = next((named[name] for name in TIMES if name in named), None)
    found = [*_time_runs_back(time, number, marks["terminated"] | marks["truncated"], source), *found]
    return Episodes(tuple(episodes), source, None, _bounds_in(arrays, source), (*notes, *found))


def _our_name(given: str) -> tuple[str, str]:
    """How we call an array, and the key where it is one of a dictionary: ``observations.KEY``."""
    ours = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
    head, _, key = given.partition(".")
    return ours.get(head.lower(), head.lower()), key


def _named(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
    """By our names; what is called ``observations.KEY`` is collected in a dictionary."""
    named: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for given, array in arrays.items():
        name, key = _our_name(given)
        before = named.get(name)
        if name in READ and name in named and not (key and isinstance(before, dict) and key not in before):
            raise DataError(f"{source} has {origin[name]} and {given}, which mean the same: keep one of them")
        origin[name] = given
        if key and name in READ:
            named.setdefault(name, {})[key] = array
        else:
            named[name] = array
    return named


def _check_dimensions(named: Mapping[str, Any], source: str) -> None:
    """Arrays have a row for each step; only observations have keys."""
    for name in READ & set(named):
        array, keys = named[name], name in ("observations", "next_observations")
        if isinstance(array, dict) and not keys:
            raise DataError(f"{source}: {name} has keys ({', '.join(array)}), which only observations may have")
        parts = array if isinstance(array, dict) else {"": array}
        for key, part in parts.items():
            if np.ndim(part) == 0 and (keys or name == "actions"):
                what = f"{name}.{key}" if key else name
                raise DataError(f"{source}: {what} is a single number: write an array with a row for each step")


def _unread(named: Mapping[str, Any], source: str) -> list[Finding]:
    """What stands in a file and is not used: a slip of the pen loses a column."""
    unread = sorted(set(named) - READ)
    if not unread:
        return []
    text = f"not read: {', '.join(unread[:8])}{', ...' if len(unread) > 8 else ''}"
    if ENDS.intersection(unread):
        text += "; call the ends of the task terminated, those by a time limit truncated"
    return [Finding(text, False, source)]


def _lengths(observations: Observations) -> list[int]:
    return [len(array) for array in observations.values()] if isinstance(observations, dict) else [len(observations)]


def _at_least_2d(array: np.ndarray) -> np.ndarray:
    return array[:, None] if array.ndim == 1 else array


def _rows(array: Any) -> FloatArray:
    whole = np.asarray(array, np.float64)
    return whole.reshape(len(whole), -1)


def _column(array: Any, what: str) -> FloatArray:
    """A number for each step."""
    given = np.asarray(array, np.float64)
    if given.ndim > 1 and given.shape != (len(given), 1):
        raise DataError(
            f"{what} has shape {given.shape}, a column of one number for each step is meant: write one file for each episode, "
            "or all steps one below the other"
        )
    flat: FloatArray = given.reshape(-1)
    return flat


def _marks(array: Any, n: int, what: str) -> np.ndarray:
    """Truth values of all steps; a single one is about the last step."""
    if array is None:
        return np.zeros(n, dtype=bool)
    flat = np.nan_to_num(_column(array, what))
    if len(flat) == n:
        return flat > 0
    if len(flat) == 1:
        return np.append(np.zeros(n - 1, dtype=bool), flat > 0)
    raise DataError(f"{what} has {len(flat)} entries for {n} steps: one for each step, or one about the last")


def _episode_numbers(array: Any, n_rows: set[int], source: str) -> np.ndarray | None:
    if array is None:
        return None
    what = f"{source}: episode"
    flat = _column(array, what)
    bad = np.flatnonzero(~np.isfinite(flat))
    if len(bad):
        raise DataError(f"{what} is empty in {len(bad)} rows, first in row {bad[0]}: each row needs its number")
    odd = np.flatnonzero(flat != np.round(flat))
    if len(odd):
        raise DataError(f"{what} is {flat[odd[0]]:g} in row {odd[0]}: number episodes by integers")
    if len(flat) not in n_rows:
        raise DataError(f"{what} has {len(flat)} entries for {max(n_rows)} rows: each row needs its number")
    return flat.astype(int)


def _following(after: Any, seen: Observations, source: str) -> Observations | None:
    """What came next, if it is of the same kind as what was seen."""
    if after is None:
        return None
    shaped: Observations = map_observations(_at_least_2d, after)
    here, there = (
        {key: array.shape for key, array in (each.items() if isinstance(each, dict) else [("", each)])}
        for each in (seen, shaped)
    )
    if here != there:
        shown = [", ".join(f"{key} {shape}".strip() for key, shape in shapes.items()) for shapes in (here, there)]
        raise DataError(
            f"{source} has observations of shape {shown[0]} and next_observations of shape {shown[1]}: they must be the same"
        )
    return shaped


def _bounds_in(arrays: Mapping[str, np.ndarray], source: str) -> spaces.Box | None:
    if "action_low" not in arrays or "action_high" not in arrays:
        return None
    low, high = arrays["action_low"], arrays["action_high"]
    if low.shape != high.shape or low.dtype != high.dtype:
        raise DataError(
            f"{source} has action_low of shape {low.shape} ({low.dtype}) and action_high of shape {high.shape} "
            f"({high.dtype}): they must be the same, a number for each action"
        )
    return spaces.Box(low, high, dtype=low.dtype.type)


def _time_runs_back(time: Any, number: np.ndarray | None, done: np.ndarray, source: str) -> list[Finding]:
    if time is None:
        return []
    clock = _column(time, f"{source}: time")
    n = len(done)
    if len(clock) not in (n, n + 1):
        raise DataError(f"{source}: time has {len(clock)} entries for {n} steps: write one for each, or leave it out")
    same = ~done[:-1]
    if number is not None:
        same = same & (np.diff(number[:n]) == 0)
    back = np.flatnonzero(same & (np.diff(clock[:n]) <= 0))
    if not len(back):
        return []
    text = "Time runs back or stands still within an episode: sort the rows by time"
    return [Finding(text, True, f"{source}, after row {back[0]}")]


# ---------------------------------------------------------------------- all of them


def _joined(parts: Iterable[Episodes], source: str) -> Episodes:
    parts = list(parts)
    space = next((each.action_space for each in parts if each.action_space is not None), None)
    notes = dict.fromkeys(note for each in parts for note in each.notes)
    return Episodes(tuple(episode for each in parts for episode in each.episodes), source, None, space, tuple(notes))


def _box_around(episodes: Episodes) -> spaces.Space[Any]:
    """What is known of a space by its members alone: shapes."""

    def box(array: np.ndarray) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, array.shape[1:] or (1,), np.float32)

    first = episodes.episodes[0].observations
    if isinstance(first, dict):
        return spaces.Dict({key: box(array) for key, array in first.items()})
    return box(first)


def _to_env_units(episodes: Episodes) -> Episodes:
    if episodes.action_space is None:
        raise DataError(f"{episodes.source}: the bounds that its actions are in units of are not known; give env=")
    low, high = (bound.ravel() for bound in bounds(episodes.action_space))
    changed = tuple(replace(each, actions=from_units(each.actions, low, high)) for each in episodes.episodes)
    return replace(episodes, episodes=changed)
