"""What the planner sees: a vector taken from the environment's observation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dpi.common.policies import STATE_KEY
from sb3_dpi.common.trajectories import Observations, Trajectories, map_observations
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.trajopt.units import outlier_limit, replace_outliers


def is_vector_space(space: spaces.Space[Any]) -> bool:
    """Whether a space holds numbers that a linear model can use.

    :param space: a space or subspace
    :return: true for a Box that is no image
    """
    return isinstance(space, spaces.Box) and not is_image_space(space) and not is_image_space(space, check_channels=False)


def sees_the_state(observation_space: spaces.Space[Any]) -> bool:
    """
    Tell whether the policy sees all that the planner sees, and nothing else.

    :param observation_space: the environment's observation space
    :return: true for a vector, or a dictionary of vectors none of which is hidden
    """
    if isinstance(observation_space, spaces.Dict):
        named = observation_space.spaces
        return STATE_KEY not in named and all(is_vector_space(space) for space in named.values())
    return is_vector_space(observation_space)


def make_state_view(observation_space: spaces.Space[Any]) -> tuple[Callable[[Observations], FloatArray], int]:
    """Choose the planner's state: ``"state"`` where there is one, else the vector keys, else the observation itself.

    :param observation_space: the environment's observation space
    :return: from observations ``[n, ...]`` to states ``[n, dx]``, and dx
    :raises ValueError: if the observation holds nothing but pixels, or no numbers at all
    """
    if isinstance(observation_space, spaces.Dict):
        items = observation_space.spaces
        keys = [STATE_KEY] if STATE_KEY in items else [key for key, space in items.items() if is_vector_space(space)]
        if keys and all(isinstance(items[key], spaces.Box) for key in keys):
            sizes = [int(np.prod(items[key].shape or ())) for key in keys]

            def pick(obs: Observations) -> FloatArray:
                parts = [np.asarray(obs[key], np.float64) for key in keys]
                return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

            return pick, sum(sizes)
    elif is_vector_space(observation_space):

        def flatten(obs: Observations) -> FloatArray:
            assert isinstance(obs, np.ndarray)
            return obs.reshape(len(obs), -1).astype(np.float64)

        return flatten, int(np.prod(observation_space.shape))  # type: ignore[arg-type]
    raise ValueError(
        f"The planner needs a vector and found none in the observation space {observation_space}. Let the environment return "
        f'a dictionary whose key "{STATE_KEY}" is a vector (positions, velocities, ...): only the planner sees it, the policy '
        "does not, and it may be missing when the policy is deployed"
    )


def replace_vectors(observations: Observations, known: Observations, space: spaces.Space[Any]) -> Observations:
    """``replace_outliers`` of observed vectors.

    :param observations: array ``[..., *shape]`` or dictionary of arrays
    :param known: by which they are judged, ``[m, *shape]`` or a dictionary of such
    :param space: of one observation
    :return: of the same structure and types; what is no vector as it is
    """
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict) and isinstance(known, dict)
        return {key: _replaced(a, known[key]) if is_vector_space(space[key]) else a for key, a in observations.items()}
    assert isinstance(known, np.ndarray)
    return _replaced(observations, known) if is_vector_space(space) else observations


def _replaced(array: np.ndarray, known: np.ndarray) -> np.ndarray:
    rows, others = (each.reshape(-1, int(np.prod(known.shape[1:]))).astype(np.float64) for each in (array, known))
    return replace_outliers(rows, others).astype(array.dtype).reshape(array.shape)


def without_outliers(trajectories: Trajectories, observation_space: spaces.Space[Any]) -> Trajectories:
    """Leave out what is wrong: one number must not decide the unit of all, nor a regression.

    :param trajectories: sampled, whose living steps are judged by each other
    :param observation_space: of the environment
    :return: the same; outliers of observed vectors are medians, those of rewards are cut
    """
    alive, limit = trajectories.alive, outlier_limit(trajectories.rewards[trajectories.alive])
    known = map_observations(lambda array: array[:, :, :-1][alive], trajectories.observations)
    return replace(
        trajectories,
        observations=replace_vectors(trajectories.observations, known, observation_space),
        states=_replaced(trajectories.states, trajectories.states[:, :, :-1][alive]),
        rewards=np.clip(trajectories.rewards, -limit, limit),
    )
