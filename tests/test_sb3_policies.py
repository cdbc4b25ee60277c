"""What users of Stable-Baselines3 do with policies: their networks, modes and optimizers, and what ``predict`` is asked."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import (
    Make,
    Model,
    called,
    every,
    every_algorithm,
    iterations,
    modules,
    parameters,
    with_references,
)
from dummy_envs import ITERATION, POINT_MASS_ID, limited, vec_env
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dpi import DPI, DualAC

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


class NormDropout(BaseFeaturesExtractor):
    """Batch normalisation and dropout, which are one thing in training and another in acting."""

    def __init__(self, observation_space: spaces.Space[Any]):
        super().__init__(observation_space, int(np.prod(observation_space.shape or ())))
        self.flatten, self.norm, self.dropout = nn.Flatten(), nn.BatchNorm1d(self.features_dim), nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.dropout(self.norm(self.flatten(observations)))
        return features


def norms(model: Model) -> list[nn.BatchNorm1d]:
    return [part for network in modules(model) for part in network.modules() if isinstance(part, nn.BatchNorm1d)]


def statistics(model: Model) -> list[th.Tensor]:
    means = [norm.running_mean.clone() for norm in norms(model) if norm.running_mean is not None]
    assert means
    return means


def with_norms(make: Make, **options: Any) -> Model:
    return make(policy_kwargs={"features_extractor_class": NormDropout, "net_arch": [8]}, **options)


# ---------------------------------------------------------------------- modes


@with_references(plans=False)
def test_batch_statistics_change_in_updates(make: Make) -> None:
    model = with_norms(make)
    before, biases = statistics(model), [norm.bias.clone() for norm in norms(model)]
    model.learn(3 * ITERATION)
    assert not any(th.allclose(old, new) for old, new in zip(before, statistics(model), strict=True))
    assert not any(th.allclose(old, norm.bias) for old, norm in zip(biases, norms(model), strict=True))


@with_references(plans=False)
def test_batch_statistics_stay_where_steps_are_taken(make: Make) -> None:
    """And in ``predict``, which knows no dropout, also of a policy that was left in training mode."""
    if issubclass(make.algorithm, OffPolicyAlgorithm):
        model = with_norms(make, gradient_steps=0)
        before = statistics(model)
        model.learn(2 * ITERATION)
    else:
        model = with_norms(make)
        before = statistics(model)
        _, callback = model._setup_learn(2 * ITERATION)
        for _ in range(2):
            assert model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
    model.policy.set_training_mode(True)
    actions = [model.predict(OBSERVATIONS, deterministic=True)[0] for _ in range(3)]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    assert all(th.equal(old, new) for old, new in zip(before, statistics(model), strict=True))


@every(plans=False)
def test_what_is_not_updated_is_the_policy_that_acts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures, targets and bounds on changes: without gradients nobody learns."""
    modes: set[tuple[bool, bool]] = set()
    forward = NormDropout.forward

    def watched(self: NormDropout, observations: th.Tensor) -> th.Tensor:
        modes.add((self.training, th.is_grad_enabled()))
        return forward(self, observations)

    monkeypatch.setattr(NormDropout, "forward", watched)
    with_norms(make).learn(3 * ITERATION)
    assert (True, True) in modes and (True, False) not in modes


@every(from_conditions=True)
def test_the_policy_that_acts_is_linearised(make: Make) -> None:
    """As it is while no model is fitted."""
    model, found = with_norms(make), []
    fit = model.fit_model

    def watched(trajectories: Any) -> Any:
        found.append((fit(trajectories).policy, copy.deepcopy(model.policy), trajectories))
        return fit(trajectories)

    model.fit_model = watched
    model.learn(2 * ITERATION)
    for controller, policy, trajectories in found:
        policy.set_training_mode(False)
        model.policy = policy
        wanted = model._linearize(trajectories)
        for name in ("K", "k"):
            np.testing.assert_allclose(getattr(controller, name), getattr(wanted, name)[: len(controller.K)], atol=1e-6)
    assert len(found) == 2


# ---------------------------------------------------------------------- networks


ARCHITECTURES: list[Any] = [None, [], [4], [4, 4], {"pi": [8, 4], "qf": [8]}, {"pi": [8], "vf": [16]}, {"pi": [8]}]


@with_references(plans=False)
def test_architectures(make: Make) -> None:
    """Those of on-policy algorithms are the policy's and V's, those of the others the policy's and Q's."""
    foreign = None if issubclass(make.algorithm.policy_aliases["MlpPolicy"], ActorCriticPolicy) else "vf"
    for net_arch in ARCHITECTURES:
        if isinstance(net_arch, dict) and (foreign in net_arch or (issubclass(make.algorithm, SAC) and "qf" not in net_arch)):
            with pytest.raises((ValueError, AssertionError), match="net_arch"):
                make(policy_kwargs={"net_arch": net_arch})
        else:
            assert np.isfinite(parameters(make(policy_kwargs={"net_arch": net_arch}).learn(1)))


COMMON: list[dict[str, Any]] = [
    {"activation_fn": nn.ReLU, "optimizer_class": th.optim.AdamW, "optimizer_kwargs": None, "share_features_extractor": False},
    {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.01}, "share_features_extractor": True},
    {"optimizer_class": RMSpropTFLike, "normalize_images": False, "log_std_init": -1.0},
]


@with_references(plans=False)
def test_keywords_of_policies(make: Make) -> None:
    for options in COMMON:
        model = make(policy_kwargs={"net_arch": [8], **options})
        before = parameters(model)
        assert parameters(model.learn(2 * ITERATION)) != before, options
        kind = options.get("optimizer_class")
        optimizers = [value for name, value in vars(model.policy).items() if name.endswith("optimizer")]
        optimizers += [model.critic.optimizer] if hasattr(model, "critic") else []
        assert kind is None or make.algorithm is SAC or all(type(optimizer) is kind for optimizer in optimizers)


@every(any_space=True)
def test_state_dependent_exploration(make: Make) -> None:
    for options in ({}, {"use_expln": True}, {"squash_output": True}):
        model = make(use_sde=True, sde_sample_freq=4, policy_kwargs={"net_arch": [8], **options}).learn(2 * ITERATION)
        assert np.isfinite(parameters(model)) and iterations(model) == 2


@every(any_space=False)
def test_state_dependent_exploration_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match="use_sde"):
        make(use_sde=True)


# ---------------------------------------------------------------------- what policies tell


@with_references(on_policy=True)
def test_actions_are_evaluated(make: Make) -> None:
    """Log-probabilities, values and entropies fit together."""
    policy = make().learn(ITERATION).policy
    obs = policy.obs_to_tensor(OBSERVATIONS)[0]
    with th.no_grad():
        distribution = policy.get_distribution(obs)
        actions = distribution.get_actions()
        values, log_probs, entropy = policy.evaluate_actions(obs, actions)
        assert actions.shape == (20, 1) and values.shape == (20, 1) and entropy.shape == (20,)
        th.testing.assert_close(log_probs, distribution.log_prob(actions))
        th.testing.assert_close(values, policy.predict_values(obs))
        acted, same, log_probs = policy(obs)
        th.testing.assert_close(same, values)
        th.testing.assert_close(log_probs, distribution.log_prob(acted))


@with_references(plans=False)
def test_policies_are_evaluated_alone(make: Make) -> None:
    """What a model says of observations its policy says too; the number of episodes is that asked for."""
    model = make().learn(ITERATION)
    np.testing.assert_array_equal(
        model.policy.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    envs = vec_env(2, lambda: Monitor(make.fit(limited(5))))
    for acting in (model, model.policy):
        returns, lengths = evaluate_policy(acting, envs, 3, return_episode_rewards=True)
        assert len(returns) == 3 and lengths == [5, 5, 5]  # type: ignore[arg-type]


# ---------------------------------------------------------------------- predict


@with_references(plans=False)
def test_shapes_of_predictions(make: Make) -> None:
    model, env = make(make.fit(POINT_MASS_ID)), gym.make(make.fit(POINT_MASS_ID))
    action, state = model.predict(env.reset()[0])
    assert isinstance(action, np.ndarray) and env.action_space.contains(action) and state is None
    envs = vec_env(3)
    kept = (np.zeros((3, 4)),)
    actions, state = model.predict(envs.reset(), state=kept, episode_start=np.ones(3, bool), deterministic=True)
    shape = env.action_space.shape
    assert actions.shape == (3, *shape) and actions.dtype == env.action_space.dtype and state is kept
    if not make.discrete:  # without any, numbers are refused by Stable-Baselines3's own policies
        assert model.predict(np.zeros((0, 2), np.float32))[0].shape == (0, *shape)
    expected = model.predict(np.array([1.0, 2.0], np.float32), deterministic=True)[0]
    for same in ([1.0, 2.0], np.array([1, 2]), np.array([1.0, 2.0]), th.tensor([1.0, 2.0])):
        np.testing.assert_array_equal(model.predict(same, deterministic=True)[0], expected)


@every_algorithm
def test_no_observation_has_no_action(make: Make) -> None:
    """Actions that are numbers too, of which Stable-Baselines3's own policies refuse none at all."""
    model = make()
    actions, _ = model.predict(np.zeros((0, 2), np.float32), deterministic=True)
    assert actions.shape == (0, *model.action_space.shape) and actions.dtype == model.action_space.dtype


@with_references()
def test_observations_that_cannot_be_predicted_for(make: Make) -> None:
    model = make()
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(limited(5).reset())
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(3, np.float32))
    with pytest.raises(AssertionError, match="is a dict but the obs space is"):
        model.predict({"state": np.zeros(2, np.float32)})


# ---------------------------------------------------------------------- words that mean something else here


@pytest.mark.parametrize("make", called(DPI), ids=str)
def test_words_of_sac_that_dpi_has_not(make: Make) -> None:
    """Refused by name: none of them is taken in silence."""
    with pytest.raises(TypeError, match=r"instead of n_steps write train_freq \(returns of several steps"):
        make(n_steps=3)
    for word in ("n_critics", "clip_mean", "use_expln"):
        with pytest.raises(TypeError, match=word):
            make(policy_kwargs={word: 2})


@pytest.mark.parametrize("make", called(DualAC), ids=str)
def test_squashing_needs_state_dependent_exploration(make: Make) -> None:
    with pytest.raises(AssertionError, match="squash_output=True is only available when using gSDE"):
        make(policy_kwargs={"squash_output": True})
