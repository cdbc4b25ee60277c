"""One training run under the protocol of every comparison.

An evaluation is due every 2 % of the budget and takes place at the next rollout start, so that no rollout is interrupted;
one more follows the end of training. Evaluations use the deterministic policy, raw returns, an environment of their own and
reset seeds of their own: number k of seed s starts from the same reset seeds for every algorithm.
"""

import json
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_dpi.compare.types import RunConfig, RunResult
from sb3_dpi.zoo import algorithm_class

EVAL_SEED_OFFSET = 1_000_000
EVAL_SEEDS_PER_RUN = 100_000
SCHEDULED_KEYS = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
UNSUPPORTED_KEYS = ("env_wrapper", "vec_env_wrapper", "frame_stack", "callback", "monitor_kwargs", "noise_type", "noise_std")
PACKAGES = ("stable_baselines3", "sb3_contrib", "gymnasium", "mujoco", "torch", "numpy", "numba")

Report = Callable[[int, float | None], None]
"""Called with the environment steps so far and the mean return of the last evaluation (None before the first)"""


def _evaluate_string(value: Any) -> Any:
    """Read ``"dict(activation_fn=nn.ReLU)"`` as RL Zoo does; what is not a string stays as it is."""
    if not isinstance(value, str):
        return value
    import torch as th
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    return eval(value, {"nn": th.nn, "th": th, "np": np, "RMSpropTFLike": RMSpropTFLike})


def constructor_arguments(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Turn hyperparameters in RL Zoo's format into arguments of the constructor.

    :param hyperparams: As in RL Zoo's YAML files
    :return: Without the keys for the environment, schedules (``lin_0.001``) and ``policy_kwargs`` as objects
    :raises ValueError: If a key asks for something that a comparison does not support
    """
    unsupported = sorted(set(UNSUPPORTED_KEYS) & set(hyperparams))
    if unsupported:
        raise ValueError(f"A comparison does not support the hyperparameters {', '.join(unsupported)}")
    skip = ("n_timesteps", "n_envs", "normalize", "env_kwargs")
    arguments = {key: value for key, value in hyperparams.items() if key not in skip}
    for key in SCHEDULED_KEYS:
        if isinstance(arguments.get(key), str):
            arguments[key] = LinearSchedule(float(arguments[key].removeprefix("lin_")), 0.0, 1.0)
    for key in ("policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs"):
        if key in arguments:
            arguments[key] = _evaluate_string(arguments[key])
    return arguments


def make_env(config: RunConfig, evaluation: bool = False) -> VecEnv:
    """
    Make the training or the evaluation environment of a run, normalized as the hyperparameters say.

    :param config: The run
    :param evaluation: Whether to make the one for evaluation: one environment per episode, statistics held, raw rewards
    :return: The environment
    """
    env = make_vec_env(
        config.env_id,
        n_envs=config.n_eval_episodes if evaluation else int(config.hyperparams.get("n_envs", 1)),
        seed=config.seed,
        monitor_dir=None if evaluation else str(config.folder),
        env_kwargs={**config.hyperparams.get("env_kwargs", {}), **config.env_kwargs},
    )
    normalize = _evaluate_string(config.hyperparams.get("normalize", False))
    if not normalize:
        return env
    kwargs = dict(normalize) if isinstance(normalize, dict) else {}
    if "gamma" in config.hyperparams:
        kwargs["gamma"] = config.hyperparams["gamma"]
    if evaluation:
        kwargs.update(training=False, norm_reward=False)
    return VecNormalize(env, **kwargs)


class EvaluationCallback(BaseCallback):
    """
    Evaluate by the protocol of the comparison, store the raw returns, keep the best model.

    :param config: The run
    :param report: Told the progress at every rollout start
    """

    def __init__(self, config: RunConfig, report: Report) -> None:
        super().__init__()
        self.config = config
        self.report = report
        self.timesteps: list[int] = []
        self.results: list[list[float]] = []
        self.lengths: list[list[int]] = []
        self.successes: list[list[bool]] = []
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._n_due = 0

    def _init_callback(self) -> None:
        # The training environment may have been wrapped further by the model (images): wrap this one the same way
        self.env = self.model._wrap_env(make_env(self.config, evaluation=True), monitor_wrapper=False)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        n_due = self.model.num_timesteps * self.config.n_evaluations // self.config.n_timesteps
        if n_due > self._n_due:
            self._n_due = n_due
            self.evaluate()
        self.report(self.model.num_timesteps, float(np.mean(self.results[-1])) if self.results else None)

    def _collect_success(self, locals_: dict[str, Any], _globals: dict[str, Any]) -> None:
        if locals_["done"] and "is_success" in locals_["info"]:
            self.successes[-1].append(bool(locals_["info"]["is_success"]))

    def evaluate(self) -> None:
        """Run one evaluation and write ``evaluations.npz`` (and ``best_model.zip``), on a clock of its own."""
        wall, cpu = time.perf_counter(), time.process_time()
        config = self.config
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.env)
        number = len(self.timesteps)
        self.env.seed(EVAL_SEED_OFFSET + EVAL_SEEDS_PER_RUN * config.seed + config.n_eval_episodes * number)
        self.successes.append([])
        returns, lengths = evaluate_policy(
            self.model, self.env, config.n_eval_episodes, return_episode_rewards=True, callback=self._collect_success
        )
        assert isinstance(returns, list) and isinstance(lengths, list)
        is_best = not self.results or np.mean(returns) > max(np.mean(result) for result in self.results)
        self.timesteps.append(self.model.num_timesteps)
        self.results.append(returns)
        self.lengths.append(lengths)
        arrays: dict[str, Any] = {"timesteps": self.timesteps, "results": self.results, "ep_lengths": self.lengths}
        if self.successes[-1]:
            arrays["successes"] = self.successes
        np.savez(config.folder / "evaluations.npz", **arrays)
        if is_best:
            self.model.save(config.folder / "best_model")
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


def build_model(config: RunConfig) -> BaseAlgorithm:
    """
    Make the environment and the untrained model of a run.

    :param config: The run
    :return: The model, with its environment
    """
    return algorithm_class(config.algo)(
        env=make_env(config), seed=config.seed, verbose=0, device=config.device, **constructor_arguments(config.hyperparams)
    )


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(config: RunConfig) -> str:
    """
    Identify what determines the result of a run: two runs with the same value are the same run.

    :param config: The run
    :return: A hash of the resolved configuration and of the version of this package
    """
    content = {**config.to_dict(), "version": (Path(__file__).parents[1] / "version.txt").read_text().strip()}
    for key in ("out", "source"):
        del content[key]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_settings(config: RunConfig, timing: dict[str, float]) -> None:
    folder = config.folder / config.env_name
    folder.mkdir(exist_ok=True)
    hyperparams = {**config.hyperparams, "n_timesteps": config.n_timesteps}
    (folder / "config.yml").write_text(yaml.safe_dump(hyperparams), encoding="utf-8")
    # RL Zoo's enjoy reads env_kwargs from here, and takes them for all there are
    env_kwargs = {**config.hyperparams.get("env_kwargs", {}), **config.env_kwargs}
    arguments = {**config.to_dict(), "env": config.env_id, "env_kwargs": env_kwargs or None, "versions": _versions(), **timing}
    for key in ("env_id", "hyperparams"):
        del arguments[key]
    (folder / "args.yml").write_text(yaml.safe_dump(arguments), encoding="utf-8")


def load_result(config: RunConfig) -> RunResult | None:
    """
    Read a finished run.

    :param config: The run
    :return: Its result, or None if its folder does not hold this very run, finished
    """
    marker = config.folder / "done.json"
    if not marker.is_file():
        return None
    done = json.loads(marker.read_text(encoding="utf-8"))
    if done.pop("fingerprint") != fingerprint(config):
        return None
    with np.load(config.folder / "evaluations.npz") as stored:
        successes = stored["successes"] if "successes" in stored else None
        return RunResult(config, stored["timesteps"], stored["results"], stored["ep_lengths"], **done, successes=successes)


def run_one(config: RunConfig, report: Report = lambda timesteps, mean_return: None) -> RunResult:
    """
    Train and evaluate once, and write the run into its folder; what the folder held before is deleted.

    :param config: The run
    :param report: Called at every rollout start with the steps so far and the mean return of the last evaluation
    :return: The evaluations and the seconds used, training apart from evaluation
    """
    shutil.rmtree(config.folder, ignore_errors=True)
    config.folder.mkdir(parents=True)
    _write_settings(config, {})
    model = build_model(config)
    model.set_logger(configure(str(config.folder), ["csv"]))
    callback = EvaluationCallback(config, report)
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(config.n_timesteps, callback=callback)
    timing = {
        "wall_seconds": time.perf_counter() - wall - callback.seconds,
        "cpu_seconds": time.process_time() - cpu - callback.cpu_seconds,
    }
    callback.evaluate()
    timing["evaluation_seconds"] = callback.seconds
    model.save(config.folder / config.env_name)
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        normalization.save(str(config.folder / config.env_name / "vecnormalize.pkl"))
    _write_settings(config, timing)
    callback.env.close()
    assert model.env is not None
    model.env.close()
    # The marker comes last and in one piece: a folder without it is an unfinished run
    marker = config.folder / "done.json"
    unfinished = marker.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"fingerprint": fingerprint(config), **timing}), encoding="utf-8")
    unfinished.replace(marker)
    result = load_result(config)
    assert result is not None
    return result
