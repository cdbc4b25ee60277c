"""Defaults learn where nobody tuned: three small tasks that had no part in any choice, 8,000 real steps (minutes each)."""

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import Make, every
from gymnasium.utils.env_checker import check_env
from small_tasks import ARM, CHAIN, LIMITS, QUADROTOR, register_small_tasks
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dpi import DPI, MDGPS, MPC, DAgger
from sb3_dpi.trajopt.types import FloatArray

STEPS = 8000
FEWER_STEPS: dict[type[Any], int] = {DAgger: 1000, MPC: 2000}
"""A plan at each step takes a good part of a second: what plans is to be above random sooner"""
EPISODES = 100
"""Of a test: where an episode begins makes more of its return than the policy does"""
EPISODES_OF_PLANNERS = 20
"""They take seconds for one"""
SEEDS: dict[type[Any], tuple[int, ...]] = {DPI: (0,), DAgger: (0,), MPC: (0,)}
"""They take minutes for one"""
tasks = pytest.mark.parametrize("task", LIMITS, ids=lambda task: task.split("/")[1])


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_small_tasks()


@cache
def returns(algorithm: type[Any] | None, task: str) -> FloatArray:
    """:return: of test episodes after a training with each seed, ``[seeds, episodes]``; of random actions without algorithm"""
    found = []
    for seed in SEEDS.get(algorithm, (0, 1, 2)) if algorithm is not None else range(5):
        env = gym.make(task)
        env.action_space.seed(seed)
        policy = "iCEM" if algorithm is MPC else "MlpPolicy"
        model: Any = Random(env) if algorithm is None else algorithm(policy, env, seed=seed, device="cpu")
        if algorithm is not None:
            model.learn(FEWER_STEPS.get(algorithm, STEPS))
        test = gym.make(task)
        test.reset(seed=1000 + seed)
        n_episodes = EPISODES_OF_PLANNERS if algorithm is MPC else EPISODES
        found.append(evaluate_policy(model, test, n_episodes, return_episode_rewards=True, warn=False)[0])
    return np.array(found)


class Random:
    """Acts at random."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.space = env.action_space

    def predict(self, observation: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        return np.array([self.space.sample() for _ in observation]), None


# ---------------------------------------------------------------------- the tasks


@tasks
def test_tasks_are_what_gymnasium_expects(task: str) -> None:
    env = gym.make(task)
    check_env(env.unwrapped, skip_render_check=True)
    first, again = (env.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    paid = [env.step(env.action_space.sample())[1] for _ in range(5)]
    assert np.all(np.isfinite(paid)) and len(set(paid)) == 5


def energy(task: str) -> tuple[float, float]:
    """:return: kinetic and potential energy before and after ten steps without a command, friction included"""
    env: Any = gym.make(task).unwrapped
    env.reset(seed=1)

    def total() -> float:
        q, v = env.q, env.v
        if task == ARM:
            c = np.cos(q[1])
            mass = np.array([[5.0 / 3.0 + c, 1.0 / 3.0 + 0.5 * c], [1.0 / 3.0 + 0.5 * c, 1.0 / 3.0]])
            return float(0.5 * v @ mass @ v)
        stretch = np.diff(q, prepend=0.0, append=0.0)
        return float(0.5 * v @ v + np.sum(stretch**2 + 0.05 * stretch**4))

    before = total()
    for _ in range(10):
        env.step(np.zeros(env.action_space.shape))
    return before, total()


@pytest.mark.parametrize(("task", "left"), [(ARM, (0.0, 0.8)), (CHAIN, (0.9, 1.0))])
def test_what_nobody_drives_loses_energy(task: str, left: tuple[float, float]) -> None:
    """The arm by the friction of its joints; the chain keeps nearly all of it."""
    before, after = energy(task)
    assert left[0] * before < after < left[1] * before


def test_a_quadrotor_sinks_and_hovers() -> None:
    env: Any = gym.make(QUADROTOR).unwrapped
    for action, falls in ((np.zeros(2), True), (np.full(2, 0.25), False)):
        env.reset(seed=1)
        env.q, env.v = np.zeros(3), np.zeros(3)
        ended = [env.step(action)[2] for _ in range(80)]
        assert any(ended) == falls and abs(env.q[2]) < 1e-9
        assert falls or np.abs(env.q).max() < 1e-9


# ---------------------------------------------------------------------- what is learned


@pytest.mark.slow
@tasks
@every(discrete=False)
def test_defaults_are_clearly_above_random(make: Make, task: str) -> None:
    """By more than three standard errors."""
    learned, random = returns(make.algorithm, task).ravel(), returns(None, task).ravel()
    error = np.sqrt(learned.var() / len(learned) + random.var() / len(random))
    assert learned.mean() > random.mean() + 3.0 * error, f"{learned.mean():.1f} against {random.mean():.1f} +- {error:.1f}"


@pytest.mark.slow
@tasks
@pytest.mark.parametrize("algorithm", [MDGPS, DPI], ids=lambda algorithm: algorithm.__name__)
def test_defaults_are_above_ppo(algorithm: type[Any], task: str) -> None:
    learned, reference = returns(algorithm, task).mean(), returns(PPO, task).mean()
    assert learned > reference, f"{learned:.1f} against {reference:.1f}"
