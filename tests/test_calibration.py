"""How far an expert is believed: the regression of sampled advantages on its own, and what is remembered of it."""

import numpy as np
import pytest

from sb3_dpi.aggrevated_oc.calibration import CALIBRATION_MEMORY, SMALLEST_ERROR, Calibration, calibrate

NOTHING = (1.0, 0.0)
TRAJECTORY = np.repeat(np.arange(20), 30)


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(TRAJECTORY))


def in_turn(pairs: list[tuple[np.ndarray, np.ndarray]], evidence: tuple[float, float] = NOTHING) -> list[Calibration]:
    """:return: of several iterations, each of which remembers those before"""
    found: list[Calibration] = []
    for real, predicted in pairs:
        found.append(calibrate(found[-1].evidence if found else evidence, real, predicted, TRAJECTORY))
    return found


def test_what_is_predicted_exactly_is_trusted() -> None:
    found = calibrate(NOTHING, numbers(0), numbers(0), TRAJECTORY)
    assert found.believed == pytest.approx(1.0) and found.slope == pytest.approx(1.0)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_noise_on_what_is_predicted_does_not_take_the_trust() -> None:
    """Single samples are noisy; the slope is not their correlation."""
    real = numbers(0) + 3.0 * numbers(1)
    assert np.corrcoef(real, numbers(0))[0, 1] < 0.4
    assert calibrate(NOTHING, real, numbers(0), TRAJECTORY).believed > 0.7


def test_what_has_nothing_to_do_with_the_samples_is_not_trusted() -> None:
    found = in_turn([(numbers(i), numbers(100 + i)) for i in range(5)])
    assert found[0].believed < 0.15 and found[-1].believed < 0.05
    opposite = calibrate(found[-1].evidence, -numbers(9), numbers(9), TRAJECTORY)
    assert opposite.believed == 0.0, "the opposite least of all"


def test_too_large_advantages_are_scaled_down() -> None:
    found = in_turn([(numbers(i) + 0.1 * numbers(50 + i), 4.0 * numbers(i)) for i in range(3)])
    assert found[-1].believed == pytest.approx(0.25, abs=0.01)


def test_error_is_that_of_independent_trajectories() -> None:
    """Noise that all steps of a trajectory share counts once for each: the error tells how slopes really spread."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        predicted = np.repeat(rng.normal(size=20), 30) + 0.1 * rng.normal(size=600)
        real = predicted + np.repeat(rng.normal(size=20), 30)
        found.append(calibrate(NOTHING, real, predicted, TRAJECTORY))
    slopes = [one.slope for one in found]
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.05)
    assert np.mean([one.error for one in found]) == pytest.approx(np.std(slopes), rel=0.25)


@pytest.mark.parametrize("huge", [1e30, np.inf, np.nan])
def test_what_explodes_is_not_trusted(huge: float) -> None:
    found = calibrate(NOTHING, numbers(0), np.float32(huge) * numbers(1).astype(np.float32), TRAJECTORY)
    assert found.believed == pytest.approx(0.0, abs=1e-20)
    assert np.all(np.isfinite(found.evidence)) and found.is_finite == np.isfinite(huge)
    # and is forgotten: its evidence is bounded, however small the error of its slope
    later = in_turn([(numbers(i) + 0.1 * numbers(50 + i), numbers(i)) for i in range(10)], found.evidence)
    assert later[-1].believed > 0.95


def test_nothing_predicted_is_no_evidence() -> None:
    mean, precision = calibrate((0.8, 100.0), numbers(0), 0.0 * numbers(0), TRAJECTORY).evidence
    assert mean == pytest.approx(0.8) and precision == pytest.approx(CALIBRATION_MEMORY * 100.0)


def test_a_single_trajectory_is_no_evidence() -> None:
    alone = calibrate(NOTHING, numbers(0), numbers(1), np.zeros(len(TRAJECTORY), int))
    assert alone.believed == pytest.approx(1.0)
    found = calibrate(alone.evidence, numbers(0) + 0.1 * numbers(2), numbers(0), TRAJECTORY)
    assert found.evidence[0] == pytest.approx(1.0, abs=0.1)


def test_memory_of_the_calibration() -> None:
    """Earlier evidence counts less with every iteration, and never more than its bound."""
    found = calibrate(NOTHING, numbers(0) + numbers(1), numbers(0), TRAJECTORY)
    assert found.evidence == pytest.approx((found.slope, found.error**-2))
    found = calibrate((0.5, 200.0), numbers(2) + numbers(3), numbers(2), TRAJECTORY)
    kept, new = CALIBRATION_MEMORY * 200.0, found.error**-2
    assert found.evidence == pytest.approx(((kept * 0.5 + found.slope * new) / (kept + new), kept + new))
    found = calibrate((0.0, 1e12), numbers(4) + numbers(5), numbers(4), TRAJECTORY)
    assert found.evidence[1] == pytest.approx(CALIBRATION_MEMORY * SMALLEST_ERROR**-2 + found.error**-2)


def test_believed_share_is_the_mean_of_prior_and_evidence() -> None:
    """The prior is N(1, .5^2)."""
    found = calibrate(NOTHING, numbers(0) + numbers(1), 2.0 * numbers(0), TRAJECTORY)
    mean, precision = found.evidence
    assert found.believed == pytest.approx((4.0 + precision * mean) / (4.0 + precision))


def test_error_of_few_trajectories_by_hand() -> None:
    """Squares of sums over trajectories, a third of them more for three, as of a variance."""
    real, predicted = np.array([1.0, 2.0, -1.0, 0.5, 3.0, -2.0]), np.array([0.5, 1.0, 1.0, -2.0, 1.5, -0.5])
    found = calibrate(NOTHING, real, predicted, np.array([7, 7, 2, 4, 4, 4]))
    slope = (0.5 + 2.0 - 1.0 - 1.0 + 4.5 + 1.0) / (0.25 + 1.0 + 1.0 + 4.0 + 2.25 + 0.25)
    left = (real - slope * predicted) * predicted
    squares = left[:2].sum() ** 2 + left[2] ** 2 + left[3:].sum() ** 2
    assert found.slope == pytest.approx(slope)
    assert found.error == pytest.approx(np.sqrt(3.0 / 2.0 * squares) / 8.75)
