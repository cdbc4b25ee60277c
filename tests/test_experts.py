"""Experts in imagined windows: gradients, trust regions, what they find; compiled loops against torch."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from test_ensemble import system

from sb3_dpi.trajopt.compilation import COMPILED
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.critic import CriticData, Learner, RealSteps, SoftTwinQ
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.experts import EXPERTS, plan_targets
from sb3_dpi.world_model.experts.lqr import KLLQR
from sb3_dpi.world_model.experts.pathwise import Pathwise, pathwise_gradient, window_objective
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.experts.sampling import MPPI, move_back
from sb3_dpi.world_model.imagination import make_windows
from sb3_dpi.world_model.mlp import StackedMLP
from sb3_dpi.world_model.rollouts import RolloutOptions, RolloutPool, rollouts

GAMMA, TEMPERATURE = 0.95, 0.03

needs_numba = pytest.mark.skipif(not COMPILED, reason="numba is not there to compile")


def prepare(horizon: int = 3, width: int = 16, std: float | None = None) -> tuple[PlanningProblem, CriticData]:
    """:return: the same problem in every test, and what its critic has learned from"""
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    memory = system(300)
    data = memory.data
    ensemble = Ensemble(2, 1, 3, width)
    ensemble.observe(data)
    ensemble.fit(memory, 200, 32, rng)
    bounds = (0.05, 1.5) if std is None else (std, std)
    actor = SquashedGaussian(2, 1, (width, width), std_bounds=bounds)
    critic = SoftTwinQ(2, 1, (width, width))
    critic.follow_rewards(data.rewards, 10.0 * data.rewards)
    options = RolloutOptions(2, TEMPERATURE * float(critic.unit), GAMMA, corrected=True)
    imagined = rollouts(ensemble, actor, memory, rng, 200, options)
    scaled = replace(imagined, rewards=imagined.rewards / float(critic.unit))
    seen = CriticData(
        memory,
        ensemble,
        RealSteps(memory, ensemble, float(critic.unit)),
        RolloutPool(lambda _: scaled, len(scaled)),
    )
    critic.learn(seen, 100, 32, Learner(actor, TEMPERATURE, GAMMA, 0.02), rng)
    windows = make_windows(ensemble, memory, rng.integers(300, size=30), horizon, True)
    return PlanningProblem(actor, ensemble, critic, windows, TEMPERATURE, GAMMA), seen


@pytest.fixture(scope="module")
def prepared() -> tuple[PlanningProblem, CriticData]:
    return prepare()


@pytest.fixture(scope="module")
def problem(prepared: tuple[PlanningProblem, CriticData]) -> PlanningProblem:
    return prepared[0]


def leave_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StackedMLP, "is_compiled", False)


def gradient_of(problem: PlanningProblem, expert: Any, seed: int = 1) -> th.Tensor:
    rng = np.random.default_rng(seed)
    return expert.plan(problem, rng).gradient(problem.actor, problem.temperature, rng).direction[0]


def after_step(problem: PlanningProblem, step: th.Tensor) -> PlanningProblem:
    """:return: the same with another policy, away by the step"""
    actor = copy.deepcopy(problem.actor)
    with th.no_grad():
        actor.network.flat.add_(step)
    return replace(problem, actor=actor)


def objective(problem: PlanningProblem, noise: np.ndarray) -> float:
    with th.no_grad():
        return float(window_objective(problem, th.as_tensor(noise, dtype=th.float32))[0])


def cosine(first: th.Tensor, second: th.Tensor) -> float:
    return float(th.dot(first, second) / (first.norm() * second.norm()))


def test_the_pathwise_gradient_against_finite_differences(problem: PlanningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through model, reward, continuation, critic and entropy."""
    leave_to_torch(monkeypatch)
    noise = np.random.default_rng(3).standard_normal((4, 3, 10, 1)).astype(np.float32)
    gradient = pathwise_gradient(problem, noise).direction[0]
    rng = np.random.default_rng(4)
    for _ in range(5):
        step = th.as_tensor(rng.standard_normal(gradient.shape), dtype=th.float32)
        step = 0.3 * gradient / gradient.norm() + step / step.norm()
        values = [objective(after_step(problem, sign * 5e-3 * step), noise) for sign in (1.0, -1.0)]
        assert (values[0] - values[1]) / 1e-2 == pytest.approx(float(th.dot(gradient, step)), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("expert", [MPPI(1e-3, 400), KLLQR(1e-5)], ids=lambda expert: type(expert).__name__)
def test_small_trust_regions_lead_to_the_gradient(expert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As KL(expert || policy) goes to zero, imitation ascends the return of the windows.

    LQR does so in the mean: its costs are made convex, so that it never asks for more noise.
    """
    monkeypatch.setattr(plan_targets, "LARGEST_BATCH", 100_000)
    problem, _ = prepare(std=0.1 if isinstance(expert, KLLQR) else None)
    expected = th.stack([gradient_of(problem, Pathwise(), seed) for seed in range(30)]).mean(0)
    found = th.stack([gradient_of(problem, expert, seed) for seed in range(30)]).mean(0)
    assert cosine(found, expected) > 0.97
    assert float(found.norm() / expected.norm()) == pytest.approx(1.0, abs=0.15)


def test_parts_of_a_large_plan_are_right_in_the_mean(problem: PlanningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rng = MPPI(0.1, 32).plan(problem, np.random.default_rng(0)), np.random.default_rng(1)

    def gradient() -> th.Tensor:
        return plan.gradient(problem.actor, 0.0, rng).direction[0]

    whole = gradient()
    monkeypatch.setattr(plan_targets, "LARGEST_BATCH", 600)
    parts = th.stack([gradient() for _ in range(400)])
    assert parts.std(0).norm() > 0.1 * whole.norm()
    th.testing.assert_close(parts.mean(0), whole, atol=0.1 * float(whole.norm()), rtol=0.0)
    assert cosine(parts.mean(0), whole) > 0.99


@pytest.mark.parametrize("kind", list(EXPERTS))
def test_following_an_expert_improves_the_windows(problem: PlanningProblem, kind: str) -> None:
    gradient = gradient_of(problem, EXPERTS[kind]())
    noise = np.random.default_rng(5).standard_normal(problem.noise_shape)
    followed = after_step(problem, 0.1 * gradient / gradient.norm())
    assert objective(followed, noise) > objective(problem, noise) + 1e-4


@pytest.mark.parametrize("bound", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["lqr", "mppi", "icem"])
def test_trust_regions_hold(problem: PlanningProblem, kind: str, bound: float) -> None:
    expert: Any = EXPERTS[kind](trust_region=bound)
    plan = expert.plan(problem, np.random.default_rng(0))
    assert 0.5 * bound <= plan.divergence <= 1.001 * bound
    assert plan.beta > 0.0


def test_imitation_reaches_the_expert(problem: PlanningProblem) -> None:
    """Many steps on one plan bring the policy's mean to the target."""
    th.manual_seed(0)
    actor = SquashedGaussian(2, 1, (64, 64))
    plan = KLLQR(0.3).plan(replace(problem, actor=actor), np.random.default_rng(0))
    optimizer = th.optim.Adam([actor.network.flat], lr=1e-2)

    def misfit() -> float:
        return float((plan.target - actor(plan.states)[0]).detach().square().mean())

    before = misfit()
    for _ in range(800):
        actor.network.flat.grad = -plan.gradient(actor, 0.0, np.random.default_rng(0)).direction
        optimizer.step()
    assert misfit() < 0.5 * before


def test_lqr_is_exact_on_a_linear_system() -> None:
    """A known linear system and quadratic reward, one step, no critic: the tempered optimum of the noise in closed form."""
    problem, _ = prepare(horizon=1)
    with th.no_grad():
        problem.critic.networks.flat.zero_()
        problem.ensemble.termination.flat.zero_()
        problem.ensemble.n_deaths.zero_()
        problem.actor.network.layers()[-1][0].zero_()
    unit = float(problem.critic.unit)
    scale = problem.ensemble.state_std.float()
    problem.ensemble.known_reward = lambda x, u, y: -2.0 * unit * (th.atanh(u)[:, 0] - 0.3) ** 2 + 0.0 * (x / scale).sum(-1)
    plan = KLLQR(0.2).plan(replace(problem, temperature=0.0), np.random.default_rng(0))
    mean, log_std = problem.actor(problem.windows.states)
    sigma, beta = log_std.exp(), plan.beta
    # minimise 2 (mu + sigma w - .3)^2 + beta w^2 / 2 over w
    noise = 4.0 * sigma * (0.3 - mean) / (4.0 * sigma**2 + beta)
    th.testing.assert_close(plan.target[0], (mean + sigma * noise).detach(), atol=2e-3, rtol=1e-2)
    variance = sigma**2 * beta / (4.0 * sigma**2 + beta)
    th.testing.assert_close(plan.variance[0], variance.detach(), atol=2e-3, rtol=1e-2)


def test_move_back() -> None:
    mean = np.random.default_rng(0).normal(size=(3, 5, 2))
    moved, divergence = move_back(mean, 0.1)
    assert divergence == pytest.approx(0.1) == 0.5 * (moved**2).sum(-1).mean()
    np.testing.assert_allclose(moved / moved[0, 0, 0], mean / mean[0, 0, 0])
    np.testing.assert_array_equal(move_back(mean, 100.0)[0], mean)


# ---------------------------------------------------------------------- compiled loops against torch


def both(monkeypatch: pytest.MonkeyPatch, run: Any) -> tuple[Any, Any]:
    """:return: what the compiled loops and torch make of the same"""
    fast = run()
    leave_to_torch(monkeypatch)
    return fast, run()


@needs_numba
def test_the_compiled_fit(problem: PlanningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    data = system(300)

    def run() -> Ensemble:
        ensemble = copy.deepcopy(problem.ensemble)
        for _ in range(2):
            ensemble.fit(data, 10, 32, np.random.default_rng(1))
        return ensemble

    fast, slow = both(monkeypatch, run)
    th.testing.assert_close(fast.networks.flat, slow.networks.flat, atol=1e-4, rtol=1e-3)
    th.testing.assert_close(fast.termination.flat, slow.termination.flat, atol=1e-4, rtol=1e-3)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        one, two = (model.optimizer.state[model.networks.flat][name] for model in (fast, slow))
        th.testing.assert_close(one, two, atol=1e-5, rtol=1e-2)


@needs_numba
def test_the_compiled_critic(prepared: tuple[PlanningProblem, CriticData], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = prepared

    def run() -> tuple[SoftTwinQ, Any]:
        critic = copy.deepcopy(problem.critic)
        learner = Learner(problem.actor, TEMPERATURE, GAMMA, 0.02)
        real = RealSteps(seen.memory, seen.ensemble, float(critic.unit))
        return critic, critic.learn(replace(seen, real=real), 20, 32, learner, np.random.default_rng(2))

    (fast, one), (slow, two) = both(monkeypatch, run)
    th.testing.assert_close(fast.networks.flat, slow.networks.flat, atol=1e-4, rtol=1e-3)
    th.testing.assert_close(fast.targets.flat, slow.targets.flat, atol=1e-5, rtol=1e-3)
    assert one.loss == pytest.approx(two.loss, rel=1e-3) and one.target == pytest.approx(two.target, abs=1e-4)


@needs_numba
@pytest.mark.parametrize("deaths", [False, True])
@pytest.mark.parametrize("horizon", [1, 4])
def test_the_compiled_window_gradient(horizon: int, deaths: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = prepare(horizon)
    problem.ensemble.n_deaths.fill_(float(deaths))
    noise = np.random.default_rng(3).standard_normal((horizon + 1, 3, 10, 1)).astype(np.float32)
    fast, slow = both(monkeypatch, lambda: pathwise_gradient(problem, noise))
    th.testing.assert_close(fast.direction, slow.direction, atol=1e-5, rtol=1e-3)
    assert fast.objective == pytest.approx(slow.objective, abs=1e-5)
    assert fast.entropy == pytest.approx(slow.entropy, abs=1e-4)


def test_other_activations_are_left_to_torch() -> None:
    assert not StackedMLP(1, (2, 8, 8, 1), activation_fn=th.nn.ReLU).is_compiled
    assert StackedMLP(1, (2, 8, 8, 1)).is_compiled == COMPILED
