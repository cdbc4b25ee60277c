"""What the lab leaves behind when it is killed."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGUMENTS = [
    *("--algo", "ppo", "a2c", "trpo", "--env", "Pendulum-v1", "--steps", "3000", "--seeds", "4", "--eval-every", "200"),
    *("--threshold", "-1500", "--jobs", "2"),
    *(
        "--set",
        "ppo.n_steps=128",
        "ppo.batch_size=128",
        "trpo.n_steps=128",
        "trpo.batch_size=128",
        "a2c.n_envs=1",
        "ppo.n_envs=1",
    ),
]


def _start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sb3_dpi.compare", "run", *ARGUMENTS, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def _untimed(report: str) -> str:
    return "\n".join(block for block in report.split("\n#") if not block.lstrip("# ").startswith("Time"))


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    moments = random.Random(0)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert _start(undisturbed).wait() == 0
    unfinished = 0
    for number in range(50):
        process = _start(disturbed)
        time.sleep(moments.uniform(0.5, 10.0))
        unfinished += process.poll() is None
        # By turns the lab alone, whose runs then have to end by themselves, and everything at once
        if number % 2:
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert unfinished > 25
    assert _start(disturbed).wait() == 0
    for name in ("evaluations.csv", "runs.csv", "summary.csv"):
        assert _rows(undisturbed / name) == _rows(disturbed / name)
    assert _untimed((undisturbed / "report.md").read_text()) == _untimed((disturbed / "report.md").read_text())
    assert len(list(disturbed.glob("*/*/run.json"))) == 12
    # Every run was done once: nothing was replaced by a second result
    assert not (disturbed / "set_aside").exists()
