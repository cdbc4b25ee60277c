"""The game of the dual critic V against the weighted actor (alpha, pi): its value, and alpha in closed form.

A window starts in a state s, collects the return R of its m steps and ends in a state s' from which it goes on with the
discount ``d = gamma^m``, or d = 0 if it ended by death. Its weight w is alpha(s) times the probability of the window under pi,
or for samples alpha over the density that they were drawn from.
"""

from typing import TypeVar

import numpy as np
import torch as th

from sb3_dpi.trajopt.types import FloatArray

Vector = TypeVar("Vector", np.ndarray, th.Tensor)


def lagrangian(
    initial: Vector, initial_weights: Vector, start: Vector, end: Vector, returns: Vector, discounts: Vector, weights: Vector
) -> Vector:
    """Evaluate the Lagrangian (Eq. 6 for windows of one step, Eq. 8 for longer ones).

    ``L = (1 - E[d]) E_mu[V] + sum_w (R + d V(s') - V(s))``, E the mean over the windows. Where none ends early this is Eq. 8,
    for then ``d = gamma^{k+1}``. The factor of ``E_mu[V]`` is what makes a distribution of alpha: as long as the weights sum
    to one, L does not change when a constant is added to V.

    :param initial: V of the initial states, ``[m]``
    :param initial_weights: mu, ``[m]``, sums to one
    :param start: V(s), ``[n]``
    :param end: V(s'), ``[n]``
    :param returns: R, ``[n]``
    :param discounts: d, ``[n]``
    :param weights: w, ``[n]``, at least 0; the saddle point's sum to one
    :return: L, ``[]``, in units of the rewards' sum
    """
    continues = (weights * discounts).sum() / weights.sum()
    at_start = (1.0 - continues) * (initial_weights * initial).sum()
    value: Vector = at_start + (weights * (returns + discounts * end - start)).sum()
    return value


def dual_weights(delta: FloatArray, spread: float, alpha_regularization: float, mu_weight: float = 1.0) -> FloatArray:
    """Weigh states by alpha in closed form (Theorem 6).

    ``max_{alpha >= 0} E[alpha delta] - eta_alpha spread / 2 E[alpha^2]`` has the solution
    ``alpha = max(0, delta) / (eta_alpha spread)``; with the share of the initial distribution a state weighs
    ``alpha + eta_mu``.

    :param delta: E[R + d V(s') - V(s) | s], any shape. Samples of it will not do: their maximum with 0 has another mean, and
        a weight that knows the actions biases their gradient
    :param spread: standard deviation of the samples of delta
    :param alpha_regularization: eta_alpha, in units of ``spread``, positive; infinite: all states weigh the same
    :param mu_weight: eta_mu, at least 0
    :return: weights of the same shape whose mean is one
    """
    alpha = np.maximum(delta, 0.0) / (alpha_regularization * spread) if spread > 0.0 else np.zeros_like(delta)
    weights = alpha + mu_weight
    mean = float(weights.mean())
    return weights / mean if mean > 0.0 else np.ones_like(delta)
