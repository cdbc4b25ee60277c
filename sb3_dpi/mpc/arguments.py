"""What MPC's arguments must be; each error says what to write."""

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dpi.common.early_resets import as_early_reset

SYSTEMS = ("ensemble", "simulator")


def check_arguments(given: Mapping[str, Any]) -> None:
    """
    Refuse what cannot be meant.

    :param given: attributes of the model, by the names of the constructor's arguments
    :raises ValueError: if one is out of range
    """
    for name in ("horizon", "replan_every", "buffer_size"):
        if given[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]}")
    if given["replan_every"] > given["horizon"]:
        raise ValueError(f"replan_every must be from 1 to the horizon of {given['horizon']}, got {given['replan_every']}")
    if given["learning_starts"] is not None and given["learning_starts"] < 0:
        raise ValueError(f"learning_starts must be at least 0, or None, got {given['learning_starts']}")
    if isinstance(given["system"], str) and given["system"] not in SYSTEMS:
        raise ValueError(f"Unknown system {given['system']!r}: choose 'ensemble' or 'simulator', or give an object")
    if given["max_plan_seconds"] is not None and not given["max_plan_seconds"] >= 0.0:
        raise ValueError(f"max_plan_seconds must be at least 0, which sets no limit, got {given['max_plan_seconds']}")
    if given["gamma"] is not None and not 0.0 < given["gamma"] <= 1.0:
        raise ValueError(f"gamma must be above 0 and at most 1, got {given['gamma']}")
    for name in ("cost_fn", "state_from_obs"):
        if given[name] is not None and not callable(given[name]):
            raise ValueError(f"{name} must be a function, got {given[name]!r}")
    as_early_reset(given["early_reset"])
    if given["policy_kwargs"]:  # an argument because users of Stable-Baselines3 and RL Zoo write it: its own error helps more
        raise ValueError("MPC has no network that acts: leave policy_kwargs out; world_model says what the ensemble is like")


def check_observations(space: spaces.Space[Any], is_learned: bool) -> None:
    """
    Refuse observations that are no vector.

    :param space: of the observations
    :param is_learned: whether a model of them is to be learned
    :raises ValueError: if they are not
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"MPC plans with one vector as observation, got {space}: flatten it with gymnasium.wrappers.FlattenObservation"
        )
    if is_learned and is_image_space(space):
        raise ValueError("MPC learns no model of images: take system='simulator', or observe a vector")


def check_same_spaces(of_other: Any, of_model: Any, what: str = "environment given as system") -> None:
    """
    Refuse to plan with what is of another task.

    :param of_other: the environment, its simulator, or a model
    :param of_model: what has the spaces of the environment in which is acted
    :param what: it is
    :raises ValueError: if observations or actions have other shapes
    """
    for name in ("observation_space", "action_space"):
        theirs, ours = getattr(of_other, name), getattr(of_model, name)
        if type(theirs) is not type(ours) or theirs.shape != ours.shape:
            raise ValueError(f"The {what} has the {name} {theirs}, not {ours}: give one alike")
