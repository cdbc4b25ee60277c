"""RL Zoo's command line with our algorithms in it: what it completes, refuses in one line, and hands over."""

import argparse
import importlib
import io
import os
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dummy_envs
import gymnasium as gym
import numpy as np
import pytest
import yaml
from matplotlib import rc_context
from test_zoo import journal, space

from sb3_dpi.common.extras import install_command
from sb3_dpi.zoo import __main__ as command_line
from sb3_dpi.zoo import environments, machine
from sb3_dpi.zoo.hyperparams import zoo_entries
from sb3_dpi.zoo.parser import Refused, completed_by

USERS_MODULES = ("custom_envs", "zoo_module")
"""Which the tests write anew"""

# ---------------------------------------------------------------------- what a machine lacks


@pytest.mark.parametrize(
    ("command", "missing"),
    [("train", "rl_zoo3"), ("enjoy --algo ppo", "requests"), ("record_video", "moviepy"), ("all_plots", "seaborn")],
)
def test_missing_packages_are_named_before_work(command: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(SystemExit, match=re.escape(f"{missing} not found. ") + ".*" + re.escape(install_command("zoo"))):
        command_line.main(command.split())


def training(**given: Any) -> Namespace:
    """:return: arguments of ``train`` as RL Zoo parses them"""
    defaults = {"algo": "ppo", "env": "Reacher-v5", "optimize_hyperparameters": False, "no_optim_plots": False}
    defaults |= {"sampler": "tpe", "tensorboard_log": "", "track": False, "hyperparams": None, "conf_file": None}
    return Namespace(**{**defaults, "trial_id": None, "storage": None, "study_name": None, **given})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, []),
        ({"optimize_hyperparameters": True}, ["pandas", "matplotlib"]),
        ({"optimize_hyperparameters": True, "no_optim_plots": True, "sampler": "auto"}, ["pandas", "optunahub"]),
        ({"tensorboard_log": "runs", "track": True}, ["tensorboard", "wandb"]),
    ],
)
def test_packages_that_a_training_needs_at_its_end(given: dict[str, Any], names: list[str]) -> None:
    assert machine.packages_of_training(training(**given)) == names


def test_packages_outside_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"\[zoo\][^']*' and pip install wandb$"):
        machine.check_packages(["pandas", "wandb"])
    with pytest.raises(ImportError, match=r"tensorboard not found. Install what is missing with: pip install tensorboard$"):
        machine.check_packages(["tensorboard"])


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="add --no-render, or use record_video"):
        machine.check_rendering("Pendulum-v1", window=True)


@pytest.mark.parametrize(
    ("env_id", "error", "hint"),
    [
        ("Pendulum-v1", gym.error.DependencyNotInstalled("pygame is not installed."), install_command("zoo")),
        ("Reacher-v5", AttributeError("'NoneType' object has no attribute 'glGetError'"), "set MUJOCO_GL=egl"),
    ],
)
def test_what_cannot_be_rendered_is_known_before_work(
    env_id: str, error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(gym, "make", make)
    text = re.escape(f"{env_id} cannot be rendered here ({str(error).rstrip('.')}). ")
    with pytest.raises(ValueError, match=text + ".*" + re.escape(hint)):
        machine.check_rendering(env_id)


def test_what_can_be_rendered_passes() -> None:
    pytest.importorskip("pygame")
    machine.check_rendering("Pendulum-v1")
    # takes no render_mode, which RL Zoo will say
    machine.check_rendering(dummy_envs.POINT_MASS_ID)


def test_broken_custom_envs_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    environments.import_custom_envs()
    (tmp_path / "custom_envs.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(
        ImportError, match="custom_envs is there but cannot be imported: ModuleNotFoundError: No module named 'no_such"
    ):
        environments.import_custom_envs()


# ---------------------------------------------------------------------- what is parsed


def parse(arguments: str, complete: Callable[[Namespace], None] = lambda given: None, folder: str | None = None) -> Namespace:
    with completed_by(complete, folder):
        parser = argparse.ArgumentParser()
        parser.add_argument("--algo", choices=["ppo"])
        parser.add_argument("--seeds", type=int)
        parser.add_argument("-optimize", action="store_true")
        parser.add_argument("-n", type=int)
        parser.add_argument("-f", "--exp-folders", nargs="+", required=True)
        parser.add_argument("--trial-id", type=int)
        return parser.parse_args(arguments.split())


def test_nothing_is_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for abbreviation in ("--seed 2", "--seed=2", "-opt", "-o", "--trial best"):
        with pytest.raises(SystemExit):
            parse(f"-f x {abbreviation}")
        assert f"unrecognized arguments: {abbreviation}" in capsys.readouterr().err
    given = parse("-f x -n3 --seeds=2 -optimize")
    assert (given.n, given.seeds, given.optimize) == (3, 2, True)
    # and only while RL Zoo runs
    assert not hasattr(argparse.ArgumentParser.parse_args, "__wrapped__")
    plain = argparse.ArgumentParser()
    plain.add_argument("--seeds")
    assert plain.parse_args(["--seed", "2"]).seeds == "2"


def test_what_rl_zoo_would_not_let_pass() -> None:
    given = parse("--algo my_module:Mine --trial-id best", folder="logs")
    assert (given.algo, given.trial_id, given.exp_folders) == ("my_module:Mine", "best", ["logs"])
    assert parse("-f mine", folder="logs").exp_folders == ["mine"]
    with pytest.raises(SystemExit):
        parse("")

    def refuse(given: Namespace) -> None:
        raise ValueError(f"no {given.n}")

    with pytest.raises(Refused, match="no 3"):
        parse("-f x -n 3", refuse)


def test_train_gets_hyperparameters_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    given, registry = training(), dict[str, Any]()
    command_line.complete_train(given, registry)
    assert given.conf_file == "sb3_dpi.zoo.resolved" and list(registry) == ["ppo"]
    assert command_line.resolved.hyperparams["Reacher-v5"] == zoo_entries("ppo")["Reacher-v2"]
    assert capsys.readouterr().out == "Hyperparameters of ppo for Reacher-v5: RL Zoo, Reacher-v2\n"
    given = training(conf_file="my.yml")
    command_line.complete_train(given, registry)
    assert given.conf_file == "my.yml" and capsys.readouterr().out == ""


def test_classes_and_environments_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_module.py").write_text(
        "import gymnasium as gym\nfrom stable_baselines3 import PPO\nclass Mine(PPO): ...\n"
        "gym.register('ZooArm-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given, registry = training(algo="zoo_module:Mine", env="zoo_module:ZooArm-v0"), dict[str, Any]()
    command_line.complete_train(given, registry)
    assert (given.algo, given.env, registry["mine"].__name__) == ("mine", "ZooArm-v0", "Mine")
    assert command_line.resolved.hyperparams["ZooArm-v0"]["policy"] == "MlpPolicy"
    del gym.registry["ZooArm-v0"]
    for changes, message in {
        "algo": ("zoo_module:Mien", "has no class 'Mien'; did you mean 'Mine'"),
        "env": ("no_such_module:A-v0", "the module of environment 'no_such_module:A-v0' cannot be imported"),
    }.items():
        with pytest.raises((ImportError, ValueError), match=message[1]):
            command_line.complete_train(training(**{changes: message[0]}), registry)


def test_misspelt_hyperparameters_are_refused() -> None:
    with pytest.raises(ValueError, match="-params gama: PPO takes no such hyperparameter, did you mean 'gamma'"):
        command_line.complete_train(training(hyperparams={"n_envs": 2, "gama": 0.9}), {})
    with pytest.raises(ValueError, match="-params kl_stepp: MDGPS takes no such hyperparameter, did you mean 'kl_step'"):
        command_line.complete_train(training(algo="mdgps", hyperparams={"kl_stepp": 0.9}), {})


def test_trial_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import optuna

    study = optuna.create_study(storage=journal(tmp_path / "x.log"), study_name="s", direction="maximize")
    for value in (3.0, 1.0):
        trial = study.ask()
        trial.suggest_float("kl_step", 0.1, 1.0)
        study.tell(trial, value)
    given = training(algo="mdgps", conf_file="my.yml", storage=str(tmp_path / "x.log"), study_name="s", trial_id="best")
    command_line.complete_train(given, {})
    assert given.trial_id == -2
    assert "Changed by trial 0 of study s (value 3.0, for RL Zoo --trial-id=-2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--trial-id needs --storage and --study-name"):
        command_line.complete_train(training(algo="mdgps", trial_id="1", storage=str(tmp_path / "x.log")), {})


def store_evaluations(folder: Path, n: int, n_episodes: int = 2) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=np.arange(n), results=np.zeros((n, n_episodes)))


@pytest.mark.parametrize("arguments", [[], ["plot"]])
def test_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"train\|enjoy"):
        command_line.main(arguments)
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    with pytest.raises(SystemExit, match=r"train\|enjoy"):
        runpy.run_path(str(command_line.__file__), run_name="__main__")


# ---------------------------------------------------------------------- the whole command


def _process(*arguments: str, folder: Path) -> str:
    """:return: what the command says in a process of its own"""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "sb3_dpi.zoo", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _zoo(*arguments: str, folder: Path, code: int = 0) -> str:
    """:return: what the command says; here, which saves its imports, and what it changes around it is put back"""
    said = io.StringIO()
    modules = importlib.import_module("rl_zoo3").ALGOS, gym.registry, command_line.resolved.hyperparams
    with ExitStack() as stack:
        for changed in (*map(patch.dict, modules), rc_context(), redirect_stdout(said), redirect_stderr(said)):
            stack.enter_context(changed)
        context = stack.enter_context(pytest.MonkeyPatch.context())
        context.chdir(folder)
        context.syspath_prepend(folder)
        context.setattr(sys, "argv", sys.argv)
        for name in USERS_MODULES:
            stack.callback(sys.modules.pop, name, None)
        ended = 0
        try:
            command_line.main([*arguments])
        except SystemExit as end:
            ended = 1
            print(end.code, file=said)
    assert ended == code, said.getvalue()
    return said.getvalue()


@pytest.mark.parametrize(
    "algo", ["mdgps", pytest.param("ppo", marks=pytest.mark.slow), pytest.param("trpo", marks=pytest.mark.slow)]
)
def test_train_and_enjoy(algo: str, tmp_path: Path) -> None:
    task = ("--algo", algo, "--env", "sb3_dpi/CartPoleBalance-v0")
    output = _zoo("train", *task, "-n", "300", "--seed", "1", "--eval-freq", "-1", "--device", "cpu", folder=tmp_path)
    assert f"Hyperparameters of {algo} for sb3_dpi/CartPoleBalance-v0: " in output
    assert (tmp_path / "logs" / algo / "sb3_dpi-CartPoleBalance-v0_1" / "sb3_dpi-CartPoleBalance-v0.zip").is_file()
    enjoy = _zoo if algo == "mdgps" else _process
    assert "Mean reward" in enjoy("enjoy", *task, "--no-render", "-n", "160", "--device", "cpu", folder=tmp_path)


def _use_custom_envs(folder: Path) -> tuple[str, ...]:
    (folder / "custom_envs.py").write_text("import dummy_envs\n\ndummy_envs.register()\n")
    return ("--algo", "mdgps", "--env", dummy_envs.POINT_MASS_ID)


def test_optimize_writes_a_report_and_figures(tmp_path: Path) -> None:
    study = ("--storage", "x.log", "--study-name", "s", "--n-trials", "2", "-n", "100", "--eval-episodes", "1")
    arguments = ("-optimize", *study, "-params", "horizon:10", "--device", "cpu")
    output = _zoo("train", *_use_custom_envs(tmp_path), *arguments, folder=tmp_path)
    assert "Number of finished trials:  2" in output
    reports = sorted(path.suffix for path in (tmp_path / "logs" / "mdgps").glob("report_*"))
    assert reports == [".csv", ".pkl", ".png", ".png"]
    assert output.count("Figure: logs/mdgps/report_sb3_dpi_tests-PointMass-v0_2-trials-100-") == 2


def test_train_with_the_best_trial(tmp_path: Path) -> None:
    import optuna

    sampler, _ = space("mdgps")
    study = optuna.create_study(storage=journal(tmp_path / "x.log"), study_name="s", direction="maximize")
    sampled = []
    for value in (2.0, 1.0):
        trial = study.ask()
        sampled.append(sampler(trial, 1, 1, {}))
        study.tell(trial, value)
    arguments = ("--storage", "x.log", "--study-name", "s", "--trial-id", "best", "-n", "50", "--eval-freq", "-1")
    settings = ("-params", "horizon:10", "imitation_steps:1", "--device", "cpu")
    _zoo("train", *_use_custom_envs(tmp_path), *arguments, *settings, folder=tmp_path)
    name = "sb3_dpi_tests-PointMass-v0"
    stored = yaml.unsafe_load((tmp_path / "logs" / "mdgps" / f"{name}_1" / name / "config.yml").read_text())
    # the first trial, which RL Zoo takes for none
    assert {key: stored[key] for key in sampled[0]} == {**sampled[0], "imitation_steps": 1}
    assert stored["horizon"] == 10


def test_enjoy_runs_what_compare_wrote(tmp_path: Path) -> None:
    from sb3_dpi.compare import RunConfig, run_one

    task = _use_custom_envs(tmp_path)
    hyperparams = {
        "policy": "MlpPolicy",
        "normalize": {"norm_obs": True, "norm_reward": False},
        "n_conditions": 1,
        "samples_per_condition": 2,
        "imitation_steps": 5,
        "policy_kwargs": {"net_arch": [8]},
    }
    config = RunConfig("mdgps", dummy_envs.POINT_MASS_ID, 3, 48, hyperparams, n_eval_episodes=1)
    run_one(config, tmp_path / "lab" / config.path)
    arguments = ("-f", "lab", "--no-render", "-n", "24", "--device", "cpu")
    output = _zoo("enjoy", *task, *arguments, "--exp-id", "3", folder=tmp_path)
    assert "Loading lab/mdgps/sb3_dpi_tests-PointMass-v0_3/sb3_dpi_tests-PointMass-v0.zip" in output
    assert "2 Episodes" in output
    output = _zoo("enjoy", *task, *arguments, "--exp-id", "1", folder=tmp_path, code=1)
    assert "There is no agent to run: " in output and "lab/mdgps/sb3_dpi_tests-PointMass-v0_1 folder was not found" in output


ZOO_MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3 import PPO

class Mine(PPO): ...

class Endless(PendulumEnv):
    def reset(self, **kwargs):
        self.n = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.n += 1
        assert self.n <= 50, "episodes of an evaluation were to end"
        return super().step(action)

gym.register("Arm-v0", PendulumEnv, max_episode_steps=20)
gym.register("Endless-v0", Endless)
"""


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    commands = {
        "train --algo mdgp --env Pendulum-v1": "did you mean 'mdgps'",
        "train --algo mdgps --env Pendulm-v1": "unknown environment 'Pendulm-v1', did you mean 'Pendulum-v1'",
        "train --algo mdgps --env zoo_module:Amr-v0": "environment 'zoo_module:Amr-v0', did you mean 'zoo_module:Arm-v0'?",
        "enjoy --algo mdgps --env zoo_module:Amr-v0 --no-render": "did you mean 'zoo_module:Arm-v0'?",
        "train --algo crossq --env Pendulum-v1 -optimize": "There is no search space of crossq for -optimize, only of",
        "train --algo ppo --env Pendulum-v1 -params gama:0.9": "PPO takes no such hyperparameter, did you mean 'gamma'",
        "train --algo ppo --env Pendulum-v1 -params gamma:abc": "-params gamma:abc: 'abc' is no value of Python (NameError: ",
        "train --algo ppo --env Pendulum-v1 --env-kwargs g:": "--env-kwargs g:: '' is no value of Python (SyntaxError: ",
        "train --algo ppo --env Pendulum-v1 -params gamma:'abc'": "-params gamma: a number is needed, not 'abc'",
        "train --algo ppo --env Pendulum-v1 -params n_epochs:0.5": "-params n_epochs: a whole number is needed, not 0.5",
        "train --algo ppo --env Pendulum-v1 -params policy_kwargs:dict(net_arhc=3)": "unexpected keyword argument 'net_arhc'",
        "train --algo dpi --env CartPole-v1": "The algorithm only supports",
        "train --algo dpi --env CartPole-v1 -optimize -n 10": "The algorithm only supports",
        "enjoy --algo mdgps --env Pendulum-v1 --no-render": "There is no agent to run: The logs/mdgps folder was not found. "
        "Train one with python -m sb3_dpi.zoo train --algo mdgps --env Pendulum-v1, or say",
        "all_plots -a mdgps -e Pendulum-v1": "There are no runs of mdgps in logs, only nothing",
        "all_plots -a ppo -e A-v1 -f lab other -l one": "-l has 1 labels for 2 folders of -f: give one for each",
        "plot_from_file -i zoo_module.py": "There is no file zoo_module.py.pkl: -i names the one that all_plots -o wrote",
        "plot_from_file -i no": "RL Zoo's plot_from_file stopped: UnpicklingError",
    }
    (tmp_path / "zoo_module.py").write_text(ZOO_MODULE)
    store_evaluations(tmp_path / "lab" / "ppo" / "A-v1_1", 3)
    (tmp_path / "no.pkl").write_text("no pickle")
    for command, expected in commands.items():
        said = _zoo(*command.split(), folder=tmp_path, code=1)
        assert expected in said.splitlines()[-1]
    # enjoy would take an empty folder for the latest run
    assert not [folder for folder in (tmp_path / "logs").glob("*/*") if folder.is_dir()]


def test_modules_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm and an environment by their modules; an environment whose episodes do not end is evaluated all the same."""
    (tmp_path / "zoo_module.py").write_text(ZOO_MODULE)
    task, settings = ("--algo", "zoo_module:Mine", "--env", "zoo_module:Arm-v0"), ("-n", "40", "--device", "cpu")
    small = ("-params", "n_steps:20", "n_epochs:1", "batch_size:20")
    _zoo("train", *task, *settings, *small, "--eval-freq", "20", "--eval-episodes", "1", folder=tmp_path)
    assert "Loading logs/mine/Arm-v0_1/Arm-v0.zip" in _zoo("enjoy", *task, *settings, "--no-render", folder=tmp_path)
    output = _zoo("all_plots", "-a", "zoo_module:Mine", "-e", "zoo_module:Arm-v0", "--no-display", folder=tmp_path, code=1)
    assert output.endswith("another seed, or two episodes (train --eval-episodes 2)\n")
    output = _zoo("enjoy", *task, "--exp-id", "7", "--no-render", folder=tmp_path, code=1)
    assert "train --algo zoo_module:Mine --env zoo_module:Arm-v0, or say" in output
    monkeypatch.setattr(environments, "LONGEST_EPISODE", 30)
    endless = ("--algo", "ppo", "--env", "zoo_module:Endless-v0", "-n", "20", "--eval-freq", "20", "--device", "cpu")
    output = _zoo("train", *endless, *small, folder=tmp_path)
    assert "Endless-v0 has no time limit, or a very long one: the episodes of an evaluation are cut after 30 steps" in output
    assert "Episode length: 30.00" in output
    output = _zoo("enjoy", *endless[:4], "-n", "70", "--no-render", "--device", "cpu", folder=tmp_path)
    assert output.count("Episode Length 30\n") == 2


@pytest.mark.slow
def test_record_video(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    task = ("--algo", "mdgps", "--env", "Pendulum-v1")
    settings = ("-params", "horizon:10", "n_conditions:1", "imitation_steps:1", "--device", "cpu", "--eval-freq", "-1")
    _process("train", *task, "-n", "20", *settings, folder=tmp_path)
    _process("record_video", *task, "-n", "20", folder=tmp_path)
    videos = list((tmp_path / "logs" / "mdgps" / "Pendulum-v1_1" / "videos").glob("*.mp4"))
    assert len(videos) == 1
    assert videos[0].read_bytes()[4:8] == b"ftyp"
