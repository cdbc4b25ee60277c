"""Which rows of a memory a network learns from in which step."""

import numpy as np

from sb3_dpi.trajopt.types import IntArray
from sb3_dpi.world_model.types import Memory

LONGEST_DRAW = 256
"""Steps whose minibatches are drawn at once: memory stays flat."""
RARE = 0.1
"""Share of steps below which those that pay otherwise than most are rare."""
RARE_ROWS = 0.25
"""Share of a minibatch that is drawn from them."""


def chunks(n: int) -> list[int]:
    """
    Divide steps among draws.

    :param n: how many
    :return: parts of ``LONGEST_DRAW`` at most that add up to n
    """
    return [LONGEST_DRAW] * (n // LONGEST_DRAW) + [n % LONGEST_DRAW] * (n % LONGEST_DRAW > 0)


def rare_rows(memory: Memory, rows: IntArray | None = None) -> IntArray:
    """
    Find the steps that pay otherwise than most, where most pay the same.

    :param memory: real steps
    :param rows: among which; None: among all
    :return: the rows; none where they are many
    """
    rewards = memory.rewards() if rows is None else memory.rewards()[rows]
    if not len(rewards):
        return np.zeros(0, dtype=np.int64)
    found = np.flatnonzero(rewards != np.median(rewards))
    few: IntArray = found if len(found) < RARE * len(rewards) else found[:0]
    return few if rows is None else rows[few]


class Drawing:
    """
    Minibatches drawn with replacement, a part of each from what is rare.

    A network that seldom sees a reward learns that there is none: that costs it least.

    :param memory: real steps
    :param rows: to draw from; None draws from all
    """

    def __init__(self, memory: Memory, rows: IntArray | None = None) -> None:
        self._n, self._rows, self._rare = len(memory) if rows is None else len(rows), rows, rare_rows(memory, rows)

    def draw(self, n: int, size: int, rng: np.random.Generator) -> IntArray:
        """
        Draw minibatches.

        :param n: how many
        :param size: rows of each
        :param rng: draws
        :return: rows, one minibatch behind the other, ``[n * size]``
        """
        drawn = rng.integers(self._n, size=(n, size))
        taken: IntArray = drawn if self._rows is None else self._rows[drawn]
        n_rare = round(RARE_ROWS * size) if len(self._rare) else 0
        taken[:, :n_rare] = self._rare[rng.integers(max(len(self._rare), 1), size=(n, n_rare))]
        return taken.reshape(-1)
