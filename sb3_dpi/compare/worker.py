"""The process of one run, or of a check of several.

It reads its order as a line of JSON from stdin, tells its progress and its end as lines of JSON on stdout.

Its standard input stays open as long as the process that wants the run is alive: at its end this process ends too, so that
nothing goes on unseen and no two processes write the same run.
"""

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import torch as th

import sb3_dpi
from sb3_dpi.compare.key import run_key
from sb3_dpi.compare.run import run_one
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo.cause import in_one_line
from sb3_dpi.zoo.environments import import_custom_envs

SECONDS_BETWEEN_REPORTS = 0.5
FINISHED, FAILED = "finished", "failed"
"""Keys of the last line: without one of them the process was ended by somebody else"""


def _end_with_parent(told: threading.Event) -> None:
    sys.stdin.read()
    if not told.is_set():  # else it ends by itself: the parent has read the last line and closed the pipe
        os._exit(3)


def _take_stdout() -> TextIO:
    """Keep stdout for what the parent reads; what libraries print goes to stderr, the log."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(config: RunConfig, store: Store, key: str, channel: TextIO) -> None:
    th.set_num_threads(1)
    if run_key(config) != key:
        raise RuntimeError(
            f"This machine has other versions than the one that planned the run: sb3_dpi {sb3_dpi.__version__} in "
            f"{Path(sb3_dpi.__file__).parent}. Install the same versions of sb3_dpi and its dependencies on all machines."
        )
    last, last_mean = -SECONDS_BETWEEN_REPORTS, None

    def report(timesteps: int, mean_return: float | None) -> None:
        nonlocal last, last_mean
        if mean_return is not None and mean_return != last_mean:
            last_mean = mean_return
            _log(f"{time.strftime('%X')} {timesteps:,} steps: return {mean_return:.2f}")
        if time.perf_counter() - last >= SECONDS_BETWEEN_REPORTS:
            last = time.perf_counter()
            print(json.dumps([timesteps, mean_return]), file=channel)

    # Another comparison may be busy with the same run in the same folder: wait here, then find it finished
    with store.lock(config):
        if store.load(config) is None:
            with suppress(OSError):  # no file: somebody runs this by hand
                os.ftruncate(sys.stderr.fileno(), 0)
            _log(f"{time.strftime('%F %X')} {config}, hyperparameters of {config.source}")
            run_one(config, store.unfinished(config), report)
            store.commit(config)
            _log(f"{time.strftime('%F %X')} finished")


def main() -> int:
    """Train once; whatever a library prints goes to stderr, which the parent keeps as the log file."""
    faulthandler.enable()
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    told = threading.Event()
    threading.Thread(target=_end_with_parent, args=(told,), daemon=True).start()
    end: dict[str, Any] = {FINISHED: True}
    channel = _take_stdout()
    try:
        import_custom_envs()
        for config in order.get("check", []):
            print(json.dumps(import_module("sb3_dpi.compare.preflight").check_run(RunConfig(**config))), file=channel)
        if "config" in order:
            _run(RunConfig(**order["config"]), Store(Path(order["out"])), order["key"], channel)
    except BaseException as error:
        traceback.print_exc()
        end = {FAILED: in_one_line(error)}
    told.set()
    print(json.dumps(end), file=channel)
    return 0 if FINISHED in end else 1


if __name__ == "__main__":
    sys.exit(main())
