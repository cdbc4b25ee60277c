"""The actor exported to numpy is the policy, and the policy's Jacobian is its derivative."""

from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import ITERATION, DictPointMass, PointMass, normalized, vec_env
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_dpi.common.actor import export_actor, plain_layers
from sb3_dpi.common.linearization import policy_mean, policy_mean_and_jacobian
from sb3_dpi.common.policies import BoundedGaussianMultiInputPolicy, BoundedGaussianPolicy, StandardizedExtractor
from sb3_dpi.common.trajectories import Trajectories

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(-2.0, 5.0, (2,), np.float32)
RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.normal(size=(50, 3)).astype(np.float32)
MEAN, STD = np.array([3.0, -1.0, 0.0]), np.array([0.01, 10.0, 1.0])


def make_policy(space: spaces.Space = SPACE, **kwargs: Any) -> BoundedGaussianPolicy:
    th.manual_seed(0)
    policy = BoundedGaussianPolicy(space, ACTIONS, lambda _: 1e-3, **kwargs)
    if isinstance(policy.pi_features_extractor, StandardizedExtractor):  # until then it sees nothing
        policy.set_standardization(np.zeros(policy.features_dim), np.ones(policy.features_dim))
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))  # biases and small outputs count too
    return policy


def by_torch(policy: BoundedGaussianPolicy, observations: Any) -> np.ndarray:
    with th.no_grad():
        return policy.get_distribution(obs_as_tensor(observations, policy.device)).mode().numpy()


@pytest.mark.parametrize("net_arch", [[], [8], [16, 8], {"pi": [8], "vf": [4, 4]}], ids=str)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("extractor", ["standardised", "set", "flat"])
def test_exported_to_numpy(net_arch: Any, activation: type[nn.Module], extractor: str) -> None:
    options: dict[str, Any] = {"features_extractor_class": FlattenExtractor} if extractor == "flat" else {}
    policy = make_policy(net_arch=net_arch, activation_fn=activation, **options)
    observations = OBSERVATIONS
    if extractor == "set":
        policy.set_standardization(MEAN, STD)
        observations = (MEAN + STD * OBSERVATIONS).astype(np.float32)
    assert plain_layers(policy) is not None, "no torch behind it"
    actions = export_actor(policy)(observations)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, by_torch(policy, observations), rtol=1e-4, atol=1e-4)
    assert np.std(actions) > 0.05


@pytest.mark.parametrize("activation", [nn.ELU, nn.LeakyReLU, nn.Sigmoid])
def test_other_networks_fall_back(activation: type[nn.Module]) -> None:
    policy = make_policy(net_arch=[8], activation_fn=activation)
    assert plain_layers(policy) is None
    np.testing.assert_allclose(export_actor(policy)(OBSERVATIONS), by_torch(policy, OBSERVATIONS), atol=1e-6)


def test_other_extractors_fall_back() -> None:
    class Doubling(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return 2.0 * super().forward(observations)

    policy = make_policy(features_extractor_class=Doubling)
    assert plain_layers(policy) is None
    np.testing.assert_allclose(export_actor(policy)(OBSERVATIONS), by_torch(policy, OBSERVATIONS), atol=1e-6)


def test_dictionaries_fall_back() -> None:
    space = spaces.Dict({"state": SPACE, "seen": SPACE})
    policy = BoundedGaussianMultiInputPolicy(space, ACTIONS, lambda _: 1e-3)
    observations = {"state": OBSERVATIONS, "seen": OBSERVATIONS[::-1].copy()}
    np.testing.assert_allclose(export_actor(policy)(observations), by_torch(policy, observations), atol=1e-6)


def test_images_fall_back() -> None:
    """Pixels are divided by 255 on their way into the network."""
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    policy = make_policy(space, net_arch=[4])
    images = RNG.integers(0, 256, (3, 1, 36, 36)).astype(np.uint8)
    assert plain_layers(policy) is None
    np.testing.assert_allclose(export_actor(policy)(images), by_torch(policy, images), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_types_and_shapes_of_observations(dtype: Any) -> None:
    policy = make_policy(spaces.Box(-100, 100, (3, 1), dtype))
    observations = (10 * OBSERVATIONS).astype(dtype)[:, :, None]
    expected = by_torch(policy, observations.astype(np.float32))
    np.testing.assert_allclose(export_actor(policy)(observations), expected, rtol=1e-4, atol=1e-4)


def test_later_changes_do_not_reach_it() -> None:
    policy = make_policy()
    actor = export_actor(policy)
    before = actor(OBSERVATIONS)
    with th.no_grad():
        next(policy.action_net.parameters()).mul_(2.0)
    np.testing.assert_array_equal(actor(OBSERVATIONS), before)
    assert not np.allclose(by_torch(policy, OBSERVATIONS), before)


def test_a_model_samples_from_its_policy() -> None:
    """What is exported is what ``predict`` would do, but for noise of the policy's standard deviation."""
    model = small_mdgps(samples_per_condition=20, policy_kwargs={"net_arch": [8], "log_std_init": -2.0})
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(1)
    sampled = model.rollout_buffer.trajectories()
    flat = np.asarray(sampled.observations)[:, :, :-1].reshape(-1, 2)
    noise = sampled.actions.reshape(-1) - by_torch(model.policy, flat)[:, 0]
    assert np.std(noise) == pytest.approx(np.exp(-2.0), rel=0.15)
    assert abs(np.mean(noise)) < 0.03


# ---------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("net_arch", [[], [16, 8]], ids=str)
def test_jacobian_equals_finite_differences(net_arch: list[int]) -> None:
    policy = make_policy(net_arch=net_arch)
    policy.set_standardization(MEAN / 10.0, np.array([0.5, 2.0, 1.0]))
    scale, h = np.array([0.5, 2.0, 3.0]), 1e-2
    states = OBSERVATIONS[:10] / scale
    mean, jacobian = policy_mean_and_jacobian(policy, (states * scale).astype(np.float32), scale)
    np.testing.assert_allclose(mean, by_torch(policy, (states * scale).astype(np.float32)), atol=1e-6)
    for i in range(3):
        step = h * np.eye(3)[i]
        up, down = (policy_mean(policy, ((states + s * step) * scale).astype(np.float32)) for s in (1.0, -1.0))
        np.testing.assert_allclose(jacobian[:, :, i], (up - down) / (2 * h), rtol=2e-2, atol=2e-3)


def single_samples(states: np.ndarray) -> Trajectories:
    """Trajectories of one condition and sample through states ``[T+1, dx]``."""
    T = len(states) - 1
    shape = (1, 1, T)
    ones, zeros = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
    return Trajectories(
        states[None, None].astype(np.float32), states[None, None], np.zeros((*shape, 1)), np.zeros(shape), ones, zeros
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_linearization_equals_finite_differences_of_the_deployed_policy(normalised: bool) -> None:
    """From the environment's own units to the action, VecNormalize included."""
    env: Any = vec_env(1)
    if normalised:
        env = normalized(env, [0.5, -0.5], [0.25, 4.0])
    model = small_mdgps(env)
    model.learn(2 * ITERATION)
    states = np.random.default_rng(0).uniform(-1.0, 1.0, (6, 2))
    controller = model._linearize(single_samples(states))

    def mean(at: np.ndarray) -> np.ndarray:
        observations = env.normalize_obs(at.astype(np.float32)) if normalised else at.astype(np.float32)
        return by_torch(model.policy, observations)

    h = 1e-2
    for i in range(2):
        step = h * np.eye(2)[i]
        slope = (mean(states[:-1] + step) - mean(states[:-1] - step)) / (2 * h)
        np.testing.assert_allclose(controller.K[0, :, :, i], slope, rtol=2e-2, atol=2e-3)
    at_samples = np.einsum("tux,tx->tu", controller.K[0], states[:-1]) + controller.k[0]
    np.testing.assert_allclose(at_samples, mean(states[:-1]), atol=1e-4)


def test_clipped_inputs_have_no_slope() -> None:
    """Beyond VecNormalize's clipping the policy does not react to the state."""
    model = small_mdgps(normalized(vec_env(1), [0.0, 0.0], [1.0, 1.0], clip_obs=0.5))
    model.learn(ITERATION)
    states = np.array([[2.0, 0.1], [0.1, -2.0], [2.0, 2.0], [0.1, 0.1]])
    flat = model._linearize(single_samples(states)).K[0, :, 0] == 0.0
    np.testing.assert_array_equal(flat, [[True, False], [False, True], [True, True]])


def test_no_jacobian_for_other_observations() -> None:
    model = small_mdgps(DictPointMass(), "MultiInputPolicy")
    assert model._input_scale() is None
    assert small_mdgps(PointMass())._input_scale() is not None


def test_chunks_make_no_difference() -> None:
    policy = make_policy()
    whole = policy_mean(policy, OBSERVATIONS)
    np.testing.assert_allclose(policy_mean(policy, OBSERVATIONS, chunk=7), whole, atol=1e-6)
    assert whole.dtype == np.float64
