"""Where runs are kept: a folder per run while they are made, found again by content.

A run is written into ``<out>/.unfinished`` and moved to its place in one piece when its record is complete: what stands in its
place is finished. The record, ``run.json``, holds the run's configuration, key, versions, seconds and the hash of its
evaluations; a study that is whole may hold its runs in a table instead (``study``). Nothing finished is ever deleted: a
finished run of another configuration and a folder that cannot be read are set aside under ``<out>/set_aside``, from where the
first is found again when its configuration comes back.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import filelock

from sb3_dpi.compare.key import ALGORITHM_VERSION, configuration_key, run_key, run_versions
from sb3_dpi.compare.record import RECORD, CorruptRun, StoredRun, read_record, read_result
from sb3_dpi.compare.study import SET_ASIDE, UNFINISHED, read_runs, read_table, write_run
from sb3_dpi.compare.types import RunConfig, RunResult

SECONDS_TO_PLACE = 10.0
"""Longer than a copy takes; who holds the lock of a run for longer is training it"""


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
        self._by_key: dict[str, StoredRun] = {}
        self._imported: dict[str, list[StoredRun]] = {}
        self._locks: dict[Path, filelock.BaseFileLock] = {}
        # A damaged table holds many runs: nothing is done again before somebody has looked at it
        rows = read_table(self.out)
        shown, _ = read_runs(self.out)
        for run in [*read_runs(self.out / SET_ASIDE)[0], *rows, *shown]:
            self._by_key[run.key] = run
        for root in self.baselines:
            runs, problems = read_runs(root)
            self.warnings += [f"{problem}; this stored baseline is passed over" for problem in problems]
            for run in runs:
                self._imported.setdefault(run.configuration_key, []).append(replace(run, imported=True))

    def folder(self, config: RunConfig) -> Path:
        """The place of a run, whether it exists or not."""
        return self.out / config.path

    def log(self, config: RunConfig) -> Path:
        """The log file of a run, beside its folder, so that it outlives a run that failed."""
        folder = self.folder(config)
        return folder.with_name(f"{folder.name}.log")

    def unfinished(self, config: RunConfig) -> Path:
        """Where a run is written while it goes on, on the same file system as its place."""
        return self.out / UNFINISHED / config.path.replace("/", "__")

    def load(self, config: RunConfig) -> RunResult | None:
        """
        Read a finished run, from its place, from elsewhere in the comparison or from the baselines.

        :return: Its result, or None if it has to be run; a folder that cannot be read is set aside first
        """
        folder = self.folder(config)
        try:
            if (standing := self._standing(config)) is not None:
                return self._with_warning(read_result(standing, config))
        except CorruptRun as error:
            if not folder.exists():
                raise
            aside = self.set_aside(folder)
            self.warnings.append(f"{error}; moved to {aside}, and the run is done again")
        for found in self._elsewhere(config):
            try:
                result = read_result(found, config)
            except CorruptRun as error:
                self.warnings += [f"{error}; this stored baseline is passed over"] if found.imported else []
            else:
                return self._with_warning(result) if self._place(found, config) else None
        return None

    def _elsewhere(self, config: RunConfig) -> Iterator[StoredRun]:
        """Find a run elsewhere in the comparison, then baselines; those of another version of its algorithm are named."""
        found, baselines = self._by_key.get(run_key(config)), self._imported.get(configuration_key(config), [])
        # A row of a table may stand behind a folder that has taken its place
        if found is not None and (found.table or (found.folder != self.folder(config) and (found.folder / RECORD).is_file())):
            yield found
        same = [run for run in baselines if run.stands_in_for(config)]
        yield from same
        if baselines and not same:
            then, now = (of.get(ALGORITHM_VERSION, "absent") for of in (baselines[0].versions, run_versions(config.algo)))
            words = f"{ALGORITHM_VERSION} {then} (here {now}); it is passed over"
            self.warnings.append(f"{config}: the stored baseline ran with {words}")

    def _with_warning(self, result: RunResult) -> RunResult:
        differences = version_differences(result.versions, run_versions(result.config.algo)) if result.imported else ""
        if differences:
            self.warnings.append(f"{result.config}: the stored baseline ran with {differences}")
        return result

    def lock(self, config: RunConfig) -> filelock.BaseFileLock:
        """The lock of whoever writes a run, for two comparisons may share a folder; the same object at every call."""
        unfinished = self.unfinished(config)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        path = unfinished.with_name(f"{unfinished.name}.lock")
        return self._locks.setdefault(path, filelock.FileLock(path))

    def _place(self, found: StoredRun, config: RunConfig) -> bool:
        """Give a run that was found elsewhere its place; False if another process is busy with it."""
        copy = self.unfinished(config)
        record = {**found.record, "config": config.to_dict(), **({"imported": True} if found.imported else {})}
        try:
            with self.lock(config).acquire(timeout=SECONDS_TO_PLACE):
                if self._standing(config) is not None:
                    return True
                shutil.rmtree(copy, ignore_errors=True)
                if found.table:
                    write_run(found, record, copy)
                elif found.folder.is_relative_to(self.out / SET_ASIDE):
                    found.folder.rename(copy)
                else:
                    shutil.copytree(found.folder, copy)
                if not found.table and record != found.record:
                    (copy / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
                self.commit(config)
        except filelock.Timeout:
            return False
        return True

    def _standing(self, config: RunConfig) -> StoredRun | None:
        """Find a run in its place, which is its folder, else its row in the table."""
        folder = self.folder(config)
        if (folder / RECORD).is_file():
            run: StoredRun | None = read_record(folder)
        else:
            run = next((row for row in read_table(self.out) if row.folder == folder), None)
        same = run is not None and (run.key == run_key(config) or (run.imported and run.stands_in_for(config)))
        return run if same else None

    def commit(self, config: RunConfig) -> None:
        """Move a run that has just been completed to its place."""
        source, folder = self.unfinished(config), self.folder(config)
        run = read_record(source)
        if folder.exists():
            self.set_aside(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        source.replace(folder)
        self._by_key[run.key] = replace(run, folder=folder)

    def set_aside(self, folder: Path) -> Path:
        """Move the folder of a run out of the way, keeping it; returns where it is now."""
        target = self.out / SET_ASIDE / folder.relative_to(self.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        numbered = (target.with_name(f"{target.name}.{number}") for number in count(1))
        aside = next(path for path in numbered if not path.exists())
        folder.rename(aside)
        for key, known in list(self._by_key.items()):
            if known.folder == folder and not known.table:
                self._by_key[key] = replace(known, folder=aside)
        return aside


def version_differences(stored: dict[str, str], present: dict[str, str]) -> str:
    """Put into words how versions differ: ``"gymnasium 1.2.0 (here 1.4.0)"``, empty where they do not."""
    names = sorted(set(stored) | set(present))
    return ", ".join(
        f"{name} {stored.get(name, 'absent')[:12]} (here {present.get(name, 'absent')[:12]})"
        for name in names
        if stored.get(name) != present.get(name)
    )
