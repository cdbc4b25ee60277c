"""A memory of steps for tests of the world model."""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.world_model.types import Transitions


@dataclass(frozen=True)
class ListMemory:
    """Steps in the order of time."""

    data: Transitions
    ends: np.ndarray
    """whether the next row is something else, ``[n]``"""

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: np.ndarray) -> Transitions:
        return self.data.take(rows)

    def newest(self, n: int) -> np.ndarray:
        return np.arange(max(len(self) - n, 0), len(self))

    def follows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.minimum(rows + 1, len(self) - 1), ~self.ends[rows]

    def terminated_rows(self) -> np.ndarray:
        return np.flatnonzero(self.data.terminated)

    def rewards(self) -> np.ndarray:
        return self.data.rewards
