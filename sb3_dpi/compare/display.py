"""How the progress of all runs is shown: live on a terminal, in a few plain lines elsewhere."""

from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sb3_dpi.compare.engines import RunFailed
from sb3_dpi.compare.types import RunConfig, RunResult

REFRESHES_PER_SECOND = 2
SECONDS_OF_ESTIMATE = 600.0
"""Whose progress tells how much time is left: runs of several algorithms have several speeds"""


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
        self.lock = Lock()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SECONDS_OF_ESTIMATE,
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

    def _counts(self) -> str:
        return f"{self.finished} of {self.total} runs finished" + (f", {self.failed} failed" if self.failed else "")

    def _update_overall(self) -> None:
        done = self.finished + self.failed + sum(self.fractions.values())
        self.progress.update(self.overall, completed=done, state=self._counts())
