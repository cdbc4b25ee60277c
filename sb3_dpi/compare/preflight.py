"""What can be known before the first run: that there is the device, that every algorithm runs on its task, that all fits.

A comparison takes hours or days. Nobody shall learn on the next morning what a minute would have shown.
"""

import inspect
import io
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.compare.build import build_model, environment_arguments
from sb3_dpi.compare.checks import SuiteError
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo.cause import in_one_line, place_in_users_code
from sb3_dpi.zoo.environments import tell_cut, time_limit

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


def check_runs(configs: Sequence[RunConfig], out: Path) -> list[str]:
    """
    Build every algorithm on every task once, as a run does, and take one step.

    :param configs: The runs that are to be executed, of any number of seeds
    :return: What a user should know, in words
    :raises SuiteError: If an environment fails, a model cannot be built, or its runs do not fit on the disk; the message has
        a line for each
    """
    sizes: dict[tuple[str, str], int] = {}
    problems: dict[str, None] = {}
    """In order, that of an environment once for all algorithms"""
    for key, config in {(config.name, config.task_name): config for config in configs}.items():
        try:
            sizes[key] = _bytes_of_model(config)
        except SuiteError as error:
            problems[str(error)] = None
        except Exception as error:
            where = f"{config.name} on {config.task_name}"
            problems[f"{where}: {in_one_line(error)} (hyperparameters of {config.source})"] = None
    if problems:
        raise SuiteError("\n".join(problems))
    check_space(out, sum(BYTES_BESIDE + FILES_PER_RUN * GROWTH * sizes[config.name, config.task_name] for config in configs))
    endless = dict.fromkeys(
        config.task_name for config in configs if time_limit(config.env_id, environment_arguments(config)) is None
    )
    return [tell_cut(name, "--env-kwargs max_episode_steps=STEPS (env_kwargs in a suite)") for name in endless]


def _bytes_of_model(config: RunConfig) -> int:
    """Of its file, untrained. Nothing but the device may differ from the run: that of a cluster need not be here."""
    model = build_model(RunConfig(**{**config.to_dict(), "device": "cpu"}))
    file = io.BytesIO()
    model.save(file)
    assert model.env is not None
    try:
        check_step(model.env, config.task_name)
    finally:
        model.env.close()
    return file.getbuffer().nbytes


def check_step(env: VecEnv, name: str) -> None:
    """
    Reset an environment and take one random step, so that what fails there does not fail in every run.

    :param name: Of the task
    :raises SuiteError: If one of them fails; the message names the place in the user's code
    """
    method = "reset"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the log of a run has them
        try:
            env.reset()
            method = "step"
            env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
        except Exception as error:
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
