"""Experts by name."""

from typing import Protocol

import numpy as np

from sb3_dpi.models.advice import Plan
from sb3_dpi.models.pathwise import Pathwise
from sb3_dpi.models.problem import PlanningProblem
from sb3_dpi.models.sampling import ICEM, MPPI
from sb3_dpi.models.window_lqr import KLLQR


class Expert(Protocol):
    """Plans in imagined windows."""

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> Plan:
        """
        Plan near the policy.

        :param problem: policy, model, critic and windows
        :param rng: draws what must be sampled
        :return: what the policy can learn from
        """
        ...


EXPERTS: dict[str, type[Expert]] = {"pathwise": Pathwise, "lqr": KLLQR, "mppi": MPPI, "icem": ICEM}
