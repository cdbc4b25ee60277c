"""Initial controllers for tasks whose actions are forces or torques.

Problem: before anything is known about a system, its first trajectories should stay near the initial state instead of
flinging it about. Both controllers assume that action ``i`` pushes coordinate ``i``, whose position and velocity are
entries of the state:

    linear-quadratic: argmin E sum_t 1/2 |(x_t, u_t) - (x_0, 0)|^2_L / init_var - H(u_t | x_t) of a double integrator
    proportional:     u_t = -position_gains ((q_t - q_0) + velocity_gains_mult (v_t - v_0)) + noise of variance init_var

Shapes: x0 ``[..., dx]`` where ``...`` are conditions, controllers ``[..., T, du, dx]``. Actions are in units of their
bounds.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_dpi.trajopt.lqr import lqr_backward, matvec
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController, LinearGaussianDynamics, QuadraticCost

IndexArray = npt.NDArray[np.intp]
OF_SEVERAL = ("gains", "position_gains", "positions", "velocities")
"""Arguments that may be one number for each action."""


def lqr_hold_controller(
    x0: FloatArray,
    horizon: int,
    du: int,
    gains: float | FloatArray = 1.0,
    stiffness: float = 1.0,
    stiffness_vel: float = 0.5,
    init_var: float = 0.1,
    final_weight: float = 1.0,
    dt: float = 0.05,
    positions: npt.ArrayLike | None = None,
    velocities: npt.ArrayLike | None = None,
) -> LinearGaussianController:
    """
    Hold the initial state by a linear-quadratic regulator that believes in unit masses.

    The believed dynamics are ``v' = v + dt gains u`` and ``q' = q + dt v + dt^2 gains u``; other entries of the state
    are ignored. The cost is ``stiffness`` on positions, ``stiffness stiffness_vel`` on velocities (deviations from
    ``x0``) and 1 on actions, all divided by ``init_var``, so that the covariance is close to ``init_var``, and smaller
    where an action moves the state much.

    :param x0: initial states, ``[..., dx]``
    :param horizon: number of time steps
    :param du: number of actions
    :param gains: acceleration per unit of action, a number or ``[du]``, positive; for torques the inverse of the inertia
    :param stiffness: cost of position errors relative to actions, usually .1 to 10; higher holds more firmly
    :param stiffness_vel: cost of velocity errors relative to that of positions, usually .1 to 10; higher damps more
    :param init_var: variance of the exploration in squared units of the bounds, usually .01 to 1; does not change the gains
    :param final_weight: factor of the state's cost at the last time step, usually 1 to 50
    :param dt: duration of a time step in s
    :param positions: indices of the state that hold the positions ``[du]``, by default ``0 .. du-1``
    :param velocities: indices of the state that hold the velocities ``[du]``, by default ``du .. 2 du-1``
    :return: controller ``[..., T]``
    :raises ValueError: if the state is too small for the indices, or a number is out of range
    """
    x0 = np.asarray(x0, dtype=np.float64)
    q, v = _joint_indices(x0, du, positions, velocities)
    gains = _each_action("gains", gains, du)
    _check_positive(horizon=horizon, init_var=init_var, dt=dt, stiffness=stiffness, gains=gains)
    _check_non_negative(stiffness_vel=stiffness_vel, final_weight=final_weight)
    dx = x0.shape[-1]
    diagonal = np.zeros((horizon, dx + du))
    diagonal[:, q] = stiffness
    diagonal[:, v] = stiffness * stiffness_vel
    diagonal[-1] *= final_weight
    diagonal[:, dx:] = 1.0
    diagonal /= init_var

    batch = x0.shape[:-1]
    target = np.concatenate([x0, np.zeros((*batch, du))], axis=-1)[..., None, :]
    cost = QuadraticCost(
        np.broadcast_to(diagonal[..., None] * np.eye(dx + du), (*batch, horizon, dx + du, dx + du)),
        -diagonal * target,
        0.5 * np.sum(diagonal * target**2, -1),
    )
    dynamics = _double_integrator((*batch, horizon, dx), q, v, dt, gains)
    return lqr_backward(dynamics, cost).controller


def pd_controller(
    x0: FloatArray,
    horizon: int,
    du: int,
    position_gains: float | FloatArray = 1.0,
    velocity_gains_mult: float = 0.1,
    init_var: float = 0.1,
    positions: npt.ArrayLike | None = None,
    velocities: npt.ArrayLike | None = None,
) -> LinearGaussianController:
    """
    Pull towards the initial state with constant gains.

    :param x0: initial states, ``[..., dx]``
    :param horizon: number of time steps
    :param du: number of actions
    :param position_gains: action per unit of position error, a number or ``[du]``, usually 0 (noise only) to 10
    :param velocity_gains_mult: gains of velocity errors relative to those of positions, in s, usually .01 to 1
    :param init_var: variance of the exploration in squared units of the bounds, usually .01 to 1
    :param positions: indices of the state that hold the positions ``[du]``, by default ``0 .. du-1``
    :param velocities: indices of the state that hold the velocities ``[du]``, by default ``du .. 2 du-1``
    :return: controller ``[..., T]``
    :raises ValueError: if the state is too small for the indices, or a number is out of range
    """
    x0 = np.asarray(x0, dtype=np.float64)
    q, v = _joint_indices(x0, du, positions, velocities)
    position_gains = _each_action("position_gains", position_gains, du)
    _check_positive(horizon=horizon, init_var=init_var)
    _check_non_negative(position_gains=position_gains, velocity_gains_mult=velocity_gains_mult)
    batch = x0.shape[:-1]
    K = np.zeros((*batch, horizon, du, x0.shape[-1]))
    rows = np.arange(du)
    K[..., rows, q] = -position_gains
    K[..., rows, v] = -velocity_gains_mult * position_gains
    cov = np.broadcast_to(init_var * np.eye(du), (*batch, horizon, du, du)).copy()
    return LinearGaussianController(K, -matvec(K, x0[..., None, :]), cov)


def _joint_indices(
    x0: FloatArray, du: int, positions: npt.ArrayLike | None, velocities: npt.ArrayLike | None
) -> tuple[IndexArray, IndexArray]:
    """:return: checked indices of positions and velocities, ``[du]`` each"""
    if x0.ndim < 1 or du < 1:
        raise ValueError(f"x0 must have shape [..., dx] and du be at least 1, got shape {x0.shape} and du = {du}")
    dx = x0.shape[-1]
    q = np.arange(du) if positions is None else _whole("positions", positions)
    v = np.arange(du, 2 * du) if velocities is None else _whole("velocities", velocities)
    for name, index in (("positions", q), ("velocities", v)):
        if index.shape != (du,):
            raise ValueError(f"`{name}` must hold one index of the state per action ({du}), got {index.tolist()}")
        if np.any(index < 0) or np.any(index >= dx):
            raise ValueError(
                f"`{name}` are at the indices {index.tolist()}, but the state has only {dx} entries: say with `positions` and "
                "`velocities` where they are, or start from the global policy instead"
            )
    if len(set(q.tolist()) | set(v.tolist())) < 2 * du:
        raise ValueError(f"`positions` {q.tolist()} and `velocities` {v.tolist()} must be different entries of the state")
    return q, v


def _whole(name: str, given: npt.ArrayLike) -> IndexArray:
    numbers = _numbers(name, given)
    if not np.all(numbers == np.floor(numbers)):
        raise ValueError(f"`{name}` must be whole numbers, got {given!r}")
    return numbers.astype(np.intp)


def _each_action(name: str, given: float | FloatArray, du: int) -> FloatArray:
    """:return: a number of each action, ``[du]``"""
    numbers = _numbers(name, given)
    if numbers.shape not in ((), (1,), (du,)):
        raise ValueError(f"`{name}` must be a number, or one for each of {du} actions, got {given}")
    return np.broadcast_to(numbers, du)


def _numbers(name: str, given: Any) -> FloatArray:
    with suppress(TypeError, ValueError):
        numbers = np.asarray(given, dtype=np.float64)
        if not isinstance(given, str) and (numbers.ndim == 0 or name in OF_SEVERAL):
            return numbers
    raise ValueError(f"`{name}` must be {'numbers' if name in OF_SEVERAL else 'a number'}, got {given!r}")


def _double_integrator(
    shape: tuple[int, ...], q: IndexArray, v: IndexArray, dt: float, gains: FloatArray
) -> LinearGaussianDynamics:
    """:return: believed dynamics of states of this shape ``[..., T, dx]``; neither position nor velocity: becomes zero"""
    dx = shape[-1]
    actions = dx + np.arange(len(q))
    F = np.zeros((dx, dx + len(q)))
    F[q, q] = F[v, v] = 1.0
    F[q, v] = dt
    F[q, actions] = dt**2 * gains
    F[v, actions] = dt * gains
    return LinearGaussianDynamics(np.broadcast_to(F, (*shape[:-1], *F.shape)), np.zeros(shape), np.zeros((*shape, dx)))


def _check_positive(**values: float | FloatArray) -> None:
    """Raise a ValueError that names the first argument which is not positive."""
    for name, value in values.items():
        numbers = _numbers(name, value)
        if not (np.all(np.isfinite(numbers)) and np.all(numbers > 0)):
            raise ValueError(f"`{name}` must be positive, got {value}")


def _check_non_negative(**values: float | FloatArray) -> None:
    """Raise a ValueError that names the first argument which is negative."""
    for name, value in values.items():
        numbers = _numbers(name, value)
        if not (np.all(np.isfinite(numbers)) and np.all(numbers >= 0)):
            raise ValueError(f"`{name}` must not be negative, got {value}")
