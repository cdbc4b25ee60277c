"""What a user gets wrong is answered by an error that says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import ALGORITHMS, Make, Model, every_algorithm, every_class, small_aggrevated_oc
from dummy_envs import ITERATION, DictPointMass, ImagePointMass, PointMass, limited, parameter_sum, small_mdgps, vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import MDGPS, AggreVaTeDOC
from sb3_dpi.common.choices import as_schedule, check_choice, parse_choice
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.finite import check_finite

# ---------------------------------------------------------------------- arguments

COMMON: list[tuple[dict[str, Any], str]] = [
    ({"dynamics": "linear"}, "Unknown dynamics 'linear': choose one of 'niw', 'nearest', 'gmm'"),
    ({"dynamics": {"prior": "linear"}}, "Unknown dynamics 'linear': choose one of 'niw', 'nearest', 'gmm'"),
    ({"dynamics": {"prior": "niw", "windows": 3}}, "Unknown setting of dynamics 'windows': choose one of .*'window'"),
    (
        {"conditions": "random_seeds"},
        "Unknown conditions 'random_seeds': choose one of 'fresh', 'fixed', 'random', 'continue', 'mixed'",
    ),
    ({"cost": {"window": 2}}, "Unknown setting of cost 'window': choose one of 'ridge', 'local_window', 'local_ridge'"),
    ({"samples_per_condition": 1}, "at least min_samples=2 trajectories of each condition.*raise samples_per_condition"),
    ({"samples_per_condition": 3, "dynamics": {"min_samples": 4}}, "min_samples=4.*samples_per_condition=3 gives fewer"),
    ({"samples_per_condition": 0}, "samples_per_condition must be at least 1, got 0"),
    ({"n_conditions": 0}, "n_conditions must be at least 1, got 0"),
    ({"horizon": 1}, "horizon must be at least 2, got 1"),
    ({"horizon": 0}, "horizon must be at least 2, got 0"),
]
SCHEDULES: list[tuple[type[Model], str]] = [
    (MDGPS, "kl_step"),
    (MDGPS, "min_std"),
    (AggreVaTeDOC, "trust_region"),
    (AggreVaTeDOC, "target_kl"),
    (AggreVaTeDOC, "min_std"),
]
ARGUMENTS: list[tuple[Make, dict[str, Any], str]] = [
    *[(make, options, message) for options, message in COMMON for make in ALGORITHMS.values()],
    (small_mdgps, {"linearization": "finite"}, "Unknown linearization 'finite': choose one of .*'niw', 'nearest', 'gmm'"),
    (small_mdgps, {"linearization": {"prior": "auto"}}, "Unknown linearization 'auto'"),
    (small_mdgps, {"step_rule": "adaptive"}, "Unknown step_rule 'adaptive': choose one of 'classic', 'global', 'fixed'"),
    (small_mdgps, {"sampling": "on"}, "Unknown sampling 'on': choose one of 'global', 'local'"),
    (small_mdgps, {"initial_controller": "zero"}, "Unknown initial_controller 'zero': choose one of 'policy', 'lqr', 'pd'"),
    (
        small_mdgps,
        {"initial_controller": {"stiffness": 2.0}},
        "Unknown initial_controller .*None.*: choose one of 'policy', 'lqr', 'pd'",
    ),
    (small_mdgps, {"sampling": "local"}, 'belong to their conditions: set conditions="fixed"'),
    (small_aggrevated_oc, {"gae_lambda": 1.1}, "gae_lambda must be from 0 to 1, got 1.1"),
    (small_aggrevated_oc, {"plan_lambda": -0.1}, "plan_lambda must be from 0 to 1, got -0.1"),
    (small_aggrevated_oc, {"trust": "off"}, "trust is a share from 0 to 1, or None for what the samples say, got 'off'"),
    (small_aggrevated_oc, {"trust": 2.0}, "trust is a share from 0 to 1, or None for what the samples say, got 2.0"),
    (small_aggrevated_oc, {"trust": float("nan")}, "trust is a share from 0 to 1, .*got nan"),
]


@pytest.mark.parametrize("make, options, message", ARGUMENTS, ids=lambda x: str(x)[:40])
def test_arguments(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


# what else nobody can have meant; it must not end in silence or deep inside
OUT_OF_RANGE: list[dict[str, Any]] = [
    {"target_kl": -0.1},
    {"trust_region": -0.1},
    {"min_std": -0.1},
    {"batch_size": 0},
    {"n_critic_updates": 0},
]


@pytest.mark.parametrize("options", OUT_OF_RANGE, ids=str)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must"):
        small_aggrevated_oc(**options).learn(1)


def test_unknown_argument_of_an_initial_controller() -> None:
    with pytest.raises(TypeError, match="stiff"):
        small_mdgps(initial_controller={"kind": "lqr", "stiff": 1.0}).learn(1)


@every_class
def test_unknown_keyword(algorithm: type[Model]) -> None:
    with pytest.raises(TypeError, match="n_steps"):
        algorithm("MlpPolicy", PointMass(), n_steps=100)  # type: ignore[call-arg]


def test_choices() -> None:
    assert parse_choice("kind", "a", ("a", "b")) == ("a", {})
    options = {"kind": "b", "x": 1}
    assert parse_choice("kind", options, ("a", "b")) == ("b", {"x": 1})
    assert options == {"kind": "b", "x": 1}, "what the user gave is left alone"
    with pytest.raises(ValueError, match="Unknown thing 'c': choose one of 'a', 'b'"):
        check_choice("thing", "c", ("a", "b"))


def test_schedules() -> None:
    """Numbers, functions of the progress remaining, and what RL Zoo's files write."""
    for value in (0.3, "0.3", "3e-1"):
        assert [as_schedule("alpha", value)(progress) for progress in (1.0, 0.25, 0.0)] == [0.3] * 3
    for value in ("lin_0.4", LinearSchedule(0.4, 0.0, 1.0), lambda progress: 0.4 * progress):
        np.testing.assert_allclose([as_schedule("alpha", value)(progress) for progress in (1.0, 0.25, 0.0)], [0.4, 0.1, 0.0])
    schedule = as_schedule("alpha", "lin_0.4")
    assert as_schedule("alpha", schedule)(0.5) == 0.2, "one that was read before"
    with pytest.raises(ValueError, match=r"alpha='exp_0.1' is no schedule: write a number or lin_NUMBER \(falls to zero\)"):
        as_schedule("alpha", "exp_0.1")


@pytest.mark.parametrize(("algorithm", "name"), SCHEDULES)
def test_schedules_as_arguments(algorithm: type[Model], name: str) -> None:
    model = algorithm("MlpPolicy", PointMass(), device="cpu", **{name: "lin_0.4"})
    assert getattr(model, name)(0.5) == 0.2
    with pytest.raises(ValueError, match=f"{name}='much' is no schedule"):
        algorithm("MlpPolicy", PointMass(), device="cpu", **{name: "much"})


@every_algorithm
def test_horizon_beyond_the_time_limit(make: Make) -> None:
    message = r"horizon=13 is longer than the environment's episodes \(12 steps\): use at most 12, or None for the time limit"
    with pytest.raises(ValueError, match=message):
        make(limited(12), horizon=13)
    assert make(limited(12), horizon=12).n_steps == 12 * 4


def test_jacobian_where_policy_and_planner_see_different_things() -> None:
    model = small_mdgps(DictPointMass(), "MultiInputPolicy", linearization="jacobian")
    with pytest.raises(ValueError, match=r"needs a policy that observes the planner's state.*None"):
        model.learn(1)


# ---------------------------------------------------------------------- environments


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
@every_algorithm
def test_not_finite(make: Make, what: str, bad: float, tmp_path: Path) -> None:
    """Environment and step are named, and the model is as before the rollout."""
    env = PointMass()
    model = make(env, replay=2)
    model.learn(ITERATION)
    before = parameter_sum(model)
    env.broken, env.bad = (what, ITERATION + 24), bad
    message = f"Environment 0 returned an? {what} that is not finite at step 3 .*after {ITERATION + 24} steps"
    with pytest.raises(ValueError, match=message):
        model.learn(ITERATION, reset_num_timesteps=False)
    assert parameter_sum(model) == before
    model.save(tmp_path / "model")
    env.broken = None
    for survivor in (model, type(model).load(tmp_path / "model", env=PointMass())):
        survivor.learn(ITERATION, reset_num_timesteps=False)
        assert survivor.n_iterations == 2 and np.isfinite(parameter_sum(survivor))


@every_algorithm
def test_not_finite_after_a_reset(make: Make) -> None:
    with pytest.raises(ValueError, match="observation that is not finite at step 0"):
        make(PointMass(broken=("reset", 10))).learn(1)


@every_algorithm
def test_the_environment_that_is_not_finite_is_named(make: Make) -> None:
    envs = [PointMass(), PointMass(), PointMass(broken=("reward", 5))]
    makers = iter(envs)
    with pytest.raises(ValueError, match=r"Environment 2 returned a reward .*step 4 .*after 15 steps"):
        make(vec_env(3, lambda: next(makers))).learn(1)


@pytest.mark.parametrize("norm_obs", [True, False])
@every_algorithm
def test_not_finite_with_vec_normalize(make: Make, norm_obs: bool) -> None:
    """The statistics of VecNormalize must not be poisoned for good."""
    inner = PointMass()
    env = VecNormalize(vec_env(1, lambda: inner), norm_obs=norm_obs)
    model = make(env)
    model.learn(ITERATION)
    inner.broken = ("observation", ITERATION + 5)
    with pytest.raises(ValueError, match="observation that is not finite"):
        model.learn(ITERATION, reset_num_timesteps=False)
    inner.broken = None
    model.learn(ITERATION, reset_num_timesteps=False)
    assert np.isfinite(parameter_sum(model))


def test_huge_numbers_are_finite() -> None:
    """Although their sum is not."""
    observations, rewards = np.full((2, 2), 3e38, np.float32), np.full(2, 1.7e308)
    with np.errstate(over="ignore"):
        check_finite(observations, rewards, 0)
        rewards[1] = np.inf
        with pytest.raises(ValueError, match="Environment 1 returned a reward"):
            check_finite(observations, rewards, 0)


def test_an_algorithm_is_its_train() -> None:
    class Unfinished(DualPolicyAlgorithm):
        pass

    model = Unfinished("MlpPolicy", PointMass(), 1e-3, 10, 1, 1, "fresh", 0, 0.99, device="cpu")
    model._setup_model()
    with pytest.raises(NotImplementedError):
        model.learn(1)
    trajectories = model.rollout_buffer.trajectories()
    assert trajectories.alive.all(), "collection does not need it"


@every_algorithm
def test_what_only_the_policy_sees_must_be_finite_too(make: Make) -> None:
    with pytest.raises(ValueError, match="observation that is not finite"):
        make(DictPointMass(broken_key="position"), "MultiInputPolicy").learn(1)


@every_algorithm
def test_deaths_that_leave_too_few_samples(make: Make) -> None:
    model = make(PointMass(death=(1, 12)))
    model.dynamics = {"min_samples": 5}
    with pytest.raises(
        ValueError, match="No time step has the 5 living samples that a fit needs: raise samples_per_condition"
    ):
        model.learn(1)
    model.dynamics = {"min_samples": 2}
    assert model.learn(1).n_iterations == 1, "what raised can be mended"


@every_algorithm
def test_pixels_alone(make: Make) -> None:
    message = r'planner needs a vector and found none .*dictionary whose key "state" is a vector'
    for policy in ("CnnPolicy", "MlpPolicy"):
        with pytest.raises(ValueError, match=message):
            make(ImagePointMass(), policy)
    with pytest.raises(ValueError, match=message):
        make(DictPointMass(("image",)), "MultiInputPolicy")


@every_algorithm
def test_nothing_but_the_state(make: Make) -> None:
    with pytest.raises(ValueError, match='nothing but "state", which the policy may not see: add other keys'):
        make(DictPointMass(("state",)), "MultiInputPolicy")
