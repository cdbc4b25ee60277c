"""Every example runs, with a tiny budget."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
BUDGET = 40
Run = Callable[[str], str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """:return: runs an example by its name, in this process, and tells what it printed"""

    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, str(BUDGET)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out

    return run


def test_train_and_compare(run_example: Run) -> None:
    output = run_example("train_and_compare.py")
    assert "mdgps" in output and "trpo" in output
    assert output.count("±") == 2


def test_save_load_continue(run_example: Run) -> None:
    lines = [line for line in run_example("save_load_continue.py").splitlines() if "steps:" in line]
    before, after = (int(line.split()[0]) for line in lines)
    # a loaded model goes on counting where the saved one stopped
    assert before >= BUDGET
    assert after == 2 * before


def test_images_with_state(run_example: Run) -> None:
    assert "after 20 steps" in run_example("images_with_state.py")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
