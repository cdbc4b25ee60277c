"""DPI: units, temperature, rates, the deployed average, known functions, and models that diverge."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import kept, logged, parameters
from algorithms import small_dpi as small
from dummy_envs import ITERATION as STEPS
from dummy_envs import PointMass, limited, vec_env
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI
from sb3_dpi.dpi import dpi as dpi_module
from sb3_dpi.world_model import returns_critic
from sb3_dpi.world_model.ensemble import DivergedError, Ensemble
from sb3_dpi.world_model.experts.plan_targets import PolicyGradient
from sb3_dpi.world_model.types import Transitions

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def check_learns(model: DPI, iterations: int = 3) -> DPI:
    networks = (model.policy.actor.network, model.ensemble.networks, model.critic.networks, model.critic.targets)
    before = [network.flat.detach().clone() for network in networks]
    model.learn(iterations * model.train_freq.frequency * model.n_envs)
    assert model.n_iterations == iterations and model._n_updates >= iterations
    for network, old in zip(networks, before, strict=True):
        assert not th.equal(network.flat, old) and bool(th.isfinite(network.flat).all())
    return model


def test_a_critic_that_knows_nothing_learns_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step of the policy, in proportion to ``update_to_data``; then as ``policy_delay`` says."""
    monkeypatch.setattr(dpi_module, "FIRST_CRITIC_UPDATES", 40)
    taken: list[int] = []
    evaluate = DPI.evaluate
    monkeypatch.setattr(DPI, "evaluate", lambda self, data, n, size: taken.append(n) or evaluate(self, data, n, size))
    small(update_to_data=0.5, policy_delay=3).learn(2 * STEPS)
    assert taken[0] == 20 and len(taken) > 2 and set(taken[1:]) == {3}


def test_steps_that_are_there_need_not_be_random(tmp_path: Path) -> None:
    filled = small().learn(2 * STEPS)
    filled.save_replay_buffer(tmp_path / "steps")
    model = small(learning_starts=STEPS, preset="free")
    assert model._outlook() == f"takes {STEPS} random steps, then the preset 'free'"
    model.load_replay_buffer(tmp_path / "steps")
    assert model._outlook() == "takes 0 random steps, then the preset 'free'"


# ---------------------------------------------------------------------- units


def test_returns_are_learned_from_the_latest_steps_of_all_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns_critic, "LATEST", 20)
    model = small(vec_env(2), critic={"kind": "returns"}).learn(3 * STEPS)
    latest = model.memory.take(model.memory.newest(20)).states
    assert len(latest) == 20 and isinstance(model.critic, returns_critic.ReturnsV)
    np.testing.assert_allclose(model.ensemble.restore(model.critic._states), latest, atol=1e-5)
    buffer = model.replay_buffer
    np.testing.assert_array_equal(
        latest, np.concatenate([buffer.observations[buffer.pos - 10 : buffer.pos, i] for i in (0, 1)])
    )


def test_a_dimension_that_begins_to_vary_is_fresh() -> None:
    """Its first standard deviation has no unit: neither is it followed slowly from one, nor is a weight scaled by it."""

    def seen(size: float) -> Ensemble:
        th.manual_seed(0)
        ensemble, rng = Ensemble(2, 1, 2, 8), np.random.default_rng(0)
        for spread in (0.0, size):
            states, after = (rng.normal(size=(50, 2)) * (1.0, spread) for _ in range(2))
            actions, rewards = rng.uniform(-1.0, 1.0, (50, 1)), spread * rng.normal(size=50)
            ensemble.observe(Transitions(states, actions, rewards, after, np.zeros(50, dtype=bool)))
        return ensemble

    one, small_one = seen(1.0), seen(2.0**-30)
    assert th.equal(one.networks.flat, small_one.networks.flat)
    for name in ("state_std", "change_std"):
        ratio = getattr(small_one, name) / getattr(one, name)
        np.testing.assert_allclose(ratio, [1.0, 2.0**-30, 2.0**-30][: len(ratio)], rtol=1e-9)


def test_observations_are_standardised() -> None:
    model = small().learn(3 * STEPS)
    data, _ = kept(model)
    np.testing.assert_allclose(model.policy.obs_mean, data.states.mean(0))
    np.testing.assert_allclose(model.policy.obs_std, data.states.std(0))


def test_no_function_changes_with_the_units() -> None:
    model = small().learn(2 * STEPS)
    data, _ = kept(model)
    states = data.states[:20]

    def functions() -> list[np.ndarray]:
        seen = model.ensemble.standardize(states)
        actions = th.as_tensor(data.actions[:20], dtype=th.float32)
        with th.no_grad():
            following, rewards = model.ensemble.predict(seen, actions)
            value = model.critic(seen, actions) * float(model.critic.unit)
            moved = following * model.ensemble.state_std.float() + model.ensemble.state_mean.float()
            chances = th.sigmoid(model.ensemble.termination(seen))
        return [array.numpy() for array in (model.policy.actor(seen)[0].detach(), moved, rewards, value, chances)]

    before, temperature = functions(), model.temperature * float(model.critic.unit)
    buffer, model.steps_since_training = model.replay_buffer, 30
    for name, factor in (("observations", 1.3), ("next_observations", 1.3), ("rewards", 3.0)):
        getattr(buffer, name)[buffer.pos - 30 : buffer.pos] *= factor
    std = model.ensemble.state_std.clone()
    model._follow_units()
    assert not th.equal(std, model.ensemble.state_std)
    for one, two in zip(before, functions(), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)
    assert model.temperature * float(model.critic.unit) == pytest.approx(temperature)


def test_vec_normalize() -> None:
    """Everything inside is in the environment's units: the policy alone must undo the wrapper."""
    env = VecNormalize(vec_env(2, lambda: limited(12)))
    model = check_learns(small(env, train_freq=20), 4)
    states = kept(model)[0].states[:20]
    inside = model.policy.actor(model.ensemble.standardize(states))[0].detach().tanh()
    outside = model.predict(env.normalize_obs(states.astype(np.float32)), deterministic=True)[0]
    np.testing.assert_allclose(outside, inside, atol=1e-4)


def test_learning_does_not_depend_on_units() -> None:
    def act(scale: float, unit: float) -> np.ndarray:
        env: gym.Env = gym.wrappers.TransformReward(limited(12), lambda r: scale * r)
        space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        env = gym.wrappers.TransformObservation(env, lambda obs: (unit * obs).astype(np.float32), space)
        return small(env).learn(3 * STEPS).predict(unit * OBSERVATIONS, deterministic=True)[0]

    expected = act(1.0, 1.0)
    np.testing.assert_allclose(act(1e3, 1.0), expected, atol=2e-2)
    np.testing.assert_allclose(act(1.0, 1e3), expected, atol=2e-2)


# ---------------------------------------------------------------------- temperature, rates, averages


def test_episodes_that_end() -> None:
    model = check_learns(small(gym.wrappers.TimeLimit(PointMass(death=(3, 9)), 12)))
    assert model.ensemble.sees_deaths


def test_fixed_std() -> None:
    model = small(policy_kwargs={"net_arch": [8, 8], "std_bounds": (0.2, 0.2)}).learn(3 * STEPS)
    assert logged(model, "train/std") == pytest.approx(0.2)


def test_fixed_temperature() -> None:
    model = small(ent_coef=0.1).learn(STEPS)
    assert model.temperature == pytest.approx(0.1)
    unit = float(model.critic.unit)
    model.learn(3 * STEPS, reset_num_timesteps=False)
    assert float(model.critic.unit) != unit
    assert model.temperature * float(model.critic.unit) == pytest.approx(0.1 * unit), "the same in rewards"


@dataclass(frozen=True)
class Still:
    """A plan that asks for nothing."""

    entropy: float

    def gradient(self, actor: Any, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        return PolicyGradient(th.zeros_like(actor.network.flat), 0.0, self.entropy)


@pytest.mark.parametrize("entropy", [-2.0, -0.3, 0.4])
def test_the_temperature_follows_the_entropy(entropy: float) -> None:
    """It falls while the policy is more random than asked for, and rises while it is less."""
    model = small(target_entropy=-0.3, learning_rate=0.01)
    before = model.log_temperature
    model.imitate(Still(entropy))
    assert before is not None and model.log_temperature == pytest.approx(before - 0.01 * (entropy + 0.3))


def test_rollouts_pay_for_entropy_in_the_unit_of_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = dpi_module.rollouts

    def record(*args: Any) -> Any:
        seen.append((args[-1].temperature, args[-1].gamma))
        return original(*args)

    monkeypatch.setattr(dpi_module, "rollouts", record)
    model = small(gamma=0.9).learn(2 * STEPS)
    model.imagine(1)
    unit = float(model.critic.unit)
    assert abs(unit - 1.0) > 0.1 and seen[-1] == pytest.approx((model.temperature * unit, 0.9))


def test_the_policy_rate_follows_the_divergence() -> None:
    model = small(preset={"target_kl": 1.0})
    for divergence, factor in ((0.7, 1.0), (0.4, 1.2), (2.1, 1.0), (2.1, 1.0 / 1.2)):
        model._follow_divergence(divergence)
        assert model.rate_factor == pytest.approx(factor)
    for divergence, bound in ((9.0, 0.1), (0.0, 5.0)):
        for _ in range(40):
            model._follow_divergence(divergence)
        assert model.rate_factor == pytest.approx(bound)
    model._update_learning_rates()
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(5.0 * 3e-4)
    fixed = small(preset={"target_kl": 0})
    fixed._follow_divergence(9.0)
    assert fixed.rate_factor == 1.0


def test_the_critic_settles(tmp_path: Path) -> None:
    """Its rate falls with one over the root of its updates, to a tenth, on from where it was after loading."""

    def rate(model: DPI) -> float:
        return float(model.critic.optimizer.param_groups[0]["lr"])

    model = small(critic={"lr_decay_after": 100, "learning_rate": 1e-3}, policy_delay=10)
    for n_updates, share in ((0, 1.0), (10, 1.0), (5000, 0.1), (40, 0.5)):
        model._n_updates = n_updates
        model._update_learning_rates()
        assert rate(model) == pytest.approx(share * 1e-3)
    model.save(tmp_path / "settled")
    loaded = DPI.load(tmp_path / "settled", env=model.get_env())
    loaded._update_learning_rates()
    assert rate(loaded) == rate(model)
    assert rate(small(critic={"learning_rate": 1e-3}).learn(3 * STEPS)) == pytest.approx(1e-3)


def test_the_deployed_policy_is_an_average() -> None:
    def flat(model: DPI, name: str) -> np.ndarray:
        return getattr(model.policy, name).network.flat.detach().numpy().copy()

    model = small(preset={"polyak": 1.0}).learn(3 * STEPS)
    np.testing.assert_array_equal(flat(model, "actor"), flat(model, "averaged"))
    with th.no_grad():
        model.policy.actor.network.flat.add_(0.1)
    middle = 0.5 * (flat(model, "actor") + flat(model, "averaged"))
    model.policy.follow(0.5)
    np.testing.assert_allclose(flat(model, "averaged"), middle, atol=1e-7)
    mean = model.policy.averaged(model.policy.standardize(th.as_tensor(OBSERVATIONS)))[0]
    np.testing.assert_allclose(
        model.policy(th.as_tensor(OBSERVATIONS), deterministic=True).detach(), mean.tanh().detach(), atol=1e-6
    )


def test_known_cost_and_end() -> None:
    """In the environment's units, of the right arguments, and instead of what is learned."""
    seen = []

    def cost(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        seen.append((obs.detach(), action.detach(), next_obs.detach()))
        return obs.square().sum(-1) + 0.1 * (0.5 * action).square().sum(-1)

    def end(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return next_obs[:, 0].abs() > 100.0

    model = check_learns(
        small(gym.wrappers.TimeLimit(PointMass(-2.0, 2.0), 12), world_model={"cost_fn": cost, "termination_fn": end})
    )
    real = kept(model)[0]
    obs, action, following = (th.cat([row[i] for row in seen]) for i in range(3))
    assert action.min() < -1.2 and action.max() > 1.2 and action.abs().max() <= 2.0
    assert float(obs.min()) >= real.states.min() - 2.0 and float(obs.max()) <= real.states.max() + 2.0
    assert bool((following - obs)[:, 0].sub(0.1 * obs[:, 1]).abs().median() < 0.5)
    assert model.predict(OBSERVATIONS)[0].shape == (20, 1)


# ---------------------------------------------------------------------- models that diverge


def test_a_model_that_diverges_is_fitted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().learn(2 * STEPS)
    with th.no_grad():
        model.ensemble.networks.flat.fill_(math.nan)
    model.learn(STEPS, reset_num_timesteps=False)
    assert np.isfinite(parameters(model))


def test_a_model_that_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last good policy is saved, and the error says where."""
    model = small()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2 * STEPS)
    expected = model.predict(OBSERVATIONS, deterministic=True)[0]
    monkeypatch.setattr(Ensemble, "_descend", lambda *args: math.nan)
    with pytest.raises(DivergedError, match=r"diverged twice.*last_good_model\.zip"):
        model.learn(STEPS, reset_num_timesteps=False)
    loaded = DPI.load(tmp_path / "last_good_model.zip")
    np.testing.assert_allclose(loaded.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-6)
