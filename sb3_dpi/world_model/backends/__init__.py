"""The hot loops in numba where that is installed and the networks are such as it compiles; torch is the reference.

On small networks torch spends most of its time outside of arithmetic. The loops work on the memory of torch's parameters and
of the state of its optimizer: whoever looks at either sees what the other did. Everything here takes arrays and tensors, so
that nothing of the package is imported.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_dpi.world_model.backends import compiled


def supports(sizes: Sequence[int], parameters: th.Tensor) -> bool:
    """
    Tell whether the compiled loops can stand in for torch.

    :param sizes: of a network's layers, input and output included
    :param parameters: of that network
    :return: whether numba is there, and the network has two hidden layers of one width on the CPU
    """
    return compiled.COMPILED and len(sizes) == 4 and sizes[1] == sizes[2] and parameters.device.type == "cpu"


def as_array(tensor: th.Tensor) -> np.ndarray:
    """
    The memory of a tensor.

    :param tensor: on the CPU
    :return: the same numbers, shared where they lie in a row
    """
    return tensor.detach().contiguous().numpy()


def adam_memory(
    optimizer: th.optim.Optimizer, parameters: th.Tensor, n_steps: int
) -> tuple[np.ndarray, np.ndarray, int, float]:
    """
    Moments of Adam in the optimizer's own memory; counts the steps.

    :param optimizer: Adam
    :param parameters: all that it optimises
    :param n_steps: that are about to be taken
    :return: first and second moments, the steps taken before these, and the learning rate
    """
    state: dict[str, Any] = optimizer.state[parameters]
    if not state:
        state["step"] = th.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameters), th.zeros_like(parameters)
    taken = int(state["step"])
    state["step"] += n_steps
    return as_array(state["exp_avg"]), as_array(state["exp_avg_sq"]), taken, float(optimizer.param_groups[0]["lr"])


def mlp_forward(layers: Sequence[tuple[np.ndarray, np.ndarray]], inputs: np.ndarray) -> np.ndarray:
    """
    A network with hardswish in plain numpy, a tenth of torch's time for a few rows.

    :param layers: weights ``[n_in, n_out]`` and biases ``[n_out]``
    :param inputs: ``[n, n_in]``
    :return: ``[n, n_out]``
    """
    hidden = inputs
    for i, (weight, bias) in enumerate(layers):
        hidden = hidden.dot(weight) + bias
        if i < len(layers) - 1:
            hidden = hidden * (np.minimum(np.maximum(hidden + 3.0, 0.0), 6.0) / 6.0)
    return hidden
