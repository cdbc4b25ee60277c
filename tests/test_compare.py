"""The head-to-head: protocol of one run, many runs and their reuse, statistics, command line."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from sb3_dpi.compare import RunConfig, build_model, load_result, run_all, run_one, schedule, spread, steps_to_threshold
from sb3_dpi.compare import __main__ as command_line
from sb3_dpi.compare import run as run_module
from sb3_dpi.compare.report import write_csvs
from sb3_dpi.compare.run import constructor_arguments
from sb3_dpi.compare.statistics import curve_band
from sb3_dpi.compare.types import RunResult

NET = {"policy": "MlpPolicy", "n_envs": 1, "policy_kwargs": "dict(net_arch=[8])"}
HYPERPARAMS: dict[str, dict[str, Any]] = {
    "ppo": {**NET, "n_steps": 96, "batch_size": 96, "n_epochs": 2, "learning_rate": "lin_0.01"},
    "trpo": {**NET, "n_steps": 96, "batch_size": 96, "normalize": {"norm_obs": True, "norm_reward": True}, "gamma": 0.9},
}


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(algo: str = "ppo", **changes: Any) -> RunConfig:
        settings = {
            "env_id": "Pendulum-v1",
            "seed": 1,
            "n_timesteps": 640,
            "hyperparams": HYPERPARAMS[algo],
            "source": "test",
            "out": str(tmp_path),
            "n_evaluations": 5,
            "n_eval_episodes": 2,
        }
        return RunConfig(algo=algo, **{**settings, **changes})

    return make


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([-9, -5, -5, -5, -9], 200),
        ([-5, -5, -9, -6, -5, -5], 400),
        ([-5, -5, -9, -5, -5], math.inf),
        ([-6, -6, -6], 100),
        ([-5, -5], math.inf),
    ],
)
def test_threshold_is_reached_at_the_first_of_three(means: list[float], expected: float) -> None:
    results = np.array(means)[:, None] + np.array([-1.0, 0.0, 1.0])
    assert steps_to_threshold(100 * np.arange(1, len(means) + 1), results, -6.0) == expected


def test_spread_counts_the_seeds_that_failed() -> None:
    value = spread([10.0, math.inf, 20.0])
    assert (value.mean, value.median, value.n_finite, value.n_seeds) == (15.0, 20.0, 2, 3)
    assert value.std == pytest.approx(np.std([10.0, 20.0], ddof=1))
    assert spread([10.0, math.inf]).median == math.inf
    assert spread([1.0, 2.0]).median == 1.5
    assert spread([7.0]).std == 0.0
    none = spread([math.inf, math.inf])
    assert none.n_finite == 0 and math.isnan(none.mean) and math.isnan(none.std) and none.median == math.inf


def test_curve_band_interpolates_where_all_seeds_have_data() -> None:
    band = curve_band([([10, 30], [[0.0], [2.0]]), ([10, 20, 40], [[4.0], [3.0], [1.0]])])
    np.testing.assert_allclose(band.timesteps, [10, 20, 30])
    np.testing.assert_allclose(band.mean, [2.0, 2.0, 2.0])
    np.testing.assert_allclose(band.low, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(band.high, [4.0, 3.0, 2.0])


def test_hyperparameters_become_arguments() -> None:
    arguments = constructor_arguments(
        {"policy": "MlpPolicy", "n_envs": 4, "n_timesteps": 1e6, "normalize": True, "env_kwargs": {}, "n_steps": 8}
        | {"clip_range": "lin_0.4", "learning_rate": 0.1, "policy_kwargs": "dict(activation_fn=nn.ReLU)"}
    )
    schedule_of_clipping = arguments.pop("clip_range")
    assert isinstance(schedule_of_clipping, LinearSchedule)
    assert schedule_of_clipping(0.25) == pytest.approx(0.1)
    assert arguments == {
        "policy": "MlpPolicy",
        "n_steps": 8,
        "learning_rate": 0.1,
        "policy_kwargs": {"activation_fn": th.nn.ReLU},
    }
    with pytest.raises(ValueError, match="frame_stack"):
        constructor_arguments({"policy": "MlpPolicy", "frame_stack": 4})


def test_evaluations_are_due_every_fiftieth_at_the_next_rollout_start(make_config: Callable[..., RunConfig]) -> None:
    progress: list[tuple[int, float | None]] = []
    result = run_one(make_config(), lambda *report: progress.append(report))
    # Rollouts of 96 steps; due at 128, 256, 384, 512; then the evaluation after the end of training
    np.testing.assert_array_equal(result.timesteps, [192, 288, 384, 576, 672])
    assert result.results.shape == result.lengths.shape == (5, 2)
    assert np.all(result.lengths == 200)
    assert [steps for steps, _ in progress] == [0, 96, 192, 288, 384, 480, 576]
    assert progress[1][1] is None and progress[2][1] == pytest.approx(result.results[0].mean())
    assert RunConfig("ppo", "Pendulum-v1", 1, 640, {}).n_evaluations == 50
    assert RunConfig("ppo", "Pendulum-v1", 1, 640, {}).n_eval_episodes == 10


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_evaluation_does_not_disturb_training(algo: str, make_config: Callable[..., RunConfig]) -> None:
    config = make_config(algo)
    run_one(config)
    plain = build_model(make_config(algo, out=config.out + "-plain")).learn(config.n_timesteps)
    stored = type(plain).load(config.folder / "Pendulum-v1.zip")
    for expected, found in zip(plain.policy.parameters(), stored.policy.parameters(), strict=True):
        assert th.equal(expected, found)


def test_start_states_of_evaluations(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[np.ndarray] = []

    def record(model: Any, env: Any, n_episodes: int, **kwargs: Any) -> tuple[list[float], list[int]]:
        env.reset()
        starts.append(env.get_attr("state"))
        return [0.0] * n_episodes, [1] * n_episodes

    monkeypatch.setattr(run_module, "evaluate_policy", record)
    found = {}
    for name, config in {"ppo": make_config("ppo"), "trpo": make_config("trpo"), "seed": make_config("ppo", seed=2)}.items():
        starts = []
        run_one(config)
        found[name] = np.array(starts)
    np.testing.assert_array_equal(found["ppo"], found["trpo"])
    assert len(np.unique(np.concatenate([found["ppo"], found["seed"]]).reshape(-1, 2), axis=0)) == 2 * 5 * 2


def test_evaluation_returns_are_raw_and_use_the_statistics_of_training(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    means = []
    original = run_module.evaluate_policy

    def record(model: Any, env: Any, *args: Any, **kwargs: Any) -> Any:
        assert not env.training and not env.norm_reward
        np.testing.assert_array_equal(env.obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)
        assert env is not model.get_vec_normalize_env() and env.gamma == 0.9
        means.append(env.obs_rms.mean)
        return original(model, env, *args, **kwargs)

    monkeypatch.setattr(run_module, "evaluate_policy", record)
    result = run_one(make_config("trpo"))
    assert not np.array_equal(means[0], means[-1])
    # An episode of Pendulum lasts 200 steps: its normalized return would be some tens
    assert np.all(result.results < -300)
    assert (result.config.folder / "Pendulum-v1" / "vecnormalize.pkl").is_file()


class SuccessEnv(gym.Wrapper):
    """Pendulum that succeeds in every second episode."""

    episode = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.episode += 1
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        *step, info = super().step(action)
        return *step, {**info, "is_success": self.episode % 2 == 0}


def test_successes_are_stored(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    make_vec_env = run_module.make_vec_env
    monkeypatch.setattr(
        run_module, "make_vec_env", lambda *args, **kwargs: make_vec_env(*args, **kwargs, wrapper_class=SuccessEnv)
    )
    config = make_config(n_timesteps=96, n_eval_episodes=3)
    run_one(config)
    with np.load(config.folder / "evaluations.npz") as stored:
        assert stored["successes"].shape == stored["results"].shape and not stored["successes"][0].any()


def test_folder_is_laid_out_as_in_rl_zoo(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(env_kwargs={"g": 9.0})
    result = run_one(config)
    folder = tmp_path / "ppo" / "Pendulum-v1_1"
    assert config.folder == folder
    for name in ("best_model.zip", "Pendulum-v1.zip"):
        assert PPO.load(folder / name).observation_space.shape == (3,)
    with np.load(folder / "evaluations.npz") as stored:
        assert sorted(stored) == ["ep_lengths", "results", "timesteps"]
    hyperparams = yaml.safe_load((folder / "Pendulum-v1" / "config.yml").read_text())
    assert hyperparams == {**HYPERPARAMS["ppo"], "n_timesteps": 640}
    arguments = yaml.safe_load((folder / "Pendulum-v1" / "args.yml").read_text())
    assert arguments["env"] == "Pendulum-v1" and arguments["seed"] == 1 and arguments["source"] == "test"
    assert arguments["env_kwargs"] == {"g": 9.0}
    assert {"python", "torch", "stable_baselines3"} <= set(arguments["versions"])
    assert arguments["wall_seconds"] == result.wall_seconds > 0
    assert make_config(label="small").folder == tmp_path / "small" / "ppo" / "Pendulum-v1_1"
    assert make_config(env_id="sb3_dpi/Task-v0").folder.name == "sb3_dpi-Task-v0_1"


def test_only_the_same_finished_run_is_reused(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(n_timesteps=96)
    assert load_result(config) is None
    result = run_one(config)
    loaded = load_result(config)
    assert loaded is not None and loaded.wall_seconds == result.wall_seconds
    np.testing.assert_array_equal(loaded.results, result.results)
    assert load_result(make_config(n_timesteps=96, source="other words")) is not None
    assert load_result(make_config(n_timesteps=97)) is None
    assert load_result(make_config(n_timesteps=96, hyperparams={**config.hyperparams, "n_epochs": 3})) is None
    assert load_result(make_config(n_timesteps=96, env_kwargs={"g": 9.0})) is None


def test_half_written_run_is_done_again(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[int] = []

    def in_this_process(config: RunConfig, display: schedule.Display) -> None:
        trained.append(config.seed)
        run_one(config)

    monkeypatch.setattr(schedule, "_run_in_process", in_this_process)
    configs = [make_config(n_timesteps=96, seed=seed) for seed in (1, 2)]
    console = Console(file=io.StringIO())
    run_all(configs, console=console)
    run_all(configs, console=console)
    assert trained == [1, 2]
    (configs[0].folder / "done.json").unlink()
    (configs[0].folder / "left_over").touch()
    results, failed = run_all(configs, console=console)
    assert trained == [1, 2, 1] and not failed and [result.config.seed for result in results] == [1, 2]
    assert not (configs[0].folder / "left_over").exists()
    run_all(configs, force=True, console=console)
    assert trained == [1, 2, 1, 1, 2]


def test_a_failed_run_names_its_log_and_stops_no_other(make_config: Callable[..., RunConfig]) -> None:
    bad = make_config(label="bad", hyperparams={**HYPERPARAMS["ppo"], "no_such_argument": 1}, n_timesteps=96)
    output = io.StringIO()
    results, failed = run_all([bad, make_config(n_timesteps=96)], jobs=2, console=Console(file=output))
    assert [result.config.name for result in results] == ["ppo"]
    assert len(failed) == 1
    assert "bad seed 1 failed: TypeError" in str(failed[0]) and "no_such_argument" in str(failed[0])
    log = bad.folder.with_name("Pendulum-v1_1.log")
    assert str(log) in str(failed[0]) and "Traceback" in log.read_text()
    assert "ppo seed 1: 0 of 96 steps" in output.getvalue() and "bad seed 1: failed" in output.getvalue()
    assert not results[0].config.folder.with_name("Pendulum-v1_1.log").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("0.3", 0.3), ("1e-3", 1e-3), ("true", True), ("{a: [1, 2]}", {"a": [1, 2]}), ("lin_0.1", "lin_0.1")]
)
def test_values_on_the_command_line(text: str, value: Any) -> None:
    assert command_line.parse_value(text) == value


def _configs(*arguments: str) -> list[RunConfig]:
    return command_line.make_configs(command_line.make_parser().parse_args(["--env", "Reacher-v5", *arguments]))


def test_command_line_makes_runs() -> None:
    configs = _configs(
        *("--algo", "trpo", "ppo", "small=ppo", "--steps", "ppo:3e3", "2000", "--seeds", "2", "--first-seed", "5"),
        *("--set", "small.learning_rate=1e-3", "small.policy_kwargs={net_arch: [32]}", "--env-kwargs", "xml_file=my.xml"),
    )
    assert [(config.name, config.algo, config.seed) for config in configs] == [
        *(("trpo", "trpo", 5), ("ppo", "ppo", 5), ("small", "ppo", 5)),
        *(("trpo", "trpo", 6), ("ppo", "ppo", 6), ("small", "ppo", 6)),
    ]
    assert [config.n_timesteps for config in configs[:3]] == [2000, 3000, 2000]
    assert configs[2].hyperparams["learning_rate"] == 1e-3 and configs[2].hyperparams["policy_kwargs"] == {"net_arch": [32]}
    assert configs[2].source == "RL Zoo, Reacher-v2, learning_rate=0.001, policy_kwargs={'net_arch': [32]}"
    assert configs[1].hyperparams["learning_rate"] != 1e-3 and configs[1].source == "RL Zoo, Reacher-v2"
    assert configs[0].env_kwargs == {"xml_file": "my.xml"}
    assert _configs("--algo", "ppo")[0].n_timesteps == 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "pppo"], "Unknown algorithm 'pppo'"),
        (["--algo", "ppo", "--steps", "trpo:100"], "'trpo' is not among ppo"),
        (["--algo", "ppo", "--set", "gamma=0.9"], "write LABEL.KEY=VALUE"),
        (["--algo", "my/ppo=ppo"], "a label has letters"),
    ],
)
def test_command_line_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--env", "Reacher-v5", *arguments])
    assert message in capsys.readouterr().err


def test_head_to_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--algo", "trpo", "ppo", "--env", "Pendulum-v1", "--steps", "256", "--seeds", "1", "--threshold", "-9999"]
    settings = ["--set", "ppo.n_steps=64", "trpo.n_steps=64", "ppo.n_envs=1", "trpo.n_envs=1", "ppo.batch_size=64"]
    command = [*arguments, *settings, "--out", str(out), "--jobs", "2"]
    assert command_line.main(command) == 0
    printed = capsys.readouterr().out
    for words in ("steps to -9999", "final return", "wall seconds", "64 (1/1)", "RL Zoo, Pendulum-v1", "0 of 256 steps"):
        assert words in printed
    done = {path: json.loads(path.read_text()) for path in out.glob("*/*/done.json")}
    assert len(done) == 2

    with (out / "evaluations.csv").open() as file:
        episodes = [row for row in csv.DictReader(file) if row["name"] == "ppo"]
    stored = np.load(out / "ppo" / "Pendulum-v1_1" / "evaluations.npz")
    np.testing.assert_allclose([float(row["return"]) for row in episodes], stored["results"].ravel())
    np.testing.assert_array_equal([int(row["timesteps"]) for row in episodes], np.repeat(stored["timesteps"], 10))
    with (out / "summary.csv").open() as file:
        summary = {row["name"]: row for row in csv.DictReader(file)}
    assert float(summary["ppo"]["steps_median"]) == 64 and summary["ppo"]["seeds_reached"] == "1"
    assert float(summary["trpo"]["final_mean"]) == pytest.approx(
        np.load(out / "trpo" / "Pendulum-v1_1" / "evaluations.npz")["results"][-1].mean()
    )
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    (out / "curves.png").unlink()
    assert command_line.main(command) == 0
    assert "ppo seed 1: done before" in capsys.readouterr().out
    assert {path: json.loads(path.read_text()) for path in out.glob("*/*/done.json")} == done
    assert (out / "curves.png").is_file()


@pytest.mark.parametrize("told", [True, False])
def test_successes_are_stored_where_the_environment_tells_them(make_config: Callable[..., RunConfig], told: bool) -> None:
    config = make_config()
    successes = np.array([[True, False]]) if told else None
    result = RunResult(config, np.array([64]), np.ones((1, 2)), np.full((1, 2), 200), 1.0, 1.0, 1.0, successes)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    write_csvs([result], None, Path(config.out))
    with (Path(config.out) / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row.get("success") for row in rows] == (["1", "0"] if told else [None, None])
