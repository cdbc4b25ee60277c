"""Operations on single numbers, as they are written in numpy and in C."""

from typing import Any

from sb3_dpi.common.saved_files import ExportError
from sb3_dpi.export.program import Step

WRITTEN = {
    "abs": ("np.abs({0})", "fabs{f}({0})"),
    "add": ("{0} + {1}", "{0} + {1}"),
    "clamp": ("np.clip({0}, {1}, {2})", "fmin{f}(fmax{f}({0}, {1}), {2})"),
    "cos": ("np.cos({0})", "cos{f}({0})"),
    "div": ("{0} / {1}", "{0} / {1}"),
    "elu": (
        "np.where({0} > 0, {2} * {0}, {1} * {2} * np.expm1({3} * np.minimum({0}, 0)))",
        "{0} > 0 ? {2} * {0} : {1} * {2} * expm1{f}({3} * {0})",
    ),
    "exp": ("np.exp({0})", "exp{f}({0})"),
    "gelu": ("gelu({0})", "{0} / 2 * (1 + erf{f}({0} / sqrt{f}(2)))"),
    "hardsigmoid": ("np.clip({0} + 3, 0, 6) / 6", "fmin{f}(fmax{f}({0} + 3, 0), 6) / 6"),
    "hardswish": ("{0} * np.clip({0} + 3, 0, 6) / 6", "{0} * fmin{f}(fmax{f}({0} + 3, 0), 6) / 6"),
    "hardtanh": ("np.clip({0}, {1}, {2})", "fmin{f}(fmax{f}({0}, {1}), {2})"),
    "leaky_relu": ("np.where({0} > 0, {0}, {1} * {0})", "{0} > 0 ? {0} : {1} * {0}"),
    "log": ("np.log({0})", "log{f}({0})"),
    "mish": (
        "{0} * np.tanh(np.logaddexp(0, {0}))",
        "{0} * tanh{f}(fmax{f}({0}, 0) + log1p{f}(exp{f}(-fabs{f}({0}))))",
    ),
    "mul": ("{0} * {1}", "{0} * {1}"),
    "neg": ("-{0}", "-{0}"),
    "pow": ("{0} ** {1}", "pow{f}({0}, {1})"),
    "relu": ("np.maximum({0}, 0)", "fmax{f}({0}, 0)"),
    "round": ("np.round({0})", "rint{f}({0})"),
    "selu": (
        "{1} * np.where({0} > 0, {0}, {2} * np.expm1(np.minimum({0}, 0)))",
        "{1} * ({0} > 0 ? {0} : {2} * expm1{f}({0}))",
    ),
    "sigmoid": ("1 / (1 + np.exp(-{0}))", "1 / (1 + exp{f}(-{0}))"),
    "silu": ("{0} / (1 + np.exp(-{0}))", "{0} / (1 + exp{f}(-{0}))"),
    "sin": ("np.sin({0})", "sin{f}({0})"),
    "softplus": (
        "np.logaddexp(0, {1} * {0}) / {1}",
        "(fmax{f}({1} * {0}, 0) + log1p{f}(exp{f}(-fabs{f}({1} * {0})))) / {1}",
    ),
    "sqrt": ("np.sqrt({0})", "sqrt{f}({0})"),
    "sub": ("{0} - {1}", "{0} - {1}"),
    "tanh": ("np.tanh({0})", "tanh{f}({0})"),
}
"""In numpy and in C; ``{0}`` and the following are the arguments, ``{f}`` ends the names of C's functions of floats"""
_DEFAULTS: dict[str, tuple[float, ...]] = {
    "clamp": (float("-inf"), float("inf")),
    "elu": (1.0, 1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "leaky_relu": (0.01,),
    "selu": (1.0507009873554805, 1.6732632423543772),
    "softplus": (1.0,),
}
"""Arguments behind the first that may be left out"""


def arguments_of(step: Step) -> list[Any]:
    """
    Complete the arguments of an operation of ``WRITTEN``.

    :param step: the operation
    :return: all of them
    :raises ExportError: if it is a variant that is not written here
    """
    defaults = _DEFAULTS.get(step.operation, ())
    given = [*step.arguments, *defaults[len(step.arguments) - 1 :]]
    given = [defaults[i - 1] if value is None else value for i, value in enumerate(given)]
    plain = {"alpha": 1, "approximate": "none", "rounding_mode": None, "decimals": 0}
    for name, value in step.options.items():
        if value != plain.get(name, value):
            raise unknown(f"{step.operation} with {name}={value}")
    return given[:2] if step.operation == "softplus" else given


def unknown(operation: str) -> ExportError:
    """
    Say that source code ends here.

    :param operation: what is not known
    :return: the error
    """
    return ExportError(f"Source code of ATen's {operation} is not known here: export to onnx or torchscript")
