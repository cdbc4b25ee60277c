"""Run many configurations: those that are finished are read, the others executed, with the progress of all of them shown."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import filelock
from rich.console import Console

from sb3_dpi.compare.display import Display
from sb3_dpi.compare.engines import Engine, RunFailed
from sb3_dpi.compare.key import run_key
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import UNFINISHED
from sb3_dpi.compare.types import RunConfig, RunResult

__all__ = ["RunFailed", "run_all"]


def _by_key(configs: Sequence[RunConfig]) -> dict[str, list[RunConfig]]:
    """Group the runs that are the same; they may have different names."""
    groups: dict[str, list[RunConfig]] = {}
    folders: dict[str, tuple[str, str]] = {}
    for config in configs:
        key = run_key(config)
        other = folders.setdefault(config.path, (str(config), key))
        if other != (str(config), key):
            raise ValueError(
                f"{other[0]}; {config}: two different runs have the folder {config.path}. Give variants of an algorithm "
                "different labels, and variants of an environment different task names."
            )
        groups.setdefault(key, []).append(config)
    return groups


def _print_warnings(store: Store, display: Display) -> None:
    while store.warnings:
        display.note(f"Warning: {store.warnings.pop(0)}")


def _execute(pending: Sequence[RunConfig], store: Store, engine: Engine, display: Display) -> Iterator[RunResult | RunFailed]:
    with closing(engine.run(pending, store, display.update)) as ends:
        for ended in ends:
            config = ended.config
            nothing = RunFailed(config, f"no result in {store.folder(config)}", store.log(config))
            end = ended.failure or store.load(config) or nothing
            display.finish(config, end)
            _print_warnings(store, display)
            yield end


def _goes_on_elsewhere(config: RunConfig, store: Store) -> bool:
    try:
        with store.lock(config).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


@contextmanager
def _in_order(pending: Sequence[RunConfig], store: Store, display: Display) -> Iterator[Sequence[RunConfig]]:
    """
    Let other comparisons in the same folder know of this one, from before its first run has begun, and keep out of their way:
    who comes to what another one is busy with waits for it, so that this comes last and the rest from its end.
    """
    mark = filelock.FileLock(store.out / UNFINISHED / ".comparison.lock")
    (store.out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    with suppress(filelock.Timeout):
        mark.acquire(timeout=0)
    busy = [config for config in pending if _goes_on_elsewhere(config, store)]
    try:
        if mark.is_locked and not busy:
            yield pending
        else:
            display.note(f"Another comparison is busy in {store.out}: the results of the runs that it does are waited for")
            yield [*(config for config in reversed(pending) if config not in busy), *busy]
    finally:
        mark.release()


def run_all(
    configs: Sequence[RunConfig],
    store: Store,
    engine: Engine,
    console: Console | None = None,
    check: Callable[[Sequence[RunConfig]], object] = lambda pending: None,
) -> tuple[list[RunResult], list[RunFailed]]:
    """
    Run all configurations and wait for them; finished runs are reused, half-written ones done again.

    :param configs: The runs; one that occurs twice is run once
    :param store: Where the finished ones are and the others go
    :param engine: What executes them
    :param console: Where to show the progress and the store's warnings, stdout by default
    :param check: Called before the first run with those that are not finished; what it raises is raised
    :return: The results in the order of ``configs``, and the errors of the runs that failed
    :raises ValueError: If two different runs, or one under two names, have the same folder
    """
    groups = _by_key(configs)
    found = {group[0].path: store.load(group[0]) for group in groups.values()}
    results = {path: result for path, result in found.items() if result is not None}
    pending = [group[0] for group in groups.values() if group[0].path not in results]
    check(pending)
    with Display(console or Console(), len(groups), len(groups) - len(pending)) as display:
        _print_warnings(store, display)
        if len(pending) < len(groups):
            display.note(f"{len(groups) - len(pending)} of {len(groups)} runs were finished before")
        ends: list[RunResult | RunFailed] = []
        if pending:
            with _in_order(pending, store, display) as ordered:
                ends = list(_execute(ordered, store, engine, display))
        results |= {end.config.path: end for end in ends if isinstance(end, RunResult)}
        results.update(_copies(groups, set(results), store))
        _print_warnings(store, display)
    failures = [end for end in ends if isinstance(end, RunFailed)]
    return [results[config.path] for config in configs if config.path in results], failures


def _copies(groups: dict[str, list[RunConfig]], done: set[str], store: Store) -> dict[str, RunResult]:
    """Give the other names of a run a result and a folder too."""
    others = [c for group in groups.values() for c in group[1:] if group[0].path in done and c.path != group[0].path]
    if not others:
        return {}
    # Another look at the folder, because workers have written there
    fresh = Store(store.out, store.baselines)
    results = {config.path: result for config in others if (result := fresh.load(config)) is not None}
    store.warnings.extend(fresh.warnings)
    return results
