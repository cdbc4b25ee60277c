"""Questions to vectorised environments that others wrote, which not all can answer.

Stable-Baselines3's own algorithms need no more than ``reset`` and ``step``; many simulators of a batch offer no more. What
they do not say is not known.
"""

import pickle
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

ALL_HAVE = ("spec",)
"""Attributes of every environment of Gymnasium."""


class _HeldBack(type):
    def __instancecheck__(cls, env: Any) -> bool:
        try:
            pickle.dumps(env.spec)
        except Exception:  # whatever is in it raises what it likes
            return True
        return False


class HeldBackSpec(metaclass=_HeldBack):
    """
    What an environment seems to be wrapped in whose ``spec`` cannot be pickled, as that of a wrapper made with a lambda.

    To send such a spec would end the worker of a ``SubprocVecEnv``, and this is a question that workers answer with truth.
    """


def ask(env: VecEnv, name: str) -> list[Any] | None:
    """
    Ask every copy for an attribute.

    :param env: wrapped or not
    :param name: of the attribute
    :return: its values, one a copy; None where they are not known
    """
    base = beneath(env)
    # the default of has_attr asks for the value, which would end a process that has none
    is_safe = isinstance(base, DummyVecEnv) or type(base).has_attr is not VecEnv.has_attr
    if not is_safe and name not in ALL_HAVE:
        return None
    try:
        if isinstance(base, SubprocVecEnv) and not _may_be_sent(base, name):
            return None
        found = base.get_attr(name)
    except Exception:  # whatever a class of somebody else raises, it says that it does not know
        return None
    is_complete = isinstance(found, list | tuple) and len(found) == env.num_envs
    return list(found) if is_complete else None


def _may_be_sent(env: SubprocVecEnv, name: str) -> bool:
    if name != "spec":
        return env.has_attr(name)
    # what is no wrapper cannot be asked
    return all(env.env_is_wrapped(gym.Wrapper)) and not any(env.env_is_wrapped(HeldBackSpec))  # type: ignore[arg-type]


def names(env: VecEnv) -> list[str]:
    """
    Tell kinds of environments apart whose specs are not known.

    :param env: wrapped or not
    :return: of each copy its wrappers and its id, where it is a ``SubprocVecEnv``; else nothing
    """
    base = beneath(env)
    return list(map(str, base.env_method("__str__"))) if isinstance(base, SubprocVecEnv) else [""] * env.num_envs


def beneath(env: VecEnv) -> Any:
    """:return: what steps the environments, without wrappers"""
    base: Any = env
    while isinstance(base, VecEnvWrapper) and isinstance(base.venv, VecEnv):
        base = base.venv
    return getattr(base, "_base", base)  # beneath the layer of early resets, which hands questions on


def allow_early_resets(env: VecEnv) -> bool:
    """
    Tell whether an episode may be left before its end, as ``Monitor(allow_early_resets=False)`` forbids.

    :param env: that steps the copies, without wrappers
    :return: false where one of the copies forbids it
    """
    if isinstance(env, DummyVecEnv):
        return all(_allows(environment) for environment in env.envs)
    return all(value is not False for value in ask(env, "allow_early_resets") or ())


def is_monitored(env: VecEnv) -> bool:
    """
    Tell whether every copy says how its episodes ended.

    :param env: that steps the copies, without wrappers
    :return: whether each has a Monitor
    """
    return isinstance(env, DummyVecEnv | SubprocVecEnv) and all(env.env_is_wrapped(Monitor))


def _allows(env: gym.Env) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Monitor) and not env.allow_early_resets:
            return False
        env = env.env
    return True
