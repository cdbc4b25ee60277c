"""VecNormalize: what is learned from, what the policy sees, and what its statistics may not do."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import (
    NOT_FINITE_IN_SEARCH,
    Make,
    answers,
    check_transitions,
    every,
    every_algorithm,
    executed,
    parameters,
    transitions,
)
from dummy_envs import ITERATION, DictPointMass, PointMass, limited, normalized, vec_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def learned(make: Make, env: Any, **kwargs: Any) -> Any:
    model = make(env, **kwargs)
    model.set_random_seed(1)
    return model.learn(2 * ITERATION)


def envs() -> Any:
    return vec_env(2, lambda: limited(12))


@every_algorithm
def test_a_wrapper_that_does_nothing_changes_nothing(make: Make) -> None:
    plain, wrapped = learned(make, envs()), learned(make, VecNormalize(envs(), norm_obs=False, norm_reward=False))
    assert parameters(plain) == parameters(wrapped)


@every(keeps_originals=True)
def test_normalised_rewards_are_not_learned_from(make: Make) -> None:
    assert parameters(learned(make, envs())) == parameters(learned(make, VecNormalize(envs(), norm_obs=False)))


@every(keeps_originals=False)
def test_normalised_rewards_are_learned_from(make: Make) -> None:
    """As on-policy algorithms do."""
    env = VecNormalize(envs(), norm_obs=False)
    model = learned(make, env)
    rewards = model.rollout_buffer.rewards
    statistics: Any = env.ret_rms
    assert 0.0 < np.abs(rewards).max() <= 10.0 and statistics.count > 2 * ITERATION - 1
    assert parameters(model) != parameters(learned(make, envs()))


@every(keeps_originals=True)
def test_original_observations_are_learned_from(make: Make) -> None:
    """Deaths included, whose last observations come back normalised, also where the normalised ones are clipped."""
    env = VecNormalize(vec_env(2, lambda: PointMass(death=(3, 9))), clip_obs=0.5)
    check_transitions(learned(make, env))


@every_algorithm
def test_the_policy_sees_normalised_observations(make: Make) -> None:
    """It undoes what statistics tell: in training it acts on the same numbers as in ``predict``."""
    env = normalized(envs(), [5.0, -5.0], [4.0, 9.0])
    model = learned(make, env)
    shown = env.normalize_obs(OBSERVATIONS)
    assert np.abs(shown - OBSERVATIONS).min() > 0.1
    actions = answers(model, shown)
    if make.keeps_originals:
        x, *_ = transitions(model)
        assert np.abs(x).max() < 4.0, "the planner does not"
    moved = answers(model, env.normalize_obs(OBSERVATIONS + 0.5))
    assert np.abs(actions - moved).max() > 1e-4
    if make.plans or make.plain_networks:  # in the environment's units, or in those that are shown
        return
    extractor = model.policy.pi_features_extractor if hasattr(model.policy, "pi_features_extractor") else model.policy
    seen = env.normalize_obs(transitions(model)[0]) if make.keeps_originals else model.rollout_buffer.observations
    assert np.abs(extractor.obs_mean.numpy() - np.asarray(seen).reshape(-1, 2).mean(0)).max() < 0.5


@every_algorithm
def test_clipped_observations_are_shown_in_training_too(make: Make) -> None:
    """The wrapper's own limit holds again after every step."""
    env = VecNormalize(envs(), clip_obs=0.25)
    model = learned(make, env)
    assert env.clip_obs == 0.25
    assert model._last_obs is not None and np.abs(model._last_obs).max() <= 0.25
    assert np.isfinite(parameters(model)) and np.ptp(executed(model)) > 0.1


@every_algorithm
def test_eval_callback(make: Make) -> None:
    env = VecNormalize(vec_env(2))
    test = VecNormalize(vec_env(1, lambda: Monitor(make.fit(limited(5)))), training=False)
    make(env).learn(ITERATION, callback=EvalCallback(test, n_eval_episodes=2, eval_freq=15, verbose=0))
    # synchronised at the evaluation, not at the end
    statistics: Any = env.obs_rms
    synchronised: Any = test.obs_rms
    assert statistics.count > synchronised.count > 1.0
    assert not np.allclose(synchronised.mean, 0.0)


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("what", ["reward", "observation"])
@every_algorithm
def test_not_finite(make: Make, what: str, norm_obs: bool) -> None:
    """The statistics must not be poisoned for good, and what raised can be mended."""
    inner = PointMass()
    env = VecNormalize(vec_env(1, lambda: inner), norm_obs=norm_obs)
    model = make(env).learn(ITERATION)
    before = parameters(model)
    inner.broken = (what, ITERATION + 5)
    said = f"Environment 0 returned an? {what} that is not finite .*after {ITERATION + 5} steps"
    with pytest.raises(ValueError, match=NOT_FINITE_IN_SEARCH if make.searches else said):
        model.learn(ITERATION, reset_num_timesteps=False)
    assert parameters(model) == before
    statistics: Any = (env.ret_rms.var, *((env.obs_rms.mean, env.obs_rms.var) if norm_obs else ()))  # type: ignore[union-attr]
    assert all(np.isfinite(value).all() for value in statistics)
    inner.broken = None
    model.learn(ITERATION, reset_num_timesteps=False)
    assert np.isfinite(parameters(model)) and parameters(model) != before


@pytest.mark.parametrize("transpose_first", [False, True])
@every(from_conditions=True)
def test_images_beside_normalised_vectors(make: Make, transpose_first: bool) -> None:
    """SB3 puts the transposition of images around VecNormalize."""
    env: Any = vec_env(2, lambda: DictPointMass(("image", "state", "position")))
    env = VecNormalize(VecTransposeImage(env) if transpose_first else env, norm_obs_keys=["state", "position"])
    model = make(env, "MultiInputPolicy").learn(2 * ITERATION)
    observations: Any = model.rollout_buffer.trajectories().observations
    grey = np.clip(128 + 60 * observations["position"][..., 0], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(observations["image"][..., 0, 0, 0], grey)
    np.testing.assert_allclose(observations["state"][..., 0], observations["position"][..., 0], atol=1e-5)


@every(keeps_originals=True, plans=False)
def test_dictionaries(make: Make) -> None:
    """Also where episodes end, whose last observations come back normalised."""

    class Mortal(DictPointMass):
        def __init__(self) -> None:
            super().__init__(("position", "velocity"))
            self.death = (4, 9)

    check_transitions(make(VecNormalize(vec_env(2, Mortal)), "MultiInputPolicy").learn(2 * ITERATION))


@every(keeps_originals=True)
def test_time_limits(make: Make) -> None:
    """The true last observation follows, not that of the next episode."""
    env = VecNormalize(vec_env(2, lambda: gym.wrappers.TimeLimit(PointMass(), 7)))
    check_transitions(learned(make, env, **({"horizon": 7} if make.from_conditions else {})))
