"""Initial controllers: that they hold a body where it is, explore as asked, and say what is wrong with their arguments."""

from typing import Any

import numpy as np
import pytest

from sb3_dpi.trajopt.controllers import lqr_hold_controller, pd_controller
from sb3_dpi.trajopt.types import LinearGaussianController


def simulate(controller: LinearGaussianController, state: np.ndarray, du: int, dt: float, gain: float) -> np.ndarray:
    """Unit masses without noise; returns states ``[T+1, dx]``."""
    states = [state]
    for K, k in zip(controller.K, controller.k, strict=True):
        action = K @ states[-1] + k
        following = states[-1].copy()
        following[du : 2 * du] += dt * gain * action
        following[:du] += dt * following[du : 2 * du]
        states.append(following)
    return np.array(states)


def test_lqr_agrees_with_a_dense_solve() -> None:
    dt, gain, horizon, final_weight, init_var = 0.1, 2.0, 6, 3.0, 0.4
    x0 = np.array([0.3, -0.2, 7.0])
    controller = lqr_hold_controller(x0, horizon, 1, gain, 1.5, 0.4, init_var, final_weight, dt)
    # the whole plan as one least-squares problem in the actions, from a start off the target
    start = np.array([0.5, 0.1, 7.0])
    states, gradient = [start[:2]], [np.zeros((2, horizon))]
    A, B = np.array([[1.0, dt], [0.0, 1.0]]), np.array([dt**2, dt]) * gain
    for t in range(horizon - 1):
        states.append(A @ states[-1])
        gradient.append(A @ gradient[-1] + np.outer(B, np.eye(horizon)[t]))
    root = np.sqrt([1.5, 1.5 * 0.4])
    last = [1.0] * (horizon - 1) + [np.sqrt(final_weight)]
    rows = np.concatenate([w * root[:, None] * g for w, g in zip(last, gradient, strict=True)] + [np.eye(horizon)])
    errors = np.concatenate([w * root * (x0[:2] - s) for w, s in zip(last, states, strict=True)] + [np.zeros(horizon)])
    plan = np.linalg.lstsq(rows, errors, rcond=None)[0]

    state, actions = start, []
    for K, k in zip(controller.K, controller.k, strict=True):
        actions.append((K @ state + k)[0])
        state = np.append(A @ state[:2] + B * actions[-1], 7.0)
    np.testing.assert_allclose(actions, plan, rtol=1e-9, atol=1e-12)
    # the first action's variance is the inverse curvature of the optimal cost in that action
    hessian = rows.T @ rows / init_var
    np.testing.assert_allclose(controller.cov[0, 0, 0], np.linalg.inv(hessian)[0, 0], rtol=1e-9)


@pytest.mark.parametrize("name", ["lqr", "pd"])
def test_a_pushed_body_comes_back_and_a_resting_one_stays(name: str) -> None:
    du, dt, horizon = 2, 0.05, 400
    x0 = np.array([0.7, -1.2, 0.0, 0.0, 3.0])
    if name == "lqr":
        controller = lqr_hold_controller(x0, horizon, du, gains=2.0, stiffness=5.0, dt=dt)
    else:
        controller = pd_controller(x0, horizon, du, position_gains=2.0, velocity_gains_mult=0.8)
    np.testing.assert_allclose(simulate(controller, x0, du, dt, 2.0), np.tile(x0, (horizon + 1, 1)), atol=1e-9)
    pushed = x0 + np.array([0.5, -0.3, 1.0, 0.0, 0.0])
    assert np.abs(simulate(controller, pushed, du, dt, 2.0)[-1] - x0).max() < 1e-3


def test_batches_indices_and_covariances() -> None:
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(3, 2, 7))
    for make in (lqr_hold_controller, pd_controller):
        controller = make(x0, 10, 2, init_var=0.3, positions=[4, 1], velocities=[0, 6])
        assert controller.K.shape == (3, 2, 10, 2, 7)
        assert controller.k.shape == (3, 2, 10, 2)
        assert controller.cov.shape == (3, 2, 10, 2, 2)
        np.testing.assert_array_equal(controller.K[..., [2, 3, 5]], 0.0)
        assert np.all(controller.K[..., :-1, 0, 4] < 0), "action 0 must pull at its own position"
        np.testing.assert_allclose(controller.K[..., 0, 1], 0.0, atol=1e-12)
        single = make(x0[1, 1], 10, 2, init_var=0.3, positions=[4, 1], velocities=[0, 6])
        np.testing.assert_allclose(controller.k[1, 1], single.k, rtol=1e-10, atol=1e-12)
        np.linalg.cholesky(controller.cov)
        diagonal = np.diagonal(controller.cov, axis1=-2, axis2=-1)
        assert np.all(diagonal <= 0.3 + 1e-12)
        np.testing.assert_allclose(diagonal[..., -1, :], 0.3, rtol=1e-9)


def test_exploration_does_not_change_the_gains() -> None:
    x0 = np.zeros(4)
    quiet, loud = (lqr_hold_controller(x0, 20, 2, init_var=v) for v in (0.01, 1.0))
    np.testing.assert_allclose(quiet.K, loud.K, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(100.0 * quiet.cov, loud.cov, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [lqr_hold_controller, pd_controller])
@pytest.mark.parametrize(
    "du, options, message",
    [
        (3, {}, "the state has only 4 entries"),
        (2, {"positions": [0, 9]}, "`positions` are at the indices"),
        (2, {"velocities": [2]}, "one index of the state per action"),
        (2, {"velocities": [1, 2]}, "different entries"),
        (2, {"init_var": 0.0}, "`init_var` must be positive"),
        (0, {}, "du be at least 1"),
    ],
)
def test_bad_arguments_are_named(make: object, du: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(np.zeros(4), 10, du, **options)  # type: ignore[operator]


def test_negative_gains_are_refused() -> None:
    with pytest.raises(ValueError, match="`position_gains` must not be negative"):
        pd_controller(np.zeros(4), 10, 2, position_gains=-1.0)
    with pytest.raises(ValueError, match="`gains` must be positive"):
        lqr_hold_controller(np.zeros(4), 10, 2, gains=np.array([1.0, 0.0]))


def test_numbers_that_are_not_given() -> None:
    x0 = np.array([0.3, -0.4])
    held = lqr_hold_controller(x0, 5, 1)
    same = lqr_hold_controller(x0, 5, 1, 1.0, 1.0, 0.5, 0.1, 1.0, 0.05, [0], [1])
    pulled, alike = pd_controller(x0, 5, 1), pd_controller(x0, 5, 1, 1.0, 0.1, 0.1, [0], [1])
    for one, two in ((held, same), (pulled, alike)):
        for name, array in vars(one).items():
            np.testing.assert_array_equal(getattr(two, name), array)


def test_proportional_control_by_hand() -> None:
    controller = pd_controller(np.array([1.0, 2.0, 3.0]), 2, 1, 4.0, 0.5, 0.3, positions=[2], velocities=[0])
    np.testing.assert_allclose(controller.K, np.broadcast_to([[-2.0, 0.0, -4.0]], (2, 1, 3)))
    np.testing.assert_allclose(controller.k, np.broadcast_to([2.0 * 1.0 + 4.0 * 3.0], (2, 1)))
    np.testing.assert_allclose(controller.cov, 0.3)


@pytest.mark.parametrize("make", [lqr_hold_controller, pd_controller])
def test_limits_of_the_arguments(make: Any) -> None:
    # a state of just two entries, and the last index that it has
    assert make(np.zeros(2), 1, 1, positions=[1], velocities=[0]).K.shape == (1, 1, 2)
    for options in ({"positions": [-1]}, {"positions": [2]}, {"velocities": [2]}, {"positions": [1], "velocities": [1]}):
        with pytest.raises(ValueError, match="`positions`"):
            make(np.zeros(2), 1, 1, **options)
    for name, value in (("init_var", np.inf), ("init_var", np.nan), ("init_var", -1.0)):
        with pytest.raises(ValueError, match="must be positive"):
            make(np.zeros(2), 1, 1, **{name: value})
    with pytest.raises(ValueError, match="`horizon` must be positive"):
        make(np.zeros(2), 0, 1)
    with pytest.raises(ValueError, match="x0 must have shape"):
        make(np.zeros(()), 1, 1)


def test_weights_may_be_zero() -> None:
    lqr_hold_controller(np.zeros(2), 3, 1, stiffness_vel=0.0, final_weight=0.0)
    assert not pd_controller(np.zeros(2), 3, 1, position_gains=0.0, velocity_gains_mult=0.0).K.any()
    for make, name in (
        (lqr_hold_controller, "stiffness_vel"),
        (lqr_hold_controller, "final_weight"),
        (pd_controller, "velocity_gains_mult"),
    ):
        for bad in (-1e-3, np.nan):
            with pytest.raises(ValueError, match=f"`{name}` must not be negative"):
                make(np.zeros(2), 3, 1, **{name: bad})  # type: ignore[operator]
