"""Logged data: read from all that holds them, checked, and given to models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import (
    Make,
    check_transitions,
    every,
    parameters,
    small_aggrevated_oc,
    small_dagger,
    small_dpi,
    small_dual_ac,
    small_exit,
    small_mdgps,
    small_mpc,
    small_ppo,
    small_sac,
    with_references,
)
from dummy_envs import POINT_MASS_ID, POINT_MASS_LIMIT, DictPointMass, limited, pushed, vec_env
from gymnasium import spaces
from logged_data import assert_same, sampled, write_csv
from small_tasks import MassSpringChain
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_dpi import DPI, MPC
from sb3_dpi.common.logged import LoggedEpisodes, beside
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.data import DataError, Episodes, fill, read
from sb3_dpi.data.__main__ import main

# ---------------------------------------------------------------------- reading


def test_files_of_episodes(tmp_path: Path) -> None:
    episodes = sampled()
    episodes.save(tmp_path / "npz")
    assert_same(read(tmp_path / "npz"), episodes)
    assert read(tmp_path / "npz").action_space == episodes.action_space
    for last_row in (True, False):
        write_csv(tmp_path / "log.csv", episodes, last_row)
        assert_same(read(tmp_path / "log.csv", POINT_MASS_ID), episodes)
    d4rl: dict[str, Any] = {
        "observations": np.concatenate([np.asarray(each.observations)[:-1] for each in episodes.episodes]),
        "next_observations": np.concatenate([np.asarray(each.observations)[1:] for each in episodes.episodes]),
        "actions": np.concatenate([each.actions for each in episodes.episodes]),
        "rewards": np.concatenate([each.rewards for each in episodes.episodes]),
        "terminals": np.concatenate([each.terminated for each in episodes.episodes]),
        "timeouts": np.concatenate([each.truncated for each in episodes.episodes]),
    }
    np.savez(tmp_path / "d4rl.npz", **d4rl)
    assert_same(read(tmp_path / "d4rl.npz"), episodes)
    half = replace(episodes, episodes=tuple(replace(each, actions=each.actions / 2.0) for each in episodes.episodes))
    half.save(tmp_path / "half")
    wide = limited(POINT_MASS_LIMIT, low=-2.0, high=2.0)
    assert_same(read(tmp_path / "half", wide, actions_in="bounds"), episodes)


def test_dictionaries(tmp_path: Path) -> None:
    env = gym.wrappers.TimeLimit(DictPointMass(("velocity", "position")), 8)
    episodes = sampled(env=env)
    episodes.save(tmp_path)
    again = read(tmp_path)
    for key in ("velocity", "position"):
        np.testing.assert_array_equal(again.episodes[1].observations[key], episodes.episodes[1].observations[key])
    model = small_dpi(env, "MultiInputPolicy")
    fill(model, again)
    assert len(model.memory) == 48
    np.testing.assert_allclose(
        read(model.replay_buffer).episodes[2].observations["velocity"], episodes.episodes[2].observations["velocity"]
    )


def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(limited(POINT_MASS_LIMIT, death=(4, 9)))
    expected = sampled(5, env)
    dataset = env.create_dataset("sb3_dpi/point-v0", description="made by a test")
    for source in (dataset, "sb3_dpi/point-v0", tmp_path / "sb3_dpi" / "point-v0"):
        found = read(source)
        assert_same(found, expected)
        assert found.action_space == expected.action_space
    assert {bool(each.terminated[-1]) for each in expected.episodes} == {True}
    assert main(["check", str(tmp_path / "sb3_dpi" / "point-v0"), "--env", POINT_MASS_ID]) == 0
    with pytest.raises(DataError, match="neither a file nor a Minari dataset"):
        read("sb3_dpi/none-v0")


@pytest.mark.parametrize("n_envs", [1, 2])
def test_replay_buffers(n_envs: int, tmp_path: Path) -> None:
    """What DPI has kept is read as episodes, and fills another DPI of any number of environments, in order of time."""
    env = vec_env(n_envs, lambda: limited(POINT_MASS_LIMIT, low=-2.0, high=3.0))
    model = small_dpi(VecNormalize(env)).learn(40)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    for source in (model.replay_buffer, tmp_path / "buffer.pkl"):
        episodes = read(source)
        assert episodes.n_steps == 40
        assert [len(each) for each in episodes.episodes if each.truncated[-1]] == [POINT_MASS_LIMIT] * (
            3 if n_envs == 1 else 2
        )
        assert 1.0 < max(np.abs(each.actions).max() for each in episodes.episodes) <= 3.0
    other = small_dpi(vec_env(4, lambda: limited(POINT_MASS_LIMIT, low=-2.0, high=3.0)))
    fill(other, episodes)
    assert len(other.memory) == 40 and other.time_limit == POINT_MASS_LIMIT
    check_transitions(other)


def test_a_full_ring_is_read_from_its_oldest_step() -> None:
    episodes = sampled(5)
    small = ReplayBuffer(50, episodes.observation_space, episodes.action_space, "cpu")  # type: ignore[arg-type]
    model = small_dpi(buffer_size=100)
    fill(model, episodes)
    rows = model.replay_buffer
    for t in range(60):
        infos = [{"TimeLimit.truncated": bool(rows.timeouts[t, 0])}]
        small.add(rows.observations[t], rows.next_observations[t], rows.actions[t], rows.rewards[t], rows.dones[t], infos)
    kept = read(small)
    assert [len(each) for each in kept.episodes] == [2, 12, 12, 12, 12]
    assert_same(replace(kept, episodes=kept.episodes[1:]), replace(episodes, episodes=episodes.episodes[1:]))


def test_whole_numbers_come_back_in_their_units() -> None:
    """A buffer keeps fractions of their range, and not the range."""

    class Whole(gym.ActionWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(limited(POINT_MASS_LIMIT))
            self.action_space = spaces.Box(-5, 5, (1,), np.int32)

        def action(self, action: Any) -> np.ndarray:
            return np.asarray(action, np.float32) / np.float32(5.0)

    model = small_dpi(Whole()).learn(40)
    episodes = read(model.replay_buffer, Whole())
    actions = np.concatenate([each.actions for each in episodes.episodes])
    assert 2.0 < np.abs(actions).max() <= 5.0
    for source in (model.replay_buffer, episodes):
        again = small_dpi(Whole())
        fill(again, source)
        np.testing.assert_allclose(again.memory.buffer.actions[:40], model.memory.buffer.actions[:40], atol=1e-6)


# ---------------------------------------------------------------------- learning


@with_references(off_policy=True, imitates=False)
def test_off_policy_algorithms_learn_from_it(make: Make) -> None:
    model = make(limited(POINT_MASS_LIMIT))
    before = parameters(model)
    fill(model, sampled(10))
    assert model.replay_buffer.size() == 120
    model.learn(40)
    assert parameters(model) != before
    with pytest.raises(DataError, match="buffer_size=120000"):
        fill(model, replace(sampled(1), episodes=sampled(1).episodes * 10_000))


REFUSES: dict[str, tuple[Callable[[], Any], str]] = {
    "DAgger": (small_dagger, "DAgger imitates what its expert or search says of each state, which logged data do not hold"),
    "ExIt": (small_exit, "ExIt imitates what its expert or search says"),
    "MPC": (lambda: small_mpc(system="simulator"), "plans in a given system and learns nothing"),
    "DualAC": (small_dual_ac, "DualAC learns from its own samples alone: start from data with DPI, MPC"),
    "PPO": (small_ppo, "PPO learns from its own samples alone"),
    "DQN": (lambda: DQN("MlpPolicy", pushed(limited(12))), r"DQN acts by Discrete\(3\): only Box actions start from data"),
    "SAC": (
        lambda: small_sac(optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False}),
        "loses the last observations of episodes",
    ),
    "DPI": (lambda: small_dpi(vec_env(100, lambda: limited(12))), "has 72 steps, fewer than the 100 environments"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_who_cannot_start_from_data_says_so(name: str) -> None:
    make, words = REFUSES[name]
    model = make()
    before = parameters(model)
    with pytest.raises(DataError, match=words):
        fill(model, sampled())
    assert parameters(model) == before
    assert getattr(model, "replay_buffer", None) is None or model.replay_buffer.size() == 0


def test_mpc_plans_by_them_from_the_first_step() -> None:
    model = small_mpc()
    few = sampled(1)
    fill(model, few)
    assert model.n_iterations == 0 and model.steps_since_training == 12, "too few to fit"
    fill(model, sampled(9, seed=20))
    assert model.n_iterations == 1 and float(model.ensemble.n_seen) == 120, "nothing is left out, or counted twice"
    seen = np.concatenate([np.asarray(each.observations)[:-1] for each in (*few.episodes, *sampled(9, seed=20).episodes)])
    np.testing.assert_allclose(model.ensemble.state_mean.numpy(), seen.mean(0), atol=1e-6)
    planned: list[np.ndarray] = []
    plan = MPC._plan

    def counted(*args: Any, **kwargs: Any) -> Any:
        planned.append(plan(model, *args, **kwargs))
        return planned[-1]

    model._plan = counted  # type: ignore[method-assign]
    model.learn(40)
    assert len(planned) == 40
    check_transitions(model)
    assert len(model.memory) == 160


class Reach(DictPointMass):
    """A point mass that shall come to a place."""

    def __init__(self) -> None:
        super().__init__(("state", "position"))
        box: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        seen = {"observation": spaces.Box(-np.inf, np.inf, (2,), np.float32), "achieved_goal": box, "desired_goal": box}
        self.observation_space = spaces.Dict(seen)

    def observation(self) -> Any:
        """:return: dictionary of a task with goals"""
        state = self.state.astype(np.float32)
        return {"observation": state, "achieved_goal": state[:1], "desired_goal": np.zeros(1, np.float32)}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, _: Any) -> np.ndarray:
        """:return: nearness"""
        nearness: np.ndarray = -np.abs(achieved - desired).sum(-1)
        return nearness


def test_buffers_that_read_on_find_where_episodes_end() -> None:
    """Returns of several steps, and goals of hindsight, are of one episode, also where it was left without a mark."""

    def left(episodes: Episodes) -> Episodes:
        nothing = [replace(each, truncated=np.zeros(len(each), bool)) for each in episodes.episodes]
        return replace(episodes, episodes=tuple(nothing))

    model = small_sac(n_steps=3)
    fill(model, left(sampled(5)))
    kept: Any = model.replay_buffer
    np.testing.assert_array_equal(np.flatnonzero(kept.timeouts), [11, 23, 35, 47, 59])
    every_row = kept._get_samples(np.arange(60))
    rewards = np.array([each.rewards for each in sampled(5).episodes])
    expected = rewards + np.pad(0.99 * rewards[:, 1:], ((0, 0), (0, 1))) + np.pad(0.99**2 * rewards[:, 2:], ((0, 0), (0, 2)))
    np.testing.assert_allclose(every_row.rewards.numpy().ravel(), expected.ravel(), rtol=1e-5)
    assert not every_row.dones.any(), "what was left has a value"
    model = small_sac(vec_env(2, lambda: limited(POINT_MASS_LIMIT)), n_steps=3)
    fill(model, left(sampled(5)))
    kept = model.replay_buffer
    # the third episode is parted among the environments
    np.testing.assert_array_equal(np.flatnonzero(kept.timeouts[:, 0]), [11, 23, 29])
    np.testing.assert_array_equal(np.flatnonzero(kept.timeouts[:, 1]), [5, 17, 29])
    env = gym.wrappers.TimeLimit(Reach(), POINT_MASS_LIMIT)
    model = small_sac(env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer)
    fill(model, left(sampled(5, env)))
    kept = model.replay_buffer
    np.testing.assert_array_equal(kept.ep_length[:60, 0], 12)
    np.testing.assert_array_equal(kept.ep_start[:60, 0], np.repeat(np.arange(5) * 12, 12))
    # a plain buffer says it as it was: DPI tells a break by its observations
    plain = small_dpi()
    fill(plain, left(sampled(5)))
    assert not plain.memory.buffer.dones.any()


def test_offline_needs_no_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same from spaces alone as with an environment in hand; then it goes on in one."""
    episodes = sampled(10)
    assert episodes.observation_space is not None and episodes.action_space is not None
    options: dict[str, Any] = {
        "train_freq": 40,
        "imagination": {"n_windows": 10, "horizon": 2, "n_rollout_steps": 50},
        "update_to_data": 0.02,
        "world_model": {"width": 16},
        "policy_kwargs": {"net_arch": {"pi": [16, 16], "qf": [16, 16]}},
        "preset": {"kind": "corrected", "train_freq": 40},
        "seed": 0,
        "verbose": 1,
    }
    models = [
        DPI.without_env("MlpPolicy", episodes.observation_space, episodes.action_space, **options),
        DPI("MlpPolicy", limited(POINT_MASS_LIMIT), **options),
    ]
    for model in models:
        fill(model, episodes)
        model.learn_offline(30, log_interval=1)
        assert model.num_timesteps == 0 and model._n_updates == 30 and model.n_iterations == 1
    assert parameters(models[0]) == parameters(models[1])
    model = models[0]
    seen = float(model.ensemble.n_seen)
    model.learn_offline(50, progress_bar=True)
    out = capsys.readouterr().out
    assert "DPI: 40 updates are done; the other 10 take some" in out and "50/50" in out
    assert float(model.ensemble.n_seen) == seen == 120, "nothing is counted twice"
    fill(model, sampled(2, seed=50))
    model.learn_offline(5)
    assert float(model.ensemble.n_seen) == 144
    model.save(tmp_path / "model")
    again = DPI.load(tmp_path / "model")
    actions = [each.predict(np.ones(2, np.float32), deterministic=True)[0] for each in (again, model)]
    np.testing.assert_array_equal(actions[0], actions[1])
    heard: list[str] = []

    class Listener(BaseCallback):
        def _on_training_start(self) -> None:
            heard.append(f"{self.locals['n_updates']} updates")

        def _on_step(self) -> bool:
            heard.append(f"{self.model._n_updates - before}, {self.locals['done']}")
            return self.n_calls < 2

        def _on_training_end(self) -> None:
            heard.append("end")

    assert model.preset_ is not None
    before, block = model._n_updates, model.preset_.train_freq
    model.learn_offline(9 * block, [Listener()], log_interval=1)
    assert heard == [f"{9 * block} updates", f"{block}, {block}", f"{2 * block}, {2 * block}", "end"]
    model.set_env(limited(POINT_MASS_LIMIT))
    model.learn(40)
    assert model.num_timesteps == 40 and len(model.memory) == 184
    with pytest.raises(ValueError, match="holds 0 steps"):
        small_dpi().learn_offline(1)
    for n_updates in (0, 2.5):
        with pytest.raises(ValueError, match="n_updates must be an integer of at least 1"):
            model.learn_offline(n_updates)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"A space is None.*read\(source, env\)"):
        DPI.without_env("MlpPolicy", episodes.observation_space, None)  # type: ignore[arg-type]


def test_pessimism_takes_off_what_members_disagree_about() -> None:
    model = small_dpi(world_model={"pessimism": 2.0})
    fill(model, sampled(10))
    model.learn_offline(5)
    ensemble = model.ensemble
    states, actions = th.zeros(3, 2), th.tensor([[0.0], [0.5], [-1.0]])
    outputs = ensemble.networks(th.cat([states, actions], 1)).detach().numpy().astype(np.float64)
    apart = np.sqrt(outputs.var(0).mean(-1) + 1e-8)
    earned = ensemble.reward(states, actions, states, th.ones(3)).detach().numpy()
    np.testing.assert_allclose(earned, 1.0 - 2.0 * float(ensemble.change_std[-1]) * apart, rtol=1e-5)
    assert (apart > 1e-3).all()
    with pytest.raises(ValueError, match="pessimism must be at least 0"):
        small_dpi(world_model={"pessimism": -1.0})


# ---------------------------------------------------------------------- local models


def logged_line(starts: list[float], n: int = 7) -> LoggedEpisodes:
    """:return: episodes that count upwards from their starts"""
    states = np.concatenate([start + np.arange(n) for start in starts])[:, None].astype(float)
    begins = np.arange(len(starts)) * n
    nothing = np.zeros(len(states), bool)
    nothing[n - 1 :: n] = True
    return LoggedEpisodes(states, states + 1.0, 0.1 * states, -states[:, 0], nothing, begins)


def test_episodes_are_cut_into_windows() -> None:
    windows = logged_line([0.0, 100.0]).windows(4, aligned=False)
    np.testing.assert_array_equal(windows.states[0, :, 0, 0], [0, 4, 100, 104])
    np.testing.assert_array_equal(windows.alive[0].sum(-1), [4, 3, 4, 3])
    np.testing.assert_array_equal(windows.states[0, 1, :4, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(windows.terminated[0].sum(-1), [0, 1, 0, 1])
    aligned = logged_line([0.0, 100.0]).windows(4, aligned=True)
    np.testing.assert_array_equal(aligned.states[0, :, 0, 0], [0, 100])


def test_logged_episodes_join_the_condition_that_begins_nearest() -> None:
    states = np.broadcast_to(np.array([0.0, 50.0, 100.0])[:, None, None, None], (3, 2, 5, 1)).copy()
    own = Trajectories(
        states, states, np.zeros((3, 2, 4, 1)), np.zeros((3, 2, 4)), np.ones((3, 2, 4), bool), np.zeros((3, 2, 4), bool)
    )
    together, grouped = beside(own, logged_line([99.0, 2.0, 103.0, -1.0, 90.0]), time_aligned=True)
    assert grouped and together.alive.shape == (6, 3, 4)
    np.testing.assert_array_equal(together.states[3, :, 0, 0][together.alive[3, :, 0]], [-1.0, 2.0])
    assert not together.alive[4].any()
    np.testing.assert_array_equal(together.states[5, :, 0, 0][together.alive[5, :, 0]], [99.0, 103.0, 90.0])
    pooled, grouped = beside(own, logged_line([99.0, 2.0]), time_aligned=False)
    assert not grouped and pooled.alive.shape == (4, 4, 4)


@every(from_conditions=True)
@pytest.mark.parametrize("dynamics", ["nearest", "niw", "gmm"])
def test_only_dynamics_and_cost_see_them(make: Make, dynamics: str) -> None:
    """Values, linearisation and imitation are about the samples of the model's own policy."""
    alone, helped = (make(env=limited(30), dynamics=dynamics, conditions="fixed") for _ in range(2))
    fill(helped, sampled(20))
    fits = []
    for model in (alone, helped):
        model._setup_learn(40)
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
        trajectories = model.recall()
        model.standardize(trajectories)
        fits.append(model.fit_model(trajectories))
    for name in ("K", "k", "cov"):
        np.testing.assert_array_equal(getattr(fits[0].policy, name), getattr(fits[1].policy, name))
    np.testing.assert_array_equal(fits[0].initial.mean, fits[1].initial.mean)
    assert fits[0].dynamics.F.shape == fits[1].dynamics.F.shape
    truth = np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.2]])
    errors = [np.abs(fit.dynamics.F - truth).mean() for fit in fits]
    assert errors[1] < errors[0]
    assert np.abs(fits[0].cost.C - fits[1].cost.C).max() > 0.0
    helped.train()


def test_logged_episodes_survive_saving(tmp_path: Path) -> None:
    model = small_mdgps(env=limited(30))
    fill(model, sampled(5))
    fill(model, sampled(3, seed=9))
    model.save(tmp_path / "model")
    logged = type(model).load(tmp_path / "model").logged
    assert logged is not None and logged.states.shape == (96, 2)
    np.testing.assert_array_equal(logged.begins, 12 * np.arange(8))
    with pytest.raises(ValueError, match="of one task"):
        fill(small_mdgps(env=[lambda: limited(30), lambda: limited(30)]), sampled(3))


@pytest.mark.parametrize(
    "make, threshold, options",
    [
        (small_mdgps, -10.3, {"samples_per_condition": 4, "replay": 2, "kl_step": 1.0, "imitation_steps": 100}),
        (small_aggrevated_oc, -12.1, {"samples_per_condition": 3, "target_kl": 1.0, "trust": 1.0, "n_critic_updates": 10}),
    ],
)
def test_fewer_real_steps_to_the_threshold(make: Callable[..., Any], threshold: float, options: dict[str, Any]) -> None:
    """A chain of masses has ten numbers: a few trajectories alone say little of its dynamics."""

    def task() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(MassSpringChain(), 20)

    def steps_until(episodes: Episodes | None) -> int:
        model = make(env=task(), seed=1, horizon=20, conditions="random", n_conditions=1, **common, **options)
        if episodes is not None:
            fill(model, episodes)
        while model.n_iterations < 3:
            model.learn(1, reset_num_timesteps=False)
            if mean_return(model, task()) >= threshold:
                return int(model.num_timesteps)
        return 2 * int(model.num_timesteps)

    common = {"learning_rate": 3e-3, "policy_kwargs": {"net_arch": [16]}} if make is small_mdgps else {}
    assert steps_until(sampled(60, task(), seed=1000)) < steps_until(None)


def mean_return(model: Any, env: gym.Env[Any, Any], n: int = 10) -> float:
    """:return: of the policy's mean over the same episodes"""
    total = 0.0
    for seed in range(500, 500 + n):
        obs, ended = env.reset(seed=seed)[0], False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(model.predict(obs, deterministic=True)[0])
            total, ended = total + float(reward), terminated or truncated
    return total / n
