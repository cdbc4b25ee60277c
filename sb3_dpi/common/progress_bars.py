"""How long a training takes, for progress bars and in words.

An iteration takes its steps in a burst and then learns without taking any; random steps at the beginning take no time at all.
The bars of Stable-Baselines3 measure their rate between the latest steps, so that for most of the time they show that of the
burst. Here whole blocks count, from the first step of one to the first of the next.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_dpi.trajopt.compilation import ONCE


def progress_bars(callback: BaseCallback | None) -> list[ProgressBarCallback]:
    """
    Find the progress bars among callbacks.

    :param callback: with all that it calls in turn
    :return: those of Stable-Baselines3, in order
    """
    if isinstance(callback, ProgressBarCallback):
        return [callback]
    if isinstance(callback, CallbackList):
        return [bar for one in callback.callbacks for bar in progress_bars(one)]
    return progress_bars(callback.callback) if isinstance(callback, EventCallback) else []


def in_words(seconds: float) -> str:
    """
    Say how long something takes.

    :param seconds: that it takes
    :return: in seconds, minutes or hours
    """
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 6000.0 else f"{seconds / 3600.0:.1f} h"


def show_time_left(bar: Any, seconds_left: Callable[[], float | None]) -> None:
    """
    Let a bar show the rate since it began, and a predicted end.

    :param bar: of ``tqdm.rich``
    :param seconds_left: what is left; None shows none
    """
    from rich.progress import Task

    class HonestTask(Task):
        @property
        def speed(self) -> float | None:
            seconds = self.elapsed
            return self.completed / seconds if seconds else None

        @property
        def time_remaining(self) -> float | None:
            return 0.0 if bar.disable else seconds_left()  # steps end before learning does; a bar is closed behind both

    for task in bar._prog.tasks:
        task.__class__ = HonestTask  # rich has no setting for it


class Pace(BaseCallback):
    """
    Measures how long blocks take, says it once (``verbose`` 1), and lets progress bars show it.

    Bars show the steps a second since ``learn`` was called, pauses included, and what is left if blocks go on to take what the
    later half of them took. Before the first whole block they show no time. The last one is completed beyond the total, which
    the bars follow: they end full.

    :param bars: that are called before
    """

    def __init__(self, bars: list[ProgressBarCallback]):
        super().__init__()
        self.bars = bars

    def _on_training_start(self) -> None:
        self.blocks: list[tuple[int, float]] = []
        """steps and seconds of each"""
        self.begun = self._now()
        self.n_updates = self.model._n_updates
        self.bars = [bar for bar in self.bars if not bar.pbar.disable]
        for bar in self.bars:
            show_time_left(bar.pbar, self.seconds_left)

    def _now(self) -> tuple[int, float]:
        """Steps, and seconds without those of compiling, which do not come again."""
        return self.model.num_timesteps, time.monotonic() - ONCE.seconds

    def _on_rollout_start(self) -> None:
        (steps, seconds), before = self._now(), self.begun
        self.begun, learned_before, self.n_updates = (steps, seconds), self.n_updates, self.model._n_updates
        warms_up = isinstance(self.model, OffPolicyAlgorithm) and learned_before == 0  # the first of its updates are more, too
        if steps == before[0] or self.n_updates == learned_before or warms_up:
            return
        self.blocks.append((steps - before[0], seconds - before[1]))
        left = self.model._total_timesteps - steps
        if len(self.blocks) == 1 and left > 0:
            each, rest = 1000.0 * self.blocks[0][1] / self.blocks[0][0], in_words(self.seconds_left() or 0.0)
            name = type(self.model).__name__
            self.logger.info(f"{name}: 1,000 steps take some {each:.3g} s here; the other {left:,} take some {rest}")

    def seconds_left(self) -> float | None:
        """
        Predict the end.

        :return: seconds; None before the first whole block
        """
        if not self.blocks:
            return None
        later = self.blocks[len(self.blocks) // 2 :]
        each = sum(seconds for _, seconds in later) / len(later)
        to_come = math.ceil((self.model._total_timesteps - self.begun[0]) / later[-1][0])
        return max(to_come * each - (self._now()[1] - self.begun[1]), (to_come - 1) * each, 0.0)

    def _on_step(self) -> bool:
        for bar in self.bars:
            if bar.pbar.n > bar.pbar.total:
                bar.pbar.total = bar.pbar.n
                bar.pbar._prog.update(bar.pbar._task_id, total=bar.pbar.n)
        return True
