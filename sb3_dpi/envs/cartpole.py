"""Cart-pole balancing with a continuous force and a smooth reward.

The model of Barto, Sutton and Anderson (1983): a uniform, frictionless pole hinged on a cart of 1 kg, gravity 9.8 m/s^2,
steps of .02 s. With the cart at ``p``, the pole's angle ``theta`` from the upright, its half length ``l``, its mass
``m`` and the total mass ``M``::

    M p'' + m l cos(theta) theta'' = force + m l theta'^2 sin(theta)
    m l cos(theta) p'' + 4/3 m l^2 theta'' = m g l sin(theta)

Velocities are advanced first and positions with the new velocities (semi-implicit Euler): as episodes never terminate, a
pole that has fallen keeps swinging, and the explicit scheme would feed it energy.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

GRAVITY = 9.8
CART_MASS = 1.0
MAX_FORCE = 10.0
TIME_STEP = 0.02

ANGLE_COST = 1.0
POSITION_COST = 1.0
ACTION_COST = 0.1

BALANCED_ANGLE = 0.05
BALANCED_STEPS = 50


class CartPoleBalanceEnv(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """
    Keep the pole upright and the cart near the origin: ``sb3_dpi/CartPoleBalance-v0``, 150 steps of .02 s (the limit is
    set by the registration), no termination.

    - Action: the force on the cart, one number in [-1, 1] in units of 10 N; what lies outside is clipped.
    - Observation: cart position [m], cart velocity [m/s], pole angle [rad] (0 upright, not wrapped), angular velocity
      [rad/s].
    - Reward: ``-(2 (1 - cos(angle)) + position^2 / (1 + position^2) + .1 action^2)`` of the state in which the action is
      taken: ``angle^2 + position^2`` near the balance, at most 5.1 in all.
    - Start: position, velocity and angular velocity uniform in +-.05, angle in +-.1; without control the pole falls,
      mostly within one and a half seconds.
    - ``info["angle"]``: the pole's angle after the step; ``info["is_success"]``: whether it stayed within .05 rad over the
      last 50 steps.

    A linear-quadratic regulator returns about -.3, doing nothing about -110.

    :param pole_mass: mass of the pole in kg, positive; .1 in the classic model, .05 to .5 for robustness studies
    :param pole_length: half of the pole's length in m (hinge to centre of mass), positive; .5 in the classic model; a
        shorter pole falls faster
    :raises ValueError: if ``pole_mass`` or ``pole_length`` is not a positive number
    """

    def __init__(self, pole_mass: float = 0.1, pole_length: float = 0.5) -> None:
        for name, value in (("pole_mass", pole_mass), ("pole_length", pole_length)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number, got {value}")
        self.pole_mass = float(pole_mass)
        self.pole_length = float(pole_length)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(4,), dtype=np.float32)
        self.state = np.zeros(4)
        self._steps_upright = 0

    def accelerations(self, state: npt.NDArray[np.float64], force: float) -> tuple[float, float]:
        """
        Solve the equations of motion for the accelerations.

        :param state: position, velocity, angle, angular velocity; ``[4]``
        :param force: force on the cart in N
        :return: acceleration of the cart in m/s^2 and of the pole's angle in rad/s^2
        """
        _, _, angle, angular_velocity = state
        total_mass = CART_MASS + self.pole_mass
        mass_length = self.pole_mass * self.pole_length
        sin, cos = np.sin(angle), np.cos(angle)
        free = (force + mass_length * angular_velocity**2 * sin) / total_mass
        inertia = self.pole_length * (4.0 / 3.0 - self.pole_mass * cos**2 / total_mass)
        angular_acceleration = (GRAVITY * sin - cos * free) / inertia
        return float(free - mass_length * cos * angular_acceleration / total_mass), float(angular_acceleration)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """
        Start an episode from a random state near the upright.

        :param seed: fixes the initial state and those that follow it
        :param options: not used
        :return: observation ``[4]`` and info
        """
        super().reset(seed=seed)
        self._steps_upright = 0
        self.state = self.np_random.uniform(-1.0, 1.0, size=4) * np.array([0.05, 0.05, 0.1, 0.05])
        return self._observation(), self._info()

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        Apply a force for one time step.

        :param action: force in units of 10 N, ``[1]``, clipped to [-1, 1]
        :return: observation ``[4]``, reward, ``False``, ``False``, info
        :raises ValueError: if the action is not one finite number
        """
        values = np.asarray(action, dtype=np.float64).ravel()
        if values.shape != (1,) or not np.isfinite(values[0]):
            raise ValueError(f"the action must be one finite number, got {action}: check the policy that produced it")
        control = float(np.clip(values[0], -1.0, 1.0))
        position, velocity, angle, angular_velocity = self.state
        # quadratic near the balance, bounded far from it: a fall must not drown what is to be learned
        falling, straying = 2.0 * (1.0 - np.cos(angle)), position**2 / (1.0 + position**2)
        reward = -float(ANGLE_COST * falling + POSITION_COST * straying + ACTION_COST * control**2)

        acceleration, angular_acceleration = self.accelerations(self.state, MAX_FORCE * control)
        velocity += TIME_STEP * acceleration
        angular_velocity += TIME_STEP * angular_acceleration
        self.state = np.array(
            [position + TIME_STEP * velocity, velocity, angle + TIME_STEP * angular_velocity, angular_velocity],
            dtype=np.float64,
        )
        self._steps_upright = self._steps_upright + 1 if abs(self.state[2]) <= BALANCED_ANGLE else 0
        return self._observation(), reward, False, False, self._info()

    def _observation(self) -> npt.NDArray[np.float32]:
        """:return: the state in the observation's precision, ``[4]``"""
        return self.state.astype(np.float32)

    def _info(self) -> dict[str, Any]:
        """:return: the pole's angle, and whether it has been balanced for the last steps"""
        return {"angle": float(self.state[2]), "is_success": self._steps_upright >= BALANCED_STEPS}
