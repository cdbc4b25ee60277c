"""Policies out: ``python -m sb3_dpi.export model.zip --to onnx``."""

from sb3_dpi.common.saved_files import ExportError
from sb3_dpi.export.deployed import DeployedPolicy
from sb3_dpi.export.files import FORMATS, export_policy

__all__ = ["FORMATS", "DeployedPolicy", "ExportError", "export_policy"]
