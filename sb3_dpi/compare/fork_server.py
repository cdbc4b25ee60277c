"""The process from which the workers of a comparison are forked: it has imported once what each of them needs.

Its standard input is a socket, on which it is sent the standard streams of each worker to begin. Between it and a worker is a
process that waits for the worker and tells its end. Modules of the user are imported by the worker of a run, never here. At
the end of the socket, so also at the death of the process that compares, it ends; a worker ends with its standard input.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module

import numpy as np

from sb3_dpi.compare import worker
from sb3_dpi.compare.key import run_versions

# The first optimizer of a process would load the first of them
IMPORTED = ("torch._dynamo", "stable_baselines3", "sb3_contrib")


def _can_fork() -> bool:
    """Tell whether a fork would lack no thread."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _begin(streams: list[int], told: int) -> int:
    """
    Fork a worker and wait for it; in the worker do its work.

    :param streams: Its standard streams
    :param told: The pipe that is told its process id and how it ended
    """
    pid = os.fork()
    if not pid:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for opened in (*streams, told):
            os.close(opened)
        np.random.seed()  # two fresh processes have not the same either
        return worker.main()
    for stream in streams:
        os.close(stream)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(told, b"%d\n" % pid)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


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
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while (received := socket.recv_fds(orders, 1, 4))[0]:
        if not os.fork():
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _begin(received[1][:3], received[1][3])
        for stream in received[1]:
            os.close(stream)
    return 0


if __name__ == "__main__":
    sys.exit(main())
