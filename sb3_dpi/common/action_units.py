"""Actions in units of their bounds: of all kinds of numbers, and only where there are bounds."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dpi.trajopt.types import BoolArray

Array = TypeVar("Array", np.ndarray, th.Tensor)


def to_units(actions: Array, low: Array, high: Array) -> Array:
    """
    From the environment's units to those of the bounds.

    :param actions: ``[..., *shape]``
    :param low: lowest action
    :param high: highest action
    :return: from -1 to 1; 0 where there is but one action
    """
    fixed = high == low
    units: Array = 2.0 * ((actions - low) / (high - low + fixed)) + fixed - 1.0
    return units


def from_units(units: Array, low: Array, high: Array) -> Array:
    """
    From units of the bounds to those of the environment.

    :param units: ``[..., *shape]``, from -1 to 1
    :param low: lowest action
    :param high: highest action
    :return: between the bounds
    """
    actions: Array = low + 0.5 * (units + 1.0) * (high - low)
    return actions


def bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """
    Bounds to compute with: the range of small integers is no number of their type, and truth values have no difference.

    :param space: of actions
    :return: lowest and highest actions, floating-point numbers
    """
    if space.low.dtype in (np.float32, np.float64):
        return space.low, space.high
    kind = np.float64 if space.low.dtype.itemsize > 2 else np.float32
    return space.low.astype(kind), space.high.astype(kind)


def flat_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """
    The same for actions behind each other, in double precision.

    :param space: of actions
    :return: lowest and highest actions, ``[du]`` each
    """
    low, high = (bound.ravel().astype(np.float64) for bound in bounds(space))
    return low, high


def is_bounded(space: spaces.Box) -> bool:
    """
    Tell whether bounds can serve as units. Infinite ones cannot, and the largest number of a type stands for infinity.

    :param space: of actions
    :return: whether all actions have two bounds
    """
    with np.errstate(over="ignore"):
        ranges = np.subtract(*(bound.astype(np.float32) for bound in (space.high, space.low)))
    return bool(np.all(np.isfinite(ranges))) and not bool((_endless(space.low) | _endless(space.high)).any())


def check_bounded(space: spaces.Box) -> None:
    """
    Refuse actions without units.

    :param space: of actions
    :raises ValueError: if a bound is infinite
    """
    if not is_bounded(space):
        raise ValueError(
            f"The action space must have a finite lower and upper bound in every entry, for actions are in units of their "
            f"bounds; the largest number of a type is no bound: {space}. Give the bounds that the task has, or use an "
            "algorithm that acts in the environment's units (DualAC, PPO)"
        )


def _endless(bound: np.ndarray) -> BoolArray:
    kind = bound.dtype
    endless: BoolArray
    if kind.kind == "f":
        largest = min(float(np.finfo(kind).max), float(np.finfo(np.float32).max))
        endless = np.abs(bound.astype(np.float64)) >= 0.999 * largest
        return endless
    if kind.kind in "iu" and kind.itemsize >= 4:  # all values of the smaller types are possible actions
        endless = (bound == np.iinfo(kind).max) | ((bound == np.iinfo(kind).min) & (kind.kind == "i"))
        return endless
    return np.zeros(bound.shape, dtype=bool)


def hold_fractions(buffer: BaseBuffer) -> None:
    """
    Let a buffer hold actions in units of the bounds, which are no integers whatever those of the environment are.

    :param buffer: empty, of Stable-Baselines3
    """
    space = buffer.action_space
    if isinstance(space, spaces.Box) and space.dtype not in (np.float32, np.float64):
        buffer.action_space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        if isinstance(buffer, ReplayBuffer):
            buffer.actions = buffer.actions.astype(np.float32)
        else:
            buffer.reset()


class AnyBox(BasePolicy):
    """What a policy inherits so that it takes Boxes of all kinds of numbers, and observations with keys it does not know."""

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        From the environment's units to those of the bounds.

        :param action: ``[..., *action_shape]``
        :return: from -1 to 1
        """
        assert isinstance(self.action_space, spaces.Box)
        return to_units(action, *bounds(self.action_space))

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        From units of the bounds to those of the environment.

        :param scaled_action: ``[..., *action_shape]``, from -1 to 1
        :return: between the bounds
        """
        assert isinstance(self.action_space, spaces.Box)
        return from_units(scaled_action, *bounds(self.action_space))

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """
        Convert a numpy observation; keys beyond the observation space are left out.

        :param observation: array or dictionary of arrays
        :return: tensors, and whether the observation was vectorized
        """
        if isinstance(observation, dict) and isinstance(self.observation_space, spaces.Dict):
            observation = {key: array for key, array in observation.items() if key in self.observation_space.spaces}
        return super().obs_to_tensor(observation)
