"""What Gymnasium's MuJoCo tasks (v5) observe, earn and end by, as functions of states of many simulations at once.

Each is what the task's ``step`` does after the simulation, numbers in the same precision: squares of actions are summed in
single precision, as actions are. A task that reads more than joints says what (``reads``): positions of bodies as the last
step of the simulation began, and forces, which only the simulation's data have.

Shapes: ``...`` simulations; qpos ``[..., nq]``, qvel ``[..., nv]``, actions ``[..., nu]`` in the task's units.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dpi.trajopt.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Readings:
    """What is read of simulations."""

    qpos: FloatArray
    """``[..., nq]``"""
    qvel: FloatArray
    """``[..., nv]``"""
    more: dict[str, FloatArray] = field(default_factory=dict)
    """arrays of the data by their names there, ``[..., *]``"""

    def at(self, index: Any) -> "Readings":
        """:return: some of them"""
        return Readings(self.qpos[index], self.qvel[index], {name: array[index] for name, array in self.more.items()})


class Task:
    """Observation, reward and termination of a task.

    :param env: the task, without wrappers
    """

    reads: tuple[str, ...] = ()
    largest_velocity = np.inf
    """that is observed: of one there, no more is known"""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.n_skipped = int(getattr(env, "_exclude_current_positions_from_observation", False))

    def observe(self, now: Readings) -> FloatArray:
        """
        Observe.

        :param now: ``[...]``
        :return: ``[..., do]``
        """
        return np.concatenate([now.qpos[..., self.n_skipped :], now.qvel], -1)

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        """
        Reward steps.

        :param before: them, ``[...]``
        :param now: after them, ``[...]``
        :param actions: ``[..., nu]``
        :return: ``[...]``
        """
        raise NotImplementedError

    def terminated(self, now: Readings) -> BoolArray:
        """
        Tell which episodes are over.

        :param now: ``[...]``
        :return: ``[...]``
        """
        return np.zeros(now.qpos.shape[:-1], dtype=bool)

    def control_cost(self, actions: FloatArray) -> FloatArray:
        """:return: the weighted squares of actions"""
        cost: FloatArray = self.env._ctrl_cost_weight * np.sum(np.square(actions), axis=-1)
        return cost

    def forward_reward(self, before: Readings, now: Readings) -> FloatArray:
        """:return: of the motion along the first coordinate"""
        reward: FloatArray = self.env._forward_reward_weight * ((now.qpos[..., 0] - before.qpos[..., 0]) / self.env.dt)
        return reward


class HalfCheetah(Task):
    """HalfCheetah-v5."""

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        return self.forward_reward(before, now) - self.control_cost(actions)


class Swimmer(HalfCheetah):
    """Swimmer-v5."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.n_skipped *= 2


class Walker2d(Task):
    """Walker2d-v5."""

    largest_velocity = 10.0

    def observe(self, now: Readings) -> FloatArray:
        seen = np.clip(now.qvel, -self.largest_velocity, self.largest_velocity)
        return np.concatenate([now.qpos[..., self.n_skipped :], seen], -1)

    def is_healthy(self, now: Readings) -> BoolArray:
        """:return: whether it stands"""
        (low, high), (left, right) = self.env._healthy_z_range, self.env._healthy_angle_range
        z, angle = now.qpos[..., 1], now.qpos[..., 2]
        healthy: BoolArray = (low < z) & (z < high) & (left < angle) & (angle < right)
        return healthy

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        healthy = self.is_healthy(now) * self.env._healthy_reward
        total: FloatArray = self.forward_reward(before, now) + healthy - self.control_cost(actions)
        return total

    def terminated(self, now: Readings) -> BoolArray:
        over: BoolArray = ~self.is_healthy(now) & self.env._terminate_when_unhealthy
        return over


class Hopper(Walker2d):
    """Hopper-v5."""

    def is_healthy(self, now: Readings) -> BoolArray:
        low, high = self.env._healthy_state_range
        rest = np.concatenate([now.qpos[..., 2:], now.qvel], -1)
        healthy: BoolArray = super().is_healthy(now) & np.all((low < rest) & (rest < high), -1)
        return healthy


class Ant(Task):
    """Ant-v5."""

    reads = ("xpos", "cfrc_ext")

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.n_skipped *= 2
        self.body = env.data.body(env._main_body).id

    def contact_forces(self, now: Readings) -> FloatArray:
        """:return: clipped, ``[..., nbody, 6]``"""
        forces: FloatArray = np.clip(now.more["cfrc_ext"], *self.env._contact_force_range)
        return forces

    def observe(self, now: Readings) -> FloatArray:
        joints = super().observe(now)
        if not self.env._include_cfrc_ext_in_observation:
            return joints
        forces = self.contact_forces(now)[..., 1:, :]
        return np.concatenate([joints, forces.reshape(*forces.shape[:-2], -1)], -1)

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        moved = now.more["xpos"][..., self.body, 0] - before.more["xpos"][..., self.body, 0]
        forward = moved / self.env.dt * self.env._forward_reward_weight
        contact = self.env._contact_cost_weight * np.sum(np.square(self.contact_forces(now)), axis=(-2, -1))
        healthy = self.is_healthy(now) * self.env._healthy_reward
        total: FloatArray = forward + healthy - (self.control_cost(actions) + contact)
        return total

    def is_healthy(self, now: Readings) -> BoolArray:
        """:return: whether it stands"""
        low, high = self.env._healthy_z_range
        z = now.qpos[..., 2]
        finite = np.isfinite(now.qpos).all(-1) & np.isfinite(now.qvel).all(-1)
        healthy: BoolArray = finite & (low <= z) & (z <= high)
        return healthy

    def terminated(self, now: Readings) -> BoolArray:
        over: BoolArray = ~self.is_healthy(now) & self.env._terminate_when_unhealthy
        return over


class Reacher(Task):
    """Reacher-v5."""

    reads = ("xpos",)

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.bodies = [env.data.body(name).id for name in ("fingertip", "target")]

    def _apart(self, now: Readings) -> FloatArray:
        return now.more["xpos"][..., self.bodies[0], :] - now.more["xpos"][..., self.bodies[1], :]

    def observe(self, now: Readings) -> FloatArray:
        theta = now.qpos[..., :2]
        rest = now.qpos[..., 2:], now.qvel[..., :2], self._apart(now)[..., :2]
        return np.concatenate([np.cos(theta), np.sin(theta), *rest], -1)

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        near = -np.linalg.norm(self._apart(now), axis=-1) * self.env._reward_dist_weight
        total: FloatArray = near - np.square(actions).sum(-1) * self.env._reward_control_weight
        return total


class Pusher(Task):
    """Pusher-v5."""

    reads = ("xpos",)

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.bodies = [env.data.body(name).id for name in ("tips_arm", "object", "goal")]

    def _places(self, now: Readings) -> list[FloatArray]:
        return [now.more["xpos"][..., body, :] for body in self.bodies]

    def observe(self, now: Readings) -> FloatArray:
        return np.concatenate([now.qpos[..., :7], now.qvel[..., :7], *self._places(now)], -1)

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        tip, thing, goal = self._places(now)
        near = -np.linalg.norm(thing - tip, axis=-1) * self.env._reward_near_weight
        apart = -np.linalg.norm(thing - goal, axis=-1) * self.env._reward_dist_weight
        total: FloatArray = apart - np.square(actions).sum(-1) * self.env._reward_control_weight + near
        return total


class InvertedPendulum(Task):
    """InvertedPendulum-v5."""

    def terminated(self, now: Readings) -> BoolArray:
        finite = np.isfinite(now.qpos).all(-1) & np.isfinite(now.qvel).all(-1)
        over: BoolArray = ~finite | (np.abs(now.qpos[..., 1]) > 0.2)
        return over

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        return (~self.terminated(now)).astype(np.float64)


class InvertedDoublePendulum(Task):
    """InvertedDoublePendulum-v5."""

    reads = ("site_xpos", "qfrc_constraint")
    largest_velocity = 10.0

    def observe(self, now: Readings) -> FloatArray:
        angles, limit = now.qpos[..., 1:], self.largest_velocity
        velocities, force = np.clip(now.qvel, -limit, limit), np.clip(now.more["qfrc_constraint"], -10, 10)[..., :1]
        return np.concatenate([now.qpos[..., :1], np.sin(angles), np.cos(angles), velocities, force], -1)

    def terminated(self, now: Readings) -> BoolArray:
        over: BoolArray = now.more["site_xpos"][..., 0, 2] <= 1
        return over

    def reward(self, before: Readings, now: Readings, actions: FloatArray) -> FloatArray:
        x, y = now.more["site_xpos"][..., 0, 0], now.more["site_xpos"][..., 0, 2]
        apart = 0.01 * x**2 + (y - 2) ** 2
        moving = 1e-3 * now.qvel[..., 1] ** 2 + 5e-3 * now.qvel[..., 2] ** 2
        total: FloatArray = self.env._healthy_reward * ~self.terminated(now) - apart - moving
        return total


_TASKS: dict[str, type[Task]] = {
    "half_cheetah_v5.HalfCheetahEnv": HalfCheetah,
    "hopper_v5.HopperEnv": Hopper,
    "walker2d_v5.Walker2dEnv": Walker2d,
    "ant_v5.AntEnv": Ant,
    "swimmer_v5.SwimmerEnv": Swimmer,
    "reacher_v5.ReacherEnv": Reacher,
    "pusher_v5.PusherEnv": Pusher,
    "inverted_pendulum_v5.InvertedPendulumEnv": InvertedPendulum,
    "inverted_double_pendulum_v5.InvertedDoublePendulumEnv": InvertedDoublePendulum,
}


def known_task(base: gym.Env) -> Task | None:
    """
    Look a task up.

    :param base: an environment without wrappers
    :return: None where it is not one of these, or a class that was derived from one
    """
    module = type(base).__module__.rpartition("gymnasium.envs.mujoco.")[2]
    task = _TASKS.get(f"{module}.{type(base).__qualname__}")
    return None if task is None else task(base)
