"""What a user knows of a system, as a world model asks for it: of actions in units of the bounds."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dpi.common.action_units import bounds, from_units
from sb3_dpi.world_model.ensemble import SystemFunction, WorldModel


def known_functions(
    world_model: WorldModel, action_space: spaces.Space[Any]
) -> tuple[SystemFunction | None, SystemFunction | None]:
    """
    Known rewards and ends, of actions in units of the bounds.

    :param world_model: holds what the user knows, in the environment's units
    :param action_space: bounded Box
    :return: the reward and whether an episode ends, None where it is learned
    """
    assert isinstance(action_space, spaces.Box)
    limits = np.stack([bound.reshape(-1) for bound in bounds(action_space)])

    def env_units(actions: th.Tensor) -> th.Tensor:
        low, high = th.as_tensor(limits, device=actions.device).unbind()
        return from_units(actions, low, high)

    cost, end = world_model.cost_fn, world_model.termination_fn
    reward = None if cost is None else lambda state, action, following: -cost(state, env_units(action), following)
    return reward, None if end is None else lambda state, action, following: end(state, env_units(action), following)
