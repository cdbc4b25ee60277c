"""Systems and costs with closed derivatives of first and second order, on which planners are tested."""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.differences import FunctionSystem, TrackingCost
from sb3_dpi.trajopt.types import FloatArray, IntArray, QuadraticCost, QuadraticValue


def wavy_system(
    rng: np.random.Generator, dx: int = 3, du: int = 2, size: float = 0.5, waves_of_actions: float = 1.0
) -> FunctionSystem:
    """f(z) = M z + m + size sin(W z), z = [x; u]: actions enter nonlinearly, and with the state."""
    M = np.concatenate([0.6 * rng.normal(size=(dx, dx)) / np.sqrt(dx), rng.normal(size=(dx, du))], 1)
    W, m = rng.normal(size=(dx, dx + du)), 0.1 * rng.normal(size=dx)
    W[:, dx:] *= waves_of_actions

    def function(states: FloatArray, actions: FloatArray) -> FloatArray:
        z = np.concatenate([states, actions], -1)
        return np.asarray(z @ M.T + m + size * np.sin(z @ W.T))

    def jacobians(states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        F = M + size * np.cos(np.concatenate([states, actions], -1) @ W.T)[:, :, None] * W
        return F[..., :dx], F[..., dx:]

    def second(states: FloatArray, actions: FloatArray) -> FloatArray:
        bend = -size * np.sin(np.concatenate([states, actions], -1) @ W.T)
        return np.asarray(bend[:, :, None, None] * W[:, :, None] * W[:, None, :])

    return FunctionSystem(function, dx, du, jacobians, second)


@dataclass(frozen=True)
class QuarticCost:
    """1/2 z'C z + c'z + bend/4 sum z^4, at the end 1/2 x'C_xx x + bend/4 sum x^4; all times 1 + t / 10."""

    C: FloatArray
    c: FloatArray
    bend: float

    def value(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
        z = np.concatenate([states, actions], -1)
        value = 0.5 * np.sum(z * (z @ self.C), -1) + z @ self.c + 0.25 * self.bend * np.sum(z**4, -1)
        return np.asarray((1 + time_steps / 10) * value)

    def expand(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> QuadraticCost:
        z = np.concatenate([states, actions], -1)
        weight = 1 + time_steps / 10
        C = self.C + 3.0 * self.bend * z[:, :, None] ** 2 * np.eye(z.shape[1])
        c = z @ self.C + self.c + self.bend * z**3
        return QuadraticCost(weight[:, None, None] * C, weight[:, None] * c, self.value(states, actions, time_steps))

    def final_value(self, states: FloatArray, time_step: int) -> FloatArray:
        dx = states.shape[-1]
        value = 0.5 * np.sum(states * (states @ self.C[:dx, :dx]), -1) + 0.25 * self.bend * np.sum(states**4, -1)
        return np.asarray((1 + time_step / 10) * value)

    def expand_final(self, state: FloatArray, time_step: int) -> QuadraticValue:
        dx, weight = len(state), 1 + time_step / 10
        V = self.C[:dx, :dx] + 3.0 * self.bend * np.diag(state**2)
        v = self.C[:dx, :dx] @ state + self.bend * state**3
        return QuadraticValue(weight * V, weight * v, self.final_value(state, time_step))


def quartic_cost(rng: np.random.Generator, dx: int = 3, du: int = 2, bend: float = 0.3) -> QuarticCost:
    root = rng.normal(size=(dx + du, dx + du)) / np.sqrt(dx + du)
    return QuarticCost(root @ root.T + 0.5 * np.eye(dx + du), rng.normal(size=dx + du), bend)


def pendulum() -> FunctionSystem:
    """Pendulum-v1 without the clip of its speed: state (angle from upright, speed), action in units of the bounds."""
    gravity, torque, dt = 15.0, 6.0, 0.05

    def function(states: FloatArray, actions: FloatArray) -> FloatArray:
        speed = states[..., 1] + dt * (gravity * np.sin(states[..., 0]) + torque * actions[..., 0])
        return np.stack([states[..., 0] + dt * speed, speed], -1)

    def jacobians(states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        fx, fu = np.empty((len(states), 2, 2)), np.empty((len(states), 2, 1))
        fall = dt * gravity * np.cos(states[:, 0])
        fx[:, 1, 0], fx[:, 1, 1] = fall, 1.0
        fx[:, 0, 0], fx[:, 0, 1] = 1.0 + dt * fall, dt
        fu[:, 1, 0], fu[:, 0, 0] = dt * torque, dt * dt * torque
        return fx, fu

    return FunctionSystem(function, 2, 1, jacobians)


def upright_cost(system: FunctionSystem) -> TrackingCost:
    """Be upright and still, at the end above all."""
    return TrackingCost(system, np.diag([0.1, 0.01]), 0.01 * np.eye(1), np.diag([100.0, 10.0]), np.zeros(2))
