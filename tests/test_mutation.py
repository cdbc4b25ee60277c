"""Mutation testing finds what tests do not see, on a package of a few lines."""

import csv
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")
needs_cosmic_ray = pytest.mark.skipif(find_spec("cosmic_ray") is None, reason="cosmic-ray is not installed")
ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
MODULE = """
SIDES = 2
LIMIT = 10


def around(a: float, b: float | None = None) -> float:
    other = a if b is None else b
    return SIDES * (a + other)


class Box:
    @property
    def volume(self) -> float:
        volume = 1.0
        for side in (2.0, 3.0):
            volume = volume * side
        return volume


def endless(n: int) -> int:
    while n < 3:
        n = n + 1
    return n
"""
TESTS = """
from sb3_dpi.toy import shapes


def test_around():
    assert shapes.around(2.0, 3.0) == 10.0


def test_volume():
    assert shapes.Box().volume == 6.0


def test_endless():
    assert shapes.endless(0) == 3
"""
CONFTEST = """
import gc


def pytest_collection_finish():
    gc.freeze()
"""
CONFIG = """
seed = 0
slack = 2.0
preloaded = []
operators = ["ReplaceBinaryOperator_(Add_Sub|Mul_Div)", ".*_Is_IsNot", "ZeroIterationForLoop", "NumberReplacer"]
[packages.toy]
sample = 0
constants = true
modules = ["shapes"]
tests = ["toy"]
"""


def write(root: Path, tests: str) -> None:
    for name, text in {
        "sb3_dpi/__init__.py": "",
        "sb3_dpi/toy/__init__.py": "",
        "sb3_dpi/toy/shapes.py": MODULE,
        "tests/test_toy.py": tests,
        "tests/conftest.py": CONFTEST,
        "benchmarks/mutation.toml": CONFIG,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("mutation.py", "mutants.py", "forked_tests.py"):
        shutil.copy(BENCHMARKS / name, root / "benchmarks" / name)


def call(root: Path, *arguments: str) -> str:
    command = [sys.executable, "benchmarks/mutation.py", *arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    return result.stdout


def survivors(root: Path) -> set[tuple[str, str]]:
    with (root / "left.csv").open(newline="") as file:
        return {(row["was"], row["became"].replace("  ", " ")) for row in csv.DictReader(file)}


def test_what_is_changed_is_there() -> None:
    for package, chosen in tomllib.loads((BENCHMARKS / "mutation.toml").read_text())["packages"].items():
        files = [f"sb3_dpi/{package}/{name}.py" for name in chosen["modules"]]
        files += [f"tests/test_{name}.py" for name in chosen["tests"]]
        assert not [name for name in files if not (ROOT / name).is_file()]


@needs_cosmic_ray
def test_survivors_are_what_tests_do_not_see(tmp_path: Path) -> None:
    write(tmp_path, TESTS)
    call(tmp_path, "run", "session.sqlite")
    printed = call(tmp_path, "report", "session.sqlite", "--csv", "left.csv")
    # nothing reads the limit
    expected = {("LIMIT = 10", "LIMIT = 11"), ("LIMIT = 10", "LIMIT = 9")}
    assert survivors(tmp_path) == expected
    assert "20 mutants,    20 tested,    18 caught,    0 equivalent" in printed
    # a verdict is kept and counted, and a new test is seen
    table = tmp_path / "left.csv"
    table.write_text(table.read_text().replace("LIMIT = 11,", "LIMIT = 11,equivalent: never read"))
    write(tmp_path, TESTS + "\n\ndef test_limit():\n    assert shapes.around(shapes.LIMIT, 0) != 2 * 9\n")
    call(tmp_path, "run", "session.sqlite", "--survivors")
    printed = call(tmp_path, "report", "session.sqlite", "--csv", "left.csv")
    assert survivors(tmp_path) == {("LIMIT = 10", "LIMIT = 11")}
    assert "19 caught,    1 equivalent: score 100.0 %" in printed


@needs_cosmic_ray
def test_tests_that_can_not_be_read_notice_it(tmp_path: Path) -> None:
    """Beside others that can: what fails already while tests are collected has seen the change."""
    write(tmp_path, TESTS)
    (tmp_path / "tests/test_limit.py").write_text(
        "from sb3_dpi.toy import shapes\n\nassert shapes.LIMIT == 10\n\n\ndef test_one():\n    shapes.around(1.0)\n"
    )
    config = tmp_path / "benchmarks/mutation.toml"
    config.write_text(config.read_text().replace('["toy"]', '["toy", "limit"]'))
    call(tmp_path, "run", "session.sqlite")
    assert "20 mutants,    20 tested,    20 caught" in call(tmp_path, "report", "session.sqlite")


@needs_cosmic_ray
def test_constants_are_left_alone_where_asked(tmp_path: Path) -> None:
    write(tmp_path, TESTS)
    config = tmp_path / "benchmarks/mutation.toml"
    config.write_text(config.read_text().replace("constants = true", "constants = false"))
    call(tmp_path, "run", "session.sqlite")
    assert "16 mutants,    16 tested,    16 caught" in call(tmp_path, "report", "session.sqlite")


@needs_cosmic_ray
def test_sources_stay_those_of_the_session(tmp_path: Path) -> None:
    write(tmp_path, TESTS)
    call(tmp_path, "run", "session.sqlite", "--minutes", "0")
    (tmp_path / "sb3_dpi/toy/shapes.py").write_text(MODULE + "\n")
    command = [sys.executable, "benchmarks/mutation.py", "run", "session.sqlite"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "begin another session" in result.stderr
