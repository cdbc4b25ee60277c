"""States of vectorised environments, read for plans in their simulator."""

from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_dpi.systems import Simulator, SimulatorState


def read_states(simulator: Simulator, env: VecEnv) -> list[SimulatorState]:
    """
    Read where every copy is.

    :param simulator: of an environment of their kind
    :param env: with its wrappers: a ``DummyVecEnv``, or a ``SubprocVecEnv`` whose environments are wrapped in
        ``sb3_dpi.systems.ReadableState``
    :return: the state of each
    :raises ValueError: if they cannot be read, or are of another kind
    """
    base: Any = env
    while isinstance(base, VecEnvWrapper):
        base = base.venv
    base = getattr(base, "_base", base)  # beneath the layer of early resets
    if isinstance(base, DummyVecEnv):
        return [simulator.read(environment) for environment in base.envs]
    if isinstance(base, SubprocVecEnv):
        if not base.has_attr("simulator_state"):
            raise ValueError(
                "The states of environments in other processes cannot be read: wrap each in sb3_dpi.systems.ReadableState, as "
                "make_vec_env(..., wrapper_class=ReadableState, vec_env_cls=SubprocVecEnv) does, or use a DummyVecEnv"
            )
        return [simulator.adopt(state) for state in base.env_method("simulator_state")]
    raise ValueError(
        f"The states of a {type(base).__name__} cannot be read: plan with a DummyVecEnv or a SubprocVecEnv, or with "
        "system='ensemble', which learns from observations"
    )
