"""What a user gets wrong is answered by an error that says what to do."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import (
    NOT_FINITE_IN_SEARCH,
    Make,
    called,
    every,
    every_algorithm,
    iterations,
    parameters,
    small_aggrevated_oc,
    small_dpi,
    small_mdgps,
    those,
)
from dummy_envs import HORIZON, ITERATION, DictPointMass, ImagePointMass, PointMass, limited, vec_env
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.utils import LinearSchedule

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DualAC
from sb3_dpi.common.choices import as_schedule, check_choice, parse_choice
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.finite import check_finite
from sb3_dpi.mpc.planning import make_planner

# ---------------------------------------------------------------------- arguments

OF_CONDITIONS: list[tuple[dict[str, Any], str]] = [
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
    ({"horizon": 1}, "horizon must be at least 2, or None for the time limit, got 1"),
    ({"horizon": 0}, "horizon must be at least 2, .*, got 0"),
    ({"gamma": 2.0}, "gamma must be from 0 to 1, got 2.0"),
    ({"gamma": math.nan}, "gamma must be from 0 to 1, got nan"),
    ({"min_std": math.inf}, "min_std must be at least 0 and finite, got inf"),
    ({"min_std": math.nan}, "min_std must be at least 0 and finite, got nan"),
]
OF_MDGPS: list[tuple[dict[str, Any], str]] = [
    ({"linearization": "finite"}, "Unknown linearization 'finite': choose one of .*'niw', 'nearest', 'gmm'"),
    ({"linearization": {"prior": "auto"}}, "Unknown linearization 'auto'"),
    ({"step_rule": "adaptive"}, "Unknown step_rule 'adaptive': choose one of 'classic', 'global', 'fixed'"),
    ({"sampling": "on"}, "Unknown sampling 'on': choose one of 'global', 'local'"),
    ({"initial_controller": "zero"}, "Unknown initial_controller 'zero': choose one of 'policy', 'lqr', 'pd'"),
    ({"initial_controller": {"stiffness": 2.0}}, "Unknown initial_controller .*None.*: choose one of 'policy', 'lqr', 'pd'"),
    ({"kl_step": -1.0}, "kl_step must be at least 0, got -1.0"),
    ({"kl_step": math.inf}, "kl_step must be at least 0 and finite, got inf"),
    ({"sampling": "local"}, 'belong to their conditions: set conditions="fixed"'),
]
OF_AGGREVATED_OC: list[tuple[dict[str, Any], str]] = [
    ({"gae_lambda": 1.1}, "gae_lambda must be from 0 to 1, got 1.1"),
    ({"plan_lambda": -0.1}, "plan_lambda must be from 0 to 1, got -0.1"),
    ({"trust": "off"}, "trust must be a number, or None, got 'off'"),
    ({"trust": 2.0}, "trust is a share from 0 to 1, or None for what the samples say, got 2.0"),
    ({"trust": math.nan}, "trust is a share from 0 to 1, .*got nan"),
    ({"target_kl": math.inf}, "target_kl must be above 0 and finite, got inf"),
    ({"target_kl": math.nan}, "target_kl must be above 0 and finite, got nan"),
    ({"trust_region": math.inf}, "trust_region must be at least 0 and finite, got inf"),
    ({"cg_damping": -1.0}, "cg_damping must be at least 0, got -1.0"),
]
OF_DPI: list[tuple[dict[str, Any], str]] = [
    ({"expert": "cem"}, "Unknown expert 'cem': choose one of 'pathwise', 'lqr', 'mppi', 'icem'"),
    ({"expert": {"kind": "mppi", "samples": 3}}, "Unknown key 'samples' of expert 'mppi': it has trust_region, n_samples"),
    ({"expert": {"kind": "icem", "n_particles": 3}}, "other words now: instead of n_particles write n_samples"),
    ({"critic": {"kind": "v"}}, "Unknown critic 'v': choose one of 'q', 'returns'"),
    ({"critic": {"widths": 3}}, "Unknown key 'widths' of critic"),
    ({"train_freq": (1, "minute")}, "unit of the `train_freq`"),
    ({"batch_size": 0}, "batch_size must"),
    ({"gradient_steps": -2}, "gradient_steps must be at least -1, got -2"),
    ({"imagination": {"n_windows": 0}}, "n_windows must"),
    ({"imagination": {"horizon": -1}}, "horizon must be at least 0, got -1"),
    ({"imagination": {"rollout_length": 0}}, "rollout_length must be at least 1, got 0"),
    ({"world_model": {"n_members": 0}}, "n_members must be at least 1, got 0"),
    ({"gamma": 1.0}, "gamma must be at least 0 and below 1, got 1.0"),
    ({"preset": "anchored"}, "Unknown preset 'anchored': choose one of 'corrected', 'free'"),
    ({"preset": {"noise": 1.0}}, "'noise' is unknown; its numbers are short_warm_up"),
    ({"preset": {"noise_correlation": 1.0}}, "noise_correlation must"),
    ({"preset": {"noise_correlation": -0.5}}, "noise_correlation must"),
    ({"preset": {"noise_scale": -0.1}}, "noise_scale must be at least 0, got -0.1"),
    ({"preset": {"noise_scale": "falling"}}, "noise_scale='falling' is no schedule"),
    ({"preset": {"polyak": 1.5}}, "polyak must"),
    ({"preset": {"target_kl": -1.0}}, "target_kl must be at least 0"),
    ({"critic": {"real_fraction": 1.5}}, "real_fraction must be from 0 to 1, got 1.5"),
    ({"critic": {"lr_decay_after": -1}}, "lr_decay_after must be at least 0, got -1"),
    ({"early_reset": -1}, "early_reset must"),
    ({"tau": 0.0}, "tau must be above 0"),
    ({"update_to_data": 0.0}, "update_to_data must be above 0, got 0.0"),
    ({"ent_coef": "automatic"}, "ent_coef='automatic'"),
    ({"ent_coef": 0.0}, "ent_coef must be above 0"),
    ({"ent_coef": math.inf}, "ent_coef must be above 0 and finite, got inf"),
    ({"policy_kwargs": {"std_bounds": (0.5, 0.1)}}, "std_bounds"),
    ({"policy_kwargs": {"use_sde": True}}, "leave use_sde off"),
    ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}}}, "net_arch has the keys 'pi' and 'qf', not 'vf'"),
    ({"replay_buffer_class": HerReplayBuffer}, "HerReplayBuffer, whose sample"),
    ({"replay_buffer_kwargs": {"optimize_memory_usage": True}}, "leave optimize_memory_usage off"),
]
OF_DUAL_AC: list[tuple[dict[str, Any], str]] = [
    ({"gradient": "natural"}, "Unknown gradient 'natural': choose one of 'causal', 'averaged', 'literal'"),
    ({"step_rule": "x"}, "Unknown step_rule 'x'"),
    ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ({"n_steps": 1}, "n_steps times environments must be at least 2, got 1 x 1"),
    ({"window_length": 0}, "window_length must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size must"),
    ({"n_critic_updates": -1}, "n_critic_updates must"),
    ({"gamma": 1.1}, "gamma must be from 0 to 1, got 1.1"),
    ({"gae_lambda": -0.1}, "gae_lambda must"),
    ({"early_reset": -1}, "early_reset must be at least 0"),
    ({"path_regularization": -1.0}, "path_regularization must be at least 0, got -1.0"),
    ({"path_regularization": math.nan}, "path_regularization must"),
    ({"cg_damping": -1.0}, "cg_damping must"),
    ({"min_std": -1.0}, "min_std must be at least 0, got -1.0"),
    ({"max_std": -0.1}, "max_std must be at least 0, got -0.1"),
    ({"max_std": None}, "max_std must be a number, got None"),
    ({"alpha_regularization": 0.0}, "alpha_regularization must be above 0, got 0.0"),
    ({"target_kl": 0.0}, "target_kl must be above 0"),
    ({"target_kl": math.inf}, "target_kl must be above 0 and finite, got inf"),
    ({"min_std": math.inf}, "min_std must be at least 0 and finite, got inf"),
    ({"cg_damping": math.inf}, "cg_damping must be at least 0 and finite, got inf"),
]
ARGUMENTS: list[tuple[Make, dict[str, Any], str]] = [
    *[(make, options, message) for make in those(from_conditions=True) for options, message in OF_CONDITIONS],
    *[(make, options, message) for make in called(MDGPS) for options, message in OF_MDGPS],
    *[(make, options, message) for make in called(AggreVaTeDOC) for options, message in OF_AGGREVATED_OC],
    *[(make, options, message) for make in called(DPI) for options, message in OF_DPI],
    *[(make, options, message) for make in called(DualAC) for options, message in OF_DUAL_AC],
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


def numbers(make: Make, *kinds: Any) -> list[str]:
    """:return: arguments whose annotation is one of these kinds"""
    parameters = inspect.signature(make.algorithm).parameters.values()
    return [parameter.name for parameter in parameters if parameter.annotation in kinds and parameter.name != "seed"]


@every_algorithm
def test_whole_numbers_have_no_fraction(make: Make, tmp_path: Path) -> None:
    """Floats that are whole, as files may write them, are what they say."""
    names = numbers(make, int, int | None, int | tuple[int, str] | None)
    assert {"verbose", "stats_window_size"} < set(names)
    for name in names:
        with pytest.raises(ValueError, match=rf"{name} must be a whole number.*, got 2\.5"):
            make(**{name: 2.5})
    model = make(stats_window_size=7.0)
    assert isinstance(model._stats_window_size, int)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"verbose must be a whole number, got 0\.5"):
        make.algorithm.load(tmp_path / "model", verbose=0.5)


@every_algorithm
def test_text_and_nothing_are_no_numbers(make: Make) -> None:
    for name in numbers(make, int, float):
        for bad in ("0.9", None, [1]):
            with pytest.raises(ValueError, match=rf"{name} must be a (whole )?number, got {re.escape(repr(bad))}"):
                make(**{name: bad})
    for name in numbers(make, int | None, float | None):
        with pytest.raises(ValueError, match=rf"{name} must be .* or None, got '1e-1': write it without quotes .*1\.0e-3"):
            make(**{name: "1e-1"})


def test_numbers_in_settings() -> None:
    with pytest.raises(ValueError, match=r"width of world_model must be a whole number, got 2\.5"):
        small_dpi(world_model={"width": 2.5})
    with pytest.raises(ValueError, match="n_samples of planner 'iCEM' must be a whole number, got '8': write it without"):
        make_planner({"kind": "iCEM", "n_samples": "8"})
    for options in ({"preset": {"gamma": "0.9"}}, {"preset": {"train_freq": 2.5}}, {"early_reset": {"after": 2.5}}):
        with pytest.raises(ValueError, match=r"of (preset|early_reset) must be a (whole )?number, got"):
            small_dpi(**options)
    for options in ({"cost": {"ridge": "1e-3"}}, {"dynamics": {"min_samples": 2.5}}):
        with pytest.raises(ValueError, match=r"of (cost|dynamics) must be a (whole )?number, got"):
            small_mdgps(**options)
    assert make_planner({"kind": "random", "n_samples": 8.0}).n_samples == 8  # type: ignore[union-attr]


@every_algorithm
@pytest.mark.parametrize("bad", ["100", None, math.nan, math.inf], ids=str)
def test_steps_that_are_no_number(make: Make, bad: Any) -> None:
    with pytest.raises(ValueError, match="total_timesteps of learn must be a finite number of steps, got "):
        make().learn(bad)


@every_algorithm
def test_spaces_that_hold_nothing(make: Make) -> None:
    class Empty(PointMass):
        def __init__(self, name: str) -> None:
            super().__init__()
            setattr(self, name, spaces.Box(-1.0, 1.0, (0,)))

    for name in ("observation_space", "action_space")[: 1 if make.discrete else 2]:
        with pytest.raises(ValueError, match=f"The {name} .* holds no number: give an environment"):
            make(Empty(name))


@every(plans=False)
@pytest.mark.parametrize("bad", [math.inf, math.nan, -1.0])
def test_learning_rates_out_of_range(make: Make, bad: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate must be at least 0.*, got {bad}"):
        make(learning_rate=bad)


@every_algorithm
@pytest.mark.parametrize("name", ["CnnLstmPolicy", "mlppolicy", "MLP"])
def test_unknown_policies(make: Make, name: str) -> None:
    """The error lists what there is."""
    aliases = ", ".join(repr(alias) for alias in make.algorithm.policy_aliases)
    with pytest.raises(ValueError, match=f"Policy {name} unknown: {make} has {aliases}"):
        make(policy=name)


def test_policies_that_dpi_has_not() -> None:
    with pytest.raises(ValueError, match="Policy CnnPolicy unknown: DPI has 'MlpPolicy', 'MultiInputPolicy'"):
        DPI("CnnPolicy", PointMass())


@every_algorithm
def test_unknown_keyword(make: Make) -> None:
    with pytest.raises(TypeError, match="n_stepss"):
        make.algorithm("MlpPolicy", PointMass(), n_stepss=100)


FORMER = ("restart_after", "effort", "n_steps", "anchor", "averaging", "critic_width", "use_sde", "optimize_memory_usage")


@pytest.mark.parametrize("name", FORMER)
def test_former_arguments_of_dpi_name_the_new_word(name: str) -> None:
    with pytest.raises(TypeError, match=rf"DPI takes other words now: instead of {name} write \w"):
        DPI("MlpPolicy", limited(12), **{name: 1})


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


SCHEDULES: list[tuple[Make, str]] = [
    *[(make, name) for make in called(MDGPS) for name in ("kl_step", "min_std")],
    *[(make, name) for make in called(AggreVaTeDOC) for name in ("trust_region", "target_kl", "min_std")],
    *[(make, "target_kl") for make in called(DualAC)],
]


@pytest.mark.parametrize(("make", "name"), SCHEDULES, ids=str)
def test_schedules_as_arguments(make: Make, name: str) -> None:
    assert getattr(make(**{name: "lin_0.4"}), name)(0.5) == 0.2
    with pytest.raises(ValueError, match=f"{name}='much' is no schedule"):
        make(**{name: "much"})


@every(from_conditions=True)
def test_horizon_beyond_the_time_limit(make: Make) -> None:
    message = r"horizon=13 is longer than the environment's episodes \(12 steps\): use at most 12, or None for the time limit"
    with pytest.raises(ValueError, match=message):
        make(limited(12), horizon=13)
    assert make(limited(12), horizon=12).n_steps == 12 * 4
    with pytest.raises(ValueError, match=r"episodes \(1 steps\): use None for the time limit"):
        make(limited(1), horizon=10)
    assert make(limited(1), horizon=None).learn(ITERATION).size.horizon == 1


def test_jacobian_where_policy_and_planner_see_different_things() -> None:
    model = small_mdgps(DictPointMass(), "MultiInputPolicy", linearization="jacobian")
    with pytest.raises(ValueError, match=r"needs a policy that observes the planner's state.*None"):
        model.learn(1)


# ---------------------------------------------------------------------- environments


@pytest.mark.parametrize(
    ("what", "bad"), [("reward", np.nan), ("reward", -np.inf), ("observation", np.nan), ("observation", np.inf)]
)
@every_algorithm
def test_not_finite(make: Make, what: str, bad: float, tmp_path: Path) -> None:
    """Environment and step are named, and the model is as before the rollout."""
    env = PointMass()
    model = make(env).learn(ITERATION)
    before = parameters(model)
    env.broken, env.bad = (what, ITERATION + 24), bad
    where = " at step 3 of its trajectory" if make.from_conditions else ""
    message = rf"Environment 0 returned an? {what} that is not finite{where} \(?after {ITERATION + 24} steps"
    with pytest.raises(ValueError, match=NOT_FINITE_IN_SEARCH if make.searches else message):
        model.learn(ITERATION, reset_num_timesteps=False)
    assert parameters(model) == before
    model.save(tmp_path / "model")
    env.broken = None
    for survivor in (model, make.algorithm.load(tmp_path / "model", env=make.fit(PointMass()))):
        survivor.learn(ITERATION, reset_num_timesteps=False)
        assert iterations(survivor) == 2 and np.isfinite(parameters(survivor)) and parameters(survivor) != before


@every(from_conditions=True)
def test_not_finite_after_a_reset(make: Make) -> None:
    with pytest.raises(ValueError, match="observation that is not finite at step 0"):
        make(PointMass(broken=("reset", 10))).learn(1)


@every_algorithm
def test_the_environment_that_is_not_finite_is_named(make: Make) -> None:
    envs = iter([PointMass(), PointMass(), PointMass(broken=("reward", 5))])
    copied = NOT_FINITE_IN_SEARCH.replace(r"\d", "2", 1)
    said = copied if make.searches else "Environment 2 returned a reward .*after 15 steps"
    with pytest.raises(ValueError, match=said):
        make(vec_env(3, lambda: next(envs))).learn(ITERATION)


def test_huge_numbers_are_finite() -> None:
    """Although the sum of their squares is not in single precision."""
    observations, rewards = np.full((2, 2), 3e38, np.float32), np.full(2, 3e34)
    with np.errstate(over="ignore"):
        check_finite(observations, rewards, 0)
        rewards[1] = np.inf
        with pytest.raises(ValueError, match="Environment 1 returned a reward"):
            check_finite(observations, rewards, 0)


class Huge(gym.ObservationWrapper):  # type: ignore[type-arg]
    """
    Observations in double precision and other units.

    :param unit: of the observations
    """

    def __init__(self, unit: float) -> None:
        super().__init__(limited(12))
        self.unit, self.observation_space = unit, spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return self.unit * observation.astype(np.float64)


@every_algorithm
def test_numbers_whose_sums_overflow(make: Make) -> None:
    """What is a little smaller is learned from; the networks of ExIt see observations in the task's units."""
    rewards = gym.wrappers.TransformReward(limited(12), lambda _: 3e34)
    for sound in (rewards,) if make.discrete else (rewards, Huge(1e149)):
        model = make(make.fit(sound)).learn(2 * ITERATION)
        assert np.isfinite(parameters(model)) and iterations(model) >= 1
    for huge, what in (
        (gym.wrappers.TransformReward(limited(12), lambda _: 1e35), r"a reward that is beyond 3e\+34"),
        (Huge(1e160), r"an observation that is beyond 1e\+150"),
    ):
        with np.errstate(over="ignore"), pytest.raises(ValueError, match=f"Environment 0 returned {what} .* other units"):
            make(make.fit(huge)).learn(ITERATION)


@every_algorithm
def test_what_episodes_begin_and_end_with_must_be_finite(make: Make) -> None:
    class Ends(gym.Wrapper):  # type: ignore[type-arg]
        def __init__(self, last: float) -> None:
            super().__init__(limited(HORIZON))
            self.last = last

        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs * (self.last if terminated or truncated else 1.0), reward, terminated, truncated, info

    tasks = iter((Ends(1.0), Ends(np.nan)))
    said = "Environment 1 returned an observation that is not finite"
    with pytest.raises(ValueError, match=f"{said}|{NOT_FINITE_IN_SEARCH}" if make.searches else said):
        make(make.fit(vec_env(2, lambda: next(tasks)))).learn(2 * ITERATION)
    with pytest.raises(ValueError, match=r"Environment 0 returned an observation that is not finite .*after 0 steps"):
        make(make.fit(limited(12, broken=("reset", 0)))).learn(ITERATION)


def test_an_algorithm_is_its_train() -> None:
    class Unfinished(DualPolicyAlgorithm):
        pass

    plans = {"dynamics": "nearest", "cost": None, "min_std": 0.1}
    model = Unfinished("MlpPolicy", PointMass(), 1e-3, 10, 1, 2, "fresh", 0, 0.99, **plans, device="cpu")
    model._setup_model()
    with pytest.raises(NotImplementedError):
        model.learn(1)
    trajectories = model.rollout_buffer.trajectories()
    assert trajectories.alive.all(), "collection does not need it"


@every(from_conditions=True)
def test_what_only_the_policy_sees_must_be_finite_too(make: Make) -> None:
    with pytest.raises(ValueError, match="observation that is not finite"):
        make(DictPointMass(broken_key="position"), "MultiInputPolicy").learn(1)


@every(from_conditions=True)
def test_deaths_that_leave_too_few_samples(make: Make) -> None:
    model = make(PointMass(death=(1, 12)))
    model.dynamics = {"min_samples": 5}
    with pytest.raises(
        ValueError, match="No time step has the 5 living samples that a fit needs: raise samples_per_condition"
    ):
        model.learn(1)
    model.dynamics = {"min_samples": 2}
    assert model.learn(1).n_iterations == 1, "what raised can be mended"


@every(from_conditions=True)
def test_pixels_alone(make: Make) -> None:
    message = r'planner needs a vector and found none .*dictionary whose key "state" is a vector'
    for policy in ("CnnPolicy", "MlpPolicy"):
        with pytest.raises(ValueError, match=message):
            make(ImagePointMass(), policy)
    with pytest.raises(ValueError, match=message):
        make(DictPointMass(("image",)), "MultiInputPolicy")


@every(from_conditions=True)
def test_nothing_but_the_state(make: Make) -> None:
    with pytest.raises(ValueError, match='nothing but "state", which the policy may not see: add other keys'):
        make(DictPointMass(("state",)), "MultiInputPolicy")


def test_what_no_world_model_can_predict() -> None:
    with pytest.raises(ValueError, match="images and discrete observations have no model here"):
        small_dpi(ImagePointMass())
    with pytest.raises(ValueError, match="under the key 'image'"):
        small_dpi(DictPointMass(("image", "velocity")), "MultiInputPolicy")
    with pytest.raises(ValueError, match="must see all that the planner sees"):
        small_dpi(DictPointMass(("state", "position")), "MultiInputPolicy")


@every_algorithm
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rewards_that_never_change(make: Make, reward: float) -> None:
    """There is nothing to learn from them, and nothing that stops learning from others later on."""
    env = gym.wrappers.TransformReward(limited(12), lambda _: reward)
    model = make(env).learn(3 * ITERATION)
    before = parameters(model)
    assert np.isfinite(before)
    model.set_env(make.fit(limited(12)))
    model.learn(2 * ITERATION)
    assert np.isfinite(parameters(model)) and parameters(model) != before
