"""Quadratic expansion of a cost that the user knows, by automatic differentiation.

Problem: the planner needs l_t(z) = 1/2 z' C_t z + c_t' z + const_t of state and action z = [x; u] alone, while the
user's cost ``cost_fn(obs, action, next_obs)`` also sees the next state. Fitted dynamics link the two: around a sample
z_n with successor x'_n,

    g_n(z) = cost_fn(x, center + scale u, x'_n + F_t (z - z_n)),

that is, F_t z + f_t plus the sample's own residual, held constant. Each g_n is expanded to second order around its
sample, moved to absolute coordinates, and averaged over the living samples of its time step. The result may be
indefinite; projecting it is the caller's.

Shapes: ``M`` conditions, ``N`` samples of each, ``T`` time steps; obs and next_obs ``[M, N, T, dx]``, actions ``[M, N,
T, du]``, alive ``[M, N, T]``. States are observations in the environment's own units; the planner's actions u are in
units of the bounds.
"""

from collections.abc import Callable

import numpy as np
import torch as th

from sb3_dpi.trajopt.types import BoolArray, FloatArray, LinearGaussianDynamics, QuadraticCost

CostFunction = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]


def expand_cost(
    cost_fn: CostFunction,
    obs: FloatArray,
    actions: FloatArray,
    next_obs: FloatArray,
    alive: BoolArray,
    dynamics: LinearGaussianDynamics,
    action_low: FloatArray,
    action_high: FloatArray,
) -> QuadraticCost:
    """
    Expand a known cost around the samples of every condition and time step, and average over the samples.

    :param cost_fn: ``cost_fn(obs [B, dx], action [B, du], next_obs [B, dx]) -> cost [B]`` (cost = -reward) in the
        environment's own units, twice differentiable by torch, each cost depending on its own row only. Its arguments
        are in double precision, on the CPU.
    :param obs: ``[M, N, T, dx]``
    :param actions: ``[M, N, T, du]`` in units of the bounds: -1 is ``action_low``, 1 is ``action_high``. Beyond the
        bounds the cost is extrapolated, not clipped, so that the planner sees a slope there.
    :param next_obs: ``[M, N, T, dx]``
    :param alive: ``[M, N, T]``, False where a trajectory had ended; nothing else is read there
    :param dynamics: fitted dynamics ``[M, T]``, of which F is used
    :param action_low: lower bounds of the actions in the environment's units, ``[du]``, finite
    :param action_high: upper bounds, ``[du]``, finite
    :return: cost ``[M, T]``, symmetric but not projected; zero at time steps without a living sample
    :raises ValueError: if shapes do not fit, or ``cost_fn`` returns the wrong shape, something that does not depend on
        its arguments through torch operations, or a cost or derivative that is not finite
    """
    _check_shapes(obs, actions, next_obs, alive, dynamics, action_low, action_high)
    z = _fill_dead(np.concatenate([obs, actions], axis=-1), alive)
    successor = _fill_dead(next_obs, alive)
    living = np.sum(alive, axis=1)
    weights = alive / np.maximum(living, 1)[:, None, :]

    dx, dim = obs.shape[-1], z.shape[-1]
    center, scale = 0.5 * (action_high + action_low), 0.5 * (action_high - action_low)
    with th.enable_grad():
        point = th.tensor(z, dtype=th.float64, requires_grad=True)
        # zero in value: it only carries the derivative of the next state through the dynamics
        offset = point - point.detach()
        moved = th.tensor(successor, dtype=th.float64) + th.einsum("mtij,mntj->mnti", _double(dynamics.F), offset)
        action = _double(center) + _double(scale) * point[..., dx:]
        rows = (point[..., :dx].flatten(0, 2), action.flatten(0, 2), moved.flatten(0, 2))
        value = _checked_value(cost_fn(*rows), alive.shape)
        (gradient,) = th.autograd.grad(value.sum(), point, create_graph=True)
        slope = _finite(gradient, "first derivative")

        C, curvature = np.zeros((*living.shape, dim, dim)), np.zeros_like(z)
        # one row of the Hessians at a time: memory stays that of the samples, and cost_fn need not be fit for vmap
        for i in range(dim if gradient.requires_grad else 0):
            (derivative,) = th.autograd.grad(gradient[..., i].sum(), point, retain_graph=True, materialize_grads=True)
            row = _finite(derivative, "second derivative")
            C[..., i, :] = np.einsum("mnt,mntj->mtj", weights, row)
            curvature[..., i] = np.sum(row * z, -1)

    c = np.einsum("mnt,mntj->mtj", weights, slope - curvature)
    constants = value.detach().numpy() + np.sum(z * (0.5 * curvature - slope), -1)
    return QuadraticCost(0.5 * (C + np.swapaxes(C, -1, -2)), c, np.sum(weights * constants, axis=1))


def _check_shapes(
    obs: FloatArray,
    actions: FloatArray,
    next_obs: FloatArray,
    alive: BoolArray,
    dynamics: LinearGaussianDynamics,
    action_low: FloatArray,
    action_high: FloatArray,
) -> None:
    """Raise a ValueError that names the first array whose shape or value does not fit."""
    if obs.ndim != 4 or actions.ndim != 4:
        raise ValueError(f"obs and actions must have shape [M, N, T, ...], got {obs.shape} and {actions.shape}")
    n_conditions, n_samples, horizon, dx = obs.shape
    du = actions.shape[-1]
    expected = {
        "actions": (actions, (n_conditions, n_samples, horizon, du)),
        "next_obs": (next_obs, obs.shape),
        "alive": (alive, (n_conditions, n_samples, horizon)),
        "dynamics.F": (dynamics.F, (n_conditions, horizon, dx, dx + du)),
        "action_low": (action_low, (du,)),
        "action_high": (action_high, (du,)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to fit obs {obs.shape}, got {array.shape}")
    if not np.all(np.isfinite(action_low) & np.isfinite(action_high) & (action_low < action_high)):
        raise ValueError(f"action bounds must be finite with low < high, got {action_low} and {action_high}")
    if not np.any(alive):
        raise ValueError("no living sample at any time step: the cost cannot be expanded")


def _fill_dead(array: FloatArray, alive: BoolArray) -> FloatArray:
    """:return: ``[M, N, T, ...]`` with some living sample at the dead ones, where ``cost_fn`` would otherwise meet padding"""
    return np.where(alive[..., None], array, array[alive][0])


def _double(array: FloatArray) -> th.Tensor:
    """:return: the array as a tensor in double precision"""
    return th.tensor(array, dtype=th.float64)


def _checked_value(cost: th.Tensor, shape: tuple[int, ...]) -> th.Tensor:
    """:return: what ``cost_fn`` returned as ``[M, N, T]``; a ValueError if it is not one finite, smooth cost per row"""
    n_rows = int(np.prod(shape))
    if not isinstance(cost, th.Tensor):
        raise ValueError(f"cost_fn must return a torch.Tensor with one cost per row, got {type(cost).__name__}")
    if tuple(cost.shape) != (n_rows,):
        raise ValueError(
            f"cost_fn must return one cost per row, shape ({n_rows},) for obs of shape ({n_rows}, dx), "
            f"got {tuple(cost.shape)}: sum over the last axis only, and keep no axis of size 1"
        )
    if not cost.requires_grad:
        raise ValueError(
            "the result of cost_fn does not depend on its arguments in a way that torch can differentiate: use torch "
            "operations only, no detach(), numpy or rounding"
        )
    cost = cost.reshape(shape)
    _finite(cost, "value")
    return cost


def _finite(values: th.Tensor, what: str) -> FloatArray:
    """:return: the tensor as an array; a ValueError that names condition, sample and time step if an entry is not finite"""
    array = values.detach().numpy()
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        condition, sample, step = bad[0][:3]
        raise ValueError(
            f"cost_fn gives a {what} that is not finite at condition {condition}, sample {sample}, time step {step}: "
            "keep it smooth there, e.g. add a small constant under a square root or inside a logarithm"
        )
    return np.asarray(array, dtype=np.float64)
