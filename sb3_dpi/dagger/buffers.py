"""Replay buffers of Stable-Baselines3 that keep with each row what the expert would have done there."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_dpi.trajopt.types import FloatArray


def label_size(space: spaces.Space[Any]) -> int:
    """
    How many numbers a label has.

    :param space: of actions
    :return: one for each entry of a Box, one for each action of a Discrete
    """
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))


class Labels(ReplayBuffer):
    """
    What a replay buffer inherits to keep labels. They are saved with it.

    :param args: of ``ReplayBuffer``
    :param kwargs: likewise
    """

    more_arrays: ClassVar[tuple[str, ...]] = ("labels", "spreads")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = self.buffer_size, self.n_envs, label_size(self.action_space)
        self.labels = np.zeros(shape, dtype=np.float32)
        """in units of the bounds, or probabilities of Discrete actions, ``[buffer_size, n_envs, k]``"""
        self.spreads = np.zeros(shape, dtype=np.float32)
        """standard deviations of the expert in the same units; 0 where only its action is known"""

    def label(self, place: int, labels: FloatArray, spreads: FloatArray) -> None:
        """
        Label one step of all environments.

        :param place: in the ring
        :param labels: ``[n_envs, k]``
        :param spreads: ``[n_envs, k]``
        """
        self.labels[place], self.spreads[place] = labels, spreads

    def extend(self, *args: Any, **kwargs: Any) -> None:
        """
        Refused: rows without labels have nothing to imitate.

        :raises ValueError: always
        """
        raise ValueError("Rows that are added hold no labels to imitate: let DAgger take its own steps")


class LabelledReplayBuffer(Labels):
    """``ReplayBuffer`` with labels."""


class LabelledDictReplayBuffer(Labels, DictReplayBuffer):
    """``DictReplayBuffer`` with labels."""


def labelled(buffer_class: type[ReplayBuffer] | None, space: spaces.Space[Any]) -> type[ReplayBuffer]:
    """
    The class that is meant, with labels.

    :param buffer_class: what was asked for; None for the usual one
    :param space: of observations
    :return: the class
    :raises ValueError: if it cannot keep labels
    """
    if buffer_class is None or buffer_class in (ReplayBuffer, DictReplayBuffer):
        return LabelledDictReplayBuffer if isinstance(space, spaces.Dict) else LabelledReplayBuffer
    if not issubclass(buffer_class, Labels):
        raise ValueError(
            f"A {buffer_class.__name__} keeps no labels: derive it from sb3_dpi.dagger.buffers.LabelledReplayBuffer, or leave "
            "replay_buffer_class out"
        )
    return buffer_class
