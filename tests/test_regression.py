"""The regression of a policy's mean: numpy and torch make the same updates."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import DictPointMass, PointMass
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor, update_learning_rate

from sb3_dpi import MDGPS
from sb3_dpi.common import regression
from sb3_dpi.common.actor import export_actor, plain_layers
from sb3_dpi.common.policies import BoundedGaussianCnnPolicy, BoundedGaussianMultiInputPolicy, BoundedGaussianPolicy
from sb3_dpi.common.regression import regress_mean

DX, DU, N = 5, 3, 200


def make_policy(**kwargs: Any) -> BoundedGaussianPolicy:
    """:return: always the same one, standardising unless told otherwise"""
    th.manual_seed(0)
    action_space = spaces.Box(-1.0, 1.0, (DU,), np.float32)
    policy = BoundedGaussianPolicy(spaces.Box(-np.inf, np.inf, (DX,)), action_space, lambda _: 3e-3, **kwargs)
    if "features_extractor_class" not in kwargs:
        policy.set_standardization(np.linspace(-1.0, 1.0, DX), np.linspace(0.5, 2.0, DX))
    return policy


def make_problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:return: observations, targets and precisions"""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, DU, DU))
    return rng.normal(size=(N, DX)), rng.normal(size=(N, DU)), root @ root.swapaxes(1, 2) + 0.1 * np.eye(DU)


def make_minibatches(n_updates: int = 20, seed: int = 0) -> np.ndarray:
    """:return: indices"""
    return np.random.default_rng(seed).integers(N, size=(n_updates, 32))


def assert_same(policy: BoundedGaussianPolicy, reference: BoundedGaussianPolicy) -> None:
    """Weights and the optimizer's state are equal, whoever made the updates."""
    for (name, value), expected in zip(policy.state_dict().items(), reference.state_dict().values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4, err_msg=name)
    state, expected_state = policy.optimizer.state_dict()["state"], reference.optimizer.state_dict()["state"]
    assert state.keys() == expected_state.keys() and state
    for key, entry in state.items():
        assert entry.keys() == expected_state[key].keys()
        for name, value in entry.items():
            expected = expected_state[key][name]
            assert value.dtype == expected.dtype and value.shape == expected.shape
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_fn": th.nn.ReLU},
        {"net_arch": []},
        {"net_arch": [16], "features_extractor_class": FlattenExtractor},
        {"optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-3}},
    ],
    ids=["tanh", "relu", "linear", "not standardised", "other betas"],
)
def test_numpy_equals_torch(options: dict[str, Any]) -> None:
    policy, reference = make_policy(**options), make_policy(**options)
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    assert regression._numpy_layers(policy) is not None
    losses = regress_mean(policy, *make_problem(), make_minibatches())
    expected = regression._regress_torch(reference, *make_problem(), make_minibatches())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_same(policy, reference)
    assert any(float((a - b).detach().abs().max()) > 1e-3 for a, b in zip(policy.parameters(), start, strict=True))


def test_either_continues_what_the_other_began() -> None:
    """Through a change of the learning rate and a saved state."""
    policy, reference = make_policy(), make_policy()
    rounds: list[Callable[..., Any]] = [regress_mean, regression._regress_torch, regress_mean]
    for i, regress in enumerate(rounds):
        rate = 3e-3 / (1 + i)
        for each in (policy, reference):
            update_learning_rate(each.optimizer, rate)
        regress(policy, *make_problem(), make_minibatches(seed=i))
        regression._regress_torch(reference, *make_problem(), make_minibatches(seed=i))
        restored = make_policy()
        restored.load_state_dict(policy.state_dict())
        restored.optimizer.load_state_dict(policy.optimizer.state_dict())
        policy = restored
    assert_same(policy, reference)


def test_learning_rate_is_the_optimizers() -> None:
    policy = make_policy()
    before = [parameter.detach().clone() for parameter in policy.action_net.parameters()]
    update_learning_rate(policy.optimizer, 0.0)
    regress_mean(policy, *make_problem(), make_minibatches())
    assert all(th.equal(a, b) for a, b in zip(before, policy.action_net.parameters(), strict=True))
    update_learning_rate(policy.optimizer, 1e-3)
    policy.optimizer.state.clear()
    regress_mean(policy, *make_problem(), make_minibatches(1))
    # Adam's first step is as long as the learning rate
    change = max(float((a - b).detach().abs().max()) for a, b in zip(before, policy.action_net.parameters(), strict=True))
    assert math.isclose(change, 1e-3, rel_tol=1e-2)


def test_a_linear_policy_finds_the_weighted_least_squares_solution() -> None:
    """With precisions that differ between samples, where unweighted regression ends elsewhere."""
    x, targets, _ = make_problem()
    precisions = np.eye(DU) * np.where(x[:, 0] > 0, 1.0, 0.05)[:, None, None]
    policy = make_policy(net_arch=[])
    for rate in (3e-2, 3e-3):
        update_learning_rate(policy.optimizer, rate)
        losses = regress_mean(policy, x, targets, precisions, np.tile(np.arange(N), (400, 1)))
    inputs, root = np.c_[x, np.ones(N)], np.sqrt(precisions[:, :1, 0])
    solution = np.linalg.lstsq(root * inputs, root * targets, rcond=None)[0]
    np.testing.assert_allclose(export_actor(policy)(x), inputs @ solution, atol=1e-3)
    assert math.isclose(losses[-1], 0.5 * np.mean(np.sum((root * (inputs @ solution - targets)) ** 2, 1)), rel_tol=1e-4)


def unusual_policies() -> dict[str, BoundedGaussianPolicy]:
    """:return: policies that only torch can train"""
    action_space, other = spaces.Box(-1.0, 1.0, (DU,), np.float32), make_policy()
    box, image = spaces.Box(-np.inf, np.inf, (DX,)), spaces.Box(0, 255, (3, 36, 36), np.uint8)
    frozen, uneven, groups, mean = make_policy(), make_policy(), make_policy(), make_policy()
    frozen.action_net.weight.requires_grad_(False)
    regression._regress_torch(uneven, *make_problem(), make_minibatches(1))
    uneven.optimizer.state[uneven.action_net.bias]["step"] += 1.0
    groups.optimizer = th.optim.Adam([{"params": [p]} for p in groups.parameters()], lr=1e-3)

    class Squashed(BoundedGaussianPolicy):
        def action_mean(self, obs: Any) -> th.Tensor:
            return th.tanh(super().action_mean(obs))

    mean.__class__ = Squashed
    return {
        "sgd": make_policy(optimizer_class=th.optim.SGD),
        "adamw": make_policy(optimizer_class=th.optim.AdamW),
        "weight decay": make_policy(optimizer_kwargs={"weight_decay": 0.1}),
        "amsgrad": make_policy(optimizer_kwargs={"amsgrad": True}),
        "activation": make_policy(activation_fn=th.nn.ELU),
        "frozen": frozen,
        "uneven": uneven,
        "groups": groups,
        "mean": mean,
        "double": other.double(),
        "cnn": BoundedGaussianCnnPolicy(image, action_space, lambda _: 1e-3),
        "dict": BoundedGaussianMultiInputPolicy(spaces.Dict({"a": box, "b": image}), action_space, lambda _: 1e-3),
    }


def test_torch_trains_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = unusual_policies()
    monkeypatch.setattr(regression, "_regress_torch", lambda *_: np.array([-1.0]))
    for name, policy in policies.items():
        losses = regress_mean(policy, *make_problem(), make_minibatches())
        assert losses.tolist() == [-1.0], name


@pytest.mark.parametrize(("key", "is_plain"), [("position", True), ("image", False)])
def test_policies_of_dictionaries_learn(key: str, is_plain: bool) -> None:
    """Vectors in numpy, images in torch."""
    model = small_mdgps(DictPointMass(("state", key)), "MultiInputPolicy")
    assert (plain_layers(model.policy) is not None) == is_plain
    before = model.policy.action_net.weight.detach().clone()
    model.learn(1)
    assert not th.equal(before, model.policy.action_net.weight)


def test_saved_models_hold_the_optimizers_state(tmp_path: Path) -> None:
    model = small_mdgps()
    model.learn(1)
    model.save(tmp_path / "model")
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    state = loaded.policy.optimizer.state[loaded.policy.action_net.weight]
    assert float(state["step"]) == model.imitation_steps
    th.testing.assert_close(state["exp_avg"], model.policy.optimizer.state[model.policy.action_net.weight]["exp_avg"])


@pytest.mark.parametrize("options", [{}, {"activation_fn": th.nn.ReLU}, {"activation_fn": th.nn.ELU}])
def test_exported_actor_is_the_policys_mean(options: dict[str, Any]) -> None:
    policy, x = make_policy(**options), make_problem()[0].astype(np.float32)
    for n in (1, 4):
        with th.no_grad():
            expected = policy.action_mean(obs_as_tensor(x[:n], policy.device))  # type: ignore[arg-type]
        np.testing.assert_allclose(export_actor(policy)(x[:n]), expected, atol=1e-5)
