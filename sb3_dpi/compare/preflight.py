"""What can be known before the first run: that there is the device, that every algorithm runs on its task, that all fits.

A comparison takes hours or days. Nobody shall learn on the next morning what a minute would have shown.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch as th

from sb3_dpi.compare.build import build_model, environment_arguments
from sb3_dpi.compare.checks import SuiteError
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo.cause import in_one_line
from sb3_dpi.zoo.environments import LONGEST_EPISODE, time_limit

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
    Build every algorithm on every task once, as a run does.

    :param configs: The runs that are to be executed, of any number of seeds
    :return: What a user should know, in words
    :raises SuiteError: If a model cannot be built, or its runs do not fit on the disk; the message has a line for each
    """
    sizes: dict[tuple[str, str], int] = {}
    problems = []
    for config in configs:
        key = (config.name, config.task_name)
        if key in sizes:
            continue
        sizes[key] = 0
        try:
            sizes[key] = _bytes_of_model(config)
        except Exception as error:
            where = f"{config.name} on {config.task_name}"
            problems.append(f"{where}: {in_one_line(error)} (hyperparameters of {config.source})")
    if problems:
        raise SuiteError("\n".join(problems))
    check_space(out, sum(BYTES_BESIDE + FILES_PER_RUN * GROWTH * sizes[config.name, config.task_name] for config in configs))
    endless = dict.fromkeys(
        config.task_name for config in configs if time_limit(config.env_id, environment_arguments(config)) is None
    )
    return [
        f"{name} has no time limit: the episodes of an evaluation are cut after {LONGEST_EPISODE:,} steps; "
        "--env-kwargs max_episode_steps=STEPS (env_kwargs in a suite) sets one for training and evaluation"
        for name in endless
    ]


def _bytes_of_model(config: RunConfig) -> int:
    """Of its file, untrained. Nothing but the device may differ from the run: that of a cluster need not be here."""
    model = build_model(RunConfig(**{**config.to_dict(), "device": "cpu"}))
    file = io.BytesIO()
    model.save(file)
    assert model.env is not None
    model.env.close()
    return file.getbuffer().nbytes


def check_space(out: Path, n_bytes: int) -> None:
    """See that there is room in a folder, or in one that will be made."""
    while not out.exists():
        out = out.parent
    free = shutil.disk_usage(out).free
    if free < n_bytes:
        raise SuiteError(f"--out {out}: {free / 1e9:.1f} GB are free, about {n_bytes / 1e9:.1f} GB are needed; choose another")
