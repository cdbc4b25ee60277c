"""How long the report takes."""

import subprocess
import sys
from pathlib import Path

import yaml
from reports import learning, rows

_TIMED = """
import sys, time
from pathlib import Path
from sb3_dpi.compare.report import all_tasks, write_report
out = Path(sys.argv[1])
tasks = all_tasks([out])
start = time.process_time()
write_report(out, tasks)
print(time.process_time() - start)
"""


def test_two_hundred_runs_in_fifteen_seconds(tmp_path: Path) -> None:
    """Of the processor: what else the machine does is not the report's. In a process of its own, which no coverage traces."""
    tasks = learning(
        tmp_path, n_tasks=8, algos=("mdgps", "trpo", "ppo", "sac", "crossq"), seeds=5, evaluations=100, episodes=10
    )
    chosen = {env: {"thresholds": list(task.thresholds), "scale": list(task.scale)} for env, task in tasks.items()}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(chosen))
    said = subprocess.run([sys.executable, "-c", _TIMED, tmp_path], check=True, capture_output=True, text=True).stdout
    assert float(said.splitlines()[-1]) < 15.0
    assert len(rows(tmp_path / "runs.csv")) == 200
    assert (tmp_path / "evaluations.csv").read_bytes().count(b"\n") == 200 * 100 * 10 + 1
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8 + 4
