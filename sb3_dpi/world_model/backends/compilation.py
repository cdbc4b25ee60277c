"""Which networks have loops, and how these are compiled."""

from collections.abc import Sequence
from typing import Any

from sb3_dpi.trajopt.compilation import Loops, compiles

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}, "error_model": "numpy"}
"""Sums may be taken in any order, but what is not finite stays so."""

kernel = Loops("the loops for small networks", 8, **OPTIONS)
"""A kernel calls no other: what numba takes from its cache is then the machine code that it made, and gives the same bits."""


def supports(sizes: Sequence[int], device: Any = "cpu") -> bool:
    """
    Tell whether the jobs of this package can stand in for torch.

    :param sizes: of a network's layers, input and output included
    :param device: where its parameters are, as torch calls it
    :return: whether the network has hidden layers and is on the CPU, and numba is there
    """
    return len(sizes) > 2 and str(device) == "cpu" and compiles()
