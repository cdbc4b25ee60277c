"""How mutation testing runs tests: collected once, in forks, on functions or files that were changed in memory."""

import contextlib
import gc
import importlib.machinery
import importlib.util
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

PYTEST = [
    "-q",
    "-m",
    "not slow and not compiled",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:cov",
    "-p",
    "no:faulthandler",
    "--tb=native",
    "--assert=plain",
]
BROKEN = "In a fork: "
WAITING = 40.0
"""How much longer than computing a mutant may wait for the processor."""


class Watch:
    """A pytest plug-in that runs what it is told in place of the tests, and sees how they do.

    :param loop: what to do with the collected session
    """

    def __init__(self, loop: "Callable[[Watch, pytest.Session], None]") -> None:
        self.loop = loop
        self.failed: str | None = None
        self.error: Exception | None = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Take the place of pytest's loop."""
        try:
            self.loop(self, session)
        except Exception as error:
            self.error = error
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a file that can not be read: pytest itself would say so in its own loop alone."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the first test that failed."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def run(self, items: Sequence[pytest.Item], around: Callable[[str], Any] = contextlib.nullcontext) -> None:
        """Run tests until one fails.

        :param items: the tests
        :param around: a context for each
        """
        for i, item in enumerate(items):
            following = items[i + 1] if i + 1 < len(items) else None
            with around(item.nodeid):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return


class ChangedModule(importlib.machinery.SourceFileLoader):
    """Import a file with another source; its own finder.

    :param name: of the module
    :param path: of the file
    :param source: to take instead
    """

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """:return: the changed module, None for all others"""
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """:return: code of the changed source"""
        return compile(self.source, self.path, "exec")


def in_fork(work: Callable[[], str], seconds: float | None = None) -> str:
    """
    Do something in a fork.

    :param work: returns what to hand back
    :param seconds: of computing at most; None for no limit
    :return: what it handed back, or ``"out of time"`` or ``"died"``
    :raises RuntimeError: what was raised in the fork
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            if seconds is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            with os.fdopen(write, "w") as pipe:
                try:
                    pipe.write(work())
                except BaseException:  # of this runner: what tests raise is pytest's
                    pipe.write(BROKEN + traceback.format_exc())
        finally:
            os._exit(0)
    os.close(write)
    answer, deadline = b"", None if seconds is None else time.monotonic() + WAITING * seconds
    while select.select([read], [], [], None if deadline is None else max(deadline - time.monotonic(), 0.0))[0]:
        part = os.read(read, 1 << 16)
        if not part:
            break
        answer += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "out of time" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "died"
    text = answer.decode()
    if text.startswith(BROKEN):
        raise RuntimeError(text)
    return text or "died"


def collect(tests: Iterable[str], loop: Callable[[Watch, pytest.Session], None]) -> Watch:
    """
    Let pytest collect tests.

    :param tests: files or names of tests
    :param loop: what to do with them
    :return: what was seen
    :raises RuntimeError: if what was done with them fails, which pytest would only print
    """
    watch = Watch(loop)
    status = pytest.main([*PYTEST, *tests], plugins=[watch])
    if watch.error is not None:
        raise RuntimeError(f"{BROKEN}{watch.error!r}") from watch.error
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and watch.failed is None:
        watch.failed = f"pytest: {pytest.ExitCode(status).name}"
    return watch


FunctionPlace = tuple[str, str, int]
"""File, qualified name and first line."""


def functions_below(folder: Path) -> dict[FunctionPlace, list[FunctionType]]:
    """:return: all functions of files in a folder that were made so far"""
    gc.unfreeze()  # what the tests set aside is not listed otherwise
    found: dict[FunctionPlace, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(folder)):
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return found
