"""The backward-forward pass: loops against numpy, both against the general LQR functions, and failures."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt import compilation, kernels, whitening
from sb3_dpi.trajopt.lqr import controller_kl, forward_marginals, lqr_backward
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost

Pass = Callable[..., kernels.PassResult]


def random_arguments(
    rng: np.random.Generator, n_conditions: int, horizon: int, dx: int, du: int, shift: float = 5.0
) -> list[np.ndarray]:
    shape = (n_conditions, horizon)
    F = rng.normal(size=(*shape, dx, dx + du)) / np.sqrt(dx)
    C = rng.normal(size=(*shape, dx + du, dx + du)) / np.sqrt(dx)
    return [
        F,
        rng.normal(size=(*shape, dx)),
        random_pd(rng, shape, dx),
        0.2 * (C + np.swapaxes(C, -1, -2)),
        rng.normal(size=(*shape, dx + du)),
        rng.normal(size=(n_conditions, dx)),
        random_pd(rng, (n_conditions,), dx),
        shift + rng.uniform(0.0, 1.0, shape) * 10.0 ** (horizon / 10),
    ]


def assert_same(first: kernels.PassResult, second: kernels.PassResult) -> None:
    np.testing.assert_array_equal(first[4], second[4])
    solved = first[4] < 0
    for one, two in zip(first[:4], second[:4], strict=True):
        np.testing.assert_allclose(one[solved], two[solved], rtol=1e-8, atol=1e-10)


def load_without_numba(monkeypatch: pytest.MonkeyPatch, module: ModuleType = kernels) -> ModuleType:
    monkeypatch.setattr(compilation, "COMPILED", False)
    spec = importlib.util.spec_from_file_location("without_numba", module.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["numpy", "loops", "plain loops"])
def lqr_pass(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pass:
    """The pass in numpy, in loops as they are used, and in the same loops as plain Python."""
    if request.param == "numpy":
        return kernels.pass_numpy
    module = kernels if request.param == "loops" else load_without_numba(monkeypatch)
    loops: Pass = module.pass_loops
    return loops


@pytest.mark.parametrize(("n_conditions", "horizon", "dx", "du"), [(1, 1, 1, 1), (3, 5, 4, 2), (2, 4, 2, 2), (2, 6, 7, 3)])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_loops_equal_numpy(
    n_conditions: int, horizon: int, dx: int, du: int, discount: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = random_arguments(np.random.default_rng(0), n_conditions, horizon, dx, du)
    result = kernels.pass_loops(*arguments, discount)
    assert_same(load_without_numba(monkeypatch).pass_loops(*arguments, discount), result)
    assert np.all(result[4] < 0)
    assert_same(kernels.pass_numpy(*arguments, discount), result)


def test_loops_equal_numpy_at_full_size() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        arguments = random_arguments(rng, 4, 20, 26, 7)
        assert_same(kernels.pass_numpy(*arguments, 0.99), kernels.pass_loops(*arguments, 0.99))


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_pass_is_the_lqr_of_the_penalised_cost(lqr_pass: Pass, discount: float) -> None:
    arguments = random_arguments(np.random.default_rng(2), 2, 6, 4, 2)
    F, f, noise, C, c, mean0, cov0, eta = arguments
    K, k, S, kl, _ = lqr_pass(*arguments, discount)
    # -log N(w; 0, I) costs eta per nat: LQR adds eta to Cww, and its entropy has the temperature eta
    shifted = C.copy()
    shifted[..., 4:, 4:] += eta[..., None, None] * np.eye(2)
    dynamics = LinearGaussianDynamics(F, f, noise)
    expected = lqr_backward(dynamics, QuadraticCost(shifted, c, np.zeros_like(eta)), discount).controller
    np.testing.assert_allclose(K, expected.K, rtol=1e-9)
    np.testing.assert_allclose(k, expected.k, rtol=1e-9)
    np.testing.assert_allclose(S, eta[..., None, None] * expected.cov, rtol=1e-9)
    controller = LinearGaussianController(K, k, S)
    reference = LinearGaussianController(0.0 * K, 0.0 * k, np.broadcast_to(np.eye(2), S.shape))
    marginals = forward_marginals(controller, dynamics, GaussianState(mean0, cov0))
    np.testing.assert_allclose(kl, controller_kl(controller, reference, marginals), rtol=1e-8)


def test_failures_name_the_time_step_and_spare_other_conditions(lqr_pass: Pass) -> None:
    arguments = random_arguments(np.random.default_rng(3), 4, 5, 3, 2)
    alone = [array[:1].copy() for array in arguments]
    arguments[3][1, 3, -1, -1] = -1e6
    arguments[3][2, 2] = np.inf
    arguments[3][3, 0, -1, -1] = -1e9
    result = lqr_pass(*arguments, 1.0)
    assert result[4].tolist() == [-1, 3, 2, 0]
    for mixed, single in zip(result[:4], lqr_pass(*alone, 1.0)[:4], strict=True):
        np.testing.assert_allclose(mixed[0], single[0], rtol=1e-12)


def test_overflow_of_the_state_is_not_hidden(lqr_pass: Pass) -> None:
    arguments = random_arguments(np.random.default_rng(4), 2, 8, 2, 1)
    arguments[0][1, :, :, :2] = 1e60 * np.eye(2)
    arguments[3][1], arguments[4][1, 1:] = 0.0, 0.0
    arguments[3][1, -1, 0, 2] = arguments[3][1, -1, 2, 0] = 1.0
    kl, failed = lqr_pass(*arguments, 1.0)[3:]
    assert np.isfinite(kl[0]).all() and failed[0] == -1
    assert failed[1] >= 0 or not np.isfinite(kl[1]).all()


def test_numpy_is_used_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load_without_numba(monkeypatch)
    assert not hasattr(alone.pass_loops, "py_func")
    arguments = random_arguments(np.random.default_rng(5), 2, 4, 3, 2)
    assert_same(alone.pass_numpy(*arguments, 0.9), alone.pass_loops(*arguments, 0.9))


@pytest.mark.parametrize("there", [True, False])
def test_loops_are_used_where_numba_is(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("pass_loops", "pass_numpy"):
        monkeypatch.setattr(kernels, name, lambda *_, name=name: used.append(name))
    monkeypatch.setattr(kernels, "compiles", lambda: there)
    kernels.lqr_pass(*[None] * 9)  # type: ignore[arg-type]
    assert used == ["pass_loops" if there else "pass_numpy"]


@pytest.mark.parametrize("name", ["pass_numpy", "pass_loops"])
def test_a_singular_curvature_has_no_minimiser(name: str) -> None:
    """Qww + eta I must be positive definite, not only semi-definite: here it is 1 - 1 at the second of three time steps."""
    arguments = random_arguments(np.random.default_rng(6), 2, 3, 1, 1)
    arguments[0][0, 1], arguments[3][0, 1], arguments[7][0, 1] = 0.0, [[0.0, 0.0], [0.0, -1.0]], 1.0
    assert getattr(kernels, name)(*arguments, 1.0)[4].tolist() == [1, -1]


@pytest.mark.parametrize("name", ["pass_numpy", "pass_loops"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_cost_does_not_matter(name: str, unit: float) -> None:
    arguments = random_arguments(np.random.default_rng(7), 2, 4, 3, 2)
    result = getattr(kernels, name)(*arguments, 0.9)
    for i in (3, 4, 7):
        arguments[i] = unit * arguments[i]
    assert_same(result, getattr(kernels, name)(*arguments, 0.9))


@pytest.mark.parametrize("n", range(1, 14))
def test_products_of_any_size(n: int) -> None:
    rng = np.random.default_rng(n)
    left, right, out = rng.normal(size=(2, n)), rng.normal(size=(n, 3)), rng.normal(size=(2, 3))
    kernels.multiply(left, right, out)
    np.testing.assert_allclose(out, left @ right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["loops", "plain loops"])
@pytest.mark.parametrize(("dx", "du"), [(1, 1), (4, 2), (5, 3), (7, 6)])
def test_whitening_loops_equal_numpy(dx: int, du: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(dx)
    shape, dz = (2, 3), dx + du
    given = [
        rng.normal(size=(*shape, dx, dz)),
        random_pd(rng, shape, dz),
        rng.normal(size=(*shape, dz)),
        rng.normal(size=(*shape, du, dx)),
        rng.normal(size=(*shape, du)),
        np.linalg.cholesky(random_pd(rng, shape, du)),
    ]
    loops = whitening if form == "loops" else load_without_numba(monkeypatch, whitening)
    for one, two in zip(loops.whiten_loops(*given), whitening.whiten_numpy(*given), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)
