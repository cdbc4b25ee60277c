"""Head-to-head runs of several algorithms: ``python -m sb3_dpi.compare --help``."""

from sb3_dpi.common.extras import need

need("lab", "filelock", "jinja2", "markdown_it", "matplotlib", "pandas", "pydantic", "rich", "yaml")

from sb3_dpi.compare.build import build_model  # noqa: E402
from sb3_dpi.compare.run import run_one  # noqa: E402
from sb3_dpi.compare.study import load_study  # noqa: E402
from sb3_dpi.compare.types import RunConfig, RunResult  # noqa: E402

__all__ = ["RunConfig", "RunResult", "build_model", "load_study", "run_one"]
