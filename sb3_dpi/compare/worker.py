"""The process of one run: reads it as a line of JSON from stdin, writes its progress as lines of JSON to stdout.

Its standard input stays open as long as the process that wants the run is alive: at its end this process ends too, so that
nothing goes on unseen and no two processes write the same run.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch as th

import sb3_dpi
from sb3_dpi.compare.key import run_key
from sb3_dpi.compare.run import run_one
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.types import RunConfig

SECONDS_BETWEEN_REPORTS = 0.5


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(3)


def _run(config: RunConfig, store: Store, key: str) -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
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
            print(f"{time.strftime('%X')} {timesteps:,} steps: return {mean_return:.2f}", file=sys.stderr, flush=True)
        if time.perf_counter() - last >= SECONDS_BETWEEN_REPORTS:
            last = time.perf_counter()
            print(json.dumps([timesteps, mean_return]), file=channel)

    # Another comparison may be busy with the same run in the same folder: wait here, then find it finished
    with store.lock(config):
        if store.load(config) is None:
            print(f"{time.strftime('%F %X')} {config}, hyperparameters of {config.source}", file=sys.stderr, flush=True)
            run_one(config, store.unfinished(config), report)
            store.commit(config)
            print(f"{time.strftime('%F %X')} finished", file=sys.stderr)


def main() -> None:
    """Train once; whatever a library prints goes to stderr, which the parent keeps as the log file."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _run(RunConfig(**order["config"]), Store(Path(order["out"])), order["key"])


if __name__ == "__main__":
    main()
