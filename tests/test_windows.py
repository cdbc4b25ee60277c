"""Windows of k steps against slow loops over the steps: ends of episodes, time limits, the end of the rollout."""

import numpy as np
import pytest

from sb3_dpi.dual_ac.windows import (
    NOTHING,
    at_last_step,
    causal_gradient_weights,
    following_rows,
    literal_gradient_weights,
    over_covering_windows,
    successor_values,
    window_lengths,
    window_sums,
)
from sb3_dpi.trajopt.discounting import discounted_sums

T, N, GAMMA = 23, 4, 0.9
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(T, N))
WEIGHTS = RNG.uniform(0.1, 2.0, size=(T, N))


def some_endings() -> tuple[np.ndarray, np.ndarray]:
    """Deaths and time limits; environment 1 dies with the last step, 2 reaches its limit there, 3 never ends."""
    terminated, truncated = (np.zeros((T, N), dtype=bool) for _ in range(2))
    terminated[[4, 5, 15], 0] = True
    truncated[9, 0] = True
    truncated[[0, 11], 1] = True
    terminated[T - 1, 1] = True
    truncated[[7, T - 1], 2] = True
    return terminated, truncated


TERMINATED, TRUNCATED = some_endings()
ENDS = TERMINATED | TRUNCATED
ENDS[-1] = True
ROWS = following_rows(TERMINATED, TRUNCATED)
VALUES = RNG.normal(size=T * N + int(np.count_nonzero(ROWS >= T * N)))


def window(t: int, n: int, k: int) -> list[int]:
    """The steps of a window, by walking."""
    steps = [t]
    while len(steps) < k and not ENDS[steps[-1], n]:
        steps.append(steps[-1] + 1)
    return steps


def delta(t: int, n: int, k: int) -> float:
    """Eq. 8 by hand."""
    steps = window(t, n, k)
    total = sum(GAMMA**i * REWARDS[step, n] for i, step in enumerate(steps))
    row = ROWS[steps[-1], n]
    return total + (0.0 if row == NOTHING else GAMMA ** len(steps) * VALUES[row]) - VALUES[t * N + n]


def test_rows() -> None:
    extra = T * N
    for t in range(T):
        for n in range(N):
            if TERMINATED[t, n]:
                assert ROWS[t, n] == NOTHING
            elif TRUNCATED[t, n] or t == T - 1:
                assert ROWS[t, n] == extra
                extra += 1
            else:
                assert ROWS[t, n] == (t + 1) * N + n, "the step after it in the same environment"
    assert extra == len(VALUES)


def test_no_row_is_left_where_all_die_with_the_last_step() -> None:
    terminated = np.zeros((2, 2), dtype=bool)
    terminated[-1] = True
    np.testing.assert_array_equal(following_rows(terminated, np.zeros_like(terminated)), [[2, 3], [NOTHING, NOTHING]])


@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_lengths(k: int) -> None:
    expected = [[len(window(t, n, k)) for n in range(N)] for t in range(T)]
    lengths = window_lengths(ENDS, k)
    np.testing.assert_array_equal(lengths, expected)
    steps = np.tile(np.arange(T)[:, None], (1, N))
    last = [[window(t, n, k)[-1] for n in range(N)] for t in range(T)]
    np.testing.assert_array_equal(at_last_step(steps, lengths), last)


@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_sums_and_deltas(k: int) -> None:
    lengths = window_lengths(ENDS, k)
    sums = [[sum(GAMMA**i * REWARDS[s, n] for i, s in enumerate(window(t, n, k))) for n in range(N)] for t in range(T)]
    np.testing.assert_allclose(window_sums(REWARDS, ENDS, lengths, GAMMA), sums, atol=1e-12)
    differences = REWARDS + GAMMA * successor_values(VALUES, ROWS) - VALUES[: T * N].reshape(T, N)
    expected = [[delta(t, n, k) for n in range(N)] for t in range(T)]
    np.testing.assert_allclose(window_sums(differences, ENDS, lengths, GAMMA), expected, atol=1e-12)


def test_discounted_sums_end_with_the_episode() -> None:
    expected = [[sum(GAMMA**i * REWARDS[s, n] for i, s in enumerate(window(t, n, 100))) for n in range(N)] for t in range(T)]
    np.testing.assert_allclose(discounted_sums(REWARDS, ENDS, GAMMA), expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_covering_windows(k: int) -> None:
    expected = np.zeros((T, N))
    for t in range(T):
        for n in range(N):
            for i, step in enumerate(window(t, n, k)):
                expected[step, n] += 0.8**i * WEIGHTS[t, n]
    np.testing.assert_allclose(over_covering_windows(WEIGHTS, window_lengths(ENDS, k), 0.8), expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_gradient_weights(k: int) -> None:
    """Of grad log pi of each step, summed over the windows that it belongs to."""
    lengths = window_lengths(ENDS, k)
    differences = REWARDS + GAMMA * successor_values(VALUES, ROWS) - VALUES[: T * N].reshape(T, N)
    literal, causal, covered = (np.zeros((T, N)) for _ in range(3))
    for t in range(T):
        for n in range(N):
            steps = window(t, n, k)
            for i, step in enumerate(steps):
                literal[step, n] += WEIGHTS[t, n] * delta(t, n, k)
                later = sum(GAMMA**j * differences[s, n] for j, s in enumerate(steps) if j >= i)
                causal[step, n] += WEIGHTS[t, n] * later
                covered[step, n] += WEIGHTS[t, n] * GAMMA**i
    deltas = window_sums(differences, ENDS, lengths, GAMMA)
    np.testing.assert_allclose(literal_gradient_weights(deltas, WEIGHTS, lengths), literal, atol=1e-10)
    psi, weight = causal_gradient_weights(differences, WEIGHTS, ENDS, lengths, GAMMA)
    np.testing.assert_allclose(weight, covered, atol=1e-10)
    np.testing.assert_allclose(psi * weight, causal, atol=1e-10)


def test_states_that_weigh_nothing() -> None:
    differences = RNG.normal(size=(T, N))
    lengths = window_lengths(ENDS, 3)
    psi, weight = causal_gradient_weights(differences, np.zeros((T, N)), ENDS, lengths, GAMMA)
    assert not weight.any() and not psi.any()
