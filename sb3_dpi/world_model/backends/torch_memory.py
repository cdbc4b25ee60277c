"""Views of torch's own memory: whoever looks at parameters or optimizer sees what the jobs did."""

from typing import Any

import numpy as np
import torch as th

from sb3_dpi.world_model.backends.arrays import AdamArrays


def array_of(tensor: th.Tensor) -> np.ndarray:
    """
    View a tensor as an array.

    :param tensor: on the CPU
    :return: the same memory, or a copy where that is not contiguous
    """
    return tensor.detach().contiguous().numpy()


def supports_optimizer(optimizer: th.optim.Optimizer) -> bool:
    """
    Tell whether ``adam_of`` describes all that an optimizer does.

    :param optimizer: any
    :return: whether it is Adam, without weight decay or other variants, with one group of parameters
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    return not any(group.get(name) for name in ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable"))


def adam_of(parameter: th.nn.Parameter, optimizer: th.optim.Optimizer, n_steps: int) -> AdamArrays:
    """
    Hand out Adam's moments, and count the steps that will be taken with them.

    :param parameter: what is optimized, of single precision on the CPU
    :param optimizer: such as ``supports_optimizer`` accepts
    :param n_steps: how many steps will be taken
    :return: moments in the optimizer's own memory
    """
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = th.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
    taken = int(state["step"])
    state["step"] += n_steps
    group = optimizer.param_groups[0]
    first, second = array_of(state["exp_avg"]), array_of(state["exp_avg_sq"])
    beta_1, beta_2 = (float(beta) for beta in group["betas"])
    return AdamArrays(first, second, taken, float(group["lr"]), beta_1, beta_2, float(group["eps"]))
