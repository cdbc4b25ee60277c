"""The process of one run: reads its configuration as JSON from stdin, writes its progress as lines of JSON to stdout."""

import json
import os
import sys
import time

import torch as th

from sb3_dpi.compare.run import run_one
from sb3_dpi.compare.types import RunConfig

SECONDS_BETWEEN_REPORTS = 0.3


def main() -> None:
    """Train once; whatever a library prints goes to stderr, which the parent keeps as the log file."""
    config = RunConfig(**json.loads(sys.stdin.read()))
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    th.set_num_threads(1)
    last = -SECONDS_BETWEEN_REPORTS

    def report(timesteps: int, mean_return: float | None) -> None:
        nonlocal last
        if time.perf_counter() - last >= SECONDS_BETWEEN_REPORTS:
            last = time.perf_counter()
            print(json.dumps([timesteps, mean_return]), file=channel)

    run_one(config, report)


if __name__ == "__main__":
    main()
