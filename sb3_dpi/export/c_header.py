"""Write a policy as one C header: C99 and its mathematics library, no heap."""

import math
import re
from typing import Any

import numpy as np

from sb3_dpi.export.elementwise import WRITTEN, arguments_of, unknown
from sb3_dpi.export.program import Array, Program, Step

_TYPES = {"float32": "float", "float64": "double", "int64": "long long", "int32": "int", "uint8": "unsigned char"}
_SMALLER = {"int8": "signed char", "int16": "short", "uint16": "unsigned short", "uint32": "unsigned int", "bool": "_Bool"}
C_TYPES = {**_TYPES, **_SMALLER, "uint64": "unsigned long long"}

_HEAD = """/* {title}

{spaces}

   C99, needs the mathematics library (-lm), no heap. Intermediate values are static: one call at a time.
*/
#ifndef {guard}
#define {guard}

#include <math.h>

{sizes}

/* Act without exploration. */
static inline void {name}_act({parameters})
{{
{body}
}}

#endif
"""


def write_c(program: Program, name: str, title: str, spaces: str) -> str:
    """
    Write a program.

    :param program: of one observation
    :param name: what the header's names begin with
    :param title: its first line
    :param spaces: what goes in and out, in words
    :return: the header
    :raises ExportError: if an operation is not known here
    """
    prefix = re.sub(r"\W", "_", name)
    prefix = f"policy_{prefix}" if prefix[:1].isdigit() else prefix
    parameters = [f"const {_type(array)} {array.name}[{_size(array)}]" for array in program.inputs]
    sizes = [f"#define {prefix.upper()}_{array.name.upper()}_SIZE {_size(array)}" for array in program.inputs]
    writer = _Writer()
    for step in program.steps:
        writer.write(step)
    n = _size(program.output)
    writer.loop(n, f"action[i] = {writer.at(program.output, program.output)};")
    return _HEAD.format(
        title=title,
        spaces="\n".join(f"   {line}" for line in spaces.splitlines()),
        guard=f"{prefix.upper()}_H",
        sizes="\n".join([*sizes, f"#define {prefix.upper()}_ACTION_SIZE {n}"]),
        name=prefix,
        parameters=", ".join([*parameters, f"{_type(program.output)} action[{n}]"]),
        body="\n".join(f"    {line}" if line else line for line in (*writer.weights, *writer.lines)),
    )


def _size(array: Array) -> int:
    return math.prod(array.shape)


def _type(array: Array) -> str:
    return C_TYPES[array.dtype.name]


class _Writer:
    """The body of the function: ``lines`` after ``weights``. Arrays lie flat; what only changes shape is the same array."""

    def __init__(self) -> None:
        self.weights: list[str] = []
        self.lines: list[str] = []
        self.same: dict[str, str] = {}
        """expressions of arrays that are (parts of) others"""

    # ------------------------------------------------------------------ texts

    def name(self, value: Any) -> str:
        """Of an array, or of a constant, which is put among the weights."""
        if isinstance(value, Array):
            return self.same.get(value.name, value.name)
        name = f"w{len(self.weights)}"
        numbers = ", ".join(_literal(number, value.dtype) for number in value.ravel())
        self.weights.append(f"static const {C_TYPES[value.dtype.name]} {name}[{max(value.size, 1)}] = {{{numbers}}};")
        return name

    def at(self, value: Any, result: Array) -> str:
        """The number of a value that goes into number ``i`` of a result."""
        if not isinstance(value, Array | np.ndarray):
            return _literal(value, result.dtype)
        if isinstance(value, np.ndarray) and value.size == 1:
            return _literal(value.item(), value.dtype)
        size, whole = math.prod(value.shape), _size(result)
        tail = tuple(value.shape[next((i for i, n in enumerate(value.shape) if n != 1), 0) :])
        if size != whole and size != 1 and tail != tuple(result.shape[len(result.shape) - len(tail) :]):
            raise unknown(f"broadcasting from {value.shape} to {result.shape}")
        return f"{self.name(value)}[{'i' if size == whole else '0' if size == 1 else f'i % {size}'}]"

    def loop(self, n: int, *body: str) -> None:
        """Note a loop over ``i``."""
        self.lines += [f"for (int i = 0; i < {n}; i++) {{", *(f"    {line}" for line in body), "}"]

    # ------------------------------------------------------------------ operations

    def write(self, step: Step) -> None:
        """Note an operation."""
        operation, result = step.operation, step.result
        if operation in ("reshape", "view", "flatten", "squeeze", "unsqueeze") or self._is_copy(step):
            self.same[result.name] = self.name(step.arguments[0])
            return
        if operation in ("slice", "select"):
            self._part(step)
            return
        self.lines.append(f"static {_type(result)} {result.name}[{_size(result)}];")
        if operation in WRITTEN:
            suffix = "f" if result.dtype == np.float32 else ""
            texts = [f"({self.at(value, result)})" for value in arguments_of(step)]
            self.loop(_size(result), f"{result.name}[i] = {WRITTEN[operation][1].format(*texts, f=suffix)};")
        elif operation in ("to", "expand"):
            self.loop(_size(result), f"{result.name}[i] = ({_type(result)})({self.at(step.arguments[0], result)});")
        elif operation in ("cat", "stack"):
            self._cat(step)
        elif hasattr(self, f"_{operation}"):
            getattr(self, f"_{operation}")(step)
        else:
            raise unknown(operation)

    def _is_copy(self, step: Step) -> bool:
        source = step.arguments[0]
        same = isinstance(source, Array) and source.dtype == step.result.dtype and _size(source) == _size(step.result)
        return step.operation in ("to", "expand") and same

    def _part(self, step: Step) -> None:
        source, axis, start = step.arguments[:3]
        if math.prod(source.shape[: axis % len(source.shape)]) != 1:
            raise unknown(f"{step.operation} of a matrix")
        offset = (start % source.shape[axis] if source.shape[axis] else 0) * math.prod(source.shape[axis:][1:])
        self.same[step.result.name] = f"({self.name(source)} + {offset})"

    def _cat(self, step: Step) -> None:
        parts, axis = step.arguments[0], step.arguments[1] if len(step.arguments) > 1 else 0
        if math.prod(step.result.shape[: axis % len(step.result.shape)]) != 1:
            raise unknown(f"{step.operation} of matrices")
        start = 0
        for part in parts:
            size = math.prod(part.shape)
            self.loop(size, f"{step.result.name}[{start} + i] = {self.name(part)}[i];")
            start += size

    def _product(self, result: Array, x: Any, weight: np.ndarray, bias: Any) -> None:
        """``weight [n_out, n_in]``, row after row."""
        n_out, n_in = weight.shape
        if _size(result) != n_out:
            raise unknown("product of two matrices")
        first = "0" if bias is None else self.at(bias, result)
        x, w, kind = self.name(x), self.name(weight), _type(result)
        sum_up = f"for (int j = 0; j < {n_in}; j++) sum += {w}[i * {n_in} + j] * {x}[j];"
        self.loop(n_out, f"{kind} sum = {first};", sum_up, f"{result.name}[i] = sum;")

    def _linear(self, step: Step) -> None:
        x, weight, bias = (*step.arguments, None)[:3]
        self._product(step.result, x, weight, bias)

    def _addmm(self, step: Step) -> None:
        bias, x, weight = step.arguments
        self._product(step.result, x, _transposed(weight), bias)

    _baddbmm = _addmm

    def _mm(self, step: Step) -> None:
        self._product(step.result, step.arguments[0], _transposed(step.arguments[1]), None)

    _matmul = _bmm = _mm

    def _layer_norm(self, step: Step) -> None:
        x, shape, weight, bias, epsilon = step.arguments[:5]
        n, result, kind, f = math.prod(shape), step.result, _type(step.result), "f" if step.result.dtype == np.float32 else ""
        if _size(result) != n:
            raise unknown("layer_norm of a matrix")
        name = self.name(x)
        self.lines += [
            "{",
            f"    {kind} mean = 0, square = 0;",
            f"    for (int i = 0; i < {n}; i++) mean += {name}[i] / {n};",
            f"    for (int i = 0; i < {n}; i++) square += ({name}[i] - mean) * ({name}[i] - mean) / {n};",
            f"    const {kind} scale = 1 / sqrt{f}(square + {_literal(epsilon, result.dtype)});",
            f"    for (int i = 0; i < {n}; i++) {result.name}[i] = ({name}[i] - mean) * scale"
            f" * {self.at(weight, result)} + {self.at(bias, result)};",
            "}",
        ]

    def _batch_norm(self, step: Step) -> None:
        x, weight, bias, mean, var, _, _, epsilon = step.arguments[:8]
        scale = np.asarray(weight / np.sqrt(var + epsilon), var.dtype)
        shift = np.asarray(bias - mean * scale, var.dtype)
        at = [self.at(value, step.result) for value in (x, scale, shift)]
        self.loop(_size(step.result), f"{step.result.name}[i] = {at[0]} * {at[1]} + {at[2]};")

    def _softmax(self, step: Step) -> None:
        self._over_a_row(step, "{name}[i] = exp{f}({x}[i] - most) / sum;")

    def _logsumexp(self, step: Step) -> None:
        self._over_a_row(step, "{name}[i] = most + log{f}(sum);")

    def _over_a_row(self, step: Step, last: str) -> None:
        x, result = step.arguments[0], step.result
        n, name, kind, f = math.prod(x.shape), self.name(x), _type(result), "f" if result.dtype == np.float32 else ""
        if x.shape[-1] != n:
            raise unknown(f"{step.operation} of a matrix")
        self.lines += [
            "{",
            f"    {kind} most = {name}[0], sum = 0;",
            f"    for (int i = 1; i < {n}; i++) most = fmax{f}(most, {name}[i]);",
            f"    for (int i = 0; i < {n}; i++) sum += exp{f}({name}[i] - most);",
            f"    for (int i = 0; i < {_size(result)}; i++) {last.format(name=result.name, x=name, f=f)}",
            "}",
        ]

    def _argmax(self, step: Step) -> None:
        x, result = step.arguments[0], step.result
        if x.shape[-1] != math.prod(x.shape):
            raise unknown("argmax of a matrix")
        name = self.name(x)
        self.lines.append(f"{result.name}[0] = 0;")
        self.loop(_size(x), f"if ({name}[i] > {name}[{result.name}[0]]) {result.name}[0] = i;")

    def _one_hot(self, step: Step) -> None:
        x, n = step.arguments[:2]
        self.loop(_size(step.result), f"{step.result.name}[i] = {self.name(x)}[i / {n}] == i % {n};")

    def _zeros_like(self, step: Step) -> None:
        self.loop(_size(step.result), f"{step.result.name}[i] = 0;")


def _transposed(weight: np.ndarray) -> np.ndarray:
    if not isinstance(weight, np.ndarray):
        raise unknown("product of two results")
    return np.ascontiguousarray(weight.reshape(weight.shape[-2:]).T)


def _literal(number: Any, dtype: np.dtype[Any]) -> str:
    """A number as C reads it, exactly."""
    if dtype.kind in "iub":
        return str(int(number))
    value = float(number)
    if not math.isfinite(value):
        return "INFINITY" if value > 0 else "-INFINITY" if value < 0 else "NAN"
    text = f"{value:.9g}" if dtype == np.float32 else f"{value:.17g}"
    text = text if re.search(r"[.e]", text) else f"{text}.0"
    return f"{text}f" if dtype == np.float32 else text
