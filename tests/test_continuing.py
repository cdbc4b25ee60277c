"""Windows of episodes that go on: ``conditions`` "continue" and "mixed"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import Make, Model, every, parameters, small_aggrevated_oc
from dummy_envs import CONDITIONS, HORIZON, ITERATION, SAMPLES, PointMass, limited, vec_env
from leaving import Seen
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.common.trajectories import Trajectories


def recorded(make: Callable[..., Model] = small_aggrevated_oc, **options: Any) -> tuple[Model, list[Trajectories]]:
    """A model and the trajectories of its iterations."""
    model = make(**{"conditions": "continue", **options})
    seen: list[Trajectories] = []
    train = model.train

    def watched() -> None:
        seen.append(model.rollout_buffer.trajectories())
        train()

    model.train = watched
    return model, seen


def by_environment(trajectories: Trajectories, array: np.ndarray, n_envs: int) -> np.ndarray:
    """Trajectories in the order in which their environments took them, ``[n_batches, n_envs, ...]``."""
    flat = np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])
    return flat.reshape(-1, n_envs, *flat.shape[1:])


@pytest.mark.parametrize("n_envs", [1, 2])
@every(from_conditions=True)
def test_trajectories_follow_each_other(make: Make, n_envs: int) -> None:
    env = vec_env(n_envs)
    model, seen = recorded(make, env=env)
    model.learn(3 * ITERATION)
    windows = np.concatenate([by_environment(part, np.asarray(part.observations), n_envs) for part in seen])
    assert len(windows) == 3 * CONDITIONS * SAMPLES // n_envs
    np.testing.assert_array_equal(windows[1:, :, 0], windows[:-1, :, -1])
    for inner in env.get_attr("unwrapped"):
        assert len([seed for seed in inner.seeds if seed is not None and seed >= 2**16]) == 1, "one reset, at the beginning"
        assert inner.t == inner.n_steps == 3 * ITERATION // n_envs
    assert len({tuple(window[0]) for window in windows[0]}) == n_envs


def test_trajectories_follow_each_other_under_vec_normalize() -> None:
    model, seen = recorded(env=VecNormalize(vec_env(2)))
    model.learn(3 * ITERATION)
    windows = np.concatenate([by_environment(part, part.states, 2) for part in seen])
    np.testing.assert_allclose(windows[1:, :, 0], windows[:-1, :, -1], atol=1e-6)


@every(from_conditions=True)
def test_episodes_that_end_start_anew(make: Make) -> None:
    """A death ends the window, and the next one begins where the environment was reset to."""
    env = PointMass(death=(13, 27))
    model, seen = recorded(make, env=env, samples_per_condition=8)
    model.learn(480)
    states = np.concatenate([by_environment(part, part.states, 1)[:, 0] for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, 1)[:, 0] for part in seen])
    died = np.concatenate([by_environment(part, part.terminated, 1)[:, 0] for part in seen])
    assert died.sum() >= 10 and not alive.all()
    lengths = alive.sum(-1)
    for i in range(len(states) - 1):
        end, beginning = states[i, lengths[i]], states[i + 1, 0]
        if died[i].any():
            assert np.all(np.abs(beginning) <= 1.0) and not np.allclose(beginning, end)
        else:
            assert lengths[i] == HORIZON
            np.testing.assert_array_equal(beginning, end)
    assert np.all(died.sum(-1) <= 1) and model.num_timesteps == env.n_steps


def test_one_environment_may_end_while_others_go_on() -> None:
    makers = iter([PointMass(death=(4, 5)), PointMass()])
    model, seen = recorded(env=vec_env(2, lambda: next(makers)), samples_per_condition=4)
    model.learn(2 * model.n_steps * 2)
    windows = np.concatenate([by_environment(part, part.states, 2) for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, 2) for part in seen])
    np.testing.assert_array_equal(windows[1:, 1, 0], windows[:-1, 1, -1])
    assert alive[:, 1].all()
    # episodes of 4 steps within windows of 10: the third begins in the first window and goes on in the second
    np.testing.assert_array_equal(alive[:, 0].sum(-1)[:4], [4, 2, 4, 2])
    assert np.isfinite(parameters(model))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodes_that_go_on_are_reported_once(n_envs: int) -> None:
    """Windows are no episodes: what Monitor reports is all that is reported."""
    model, _ = recorded(env=vec_env(n_envs, lambda: Monitor(limited(25))), samples_per_condition=6)
    model.learn(4 * model.n_steps * n_envs)
    reported = [(info["r"], info["l"]) for info in model.ep_info_buffer or []]
    assert len(reported) == model.num_timesteps // n_envs // 25 * n_envs
    assert {length for _, length in reported} == {25}
    assert model.env is not None
    expected = [total for returns in model.env.env_method("get_episode_rewards") for total in returns]
    assert sorted(total for total, _ in reported) == pytest.approx(sorted(expected), abs=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_mixed_windows_go_on_or_begin_anew(n_envs: int) -> None:
    """Half of them, all environments at once; whatever begins anew has a seed of its own."""
    env = vec_env(n_envs, lambda: PointMass(death=(13, 40)))
    model, seen = recorded(env=env, conditions="mixed", samples_per_condition=40)
    model.learn(3 * model.n_steps * n_envs)
    states = np.concatenate([by_environment(part, part.states, n_envs) for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, n_envs) for part in seen])
    goes_on = []
    for i in range(len(states) - 1):
        cut = alive[i].all(-1) & ~np.concatenate([by_environment(part, part.terminated, n_envs) for part in seen])[i].any(-1)
        if cut.all():
            follows = [np.array_equal(states[i + 1, e, 0], states[i, e, -1]) for e in range(n_envs)]
            assert all(follows) or not any(follows)
            goes_on.append(follows[0])
    assert len(goes_on) > 50 and 0.3 < np.mean(goes_on) < 0.7
    seeds = [seed for inner in env.get_attr("unwrapped") for seed in inner.seeds if seed is not None and seed >= 2**16]
    assert len(seeds) == len(set(seeds)) > 50


def test_mixed_windows_report_every_episode_once() -> None:
    """Those that end by Monitor, those that are left when a window is cut by what was sampled of them."""
    model, _ = recorded(env=vec_env(1, lambda: Monitor(limited(25))), conditions="mixed", samples_per_condition=20)
    model.learn(2 * model.n_steps)
    lengths = [info["l"] for info in model.ep_info_buffer or []]
    assert set(lengths) == {10, 20, 25}
    returns, running = model._cut_episodes[:, 0]
    assert sum(lengths) + running == model.num_timesteps
    assert model.env is not None
    assert running == 0.0 or returns == pytest.approx(sum(model.env.get_attr("rewards")[0]), abs=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2])
@every(from_conditions=True)
def test_callbacks_are_told_of_episodes_that_mixed_windows_leave(make: Make, n_envs: int) -> None:
    """Every reset follows an end that was told of, with its return and length; what goes on has not ended."""
    env, seen = vec_env(n_envs), Seen()
    make(env, conditions="mixed", samples_per_condition=20).learn(1, callback=seen)
    inner = env.get_attr("unwrapped")[0]
    resets = len([seed for seed in inner.seeds if seed is not None and seed >= 2**16])
    told = np.array(seen.dones)[:-1].sum(0)  # nobody knows yet what follows the last step
    assert set(told) == {resets - 1} and 3 < resets < 40 // n_envs
    ends = np.flatnonzero(np.array(seen.dones)[:, 0])
    lengths = [info["episode"]["l"] for info in seen.infos[::n_envs] if "episode" in info]
    np.testing.assert_array_equal(lengths, np.diff(ends, prepend=-1))
    stopped = make(vec_env(n_envs), conditions="mixed").learn(10**5, callback=StopTrainingOnMaxEpisodes(3))
    assert stopped.num_timesteps < 10**4


def test_learning_goes_on_after_loading_windows(tmp_path: Path) -> None:
    model, _ = recorded(replay=1)
    model.learn(2 * ITERATION)
    del model.train
    model.save(tmp_path / "model")
    env = PointMass()
    loaded = AggreVaTeDOC.load(tmp_path / "model", env=env)
    assert loaded.conditions == "continue"
    loaded.learn(2 * ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.n_iterations) == (4 * ITERATION, 4)
    assert env.t == env.n_steps == 2 * ITERATION, "one episode"
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert env.t == ITERATION, "learning anew begins anew"


def test_windows_after_a_stop_begin_anew() -> None:
    """A callback may stop inside of a window; the next call to learn does not go on in its middle."""
    env = PointMass()
    model, seen = recorded(env=env)
    model.learn(ITERATION, callback=lambda variables, _: variables["self"].num_timesteps < 17)
    assert model.n_iterations == 0
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.n_iterations == 1 and env.t == ITERATION
    assert seen[0].alive.all()
