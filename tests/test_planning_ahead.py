"""What those who plan in a copy of their environment, or in what they have learned, say of it before and while they do."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import Model, parameters, small_dagger, small_exit, small_mpc
from dummy_envs import PointMass, limited, vec_env

from sb3_dpi.common.finite import NotFiniteError, planning_after, planning_for
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
