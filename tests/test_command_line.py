"""The command line of the lab: run, report, export, and what it says to bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from stored import InProcess

from sb3_dpi.compare import __main__ as command_line
from sb3_dpi.compare.engines import LocalEngine, RayEngine

ADHOC = ["run", "--algo", "trpo,ppo", "--env", "Pendulum-v1"]
SMALL = ["--set", "ppo.n_steps=64", "trpo.n_steps=64", "ppo.n_envs=1", "trpo.n_envs=1", "ppo.batch_size=64"]


def test_run_report_export_and_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "make_engine", lambda args, workers: InProcess())  # others start in seconds
    out, base, again = tmp_path / "out", tmp_path / "base", tmp_path / "again"
    run = [*ADHOC, "--steps", "256", "--seeds", "1", "--threshold", "-9999", "--eval-every", "80", *SMALL, "--jobs", "2"]
    assert command_line.main([*run, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("ppo on Pendulum-v1, seed 1", "Pendulum-v1", "9,999", "(1/1)"):
        assert words in printed
    with (out / "evaluations.csv").open() as file:
        episodes = [row for row in csv.DictReader(file) if row["name"] == "ppo"]
    stored = np.load(out / "ppo" / "Pendulum-v1_1" / "evaluations.npz")
    assert [float(row["return"]) for row in episodes] == stored["results"].ravel().tolist()

    assert command_line.main(["export", "--out", str(out), "--to", str(base)]) == 0
    assert "2 runs copied" in capsys.readouterr().out
    # A folder of baselines can be reported by itself, with the thresholds of its tasks
    assert command_line.main(["report", "--out", str(base), "--to", str(tmp_path / "report")]) == 0
    assert "steps to -9,999 (seeds)" in (tmp_path / "report" / "report.md").read_text()
    capsys.readouterr()
    # Nothing left to run: the baselines are read
    assert command_line.main([*run, "--out", str(again), "--baselines", str(base)]) == 0
    assert "2 of 2 runs were finished before" in capsys.readouterr().out
    assert json.loads((again / "ppo" / "Pendulum-v1_1" / "run.json").read_text())["imported"] is True

    again = tmp_path / "report again"
    assert command_line.main(["report", "--out", str(out), "--to", str(again), "--at", "200"]) == 0
    for name in ("report.md", "report.html", "summary.csv", "figures/curves_Pendulum-v1.png"):
        assert (out / name).is_file() and (again / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "--suite NAME, or --algo NAMES --env IDS"),
        (["run", "--algo", "ppo"], "--suite NAME, or --algo NAMES --env IDS"),
        (["run", "--suite", "quik"], "quick"),
        (["run", "--suite", "quick", "--env", "Reacher-v5", "--set", "ppo.gamma=1"], "leave out --env, --set"),
        (["run", "--algo", "pppo", "--env", "Pendulum-v1"], "ppo"),
        (["run", "--algo", "ppo", "--env", "Pendulum-v11"], "Pendulum-v1"),
        ([*ADHOC, "--seeds", "0"], "seeds"),
        ([*ADHOC, "--address", "here:1"], "--engine ray"),
        ([*ADHOC, "--jobs", "0"], "--jobs 0: at least 1"),
        ([*ADHOC, "--jobs", "2", "--baselines", "no_such_folder"], "--baselines no_such_folder: no such folder"),
        (["report", "--out", "no_such_folder"], "no such folder"),
        (["export", "--out", "no_such_folder", "--to", "no_such_folder"], "no such folder"),
        (["export", "--out", str(Path(__file__).parent), "--to", "no_such_folder"], "no finished runs to copy"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


def test_unwritable_folder_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command_line.main([*ADHOC, "--out", str(tmp_path / "file" / "out")])
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_engines() -> None:
    parse = command_line.make_parser().parse_args
    assert command_line.make_engine(parse([*ADHOC, "--jobs", "3"])) == LocalEngine(3)
    ray = command_line.make_engine(parse([*ADHOC, "--engine", "ray", "--address", "head:6379", "--shared"]))
    assert ray == RayEngine(address="head:6379", jobs=None, shared=True)


def test_numbers_of_a_suite_can_be_changed() -> None:
    arguments = ["run", "--suite", "quick", "--seeds", "5", "--first-seed", "11", "--eval-every", "100"]
    suite = command_line.make_suite(command_line.make_parser().parse_args(arguments))
    assert (suite.name, suite.seeds, suite.first_seed, suite.evaluation.every) == ("quick", 5, 11, 100)
