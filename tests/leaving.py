"""What tests of early resets share: the smallest algorithm that leaves episodes, and environments to leave."""

from typing import Any

import numpy as np
from dummy_envs import Counter
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dpi.common.early_resets import EarlyReset, LeavesEpisodes


class Batched(VecEnv):
    """
    A simulator of a batch as some write it: no more than PPO uses, one array of observations, only resets of all.

    :param n: copies
    """

    def __init__(self, n: int = 3) -> None:
        self.num_envs, self.render_mode, self.metadata = n, None, {}
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observations, self.dones, self.t = np.zeros((n, 2)), np.zeros(n, dtype=bool), np.zeros(n, dtype=int)

    def reset(self) -> np.ndarray:
        """:return: the array that is used again"""
        self.t[:], self.observations[:] = 0, 0.0
        return self.observations

    def step_async(self, actions: np.ndarray) -> None:
        """Nothing is done yet."""

    def step_wait(self) -> Any:
        """:return: arrays that are used again"""
        self.t += 1
        self.observations[:, 0] = self.t
        self.dones[:] = self.t >= 5
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(self.dones):
            infos[i] = {"terminal_observation": self.observations[i].copy(), "TimeLimit.truncated": True}
            self.t[i], self.observations[i] = 0, 0.0
        return self.observations, np.ones(self.num_envs), self.dones, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Not there."""
        raise NotImplementedError

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not there."""
        raise NotImplementedError

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """:return: what serves the whole batch only"""
        return [0.0 for _ in self.reset()]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """:return: no"""
        return [False for _ in range(self.num_envs)]


class Leaving(LeavesEpisodes, PPO):
    """PPO that leaves episodes, the smallest algorithm that does."""

    settings = EarlyReset(4, spread=False)

    def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """:return: itself"""
        with self.early_resets(lambda layer: self.settings, np.random.default_rng(0)):
            return super().learn(total_timesteps, *args, **kwargs)


class Seen(BaseCallback):
    """Keeps what an algorithm sees."""

    def __init__(self) -> None:
        super().__init__()
        self.observations: list[np.ndarray] = []
        self.infos: list[dict[str, Any]] = []
        self.dones: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.observations.append(np.array(self.locals["new_obs"]))
        self.infos.extend(self.locals["infos"])
        self.dones.append(np.array(self.locals["dones"]))
        return True


def long_counters(n_envs: int = 1, length: int = 1000) -> DummyVecEnv:
    """:return: copies whose episodes are long"""
    return DummyVecEnv([lambda i=i: Counter(i, (length,)) for i in range(n_envs)])  # type: ignore[misc]


def leaving(env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> Leaving:
    """:return: a small model"""
    small = {"net_arch": [4]}
    return Leaving(policy, env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu", policy_kwargs=small, **kwargs)


def steps(env: VecEnv, n: int) -> list[tuple[Any, np.ndarray, np.ndarray, Any]]:
    """:return: what n steps without force returned"""
    return [env.step(np.zeros((env.num_envs, 1), dtype=np.float32)) for _ in range(n)]
