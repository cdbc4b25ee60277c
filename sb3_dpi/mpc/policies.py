"""What stands where Stable-Baselines3 expects a policy: there is no network, the model plans."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_dpi.common.action_units import AnyBox


class PlanPolicy(AnyBox):
    """
    Spaces, and actions in units of their bounds.

    :param observation_space: a vector
    :param action_space: bounded Box
    :param lr_schedule: not used
    :param kwargs: of ``BasePolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        raise NotImplementedError("MPC has no network that acts: call predict of the model, which plans")
