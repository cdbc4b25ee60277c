"""Slices of work against a clock that the work itself moves."""

from collections.abc import Callable

import numpy as np
import pytest

from sb3_dpi.trajopt import in_time
from sb3_dpi.trajopt.in_time import slices_in_time

Cut = Callable[..., list[int]]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """:return: cuts n pieces that take some seconds each, and says how large the slices are"""

    class Clock:
        now = 7.0

        def monotonic(self) -> float:
            """:return: seconds"""
            return self.now

    clock = Clock()
    monkeypatch.setattr(in_time, "time", clock)

    def sizes(n: int, seconds: float, each: float) -> list[int]:
        found, until, end = [], 0, clock.now + seconds
        for part in slices_in_time(n, end):
            assert part.start == until and part.stop > until and part.step is None
            assert not found or clock.now <= end, "no slice begins when time is up"
            until = part.stop
            found.append(part.stop - part.start)
            clock.now += each * found[-1]
        return found

    return sizes


def test_all_at_once_where_time_is_endless(cut: Cut) -> None:
    assert cut(9, np.inf, 1.0) == [9]


def test_each_slice_is_four_times_the_last_at_most(cut: Cut) -> None:
    assert cut(100, 1e6, 1.0) == [1, 4, 16, 64, 15]
    assert cut(1, 1e6, 1.0) == [1]
    assert cut(5, 1e6, 1.0) == [1, 4]
    assert cut(6, 1e6, 0.0) == [1, 4, 1], "work that takes no time at all divides nothing by zero"


def test_slices_are_as_large_as_fit(cut: Cut) -> None:
    """After 1 + 4 + 16 + 64 of 100 seconds 15 are left, and at the last moment one more piece may begin."""
    assert cut(1000, 100.0, 1.0) == [1, 4, 16, 64, 15, 1]
    assert cut(1000, 99.0, 1.0) == [1, 4, 16, 64, 14, 1]
    assert cut(1000, 10.5, 1.0) == [1, 4, 5, 1]
    assert cut(1000, 0.5, 1.0) == [1], "the first begins in any case"
    assert cut(1000, 20.0, 2.0) == [1, 4, 5, 1]
    assert cut(1000, 100.0 / 1024.0, 1.0 / 1024.0) == [1, 4, 16, 64, 15, 1], "of milliseconds as well"
