"""What all algorithms of this package take and refuse as Stable-Baselines3 does, and say more clearly."""

import math
import operator
from typing import Any, SupportsFloat

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_dpi.common.choices import as_schedule, check_number
from sb3_dpi.common.progress_bars import Pace, progress_bars

LARGEST_SEED = 2**32 - 1
"""What numpy's global generator takes, which Stable-Baselines3 seeds"""


def plain(value: Any) -> Any:
    """
    Turn a number of numpy into one of Python, which passes wherever a number is meant.

    :param value: an argument
    :return: the number; what is none is left as it is
    """
    return value.item() if isinstance(value, np.generic) else value


def as_seed(seed: Any) -> int | None:
    """
    Read a seed, of whichever library its integers are.

    :param seed: an integer of Python, numpy or torch; None for none
    :return: the same as Python's integer, which all generators take
    :raises TypeError: if it is no integer
    :raises ValueError: if it is negative, or too large for numpy's global generator
    """
    if seed is None:
        return None
    try:
        number = int(operator.index(seed))
    except TypeError:
        raise TypeError(f"seed must be an integer from 0 to 2**32 - 1, or None for none, got {seed!r}") from None
    if not 0 <= number <= LARGEST_SEED:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {number}")
    return number


def refuse_tuple(observation: Any) -> None:
    """
    Refuse what ``env.reset()`` of Gymnasium returns where an observation is meant.

    :param observation: what ``predict`` was given
    :raises ValueError: if it is a tuple
    """
    if isinstance(observation, tuple):
        raise ValueError(
            "predict was given a tuple: that is mixing Gym API and SB3's VecEnv API. Write obs, info = env.reset(), and "
            "give it obs"
        )


def refuse_empty(name: str, space: spaces.Space[Any]) -> None:
    """
    Refuse observations or actions of no numbers.

    :param name: of the space
    :param space: of the environment
    :raises ValueError: if there are none
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    if all(isinstance(part, spaces.Box) and 0 in part.shape for part in parts):
        raise ValueError(f"The {name} {space} holds no number: give an environment in which it holds one at least")


def refuse_shifted(space: spaces.Space[Any]) -> None:
    """
    Refuse observations that Stable-Baselines3 would encode as others.

    :param space: of the environment
    :raises ValueError: if the first of some numbers is not zero
    """
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else (space,):
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and np.any(part.start):
            raise ValueError(f"Observations {part} do not begin at 0: let the environment return them less {part.start}")


def as_starts(episode_start: Any, n: int) -> np.ndarray:
    """
    Read where episodes begin.

    :param episode_start: what ``predict`` was given
    :param n: observations
    :return: ``[n]``
    :raises ValueError: if it says that of another number of environments
    """
    starts = np.asarray(episode_start, dtype=bool)
    if starts.ndim > 1 or starts.size not in (1, n):
        raise ValueError(f"episode_start must say of each of {n} environments whether an episode begins, got {episode_start}")
    return np.broadcast_to(starts, (n,))


class Conventions(BaseAlgorithm):
    """Seeds, names of policies, missing environments, progress from 1 to 0, and its bars, alike for every algorithm."""

    _rng: np.random.Generator

    def _setup_model(self) -> None:
        self.seed = as_seed(self.seed)
        for name in ("observation_space", "action_space"):
            refuse_empty(name, getattr(self, name))
        refuse_shifted(self.observation_space)
        self._refuse_other_observations()
        if not isinstance(self.learning_rate, str):  # which the schedule refuses
            check_number("learning_rate", as_schedule("learning_rate", self.learning_rate)(1.0), 0.0)
        super()._setup_model()  # type: ignore[safe-super]  # that of the algorithm's base

    def _refuse_other_observations(self) -> None:
        several = self.policy_aliases.get("MultiInputPolicy")
        is_meant = several is not None and self.policy_class is several is not self.policy_aliases.get("MlpPolicy")
        if not is_meant or "features_extractor_class" in self.policy_kwargs or isinstance(self.observation_space, spaces.Dict):
            return
        raise ValueError(
            f"MultiInputPolicy reads dictionaries and the observation is {self.observation_space}: take MlpPolicy, or for "
            "images CnnPolicy"
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action_space, and the algorithm's own)

        :param seed: from 0 to 2**32 - 1; None changes nothing
        """
        seed = as_seed(seed)
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "_rng"):  # before, ``_setup_model`` has yet to make it
            self._seed_own(seed)

    def _seed_own(self, seed: int | None) -> None:
        """Begin the algorithm's own draws."""
        self._rng = np.random.default_rng(seed)
        if hasattr(self, "_reset_rng"):  # whoever draws resets apart from the rest
            self._reset_rng = self._rng.spawn(1)[0]

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name in self.policy_aliases:
            return self.policy_aliases[policy_name]
        names = ", ".join(map(repr, self.policy_aliases))
        raise ValueError(f"Policy {policy_name} unknown: {type(self).__name__} has {names}, or give a class")

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if not isinstance(total_timesteps, SupportsFloat) or not math.isfinite(total_timesteps):
            raise ValueError(f"total_timesteps of learn must be a finite number of steps, got {total_timesteps!r}")
        if self.env is None:
            name = type(self).__name__
            raise AssertionError(
                f"You must set the environment before calling learn(): {name}.load(path, env=env), or model.set_env(env)"
            )
        return super()._setup_learn(total_timesteps, *args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last block is completed beyond the total, which no schedule expects: a rate below zero would ascend
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        given = CallbackList(callback) if isinstance(callback, list) else callback
        chosen = given if isinstance(given, BaseCallback) else ConvertCallback(given)
        if progress_bar:
            chosen = CallbackList([chosen, ProgressBarCallback()])
        bars = progress_bars(chosen)
        return super()._init_callback(CallbackList([chosen, Pace(bars)]) if bars or self.verbose >= 1 else chosen)
