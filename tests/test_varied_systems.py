"""Systems behind one protocol: variants side by side, a learned ensemble, local models."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_dpi.systems import (
    ContinuousSimulator,
    EnsembleSystem,
    LocalSystem,
    RewardSystem,
    Rollouts,
    VariedSystem,
    returns_of,
    trace_of,
)
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianDynamics, QuadraticCost
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.types import Transitions


def learned(n_members: int = 3) -> Ensemble:
    """:return: of a system that it has seen once, and an end beyond the first unit; its networks know nothing yet"""
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(200, 2)) * [5.0, 0.1], rng.uniform(-1.0, 1.0, (200, 1))
    following = states + actions * [1.0, 0.02]
    data = Transitions(states, actions, -np.abs(states[:, 0]), following, following[:, 0] > 5.0)
    ensemble = Ensemble(2, 1, n_members=n_members, width=16)
    ensemble.observe(data)
    return ensemble


def local(T: int = 6) -> LocalSystem:
    """:return: models that change with time"""
    rng = np.random.default_rng(1)
    F, f = 0.5 * rng.normal(size=(T, 2, 3)), rng.normal(size=(T, 2))
    roots = rng.normal(size=(T, 3, 3))
    cost = QuadraticCost(roots @ np.swapaxes(roots, -1, -2), rng.normal(size=(T, 3)), rng.normal(size=T))
    return LocalSystem(LinearGaussianDynamics(F, f, np.zeros((T, 2, 2))), cost)


def heavy(factor: float) -> ContinuousSimulator:
    """:return: a swimmer of another mass"""
    env = gym.make("Swimmer-v5")
    base: Any = env.unwrapped
    base.model.body_mass[:] *= factor
    return ContinuousSimulator(env)


def systems() -> list[tuple[RewardSystem, FloatArray]]:
    """:return: each with a state"""
    simulator = heavy(1.0)
    begun = simulator.begin(simulator.simulator.reset(seed=0))
    varied = VariedSystem([simulator, heavy(3.0)])
    return [
        (simulator, begun),
        (varied, varied.stack(begun)),
        (EnsembleSystem(learned()), np.array([1.0, 0.05])),
        (local(), np.array([0.5, -0.3, 1.0])),
    ]


@pytest.mark.parametrize("which", range(4), ids=["simulator", "varied", "ensemble", "local"])
def test_the_protocol_is_kept(which: int) -> None:
    """Shapes, derivatives against differences of the step, changes there and back."""
    system, begun = systems()[which]
    rng = np.random.default_rng(0)
    nx, dx, du = system.state_dim, system.tangent_dim, system.action_dim
    assert begun.shape == (nx,)
    states, actions = np.stack([begun] * 2), rng.uniform(-0.5, 0.5, (2, du))
    fx, fu = system.linearize(states, actions)
    assert fx.shape == (2, dx, dx) and fu.shape == (2, dx, du)
    h = 1e-2 if which == 2 else 1e-3
    for i in range(dx + du):
        change = h * np.eye(dx + du)[i]
        ends = [
            system.step(system.integrate(states, sign * change[:dx]), actions + sign * change[dx:]) for sign in (1.0, -1.0)
        ]
        slope = system.difference(ends[1], ends[0]) / (2.0 * h)
        exact = np.concatenate([fx, fu], -1)[..., i]
        is_time = which == 3 and i == dx - 1
        if not is_time:
            np.testing.assert_allclose(slope, exact, atol=2e-2 * np.abs(exact).max() + 1e-3)
    changes = 0.1 * rng.standard_normal((2, dx))
    np.testing.assert_allclose(system.difference(states, system.integrate(states, changes)), changes, atol=1e-9)
    tried = system.rollout(begun[None], rng.uniform(-1.0, 1.0, (5, 4, du)), rng)
    P = tried.continuation.shape[1]
    assert tried.rewards.shape == (5, 4) and tried.continuation.shape == (5, P)
    assert tried.last_observations.shape[:2] == (5, P) and np.isfinite(tried.rewards).all()


def test_variants_are_averaged() -> None:
    """Each keeps its own state, and rewards are the mean of what they earn alone."""
    variants = [heavy(1.0), heavy(3.0)]
    varied, rng = VariedSystem(variants), np.random.default_rng(0)
    begun = variants[0].begin(variants[0].simulator.reset(seed=0))
    actions = rng.uniform(-1.0, 1.0, (3, 8, 2))
    alone = [system.rollout(begun[None], actions, rng) for system in variants]
    together = varied.rollout(varied.stack(begun)[None], actions, rng)
    assert not np.allclose(alone[0].rewards, alone[1].rewards)
    np.testing.assert_allclose(together.rewards, 0.5 * (alone[0].rewards + alone[1].rewards))
    np.testing.assert_array_equal(together.last_observations[:, 1], alone[1].last_observations[:, 0])
    ends = np.stack([np.roll(begun, i) for i in range(3)])
    seen = varied.observe(np.concatenate([ends, ends[::-1]], axis=1))
    np.testing.assert_array_equal(seen, np.stack([variants[0].observe(part) for part in (ends, ends[::-1])], axis=1))
    with pytest.raises(ValueError, match="at least one"):
        VariedSystem([])
    with pytest.raises(ValueError, match="Variant 1 has"):
        VariedSystem([variants[0], local()])


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Reacher-v5", "Pendulum-v1"])
def test_what_is_observed_on_the_way(env_id: str) -> None:
    """In threads as in copies, and as the environment shows it."""
    env = gym.make(env_id)
    first, _ = env.reset(seed=0)
    system = ContinuousSimulator(env)
    begun = system.begin(system.simulator.read(env))
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 5, system.action_dim))
    trace, plain = (getattr(system, name)(begun[None], actions, np.random.default_rng(0)) for name in ("trace", "rollout"))
    np.testing.assert_allclose(trace.observations[0, 0, 0], first, atol=1e-9)
    for t, action in enumerate(system.units_to_actions(actions[0])):
        np.testing.assert_allclose(trace.observations[0, 0, t + 1], env.step(action)[0], atol=1e-9)
    np.testing.assert_array_equal(trace.rewards[:, 0], plain.rewards)
    np.testing.assert_array_equal(trace.alive[..., -1], plain.continuation)
    np.testing.assert_array_equal(trace.observations[:, 0, -1], plain.last_observations[:, 0])


@pytest.mark.parametrize("kind", ["ts1", "tsinf"])
def test_particles_follow_members(kind: str) -> None:
    """With tsinf a particle stays in its member; with ts1 it changes, and every particle is in some member at each step."""
    ensemble = learned()
    system, rng = EnsembleSystem(ensemble, 6, kind), np.random.default_rng(0)
    begun, actions = np.array([1.0, 0.05]), rng.uniform(-1.0, 1.0, (4, 5, 1))
    tried = system.rollout(begun[None], actions, rng)
    own = []
    for e in range(3):
        now, alive, rewards = ensemble.standardize(begun[None].repeat(4, 0)), np.ones(4), np.zeros((4, 5))
        for t in range(5):
            taken = th.as_tensor(actions[:, t], dtype=th.float32)
            with th.no_grad():
                predicted, rewarded = ensemble.predict(now, taken)
                following = ensemble.clip(predicted[e])
                rewards[:, t] = alive * rewarded[e].numpy()
                alive = alive * ensemble.continuation(now, taken, following).numpy()
            now = following
        own.append((rewards, ensemble.restore(now), alive))
    same = np.allclose(tried.rewards, np.mean([rewards for rewards, *_ in own], axis=0), atol=1e-5)
    assert same == (kind == "tsinf")
    np.testing.assert_allclose(tried.rewards[:, 0], np.mean([rewards[:, 0] for rewards, *_ in own], axis=0), atol=1e-5)
    if kind == "tsinf":
        np.testing.assert_allclose(tried.last_observations[:, ::2], np.stack([last for _, last, _ in own], 1), atol=1e-5)
        np.testing.assert_allclose(tried.continuation[:, 1::2], np.stack([alive for *_, alive in own], 1), atol=1e-5)
        assert 0.0 < tried.continuation.min() < 1.0
    again = system.rollout(begun[None], actions, np.random.default_rng(5)).rewards
    np.testing.assert_array_equal(again, system.rollout(begun[None], actions, np.random.default_rng(5)).rewards)


def test_particles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 members, got 4"):
        EnsembleSystem(learned(), 4)
    with pytest.raises(ValueError, match="one of ts1, tsinf, got 'ts2'"):
        EnsembleSystem(learned(), 3, "ts2")


def test_local_models_follow_time() -> None:
    """By hand, from the second time step; noise has its covariance."""
    system = local()
    x, u = np.array([0.5, -0.3]), np.array([[0.2], [-0.1]])
    tried = system.rollout(np.append(x, 1.0)[None], u[None], np.random.default_rng(0))
    for t in (1, 2):
        z = np.append(x, u[t - 1])
        cost = 0.5 * z @ system.cost.C[t] @ z + system.cost.c[t] @ z + system.cost.const[t]
        assert tried.rewards[0, t - 1] == pytest.approx(-cost)
        x = system.dynamics.F[t] @ z + system.dynamics.f[t]
    np.testing.assert_allclose(tried.last_observations[0, 0], x)
    cov = np.array([[2.0, 0.6], [0.6, 0.5]])
    noisy = LocalSystem(LinearGaussianDynamics(system.dynamics.F, system.dynamics.f, np.tile(cov, (6, 1, 1))), system.cost)
    drawn = noisy.rollout(np.zeros((1, 3)), np.zeros((4000, 1, 1)), np.random.default_rng(0)).last_observations[:, 0]
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.15)


class Fading:
    """Moves as told, earns where it was, and ends with a chance."""

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """:return: of one step"""
        moved = states + actions[:, 0]
        return Rollouts(states, moved[:, None], np.exp(-np.abs(moved)))


def test_a_trace_is_put_together_of_steps() -> None:
    """Where the system has none, of what each step leads to; chances to go on multiply."""
    actions = np.array([[[1.0], [2.0], [-4.0]], [[0.5], [0.0], [1.0]]])
    trace = trace_of(Fading(), np.array([[2.0]]), actions, np.random.default_rng(0))
    np.testing.assert_array_equal(trace.observations, np.array([[2.0, 3.0, 5.0, 1.0], [2.0, 2.5, 2.5, 3.5]])[:, None, :, None])
    np.testing.assert_array_equal(trace.rewards, np.array([[2.0, 3.0, 5.0], [2.0, 2.5, 2.5]])[:, None])
    np.testing.assert_allclose(trace.alive, np.exp([[0.0, -3.0, -8.0, -9.0], [0.0, -2.5, -5.0, -8.5]])[:, None])


class Given:
    """Says what it is told."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """:return: the same whatever is tried"""
        assert states.shape == (4, 1) and actions.shape == (4, 2, 1)
        return self.rollouts


def test_returns_of_sequences() -> None:
    """Discounted, closed by the value of what goes on, and finite."""
    rewards = np.arange(8.0).reshape(4, 2)
    seen, goes_on = np.arange(8.0).reshape(4, 2, 1), np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    system: Any = Given(Rollouts(rewards, seen, goes_on))
    evaluate = returns_of(system, np.zeros((2, 1)), np.random.default_rng(0), 0.5, lambda obs: 10.0 * obs[:, 0])
    expected = rewards[:, 0] + 0.5 * rewards[:, 1] + 0.25 * np.array([5.0, 10.0, 0.0, 32.5])
    np.testing.assert_allclose(evaluate(np.zeros((2, 2, 2, 1))), expected.reshape(2, 2))
    rewards[3, 0] = np.nan
    with pytest.raises(ValueError, match="action sequence 1 of state 1 earned nan"):
        evaluate(np.zeros((2, 2, 2, 1)))


def test_a_penalty_counts_in_every_particle() -> None:
    """Of what each observes when it acts."""
    ensemble, rng = learned(), np.random.default_rng(0)
    begun, actions = np.array([1.0, 0.05]), rng.uniform(-1.0, 1.0, (4, 2, 1))

    def penalty(observations: FloatArray, taken: FloatArray) -> FloatArray:
        value: FloatArray = 2.0 * observations[:, 0] + taken[:, 0]
        return value

    plain, drawn = (EnsembleSystem(ensemble, 6, penalty=given).rollout(begun[None], actions, rng) for given in (None, penalty))
    one = EnsembleSystem(ensemble, 6).rollout(begun[None], actions[:, :1], rng)
    expected = 2.0 * one.last_observations[..., 0] + actions[:, 1]
    np.testing.assert_allclose(plain.rewards[:, 0] - drawn.rewards[:, 0], 2.0 + actions[:, 0, 0], atol=1e-5)
    np.testing.assert_allclose(
        plain.rewards[:, 1] - drawn.rewards[:, 1], (one.continuation * expected).mean(1), rtol=1e-4, atol=1e-5
    )
