"""How large an iteration is where the user leaves it open.

Learning from few steps needs many iterations, and the first ones know least: they are small. What a user gives keeps its
meaning; what is left open follows from the time limit, the sizes of state and action and, where ``learn`` gets few steps, from
these: ``FEWEST`` iterations shall fit.
"""

from dataclasses import dataclass

FEWEST = 5
"""Iterations that shall fit into the steps of ``learn``."""
SHORTEST_HORIZON = 2
"""Steps below which there is nothing to plan."""
STEPS_PER_INPUT, FEWEST_STEPS, MOST_STEPS = 40, 400, 2000
"""Steps of an iteration of trajectories: for each entry of state and action that a local model reads, and in all. The prior of
the dynamics takes 400 points from all trajectories that are kept."""


def shrink(n_steps: int, total_timesteps: int | None) -> int:
    """
    Let enough iterations fit.

    :param n_steps: of an iteration, as many as are wanted
    :param total_timesteps: that ``learn`` is to take; None where it is not known yet
    :return: steps of an iteration, at least one
    """
    return n_steps if total_timesteps is None else max(min(n_steps, total_timesteps // FEWEST), 1)


def describe(name: str, n_steps: int, of_what: str, wanted: int, total_timesteps: int) -> str:
    """
    Say how long an iteration is, before it begins.

    :param name: of the algorithm
    :param n_steps: of an iteration, of all environments
    :param of_what: what these are, in words
    :param wanted: steps that it would take in a longer training
    :param total_timesteps: that ``learn`` is to take
    :return: a line
    """
    said = f"{name}: an iteration takes {n_steps:,} steps of all environments{of_what}"
    if n_steps < wanted:
        said += f"; {wanted:,} is usual, but {FEWEST} iterations shall fit into {total_timesteps:,} steps"
    elif n_steps * FEWEST > total_timesteps:
        said += f"; fewer than {FEWEST} fit into {total_timesteps:,} steps"
    return said


@dataclass(frozen=True)
class IterationSize:
    """Of trajectories that are aligned in time, sampled in several environments side by side."""

    horizon: int
    """time steps of a trajectory"""
    n_conditions: int
    """initial conditions M of each environment that differs"""
    samples_per_condition: int
    """trajectories N from each condition"""
    n_batches: int
    """how often every sub-environment takes a trajectory"""

    @property
    def n_steps(self) -> int:
        """Of each sub-environment."""
        return self.n_batches * self.horizon


@dataclass(frozen=True)
class SizeRequest:
    """What a user gave, None for what is left open, and what the rest follows from."""

    horizon: int | None
    n_conditions: int | None
    samples_per_condition: int | None
    longest_horizon: int
    """that is taken by default: the time limit, or less"""
    n_inputs: int
    """entries of state and action"""
    least_samples: int
    """trajectories from each of several conditions: as many as a fit needs. What conditions share, the prior of the dynamics
    knows from all of them, and a policy that imitates many generalises"""
    copies: int
    """of each environment, that sample side by side"""
    pooled: bool
    """whether a condition covers all initial states, so that one is enough"""

    def choose(self, total_timesteps: int | None = None) -> IterationSize:
        """
        Choose what is left open.

        :param total_timesteps: of one environment that differs from others; None where they are not known yet
        :return: the size
        """
        wanted = shrink(min(max(STEPS_PER_INPUT * self.n_inputs, FEWEST_STEPS), MOST_STEPS), total_timesteps)
        M, N = self.n_conditions, self.samples_per_condition
        fewest = -(-(M or 1) * (N or self.least_samples) // self.copies) * self.copies
        horizon = self.horizon
        if horizon is None:  # trajectories whose number was given are cut only where ``learn`` gets few steps
            steps = wanted if M is None and N is None else shrink(self.longest_horizon * fewest, total_timesteps)
            horizon = max(min(self.longest_horizon, steps // fewest), min(SHORTEST_HORIZON, self.longest_horizon))
        n_trajectories = max(wanted // horizon // self.copies * self.copies, fewest)
        if M is None:
            M = 1 if self.pooled else max(n_trajectories // (N or self.least_samples), 1)
        if N is None:
            N = max(n_trajectories // M, self.least_samples)
        return IterationSize(horizon, M, N, -(-M * N // self.copies))
