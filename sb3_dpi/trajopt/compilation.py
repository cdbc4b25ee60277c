"""How loops are compiled: where they are first called, kept in numba's cache, announced where there is nothing yet.

numba is imported no earlier than that: who never comes to a loop never waits for it.
"""

import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
COMPILED = find_spec("numba") is not None and not DISABLED
"""whether numba is there and compiles; ``compiles`` looks whether it works too"""
ANNOUNCEMENT = "sb3_dpi: numba compiles"
WITHOUT_CACHE = " at every start: set NUMBA_CACHE_DIR to a folder that can be written to"
WITHOUT_NUMBA = (
    "sb3_dpi: numba is missing, which makes learning slower: on Reacher-v5 1,000 steps of DPI took 111 s of a busy core "
    "without it and 23 s with it, of MDGPS 2.0 and 1.6 s. To install it: pip install 'numba>=0.60,<1'"
)
BROKEN_NUMBA = "sb3_dpi: numba cannot be imported, learning goes on without it, slower: "


class Stopwatch:
    """Counts the seconds within its outermost ``with``."""

    def __init__(self) -> None:
        self.seconds, self.depth, self.start = 0.0, 0, 0.0

    def __enter__(self) -> None:
        if self.depth == 0:
            self.start = time.monotonic()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.monotonic() - self.start


ONCE = Stopwatch()
"""What this process has spent on importing numba, compiling loops and reading them from the cache"""


def tell(message: str) -> None:
    """
    Say something that concerns a process, whichever model asks for it first.

    :param message: a line
    """
    logging.getLogger("sb3_dpi").info(message)
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _no_interruption() -> Iterator[None]:
    """Hold Ctrl-C back: numba that is imported by halves is of no use to the process any more."""
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C does not reach it
        yield
        return
    pressed: list[object] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(_))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@functools.cache
def compiles() -> bool:
    """
    Import numba where it is there, and say once what is lost where it is not.

    :return: whether loops are compiled
    """
    if DISABLED:
        return False
    if not COMPILED:
        tell(WITHOUT_NUMBA)
        return False
    try:
        with ONCE, _no_interruption():
            import numba  # noqa: F401
    except ImportError as error:  # such as a numba that is older than numpy
        tell(f"{BROKEN_NUMBA}{error}")
        return False
    return True


class Loops:
    """
    The decorator of loops that are compiled together: those of a module, which may call each other.

    A loop takes its own place in the module once it is compiled, so that later calls cost nothing more.

    :param what: they are, in words
    :param seconds: of one core that they usually take
    :param options: of ``numba.njit``
    """

    def __init__(self, what: str, seconds: int, **options: Any):
        self.what, self.seconds, self.options = what, seconds, options
        self.functions: dict[Callable[..., Any], dict[str, bool]] = {}
        self.compiled: dict[str, Callable[..., Any]] = {}

    def __call__(self, function: Function) -> Function:
        """
        Let a loop be compiled at its first call where numba is there.

        :param function: of arrays and numbers
        :return: the same, faster
        """
        return self._when_called(function, {"cache": True})

    def inner(self, function: Function) -> Function:
        """
        The same for a loop that only others call: it is compiled in a fifth less time, and lies in the cache with these.

        :param function: of arrays and numbers
        :return: the same, faster
        """
        return self._when_called(function, {"no_cpython_wrapper": True, "no_cfunc_wrapper": True})

    def _when_called(self, function: Function, options: dict[str, bool]) -> Function:
        if not COMPILED:
            return function
        self.functions[function] = options

        @functools.wraps(function)
        def first_call(*arguments: Any) -> Any:
            with ONCE:
                self._take_places()
                return self.compiled[function.__name__](*arguments)

        first_call.py_func = function  # type: ignore[attr-defined]  # as numba calls it
        return first_call  # type: ignore[return-value]

    def _take_places(self) -> None:
        if not self.compiled:
            self.compiled = {one.__name__: self._compile(one) for one in self.functions}
            if compiles():
                _listen(self)
        for one in self.functions:
            one.__globals__[one.__name__] = self.compiled[one.__name__]

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not compiles():
            return function
        import numba

        try:
            compiled: Callable[..., Any] = numba.njit(**{**self.options, **self.functions[function]})(function)
        except RuntimeError:  # a read-only installation, and no folder of the user's either
            compiled = numba.njit(**self.options)(function)
        return compiled


def _listen(loops: Loops) -> None:
    """Announce the first loop that is not in the cache, and count the seconds that compiling takes."""
    from numba.core import event

    own = list(loops.compiled.values())

    class Listener(event.Listener):
        """Hears of what is compiled, but not of what comes from the cache."""

        announced = False

        def on_start(self, event: Any) -> None:
            ONCE.__enter__()
            loop = event.data["dispatcher"]
            if not self.announced and any(loop is one for one in own):
                self.announced = True
                kept = " (once)" if loop.stats.cache_path else WITHOUT_CACHE
                tell(f"{ANNOUNCEMENT} {loops.what}, which takes some {loops.seconds} seconds{kept}")

        def on_end(self, event: Any) -> None:
            ONCE.__exit__()

    event.register("numba:compile", Listener())
