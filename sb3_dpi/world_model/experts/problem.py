"""What an expert is asked to solve."""

from dataclasses import dataclass

from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.critic import Critic
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Windows


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

    @property
    def noise_shape(self) -> tuple[int, int, int, int]:
        """Of the policy's noise, one sequence for each window: ``[H + 1, E, m, du]``."""
        E, m, _ = self.windows.states.shape
        return self.windows.horizon + 1, E, m, self.actor.action_dim
