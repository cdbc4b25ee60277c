"""What plans predicted, followed by hand through episodes that go on, die and are cut off."""

import numpy as np
import pytest

from sb3_dpi.mpc.predicted_returns import PredictedReturns

GAMMA, T = 0.5, 3


def rows(ages: list[int], predicted: list[float], seconds: float = 0.5) -> np.ndarray:
    """:return: what is kept of plans"""
    kept = np.zeros(len(ages), [("age", np.int64), ("predicted_return", float), ("seconds", float)])
    kept["age"], kept["predicted_return"], kept["seconds"] = ages, predicted, seconds
    return kept


def step(
    follower: PredictedReturns, rewards: list[float], dones: list[int] | None = None, truncated: list[int] | None = None
) -> None:
    """Let a step pass, behind which environment i observes 10 i."""
    n = len(rewards)
    over, cut = (np.array(given or [0] * n, dtype=bool) for given in (dones, truncated))
    follower.stepped(np.array(rewards), over, cut, 10.0 * np.arange(n)[:, None])


def test_returns_to_the_horizon() -> None:
    """Discounted from the step of the plan on; a plan that is made on the way is not the one that is followed."""
    follower = PredictedReturns(2, T, GAMMA, None)
    follower.planned(rows([0, 2], [7.0, 9.0]))
    for reward in (1.0, 2.0, 4.0):
        step(follower, [reward, 50.0])
        follower.planned(rows([0, 3], [100.0, 9.0]))
    assert follower.pairs == [(7.0, 1.0 + 1.0 + 1.0)] and follower.predicted[0] == 100.0
    for reward in (8.0, 0.0, 0.0):
        step(follower, [reward, 50.0])
    assert follower.pairs[1:] == [(100.0, 8.0)]
    measured = follower.summary()
    assert measured["plan/predicted_return"] == 53.5 and measured["plan/real_return"] == 5.5
    assert measured["plan/seconds"] == 0.5 and measured["plan/plans_per_second"] == 2.0
    assert follower.summary() == {}


def test_deaths_end_and_time_limits_say_nothing() -> None:
    """Of four environments: one dies, one is cut off, one dies at the horizon, one is cut off there; then the next begins."""
    follower = PredictedReturns(4, T, GAMMA, lambda observations: observations[:, 0])
    follower.planned(rows([0] * 4, [1.0, 2.0, 3.0, 4.0]))
    step(follower, [1.0] * 4)
    step(follower, [1.0] * 4, [1, 1, 0, 0], [0, 1, 0, 0])
    assert follower.pairs == [(1.0, 1.5)] and np.isnan(follower.predicted).tolist() == [True, True, False, False]
    step(follower, [1.0] * 4, [0, 0, 1, 1], [0, 0, 0, 1])
    assert follower.pairs == [(1.0, 1.5), (3.0, 1.75)] and np.isnan(follower.predicted).all()
    follower.planned(rows([0, 1, 0, 1], [5.0, 6.0, 7.0, 8.0]))
    np.testing.assert_array_equal(follower.predicted, [5.0, np.nan, 7.0, np.nan])
    np.testing.assert_array_equal(follower.earned[[0, 2]], 0.0)


def test_a_terminal_value_stands_behind_the_horizon() -> None:
    follower = PredictedReturns(2, T, GAMMA, lambda observations: observations[:, 0])
    follower.planned(rows([0, 0], [1.0, 2.0]))
    for _ in range(T):
        step(follower, [1.0, 2.0])
    assert follower.pairs == [(1.0, 1.75), (2.0, pytest.approx(3.5 + 0.125 * 10.0))]
