"""Experts by name."""

from typing import Protocol

import numpy as np

from sb3_dpi.world_model.experts.lqr import KLLQR
from sb3_dpi.world_model.experts.pathwise import Pathwise
from sb3_dpi.world_model.experts.plan_targets import Plan
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.experts.sampling import ICEM, MPPI


class Expert(Protocol):
    """Plans in imagined windows."""

    @property
    def imitation_steps(self) -> int:
        """Steps of the policy for each plan."""
        ...

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> Plan:
        """
        Plan near the policy.

        :param problem: policy, model, critic and windows
        :param rng: draws what must be sampled
        :return: what the policy can learn from
        """
        ...


EXPERTS: dict[str, type[Expert]] = {"pathwise": Pathwise, "lqr": KLLQR, "mppi": MPPI, "icem": ICEM}
