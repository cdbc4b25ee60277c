"""MDGPS: its initial controllers, C-step, S-step and step rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import logged, parameters, small_mdgps
from dummy_envs import ITERATION
from stable_baselines3.common.utils import LinearSchedule

from sb3_dpi.common.local_models import LocalModel, StateUnits
from sb3_dpi.mdgps.mdgps import STEP_LIMITS, CStep, Improvement
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost

# ---------------------------------------------------------------------- controllers and steps


def test_known_cost_is_used() -> None:
    """The planner must read ``cost`` and not the rewards: it says the opposite of them here."""

    def push_right(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return -10.0 * next_obs[:, 1] + 0.5 * (action**2).sum(-1)

    model = small_mdgps(cost=push_right, imitation_steps=200, kl_step=3.0)
    model.learn(4 * ITERATION)
    actions, _ = model.predict(np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)).astype(np.float32), deterministic=True)
    assert actions.mean() > 0.3
    rewarded = small_mdgps(imitation_steps=200, kl_step=3.0).learn(4 * ITERATION)
    assert rewarded.predict(np.array([0.0, 1.0], np.float32), deterministic=True)[0] < 0.0


@pytest.mark.parametrize("kind", ["lqr", "pd"])
def test_initial_controllers_hold_the_first_state(kind: str) -> None:
    """Controllers sample the first iteration: they brake, while the untrained policy does not."""
    options = {"stiffness": 10.0} if kind == "lqr" else {"position_gains": 5.0, "velocity_gains_mult": 1.0}

    def drift(initial_controller: Any) -> float:
        model = small_mdgps(initial_controller=initial_controller, horizon=40)
        model.learn(1)
        states = model.rollout_buffer.trajectories().states
        return float(np.mean(np.abs(states[:, :, -1, 0] - states[:, :, 0, 0])))

    assert drift({"kind": kind, "init_var": 0.01, **options}) < 0.7 * drift("policy")


def test_the_policy_learns_the_initial_controllers_first() -> None:
    """With next to no step beyond them, it is what it imitates."""
    controller = {"kind": "pd", "velocity_gains_mult": 1.0, "init_var": 0.09}
    options: dict[str, Any] = {"imitation_steps": 500, "learning_rate": 1e-2, "kl_step": 1e-5}
    model = small_mdgps(initial_controller=controller, n_conditions=1, samples_per_condition=8, **options)
    model.learn(1)
    x = model.rollout_buffer.trajectories().states[0]
    expected = -(x - x[:, :1]).sum(-1)
    assert np.std(expected) > 0.1
    actions = model.predict(x.reshape(-1, 2).astype(np.float32), deterministic=True)[0]
    np.testing.assert_allclose(actions.reshape(expected.shape), np.clip(expected, -1.0, 1.0), atol=0.1)


def test_initial_controllers_on_torques() -> None:
    options = {"kind": "lqr", "positions": [6, 7], "velocities": [6, 7]}
    with pytest.raises(ValueError, match="must be different entries"):
        small_mdgps("Reacher-v5", initial_controller=options).learn(1)
    model = small_mdgps("Reacher-v5", initial_controller={"kind": "pd", "positions": [0, 1], "velocities": [6, 7]})
    model.learn(1)
    states = model.rollout_buffer.trajectories().states
    assert np.isfinite(parameters(model)) and np.abs(states[..., 6:8]).max() < 20.0, "joints that are held do not spin"


def test_s_step() -> None:
    """Two controllers that disagree: the mean weighted by precision, the covariance in closed form (appendix B.2)."""
    model = small_mdgps(imitation_steps=400, learning_rate=1e-2, min_std=0.01)
    model.learn(1)
    sampled = model.rollout_buffer.trajectories()
    nowhere = np.zeros_like(sampled.states)
    sampled = replace(sampled, states=nowhere, observations=nowhere.astype(np.float32))
    T = sampled.alive.shape[2]
    means, variances = np.array([1.0, 0.0]), np.array([0.25, 1.0])
    expert = LinearGaussianController(
        np.zeros((2, T, 1, 2)), np.tile(means[:, None, None], (1, T, 1)), np.tile(variances[:, None, None, None], (1, T, 1, 1))
    )
    model.imitate(expert, sampled)
    action, _ = model.predict(np.zeros(2, np.float32), deterministic=True)
    np.testing.assert_allclose(action, 0.8, atol=0.05)
    assert float(model.policy.log_std.detach().exp()) == pytest.approx(1.0 / np.sqrt((4.0 + 1.0) / 2.0), rel=1e-5)


def test_local_sampling_runs_the_controllers() -> None:
    """After the first iteration the actions are those of the controllers of their own conditions."""
    model = small_mdgps(sampling="local", conditions="fixed", min_std=1e-3, kl_step=20.0)
    model.learn(ITERATION)
    assert model.previous is not None
    p = model.previous.controller
    model.previous = CStep(model.previous.model, LinearGaussianController(p.K, p.k, 1e-12 * np.ones_like(p.cov)))
    model._last_obs = None
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(1, reset_num_timesteps=False)
    sampled = model.rollout_buffer.trajectories()
    expected = np.einsum("mtux,mntx->mntu", p.K, sampled.states[:, :, :-1]) + p.k[:, None]
    np.testing.assert_allclose(sampled.actions, expected, atol=1e-4)


def test_kl_is_bounded_by_its_step() -> None:
    for per_time_step in (False, True):
        model = small_mdgps(kl_step=0.05, kl_per_time_step=per_time_step)
        model.learn(2 * ITERATION)
        assert 0.9 * 0.05 <= logged(model, "trajopt/kl") <= 1.001 * 0.05
        assert logged(model, "trajopt/kl_step") == pytest.approx(0.05)
        assert logged(model, "trajopt/unconverged") == 0


# ---------------------------------------------------------------------- step rules


def stage(policy_costs: list[float], controller_costs: list[float], offset: float = 0.0) -> CStep:
    """A model of two conditions and one step whose cost is ``offset + u``, so that costs of controllers can be chosen."""
    n = len(policy_costs)

    def controller(means: list[float]) -> LinearGaussianController:
        return LinearGaussianController(np.zeros((n, 1, 1, 1)), np.array(means)[:, None, None], np.full((n, 1, 1, 1), 0.1))

    dynamics = LinearGaussianDynamics(np.zeros((n, 1, 1, 2)), np.zeros((n, 1, 1)), np.ones((n, 1, 1, 1)))
    cost = QuadraticCost(np.zeros((n, 1, 2, 2)), np.tile([0.0, 1.0], (n, 1, 1)), np.full((n, 1), offset))
    initial = GaussianState(np.zeros((n, 1)), np.ones((n, 1, 1)))
    model = LocalModel(
        dynamics, cost, controller(policy_costs), initial, np.ones(n, dtype=int), StateUnits(np.zeros((n, 1)), np.ones((n, 1)))
    )
    return CStep(model, controller(controller_costs))


STEP_RULES = [
    # l_{k-1}^{k-1,pi} = (10, 10), l_{k-1}^k = (6, 6); now l_k^{k,pi} = (8, 9), l_k^k = (7, 7)
    ("global", "fixed", [4.0 / (2 * 2.0), 4.0 / (2 * 3.0)]),
    ("classic", "fixed", [4.0 / (2 * 1.0), 4.0 / (2 * 1.0)]),
    ("global", "fresh", [4.0 / (2 * 2.5)] * 2),
    ("fixed", "fixed", [1.0, 1.0]),
]


@pytest.mark.parametrize("rule, conditions, expected", STEP_RULES)
def test_step_rules(rule: str, conditions: str, expected: list[float]) -> None:
    """Section 4.2: epsilon' = epsilon (l_{k-1}^k - l_{k-1}^{k-1,pi}) / 2 (l_{k-1}^k - l_k)."""
    model = small_mdgps(step_rule=rule, conditions=conditions, gamma=1.0)
    model.previous = stage([10.0, 10.0], [6.0, 6.0])
    improvement = model.judge_last_step(stage([7.0, 8.0], [0.0, 0.0], offset=1.0).model)
    assert improvement is not None
    np.testing.assert_allclose(improvement.before - improvement.predicted, [4.0, 4.0])
    np.testing.assert_allclose(improvement.before - improvement.actual, [2.0, 1.0])
    model.adjust_step(improvement)
    np.testing.assert_allclose(model.step_multiplier, expected, rtol=1e-6)


def test_the_step_rule_compares_plans_of_the_same_length() -> None:
    """Where episodes end early the plans of two iterations differ in length; each step here costs u."""

    def longer(part: Any) -> Any:
        return type(part)(*(np.repeat(array, 4, 1) for array in vars(part).values()))

    def plan(policy: float, controller: float, lengths: list[int]) -> CStep:
        one = stage([policy] * 2, [controller] * 2)
        parts = {name: longer(getattr(one.model, name)) for name in ("dynamics", "cost", "policy")}
        return CStep(replace(one.model, **parts, lengths=np.array(lengths)), longer(one.controller))

    model = small_mdgps(step_rule="classic", conditions="fixed", gamma=1.0)
    model.previous = plan(10.0, 6.0, [4, 3])
    improvement = model.judge_last_step(plan(7.0, 0.0, [2, 4]).model)
    assert improvement is not None
    np.testing.assert_allclose(improvement.before, [20.0, 30.0])
    np.testing.assert_allclose(improvement.predicted, [12.0, 18.0])
    np.testing.assert_allclose(improvement.actual, [14.0, 21.0])
    np.testing.assert_allclose(improvement.achieved, [12.0, 18.0])


def test_improvements_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Improvement(np.array([10.0, 10.0]), np.array([6.0, 6.0]), np.array([8.0, 9.0]), np.zeros(2))
    model = small_mdgps()
    model.learn(ITERATION)
    assert "trajopt/actual_improvement" not in model.logger.name_to_value, "there was no step before the first"
    monkeypatch.setattr(model, "judge_last_step", lambda fitted: judged)
    model.learn(ITERATION, reset_num_timesteps=False)
    assert logged(model, "trajopt/predicted_improvement") == pytest.approx(4.0)
    assert logged(model, "trajopt/actual_improvement") == pytest.approx(1.5)


def test_step_rule_stays_within_its_limits() -> None:
    model = small_mdgps(step_rule="global", conditions="fixed", gamma=1.0)
    for _ in range(3):
        model.previous = stage([10.0, 10.0], [6.0, 6.0])
        # better than predicted, and far worse
        model.adjust_step(model.judge_last_step(stage([5.0, 1000.0], [0.0, 0.0]).model))
    np.testing.assert_allclose(model.step_multiplier, STEP_LIMITS[::-1])


@pytest.mark.parametrize("before, predicted", [(10.0, 6.0), (1000.0, 999.999), (1e-3, -1e-3)])
def test_one_step_changes_at_most_fivefold(before: float, predicted: float) -> None:
    """Where a prediction holds nothing limits the step; the size of costs and of what is gained does not matter."""
    model = small_mdgps(step_rule="classic", conditions="fixed", gamma=1.0)
    model.step_multiplier = np.array([0.2, 1.0])
    costs = np.array([before, before]), np.array([predicted, predicted]), np.array([predicted, before])
    model.adjust_step(Improvement(*costs, np.array([predicted, 1e6])))
    np.testing.assert_allclose(model.step_multiplier, [5.0 * 0.2, 0.1])


# ---------------------------------------------------------------------- schedules


def test_schedules() -> None:
    options: dict[str, Any] = {
        "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
        "kl_step": lambda progress: 0.1 + 0.2 * progress,
        "min_std": LinearSchedule(0.4, 0.3, 1.0),
    }
    model = small_mdgps(**options)
    model.learn(2 * ITERATION)
    # SB3 updates the progress after the rollout: half is left at the first iteration, nothing at the second
    assert logged(model, "train/learning_rate") == pytest.approx(1e-3)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert logged(model, "trajopt/kl_step") == pytest.approx(0.1)
    assert 0.3 - 1e-6 <= logged(model, "train/std") < 0.4
    first = small_mdgps(**options)
    first.learn(2 * ITERATION, callback=lambda variables, _: variables["self"].num_timesteps <= ITERATION)
    assert logged(first, "trajopt/kl_step") == pytest.approx(0.2)
    assert logged(first, "train/learning_rate") == pytest.approx(5.5e-3)


def test_a_schedule_may_end_at_zero() -> None:
    """The last iteration has no progress remaining."""
    model = small_mdgps(kl_step=LinearSchedule(0.3, 0.0, 1.0), learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    model.learn(2 * ITERATION)
    assert model.n_iterations == 2 and np.isfinite(parameters(model))
    assert logged(model, "trajopt/kl_step") == logged(model, "train/learning_rate") == 0.0
