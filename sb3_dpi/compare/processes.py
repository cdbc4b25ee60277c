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
from typing import IO, Any, TextIO

WORKER = "sb3_dpi.compare.worker"
FORK_SERVER = "sb3_dpi.compare.fork_server"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class _Forked:
    """A worker that a fork server has forked; what it has of ``subprocess.Popen`` does the same."""

    def __init__(self, stdin: int, stdout: int, told: TextIO, pid: int) -> None:
        self.stdin: IO[str] = open(stdin, "w", encoding="utf-8")
        self.stdout: IO[str] = open(stdout, encoding="utf-8")
        self.returncode = 0
        self._told, self._pid = told, pid

    def __enter__(self) -> "_Forked":
        return self

    def __exit__(self, *raised: object) -> None:
        self.stdout.close()
        with suppress(BrokenPipeError):
            self.stdin.close()
        with self._told:
            # Without a word what waits for it was ended too, which happens by force alone
            self.returncode = int(self._told.readline() or -signal.SIGKILL)
        self._pid = 0  # it may be another's from now on

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


Process = subprocess.Popen[str] | _Forked
"""A worker, as its parent sees it; leaving its context closes the pipes and waits for its end"""


class ForkServer:
    """A process that forks workers, started at once; its imports take seconds, which the first worker waits for."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _start(FORK_SERVER, theirs.fileno(), subprocess.DEVNULL, subprocess.DEVNULL)

    def start(self, log: TextIO) -> _Forked | None:
        """Start a worker whose stderr goes to a log; None where the fork server cannot."""
        (stdin, ours_in), (ours_out, stdout), (ours_told, told) = os.pipe(), os.pipe(), os.pipe()
        try:
            socket.send_fds(self._orders, [b"start"], [stdin, stdout, log.fileno(), told])
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
        return _Forked(ours_in, ours_out, words, int(pid))

    def end(self) -> None:
        """End it, even while it imports; its workers go on."""
        self._process.kill()
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
        self._fork = fork and sys.platform == "linux"
        self._server: ForkServer | None = None

    def start(self, log: TextIO) -> Process:
        """Start a worker whose stderr goes to a log."""
        with self._lock:
            if self._fork and not self._ended:
                self._server = self._server or ForkServer()
        process: Process | None = self._server.start(log) if self._server and not self._ended else None
        with self._lock:
            if not self._ended:
                process = process or _start(WORKER, subprocess.PIPE, subprocess.PIPE, log)
                self._alive = {process, *self._alive}
                return process
        if process:
            process.kill()
            process.__exit__(None, None, None)
        raise RuntimeError("The comparison has been interrupted")

    def end(self) -> None:
        """End all workers; what they have written of an unfinished run is never taken for a result."""
        with self._lock:
            self._ended = True
            for process in self._alive:
                process.kill()
        if self._server:
            self._server.end()


def _start(module: str, stdin: int, stdout: int, stderr: int | TextIO) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C reaches this process alone, which then ends the workers without their tracebacks
    streams: dict[str, Any] = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "encoding": "utf-8"}
    command = [sys.executable, "-m", module]
    return subprocess.Popen(command, **streams, env=_worker_environment(), start_new_session=True)


def _worker_environment() -> dict[str, str]:
    """Let the worker import what this process can: an algorithm ``module:Class`` may be found by this one's path alone."""
    ray = sys.modules.get("ray")
    ray_folder = str(Path(ray.__file__).parent) + os.sep if ray is not None and ray.__file__ else None
    # Ray puts its own copies of other packages on the path of its processes
    paths = [path or os.getcwd() for path in sys.path if not (ray_folder and path.startswith(ray_folder))]
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": os.pathsep.join(paths)}
