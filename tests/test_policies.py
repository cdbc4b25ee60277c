"""Policies in units of the bounds: what they predict, their standardisation, and the key that they may not see."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, every, parameters, small_mdgps
from dummy_envs import ITERATION, PointMass
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_dpi import MDGPS
from sb3_dpi.common.policies import (
    BoundedGaussianCnnPolicy,
    BoundedGaussianMultiInputPolicy,
    BoundedGaussianPolicy,
    StatelessCombinedExtractor,
)
from sb3_dpi.common.standardized import StandardizedExtractor

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([5.0, 0.5], np.float32), dtype=np.float32)
OBSERVATIONS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def make_policy(**kwargs: Any) -> BoundedGaussianPolicy:
    th.manual_seed(0)
    return BoundedGaussianPolicy(SPACE, ACTIONS, lambda _: 1e-3, **{"net_arch": [8], "ortho_init": False, **kwargs})


def outputs(policy: BoundedGaussianPolicy) -> np.ndarray:
    """Mean actions and values."""
    with th.no_grad():
        obs = th.as_tensor(OBSERVATIONS)
        return th.cat([policy.action_mean(obs), policy.predict_values(obs)], 1).numpy()


# ---------------------------------------------------------------------- choosing a policy


@every(plans=False)
def test_aliases(make: Make) -> None:
    """Each name stands for the class that the algorithm's folder exports, and learns the same."""
    folder = importlib.import_module(make.algorithm.__module__.rpartition(".")[0])
    aliases = make.algorithm.policy_aliases
    assert {"MlpPolicy", "MultiInputPolicy"} <= set(aliases)
    assert {name: getattr(folder, name) for name in aliases} == aliases
    by_class, by_name = make(policy=aliases["MlpPolicy"]), make()
    for model in (by_class, by_name):
        model.set_random_seed(1)
        model.learn(ITERATION)
    assert parameters(by_class) == parameters(by_name)


@every(plans=False)
def test_custom_policies(make: Make) -> None:
    """Of a user's class, with networks of the sizes and activations that were asked for."""
    base: Any = make.algorithm.policy_aliases["MlpPolicy"]
    custom = type("Custom", (base,), {})
    kwargs = {"net_arch": {"pi": [5, 4], ("qf" if make.squashes else "vf"): [3]}, "activation_fn": th.nn.ELU}
    model = make(policy=custom, policy_kwargs=kwargs)
    before = parameters(model)
    assert type(model.learn(ITERATION).policy) is custom and parameters(model) != before
    assert model.policy.activation_fn is th.nn.ELU
    if not make.squashes:
        hidden = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, th.nn.Linear)]
        assert [layer.out_features for layer in hidden] == [5, 4]
        assert any(isinstance(layer, th.nn.ELU) for layer in model.policy.mlp_extractor.value_net)


@every(from_conditions=True)
def test_policies_of_other_units_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"units of the action bounds.*MlpPolicy, CnnPolicy, MultiInputPolicy"):
        make(policy=ActorCriticPolicy)


@pytest.mark.parametrize("options", [{"features_extractor_class": FlattenExtractor}, {"share_features_extractor": False}, {}])
def test_extractors_may_be_chosen(options: dict[str, Any]) -> None:
    model = small_mdgps(policy_kwargs={"net_arch": [8], **options})
    model.learn(2 * ITERATION)
    extractor = model.policy.pi_features_extractor
    if "features_extractor_class" in options:
        assert type(extractor) is FlattenExtractor
    else:
        assert isinstance(extractor, StandardizedExtractor) and extractor.is_set
        sampled = model.rollout_buffer.trajectories().states[:, :, :-1].reshape(-1, 2)
        np.testing.assert_allclose(extractor.obs_mean.numpy(), sampled.mean(0), atol=1e-4)
        np.testing.assert_allclose(extractor.obs_std.numpy(), sampled.std(0), atol=1e-4)


# ---------------------------------------------------------------------- actions


def test_mean_is_that_of_the_distribution() -> None:
    policy = make_policy()
    policy.set_standardization(np.zeros(3), np.ones(3))
    obs = th.as_tensor(OBSERVATIONS)
    with th.no_grad():
        np.testing.assert_allclose(policy.action_mean(obs), policy.get_distribution(obs).mode(), atol=1e-6)


def test_predictions_are_unscaled_and_clipped() -> None:
    policy = make_policy()
    policy.set_standardization(np.zeros(3), np.ones(3))
    reader: Any = policy.action_net
    with th.no_grad():
        reader.weight.zero_()
        for bias, expected in (([0.0, 0.0], [1.5, 0.25]), ([-1.0, 1.0], [-2.0, 0.5]), ([7.0, -7.0], [5.0, 0.0])):
            reader.bias.copy_(th.tensor(bias))
            action, _ = policy.predict(OBSERVATIONS[0], deterministic=True)
            np.testing.assert_allclose(action, expected, atol=1e-6)
            assert ACTIONS.contains(action)


def test_log_std() -> None:
    assert th.allclose(make_policy().log_std.exp(), th.tensor([0.5, 0.5]))
    policy = make_policy(log_std_init=-3.0)
    assert th.allclose(policy.log_std, th.tensor([-3.0, -3.0]))
    samples = np.stack([policy.predict(OBSERVATIONS[0])[0] for _ in range(200)])
    np.testing.assert_allclose(samples.std(0), np.exp(-3.0) * np.array([3.5, 0.25]), rtol=0.25)


def test_parameters_survive_save_and_load(tmp_path: Any) -> None:
    policy = make_policy()
    policy.set_standardization(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    policy.save(tmp_path / "policy")
    loaded = BoundedGaussianPolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(outputs(loaded), outputs(policy))


# ---------------------------------------------------------------------- standardisation


@pytest.mark.parametrize("net_arch", [[8], [], {"pi": [], "vf": [4]}, {"pi": [4, 4], "vf": []}], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_standardization_keeps_the_function(net_arch: Any, shared: bool) -> None:
    policy = make_policy(net_arch=net_arch, share_features_extractor=shared)
    policy.set_standardization(np.zeros(3), np.ones(3))
    before = outputs(policy)
    rng = np.random.default_rng(0)
    for _ in range(3):
        mean, std = rng.normal(size=3), np.exp(rng.normal(size=3))
        policy.set_standardization(mean, std)
        np.testing.assert_allclose(outputs(policy), before, rtol=1e-4, atol=1e-4)
        for extractor in (policy.pi_features_extractor, policy.vf_features_extractor):
            assert isinstance(extractor, StandardizedExtractor)
            np.testing.assert_allclose(extractor.obs_mean, mean, rtol=1e-6)
            np.testing.assert_allclose(extractor.obs_std, std, rtol=1e-6)


def test_the_first_statistics_only_are_set() -> None:
    policy = make_policy()
    weights = [parameter.clone() for parameter in policy.parameters()]
    before = outputs(policy)
    policy.set_standardization(np.array([5.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0]))
    assert all(th.equal(old, new) for old, new in zip(weights, policy.parameters(), strict=True))
    assert not np.allclose(outputs(policy), before)


def test_standardized_features() -> None:
    extractor = StandardizedExtractor(spaces.Box(-1.0, 1.0, (3, 1)))
    extractor.obs_mean.copy_(th.tensor([1.0, 2.0, 3.0]))
    extractor.obs_std.copy_(th.tensor([1.0, 2.0, 4.0]))
    seen = np.array([[[1.0], [4.0], [-1.0]]])
    for is_set in (0.0, 1.0):
        extractor.is_set.fill_(is_set)
        expected = [[0.0, is_set, -is_set]]  # without statistics nothing is shown
        np.testing.assert_allclose(extractor(th.as_tensor(seen)), expected)
        np.testing.assert_allclose(extractor.standardize(extractor.vectors(seen)), expected)
    far = 1e9 + seen  # single precision knows only multiples of 64 there
    extractor.obs_mean.add_(1e9)
    np.testing.assert_allclose(extractor(th.as_tensor(far)), expected)
    np.testing.assert_allclose(extractor.standardize(extractor.vectors(far)), expected)


def test_constant_observations_are_not_divided_by_zero() -> None:
    class Constant(PointMass):
        def observation(self) -> Any:
            return np.array([self.state[0], 7.0], np.float32)

    model = small_mdgps(Constant())
    model.learn(2 * ITERATION)
    extractor: Any = model.policy.pi_features_extractor
    assert extractor.obs_std[1] == 1.0
    assert np.all(np.isfinite(outputs_of(model)))


def outputs_of(model: MDGPS) -> np.ndarray:
    return model.predict(OBSERVATIONS[:, :2], deterministic=True)[0]


# ---------------------------------------------------------------------- the hidden key


def test_stateless_extractor() -> None:
    space = spaces.Dict({"a": SPACE, "state": spaces.Box(-1.0, 1.0, (7,)), "b": spaces.Box(-1.0, 1.0, (2,))})
    extractor = StatelessCombinedExtractor(space)
    assert extractor.features_dim == 5
    extractor.is_set.fill_(1.0)  # until then it shows nothing
    features = extractor({"a": th.ones(4, 3), "b": th.zeros(4, 2), "state": th.full((4, 7), th.nan)})
    np.testing.assert_array_equal(features, np.tile([1.0, 1.0, 1.0, 0.0, 0.0], (4, 1)))
    with pytest.raises(ValueError, match='nothing but "state"'):
        StatelessCombinedExtractor(spaces.Dict({"state": SPACE}))


@pytest.mark.parametrize("shape", [(2,), (3, 2)], ids=str)
@pytest.mark.parametrize("batch", [None, 1, 5])
def test_missing_state(shape: tuple[int, ...], batch: int | None) -> None:
    space = spaces.Dict({"state": spaces.Box(-1.0, 1.0, shape), "seen": SPACE})
    policy = BoundedGaussianMultiInputPolicy(space, ACTIONS, lambda _: 1e-3, net_arch=[8])
    seen = OBSERVATIONS[0] if batch is None else OBSERVATIONS[:batch]
    with_state = {"seen": seen, "state": np.ones((*seen.shape[:-1], *shape), np.float32)}
    given = {"seen": seen}
    expected, _ = policy.predict(with_state, deterministic=True)
    actual, _ = policy.predict(given, deterministic=True)
    np.testing.assert_array_equal(actual, expected)
    assert actual.shape == ((2,) if batch is None else (batch, 2))
    assert set(given) == {"seen"}, "what the user gave is left alone"


def test_dictionaries_without_state_are_as_ever() -> None:
    space = spaces.Dict({"x": SPACE, "y": SPACE})
    policy = BoundedGaussianMultiInputPolicy(space, ACTIONS, lambda _: 1e-3)
    assert policy.predict({"x": OBSERVATIONS[0], "y": OBSERVATIONS[1]})[0].shape == (2,)
    with pytest.raises(KeyError):
        policy.predict({"x": OBSERVATIONS[0]})


def test_image_policy() -> None:
    policy = BoundedGaussianCnnPolicy(spaces.Box(0, 255, (1, 36, 36), np.uint8), ACTIONS, lambda _: 1e-3)
    action, _ = policy.predict(np.zeros((1, 36, 36), np.uint8), deterministic=True)
    assert ACTIONS.contains(action)
