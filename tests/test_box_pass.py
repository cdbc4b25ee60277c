"""The backward pass within limits: loops against numpy, the quadratic programme against its optimality conditions."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt import box_pass
from sb3_dpi.trajopt.lqr import lqr_backward
from sb3_dpi.trajopt.types import LinearGaussianDynamics, QuadraticCost


def minimum_loops(H: np.ndarray, g: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    du = len(g)
    k, index, free = np.zeros(du), np.zeros(du, dtype=np.int64), np.zeros(du, dtype=bool)
    n = box_pass.box_minimum_loops(H, g, low, high, k, index, np.zeros((du, du)))
    free[index[: max(n, 0)]] = True
    return None if n < 0 else (k, free)


def arguments(rng: np.random.Generator, T: int, dx: int, du: int, limit: float, bends: bool) -> list[np.ndarray]:
    dz = dx + du
    second = 0.1 * rng.normal(size=(T if bends else 0, dx, dz, dz))
    return [
        rng.normal(size=(T, dx, dz)) / np.sqrt(dx),
        random_pd(rng, (T,), dz) + 2.0 * np.eye(dz),
        rng.normal(size=(T, dz)),
        random_pd(rng, (), dx),
        rng.normal(size=dx),
        second + np.swapaxes(second, -1, -2),
        -limit * rng.uniform(0.5, 1.0, (T, du)),
        limit * rng.uniform(0.5, 1.0, (T, du)),
    ]


@pytest.mark.parametrize("minimum", [box_pass.box_minimum_numpy, minimum_loops])
@pytest.mark.parametrize("du", [1, 2, 5])
def test_the_quadratic_programme(minimum: object, du: int) -> None:
    """The minimiser is the best of those of all 3^du ways to hold or free each entry."""
    rng = np.random.default_rng(du)
    for _ in range(20):
        H, g = random_pd(rng, (), du), 2.0 * rng.normal(size=du)
        middle = rng.choice([0.0, 1.0]) * rng.normal(size=du)  # nothing says that zero is within
        low, high = middle - rng.uniform(0.0, 1.0, du), middle + rng.uniform(0.0, 1.0, du)
        k, free = minimum(H, g, low, high)  # type: ignore[operator]
        slope, best = g + H @ k, np.inf
        assert np.all((low <= k) & (k <= high))
        np.testing.assert_allclose(slope[free], 0.0, atol=1e-10)
        assert np.all(np.where(k == low, slope > 0, slope < 0)[~free])
        for held in itertools.product([-1, 0, 1], repeat=du):
            other, loose = np.where(np.array(held) < 0, low, high), np.array(held) == 0
            other[loose] = np.linalg.solve(H[np.ix_(loose, loose)], -(g + H[:, ~loose] @ other[~loose])[loose])
            if np.all((low <= other) & (other <= high)):
                best = min(best, other @ (0.5 * H @ other + g))
        assert k @ (0.5 * H @ k + g) == pytest.approx(best, abs=1e-12)
    for H in (-np.eye(du), np.zeros((du, du))):
        assert minimum(H, np.ones(du), low - 9.0, high + 9.0) is None  # type: ignore[operator]


@pytest.mark.parametrize("minimum", [box_pass.box_minimum_numpy, minimum_loops])
@pytest.mark.parametrize("smallest", [1e-4, 1e-8])
def test_the_quadratic_programme_in_a_valley(minimum: object, smallest: float) -> None:
    """Drawn are the minimum, which entries a limit holds, and the slopes there: steps along a narrow valley find them."""
    rng = np.random.default_rng(2)
    for _ in range(100):
        du = int(rng.integers(2, 9))
        basis = np.linalg.qr(rng.normal(size=(du, du)))[0]
        H = (basis * np.geomspace(smallest, 1.0, du)) @ basis.T
        best, side = rng.normal(size=du), rng.integers(-1, 2, du)
        low = np.where(side < 0, best, best - rng.uniform(0.1, 1.0, du))
        high = np.where(side > 0, best, best + rng.uniform(0.1, 1.0, du))
        g = -H @ best - 0.01 * side * rng.uniform(0.1, 1.0, du)
        k, free = minimum(0.5 * (H + H.T), g, low, high)  # type: ignore[operator]
        np.testing.assert_allclose(k, best, atol=1e-14 / smallest)
        np.testing.assert_array_equal(free, side == 0)


@pytest.mark.parametrize(("T", "dx", "du"), [(1, 1, 1), (6, 4, 2), (5, 7, 3)])
@pytest.mark.parametrize("limit", [0.2, np.inf])
@pytest.mark.parametrize("bends", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_loops_are_the_numpy_pass(T: int, dx: int, du: int, limit: float, bends: bool, shift: float) -> None:
    given = arguments(np.random.default_rng(T), T, dx, du, limit, bends)
    loops, plain = box_pass.box_pass_loops(*given, shift), box_pass.box_pass_numpy(*given, shift)
    assert loops[4] == plain[4] == -1
    for one, two in zip(loops[:4], plain[:4], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-11)
    held = (plain[1] <= given[6]) | (plain[1] >= given[7])
    assert (T == 1 or held.any() == np.isfinite(limit)) and not np.any(plain[0][held])


@pytest.mark.parametrize("one_pass", [box_pass.box_pass_numpy, box_pass.box_pass_loops])
def test_the_unit_of_cost_does_not_matter(one_pass: Callable[..., box_pass.BoxResult]) -> None:
    F, C, c, V, v, second, low, high = arguments(np.random.default_rng(3), 6, 4, 2, 0.5, True)
    K, k, d, size, _ = one_pass(F, C, c, V, v, second, low, high, 0.1)
    unit = 2.0**-30
    scaled = one_pass(F, unit * C, unit * c, unit * V, unit * v, second, low, high, unit * 0.1)
    np.testing.assert_array_equal(scaled[0], K)
    np.testing.assert_array_equal(scaled[1], k)
    np.testing.assert_array_equal(scaled[2], unit * d)
    assert scaled[3] == unit * size and size >= C[-1, 4:, 4:].diagonal().max()


def test_without_limits_it_is_riccati() -> None:
    T, dx, du = 6, 4, 2
    F, C, c, V, v, second, low, high = arguments(np.random.default_rng(0), T, dx, du, np.inf, False)
    end = np.zeros((1, dx + du, dx + du)) + np.eye(dx + du)
    end[0, :dx, :dx] = V
    still = LinearGaussianDynamics(
        np.concatenate([F, np.zeros((1, dx, dx + du))]), np.zeros((T + 1, dx)), np.zeros((T + 1, dx, dx))
    )
    cost = QuadraticCost(np.concatenate([C, end]), np.concatenate([c, [np.append(v, np.zeros(du))]]), np.zeros(T + 1))
    wanted = lqr_backward(still, cost).controller
    for one_pass in (box_pass.box_pass_numpy, box_pass.box_pass_loops):
        K, k, *_ = one_pass(F, C, c, V, v, second, low, high, 0.0)
        np.testing.assert_allclose(K, wanted.K[:T], rtol=1e-9)
        np.testing.assert_allclose(k, wanted.k[:T], rtol=1e-9)


@pytest.mark.parametrize("one_pass", [box_pass.box_pass_numpy, box_pass.box_pass_loops])
def test_where_it_fails(one_pass: Callable[..., box_pass.BoxResult]) -> None:
    given = arguments(np.random.default_rng(0), 6, 4, 2, np.inf, False)
    given[1][3, 4:, 4:] -= 1e3 * np.eye(2)
    assert one_pass(*given, 0.0)[4] == 3
    assert one_pass(*given, 2e3)[4] == -1
    given[4][0] = np.nan
    given[3][0, 0] = np.nan
    assert one_pass(*given, 0.0)[4] == 5
