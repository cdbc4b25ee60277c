"""Head-to-head runs of several algorithms: ``python -m sb3_dpi.compare --help``."""

from sb3_dpi.compare.build import build_model
from sb3_dpi.compare.run import run_one
from sb3_dpi.compare.types import RunConfig, RunResult

__all__ = ["RunConfig", "RunResult", "build_model", "run_one"]
