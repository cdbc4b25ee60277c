"""Where runs are kept: a folder per run, found again by content.

A run is written into ``<out>/.unfinished`` and moved to its place in one piece when its record is complete: what stands in its
place is finished. The record, ``run.json``, holds the run's configuration, key, versions, seconds and the hash of its
evaluations. Nothing finished is ever deleted: a finished run of another configuration and a folder that cannot be read are set
aside under ``<out>/set_aside``, from where the first is found again when its configuration comes back.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import filelock
import numpy as np

from sb3_dpi.compare.key import (
    ALGORITHM_VERSION,
    configuration_key,
    in_present_words,
    provenance,
    run_key,
    run_versions,
    stored_versions,
)
from sb3_dpi.compare.types import Curve, RunConfig, RunResult, Timing

RECORD = "run.json"
EVALUATIONS = "evaluations.npz"
UNFINISHED = ".unfinished"
SET_ASIDE = "set_aside"
FORMAT = 1
SECONDS_TO_PLACE = 10.0
"""Longer than a copy takes; who holds the lock of a run for longer is training it"""


class CorruptRun(ValueError):
    """A finished run cannot be read; the message names the file."""


def make_record(config: RunConfig, timing: Timing, folder: Path) -> dict[str, Any]:
    """
    Describe a finished run.

    :param config: The run
    :param timing: Its seconds
    :param folder: Where its evaluations are
    :return: The content of ``run.json``
    """
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
    config: RunConfig
    key: str
    configuration_key: str
    versions: dict[str, str]
    timing: Timing
    evaluations_sha256: str
    imported: bool = False
    """Whether it is a copy of a stored baseline, matched by configuration, seed and version of the algorithm alone"""

    def stands_in_for(self, config: RunConfig) -> bool:
        """
        Tell whether a stored baseline may be read instead of a run.

        :param config: The run
        :return: Whether configuration, seed and version of the algorithm are the same; the other versions may differ
        """
        version = run_versions(config.algo).get(ALGORITHM_VERSION)
        return self.configuration_key == configuration_key(config) and self.versions.get(ALGORITHM_VERSION) == version


def read_record(folder: Path) -> StoredRun:
    """
    Read the record of a finished run.

    :param folder: Its folder
    :return: The record
    :raises CorruptRun: If it cannot be read or is of a newer format
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] > FORMAT:
            raise CorruptRun(f"{path}: written by a newer version of this package")
        config, versions = RunConfig(**record["config"]), stored_versions(record["versions"])
        present = in_present_words(config)
        return StoredRun(
            folder=folder,
            config=config,
            # Of an old record the key holds the hash of all sources, or words that have changed since
            key=record["key"] if (versions, present) == (record["versions"], config) else run_key(present, versions),
            configuration_key=configuration_key(present),
            versions=versions,
            timing=Timing(**record["timing"]),
            evaluations_sha256=record["evaluations_sha256"],
            imported=record.get("imported", False),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CorruptRun):
            raise
        raise CorruptRun(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def read_result(run: StoredRun, config: RunConfig | None = None) -> RunResult:
    """
    Read the evaluations of a finished run.

    :param run: Its record
    :param config: The configuration to give the result, with its present names; that of the record by default
    :return: The result
    :raises CorruptRun: If the evaluations are missing or not what was written
    """
    path = run.folder / EVALUATIONS
    try:
        if sha256(path.read_bytes()).hexdigest() != run.evaluations_sha256:
            raise CorruptRun(f"{path}: not what the run wrote (its hash differs from that in {RECORD})")
        with np.load(path) as stored:
            arrays = dict(stored)
        curve = Curve(lengths=arrays.pop("ep_lengths"), **arrays)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        if isinstance(error, CorruptRun):
            raise
        raise CorruptRun(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    return RunResult(config or run.config, curve, run.timing, run.versions, run.imported)


def find_runs(out: Path) -> Iterator[Path]:
    """
    Find the folders of the finished runs of a comparison.

    :param out: Folder of the comparison
    :return: Folders that hold a record, in the order of their names; those set aside are left out
    """
    for root, folders, files in os.walk(out):
        if RECORD in files:
            folders.clear()
            yield Path(root)
        folders[:] = sorted(name for name in folders if name not in (UNFINISHED, SET_ASIDE))


def find_without_result(out: Path) -> Iterator[Path]:
    """
    Find the runs of a comparison that were begun and have no result: they failed, were stopped or still go on.

    :param out: Folder of the comparison
    :return: The log file of each, in the order of their names; baselines have none
    """
    for path in sorted(out.rglob("*_*.log")):
        inside = path.relative_to(out).parts
        begun = path.stem.rpartition("_")[2].isdecimal() and not {UNFINISHED, SET_ASIDE} & set(inside)
        if begun and not (path.with_suffix("") / RECORD).is_file():
            yield path


@dataclass
class Store:
    """
    The finished runs of a comparison, and baselines that it may read instead of running them.

    :param out: Folder of the comparison
    :param baselines: Folders of stored baselines
    """

    out: Path
    baselines: Sequence[Path] = ()
    warnings: list[str] = field(default_factory=list)
    """What was set aside or differs, in words"""

    def __post_init__(self) -> None:
        self._by_key: dict[str, Path] = {}
        self._imported: dict[str, list[StoredRun]] = {}
        self._locks: dict[Path, filelock.BaseFileLock] = {}
        for folder in [*find_runs(self.out / SET_ASIDE), *find_runs(self.out)]:
            try:
                self._by_key[read_record(folder).key] = folder
            except CorruptRun:
                continue
        for root in self.baselines:
            for folder in find_runs(root):
                try:
                    run = replace(read_record(folder), imported=True)
                except CorruptRun as error:
                    self.warnings.append(f"{error}; this stored baseline is passed over")
                else:
                    self._imported.setdefault(run.configuration_key, []).append(run)

    def folder(self, config: RunConfig) -> Path:
        """
        Find the place of a run.

        :param config: The run
        :return: Its folder, whether it exists or not
        """
        return self.out / config.path

    def log(self, config: RunConfig) -> Path:
        """
        Find the log file of a run.

        :param config: The run
        :return: Beside its folder, so that it outlives a run that failed
        """
        folder = self.folder(config)
        return folder.with_name(f"{folder.name}.log")

    def unfinished(self, config: RunConfig) -> Path:
        """
        Find where a run is written while it goes on.

        :param config: The run
        :return: A folder on the same file system as its place
        """
        return self.out / UNFINISHED / config.path.replace("/", "__")

    def load(self, config: RunConfig) -> RunResult | None:
        """
        Read a finished run, from its place, from elsewhere in the comparison or from the baselines.

        :param config: The run
        :return: Its result, or None if it has to be run; a folder that cannot be read is set aside first
        """
        folder = self.folder(config)
        try:
            if self._stands(config):
                return self._with_warning(read_result(read_record(folder), config))
        except CorruptRun as error:
            aside = self.set_aside(folder)
            self.warnings.append(f"{error}; moved to {aside}, and the run is done again")
        found = self._by_key.get(run_key(config))
        if found is not None and found != folder and (found / RECORD).is_file():
            try:
                result = read_result(read_record(found), config)
            except CorruptRun:
                pass
            else:
                return result if self._place(found, config) else None
        imported = self._baseline(config)
        if imported is None:
            return None
        try:
            result = replace(read_result(imported, config), imported=True)
        except CorruptRun as error:
            self.warnings.append(f"{error}; this stored baseline is passed over, and the run is done here")
            return None
        return self._with_warning(result) if self._place(imported.folder, config, imported=True) else None

    def _baseline(self, config: RunConfig) -> StoredRun | None:
        """Find the first stored baseline of a run; one of another version of its algorithm is named and passed over."""
        candidates = self._imported.get(configuration_key(config), [])
        for run in candidates:
            if run.stands_in_for(config):
                return run
        if candidates:
            found, present = (
                versions.get(ALGORITHM_VERSION, "absent") for versions in (candidates[0].versions, run_versions(config.algo))
            )
            self.warnings.append(
                f"{config}: the stored baseline ran with {ALGORITHM_VERSION} {found} (here {present}); it is passed over"
            )
        return None

    def _with_warning(self, result: RunResult) -> RunResult:
        differences = version_differences(result.versions, run_versions(result.config.algo)) if result.imported else ""
        if differences:
            self.warnings.append(f"{result.config}: the stored baseline ran with {differences}")
        return result

    def lock(self, config: RunConfig) -> filelock.BaseFileLock:
        """
        Find the lock of whoever writes a run: two comparisons may share a folder.

        :param config: The run
        :return: The same object at every call, which can be entered again by who holds it
        """
        unfinished = self.unfinished(config)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        path = unfinished.with_name(f"{unfinished.name}.lock")
        return self._locks.setdefault(path, filelock.FileLock(path))

    def _place(self, found: Path, config: RunConfig, imported: bool = False) -> bool:
        """Give a run that was found elsewhere its place; False if another process is busy with it."""
        copy = self.unfinished(config)
        try:
            with self.lock(config).acquire(timeout=SECONDS_TO_PLACE):
                if self._stands(config):
                    return True
                shutil.rmtree(copy, ignore_errors=True)
                if found.is_relative_to(self.out / SET_ASIDE):
                    found.rename(copy)
                else:
                    shutil.copytree(found, copy)
                record = json.loads((copy / RECORD).read_text(encoding="utf-8"))
                present = {**record, "config": config.to_dict(), **({"imported": True} if imported else {})}
                if present != record:
                    (copy / RECORD).write_text(json.dumps(present, indent=1), encoding="utf-8")
                self.commit(config)
        except filelock.Timeout:
            return False
        return True

    def _stands(self, config: RunConfig) -> bool:
        """Tell whether the place of a run holds it."""
        folder = self.folder(config)
        if not (folder / RECORD).is_file():
            return False
        run = read_record(folder)
        return run.key == run_key(config) or (run.imported and run.stands_in_for(config))

    def commit(self, config: RunConfig) -> None:
        """
        Move a run that has just been completed to its place.

        :param config: The run
        :raises CorruptRun: If it is not complete
        """
        source, folder = self.unfinished(config), self.folder(config)
        run = read_record(source)
        if folder.exists():
            self.set_aside(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        source.replace(folder)
        self._by_key[run.key] = folder

    def set_aside(self, folder: Path) -> Path:
        """
        Move a folder out of the way, keeping it.

        :param folder: The folder of a run
        :return: Where it is now
        """
        target = self.out / SET_ASIDE / folder.relative_to(self.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while (aside := target.with_name(f"{target.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        for key, known in list(self._by_key.items()):
            if known == folder:
                self._by_key[key] = aside
        return aside


def version_differences(stored: dict[str, str], present: dict[str, str]) -> str:
    """
    Put into words how the versions of two runs differ.

    :param stored: Versions of the one
    :param present: Versions of the other
    :return: ``"gymnasium 1.2.0 (here 1.4.0)"`` and the like, empty where nothing differs
    """
    names = sorted(set(stored) | set(present))
    return ", ".join(
        f"{name} {stored.get(name, 'absent')[:12]} (here {present.get(name, 'absent')[:12]})"
        for name in names
        if stored.get(name) != present.get(name)
    )


def export_runs(out: Path, target: Path) -> int:
    """
    Copy the finished runs of a comparison without models and logs: what a report needs, small enough for a repository.

    :param out: Folder of the comparison
    :param target: Folder to copy into, for instance one of stored baselines; what it holds already is replaced by newer runs
    :return: The number of runs copied
    """
    folders = list(find_runs(out))
    for folder in folders:
        run = read_record(folder)
        read_result(run)
        destination = target / run.config.path
        settings = Path(run.config.env_name)
        (destination / settings).mkdir(parents=True, exist_ok=True)
        for name in (EVALUATIONS, settings / "config.yml", settings / "args.yml", RECORD):
            shutil.copyfile(folder / name, destination / name)
    return len(folders)
