"""AggreVaTeD-OC as a whole: its steps, imitation of the kept iterations, schedules, what it learns and what survives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, Model, logged, parameters, planned, small_aggrevated_oc, small_mdgps
from dummy_envs import CONDITIONS, HORIZON, ITERATION, SAMPLES, PointMass, limited, vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.aggrevated_oc.aggrevated_oc import Expert
from sb3_dpi.aggrevated_oc.calibration import Calibration
from sb3_dpi.aggrevated_oc.surrogate import Surrogate
from sb3_dpi.common.critic import actor_parameters, trajectory_values
from sb3_dpi.common.local_models import total_cost
from sb3_dpi.common.natural_gradient import NaturalGradientStep
from sb3_dpi.common.trajectories import concatenate


def flat_parameters(model: AggreVaTeDOC) -> th.Tensor:
    return th.cat([parameter.detach().reshape(-1).clone() for parameter in actor_parameters(model.policy)])


def watched(model: AggreVaTeDOC, step: str) -> list[Any]:
    """:return: what a step of ``train`` returns from now on"""
    seen: list[Any] = []
    original = getattr(model, step)

    def call(*args: Any) -> Any:
        seen.append(original(*args))
        return seen[-1]

    setattr(model, step, call)
    return seen


# ---------------------------------------------------------------------- the sampled advantages


@pytest.mark.parametrize("n_iterations", [1, 2])
@pytest.mark.parametrize("critic_replay", [False, True])
def test_the_buffer_holds_the_advantages_that_the_update_uses(critic_replay: bool, n_iterations: int) -> None:
    """At a rollout's end, and after an update that fits the values first as well."""
    told: list[np.ndarray] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            told.append(self.model.rollout_buffer.advantages.copy())  # type: ignore[attr-defined]

    env = vec_env(2, lambda: PointMass(death=(4, 12)))
    model = small_aggrevated_oc(env, critic_replay=critic_replay, replay=1, n_conditions=3, samples_per_condition=5)
    used = watched(model, "evaluate_policy")
    model.learn(n_iterations * HORIZON * 15, callback=Look())
    buffer, evaluated = model.rollout_buffer, used[-1].advantages
    alive = buffer._fold(buffer.alive, fill=False)
    expected = evaluated[:, : alive.shape[1]][alive]
    np.testing.assert_allclose(buffer._fold(buffer.advantages)[alive], expected, rtol=1e-5)
    if not critic_replay:
        np.testing.assert_allclose(buffer._fold(told[-1])[alive], expected, rtol=1e-3, atol=1e-3)


def test_trust_of_zero_follows_gae_in_training() -> None:
    """With lambda = 1: the discounted return to the cut, less the value of its first state."""
    model = small_aggrevated_oc(trust=0.0, gae_lambda=1.0, gamma=0.9)
    seen, evaluated = watched(model, "gather"), watched(model, "evaluate_policy")
    model.learn(ITERATION)
    assert logged(model, "trajopt/trust") == 0.0
    trajectories = model.rollout_buffer.trajectories()
    discounts = 0.9 ** np.arange(HORIZON)
    returns = np.array([[(r * discounts).sum() for r in row] for row in trajectories.rewards])
    advantages = evaluated[0].advantages
    rest = advantages[:, :, 0] - returns  # what the values say: small at the beginning, as the network is
    assert np.abs(rest).max() < 1.0 < np.abs(returns).max()
    np.testing.assert_allclose(seen[0].advantages, advantages[planned(model)], rtol=1e-5)
    np.testing.assert_allclose(seen[0].actions, trajectories.actions[planned(model)], rtol=1e-5)


def test_trust_of_zero_is_the_plain_policy_gradient() -> None:
    """No control variate either: the model has no say."""
    model = small_aggrevated_oc(trust=0.0)
    seen = watched(model, "shares")
    model.learn(2 * ITERATION)
    assert seen and set(seen) == {(0.0, 0.0)}


def test_critic_replay_fits_what_is_kept_before_the_advantages() -> None:
    """The advantages are those of the fitted values, and change nothing but the units when there is nothing to fit."""
    model = small_aggrevated_oc(trust=0.0, critic_replay=True, replay=2, gae_lambda=0.0, learning_rate=0.0)
    model.learn(3 * ITERATION)

    def values() -> np.ndarray:
        parts = model.rollout_buffer.trajectories()
        return trajectory_values(model.policy, parts, model._policy_inputs, model.return_scale)

    before = values()
    kept, scale = concatenate(model.past), model.return_scale
    model.evaluate_policy(kept)
    assert scale != model.return_scale
    np.testing.assert_allclose(values(), before, rtol=1e-3, atol=1e-3)  # other units, the same values
    model.policy.optimizer.param_groups[0]["lr"] = 1e-2
    advantages = model.evaluate_policy(kept).advantages
    latest, now = kept.first(model.n_conditions), values()
    assert np.abs(now - before).max() > 0.01
    error = latest.rewards + model.gamma * now[..., 1:] * ~latest.terminated - now[..., :-1]
    np.testing.assert_allclose(advantages[latest.alive], error[latest.alive], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- imitation of the kept iterations


def test_aggregate_imitates_the_kept_iterations_too() -> None:
    """They are planned for again, with the policy of now; their advantages by GAE are not used."""
    model = small_aggrevated_oc(aggregate=True, replay=2)
    model.learn(2 * ITERATION)
    experts, seen, evaluated = (watched(model, name) for name in ("improve_expert", "gather", "evaluate_policy"))
    model.learn(ITERATION, reset_num_timesteps=False)
    expert, samples = experts[0], seen[0]
    assert len(expert.model.lengths) == len(expert.controller.K) == 3 * CONDITIONS
    assert evaluated[0].advantages.shape == (CONDITIONS, SAMPLES, HORIZON)
    assert len(samples.actions) > 2 * ITERATION >= 2 * len(samples.advantages) == 2 * len(samples.trajectory)
    latest = model.rollout_buffer.trajectories()
    np.testing.assert_allclose(samples.actions[: len(samples.advantages)], latest.actions[planned(model)], rtol=1e-5)


@pytest.mark.parametrize(
    "aggregate, dynamics, is_pooled",
    [(True, "niw", True), (True, "nearest", True), (False, "niw", True), (False, "nearest", False)],
)
def test_kept_iterations_have_models_where_they_are_read(aggregate: bool, dynamics: str, is_pooled: bool) -> None:
    model = small_aggrevated_oc(aggregate=aggregate, dynamics=dynamics, replay=2)
    assert model._fitted_conditions() == model.total_conditions * (3 if is_pooled else 1)


def test_aggregate_without_kept_iterations_changes_nothing() -> None:
    assert parameters(small_aggrevated_oc(aggregate=False).learn(3 * ITERATION)) == parameters(
        small_aggrevated_oc().learn(3 * ITERATION)
    )


def test_aggregate_goes_on_after_loading(tmp_path: Path) -> None:
    """The dual variables of all planned conditions, and the iterations they belong to, are in the file."""
    model = small_aggrevated_oc(aggregate=True, replay=2).learn(3 * ITERATION)
    assert model.eta is not None and len(model.eta) == 3 * CONDITIONS
    model.save(tmp_path / "model")
    loaded = AggreVaTeDOC.load(tmp_path / "model", PointMass())
    np.testing.assert_array_equal(loaded.eta, model.eta)
    assert loaded.aggregate and len(loaded.past) == len(model.past)
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn(ITERATION, reset_num_timesteps=False)
    assert np.isfinite(parameters(loaded)) and loaded.n_iterations == 4
    for n_conditions in (CONDITIONS + 1, CONDITIONS + 2):
        others = AggreVaTeDOC.load(tmp_path / "model", PointMass(), n_conditions=n_conditions)
        others.learn(1, reset_num_timesteps=False)
        assert others.eta is not None and len(others.eta) == n_conditions, "what is kept of other conditions is let go"


# ---------------------------------------------------------------------- the step


def test_kl_of_the_step_is_within_its_bound() -> None:
    """Measured on the policies themselves; and the step uses it."""
    model = small_aggrevated_oc(target_kl=0.03, samples_per_condition=4)
    imitate, divergences = model.imitate, []

    def measured(surrogate: Surrogate, weight: float, trust: float) -> NaturalGradientStep:
        def policy() -> th.distributions.Normal:
            with th.no_grad():
                mean = model.policy.action_mean(surrogate.samples.inputs)
                return th.distributions.Normal(mean, model.policy.log_std.exp().clone())

        old = policy()
        step = imitate(surrogate, weight, trust)
        divergences.append(float(th.distributions.kl_divergence(old, policy()).sum(1).mean()))
        assert step.kl == pytest.approx(divergences[-1], rel=1e-2)
        return step

    model.imitate = measured  # type: ignore[method-assign]
    model.learn(8 * 80)
    assert len(divergences) == 8
    assert max(divergences) <= 0.03 * 1.001
    assert max(divergences) > 0.5 * 0.03


def test_a_failed_line_search_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_aggrevated_oc()
    model.learn(2 * ITERATION)
    divergence = Surrogate.divergence
    monkeypatch.setattr(Surrogate, "divergence", lambda self: lambda: 1e3 * divergence(self)() + 1.0)
    imitated: list[th.Tensor] = []
    imitate = model.imitate

    def watched(*args: Any) -> NaturalGradientStep:
        imitated.append(flat_parameters(model))  # the standardisation of the inputs has moved them by now
        return imitate(*args)

    model.imitate = watched  # type: ignore[method-assign]
    model.learn(ITERATION, reset_num_timesteps=False)
    assert logged(model, "train/is_line_search_success") == 0.0
    assert logged(model, "train/kl_divergence_loss") == logged(model, "train/policy_objective") == 0.0
    assert len(imitated) == 1 and th.equal(flat_parameters(model), imitated[0])


def test_smallest_standard_deviation_ends_the_step() -> None:
    options: dict[str, Any] = {"min_std": 0.49, "target_kl": 1.0}
    model = small_aggrevated_oc(**options).learn(6 * ITERATION)
    assert float(model.policy.log_std.detach().exp()) >= 0.49 * (1.0 - 1e-6)
    free = small_aggrevated_oc(min_std=0.0, target_kl=1.0).learn(6 * ITERATION)
    assert float(free.policy.log_std.detach().exp()) < 0.49


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_schedules_may_end_at_zero() -> None:
    options: dict[str, Any] = {
        "learning_rate": LinearSchedule(1e-2, 0.0, 1.0),
        "trust_region": LinearSchedule(0.3, 0.0, 1.0),
        "target_kl": LinearSchedule(0.1, 0.0, 1.0),
        "min_std": LinearSchedule(0.3, 0.0, 1.0),
    }
    model = small_aggrevated_oc(**options).learn(2 * ITERATION)
    assert logged(model, "train/learning_rate") == 0.0 and logged(model, "train/kl_divergence_loss") == 0.0
    assert "trajopt/kl" not in model.logger.name_to_value, "a trust region of nothing leaves nothing to plan"
    assert np.isfinite(parameters(model))


def test_schedules() -> None:
    steps: list[float] = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.n_calls:
                assert isinstance(self.model, AggreVaTeDOC)
                steps.append(logged(self.model, "trajopt/kl"))

    model = small_aggrevated_oc(trust_region=lambda progress: 0.1 + 0.4 * progress, target_kl=lambda p: 0.01 + 0.1 * p)
    model.learn(2 * ITERATION, callback=Reader())
    assert 0.27 <= steps[0] <= 0.3001 and 0.09 <= logged(model, "trajopt/kl") <= 0.1001
    assert logged(model, "train/kl_divergence_loss") <= 0.01001


# ---------------------------------------------------------------------- the trust in the expert


@pytest.mark.parametrize("trust", [0, 0.3, 1.0])
def test_a_fixed_trust(trust: float) -> None:
    model = small_aggrevated_oc(trust=trust).learn(2 * ITERATION)
    assert logged(model, "trajopt/trust") == trust
    assert logged(model, "trajopt/calibration_error") > 0.0, "the calibration goes on beside it"


def test_trust_follows_the_calibration() -> None:
    model = small_aggrevated_oc()
    seen, found = watched(model, "shares"), Calibration(0.4, 0.1, (0.4, 100.0), 0.42, True)
    assert model.shares(found) == (0.42, 0.42)
    assert model.shares(replace(found, believed=0.0, is_finite=False)) == (0.0, 0.0)
    model.learn(2 * ITERATION)
    assert logged(model, "trajopt/trust") == seen[-1][1] and 0.0 < seen[-1][1] <= 1.0
    assert model.evidence != (1.0, 0.0)


@pytest.mark.parametrize("huge", [1e30, 1e60, np.inf, np.nan])
@pytest.mark.parametrize("trust", [None, 0.0])
def test_advantages_that_explode_leave_the_plain_gradient(huge: float, trust: float | None) -> None:
    """What the model says must neither stop the step nor spoil it."""
    model = small_aggrevated_oc(samples_per_condition=4, trust=trust)
    improve = model.improve_expert

    def exploded(*args: Any) -> Expert:
        expert = improve(*args)
        rng = np.random.default_rng(0)
        expert.action_value.c[:] = huge * rng.normal(size=expert.action_value.c.shape)
        return expert

    model.improve_expert = exploded  # type: ignore[method-assign]
    for _ in range(3):
        before = flat_parameters(model)
        model.learn(1, reset_num_timesteps=False)
        assert logged(model, "trajopt/trust") < 1e-10
        assert logged(model, "train/is_line_search_success") == 1.0
        assert th.isfinite(flat_parameters(model)).all() and not th.equal(flat_parameters(model), before)


# ---------------------------------------------------------------------- what is logged


def test_what_is_logged_of_the_expert() -> None:
    model = small_aggrevated_oc(trust_region=0.2)
    seen = watched(model, "improve_expert")
    model.learn(2 * ITERATION)
    expert = seen[-1]
    assert 0.9 * 0.2 <= logged(model, "trajopt/kl") <= 0.2001
    assert model.eta is not None and logged(model, "trajopt/eta") == pytest.approx(model.eta.mean())
    discount = model.gamma * model.plan_lambda
    assert logged(model, "trajopt/cost_local") == pytest.approx(total_cost(expert.model, expert.controller, discount).mean())
    assert logged(model, "trajopt/cost_local") < logged(model, "trajopt/cost_linearized")
    assert logged(model, "trajopt/planned_steps") == expert.model.lengths.mean()


def test_what_is_logged_without_a_trust_region() -> None:
    model = small_aggrevated_oc(trust_region=0.0).learn(2 * ITERATION)
    assert model.eta is None and "trajopt/kl" not in model.logger.name_to_value
    assert logged(model, "trajopt/cost_local") == logged(model, "trajopt/cost_linearized")


# ---------------------------------------------------------------------- tasks


def improvement(seed: int, iterations: int, make: Make = small_aggrevated_oc, n_envs: int = 10, **options: Any) -> float:
    """
    Of the mean return on the point mass, about -22 before learning and -5 with the best regulator. Steps of many environments
    cost little more than those of one.
    """

    def evaluated(model: Model) -> float:
        env = vec_env(20, lambda: Monitor(limited(20)))
        env.seed(5)
        mean, _ = evaluate_policy(model, env, 20)
        assert isinstance(mean, float)
        return mean

    task: dict[str, Any] = {"horizon": 20, "n_conditions": 1, "samples_per_condition": 20, "conditions": "random"}
    critic = {"n_critic_updates": 10} if make is small_aggrevated_oc else {}
    model = make(vec_env(n_envs, lambda: limited(20)), seed=seed, **{**task, **critic, **options})
    before = evaluated(model)
    return evaluated(model.learn(iterations * n_envs * model.n_steps)) - before


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_trust_region_it_learns_as_well(seed: int) -> None:
    """alpha = 0: the natural gradient of the policy's own advantage under the model."""
    assert improvement(seed, 6, trust_region=0.0, target_kl=0.1) > 10.0


def test_without_a_trust_region_mirror_descent_stands_still() -> None:
    """It clones an expert that is the policy; the natural gradient of the advantage is what AggreVaTeD-OC has left."""
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "imitation_steps": 100}
    assert improvement(0, 6, make=small_mdgps, kl_step=1.0, **options) > 10.0
    assert abs(improvement(0, 6, make=small_mdgps, kl_step=0.0, **options)) < 2.0


def test_without_the_model_it_is_a_natural_policy_gradient() -> None:
    """Gains of thirteen seeds lie between 5 and 12; a policy that does not learn stays within 2."""
    options: dict[str, Any] = {"gamma": 0.95, "gae_lambda": 0.95, "learning_rate": 3e-3, "n_envs": 20}
    gains = [improvement(seed, 10, trust=0.0, target_kl=0.05, **options) for seed in range(2)]
    assert np.mean(gains) > 4.0


def test_it_learns_in_windows() -> None:
    """One seed of five explores the wrong way."""
    assert improvement(1, 10, horizon=10, conditions="continue", target_kl=0.1) > 8.0


def test_known_cost_is_used() -> None:
    """The planner must read ``cost`` and not the rewards: it says the opposite of them here."""

    def push_right(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return -10.0 * next_obs[:, 1] + 0.5 * (action**2).sum(-1)

    model = small_aggrevated_oc(cost=push_right, plan_lambda=1.0, trust=1.0, target_kl=0.3)
    model.learn(8 * ITERATION)
    actions, _ = model.predict(np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)).astype(np.float32), deterministic=True)
    assert actions.mean() > 0.3


def test_deaths_in_the_first_step() -> None:
    """No state behind a step is left to learn a value of."""
    model = small_aggrevated_oc(PointMass(death=(1, 2))).learn(3 * 4)
    assert model.n_iterations == 3 and np.isfinite(parameters(model))


def test_outcome_of_a_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = NaturalGradientStep(True, 0.012, 0.34, 0.4, 1)
    monkeypatch.setattr("sb3_dpi.aggrevated_oc.aggrevated_oc.natural_gradient_step", lambda *args, **kwargs: outcome)
    model = small_aggrevated_oc().learn(1)
    keys = ("train/kl_divergence_loss", "train/policy_objective", "train/is_line_search_success")
    assert [logged(model, key) for key in keys] == [0.012, 0.34, 1.0]
