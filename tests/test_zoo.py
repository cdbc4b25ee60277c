"""Hyperparameters: where they come from; RL Zoo's command line with our algorithms in it."""

import os
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dummy_envs
import gymnasium as gym
import numpy as np
import pytest
import yaml

from sb3_dpi import MDGPS
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
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"rl_zoo3 not found.*sb3_dpi\[zoo\]"):
        command_line.main(["train", "--algo", "ppo"])


@pytest.mark.parametrize(
    ("command", "missing", "hint"),
    [
        ("enjoy --algo ppo", "requests", "pip install 'sb3_dpi[zoo]'"),
        ("record_video", "moviepy", "pip install 'sb3_dpi[zoo]'"),
        ("train -optimize", "pandas", "pip install 'sb3_dpi[zoo]'"),
        ("train -optimize", "matplotlib", "pip install 'sb3_dpi[zoo]'"),
        ("train --trial-id 3", "optuna", "pip install 'sb3_dpi[zoo]'"),
        ("all_plots", "seaborn", "pip install 'sb3_dpi[zoo]'"),
        ("train -tb runs", "tensorboard", "Install what is missing with: pip install tensorboard"),
        ("train --track", "wandb", "Install what is missing with: pip install wandb"),
        ("train -optimize --sampler auto", "optunahub", "Install what is missing with: pip install optunahub"),
    ],
)
def test_missing_packages_are_named_before_work(
    command: str, missing: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(SystemExit, match=re.escape(f"{missing} not found. ") + ".*" + re.escape(hint)):
        command_line.main(command.split())


def test_packages_that_a_command_does_not_need_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    monkeypatch.setattr(command_line, "find_spec", lambda name: asked.add(name) or object())
    command_line.check_packages("train", ["-optimize", "--no-optim-plots"])
    assert asked == {"rl_zoo3", "optuna", "pandas"}
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name in ("pandas", "wandb") else object())
    with pytest.raises(ImportError, match=r"'sb3_dpi\[zoo\]' and pip install wandb$"):
        command_line.check_packages("train", ["-optimize", "--track"])


@pytest.fixture
def any_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the look at the environment: it imports RL Zoo, which patches Gymnasium for the tests that follow."""
    monkeypatch.setattr(command_line, "_check_env", lambda env_id, packages: None)


def test_register_adds_our_algorithms() -> None:
    import sb3_dpi

    registry: dict[str, Any] = {"ppo": None}
    register_algorithms(registry)
    ours = {"aggrevated_oc": sb3_dpi.AggreVaTeDOC, "dpi": sb3_dpi.DPI, "dual_ac": sb3_dpi.DualAC, "mdgps": sb3_dpi.MDGPS}
    assert registry == {"ppo": None, **ours}


@pytest.mark.usefixtures("any_env")
def test_train_gets_hyperparameters_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--algo", "ppo", "--env", "Reacher-v5", "-n", "200", "-P"]
    completed = command_line.complete_arguments("train", arguments)
    assert completed == [*arguments, "--conf-file", "sb3_dpi.zoo.resolved"]
    assert command_line.resolved.hyperparams["Reacher-v5"] == zoo_entries("ppo")["Reacher-v2"]
    assert capsys.readouterr().out == "Hyperparameters of ppo for Reacher-v5: RL Zoo, Reacher-v2\n"


@pytest.mark.usefixtures("any_env")
@pytest.mark.parametrize("given", [["-conf", "my.yml"], ["--conf-file", "my.yml"], ["--conf-file=my.yml"], ["--help"]])
def test_train_keeps_what_is_given(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.complete_arguments("train", ["--algo", "mdgps", *given]) == ["--algo", "mdgps", *given]
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("any_env")
def test_enjoy_looks_where_train_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_check_agent", lambda command, given: None)
    completed = command_line.complete_arguments("enjoy", ["--algo", "mdgps", "--no-render"])
    assert completed == ["--algo", "mdgps", "--no-render", "--folder", "logs"]
    assert command_line.complete_arguments("enjoy", ["-f", "mine", "--no-render"]) == ["-f", "mine", "--no-render"]


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="add --no-render, or use record_video"):
        command_line.check_rendering("Pendulum-v1", window=True)


@pytest.mark.parametrize(
    ("env_id", "error", "hint"),
    [
        ("Pendulum-v1", gym.error.DependencyNotInstalled("pygame is not installed."), "pip install 'sb3_dpi[zoo]'"),
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
        command_line.check_rendering(env_id)


def test_what_can_be_rendered_passes() -> None:
    pytest.importorskip("pygame")
    command_line.check_rendering("Pendulum-v1")
    # takes no render_mode, which RL Zoo will say
    command_line.check_rendering(dummy_envs.POINT_MASS_ID)


def test_broken_custom_envs_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    command_line.import_custom_envs()
    (tmp_path / "custom_envs.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ImportError, match="custom_envs is there but cannot be imported: No module named 'no_such"):
        command_line.import_custom_envs()


def test_hub_commands_say_what_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("huggingface_sb3.push_to_hub")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match="hf upload"):
        command_line.complete_arguments("push_to_hub", ["--help"])
    module.generate_metadata = None
    assert command_line.complete_arguments("push_to_hub", ["--algo", "mdgps"]) == ["--algo", "mdgps"]
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    with pytest.raises(ValueError, match="TRUST_REMOTE_CODE=True"):
        command_line.complete_arguments("load_from_hub", [])


# Hyperparameter search

Space = tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]


def _space(algo: str) -> Space:
    from sb3_dpi.zoo.samplers import register_samplers

    samplers: dict[str, Any] = {}
    converters: dict[str, Any] = {}
    register_samplers(samplers, converters)
    return samplers[algo], converters[algo]


def test_every_algorithm_has_a_search_space() -> None:
    from sb3_dpi.zoo.samplers import SEARCH_SPACES

    assert set(SEARCH_SPACES) == set(ALGORITHMS)


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_converter_gives_what_the_sampler_gave(algo: str, tmp_path: Path) -> None:
    import optuna

    sampler, converter = _space(algo)
    storage = _journal(tmp_path / "x.log")
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = []
    for _ in range(20):
        trial = study.ask()
        sampled.append(sampler(trial, 3, 2, {"using_her_replay_buffer": False, "her_kwargs": {}}))
        study.tell(trial, 0.0)
    stored = optuna.load_study(study_name="s", storage=_journal(tmp_path / "x.log")).trials
    assert [converter(trial.params) for trial in stored] == sampled
    assert all(given != sampled[0] for given in sampled[1:])
    # RL Zoo writes them into config.yml
    assert yaml.safe_load(yaml.safe_dump(sampled)) == sampled


def test_everything_sampled_builds_an_mdgps() -> None:
    import optuna

    sampler, _ = _space("mdgps")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(25):
        sampled = sampler(study.ask(), 1, 1, {})
        model = MDGPS("MlpPolicy", dummy_envs.PointMass(), horizon=10, device="cpu", **sampled)
        assert 2 <= model.n_conditions * model.samples_per_condition <= 45
        assert 0.949 < model.gamma < 1.0
        seen |= {model.dynamics, model.conditions, model.step_rule}
    assert seen == {"nearest", "niw", "gmm", "fresh", "random", "fixed", "classic", "global"}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    import optuna

    study = optuna.create_study(storage=_journal(tmp_path / "x.log"), study_name="s", direction="maximize")
    for value in (3.0, 1.0, 2.0):
        trial = study.ask()
        trial.suggest_float("kl_step", 0.1, 1.0)
        study.tell(trial, value)
    study.ask()
    return tmp_path / "x.log"


def test_find_trial(study_file: Path) -> None:
    from sb3_dpi.zoo.samplers import find_trial

    storage = str(study_file)
    trial, index = find_trial(storage, "s", "2")
    assert (trial.number, index) == (2, "2")
    # RL Zoo takes 0 for none
    for trial_id in ("0", "best"):
        trial, index = find_trial(storage, "s", trial_id)
        assert (trial.number, index) == (0, "-4")
    for trial_id in ("4", "-1", "worst"):
        with pytest.raises(ValueError, match=f"'best' or from 0 to 3 in study 's', got '{trial_id}'"):
            find_trial(storage, "s", trial_id)
    with pytest.raises(ValueError, match="Trial 3 of study 's' has no parameters"):
        find_trial(storage, "s", "3")
    with pytest.raises(ValueError, match=r"There is no study 't' in .*x.log, it holds: s"):
        find_trial(storage, "t", "best")
    other = study_file.with_name("y.log")
    with pytest.raises(ValueError, match=r"There is no file .*y.log"):
        find_trial(str(other), "s", "best")
    assert not other.exists()


@pytest.mark.usefixtures("any_env")
def test_trial_of_a_study(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--storage", str(study_file), "--study-name", "s"]
    before, after = ["--algo", "mdgps", "-conf", "my.yml", *where], ["-params", "horizon:20", "-n", "10"]
    completed = command_line.complete_arguments("train", [*before, "--trial-id", "best", *after])
    assert completed == [*before, *after, "--trial-id=-4"]
    assert "Changed by trial 0 of study s (value 3.0, for RL Zoo --trial-id=-4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--trial-id needs --storage and --study-name"):
        command_line.complete_arguments("train", ["--algo", "mdgps", "--trial-id", "1", "--storage", str(study_file)])


def test_figures_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import optuna

    from sb3_dpi.zoo.samplers import draw_study

    monkeypatch.setenv("MPLBACKEND", "agg")
    report = tmp_path / "report_x.pkl"
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("a", 0.0, 1.0), n_trials=3)
    report.write_bytes(pickle.dumps(study))
    figures = draw_study(report)
    assert [path.name for path in figures] == ["report_x_optimization_history.png", "report_x_param_importances.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)

    def fail(study: Any) -> None:
        raise ImportError("needs scikit-learn")

    monkeypatch.setattr(optuna.visualization.matplotlib, "plot_param_importances", fail)
    assert draw_study(report) == figures[:1]
    assert capsys.readouterr().out == "No figure report_x_param_importances.png: needs scikit-learn\n"


# Plots


def _store_evaluations(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=np.arange(n), results=np.zeros((n, 2)))


def test_plots_name_what_they_do_not_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, n in {"A-v1_1": 3, "A-v1_2": 2, "A-v1_3": 3, "BigA-v1_1": 3}.items():
        _store_evaluations(tmp_path / "mdgps" / name, n)
    (tmp_path / ".unfinished" / "x_1").mkdir(parents=True)

    def plot(*arguments: str) -> list[str]:
        return command_line.complete_arguments("all_plots", ["-f", str(tmp_path), *arguments])

    assert plot("-a", "MDGPS", "-e", "BigA-v1") == ["-f", str(tmp_path), "-a", "MDGPS", "-e", "BigA-v1"]
    assert capsys.readouterr().out == ""
    plot("-a", "mdgps", "-e", "A-v1")
    output = capsys.readouterr().out
    assert "-e A-v1 is part of the names A-v1, BigA-v1" in output
    assert output.endswith(f"fewer than others: {tmp_path / 'mdgps' / 'A-v1_2'}\n")
    contents = "mdgps on A-v1 BigA-v1$"
    with pytest.raises(ValueError, match=f"-a is needed.*{contents}"):
        plot("-e", "A-v1")
    with pytest.raises(ValueError, match=f"no runs of trpo .* only {contents}"):
        plot("-a", "mdgps", "trpo", "-e", "A-v1")
    with pytest.raises(ValueError, match=rf"no runs on b/C-v1 \(in folders b-C-v1\) .* only {contents}"):
        plot("-a", "mdgps", "-e", "A-v1", "b/C-v1")


def test_plot_train_needs_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    with pytest.raises(ValueError, match="opens a window and writes no file"):
        command_line.complete_arguments("plot_train", ["-a", "mdgps", "-e", "A-v1"])


def test_plot_from_file_needs_two_runs_of_all(tmp_path: Path) -> None:
    two, one = {"last_evals": np.zeros(2)}, {"last_evals": np.float64(0.0)}

    def check(results: dict[str, Any]) -> None:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({**results, "results_table": {}}))
        for name in ("x", "x.pkl"):
            command_line.complete_arguments("plot_from_file", ["-i", str(tmp_path / name)])

    check({"A": {"mdgps": two, "ppo": two}, "B": {"mdgps": two, "ppo": two}})
    with pytest.raises(ValueError, match="one run of ppo on B"):
        check({"A": {"mdgps": two, "ppo": two}, "B": {"mdgps": two, "ppo": one}})
    with pytest.raises(ValueError, match="no runs of ppo on A"):
        check({"A": {"mdgps": two}, "B": {"mdgps": two, "ppo": two}})
    with pytest.raises(ValueError, match="holds no results"):
        check({"A": {}})
    with pytest.raises(ValueError, match=r"y.pkl not found: -i names the file that all_plots -o wrote"):
        command_line.complete_arguments("plot_from_file", ["-i", str(tmp_path / "y")])


@pytest.mark.parametrize("arguments", [[], ["plot"]])
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"train\|enjoy"):
        command_line.main(arguments)


# The whole command, in a process of its own


def _zoo(*arguments: str, folder: Path, code: int = 0) -> str:
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "sb3_dpi.zoo", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "algo", ["mdgps", pytest.param("ppo", marks=pytest.mark.slow), pytest.param("trpo", marks=pytest.mark.slow)]
)
def test_train_and_enjoy(algo: str, tmp_path: Path) -> None:
    task = ("--algo", algo, "--env", "sb3_dpi/CartPoleBalance-v0")
    output = _zoo("train", *task, "-n", "300", "--seed", "1", "--eval-freq", "-1", "--device", "cpu", folder=tmp_path)
    assert f"Hyperparameters of {algo} for sb3_dpi/CartPoleBalance-v0: " in output
    assert (tmp_path / "logs" / algo / "sb3_dpi-CartPoleBalance-v0_1" / "sb3_dpi-CartPoleBalance-v0.zip").is_file()
    assert "Mean reward" in _zoo("enjoy", *task, "--no-render", "-n", "160", "--device", "cpu", folder=tmp_path)


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

    sampler, _ = _space("mdgps")
    study = optuna.create_study(storage=_journal(tmp_path / "x.log"), study_name="s", direction="maximize")
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
    assert output == "The lab/mdgps/sb3_dpi_tests-PointMass-v0_1 folder was not found; --exp-id 3 has one\n"


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    commands = {
        "train --algo mdgp --env Pendulum-v1": "did you mean 'mdgps'",
        "train --algo mdgps --env Pendulm-v1": "Unknown environment 'Pendulm-v1'; did you mean 'Pendulum-v1'",
        "train --algo crossq --env Pendulum-v1 -optimize": "There is no search space of crossq for -optimize, only of",
        "enjoy --algo mdgps --env Pendulum-v1 --no-render": "The logs/mdgps folder was not found; train one",
    }
    program = "\n".join(
        (
            "from sb3_dpi.zoo.__main__ import main",
            f"for command in {list(commands)!r}:",
            "    try:",
            "        main(command.split())",
            "    except SystemExit as end:",
            "        print(end.code)",
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), done.stdout + done.stderr
    for line, expected in zip(lines, commands.values(), strict=True):
        assert expected in line


@pytest.mark.slow
def test_record_video(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    task = ("--algo", "mdgps", "--env", "Pendulum-v1")
    settings = ("-params", "horizon:10", "n_conditions:1", "imitation_steps:1", "--device", "cpu", "--eval-freq", "-1")
    _zoo("train", *task, "-n", "20", *settings, folder=tmp_path)
    _zoo("record_video", *task, "-n", "20", folder=tmp_path)
    videos = list((tmp_path / "logs" / "mdgps" / "Pendulum-v1_1" / "videos").glob("*.mp4"))
    assert len(videos) == 1
    assert videos[0].read_bytes()[4:8] == b"ftyp"


@pytest.mark.slow
def test_plots_of_what_compare_wrote(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / "lab" / "mdgps" / f"Task-v1_{seed}"
        folder.mkdir(parents=True)
        np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20]), results=np.full((2, 3), 5.0 * seed))
    plots = ("-a", "mdgps", "-e", "Task-v1", "-f", "lab", "-l", "lab", "-o", "curves", "--no-display")
    assert "8 +/- 2" in _zoo("all_plots", *plots, folder=tmp_path)
    _zoo("plot_from_file", "-i", "curves", "-o", "final.png", "--format", "png", folder=tmp_path)
    assert (tmp_path / "final.png").read_bytes().startswith(b"\x89PNG")
