"""Several systems at once, as simulators of a robot whose masses are not known: plans that are good over all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_dpi.systems.continuous import ContinuousSimulator
from sb3_dpi.systems.protocols import RewardSystem, Rollouts, Trace, trace_of
from sb3_dpi.trajopt.types import FloatArray


class VariedSystem:
    """
    Variants of a system that take the same actions, side by side: rewards are the mean over them.

    A state is those of all variants behind one another, so that this too is a ``RewardSystem``, and planners by
    gradients see all variants.

    :param variants: with states, changes and actions of the same sizes
    :raises ValueError: if there are none, or sizes differ
    """

    def __init__(self, variants: Sequence[RewardSystem]) -> None:
        if not variants:
            raise ValueError("No variant of a system: give at least one")
        self.variants = list(variants)
        sizes = [(system.state_dim, system.tangent_dim, system.action_dim) for system in variants]
        for i, size in enumerate(sizes):
            if size != sizes[0]:
                raise ValueError(
                    f"Variant {i} has states, changes and actions of {size} numbers, the first of {sizes[0]}: vary "
                    "parameters, not the shape of what is planned in"
                )
        self._nx, self._dx, self.action_dim = sizes[0]
        self._simulators = [variant.simulator for variant in variants if isinstance(variant, ContinuousSimulator)]
        self._n_worlds = len({one.world(one.reset(seed=0)) for one in self._simulators})
        self._is_checked = False

    @property
    def state_dim(self) -> int:
        """K nx, of K variants."""
        return len(self.variants) * self._nx

    @property
    def tangent_dim(self) -> int:
        """K dx, of K variants."""
        return len(self.variants) * self._dx

    @property
    def step_seconds(self) -> float | None:
        """Of a core, for a step of one sequence in all variants, about; None where one does not tell."""
        each: list[Any] = [getattr(variant, "step_seconds", None) for variant in self.variants]
        return None if None in each else float(sum(each))

    def stack(self, states: FloatArray) -> FloatArray:
        """
        Begin everywhere in the same state.

        :param states: of one variant, ``[..., nx]``
        :return: ``[..., K nx]``
        """
        return np.concatenate([states] * len(self.variants), axis=-1)

    def begin(self, state: Any) -> FloatArray:
        """
        Begin everywhere in the same state, each variant with parameters of its own.

        :param state: of ``Simulator.read``; of variants without ``begin`` a state ``[nx]``
        :return: ``[K nx]``
        :raises ValueError: if variants differ in nothing that is their own
        """
        if not self._is_checked:
            if len({one.world(one.adopt(state)) for one in self._simulators}) < self._n_worlds:
                raise ValueError(
                    "Variants are the same simulator once they begin in a state that was read: keep what is varied in "
                    "attributes of the environment or of its wrappers that reset and step leave alone, not in an object that "
                    "itself changes"
                )
            self._is_checked = True
        return np.concatenate([variant.begin(state) if hasattr(variant, "begin") else state for variant in self.variants])

    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``."""
        parts = zip(self.variants, self._split(states), strict=True)
        return np.concatenate([system.step(part, actions) for system, part in parts], axis=-1)

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See ``trajopt.systems.System``; fx is block-diagonal."""
        K, dx, T = len(self.variants), self._dx, len(states)
        fx, fu = np.zeros((T, K, dx, K, dx)), np.zeros((T, K, dx, self.action_dim))
        for k, (system, part) in enumerate(zip(self.variants, self._split(states), strict=True)):
            fx[:, k, :, k], fu[:, k] = system.linearize(part, actions)
        return fx.reshape(T, K * dx, K * dx), fu.reshape(T, K * dx, -1)

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``."""
        parts = zip(self.variants, self._split(origin), self._split(states), strict=True)
        return np.concatenate([system.difference(a, b) for system, a, b in parts], axis=-1)

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``."""
        parts = zip(self.variants, self._split(origin), self._split(changes), strict=True)
        return np.concatenate([system.integrate(a, d) for system, a, d in parts], axis=-1)

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """See ``protocols.RewardSystem``: the variants are particles."""
        parts = zip(self.variants, self._split(states), strict=True)
        tried = [system.rollout(part, actions, rng) for system, part in parts]
        return Rollouts(
            np.mean([one.rewards for one in tried], axis=0),
            np.concatenate([one.last_observations for one in tried], axis=1),
            np.concatenate([one.continuation for one in tried], axis=1),
        )

    def trace(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Trace:
        """See ``protocols.trace_of``: the variants are particles."""
        parts = zip(self.variants, self._split(states), strict=True)
        tried = [trace_of(system, part, actions, rng) for system, part in parts]
        joined = (
            np.concatenate([getattr(one, name) for one in tried], axis=1) for name in ("rewards", "observations", "alive")
        )
        return Trace(*joined)

    def observe(self, states: FloatArray) -> FloatArray:
        """
        Say what is observed in states.

        :param states: ``[n, K nx]``
        :return: in each variant, ``[n, K, do]``
        """
        parts = zip(self.variants, self._split(states), strict=True)
        return np.stack([system.observe(part) if hasattr(system, "observe") else part for system, part in parts], axis=1)

    def check_vectors(self, with_rewards: bool = True) -> None:
        """See ``ContinuousSimulator.check_vectors``."""
        for variant in self.variants:
            if hasattr(variant, "check_vectors"):
                variant.check_vectors(with_rewards)

    def _split(self, arrays: FloatArray) -> list[FloatArray]:
        return np.split(arrays, len(self.variants), axis=-1)
