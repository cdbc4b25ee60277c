"""What an expert is asked to solve."""

from dataclasses import dataclass

import torch as th

from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.critic import Critic
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Imagined, Windows


@dataclass(frozen=True)
class PlanningProblem:
    """Improve on a policy in imagined windows."""

    actor: SquashedGaussian
    """the policy"""
    ensemble: Ensemble
    """the model"""
    critic: Critic
    """closes the windows"""
    windows: Windows
    """where they begin"""
    temperature: float
    """alpha, in units of value"""
    gamma: float
    """discount factor"""

    def gains(self, imagined: Imagined) -> tuple[th.Tensor, th.Tensor]:
        """
        What the steps of a window earn, without entropy; the critic closes it.

        :param imagined: what happened in its windows, or to particles of them
        :return: in units of value, and discount times continuation, by which they count, ``[H + 1, E, rows]`` each
        """
        closing = self.critic(imagined.states[-1].flatten(0, 1), imagined.actions[-1].flatten(0, 1))
        gains = th.cat([imagined.rewards / self.critic.unit.float(), closing.view(imagined.continuation.shape[1:])[None]])
        discounts = self.gamma ** th.arange(len(gains), device=gains.device)
        return gains, discounts[:, None, None] * imagined.continuation

    @property
    def noise_shape(self) -> tuple[int, int, int, int]:
        """Of the policy's noise, one sequence for each window: ``[H + 1, E, m, du]``."""
        E, m, _ = self.windows.states.shape
        return self.windows.horizon + 1, E, m, self.actor.action_dim
