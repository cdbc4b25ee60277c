"""How the progress of all runs is shown: live on a terminal, in a few plain lines elsewhere."""

import time
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from sb3_dpi.compare.engines import RunFailed
from sb3_dpi.compare.types import RunConfig, RunResult

REFRESHES_PER_SECOND = 2


class TimeLeft(ProgressColumn):
    """Shows what remains, which runs of different speeds do not tell by their number."""

    max_refresh = 0.5

    def __init__(self, seconds_left: Callable[[Task], float | None]) -> None:
        super().__init__()
        self.seconds_left = seconds_left

    def render(self, task: Task) -> Text:
        """Write hours, minutes and seconds."""
        seconds = self.seconds_left(task)
        text = "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
        return Text(text, style="progress.remaining")


class Display:
    """
    Shows the progress of all runs while it is entered; called by several threads.

    A terminal has a bar for all runs and one for each that is running, with the ends above. A file or a pipe gets a line at
    the start, at every tenth and at the end of each run.

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
        self.times: dict[str, tuple[float, float]] = {}
        """When a run began, and when its fraction was told"""
        self.durations: list[float] = []
        """Seconds of the runs that ended"""
        self.lock = Lock()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeLeft(self._seconds_left),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.overall = self.progress.add_task("all", total=total, completed=finished, state=self._counts())

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, config: RunConfig, timesteps: int, mean_return: float | None) -> None:
        """
        Show the progress of one run.

        :param timesteps: Its environment steps so far, 0 at its start
        :param mean_return: The mean return of its last evaluation, None before the first
        """
        with self.lock:
            before, fraction = self.fractions.get(config.path), min(timesteps / config.n_timesteps, 1.0)
            self.fractions[config.path] = fraction
            now = time.monotonic()
            self.times[config.path] = now if not fraction else self.times.get(config.path, (now, now))[0], now
            last = "" if mean_return is None else f", return {mean_return:.1f}"
            state = f"{timesteps:,} of {config.n_timesteps:,} steps{last}"
            if was_lost := before is not None and fraction < before:
                self.note(f"{config}: its node was lost, started again")
            if self.progress.disable:
                if before is None or was_lost:
                    self.note(f"{config}: started")
                elif int(10 * fraction) > int(10 * before):
                    self.note(f"{config}: {state}")
                return
            if config.path not in self.bars:
                self.bars[config.path] = self.progress.add_task(str(config), total=config.n_timesteps, state="")
            elif was_lost:
                self.progress.reset(self.bars[config.path])
            self.progress.update(self.bars[config.path], completed=timesteps, state=state)
            self._update_overall()

    def finish(self, config: RunConfig, end: RunResult | RunFailed) -> None:
        """Show the end of one run: its result, or why there is none."""
        with self.lock:
            self.fractions.pop(config.path, None)
            if config.path in self.times:
                self.durations.append(time.monotonic() - self.times.pop(config.path)[0])
            if config.path in self.bars:
                self.progress.remove_task(self.bars.pop(config.path))
            if isinstance(end, RunFailed):
                self.failed += 1
                words = f"failed: {end.cause}"
            else:
                self.finished += 1
                seconds = end.timing.wall_seconds + end.timing.evaluation_seconds
                words = f"finished, return {end.final_return:.1f}, {seconds:,.0f} s"
            self._update_overall()
            self.note(f"{config}: {words}" + (f" ({self._counts()})" if self.progress.disable else ""))

    def _seconds_left(self, task: Task) -> float | None:
        """What remains of one run, or of all: those that wait are taken to last as long as the others do on average."""
        now = time.monotonic()
        left, durations = dict[str, float](), list(self.durations)
        for path, fraction in list(self.fractions.items()):
            begun, told = self.times[path]
            if fraction > 0.0:
                left[path] = max((told - begun) * (1.0 - fraction) / fraction - (now - told), 0.0)
                durations.append((told - begun) / fraction)
        if task.id != self.overall:
            return next((left.get(path) for path, bar in list(self.bars.items()) if bar == task.id), None)
        if not durations:
            return None
        waiting = self.total - self.finished - self.failed - len(left)
        everything = sum(left.values()) + waiting * sum(durations) / len(durations)
        return max(everything / max(len(self.fractions), 1), *left.values(), 0.0)

    def _counts(self) -> str:
        return f"{self.finished} of {self.total} runs finished" + (f", {self.failed} failed" if self.failed else "")

    def _update_overall(self) -> None:
        done = self.finished + self.failed + sum(self.fractions.values())
        self.progress.update(self.overall, completed=done, state=self._counts())
