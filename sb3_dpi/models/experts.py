"""Experts by name."""

from typing import Protocol

import numpy as np

from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.models.advice import Plan
from sb3_dpi.models.critics import Critic
from sb3_dpi.models.ensemble import Ensemble
from sb3_dpi.models.imagination import Windows
from sb3_dpi.models.pathwise import Pathwise
from sb3_dpi.models.sampling import ICEM, MPPI
from sb3_dpi.models.window_lqr import KLLQR


class Expert(Protocol):
    """Plans in imagined windows."""

    def plan(
        self,
        actor: SquashedGaussian,
        ensemble: Ensemble,
        critic: Critic,
        windows: Windows,
        temperature: float,
        gamma: float,
        rng: np.random.Generator,
    ) -> Plan:
        """
        Plan near the policy.

        :param actor: the policy
        :param ensemble: the model
        :param critic: closes the windows
        :param windows: where they begin
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :param rng: draws what must be sampled
        :return: what the policy can learn from
        """
        ...


EXPERTS: dict[str, type[Expert]] = {"pathwise": Pathwise, "lqr": KLLQR, "mppi": MPPI, "icem": ICEM}
