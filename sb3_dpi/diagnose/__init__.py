"""A look inside a model: ``python -m sb3_dpi.diagnose model.zip --env ID``."""

from sb3_dpi.common.extras import need

need("lab", "jinja2", "matplotlib", "pandas")

from sb3_dpi.diagnose.callback import DiagnoseCallback  # noqa: E402
from sb3_dpi.diagnose.measure import Findings, measure  # noqa: E402
from sb3_dpi.diagnose.run import diagnose  # noqa: E402
from sb3_dpi.diagnose.subject import DiagnoseError, as_subject  # noqa: E402

__all__ = ["DiagnoseCallback", "DiagnoseError", "Findings", "as_subject", "diagnose", "measure"]
