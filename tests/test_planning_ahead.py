"""What those who plan in a copy of their environment, or in what they have learned, say of it before and while they do."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import Model, parameters, small_dagger, small_exit, small_mpc
from dummy_envs import ITERATION, PointMass, limited, pushed, vec_env
from gymnasium import spaces

from sb3_dpi import DPI, MPC, DAgger, ExIt
from sb3_dpi.common.finite import NotFiniteError, planning_after, planning_for
from sb3_dpi.systems import Simulator, VariedSystem
from sb3_dpi.systems.learned import OPERATIONS_A_SECOND
from sb3_dpi.trajopt.ilqr import ILQR
from sb3_dpi.trajopt.types import NotFiniteReturnError

SIMULATOR = {"kind": "random", "n_samples": 4}


def mpc(env: Any) -> Model:
    """:return: one that plans in the simulator"""
    return small_mpc(env, SIMULATOR, system="simulator")


def dagger(env: Any) -> Model:
    """:return: one that imitates such a plan"""
    return small_dagger(env, expert={"algo": "mpc", "policy": SIMULATOR, "system": "simulator", "horizon": 2})


PLANNERS: list[Callable[[Any], Model]] = [mpc, dagger, small_exit]


class Spoiled(gym.Wrapper):  # type: ignore[type-arg]
    """
    From the tenth step of an episode on a reward or an observation is no number.

    :param what: which
    """

    def __init__(self, what: str) -> None:
        super().__init__(limited(12))
        self.what, self.t = what, 0

    def reset(self, **kwargs: Any) -> Any:
        self.t = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        self.t += 1
        bad = np.nan if self.t > 10 else 0.0
        return (obs, float(reward) + bad, *rest) if self.what == "reward" else (obs + np.float32(bad), reward, *rest)


@pytest.mark.parametrize("make", PLANNERS, ids=lambda make: make.__name__)
def test_copies_that_are_not_finite_are_named(make: Callable[[Any], Model]) -> None:
    """With environment and step, and the model is as before."""
    before = parameters(make(vec_env(2, lambda: limited(12))))
    model = make(vec_env(2, lambda: Spoiled("reward")))
    said = r"Environment [01], after \d+ steps in all: .*(earned|a return of) nan.* The model is as before this rollout"
    with pytest.raises(NotFiniteError, match=said):
        model.learn(40)
    assert 8 <= model.num_timesteps <= 22 and parameters(model) == before


def test_observations_of_copies_are_named_too() -> None:
    """Those of a search are asked a network about."""
    said = r"Environment 0, after 10 steps in all: the search met a return of nan: rewards, observations and values must be"
    with pytest.raises(NotFiniteError, match=said):
        small_exit(Spoiled("observation")).learn(40)


# ---------------------------------------------------------------------- time


def simulator(model: Model) -> Simulator:
    """:return: what it plans in, or its expert does"""
    if isinstance(model, DAgger):
        return simulator(model._adviser.expert)
    return model._make_simulator() if isinstance(model, ExIt) else model._finder.simulator


SECONDS = {"mpc": 4 * 2 / 2, "dagger": 4 * 2, "small_exit": 2 * 2.0}
"""Of a step, where one of a copy takes a second: sequences of two steps, for two steps at a time, or simulations."""


@pytest.mark.parametrize("make", PLANNERS, ids=lambda make: make.__name__)
def test_long_runs_are_announced_before_anything_is_sampled(make: Callable[[Any], Model]) -> None:
    """What planning takes follows from its sizes, and from what a step of the copy took when it was made."""
    model = make(limited(12))
    assert 0.0 < simulator(model).step_seconds < 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* of a core")
        model.learn(40)
    simulator(model).step_seconds = 100.0
    seconds, steps = SECONDS[make.__name__] * 100.0, model.num_timesteps

    def stop(local: dict[str, Any], _: Any) -> bool:
        return False

    said = rf"In these 40 steps .*(MPC|ExIt),? plans for some {seconds * 40 / 3600:.0f} hours of a core, {seconds:.2g} seconds"
    with pytest.warns(UserWarning, match=said.replace("+", r"\+")) as told:
        model.learn(40, callback=stop)
    assert {warning.filename for warning in told} == {__file__}, "whose line is shown is who called learn"
    assert model.num_timesteps <= steps + 1


def test_networks_that_do_not_search_need_no_copy_to_tell_their_time(tmp_path: Path) -> None:
    """Loaded without an environment they are asked as any other network is."""
    small_exit(limited(12)).save(tmp_path / "model")
    expert = ExIt.load(tmp_path / "model")
    model = small_dagger(pushed(limited(12)), expert=expert).learn(ITERATION)
    assert model.num_timesteps >= ITERATION and expert.env is None


def test_time_of_plans_in_an_ensemble() -> None:
    """Two operations for each weight of a member, particle, sequence and time step."""
    model = small_mpc(limited(12), {"kind": "CEM", "n_samples": 50, "n_elites": 5, "n_rounds": 3}, horizon=6, replan_every=2)
    weights = sum(parameter.numel() for parameter in model.ensemble.networks.parameters())
    per_step = 2.0 * weights / model.ensemble.n_members * model._planning.system.n_particles / OPERATIONS_A_SECOND
    assert model.seconds_a_step == pytest.approx(50 * 3 * 6 * per_step / 2)
    limit = small_mpc(limited(12), max_plan_seconds=1e-9)
    assert limit.seconds_a_step == pytest.approx(0.5e-9), "no plan takes longer than it may"


def wide(n_numbers: int) -> gym.Env[Any, Any]:
    """:return: a point mass that says the same again and again"""
    space = spaces.Box(-np.inf, np.inf, (n_numbers,), np.float32)
    return gym.wrappers.TransformObservation(limited(12), lambda obs: np.resize(obs, n_numbers), space)


LEARNERS: list[tuple[Any, str, dict[str, Any]]] = [
    (DPI, "MlpPolicy", {"update_to_data": 0.2}),
    (MPC, "random", {"world_model": {"gradient_steps": 0.5}}),
]


@pytest.mark.parametrize(("algorithm", "policy", "less"), LEARNERS, ids=str)
def test_long_fits_are_told_before_anything_is_sampled(algorithm: Any, policy: str, less: dict[str, Any]) -> None:
    said = rf"of 3,000 numbers takes {algorithm.__name__} some 4 minutes .* at first, and 10 for each 1,000 steps.* lower"
    with pytest.warns(UserWarning, match=said) as told:
        algorithm(policy, wide(3000), buffer_size=10)
    assert {warning.filename for warning in told} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm(policy, wide(400), buffer_size=10)
        algorithm(policy, wide(3000), buffer_size=10, **less)


def test_systems_that_do_not_tell_their_time() -> None:
    model = small_mpc(limited(12))
    told = SimpleNamespace(step_seconds=2.0, state_dim=1, tangent_dim=1, action_dim=1)
    silent = SimpleNamespace(state_dim=1, tangent_dim=1, action_dim=1)
    varied: Any = (VariedSystem([told, told]), VariedSystem([told, silent]))  # type: ignore[list-item]
    assert [system.step_seconds for system in varied] == [4.0, None]
    assert replace(model._planning, system=silent).seconds_a_step is None
    smooth = replace(model._planning, system=told, planner=ILQR(max_iterations=3), horizon=2, replan_every=1)
    assert smooth.seconds_a_step == pytest.approx((30 + 3 * (2 * 4 + 6 * 2 + 11)) * 2 * 2.0)


# ---------------------------------------------------------------------- who fails where


def test_where_and_when_a_plan_failed() -> None:
    def fail() -> None:
        raise NotFiniteReturnError("it earned nan")

    said = r"^Environment 3, after 20 steps in all: it earned nan\. The model is"
    with pytest.raises(NotFiniteError, match=said), planning_after(20), planning_for(3):
        fail()
    with pytest.raises(NotFiniteReturnError) as caught, planning_for(2):
        fail()
    assert caught.value.index == 2 and isinstance(caught.value, ValueError)


def test_a_function_that_gives_no_action_is_named() -> None:
    model = small_dagger(vec_env(2, PointMass), expert=lambda obs: np.array([[0.0], [np.nan]]))
    with pytest.raises(NotFiniteError, match=r"Environment 1, after 0 steps in all: the expert's action in environment 1"):
        model.learn(40)
