"""The wheel and the sdist as a user gets them: built, installed into an empty environment, used far from the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sb3_dpi.zoo.register import ALGORITHMS

ROOT = Path(__file__).parents[1]
EXTRAS = "export,lab,zoo"
DATA = """
from sb3_dpi.compare.suite import load_suite
from sb3_dpi.zoo import ALGORITHMS, resolve_hyperparams
from importlib.resources import files

import sb3_dpi
assert "site-packages" in sb3_dpi.__file__, sb3_dpi.__file__
suites = sorted(path.stem for path in files("sb3_dpi.compare").joinpath("suites").iterdir())
print(*suites, *(len(load_suite(name).tasks) for name in suites))
print(*(resolve_hyperparams(algo, "Pendulum-v1").source for algo in ALGORITHMS), sep=" | ")
"""

pytestmark = pytest.mark.slow
Run = Callable[..., str]


def run(*command: str | Path, cwd: Path) -> str:
    """:return: what a command prints, without anything of this environment in its own"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    clean = {**clean, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both; the wheel is built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "sb3_dpi"
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in tracked:  # as a fresh clone: what lies about in this one could hide what is not declared
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    (wheel,) = built.glob("*.whl")
    run(found, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[{EXTRAS}]", cwd=folder)
    return found


def test_all_files_are_there(built: Path) -> None:
    tracked = set(run("git", "ls-files", "sb3_dpi", cwd=ROOT).split())
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert tracked - names == set()
    assert {name.partition("/")[0] for name in names - tracked} == {f"{wheel.stem.rsplit('-', 3)[0]}.dist-info"}
    with tarfile.open(sdist) as archive:
        kept = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked | {"constraints.txt", "examples/save_load_continue.py", "tests/algorithms.py", "LICENSE"} <= kept


def test_data_files_are_found(python: Path, tmp_path: Path) -> None:
    suites, sources = run(python, "-c", DATA, cwd=tmp_path).splitlines()[-2:]
    named = ("demo", "dpi", "gps", "mujoco", "quick")
    assert tuple(suites.split()[: len(named)]) == named and min(map(int, suites.split()[len(named) :])) >= 1
    assert sources.count("sb3_dpi") == len(ALGORITHMS)


def test_train_enjoy_and_export(python: Path, tmp_path: Path) -> None:
    agent = ("--algo", "mdgps", "--env", "Pendulum-v1", "--device", "cpu")
    small = ("-n", "40", "-params", "horizon:20", "n_conditions:1", "imitation_steps:1", "--eval-freq", "-1")
    run(python, "-m", "sb3_dpi.zoo", "train", *agent, *small, cwd=tmp_path)
    assert "Mean reward" in run(python, "-m", "sb3_dpi.zoo", "enjoy", *agent, "--no-render", "-n", "200", cwd=tmp_path)
    model = "logs/mdgps/Pendulum-v1_1/Pendulum-v1.zip"
    for to, suffix in {"numpy": ".npz", "c": ".h", "onnx": ".onnx"}.items():
        run(python, "-m", "sb3_dpi.export", model, "--to", to, "--out", f"policy{suffix}", cwd=tmp_path)
        assert (tmp_path / f"policy{suffix}").stat().st_size > 1000


def test_compare_and_report(python: Path, tmp_path: Path) -> None:
    small = ("ppo.n_steps=64", "ppo.n_envs=1", "ppo.batch_size=64", "mdgps.horizon=20", "mdgps.imitation_steps=1")
    what = ("--algo", "mdgps,ppo", "--env", "Pendulum-v1", "--steps", "128", "--seeds", "1", "--threshold", "-9999")
    run(python, "-m", "sb3_dpi.compare", "run", *what, "--eval-every", "64", "--set", *small, "--out", "lab", cwd=tmp_path)
    for name in ("report.html", "report.md", "summary.csv", "figures/curves_Pendulum-v1.png"):
        assert (tmp_path / "lab" / name).stat().st_size > 100


def test_an_example(python: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "save_load_continue.py", tmp_path)
    assert run(python, "save_load_continue.py", "100", cwd=tmp_path).count(" steps: ") == 2
