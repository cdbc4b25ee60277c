"""Stable-Baselines3's own algorithms, beside which tests run ours: what passes for them passes for ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from algorithms import ALGORITHMS, Make
from dummy_envs import ITERATION, POINT_MASS_LIMIT, limited
from stable_baselines3 import PPO, SAC


def small_ppo(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> PPO:
    """:return: a model whose iteration takes ``ITERATION`` steps"""
    options: dict[str, Any] = {
        "n_steps": max(ITERATION // getattr(env, "num_envs", 1), 2),
        "batch_size": 20,
        "n_epochs": 1,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return PPO(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


def small_sac(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> SAC:
    """:return: one that learns a little"""
    options: dict[str, Any] = {
        "learning_starts": 20,
        "train_freq": 10,
        "gradient_steps": 1,
        "batch_size": 16,
        "buffer_size": 1000,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return SAC(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


@dataclass(frozen=True)
class Reference:
    """An algorithm of theirs, with the facts of the registry that tests here ask for."""

    algorithm: type[Any]
    small: Callable[..., Any]
    squashes: bool = False
    from_conditions: bool = False

    def __call__(self, env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
        return self.small(env, policy, **kwargs)

    def __str__(self) -> str:
        return self.algorithm.__name__


REFERENCES = (Reference(PPO, small_ppo), Reference(SAC, small_sac, squashes=True))

Maker = Make | Reference

beside_references = pytest.mark.parametrize("make", [*ALGORITHMS, *REFERENCES], ids=str)
