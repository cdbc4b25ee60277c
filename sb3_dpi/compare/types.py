"""The data of a comparison."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RunConfig:
    """All that determines one training run."""

    algo: str
    """Name of the algorithm, as in RL Zoo"""
    env_id: str
    """Id of the task in Gymnasium"""
    seed: int
    """From 1: RL Zoo takes a folder number 0 for "the latest\""""
    n_timesteps: int
    """Budget of environment steps"""
    hyperparams: dict[str, Any]
    """Resolved, in RL Zoo's format"""
    source: str = ""
    """Where the hyperparameters come from"""
    out: str = "compare"
    """Folder of the comparison"""
    label: str = ""
    """Name of a variant of the algorithm, empty for the algorithm as it is"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task, for training and evaluation alike"""
    device: str = "cpu"
    n_evaluations: int = 50
    """Evaluations due over the budget; the one after the end of training comes on top"""
    n_eval_episodes: int = 10

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        return self.label or self.algo

    @property
    def env_name(self) -> str:
        """The id without what a file name cannot hold, as RL Zoo writes it."""
        return self.env_id.rpartition(":")[2].replace("/", "-")

    @property
    def folder(self) -> Path:
        """The folder of the run; that of a variant is a log folder of its own, so that RL Zoo finds the algorithm in it."""
        return Path(self.out) / self.label / self.algo / f"{self.env_name}_{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to plain data.

        :return: One key per attribute, for JSON and YAML
        """
        return asdict(self)


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    config: RunConfig
    timesteps: npt.NDArray[np.int64]
    """Environment steps of each evaluation, ``[k]``"""
    results: npt.NDArray[np.float64]
    """Raw episode returns, ``[k, episodes]``"""
    lengths: npt.NDArray[np.int64]
    """Episode lengths, ``[k, episodes]``"""
    wall_seconds: float
    """Of training alone"""
    cpu_seconds: float
    """Of training alone"""
    evaluation_seconds: float
    """Wall seconds of all evaluations"""
    successes: npt.NDArray[np.bool_] | None = None
    """Success of each episode where the environment tells it, ``[k, episodes]``"""

    @property
    def final_return(self) -> float:
        """Mean return of the evaluation after the end of training."""
        return float(self.results[-1].mean())
