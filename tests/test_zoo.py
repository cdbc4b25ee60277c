"""Hyperparameters: where they come from, and the search for better ones."""

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dummy_envs
import numpy as np
import pytest
import yaml

from sb3_dpi import MDGPS
from sb3_dpi.common.extras import install_command
from sb3_dpi.zoo import ALGORITHMS, algorithm_class, register_algorithms, resolve_hyperparams
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
    assert resolve_hyperparams("ppo", "gymnasium:Pendulum-v1") == resolve_hyperparams("ppo", "Pendulum-v1")
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
    with pytest.raises(ImportError, match=re.escape(install_command("zoo"))):
        resolve_hyperparams("ppo", "Reacher-v5")
    assert resolve_hyperparams("mdgps", "Reacher-v5").source.startswith("sb3_dpi")


def test_register_adds_our_algorithms() -> None:
    import sb3_dpi

    registry: dict[str, Any] = {"ppo": None}
    register_algorithms(registry)
    ours = {name: getattr(sb3_dpi, kind) for name, kind in ALGORITHMS.items()}
    assert registry == {"ppo": None, **ours} and {kind.__name__ for kind in ours.values()} <= set(sb3_dpi.__all__)
    assert register_algorithms(registry, "stable_baselines3:SAC", "ppo") == ["sac", "ppo"]
    assert registry["sac"].__name__ == "SAC" and registry["ppo"].__name__ == "PPO"


@pytest.mark.parametrize("system", ["simulator", "ensemble"])
def test_what_plans_in_a_simulator_acts_in_the_zoos_environment(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zoo loads agents without one: a plan could not know where the simulator is."""
    import sb3_dpi
    from sb3_dpi.zoo.simulators import planning_where_they_act

    sb3_dpi.MPC({"kind": "random", "n_samples": 4}, dummy_envs.PointMass(), 2, system=system).save(tmp_path / "model")
    zoo: Any = ModuleType("rl_zoo3")  # the real one would patch Gymnasium for all tests
    zoo.utils = ModuleType("rl_zoo3.utils")
    zoo.create_test_env = zoo.utils.create_test_env = dummy_envs.vec_env
    for module in (zoo, zoo.utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with planning_where_they_act():
        env = zoo.create_test_env()
        model = sb3_dpi.MPC.load(tmp_path / "model", custom_objects={"learning_rate": 0.0}, seed=1)
        action, state = model.predict(env.reset(), None, np.array([True]), True)
        obs, *_ = env.step(action)
        assert model.predict(obs, state, np.array([False]), True)[1]["n_plans"] == 2
    assert zoo.create_test_env is dummy_envs.vec_env


# Hyperparameter search

Space = tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]


def space(algo: str) -> Space:
    from sb3_dpi.zoo.samplers import register_samplers

    samplers: dict[str, Any] = {}
    converters: dict[str, Any] = {}
    register_samplers(samplers, converters)
    return samplers[algo], converters[algo]


def test_every_algorithm_has_a_search_space() -> None:
    from sb3_dpi.zoo.samplers import SEARCH_SPACES

    assert set(SEARCH_SPACES) == set(ALGORITHMS)


def journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_converter_gives_what_the_sampler_gave(algo: str, tmp_path: Path) -> None:
    import optuna

    sampler, converter = space(algo)
    storage = journal(tmp_path / "x.log")
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = []
    for _ in range(20):
        trial = study.ask()
        sampled.append(sampler(trial, 3, 2, {"using_her_replay_buffer": False, "her_kwargs": {}}))
        study.tell(trial, 0.0)
    stored = optuna.load_study(study_name="s", storage=journal(tmp_path / "x.log")).trials
    assert [converter(trial.params) for trial in stored] == sampled
    assert all(given != sampled[0] for given in sampled[1:])
    # RL Zoo writes them into config.yml
    assert yaml.safe_load(yaml.safe_dump(sampled)) == sampled


def test_everything_sampled_builds_an_mdgps() -> None:
    import optuna

    sampler, _ = space("mdgps")
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

    study = optuna.create_study(storage=journal(tmp_path / "x.log"), study_name="s", direction="maximize")
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
