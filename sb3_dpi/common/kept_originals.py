"""How off-policy algorithms keep steps in the environment's units, and refuse those that are not finite."""

import io
import pathlib
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.finite import KeptStatistics, check_finite, check_step
from sb3_dpi.common.original_observations import ReadsOriginals, UnclippedTerminals, original_rewards
from sb3_dpi.common.replay_memory import check_buffer, deal_out


class KeepsOriginals(ReadsOriginals, OffPolicyAlgorithm):
    """What an off-policy algorithm that keeps original observations inherits before its base of Stable-Baselines3."""

    _statistics: KeptStatistics

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file, also one of another number of environments.

        :param path: Path to the pickled replay buffer
        :param truncate_last_traj: not used: what does not go on is known, or seen by its observations
        :raises ValueError: if the algorithm cannot learn from its rows; the model then keeps its own buffer
        """
        own = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            assert self.replay_buffer is not None
            self.replay_buffer = self._as_own(self.replay_buffer)
        except BaseException:
            self.replay_buffer = own
            raise

    def _as_own(self, loaded: ReplayBuffer) -> ReplayBuffer:
        """Loaded rows, dealt out to as many environments as there are; refused if they cannot be learned from."""
        check_buffer(type(loaded), vars(loaded))
        return loaded if loaded.n_envs == self.n_envs else deal_out(loaded, self.n_envs)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Collect experiences and store them into a ``ReplayBuffer``.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param train_freq: How much experience to collect
        :param replay_buffer: where it is stored, in the environment's units
        :param action_noise: Action noise that will be used for exploration, beside the algorithm's own
        :param learning_starts: Number of steps before learning for the warm-up phase
        :param log_interval: Log data every ``log_interval`` episodes
        :return: what was collected
        :raises ValueError: if an observation or reward is not finite, naming environment and step
        """
        check_finite(self._last_obs, np.zeros(env.num_envs), self.num_timesteps)
        self._statistics = KeptStatistics(self.get_vec_normalize_env())
        if self._vec_normalize_env is not None:
            env = UnclippedTerminals(env, self._vec_normalize_env)
        return super().collect_rollouts(env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        try:
            check_step(new_obs, original_rewards(self._vec_normalize_env, reward), dones, infos, self.num_timesteps)
        except ValueError:
            self._statistics.restore()
            self._last_obs = None  # start from a reset
            raise
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
