"""Head-to-head runs of several algorithms on one task: ``python -m sb3_dpi.compare --help``."""

from sb3_dpi.compare.run import build_model, load_result, run_one
from sb3_dpi.compare.schedule import RunFailed, run_all
from sb3_dpi.compare.statistics import spread, steps_to_threshold
from sb3_dpi.compare.types import RunConfig, RunResult

__all__ = [
    "RunConfig",
    "RunFailed",
    "RunResult",
    "build_model",
    "load_result",
    "run_all",
    "run_one",
    "spread",
    "steps_to_threshold",
]
