"""Names of files, of modules and of arguments, made of what models and observations are called."""

import keyword
import re
from collections.abc import Sequence
from pathlib import Path

_HIDING = ("math", "numpy", "pathlib")
"""A module that is called so would be imported in place of what it needs"""
# What stands in the code that is written, and cannot be an argument of it too
_PYTHON = "Path act file float gelu layer_norm len math n np single softmax"
_C = """auto break case char const continue default do double enum extern float for goto if inline int long register restrict
return short signed sizeof static struct switch typedef union unsigned void volatile while"""
_IN_C = "abs action cos exp expm1 fabs floor fmax fmin i j log log1p mean most pow rint scale sin sqrt square sum tan tanh"
_TAKEN = frozenset((*keyword.kwlist, *_PYTHON.split(), *_C.split(), *_IN_C.split()))


def with_ending(path: Path, ending: str) -> Path:
    """
    Give a file the ending of its format. Nothing is cut off: what stands behind a dot may belong to the name.

    :param path: of the file
    :param ending: with its dot
    :return: the path with it, as it is where it has it
    """
    return path if path.name.endswith(ending) else path.with_name(f"{path.name}{ending}")


def is_importable(name: str) -> bool:
    """
    Whether Python can import a module of this name.

    :param name: of the file, without its ending
    :return: whether it is a word of Python's, and hides none that the module needs
    """
    return name.isidentifier() and not keyword.iskeyword(name) and name not in _HIDING


def importable(name: str) -> str:
    """
    Make a name of a module.

    :param name: any
    :return: the same where it can be imported, else one like it that can
    """
    word = re.sub(r"\W", "_", name)
    return word if is_importable(word) else f"policy_{word}"


def argument_names(keys: Sequence[str]) -> list[str]:
    """
    Name observations in source code.

    :param keys: of a dictionary; one empty key for what is none
    :return: one a key, different ones: the key itself where Python and C can have it
    """
    names: list[str] = []
    for key in keys:
        name = re.sub(r"\W", "_", key) or "observation"
        # Results of operations end like this, weights are w0 and so on
        taken = name in _TAKEN or name.lower() == "action" or name.endswith("_") or re.fullmatch(r"w\d+", name)
        name = f"observation_{name}" if taken or name[0].isdigit() else name
        others, first, k = [other.lower() for other in names], name, 1
        while name.lower() in others:  # C's sizes are in capitals
            k += 1
            name = f"{first}_{k}"
        names.append(name)
    return names
