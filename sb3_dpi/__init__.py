"""Dual policy iteration for Stable-Baselines3: an expert plans with a learned model, a fast policy imitates it."""

from pathlib import Path

from sb3_dpi.aggrevated_oc import AggreVaTeDOC
from sb3_dpi.common.environments import evaluate_on_environments, make_environments
from sb3_dpi.dpi import DPI
from sb3_dpi.dual_ac import DualAC
from sb3_dpi.envs import register_envs
from sb3_dpi.mdgps import MDGPS

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

register_envs()

__all__ = ["DPI", "MDGPS", "AggreVaTeDOC", "DualAC", "__version__", "evaluate_on_environments", "make_environments"]
