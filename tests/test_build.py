"""From hyperparameters in RL Zoo's format to environments and models."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from dummy_envs import POINT_MASS_ID
from stable_baselines3 import PPO, SAC, HerReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_dpi.compare import RunConfig, build_model
from sb3_dpi.compare.build import constructor_arguments, make_env

SMALL = {"policy": "MlpPolicy", "policy_kwargs": "dict(net_arch=[8])"}


def config(algo: str = "ppo", hyperparams: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    settings = {"env_id": POINT_MASS_ID, "seed": 1, "n_timesteps": 64, "n_eval_episodes": 3, **changes}
    return RunConfig(algo, hyperparams={**SMALL, **(hyperparams or {})}, **settings)


# ---------------------------------------------------------------------- arguments


def test_keys_for_the_environment_are_left_out() -> None:
    arguments = constructor_arguments(
        {"policy": "MlpPolicy", "n_envs": 4, "n_timesteps": 1e6, "normalize": True, "env_kwargs": {}, "frame_stack": 4}
        | {"env_wrapper": None, "vec_env_wrapper": None, "noise_type": "normal", "noise_std": 0.1, "n_steps": 8, "gamma": 0.9}
    )
    assert arguments == {"policy": "MlpPolicy", "n_steps": 8, "gamma": 0.9}


@pytest.mark.parametrize("key", ["learning_rate", "clip_range", "clip_range_vf", "delta_std"])
def test_linear_schedules(key: str) -> None:
    schedule = constructor_arguments({key: "lin_0.4"})[key]
    assert isinstance(schedule, LinearSchedule)
    assert [schedule(progress) for progress in (1.0, 0.25, 0.0)] == pytest.approx([0.4, 0.1, 0.0])
    assert constructor_arguments({key: 0.4})[key] == 0.4


def test_only_lin_makes_a_schedule() -> None:
    # YAML 1.1 reads 3e-4, without a point, as a string
    assert constructor_arguments({"learning_rate": "3e-4"})["learning_rate"] == pytest.approx(3e-4)


@pytest.mark.parametrize("text", ["cos_0.1", "lin_", "fast"])
def test_other_schedules_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        constructor_arguments({"learning_rate": text})


def test_strings_are_read_as_rl_zoo_reads_them() -> None:
    arguments = constructor_arguments(
        {
            "policy_kwargs": "dict(activation_fn=nn.ReLU, optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))",
            "replay_buffer_class": "HerReplayBuffer",
            "replay_buffer_kwargs": "dict(goal_selection_strategy='future', n_sampled_goal=4)",
        }
    )
    assert arguments["policy_kwargs"] == {
        "activation_fn": th.nn.ReLU,
        "optimizer_class": RMSpropTFLike,
        "optimizer_kwargs": {"eps": 1e-5},
    }
    assert arguments["replay_buffer_class"] is HerReplayBuffer
    assert arguments["replay_buffer_kwargs"] == {"goal_selection_strategy": "future", "n_sampled_goal": 4}
    assert constructor_arguments({"policy_kwargs": {"net_arch": [3]}}) == {"policy_kwargs": {"net_arch": [3]}}


@pytest.mark.parametrize("key", ["callback", "monitor_kwargs"])
def test_unsupported_keys_are_named(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        constructor_arguments({"policy": "MlpPolicy", key: {"a": 1}})


@pytest.mark.parametrize("algo", ["ppo", "a2c", "trpo", "sac", "td3", "tqc", "crossq", "dqn", "mdgps"])
def test_a_model_does_not_write_into_the_configuration(algo: str) -> None:
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "normalize": {"norm_obs": True}, "env_kwargs": {}}
    if algo == "dqn":
        run = config(algo, options, env_id="CartPole-v1")
    else:
        run = config(algo, options)
    before = copy.deepcopy(run)
    build_model(run)
    assert run == before


# ---------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("kind", "cls"), [("normal", NormalActionNoise), ("ornstein-uhlenbeck", OrnsteinUhlenbeckActionNoise)]
)
def test_noise(kind: str, cls: Any) -> None:
    noise = build_model(config("td3", {"noise_type": kind, "noise_std": 0.3}, env_id="Reacher-v5")).action_noise
    assert type(noise) is cls
    np.testing.assert_array_equal(noise._mu, np.zeros(2))
    np.testing.assert_array_equal(noise._sigma, np.full(2, 0.3))


def test_noise_of_several_environments() -> None:
    model = build_model(config("td3", {"noise_type": "normal", "noise_std": 0.3, "n_envs": 2, "train_freq": 1}))
    model.learn(20)
    assert isinstance(model.action_noise, VectorizedActionNoise)


def test_noise_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"noise_type.*'pink'"):
        build_model(config("td3", {"noise_type": "pink", "noise_std": 0.3}))


# ---------------------------------------------------------------------- environments


def test_environments_of_training() -> None:
    model = build_model(config(hyperparams={"n_envs": 3}))
    assert isinstance(model, PPO) and model.n_envs == 3 and model.seed == 1 and str(model.device) == "cpu"
    assert model.get_vec_normalize_env() is None
    # Seeds of training: those of the model on
    model.env.reset()
    assert [mass.unwrapped.seeds for mass in model.env.unwrapped.envs] == [[1], [2], [3]]
    assert all(type(single) is Monitor for single in model.env.unwrapped.envs)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (True, (True, True, 0.9)),
        ({"norm_obs": True, "norm_reward": False}, (True, False, 0.9)),
        ("dict(norm_obs=False, norm_reward=True)", (False, True, 0.9)),
        ("{'norm_obs': True, 'norm_reward': False, 'gamma': 0.5}", (True, False, 0.9)),
    ],
)
def test_normalization(normalize: Any, expected: tuple[bool, bool, float]) -> None:
    run = config(hyperparams={"normalize": normalize, "gamma": 0.9})
    env = make_env(run)
    assert isinstance(env, VecNormalize) and (env.norm_obs, env.norm_reward, env.gamma) == expected and env.training
    held = make_env(run, evaluation=True)
    assert isinstance(held, VecNormalize) and held.norm_obs == expected[0] and not held.norm_reward and not held.training
    assert held.num_envs == 3
    assert make_env(config(hyperparams={"normalize": {"norm_obs": True}})).gamma == VecNormalize(env.venv).gamma
    assert not isinstance(make_env(config(hyperparams={"normalize": False})), VecNormalize)


@pytest.mark.parametrize("given", [{"low": -3.0, "high": 2.0}, "dict(low=-3.0, high=2.0)"], ids=["dict", "string"])
@pytest.mark.parametrize("evaluation", [False, True])
def test_arguments_of_the_environment(given: Any, evaluation: bool) -> None:
    env = make_env(config(hyperparams={"env_kwargs": given}, env_kwargs={"high": 5.0}), evaluation=evaluation)
    assert (env.action_space.low, env.action_space.high) == (-3.0, 5.0)
    assert make_env(config(hyperparams={"env_kwargs": None}), evaluation=evaluation).action_space.high == 1.0


def test_stacked_frames_are_normalized_first() -> None:
    run = config(hyperparams={"frame_stack": 3, "normalize": True, "n_steps": 32, "batch_size": 32})
    for evaluation in (False, True):
        env = make_env(run, evaluation=evaluation)
        assert isinstance(env, VecFrameStack) and isinstance(env.venv, VecNormalize)
        assert env.observation_space.shape == (6,)
    assert build_model(run).learn(8).policy.observation_space.shape == (6,)


def test_wrappers(monkeypatch: pytest.MonkeyPatch) -> None:
    # RL Zoo, once imported, has a time limit of its own: not for the tests that follow
    for module in (gym.wrappers, gym.wrappers.common, gym.envs.registration):
        monkeypatch.setattr(module, "TimeLimit", gym.wrappers.TimeLimit, raising=False)
    pytest.importorskip("rl_zoo3")
    wrapper = [{"gymnasium.wrappers.RescaleAction": {"min_action": -0.5, "max_action": 0.25}}]
    run = config(
        hyperparams={
            "env_wrapper": wrapper,
            "vec_env_wrapper": {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": 2}},
        }
    )
    before = copy.deepcopy(run)
    for evaluation in (False, True):
        env = make_env(run, evaluation=evaluation)
        assert (env.action_space.low, env.action_space.high) == (-0.5, 0.25)
        assert isinstance(env, VecFrameStack) and env.observation_space.shape == (4,)
    assert run == before


def test_hindsight() -> None:
    gym.register("BitFlip-v0", entry_point="stable_baselines3.common.envs:BitFlippingEnv", kwargs={"continuous": True})
    try:
        buffer = {
            "replay_buffer_class": "HerReplayBuffer",
            "replay_buffer_kwargs": "dict(n_sampled_goal=2)",
            "buffer_size": 99,
        }
        model = build_model(config("sac", {"policy": "MultiInputPolicy", **buffer}, env_id="BitFlip-v0"))
    finally:
        gym.registry.pop("BitFlip-v0")
    assert isinstance(model, SAC) and isinstance(model.replay_buffer, HerReplayBuffer)
    assert model.replay_buffer.n_sampled_goal == 2


def test_schedules_reach_the_model() -> None:
    model = build_model(config(hyperparams={"learning_rate": "lin_0.01", "clip_range": "lin_0.4", "n_steps": 64}))
    assert model.lr_schedule(0.5) == pytest.approx(0.005) and model.clip_range(0.5) == pytest.approx(0.2)
    assert [layer.out_features for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, th.nn.Linear)] == [8]


def test_other_peoples_algorithms(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "algorithms_of_mine.py").write_text("from stable_baselines3 import PPO\n\n\nclass Mine(PPO):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = config("algorithms_of_mine:Mine")
    model = build_model(run)
    assert type(model).__name__ == "Mine" and isinstance(model, PPO)
    assert run.algo_name == run.name == "mine" and run.path == "mine/sb3_dpi_tests-PointMass-v0_1"
