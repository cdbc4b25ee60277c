"""A study as data: one table of its runs, ``study.csv``, and one file of their curves, ``study.npz``.

While a study runs each run has a folder; ``pack`` turns the folders into a table. A folder at the place of a table's row hides
the row: it is newer. Curves are named by a hash of what they hold, so that a table never reads those of another run, and files
are replaced curves first, table second, folders last: whenever this is killed, every run is whole in one place or in both.
"""

import csv
import fnmatch
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile, is_zipfile

import filelock
import numpy as np

from sb3_dpi.compare.key import ALGORITHM_VERSION
from sb3_dpi.compare.record import (
    CURVES,
    EVALUATIONS,
    RECORD,
    CorruptRun,
    StoredRun,
    digest,
    parse_record,
    read_arrays,
    read_record,
    read_result,
    unreadable,
)
from sb3_dpi.compare.types import RunConfig, RunResult, Timing

if TYPE_CHECKING:
    import pandas as pd

TABLE = "study.csv"
TASKS = "tasks.yml"
UNFINISHED = ".unfinished"
SET_ASIDE = "set_aside"
_KEPT_APART = {UNFINISHED, SET_ASIDE}
_CONFIG = tuple(field.name for field in fields(RunConfig))
_TIMING = tuple(field.name for field in fields(Timing))
_OTHERS = ("versions", "provenance", "key", "configuration_key", "evaluations_sha256", "format", "imported")
# Texts as they are; all other cells are JSON
_TEXTS = {"folder", "curve", "algo", "env_id", "source", "label", "task", "device", "key", "configuration_key"}
_TEXTS |= {"evaluations_sha256"}


def find_files(out: Path, pattern: str) -> list[Path]:
    """Find files below a folder, in linked folders too, each folder once; those set aside are left out."""
    found, seen = [], set()
    for folder, inner, names in os.walk(out, followlinks=True):
        inner[:] = sorted(set(inner) - _KEPT_APART) if (real := os.path.realpath(folder)) not in seen else []
        found += [Path(folder, name) for name in fnmatch.filter(names, pattern)] if real not in seen else []
        seen.add(real)
    return sorted(found)


def find_runs(out: Path, name: str = RECORD) -> list[Path]:
    """Find the folders, ``out`` itself among them, that hold a record, or another file; those set aside are left out."""
    return [path.parent for path in find_files(out, name)]


def read_table(study: Path) -> list[StoredRun]:
    """Read all rows of a study's table, also those that a folder hides; none where there is no table."""
    runs, problems = _read_table(study)
    if problems:
        raise problems[0]
    return runs.copy()


def _read_table(study: Path) -> tuple[list[StoredRun], list[CorruptRun]]:
    path = study / TABLE
    return _read_rows(study, path.stat().st_mtime_ns) if path.is_file() else ([], [])


@lru_cache(maxsize=8)
def _read_rows(study: Path, _modified: int) -> tuple[list[StoredRun], list[CorruptRun]]:
    """Read a table row by row: a damaged one loses no other."""
    path, runs, problems = study / TABLE, list[StoredRun](), list[CorruptRun]()
    try:
        with path.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
            table = csv.DictReader(file, strict=True)
            while True:
                try:
                    runs.append(_parse_row(next(table), study))
                except StopIteration:
                    return runs, problems
                except CorruptRun as error:
                    problems.append(error)
                except csv.Error as error:
                    problems.append(CorruptRun(f"{path}: cannot be read up to line {table.line_num + 1} ({error})"))
    except (OSError, csv.Error) as error:
        raise unreadable(path, error) from error


def _parse_row(row: dict[str, str], study: Path) -> StoredRun:
    path = study / TABLE
    try:
        "".join(row.values()).encode()  # fails at bytes that are no text
        cells = {name: cell if name in _TEXTS else json.loads(cell) for name, cell in row.items() if cell or name in _TEXTS}
        record: dict[str, Any] = {name: cells[name] for name in _OTHERS if name in cells}
        record["config"] = {name: cells[name] for name in _CONFIG if name in cells}
        record["timing"] = {name: cells[name] for name in _TIMING if name in cells}
        return parse_record(record, study / cells["folder"], path, study, cells["curve"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptRun(f"{path}: the row of {row.get('folder')} cannot be read ({error!r})") from error


def _row(run: StoredRun, folder: str, curve: str) -> dict[str, str]:
    cells = {"folder": folder, **run.record["config"]}
    cells |= {ALGORITHM_VERSION: int(run.versions.get(ALGORITHM_VERSION, 0)) or None, **run.record["timing"]}
    cells |= {name: run.record[name] for name in _OTHERS if name in run.record} | {"curve": curve}
    return {
        name: cell if name in _TEXTS else json.dumps(cell, separators=(",", ":"))
        for name, cell in cells.items()
        if cell is not None
    }


def read_runs(out: Path) -> tuple[list[StoredRun], list[CorruptRun]]:
    """
    Read the records of all finished runs below a folder, those with folders and those in tables.

    :return: The runs in the order of their folders, and what cannot be read
    """
    runs: list[StoredRun] = []
    problems: list[CorruptRun] = []
    for place in [*find_files(out, RECORD), *find_files(out, TABLE)]:
        try:
            found, damaged = _read_table(place.parent) if place.name == TABLE else ([read_record(place.parent)], [])
            runs += [run for run in found if run.table is None or not (run.folder / RECORD).is_file()]
            problems += damaged
        except CorruptRun as error:
            problems.append(error)
    return sorted(runs, key=lambda run: run.folder.parts), problems


def read_all(out: Path) -> list[StoredRun]:
    """Read all finished runs below a folder; one that cannot be read is an error."""
    runs, problems = read_runs(out)
    if problems:
        raise problems[0]
    return runs


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Replace a file in one piece by what ``write`` writes into a binary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_run(run: StoredRun, record: Mapping[str, Any], folder: Path) -> None:
    """Give a run of a table files of its own; its record, with the hash of the new file, is written last."""
    arrays: dict[str, Any] = read_arrays(run)
    path = folder / EVALUATIONS
    replace_file(path, lambda file: np.savez_compressed(file, **arrays))
    written = {**record, "evaluations_sha256": sha256(path.read_bytes()).hexdigest()}
    replace_file(folder / RECORD, lambda file: file.write(json.dumps(written, indent=1).encode()))


def write_table(study: Path, runs: Mapping[Path, StoredRun]) -> None:
    """
    Write the table of a study: the curves, then the rows, each file in one piece.

    :param runs: All its runs by their places, which are below it; other rows that the table had are lost
    :raises CorruptRun: If the evaluations of one cannot be read; nothing is written then
    """
    curves: dict[str, Any] = {}
    rows = []
    for place, run in runs.items():
        arrays = read_arrays(run)
        name = digest(arrays)
        curves.update({f"{name}/{key}": array for key, array in arrays.items()})
        rows.append(_row(run, place.relative_to(study).as_posix(), name))
    # A run of before a column was there has an empty cell
    columns = ["folder", *_CONFIG, ALGORITHM_VERSION, *_TIMING, *_OTHERS, "curve"]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(study / CURVES, lambda file: np.savez_compressed(file, **curves))
    replace_file(study / TABLE, lambda file: file.write(stream.getvalue().encode()))


@contextmanager
def _alone(study: Path) -> Iterator[None]:
    """Refuse a study that somebody runs or packs."""
    locks = [*study.glob(f"{UNFINISHED}/*.lock"), study / ".pack.lock"]
    held = [filelock.FileLock(path) for path in locks]
    try:
        for lock in held:
            lock.acquire(timeout=0)
        yield
    except filelock.Timeout as error:
        raise ValueError(f"{study}: runs still go on here; pack it when they are finished") from error
    finally:
        for lock in held:
            lock.release(force=True)
        (study / ".pack.lock").unlink(missing_ok=True)


def pack(study: Path) -> int:
    """
    Turn the folders of a study's finished runs into one table. Models, logs and whatever else the table does not hold stay.

    :return: The number of runs in the table
    :raises ValueError: If runs go on, have no result, or there are none; nothing is changed then
    """
    begun = [path.relative_to(study).as_posix() for path in find_without_result(study)]
    if begun:
        raise ValueError(
            f"{study}: no result of {', '.join(begun)}; finish these runs with the command that began "
            "them, or give them up: move their logs elsewhere"
        )
    with _alone(study):
        runs = read_all(study)
        if inner := {run.table for run in runs} - {None, study}:
            raise ValueError(f"{study}: has studies of its own, {', '.join(sorted(map(str, inner)))}; pack each by itself")
        if not runs:
            raise ValueError(f"{study}: no finished runs to pack")
        for run in runs:
            if not run.folder.resolve().is_relative_to(study.resolve()):
                raise ValueError(f"{run.folder}: is a link; pack what it names by itself")
        for left in (left for name in (TABLE, CURVES, RECORD, EVALUATIONS) for left in study.rglob(f".{name}.*.tmp")):
            left.unlink()
        keys = {run.key for run in runs}
        for number, hidden in enumerate(run for run in read_table(study) if run.key not in keys):
            place = study / SET_ASIDE / hidden.folder.relative_to(study)
            write_run(hidden, hidden.record, place.with_name(f"{place.name}.row{number}"))
        if any(run.table is None for run in runs):
            write_table(study, {run.folder: run for run in runs})
        for run in runs:
            _clear(run, study)
    return len(runs)


def _clear(run: StoredRun, study: Path) -> None:
    """Remove what a table has of a run: its record, and its evaluations where the folder holds no more, such as models."""
    (run.folder / RECORD).unlink(missing_ok=True)
    path = run.folder / EVALUATIONS
    if list(run.folder.glob("*")) == [path] and sha256(path.read_bytes()).hexdigest() == run.record["evaluations_sha256"]:
        path.unlink()
    inside = run.folder.relative_to(study)
    for folder in (inside, *inside.parents)[:-1]:
        with suppress(OSError):  # not empty
            (study / folder).rmdir()


def studies(out: Path) -> list[Path]:
    """Find the studies in a folder: the folders below it that have tasks or a table; itself where there are none."""
    found = sorted({*find_runs(out, TASKS), *find_runs(out, TABLE)})
    return [folder for folder in found if not any(other in folder.parents for other in found)] or [out]


def check_apart(option: str, target: Path, read: Iterable[Path]) -> None:
    """Refuse to write into what is read, by whatever path it is named."""
    for path in read:
        if target.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{option} {target}: is in {path}, which is read; choose another folder")


def check_archive(paths: Sequence[Path], target: Path) -> None:
    """
    See that files and folders can be moved into an archive.

    :raises ValueError: If it lies in one of them, they are links or not beside or below it, or it is a file of another kind
    """
    check_apart("--archive", target, paths)
    for path in paths:
        if path.is_symlink() or not path.resolve().is_relative_to(target.resolve().parent):
            raise ValueError(f"--archive {target}: {path} is a link, or not below the archive's folder; nothing is changed")
    if target.exists() and not is_zipfile(target):
        raise ValueError(f"--archive {target}: is no zip file; choose another name")


def archive(paths: Sequence[Path], target: Path) -> int:
    """
    Move files into a zip archive, which is replaced in one piece before any of them is removed. Links stay where they are.

    :param paths: Files and folders beside or below the archive; their names in it are relative to its folder
    :return: The number of files moved
    :raises ValueError: If that cannot be, or the archive has something else by the name of one of them; nothing is changed
    """
    check_archive(paths, target)
    found = [file for path in paths for file in (path, *path.rglob("*")) if not file.is_symlink()]
    new = {file.resolve().relative_to(target.resolve().parent).as_posix(): file for file in sorted(found) if file.is_file()}

    def write(stream: Any) -> None:
        with ZipFile(stream, "w", ZIP_DEFLATED, compresslevel=9) as archived:
            if target.is_file():
                with ZipFile(target) as former:
                    for name in former.namelist():
                        if name in new and former.read(name) != new[name].read_bytes():
                            raise ValueError(f"--archive {target}: has another {name}; choose another name")
                        if name not in new:
                            archived.writestr(name, former.read(name))
            for name, file in new.items():
                archived.write(file, name)

    replace_file(target, write)
    for file in new.values():
        file.unlink()
    for folder in sorted((path.absolute() for path in found if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty: something has come since, or there is a link
            folder.rmdir()
    return len(new)


def find_without_result(out: Path) -> Iterator[Path]:
    """Find the log files of runs that were begun and have no result: they failed, were stopped or still go on."""
    packed = {run.folder for run in read_runs(out)[0]}
    for path in find_files(out, "*_*.log"):
        folder = path.with_suffix("")
        if path.stem.rpartition("_")[2].isdecimal() and not (folder / RECORD).is_file() and folder not in packed:
            yield path


def export_runs(out: Path, target: Path) -> int:
    """
    Put the finished runs of a comparison into a table without models and logs, beside what it has.

    :return: Their number
    :raises ValueError: If two different runs would have one place; nothing is changed then
    """
    runs = read_all(out)
    merged = {run.folder: run for run in read_all(target) if run.table in (None, target)}
    for run in runs:
        known = merged.setdefault(target / run.config.path, run)
        if known.key != run.key:
            raise ValueError(f"{run.folder} and {known.folder} are two different runs; copy them to folders of their own")
    if runs:
        if find_runs(target):
            pack(target)
            merged |= {run.folder: run for run in read_table(target)}
        write_table(target, {folder: merged[folder] for folder in sorted(merged)})
    return len({run.config.path for run in runs})


def load_study(path: str | Path) -> "pd.DataFrame":
    """
    Read a study, or all studies below a folder, for a notebook.

    :param path: A folder of runs, packed or not, or a study's ``study.csv``
    :return: A row an episode: ``study`` (the path of its folder below the given one, where there are several), ``algorithm``
        (or the label of its variant), ``task``, ``seed``, ``step`` (environment steps of the evaluation), ``episode``,
        ``return``, ``length`` and, where tasks tell it, ``success``
    :raises CorruptRun: If a run cannot be read
    :raises ValueError: If there is none
    """
    place = Path(path)
    place = place.parent if place.name == TABLE else place
    runs = read_all(place)
    if not runs:
        raise ValueError(f"{path}: no finished runs; give the folder of a comparison")
    results, homes = [read_result(run) for run in runs], [_home(run, place) for run in runs]
    frame = episodes(results).rename(columns={"name": "algorithm", "timesteps": "step"})
    if len(set(homes)) > 1:  # else runs of different settings would look alike
        frame["study"] = np.repeat(homes, [result.curve.results.size for result in results])
    columns = ("study", "algorithm", "task", "seed", "step", "episode", "return", "length", "success")
    return frame[[name for name in columns if name in frame]]


def _home(run: StoredRun, place: Path) -> str:
    """Find the study of a run, as a path below a folder; that itself where it cannot be told."""
    inside = Path(run.config.path).parts
    is_standing = run.folder.parts[-len(inside) :] == inside
    home = run.table or (run.folder.parents[len(inside) - 1] if is_standing else place)
    return home.relative_to(place).as_posix() if home.is_relative_to(place) else "."


def episodes(results: Sequence[RunResult]) -> "pd.DataFrame":
    """List all evaluation episodes, a row an episode; ``success`` is there where a run tells it."""
    import pandas as pd

    told, frames = any(result.curve.successes is not None for result in results), []
    for result in results:
        config, curve = result.config, result.curve
        number, width = curve.results.shape
        columns: dict[str, Any] = {"name": config.name, "algo": config.algo, "env": config.env_id, "seed": config.seed}
        columns |= {"timesteps": np.repeat(curve.timesteps, width), "episode": np.tile(np.arange(width), number)}
        columns |= {"return": curve.results.ravel(), "length": curve.lengths.ravel()}
        if told:
            columns["success"] = pd.array(
                [None] * curve.results.size if curve.successes is None else curve.successes.ravel().astype(int), dtype="Int64"
            )
        frames.append(pd.DataFrame({**columns, "task": config.task_name}))
    return pd.concat(frames, ignore_index=True)
