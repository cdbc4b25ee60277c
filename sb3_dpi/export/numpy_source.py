"""Write a policy as a Python file that needs numpy alone."""

from typing import Any

import numpy as np

from sb3_dpi.export.elementwise import WRITTEN, arguments_of, unknown
from sb3_dpi.export.program import Array, Program, Step

_HEAD = '''"""{title}

Needs numpy alone; the weights lie beside it in {stem}.npz.

    from {stem} import act
    action = act({names})

{spaces}
"""

import math
from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_suffix(".npz")) as file:
    {weights} = (file[name] for name in file.files)


{helpers}def act({names}):
    """
    Act without exploration, on one observation or on a batch of them.

    :return: the action in the environment's units, or a batch of them
    """
{inputs}
    single = {first}.ndim == {ndim}
{batches}
    n = len({first})
{steps}
    return {output}[0] if single else {output}
'''

_HELPERS = {
    "softmax": """def softmax(x, axis):
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


""",
    "layer_norm": """def layer_norm(x, weight, bias, epsilon):
    x = x - np.mean(x, axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * weight + bias


""",
    "gelu": """def gelu(x):
    erf = np.array([math.erf(value) for value in (x / 2**0.5).ravel()], dtype=x.dtype)
    return x / 2 * (1 + erf.reshape(x.shape))


""",
}
"""Functions that come into the file where it calls them"""


def write_numpy(program: Program, stem: str, title: str, spaces: str) -> tuple[str, dict[str, np.ndarray]]:
    """
    Write a program.

    :param program: of any number of observations
    :param stem: name of the file, without its ending
    :param title: its first line
    :param spaces: what goes in and out, in words
    :return: the source, and the weights by their names
    :raises ExportError: if an operation is not known here
    """
    weights: dict[str, np.ndarray] = {}
    names = [array.name for array in program.inputs]
    steps = [f"    {step.result.name} = {_expression(step, weights)}" for step in program.steps]
    first = program.inputs[0]
    source = _HEAD.format(
        title=title,
        stem=stem,
        spaces=spaces,
        helpers="".join(code for name, code in _HELPERS.items() if any(f"= {name}(" in step for step in steps)),
        names=", ".join(names),
        weights=", ".join(weights) + "," if weights else "_",
        inputs="\n".join(f"    {a.name} = np.asarray({a.name}, dtype=np.{a.dtype.name})" for a in program.inputs),
        first=first.name,
        ndim=len(first.shape) - 1,
        batches="\n".join(f"    {a.name} = {a.name}.reshape(-1, *{a.shape[1:]})" for a in program.inputs),
        steps="\n".join(steps),
        output=program.output.name,
    )
    return source, weights


# Of the arguments and options in their order; ``{shape}`` and ``{dtype}`` are those of the result
_ARRAYS = {
    "addmm": "{1} @ {2} + {0}",
    "argmax": "np.argmax({0}, {1})",
    "baddbmm": "{1} @ {2} + {0}",
    "batch_norm": "({0} - {3}) / np.sqrt({4} + {7}) * {1} + {2}",
    "bmm": "{0} @ {1}",
    "expand": "np.broadcast_to({0}, {shape})",
    "flatten": "{0}.reshape({shape})",
    "layer_norm": "layer_norm({0}, {2}, {3}, {4})",
    "linear": "{0} @ {1}.T + {2}",
    "logsumexp": "np.log(np.sum(np.exp({0}), axis={1}, keepdims=True)).reshape({shape})",
    "matmul": "{0} @ {1}",
    "mm": "{0} @ {1}",
    "one_hot": "np.eye({1}, dtype=np.int64)[{0}]",
    "ones_like": "np.ones_like({0})",
    "reshape": "{0}.reshape({shape})",
    "select": "np.take({0}, {2}, axis={1})",
    "softmax": "softmax({0}, {1})",
    "squeeze": "{0}.reshape({shape})",
    "to": "{0}.astype(np.{dtype})",
    "unsqueeze": "np.expand_dims({0}, {1})",
    "view": "{0}.reshape({shape})",
    "zeros_like": "np.zeros_like({0})",
}


def _expression(step: Step, weights: dict[str, np.ndarray]) -> str:
    """:return: the right-hand side; constants are put among the weights"""

    def text(value: Any) -> str:
        if isinstance(value, Array):
            return value.name
        if isinstance(value, np.ndarray) and value.ndim:
            name = f"w{len(weights)}"
            weights[name] = value
            return name
        if isinstance(value, list):
            return f"({''.join(f'{text(part)}, ' for part in value).strip()})"
        return _number(value)

    operation, given = step.operation, step.arguments
    if operation in WRITTEN:
        return WRITTEN[operation][0].format(*map(text, arguments_of(step)))
    if operation == "slice":
        array, axis, start, end = given[:4]
        last = "" if end >= 2**62 else str(end)
        return f"{array.name}[{':, ' * (axis % len(array.shape))}{start}:{last}]"
    if operation in ("cat", "stack"):
        joined = {"cat": "np.concatenate", "stack": "np.stack"}[operation]
        return f"{joined}({text(given[0])}, axis={given[1] if len(given) > 1 else 0})"
    if operation not in _ARRAYS:
        raise unknown(operation)
    if operation == "linear" and (len(given) < 3 or given[2] is None):
        return f"{text(given[0])} @ {text(given[1])}.T"
    texts = [text(value) for value in (*given, *step.options.values())]
    return _ARRAYS[operation].format(*texts, shape=text(list(step.result.shape)), dtype=step.result.dtype.name)


def _number(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return f"float({str(value)!r})"
    return str(value)
