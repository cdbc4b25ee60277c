"""Learning from what was logged, without an environment."""

import time
from contextlib import nullcontext
from numbers import Integral
from typing import Any, TypeVar

from gymnasium import spaces
from stable_baselines3.common.callbacks import (  # type: ignore[attr-defined]
    BaseCallback,
    tqdm,  # None where tqdm or rich is missing
)
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_dpi.common.blocks import SMALLEST_MEMORY
from sb3_dpi.common.interruption import whole_or_undone
from sb3_dpi.common.progress_bars import in_words, show_time_left
from sb3_dpi.dpi.collector import BlockCollector
from sb3_dpi.trajopt.compilation import ONCE

SelfOffline = TypeVar("SelfOffline", bound="OfflineLearner")


class OfflineLearner(BlockCollector):
    """What DPI adds for logged data. DPI sets the attributes."""

    batch_size: int
    offline_steps: int

    @classmethod
    def without_env(
        cls: type[SelfOffline],
        policy: Any,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        n_envs: int = 1,
        **kwargs: Any,
    ) -> SelfOffline:
        """
        Make a model for spaces alone. ``set_env`` gives it an environment later.

        :param policy: The policy model to use
        :param observation_space: what is seen
        :param action_space: what is done, a bounded Box
        :param n_envs: number of environments that it shall act in later
        :param kwargs: the other arguments of the constructor
        :return: the model
        :raises ValueError: if a space is missing
        """
        if observation_space is None or action_space is None:
            raise ValueError(
                "A space is None. A file of data may not say it: sb3_dpi.data.read(source, env), or give the space"
            )
        options: dict[str, Any] = {**kwargs, "env": None, "_init_setup_model": False}
        model = cls(policy, **options)
        model.observation_space, model.action_space, model.n_envs = observation_space, action_space, n_envs
        model._setup_model()
        return model

    def count_logged(self, n_steps: int, n_episodes: int, time_limit: int) -> None:
        """
        Say what was put into the replay buffer beside the steps that the model took itself.

        :param n_steps: rows, the newest of the buffer
        :param n_episodes: of which so many end in them
        :param time_limit: steps of the longest episode that a time limit ended; 0 if there is none
        """
        self.logged_since_training += n_steps
        self.n_episodes += n_episodes
        self.time_limit = max(self.time_limit, time_limit)

    def learn_offline(
        self: SelfOffline,
        n_updates: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 10,
        tb_log_name: str = "DPI",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOffline:
        """
        Learn from the replay buffer alone: no step is taken, and no environment is needed. ``learn`` may go on afterwards.

        Model, critic and policy learn in blocks as if real steps had come between them. Nothing corrects a policy that the
        model flatters: ``world_model={"pessimism": 1.0}`` keeps it near the data.

        :param n_updates: steps of the policy; as a rule as many as steps that ``learn`` would take
        :param callback: callback(s) called after every block as after a step of ``learn``; where it returns False, learning
            ends. Its ``num_timesteps`` stand still: ``n_calls`` counts blocks
        :param log_interval: blocks between logs, None for none; their step is the number of updates
        :param tb_log_name: the name of the run for tensorboard
        :param reset_num_timesteps: whether to begin a new run for tensorboard
        :param progress_bar: whether to show a progress bar, with tqdm and rich
        :return: the trained model
        :raises ValueError: if too little is kept to learn from, or ``n_updates`` is no number of steps
        :raises ImportError: if tqdm or rich is missing
        """
        if not isinstance(n_updates, Integral) or n_updates < 1:
            raise ValueError(f"n_updates must be an integer of at least 1, got {n_updates!r}")
        if progress_bar and tqdm is None:
            raise ImportError("progress_bar=True needs tqdm and rich: pip install tqdm rich")
        if len(self.memory) < SMALLEST_MEMORY:
            raise ValueError(
                f"The replay buffer holds {len(self.memory)} steps, {SMALLEST_MEMORY} are the fewest to learn from: "
                "sb3_dpi.data.fill(model, episodes), or model.load_replay_buffer(path)"
            )
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        block = (self.preset_ or self._choose_preset()).train_freq
        called = self._init_callback(callback)
        called.on_training_start(locals(), globals())
        with tqdm(total=n_updates) if progress_bar else nullcontext() as bar:
            self._learn_blocks(int(n_updates), block, called, log_interval, bar)
        called.on_training_end()
        return self

    @whole_or_undone
    def _learn_block(self, n_updates: int) -> None:
        # of real steps as many as would have brought these updates; none are left for ``learn``, wherever this is interrupted
        self.offline_steps = max(round(n_updates / self.update_to_data), 1)
        self.train(n_updates, self.batch_size)
        self.offline_steps = 0

    def _learn_blocks(self, n_updates: int, block: int, callback: BaseCallback, log_interval: int | None, bar: Any) -> None:
        begun = time.monotonic() - ONCE.seconds
        done = n_blocks = 0

        def seconds_left() -> float | None:
            return (time.monotonic() - ONCE.seconds - begun) / done * (n_updates - done) if done else None

        if bar is not None:
            show_time_left(bar, seconds_left)
        while done < n_updates:
            self._update_current_progress_remaining(done, n_updates)
            n = min(block, n_updates - done)
            self._learn_block(n)
            done, n_blocks = done + n, n_blocks + 1
            if bar is not None:
                bar.update(n)
            if n_blocks == 1 and done < n_updates:
                rest = in_words(seconds_left() or 0.0)
                self.logger.info(
                    f"{type(self).__name__}: {done:,} updates are done; the other {n_updates - done:,} take some {rest}"
                )
            callback.update_locals(locals())
            goes_on = callback.on_step()
            if log_interval is not None and n_blocks % log_interval == 0:
                self.logger.record("time/n_updates", self._n_updates, exclude="tensorboard")
                self.logger.dump(step=self._n_updates)
            if not goes_on:
                return
