"""Early resets as everything above the layer sees them: stacks of wrappers, callbacks, evaluations, the log."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from algorithms import Make, every
from dummy_envs import ImagePointMass, counters, limited, vec_env
from leaving import Seen, leaving, long_counters, steps
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    sync_envs_normalization,
)

from sb3_dpi.common.early_resets import EarlyReset, ResetLayer, install


class Shifted(VecEnvWrapper):
    """Adds a hundred to what is observed."""

    def reset(self) -> Any:
        """:return: observations"""
        return self.venv.reset() + 100.0

    def step_wait(self) -> Any:
        """:return: observations, rewards, dones, infos"""
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"] + 100.0
        return obs + 100.0, rewards, dones, infos


def test_without_limits_nothing_is_changed() -> None:
    plain, layered = counters(), install(counters())
    np.testing.assert_array_equal(plain.reset(), layered.reset())
    for ours, theirs in zip(steps(layered, 30), steps(plain, 30), strict=True):
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        assert str(ours[3]) == str(theirs[3])


STACKS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "shift": Shifted,
    "monitor, shift": lambda env: Shifted(VecMonitor(env)),
    "shift, monitor": lambda env: VecMonitor(Shifted(env)),
    "shift, frames": lambda env: VecFrameStack(Shifted(env), 2),
    "frames, shift": lambda env: Shifted(VecFrameStack(env, 2)),
}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("stack", STACKS)
def test_stacks_of_wrappers(stack: str, n_envs: int) -> None:
    """The algorithm sees what its wrapper shows, and no episode longer than the longest possible."""
    seen = Seen()
    env = STACKS[stack](long_counters(n_envs))
    model = leaving(env)
    model.learn(64 * n_envs, callback=seen)
    assert model.env is env
    latest = np.array(seen.observations)[..., -3:]
    assert latest.min() >= 100.0
    ends = np.array(seen.dones)
    assert np.all(ends[3::4]) and ends.sum() == 16 * n_envs
    np.testing.assert_array_equal(latest[ends][:, 2], 100.0)
    for info in seen.infos:
        if info.get("early_reset", False):
            np.testing.assert_array_equal(info["terminal_observation"][-1], 104.0)
            assert info.get("episode", {"l": 4})["l"] == 4
    lengths = [info["episode"]["l"] for info in seen.infos if "episode" in info]
    assert len(lengths) == (16 * n_envs if "monitor" in stack else 0)


@pytest.mark.parametrize("wrap", [lambda env: VecNormalize(VecMonitor(env)), lambda env: VecMonitor(VecNormalize(env))])
def test_normalised_observations(wrap: Callable[[VecEnv], VecEnv]) -> None:
    seen = Seen()
    model = leaving(wrap(long_counters(2)))
    model.learn(64, callback=seen)
    early = [info for info in seen.infos if info.get("early_reset", False)]
    assert len(early) == 16 and all(np.abs(info["terminal_observation"]).max() <= 10.0 for info in early)
    assert all(info["episode"]["l"] == 4 for info in early)


def test_images_are_transposed() -> None:
    model = leaving(vec_env(1, ImagePointMass), "CnnPolicy")
    seen = Seen()
    assert isinstance(model.env, VecTransposeImage)
    model.learn(16, callback=seen)
    assert {info["terminal_observation"].shape for info in seen.infos if "terminal_observation" in info} == {(1, 36, 36)}


@pytest.mark.parametrize("n_envs", [1, 4])
def test_callbacks_see_the_ends(n_envs: int) -> None:
    model = leaving(long_counters(n_envs))
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps == 8 * n_envs


@pytest.mark.parametrize("normalize", [False, True])
def test_eval_callback(normalize: bool) -> None:
    """Chains of wrappers of equal length, no warning of other kinds, whole episodes in tests."""

    def make() -> VecEnv:
        env = VecMonitor(vec_env(2, lambda: limited(12)))
        return VecNormalize(env, gamma=0.9) if normalize else env

    model, test = leaving(make()), make()
    callback = EvalCallback(test, n_eval_episodes=2, eval_freq=16, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, callback=callback)
        assert model.env is not None
        sync_envs_normalization(model.env, test)
    _, lengths = evaluate_policy(model, test, 2, return_episode_rewards=True)
    assert lengths == [12, 12]
    _, lengths = evaluate_policy(model, model.get_env(), 4, return_episode_rewards=True)  # type: ignore[arg-type]
    assert lengths == [12] * 4, "also in the training environment, once learning is over"


def test_eval_callback_without_wrappers() -> None:
    model = leaving(vec_env(1, lambda: Monitor(limited(12))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(32, callback=EvalCallback(vec_env(1, lambda: Monitor(limited(12))), eval_freq=16, verbose=0))
    assert isinstance(model.env, DummyVecEnv) and type(model.env) is ResetLayer


def test_logged_episodes_are_those_that_count() -> None:
    model = leaving(vec_env(4, lambda: Monitor(limited(12))))
    model.settings = EarlyReset(8)
    model.learn(4000)
    assert len(model.ep_info_buffer) > 30 and all(episode["l"] == 12 for episode in model.ep_info_buffer)
    model.settings = EarlyReset(11, spread=False)
    model.learn(256)
    assert len(model.ep_info_buffer) == 0, "all are left before their end"
    model.settings = EarlyReset(0)
    model.learn(256)
    assert len(model.ep_info_buffer) == 4 * 5


def test_a_layer_that_is_there_is_used_again() -> None:
    env = VecMonitor(VecNormalize(long_counters(2)))
    layer = install(env)
    assert install(env) is layer and install(layer) is layer and env.venv.venv is layer  # type: ignore[attr-defined]
    first, second = leaving(env), leaving(env)
    second.settings = EarlyReset(6, spread=False)
    first.learn(32)
    seen = Seen()
    second.learn(32, callback=seen)
    assert first.reset_layer is second.reset_layer is layer
    assert [info["episode"]["l"] for info in seen.infos if "episode" in info] == [6] * 4


@every(leaves_episodes=True)
def test_every_algorithm_that_takes_steps_leaves_episodes(make: Make) -> None:
    """At its limit, not as a death; tests in the same environment go on to their end."""
    seen = Seen()
    env = long_counters(2)
    model = make(env, early_reset={"after": 5, "spread": False})
    model.learn(60, callback=seen)
    ends = np.flatnonzero(np.array(seen.dones)[:, 0])
    np.testing.assert_array_equal(ends, np.arange(4, len(seen.dones), 5))
    assert all(info["TimeLimit.truncated"] for info in seen.infos if info.get("early_reset", False))
    model.env.reset()
    assert not any(dones.any() for _, _, dones, _ in steps(model.env, 50))


@every(from_conditions=True)
def test_trajectories_from_conditions_take_their_seeds_from_the_layer(make: Make) -> None:
    """And leave nothing early: what is planned for has its horizon."""
    model = make(vec_env(2)).learn(1)
    layer = install(model.env)
    assert model.env is layer and layer.takes_seeds and not model.rollout_buffer.trajectories().terminated.any()
    wrapped = VecNormalize(vec_env(2))
    assert make(wrapped).learn(1).env is wrapped and install(wrapped).takes_seeds and type(wrapped.venv) is ResetLayer
