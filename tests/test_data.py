"""Logged data: read from all that holds them, checked, and given to models."""

import csv
import pickle
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
    off_policy,
    parameters,
    small_aggrevated_oc,
    small_dpi,
    small_dual_ac,
    small_mdgps,
)
from dummy_envs import POINT_MASS_ID, POINT_MASS_LIMIT, DictPointMass, limited, vec_env
from small_tasks import MassSpringChain
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI
from sb3_dpi.common.logged import LoggedEpisodes, beside
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.data import DataError, Episode, Episodes, check, fill, read
from sb3_dpi.data.__main__ import main


def sampled(n: int = 6, env: gym.Env[Any, Any] | None = None, seed: int = 0) -> Episodes:
    """:return: episodes of uniform actions"""
    env = limited(POINT_MASS_LIMIT) if env is None else env
    env.action_space.seed(seed)
    episodes = []
    for i in range(n):
        seen, steps, ended = [env.reset(seed=seed + i)[0]], [], False
        while not ended:
            action = env.action_space.sample()
            obs, reward, terminated, truncated, _ = env.step(action)
            seen.append(obs)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        observations = {key: np.array([obs[key] for obs in seen]) for key in seen[0]} if isinstance(seen[0], dict) else seen
        columns = [np.array(column) for column in zip(*steps, strict=True)]
        episodes.append(Episode(observations if isinstance(observations, dict) else np.array(observations), *columns))
    return Episodes(tuple(episodes), "sampled", env.observation_space, env.action_space)  # type: ignore[arg-type]


def assert_same(first: Episodes, second: Episodes) -> None:
    assert len(first) == len(second)
    for one, other in zip(first.episodes, second.episodes, strict=True):
        for name in ("observations", "actions", "rewards", "terminated", "truncated"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)


def write_csv(path: Path, episodes: Episodes, last_row: bool = True, order: Callable[[list[Any]], Any] = list) -> None:
    """A file with the last observation of each episode in a row without action, or in columns of what came next."""
    rows = []
    for number, each in enumerate(episodes.episodes):
        seen = np.asarray(each.observations)
        for t in range(len(each)):
            after = [] if last_row else seen[t + 1].tolist()
            rows.append(
                [number, t, *seen[t], *each.actions[t], each.rewards[t], each.terminated[t], each.truncated[t], *after]
            )
        if last_row:
            rows.append([number, len(each), *seen[-1], "", "", "", ""])
    header = ["episode", "t", "obs_0", "obs_1", "action_0", "reward", "terminated", "truncated"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *([] if last_row else ["next_obs_0", "next_obs_1"])])
        writer.writerows(order(rows))


# ---------------------------------------------------------------------- reading


def test_files_of_episodes(tmp_path: Path) -> None:
    episodes = sampled()
    episodes.save(tmp_path / "npz")
    assert_same(read(tmp_path / "npz"), episodes)
    assert read(tmp_path / "npz").action_space == episodes.action_space
    for last_row in (True, False):
        write_csv(tmp_path / "log.csv", episodes, last_row)
        assert_same(read(tmp_path / "log.csv", POINT_MASS_ID), episodes)
    d4rl = {
        "observations": np.concatenate([each.observations[:-1] for each in episodes.episodes]),
        "next_observations": np.concatenate([each.observations[1:] for each in episodes.episodes]),
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


# ---------------------------------------------------------------------- checking


def spoiled(**changes: Callable[[Episode], Any]) -> Episodes:
    episodes = sampled(20)
    changed = (replace(each, **{name: of(each) for name, of in changes.items()}) for each in episodes.episodes)
    return replace(episodes, episodes=tuple(changed))


def with_nan(each: Episode) -> np.ndarray:
    rewards = each.rewards.copy()
    rewards[3] = np.nan
    return rewards


WRONG = {
    "rewards are not finite .* in 20 rows, first in episode 0, step 3": {"rewards": with_nan},
    "Observations have shape \\(1,\\), those of the environment \\(2,\\)": {
        "observations": lambda each: each.observations[:, :1]
    },
    "Actions have 2 numbers": {"actions": lambda each: np.repeat(each.actions, 2, 1)},
    "actions are beyond their bounds, in entry 0 .*other units": {"actions": lambda each: 10.0 * each.actions},
    "same length of 12 steps, as a time limit": {
        "terminated": lambda each: each.truncated,
        "truncated": lambda each: each.terminated,
    },
    "20 episodes go on after a step that ended them": {"terminated": lambda each: np.arange(len(each)) == 5},
    "actions are written a row late": {"actions": lambda each: np.concatenate([each.actions[:1], each.actions[:-1]])},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said(words: str) -> None:
    episodes = spoiled(**WRONG[words])
    assert not [finding for finding in check(sampled(20)) if finding.is_error]
    errors = [finding.text for finding in check(episodes) if finding.is_error]
    assert len(errors) == 1
    with pytest.raises(DataError, match=words):
        fill(small_dpi(), episodes)


def test_what_is_merely_told() -> None:
    tame = spoiled(observations=lambda each: np.concatenate([each.observations[:, :1], 0.0 * each.observations[:, 1:]], 1))
    assert any("never change in entry 1" in str(finding) for finding in check(tame))
    left = spoiled(truncated=lambda each: np.zeros(len(each), bool))
    assert any("20 episodes end without a mark" in str(finding) for finding in check(left))
    wide = sampled().action_space
    space = gym.spaces.Box(2.0 * wide.low, 2.0 * wide.high)  # type: ignore[union-attr]
    assert any("actions_in='bounds'" in str(finding) for finding in check(sampled(20), action_space=space))


def test_late_actions_that_move_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a pendulum's three numbers only the speed tells of the action, and a column that is not read is named."""
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    rows, before, seen = list[list[Any]](), 0.0, env.reset(seed=0)[0]
    for _ in range(200):
        action = env.action_space.sample()
        row = [*seen, action[0], before]
        seen, reward, _, is_cut, _ = env.step(action)
        rows.append([*row, reward, is_cut, False])
        before = float(action[0])
    for names, is_late in (("action_0,previous", False), ("previous,action_0", True)):
        text = f"obs_0,obs_1,obs_2,{names},reward,truncated,done\n"
        (tmp_path / "log.csv").write_text(text + "\n".join(",".join(map(str, row)) for row in rows))
        assert main(["check", str(tmp_path / "log.csv"), "--env", "Pendulum-v1"]) == 0
        out = capsys.readouterr().out
        assert ("written a row late?" in out) == is_late
        assert "has done, previous, which is not read: call the ends of the task terminated" in out


def test_rows_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for order, words in (
        (lambda rows: rows[::-1], "time runs back"),
        (lambda rows: sorted(rows, key=lambda row: row[1]), "not one below the other"),
    ):
        write_csv(tmp_path / "log.csv", sampled(), order=order)
        assert main(["check", str(tmp_path / "log.csv"), "--env", POINT_MASS_ID]) == 1
        assert words in capsys.readouterr().out


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    for text, words in (
        ("obs_0,action_0,reward\n1,x,3\n", "line 2 has 'x' in column 'action_0'"),
        ("obs_0,action_0,reward\n1,3\n", "line 2 has 2 cells, the header 3"),
        ("1,2,3\n4,5,6\n", "has no header"),
        ("obs_0,reward\n1,2\n", "has no actions"),
        ("obs_0,action_0,reward\n", "holds no step"),
        ("obs_0;action_0;reward\n1;2;3\n", "parts its cells by semicolons"),
        ("obs_0,obs_0,action_0,reward\n1,1,2,3\n", "names columns twice: obs_0"),
        ("obs_0,action_0,reward,episode\n1,2,3,0\n1,2,3,\n", "episode is empty in 1 rows, first in row 1"),
        ("\N{BYTE ORDER MARK}obs_0,action_0,reward\n1,x,3\n", "line 2 has 'x' in column 'action_0'"),
        ("obs_0,action_0,reward,terminated\n1,0,1,0\n2,0,1,1\n", "end with a termination whose observation is missing"),
    ):
        path.write_text(text, encoding="utf-8")
        assert main(["check", str(path)]) == 1
        assert words in capsys.readouterr().out
    for name, words in (
        ("log.csv", "cannot be read as csv"),
        ("log.npz", "is no npz file"),
        ("log.pkl", "cannot be read as pickle"),
    ):
        (tmp_path / name).write_bytes(bytes(range(128, 256)))
        assert main(["check", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().out
    write_csv(path, sampled())
    assert main(["check", str(path), "--env", "Nowhere-v0"]) == 1
    assert "'Nowhere-v0' cannot be made" in capsys.readouterr().out
    with (tmp_path / "other.pkl").open("wb") as file:
        pickle.dump([1, 2], file)
    with pytest.raises(DataError, match="holds a list, not a ReplayBuffer"):
        read(tmp_path / "other.pkl")
    assert main(["check", str(tmp_path / "missing.npz")]) == 1
    with pytest.raises(DataError, match="own samples alone"):
        fill(small_dual_ac(), sampled())


# ---------------------------------------------------------------------- learning


@off_policy
def test_off_policy_algorithms_learn_from_it(make: Make) -> None:
    model = make(limited(POINT_MASS_LIMIT))
    before = parameters(model)
    fill(model, sampled(10))
    assert model.replay_buffer.size() == 120
    model.learn(40)
    assert parameters(model) != before
    with pytest.raises(DataError, match="buffer_size=120000"):
        fill(model, replace(sampled(1), episodes=sampled(1).episodes * 10_000))


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
    np.testing.assert_array_equal(*(each.predict(np.ones(2, np.float32), deterministic=True)[0] for each in (again, model)))
    heard: list[str] = []

    class Listener(BaseCallback):
        def _on_training_start(self) -> None:
            heard.append(f"{self.locals['n_updates']} updates")

        def _on_step(self) -> bool:
            heard.append(f"{self.model._n_updates - before}, {self.locals['done']}")
            return self.n_calls < 2

        def _on_training_end(self) -> None:
            heard.append("end")

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
                return model.num_timesteps
        return 2 * model.num_timesteps

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
