"""How the KL-constrained LQR finds its dual variables: the problem in whitened coordinates, and the rules of the search."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from problems import pick, well_conditioned

from sb3_dpi.trajopt import per_step
from sb3_dpi.trajopt.kernels import PassResult
from sb3_dpi.trajopt.kl_lqr import KLConstraintError, _DualSearch, _start_per_step, solve_kl_constrained
from sb3_dpi.trajopt.whitened import WhitenedProblem


def searching(n_conditions: int, log_start: float | None = 0.0) -> _DualSearch:
    """A search among conditions, not begun."""
    problem = well_conditioned(np.random.default_rng(18), batch=(n_conditions,))
    whitened = WhitenedProblem.build(problem.dynamics, problem.cost, problem.reference, problem.initial, 1.0)
    start = None if log_start is None else np.full((n_conditions, 1), log_start)
    return _DualSearch(whitened, np.ones(n_conditions), start, 10)


@pytest.mark.parametrize(
    ("low", "high", "g_low", "g_high", "stride", "proposal"),
    [
        (0.0, 2.0, 1.0, -3.0, 0.25, 0.5),  # false position
        (1.0, 3.0, 1e-3, -1.0, 0.25, 1.04),  # not too near to the lower end
        (1.0, 3.0, 1.0, -1e-3, 0.25, 2.96),  # nor to the upper
        (1.0, 3.0, np.inf, -1.0, 0.25, 2.0),  # bisection where the lower end has no solution
        (1.0, 3.0, np.inf, -np.inf, 0.25, 2.0),
        (1.0, np.inf, 3.0, -np.inf, 0.25, 2.5),  # upwards by KL ~ eta^-2, no less than the stride
        (1.0, np.inf, 0.1, -np.inf, 0.25, 1.25),
        (1.0, np.inf, 900.0, -np.inf, 0.25, 51.0),
        (1.0, np.inf, np.inf, -np.inf, 4.0, 5.0),  # without a solution by the stride alone
        (1.0, np.inf, np.inf, -np.inf, 0.25, 1.25),
        (-np.inf, 1.0, np.inf, -4.0, 0.25, -1.0),  # downwards by the power law
        (-np.inf, 1.0, np.inf, -900.0, 0.25, -49.0),
        (-np.inf, 1.0, np.inf, -60.0, 50.0, -49.0),  # by no less than the stride
        (590.0, np.inf, np.inf, -np.inf, 50.0, 600.0),  # within what floats hold
        (-np.inf, -590.0, np.inf, -60.0, 50.0, -600.0),
    ],
)
def test_the_next_dual_variable(low: float, high: float, g_low: float, g_high: float, stride: float, proposal: float) -> None:
    search = searching(1)
    search.low[0], search.high[0], search.g_low[0], search.g_high[0], search.stride[0] = low, high, g_low, g_high, stride
    assert search._propose(np.array([0]))[0] == pytest.approx(proposal)


def test_an_end_that_stays_counts_half() -> None:
    """The Illinois rule: g of the end that was not moved, from the second time on."""
    search, which = searching(2), np.array([1])

    def narrow(log_eta: float, g: float) -> tuple[float, ...]:
        search.log_eta[1] = log_eta
        search._narrow(which, np.array([g]))
        return search.low[1], search.g_low[1], search.high[1], search.g_high[1], search.stride[1]

    assert narrow(4.0, -2.0) == (-np.inf, np.inf, 4.0, -2.0, 0.5)
    assert narrow(1.0, 3.0) == (1.0, 3.0, 4.0, -2.0, 1.0)
    assert narrow(2.0, 1.5) == (2.0, 1.5, 4.0, -1.0, 2.0)
    assert narrow(2.5, 1.0) == (2.5, 1.0, 4.0, -0.5, 4.0)
    assert narrow(3.5, -0.4) == (2.5, 1.0, 3.5, -0.4, 8.0)
    assert narrow(3.0, -0.2) == (2.5, 0.5, 3.0, -0.2, 16.0)
    for _ in range(3):
        search._narrow(which, np.array([0.0]))
    assert search.stride[1] == 50.0 and search.high[1] == 3.0 and search.low[1] == 2.5, (
        "a KL in the middle is one below the bound"
    )
    assert search.low[0] == -np.inf and search.stride[0] == 0.25, "the other condition is not touched"


def test_the_size_of_a_cost() -> None:
    """Its largest entry, whatever its sign, and the largest of its slope; one where there is none, or next to none."""
    problem, still = searching(4).problem, np.zeros((4, 1, 1, 1))
    still[:, 0, 0, 0] = -3.0, 2.0, 0.0, 1e-289
    sized = replace(
        problem, C=np.zeros_like(problem.C) + still, c=np.zeros_like(problem.c) + np.array([2.0, -1.5, 0, 0])[:, None, None]
    )
    np.testing.assert_array_equal(sized.scale(), [5.0, 3.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("K", "k", "C_xx", "c_x", "matters"),
    [
        (None, None, 0.0, 0.0, False),
        (-2.0, 0.0, 0.0, 0.0, True),
        (-2.0, 0.0, 2.0, 0.0, False),
        (0.0, 3.0, 0.0, 0.0, True),
        (0.0, 3.0, 0.0, -3.0, False),
    ],
)
def test_what_later_actions_make_of_a_state(K: float | None, k: float | None, C_xx: float, c_x: float, matters: bool) -> None:
    """Of two steps, x_1 = w_0 and cost x_1 w_1 + C_xx x_1^2 / 2 + c_x x_1: with w_1 = K x_1 + k, what is left of x_1."""
    F = np.zeros((1, 2, 1, 2))
    F[0, :, 0, 1] = 1.0
    C, c = np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2))
    C[0, 1], c[0, 1, 0] = [[C_xx, 1.0], [1.0, 0.0]], c_x
    still = np.zeros((1, 2, 1)), np.zeros((1, 2, 1, 1))
    problem = WhitenedProblem(F, *still, C, c, np.zeros((1, 1)), np.eye(1)[None], np.ones((1, 2, 1, 1)), 1.0)
    gains = None if K is None else np.full((1, 2, 1, 1), K)
    offsets = None if k is None else np.full((1, 2, 1), k)
    assert problem.action_matters(gains, offsets).tolist() == [[matters, True]]


def test_a_search_starts_high_above_the_cost() -> None:
    """Ten times the horizon times the largest entries of the cost; or where the caller says."""
    search = searching(2, None)
    problem = search.problem
    size = [np.abs(problem.C[m]).max() + np.abs(problem.c[m]).max() for m in range(2)]
    np.testing.assert_allclose(np.exp(search.log_eta), 10.0 * 7 * np.array(size))
    np.testing.assert_allclose(searching(2, 3.0).log_eta, 3.0)


def test_whitened_problem_is_the_same_problem() -> None:
    """Costs and successors of u = K x + k + L w, whose reference is standard normal."""
    rng = np.random.default_rng(19)
    problem = well_conditioned(rng, batch=(2,))
    whitened = WhitenedProblem.build(problem.dynamics, problem.cost, problem.reference, problem.initial, 0.9)
    x, w = rng.normal(size=4), rng.normal(size=2)
    for m, t in np.ndindex(2, 7):
        dynamics, cost, reference = (pick(part, m, t) for part in problem.parts[:3])
        u = reference.K @ x + reference.k + np.linalg.cholesky(reference.cov) @ w
        z, standard, zero = np.append(x, u), np.append(x, w), np.append(0.0 * x, reference.k)
        np.testing.assert_allclose(whitened.F[m, t] @ standard + whitened.f[m, t], dynamics.F @ z + dynamics.f)
        change = 0.5 * standard @ whitened.C[m, t] @ standard + whitened.c[m, t] @ standard
        at_zero = 0.5 * zero @ cost.C @ zero + cost.c @ zero
        np.testing.assert_allclose(change, 0.5 * z @ cost.C @ z + cost.c @ z - at_zero, rtol=1e-9)
        np.testing.assert_allclose(whitened.noise[m, t], dynamics.cov)
    assert whitened.select(np.arange(2)) is whitened
    np.testing.assert_array_equal(whitened.select(np.array([1])).C, whitened.C[1:])
    np.testing.assert_array_equal(whitened.select(np.array([1])).cov0, problem.initial.cov[1:])


@pytest.mark.parametrize("unit", [1e-40, 1.0, 1e40])
@pytest.mark.parametrize("seed", range(3))
def test_the_dual_variable_of_a_step_gives_its_kl(seed: int, unit: float) -> None:
    """KL(eta) = 1/2 sum_i (s_i - 1 - log s_i + m_i / (lambda_i + eta)^2), s_i = eta / (eta + lambda_i), from above."""
    rng = np.random.default_rng(seed)
    curvature = np.sort(rng.normal(size=(50, 3)) * 10.0 ** rng.uniform(-3, 3, (50, 1)), -1)
    moment, target = rng.uniform(size=(50, 3)) * 10.0 ** rng.uniform(-3, 3, (50, 1)), 10.0 ** rng.uniform(-3, 1, 50)
    curvature, moment = unit * curvature, unit**2 * moment
    eta = np.exp(per_step._solve_scalar(curvature, moment, target))[:, None]
    assert np.all(eta[:, 0] > np.maximum(0.0, -curvature[:, 0]))
    share = eta / (eta + curvature)
    kl = 0.5 * np.sum(share - 1.0 - np.log(share) + moment / (curvature + eta) ** 2, -1)
    assert np.all(kl <= target)
    np.testing.assert_allclose(kl, target, rtol=1e-2)


def test_distance_from_the_middle_of_the_interval() -> None:
    kl, bound = np.array([[0.95, 1.9, 7.0], [1.0, 1.8, np.nan]]), np.array([[1.0, 2.0, 4.0]] * 2)
    active = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(per_step._error(kl, bound, active, 0.1), [0.0, 0.05])
    active[1, 2] = True
    assert per_step._error(kl, bound, active, 0.1)[1] == np.inf


@pytest.mark.parametrize("max_passes", [1, 2, 3])
def test_passes_are_no_more_than_asked_for(max_passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But those that enforce the bound in the end."""
    search = searching(2)
    search.max_passes, search.bound = max_passes, np.full(2, 1e-7)
    evaluated, original = [], search._evaluate
    monkeypatch.setattr(search, "_evaluate", lambda which: evaluated.append(len(which)) or original(which))
    monkeypatch.setattr(search, "_settle", lambda which: None)
    assert search.run().n_passes == len(evaluated) == max_passes
    sweeps, sweep = [], per_step._sweep
    monkeypatch.setattr(per_step, "_sweep", lambda *arguments: sweeps.append(1) or sweep(*arguments))
    per_step.search_per_step(search.problem, np.full((2, 7), 1e-7), np.full((2, 7), 10.0), 0.1, max_passes)
    assert len(sweeps) == max_passes - 1, "the first pass is at the start"


def concave_at_first(dual: float) -> tuple[WhitenedProblem, np.ndarray]:
    """A problem whose only concave action is the first, and dual variables at which it has no solution."""
    problem = well_conditioned(np.random.default_rng(20), batch=(2,))
    C = problem.cost.C.copy()
    C[:, 0, 4:, 4:] -= 50.0 * np.eye(2)
    cost = replace(problem.cost, C=C)
    whitened = WhitenedProblem.build(problem.dynamics, cost, problem.reference, problem.initial, 1.0)
    assert whitened.run(np.full((2, 7), dual))[4].tolist() == [0, 0]
    return whitened, np.full((2, 7), np.log(dual))


def test_a_first_step_without_a_minimiser_is_recovered_from() -> None:
    problem, log_eta = concave_at_first(0.1)
    search = _DualSearch(problem, np.ones(2), log_eta, 100)
    found = search.run()
    assert found.converged.all() and found.n_recoveries > 0
    np.testing.assert_array_less(found.kl.sum(-1), 1.0)
    search = _DualSearch(problem, np.ones(2), log_eta, 100)
    assert search._evaluate(np.arange(2)).tolist() == [np.inf, np.inf]
    assert search.failed_at.tolist() == [0, 0] and search.n_recoveries == 2 and search.n_passes == 1


def test_dual_variables_grow_until_every_bound_holds() -> None:
    problem, log_eta = concave_at_first(0.1)
    bound = np.full((2, 7), 0.05)
    grown, result, n_passes = per_step._enforce(problem, bound, log_eta)
    assert (result[4] < 0).all() and np.all(result[3] <= bound) and n_passes > 1
    # all of a condition by the same factor, whose steps double from a thousandth on
    np.testing.assert_allclose(grown - log_eta, (grown - log_eta)[:, :1].repeat(7, 1))
    steps = 1e-3 * (2.0 ** np.arange(30) - 1.0)
    assert np.all(np.min(np.abs((grown - log_eta)[:, :1] - steps), -1) < 1e-12)
    assert (per_step._enforce(problem, np.full((2, 7), 1e12), log_eta)[1][4] < 0).all(), "nor is there no solution"
    again, _, n_passes = per_step._enforce(problem, bound, grown)
    np.testing.assert_array_equal(again, grown)
    assert n_passes == 1


def test_the_error_says_when_passes_ran_out() -> None:
    """Where every pass was sound and above the bound, more of them would help, and nothing has failed."""
    problem = well_conditioned(np.random.default_rng(13))
    with pytest.raises(KLConstraintError, match=r"1 passes found no dual variable .* raise max_passes") as caught:
        solve_kl_constrained(*problem.parts, 1e-9, eta=1e-6, max_passes=1)
    assert (caught.value.condition, caught.value.time_step) == (0, 0)
    assert solve_kl_constrained(*problem.parts, 1e-9, eta=1e-6).converged


@pytest.mark.parametrize(("failed_at", "step"), [(-1, 0), (0, 0), (5, 5)])
def test_the_error_names_where_no_dual_variable_helps(failed_at: int, step: int) -> None:
    search = searching(3)
    search.high[:] = 1.0
    search.high[1], search.failed_at[1] = np.inf, failed_at
    with pytest.raises(KLConstraintError, match=f"in condition 1 \\(failed at time step {step}\\)") as caught:
        search._settle(np.arange(3))
    assert (caught.value.condition, caught.value.time_step) == (1, step)


def test_a_search_that_starts_at_the_solution_sweeps_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, bound = searching(2).problem, np.full((2, 7), 0.1)
    found = per_step.search_per_step(problem, bound, np.full((2, 7), 10.0), 0.1, 100)
    assert found.converged.all() and found.n_passes > 2
    monkeypatch.setattr(per_step, "_sweep", None)
    again = per_step.search_per_step(problem, bound, found.eta, 0.1, 100)
    assert again.converged.all() and again.n_passes == 2, "one to see it, one to hand it out"
    np.testing.assert_allclose(again.eta, found.eta)


def test_a_condition_within_its_bounds_stays_where_it_is() -> None:
    problem, log_eta = concave_at_first(0.1)
    log_eta[0] = 12.0
    grown, _, _ = per_step._enforce(problem, np.full((2, 7), 0.05), log_eta)
    np.testing.assert_array_equal(grown[0], 12.0)
    assert np.all(grown[1] > log_eta[1])


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    kl_of: Callable[[float], Sequence[float]],
    failed_of: Callable[[float], int] = lambda _: -1,
) -> None:
    """Let passes of problems of one condition give these KLs at each dual variable, and fail there."""

    def run(self: WhitenedProblem, eta: np.ndarray, conditions: np.ndarray | None = None) -> PassResult:
        T, dx, du = self.horizon, self.mean0.shape[-1], self.lower.shape[-1]
        gains = np.zeros((1, T, du, dx)), np.zeros((1, T, du)), np.zeros((1, T, du, du))
        return *gains, np.array([kl_of(float(eta[0]))]), np.array([failed_of(float(eta[0]))])

    monkeypatch.setattr(WhitenedProblem, "run", run)


@pytest.mark.parametrize("log_jump", [-300.0, 0.0, 300.0])
def test_a_jump_over_the_tolerance_is_found_to_rounding(log_jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends above it, where the bound holds, and not only when it may pass no more."""
    pretend(monkeypatch, lambda eta: [2.0 if eta < np.exp(log_jump) else 0.01] * 7)
    search = searching(1, log_jump + 1.0)
    search.max_passes = 200
    found = search.run()
    assert not found.converged[0] and found.kl.sum() == pytest.approx(0.07) and found.n_passes < 100
    assert 0.0 <= search.log_eta[0] - log_jump <= 2e-14 * max(1.0, abs(log_jump))


def test_no_kl_is_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cancellation leaves one, the sum is no KL either, and the dual variable grows until there is none."""
    pretend(monkeypatch, lambda eta: [1.95, -1.0, 0, 0, 0, 0, 0] if eta < 2.0 else [0.95, 0, 0, 0, 0, 0, 0])
    found = searching(1).run()
    assert found.converged[0] and found.kl.min() == 0.0 and found.eta[0] >= 2.0


@pytest.mark.parametrize(
    ("kl", "failed", "step"),
    [
        ([0.1, 0.1, np.inf, np.nan, 0.1, 0.1, 0.1], -1, 2),
        ([0.1, 0.1, 0.1, np.nan, np.nan, np.nan, np.nan], 0, 0),
        ([np.nan] * 7, 4, 4),
    ],
)
def test_a_failed_pass_is_blamed_on_its_time_step(
    kl: list[float], failed: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no minimiser; where there was one at all of them, the first whose KL is no number."""
    pretend(monkeypatch, lambda _: kl, lambda _: failed)
    with pytest.raises(KLConstraintError, match=f"failed at time step {step}") as caught:
        searching(1).run()
    assert caught.value.time_step == step


def test_whether_actions_matter_is_asked_once_and_only_where_the_kl_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long as a pass."""
    asked, original = [], WhitenedProblem.action_matters
    monkeypatch.setattr(WhitenedProblem, "action_matters", lambda self: asked.append(1) or original(self))
    search, far = searching(1, None), searching(1, 100.0)
    search.max_passes = far.max_passes = 50
    assert search.run().converged.all() and not asked
    assert far.run().converged.all() and asked == [1], "though the KL is next to nothing in several passes"
    idle = np.where(np.arange(6) < 4, 1.0, 0.0)
    F, C, c = search.problem.F * idle, search.problem.C * idle * idle[:, None], search.problem.c * idle
    found = _DualSearch(replace(search.problem, F=F, C=C, c=c), np.ones(1), None, 50).run()
    assert not found.active[0] and found.converged[0] and found.n_passes == 1 and asked == [1, 1]


@pytest.mark.parametrize("kl, vanishes", [(0.9e-10, True), (1.1e-10, False)])
def test_a_kl_vanishes_below_a_ten_billionth_of_its_bound(kl: float, vanishes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its target, that is, in the middle of the interval that will do."""
    pretend(monkeypatch, lambda eta: [0.95 * (kl if eta > 1e-6 else 1.0), 0, 0, 0, 0, 0, 0])
    asked: list[int] = []
    monkeypatch.setattr(WhitenedProblem, "action_matters", lambda self: asked.append(1) or np.ones((1, 7), dtype=bool))
    assert searching(1).run().converged.all() and asked == [1] * vanishes


def test_a_start_for_every_step_is_taken_where_it_has_a_solution() -> None:
    """Other conditions start at the dual variable of the total bound."""
    problem, failing = concave_at_first(0.1)
    log_start = failing.copy()
    log_start[1] = 12.0
    bound = np.full((2, 7), 0.05)
    eta, _, n_recoveries = _start_per_step(problem, bound, log_start, 100)
    assert n_recoveries > 0
    np.testing.assert_array_equal(eta[1], np.exp(12.0))
    np.testing.assert_allclose(eta[0], _DualSearch(problem, bound.sum(-1), log_start, 100).run().eta[0])
    assert problem.run(eta)[4].tolist() == [-1, -1]


@pytest.mark.parametrize("push, matters", [(1e-8, False), (1e-6, True)])
def test_what_drowns_in_the_rounding_of_a_value_does_not_matter(push: float, matters: bool) -> None:
    """x_1 = 1e6 x_0 + 1e6 + push w_0 of cost x_1^2 / 2: the cost-to-go has entries of 1e12, and the action moves it by 1e6
    times ``push``. Units of the cost do not count."""
    F, f, C = np.zeros((1, 2, 1, 2)), np.zeros((1, 2, 1)), np.zeros((1, 2, 2, 2))
    F[0, 0, 0], f[0, 0], C[0, 1, 0, 0] = [1e6, push], 1e6, 1.0
    rest = np.zeros((1, 2, 1, 1)), C, np.zeros((1, 2, 2)), np.zeros((1, 1)), np.eye(1)[None], np.ones((1, 2, 1, 1)), 1.0
    problem = WhitenedProblem(F, f, *rest)
    for unit in (1e-20, 1.0, 1e20):
        assert problem.in_units_of(np.array([unit])).action_matters().tolist() == [[matters, False]]
