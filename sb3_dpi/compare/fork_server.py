"""The process from which the workers of a comparison are forked: it has imported once what each of them needs.

Its standard input is a socket, on which it is told of runs to begin and workers to kill. Modules of the user are imported by
the worker of a run, never here. At the end of the socket, so also at the death of the process that compares, it kills what is
left and ends.
"""

import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import numpy as np

from sb3_dpi.compare import worker
from sb3_dpi.compare.key import run_versions

START, KILL = "start", "kill"
"""What can be asked for: a worker, with its standard streams and the pipe that is told its id and its end; the end of one"""
ENOUGH = 100
"""Bytes of the longest message"""
# The first optimizer of a process would load the first of them
IMPORTED = ("torch._dynamo", "stable_baselines3", "sb3_contrib")


def _can_fork() -> bool:
    """Tell whether this system can wait for processes beside a socket, and a fork would lack no thread."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


class _Server:
    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._ends: dict[int, int] = {}
        """Process id of a worker to the pipe that is told its end"""

    def serve(self) -> Callable[[], int] | None:
        """Do what is asked for to the end; returns what a forked worker is to do, and in the fork server None."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._orders:
                    self._reap(key.data, key.fd)
                    continue
                message, streams, _, _ = socket.recv_fds(self._orders, ENOUGH, 4)
                order, _, number = message.decode().partition(" ")
                if order == START and self._begin(streams):
                    return worker.main
                if order == KILL and int(number) in self._ends:  # else it has ended, and the id may be another's
                    os.kill(int(number), signal.SIGKILL)
                if not message:
                    self._end_all()
                    return None

    def _begin(self, streams: list[int]) -> bool:
        """Fork; returns whether this is the worker."""
        pid = os.fork()
        if pid:
            for stream in streams[:3]:
                os.close(stream)
            self._ends[pid] = streams[3]
            self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            self._tell(pid, pid)
            return False
        os.setsid()
        for number, stream in enumerate(streams[:3]):
            os.dup2(stream, number)
        for opened in (*streams, *self._ends.values(), *(key.fd for key in self._selector.get_map().values())):
            os.close(opened)
        self._orders.detach()
        self._selector.close()
        np.random.seed()  # two fresh processes have not the same either
        return True

    def _reap(self, pid: int, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        self._tell(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os.close(self._ends.pop(pid))

    def _end_all(self) -> None:
        for pid in self._ends:
            os.kill(pid, signal.SIGKILL)
        for pid in self._ends:
            os.waitpid(pid, 0)

    def _tell(self, pid: int, number: int) -> None:
        with suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(self._ends[pid], b"%d\n" % number)


def main() -> int:
    """Serve the process at the other end of standard input."""
    for name in IMPORTED:
        import_module(name)
    if not _can_fork():
        return 1  # workers are then started one by one
    run_versions("ppo")  # what is installed is looked up once: it would take each worker a second
    orders = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # What stays for ever is neither looked at nor copied by each worker's collector
    gc.freeze()
    act = _Server(orders).serve()
    return 0 if act is None else act()


if __name__ == "__main__":
    sys.exit(main())
