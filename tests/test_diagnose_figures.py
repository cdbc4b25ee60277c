"""The figures of a look inside against truth: error, return, value and divergence that are planted or have a closed form."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from algorithms import small_aggrevated_oc, small_dpi, small_mdgps
from dummy_envs import PointMass
from gymnasium import spaces

from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.diagnose import as_subject
from sb3_dpi.diagnose.episodes import Episode, EpisodeMemory, Stage
from sb3_dpi.diagnose.expert import Followed, divergence_table, follow_expert, race
from sb3_dpi.diagnose.keys import key_figures
from sb3_dpi.diagnose.local import look, predict
from sb3_dpi.diagnose.prediction import Predictions, calibration_table, error_table, rank_correlation
from sb3_dpi.diagnose.values import value_table
from sb3_dpi.diagnose.world import imagined_returns, one_step_table, predict_states
from sb3_dpi.trajopt.types import LinearGaussianDynamics
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.ensemble import Ensemble

DRIFT, PLANTED, APART = np.array([0.1, -0.2]), np.array([0.03, 0.0]), 0.5


def drifting(rng: np.random.Generator, steps: int = 60, reward: float = 2.0, terminated: bool = False) -> Episode:
    """:return: a random walk with a drift, that earns the same at each step"""
    states = np.cumsum(DRIFT + 0.05 * rng.standard_normal((steps + 1, 2)), 0)
    actions, rewards = rng.uniform(-1.0, 1.0, (steps + 1, 1)), np.full(steps, reward)
    return Episode(states, states, states, actions, np.full(steps + 1, -1.0), rewards, rewards, terminated)


def planted_ensemble(reward: float = 2.0) -> Ensemble:
    """:return: two members that predict the drift and a planted error, apart by one real unit in the first number"""
    ensemble = Ensemble(2, 1, n_members=2, width=4)
    for network in (ensemble.networks, ensemble.termination):
        network.requires_grad_(False)
        network.flat.zero_()
    ensemble.n_seen.fill_(100)
    ensemble.state_mean.copy_(th.tensor([1.0, -1.0]))
    ensemble.state_std.copy_(th.tensor([4.0, 3.0]))
    ensemble.change_mean.copy_(th.as_tensor([*(DRIFT + PLANTED), reward]))
    last = ensemble.networks.layers()[-1][1]
    last[0, ..., 0], last[1, ..., 0] = APART, -APART
    return ensemble


def constant_actor(before_tanh: float, std: float = 0.5) -> SquashedGaussian:
    """:return: a policy that does the same everywhere"""
    actor = SquashedGaussian(2, 1, (4,), log_std_init=float(np.log(std)), std_bounds=(std, std)).requires_grad_(False)
    actor.network.flat.zero_()
    actor.network.layers()[-1][1][..., 0] = before_tanh
    return actor


def test_a_planted_error_is_shown() -> None:
    rng = np.random.default_rng(0)
    episodes = [drifting(rng), drifting(rng)]
    found = predict_states(planted_ensemble(), episodes, (1, 5))
    table = error_table(found, ["a", "b"]).set_index(["steps", "dimension"])
    for h in (1, 5):
        change = np.concatenate([e.states[h:] - e.states[:-h] for e in episodes])
        error = h * (DRIFT + PLANTED) - change
        shown = table.loc[h]
        np.testing.assert_allclose(shown["bias"], error.mean(0), atol=1e-5)
        np.testing.assert_allclose(shown["rmse"], np.sqrt(np.square(error).mean(0)), rtol=1e-4)
        np.testing.assert_allclose(shown["relative"], np.sqrt(np.square(error).mean(0)) / change.std(0), rtol=1e-4)
        members = found[0 if h == 1 else 1].spread
        np.testing.assert_allclose(members, [[h * APART * np.sqrt(2.0), 0.0]] * len(change), atol=1e-5)
    assert list(table["n"]) == [120, 120, 112, 112]


def test_spread_that_is_right_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    spread = np.exp(rng.uniform(-3.0, 0.0, (20_000, 1)))
    start, truth = np.zeros_like(spread), rng.standard_normal(spread.shape)
    found = Predictions(1, start, truth, truth + spread * rng.standard_normal(spread.shape), spread)
    table = calibration_table([found])
    np.testing.assert_allclose(table["error"] / table["spread"], 1.0, atol=0.08)
    assert len(table) == 10 and table["spread"].is_monotonic_increasing and rank_correlation(found) > 0.4
    sure = Predictions(1, start, truth, found.predicted, np.full_like(spread, 0.1))
    assert rank_correlation(sure) == 0.0


def test_rewards_and_ends_a_step_ahead() -> None:
    rng = np.random.default_rng(2)
    episodes, ensemble = [drifting(rng, 10, 2.5, terminated=True), drifting(rng, 10, 2.5)], planted_ensemble()
    ensemble.known_end = lambda states, actions, following: 0.25 * th.ones(len(states))
    table = one_step_table(ensemble, episodes)
    np.testing.assert_allclose(table["predicted"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(table["end_probability"], 0.25)
    assert list(np.flatnonzero(table["ended"])) == [9]


def test_imagined_returns() -> None:
    """A reward a step, and episodes that go on with a known probability."""
    rng, ensemble = np.random.default_rng(3), planted_ensemble(reward=2.0)
    table = imagined_returns(ensemble, constant_actor(0.0), [drifting(rng, 30, 3.0)], rng, (5, 20))
    np.testing.assert_allclose(table["imagined"], 2.0 * table["steps"], rtol=1e-5)
    np.testing.assert_allclose(table["real"], 3.0 * table["steps"])
    assert (table.groupby("steps").size() == [26, 11]).all()  # those that end before the episode does
    ensemble.known_end = lambda states, actions, following: 0.1 * th.ones(len(states))
    table = imagined_returns(ensemble, constant_actor(0.0), [drifting(rng, 30, 3.0, terminated=True)], rng, (5,))
    np.testing.assert_allclose(table["imagined"], 2.0 * (1.0 - 0.9**5) / 0.1, rtol=1e-5)
    assert len(table) == 30 and table["real"].iloc[-1] == 3.0


@pytest.mark.parametrize("terminated", [True, False])
def test_a_critic_that_is_right_lies_on_the_diagonal(terminated: bool) -> None:
    """Reward and entropy are the same at each step: the soft value is a geometric sum."""
    model, rng, gamma, T = small_dpi(gamma=0.9), np.random.default_rng(4), 0.9, 60
    model.ensemble.n_seen.fill_(1)
    bonus = model.temperature * 5.0  # of a log-probability of -1, value in units of five rewards
    left = T - np.arange(T + 1) if terminated else np.full(T + 1, 10_000)
    truth = 2.0 * (1.0 - gamma**left) / (1.0 - gamma) + bonus * gamma * (1.0 - gamma ** (left - 1.0)) / (1.0 - gamma)

    class Critic:
        unit, uses_actions = th.tensor(5.0), True

        def __call__(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
            return th.as_tensor(truth) / 5.0

    model.critic = Critic()
    table = value_table(as_subject(model), [drifting(rng, T, 2.0, terminated)])
    assert table is not None and len(table) == (T if terminated else 45)  # the last say too little of what came
    np.testing.assert_allclose(table["realised"], table["critic"], rtol=1e-6)


class Pays(gym.Env[np.ndarray, np.ndarray]):
    """Pays out its action, and stays as it is."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-3.0, 3.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), float(action[0]), False, False, {}


def test_an_expert_that_is_better_by_a_known_amount() -> None:
    """It acts by tanh(1) of the bound of three; the model believes twice of it."""
    model = small_dpi(Pays())
    model.ensemble = planted_ensemble()
    model.ensemble.known_reward = lambda states, actions, following: 6.0 * actions[:, 0]
    subject = as_subject(model)
    followed = Followed(constant_actor(0.0), constant_actor(1.0), 1, 0.0)
    raced = race(subject, Stage(subject, Pays), followed, [0, 1], (5, 20))
    truth = 3.0 * np.tanh(1.0) * raced.table["steps"]
    np.testing.assert_allclose(raced.table["real"], truth, rtol=1e-5)
    np.testing.assert_allclose(raced.table["model"], 2.0 * truth, rtol=1e-5)
    kl = divergence_table(model, followed, raced.policy)
    np.testing.assert_allclose(kl[["kl", "low", "high"]], 0.5 * (1.0 / 0.5) ** 2, rtol=1e-5)


def test_a_copy_follows_the_expert() -> None:
    model = small_dpi(Pays(), preset="free", expert="mppi")
    model.ensemble = planted_ensemble()
    model.ensemble.known_reward = lambda states, actions, following: 6.0 * actions[:, 0]
    model.policy.optimizer.param_groups[0]["lr"] = 0.01
    before = model.policy.actor.network.flat.detach().clone()
    memory = EpisodeMemory([drifting(np.random.default_rng(5))])
    followed = follow_expert(model, memory, seed=0, n_steps=20)
    assert th.equal(model.policy.actor.network.flat, before) and th.equal(followed.before.network.flat, before)
    states = th.zeros(1, 2)
    assert followed.window_gain > 0.0 and followed.after(states)[0].item() > followed.before(states)[0].item() + 0.05


def test_memory_of_episodes() -> None:
    rng = np.random.default_rng(6)
    memory = EpisodeMemory([drifting(rng, 3, terminated=True), drifting(rng, 4)])
    following, same = memory.follows(np.arange(7))
    assert list(same) == [True, True, False, True, True, True, False] and list(following[:6]) == [1, 2, 3, 4, 5, 6]
    assert list(memory.terminated_rows()) == [2] and list(memory.newest(2)) == [5, 6] and len(memory) == 7


def test_a_planted_error_of_local_models() -> None:
    """x' = x + u + w: each step adds the planted offset to the error, and its noise to the spread."""
    rng, (M, N, T) = np.random.default_rng(7), (2, 3, 30)
    actions, offset = rng.standard_normal((M, N, T, 2)), np.array([[0.5, 0.0], [0.0, -0.25]])
    states = np.concatenate([np.zeros((M, N, 1, 2)), np.cumsum(actions, 2)], 2)
    alive = np.ones((M, N, T), dtype=bool)
    alive[0, 0, 3:] = False
    trajectories = Trajectories(states, states, actions, np.zeros((M, N, T)), alive, np.zeros_like(alive))
    F = np.tile(np.concatenate([np.eye(2), np.eye(2)], 1), (M, T, 1, 1))
    noise = LinearGaussianDynamics(F, np.tile(offset[:, None], (1, T, 1)), np.tile(0.04 * np.eye(2), (M, T, 1, 1)))
    model: Any = SimpleNamespace(dynamics=noise, lengths=np.array([T, T]))
    for h in (1, 5):
        found = predict(model, trajectories, h)
        assert found is not None
        error = found.predicted - found.truth
        assert {tuple(np.round(row, 9)) for row in error} == {tuple(h * row) for row in offset}
        np.testing.assert_allclose(found.spread, 0.2 * np.sqrt(h))
    assert predict(model, trajectories, T + 1) is None


def test_local_models_of_a_linear_system() -> None:
    """Dynamics and reward are what is fitted: no error, and the expert is as far ahead as it was predicted, within its KL."""
    options = {"policy_kwargs": {"net_arch": [8], "log_std_init": -2.0}, "min_std": 0.1, "dynamics": "niw"}
    model = small_mdgps(samples_per_condition=12, kl_step=0.2, gamma=0.95, **options)
    subject = as_subject(model)
    found = look(subject, Stage(subject, PointMass), seed=0, horizons=(1, 5))
    assert error_table(found.predictions, ["x", "v"])["relative"].max() < 0.05
    np.testing.assert_allclose(found.rewards["predicted"], found.rewards["reward"], atol=0.02)
    np.testing.assert_allclose(found.returns["imagined"], found.returns["real"], rtol=0.02)
    assert (found.ahead["model"] > 0.0).all()
    errors = found.conditions["ahead_real_error"]
    assert (np.abs(found.ahead["real"] - found.ahead["model"]) < 3.0 * errors).all() and (errors < found.ahead["model"]).all()
    weights = 0.95 ** found.kl["step"]
    assert float((weights * found.kl["kl"]).sum() / weights.sum()) == pytest.approx(0.2, rel=0.1)
    assert found.conditions["error_5"].max() < 0.05 and list(found.conditions["planned_steps"]) == [10, 10]


def test_an_expert_without_a_trust_region_is_the_policy() -> None:
    """Its KL is zero at each step that was planned; within a trust region the mean is no more than alpha."""
    found = {}
    for alpha in (0.2, 0.0):
        options = {"policy_kwargs": {"net_arch": [8], "log_std_init": -2.0}, "trust_region": alpha, "gamma": 0.95}
        subject = as_subject(small_aggrevated_oc(**options))
        found[alpha] = look(subject, Stage(subject, PointMass), seed=0, horizons=(1, 5)).kl
    weights = 0.95 ** found[0.2]["step"]
    assert 0.1 < float((weights * found[0.2]["kl"]).sum() / weights.sum()) <= 0.2 * 1.001
    assert found[0.0].shape == found[0.2].shape and (found[0.0]["kl"] == 0.0).all()


def test_what_needs_a_look() -> None:
    episodes = pd.DataFrame({"return": [1.0], "steps": [5]})
    start = {"steps": 20, "start": [0, 1, 2, 3]}

    def of(**tables: pd.DataFrame) -> dict[str, bool | None]:
        return {key.name: key.is_good for key in key_figures({"episodes": episodes, **tables})}

    kept = pd.DataFrame({**start, "model": [4.0, 5.0, 4.0, 5.0], "real": [3.0] * 4})
    assert of(ahead=kept)["ahead_real"] is True
    assert of(ahead=kept.assign(real=1.0))["ahead_real"] is False
    assert of(ahead=kept.assign(model=[-9.0, 9.0, -9.0, 9.5]))["ahead_real"] is None
    errors = pd.DataFrame({"steps": [1, 1, 5, 5], "relative": [0.1, 0.2, 0.6, 0.9]})
    assert of(prediction=errors) == {"return": None, "error_1": True, "error_5": False}
    critic = pd.DataFrame({"critic": [1.0, 2.0, 3.0], "realised": [11.0, 12.0, 13.0]})
    assert of(critic=critic)["critic_correlation"] is True and of(critic=critic)["critic_bias"] is False
