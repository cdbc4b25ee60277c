"""Whom DAgger asks, and what it shows and hears.

An expert is a model of Stable-Baselines3 or anything else with its method ``predict``, a planner that can follow other
environments (``as_expert``), or a function of observations. What it is shown:

- a planner, all that DAgger's environments show, whose states it looks up;
- all others, observations as the environments return them, models through their own VecNormalize where they have one: that of
  their environment, or what was saved with a model that is named by its path.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.action_units import bounds, to_units
from sb3_dpi.common.named_models import load_model, named_algorithm
from sb3_dpi.common.trajectories import Observations
from sb3_dpi.dagger.buffers import label_size
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.types import FloatArray, NotFiniteReturnError

Expert = Any
"""A model, an object with its method ``predict``, or a function from observations ``[n, ...]`` to actions ``[n, ...]``."""


def make_expert(given: Expert | str | Mapping[str, Any], env: VecEnv, seed: int | None) -> Expert:
    """
    The expert that is meant.

    :param given: a planner's name, which plans in the simulator; a dictionary whose key ``"algo"`` names a class, with the
        ``"path"`` of a saved model (see ``load_model``) or arguments of the constructor; or the expert itself
    :param env: in which it shall act
    :param seed: of what is made here
    :return: the expert
    :raises ValueError: if it is none
    """
    if isinstance(given, str):
        if given.endswith(".zip"):
            raise ValueError(f"Say whose model this is: expert={{'algo': 'sac', 'path': {given!r}}}")
        given = {"algo": "mpc", "policy": given, "system": "simulator"}
    if isinstance(given, Mapping):
        options = dict(given)
        if "algo" not in options:
            raise ValueError(f"expert has no key 'algo', the name of its class, such as 'mpc' or 'sac': got {dict(given)}")
        if "path" in options:
            return load_model(options)
        algorithm = named_algorithm(str(options.pop("algo")))
        return algorithm(**{"policy": "MlpPolicy", "env": env, "seed": seed, **options})
    if isinstance(given, type):
        raise ValueError(f"expert is the class {given.__name__}: give a model of it, {given.__name__}(...), or its load(path)")
    if not hasattr(given, "predict") and not callable(given):
        raise ValueError(
            "expert is a model with a method predict, or a function from observations [n, ...] to actions [n, ...], got "
            f"{given!r}"
        )
    return given


def check_spaces(expert: Expert, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Refuse an expert of another task.

    :param expert: of which spaces may be known
    :param observation_space: of the task
    :param action_space: likewise
    :raises ValueError: if they differ
    """
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        own = getattr(expert, name, None)
        if own is not None and own != space:
            raise ValueError(f"The expert's {name} is {own}, that of the environment {space}: take an expert of this task")


def plans(expert: Expert) -> bool:
    """:return: whether it plans or searches in the environments when it is asked"""
    return hasattr(expert, "as_expert") and getattr(expert, "search_in_predict", True)


def check_guided(expert: Expert) -> None:
    """
    Refuse an expert that cannot be drawn to a policy.

    :param expert: of ``make_expert``
    :raises ValueError: if it does not plan
    """
    if not plans(expert):
        raise ValueError(
            f"guidance draws plans to the policy, and {_name(expert)} does not plan: set guidance=0, or take MPC as expert"
        )


def distribution_of(expert: Expert) -> ActorCriticPolicy | None:
    """:return: the policy of an expert that tells a Gaussian or the probabilities of actions; None where it does not"""
    policy = getattr(expert, "policy", expert)
    if plans(expert) or not isinstance(policy, ActorCriticPolicy) or hasattr(policy, "lstm_actor"):
        return None
    known = isinstance(policy.action_dist, DiagGaussianDistribution | CategoricalDistribution)
    return policy if known and not isinstance(policy.action_dist, SquashedDiagGaussianDistribution) else None


@dataclass(frozen=True)
class Advice:
    """What the expert says in one step of all environments."""

    actions: np.ndarray
    """in units of the bounds, or numbers of Discrete actions, ``[n_envs, *action_shape]``"""
    labels: FloatArray
    """see ``buffers.Labels``, ``[n_envs, k]``"""
    spreads: FloatArray
    """likewise"""


class Adviser:
    """
    Asks the expert, and understands its answers.

    :param expert: of ``make_expert``
    :param env: with its wrappers
    :param tells_distribution: whether labels are its distribution
    :param penalty: that draws its plans to a policy; None where it plans as it likes
    :raises ValueError: if the expert is of another task, or cannot do what is asked
    """

    def __init__(self, expert: Expert, env: VecEnv, tells_distribution: bool = False, penalty: Penalty | None = None) -> None:
        check_spaces(expert, env.observation_space, env.action_space)
        self.told = distribution_of(expert) if tells_distribution else None
        if tells_distribution and self.told is None:
            raise ValueError(
                f"{_name(expert)} tells no Gaussian and no probabilities of actions, as PPO does: set imitate='action'"
            )
        self.plans = plans(expert)
        if not getattr(expert, "has_learned", True):
            raise ValueError(
                f"{_name(expert)} plans in an ensemble that has learned nothing: let it learn first, or plan in the simulator "
                "(system='simulator')"
            )
        self.expert = expert.as_expert(env, penalty) if self.plans else expert
        self.space: Any = env.action_space
        self.state: Any = None

    def advise(self, shown: Observations, originals: Observations, starts: np.ndarray) -> Advice:
        """
        Ask.

        :param shown: what the learning policy sees, ``[n_envs, ...]`` or a dictionary of such
        :param originals: as the environments returned it
        :param starts: where episodes begin, ``[n_envs]``
        :return: what it says
        :raises ValueError: if an answer is no action
        """
        seen = self._view(shown, originals)
        if hasattr(self.expert, "predict"):
            answer, self.state = self.expert.predict(seen, state=self.state, episode_start=starts, deterministic=True)
        else:
            answer = self.expert(seen)
        actions = self._checked(np.asarray(answer), len(starts))
        if isinstance(self.space, spaces.Discrete):
            labels = np.eye(label_size(self.space))[actions]
        else:
            labels = actions.reshape(len(starts), -1)
        spreads = np.zeros(labels.shape)
        if self.told is not None:
            labels, spreads = self._distribution(self.told, seen, labels)
        return Advice(actions, labels, spreads)

    def _view(self, shown: Observations, originals: Observations) -> Any:
        if self.plans:
            return shown
        own = self.expert.get_vec_normalize_env() if isinstance(self.expert, BaseAlgorithm) else None
        return originals if own is None else own.normalize_obs(originals)

    def _checked(self, answer: np.ndarray, n: int) -> np.ndarray:
        """:return: actions in units of the bounds, or numbers of actions"""
        shape = (n, *(self.space.shape or ()))
        if answer.shape != shape or answer.dtype.kind not in "fiub":
            raise ValueError(
                f"The expert answers {answer.dtype} of shape {answer.shape} where actions of shape {shape} are needed: it is "
                f"asked for {n} environments at once"
            )
        if not np.all(np.isfinite(answer)):
            i = int(np.argwhere(~np.isfinite(answer))[0][0])
            raise NotFiniteReturnError(f"the expert's action in environment {i} is not finite: {answer[i]}", i)
        if isinstance(self.space, spaces.Discrete):
            if answer.dtype.kind not in "iu" or np.any((answer < 0) | (answer >= self.space.n)):
                raise ValueError(f"The expert's actions must be whole numbers from 0 to {self.space.n - 1}, got {answer}")
            return answer.astype(np.int64)
        scaled: np.ndarray = np.clip(to_units(answer, *bounds(self.space)), -1.0, 1.0)
        return scaled

    @th.no_grad()
    def _distribution(self, policy: ActorCriticPolicy, seen: Any, labels: FloatArray) -> tuple[FloatArray, FloatArray]:
        distribution: Any = policy.get_distribution(policy.obs_to_tensor(seen)[0]).distribution
        if isinstance(self.space, spaces.Discrete):
            probabilities: FloatArray = distribution.probs.double().cpu().numpy()
            return probabilities, np.zeros(probabilities.shape)
        std = distribution.stddev.double().cpu().numpy()
        if not policy.squash_output:
            low, high = bounds(self.space)
            std = 2.0 * std / (high - low).reshape(-1)
        return labels, std


def _name(expert: Expert) -> str:
    return type(expert).__name__ if hasattr(expert, "predict") else f"the function {getattr(expert, '__name__', expert)!r}"
