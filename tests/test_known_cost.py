"""The expansion of a known cost against analytic quadratics, finite differences and costs that are not fit for it."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dpi.trajopt.types import LinearGaussianDynamics, QuadraticCost
from sb3_dpi.world_model import expand_cost

M, N, T, DX, DU = 2, 3, 4, 3, 2
LOW, HIGH = np.array([-1.0, 0.0]), np.array([3.0, 10.0])
CENTER, SCALE = 0.5 * (HIGH + LOW), 0.5 * (HIGH - LOW)


def make_data(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dynamics = LinearGaussianDynamics(
        rng.normal(size=(M, T, DX, DX + DU)), rng.normal(size=(M, T, DX)), np.tile(np.eye(DX), (M, T, 1, 1))
    )
    return {
        "obs": rng.normal(size=(M, N, T, DX)),
        "actions": rng.normal(size=(M, N, T, DU)),
        "next_obs": rng.normal(size=(M, N, T, DX)),
        "alive": np.ones((M, N, T), dtype=bool),
        "dynamics": dynamics,
        "action_low": LOW,
        "action_high": HIGH,
    }


def evaluate(cost: QuadraticCost, z: np.ndarray, entry: tuple[int, int]) -> float:
    return float(0.5 * z @ cost.C[entry] @ z + cost.c[entry] @ z + cost.const[entry])


def wiggly(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    bump = th.exp(-(obs[:, 0] ** 2)) * th.sin(action).sum(-1)
    return bump + th.sqrt(0.1 + (next_obs**2).sum(-1)) + obs[:, 1] * next_obs[:, 2] * th.tanh(action[:, 1])


def chained(data: dict[str, Any], entry: tuple[int, int, int], z: np.ndarray) -> float:
    """The cost of z near one sample, its next state moved by the dynamics, by plain arithmetic."""
    m, _, t = entry
    sample = np.concatenate([data["obs"][entry], data["actions"][entry]])
    next_obs = data["next_obs"][entry] + data["dynamics"].F[m, t] @ (z - sample)
    rows = (z[:DX], CENTER + SCALE * z[DX:], next_obs)
    return float(wiggly(*(th.tensor(row[None], dtype=th.float64) for row in rows)))


def test_a_quadratic_cost_is_recovered_exactly() -> None:
    data = make_data()
    rng = np.random.default_rng(1)
    dim = 2 * DX + DU
    root = rng.normal(size=(dim, dim))
    H, g = root @ root.T, rng.normal(size=dim)

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        y = th.cat([obs, action, next_obs], dim=-1)
        return 0.5 * ((y @ th.tensor(H)) * y).sum(-1) + y @ th.tensor(g) + 2.5

    # successors that the dynamics predict up to a residual r which is the same for all samples: then the average
    # expansion is exact everywhere, y = S + J z
    residual = rng.normal(size=(M, 1, T, DX))
    z = np.concatenate([data["obs"], data["actions"]], -1)
    data["next_obs"] = np.einsum("mtij,mntj->mnti", data["dynamics"].F, z) + residual
    result = expand_cost(cost_fn, **data)
    for entry in np.ndindex(M, T):
        J = np.zeros((dim, DX + DU))
        J[:DX, :DX], J[DX : DX + DU, DX:], J[DX + DU :] = np.eye(DX), np.diag(SCALE), data["dynamics"].F[entry]
        S = np.concatenate([np.zeros(DX), CENTER, residual[entry[0], 0, entry[1]]])
        np.testing.assert_allclose(result.C[entry], J.T @ H @ J, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result.c[entry], J.T @ (H @ S + g), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result.const[entry], 0.5 * S @ H @ S + g @ S + 2.5, rtol=1e-8, atol=1e-8)


def test_a_nonquadratic_cost_agrees_with_finite_differences() -> None:
    data = make_data()
    result = expand_cost(wiggly, **data)
    h, unit = 1e-4, np.eye(DX + DU)
    for m, t in np.ndindex(M, T):
        C, c, const = np.zeros((DX + DU, DX + DU)), np.zeros(DX + DU), 0.0
        for n in range(N):
            entry = (m, n, t)
            z = np.concatenate([data["obs"][entry], data["actions"][entry]])
            value = chained(data, entry, z)
            plus = np.array([chained(data, entry, z + h * e) for e in unit])
            minus = np.array([chained(data, entry, z - h * e) for e in unit])
            both = np.array([[chained(data, entry, z + h * (e + d)) for d in unit] for e in unit])
            gradient = (plus - minus) / (2 * h)
            # forward differences of the symmetric kind, exact to first order in h
            hessian = (both - plus[:, None] - plus[None, :] + value) / h**2
            C += hessian / N
            c += (gradient - hessian @ z) / N
            const += (value - gradient @ z + 0.5 * z @ hessian @ z) / N
        np.testing.assert_allclose(result.C[m, t], C, atol=0.02, rtol=0.01)
        np.testing.assert_allclose(result.c[m, t], c, atol=0.05, rtol=0.01)
        np.testing.assert_allclose(result.const[m, t], const, atol=0.1, rtol=0.01)


def test_one_sample_touches_the_cost_to_second_order() -> None:
    data = make_data()
    data = {k: v[:, :1] if k in ("obs", "actions", "next_obs", "alive") else v for k, v in data.items()}
    result = expand_cost(wiggly, **data)
    direction = np.random.default_rng(2).normal(size=DX + DU)
    z = np.concatenate([data["obs"][1, 0, 2], data["actions"][1, 0, 2]])
    errors = [
        abs(evaluate(result, z + h * direction, (1, 2)) - chained(data, (1, 0, 2), z + h * direction))
        for h in (0.0, 0.01, 0.02)
    ]
    assert errors[0] < 1e-10
    assert errors[2] / errors[1] == pytest.approx(8.0, rel=0.3), "the remainder is of third order"


def test_dead_samples_are_never_read() -> None:
    data = make_data()
    data["alive"][0, 2, 2:] = False
    data["alive"][1, :, 3] = False
    padded = dict(data)
    for key in ("obs", "actions", "next_obs"):
        padded[key] = np.where(data["alive"][..., None], data[key], np.nan)
    result = expand_cost(wiggly, **padded)
    alone = expand_cost(
        wiggly, **{k: v[:, :2] if k in ("obs", "actions", "next_obs", "alive") else v for k, v in data.items()}
    )
    np.testing.assert_allclose(result.C[0, 2:], alone.C[0, 2:], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.const[0, 2:], alone.const[0, 2:], rtol=1e-10)
    assert not np.allclose(result.C[0, 1], alone.C[0, 1])
    for array in (result.C, result.c, result.const):
        np.testing.assert_array_equal(array[1, 3], 0.0)


def test_linear_costs_and_costs_of_some_arguments_only() -> None:
    data = make_data()
    linear = expand_cost(lambda obs, action, next_obs: 2.0 * obs[..., 0] - action[..., 1], **data)
    np.testing.assert_array_equal(linear.C, 0.0)
    np.testing.assert_allclose(linear.c, np.broadcast_to([2.0, 0.0, 0.0, 0.0, -SCALE[1]], linear.c.shape))
    np.testing.assert_allclose(linear.const, -CENTER[1])
    with th.no_grad():
        square = expand_cost(lambda obs, action, next_obs: (obs**2).sum(-1), **data)
    np.testing.assert_allclose(square.C, np.broadcast_to(np.diag([2.0, 2.0, 2.0, 0.0, 0.0]), square.C.shape), atol=1e-12)


@pytest.mark.parametrize(
    "cost_fn, message",
    [
        (lambda obs, action, next_obs: (obs**2).sum(-1, keepdim=True), r"one cost per row, shape \(24,\)"),
        (lambda obs, action, next_obs: (obs**2).sum(), r"got \(\)"),
        (lambda obs, action, next_obs: 0.0, "torch.Tensor .* got float"),
        (lambda obs, action, next_obs: (obs.detach() ** 2).sum(-1), "does not depend on its arguments"),
        (
            lambda obs, action, next_obs: th.log(obs[:, 0] - 10.0),
            "value that is not finite at condition 0, sample 0, time step 0",
        ),
        (lambda obs, action, next_obs: th.sqrt(obs[:, 0] - obs[:, 0].detach()), "first derivative that is not finite"),
        (lambda obs, action, next_obs: th.abs(obs[:, 0] - obs[:, 0].detach()) ** 1.5, "second derivative that is not finite"),
    ],
)
def test_unfit_costs_are_explained(cost_fn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_cost(cost_fn, **make_data())


def test_the_place_of_a_bad_cost_is_named() -> None:
    data = make_data()
    data["obs"][1, 2, 3, 0] = 1e200
    with pytest.raises(ValueError, match="condition 1, sample 2, time step 3"):
        expand_cost(lambda obs, action, next_obs: (obs**2).sum(-1), **data)


@pytest.mark.parametrize("key", ["actions", "next_obs", "alive", "action_low", "dynamics"])
def test_shapes_are_checked(key: str) -> None:
    data = make_data()
    if key == "dynamics":
        data[key] = LinearGaussianDynamics(data[key].F[:, :-1], data[key].f, data[key].cov)
    else:
        data[key] = data[key][..., :-1]
    with pytest.raises(ValueError, match="must have shape"):
        expand_cost(wiggly, **data)


def test_bounds_and_survivors_are_checked() -> None:
    with pytest.raises(ValueError, match="bounds must be finite"):
        expand_cost(wiggly, **{**make_data(), "action_high": np.array([3.0, np.inf])})
    with pytest.raises(ValueError, match="no living sample"):
        expand_cost(wiggly, **{**make_data(), "alive": np.zeros((M, N, T), dtype=bool)})
    with pytest.raises(ValueError, match="must have shape"):
        expand_cost(wiggly, **{**make_data(), "obs": np.zeros((M, T, DX))})
