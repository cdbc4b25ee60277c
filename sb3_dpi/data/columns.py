"""Columns of csv files, and which of them are one array."""

import csv
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_dpi.data.episodes import DataError

ALIASES = {
    "observations": ("obs", "observation"),
    "next_observations": ("next_obs", "next_observation"),
    "actions": ("acts", "action"),
    "rewards": ("rews", "reward"),
    "terminated": ("terminations", "terminals", "terminal"),
    "truncated": ("truncations", "timeouts", "timeout"),
    "episode": ("episodes", "episode_id", "trajectory"),
}
"""Names of arrays in npz files and of columns: ours, and those of D4RL, Minari and imitation."""
WIDE = ("next_observations", "observations", "actions")
"""Arrays that have a column for each number."""
TRUE, FALSE = ("true", "yes"), ("false", "no")
NUMBERED = re.compile(r"(?P<stem>.*?)[_\[(]?(?P<numbers>\d+(?:[\]\[)(_, ]+\d+)*)[\])]?")
"""``obs_0``, ``obs[0]``, ``obs_joint_0``, of matrices ``obs_0_1``"""

MOST_GAPS = 1000
"""Missing columns that are looked for by name."""

Key = tuple[int, ...] | str
"""Which number of its array a column is."""


@dataclass(frozen=True)
class Column:
    """A column of several that are one array."""

    name: str
    """as in the file"""
    rest: str
    """its name without that of the array"""

    @property
    def numbered(self) -> tuple[str, tuple[int, ...]] | None:
        """What stands before its numbers, and these; None where it has none."""
        found = NUMBERED.fullmatch(self.rest)
        return found and (found["stem"], tuple(map(int, re.findall(r"\d+", found["numbers"]))))

    def called(self, place: tuple[int, ...]) -> str:
        """
        Name another column alike.

        :param place: its numbers
        :return: as it would stand in the file
        """
        found = NUMBERED.fullmatch(self.rest)
        assert found is not None
        head = len(self.name) - len(self.rest)
        begin, end = head + found.start("numbers"), head + found.end("numbers")
        return self.name[:begin] + "_".join(map(str, place)) + self.name[end:]


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """
    Read columns ``obs_*``, ``action_*``, ``reward``, and what there is of ``next_obs_*``, ``terminated``, ``truncated``,
    ``episode``, ``time``.

    :param path: of the file
    :return: arrays by their names
    :raises DataError: if it is no such table
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a byte-order mark
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    _check_header(header, path)
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} cells, the header {len(header)}")
    cells = {
        name: np.array([_number(row[i], path, line, name) for line, row in rows], np.float64) for i, name in enumerate(header)
    }
    wide: dict[str, list[Column]] = {}
    arrays = {}
    for name in header:
        array, rest = _array_of(name)
        if array in WIDE and "." not in name:
            wide.setdefault(array, []).append(Column(name, rest))
        else:
            arrays[name] = cells[name]
    order = {array: _in_order(columns, path) for array, columns in wide.items()}
    if "next_observations" in order and "observations" in order:
        order["next_observations"] = _alike(order["observations"], order["next_observations"], path)
    _check_first(order, path)
    for array, names in order.items():
        arrays[array] = np.stack([cells[name] for name in names.values()], 1)
    return arrays


def _check_header(header: Sequence[str], path: Path) -> None:
    if not header or _is_number(header[0]):
        raise DataError(f"{path} has no header: name its columns obs_0, ..., action_0, ..., reward, terminated, truncated")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise DataError(f"{path} parts its cells by semicolons or tabs: write commas, and points in numbers")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} names columns twice: {', '.join(twice)}")


def _array_of(name: str) -> tuple[str, str]:
    """To which array a column belongs, and what of its name is beside the array's."""
    lower = name.lower()
    for array in WIDE:
        for prefix in (array, *ALIASES[array]):
            if lower == prefix or lower.startswith((prefix + "_", prefix + "[", prefix + "(")):
                return array, lower[len(prefix) :]
    return lower, ""


def _in_order(columns: Sequence[Column], path: Path) -> dict[Key, str]:
    """Names by their numbers and in that order; columns that have names instead stay as they are in the file."""
    numbered = [column.numbered for column in columns]
    stems = {None if found is None else found[0] for found in numbered}
    keys: list[Key] = [column.rest for column in columns]
    if len(stems) == 1 and None not in stems:
        keys = [found[1] for found in numbered if found is not None]
    elif "" in stems:
        odd = [column.name for column, found in zip(columns, numbered, strict=True) if found is None or found[0]]
        raise DataError(f"{path} has numbered columns beside {_named(odd)}: number all of these, or give all of them names")
    names: dict[Key, str] = {}
    for key, column in zip(keys, columns, strict=True):
        if key in names:
            raise DataError(f"{path} has {names[key]} and {column.name}, which mean the same: keep one of them")
        names[key] = column.name
    places = [key for key in keys if isinstance(key, tuple)]
    if not places:
        return names
    if len(set(map(len, places))) > 1:
        raise DataError(f"{path}: {_named(names.values())} have one number and two: give all of them as many")
    _check_gaps(columns, places, path)
    return {key: names[key] for key in sorted(places)}


def _check_gaps(columns: Sequence[Column], places: Sequence[tuple[int, ...]], path: Path) -> None:
    # some count from one
    ranges = [range(min(min(axis), 1), max(axis) + 1) for axis in zip(*places, strict=True)]
    if math.prod(map(len, ranges)) > MOST_GAPS + len(places):
        missing = ["most of those with lower numbers"]
    else:
        missing = [columns[0].called(place) for place in itertools.product(*ranges) if place not in places]
    if missing:
        raise DataError(
            f"{path} has {_named(column.name for column in columns)} but not {_named(missing)}: write the missing columns, or "
            "number them without gaps"
        )


def _alike(now: dict[Key, str], later: dict[Key, str], path: Path) -> dict[Key, str]:
    """What came next in the order of what was seen."""
    here, there = ([names[key] for key in names if key not in other] for names, other in ((now, later), (later, now)))
    if here or there:
        lacks = [
            f"{_named(names)} without {kind}" for names, kind in ((here, "their next_obs"), (there, "their obs")) if names
        ]
        raise DataError(
            f"{path} has {' and '.join(lacks)}: each number that is observed needs both, or none of them a next_obs where the "
            "next row shows it"
        )
    return {key: later[key] for key in now}


def _check_first(order: dict[str, dict[Key, str]], path: Path) -> None:
    """Where one array counts from one and the other from zero, a column was lost."""
    first = {array: next(iter(names.items())) for array, names in order.items()}
    starts = {array: (key[0], name) for array, (key, name) in first.items() if isinstance(key, tuple)}
    if "observations" in starts and "actions" in starts and starts["observations"][0] != starts["actions"][0]:
        (low, first_name), (_, other) = sorted((starts["observations"], starts["actions"]))
        raise DataError(
            f"{path} counts from {low} in {first_name} but from 1 in {other}: write the column 0 that is missing, or count "
            "alike"
        )


def _named(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


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
