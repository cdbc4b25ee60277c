"""Learned models as systems: an ensemble of networks, and local linear-Gaussian models.

Their states are observations, in the environment's units.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.systems.protocols import Penalty, Rollouts
from sb3_dpi.trajopt.types import FloatArray, IntArray, LinearGaussianDynamics, QuadraticCost
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.frozen import FrozenEnsemble

PARTICLES = ("ts1", "tsinf")
OPERATIONS_A_SECOND = 3e10
"""Of floating-point numbers, on one core of 2024 where many sequences are tried at once. Measured."""


class _Vectors:
    """States of a vector space."""

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``."""
        return states - origin

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``."""
        return origin + changes


class EnsembleSystem(_Vectors):
    """
    A learned ensemble: particles follow its members, a step is their mean.

    Trajectory sampling (Chua et al. 2018; notes of CS285, 10.3 to 10.4): each action sequence is tried by P particles, each in
    a member. With ``"tsinf"`` a particle stays in its member, as what is not known of a system does not change; with ``"ts1"``
    members are dealt anew at each step.

    :param ensemble: that has seen the system
    :param n_particles: P, a multiple of the members; None gives each member one; usual: 5 to 20
    :param particles: ``"ts1"`` or ``"tsinf"``
    :param penalty: subtracted from what steps earn; None for none
    :raises ValueError: if the numbers do not fit
    """

    def __init__(
        self,
        ensemble: Ensemble,
        n_particles: int | None = None,
        particles: str = "tsinf",
        penalty: Penalty | None = None,
    ) -> None:
        n = ensemble.n_members if n_particles is None else n_particles
        if n < 1 or n % ensemble.n_members:
            raise ValueError(f"n_particles must be a multiple of the {ensemble.n_members} members, got {n}")
        if particles not in PARTICLES:
            raise ValueError(f"particles must be one of {', '.join(PARTICLES)}, got {particles!r}")
        self.ensemble, self.n_particles, self.particles, self.penalty = ensemble, n, particles, penalty

    @property
    def state_dim(self) -> int:
        """nx"""
        return self.ensemble.state_dim

    @property
    def tangent_dim(self) -> int:
        """dx"""
        return self.ensemble.state_dim

    @property
    def action_dim(self) -> int:
        """du"""
        return self.ensemble.action_dim

    @property
    def step_seconds(self) -> float:
        """Of a core, for a step of one sequence, about: two operations for each weight that a particle meets."""
        n_weights = sum(parameter.numel() for parameter in self.ensemble.networks.parameters())
        return 2.0 * n_weights / self.ensemble.n_members * self.n_particles / OPERATIONS_A_SECOND

    @th.no_grad()
    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``: the mean of the members."""
        return self.ensemble.restore(self._mean(self.ensemble.standardize(states), self._tensor(actions)))

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See ``trajopt.systems.System``: by automatic differentiation of the mean."""
        inputs = self.ensemble.standardize(states).requires_grad_(), self._tensor(actions).requires_grad_()
        outputs = self._mean(*inputs)
        rows = [th.autograd.grad(outputs[:, i].sum(), inputs, retain_graph=True) for i in range(self.state_dim)]
        fx, fu = (th.stack(part, 1).double().cpu().numpy() for part in zip(*rows, strict=True))
        std = self.ensemble.state_std.cpu().numpy()
        return fx * std[:, None] / std, fu * std[:, None]

    @th.no_grad()
    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """See ``protocols.RewardSystem``: rewards count by the probability that the episode comes so far."""
        E, (B, T, du) = self.ensemble.n_members, actions.shape
        model, each = FrozenEnsemble(self.ensemble), self.n_particles // E
        begun = self.ensemble.standardize(states)
        now = begun.expand(self.n_particles, B, -1).reshape(E, each * B, -1)
        goes_on = th.ones(E, each * B, device=now.device)
        rewards = list[th.Tensor]()
        taken = self._tensor(actions.swapaxes(0, 1)).contiguous()  # a step's are then read as they lie
        taken = taken if each == 1 else taken.repeat(1, each, 1)
        for t, chosen in enumerate(taken[:, None].expand(T, E, each * B, du).unbind()):
            if self.particles == "ts1" and t:
                now, goes_on = self._deal(now, goes_on, B, rng)
            predicted, rewarded = model.predict(now, chosen)
            following = model.clip(predicted)
            earned = self.ensemble.reward(now, chosen, following, rewarded)
            if self.penalty is not None:
                seen, given = self.ensemble.restore(now), np.tile(actions[:, t], (self.n_particles, 1))
                earned = earned - self._tensor(self.penalty(seen.reshape(len(given), -1), given)).view(earned.shape)
            rewards.append(earned if model.never_ends else goes_on * earned)
            if not model.never_ends:
                goes_on = goes_on * self.ensemble.continuation(now, chosen, following)
            now = following
        last = self.ensemble.restore(now.view(self.n_particles, B, -1))
        earned_by = th.stack(rewards).view(T, self.n_particles, B).mean(1).T.double().cpu().numpy()
        return Rollouts(earned_by, last.swapaxes(0, 1), goes_on.view(self.n_particles, B).T.double().cpu().numpy())

    def _deal(
        self, now: th.Tensor, goes_on: th.Tensor, n_sequences: int, rng: np.random.Generator
    ) -> tuple[th.Tensor, th.Tensor]:
        """Permute the particles of each action sequence among the members."""
        order = rng.permuted(np.tile(np.arange(self.n_particles), (n_sequences, 1)), axis=1).T
        rows = th.as_tensor(order, device=now.device), th.arange(n_sequences, device=now.device)
        states, alive = now.view(self.n_particles, n_sequences, -1), goes_on.view(self.n_particles, n_sequences)
        return states[rows].reshape(now.shape), alive[rows].reshape(goes_on.shape)

    def _mean(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        mean: th.Tensor = self.ensemble.predict(states, actions)[0].mean(0)
        return mean

    def _tensor(self, actions: FloatArray) -> th.Tensor:
        return th.as_tensor(actions, dtype=th.float32, device=self.ensemble.state_mean.device)


@dataclass(frozen=True)
class LocalSystem(_Vectors):
    """Local models of one condition: linear-Gaussian dynamics and a quadratic cost, both of the time step.

    What depends on time has it in its state: a state is ``[x; t]``, and t counts on to the last time step that was fitted.
    """

    dynamics: LinearGaussianDynamics
    """``[T]``"""
    cost: QuadraticCost
    """``[T]``"""

    @property
    def horizon(self) -> int:
        """T, the time steps that were fitted."""
        return len(self.dynamics.f)

    @property
    def state_dim(self) -> int:
        """dx and the time."""
        return int(self.dynamics.f.shape[-1]) + 1

    @property
    def tangent_dim(self) -> int:
        """As many: the time is a number among the others."""
        return self.state_dim

    @property
    def action_dim(self) -> int:
        """du"""
        return int(self.dynamics.F.shape[-1] - self.dynamics.f.shape[-1])

    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``: the mean."""
        t = self._times(states)
        z = np.concatenate([states[:, :-1], actions], axis=-1)
        following = np.einsum("bij,bj->bi", self.dynamics.F[t], z) + self.dynamics.f[t]
        return np.concatenate([following, states[:, -1:] + 1.0], axis=-1)

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See ``trajopt.systems.System``; the time is taken as given."""
        F, dx = self.dynamics.F[self._times(states)], self.state_dim - 1
        fx, fu = np.zeros((len(F), dx + 1, dx + 1)), np.zeros((len(F), dx + 1, self.action_dim))
        fx[:, :dx, :dx], fx[:, dx, dx], fu[:, :dx] = F[..., :dx], 1.0, F[..., dx:]
        return fx, fu

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """See ``protocols.RewardSystem``: noise is drawn for each sequence, rewards are negative costs."""
        B, T, _ = actions.shape
        now, rewards = np.broadcast_to(states, (B, self.state_dim)).copy(), np.empty((B, T))
        for t in range(T):
            k = self._times(now)
            z = np.concatenate([now[:, :-1], actions[:, t]], axis=-1)
            C, c = self.cost.C[k], self.cost.c[k]
            rewards[:, t] = -(0.5 * np.einsum("bi,bij,bj->b", z, C, z) + np.einsum("bi,bi->b", c, z) + self.cost.const[k])
            now = self.step(now, actions[:, t])
            noise = rng.standard_normal((B, self.state_dim - 1))
            now[:, :-1] += np.einsum("bij,bj->bi", _roots(self.dynamics.cov[k]), noise)
        return Rollouts(rewards, now[:, None, :-1], np.ones((B, 1)))

    def _times(self, states: FloatArray) -> IntArray:
        times: IntArray = np.clip(np.rint(states[:, -1]).astype(int), 0, self.horizon - 1)
        return times


def _roots(covariances: FloatArray) -> FloatArray:
    """:return: symmetric square roots, which also singular ones have"""
    values, vectors = np.linalg.eigh(covariances)
    roots: FloatArray = (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return roots
