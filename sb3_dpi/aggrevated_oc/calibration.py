"""How far an expert is to be believed: its advantages against those that were sampled.

The sampled advantages are regressed on the expert's. A slope of 1 means that the model tells the truth on average, one of 0
that it tells nothing. The evidence of the slope meets a prior, and what earlier iterations have left.
"""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.types import FloatArray, IntArray

CALIBRATION_STD = 0.5
"""Prior of the slope, N(1, std^2): the expert is believed until the samples contradict it."""
CALIBRATION_MEMORY = 0.7
"""What the evidence of earlier iterations still counts."""
SMALLEST_ERROR = 0.05
"""Of a slope that is remembered: an advantage that explodes has a tiny one, and would be remembered for ever."""


@dataclass(frozen=True)
class Calibration:
    """What the samples of an iteration say."""

    slope: float
    """of the regression"""
    error: float
    """its standard error, that of independent trajectories"""
    evidence: tuple[float, float]
    """mean and precision of the slope by this iteration and what is remembered, without the prior"""
    believed: float
    """share of the expert's advantage that is believed, from 0 to 1"""
    is_finite: bool
    """whether the expert's advantages are finite numbers"""


def calibrate(evidence: tuple[float, float], real: FloatArray, predicted: FloatArray, trajectory: IntArray) -> Calibration:
    """Compare what an expert predicted with what was sampled.

    :param evidence: mean and precision of the slope by earlier iterations
    :param real: sampled advantages, centred, ``[k]``
    :param predicted: the expert's, of the same actions, ``[k]``
    :param trajectory: which trajectory each belongs to, ``[k]``
    :return: the slope, and how far the expert is believed
    """
    real, predicted = real.astype(np.float64), predicted.astype(np.float64)
    power = float(predicted @ predicted)
    # Nothing predicted is no evidence; what exploded is evidence against the model
    slope, error = 0.0, np.inf if power == 0.0 else 0.0
    if 0.0 < power < np.inf:
        slope = float(real @ predicted) / power
        sums = np.bincount(trajectory, (real - slope * predicted) * predicted)
        n_trajectories = len(np.unique(trajectory))
        error = float(np.sqrt(sums @ sums)) / power
        error = error * np.sqrt(n_trajectories / (n_trajectories - 1)) if n_trajectories > 1 else np.inf
    mean, precision = evidence
    new, kept = 1.0 / max(error, 1e-100) ** 2, CALIBRATION_MEMORY * min(precision, SMALLEST_ERROR**-2)
    total = max(kept + new, 1e-100)
    mean = (kept * mean + new * slope) / total
    prior, is_finite = CALIBRATION_STD**-2, bool(np.isfinite(power))
    believed = float(np.clip((prior + total * mean) / (prior + total), 0.0, 1.0)) if is_finite else 0.0
    return Calibration(slope, error, (mean, total), believed, is_finite)
