"""How the progress of all runs is shown: live on a terminal, in a few plain lines elsewhere."""

from threading import Lock
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sb3_dpi.compare.engines import RunFailed
from sb3_dpi.compare.types import RunConfig, RunResult

REFRESHES_PER_SECOND = 2
SECONDS_OF_ESTIMATE = 3600.0
"""The time left is estimated from the speed over this time: half a minute says little where runs differ in their speed"""


class Display(Protocol):
    """Shows the progress of all runs while it is entered."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def note(self, text: str) -> None:
        """
        Print a line.

        :param text: The line
        """

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        """
        Show the progress of one run; called by several threads.

        :param config: The run
        :param timesteps: Its environment steps so far, 0 at its start
        :param mean_return: The mean return of its last evaluation, None before the first
        """

    def finish(self, config: RunConfig, end: RunResult | RunFailed) -> None:
        """
        Show the end of one run.

        :param config: The run
        :param end: Its result, or why there is none
        """


def make_display(console: Console, total: int, finished: int) -> Display:
    """
    Choose a display.

    :param console: Where to show
    :param total: Number of runs
    :param finished: How many of them were finished before
    :return: A live one if the console is a terminal, plain lines otherwise
    """
    return (LiveDisplay if console.is_terminal else LineDisplay)(console, total, finished)


def _end_in_words(end: RunResult | RunFailed) -> str:
    if isinstance(end, RunFailed):
        return f"failed: {end.cause}"
    seconds = end.timing.wall_seconds + end.timing.evaluation_seconds
    return f"finished, return {end.final_return:.1f}, {seconds:,.0f} s"


def _steps_in_words(config: RunConfig, timesteps: int, mean_return: float | None) -> str:
    last = "" if mean_return is None else f", return {mean_return:.1f}"
    return f"{timesteps:,} of {config.n_timesteps:,} steps{last}"


class _Tally:
    """
    What both displays count.

    :param console: Where to show
    :param total: Number of runs
    :param finished: How many of them were finished before
    """

    def __init__(self, console: Console, total: int, finished: int) -> None:
        self.console = console
        self.total = total
        self.finished = finished
        self.failed = 0
        self.fractions: dict[str, float] = {}
        self.lock = Lock()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, config: RunConfig, timesteps: int) -> float | None:
        """Take note of the progress; returns the fraction that was done before, None for a run that (again) starts."""
        before = self.fractions.get(config.path)
        self.fractions[config.path] = min(timesteps / config.n_timesteps, 1.0)
        if before is not None and self.fractions[config.path] < before:
            self.note(f"{config}: its node was lost, started again")
            return None
        return before

    def count(self, config: RunConfig, end: RunResult | RunFailed) -> None:
        self.fractions.pop(config.path, None)
        if isinstance(end, RunFailed):
            self.failed += 1
        else:
            self.finished += 1

    def counts_in_words(self) -> str:
        return f"{self.finished} of {self.total} runs finished" + (f", {self.failed} failed" if self.failed else "")


class LiveDisplay(_Tally):
    """A bar for all runs and one for each that is running, for a terminal; the ends are printed above."""

    def __init__(self, console: Console, total: int, finished: int) -> None:
        super().__init__(console, total, finished)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            speed_estimate_period=SECONDS_OF_ESTIMATE,
            transient=True,
        )
        self.bars: dict[str, TaskID] = {}
        self.overall = self.progress.add_task("all", total=total, completed=finished, state=self.counts_in_words())

    def __enter__(self) -> "LiveDisplay":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def _update_overall(self) -> None:
        done = self.finished + self.failed + sum(self.fractions.values())
        self.progress.update(self.overall, completed=done, state=self.counts_in_words())

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        with self.lock:
            begins, bar = self.advance(config, timesteps) is None, self.bars.get(config.path)
            if bar is None:
                bar = self.bars[config.path] = self.progress.add_task(str(config), total=config.n_timesteps, state="")
            elif begins:
                self.progress.reset(bar)
            self.progress.update(bar, completed=timesteps, state=_steps_in_words(config, timesteps, mean_return))
            self._update_overall()

    def finish(self, config: RunConfig, end: RunResult | RunFailed) -> None:
        with self.lock:
            bar = self.bars.pop(config.path, None)
            if bar is not None:
                self.progress.remove_task(bar)
            self.count(config, end)
            self._update_overall()
            self.note(f"{config}: {_end_in_words(end)}")


class LineDisplay(_Tally):
    """A line at the start, at every tenth and at the end of each run, for a file or a pipe."""

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        with self.lock:
            before = self.advance(config, timesteps)
            if before is None:
                self.note(f"{config}: started")
            elif int(10 * self.fractions[config.path]) > int(10 * before):
                self.note(f"{config}: {_steps_in_words(config, timesteps, mean_return)}")

    def finish(self, config: RunConfig, end: RunResult | RunFailed) -> None:
        with self.lock:
            self.count(config, end)
            self.note(f"{config}: {_end_in_words(end)} ({self.counts_in_words()})")
