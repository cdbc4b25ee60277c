"""The processes of runs: forked from one that has imported what each of them needs, or a fresh Python each.

Imports take a worker some seven seconds of the processor: a hundred runs would spend ten minutes on them.
"""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Protocol, TextIO, cast

from sb3_dpi.compare.fork_server import KILL, START

WORKER = "sb3_dpi.compare.worker"
FORK_SERVER = "sb3_dpi.compare.fork_server"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Process(Protocol):
    """A worker, as its parent sees it; leaving its context closes the pipes and waits for its end."""

    stdin: IO[str]
    stdout: IO[str]
    returncode: int
    """Once it has ended; the negative number of the signal that killed it"""

    def __enter__(self) -> "Process": ...

    def __exit__(self, *raised: object) -> None: ...

    def kill(self) -> None:
        """End it at once, unless it has ended."""


class _Forked:
    """A worker that a fork server has forked."""

    def __init__(self, stdin: int, stdout: int, told: TextIO, orders: socket.socket, pid: str) -> None:
        self.stdin: IO[str] = open(stdin, "w", encoding="utf-8")
        self.stdout: IO[str] = open(stdout, encoding="utf-8")
        self.returncode = 0
        self._told, self._orders, self._pid = told, orders, pid

    def __enter__(self) -> "_Forked":
        return self

    def __exit__(self, *raised: object) -> None:
        self.stdout.close()
        with suppress(BrokenPipeError):
            self.stdin.close()
        with self._told:
            # Without a word the fork server was ended too, which happens by force alone
            self.returncode = int(self._told.readline() or -signal.SIGKILL)

    def kill(self) -> None:
        with suppress(OSError):  # the fork server has ended, and its workers with it
            self._orders.send(f"{KILL} {self._pid}".encode())


class ForkServer:
    """A process that forks workers, started at once; its imports take seconds, which the first worker waits for."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", FORK_SERVER],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_worker_environment(),
                start_new_session=True,
            )
        self._has_begun = False

    def start(self, log: TextIO) -> Process | None:
        """Start a worker whose stderr goes to a log; None where the fork server cannot."""
        (stdin, ours_in), (ours_out, stdout), (ours_told, told) = os.pipe(), os.pipe(), os.pipe()
        try:
            socket.send_fds(self._orders, [START.encode()], [stdin, stdout, log.fileno(), told])
        except OSError:
            pass  # its death closes the pipes below
        finally:
            for descriptor in (stdin, stdout, told):
                os.close(descriptor)
        words = open(ours_told, encoding="ascii")
        if not (pid := words.readline().strip()):
            words.close()
            os.close(ours_in)
            os.close(ours_out)
            return None
        self._has_begun = True
        return _Forked(ours_in, ours_out, words, self._orders, pid)

    def end(self) -> None:
        """End it and all its workers."""
        if not self._has_begun:
            self._process.kill()  # it may still import, and has nobody to end
        self._orders.close()
        self._process.wait()


class Workers:
    """
    The worker processes that are alive, so that they can be ended all at once.

    :param fork: Whether to fork them, where that can be done: only Linux bears forks of a process that has loaded torch
    """

    def __init__(self, fork: bool = False) -> None:
        self._lock = Lock()
        self._alive: set[Process] = set()
        self._ended = False
        self._server = ForkServer() if fork and sys.platform == "linux" and hasattr(os, "pidfd_open") else None

    def start(self, log: TextIO) -> Process:
        """Start a worker whose stderr goes to a log."""
        process = self._server.start(log) if self._server and not self._ended else None
        with self._lock:
            if not self._ended:
                process = process or _start_fresh(log)
                self._alive = {process, *self._alive}
                return process
        if process:
            process.kill()
            process.__exit__()
        raise RuntimeError("The comparison has been interrupted")

    def end(self) -> None:
        """End all workers; what they have written of an unfinished run is never taken for a result."""
        with self._lock:
            self._ended = True
            for process in self._alive:
                process.kill()
        if self._server:
            self._server.end()


def _start_fresh(log: TextIO) -> Process:
    # A session of its own: Ctrl-C reaches this process alone, which then ends the workers without their tracebacks
    process = subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=_worker_environment(),
        start_new_session=True,
    )
    return cast(Process, process)


def _worker_environment() -> dict[str, str]:
    """Let the worker import what this process can: an algorithm ``module:Class`` may be found by this one's path alone."""
    ray = sys.modules.get("ray")
    ray_folder = str(Path(ray.__file__).parent) + os.sep if ray is not None and ray.__file__ else None
    # Ray puts its own copies of other packages on the path of its processes
    paths = [path or os.getcwd() for path in sys.path if not (ray_folder and path.startswith(ray_folder))]
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": os.pathsep.join(paths)}
