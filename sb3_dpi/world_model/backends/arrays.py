"""What the jobs are given: arrays of single precision and numbers, grouped by what they belong to.

Shapes: ``E`` members of ``P`` parameters, ``K`` steps of ``B`` rows, ``H`` steps of ``E m`` windows (window i of member e is
row ``e m + i``), states ``[n, dx]`` in standard deviations, actions ``[n, du]`` in units of the bounds.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NORM_EPSILON = 1e-5
"""Added to the variance by which a hidden layer is normalised."""
TANH_EPSILON = 1e-6
"""Added to 1 - u^2, whose logarithm is taken."""
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
CHANGE_LIMIT = 8.0
"""Standard deviations at which targets and predictions are clipped."""


class NetworkArrays(NamedTuple):
    """Multilayer perceptrons of one shape with hardswish, as in ``StackedMLP``."""

    flat: Floats
    """layer after layer, weights ``[n_in, n_out]`` before the bias, ``[E, P]``"""
    sizes: tuple[int, ...]
    """of the layers, input and output included"""
    layer_norm: bool = False
    """whether hidden layers are normalised before the activation, without learned scale"""


class AdamArrays(NamedTuple):
    """Where Adam stands, as ``torch.optim.Adam`` keeps it."""

    first: Floats
    """mean of gradients, ``[E, P]``"""
    second: Floats
    """mean of squared gradients, ``[E, P]``"""
    step: int
    """steps taken before"""
    rate: float
    """learning rate"""
    beta_1: float = 0.9
    """how much of the first mean a step keeps"""
    beta_2: float = 0.999
    """how much of the second"""
    epsilon: float = 1e-8
    """added to the root of the second"""


class PolicyArrays(NamedTuple):
    """A Gaussian behind tanh, as in ``SquashedGaussian``."""

    network: NetworkArrays
    """of one member; puts out the mean before tanh and the raw log standard deviation, ``2 du`` in all"""
    log_std_low: float
    """log of the smallest standard deviation"""
    log_std_high: float
    """log of the largest"""


class ModelArrays(NamedTuple):
    """Members that predict the change of state and the reward, as in ``Ensemble``."""

    network: NetworkArrays
    """puts out the change of state and the reward, standardised: ``dx + 1``"""
    gain: Floats
    """from outputs to changes of standardised states, ``[dx]``"""
    offset: Floats
    """mean change, ``[dx]``"""
    reward_mean: float
    """in units of value"""
    reward_std: float
    """in units of value"""
    state_low: Floats
    """where states are clipped, ``[dx]``"""
    state_high: Floats
    """likewise"""


class CriticBatches(NamedTuple):
    """What K updates of soft Q-functions learn from."""

    states: Floats
    """``[K, B, dx]``"""
    actions: Floats
    """``[K, B, du]``"""
    rewards: Floats
    """in units of value, ``[K, B]``"""
    next_states: Floats
    """``[K, B, dx]``"""
    continuation: Floats
    """probability that the episode goes on, ``[K, B]``"""
    noise: Floats
    """standard normal, for the next actions, ``[K, B, du]``"""


class WindowArrays(NamedTuple):
    """Where imagined windows begin, what corrects them, and the policy's noise."""

    states: Floats
    """``[E m, dx]``"""
    state_residuals: Floats
    """added to predicted states, ``[H, E m, dx]``"""
    reward_residuals: Floats
    """added to predicted rewards, in units of value, ``[H, E m]``"""
    noise: Floats
    """standard normal, ``[H + 1, E m, du]``"""
