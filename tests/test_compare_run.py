"""The protocol of one run, what it leaves in its folder, and the process that it runs in."""

import json
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import filelock
import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from dummy_envs import POINT_MASS_ID, PointMass
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.compare import RunConfig, build_model, evaluation, run_one, worker
from sb3_dpi.compare.evaluation import EVAL_SEED_OFFSET, EVAL_SEEDS_PER_RUN, Episodes
from sb3_dpi.compare.key import run_key, run_versions
from sb3_dpi.compare.record import read_record, read_result
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import find_runs
from sb3_dpi.compare.types import RunResult
from sb3_dpi.zoo import algorithm_class

NET = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [8]}}
ROLLOUT = {**NET, "n_steps": 96, "batch_size": 96, "learning_rate": 0.01}
REPLAY = {**NET, "learning_starts": 20, "batch_size": 16, "buffer_size": 1000}
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {**ROLLOUT, "n_epochs": 2, "learning_rate": "lin_0.01"},
    "a2c": {**NET, "n_steps": 8},
    "trpo": {**ROLLOUT, "normalize": {"norm_obs": True, "norm_reward": True}, "gamma": 0.9},
    "ppo_lstm": {
        **ROLLOUT,
        "policy": "MlpLstmPolicy",
        "policy_kwargs": {"net_arch": [4], "lstm_hidden_size": 4},
        "n_epochs": 1,
    },
    "sac": {**REPLAY, "train_freq": 4, "normalize": True},
    "td3": {**REPLAY, "train_freq": 4, "noise_type": "normal", "noise_std": 0.1},
    "crossq": {**REPLAY, "train_freq": 4},
    "dqn": {**REPLAY, "target_update_interval": 20, "exploration_fraction": 0.5},
    "mdgps": {
        **{**NET, "horizon": 10, "n_conditions": 2, "samples_per_condition": 2, "replay": 0, "imitation_steps": 5},
        "normalize": {"norm_obs": True, "norm_reward": False},
    },
}


def make_config(algo: str = "ppo", hyperparams: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    settings = {"env_id": POINT_MASS_ID, "seed": 1, "n_timesteps": 640, "eval_every": 128, "n_eval_episodes": 2, **changes}
    return RunConfig(algo, hyperparams={**SMALL[algo], **(hyperparams or {})}, source="test", **settings)


def run(config: RunConfig, folder: Path, **kwargs: Any) -> RunResult:
    run_one(config, folder, **kwargs)
    return read_result(read_record(folder))


# ---------------------------------------------------------------------- when it is evaluated


def test_an_evaluation_waits_for_the_next_rollout(tmp_path: Path) -> None:
    progress: list[tuple[int, float | None]] = []
    result = run(make_config(), tmp_path / "run", report=lambda *report: progress.append(report))
    # Rollouts of 96 steps, due at 128, 256, 384 and 512, then the one after the end of training
    np.testing.assert_array_equal(result.curve.timesteps, [192, 288, 384, 576, 672])
    assert result.curve.results.shape == result.curve.lengths.shape == (5, 2)
    assert np.all(result.curve.lengths == 12)
    assert [steps for steps, _ in progress] == [0, 96, 192, 288, 384, 480, 576]
    assert progress[1][1] is None and progress[2][1] == pytest.approx(result.curve.means[0])
    assert progress[-1][1] == pytest.approx(result.curve.means[3])


def test_points_that_a_rollout_jumps_over_are_one_evaluation(tmp_path: Path) -> None:
    curve = run(make_config(eval_every=20), tmp_path / "run").curve
    np.testing.assert_array_equal(curve.timesteps, 96 * np.arange(1, 8))
    # Without any point on the way, the end remains
    np.testing.assert_array_equal(run(make_config(eval_every=640), tmp_path / "run").curve.timesteps, [672])


@pytest.mark.parametrize("algo", ["trpo", "sac"])
def test_evaluations_do_not_depend_on_the_budget(algo: str, tmp_path: Path) -> None:
    short, long = (run(make_config(algo, n_timesteps=n, eval_every=40), tmp_path / str(n)).curve for n in (200, 400))
    n_common = len(short.timesteps) - 1
    assert 2 <= n_common < len(long.timesteps) - 1
    np.testing.assert_array_equal(short.timesteps[:n_common], long.timesteps[:n_common])
    np.testing.assert_array_equal(short.results[:n_common], long.results[:n_common])


def test_defaults_of_the_protocol() -> None:
    config = RunConfig("ppo", "Pendulum-v1", 1, 640, {})
    assert (config.eval_every, config.n_eval_episodes, config.device) == (250, 10, "cpu")


# ---------------------------------------------------------------------- what an evaluation must not do, and must do


@pytest.mark.parametrize(
    ("algo", "hyperparams"),
    [
        *((algo, {}) for algo in ("ppo", "a2c", "trpo", "ppo_lstm", "sac", "td3", "crossq", "dqn", "mdgps")),
        ("ppo", {"use_sde": True, "sde_sample_freq": 4, "n_envs": 2, "n_steps": 48}),
        ("sac", {"use_sde": True}),
        ("sac", {"train_freq": [1, "episode"]}),
        ("trpo", {"frame_stack": 2}),
    ],
    ids=str,
)
def test_evaluations_do_not_disturb_training(algo: str, hyperparams: dict[str, Any], tmp_path: Path) -> None:
    changes = {"env_id": "CartPole-v1"} if algo == "dqn" else {}
    hyperparams = {key: tuple(value) if isinstance(value, list) else value for key, value in hyperparams.items()}
    config = make_config(algo, hyperparams, n_timesteps=200, eval_every=30, **changes)
    folder = tmp_path / "run"
    assert len(run(config, folder).curve.timesteps) > 2
    plain = build_model(config).learn(config.n_timesteps)
    stored = algorithm_class(algo).load(folder / f"{config.env_name}.zip")
    expected, found = plain.policy.state_dict(), stored.policy.state_dict()
    assert set(expected) == set(found) and stored.num_timesteps == plain.num_timesteps
    for name in expected:
        assert th.equal(expected[name], found[name]), name
    normalization = plain.get_vec_normalize_env()
    assert (folder / config.env_name / "vecnormalize.pkl").is_file() == (normalization is not None)
    if normalization is not None:
        kept = VecNormalize.load(str(folder / config.env_name / "vecnormalize.pkl"), normalization.venv)
        np.testing.assert_array_equal(kept.obs_rms.mean, normalization.obs_rms.mean)
        np.testing.assert_array_equal(kept.ret_rms.var, normalization.ret_rms.var)


class Watched(PointMass):
    """Notes all reset seeds, those of evaluations apart."""

    evaluating = False
    seeds_of: dict[bool, list[int]] = {}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seeds_of.setdefault(Watched.evaluating, []).append(seed)
        return super().reset(seed=seed, options=options)


@pytest.fixture
def watched() -> Iterator[str]:
    """Id of an environment that notes its reset seeds."""
    gym.register("Watched-v0", entry_point=Watched, max_episode_steps=12)
    Watched.seeds_of = {}
    yield "Watched-v0"
    gym.registry.pop("Watched-v0")


def test_start_states_of_evaluations(tmp_path: Path, watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of point k of seed s are the same for every algorithm, and nobody else's."""
    original, starts = evaluation.run_episodes, {}

    def note(model: Any, env: Any, seed: int, longest: int) -> Episodes:
        Watched.evaluating = True
        env.seed(seed)
        env.reset()
        starts[model.num_timesteps] = np.array(env.get_attr("state"))
        episodes = original(model, env, seed, longest)
        Watched.evaluating = False
        return episodes

    monkeypatch.setattr(evaluation, "run_episodes", note)
    found, seeds = {}, {}
    runs = {
        **{algo: (algo, {}, 1) for algo in ("ppo", "trpo", "a2c", "sac", "mdgps")},
        "wide": ("ppo", {"n_envs": 4, "n_steps": 48}, 1),
        "second": ("ppo", {}, 2),
        "second mdgps": ("mdgps", {}, 2),
        "tenth": ("ppo", {}, 10),
    }
    for name, (algo, hyperparams, seed) in runs.items():
        starts, Watched.seeds_of = {}, {}
        run_one(make_config(algo, hyperparams, seed=seed, env_id=watched, n_timesteps=480, eval_every=96), tmp_path / "run")
        found[name] = starts
        seeds[name] = {evaluating: set(noted) for evaluating, noted in Watched.seeds_of.items()}
    points = [96, 192, 288, 384, 480]
    for name in ("trpo", "a2c", "sac"):
        assert list(found[name]) == points
        for point in points:
            np.testing.assert_array_equal(found[name][point], found["ppo"][point])
    # One that comes by less often sees those of the last point before; after the end everyone sees the same
    assert list(found["wide"]) == [192, 384, 576]
    for steps, point in ((192, 192), (384, 384), (576, 480)):
        np.testing.assert_array_equal(found["wide"][steps], found["ppo"][point])
    every = np.concatenate([np.concatenate(list(found[name].values())) for name in ("ppo", "second", "tenth")])
    assert len(np.unique(every, axis=0)) == len(every) == 3 * 5 * 2
    # Rollouts of 40 steps: points 96, 192, 288 and 384 at 120, 200, 320 and 400
    assert list(found["mdgps"]) == [120, 200, 320, 400, 480]
    np.testing.assert_array_equal(found["mdgps"][120], found["ppo"][96])
    for name, noted in seeds.items():
        assert len(noted[False]) >= 1 and not noted[True] & noted[False], name
    by_seed = {1: seeds["ppo"][True] | seeds["mdgps"][True], 2: seeds["second"][True], 10: seeds["tenth"][True]}
    assert not by_seed[1] & by_seed[2] and not by_seed[1] & by_seed[10]


@pytest.mark.parametrize("algo", ["trpo", "sac", "mdgps"])
def test_returns_are_raw_and_of_the_deterministic_policy(algo: str, tmp_path: Path) -> None:
    config = make_config(algo, env_kwargs={"low": -2.0, "death": (3, 16)}, n_timesteps=100, eval_every=40, n_eval_episodes=3)
    curve = run(config, tmp_path / "run").curve
    # What anyone gets from the stored files
    model = algorithm_class(algo).load(tmp_path / "run" / f"{config.env_name}.zip")
    env = make_vec_env(POINT_MASS_ID, 3, env_kwargs=config.env_kwargs)
    env = VecNormalize.load(str(tmp_path / "run" / config.env_name / "vecnormalize.pkl"), env)
    env.training = env.norm_reward = False
    env.seed(EVAL_SEED_OFFSET + EVAL_SEEDS_PER_RUN + 3 * len(range(40, 100, 40)) + 3)
    returns, lengths = evaluate_policy(model, env, 3, return_episode_rewards=True)
    np.testing.assert_array_equal(curve.results[-1], returns)
    np.testing.assert_array_equal(curve.lengths[-1], lengths)
    assert np.all(curve.results < 0)


def test_statistics_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, means = evaluation.run_episodes, []

    def note(model: Any, env: Any, seed: int, longest: int) -> Episodes:
        training = model.get_vec_normalize_env()
        assert env is not training and not env.training and not env.norm_reward and env.num_envs == 2
        assert training.training and training.norm_reward
        np.testing.assert_array_equal(env.obs_rms.mean, training.obs_rms.mean)
        np.testing.assert_array_equal(env.obs_rms.var, training.obs_rms.var)
        before = env.obs_rms.count, training.obs_rms.count
        episodes = original(model, env, seed, longest)
        assert before == (env.obs_rms.count, training.obs_rms.count)
        means.append(env.obs_rms.mean.copy())
        return episodes

    monkeypatch.setattr(evaluation, "run_episodes", note)
    run_one(make_config("trpo"), tmp_path / "run")
    assert len(means) == 5 and not np.array_equal(means[0], means[-1])


class Succeeds(PointMass):
    """Tells success: always, or only where there is one."""

    def __init__(self, always: bool = True) -> None:
        super().__init__()
        self.always = always

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        success = bool(self.state[0] > 0)
        return observation, reward, terminated, truncated, {"is_success": success} if success or self.always else {}


@pytest.mark.parametrize("always", [True, False])
def test_successes_are_stored_where_every_episode_tells(always: bool, tmp_path: Path) -> None:
    gym.register("Succeeds-v0", entry_point=Succeeds, max_episode_steps=12)
    try:
        config = make_config(env_id="Succeeds-v0", n_eval_episodes=6, n_timesteps=200, env_kwargs={"always": always})
        successes = run(config, tmp_path / "run").curve.successes
    finally:
        gym.registry.pop("Succeeds-v0")
    with np.load(tmp_path / "run" / "evaluations.npz") as stored:
        assert ("successes" in stored) == always
    if always:
        assert successes is not None and successes.shape == (2, 6) and successes.dtype == bool
        assert 0 < successes.sum() < successes.size
    else:
        assert successes is None


def test_the_best_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = iter([1.0, 3.0, 2.0, 3.0, 0.0])
    monkeypatch.setattr(evaluation, "run_episodes", lambda *_: Episodes([next(returns)] * 2, [12, 12]))
    curve = run(make_config(), tmp_path / "run").curve
    np.testing.assert_array_equal(curve.means, [1.0, 3.0, 2.0, 3.0, 0.0])
    assert PPO.load(tmp_path / "run" / "best_model.zip").num_timesteps == 288
    assert PPO.load(tmp_path / "run" / "sb3_dpi_tests-PointMass-v0.zip").num_timesteps == 672


def test_seconds_of_training_and_of_evaluation_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = evaluation.run_episodes

    def slowly(*args: Any) -> Episodes:
        time.sleep(0.3)
        start = time.process_time()
        while time.process_time() - start < 0.2:
            pass
        return original(*args)

    monkeypatch.setattr(evaluation, "run_episodes", slowly)
    start = time.perf_counter()
    result = run(make_config(n_timesteps=200), tmp_path / "run")
    elapsed, timing, curve = time.perf_counter() - start, result.timing, result.curve
    assert len(curve.timesteps) == 2
    assert timing.evaluation_seconds > 1.0 and 0.4 < timing.evaluation_cpu_seconds < timing.evaluation_seconds - 0.5
    assert timing.wall_seconds > 0 and timing.cpu_seconds > 0
    assert timing.wall_seconds + timing.evaluation_seconds < elapsed
    assert curve.wall_seconds is not None and np.all(np.diff(curve.wall_seconds) > 0) and curve.wall_seconds[0] > 0
    assert curve.wall_seconds[-1] == pytest.approx(timing.wall_seconds, abs=0.25)


# ---------------------------------------------------------------------- the folder


def test_folder_is_laid_out_as_in_rl_zoo(tmp_path: Path) -> None:
    config = make_config(
        env_id="Pendulum-v1", env_kwargs={"g": 9.0}, hyperparams={"normalize": True, "env_kwargs": {"g": 8.0}}
    )
    folder = tmp_path / config.path
    (folder / "Pendulum-v1").mkdir(parents=True)
    (folder / "left_over").touch()
    result = run(config, folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("0.monitor.csv", "Pendulum-v1.zip", "best_model.zip", "evaluations.npz", "progress.csv", "run.json"),
        *("Pendulum-v1/args.yml", "Pendulum-v1/config.yml", "Pendulum-v1/vecnormalize.pkl"),
    }
    for name in ("best_model.zip", "Pendulum-v1.zip"):
        assert PPO.load(folder / name).observation_space.shape == (3,)
    with np.load(folder / "evaluations.npz") as stored:
        assert sorted(stored) == ["ep_lengths", "results", "timesteps", "wall_seconds"]
        assert np.issubdtype(stored["timesteps"].dtype, np.integer) and stored["results"].dtype == np.float64
    hyperparams = yaml.safe_load((folder / "Pendulum-v1" / "config.yml").read_text())
    assert hyperparams == {**config.hyperparams, "n_timesteps": 640}
    arguments = yaml.safe_load((folder / "Pendulum-v1" / "args.yml").read_text())
    expected = {"algo": "ppo", "env": "Pendulum-v1", "seed": 1, "n_timesteps": 640, "source": "test", "device": "cpu"}
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["env_kwargs"] == {"g": 9.0} and (arguments["eval_every"], arguments["n_eval_episodes"]) == (128, 2)
    assert arguments["versions"] == run_versions("ppo") and "torch" in arguments["provenance"]["packages"]
    assert arguments["wall_seconds"] == result.timing.wall_seconds > 0
    assert arguments["evaluation_cpu_seconds"] == result.timing.evaluation_cpu_seconds
    assert len(load_results(str(folder))) == 672 // 200
    assert np.genfromtxt(folder / "progress.csv", delimiter=",", names=True)["timetotal_timesteps"][-1] == 672
    record = read_record(folder)
    assert record.config == config and record.key == run_key(config) and record.versions == run_versions("ppo")


def test_rl_zoo_enjoys_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rl_zoo3")
    config = make_config("trpo", env_id="Pendulum-v1", env_kwargs={"g": 9.0}, n_timesteps=96)
    run_one(config, tmp_path / config.path)
    command = ["rl_zoo3.enjoy", "--algo", "trpo", "--env", "Pendulum-v1", "-f", str(tmp_path), "--exp-id", "0", "-n", "250"]
    monkeypatch.setattr(sys, "argv", [*command, "--no-render", "--device", "cpu", "--load-best"])
    runpy.run_module("rl_zoo3.enjoy", run_name="__main__")
    printed = capsys.readouterr().out
    assert "Episode Reward" in printed and f"{config.path}/best_model.zip" in printed


@pytest.mark.parametrize("given", ["dict(low=-2.0)", {"low": -2.0}, None], ids=str)
def test_arguments_of_the_environment_among_the_hyperparameters(given: Any, tmp_path: Path) -> None:
    config = make_config(hyperparams={"env_kwargs": given}, env_kwargs={"high": 3.0}, n_timesteps=50)
    run_one(config, tmp_path / "run")
    space = PPO.load(tmp_path / "run" / f"{config.env_name}.zip").action_space
    assert (space.low, space.high) == (-1.0 if given is None else -2.0, 3.0)
    arguments = yaml.safe_load((tmp_path / "run" / config.env_name / "args.yml").read_text())
    assert arguments["env_kwargs"] == ({} if given is None else {"low": -2.0}) | {"high": 3.0}


def test_ids_with_dots(tmp_path: Path) -> None:
    gym.register("Point.Mass-v0", entry_point=PointMass, max_episode_steps=12)
    try:
        config = make_config(env_id="Point.Mass-v0", n_timesteps=50)
        run_one(config, tmp_path / "run")
    finally:
        gym.registry.pop("Point.Mass-v0")
    assert PPO.load(tmp_path / "run" / "Point.Mass-v0.zip").num_timesteps == 96


@pytest.mark.parametrize("algo", ["ppo", "a2c", "sac", "td3", "mdgps"])
def test_a_finished_run_is_the_one_that_was_planned(algo: str, tmp_path: Path) -> None:
    config, store = make_config(algo, n_timesteps=40), Store(tmp_path)
    planned = run_key(config)
    run_one(config, store.unfinished(config))
    store.commit(config)
    assert read_record(store.folder(config)).key == planned
    again = Store(tmp_path).load(make_config(algo, n_timesteps=40))
    assert again is not None and not again.imported


def test_a_run_that_fails_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        run_one(make_config(hyperparams={"no_such_argument": 1}), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    for algo in ("ppo", "mdgps"):
        curves = [run(make_config(algo, n_timesteps=200), tmp_path / str(i)).curve for i in range(2)]
        np.testing.assert_array_equal(curves[0].timesteps, curves[1].timesteps)
        np.testing.assert_array_equal(curves[0].results, curves[1].results)
        other = run(make_config(algo, n_timesteps=200, seed=2), tmp_path / "other").curve
        assert not np.array_equal(curves[0].results, other.results)


# ---------------------------------------------------------------------- the process

WorkerIO = tuple[TextIO, Callable[[], tuple[str, str]]]


@pytest.fixture
def worker_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerIO]:
    """The channel of a run's process; and what reads what it tells there and logs."""
    with (tmp_path / "stdout").open("w", 1) as stdout, (tmp_path / "stderr").open("w", 1) as stderr:
        monkeypatch.setattr(worker, "sys", SimpleNamespace(stdout=stdout, stderr=stderr))
        yield stdout, lambda: ((tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text())


def test_the_process_of_a_run(tmp_path: Path, worker_io: WorkerIO) -> None:
    config, store = make_config(n_timesteps=192, eval_every=96), Store(tmp_path / "out")
    channel, read = worker_io
    worker._run(config, store, run_key(config), channel)
    printed, log = read()
    progress = [json.loads(line) for line in printed.splitlines()]
    assert progress[0] == [0, None] and all(len(report) == 2 for report in progress)
    assert "ppo on sb3_dpi_tests/PointMass-v0, seed 1, hyperparameters of test" in log
    assert "96 steps: return -" in log and log.count("finished") == 1
    result = Store(tmp_path / "out").load(config)
    assert result is not None
    np.testing.assert_array_equal(result.curve.results, run(config, tmp_path / "here").curve.results)
    # Another comparison was faster: nothing is done
    worker._run(config, Store(tmp_path / "out"), run_key(config), channel)
    again = Store(tmp_path / "out").load(config)
    assert again is not None and again.timing == result.timing and read()[1].count("finished") == 1


def test_a_process_of_other_versions_does_not_run(tmp_path: Path, worker_io: WorkerIO) -> None:
    store = Store(tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"other versions.*Install the same versions"):
        worker._run(make_config(), store, "another key", worker_io[0])
    assert not store.unfinished(make_config()).exists() and store.load(make_config()) is None


def test_a_second_process_waits_for_the_first(tmp_path: Path, worker_io: WorkerIO) -> None:
    config, store = make_config(n_timesteps=50), Store(tmp_path / "out")
    unfinished = store.unfinished(config)
    unfinished.parent.mkdir(parents=True)
    channel, read = worker_io
    arguments = (config, Store(tmp_path / "out"), run_key(config), channel)
    second = threading.Thread(target=worker._run, args=arguments, daemon=True)
    worker.sys.stderr.write("of the first\n")
    with filelock.FileLock(unfinished.with_name(f"{unfinished.name}.lock")):
        second.start()
        time.sleep(0.5)
        assert second.is_alive() and not unfinished.exists()
        run_one(config, unfinished)
        store.commit(config)
    second.join(30)
    assert not second.is_alive() and read() == ("", "of the first\n")
    assert list(find_runs(tmp_path)) == [store.folder(config)] and not (tmp_path / "out" / "set_aside").exists()


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    config, store = make_config(env_id="Pendulum-v1", n_timesteps=10_000_000, eval_every=10_000_000), Store(tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "sb3_dpi.compare.worker"], text=True, **pipes)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"config": config.to_dict(), "out": str(tmp_path), "key": run_key(config)}) + "\n")
    process.stdin.flush()
    deadline = time.perf_counter() + 200  # of a machine that does much else
    while not store.unfinished(config).exists():
        assert process.poll() is None and time.perf_counter() < deadline
        time.sleep(0.05)
    process.stdin.close()
    assert process.wait(20) == 3
    assert Store(tmp_path).load(config) is None and not store.folder(config).exists()
