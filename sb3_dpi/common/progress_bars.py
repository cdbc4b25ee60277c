"""Progress bars that tell the truth of training that pauses for long.

An iteration takes its steps in a burst and then learns without taking any. The bars of Stable-Baselines3 measure their rate
between the latest steps, so that for most of the time they show that of the burst.
"""

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback, ProgressBarCallback


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


class TrueRate(BaseCallback):
    """
    Lets progress bars show the steps a second since ``learn`` was called, pauses included, and what is left at that rate.

    The last iteration is completed beyond the total, which the bars follow: they end full.

    :param bars: that are called before
    """

    def __init__(self, bars: list[ProgressBarCallback]):
        super().__init__()
        self.bars = bars

    def _on_training_start(self) -> None:
        from rich.progress import Task

        class HonestTask(Task):
            @property
            def speed(self) -> float | None:
                seconds = self.elapsed
                return self.completed / seconds if seconds else None

        self.bars = [bar for bar in self.bars if not bar.pbar.disable]
        for bar in self.bars:
            for task in bar.pbar._prog.tasks:
                task.__class__ = HonestTask  # rich has no setting for it

    def _on_step(self) -> bool:
        for bar in self.bars:
            if bar.pbar.n > bar.pbar.total:
                bar.pbar.total = bar.pbar.n
                bar.pbar._prog.update(bar.pbar._task_id, total=bar.pbar.n)
        return True
