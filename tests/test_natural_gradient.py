"""The natural-gradient step against closed forms, its bound on the KL, and what it leaves alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dpi.common.natural_gradient import (
    DEFAULT_DAMPING,
    NaturalGradientStep,
    mean_eigenvalue,
    natural_gradient_step,
)

pytestmark = pytest.mark.usefixtures("seeded")
Function = Callable[[], th.Tensor]


class Toy:
    """Objective and KL of one vector of parameters: linear and quadratic unless a test says otherwise."""

    def __init__(self, seed: int = 0, size: int = 6, dtype: th.dtype = th.float64) -> None:
        generator = th.Generator().manual_seed(seed)
        root = th.randn(size, size, generator=generator, dtype=th.float64) / size**0.5
        self.fisher = (root @ root.T + 0.2 * th.eye(size, dtype=th.float64)).to(dtype)
        self.gradient = th.randn(size, generator=generator, dtype=th.float64).to(dtype)
        self.parameter = th.nn.Parameter(th.randn(size, generator=generator, dtype=th.float64).to(dtype))
        self.old = self.parameter.detach().clone()

    @property
    def moved(self) -> th.Tensor:
        return self.parameter - self.old

    def objective(self) -> th.Tensor:
        return self.gradient @ self.parameter

    def kl(self) -> th.Tensor:
        return 0.5 * self.moved @ self.fisher @ self.moved

    def solution(self, target_kl: float, damping: float) -> th.Tensor:
        direction = th.linalg.solve(self.fisher + damping * th.eye(len(self.old), dtype=self.old.dtype), self.gradient)
        return direction * th.sqrt(2.0 * target_kl / (self.gradient @ direction))


def bits(parameters: Any) -> list[bytes]:
    """Equal only where every bit is, the sign of a zero included."""
    return [parameter.detach().numpy().tobytes() for parameter in parameters]


def counted(function: Function) -> tuple[Function, list[float]]:
    """The function, and a record of what it returned."""
    record: list[float] = []

    def call() -> th.Tensor:
        value = function()
        record.append(float(value.detach()))
        return value

    return call, record


def close(actual: th.Tensor, expected: th.Tensor, **tolerances: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), **tolerances)


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damping", [1e-6, 1e-3, 0.3])
@pytest.mark.parametrize("target_kl", [0.003, 0.1, 10.0])
def test_step_is_that_of_the_linear_quadratic_problem(seed: int, damping: float, target_kl: float) -> None:
    toy = Toy(seed)
    step = natural_gradient_step([toy.parameter], toy.objective, toy.kl, target_kl, cg_damping=damping)
    expected = toy.solution(target_kl, damping)
    close(toy.moved, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert step.accepted and step.n_trials == 1
    assert step.kl == pytest.approx(float(0.5 * expected @ toy.fisher @ expected), rel=1e-4)
    assert step.improvement == pytest.approx(float(toy.gradient @ expected), rel=1e-4)
    assert step.predicted == pytest.approx(step.improvement, rel=1e-9)


def test_a_linear_objective_uses_up_the_bound() -> None:
    """No step within the bound gains more; damping only makes it shorter."""
    shares = []
    for damping in (1e-6, 1e-3, 1e-1, 10.0):
        toy = Toy()
        step = natural_gradient_step([toy.parameter], toy.objective, toy.kl, 0.05, cg_damping=damping)
        shares.append(step.kl / 0.05)
        best = float(toy.gradient @ toy.solution(0.05, 0.0))
        assert 0.0 < step.improvement <= best * (1.0 + 1e-6)
    assert shares == sorted(shares, reverse=True)
    assert 1.0 - 1e-4 < shares[0] <= 1.0 and 0.99 < shares[1] and shares[3] < 0.5


def test_damping_leads_from_the_natural_gradient_to_the_plain_one() -> None:
    def cosine(damping: float, direction: th.Tensor) -> float:
        toy = Toy(3)
        natural_gradient_step([toy.parameter], toy.objective, toy.kl, 0.05, cg_damping=damping)
        return float(th.cosine_similarity(toy.moved, direction, dim=0).detach())

    toy = Toy(3)
    natural = th.linalg.solve(toy.fisher, toy.gradient)
    assert float(th.cosine_similarity(natural, toy.gradient, dim=0)) < 0.95
    assert cosine(1e-6, natural) == pytest.approx(1.0, abs=1e-6)
    assert cosine(1e4, toy.gradient) == pytest.approx(1.0, abs=1e-6)


def test_few_conjugate_gradient_steps() -> None:
    """One is steepest ascent, as many as there are parameters are exact; with each the prediction rises."""
    gains = []
    for cg_max_steps in range(1, 7):
        toy = Toy(2)
        step = natural_gradient_step([toy.parameter], toy.objective, toy.kl, 0.05, cg_max_steps=cg_max_steps, cg_damping=1e-6)
        assert step.kl <= 0.05
        if cg_max_steps == 1:
            assert float(th.cosine_similarity(toy.moved, toy.gradient, dim=0).detach()) == pytest.approx(1.0, abs=1e-3)
        gains.append(step.improvement if step.n_trials == 1 else step.improvement * (0.05 / step.kl) ** 0.5)
    assert np.all(np.diff(gains) > -1e-3 * gains[-1])
    assert gains[0] < 0.95 * gains[-1]


@pytest.mark.parametrize("seed", range(3))
def test_linear_gaussian_policy(seed: int) -> None:
    """pi = N(W x + b, sigma^2): the Fisher matrix is that of least squares, over several parameters of several shapes."""
    generator = th.Generator().manual_seed(seed)
    x = th.randn(40, 3, generator=generator, dtype=th.float64) * th.tensor([1.0, 5.0, 0.2], dtype=th.float64)
    advantage_slopes = th.randn(40, 2, generator=generator, dtype=th.float64)
    std = th.tensor([0.5, 2.0], dtype=th.float64)
    network = th.nn.Linear(3, 2, dtype=th.float64)
    with th.no_grad():
        old = network(x)
    before = [parameter.detach().clone() for parameter in network.parameters()]

    def kl() -> th.Tensor:
        return (0.5 * ((network(x) - old) / std) ** 2).sum(1).mean()

    step = natural_gradient_step(
        network.parameters(), lambda: (advantage_slopes * network(x)).sum(1).mean(), kl, 0.02, cg_max_steps=30, cg_damping=1e-8
    )
    inputs = th.cat([x, th.ones(40, 1, dtype=th.float64)], 1)
    # per action: F = X'X / (n sigma^2), g = X'a / n
    directions = (th.linalg.lstsq(inputs, advantage_slopes).solution * std**2).T
    slope = (advantage_slopes * (inputs @ directions.T)).sum(1).mean()
    expected = directions * th.sqrt(2.0 * 0.02 / slope)
    moved = [parameter - values for parameter, values in zip(network.parameters(), before, strict=True)]
    close(moved[0], expected[:, :3], rtol=1e-3, atol=1e-5)
    close(moved[1], expected[:, 3], rtol=1e-3, atol=1e-5)
    assert step.kl == pytest.approx(0.02, rel=1e-3) and step.kl <= 0.02


# ---------------------------------------------------------------------- line search


def test_steps_shrink_until_the_objective_rises() -> None:
    """L = d - c d^2 / 2 gains only on d < 2 / c; the first step, of length sqrt(2 target_kl), is much longer."""
    parameter = th.nn.Parameter(th.zeros(1, dtype=th.float64))
    full, curvature = math.sqrt(2.0 * 0.02), 25.0

    def objective() -> th.Tensor:
        return (parameter - 0.5 * curvature * parameter**2).sum()

    step = natural_gradient_step(
        [parameter], objective, lambda: 0.5 * (parameter**2).sum(), 0.02, cg_damping=1e-12, line_search_shrinking_factor=0.7
    )
    n_shrunk = math.ceil(math.log(2.0 / curvature / full) / math.log(0.7))
    assert n_shrunk >= 2 and step.accepted and step.n_trials == n_shrunk + 1
    length = float(parameter.detach())
    assert length == pytest.approx(full * 0.7**n_shrunk, rel=1e-6)
    assert step.predicted == pytest.approx(length, rel=1e-9)
    assert step.improvement == pytest.approx(length - 0.5 * curvature * length**2, rel=1e-9)
    assert step.kl == pytest.approx(0.5 * length**2, rel=1e-9)


@pytest.mark.parametrize("quartic", [1.0, 100.0, 1e4, 1e8])
def test_a_kl_that_is_not_quadratic_holds(quartic: float) -> None:
    """However wrong the Fisher matrix is far from the old policy, a few steps suffice: the KL says how much too long."""
    toy = Toy(3)

    def kl() -> th.Tensor:
        return toy.kl() + quartic * toy.kl() ** 2

    step = natural_gradient_step([toy.parameter], toy.objective, kl, 0.05)
    assert step.accepted and 1 < step.n_trials <= 4
    assert 0.0 < step.kl <= 0.05
    assert step.kl == float(kl().detach())
    assert step.improvement == pytest.approx(float((toy.objective() - toy.gradient @ toy.old).detach()), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_of_curved_problems(seed: int) -> None:
    """Whatever the curvature: within the bound and better, or as before."""
    generator = th.Generator().manual_seed(seed)
    x, targets = (th.randn(30, n, generator=generator) for n in (4, 2))
    th.manual_seed(seed)
    network = th.nn.Sequential(th.nn.Linear(4, 8), th.nn.Tanh(), th.nn.Linear(8, 2))
    log_std = th.nn.Parameter(th.randn(2, generator=generator) - 1.0)
    parameters = [*network.parameters(), log_std]
    with th.no_grad():
        old_mean, old_log_std = network(x), log_std.clone()

    def objective() -> th.Tensor:
        return -(((network(x) - targets) ** 2).sum(1).mean() + (2.0 * log_std).exp().sum())

    def kl() -> th.Tensor:
        return gaussian_kl(old_mean, old_log_std, network(x), log_std)

    first, before = bits(parameters), float(objective().detach())
    target_kl = 10.0 ** float(-3.0 * th.rand((), generator=generator))
    step = natural_gradient_step(parameters, objective, kl, target_kl)
    assert step.accepted == (bits(parameters) != first)
    assert step.accepted, "all of these can be improved"
    assert step.kl == pytest.approx(float(kl().detach()), rel=1e-5) and 0.0 < step.kl <= target_kl
    assert step.improvement == pytest.approx(float(objective().detach()) - before, rel=1e-4) and step.improvement > 0.0


def gaussian_kl(old_mean: th.Tensor, old_log_std: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    old, new = (
        th.distributions.Normal(where, spread.exp().expand_as(where))
        for where, spread in ((old_mean, old_log_std), (mean, log_std))
    )
    return th.distributions.kl_divergence(old, new).sum(1).mean()


AWKWARD = th.tensor([1.0 / 3.0, -0.0, 1e-30, -7.7e8, math.pi, 0.1])
"""Values that come back wrong from adding and taking away"""


def refuse(**changes: Any) -> tuple[NaturalGradientStep, list[float]]:
    """A step from ``AWKWARD`` that must be refused, and the KLs that were asked for."""
    toy = Toy(4, dtype=th.float32)
    with th.no_grad():
        toy.parameter.copy_(AWKWARD)
    toy.old = AWKWARD.clone()
    functions = {"objective": toy.objective, "kl": toy.kl}
    for name, change in changes.items():
        if name in functions:
            functions[name] = lambda change=change: change(toy)
    kl, record = counted(functions["kl"])
    other = th.nn.Parameter(th.tensor([[0.1], [-0.0]]))
    options = {name: value for name, value in changes.items() if name not in functions}
    first, identity = bits([toy.parameter, other]), toy.parameter.data_ptr()
    options.setdefault("target_kl", 0.01)
    step = natural_gradient_step([toy.parameter, other], functions["objective"], kl, **options)
    assert bits([toy.parameter, other]) == first and toy.parameter.data_ptr() == identity
    assert not step.accepted and (step.kl, step.improvement, step.predicted) == (0.0, 0.0, 0.0)
    return step, record


@pytest.mark.parametrize("trials", [0, 1, 10])
def test_a_failed_line_search_changes_no_bit(trials: int) -> None:
    """The gradient points uphill, but no step of those tried gains anything."""
    step, record = refuse(
        objective=lambda toy: toy.gradient @ toy.moved - 1e9 * (toy.moved**2).sum(), line_search_max_iter=trials
    )
    assert step.n_trials == trials and len(record) == 1 + trials


def test_a_step_without_improvement_is_refused() -> None:
    """Not even an equal objective will do."""
    step, _ = refuse(objective=lambda toy: (toy.gradient @ toy.moved) * (toy.moved == 0.0).all())
    assert step.n_trials == 10


def test_a_kl_that_never_holds_is_refused() -> None:
    """Steps get shorter all the same."""
    step, record = refuse(kl=lambda toy: toy.kl() + (toy.moved != 0.0).any())
    assert step.n_trials == 10 and max(record) > 1.0


def test_nan_on_the_way_is_refused() -> None:
    for name, spoilt in (
        ("kl", lambda toy: toy.kl() * th.where((toy.moved != 0.0).any(), math.nan, 1.0)),
        ("objective", lambda toy: toy.objective() * th.where((toy.moved != 0.0).any(), math.nan, 1.0)),
    ):
        step, _ = refuse(**{name: spoilt})
        assert step.n_trials == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
def test_a_useless_gradient_is_refused_at_once(bad: float) -> None:
    """No step, and no KL either."""
    step, record = refuse(objective=lambda toy: bad * toy.parameter[:2].sum())
    assert step.n_trials == 0 and not record


@pytest.mark.parametrize("bound", [0.0, -0.01])
def test_a_bound_that_allows_nothing_changes_nothing(bound: float) -> None:
    step, record = refuse(target_kl=bound)
    assert step.n_trials == 0 and not record


def test_one_bad_entry_spoils_the_gradient() -> None:
    step, record = refuse(objective=lambda toy: toy.objective() + math.nan * toy.parameter[3])
    assert step.n_trials == 0 and not record


def test_directions_that_lead_downhill_are_refused() -> None:
    """A Fisher matrix that is not positive definite."""
    step, record = refuse(kl=lambda toy: -toy.kl())
    assert step.n_trials == 0 and len(record) == 1


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_directions_that_are_not_finite_are_refused(damping: float) -> None:
    step, _ = refuse(kl=lambda toy: (toy.moved.abs() ** 1.5).sum(), cg_damping=damping)
    assert step.n_trials == 0


def test_steps_too_long_for_numbers_are_shortened() -> None:
    """Where the KL is not a number the step is halved until it is one."""
    toy = Toy(5)
    length = float(toy.solution(0.05, 1e-3).norm())

    def kl() -> th.Tensor:
        return toy.kl() * th.where(toy.moved.norm() > 0.3 * length, math.nan, 1.0)

    step = natural_gradient_step([toy.parameter], toy.objective, kl, 0.05)
    assert step.accepted and step.n_trials == 3
    assert float(toy.moved.detach().norm()) == pytest.approx(0.25 * length, rel=1e-4)


def test_steps_of_infinite_kl_are_shortened() -> None:
    toy = Toy(5)
    length = float(toy.solution(0.05, 1e-3).norm())

    def kl() -> th.Tensor:
        return toy.kl() + th.where(toy.moved.detach().norm() > 0.3 * length, math.inf, 0.0)

    assert natural_gradient_step([toy.parameter], toy.objective, kl, 0.05).accepted


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize("scale", [*(scale for scale in (1e-9, 1e-6, 1e-4)), 1.0, 1e3, 1e6])
def test_units_of_the_objective_do_not_matter(scale: float) -> None:
    """Rewards of a millionth or a million lead to the same step."""
    toy = Toy(6, dtype=th.float32)
    th.manual_seed(0)
    step = natural_gradient_step([toy.parameter], lambda: scale * (toy.gradient @ toy.moved), toy.kl, 0.05)
    close(toy.moved, toy.solution(0.05, 1e-3), rtol=0.02, atol=1e-3)
    assert step.accepted


@pytest.mark.parametrize("seed", range(5))
def test_rounding_does_not_waste_the_bound(seed: int) -> None:
    """Without damping the full step lies on the bound, and rounding may leave it a hair too long."""
    toy = Toy(seed, dtype=th.float32)
    step = natural_gradient_step([toy.parameter], lambda: toy.gradient @ toy.moved, toy.kl, 0.05, cg_damping=0.0)
    assert step.accepted and 0.6 * 0.05 < step.kl <= 0.05


# ---------------------------------------------------------------------- parameters


def test_parameters_that_the_objective_does_not_depend_on() -> None:
    """They move as the Fisher matrix couples them to the others, and stay where it does not."""
    toy, unrelated = Toy(7), th.nn.Parameter(th.ones(3, dtype=th.float64))
    toy.gradient[3:] = 0.0

    def kl() -> th.Tensor:
        return toy.kl() + ((unrelated - 1.0) ** 2).sum()

    step = natural_gradient_step([unrelated, toy.parameter], lambda: toy.gradient[:3] @ toy.parameter[:3], kl, 0.05)
    expected = toy.solution(0.05, 1e-3)
    assert step.accepted and float(expected[3:].abs().max()) > 0.01
    close(toy.moved, expected, rtol=1e-4, atol=1e-6)
    close(unrelated, th.ones(3), atol=1e-4)


def test_parameters_that_the_kl_does_not_depend_on() -> None:
    """They only know the damping as their curvature."""
    toy, free, neither = Toy(8), th.nn.Parameter(th.zeros(2, 1, dtype=th.float64)), th.nn.Parameter(th.ones(1))
    slopes = th.tensor([[0.3], [-0.2]], dtype=th.float64)

    def objective() -> th.Tensor:
        return toy.objective() + (slopes * free).sum()

    step = natural_gradient_step([free, toy.parameter, neither], objective, toy.kl, 0.05, cg_damping=0.1)
    direction = th.linalg.solve(toy.fisher + 0.1 * th.eye(6, dtype=th.float64), toy.gradient)
    slope = toy.gradient @ direction + (slopes**2).sum() / 0.1
    factor = th.sqrt(2.0 * 0.05 / slope)
    assert step.accepted
    close(toy.moved, factor * direction, rtol=1e-4, atol=1e-5)
    close(free, factor * slopes / 0.1, rtol=1e-4)
    close(neither, th.ones(1), atol=1e-3)


def test_frozen_parameters_stay() -> None:
    toy, frozen = Toy(9), th.nn.Parameter(th.tensor([2.0, -0.0], dtype=th.float64), requires_grad=False)
    first = bits([frozen])
    step = natural_gradient_step(
        (parameter for parameter in (frozen, toy.parameter)), lambda: toy.objective() * frozen[0], toy.kl, 0.05
    )
    assert step.accepted and bits([frozen]) == first
    close(toy.moved, toy.solution(0.05, 1e-3), rtol=1e-4, atol=1e-6)


def test_no_gradient_is_left_behind() -> None:
    toy = Toy(10)
    natural_gradient_step([toy.parameter], toy.objective, toy.kl, 0.05)
    assert toy.parameter.grad is None and toy.parameter.requires_grad and toy.parameter.is_leaf
    toy.objective().backward()
    close(toy.parameter.grad, toy.gradient)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- damping in units of the matrix


def test_mean_eigenvalue() -> None:
    eigenvalues = np.array([3.0, 1.0, 0.0, 4.0])
    assert mean_eigenvalue(lambda vector: eigenvalues * vector, 4) == pytest.approx(2.0), "exact where it is diagonal"
    root = np.random.default_rng(1).normal(size=(300, 300))
    matrix = root @ root.T
    assert mean_eigenvalue(lambda vector: matrix @ vector, 300) == pytest.approx(np.trace(matrix) / 300, rel=0.15)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_damping_follows_the_matrix(scale: float) -> None:
    toy = Toy()
    toy.fisher = scale * th.diag(th.tensor([3.0, 1.0, 0.5, 4.0, 1.0, 2.5], dtype=th.float64))
    natural_gradient_step([toy.parameter], toy.objective, toy.kl, 0.01, cg_damping=None)
    th.testing.assert_close(toy.moved, toy.solution(0.01, DEFAULT_DAMPING * scale * 2.0), rtol=1e-4, atol=1e-8)
