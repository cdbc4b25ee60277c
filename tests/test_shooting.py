"""Planners that sample: what they converge to, warm starts, the spectrum of noise, seeds, bounds, bad input."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt import in_time, shooting
from sb3_dpi.trajopt.ilqr import ILQR
from sb3_dpi.trajopt.noise import IN_CACHE, coloured, white
from sb3_dpi.trajopt.shooting import CEM, ICEM, MPPI, RandomShooting, Shooter, cross_entropy, elites, tempered_weights

B, T, DU = 3, 4, 2
LOW, HIGH = np.array([-1.0, -2.0]), np.array([1.0, 3.0])
PLANNERS = [
    RandomShooting(50),
    CEM(60, 6, 3),
    ICEM(40, 8, 3),
    MPPI(60, 2, exponent=1.0),
    MPPI(60, 2, temperature=3.0),
]


class Quadratic:
    """-1/2 (a - best)'H(a - best) of the whole sequence, another one for each state."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.H = random_pd(rng, (B,), T * DU) + 2.0 * np.eye(T * DU)
        self.best = rng.uniform(0.6 * LOW, 0.6 * HIGH, (B, T, DU))
        self.asked: list[np.ndarray] = []

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        self.asked.append(actions)
        away = (actions - self.best[:, None]).reshape(*actions.shape[:2], -1)
        return np.asarray(-0.5 * np.einsum("bni,bij,bnj->bn", away, self.H, away))


@pytest.mark.parametrize(
    ("planner", "near"),
    [
        (RandomShooting(30_000), 1.0),
        (CEM(300, 40, 40, smallest_spread=0.0), 1e-2),
        (CEM(300, 40, 40, smallest_spread=0.0, exponent=1.0, kept=0.5, decay=0.98), 1e-2),
        (ICEM(300, 40, 40, smallest_spread=0.0, exponent=0.5), 2e-2),
        (MPPI(1000, 20, spread=0.1), 0.15),
    ],
)
def test_they_find_the_optimum(planner: Shooter, near: float) -> None:
    problem = Quadratic()
    plan = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    assert np.abs(plan.actions - problem.best).max() < near
    assert plan.n_rollouts == sum(asked.shape[1] for asked in problem.asked)
    if not isinstance(planner, MPPI):
        np.testing.assert_array_equal(problem(plan.actions[:, None])[:, 0], plan.returns)


@pytest.mark.parametrize("planner", PLANNERS)
def test_the_best_of_all_rounds(planner: Shooter) -> None:
    problem = Quadratic()
    plan = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    tried = [problem(asked).max(1) for asked in list(problem.asked)]
    if not isinstance(planner, MPPI):
        np.testing.assert_array_equal(plan.returns, np.max(tried, axis=0))
    else:
        assert np.all(plan.returns <= np.max(tried, axis=0))
    np.testing.assert_array_equal(problem(plan.elites)[:, 0], tried[-1])


def test_a_later_round_may_be_worse() -> None:
    problem, calls = Quadratic(), []

    def worse(actions: np.ndarray) -> np.ndarray:
        calls.append(problem(actions) - 100.0 * len(calls))
        return calls[-1]

    plan = CEM(60, 6, 3).plan(worse, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    np.testing.assert_array_equal(plan.returns, calls[0].max(1))
    np.testing.assert_array_equal(problem(plan.actions[:, None])[:, 0], plan.returns)


@pytest.mark.parametrize("planner", PLANNERS)
def test_bounds_and_seeds(planner: Shooter) -> None:
    """Only actions within bounds are rolled out, wide of them lies the optimum; the same seed draws the same."""
    problem, again = Quadratic(), Quadratic()
    problem.best = again.best = np.broadcast_to(2.0 * HIGH, (B, T, DU))
    first = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    second = planner.plan(again, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    third = planner.plan(again, LOW, HIGH, T, np.random.default_rng(2), n_states=B)
    for asked in [*problem.asked, first.actions, first.mean, first.elites]:
        assert np.all((asked >= LOW) & (asked <= HIGH))
    for name, array in vars(first).items():
        np.testing.assert_array_equal(array, getattr(second, name))
    assert not np.array_equal(first.actions, third.actions)


@pytest.mark.parametrize("planner", PLANNERS)
def test_warm_start(planner: Shooter) -> None:
    """The rest of the last plan is where the next one begins, and what it keeps is tried again."""
    problem = Quadratic()
    last = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    moved = last.shifted(2)
    for name in ("actions", "mean", "elites"):
        before, after = getattr(last, name), getattr(moved, name)
        np.testing.assert_array_equal(after[..., :2, :], before[..., 2:, :])
        np.testing.assert_array_equal(after[..., 2:, :], before[..., 3:, :].repeat(2, -2))
    problem.asked.clear()
    far = replace(moved, mean=np.broadcast_to(HIGH, moved.mean.shape))
    planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B, start=far)
    first = problem.asked[0]
    if isinstance(planner, RandomShooting):
        np.testing.assert_array_equal(first[:, -1], moved.actions)
        return
    assert np.all(first[:, : first.shape[1] // 2].mean((0, 1, 2)) > 0.6 * HIGH)
    kept = round(getattr(planner, "kept", 0.0) * getattr(planner, "n_elites", 0))
    assert kept == (2 if isinstance(planner, ICEM) else 0)
    if kept:
        np.testing.assert_array_equal(first[:, -kept:], moved.elites[:, :kept])


def test_what_icem_tries() -> None:
    """Fewer in later rounds, but twice the elites; the elites that are kept; and the mean in the last."""
    problem = Quadratic()
    planner = ICEM(40, 10, 5, decay=0.7, momentum=0.0)
    plan = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    asked = list(problem.asked)
    assert [a.shape[1] for a in asked] == [40, 28 + 3, 20 + 3, 20 + 3, 20 + 3]
    for before, after in itertools.pairwise(asked):
        best, _ = elites(before, problem(before), 3, 1)
        np.testing.assert_array_equal(after[:, -3:], best)
    fitted, _ = elites(asked[-2], problem(asked[-2]), 10, 1)
    np.testing.assert_allclose(asked[-1][:, 0], fitted.mean(1))
    np.testing.assert_allclose(plan.mean, plan.elites.mean(1))


def test_as_they_come() -> None:
    """CEM is the plain one: nothing is kept, and each round draws as many; iCEM keeps three elites and draws fewer."""
    problem = Quadratic()
    for planner, drawn in ((CEM(), [300] * 4), (ICEM(), [100, 80 + 3, 64 + 3])):
        problem.asked.clear()
        planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
        assert [asked.shape[1] for asked in problem.asked] == drawn


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("smallest", [0.0, 2.0])
def test_momentum_moves_the_gaussian_slowly(momentum: float, smallest: float) -> None:
    """Where each round draws the same the Gaussian nears that of the elites: it misses the share momentum^n of the way."""
    rng, n_rounds = np.random.default_rng(0), 5
    samples, returns = rng.normal(size=(2, 30, 3)), rng.normal(size=(2, 30))
    mean, variance = rng.normal(size=(2, 3)), rng.uniform(1.0, 3.0, (2, 3))
    sizes: dict[str, Any] = {"axis": 1, "n_rounds": n_rounds, "n_elites": 6, "n_kept": 0}
    fit = cross_entropy(
        lambda k, m, v: samples, lambda _: returns, mean, variance, None, **sizes, momentum=momentum, smallest=smallest
    )
    best, left = elites(samples, returns, 6, 1)[0], momentum**n_rounds
    assert best.var(1).max() < 2.0
    np.testing.assert_allclose(fit.mean, left * mean + (1.0 - left) * best.mean(1))
    np.testing.assert_allclose(fit.variance, left * variance + (1.0 - left) * (smallest or best.var(1)))


def test_elites_in_any_layout() -> None:
    rng = np.random.default_rng(0)
    samples, returns = rng.normal(size=(B, 9, T, DU)), rng.normal(size=(B, 9))
    best, values = elites(samples, returns, 3, 1)
    for b in range(B):
        order = sorted(range(9), key=lambda i: -returns[b, i])[:3]
        np.testing.assert_array_equal(best[b], samples[b, order])
        np.testing.assert_array_equal(values[b], returns[b, order])
    other, _ = elites(np.moveaxis(samples, 2, 0), returns, 3, 2)
    np.testing.assert_array_equal(np.moveaxis(other, 0, 2), best)


def test_a_round_at_least() -> None:
    nothing = np.zeros((1, 1, 1))
    with pytest.raises(ValueError, match="a round"):
        cross_entropy(
            lambda k, m, v: nothing[:, None],
            lambda s: np.zeros((1, 1)),
            nothing,
            nothing,
            None,
            axis=1,
            n_rounds=0,
            n_elites=1,
            n_kept=0,
            momentum=0.0,
            smallest=0.0,
        )


def test_mppi_weighs_by_the_exponential() -> None:
    problem = Quadratic()
    plan = MPPI(50, temperature=2.0).plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    drawn = problem.asked[0]
    weights = np.exp(problem(drawn) / 2.0)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(plan.actions, np.sum(weights[..., None, None] * drawn, 1))
    # each state has a temperature of its own: the unit of its returns does not matter
    units = np.array([[1.0], [1e6], [1e-6]])
    plain = MPPI(50).plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    scaled = MPPI(50).plan(lambda a: units * problem(a), LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    np.testing.assert_allclose(scaled.actions, plain.actions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("length", [1, 2, 15, 16])
def test_the_spectrum_of_noise(exponent: float, length: int) -> None:
    noise = coloured(np.random.default_rng(0), (20_000, length), exponent)
    assert noise.shape == (20_000, length)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.04)
    # the same at every time step
    np.testing.assert_allclose(noise.var(0), 1.0, rtol=0.06)
    power = np.mean(np.abs(np.fft.rfft(noise)) ** 2, 0)
    wanted = np.maximum(np.arange(length // 2 + 1), 1.0) ** -exponent
    np.testing.assert_allclose(power / power[0], wanted, rtol=0.08)


def test_white_noise_is_normal() -> None:
    drawn = white(np.random.default_rng(0), (IN_CACHE + 101, 3)).astype(np.float64)
    np.testing.assert_allclose([np.mean(drawn**k) for k in range(1, 5)], [0.0, 1.0, 0.0, 3.0], atol=0.05)
    shares = [np.mean(np.abs(drawn) < z) for z in (0.1, 1.0, 2.0, 3.0)]
    np.testing.assert_allclose(shares, [0.0797, 0.6827, 0.9545, 0.9973], atol=4e-3)
    # neither neighbours nor the two numbers of a pair know of each other
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=0.02)
    half = drawn.ravel()[: IN_CACHE // 2], drawn.ravel()[IN_CACHE // 2 : IN_CACHE]
    assert abs(np.mean((half[0] ** 2 - 1.0) * (half[1] ** 2 - 1.0))) < 0.05
    assert len(np.unique(white(np.random.default_rng(1), (2 * IN_CACHE,)))) > IN_CACHE


def test_the_transform_of_box_and_muller() -> None:
    """A turn in quarters, at the largest radius that there is: that of 2^-32, where the generator gives zero."""

    class Quarters:
        def integers(self, low: int, high: int, size: int, dtype: Any) -> np.ndarray:
            """:return: half of the bits for the radius, half for the angle"""
            assert (low, high, size, dtype) == (0, 2**64, 4, np.uint64)
            return np.array([0, 0, 0, 0, 0, 2**30, 2**31, 3 * 2**30], np.uint32).view(np.uint64)

    drawn = white(Quarters(), (8,))  # type: ignore[arg-type]
    radius = np.sqrt(64.0 * np.log(2.0))
    np.testing.assert_allclose(drawn, radius * np.array([1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0]), atol=1e-5)


def test_time_is_up() -> None:
    problem = Quadratic()
    for planner in (CEM(50, 5, 9), MPPI(50, 9)):
        problem.asked.clear()
        planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B, max_seconds=0.0)
        assert len(problem.asked) == 1
        one = planner.plan(lambda a: -np.sum(a**2, (2, 3)), LOW, HIGH, T, np.random.default_rng(1), max_seconds=0.0)
        assert one.n_rollouts == 1 and one.actions.shape == (1, T, DU)


@pytest.mark.parametrize("planner", PLANNERS)
def test_enough_time_changes_nothing(planner: Shooter) -> None:
    problem, plans = Quadratic(), []
    for seconds in (None, 1e6):
        plans.append(planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B, max_seconds=seconds))
    for name, array in vars(plans[0]).items():
        np.testing.assert_allclose(getattr(plans[1], name), array, rtol=1e-9)


@pytest.mark.parametrize("planner", [RandomShooting(50), ICEM(40, 8, 3), MPPI(60)])
def test_what_is_known_is_tried_first(planner: Shooter) -> None:
    """Of the last plan, where time suffices for no more: its rest, its best elite, its mean."""
    problem = Quadratic()
    last = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B).shifted()
    problem.asked.clear()
    plan = planner.plan(problem, LOW, HIGH, T, np.random.default_rng(2), n_states=B, start=last, max_seconds=0.0)
    known = {RandomShooting: last.actions, ICEM: last.elites[:, 0], MPPI: last.mean}[type(planner)]
    assert plan.n_rollouts == 1 and [asked.shape[1] for asked in problem.asked] == [1]
    for found in (problem.asked[0][:, 0], plan.actions, plan.mean, plan.elites[:, 0]):
        np.testing.assert_allclose(found, known, rtol=1e-12)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("seconds", [30.0, 70.0])
def test_a_round_that_time_cuts(planner: Shooter, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence takes a second: the plan is made of what was tried, in the first round or in a later one."""
    problem, clock = Quadratic(), type("Clock", (), {"now": 0.0, "monotonic": lambda self: self.now})()
    for module in (shooting, in_time):
        monkeypatch.setattr(module, "time", clock)

    def slow(actions: np.ndarray) -> np.ndarray:
        clock.now += actions.shape[1]
        return problem(actions)

    plan = planner.plan(slow, LOW, HIGH, T, np.random.default_rng(1), n_states=B, max_seconds=seconds)
    tried = np.concatenate(problem.asked, 1)
    assert plan.n_rollouts == tried.shape[1] == clock.now <= seconds + 1.0
    assert np.isfinite(plan.returns).all()
    returns = problem(tried)
    if isinstance(planner, MPPI):
        assert np.all((plan.returns <= returns.max(1)) & (plan.returns >= returns.min(1)))
    else:
        np.testing.assert_array_equal(plan.returns, returns.max(1))
        np.testing.assert_array_equal(plan.actions, tried[np.arange(B), returns.argmax(1)])
    for b in range(B):
        for elite in plan.elites[b]:
            assert np.any(np.all(elite == tried[b], axis=(1, 2))), "an elite that was never tried"
    if isinstance(planner, CEM) and seconds < planner.n_samples:
        np.testing.assert_array_equal(plan.mean, plan.actions)


@pytest.mark.parametrize("planner", [CEM(20_000, 10, 1, spread=0.2), MPPI(20_000, spread=0.2)])
def test_the_spread_counts_in_half_ranges(planner: Shooter) -> None:
    problem = Quadratic()
    planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    np.testing.assert_allclose(problem.asked[0].std((0, 1, 2)), [0.2, 0.5], rtol=0.02)
    np.testing.assert_allclose(problem.asked[0].mean((0, 1, 2)), [0.0, 0.5], atol=0.01)


def test_the_spread_falls_to_the_smallest() -> None:
    problem = Quadratic()
    CEM(3000, 5, 12, momentum=0.0, smallest_spread=0.1).plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    np.testing.assert_allclose(problem.asked[-1].std(1).mean((0, 1)), [0.1, 0.25], rtol=0.02)


@pytest.mark.parametrize("planner", PLANNERS)
def test_limits_that_pin_an_action(planner: Shooter) -> None:
    plan = planner.plan(Quadratic(), LOW, np.array([-1.0, 3.0]), T, np.random.default_rng(1), n_states=B)
    assert np.all(plan.actions[..., 0] == -1.0) and np.ptp(plan.actions[..., 1]) > 0.0


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_horizon_of_one(planner: Shooter) -> None:
    plan = planner.plan(lambda a: -np.sum(a**2, (2, 3)), LOW, HIGH, 1, np.random.default_rng(1))
    assert plan.actions.shape == (1, 1, DU) and plan.shifted().actions.tolist() == plan.actions.tolist()


def test_as_many_elites_as_samples() -> None:
    problem = Quadratic()
    plan = CEM(5, 5, 1, momentum=0.0).plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
    np.testing.assert_allclose(plan.mean, problem.asked[0].mean(1))


@pytest.mark.parametrize(("exponent", "correlation"), [(0.0, 0.0), (2.0, 0.75 / 3.25)])
def test_the_noise_of_sequences_lasts(exponent: float, correlation: float) -> None:
    """Of power 1, 1 twice and 1/4 at the frequencies of four steps neighbours have 1 - 1/4 of 1 + 2 + 1/4 in common."""
    problem = Quadratic()
    planners: list[Shooter] = [make(10_000, n_rounds=1, spread=0.1, exponent=exponent) for make in (CEM, MPPI)]
    for planner in [*planners, ICEM(10_000, n_rounds=1, spread=0.1)] if exponent == 2.0 else planners:  # as it comes
        problem.asked.clear()
        planner.plan(problem, LOW, HIGH, T, np.random.default_rng(1), n_states=B)
        drawn = problem.asked[0][:, 1:, :, 0]
        found = [np.corrcoef(drawn[..., t].ravel(), drawn[..., t + 1].ravel())[0, 1] for t in range(T - 1)]
        np.testing.assert_allclose(found, correlation, atol=0.03)


@pytest.mark.parametrize("planner", PLANNERS)
def test_bad_input(planner: Shooter) -> None:
    problem, rng = Quadratic(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="horizon"):
        planner.plan(problem, LOW, HIGH, 0, rng, n_states=B)
    with pytest.raises(ValueError, match="number of states of at least 1, got 4 and 0"):
        planner.plan(problem, LOW, HIGH, T, rng, n_states=0)
    with pytest.raises(ValueError, match="finite bounds"):
        planner.plan(problem, LOW, np.array([1.0, np.inf]), T, rng, n_states=B)
    with pytest.raises(ValueError, match="finite bounds"):
        planner.plan(problem, HIGH, LOW, T, rng, n_states=B)
    with pytest.raises(ValueError, match="sequence 0 of state 0 is not finite"):
        planner.plan(lambda a: np.full(a.shape[:2], np.nan), LOW, HIGH, T, rng, n_states=B)
    with pytest.raises(ValueError, match="returns of actions"):
        planner.plan(lambda a: np.zeros(3), LOW, HIGH, T, rng, n_states=B)
    with pytest.raises(ValueError, match=r"n_samples of .* must be a whole number of at least 1, got 0"):
        replace(planner, n_samples=0)  # type: ignore[type-var]
    last = planner.plan(problem, LOW, HIGH, T, rng, n_states=B)
    with pytest.raises(ValueError, match="start cold"):
        planner.plan(problem, LOW, HIGH, T + 1, rng, n_states=B, start=last)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (MPPI, {"temperature": 0.0}, "temperature of MPPI must be a number above 0, got 0.0"),
        (MPPI, {"temperature": -1.0}, "temperature of MPPI must be a number above 0"),
        (MPPI, {"trust_region": 0.0}, "trust_region of MPPI must be a number above 0"),
        (MPPI, {"exponent": np.nan}, "exponent of MPPI must be a number at least 0, got nan"),
        (RandomShooting, {"n_samples": 20.5}, "n_samples of RandomShooting must be a whole number"),
        (CEM, {"n_rounds": 1.5}, "n_rounds of CEM must be a whole number"),
        (CEM, {"n_samples": 5}, "fits n_elites=30 of n_samples=5: give no more elites than samples"),
        (CEM, {"smallest_spread": -0.1}, "smallest_spread of CEM must be a number at least 0"),
        (ICEM, {"momentum": 5.0}, "momentum of ICEM must be a number at least 0 and below 1, got 5.0"),
        (ICEM, {"spread": -1.0}, "spread of ICEM must be a number above 0"),
        (ICEM, {"kept": 3.0}, "kept of ICEM must be a number at least 0 and at most 1"),
        (ICEM, {"decay": -1.0}, "decay of ICEM must be a number above 0 and at most 1"),
        (ICEM, {"decay": "a"}, "decay of ICEM must be a number"),
        (ILQR, {"max_iterations": 0}, "max_iterations of ILQR must be a whole number of at least 1"),
        (ILQR, {"tolerance": -1.0}, "tolerance of ILQR must be a number at least 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_tempered_weights() -> None:
    returns = np.random.default_rng(0).normal(size=(50, 20)) * 7.0
    weights, beta, divergence = tempered_weights(returns, 0.4)
    assert divergence == pytest.approx(0.4, rel=1e-3)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    ratio = np.log(weights[:, 0] / weights[:, 1])
    np.testing.assert_allclose(ratio, (returns[:, 0] - returns[:, 1]) / beta, atol=1e-6)
    again, scaled, _ = tempered_weights(1e6 * returns + 5.0, 0.4)
    np.testing.assert_allclose(again, weights, atol=1e-6)
    assert scaled == pytest.approx(1e6 * beta, rel=1e-3)
    for unit in (1e-6, 1e-9):
        assert tempered_weights(unit * returns, 0.4)[1] == pytest.approx(unit * beta, rel=1e-3)
    for below_greedy in (1e-3, 0.5, 0.99):
        assert tempered_weights(returns, np.log(20.0) - below_greedy)[2] == pytest.approx(np.log(20.0) - below_greedy)
    spread = returns.std(1).mean()
    greedy, least, most = tempered_weights(returns, 100.0)
    assert most <= np.log(20.0) + 1e-6 and greedy.max(1).min() > 0.99 and least == pytest.approx(1e-6 * spread)
    equal, largest, none = tempered_weights(returns, 1e-20)
    np.testing.assert_allclose(equal, 1.0 / 20.0, rtol=1e-4)
    assert largest == pytest.approx(1e6 * spread) and none == pytest.approx(0.0, abs=1e-9)
    same, *_ = tempered_weights(np.ones((2, 5)), 0.4)
    np.testing.assert_array_equal(same, np.full((2, 5), 0.2))
