"""What Dual-AC makes of a rollout, by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_dual_ac
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dpi.dual_ac import dual_ac
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.critic import ValueProblem
from sb3_dpi.dual_ac.rollout import Endings
from sb3_dpi.dual_ac.windows import following_rows, window_lengths

REWARDS = np.array([[1.0], [2.0], [4.0], [8.0]])
VALUES = np.array([10.0, 20.0, 40.0, 80.0, 160.0])
GAMMA, LAMBDA = 0.5, 0.25


def batch(death: int | None, window_length: int) -> Batch:
    """Four steps of one environment, that dies with one of them."""
    terminated = np.zeros((4, 1), dtype=bool)
    if death is not None:
        terminated[death] = True
    ends = terminated.copy()
    ends[-1] = True
    following = following_rows(terminated, np.zeros_like(terminated))
    return Batch(None, th.zeros(4), REWARDS, following, ends, window_lengths(ends, window_length))


def test_temporal_differences() -> None:
    differences = batch(1, 1).temporal_differences(VALUES, GAMMA)
    # the row behind the rollout's end is the fifth
    np.testing.assert_allclose(differences[:, 0], [1.0 + 10.0 - 10.0, 2.0 - 20.0, 4.0 + 40.0 - 40.0, 8.0 + 80.0 - 80.0])


@pytest.mark.parametrize("gae_lambda", [0.0, LAMBDA, 1.0])
def test_path_returns(gae_lambda: float) -> None:
    """TD(lambda): a mean of what one step, two steps, ... earn, with weights that fall by lambda."""
    returns = batch(None, 1).path_returns(VALUES, GAMMA, gae_lambda)[:, 0]
    for t in range(4):
        n_step = []
        for n in range(1, 5 - t):
            earned = sum(GAMMA**i * REWARDS[t + i, 0] for i in range(n))
            n_step.append(earned + GAMMA**n * VALUES[t + n])
        shares = [(1.0 - gae_lambda) * gae_lambda**i for i in range(len(n_step) - 1)] + [gae_lambda ** (len(n_step) - 1)]
        assert returns[t] == pytest.approx(float(np.dot(shares, n_step)))
    assert batch(1, 1).path_returns(VALUES, GAMMA, 1.0)[0, 0] == pytest.approx(1.0 + 0.5 * 2.0), "nothing behind a death"


def test_windows() -> None:
    returns, discounts, rows = batch(None, 3).windows(GAMMA)
    np.testing.assert_allclose(returns[:, 0], [1.0 + 1.0 + 1.0, 2.0 + 2.0 + 2.0, 4.0 + 4.0, 8.0])
    np.testing.assert_allclose(discounts[:, 0], [0.125, 0.125, 0.25, 0.5])
    assert rows[:, 0].tolist() == [3, 4, 4, 4]


def test_windows_that_end_by_death_go_on_with_nothing() -> None:
    returns, discounts, rows = batch(1, 3).windows(GAMMA)
    np.testing.assert_allclose(returns[:, 0], [1.0 + 1.0, 2.0, 4.0 + 4.0, 8.0])
    np.testing.assert_allclose(discounts[:, 0], [0.0, 0.0, 0.25, 0.5])
    assert rows[2:, 0].tolist() == [4, 4] and rows.min() >= 0


def test_deltas() -> None:
    deltas = batch(1, 3).deltas(VALUES, GAMMA)[:, 0]
    expected = [2.0 - 10.0, 2.0 - 20.0, 8.0 + 0.25 * 160.0 - 40.0, 8.0 + 0.5 * 160.0 - 80.0]
    np.testing.assert_allclose(deltas, expected)


def test_what_v_is_solved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem holds the path returns with lambda, discounted windows, and no bootstrap behind a death."""
    from dummy_envs import Counter

    # of the one copy, deaths after three steps, then a long episode
    env = DummyVecEnv([lambda: Counter(0, (-3, 1000))])
    options: dict[str, Any] = {"gamma": GAMMA, "gae_lambda": LAMBDA, "window_length": 2, "alpha_regularization": math.inf}
    model = small_dual_ac(env, n_steps=6, early_reset=0, **options)
    problems: list[ValueProblem] = []
    solve = dual_ac.descend

    def spy(policy: Any, problem: ValueProblem, *rest: Any) -> Any:
        problems.append(problem)
        return solve(policy, problem, *rest)

    monkeypatch.setattr(dual_ac, "descend", spy)
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(model, "_values", lambda batch: values)
    model.learn(6)
    (problem,) = problems
    scale = model._scale()
    # by hand: td of the episode of three steps, then of the three that the rollout cuts
    td = [1 + 0.5 * 2 - 1, 1 + 0.5 * 3 - 2, 1 - 3, 1 + 0.5 * 5 - 4, 1 + 0.5 * 6 - 5, 1 + 0.5 * 7 - 6]
    fall = GAMMA * LAMBDA
    returns = [
        1 + td[0] + fall * td[1] + fall**2 * td[2], 2 + td[1] + fall * td[2], 3 + td[2],
        4 + td[3] + fall * td[4] + fall**2 * td[5], 5 + td[4] + fall * td[5], 6 + td[5],
    ]  # fmt: skip
    np.testing.assert_allclose(scale.mean + scale.std * problem.targets.numpy(), returns, rtol=1e-4)
    np.testing.assert_allclose(scale.std * problem.returns.numpy(), [1.5, 1.5, 1.0, 1.5, 1.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(problem.discounts.numpy(), [0.25, 0.0, 0.0, 0.25, 0.25, 0.5])
    assert problem.end_rows[[0, 3, 4, 5]].tolist() == [2, 5, 6, 6]
    np.testing.assert_allclose(problem.weights.numpy(), 1.0)


def test_one_observation_may_be_all_that_is_cut() -> None:
    """Of a dictionary, by the rollout's end; a time limit within adds the one before the reset."""
    for cuts in (0, 1):
        kept = Endings(2, 1)
        late = {"TimeLimit.truncated": True, "terminal_observation": {"a": np.array([5.0])}}
        for t in range(2):
            is_cut = t == 0 and cuts == 1
            kept.add(t, {"a": np.array([[7.0 + t]])}, np.array([is_cut]), [late if is_cut else {}])
        found = kept.observations()
        assert list(found) == ["a"] and found["a"].tolist() == ([[5.0], [8.0]] if cuts else [[8.0]])
        assert kept.n_episodes == cuts
