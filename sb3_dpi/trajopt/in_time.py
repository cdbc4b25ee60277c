"""Work that ends in time: it is done in slices, as large as fit in what is left."""

import time
from collections.abc import Iterator

GROWTH = 4
"""Of a slice: one piece may take longer than those before it."""


class OutOfTimeError(Exception):
    """There is no time for the rest."""


def slices_in_time(n: int, deadline: float) -> Iterator[slice]:
    """
    Cut work into slices, the first of one piece.

    :param n: pieces
    :param deadline: of ``time.monotonic``, after which no slice begins but the first; infinite for one slice of all
    :return: slices of ``range(n)``, in order; the last ends before n where time is up
    """
    if deadline == float("inf"):
        yield slice(0, n)
        return
    done, size = 0, 1
    while done < n:
        begun = time.monotonic()
        yield slice(done, min(done + size, n))
        done, now = done + size, time.monotonic()
        if now > deadline:
            return
        size = max(min(GROWTH * size, int(size * (deadline - now) / max(now - begun, 1e-9))), 1)
