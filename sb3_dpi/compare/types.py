"""The data of a comparison."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RunConfig:
    """All that determines one training run; where it is stored is not part of it."""

    algo: str
    """Name of the algorithm, as in RL Zoo, or ``module:Class``"""
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
    label: str = ""
    """Name of a variant of the algorithm, empty for the algorithm as it is"""
    task: str = ""
    """Name of a variant of the environment, empty for the environment as it is"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, for training and evaluation alike"""
    device: str = "cpu"
    eval_every: int = 250
    """Environment steps between two evaluations at first; see ``evaluation.evaluation_points``"""
    n_eval_episodes: int = 10

    def __post_init__(self) -> None:
        for name in ("seed", "n_timesteps", "eval_every", "n_eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def algo_name(self) -> str:
        """The name of the algorithm in paths: of ``module:Class`` the class in lower case."""
        return self.algo.rpartition(":")[2].lower()

    @property
    def name(self) -> str:
        """The name of the algorithm or its variant in tables and figures."""
        return self.label or self.algo_name

    @property
    def task_name(self) -> str:
        """The name of the task in tables and figures."""
        return self.task or self.env_id

    @property
    def env_name(self) -> str:
        """The id of the environment without what a file name cannot hold, as RL Zoo writes it."""
        return self.env_id.rpartition(":")[2].replace("/", "-")

    @property
    def path(self) -> str:
        """
        The folder of the run in that of the comparison.

        Variants have log folders of their own, ``[task/][label/]``: RL Zoo finds ``algorithm/environment_number`` there.
        """
        return "/".join(part for part in (self.task, self.label, self.algo_name, f"{self.env_name}_{self.seed}") if part)

    @property
    def settings(self) -> str:
        """Algorithm and hyperparameters in one text, which is the same for all seeds."""
        return json.dumps([self.algo, self.hyperparams], sort_keys=True, default=str)

    def __str__(self) -> str:
        return f"{self.name} on {self.task_name}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data, for JSON and YAML."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """The seconds of a run."""

    wall_seconds: float
    """Of training alone"""
    cpu_seconds: float
    """Of training alone, all threads of the process"""
    evaluation_seconds: float
    """Wall seconds of all evaluations"""
    evaluation_cpu_seconds: float
    """CPU seconds of all evaluations"""


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run in the order of time."""

    timesteps: npt.NDArray[np.int64]
    """Environment steps of each evaluation, ``[k]``"""
    results: npt.NDArray[np.float64]
    """Raw episode returns, ``[k, episodes]``"""
    lengths: npt.NDArray[np.int64]
    """Episode lengths, ``[k, episodes]``"""
    successes: npt.NDArray[np.bool_] | None = None
    """Success of each episode where the environment tells it, ``[k, episodes]``"""
    wall_seconds: npt.NDArray[np.float64] | None = None
    """Wall seconds of training until each evaluation, evaluations not counted, ``[k]``"""

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Mean return of each evaluation, ``[k]``."""
        means: npt.NDArray[np.float64] = self.results.mean(axis=1)
        return means

    def arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Pair the arrays, those that are None left out, with their names in RL Zoo's ``evaluations.npz``."""
        names = {"lengths": "ep_lengths"}
        for name, array in vars(self).items():
            if array is not None:
                yield names.get(name, name), array


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    config: RunConfig
    curve: Curve
    timing: Timing
    versions: dict[str, str] = field(default_factory=dict)
    """Of the distributions that the run's key names, and ``algorithm_version`` for an algorithm of this package"""
    imported: bool = False
    """Whether it was read from stored baselines"""

    @property
    def final_return(self) -> float:
        """Mean return of the evaluation after the end of training."""
        return float(self.curve.results[-1].mean())
