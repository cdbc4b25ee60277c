"""How states are weighed and actions judged."""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.dual_ac import windows
from sb3_dpi.dual_ac.action_critic import Guess
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.trajopt.types import FloatArray


@dataclass(frozen=True)
class Judgement:
    """What a V makes of a rollout."""

    weights: FloatArray
    """alpha of the states that windows start from, mean one, ``[T, N]``"""
    advantages: FloatArray
    """of each step's action, ``[T, N]``"""
    shares: FloatArray
    """how much each step counts, mean one, ``[T, N]``"""
    guessed: FloatArray
    """what of the advantages Q has predicted; the rest multiplies ``grad log pi``, ``[T, N]``"""


def judge(
    batch: Batch, values: FloatArray, weights: FloatArray, gamma: float, gradient: str, guess: Guess | None = None
) -> Judgement:
    """Find what multiplies ``grad log pi`` of each step.

    With Q, its advantages are taken from the temporal differences: their mean in a state is zero, so that the gradient loses
    noise alone. What is left is measured with V or ``E_a Q``, or between both, whichever leaves least.

    :param batch: the rollout
    :param values: V of all rows
    :param weights: alpha, ``[T, N]``
    :param gamma: discount factor
    :param gradient: ``"causal"``, ``"averaged"`` or ``"literal"``
    :param guess: what Q says, not with ``"literal"``
    :return: the judgement
    """
    if gradient == "literal":
        factors = windows.literal_gradient_weights(batch.deltas(values, gamma), weights, batch.lengths)
        return Judgement(weights, factors, np.ones(batch.shape), np.zeros(batch.shape))
    guessed = np.zeros(batch.shape) if guess is None else guess.advantages

    def left(by: FloatArray) -> tuple[FloatArray, FloatArray]:
        differences = batch.temporal_differences(by, gamma) - guessed
        return windows.causal_gradient_weights(differences, weights, batch.ends, batch.lengths, gamma)

    rest, covered = left(values)
    shares = np.ones_like(covered) if gradient == "averaged" else covered / covered.mean()
    if guess is not None:
        rest = _blend(rest, left(guess.values)[0], shares)
    return Judgement(weights, rest + guessed, shares, guessed)


def trust_in_samples(rest: FloatArray, guessed: FloatArray, shares: FloatArray, n_directions: int) -> float:
    """Find how much of what is measured beyond Q is to be believed (a ridge's shrinkage; it comes to one with the samples).

    Q is taken to be wrong by as much as it says. Spread over the directions that a policy can move in, that is told apart from
    the noise of n samples where ``n var(guessed) > directions var(rest)``.

    :param rest: what Q leaves of the advantages, ``[n]``
    :param guessed: what Q says, ``[n]``; where it is all zero there is no Q
    :param shares: of the samples, ``[n]``
    :param n_directions: of the policy
    :return: factor from 0 to 1
    """
    signal, noise = (float(np.average((x - np.average(x, weights=shares)) ** 2, weights=shares)) for x in (guessed, rest))
    return 1.0 if signal == 0.0 else signal * len(rest) / (signal * len(rest) + noise * n_directions)


def _blend(one: FloatArray, other: FloatArray, shares: FloatArray) -> FloatArray:
    """The mixture of least variance."""
    centred, step = (x - np.average(x, weights=shares) for x in (one, other - one))
    length = float(np.average(step**2, weights=shares))
    share = -float(np.average(centred * step, weights=shares)) / length if length > 0.0 else 0.0
    return one + min(max(share, 0.0), 1.0) * (other - one)
