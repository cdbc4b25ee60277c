"""How large a local plan is, which is known before anything is sampled, and what states are reduced to where it would not fit.

Dynamics, cost and controllers hold matrices for every condition and time step, so that memory grows with the square of the
state and time with its cube. The limits are numbers of the package, not of the machine: the same seed gives the same numbers
everywhere.
"""

from dataclasses import dataclass, replace

import numpy as np

from sb3_dpi.common.local_models import FITTED_AT_ONCE, RegressionSettings
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.dynamics import Standardizer

LARGEST_PLAN = 4 * 2**30
"""Bytes that an iteration's arrays may take."""
LONGEST_PLAN = 2e12
"""Floating-point operations that fitting and planning may take, some minutes of one core."""
SMALLEST_RANK = 4
"""Directions below which a plan says nothing."""
PASSES = 40
"""Of a search for the dual variable, of three products of matrices each, usually fewer."""
FITS = 2
"""Regressions of the dynamics in an iteration, that which is held against what was left out included."""
MIXTURE_STEPS = 60
"""Of the mixture's fit, in operations for each entry of a joint covariance, point and cluster. Measured: it takes as long as
fifteen expectations, each a quarter as fast as products of matrices."""
ROWS = 2000
"""States that the directions are found in, at most."""
COPIES, COPIES_OF_A_FIT = {"nearest": 2.5, "gmm": 2.5, "niw": 8.0}, 5.0
"""Arrays at a time in units of the joint covariances of all conditions and time steps, by the prior of the dynamics; and in
units of those that are fitted at once. Measured."""


@dataclass(frozen=True)
class PlanSize:
    """What the size of an iteration's plan follows from."""

    n_conditions: int
    """that models are fitted for"""
    n_samples: int
    """trajectories of each"""
    horizon: int
    """time steps"""
    state_dim: int
    """numbers that the planner sees"""
    action_dim: int
    """numbers in an action"""
    prior: str
    """of the dynamics"""
    n_pooled: int | None = None
    """trajectories that the cost and the prior are fitted to; None for those of the conditions"""

    def n_bytes(self, rank: int) -> float:
        """
        Memory of an iteration.

        :param rank: numbers that states are reduced to
        :return: bytes
        """
        steps = self.n_conditions * self.horizon
        n, dz = self._n_points, rank + self.action_dim
        joint = 8.0 * steps * (rank + dz) ** 2
        matrices = COPIES[self.prior] * joint + COPIES_OF_A_FIT * min(joint, FITTED_AT_ONCE)
        features = 3 * n * self._features(rank)
        samples = n * (6 * self.state_dim + 3 * self.action_dim**2)
        return matrices + 8.0 * (features + samples)

    def operations(self, rank: int) -> float:
        """
        Time of an iteration.

        :param rank: numbers that states are reduced to
        :return: floating-point operations
        """
        steps, inputs = self.n_conditions * self.horizon, float(rank + self.action_dim)
        n, joint, features = self._n_points, rank + inputs, float(self._features(rank))
        neighbours = {"nearest": RegressionSettings.neighbours}.get(self.prior, 0)
        clusters = (
            min(n / RegressionSettings.samples_per_cluster, RegressionSettings.max_clusters) if self.prior == "gmm" else 0.0
        )
        dynamics = steps * (3.0 * joint**3 + neighbours * joint**2) + MIXTURE_STEPS * n * clusters * joint**2
        return 3.0 * PASSES * steps * inputs**3 + FITS * dynamics + 0.5 * n * features**2 + features**3 / 3.0

    def _features(self, rank: int) -> int:
        """Of the quadratic cost, by as many samples as it is fitted to."""
        dz = rank + self.action_dim
        cross_terms = (dz + 1) * (dz + 2) // 2
        return cross_terms if cross_terms <= self._n_points / 2 else 2 * dz + 1

    @property
    def _n_points(self) -> int:
        pooled = self.n_conditions * self.n_samples if self.n_pooled is None else self.n_pooled
        return pooled * self.horizon

    def rank(self) -> int | None:
        """
        Find how many numbers a state may have.

        :return: None where it can stay as it is
        :raises ValueError: if not even a few numbers fit
        """
        fits = (r for r in range(self.state_dim, 0, -1) if self._fits(r))
        largest = next(fits, 0)
        least = min(SMALLEST_RANK, self.state_dim)
        if largest < least:
            raise ValueError(
                f"A local plan of {self.n_conditions} conditions, {self.n_samples} trajectories of each, {self.horizon} time "
                f"steps and {self.action_dim} actions takes {self.n_bytes(least) / 2**30:.1f} GiB and "
                f"{self.operations(least):.0e} operations even for states of {least} numbers; {LARGEST_PLAN / 2**30:.0f} GiB "
                f"and {LONGEST_PLAN:.0e} are the most. Set a shorter horizon, or lower n_conditions, samples_per_condition or "
                "replay"
            )
        return None if largest == self.state_dim else largest

    def _fits(self, rank: int) -> bool:
        return self.n_bytes(rank) <= LARGEST_PLAN and self.operations(rank) <= LONGEST_PLAN


def reduce_states(trajectories: Trajectories, rank: int) -> Trajectories:
    """
    Describe states by the directions in which they vary most, in standard deviations of each number.

    :param trajectories: sampled
    :param rank: how many directions
    :return: the same with states ``[M, N, T + 1, rank]``
    """
    states = trajectories.states
    living = states[:, :, :-1][trajectories.alive]
    scale = Standardizer.fit(living, np.ones(len(living)))
    rows = living[np.linspace(0, len(living) - 1, min(len(living), ROWS)).astype(int)]
    _, _, directions = np.linalg.svd(scale.apply(rows), full_matrices=False)
    return replace(trajectories, states=scale.apply(states) @ directions[:rank].T)
