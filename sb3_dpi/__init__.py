"""Dual policy iteration for Stable-Baselines3: an expert plans with a learned model, a fast policy imitates it."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_dpi.envs import register_envs

if TYPE_CHECKING:
    from sb3_dpi.aggrevated_oc import AggreVaTeDOC
    from sb3_dpi.common.environments import evaluate_on_environments, make_environments
    from sb3_dpi.dagger import DAgger
    from sb3_dpi.dpi import DPI
    from sb3_dpi.dual_ac import DualAC
    from sb3_dpi.expert_iteration import ExIt
    from sb3_dpi.mdgps import MDGPS
    from sb3_dpi.mpc import MPC

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()
__all__ = [
    "DPI",
    "MDGPS",
    "MPC",
    "AggreVaTeDOC",
    "DAgger",
    "DualAC",
    "ExIt",
    "__version__",
    "evaluate_on_environments",
    "make_environments",
]

_HOMES = {
    "AggreVaTeDOC": "sb3_dpi.aggrevated_oc",
    "DAgger": "sb3_dpi.dagger",
    "DPI": "sb3_dpi.dpi",
    "DualAC": "sb3_dpi.dual_ac",
    "ExIt": "sb3_dpi.expert_iteration",
    "MDGPS": "sb3_dpi.mdgps",
    "MPC": "sb3_dpi.mpc",
    "evaluate_on_environments": "sb3_dpi.common.environments",
    "make_environments": "sb3_dpi.common.environments",
}

register_envs()

if not TYPE_CHECKING:  # type checkers know all names from above

    def __getattr__(name: str) -> Any:
        """Import what is asked for: torch and Stable-Baselines3 take seconds, which the planners alone need not wait for."""
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
