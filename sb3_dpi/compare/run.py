"""One training run, written into a folder in RL Zoo's layout."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from sb3_dpi.compare.build import build_model, environment_arguments
from sb3_dpi.compare.evaluation import EvaluationCallback, Report
from sb3_dpi.compare.key import provenance, run_versions
from sb3_dpi.compare.record import RECORD, make_record
from sb3_dpi.compare.types import RunConfig, Timing


def _write_settings(config: RunConfig, folder: Path, timing: Timing | None) -> None:
    inner = folder / config.env_name
    inner.mkdir(exist_ok=True)
    hyperparams = {**config.hyperparams, "n_timesteps": config.n_timesteps}
    (inner / "config.yml").write_text(yaml.safe_dump(hyperparams), encoding="utf-8")
    # RL Zoo's enjoy reads env_kwargs from here, and takes them for all there are
    env_kwargs = environment_arguments(config)
    arguments: dict[str, Any] = {**config.to_dict(), "env": config.env_id, "env_kwargs": env_kwargs or None}
    for key in ("env_id", "hyperparams"):
        del arguments[key]
    arguments.update(versions=run_versions(config.algo), provenance=provenance(), **(asdict(timing) if timing else {}))
    (inner / "args.yml").write_text(yaml.safe_dump(arguments), encoding="utf-8")


def _save(model: BaseAlgorithm, config: RunConfig, folder: Path) -> None:
    # With its suffix: save() would take that of an id with a dot in it for one
    model.save(folder / f"{config.env_name}.zip")
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        normalization.save(str(folder / config.env_name / "vecnormalize.pkl"))


def run_one(config: RunConfig, folder: Path, report: Report = lambda timesteps, mean_return: None) -> None:
    """
    Train and evaluate once, and write the run into a folder; what the folder held before is deleted.

    :param config: The run
    :param folder: Where to write; complete once it holds the record, which comes last
    :param report: Called at every rollout start with the steps so far and the mean return of the last evaluation
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_settings(config, folder, None)
    model = build_model(config, monitor_dir=str(folder))
    model.set_logger(configure(str(folder), ["csv"]))
    callback = EvaluationCallback(config, folder, report)
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(config.n_timesteps, callback=callback)
    wall, cpu = time.perf_counter() - wall - callback.seconds, time.process_time() - cpu - callback.cpu_seconds
    callback.evaluate()
    timing = Timing(wall, cpu, callback.seconds, callback.cpu_seconds)
    _save(model, config, folder)
    _write_settings(config, folder, timing)
    callback.env.close()
    assert model.env is not None
    model.env.close()
    record = make_record(config, timing, folder)
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
