"""Which policy is deployed: the average of what learns, or what has earned most in tests.

A policy swings while it learns, its average too, and what it earns with the noise of exploration says little of what it earns
without. So some episodes are tests: the average as it is when the episode begins plays it to its end without noise. One that
earns more than the deployed policy has earned in tests takes its place; every third test is one of the deployed policy again,
lest luck decides for long. All these steps are remembered and learned from like any others.

Shapes: ``N`` environments, states ``[N, dx]``.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.dpi.policies import MlpPolicy
from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.trajopt.types import FloatArray

TESTS_OF_DEPLOYED = 3
"""One of so many tests is one of the deployed policy."""


@dataclass
class Challenge:
    """A test that goes on."""

    actor: SquashedGaussian
    mean: th.Tensor
    """by which the actor reads states, ``[dx]``"""
    std: th.Tensor
    act: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
    is_deployed: bool
    """whether the deployed policy is tested"""
    earned: float = 0.0


class Challenges:
    """
    Decides which episodes are tests, plays and judges them.

    :param every: of so many episodes of an environment one is a test; None: none is
    :param policy: whose average is tested
    """

    def __init__(self, every: int | None, policy: MlpPolicy) -> None:
        self._every, self._policy = every, policy
        self._n_episodes: dict[int, int] = {}
        self._n_tests = 0
        self._running: dict[int, Challenge] = {}

    def begin(self, i: int, mean: th.Tensor, std: th.Tensor) -> bool:
        """
        Note the beginning of an episode.

        :param i: number of its environment
        :param mean: by which the policy reads states now, ``[dx]``
        :param std: likewise
        :return: whether it is a test
        """
        self._running.pop(i, None)
        if self._every is None:
            return False
        self._n_episodes[i] = self._n_episodes.get(i, 0) + 1
        if self._n_episodes[i] % self._every:
            return False
        self._n_tests += 1
        is_deployed = self._policy.was_tested and self._n_tests % TESTS_OF_DEPLOYED == 0
        actor = copy.deepcopy(self._policy.deployed if is_deployed else self._policy.averaged)
        act = self._policy.export(mean, std, actor)
        self._running[i] = Challenge(actor, mean.clone(), std.clone(), act, is_deployed)
        return True

    def act(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """
        Act without noise where an episode is a test.

        :param states: of all environments, ``[N, dx]``
        :param actions: with noise, ``[N, du]``
        :return: ``[N, du]``
        """
        for i, test in self._running.items():
            actions[i] = np.tanh(test.act(states[i : i + 1])[0][0])
        return actions

    def count(self, rewards: FloatArray, dones: np.ndarray, mean: th.Tensor, std: th.Tensor) -> list[float]:
        """
        Note a step of all environments, and judge tests that end with it.

        :param rewards: in units of the environment, ``[N]``
        :param dones: which episodes ended, ``[N]``
        :param mean: as in ``begin``
        :param std: likewise
        :return: what was earned in tests that ended
        """
        ended = []
        for i, test in list(self._running.items()):
            test.earned += float(rewards[i])
            if dones[i]:
                del self._running[i]
                ended.append(test.earned)
                self._judge(test, mean, std)
        return ended

    @th.no_grad()
    def _judge(self, test: Challenge, mean: th.Tensor, std: th.Tensor) -> None:
        if test.is_deployed:
            self._policy.note_test(test.earned)
        elif not self._policy.was_tested or test.earned > float(self._policy.tested_return):
            test.actor.network.rescale_inputs((std / test.std).float(), ((mean - test.mean) / test.std).float())
            self._policy.deploy(test.actor, test.earned)
