"""Rewards that are zero on most steps: what a world model makes of them, and tasks that pay so."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from memories import ListMemory

from sb3_dpi.envs import SPARSE_PENDULUM_ID, SPARSE_REACHER_ID
from sb3_dpi.envs.sparse import UPRIGHT, WITHIN_REACH
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.types import Transitions

WIDTH, PAID = 0.04, 1.0


def walk(n: int, width: float, seed: int = 0) -> ListMemory:
    """:return: steps on a line that pay where they end within ``width`` of zero"""
    rng = np.random.default_rng(seed)
    states, actions = rng.uniform(-1.0, 1.0, (n, 1)), rng.uniform(-1.0, 1.0, (n, 1))
    following = states + 0.1 * actions
    rewards = PAID * (np.abs(following[:, 0]) < width)
    return ListMemory(Transitions(states, actions, rewards, following, np.zeros(n, dtype=bool)), np.ones(n, dtype=bool))


def fitted(memory: ListMemory, n_steps: int = 1500) -> Ensemble:
    th.manual_seed(0)
    ensemble = Ensemble(1, 1, n_members=2, width=32)
    ensemble.observe(memory.data)
    ensemble.fit(memory, n_steps, 64, np.random.default_rng(0))
    return ensemble


def predicted(ensemble: Ensemble, data: Transitions) -> np.ndarray:
    with th.no_grad():
        _, rewards = ensemble.predict(ensemble.standardize(data.states), th.as_tensor(data.actions, dtype=th.float32))
    return rewards.mean(0).numpy()


def test_a_model_predicts_rewards_that_are_rare() -> None:
    memory = walk(4000, WIDTH)
    data, paid = memory.data, memory.data.rewards > 0.0
    assert 0.02 < paid.mean() < 0.06
    rewards = predicted(fitted(memory), data)
    assert rewards[paid].mean() > 0.7 and np.abs(rewards[np.abs(data.next_states[:, 0]) > 8 * WIDTH]).mean() < 0.06


def test_minibatches_are_drawn_evenly_where_nothing_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[np.ndarray] = []

    def share(width: float) -> float:
        memory = walk(1000, width)
        take = ListMemory.take
        monkeypatch.setattr(ListMemory, "take", lambda self, rows: (taken.append(rows), take(self, rows))[1])
        taken.clear()
        fitted(memory, 60)
        return float(memory.data.rewards[np.concatenate(taken)].mean() / memory.data.rewards.mean())

    assert share(0.3) == pytest.approx(1.0, abs=0.1)
    assert share(0.03) > 5.0


def test_no_reward_is_clipped() -> None:
    """One that is paid on a step of ten thousand is a hundred standard deviations away."""
    memory = walk(10_000, 1.0)
    rewards = np.zeros(10_000)
    rewards[[0, 5000]] = 3.0, -2.0
    data = Transitions(memory.data.states, memory.data.actions, rewards, memory.data.next_states, memory.data.terminated)
    ensemble = Ensemble(1, 1, n_members=2, width=8)
    ensemble.observe(data)
    targets = ensemble._targets(data)[:, -1].double() * ensemble.change_std[-1] + ensemble.change_mean[-1]
    np.testing.assert_allclose(targets.numpy(), rewards, atol=1e-6)


def test_a_first_reward_after_long_is_predicted_in_its_own_size() -> None:
    memory = walk(2000, WIDTH)
    before = Transitions(
        memory.data.states, memory.data.actions, np.zeros(2000), memory.data.next_states, np.zeros(2000, bool)
    )
    ensemble = Ensemble(1, 1, n_members=2, width=32)
    for _ in range(3):
        ensemble.observe(before)
    ensemble.observe(memory.data)
    assert (PAID - float(ensemble.change_mean[-1])) / float(ensemble.change_std[-1]) <= 8.0 + 1e-9


@pytest.mark.parametrize("name", [SPARSE_PENDULUM_ID, SPARSE_REACHER_ID])
def test_tasks_pay_where_they_are_solved(name: str) -> None:
    env = gym.make(name)
    assert env.spec is not None and env.spec.max_episode_steps == gym.spec(env.spec.id).max_episode_steps
    paid, n, ended = 0, 0, False
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        ended, n = False, 0
        while not ended:
            obs, reward, terminated, ended, info = env.step(env.action_space.sample())
            solved = obs[0] > UPRIGHT if name == SPARSE_PENDULUM_ID else np.hypot(obs[8], obs[9]) < WITHIN_REACH
            assert reward == float(solved) and not terminated and info["dense_reward"] < 0.0
            paid, n = paid + int(solved), n + 1
        assert n == env.spec.max_episode_steps
    assert paid > 0
