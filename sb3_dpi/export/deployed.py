"""What leaves the training: from an observation as the environment gives it to an action as the environment takes it."""

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_pkl, load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_dpi.common.action_units import bounds
from sb3_dpi.common.policies import STATE_KEY, BoundedGaussianPolicy
from sb3_dpi.mpc.policies import PlanPolicy


class ExportError(ValueError):
    """A policy that cannot be exported as asked."""


class Normalizer(nn.Module):
    """
    What VecNormalize does to observations, with the statistics that it ended with.

    :param normalizer: the wrapper
    :param keys: of the observations, in their order; one empty key for a Box
    """

    def __init__(self, normalizer: VecNormalize, keys: Sequence[str]):
        super().__init__()
        self.clip, statistics = float(normalizer.clip_obs), _by_key(normalizer)
        self.indices = [i for i, key in enumerate(keys) if key in statistics]
        for i in self.indices:
            mean, var = statistics[keys[i]].mean, statistics[keys[i]].var
            self.register_buffer(f"mean_{i}", th.as_tensor(np.asarray(mean, dtype=np.float64)))
            self.register_buffer(f"std_{i}", th.as_tensor(np.sqrt(np.asarray(var, np.float64) + normalizer.epsilon)))

    def forward(self, observations: Sequence[th.Tensor]) -> list[th.Tensor]:
        """
        Normalise.

        :param observations: ``[n, ...]`` each
        :return: likewise
        """
        seen = list(observations)
        for i in self.indices:
            standard = (seen[i] - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}")
            seen[i] = standard.clamp(-self.clip, self.clip).float()
        return seen


def _by_key(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """Of the observations that it normalises; one empty key for a Box."""
    if not normalizer.norm_obs:  # then it has none
        return {}
    if not isinstance(normalizer.obs_rms, dict):
        return {"": normalizer.obs_rms}
    return {key: normalizer.obs_rms[key] for key in normalizer.norm_obs_keys or ()}


def check_statistics(normalizer: VecNormalize, space: spaces.Space[Any]) -> None:
    """
    Let nobody normalise by the statistics of other observations: shapes that differ may still broadcast.

    :param normalizer: with its statistics
    :param space: of the model's observations
    :raises ExportError: if they do not fit
    """
    known = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    shapes = {key: tuple(known[key].shape or ()) for key in known}
    given = {key: tuple(np.shape(statistics.mean)) for key, statistics in _by_key(normalizer).items()}
    if any(shapes.get(key) != shape for key, shape in given.items()):
        raise ExportError(
            f"The statistics of VecNormalize do not fit the model: they are of {_in_words(given)}, it observes "
            f"{_in_words(shapes)}. Give those that were saved with it (--vec-normalize FILE), or none (--no-vec-normalize)"
        )


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key!r} {shape}" if key else f"shape {shape}" for key, shape in shapes.items())


class DeployedPolicy(nn.Module):
    """
    A policy without exploration: observations as the environment gives them in, actions as it takes them out.

    :param policy: of any algorithm of this package, or of Stable-Baselines3's; on the CPU
    :param normalizer: VecNormalize, where the policy was trained behind one
    :raises ExportError: if the policy has a memory, or the statistics are of other observations
    """

    action_low: th.Tensor
    action_high: th.Tensor

    def __init__(self, policy: BasePolicy, normalizer: VecNormalize | None = None):
        super().__init__()
        if isinstance(policy, PlanPolicy):
            raise ExportError(
                "MPC has no network that could be exported: it plans when it acts. Teach one with DPI or DAgger, export that"
            )
        if hasattr(policy, "lstm_actor"):
            raise ExportError(f"{type(policy).__name__} has a memory between steps, which no export has: train without it")
        self.observation_space, self.action_space = policy.observation_space, policy.action_space
        known = policy.observation_space.spaces if isinstance(policy.observation_space, spaces.Dict) else None
        self.observation_spaces = known or {"": policy.observation_space}
        hidden = isinstance(policy, BoundedGaussianPolicy) and known is not None
        self.keys = [key for key in self.observation_spaces if not (hidden and key == STATE_KEY)]
        self.policy, self.squashes = policy, bool(policy.squash_output)
        if normalizer is not None:
            check_statistics(normalizer, policy.observation_space)
        self.normalizer = None if normalizer is None else Normalizer(normalizer, self.keys)
        if isinstance(self.action_space, spaces.Box):
            for name, bound in zip(("action_low", "action_high"), bounds(self.action_space), strict=True):
                self.register_buffer(name, th.as_tensor(bound))
        self.policy.set_training_mode(False)
        self.eval().requires_grad_(False)

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """
        Act.

        :param observations: in the order of ``keys``, ``[n, ...]`` each
        :return: actions in the environment's units, ``[n, ...]``
        """
        seen = list(observations) if self.normalizer is None else self.normalizer(observations)
        named: Any = dict(zip(self.keys, seen, strict=True))
        for key in self.observation_spaces.keys() - named.keys():  # the policy never reads it
            named[key] = th.zeros(seen[0].shape[0], *(self.observation_spaces[key].shape or ()))
        actions = self.policy._predict(named[""] if "" in named else named, deterministic=True)
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Box):
            low, high = self.action_low, self.action_high
            actions = low + 0.5 * (actions + 1.0) * (high - low) if self.squashes else actions.clamp(low, high)
        return actions

    def examples(self, n: int) -> tuple[th.Tensor, ...]:
        """
        Observations to try it on.

        :param n: how many
        :return: in the order of ``keys``, ``[n, ...]`` each
        """
        chosen = [self.observation_spaces[key] for key in self.keys]
        drawn = [[space.sample() for _ in range(n)] for space in chosen]
        return tuple(th.as_tensor(np.array(rows, space.dtype)) for rows, space in zip(drawn, chosen, strict=True))


def saved_file(path: Path) -> Path:
    """
    Find the file of a saved model.

    :param path: as it was given to ``model.save``, which adds ``.zip``
    :return: what it wrote
    :raises ExportError: if there is none
    """
    for file in (path, Path(f"{path}.zip")):
        if file.is_file():
            return file
    if path.is_dir():
        raise ExportError(f"{path} is a folder: give the file that model.save() wrote, its name ends with .zip")
    raise ExportError(f"There is no file {path}: give what model.save() wrote")


def load_policy(path: Path) -> BasePolicy:
    """
    Read the policy of a saved model, whatever algorithm it is of.

    :param path: a ``.zip`` of ``model.save``
    :return: the policy, on the CPU
    :raises ExportError: if there is no file, or it is not one
    """
    path = saved_file(path)
    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu")
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is no saved model: {error}") from error
    if not data or "policy_class" not in data or "policy" not in parameters:
        raise ExportError(f"{path} holds no policy: give a file that model.save() wrote")
    made = data["policy_class"]
    options = {"use_sde": data["use_sde"]} if "use_sde" in inspect.signature(made).parameters else {}
    options |= data.get("policy_kwargs") or {}
    policy: BasePolicy = made(data["observation_space"], data["action_space"], _no_rate, **options)
    policy.load_state_dict(parameters["policy"])  # type: ignore[arg-type]
    return policy


def load_normalizer(path: Path) -> VecNormalize:
    """
    Read the statistics that ``VecNormalize.save`` wrote.

    :param path: the file
    :return: the wrapper, without an environment
    :raises ExportError: if there is no file, or it is none
    """
    if not path.is_file():
        raise ExportError(f"There is no file {path}: give what VecNormalize.save() wrote")
    try:
        normalizer = load_from_pkl(io.BytesIO(path.read_bytes()))
    except Exception as error:
        raise ExportError(f"{path} cannot be read as statistics of VecNormalize: {error}") from error
    if not isinstance(normalizer, VecNormalize):
        raise ExportError(f"{path} holds {type(normalizer).__name__}, not VecNormalize: give what VecNormalize.save() wrote")
    return normalizer


def as_deployed(
    model: BaseAlgorithm | BasePolicy | str | Path, vec_normalize: VecNormalize | str | Path | None
) -> DeployedPolicy:
    """
    Read what a user gave.

    :param model: a model, a policy, or the path of a saved model
    :param vec_normalize: the wrapper, the path of its statistics, or None: that of the model's own environment
    :return: the policy as it is deployed
    :raises ExportError: if there is no policy in it
    """
    if isinstance(model, str | Path):
        policy, own = load_policy(Path(model)), None
    elif isinstance(model, BaseAlgorithm):
        policy, own = model.policy, model.get_vec_normalize_env()
    else:
        policy, own = model, None
    normalizer = load_normalizer(Path(vec_normalize)) if isinstance(vec_normalize, str | Path) else vec_normalize or own
    return DeployedPolicy(policy.cpu() if isinstance(model, str | Path) else _on_cpu(policy), normalizer)


def _on_cpu(policy: BasePolicy) -> BasePolicy:
    """A copy: the user's model stays where it is, and in its mode."""
    with io.BytesIO() as file:
        th.save(policy, file)
        file.seek(0)
        copied: BasePolicy = th.load(file, map_location="cpu", weights_only=False)
    return copied


def _no_rate(_: float) -> float:
    return 0.0
