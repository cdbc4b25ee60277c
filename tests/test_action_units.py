"""Boxes of all kinds of numbers, as observations and as actions, and bounds that are none."""

from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, buffer, every, iterations, parameters, small_dagger, small_ppo, with_references
from dummy_envs import ITERATION, PointMass, vec_env
from gymnasium import spaces

from sb3_dpi.common.action_units import bounds, check_bounded, from_units, is_bounded, to_units

MOST = float(np.finfo(np.float32).max)


class Boxed(PointMass):
    """
    The point mass seen in any Box, and pushed by the first number of an action of any Box.

    :param observation_space: None for the usual one
    :param action_space: likewise
    """

    def __init__(self, observation_space: Any = None, action_space: Any = None) -> None:
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space
        self.given: list[np.ndarray] = []

    def observation(self) -> Any:
        """:return: hundredths, or signs"""
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        kind = np.dtype(dtype).kind
        numbers = self.state > 0.0 if kind == "b" else self.state if kind == "f" else np.abs(100.0 * self.state) % 100.0
        return np.resize(numbers, shape or ()).astype(dtype)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: a time step of a tenth, with a force of one at most"""
        assert np.shape(action) == self.action_space.shape and np.all(np.isfinite(action))
        self.given.append(np.array(action))
        self.state = self.state + 0.1 * np.array([self.state[1], 2.0 * np.clip(np.ravel(action)[0], -1.0, 1.0)])
        self.t += 1
        return self.observation(), -float(self.state @ self.state), False, self.t >= 12, {}


OBSERVED = [
    spaces.Box(0, 1, (2, 2), bool),
    spaces.Box(-100, 100, (2,), np.int8),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(-1000, 1000, (2, 1), np.int64),
    spaces.Box(-10.0, 10.0, (2,), np.float16),
    spaces.Box(-MOST, MOST, (2,), np.float32),
]
NUMBERS = [spaces.Box(-10.0, 10.0, (), np.float32), spaces.Box(-1000, 1000, (), np.int32)]


def check_predictions(model: Any) -> None:
    """One, several, none: every batch has its actions."""
    space, shape = model.observation_space, model.action_space.shape
    one = np.zeros(space.shape, space.dtype)
    several = np.stack([one] * 3)
    for deterministic in (False, True):
        assert np.shape(model.predict(one, deterministic=deterministic)[0]) == shape
        assert model.predict(several, deterministic=deterministic)[0].shape == (3, *shape)
        assert model.predict(several[:0], deterministic=deterministic)[0].shape == (0, *shape)


@pytest.mark.parametrize("space", OBSERVED, ids=str)
@with_references()
def test_observations_of_all_kinds(make: Make, space: spaces.Box) -> None:
    model = make(vec_env(2, lambda: Boxed(space))).learn(2 * ITERATION)
    check_predictions(model)
    assert buffer(model).observations.dtype == space.dtype


@pytest.mark.parametrize("space", NUMBERS, ids=str)
@every(plain_networks=False)
def test_observations_that_are_one_number(make: Make, space: spaces.Box) -> None:
    """Which theirs refuse, while they act."""
    model = make(vec_env(2, lambda: Boxed(space))).learn(2 * ITERATION)
    check_predictions(model)
    assert iterations(model) >= 1 and np.isfinite(parameters(model))
    low, high = (model.predict(np.array(x, space.dtype), deterministic=True)[0] for x in (-3, 3))
    assert make.plans or low != high


ACTED = [
    spaces.Box(-1.0, 1.0, (), np.float32),
    spaces.Box(-2, 2, (1,), np.int32),
    spaces.Box(-128, 127, (1,), np.int8),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(0, 1, (2,), bool),
    spaces.Box(-60000.0, 60000.0, (1,), np.float16),
    spaces.Box(np.array([-1.0, 0.5]), np.array([1.0, 0.5]), dtype=np.float64),
]


@pytest.mark.parametrize("space", ACTED, ids=str)
@every(discrete=False)
def test_actions_of_all_kinds(make: Make, space: spaces.Box) -> None:
    """Between their bounds, about the middle of them at first, and back again."""
    env = Boxed(action_space=space)
    model = make(env).learn(2 * ITERATION)
    check_predictions(model)
    given, (low, high) = np.array(env.given, dtype=np.float64), bounds(space)
    assert np.all((given >= low) & (given <= high)) and iterations(model) >= 1
    np.testing.assert_allclose(given.mean(0), 0.5 * (low + high), atol=0.35 * float(np.max(high - low)))
    assert np.all(given.std(0) > 0.1 * (high - low) - 1e-12)
    middle = model.policy.unscale_action(np.zeros((1, *space.shape), np.float32))
    np.testing.assert_allclose(middle[0], 0.5 * (low + high), rtol=1e-6)
    if np.all(high > low):
        np.testing.assert_allclose(model.policy.scale_action(middle), 0.0, atol=1e-6)


ENDLESS = [
    spaces.Box(-MOST, MOST, (1,), np.float32),
    spaces.Box(-MOST, MOST, (1,), np.float64),
    spaces.Box(-np.finfo(np.float64).max, np.finfo(np.float64).max, (1,), np.float64),
    spaces.Box(0.0, MOST, (1,), np.float32),
    spaces.Box(np.array([-1.0, -MOST], np.float32), np.array([1.0, MOST], np.float32)),
    spaces.Box(np.iinfo(np.int32).min, np.iinfo(np.int32).max, (1,), np.int32),
]


@pytest.mark.parametrize("space", ENDLESS, ids=str)
@every(any_space=False, discrete=False)
def test_actions_without_bounds_are_refused_at_construction(make: Make, space: spaces.Box) -> None:
    with pytest.raises(ValueError, match=r"must have a finite lower and upper bound .* largest number of a type is no bound"):
        make(Boxed(action_space=space))


@pytest.mark.parametrize("space", ENDLESS, ids=str)
@every(any_space=True)
def test_actions_without_bounds_are_in_the_environments_units(make: Make, space: spaces.Box) -> None:
    """As PPO's: noise of standard deviation one around zero, cut off at the bounds that there are."""
    env, theirs = Boxed(action_space=space), Boxed(action_space=space)
    model = make(env).learn(2 * ITERATION)
    reference = small_ppo(theirs).learn(2 * ITERATION)
    check_predictions(model)
    first, expected = (np.array(given[:ITERATION]) for given in (env.given, theirs.given))
    assert np.all(first >= space.low) and np.all(first <= space.high)
    np.testing.assert_allclose(first.std(0), expected.std(0), rtol=0.4)
    assert np.abs(env.given).max() < 10.0 and model.policy.squash_output == reference.policy.squash_output
    assert model.policy.log_std.exp().min() > 0.5


def test_bounds() -> None:
    for space in (*ACTED, spaces.Box(-1e30, 1e30, (1,)), spaces.Box(-128, 127, (1,), np.int8)):
        assert is_bounded(space)
        check_bounded(space)
    assert not any(is_bounded(space) for space in ENDLESS) and not is_bounded(spaces.Box(-np.inf, 1.0, (1,)))
    usual = spaces.Box(-2.0, 3.0, (2,))
    assert bounds(usual)[0] is usual.low, "numbers of the usual types stay what they are"
    low, high = bounds(spaces.Box(-128, 127, (1,), np.int8))
    assert (high - low).tolist() == [255.0]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float16])
@every(discrete=False)
def test_buffers_hold_fractions_of_actions_of_any_kind(make: Make, kind: Any) -> None:
    """Actions in units of the bounds are no integers, whatever those of the environment are."""
    model = make(Boxed(action_space=spaces.Box(0, 9, (1,), kind)))
    model.learn(ITERATION * (1 + make.acts_as_predicted))  # whose first actions are the expert's
    held = buffer(model).actions
    assert held.dtype == np.float32 and len(np.unique(held)) > ITERATION / 2


@pytest.mark.parametrize("kind", [np.array, th.tensor])
def test_units_and_back(kind: Any) -> None:
    """In numpy and in torch."""
    low, high = kind([-1.0, 0.0, 5.0]), kind([3.0, 10.0, 5.0])
    actions = kind([[-1.0, 10.0, 5.0], [1.0, 2.5, 5.0]])
    units = to_units(actions, low, high)
    np.testing.assert_array_equal(units, [[-1.0, 1.0, 0.0], [0.0, -0.5, 0.0]])
    np.testing.assert_array_equal(from_units(units, low, high), actions)


def test_what_an_expert_says_in_half_precision_does_not_overflow() -> None:
    env = Boxed(action_space=spaces.Box(-6e4, 6e4, (1,), np.float16))
    model = small_dagger(env, expert=lambda obs: np.full((len(obs), 1), 4.5e4, np.float16)).learn(ITERATION)
    np.testing.assert_allclose(model.replay_buffer.labels[:ITERATION], 0.75, atol=1e-3)
