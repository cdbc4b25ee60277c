"""The evaluator: when it is due, and that its result is that of SB3's ``evaluate_policy`` to the last bit."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import CONDITIONS, DictPointMass, ImagePointMass, Matrix, PointMass, limited
from gymnasium import spaces
from sb3_contrib import TQC, TRPO, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.sac.policies import Actor, SACPolicy

from sb3_dpi.compare import evaluation
from sb3_dpi.compare.evaluation import Episodes, evaluation_points, run_episodes

N_EPISODES, SEED = 7, 1234
MakeEnv = Callable[[], gym.Env]


def make_env() -> gym.Env:
    """Episodes of 3 to 12 steps, some of them cut off by the time limit."""
    return limited(12, low=-2.0, high=0.5, death=(3, 16))


def taken_actions(env: VecEnv) -> list[list[float]]:
    """Hand over the actions since the last call, by environment, of those environments that note them."""
    masses = [single.unwrapped for single in env.unwrapped.envs if isinstance(single.unwrapped, PointMass)]
    actions = [list(mass.actions) for mass in masses]
    for mass in masses:
        mass.actions.clear()
    return actions


def compare(model: BaseAlgorithm, env: VecEnv, monkeypatch: pytest.MonkeyPatch, lean: bool) -> Episodes:
    """Evaluate by both, and check which way the one under test went."""
    fallen_back = []

    def note(*args: Any, **kwargs: Any) -> Any:
        fallen_back.append(True)
        return evaluate_policy(*args, **kwargs)

    taken_actions(env)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_policy", note)
        episodes = run_episodes(model, env, SEED)
    actions = taken_actions(env)
    env.seed(SEED)
    returns, lengths = evaluate_policy(model, env, env.num_envs, return_episode_rewards=True)
    assert episodes.returns == returns and episodes.lengths == lengths and len(returns) == env.num_envs
    for found, expected in zip(actions, taken_actions(env), strict=True):
        # evaluate_policy goes on in the environments whose episode has ended; returns are rounded, actions are not
        n_steps = min(len(found), len(expected))
        assert n_steps > 0 and found[:n_steps] == expected[:n_steps]
    assert bool(fallen_back) != lean
    return episodes


def evaluation_env(model: BaseAlgorithm, make: MakeEnv = make_env) -> VecEnv:
    """As many environments as episodes, wrapped as those of training are, with their statistics."""
    env = make_vec_env(make, N_EPISODES)
    training = model.get_vec_normalize_env()
    if training is not None:
        env = VecNormalize(env, training=False, norm_reward=False, clip_obs=training.clip_obs)
        env.obs_rms = training.obs_rms
    return model._wrap_env(env, monitor_wrapper=False)


def trained(cls: Any, make: MakeEnv = make_env, normalize: bool = False, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    env: VecEnv = make_vec_env(make, 1, seed=3)
    if normalize:
        env = VecNormalize(env, clip_obs=0.8)
    on_policy = cls in (PPO, A2C, TRPO, RecurrentPPO)
    options = (
        {}
        if cls is A2C
        else {"n_steps": 32, "batch_size": 32}
        if on_policy
        else {"learning_starts": 10, "train_freq": 4, "buffer_size": 1000}
    )
    options = {**options, "policy_kwargs": {"net_arch": [8, 8]}, "learning_rate": 0.02, "seed": 0, "device": "cpu", **kwargs}
    return cls(policy, env, **options).learn(40)


MODELS: dict[str, Callable[[bool], BaseAlgorithm]] = {
    "ppo": lambda normalize: trained(PPO, normalize=normalize),
    "ppo, separate extractors": lambda normalize: trained(
        PPO, normalize=normalize, policy_kwargs={"net_arch": {"pi": [8], "vf": [4]}, "share_features_extractor": False}
    ),
    "ppo, gSDE": lambda normalize: trained(PPO, normalize=normalize, use_sde=True, sde_sample_freq=4),
    "ppo, gSDE, squashed": lambda normalize: trained(
        PPO, normalize=normalize, use_sde=True, policy_kwargs={"net_arch": [8], "squash_output": True}
    ),
    "a2c": lambda normalize: trained(A2C, normalize=normalize),
    "trpo": lambda normalize: trained(TRPO, normalize=normalize),
    "sac": lambda normalize: trained(SAC, normalize=normalize),
    "sac, gSDE": lambda normalize: trained(SAC, normalize=normalize, use_sde=True),
    "td3": lambda normalize: trained(TD3, normalize=normalize),
    "ddpg": lambda normalize: trained(DDPG, normalize=normalize),
    "tqc": lambda normalize: trained(TQC, normalize=normalize),
    "crossq": lambda normalize: trained(CrossQ, normalize=normalize),
    "mdgps": lambda normalize: small_mdgps(
        VecNormalize(make_vec_env(make_env, CONDITIONS), clip_obs=0.8) if normalize else make_vec_env(make_env, CONDITIONS)
    ).learn(80),
}


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_evaluate_policy(name: str, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name](normalize)
    env = evaluation_env(model)
    episodes = compare(model, env, monkeypatch, lean=True)
    assert len(set(episodes.lengths)) > 2 and episodes.lengths == sorted(episodes.lengths)
    # The next one starts elsewhere, whatever the last one left behind
    again = compare(model, env, monkeypatch, lean=True)
    assert again.returns == episodes.returns
    assert run_episodes(model, env, SEED + N_EPISODES).returns != episodes.returns


def test_equal_after_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["sac"](True)
    env = evaluation_env(model)
    before = compare(model, env, monkeypatch, lean=True)
    model.learn(30, reset_num_timesteps=False)
    assert compare(model, env, monkeypatch, lean=True).returns != before.returns


def test_training_mode_does_not_reach_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["crossq"](False)
    env = evaluation_env(model)
    model.policy.set_training_mode(True)
    statistics = {name: value.clone() for name, value in model.policy.actor.state_dict().items()}
    compare(model, env, monkeypatch, lean=True)
    for name, value in model.policy.actor.state_dict().items():
        assert th.equal(value, statistics[name]), name


class Bytes(PointMass):
    """Bytes that are no image."""

    def __init__(self) -> None:
        super().__init__(death=(3, 16))
        self.observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def observation(self) -> Any:
        return np.clip(128 + 60 * self.state, 0, 255).astype(np.uint8)


class Doubles(PointMass):
    """Double precision, as MuJoCo's environments."""

    def __init__(self) -> None:
        super().__init__(death=(3, 16))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observation(self) -> Any:
        return self.state.copy()


class Sloppy(PointMass):
    """More digits than the space says, always in the same array."""

    def __init__(self) -> None:
        super().__init__(death=(3, 16))
        self.buffer = np.zeros(2)

    def observation(self) -> Any:
        self.buffer[:] = self.state / 3.0
        return self.buffer


class Flat(PointMass):
    """An observation of two axes."""

    def __init__(self) -> None:
        super().__init__(death=(3, 16))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2, 1), np.float32)

    def observation(self) -> Any:
        return super().observation()[:, None]


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("env_class", [Bytes, Doubles, Sloppy, Flat])
def test_observations_of_all_kinds(env_class: Any, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> gym.Env:
        return gym.wrappers.TimeLimit(env_class(), 12)

    model = trained(PPO, make, normalize=normalize)
    compare(model, evaluation_env(model, make), monkeypatch, lean=True)


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_actions_that_are_no_vectors(cls: Any) -> None:
    def make() -> gym.Env:
        return gym.wrappers.TimeLimit(Matrix(), 12)

    model = trained(cls, make)
    for n_episodes in (2, 3):
        env = make_vec_env(make, n_episodes)
        episodes = run_episodes(model, env, SEED)
        env.seed(SEED)
        assert episodes.returns == evaluate_policy(model, env, n_episodes, return_episode_rewards=True)[0]


def test_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> gym.Env:
        return gym.wrappers.TimeLimit(DictPointMass(), 12)

    for normalize in (False, True):
        model = trained(PPO, make, normalize=normalize, policy="MultiInputPolicy")
        compare(model, evaluation_env(model, make), monkeypatch, lean=False)


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_discrete_actions(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> gym.Env:
        return gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 30)

    model = trained(cls, make)
    compare(model, evaluation_env(model, make), monkeypatch, lean=False)


def test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> gym.Env:
        return gym.wrappers.TimeLimit(ImagePointMass(), 6)

    model = trained(PPO, make, policy="CnnPolicy", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]})
    compare(model, evaluation_env(model, make), monkeypatch, lean=False)


def test_frames_stacked_on_normalized_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    training = VecFrameStack(VecNormalize(make_vec_env(make_env, 1, seed=3)), 3)
    model = PPO("MlpPolicy", training, n_steps=32, batch_size=32, policy_kwargs={"net_arch": [8]}, seed=0).learn(32)
    env = VecNormalize(make_vec_env(make_env, N_EPISODES), training=False, norm_reward=False)
    env.obs_rms = model.get_vec_normalize_env().obs_rms
    compare(model, VecFrameStack(env, 3), monkeypatch, lean=False)


def test_policies_with_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(RecurrentPPO, policy="MlpLstmPolicy", policy_kwargs={"net_arch": [8], "lstm_hidden_size": 8})
    compare(model, evaluation_env(model), monkeypatch, lean=False)


class OwnPredict(ActorCriticPolicy):
    """Brakes with all its force far from the origin, where no episode starts."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(observation, *args, **kwargs)
        return np.where(abs(observation[:, :1]) > 1.0, np.float32(-2.0), actions), state


class OwnInnerPredict(ActorCriticPolicy):
    """The same, one floor below."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        actions = super()._predict(observation, deterministic)
        return th.where(observation[:, :1].abs() > 1.0, -2.0 * th.ones_like(actions), actions)


class OwnActor(Actor):
    """The same in an actor of SAC."""

    def forward(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        actions = super().forward(observation, deterministic)
        return th.where(observation[:, :1].abs() > 1.0, -th.ones_like(actions), actions)


class OwnActorPolicy(SACPolicy):
    """With an actor of its own."""

    def make_actor(self, features_extractor: Any = None) -> Actor:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return OwnActor(**kwargs).to(self.device)


def test_policies_with_a_predict_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(PPO, policy=OwnPredict)
    compare(model, make_vec_env(make_env, N_EPISODES), monkeypatch, lean=False)


@pytest.mark.parametrize(("cls", "policy"), [(PPO, OwnInnerPredict), (SAC, OwnActorPolicy)])
def test_policies_that_agree_on_the_first_observations_only(cls: Any, policy: Any) -> None:
    model = trained(cls, policy=policy)
    env = make_vec_env(make_env, N_EPISODES)
    episodes = run_episodes(model, env, SEED)
    env.seed(SEED)
    assert episodes.returns == evaluate_policy(model, env, N_EPISODES, return_episode_rewards=True)[0]


class Lives(gym.Wrapper):
    """Ends every four steps, as the wrapper of Atari does when a life is lost, while the episode goes on."""

    over = True

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.over or kwargs.get("seed") is not None:
            self.n_steps, self.over = 0, False
            return super().reset(**kwargs)
        return self.unwrapped.observation(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.over = terminated or truncated
        self.n_steps += 1
        return observation, reward, terminated or self.n_steps % 4 == 0, truncated, info


def test_a_lost_life_is_not_the_end_of_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(PPO)
    episodes = compare(model, make_vec_env(make_env, N_EPISODES, wrapper_class=Lives), monkeypatch, lean=False)
    assert max(episodes.lengths) > 8


class Success(gym.Wrapper):
    """Succeeds where the episode's last position is positive."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "is_success": np.bool_(observation[0] > 0)}


def test_successes_stand_beside_their_returns() -> None:
    model = trained(PPO)
    env = make_vec_env(lambda: Success(make_env()), N_EPISODES)
    found = []

    def note(locals_: dict[str, Any], _globals: dict[str, Any]) -> None:
        if locals_["done"]:
            found.append((locals_["info"]["episode"]["r"], bool(locals_["info"]["is_success"])))

    env.seed(SEED)
    evaluate_policy(model, env, N_EPISODES, callback=note)
    episodes = run_episodes(model, env, SEED)
    assert list(zip(episodes.returns, episodes.successes, strict=True)) == found
    assert 0 < sum(episodes.successes) < N_EPISODES and isinstance(episodes.successes[0], bool)
    assert run_episodes(model, make_vec_env(make_env, N_EPISODES), SEED).successes == []


def test_evaluation_draws_no_random_numbers() -> None:
    for name in ("ppo, gSDE", "sac"):
        model = MODELS[name](False)
        env = evaluation_env(model)
        states = th.get_rng_state(), np.random.get_state()[1].copy(), model.action_space.np_random.bit_generator.state
        run_episodes(model, env, SEED)
        assert th.equal(states[0], th.get_rng_state())
        np.testing.assert_array_equal(states[1], np.random.get_state()[1])
        assert states[2] == model.action_space.np_random.bit_generator.state


# ---------------------------------------------------------------------- when


def test_points_thin_out_as_training_goes_on() -> None:
    points = evaluation_points(250, 50_000)
    expected = [
        *range(250, 10_001, 250),
        *range(10_500, 20_001, 500),
        *range(21_000, 40_001, 1000),
        *range(42_000, 50_000, 2000),
    ]
    assert points == expected
    assert points[-1] == 48_000
    ratios = np.diff(points)[40:] / np.array(points[40:-1])
    assert np.all(ratios <= 1 / 20) and np.all(ratios >= 1 / 40)


@pytest.mark.parametrize("every", [1, 7, 250])
def test_points_do_not_depend_on_the_budget(every: int) -> None:
    longest = evaluation_points(every, 5000 * every)
    for budget in (0, 1, every, every + 1, 13 * every, 47 * every + 1, 4000 * every):
        assert evaluation_points(every, budget) == [point for point in longest if point < budget]
