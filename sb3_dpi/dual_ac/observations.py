"""Rows of observations: arrays or tensors, or dictionaries of such."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th


def take(observations: Any, rows: th.Tensor | np.ndarray | slice) -> Any:
    """Select rows.

    :param observations: array or tensor, or dictionary of such
    :param rows: which
    :return: the same with these rows
    """
    if isinstance(observations, dict):
        return {key: value[rows] for key, value in observations.items()}
    return observations[rows]


def n_rows(observations: Any) -> int:
    """Count rows.

    :param observations: array or tensor, or dictionary of such
    :return: how many
    """
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def join(parts: Sequence[Any]) -> Any:
    """Put rows below each other.

    :param parts: tensors, or dictionaries of tensors
    :return: one of them
    """
    if isinstance(parts[0], dict):
        return {key: th.cat([part[key] for part in parts]) for key in parts[0]}
    return th.cat(list(parts))


def move(observations: Any, device: th.device | str) -> Any:
    """Move to a device.

    :param observations: tensor or dictionary of tensors
    :param device: where to
    :return: the same there
    """
    if isinstance(observations, dict):
        return {key: value.to(device) for key, value in observations.items()}
    return observations.to(device)
