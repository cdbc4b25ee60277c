"""How long the report takes."""

import sys
import time
from pathlib import Path

import pytest
import yaml
from forks import forked
from reports import learning, rows

from sb3_dpi.compare.report import all_tasks, write_report


def timed(out: Path) -> None:
    """Print how long a report takes the processor."""
    sys.settrace(None)  # what coverage does is not the report's
    tasks = all_tasks([out])
    start = time.process_time()
    write_report(out, tasks)
    print(time.process_time() - start)


@pytest.mark.parametrize(
    "n_tasks, seeds, seconds", [(2, 2, 8.0), pytest.param(8, 5, 15.0, marks=pytest.mark.slow)], ids=["20 runs", "200 runs"]
)
def test_a_report_takes_seconds(n_tasks: int, seeds: int, seconds: float, tmp_path: Path) -> None:
    """Of the processor: what else the machine does is not the report's. In a process of its own, which no coverage traces."""
    algos = ("mdgps", "trpo", "ppo", "sac", "crossq")
    tasks = learning(tmp_path, n_tasks=n_tasks, algos=algos, seeds=seeds, evaluations=100, episodes=10)
    n_runs = n_tasks * len(algos) * seeds
    chosen = {env: {"thresholds": list(task.thresholds), "scale": list(task.scale)} for env, task in tasks.items()}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(chosen))
    with forked(lambda: timed(tmp_path)) as process:
        code, said = process.end()
    assert code == 0 and float(said.splitlines()[-1]) < seconds
    assert len(rows(tmp_path / "runs.csv")) == n_runs
    assert (tmp_path / "evaluations.csv").read_bytes().count(b"\n") == n_runs * 100 * 10 + 1
    assert len(list((tmp_path / "figures").glob("*.png"))) == n_tasks + 4
