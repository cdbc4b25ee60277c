"""What users of Stable-Baselines3 train on, and around it: spaces, wrappers of vectors of environments, off-policy options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, every, iterations, logged, parameters, small_dagger, small_exit, small_mpc, with_references
from dummy_envs import ITERATION, DictPointMass, limited, vec_env
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from test_early_resets_above import Shifted

from sb3_dpi import DPI, MPC, DualAC

SINGLE, DOUBLE = (spaces.Box(-1.0, 1.0, (2,), dtype) for dtype in (np.float32, np.float64))


class OwnBox(spaces.Box):
    """A space of a user's class."""


class Sampled(gym.Env[Any, Any]):
    """Observations out of their space; actions must lie in theirs."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


def sampled(observation_space: spaces.Space[Any], action_space: spaces.Space[Any] = SINGLE) -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(Sampled(observation_space, action_space), 12)


def dictionaries(n_envs: int = 2) -> VecEnv:
    return vec_env(n_envs, lambda: gym.wrappers.TimeLimit(DictPointMass(("position", "velocity")), 12))


# ---------------------------------------------------------------------- spaces


OWN, SQUARE = OwnBox(-1.0, 1.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (2, 2), np.float64)
PAIRS: list[tuple[spaces.Space[Any], spaces.Space[Any]]] = [
    (SINGLE, DOUBLE),
    (DOUBLE, OWN),
    (OWN, SQUARE),
    (SQUARE, SINGLE),
    (spaces.Dict(a=SINGLE, b=DOUBLE), DOUBLE),
]
"""of observations and actions"""


@with_references(searches=False)
def test_spaces_and_their_types(make: Make) -> None:
    """Actions have the type of their space, in training and in ``predict``."""
    for observed, action_space in PAIRS[: -1 if make.plans else None]:
        env = sampled(observed, action_space)
        model = make(env, "MultiInputPolicy" if isinstance(observed, spaces.Dict) else "MlpPolicy").learn(ITERATION)
        action = model.predict(env.reset()[0])[0]
        assert action.dtype == action_space.dtype and action.shape == action_space.shape and np.isfinite(parameters(model))


@with_references()
def test_spaces_that_are_refused(make: Make) -> None:
    with pytest.raises(NotImplementedError, match="Nested observation spaces are not supported"):
        make(sampled(spaces.Dict(a=spaces.Dict(b=SINGLE), c=SINGLE)), "MultiInputPolicy")
    with pytest.raises((NotImplementedError, ValueError), match=r"Tuple\(Box"):
        make(sampled(spaces.Tuple((SINGLE, SINGLE))))
    with pytest.raises((AssertionError, ValueError), match=r"action spaces but Dict|needs a Discrete action space"):
        make(sampled(SINGLE, spaces.Dict(a=SINGLE)))


@every(any_space=True)
def test_matrices_of_bits_are_refused(make: Make) -> None:
    with pytest.raises(AssertionError, match=r"Multi-dimensional MultiBinary.* is not supported"):
        make(sampled(SINGLE, spaces.MultiBinary([2, 3])))


@with_references(searches=False)
def test_the_identity(make: Make) -> None:
    """Tasks whose action should be the observation, of Stable-Baselines3."""
    assert np.isfinite(parameters(make(vec_env(1, lambda: IdentityEnvBox(eps=0.5))).learn(2 * ITERATION)))


@every(any_space=True)
def test_the_identity_of_numbers(make: Make) -> None:
    assert iterations(make(IdentityEnv(3)).learn(2 * ITERATION)) == 2


# ---------------------------------------------------------------------- wrappers


WRAPPED: dict[str, Callable[[], VecEnv]] = {
    "stacked frames": lambda: VecFrameStack(vec_env(2, lambda: limited(12)), 3),
    "stacked dictionaries": lambda: VecFrameStack(dictionaries(), 3),
    "one key": lambda: VecExtractDictObs(dictionaries(), "position"),
    "checked": lambda: VecCheckNan(vec_env(2, lambda: limited(12)), raise_exception=True),
    "monitored": lambda: VecMonitor(vec_env(2, lambda: limited(12))),
    "some keys normalised": lambda: VecNormalize(dictionaries(), norm_obs_keys=["position"]),
    "episodes recorded": lambda: vec_env(1, lambda: gym.wrappers.RecordEpisodeStatistics(limited(12))),
}


SEEN_ALONE = ("stacked frames", "stacked dictionaries", "one key")
"""of these the observations are no part of the environments that are copied"""


@pytest.mark.parametrize("wrapped", WRAPPED)
@with_references()
def test_wrappers(make: Make, wrapped: str) -> None:
    """The model trains on what they show, and is evaluated on the same."""
    env = WRAPPED[wrapped]()
    if make.plans and isinstance(env.observation_space, spaces.Dict):
        pytest.skip("it plans with one vector")
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    if make.searches and wrapped in SEEN_ALONE:
        with pytest.raises(ValueError, match="wrap each environment instead"):
            make(env, policy)
        return
    model = make(env, policy).learn(2 * ITERATION)
    assert iterations(model) > 0 and np.isfinite(parameters(model))
    assert model.predict(env.reset())[0].shape == (env.num_envs, *env.action_space.shape)
    if wrapped == "monitored":
        assert model.ep_info_buffer and {info["l"] for info in model.ep_info_buffer} <= {*range(1, 13)}
        _, lengths = evaluate_policy(model, env, 2, return_episode_rewards=True)
        assert lengths == [12, 12]  # type: ignore[comparison-overlap]


class Reversed(VecEnvWrapper):
    """Takes the opposite of each action."""

    def reset(self) -> Any:
        """:return: first observations"""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step."""
        self.venv.step_async(-actions)

    def step_wait(self) -> Any:
        """:return: as of the environments"""
        return self.venv.step_wait()


class OwnMonitor(VecMonitor):
    """May do anything."""


PLANNING: dict[str, Callable[[Any], Any]] = {
    "MPC": lambda env: small_mpc(env, system="simulator"),
    "DAgger": lambda env: small_dagger(env, expert={"algo": "mpc", "policy": "random", "system": "simulator"}),
    "ExIt": small_exit,
}


@pytest.mark.parametrize("wrapper", [Reversed, Shifted, OwnMonitor])
@pytest.mark.parametrize("kind", PLANNING)
def test_no_plan_is_made_past_a_wrapper(kind: str, wrapper: type[VecEnvWrapper]) -> None:
    """What it does to actions and rewards is not in the simulator; what is known to change neither is fine."""
    PLANNING[kind](VecMonitor(VecNormalize(vec_env(1, lambda: limited(12)))))
    with pytest.raises(ValueError, match=f"What {wrapper.__name__} makes of .* is not known: wrap each environment instead"):
        PLANNING[kind](VecNormalize(wrapper(vec_env(1, lambda: limited(12)))))


@with_references(searches=False)
def test_checks_of_numbers_speak_first(make: Make) -> None:
    with pytest.raises(ValueError, match="found nan in rewards"):
        make(VecCheckNan(vec_env(1, lambda: limited(12, broken=("reward", 30))), raise_exception=True)).learn(2 * ITERATION)


@with_references()
def test_environments_are_monitored(make: Make) -> None:
    """Unless they are already."""
    for env, expected in ((limited(12), 1), (Monitor(limited(12)), 1), (vec_env(1), 0)):
        vectorized, layers = make(env).get_env(), 0
        inner: Any = vectorized.envs[0]
        while isinstance(inner, gym.Wrapper):
            layers, inner = layers + isinstance(inner, Monitor), inner.env
        assert layers == expected


# ---------------------------------------------------------------------- callbacks


@with_references()
def test_training_stops_without_improvement(make: Make, tmp_path: Path) -> None:
    """The same number at every evaluation is none; what is logged of them stands at their steps."""
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    test = Monitor(make.fit(limited(12)))
    watch = EvalCallback(
        test,
        callback_after_eval=stop,
        eval_freq=15,
        n_eval_episodes=1,
        verbose=0,
        log_path=str(tmp_path),
    )
    watch.best_mean_reward = np.inf
    model = make(limited(12))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20 * ITERATION, callback=watch)
    assert model.num_timesteps == 45 and model.logger.get_dir() == str(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "evaluations.npz")["timesteps"], [15, 30, 45])


@with_references()
def test_checkpoints_hold_all_that_goes_on(make: Make, tmp_path: Path) -> None:
    callback = CheckpointCallback(30, str(tmp_path), "m", save_replay_buffer=True, save_vecnormalize=True)
    make(VecNormalize(vec_env(1, lambda: limited(12)))).learn(ITERATION, callback=callback)
    names = {"m_30_steps.zip", "m_vecnormalize_30_steps.pkl"}
    if issubclass(make.algorithm, OffPolicyAlgorithm):
        names.add("m_replay_buffer_30_steps.pkl")
    assert {path.name for path in tmp_path.iterdir()} == names


@with_references()
def test_evaluations_must_be_normalised_alike(make: Make) -> None:
    model = make(VecNormalize(vec_env(1, lambda: limited(12))))
    with pytest.raises(AssertionError, match="synchronizing normalization stats"):
        model.learn(ITERATION, callback=EvalCallback(limited(5), eval_freq=10, warn=False, verbose=0))


@with_references(on_policy=True)
def test_what_a_rollout_was_worth(make: Make) -> None:
    """At the end of a rollout its returns, values, advantages and log-probabilities are in the buffer; Dual-AC's advantages
    are those of its game, beside the returns that V is regularised to."""
    seen = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
            assert buffer.advantages.std() > 0.0 and buffer.returns.std() > 0.0 and buffer.log_probs.std() > 0.0
            if make.algorithm is not DualAC:
                np.testing.assert_allclose(buffer.returns, buffer.advantages + buffer.values, atol=1e-4)
            obs, actions = (th.as_tensor(array[:, 0]) for array in (buffer.observations, buffer.actions))
            log_probs = self.model.policy.get_distribution(obs).log_prob(actions)  # type: ignore[operator]
            np.testing.assert_allclose(buffer.log_probs[:, 0], log_probs.detach().numpy(), atol=1e-4)
            seen.append(buffer.advantages.copy())

    make(sampled(SINGLE)).learn(2 * ITERATION, callback=Reader())
    assert len(seen) == 2 and not np.array_equal(*seen)


# ---------------------------------------------------------------------- off-policy options


@with_references(off_policy=True)
def test_training_frequencies(make: Make, tmp_path: Path) -> None:
    for train_freq in (10, (10, "step"), (1, "episode")):
        model = make(train_freq=train_freq).learn(2 * ITERATION)
        assert iterations(model) > 1
    model.save(tmp_path / "model")
    for changes in ({}, {"train_freq": (2, "episode")}):
        loaded = make.algorithm.load(tmp_path / "model", env=make.fit(limited(12)), **changes)
        assert iterations(loaded.learn(2 * ITERATION)) > iterations(model)
    for wrong in ("4", ("1", "episode"), "often", (1, "close")):
        with pytest.raises(ValueError, match="train_freq"):
            make(train_freq=wrong)


@with_references(off_policy=True, discrete=False)
def test_noise_of_actions(make: Make, tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    model = make(vec_env(2, lambda: limited(12)), action_noise=noise).learn(2 * ITERATION)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    lasting = make(action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))).learn(2 * ITERATION)
    lasting.save(tmp_path / "model")
    assert iterations(make.algorithm.load(tmp_path / "model", env=make.fit(limited(12))).learn(ITERATION)) > 0


@with_references(off_policy=True, discrete=False)
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_noise_ends_at_the_bounds(make: Make, side: float) -> None:
    model = make(action_noise=NormalActionNoise(10.0 * side * np.ones(1), np.zeros(1))).learn(2 * ITERATION)
    assert np.all(model.replay_buffer.actions[: 2 * ITERATION] == side)


@with_references(off_policy=True)
def test_a_policy_step_for_each_transition(make: Make) -> None:
    own: dict[Any, dict[str, Any]] = {DPI: {"update_to_data": 1.0}, MPC: {"world_model": {"gradient_steps": 1.0}}}
    options = {**({} if make.plans else {"gradient_steps": -1}), **own.get(make.algorithm, {})}
    model = make(vec_env(2, lambda: limited(12)), learning_starts=40, train_freq=10, **options)
    model.learn(40, log_interval=10**6)
    before = model._n_updates
    model.learn(20, reset_num_timesteps=False, log_interval=10**6)
    assert model._n_updates - before == 20 and logged(model, "train/n_updates") == model._n_updates


@with_references(off_policy=True)
def test_learning_starts_when_it_is_told(make: Make) -> None:
    assert make(learning_starts=10**6).learn(3 * ITERATION)._n_updates == 0
