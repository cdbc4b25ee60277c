"""Reading logged data: Minari datasets, replay buffers of Stable-Baselines3, files of episodes."""

import csv
import os
import zipfile
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

from sb3_dpi.common.action_units import bounds
from sb3_dpi.common.extras import need
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.data.episodes import DataError, Episode, Episodes, Finding, StepTable
from sb3_dpi.trajopt.types import FloatArray

Source = Any
"""A path, a Minari dataset or its id, or a replay buffer."""
UNITS = ("environment", "bounds")
ALIASES = {
    "observations": ("obs", "observation"),
    "next_observations": ("next_obs", "next_observation"),
    "actions": ("acts", "action"),
    "rewards": ("rews", "reward"),
    "terminated": ("terminations", "terminals", "terminal"),
    "truncated": ("truncations", "timeouts", "timeout"),
    "episode": ("episodes", "episode_id", "trajectory"),
}
"""Names of arrays in npz files: ours, and those of D4RL, Minari and imitation."""
READ = {*ALIASES, "time", "t", "step", "timestep", "action_low", "action_high"}
"""All that is looked at; more is told."""
ENDS = {"done", "dones"}
"""Names that do not say how an episode ended."""
TRUE, FALSE = ("true", "yes"), ("false", "no")


def read(
    source: Source,
    env: "str | gym.Env[Any, Any] | VecEnv | None" = None,
    actions_in: str = "environment",
) -> Episodes:
    """
    Read logged data.

    :param source: a folder of episodes (npz, or csv with a header) or one such file; a Minari dataset, its folder or its id; a
        replay buffer of Stable-Baselines3 or its pickle, whose actions are in units of the bounds, as its algorithms keep them
    :param env: whose spaces hold; only its spaces are read. None takes those that the source knows
    :param actions_in: units of the actions in files: those of the ``"environment"``, or of the ``"bounds"`` (from -1 to 1)
    :return: episodes in the environment's units
    :raises DataError: if it cannot be read
    """
    if actions_in not in UNITS:
        raise ValueError(f"actions_in must be one of {', '.join(UNITS)}, got {actions_in!r}")
    observation_space, action_space = spaces_of(env)
    if hasattr(source, "iterate_episodes"):
        episodes = _from_minari(source)
    elif isinstance(source, ReplayBuffer):
        episodes, actions_in = _from_buffer(source), "environment"
    else:
        episodes, actions_in = _from_path(source, actions_in)
    if not len(episodes):
        why = "; ".join(note.text for note in episodes.notes if note.is_error)
        raise DataError(f"{episodes.source} holds no step" + (f": {why}" if why else ""))
    episodes = replace(
        episodes,
        observation_space=observation_space or episodes.observation_space or _box_around(episodes),
        action_space=action_space or episodes.action_space,
    )
    return _to_env_units(episodes) if actions_in == "bounds" else episodes


def spaces_of(env: "str | gym.Env[Any, Any] | VecEnv | None") -> tuple[spaces.Space[Any] | None, spaces.Box | None]:
    """
    Look at the spaces of an environment.

    :param env: an id, which is made and closed again, an environment, or None
    :return: of observations and actions, None where nothing is known
    :raises DataError: if the environment cannot be made, or its actions are no Box
    """
    if env is None:
        return None, None
    try:
        made = gym.make(env) if isinstance(env, str) else env
    except (gym.error.Error, ImportError) as error:
        raise DataError(f"The environment {env!r} cannot be made: {error}") from error
    seen, acted = made.observation_space, made.action_space
    if isinstance(env, str):
        made.close()
    if not isinstance(acted, spaces.Box):
        raise DataError(f"Actions must be a Box, those of the environment are {acted}")
    return seen, acted


def _from_path(source: Any, actions_in: str) -> tuple[Episodes, str]:
    path = Path(os.fspath(source))
    if path.suffix == ".pkl":
        return _from_buffer(_unpickled(path), str(path)), "environment"
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
    return Episodes(tuple(episodes), name, dataset.observation_space, dataset.action_space)


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


def _from_buffer(buffer: ReplayBuffer, source: str = "the replay buffer") -> Episodes:
    if buffer.optimize_memory_usage:
        raise DataError(f"{source} was kept with optimize_memory_usage: the last observations of its episodes are lost")
    if not isinstance(buffer.action_space, spaces.Box):
        raise DataError(f"Actions must be a Box, those of {source} are {buffer.action_space}")
    low, high = bounds(buffer.action_space)
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
            (low.ravel() + 0.5 * (scaled + 1.0) * (high - low).ravel()).astype(np.float64),
            rows(buffer.rewards).astype(np.float64),
            done & ~cut,
            done & cut,
            map_observations(rows, buffer.next_observations),
        )
        own, found = table.split()
        episodes += own
        findings += found
    if not buffer.handle_timeout_termination:
        findings.append(Finding("The buffer does not know time limits: episodes that they ended look terminated", False))
    return Episodes(tuple(episodes), source, buffer.observation_space, buffer.action_space, tuple(findings))


# ---------------------------------------------------------------------- files


def _from_file(path: Path) -> Episodes:
    if path.suffix not in (".npz", ".csv"):
        raise DataError(f"{path} is of no kind that is known: npz, csv, pkl of a replay buffer, a folder, a Minari dataset")
    try:
        arrays = _read_csv(path) if path.suffix == ".csv" else _read_npz(path)
    except DataError:
        raise
    except (ValueError, OSError, EOFError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    return _from_arrays(arrays, str(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # numpy would speak of pickles
        raise DataError(f"{path} is no npz file, or was damaged")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _from_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Episodes:
    named = _named(arrays)
    missing = [name for name in ("observations", "actions", "rewards") if name not in named]
    if missing:
        raise DataError(f"{source} has no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}")
    if not np.size(named["actions"]):
        raise DataError(f"{source} holds no step")
    actions, notes = _rows(named["actions"]), _unread(named, source)
    n = len(actions)
    marks = {}
    for name in ("terminated", "truncated"):
        marks[name] = _marks(named.get(name), n, f"{source}: {name}")
    if "terminated" not in named:
        notes.append(Finding(f"{source} does not say which steps terminated: none counts as such", False))
    rewards = np.asarray(named["rewards"], np.float64).reshape(-1)
    seen = map_observations(_at_least_2d, named["observations"])
    after = named.get("next_observations")
    lengths = _lengths(seen)
    if len(rewards) != n or len(set(lengths)) != 1 or lengths[0] not in (n, n + 1):
        raise DataError(
            f"{source} has {lengths[0]} observations, {n} actions and {len(rewards)} rewards: an episode of T steps has T "
            "actions and rewards and T + 1 observations, the last one included"
        )
    if lengths[0] == n + 1:
        episodes, found = [Episode(seen, actions, rewards, marks["terminated"], marks["truncated"])] if n else [], []
    else:
        number = None if "episode" not in named else _whole_numbers(named["episode"], f"{source}: episode")
        following = None if after is None else map_observations(_at_least_2d, after)
        table = StepTable(seen, actions, rewards, marks["terminated"], marks["truncated"], following, number)
        found = _time_runs_back(named.get("time"), number, table, source)
        episodes, more = table.split()
        found += [replace(each, text=f"{source}: {each.text}") for each in more]
    space = None
    if "action_low" in arrays and "action_high" in arrays:
        space = spaces.Box(arrays["action_low"], arrays["action_high"], dtype=arrays["action_low"].dtype.type)
    return Episodes(tuple(episodes), source, None, space, (*notes, *found))


def _named(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """By our names; what is called ``observations.KEY`` is collected in a dictionary."""
    named: dict[str, Any] = {}
    ours = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
    for given, array in arrays.items():
        head, dot, key = given.partition(".")
        name = ours.get(head.lower(), head.lower())
        if dot:
            named.setdefault(name, {})[key] = array
        else:
            named[name] = array
    for name in ("time", "t", "step", "timestep"):
        if name in named:
            named["time"] = named[name]
    return named


def _unread(named: Mapping[str, Any], source: str) -> list[Finding]:
    """What stands in a file and is not used: a slip of the pen loses a column."""
    unread = sorted(set(named) - READ)
    if not unread:
        return []
    text = f"{source} has {', '.join(unread[:8])}{', ...' if len(unread) > 8 else ''}, which is not read"
    if ENDS.intersection(unread):
        text += ": call the ends of the task terminated, those by a time limit truncated"
    return [Finding(text, False)]


def _lengths(observations: Observations) -> list[int]:
    return [len(array) for array in observations.values()] if isinstance(observations, dict) else [len(observations)]


def _at_least_2d(array: np.ndarray) -> np.ndarray:
    return array[:, None] if array.ndim == 1 else array


def _rows(array: Any) -> FloatArray:
    whole = np.asarray(array, np.float64)
    return whole.reshape(len(whole), -1)


def _marks(array: Any, n: int, what: str) -> np.ndarray:
    """Truth values of all steps; a single one is about the last step."""
    if array is None:
        return np.zeros(n, dtype=bool)
    flat = np.nan_to_num(np.asarray(array, np.float64).reshape(-1))
    if len(flat) == n:
        return flat > 0
    if len(flat) == 1:
        return np.append(np.zeros(max(n - 1, 0), dtype=bool), flat > 0)[-n:] if n else np.zeros(0, dtype=bool)
    raise DataError(f"{what} has {len(flat)} entries for {n} steps: one for each step, or one about the last")


def _whole_numbers(array: Any, what: str) -> np.ndarray:
    flat = np.asarray(array, np.float64).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(flat))
    if len(bad):
        raise DataError(f"{what} is empty in {len(bad)} rows, first in row {bad[0]}: each row needs its number")
    return flat.astype(int)


def _time_runs_back(time: Any, number: Any, table: StepTable, source: str) -> list[Finding]:
    if time is None:
        return []
    clock = np.asarray(time, np.float64).reshape(-1)
    same = ~(table.terminated | table.truncated)[:-1]
    if number is not None:
        same &= np.diff(number) == 0
    back = np.flatnonzero(same & (np.diff(clock) <= 0))
    if not len(back):
        return []
    text = f"{source}: time runs back or stands still within an episode, first after row {back[0]}: sort the rows by time"
    return [Finding(text, True)]


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns ``obs_*``, ``action_*``, ``reward``, and what there is of ``next_obs_*``, ``terminated``, ``truncated``,
    ``episode``, ``time``."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a byte-order mark
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    if not header or _is_number(header[0]):
        raise DataError(f"{path} has no header: name its columns obs_0, ..., action_0, ..., reward, terminated, truncated")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise DataError(f"{path} parts its cells by semicolons or tabs: write commas, and points in numbers")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} names columns twice: {', '.join(twice)}")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{path}: line {number + 2} has {len(row)} cells, the header {len(header)}")
    columns = {
        name: np.array([_number(row[i], path, number + 2, name) for number, row in enumerate(rows)])
        for i, name in enumerate(header)
    }
    groups: dict[str, list[str]] = {}
    for name in header:
        groups.setdefault(_group(name), []).append(name)
    # columns are in the order of their numbers, whatever that of the file is
    return {
        group: np.stack([columns[name] for name in sorted(names, key=_by_number)], 1) if len(names) > 1 else columns[names[0]]
        for group, names in groups.items()
    }


def _group(name: str) -> str:
    """To which array a column belongs."""
    lower = name.lower()
    for array in ("next_observations", "observations", "actions"):
        for prefix in (array, *ALIASES[array]):
            if lower == prefix or lower.startswith((prefix + "_", prefix + "[")):
                return array
    return lower


def _by_number(name: str) -> tuple[int, ...]:
    """Numbers at the end come in their order; a name without one keeps its place, for sorting is stable."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (int(digits[-1]),) if digits else (0,)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int, column: str) -> float:
    text = cell.strip().lower()
    if text in TRUE or text in FALSE:
        return float(text in TRUE)
    if not text:
        return float("nan")
    if not _is_number(text):
        raise DataError(f"{path}: line {line} has {cell!r} in column {column!r}, which is no number")
    return float(text)


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
    changed = tuple(replace(each, actions=low + 0.5 * (each.actions + 1.0) * (high - low)) for each in episodes.episodes)
    return replace(episodes, episodes=changed)
