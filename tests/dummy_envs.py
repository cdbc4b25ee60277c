"""Small tasks on which an iteration takes milliseconds."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

HORIZON, CONDITIONS, SAMPLES = 10, 2, 2
ITERATION = HORIZON * CONDITIONS * SAMPLES
"""Real steps of an iteration of every small model, of all environments together, where no episode ends early."""

POINT_MASS_ID = "sb3_dpi_tests/PointMass-v0"
PUSHED_ID = "sb3_dpi_tests/PushedPointMass-v0"
POINT_MASS_LIMIT = 12
IMAGE_SHAPE = (36, 36, 1)


class PointMass(gym.Env[np.ndarray, np.ndarray]):
    """
    A unit mass on a line, pushed by a force in units of the action's bounds. It observes position and velocity, and shall
    come to rest at the origin.

    :param low: lower bound of the action
    :param high: upper bound of the action
    :param death: range from which the last step of each episode is drawn; None for no end
    :param broken: what is not finite (``"reward"``, ``"observation"``, or ``"reset"``), and after which step of all
    :param bad: what stands there instead
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        low: float = -1.0,
        high: float = 1.0,
        death: tuple[int, int] | None = None,
        broken: tuple[str, int] | None = None,
        bad: float = np.nan,
    ) -> None:
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self.observation_space: spaces.Space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.death, self.broken, self.bad = death, broken, bad
        self.n_steps, self.t, self.last = 0, 0, 2**31
        self.seeds: list[int | None] = []
        self.actions: list[float] = []
        self.state = np.zeros(2)

    def observation(self) -> Any:
        """:return: position and velocity"""
        return self.state.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: a random state near the origin"""
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.state, self.t = self.np_random.uniform(-1.0, 1.0, 2), 0
        if self.death is not None:
            self.last = int(self.np_random.integers(*self.death))
        return self.spoil("reset", self.observation()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: a time step of a tenth"""
        assert isinstance(self.action_space, spaces.Box)
        low, high = self.action_space.low, self.action_space.high
        # what the space's own ``contains`` says, in a fifth of the time
        assert np.shape(action) == (1,) and low[0] <= action[0] <= high[0], f"{action} is not in {self.action_space}"
        self.actions.append(float(action[0]))
        force = float(((action - low) / (high - low) * 2.0 - 1.0)[0])
        reward = -float(self.state @ self.state + 0.1 * force**2)
        self.state = self.state + 0.1 * np.array([self.state[1], 2.0 * force])
        self.t, self.n_steps = self.t + 1, self.n_steps + 1
        return (
            self.spoil("observation", self.observation()),
            float(self.spoil("reward", reward)),
            self.t >= self.last,
            False,
            {},
        )

    def spoil(self, what: str, value: Any) -> Any:
        """:return: the value, or what is not finite at its time"""
        return value * self.bad if self.broken == (what, self.n_steps) else value


class Single(PointMass):
    """Observed without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (), np.float32)

    def observation(self) -> Any:
        return np.array(self.state[0], np.float32)


class Pushed(gym.ActionWrapper):  # type: ignore[type-arg]
    """
    Finitely many forces in place of all between the bounds.

    :param env: with one action
    """

    N = 3

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(self.N)

    def action(self, action: Any) -> np.ndarray:
        """:return: within the bounds"""
        low, high = self.env.action_space.low, self.env.action_space.high  # type: ignore[attr-defined]
        pushed: np.ndarray = (low + int(action) / (self.N - 1) * (high - low)).astype(np.float32)
        return pushed


class PushedPointMass(Pushed):
    """The point mass with finitely many forces."""

    def __init__(self) -> None:
        super().__init__(PointMass())


def pushed(env: Any) -> Any:
    """:return: the same task with finitely many forces; a vectorised one is changed in place"""
    if isinstance(env, str):
        return PUSHED_ID if env == POINT_MASS_ID else env
    if not isinstance(env.action_space, spaces.Box):
        return env
    if not isinstance(env, VecEnv):
        return Pushed(env)
    level: Any = env
    while True:
        level.action_space = spaces.Discrete(Pushed.N)
        if not hasattr(level, "venv"):
            break
        level = level.venv
    level.envs = [Pushed(one) for one in level.envs]
    return env


class DictPointMass(PointMass):
    """
    The same with a dictionary as observation.

    :param keys: of ``"state"`` (position and velocity), ``"position"``, ``"velocity"``, ``"image"`` (grey by position)
    :param broken_key: its value is not finite after 15 steps
    """

    def __init__(self, keys: Sequence[str] = ("state", "position"), broken_key: str | None = None) -> None:
        super().__init__()
        boxes: dict[str, spaces.Space] = {
            key: spaces.Box(-np.inf, np.inf, (2 if key == "state" else 1,), np.float32) for key in keys
        }
        if "image" in boxes:
            boxes["image"] = spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)
        self.keys, self.broken_key = tuple(keys), broken_key
        self.observation_space = spaces.Dict(boxes)

    def observation(self) -> Any:
        """:return: dictionary"""
        grey = np.uint8(np.clip(128 + 60 * self.state[0], 0, 255))
        every: dict[str, Any] = {
            "state": self.state.astype(np.float32),
            "position": self.state[:1].astype(np.float32),
            "velocity": self.state[1:].astype(np.float32),
            "image": np.full(IMAGE_SHAPE, grey, np.uint8),
        }
        if self.broken_key is not None and self.n_steps == 15:
            every[self.broken_key] = every[self.broken_key] * np.float32(np.nan)
        return {key: every[key] for key in self.keys}


class ImagePointMass(PointMass):
    """The same with nothing but pixels as observation."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)

    def observation(self) -> Any:
        """:return: image"""
        return np.full(IMAGE_SHAPE, 100, np.uint8)


class Matrix(PointMass):
    """The same with matrices as observation and action; only the action's first entry does something."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (2, 1), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2, 1), np.float32)

    def observation(self) -> Any:
        """:return: position over velocity"""
        return self.state.astype(np.float32)[:, None]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: a time step of a tenth"""
        assert action.shape == (2, 1)
        self.state = self.state + 0.1 * np.array([self.state[1], 2.0 * action[0, 0]])
        return self.observation(), -float(self.state @ self.state), False, False, {}


class Counter(gym.Env[np.ndarray, np.ndarray]):
    """
    Observes its own number, episode and time, earns 1, and ends as told.

    :param number: of the environment
    :param lengths: of its episodes, in turn; negative: by death
    """

    def __init__(self, number: int, lengths: tuple[int, ...]) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.number, self.lengths, self.episode, self.t = number, lengths, -1, 0

    def observation(self) -> np.ndarray:
        """:return: number, episode, time"""
        return np.array([self.number, self.episode, self.t], np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: the next episode's beginning"""
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: one step later"""
        self.t += 1
        length = self.lengths[self.episode % len(self.lengths)]
        ends = self.t >= abs(length)
        return self.observation(), 1.0, ends and length < 0, ends and length > 0, {}


def counters() -> DummyVecEnv:
    """:return: one with time limits and deaths in turn, one with time limits, one with deaths, one that goes on"""
    endings = iter(enumerate([(3, -4), (10,), (-10,), (1000,)]))
    return vec_env(4, lambda: Counter(*next(endings)))


def register() -> None:
    """Register the point mass with a time limit, with all forces and with finitely many."""
    if POINT_MASS_ID not in gym.registry:
        gym.register(POINT_MASS_ID, entry_point="dummy_envs:PointMass", max_episode_steps=POINT_MASS_LIMIT)
        gym.register(PUSHED_ID, entry_point="dummy_envs:PushedPointMass", max_episode_steps=POINT_MASS_LIMIT)


def vec_env(n_envs: int = 1, make: Callable[[], gym.Env] = PointMass) -> DummyVecEnv:
    """:return: several environments without Monitor"""
    return DummyVecEnv([make for _ in range(n_envs)])


def limited(max_episode_steps: int, **kwargs: Any) -> gym.Env:
    """:return: a point mass with a time limit"""
    return gym.wrappers.TimeLimit(PointMass(**kwargs), max_episode_steps)


def normalized(env: VecEnv, mean: Sequence[float], var: Sequence[float], **kwargs: Any) -> VecNormalize:
    """:return: observations normalised by statistics that hardly move"""
    wrapped = VecNormalize(env, **kwargs)
    statistics: Any = wrapped.obs_rms
    statistics.mean, statistics.var, statistics.count = np.array(mean), np.array(var), 1e9
    return wrapped
