"""The KL-constrained LQR with a bound on every time step: bounds of every size, starts, and steps that lead nowhere."""

import numpy as np
import pytest
from problems import Problem, well_conditioned
from test_kl_lqr import TOLERANCE, indefinite, recomputed_kl

from sb3_dpi.trajopt.kernels import PassResult
from sb3_dpi.trajopt.kl_lqr import solve_kl_constrained
from sb3_dpi.trajopt.per_step import search_per_step
from sb3_dpi.trajopt.whitened import WhitenedProblem


@pytest.mark.parametrize("bound", [1e-3, 1.0, 10.0])
def test_bounds_of_every_size_are_met(bound: float) -> None:
    """Where the cost is convex eta nears zero as the bound grows, where it is not the edge of what can be solved."""
    bounds = bound * np.array([[1.0, 0.5, 2.0]])
    for problem in (well_conditioned(np.random.default_rng(1), batch=(1,), horizon=3), indefinite(1, horizon=3)):
        check_bounds(problem, bounds, None)


@pytest.mark.parametrize("bound", [1e-3, 1.0, 1e3, 1e7])
def test_a_single_step_comes_as_near_to_the_edge_as_it_may(bound: float) -> None:
    check_bounds(indefinite(1, horizon=1), np.full((1, 1), bound), np.full((1, 1), 100.0))


def check_bounds(problem: Problem, bounds: np.ndarray, eta: np.ndarray | None) -> None:
    solution = solve_kl_constrained(*problem.parts, bounds, eta=eta, per_time_step=True)
    ratio = recomputed_kl(problem, solution.controller) / bounds
    assert solution.converged.all()
    assert ratio.min() >= 0.9 - TOLERANCE and ratio.max() <= 1.0 + TOLERANCE


def test_a_start_that_nearly_fits_is_brought_within_the_tolerance() -> None:
    """And where no pass is left for that it is not said to be."""
    problem = indefinite(6)
    found = solve_kl_constrained(*problem.parts, 0.1, per_time_step=True)
    start = found.eta * np.sqrt(found.kl / 0.085)  # for KL falls with the square of eta
    solutions = [
        solve_kl_constrained(*problem.parts, 0.1, eta=start, per_time_step=True, max_passes=n_passes) for n_passes in (1, 50)
    ]
    assert np.all((solutions[0].kl > 0.08) & (solutions[0].kl < 0.09)) and not solutions[0].converged.any()
    assert solutions[1].kl.min() >= 0.09 and solutions[1].kl.max() <= 0.1 and solutions[1].converged.all()


@pytest.mark.parametrize("failed_at", [0, 6, None])
def test_a_step_that_leads_nowhere_is_taken_back(failed_at: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was not solvable or made all far worse: shorter ones follow from where it began, to a fiftieth, 30 in all."""
    problem, bound, tried = WhitenedProblem.build(*indefinite(6).parts, 1.0), np.full((1, 7), 0.1), []
    original, start = WhitenedProblem.run, np.full((1, 7), 60.0)

    def failing(self: WhitenedProblem, eta: np.ndarray) -> PassResult:
        K, k, S, kl, failed = original(self, eta)
        tried.append(np.log(eta))
        if not 2 <= len(tried) <= 31:
            return K, k, S, kl, failed
        if failed_at is None:
            return K, k, S, 100.0 * bound, failed
        return np.zeros_like(K), k, S, 0.95 * bound, np.full(1, failed_at)

    monkeypatch.setattr(WhitenedProblem, "run", failing)
    solution = search_per_step(problem, bound, start, 0.1, 200)
    steps = np.array(tried)[1:31] - tried[0]
    shares = np.maximum(0.5 ** np.arange(30.0), 0.02)
    np.testing.assert_allclose(steps, shares[:, None, None] * steps[0], rtol=1e-9)
    np.testing.assert_allclose(solution.eta, start)
    assert solution.n_passes == 32 and solution.n_recoveries == (0 if failed_at is None else 30)
    assert np.all(solution.kl < 0.09) and not solution.converged.any()
