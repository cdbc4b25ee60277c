"""What is looked into: a model with all that it has learned, or a policy alone."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, MPC
from sb3_dpi.common.action_units import bounds, flat_bounds, from_units, is_bounded, to_units
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.saved_files import ExportError, check_statistics, load_normalizer, saved_file
from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.export.deployed import load_policy
from sb3_dpi.mpc.policies import PlanPolicy
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.zoo.register import ALGORITHMS, algorithm_class

OWN: dict[str, type[SavedModel]] = {algorithm: algorithm_class(name) for name, algorithm in ALGORITHMS.items()}

NOTHING_TO_SEE = (
    "MPC has no network that acts, so there is no policy to look into: it plans. How well it predicts is in its log, "
    "model/r_squared and plan/predicted_return beside plan/real_return"
)


class DiagnoseError(ValueError):
    """Something that cannot be looked into."""


@dataclass(frozen=True)
class Subject:
    """A policy and what stands behind it."""

    name: str
    """of the algorithm, or of the policy's class"""
    policy: BasePolicy
    """what acts"""
    model: Any
    """the algorithm, which nothing here changes; None where only a policy is known"""
    normalizer: VecNormalize | None
    """whose statistics show the policy its observations"""
    num_timesteps: int
    """real steps of training"""

    @property
    def gamma(self) -> float | None:
        """Discount factor of its critic; None where that is not known."""
        found = getattr(self.model, "discount", None) or getattr(self.model, "gamma", None)
        return None if found is None else float(found)

    @property
    def has_ensemble(self) -> bool:
        """Whether a neural model has learned something."""
        return isinstance(self.model, DPI) and self.model.ensemble.has_units

    @property
    def has_local_models(self) -> bool:
        """Whether it plans with local models."""
        return isinstance(self.model, DualPolicyAlgorithm)

    @property
    def action_box(self) -> spaces.Box | None:
        """The space of its actions, where bounds can serve as units."""
        space = self.policy.action_space
        return space if isinstance(space, spaces.Box) and is_bounded(space) else None

    def to_units(self, actions: np.ndarray) -> FloatArray:
        """
        From the environment's units to those of the bounds.

        :param actions: ``[n, *action_shape]``
        :return: ``[n, du]``, as they are where there are no bounds
        """
        flat = np.asarray(actions, np.float64).reshape(len(actions), -1)
        if self.action_box is None:
            return flat
        return to_units(flat, *flat_bounds(self.action_box))

    def to_env(self, units: FloatArray) -> np.ndarray:
        """
        From units of the bounds to what the environment takes.

        :param units: ``[n, du]``
        :return: ``[n, *action_shape]``, within the bounds
        """
        space, shape = self.policy.action_space, (len(units), *(self.policy.action_space.shape or ()))
        if not isinstance(space, spaces.Box):
            return units.reshape(shape).astype(space.dtype)
        if self.action_box is None:
            return np.clip(units.reshape(shape), space.low, space.high).astype(space.dtype)
        low, high = bounds(space)
        scaled = from_units(np.clip(units, -1.0, 1.0).reshape(shape), low, high)
        return scaled.astype(space.dtype) if np.issubdtype(space.dtype, np.floating) else scaled


def as_subject(
    model: "BaseAlgorithm | BasePolicy | Subject | str | Path", vec_normalize: VecNormalize | str | Path | None = None
) -> Subject:
    """
    Read what a user gave.

    :param model: a model, a policy, or the path of a saved model
    :param vec_normalize: the wrapper, the path of its statistics, or None: that of the model's own environment
    :return: what can be looked into
    :raises DiagnoseError: if there is no policy in it, or the statistics are of other observations
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, MPC | PlanPolicy):
        raise DiagnoseError(NOTHING_TO_SEE)
    try:
        normalizer = load_normalizer(Path(vec_normalize)) if isinstance(vec_normalize, str | Path) else vec_normalize
        subject = _read(model, normalizer)
        if subject.normalizer is not None:
            check_statistics(subject.normalizer, subject.policy.observation_space)
    except ExportError as error:
        raise DiagnoseError(str(error)) from error
    return subject


def _read(model: BaseAlgorithm | BasePolicy | str | Path, normalizer: VecNormalize | None) -> Subject:
    if isinstance(model, BasePolicy):
        return Subject(type(model).__name__, model, None, normalizer, 0)
    if isinstance(model, str | Path):
        return _load(Path(model), normalizer)
    own = model.get_vec_normalize_env() if normalizer is None else normalizer
    return Subject(type(model).__name__, model.policy, model, own, model.num_timesteps)


def _load(path: Path, normalizer: VecNormalize | None) -> Subject:
    path = saved_file(path)
    policy = load_policy(path)
    if isinstance(policy, PlanPolicy):
        raise DiagnoseError(NOTHING_TO_SEE)
    data, _, _ = load_from_zip_file(path, device="cpu")
    assert data is not None
    kind = OWN.get(data.get("algorithm_name", ""))
    if kind is None:  # the file of another algorithm does not say which
        return Subject(type(policy).__name__, policy, None, normalizer, int(data.get("num_timesteps", 0)))
    try:
        return replace_normalizer(as_subject(kind.load(path, device="cpu")), normalizer)
    except (ValueError, TypeError) as error:
        raise DiagnoseError(str(error)) from error


def replace_normalizer(subject: Subject, normalizer: VecNormalize | None) -> Subject:
    """
    Let a policy see observations through other statistics.

    :param subject: the policy
    :param normalizer: None leaves it as it is
    :return: likewise
    """
    if normalizer is None:
        return subject
    return Subject(subject.name, subject.policy, subject.model, normalizer, subject.num_timesteps)


def apart(model: Any, normalizer: VecNormalize | None, seed: int) -> Any:
    """
    A copy of a model that can be worked with: its policy is another one, its random numbers too.

    :param model: any algorithm
    :param normalizer: through which it is to see observations
    :param seed: of its random numbers
    :return: the copy; what is large and only read is shared
    """
    trial = copy.copy(model)
    trial.policy = copy.deepcopy(model.policy)
    trial.policy.set_training_mode(False)
    trial.actor = getattr(trial.policy, "actor", None)
    trial._rng = np.random.default_rng(seed)
    trial._vec_normalize_env = normalizer
    return trial
