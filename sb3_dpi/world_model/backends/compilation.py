"""How loops are compiled: one by one, kept in numba's cache where there is one, and announced where there is nothing yet."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

COMPILED = False
"""whether numba is there and compiles"""
try:
    import numba
    from numba.core import event

    COMPILED = not getattr(numba.config, "DISABLE_JIT", False)
except ImportError:
    pass

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}, "error_model": "numpy"}
"""Sums may be taken in any order, but what is not finite stays so."""
ANNOUNCEMENT = "sb3_dpi: numba compiles the loops for small networks, which takes some ten seconds"
WITHOUT_CACHE = " at every start: set NUMBA_CACHE_DIR to a folder that can be written to"

_kernels: list[Any] = []


def supports(sizes: Sequence[int], device: Any = "cpu") -> bool:
    """
    Tell whether the jobs of this package can stand in for torch.

    :param sizes: of a network's layers, input and output included
    :param device: where its parameters are, as torch calls it
    :return: whether numba is there, and the network has hidden layers and is on the CPU
    """
    return COMPILED and len(sizes) > 2 and str(device) == "cpu"


def kernel(function: Function) -> Function:
    """
    Compile a loop at its first call where numba is there.

    A kernel calls no other: what numba takes from its cache is then the machine code that it made, and gives the same bits.

    :param function: of arrays and numbers
    :return: the same, faster
    """
    if not COMPILED:
        return function
    try:
        compiled: Function = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # a read-only installation, and no folder of the user's either
        compiled = numba.njit(**OPTIONS)(function)
    _kernels.append(compiled)
    return compiled


def _announce(compiled: Any) -> None:
    message = ANNOUNCEMENT + (" (once)" if compiled.stats.cache_path else WITHOUT_CACHE)
    logging.getLogger("sb3_dpi").info(message)
    print(message, file=sys.stderr, flush=True)


if COMPILED:

    class _Listener(event.Listener):
        """Hears of what is compiled, but not of what comes from the cache."""

        def on_start(self, event: Any) -> None:
            compiled = event.data["dispatcher"]
            if any(compiled is one for one in _kernels):
                _stop_listening()
                _announce(compiled)

        def on_end(self, event: Any) -> None:
            pass

    _listener = _Listener()
    event.register("numba:compile", _listener)

    def _stop_listening() -> None:
        event.unregister("numba:compile", _listener)
