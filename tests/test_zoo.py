"""Hyperparameters: where they come from; RL Zoo's command line with our algorithms in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_dpi.zoo import ALGORITHMS, algorithm_class, register_algorithms, resolve_hyperparams
from sb3_dpi.zoo import __main__ as command_line
from sb3_dpi.zoo import hyperparams as hyperparams_module
from sb3_dpi.zoo.hyperparams import HYPERPARAMS_FOLDER, SB3_DEFAULTS, newest_version, zoo_entries


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("Task-v4", "Task-v4"),
        ("Task-v5", "Task-v4"),
        ("Task-v12", "Task-v10"),
        ("Task-v3", "Task-v2"),
        ("Task-v1", None),
        ("OtherTask-v5", None),
        ("default", "default"),
        ("Task", None),
    ],
)
def test_newest_older_version(env_id: str, expected: str | None) -> None:
    assert newest_version(["default", "Task-v2", "Task-v10", "Task-v4", "Task-v4-extra"], env_id) == expected


def test_baselines_use_the_entry_of_an_older_version() -> None:
    choice = resolve_hyperparams("ppo", "Reacher-v5")
    assert choice.source == "RL Zoo, Reacher-v2"
    assert choice.hyperparams == zoo_entries("ppo")["Reacher-v2"]
    assert resolve_hyperparams("trpo", "HalfCheetah-v5").source == "RL Zoo, HalfCheetah-v4"
    assert resolve_hyperparams("ppo", "Pendulum-v1").source == "RL Zoo, Pendulum-v1"
    assert resolve_hyperparams("ppo", "BreakoutNoFrameskip-v4").source == "RL Zoo, atari"


def test_baselines_never_use_the_untuned_default() -> None:
    assert "default" in zoo_entries("trpo")
    choice = resolve_hyperparams("trpo", "Reacher-v5")
    assert choice.source == "SB3 defaults, observations normalized"
    assert choice.hyperparams == SB3_DEFAULTS
    assert choice.hyperparams["normalize"] == {"norm_obs": True, "norm_reward": False}


def test_resolved_hyperparams_are_a_copy() -> None:
    resolve_hyperparams("trpo", "Reacher-v5").hyperparams["n_envs"] = 7
    assert resolve_hyperparams("trpo", "Reacher-v5").hyperparams["n_envs"] == 1


def test_our_algorithms_use_their_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mdgps.yml").write_text("default: {policy: A}\nTask-v3: {policy: B}\n")
    monkeypatch.setattr(hyperparams_module, "HYPERPARAMS_FOLDER", tmp_path)
    assert resolve_hyperparams("mdgps", "Task-v5").hyperparams == {"policy": "B"}
    assert resolve_hyperparams("mdgps", "Task-v5").source == "sb3_dpi, Task-v3"
    assert resolve_hyperparams("mdgps", "Task-v1").source == "sb3_dpi, default"


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _scalars(item)
    else:
        yield value


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_our_files_hold_numbers_and_a_default(algo: str) -> None:
    entries = yaml.safe_load((HYPERPARAMS_FOLDER / f"{algo}.yml").read_text())
    assert {"n_timesteps", "policy"} <= set(entries["default"])
    for scalar in _scalars(entries):
        if isinstance(scalar, str):
            # YAML takes 1e-3 for a string, which needs !!float
            with pytest.raises(ValueError, match="could not convert"):
                float(scalar)


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match=r"Unknown algorithm 'pppo', choose one of: .*mdgps.*ppo"):
        resolve_hyperparams("pppo", "Reacher-v5")
    with pytest.raises(ValueError, match="Unknown algorithm 'pppo'"):
        algorithm_class("pppo")


def test_missing_rl_zoo_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyperparams_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sb3_dpi\[zoo\]'"):
        resolve_hyperparams("ppo", "Reacher-v5")
    assert resolve_hyperparams("mdgps", "Reacher-v5").source.startswith("sb3_dpi")
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "requests" else object())
    with pytest.raises(SystemExit, match=r"requests not found.*sb3_dpi\[zoo\]"):
        command_line.main(["train", "--algo", "ppo"])


def test_register_adds_our_algorithms() -> None:
    import sb3_dpi

    registry: dict[str, Any] = {"ppo": None}
    register_algorithms(registry)
    assert registry == {"ppo": None, "mdgps": sb3_dpi.MDGPS}


def test_train_gets_hyperparameters_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--algo", "ppo", "--env", "Reacher-v5", "-n", "200", "-P"]
    completed = command_line.complete_arguments("train", arguments)
    assert completed == [*arguments, "--conf-file", "sb3_dpi.zoo.resolved"]
    assert command_line.resolved.hyperparams["Reacher-v5"] == zoo_entries("ppo")["Reacher-v2"]
    assert capsys.readouterr().out == "Hyperparameters of ppo for Reacher-v5: RL Zoo, Reacher-v2\n"


@pytest.mark.parametrize("given", [["-conf", "my.yml"], ["--conf-file", "my.yml"], ["--conf-file=my.yml"], ["--help"]])
def test_train_keeps_what_is_given(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.complete_arguments("train", ["--algo", "mdgps", *given]) == ["--algo", "mdgps", *given]
    assert capsys.readouterr().out == ""


def test_enjoy_looks_where_train_writes() -> None:
    assert command_line.complete_arguments("enjoy", ["--algo", "mdgps"])[-2:] == ["--folder", "logs"]
    assert command_line.complete_arguments("enjoy", ["-f", "mine"]) == ["-f", "mine"]


def test_search_of_hyperparameters_is_refused_clearly() -> None:
    with pytest.raises(ValueError, match="mdgps has no search space"):
        command_line.complete_arguments("train", ["--algo", "mdgps", "-optimize"])


@pytest.mark.parametrize("arguments", [[], ["plot"]])
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"train\|enjoy"):
        command_line.main(arguments)


def _zoo(*arguments: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "sb3_dpi.zoo", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "algo", ["mdgps", pytest.param("ppo", marks=pytest.mark.slow), pytest.param("trpo", marks=pytest.mark.slow)]
)
def test_train_and_enjoy(algo: str, tmp_path: Path) -> None:
    task = ("--algo", algo, "--env", "sb3_dpi/CartPoleBalance-v0")
    output = _zoo("train", *task, "-n", "300", "--seed", "1", "--eval-freq", "-1", "--device", "cpu", folder=tmp_path)
    assert f"Hyperparameters of {algo} for sb3_dpi/CartPoleBalance-v0: " in output
    assert (tmp_path / "logs" / algo / "sb3_dpi-CartPoleBalance-v0_1" / "sb3_dpi-CartPoleBalance-v0.zip").is_file()
    assert "Mean reward" in _zoo("enjoy", *task, "--no-render", "-n", "160", "--device", "cpu", folder=tmp_path)
