"""What Ctrl-C leaves: an iteration happens as a whole or not at all, and the next ``learn`` begins with a reset.

Users and RL Zoo save a model whose ``learn`` they have interrupted, and train it further. Whatever an iteration changes hangs
together, units with weights, weights with the optimizer's moments: half of it is worth less than none.
"""

import copy
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

Model = TypeVar("Model", bound=BaseAlgorithm)
Given = ParamSpec("Given")
Result = TypeVar("Result")
Method = Callable[Concatenate[Model, Given], Result]


def whole_or_undone(train: Method[Model, Given, Result]) -> Method[Model, Given, Result]:
    """
    Undo an iteration that ends by Ctrl-C or an error: networks, optimizers, units and counts are as before.

    Attributes that learning changes must be replaced, not written into; running statistics may be.

    :param train: the method of an algorithm that makes one iteration
    :return: the same, as a whole or not at all
    """

    @functools.wraps(train)
    def whole(self: Model, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        parameters = _copied(self.get_parameters())
        attributes = _attributes(self)
        try:
            return train(self, *args, **kwargs)
        except BaseException:
            is_restored = False
            while not is_restored:
                with suppress(KeyboardInterrupt):  # who presses Ctrl-C again has to wait for this
                    self.set_parameters(parameters)
                    vars(self).update(attributes)
                    is_restored = True
            raise

    return whole


def _copied(parameters: Any) -> Any:
    """What ``copy.deepcopy`` makes of them, in a third of its time: an iteration of a small task is about as short."""
    if isinstance(parameters, dict):
        return {name: _copied(value) for name, value in parameters.items()}
    if isinstance(parameters, th.Tensor):
        return parameters.detach().clone()
    return copy.deepcopy(parameters)


def _attributes(model: BaseAlgorithm) -> dict[str, Any]:
    return {name: copy.deepcopy(value) if isinstance(value, RunningMeanStd) else value for name, value in vars(model).items()}


def reset_when_interrupted(learn: Method[Model, Given, Result]) -> Method[Model, Given, Result]:
    """
    Begin the next ``learn`` with a reset where this one ends by Ctrl-C or an error: nobody knows where the environments are.

    :param learn: the method of an algorithm
    :return: the same
    """

    @functools.wraps(learn)
    def careful(self: Model, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        has_gradients = th.is_grad_enabled()
        try:
            return learn(self, *args, **kwargs)
        except BaseException:
            self._last_obs = None
            th.set_grad_enabled(has_gradients)  # Ctrl-C on the way out of no_grad() leaves them off for all that follows
            raise

    return careful
