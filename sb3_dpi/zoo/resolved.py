"""The hyperparameters of the present command, as RL Zoo reads them when ``--conf-file`` names this module."""

from typing import Any

hyperparams: dict[str, dict[str, Any]] = {}
"""From task id to hyperparameters, filled by ``python -m sb3_dpi.zoo``"""
