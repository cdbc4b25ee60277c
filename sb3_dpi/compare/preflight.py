"""What can be known before the first run: that there is the device, that every algorithm runs on its task, that all fits.

A comparison takes hours or days. Nobody shall learn on the next morning what a minute would have shown.
"""

import inspect
import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.compare.build import build_model, environment_arguments
from sb3_dpi.compare.checks import SuiteError
from sb3_dpi.compare.engines import converse
from sb3_dpi.compare.processes import Workers
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo.cause import in_one_line, place_in_users_code
from sb3_dpi.zoo.environments import tell_cut, time_limit

PATIENCE = 60.0
"""Seconds of a check before a word that it goes on: an environment that waits for ever looks like a lab that does"""
GROWTH = 3
"""By how much a model's file grows in training: two moments of each parameter"""
FILES_PER_RUN = 2
"""The last model and the best one"""
BYTES_BESIDE = 2_000_000
"""Of a run without its models: evaluations, episodes, log"""


def check_device(device: str, here: bool) -> None:
    """See that PyTorch knows a device and, if runs are executed on this machine, has it."""
    try:
        kind = th.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if here and kind == "cuda" and not th.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch finds no such device on this machine")


def check_runs(configs: Sequence[RunConfig], out: Path, workers: Workers | None = None) -> list[str]:
    """
    Build every algorithm on every task once, as a run does and in a process like a run's, and take one step.

    :param configs: The runs that are to be executed, of any number of seeds
    :param workers: What starts that process
    :return: What a user should know, in words
    :raises SuiteError: If an environment fails, a model cannot be built, or its runs do not fit on the disk; the message has
        a line for each
    """
    firsts = {(config.name, config.task_name): config for config in configs}
    sizes = dict(zip(firsts, _answers(list(firsts.values()), workers), strict=True))
    # In order, that of an environment once for all algorithms
    if problems := dict.fromkeys(answer for answer in sizes.values() if isinstance(answer, str)):
        raise SuiteError("\n".join(problems))
    bytes_of_models = sum(int(sizes[config.name, config.task_name]) for config in configs)
    check_space(out, BYTES_BESIDE * len(configs) + FILES_PER_RUN * GROWTH * bytes_of_models)
    endless = dict.fromkeys(
        config.task_name for config in configs if time_limit(config.env_id, environment_arguments(config)) is None
    )
    return [tell_cut(name, "--env-kwargs max_episode_steps=STEPS (env_kwargs in a suite)") for name in endless]


def _answers(configs: Sequence[RunConfig], workers: Workers | None) -> list[int | str]:
    """Let workers check runs: what ends a process, or hangs, is the user's code and no end of the lab."""
    found: list[int | str] = []

    def warn() -> None:
        print(f"{configs[len(found)]}: not built, reset and stepped within {PATIENCE:.0f} s; waiting on", file=sys.stderr)

    with TemporaryDirectory(prefix="sb3_dpi-") as folder:
        while len(found) < len(configs):
            log, left = Path(folder, f"{len(found)}.log"), configs[len(found) :]
            timer = Timer(PATIENCE, warn)
            timer.start()
            try:
                order = {"check": [config.to_dict() for config in left]}
                cause = converse(order, log, workers or Workers(), found.append)
            finally:
                timer.cancel()
            if len(found) < len(configs):
                found.append(f"{configs[len(found)].name} on {configs[len(found)].task_name}: {cause}")
    return found


def check_run(config: RunConfig) -> int | str:
    """Build a model and take one step; returns the size of its file, in bytes, or what is wrong."""
    try:
        # Nothing but the device may differ from the run: that of a cluster need not be here
        model = build_model(replace(config, device="cpu"))
        file = io.BytesIO()
        model.save(file)
        assert model.env is not None
        try:
            check_step(model.env, config.task_name)
        finally:
            model.env.close()
    except SuiteError as error:
        return str(error)
    except BaseException as error:
        return f"{config.name} on {config.task_name}: {in_one_line(error)} (hyperparameters of {config.source})"
    return file.getbuffer().nbytes


def check_step(env: VecEnv, name: str) -> None:
    """
    Reset an environment and take one random step, so that what fails there does not fail in every run.

    :param name: Of the task
    :raises SuiteError: If one of them fails; the message names the place in the user's code
    """
    method = "reset"
    try:
        env.reset()
        method = "step"
        env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
    except BaseException as error:
        if place_in_users_code(error):
            raise SuiteError(f"{name}: {in_one_line(error)}") from error
        single = env.get_attr("unwrapped")[0]
        code = getattr(inspect.unwrap(getattr(type(single), method)), "__code__", None)
        place = f" ({Path(code.co_filename).name}:{code.co_firstlineno} in {method})" if code else ""
        raise SuiteError(f"{name}: {_fault(single, method) or in_one_line(error)}{place}") from error


def _fault(single: Any, method: str) -> str:
    """Say what is wrong with what ``reset`` or ``step`` of an environment returns; empty where that cannot be told."""
    found = single.reset() if method == "reset" else single.step(single.action_space.sample())
    wanted = {"reset": "observation, info", "step": "observation, reward, terminated, truncated, info"}[method]
    if not isinstance(found, tuple) or len(found) != wanted.count(",") + 1:
        number = f"{len(found)} values" if isinstance(found, tuple) else "one value"
        return f"{method} returns {number}, and Gymnasium wants {wanted}"
    space, shape = single.observation_space, np.shape(found[0])
    if isinstance(space, spaces.Box) and shape != space.shape:
        return f"{method} returns an observation of shape {shape}, and observation_space has {space.shape}"
    return ""


def check_space(out: Path, n_bytes: int) -> None:
    """See that there is room in a folder, or in one that will be made."""
    free = shutil.disk_usage(next(folder for folder in (out, *out.parents) if folder.exists())).free
    if free < n_bytes:
        raise SuiteError(
            f"--out {out}: {free / 1e6:,.0f} MB are free, about {n_bytes / 1e6:,.0f} MB are needed; choose another"
        )
