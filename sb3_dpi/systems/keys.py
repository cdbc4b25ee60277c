"""Contents of objects as keys: states of environments are whatever their authors keep."""

import functools
import pickle
import random
import types
from array import array
from collections import deque
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch as th

GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
"""What draws is no part of a state: a simulator has it draw from its caller's."""
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    functools.partialmethod,
    types.ModuleType,
    type,
)


def frozen(value: Any, met: dict[int, int] | None = None) -> Hashable:
    """
    Make something of the same content that can be compared and be a key.

    :param value: arrays, numbers, and objects that hold such
    :param met: objects that were met already, numbered by their ids: some hold one another; None for none
    :return: it
    """
    if type(value) in (int, str, bool, type(None), bytes):
        return value  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray):
        return _array(value, met)
    if isinstance(value, float | np.floating):
        return np.float64(value).tobytes()  # NaN is itself
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    met = {} if met is None else met
    if isinstance(value, dict):
        if all(type(key) is str for key in value):
            return tuple([(key, frozen(value[key], met)) for key in sorted(value)])
        pairs = sorted(((repr(frozen(key, met)), item) for key, item in value.items()), key=lambda pair: pair[0])
        return tuple([(key, frozen(item, met)) for key, item in pairs])
    if isinstance(value, list | tuple | deque):
        return tuple([frozen(item, met) for item in value])
    if isinstance(value, set | frozenset):
        return tuple(sorted((frozen(item, met) for item in value), key=repr))
    if isinstance(value, th.Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        return tuple(value.shape), str(value.dtype), flat.view(th.uint8).numpy().tobytes()
    return _object(value, met)


def _array(value: np.ndarray, met: dict[int, int] | None) -> Hashable:
    if value.dtype.hasobject:
        return value.shape, tuple(frozen(item, met) for item in value.flat)
    return value.shape, value.dtype.str, value.tobytes()


def _object(value: Any, met: dict[int, int]) -> Hashable:
    """Of what is none of Python's and numpy's own containers: by its attributes, or as it is pickled."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, GENERATORS):
        return name
    if isinstance(value, _FUNCTIONS):
        return name, getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", ""))
    if id(value) in met:
        return name, met[id(value)]
    attributes = _attributes(value)
    if attributes:
        met[id(value)] = len(met)
        return name, tuple((key, frozen(item, met)) for key, item in attributes)
    if isinstance(value, array | bytearray):
        return name, bytes(value)
    try:
        return name, pickle.dumps(value)
    except Exception:  # whatever its class raises, there is no more to be seen of it
        return name


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """:return: names and values, also of ``__slots__``, in an order of their own"""
    every = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                every[mangled] = getattr(value, mangled)
    return sorted(every.items())


def drawn(rng: np.random.Generator) -> Any:
    """
    Say how far a generator has come, quickly: it is asked twice a step.

    :param rng: which
    :return: the same until it draws
    """
    state: Any = rng.bit_generator.state
    return state if state["bit_generator"] == "PCG64" else frozen(state)
