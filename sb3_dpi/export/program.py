"""A policy as a list of array operations, from which source code is written.

The list is what ``torch.export`` sees of a policy: operations of ATen between arrays, in their order. What depends on weights
alone is computed once, what the action does not depend on is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch as th
from torch.fx import Node

from sb3_dpi.common.saved_files import ExportError
from sb3_dpi.export.deployed import DeployedPolicy

BATCH = "n"
"""Stands for the number of observations"""
# What changes nothing but how the array is held, or only checks
_SAME = ("alias", "clone", "contiguous", "detach", "detach_", "dropout", "feature_dropout", "lift_fresh_copy")


@dataclass(frozen=True)
class Array:
    """An array of a program, an input or the result of a step."""

    name: str
    shape: tuple[Any, ...]
    """of numbers, and ``BATCH`` where the number of observations is left open"""
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Step:
    """One operation."""

    operation: str
    """ATen's name, such as ``"linear"``"""
    result: Array
    arguments: tuple[Any, ...]
    """arrays (``Array``), constants (``numpy.ndarray``), numbers, and lists of these"""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Steps from observations to actions."""

    inputs: tuple[Array, ...]
    steps: tuple[Step, ...]
    output: Array


def make_program(policy: DeployedPolicy, any_batch: bool, names: Sequence[str]) -> Program:
    """
    Write a policy as a program.

    :param policy: as deployed
    :param any_batch: whether the number of observations is left open; one observation otherwise
    :param names: of the inputs
    :return: the program
    """
    examples = policy.examples(2 if any_batch else 1)
    sizes = {0: th.export.Dim("batch")} if any_batch else None
    exported = export_graph(policy, examples, tuple(sizes for _ in examples) if any_batch else None)
    values: dict[Node, Any] = {}
    inputs: list[Array] = []
    steps: list[Step] = []
    known = _constants(exported)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            values[node] = known[node.name] if node.name in known else replace(_array(node), name=names[len(inputs)])
            inputs += [] if node.name in known else [values[node]]
        elif node.op == "call_function":
            values[node] = _evaluate(node, values, steps)
        elif node.op == "output":
            (output,) = node.args[0]
            return Program(tuple(inputs), tuple(_needed(steps, values[output])), values[output])
    raise AssertionError("a graph without an output")


def export_graph(policy: DeployedPolicy, examples: tuple[th.Tensor, ...], sizes: Any) -> th.export.ExportedProgram:
    """
    Let torch look at a policy.

    :param policy: as deployed
    :param examples: observations
    :param sizes: which dimensions are open
    :return: its graph
    """
    # Checks of distributions look at numbers, which a graph does not have
    validates = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        return th.export.export(policy, examples, dynamic_shapes=None if sizes is None else (sizes,), strict=False)
    finally:
        th.distributions.Distribution.set_default_validate_args(validates)


def _constants(exported: th.export.ExportedProgram) -> dict[str, th.Tensor]:
    signature = exported.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    tensors = {**exported.state_dict, **exported.constants}
    return {name: tensors[target].detach() for name, target in named.items()}


def _array(node: Node) -> Array:
    value = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else BATCH for size in value.shape)
    return Array(f"{node.name}_", shape, np.dtype(str(value.dtype).removeprefix("torch.")))


def _evaluate(node: Node, values: dict[Node, Any], steps: list[Step]) -> Any:
    """:return: the value of a node, for which a step is noted where it depends on the observations"""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    operation = name.partition(".")[0]
    if operation.startswith(("_assert", "sym_constrain")):
        return None
    if operation == "sym_size":
        return BATCH

    def value(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        return [value(part) for part in argument] if isinstance(argument, list | tuple) else argument

    arguments = [value(argument) for argument in node.args]
    options = {key: value(argument) for key, argument in node.kwargs.items()}
    if operation == "broadcast_tensors":  # as pairs of mean and deviation are; one that grows is refused where it is used
        return arguments[0]
    if operation == "getitem" and isinstance(arguments[0], list):
        return arguments[0][arguments[1]]
    if operation in _SAME:
        return arguments[0]
    if not any(isinstance(part, Array) or part is BATCH for part in _leaves([arguments, list(options.values())])):
        with th.no_grad():
            return node.target(*arguments, **options)  # type: ignore[operator]
    if isinstance(node.meta["val"], list | tuple):
        return _parts(operation, arguments, node, steps)
    result = _array(node)
    steps.append(Step(operation, result, tuple(map(_plain, arguments)), {key: _plain(v) for key, v in options.items()}))
    return result


def _parts(operation: str, arguments: list[Any], node: Node, steps: list[Step]) -> list[Array]:
    """Write an operation with several results as slices."""
    shapes = [tuple(size if isinstance(size, int) else BATCH for size in part.shape) for part in node.meta["val"]]
    if operation not in ("chunk", "split", "split_with_sizes"):
        raise ExportError(f"ATen's {operation} has several results that are not known here: export to onnx or torchscript")
    axis = arguments[2] if len(arguments) > 2 else 0
    ends = np.cumsum([shape[axis] for shape in shapes])
    results = [Array(f"{node.name}_{i}", shape, arguments[0].dtype) for i, shape in enumerate(shapes)]
    for result, end in zip(results, ends, strict=True):
        steps.append(Step("slice", result, (arguments[0], axis, int(end) - result.shape[axis], int(end))))
    return results


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _plain(value: Any) -> Any:
    """Constants as arrays, types as names."""
    if isinstance(value, th.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, th.dtype):
        return np.dtype(str(value).removeprefix("torch."))
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _needed(steps: list[Step], output: Array) -> list[Step]:
    needed, kept = {output.name}, []
    for step in reversed(steps):
        if step.result.name in needed:
            kept.append(step)
            needed |= {part.name for part in _leaves([list(step.arguments)]) if isinstance(part, Array)}
    return kept[::-1]
