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
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_dpi.common.action_units import bounds, from_units
from sb3_dpi.common.original_observations import shown_spread
from sb3_dpi.common.policies import STATE_KEY, BoundedGaussianPolicy
from sb3_dpi.common.saved_files import ExportError, check_statistics, load_normalizer, saved_file, statistics_by_key
from sb3_dpi.mpc.policies import PlanPolicy


class Normalizer(nn.Module):
    """
    What VecNormalize does to observations, with the statistics that it ended with.

    :param normalizer: the wrapper
    :param keys: of the observations, in their order; one empty key for a Box
    """

    def __init__(self, normalizer: VecNormalize, keys: Sequence[str]):
        super().__init__()
        self.clip, statistics = float(normalizer.clip_obs), statistics_by_key(normalizer)
        self.indices = [i for i, key in enumerate(keys) if key in statistics]
        for i in self.indices:
            mean, std = statistics[keys[i]].mean, shown_spread(statistics[keys[i]], normalizer)
            self.register_buffer(f"mean_{i}", th.as_tensor(np.asarray(mean, dtype=np.float64)))
            self.register_buffer(f"std_{i}", th.as_tensor(std))

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
            actions = from_units(actions, low, high) if self.squashes else actions.clamp(low, high)
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
