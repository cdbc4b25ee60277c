"""How an off-policy algorithm learns that says itself how long it collects before it looks at what was seen."""

from collections.abc import Callable

from stable_baselines3.common.type_aliases import MaybeCallback, TrainFreq

from sb3_dpi.common.early_resets import LeavesEpisodes
from sb3_dpi.common.kept_originals import KeepsOriginals

SMALLEST_MEMORY = 32
"""Steps below which there is nothing to learn from."""


class LearnsFromBlocks(LeavesEpisodes, KeepsOriginals):
    """What it inherits before its base of Stable-Baselines3."""

    def _next_block(self) -> TrainFreq:
        """Steps of the vectorised environment until the next look at what was seen."""
        raise NotImplementedError

    def _take_blocks(
        self,
        total_timesteps: int,
        callback: MaybeCallback,
        log_interval: int,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
        learn_from_block: Callable[[], None],
    ) -> None:
        """
        Act until enough steps are taken.

        :param total_timesteps: as those behind it, of ``learn``
        :param callback: called at each step, and at the beginning and the end
        :param log_interval: episodes between two logs
        :param tb_log_name: of the run
        :param reset_num_timesteps: whether steps are counted from zero
        :param progress_bar: whether to show one
        :param learn_from_block: called after each block
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        assert self.env is not None and self.replay_buffer is not None
        while self.num_timesteps < total_timesteps:
            rollout = self.collect_rollouts(
                self.env,
                train_freq=self._next_block(),
                action_noise=self.action_noise,
                callback=callback,
                replay_buffer=self.replay_buffer,
                log_interval=log_interval,
            )
            if not rollout.continue_training:
                break
            learn_from_block()
        callback.on_training_end()
