"""Discounted sums and time limits."""

import numpy as np
import pytest

from sb3_dpi.trajopt.discounting import discount_for_time_limit, discounted_sums


def test_discounted_sums() -> None:
    values = np.array([[1.0, 1.0], [2.0, 10.0], [4.0, 100.0]])
    ends = np.array([[False, True], [False, False], [True, True]])
    expected = [[1.0 + 0.5 * 2.0 + 0.25 * 4.0, 1.0], [2.0 + 0.5 * 4.0, 10.0 + 0.5 * 100.0], [4.0, 100.0]]
    np.testing.assert_allclose(discounted_sums(values, ends, 0.5), expected)
    np.testing.assert_allclose(discounted_sums(values[:, 0], ends[:, 0], 1.0), [7.0, 6.0, 4.0])
    np.testing.assert_allclose(discounted_sums(values[:, 0], np.array([False] * 3), 1.0), [7.0, 6.0, 4.0])


def test_discount_for_time_limits() -> None:
    """The horizon is two fifths of the limit, never below two steps."""
    found = [discount_for_time_limit(steps, 0.995) for steps in (0, 1, 5, 40, 200, 1000)]
    assert found == [0.995, 0.5, 0.5, pytest.approx(15 / 16), pytest.approx(0.9875), 0.995]
    assert discount_for_time_limit(100, 0.999, share=0.1) == pytest.approx(0.9)


def test_far_limits_and_none_leave_the_largest_discount_factor() -> None:
    assert [discount_for_time_limit(steps) for steps in (0, 250, 10_000)] == [0.99, pytest.approx(0.99), 0.99]
    assert discount_for_time_limit(249) < 0.99
    assert discount_for_time_limit(10, share=1.0) == pytest.approx(0.9)
    assert [discount_for_time_limit(steps, share=0.5) for steps in (4, 6)] == [0.5, pytest.approx(2.0 / 3.0)]
