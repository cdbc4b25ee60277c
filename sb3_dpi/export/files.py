"""The files of an exported policy."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.common.extras import install_command
from sb3_dpi.common.saved_files import ExportError
from sb3_dpi.export.c_header import write_c
from sb3_dpi.export.deployed import DeployedPolicy, as_deployed
from sb3_dpi.export.names import argument_names, importable, is_importable, with_ending
from sb3_dpi.export.numpy_source import write_numpy
from sb3_dpi.export.program import Program, make_program

TITLE = "A policy of sb3_dpi"


def export_policy(
    model: BaseAlgorithm | BasePolicy | str | Path,
    path: str | Path,
    to: str = "onnx",
    vec_normalize: VecNormalize | str | Path | None = None,
) -> list[Path]:
    """
    Write a policy into a file that acts without this package.

    Normalisation of observations and scaling of actions are inside: an observation of the environment goes in, an action
    for it comes out, the deterministic one of ``model.predict``. ``NAME.json`` beside it says what goes in and out.

    :param model: a model of this package or of Stable-Baselines3, its policy, or the path of a saved model
    :param path: of the file; the format's ending is added where it is not there
    :param to: ``"onnx"`` or ``"torchscript"`` (any policy, any number of observations), ``"numpy"`` (vectors, any number of
        observations; needs numpy alone) or ``"c"`` (vectors, one observation; one header in C99)
    :param vec_normalize: ``VecNormalize``, or the path of its saved statistics, where the policy was trained behind one; None
        takes that of the model's environment
    :return: the files that were written
    :raises ExportError: if the format is unknown, or the policy cannot be written in it
    """
    if to not in FORMATS:
        raise ExportError(f"Unknown format {to!r}: use one of {', '.join(FORMATS)}")
    policy = as_deployed(model, vec_normalize)
    ending, write = FORMATS[to]
    target = Path(path)
    # what numpy reads is two files: either names both
    target = target.with_suffix(ending) if to == "numpy" and target.suffix == ".npz" else with_ending(target, ending)
    target.parent.mkdir(parents=True, exist_ok=True)
    with th.enable_grad():  # as distributions do: a change of it would be a part of the graph
        files = write(policy, target)
    said = target.with_suffix(".json")
    said.write_text(json.dumps(describe(policy), indent=2) + "\n", encoding="utf-8")
    return [*files, said]


def describe(policy: DeployedPolicy) -> dict[str, Any]:
    """
    Say what goes in and out.

    :param policy: as deployed
    :return: for a JSON file
    """
    names = input_names(policy)
    observations = {name: _describe(policy.observation_spaces[key]) for name, key in zip(names, policy.keys, strict=True)}
    return {
        "observations": observations,
        "action": _describe(policy.action_space),
        "observations_normalized_inside": policy.normalizer is not None and bool(policy.normalizer.indices),
        "policy": f"{type(policy.policy).__module__}.{type(policy.policy).__qualname__}",
    }


def input_names(policy: DeployedPolicy) -> list[str]:
    """
    Name the observations.

    :param policy: as deployed
    :return: one a key, fit for source code
    """
    return argument_names(policy.keys)


def _describe(space: spaces.Space[Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        # JSON knows no infinity
        limits = {"low": space.low, "high": space.high}
        for name, array in limits.items():
            values = [float(value) if np.isfinite(value) else str(float(value)) for value in np.unique(array)]
            every = [float(value) if np.isfinite(value) else str(float(value)) for value in array.ravel()]
            described[name] = values[0] if len(values) == 1 else every
    elif isinstance(space, spaces.Discrete):
        described |= {"n": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.MultiDiscrete):
        described["nvec"] = space.nvec.tolist()
    return described


def _in_words(policy: DeployedPolicy) -> str:
    said = describe(policy)
    lines = [f"{name}: {what['kind']} {what['shape']}, {what['dtype']}" for name, what in said["observations"].items()]
    action = said["action"]
    return "\n".join([*lines, f"action: {action['kind']} {action['shape']}, {action['dtype']}"])


def _program(policy: DeployedPolicy, any_batch: bool) -> Program:
    if any(len(space.shape or ()) > 2 for key, space in policy.observation_spaces.items() if key in policy.keys):
        raise ExportError("Source code is for observations that are vectors: export images to onnx or torchscript")
    return make_program(policy, any_batch, input_names(policy))


def _write_numpy(policy: DeployedPolicy, path: Path) -> list[Path]:
    if not is_importable(path.stem):
        raise ExportError(f"{path.name} shall be imported: give a file name like {importable(path.stem)}.py")
    source, weights = write_numpy(_program(policy, True), path.stem, TITLE, _in_words(policy))
    np.savez(path.with_suffix(".npz"), **weights)  # type: ignore[arg-type]
    path.write_text(source, encoding="utf-8")
    return [path, path.with_suffix(".npz")]


def _write_c(policy: DeployedPolicy, path: Path) -> list[Path]:
    path.write_text(write_c(_program(policy, False), path.stem, TITLE, _in_words(policy)), encoding="utf-8")
    return [path]


def _write_torchscript(policy: DeployedPolicy, path: Path) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes are read as constants: those are, of all but the batch
        traced = th.jit.trace(policy, policy.examples(2), check_trace=False)
    th.jit.save(traced, str(path))
    return [path]


def _write_onnx(policy: DeployedPolicy, path: Path) -> list[Path]:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error.name} is missing: {install_command('export')}") from error
    for name in ("onnxscript", "torch.onnx"):  # they list what is not installed
        logging.getLogger(name).setLevel(logging.ERROR)
    batch = th.export.Dim("batch")
    examples = policy.examples(2)
    validates = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            th.onnx.export(
                policy,
                examples,
                str(path),
                input_names=input_names(policy),
                output_names=["action"],
                dynamic_shapes=(tuple({0: batch} for _ in examples),),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        th.distributions.Distribution.set_default_validate_args(validates)
    return [path]


FORMATS: dict[str, tuple[str, Callable[[DeployedPolicy, Path], list[Path]]]] = {
    "onnx": (".onnx", _write_onnx),
    "torchscript": (".pt", _write_torchscript),
    "c": (".h", _write_c),
    "numpy": (".py", _write_numpy),
}
"""Ending of the file and what writes it"""
