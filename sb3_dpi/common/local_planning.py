"""Planning with local models within a trust region around the policy."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sb3_dpi.common.local_models import LocalModel
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution, KLConstraintError, solve_kl_constrained
from sb3_dpi.trajopt.types import FloatArray, IntArray


def discounted_steps(lengths: IntArray, discount: float) -> FloatArray:
    """What the time steps of a plan weigh together, 1 + gamma + gamma^2 + ...

    :param lengths: steps, ``[M]``; none counts as one
    :param discount: gamma
    :return: ``[M]``
    """
    longest = int(np.max(lengths, initial=1))
    weights: FloatArray = np.cumsum(discount ** np.arange(longest))[np.maximum(lengths, 1) - 1]
    return weights


def kl_per_step(solution: KLConstrainedSolution, lengths: IntArray, discount: float) -> float:
    """KL of plans to the policy, as ``solve_shortening`` bounds it.

    :param solution: of the conditions
    :param lengths: planned time steps of the first M conditions, ``[M]``
    :param discount: gamma
    :return: nats per time step, mean over conditions and time steps with the discount as weight
    """
    kl = solution.kl[: len(lengths)]
    return float(np.sum(kl @ discount ** np.arange(kl.shape[1])) / np.sum(discounted_steps(lengths, discount)))


def solve_shortening(
    model: LocalModel,
    epsilon: FloatArray | float,
    eta: FloatArray | None,
    discount: float,
    per_time_step: bool = False,
    shorten: Callable[[np.ndarray], LocalModel] | None = None,
) -> tuple[LocalModel, KLConstrainedSolution]:
    """Plan within the trust region, for fewer time steps where the whole plan has no finite solution.

    Fitted dynamics of an unstable system multiply over a long plan until no dual variable keeps it finite; its beginning can
    still be planned.

    :param model: of the conditions
    :param epsilon: bound on the KL, nats per time step, mean over the plan with its discount as weight, number or ``[M]``
    :param eta: start of the search, ``[M]``, or None
    :param discount: gamma
    :param per_time_step: bound every time step instead of their mean
    :param shorten: makes the model of other lengths ``[M]``; by default the present one is cut
    :return: the model with the lengths that were planned, and the solution
    :raises KLConstraintError: if not even a single step of a condition can be planned
    """
    while True:
        each = np.broadcast_to(epsilon, model.lengths.shape)
        bound = each * discounted_steps(model.lengths, discount)
        if per_time_step:
            bound = np.repeat(each[:, None], model.cost.const.shape[1], axis=1)
        standard = model.standardized()
        problem = standard.dynamics, standard.cost, standard.policy, standard.initial
        try:
            solution = solve_kl_constrained(*problem, bound, eta=eta, discount=discount, per_time_step=per_time_step)
            return model, replace(solution, controller=model.units.undo(solution.controller))
        except KLConstraintError as error:
            lengths = model.lengths.copy()
            lengths[error.condition] //= 2
            if lengths[error.condition] < 1:
                raise
            model = model.shortened(lengths) if shorten is None else shorten(lengths)
