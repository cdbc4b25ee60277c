"""What a plan's last state is worth: the value function of a model that has learned one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.crossq.policies import CrossQCritic
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic

from sb3_dpi.common.critic import ReturnScale, value_units
from sb3_dpi.common.original_observations import shown_spread
from sb3_dpi.trajopt.types import FloatArray

TerminalValue = Callable[[FloatArray], FloatArray]
"""Of observations in the environment's units ``[n, do]``: ``[n]``, in units of its reward."""


def as_terminal_value(given: BaseAlgorithm | TerminalValue | None) -> TerminalValue | None:
    """
    The function that is meant.

    :param given: a model of DPI, AggreVaTeDOC or DualAC, of PPO and its like, or of SAC and TD3; a function; or None
    :return: the function
    :raises ValueError: if it is something else
    """
    if given is None or not isinstance(given, BaseAlgorithm):
        if given is not None and (not callable(given) or isinstance(given, type)):
            raise ValueError(f"terminal_value is a trained model or a function of observations [n, do], got {given!r}")
        return given
    model: Any = given
    if hasattr(model, "ensemble") and hasattr(model, "critic"):
        return lambda observations: _of_world_model(model, observations)
    critic = getattr(model.policy, "critic", None)
    has_values = isinstance(model.policy, ActorCriticPolicy) and not hasattr(model.policy, "lstm_actor")
    if (has_values and value_units(model) is not None) or isinstance(critic, ContinuousCritic | CrossQCritic):
        return lambda observations: _of_networks(model, observations)
    raise ValueError(
        f"{type(model).__name__} has no value function of observations: as terminal_value give a model of DPI, AggreVaTeDOC, "
        "DualAC, PPO, SAC or TD3, or a function"
    )


def discount_of(given: Any) -> float | None:
    """:return: of a model's values; None where there is no model"""
    if not isinstance(given, BaseAlgorithm):
        return None
    model: Any = given
    return float(model.discount if hasattr(model, "discount") else model.gamma)


@th.no_grad()
def _of_world_model(model: Any, observations: FloatArray) -> FloatArray:
    states = model.ensemble.standardize(observations)
    mean, _ = model.policy.averaged(states)
    values: FloatArray = (model.critic.bound(model.critic(states, th.tanh(mean))) * model.critic.unit).double().cpu().numpy()
    return values


@th.no_grad()
def _of_networks(model: Any, observations: FloatArray) -> FloatArray:
    normalizer, unit = model.get_vec_normalize_env(), value_units(model) or ReturnScale()
    observations = observations.reshape(-1, *model.observation_space.shape)
    if normalizer is not None:
        observations = normalizer.normalize_obs(observations)
    # whoever has a scale of returns learns from rewards as the environments return them, others from what VecNormalize shows
    is_shown = normalizer is not None and normalizer.norm_reward and not hasattr(model, "return_scale")
    scale = float(shown_spread(normalizer.ret_rms, normalizer)) if is_shown else 1.0
    shown, _ = model.policy.obs_to_tensor(np.asarray(observations, model.observation_space.dtype))
    if isinstance(model.policy, ActorCriticPolicy):
        values = model.policy.predict_values(shown)
    else:
        actions = model.policy._predict(shown, deterministic=True)
        values = th.stack(model.policy.critic(shown, actions)).min(0).values
    found: FloatArray = scale * unit.restore(values[:, 0].double().cpu().numpy())
    return found
