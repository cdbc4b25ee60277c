"""Several systems at once, as simulators of a robot whose masses are not known: plans that are good over all of them."""

from collections.abc import Sequence

import numpy as np

from sb3_dpi.systems.protocols import RewardSystem, Rollouts
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

    @property
    def state_dim(self) -> int:
        """K nx, of K variants."""
        return len(self.variants) * self._nx

    @property
    def tangent_dim(self) -> int:
        """K dx, of K variants."""
        return len(self.variants) * self._dx

    def stack(self, states: FloatArray) -> FloatArray:
        """
        Begin everywhere in the same state.

        :param states: of one variant, ``[..., nx]``
        :return: ``[..., K nx]``
        """
        return np.concatenate([states] * len(self.variants), axis=-1)

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

    def _split(self, arrays: FloatArray) -> list[FloatArray]:
        return np.split(arrays, len(self.variants), axis=-1)
