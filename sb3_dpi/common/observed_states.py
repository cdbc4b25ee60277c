"""Where a simulator is, given what is observed: an observation alone seldom says it.

The state of environment i is read from the environments that the model has, and counts if it shows observation i. Otherwise
the observation may come from another environment; of some tasks it determines the state, but for a position that changes
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_dpi.common.asking import ask, beneath
from sb3_dpi.common.original_observations import SHOWING_THE_SAME, as_shown
from sb3_dpi.common.simulator_states import read_states
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.systems import Simulator, SimulatorState
from sb3_dpi.systems.copies import WATCHING, class_name
from sb3_dpi.systems.tasks import known_task
from sb3_dpi.trajopt.types import FloatArray

StateFromObs = Callable[[Any, Any], None]
"""Puts an environment without wrappers into the state that an observation ``[do]``, or a dictionary of such, shows."""
TOLERANCE = 1e-5
"""Up to which two observations are the same, absolute and relative: they may have passed through single precision."""


class NotSaidError(Exception):
    """What an observation does not say."""


def _pendulum(base: Any, obs: FloatArray) -> None:
    base.state, base.last_u = np.array([np.arctan2(obs[1], obs[0]), obs[2]]), None


def _whole_state(base: Any, obs: FloatArray) -> None:
    base.state = obs.astype(base.state.dtype)


def _acrobot(base: Any, obs: FloatArray) -> None:
    base.state = np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), *obs[4:6]]).astype(base.state.dtype)


def _numbered(base: Any, obs: FloatArray) -> None:
    base.s = int(obs)


def _joints(base: Any, obs: FloatArray) -> None:
    """Joints and velocities, the first coordinates left out where they change nothing."""
    task = known_task(base)
    n = 0 if task is None else task.n_skipped
    nq, nv = base.model.nq, base.model.nv
    base.set_state(np.concatenate([np.zeros(n), obs[: nq - n]]), _velocities(base, obs[nq - n : nq - n + nv]))


def _velocities(base: Any, seen: FloatArray) -> FloatArray:
    """:return: velocities, of which the task shows none beyond a limit"""
    task = known_task(base)
    if task is not None and np.any(np.abs(seen) >= task.largest_velocity - TOLERANCE):
        raise NotSaidError
    return seen.copy()


def _double_pendulum(base: Any, obs: FloatArray) -> None:
    base.set_state(np.concatenate([obs[:1], np.arctan2(obs[1:3], obs[3:5])]), _velocities(base, obs[5:8]))


def _reacher(base: Any, obs: FloatArray) -> None:
    base.goal = obs[4:6].copy()
    base.set_state(np.concatenate([np.arctan2(obs[2:4], obs[:2]), obs[4:6]]), np.concatenate([obs[6:8], np.zeros(2)]))


_CLASSIC, _TOY, _MUJOCO = "gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "gymnasium.envs.mujoco"
STATES_FROM_OBS: dict[str, StateFromObs] = {
    f"{_CLASSIC}.pendulum.PendulumEnv": _pendulum,
    f"{_CLASSIC}.continuous_mountain_car.Continuous_MountainCarEnv": _whole_state,
    f"{_CLASSIC}.mountain_car.MountainCarEnv": _whole_state,
    f"{_CLASSIC}.cartpole.CartPoleEnv": _whole_state,
    f"{_CLASSIC}.acrobot.AcrobotEnv": _acrobot,
    f"{_TOY}.frozen_lake.FrozenLakeEnv": _numbered,
    f"{_TOY}.cliffwalking.CliffWalkingEnv": _numbered,
    f"{_TOY}.taxi.TaxiEnv": _numbered,
    f"{_MUJOCO}.half_cheetah_v5.HalfCheetahEnv": _joints,
    f"{_MUJOCO}.hopper_v5.HopperEnv": _joints,
    f"{_MUJOCO}.walker2d_v5.Walker2dEnv": _joints,
    f"{_MUJOCO}.swimmer_v5.SwimmerEnv": _joints,
    f"{_MUJOCO}.ant_v5.AntEnv": _joints,
    f"{_MUJOCO}.inverted_pendulum_v5.InvertedPendulumEnv": _joints,
    f"{_MUJOCO}.inverted_double_pendulum_v5.InvertedDoublePendulumEnv": _double_pendulum,
    f"{_MUJOCO}.reacher_v5.ReacherEnv": _reacher,
}
"""Of stock tasks; what an observation does not determine, as Ant's contact forces, shows in that it is not reproduced, or
stands at a limit, as velocities of Walker2d do."""


def environment_of(env: VecEnv) -> gym.Env:
    """
    An environment to copy.

    :param env: with its wrappers
    :return: the first, or where these are in other processes one of the same kind
    :raises ValueError: if there is none, or a wrapper of all of them may change what the copy would do or show
    """
    above: Any = env
    while isinstance(above, VecEnvWrapper):
        if not isinstance(above, VecNormalize) and type(above) not in SHOWING_THE_SAME:
            raise ValueError(
                f"What {type(above).__name__} makes of the simulator's steps is not known: wrap each environment instead, as "
                "gymnasium.wrappers.FrameStackObservation does in place of VecFrameStack, or with MPC give an environment as "
                "system or learn with system='ensemble'"
            )
        above = above.venv
    base = beneath(env)
    if isinstance(base, DummyVecEnv):
        return base.envs[0]
    specs = ask(env, "spec") if isinstance(base, SubprocVecEnv) else None
    if not specs or specs[0] is None:
        raise ValueError(
            f"The environments of a {type(base).__name__} cannot be copied: use a DummyVecEnv, or with MPC give an "
            "environment as system or learn with system='ensemble'"
        )
    return _made_anew(specs[0])


def _made_anew(spec: EnvSpec) -> gym.Env:
    """:return: the environment, without wrappers that only watch it"""
    wrappers = [wrapper for wrapper in spec.additional_wrappers if wrapper.entry_point.replace(":", ".") not in WATCHING]
    for wrapper in wrappers:
        if wrapper.kwargs is None:
            raise ValueError(
                f"How {wrapper.name} was made in the other process is not known: derive it from "
                "gymnasium.utils.RecordConstructorArgs too, or use a DummyVecEnv"
            )
    return gym.make(replace(spec, additional_wrappers=tuple(wrappers)))


def evaluation_environments(callback: BaseCallback) -> tuple[VecEnv, ...]:
    """
    Find where callbacks evaluate a model while it learns.

    :param callback: with those that it holds
    :return: environments, beside those that the model learns in
    """
    own = (callback.eval_env,) if isinstance(callback, EvalCallback) else ()
    held = [*getattr(callback, "callbacks", ()), getattr(callback, "callback", None)]
    others = (evaluation_environments(one) for one in held if isinstance(one, BaseCallback))
    return sum(others, own)


def _was_reset(env: gym.Env, through_monitor: bool) -> bool:
    """Whether it has a state, as far as wrappers tell; whoever was given the environment may reset it beneath the Monitor."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if vars(layer).get("_has_reset") is False or (through_monitor and isinstance(layer, Monitor) and layer.needs_reset):
            return False
        layer = layer.env
    return True


def _row(observations: Observations, i: int) -> Any:
    return map_observations(lambda rows: rows[i], observations)


def _is_close(seen: Any, observation: Any) -> bool:
    return bool(np.allclose(np.ravel(seen), np.ravel(observation), rtol=TOLERANCE, atol=TOLERANCE))


class StateFinder:
    """
    Finds the simulator's state behind each observation.

    :param simulator: of one environment
    :param state_from_obs: given by the user; None takes that of the task where there is one
    """

    def __init__(self, simulator: Simulator, state_from_obs: StateFromObs | None = None) -> None:
        self.simulator = simulator
        self.base: Any = simulator.env.unwrapped
        self.state_from_obs = state_from_obs or STATES_FROM_OBS.get(class_name(self.base))

    def find(
        self,
        observations: Observations,
        originals: Observations,
        env: VecEnv | None,
        others: Sequence[VecEnv] = (),
        is_here: bool = False,
    ) -> list[SimulatorState]:
        """
        Find the states.

        :param observations: as the model is shown them, ``[n, ...]`` or a dictionary of such
        :param originals: as the environments return them, likewise
        :param env: the model's; None where it has none
        :param others: where it may be evaluated
        :param is_here: whether ``env`` is known to be where it acts, as it is while it learns, whoever else has stepped it
            since it was last observed
        :return: of each observation
        :raises ValueError: if one is not found
        """
        n = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        read, problem = self._read(env, n)
        found = [(env, read), *((other, self._read(other, n)[0]) for other in others)]
        states = []
        for i in range(n):
            observation = _row(observations, i)
            there = [(one, of_each[i]) for one, of_each in found]
            state = next((s for one, s in there if s is not None and (is_here or self._shows(s, observation, one))), None)
            if state is None:
                state = self._deduce(_row(originals, i))
                # what an environment observes may not be known: then who gave state_from_obs is believed
                if state is not None and self._observed(state) is None:
                    state = replace(state, observation=_row(originals, i))
                if state is None or not self._shows(state, observation, env):
                    raise ValueError(self._not_found(i, problem))
            states.append(state)
        return states

    def _read(self, env: VecEnv | None, n: int) -> tuple[list[SimulatorState | None], str]:
        nothing: list[SimulatorState | None] = [None] * n
        if env is None:
            return nothing, "the model has no environment"
        if env.num_envs != n:
            return nothing, f"the model has {env.num_envs} environments, and there are {n} observations"
        try:
            states = read_states(self.simulator, env)
        except ValueError as error:
            return nothing, str(error)
        base = beneath(env)
        kept: Any = getattr(base, "buf_obs", None)
        for i, state in enumerate(states):
            if not isinstance(base, DummyVecEnv):
                break
            is_known = self._observed(state) is not None
            if not _was_reset(base.envs[i], through_monitor=not is_known):
                return nothing, "the environments of get_env() were not reset yet"
            # what wrappers with a memory show cannot be computed, but is known
            if not is_known:
                shown = {key: rows[i].copy() for key, rows in kept.items()}
                states[i] = replace(state, observation=shown.get(None, shown))
        return list(states), "the environments of get_env() are elsewhere"

    def _shows(self, state: SimulatorState, observation: Any, env: VecEnv | None) -> bool:
        shown = self._observed(state)
        if shown is None:
            return False
        seen = as_shown(env, map_observations(lambda array: np.asarray(array)[None], shown))
        if not isinstance(seen, dict):
            return _is_close(seen, observation)
        return all(_is_close(seen[key], observation[key]) for key in observation)

    def _observed(self, state: SimulatorState) -> Any:
        try:
            return self.simulator.observe(state)
        except (AttributeError, AssertionError, TypeError):  # an environment that was never reset has no state yet
            return None

    def _deduce(self, original: Any) -> SimulatorState | None:
        if self.state_from_obs is None:
            return None
        self.simulator.reset(seed=0)
        shown: Any = map_observations(lambda array: np.asarray(array, dtype=np.float64), original)
        try:
            self.state_from_obs(self.base, shown)
        except NotSaidError:
            return None
        return self.simulator.read(self.simulator.env)

    def _not_found(self, i: int, problem: str) -> str:
        name = type(self.base).__name__
        return (
            f"The simulator's state behind observation {i} is not known: {problem}, and an observation of {name} does not say "
            "it. Call model.set_env(env) with the environment that you act in, or give state_from_obs"
        )
