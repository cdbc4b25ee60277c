"""Every example runs, with a tiny budget, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
BUDGET = 100


def run_example(name: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), str(BUDGET)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=one_thread, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_and_compare(tmp_path: Path) -> None:
    output = run_example("train_and_compare.py", tmp_path)
    assert "mdgps" in output and "trpo" in output
    assert output.count("±") == 2


def test_save_load_continue(tmp_path: Path) -> None:
    lines = [line for line in run_example("save_load_continue.py", tmp_path).splitlines() if "steps:" in line]
    before, after = (int(line.split()[0]) for line in lines)
    # a loaded model goes on counting where the saved one stopped
    assert before >= BUDGET
    assert after == 2 * before


def test_images_with_state(tmp_path: Path) -> None:
    assert "after 20 steps" in run_example("images_with_state.py", tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
