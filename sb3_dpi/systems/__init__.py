"""What plans are made in: simulators, learned models, tables. Nothing here knows Stable-Baselines3."""

from sb3_dpi.systems.continuous import ContinuousSimulator
from sb3_dpi.systems.copies import NotCopyableError, ReadableState, SimulatorState
from sb3_dpi.systems.learned import EnsembleSystem, LocalSystem
from sb3_dpi.systems.protocols import RewardSystem, Rollouts, Trace, returns_of, trace_of
from sb3_dpi.systems.simulator import Simulator
from sb3_dpi.systems.table import Table
from sb3_dpi.systems.varied import VariedSystem

__all__ = [
    "ContinuousSimulator",
    "EnsembleSystem",
    "LocalSystem",
    "NotCopyableError",
    "ReadableState",
    "RewardSystem",
    "Rollouts",
    "Simulator",
    "SimulatorState",
    "Table",
    "Trace",
    "VariedSystem",
    "returns_of",
    "trace_of",
]
