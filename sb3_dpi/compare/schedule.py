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
    folders: dict[str, str] = {}
    for config in configs:
        key = run_key(config)
        if folders.setdefault(config.path, key) != key:
            raise ValueError(
                f"{config}: two different runs have the folder {config.path}. Give variants of an algorithm different labels, "
                "and variants of an environment different task names."
            )
        groups.setdefault(key, []).append(config)
    return groups


def _print_warnings(store: Store, display: Display) -> None:
    while store.warnings:
        display.note(f"Warning: {store.warnings.pop(0)}")


def _execute(
    pending: dict[str, RunConfig], store: Store, engine: Engine, display: Display
) -> tuple[dict[str, RunResult], list[RunFailed]]:
    results, failures = {}, []
    with closing(engine.run(list(pending.values()), store, display.update)) as ends:
        for ended in ends:
            config, end = ended.config, ended.failure or store.load(ended.config)
            if end is None:
                end = RunFailed(config, f"no result in {store.folder(config)}", store.log(config))
            if isinstance(end, RunFailed):
                failures.append(end)
            else:
                results[config.path] = end
            display.finish(config, end)
            _print_warnings(store, display)
    return results, failures


def _goes_on_elsewhere(config: RunConfig, store: Store) -> bool:
    try:
        with store.lock(config).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


@contextmanager
def _in_order(pending: dict[str, RunConfig], store: Store, display: Display) -> Iterator[dict[str, RunConfig]]:
    """
    Let other comparisons in the same folder know of this one, from before its first run has begun, and keep out of their way:
    who comes to what another one is busy with waits for it, so that this comes last and the rest from its end.
    """
    mark = filelock.FileLock(store.out / UNFINISHED / ".comparison.lock")
    (store.out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    with suppress(filelock.Timeout):
        mark.acquire(timeout=0)
    busy = {key: config for key, config in pending.items() if _goes_on_elsewhere(config, store)}
    try:
        if mark.is_locked and not busy:
            yield pending
        else:
            display.note(f"Another comparison is busy in {store.out}: the results of the runs that it does are waited for")
            yield {**{key: config for key, config in reversed(pending.items()) if key not in busy}, **busy}
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
    :raises ValueError: If two different runs have the same folder
    """
    groups = _by_key(configs)
    results = {}
    pending: dict[str, RunConfig] = {}
    for key, group in groups.items():
        if (result := store.load(group[0])) is None:
            pending[key] = group[0]
        else:
            results[group[0].path] = result
    check(list(pending.values()))
    with Display(console or Console(), len(groups), len(groups) - len(pending)) as display:
        _print_warnings(store, display)
        if len(pending) < len(groups):
            display.note(f"{len(groups) - len(pending)} of {len(groups)} runs were finished before")
        failures: list[RunFailed] = []
        if pending:
            with _in_order(pending, store, display) as ordered:
                done, failures = _execute(ordered, store, engine, display)
            results.update(done)
        results.update(_copies(groups, set(results), store))
        _print_warnings(store, display)
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
