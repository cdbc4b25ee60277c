"""The algorithms that share their base, so that tests can ask of each of them what holds for all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dummy_envs import CONDITIONS, HORIZON, SAMPLES, PointMass, small_mdgps

from sb3_dpi import MDGPS, AggreVaTeDOC

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


def logged(model: Model, key: str) -> float:
    """:return: a scalar of the last iteration"""
    return float(model.logger.name_to_value[key])


def planned(model: Model) -> np.ndarray:
    """:return: which samples of the last iteration are alive and planned for, ``[M, N, T]``"""
    return model._planned(model.rollout_buffer.trajectories())
