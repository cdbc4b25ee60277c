"""Models of cost, dynamics and value in torch; nothing here knows Stable-Baselines3."""

from sb3_dpi.world_model.known_cost import CostFunction, expand_cost

__all__ = ["CostFunction", "expand_cost"]
