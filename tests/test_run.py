"""Every algorithm trains: choices of arguments, several environments, normalisation, time limits, early terminations."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, Model, every_algorithm, every_class, logged, planned, small_aggrevated_oc
from dummy_envs import (
    CONDITIONS,
    HORIZON,
    ITERATION,
    POINT_MASS_ID,
    POINT_MASS_LIMIT,
    SAMPLES,
    PointMass,
    limited,
    normalized,
    parameter_sum,
    small_mdgps,
    vec_env,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_dpi import MDGPS
from sb3_dpi.common.collector import DEFAULT_HORIZON
from sb3_dpi.common.local_models import LocalModel
from sb3_dpi.mdgps.mdgps import STEP_LIMITS, CStep, Improvement
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost


def check_learned(model: Model, iterations: int) -> None:
    assert model.n_iterations == iterations
    assert np.isfinite(parameter_sum(model))
    assert isinstance(model.predict(np.zeros(2, np.float32))[0], np.ndarray)


# ---------------------------------------------------------------------- what a user calls


@every_class
def test_string_environment_without_further_argument(algorithm: type[Model]) -> None:
    model = algorithm("MlpPolicy", POINT_MASS_ID).learn(1)
    assert isinstance(model, algorithm)
    assert model.num_timesteps == model.n_conditions * model.samples_per_condition * POINT_MASS_LIMIT


def test_it_learns_a_double_integrator() -> None:
    """From a few hundred steps, what no random search finds: the return comes close to the regulator's."""
    env = limited(20)
    model = small_mdgps(env, horizon=20, n_conditions=4, samples_per_condition=5, imitation_steps=300, kl_step=1.0, replay=2)
    before, _ = evaluate_policy(model, Monitor(limited(20)), 10)
    model.policy_kwargs = {}
    model.learn(8 * 400)
    after, _ = evaluate_policy(model, Monitor(limited(20)), 10)
    assert isinstance(before, float) and isinstance(after, float)
    assert after > before + 2.0


@pytest.mark.parametrize("total", [1e2, 100, np.float64(100)])
@every_algorithm
def test_total_timesteps_may_be_a_float(make: Make, total: Any) -> None:
    model = make().learn(total)
    assert model.num_timesteps == 3 * ITERATION, "a lower bound, and the last iteration is completed"


@every_algorithm
def test_progress_bar(make: Make) -> None:
    assert make().learn(1e2, progress_bar=True).num_timesteps == 3 * ITERATION  # type: ignore[arg-type]


@every_algorithm
def test_log_interval(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(verbose=1).learn(3 * ITERATION, log_interval=None)  # type: ignore[arg-type]
    assert "total_timesteps" not in capsys.readouterr().out
    make(verbose=1).learn(4 * ITERATION, log_interval=2)
    assert capsys.readouterr().out.count("total_timesteps") == 2


# ---------------------------------------------------------------------- choices by name


COMMON_CHOICES: list[dict[str, Any]] = [
    {"conditions": "fresh"},
    {"conditions": "fixed"},
    {"conditions": "random"},
    {"conditions": "continue"},
    {"conditions": "mixed"},
    {"dynamics": "niw"},
    {"dynamics": "niw", "conditions": "fixed", "replay": 2},
    {"dynamics": "nearest"},
    {"dynamics": "gmm"},
    {"dynamics": {"prior": "niw", "window": 5, "cov_count": 2.0}},
    {"dynamics": {"prior": "nearest", "neighbours": 10}},
    {"dynamics": {"prior": "gmm", "max_clusters": 2}},
    {"cost": {"local_window": 2}},
    {"cost": {"ridge": 1e-2}},
    {"replay": 1},
    {"replay": 3},
    {"gamma": 1.0},
    {"gamma": 0.5},
    {"horizon": 2},
    {"n_conditions": 1},
    {"samples_per_condition": 7},
    {"batch_size": 3},
]
CHOICES: list[dict[str, Any]] = [
    {"linearization": "jacobian"},
    {"linearization": "niw"},
    {"linearization": "nearest"},
    {"linearization": "gmm"},
    {"linearization": {"prior": "nearest", "neighbours": 10}},
    {"sampling": "local", "conditions": "fixed"},
    {"sampling": "local", "conditions": "fixed", "initial_controller": "lqr"},
    {"step_rule": "classic"},
    {"step_rule": "global"},
    {"step_rule": "classic", "conditions": "fixed"},
    {"step_rule": "global", "conditions": "fixed"},
    {"initial_controller": "lqr"},
    {"initial_controller": "pd"},
    {"initial_controller": {"kind": "lqr", "stiffness": 2.0}},
    {"initial_controller": {"kind": "pd", "position_gains": 2.0, "positions": [0], "velocities": [1]}},
    {"kl_per_time_step": True},
]
AGGREVATED_OC_CHOICES: list[dict[str, Any]] = [
    {"conditions": "continue", "replay": 2},
    {"gae_lambda": 0.0},
    {"gae_lambda": 1.0},
    {"plan_lambda": 0.0},
    {"plan_lambda": 0.5},
    {"plan_lambda": 1.0},
    {"target_kl": 0.2},
    {"trust_region": 3.0},
    {"trust": 0},
    {"trust": 0.3},
    {"trust": 1.0},
    {"cg_damping": 0.1},
    {"n_critic_updates": 1},
    {"noise_correlation": 0.8},
    {"critic_replay": True},
    {"critic_replay": True, "replay": 2},
    {"aggregate": True},
    {"aggregate": True, "replay": 2},
    {"aggregate": True, "replay": 2, "target_kl": "lin_0.1"},
]


def check_choice_of(model: Model) -> None:
    before = parameter_sum(model)
    model.learn(3 * model.n_steps)
    check_learned(model, 3)
    assert parameter_sum(model) != before
    assert logged(model, "trajopt/kl") > 0.0


@every_algorithm
@pytest.mark.parametrize("options", COMMON_CHOICES, ids=str)
def test_common_choices(make: Make, options: dict[str, Any]) -> None:
    check_choice_of(make(**options))


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_choices(options: dict[str, Any]) -> None:
    check_choice_of(small_mdgps(**options))


@pytest.mark.parametrize("options", AGGREVATED_OC_CHOICES, ids=str)
def test_choices_of_aggrevated_oc(options: dict[str, Any]) -> None:
    check_choice_of(small_aggrevated_oc(**options))


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


def test_initial_controllers_on_torques() -> None:
    options = {"kind": "lqr", "positions": [6, 7], "velocities": [6, 7]}
    with pytest.raises(ValueError, match="must be different entries"):
        small_mdgps("Reacher-v5", initial_controller=options).learn(1)
    model = small_mdgps("Reacher-v5", initial_controller={"kind": "pd", "positions": [0, 1], "velocities": [6, 7]})
    assert model.learn(1).n_iterations == 1


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


# ---------------------------------------------------------------------- conditions


def seeds_of(model: Model) -> list[int | None]:
    assert model.env is not None
    env = model.env.get_attr("unwrapped")[0]
    return [seed for seed in env.seeds if seed is not None and seed >= 2**16]


@pytest.mark.parametrize("conditions", ["fixed", "fresh", "random"])
@every_algorithm
def test_conditions_are_reset_seeds(make: Make, conditions: str) -> None:
    model = make(conditions=conditions)
    model.learn(2 * ITERATION)
    seeds = seeds_of(model)
    n = CONDITIONS * SAMPLES
    assert len(seeds) == 2 * n
    first, second = seeds[:n], seeds[n:]
    distinct = {"fixed": (2, 2, 2), "fresh": (2, 2, 4), "random": (4, 4, 8)}[conditions]
    assert (len(set(first)), len(set(second)), len(set(seeds))) == distinct
    states = model.rollout_buffer.trajectories().states[:, :, 0]
    same_start = np.allclose(states[:, 0], states[:, 1])
    assert same_start == (conditions != "random")
    assert not np.allclose(states[0], states[1])


@pytest.mark.parametrize("n_envs", [2, 3, 8])
@every_algorithm
def test_random_conditions_are_distinct_in_every_iteration(make: Make, n_envs: int) -> None:
    model = make(vec_env(n_envs), conditions="random")
    model.learn(3 * model.n_steps * n_envs)
    assert model.env is not None
    used = [seed for env in model.env.get_attr("unwrapped") for seed in env.seeds if seed is not None and seed >= 2**16]
    assert len(used) == len(set(used))


# ---------------------------------------------------------------------- step rules


def stage(policy_costs: list[float], controller_costs: list[float], offset: float = 0.0) -> CStep:
    """A model of two conditions and one step whose cost is ``offset + u``, so that costs of controllers can be chosen."""
    n = len(policy_costs)

    def controller(means: list[float]) -> LinearGaussianController:
        return LinearGaussianController(np.zeros((n, 1, 1, 1)), np.array(means)[:, None, None], np.full((n, 1, 1, 1), 0.1))

    dynamics = LinearGaussianDynamics(np.zeros((n, 1, 1, 2)), np.zeros((n, 1, 1)), np.ones((n, 1, 1, 1)))
    cost = QuadraticCost(np.zeros((n, 1, 2, 2)), np.tile([0.0, 1.0], (n, 1, 1)), np.full((n, 1), offset))
    initial = GaussianState(np.zeros((n, 1)), np.ones((n, 1, 1)))
    model = LocalModel(dynamics, cost, controller(policy_costs), initial, np.ones(n, dtype=int))
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


def test_kl_is_bounded_by_its_step() -> None:
    for per_time_step in (False, True):
        model = small_mdgps(kl_step=0.05, kl_per_time_step=per_time_step)
        model.learn(2 * ITERATION)
        assert 0.9 * 0.05 <= logged(model, "trajopt/kl") <= 1.001 * 0.05
        assert logged(model, "trajopt/kl_step") == pytest.approx(0.05)
        assert logged(model, "trajopt/unconverged") == 0


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


@every_algorithm
def test_smallest_standard_deviation(make: Make) -> None:
    model = make(min_std=0.9)
    model.learn(1)
    assert float(model.policy.log_std.detach().exp()) == pytest.approx(0.9)


def test_a_schedule_may_end_at_zero() -> None:
    """The last iteration has no progress remaining."""
    model = small_mdgps(kl_step=LinearSchedule(0.3, 0.0, 1.0), learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    model.learn(2 * ITERATION)
    check_learned(model, 2)


def test_progress_is_never_negative() -> None:
    """The last iteration is completed beyond the total: no schedule expects that."""
    model = small_mdgps(learning_rate=lambda progress: 1e-2 * progress, kl_step=lambda progress: 0.1 + 0.2 * progress)
    model.learn(1)
    assert logged(model, "train/learning_rate") == 0.0
    assert logged(model, "trajopt/kl_step") == pytest.approx(0.1)


# ---------------------------------------------------------------------- replay


@every_algorithm
def test_replay_keeps_iterations(make: Make) -> None:
    model = make(replay=2)
    sizes = []
    fit_model = model.fit_model
    model.fit_model = lambda trajectories: sizes.append(len(trajectories.alive)) or fit_model(trajectories)  # type: ignore
    model.learn(4 * ITERATION)
    assert sizes == [CONDITIONS * n for n in (1, 2, 3, 3)]
    assert len(model.past) == 2


@every_algorithm
def test_memory_does_not_grow(make: Make) -> None:
    model = make(replay=2)

    def size() -> int:
        kept = sum(part.states.nbytes + part.actions.nbytes for part in model.past)
        if isinstance(model, MDGPS):
            assert model.previous is not None
            kept += model.previous.model.dynamics.F.nbytes + model.previous.controller.K.nbytes
        return kept

    model.learn(3 * ITERATION)
    after_three = size()
    model.learn(6 * ITERATION, reset_num_timesteps=False)
    assert size() == after_three > 0


# ---------------------------------------------------------------------- several environments, normalisation


@pytest.mark.parametrize("n_envs", [1, 2, 3, 8])
@every_algorithm
def test_several_environments(make: Make, n_envs: int) -> None:
    """The number of trajectories is rounded up to a multiple of the environments."""
    model = make(vec_env(n_envs), n_conditions=3, samples_per_condition=2)
    model.learn(2 * HORIZON * 6)
    n_batches = -(-6 // n_envs)
    assert model.n_steps == n_batches * HORIZON
    assert model.num_timesteps == 2 * n_batches * n_envs * HORIZON
    alive = model.rollout_buffer.trajectories().alive
    assert alive[:, :, 0].sum() == n_batches * n_envs
    assert np.all(alive[:, :, 0].sum(1) >= 2), "no condition gets fewer samples than asked for"
    check_learned(model, 2)


@every_algorithm
def test_subprocesses(make: Make) -> None:
    env = SubprocVecEnv([PointMass] * 3, start_method="fork")
    try:
        model = make(env)
        model.learn(2 * model.n_steps * 3)
        check_learned(model, 2)
        # an environment is as good as another: the same seeds give the same first states
        np.testing.assert_allclose(
            model.rollout_buffer.trajectories().states[:, 0, 0], model.rollout_buffer.trajectories().states[:, 1, 0]
        )
    finally:
        env.close()


@every_algorithm
def test_vec_normalize(make: Make) -> None:
    """The planner works on the original numbers, the policy on the normalised ones."""
    model = make(normalized(vec_env(2), [5.0, -5.0], [4.0, 9.0]))
    model.learn(3 * ITERATION)
    trajectories = model.rollout_buffer.trajectories()
    assert np.all(np.abs(trajectories.states[:, :, 0]) <= 1.0)
    np.testing.assert_allclose(np.asarray(trajectories.observations), trajectories.states, atol=1e-6)
    expected = -np.sum(trajectories.states[:, :, :-1] ** 2, -1) - 0.1 * trajectories.executed_actions[..., 0] ** 2
    np.testing.assert_allclose(trajectories.rewards, expected, atol=1e-5)
    check_learned(model, 3)


@every_algorithm
def test_vec_normalize_keeps_true_terminal_observations(make: Make) -> None:
    """Also where the normalised ones are clipped."""
    env = VecNormalize(vec_env(2, lambda: PointMass(death=(3, 9))), clip_obs=0.5)
    model = make(env)
    model.learn(2 * ITERATION)
    check_dynamics(model)


def check_dynamics(model: Model) -> None:
    """Every living transition, terminal ones included, obeys the point mass."""
    trajectories = model.rollout_buffer.trajectories()
    x, u = trajectories.states[:, :, :-1], trajectories.executed_actions
    expected = x + 0.1 * np.stack([x[..., 1], 2.0 * u[..., 0]], -1)
    alive = trajectories.alive
    assert alive.any()
    np.testing.assert_allclose(trajectories.states[:, :, 1:][alive], expected[alive], atol=1e-5)


# ---------------------------------------------------------------------- horizons and time limits


@every_algorithm
def test_horizon_is_the_time_limit_by_default(make: Make) -> None:
    model = make(limited(7), horizon=None)
    model.learn(1)
    assert model.num_timesteps == 7 * CONDITIONS * SAMPLES
    assert not model.rollout_buffer.terminated.any(), "a time limit is no death"
    check_dynamics(model)
    assert model.rollout_buffer.horizon == 7
    infos = list(model.ep_info_buffer or [])
    assert [info["l"] for info in infos] == [7] * 4
    registered = make(POINT_MASS_ID, horizon=None)
    assert registered.rollout_buffer.horizon == POINT_MASS_LIMIT


@every_algorithm
def test_horizon_without_a_time_limit(make: Make) -> None:
    model = make(PointMass(), horizon=None)
    horizon = min(DEFAULT_HORIZON, model.longest_default_horizon)
    assert model.learn(1).num_timesteps == horizon * CONDITIONS * SAMPLES


@every_algorithm
def test_horizon_shorter_than_the_episode(make: Make) -> None:
    model = make(limited(50), horizon=5)
    model.learn(2 * 20)
    assert model.num_timesteps == 40
    check_learned(model, 2)
    check_dynamics(model)
    assert np.all(model.rollout_buffer.trajectories().alive)


@every_algorithm
def test_time_limit_inside_of_a_horizon(make: Make) -> None:
    """Truncation cuts the plan where nothing says how long episodes are, but is no death."""

    class Truncating(PointMass):
        def step(self, action: np.ndarray) -> Any:
            obs, reward, terminated, _, info = super().step(action)
            return obs, reward, terminated, self.t >= 6, info

    model = make(Truncating())
    model.learn(1)
    trajectories = model.rollout_buffer.trajectories()
    assert np.all(trajectories.alive.sum(-1) == 6)
    assert not trajectories.terminated.any()
    assert logged(model, "trajopt/planned_steps") == 6
    check_dynamics(model)
    if isinstance(model, MDGPS):
        assert model.previous is not None and np.all(model.previous.model.cost.const[:, 6:] == 0.0)


# ---------------------------------------------------------------------- early termination


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_early_termination(make: Make, n_envs: int) -> None:
    """Deaths are masked, cut from the plan, and every real step counts."""
    env = vec_env(n_envs, lambda: PointMass(death=(3, 12)))
    model = make(env, samples_per_condition=6, conditions="random")
    model.learn(300)
    assert model.num_timesteps == sum(inner.n_steps for inner in env.get_attr("unwrapped"))
    check_learned(model, model.n_iterations)
    trajectories = model.rollout_buffer.trajectories()
    lengths = trajectories.alive.sum(-1)
    assert lengths.min() < HORIZON and lengths.min() >= 3
    assert np.all(trajectories.alive == (np.arange(HORIZON) < lengths[..., None])), "no life after death"
    ends = np.take_along_axis(trajectories.terminated, lengths[..., None] - 1, -1)[..., 0]
    assert np.all(ends[lengths < HORIZON])
    assert (trajectories.terminated & trajectories.alive).sum() == ends.sum()
    check_dynamics(model)
    expected = (trajectories.alive.sum(1) >= model.min_samples).sum(-1)
    np.testing.assert_array_equal(planned(model).any(1).sum(-1), expected)
    if isinstance(model, MDGPS):
        assert model.previous is not None
        np.testing.assert_array_equal(model.previous.model.lengths, expected)
    assert logged(model, "trajopt/planned_steps") == pytest.approx(expected.mean())


@every_algorithm
def test_deaths_end_a_batch_early(make: Make) -> None:
    env = PointMass(death=(4, 5))
    model = make(env)
    model.learn(1)
    assert model.num_timesteps == env.n_steps == 4 * CONDITIONS * SAMPLES
    assert logged(model, "trajopt/planned_steps") == 4


@every_algorithm
def test_a_death_is_worse_than_what_life_would_have_brought(make: Make) -> None:
    class Cliff(PointMass):
        """Dies beyond .3, where it is rewarded for going."""

        def step(self, action: np.ndarray) -> Any:
            obs, _, _, _, info = super().step(action)
            return obs, 1.0 + 0.1 * float(self.state[1]), bool(self.state[0] > 1.5), False, info

    options: dict[str, Any] = {"imitation_steps": 200, "kl_step": 1.0} if make is small_mdgps else {"target_kl": 0.2}
    model = make(Cliff(), horizon=30, n_conditions=4, samples_per_condition=5, conditions="random", **options)
    model.learn(8 * 600)
    alive = model.rollout_buffer.trajectories().alive
    assert alive[:, :, -1].mean() > 0.5


@every_algorithm
def test_nothing_left_to_plan_is_an_error(make: Make) -> None:
    model = make(PointMass(death=(1, 12)), samples_per_condition=2)
    model.dynamics = {"min_samples": 3}
    with pytest.raises(ValueError, match="3 living samples that a fit needs: raise samples_per_condition"):
        model.learn(1)


@every_algorithm
def test_one_condition_without_a_plan_does_not_stop_the_others(make: Make) -> None:
    model = make(conditions="fixed", samples_per_condition=4)
    model.learn(1)
    buffer = model.rollout_buffer
    buffer.alive.reshape(-1, HORIZON)[::2] = False  # trajectories of condition 0
    buffer.alive.reshape(-1, HORIZON)[0, 0] = True
    model.train()
    check_learned(model, 2)
    assert logged(model, "trajopt/planned_steps") == HORIZON / 2
    if isinstance(model, MDGPS):
        assert model.previous is not None
        np.testing.assert_array_equal(model.previous.model.lengths, [0, HORIZON])


@every_algorithm
def test_gymnasium_tasks(make: Make) -> None:
    model = make(gym.make("InvertedPendulum-v5"), samples_per_condition=4)
    model.learn(300)
    assert np.isfinite(parameter_sum(model))
