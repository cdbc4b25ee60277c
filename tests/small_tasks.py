"""Three small tasks in pure numpy, with dense rewards. No setting of any algorithm was chosen by them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register

from sb3_dpi.trajopt.types import FloatArray

ARM, QUADROTOR, CHAIN = (f"sb3_dpi_tests/{name}-v0" for name in ("TwoLinkArm", "PlanarQuadrotor", "MassSpringChain"))
LIMITS = {ARM: 200, QUADROTOR: 150, CHAIN: 100}
"""Steps of an episode"""
SUBSTEPS = 4
"""Of the semi-implicit Euler method, within a step"""


class SmallTask(gym.Env[np.ndarray, np.ndarray]):
    """
    Positions q with velocities v; a subclass says how they accelerate, what is seen and what is paid.

    :param observation_dim: entries of an observation
    :param action_dim: entries of an action, in [-1, 1]
    :param dt: length of a step, seconds
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_dim: int, action_dim: int, dt: float) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.dt, self.q, self.v = dt, np.zeros(0), np.zeros(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the initial state."""
        raise NotImplementedError

    def acceleration(self, action: FloatArray) -> FloatArray:
        """:return: of the positions"""
        raise NotImplementedError

    def observation(self) -> FloatArray:
        """:return: what is seen"""
        raise NotImplementedError

    def reward(self, action: FloatArray) -> float:
        """:return: of the state that an action has led to"""
        raise NotImplementedError

    def has_failed(self) -> bool:
        """:return: whether the episode ends here"""
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: the first observation"""
        super().reset(seed=seed)
        self.begin(self.np_random)
        return self.observation().astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """:return: what follows"""
        u = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        for _ in range(SUBSTEPS):
            self.v = self.v + self.dt / SUBSTEPS * self.acceleration(u)
            self.q = self.q + self.dt / SUBSTEPS * self.v
        return self.observation().astype(np.float32), self.reward(u), self.has_failed(), False, {}


class TwoLinkArm(SmallTask):
    """Two rods of one metre and one kilogram, driven at their joints in a horizontal plane, reach for a target and stay."""

    def __init__(self) -> None:
        super().__init__(observation_dim=8, action_dim=2, dt=0.03)

    def begin(self, rng: np.random.Generator) -> None:
        self.q, self.v = rng.uniform(-np.pi, np.pi, 2), rng.uniform(-0.5, 0.5, 2)
        radius, angle = rng.uniform(0.7, 1.7), rng.uniform(-np.pi, np.pi)
        self.target = radius * np.array([np.cos(angle), np.sin(angle)])

    def acceleration(self, action: FloatArray) -> FloatArray:
        c, s = np.cos(self.q[1]), np.sin(self.q[1])
        mass = np.array([[5.0 / 3.0 + c, 1.0 / 3.0 + 0.5 * c], [1.0 / 3.0 + 0.5 * c, 1.0 / 3.0]])
        w1, w2 = self.v
        coriolis = 0.5 * s * np.array([-w2 * (2.0 * w1 + w2), w1**2])
        acceleration: FloatArray = np.linalg.solve(mass, np.array([5.0, 2.5]) * action - coriolis - 0.5 * self.v)
        return acceleration

    def hand(self) -> FloatArray:
        """:return: where the second rod ends"""
        first, second = self.q[0], self.q.sum()
        return np.array([np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)])

    def observation(self) -> FloatArray:
        return np.concatenate([np.cos(self.q), np.sin(self.q), self.v, self.target - self.hand()])

    def reward(self, action: FloatArray) -> float:
        return -float(np.linalg.norm(self.target - self.hand()) + 0.05 * self.v @ self.v + 0.02 * action @ action)


class PlanarQuadrotor(SmallTask):
    """
    Two rotors on a beam fly to the origin and hover; without a command it sinks. It ends upside down or far away; all that is
    paid is above zero.
    """

    def __init__(self) -> None:
        super().__init__(observation_dim=7, action_dim=2, dt=0.05)

    def begin(self, rng: np.random.Generator) -> None:
        self.q = rng.uniform(-1.0, 1.0, 3) * np.array([2.0, 2.0, 0.5])
        self.v = rng.uniform(-0.5, 0.5, 3)

    def acceleration(self, action: FloatArray) -> FloatArray:
        lift, turn = 9.81 * (0.75 + 0.5 * action.sum()), 8.0 * (action[0] - action[1])
        angle = self.q[2]
        drag = np.array([0.2, 0.2, 1.0]) * self.v
        return np.array([-lift * np.sin(angle), lift * np.cos(angle) - 9.81, turn]) - drag

    def observation(self) -> FloatArray:
        angle = self.q[2]
        return np.concatenate([self.q[:2], [np.cos(angle), np.sin(angle)], self.v])

    def reward(self, action: FloatArray) -> float:
        cost = self.q[:2] @ self.q[:2] + 0.5 * self.q[2] ** 2 + 0.05 * self.v @ self.v + 0.02 * action @ action
        return float(1.0 / (1.0 + cost))

    def has_failed(self) -> bool:
        return bool(abs(self.q[2]) > 0.5 * np.pi or np.abs(self.q[:2]).max() > 4.0)


class MassSpringChain(SmallTask):
    """Five masses between springs that harden, hardly damped; a force on the first and one on the last bring all to rest."""

    def __init__(self) -> None:
        super().__init__(observation_dim=10, action_dim=2, dt=0.1)

    def begin(self, rng: np.random.Generator) -> None:
        self.q, self.v = rng.uniform(-1.0, 1.0, 5), rng.uniform(-1.0, 1.0, 5)

    def acceleration(self, action: FloatArray) -> FloatArray:
        stretch = np.diff(self.q, prepend=0.0, append=0.0)  # both ends are held
        pull = 2.0 * stretch + 0.2 * stretch**3
        force = np.diff(pull) - 0.02 * self.v
        force[[0, -1]] += 1.5 * action
        return force

    def observation(self) -> FloatArray:
        return np.concatenate([self.q, self.v])

    def reward(self, action: FloatArray) -> float:
        return -float(self.q @ self.q + 0.5 * self.v @ self.v + 0.05 * action @ action) / 5.0


def register_small_tasks() -> None:
    """Make them known to Gymnasium by their ids."""
    for name, entry in ((ARM, TwoLinkArm), (QUADROTOR, PlanarQuadrotor), (CHAIN, MassSpringChain)):
        if name not in gym.registry:
            register(name, entry_point=entry, max_episode_steps=LIMITS[name])
