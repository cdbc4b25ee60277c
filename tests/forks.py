"""Processes that tests interrupt and kill: copies of their own, which have imported all already."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Fork:
    """
    A copy of this process.

    :param pid: its id
    :param printed: what it prints, to its end
    """

    pid: int
    printed: TextIO

    def send(self, number: int) -> None:
        """
        :param number: of a signal
        """
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """:return: how it has ended, and what was not read of what it printed"""
        rest = self.printed.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), rest


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[Fork]:
    """
    Do something in a copy of this process, which is killed if it goes on at the end.

    :param act: what it does; Ctrl-C reaches it as it does a program
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _act(act, writing)
    os.close(writing)
    with os.fdopen(reading) as printed:
        fork = Fork(pid, printed)
        try:
            yield fork
        finally:
            try:
                fork.send(signal.SIGKILL)  # else a test that fails would wait for it
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it has ended


def _act(act: Callable[[], object], writing: int) -> None:
    code = 1
    try:
        # tests that are started in the background hand down that Ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = os.fdopen(writing, "w", 1)
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the tests goes on here
