"""The record of a finished run: what identifies it, what it ran with, how long it took, and where its evaluations are."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import numpy.typing as npt

from sb3_dpi.compare.key import ALGORITHM_VERSION, configuration_key, provenance, run_key, run_versions
from sb3_dpi.compare.types import Curve, RunConfig, RunResult, Timing

RECORD = "run.json"
EVALUATIONS = "evaluations.npz"
CURVES = "study.npz"
FORMAT = 1
DAMAGED = (OSError, ValueError, KeyError, BadZipFile, EOFError, NotImplementedError, ZlibError)
"""What reading a damaged archive of arrays raises"""
Arrays = dict[str, npt.NDArray[Any]]
"""The evaluations of a run by the names of RL Zoo's ``evaluations.npz``"""


class CorruptRun(ValueError):
    """A finished run cannot be read; the message names the file."""


def unreadable(path: Path, error: Exception) -> CorruptRun:
    """Name a file that cannot be read, and why."""
    return CorruptRun(f"{path}: cannot be read ({type(error).__name__}: {error})")


def make_record(config: RunConfig, timing: Timing, folder: Path) -> dict[str, Any]:
    """Describe a finished run, whose evaluations are in a folder: the content of ``run.json``."""
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "key": run_key(config),
        "configuration_key": configuration_key(config),
        "versions": run_versions(config.algo),
        "provenance": provenance(),
        "timing": asdict(timing),
        "evaluations_sha256": sha256((folder / EVALUATIONS).read_bytes()).hexdigest(),
    }


@dataclass(frozen=True)
class StoredRun:
    """A finished run on disk."""

    folder: Path
    """Its place; of a run in a study's table the one that it had, which need not exist"""
    record: Mapping[str, Any]
    """As ``run.json`` has it"""
    config: RunConfig
    key: str
    configuration_key: str
    """What identifies its configuration, whatever the versions"""
    versions: dict[str, str]
    timing: Timing
    table: Path | None = None
    """Folder of the study whose table holds it, None where it has files of its own"""
    curve: str = ""
    """In a table the name of its evaluations, a hash of their content"""
    imported: bool = False
    """Whether it is a copy of a stored baseline, matched by configuration, seed and version of the algorithm alone"""

    def stands_in_for(self, config: RunConfig) -> bool:
        """
        Tell whether a stored baseline may be read instead of a run: configuration, seed and version of the algorithm are the
        same; the other versions may differ.
        """
        version = run_versions(config.algo).get(ALGORITHM_VERSION)
        return self.configuration_key == configuration_key(config) and self.versions.get(ALGORITHM_VERSION) == version


def parse_record(record: Any, folder: Path, where: Path, table: Path | None = None, curve: str = "") -> StoredRun:
    """
    Check a record: the content of ``run.json``, or of a table's row.

    :param folder: Place of the run
    :param where: The file that a message names
    :param table: Folder of the study whose table holds the run, if one does
    :param curve: In a table the name of its evaluations
    :raises CorruptRun: If something is missing or of a newer format
    """
    try:
        if record["format"] > FORMAT:
            raise CorruptRun(f"{where}: written by a newer version of this package")
        config, timing, versions = RunConfig(**record["config"]), Timing(**record["timing"]), record["versions"]
        key, same, imported = record["key"], record["configuration_key"], bool(record.get("imported"))
        curve = curve if table else record["evaluations_sha256"]
        return StoredRun(folder, record, config, key, same, versions, timing, table, curve, imported)
    except CorruptRun:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(where, error) from error


def read_record(folder: Path) -> StoredRun:
    """Read the record of a finished run."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return parse_record(record, folder, path)


def digest(arrays: Arrays) -> str:
    """Name evaluations by a hash of their content."""
    found = sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


@lru_cache(maxsize=4)
def _table_arrays(path: Path, _modified: int) -> dict[str, Arrays]:
    """Read all evaluations of a study at once: opening the file for each run would take most of a report's time."""
    found: dict[str, Arrays] = {}
    with np.load(path) as stored:
        for name in stored.files:
            curve, _, array = name.partition("/")
            with suppress(*DAMAGED):  # the hash of that run will tell
                found.setdefault(curve, {})[array] = stored[name]
    return found


def read_arrays(run: StoredRun) -> Arrays:
    """Read the evaluations of a finished run."""
    path = run.folder / EVALUATIONS if run.table is None else run.table / CURVES
    try:
        if run.table is None:
            arrays, content = {}, path.read_bytes()
            same = sha256(content).hexdigest() == run.curve
            if same:
                with np.load(BytesIO(content)) as stored:
                    arrays = dict(stored)
        else:
            arrays = _table_arrays(path, path.stat().st_mtime_ns).get(run.curve, {})
            same = digest(arrays) == run.curve
    except DAMAGED as error:
        raise unreadable(path, error) from error
    if not same:
        raise CorruptRun(f"{path}: not what the run wrote, {run.config} (its hash differs from that in its record)")
    return arrays


def read_result(run: StoredRun, config: RunConfig | None = None) -> RunResult:
    """Read a finished run, with the present names of ``config`` where it is given."""
    arrays = dict(read_arrays(run))
    try:
        curve = Curve(lengths=arrays.pop("ep_lengths"), **arrays)
    except (KeyError, TypeError) as error:
        raise CorruptRun(f"{run.folder}: its evaluations lack an array ({error})") from error
    return RunResult(config or run.config, curve, run.timing, run.versions, run.imported)
