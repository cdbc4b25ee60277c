"""Run many configurations, one process each, a few at a time, with the progress of all of them shown."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sb3_dpi.compare.run import load_result
from sb3_dpi.compare.types import RunConfig, RunResult

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class RunFailed(RuntimeError):
    """A run ended with an error; the message names its log file."""


class Display(Protocol):
    """Shows the progress of all runs."""

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        """
        Show the progress of one run.

        :param config: The run
        :param timesteps: Its environment steps so far
        :param mean_return: The mean return of its last evaluation, None before the first
        """

    def finish(self, config: RunConfig, status: str) -> None:
        """
        Show the end of one run.

        :param config: The run
        :param status: How it ended, in one or two words
        """


class LiveDisplay:
    """
    One bar per run, for a terminal.

    :param progress: Where to draw
    :param configs: All runs
    """

    def __init__(self, progress: Progress, configs: Sequence[RunConfig]) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {
            str(config.folder): progress.add_task(
                f"{config.name} seed {config.seed}", total=config.n_timesteps, start=False, last="", status="waiting"
            )
            for config in configs
        }

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        task = self.tasks[str(config.folder)]
        self.progress.start_task(task)
        last = "" if mean_return is None else f"return {mean_return:.1f}"
        self.progress.update(task, completed=timesteps, last=last, status=f"{timesteps:,} steps")

    def finish(self, config: RunConfig, status: str) -> None:
        task = self.tasks[str(config.folder)]
        completed = None if status == "failed" else config.n_timesteps
        self.progress.update(task, completed=completed, status=status, last="")
        self.progress.stop_task(task)


class LineDisplay:
    """
    A line at the start, at every tenth and at the end of each run, for a file or a pipe.

    :param console: Where to print
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tenths: dict[str, int] = {}

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        tenth = 10 * timesteps // config.n_timesteps
        if tenth > self.tenths.get(str(config.folder), -1):
            self.tenths[str(config.folder)] = tenth
            last = "" if mean_return is None else f", return {mean_return:.1f}"
            self._print(f"{config.name} seed {config.seed}: {timesteps:,} of {config.n_timesteps:,} steps{last}")

    def finish(self, config: RunConfig, status: str) -> None:
        self._print(f"{config.name} seed {config.seed}: {status}")


def _run_in_process(config: RunConfig, display: Display) -> None:
    log = config.folder.with_name(f"{config.folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    command = [sys.executable, "-m", "sb3_dpi.compare.worker"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        # A worker that died at once has its reason in the log
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(config.to_dict()))
        for line in process.stdout:
            display.update(config, *json.loads(line))
    if process.returncode != 0:
        display.finish(config, "failed")
        last_line = (log.read_text().strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"{config.name} seed {config.seed} failed: {last_line} (all of it in {log})")
    if log.stat().st_size == 0:
        log.unlink()


def _reuse_or_run(config: RunConfig, display: Display, force: bool) -> RunResult:
    result = None if force else load_result(config)
    status = "done before"
    if result is None:
        status = "done"
        _run_in_process(config, display)
        result = load_result(config)
        assert result is not None
    display.finish(config, f"{status}, final return {result.final_return:.2f}")
    return result


def run_all(
    configs: Sequence[RunConfig], jobs: int = 1, force: bool = False, console: Console | None = None
) -> tuple[list[RunResult], list[RunFailed]]:
    """
    Run all configurations and wait for them; finished runs are reused, half-written ones done again.

    :param configs: The runs
    :param jobs: How many processes at a time, each with one thread; at most the number of processor cores is sensible
    :param force: Whether to run the finished ones again too
    :param console: Where to show the progress, stdout by default
    :return: The results in the order of ``configs``, and the errors of the runs that failed
    """
    console = console or Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TextColumn("{task.fields[last]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        display: Display = LiveDisplay(progress, configs) if console.is_terminal else LineDisplay(console)
        executor = ThreadPoolExecutor(max_workers=jobs)
        try:
            futures = [executor.submit(_reuse_or_run, config, display, force) for config in configs]
            errors = [future.exception() for future in futures]
        finally:
            # After Ctrl-C the running processes end too: the terminal sends it to the whole group
            executor.shutdown(cancel_futures=True)
    for error in errors:
        if error is not None and not isinstance(error, RunFailed):
            raise error
    failed = [error for error in errors if isinstance(error, RunFailed)]
    return [future.result() for future, error in zip(futures, errors, strict=True) if error is None], failed
