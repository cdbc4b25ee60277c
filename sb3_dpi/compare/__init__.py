"""Head-to-head runs of several algorithms: ``python -m sb3_dpi.compare --help``."""

from importlib.util import find_spec

_NEEDED = ("filelock", "jinja2", "markdown_it", "matplotlib", "pandas", "rich", "yaml")
# Before anything runs: a report that cannot be written is found out hours too late
if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ImportError(f"The comparison lab needs {', '.join(_missing)}: pip install 'sb3_dpi[lab]'")

from sb3_dpi.compare.build import build_model  # noqa: E402
from sb3_dpi.compare.run import run_one  # noqa: E402
from sb3_dpi.compare.study import load_study  # noqa: E402
from sb3_dpi.compare.types import RunConfig, RunResult  # noqa: E402

__all__ = ["RunConfig", "RunResult", "build_model", "load_study", "run_one"]
