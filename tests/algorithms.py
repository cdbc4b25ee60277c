"""The algorithms, in groups of which tests can ask what holds for all of them, as small as they can be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dummy_envs import CONDITIONS, HORIZON, SAMPLES, PointMass, limited, small_mdgps

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DualAC
from sb3_dpi.world_model.types import Transitions, stretch_ends

Model = MDGPS | AggreVaTeDOC
Make = Callable[..., Model]


def small_aggrevated_oc(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> AggreVaTeDOC:
    """:return: a model whose iteration takes ``ITERATION`` steps and milliseconds"""
    options: dict[str, Any] = {
        "horizon": HORIZON,
        "n_conditions": CONDITIONS,
        "samples_per_condition": SAMPLES,
        "conditions": "fresh",
        "replay": 0,
        "n_critic_updates": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return AggreVaTeDOC(policy, PointMass() if env is None else env, **{**options, **kwargs})


ALGORITHMS: dict[type[Model], Make] = {MDGPS: small_mdgps, AggreVaTeDOC: small_aggrevated_oc}

every_class = pytest.mark.parametrize("algorithm", list(ALGORITHMS), ids=lambda algorithm: algorithm.__name__)
"""For tests of ``algorithm``, the class"""

every_algorithm = pytest.mark.parametrize(
    "make", list(ALGORITHMS.values()), ids=[algorithm.__name__ for algorithm in ALGORITHMS]
)
"""For tests of ``make``, which builds a small model"""


Stepwise = DPI | DualAC
DPI_STEPS, DUAL_AC_STEPS = 40, 32


def small_dpi(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> DPI:
    """:return: a model whose iteration takes milliseconds"""
    options: dict[str, Any] = {
        "train_freq": DPI_STEPS,
        "learning_starts": DPI_STEPS,
        "batch_size": 16,
        "imagination": {"n_windows": 10, "horizon": 2, "n_rollout_steps": 50},
        "update_to_data": 0.02,
        "world_model": {"width": 16},
        "policy_kwargs": {"net_arch": {"pi": [16, 16], "qf": [16, 16]}},
        "seed": 0,
        "device": "cpu",
    }
    for name in ("imagination", "world_model", "policy_kwargs"):  # what is given joins what is small
        kwargs[name] = {**options[name], **kwargs.get(name, {})}
    return DPI(policy, limited(12) if env is None else env, **{**options, **kwargs})


def kept(model: DPI) -> tuple[Transitions, np.ndarray]:
    """:return: all that DPI remembers, of one environment after the other, and where episodes end"""
    rows = model.memory.newest(len(model.memory))
    return model.memory.take(rows), stretch_ends(model.memory, rows)


def block(model: DPI | DualAC) -> int:
    """:return: steps of each environment between updates"""
    if not isinstance(model, DPI):
        return model.n_steps
    return DPI_STEPS if model.preset_ is None else model._next_block().frequency


def small_dual_ac(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> DualAC:
    """:return: a model whose iteration takes milliseconds"""
    options: dict[str, Any] = {
        "n_steps": DUAL_AC_STEPS,
        "batch_size": 16,
        "n_critic_updates": 2,
        "policy_kwargs": {"features_extractor_kwargs": {"n_features": 10}} if policy == "RBFPolicy" else {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return DualAC(policy, limited(12) if env is None else env, **{**options, **kwargs})


every_stepwise_algorithm = pytest.mark.parametrize("make", [small_dpi, small_dual_ac], ids=["DPI", "DualAC"])
"""Of those that sample step by step, as algorithms of Stable-Baselines3 do, and share no base of ours"""


def parameters(model: Stepwise) -> float:
    """:return: a number that changes if anything learned does"""
    modules = (model.policy, model.ensemble, model.critic) if isinstance(model, DPI) else (model.policy,)
    return float(sum(parameter.detach().double().sum() for module in modules for parameter in module.parameters()))


def logged(model: Model | Stepwise, key: str) -> float:
    """:return: a scalar of the last iteration"""
    return float(model.logger.name_to_value[key])


def planned(model: Model) -> np.ndarray:
    """:return: which samples of the last iteration are alive and planned for, ``[M, N, T]``"""
    return model._planned(model.rollout_buffer.trajectories())
