"""What a plan closes with: two networks with slow copies. Q-functions are here, V-functions in ``returns_critic``.

Soft Q-functions learn from real and imagined steps:

    y = r / unit + gamma c (min_i Q_i'(x', u') - alpha log pi(u'|x')),   u' ~ pi(.|x'),

c the probability that the episode goes on, Q' slow copies of the two networks. Rewards are expressed in a unit that follows
their size, so that learning rates and the temperature alpha mean the same on every task. What a target may promise is bounded
by what has been realised: critics that believe their own optimism ended otherwise good runs.

Shapes: ``K`` updates of ``B`` rows, states ``[n, dx]``, actions ``[n, du]``.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.backends import CriticBatches, adam_of, array_of, supports_optimizer, update_critic
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Batch, real_batch
from sb3_dpi.world_model.mlp import StackedMLP, follow
from sb3_dpi.world_model.rollouts import RolloutPool
from sb3_dpi.world_model.types import Memory

REALISED_QUANTILE = 0.999
"""Of the returns, what counts as the best realised."""
SLACK_BELOW, SLACK_ABOVE = 0.2, 0.3
"""How far targets may lie beyond the realised returns, in their own size."""
DRAWN_AT_ONCE = 8192
"""Real steps that are read and standardised at a time."""
UNIT_IN_REWARDS = 10.0
"""The unit of value, in root mean squares of the latest rewards."""


@dataclass(frozen=True)
class CriticUpdate:
    """What a series of updates did."""

    loss: float
    """mean Huber loss, in units of value"""
    target: float
    """mean target of the last update, in units of value"""


@dataclass(frozen=True)
class CriticOptions:
    """What closes a plan.

    :param kind: ``"q"``: soft Q-functions on real and imagined steps; ``"returns"``: V by TD(lambda) on the latest real steps
    :param learning_rate: of its optimizer; usual: 3e-4 to 1e-3
    :param lr_decay_after: updates after which the learning rate falls, as one over the root of their number, to a tenth at the
        least. 0: never; usual: 1e4 to 1e5. None: the preset's
    :param real_fraction: share of real steps in minibatches, the others are imagined; usual: .1 to 1
    :raises ValueError: if a number is out of range
    """

    kind: str = "q"
    learning_rate: float = 1e-3
    lr_decay_after: int | None = None
    real_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not self.learning_rate > 0.0:
            raise ValueError(f"critic: learning_rate must be above 0, got {self.learning_rate}")
        if not 0.0 <= self.real_fraction <= 1.0:
            raise ValueError(f"critic: real_fraction must be from 0 to 1, got {self.real_fraction}")
        if self.lr_decay_after is not None and not self.lr_decay_after >= 0:
            raise ValueError(f"critic: lr_decay_after must be at least 0, got {self.lr_decay_after}")


class RealSteps:
    """
    Real steps drawn at random, many at a time, for a few cost nearly as much.

    :param memory: real steps
    :param ensemble: its units are used
    :param unit: of value, in rewards
    """

    def __init__(self, memory: Memory, ensemble: Ensemble, unit: float) -> None:
        self._memory, self._ensemble, self._unit = memory, ensemble, unit
        self._drawn, self._given = real_batch(ensemble, memory.take(np.zeros(0, dtype=np.int64)), unit), 0

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """
        Draw with replacement.

        :param n: how many
        :param rng: draws
        :return: rewards in units of value
        """
        if self._given + n > len(self._drawn):
            rows = rng.integers(len(self._memory), size=max(n, DRAWN_AT_ONCE))
            self._drawn, self._given = real_batch(self._ensemble, self._memory.take(rows), self._unit), 0
        part = slice(self._given, self._given + n)
        self._given += n
        return Batch(*(getattr(self._drawn, name)[part] for name in vars(self._drawn)))


@dataclass(frozen=True)
class CriticData:
    """What a critic learns from between two blocks of real steps."""

    memory: Memory
    """real steps"""
    ensemble: Ensemble
    """its units are used"""
    real: RealSteps
    """of the same memory, rewards in units of value"""
    rollouts: RolloutPool
    """of the model, rewards in units of value"""

    @property
    def imagined(self) -> Batch:
        """Steps of the model rollouts."""
        return self.rollouts.steps


@dataclass(frozen=True)
class Learner:
    """The policy that a critic evaluates, and how fast."""

    actor: SquashedGaussian
    temperature: float
    """alpha, in units of value"""
    gamma: float
    """discount factor"""
    tau: float
    """by how much the slow copies follow at each update; usual: .005 to .02"""


class Critic(nn.Module):
    """Two networks with layer normalisation, their slow copies and their units.

    :param state_dim: dx
    :param action_dim: du
    :param hidden: widths of the hidden layers; usual: (64, 64) to (256, 256)
    :param learning_rate: of the optimizer; usual: 3e-4 to 1e-3
    :param real_fraction: share of real rows in a minibatch; usual: .1 to 1
    :param activation_fn: of the hidden layers; hardswish has compiled loops
    :param features: what the networks read of states, as in ``SquashedGaussian``; None: the states
    :param shares_features: whether somebody else teaches ``features``, which are then read as they are
    :param optimizer_class: of the networks, and of features of their own; Adam without variants has compiled loops
    :param optimizer_kwargs: for it, beside the learning rate
    """

    uses_actions = True
    """whether the networks read the action"""
    unit: th.Tensor
    worst: th.Tensor
    best: th.Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: tuple[int, ...] = (64, 64),
        learning_rate: float = 1e-3,
        real_fraction: float = 0.2,
        activation_fn: type[nn.Module] = nn.Hardswish,
        features: nn.Module | None = None,
        shares_features: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        n_read = state_dim if features is None else int(features.features_dim)  # type: ignore[arg-type]
        sizes = (n_read + action_dim * self.uses_actions, *hidden, 1)
        self.networks = StackedMLP(2, sizes, True, 0.1, activation_fn)
        self.targets = StackedMLP(2, sizes, True, 0.1, activation_fn)
        self.targets.load_state_dict(self.networks.state_dict())
        self.targets.requires_grad_(False)
        self.features, self.shares_features = features, shares_features
        self.slow_features = None if features is None else copy.deepcopy(features).requires_grad_(False)
        self.real_fraction = real_fraction
        self.register_buffer("unit", th.ones((), dtype=th.float64))
        self.register_buffer("worst", th.tensor(-np.inf, dtype=th.float64))  # of targets, in rewards
        self.register_buffer("best", th.tensor(np.inf, dtype=th.float64))
        own = [] if features is None or shares_features else [part for part in features.parameters() if part.requires_grad]
        options = {"lr": learning_rate, **(optimizer_kwargs or {})}
        self.optimizer = optimizer_class([self.networks.flat, *own], **options)
        self.eval()

    def train(self, mode: bool = True) -> "Critic":
        """
        Let layers such as dropout know whether their own parameters are being learned.

        :param mode: False: the critic only judges
        :return: itself
        """
        super().train(mode)
        if self.slow_features is not None:
            self.slow_features.eval()
        if self.features is not None and self.shares_features:
            self.features.eval()
        return self

    @property
    def is_compiled(self) -> bool:
        """Whether compiled jobs can stand in for torch."""
        return self.features is None and self.networks.is_compiled

    def read(self, states: th.Tensor, actions: th.Tensor | None = None, slow: bool = False) -> th.Tensor:
        """
        What the networks are shown.

        :param states: standardised, ``[n, dx]``
        :param actions: ``[n, du]``, where the networks read them
        :param slow: whether it is shown to the slow copies
        :return: ``[n, n_in]``
        """
        features = self.slow_features if slow else self.features
        if features is not None and self.shares_features and not slow:
            fixed = {name: parameter.detach() for name, parameter in features.named_parameters()}
            states = functional_call(features, fixed, (states,))
        elif features is not None:
            states = features(states)
        return states if actions is None or not self.uses_actions else th.cat([states, actions], dim=-1)

    def forward(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Mean of the two networks.

        :param states: standardised, ``[n, dx]``
        :param actions: ``[n, du]``
        :return: in units of value, ``[n]``
        """
        values: th.Tensor = self.networks(self.read(states, actions))
        return values.mean(0)[:, 0]

    def rescale_states(self, scale: th.Tensor, shift: th.Tensor) -> None:
        """
        Follow a change of the states' units.

        :param scale: as in ``UnitsChange``
        :param shift: as in ``UnitsChange``
        """
        for networks in (self.networks, self.targets):
            if self.features is None:
                networks.rescale_inputs(scale, shift)

    @property
    def bounds(self) -> tuple[float, float]:
        """What targets may be, in units of value."""
        return float(self.worst / self.unit), float(self.best / self.unit)

    def follow_rewards(self, rewards: FloatArray, returns: FloatArray) -> float:
        """
        Express value in the size of the latest rewards, and widen its bounds to the realised returns.

        Before the first reward that is not zero there is no unit, and networks have no function of rewards that could be kept:
        their values are of order one in any unit.

        :param rewards: the latest, ``[k]``
        :param returns: discounted returns to go of the latest steps, ``[n]``
        :return: the old unit in the new one, by which what is in units of value must be multiplied
        """
        size, fresh = float(np.sqrt(np.mean(np.square(rewards)))), not bool(th.isfinite(self.worst))
        if fresh and size == 0.0:
            return 1.0
        unit = UNIT_IN_REWARDS * size or float(self.unit)
        ratio = 1.0 if fresh else float(self.unit) / unit
        if not fresh:
            for networks in (self.networks, self.targets):
                networks.rescale_outputs(1.0 / ratio)
        self.unit.fill_(unit)
        spread, worst, best = returns.std(), returns.min(), np.quantile(returns, REALISED_QUANTILE)
        low, high = worst - SLACK_BELOW * max(abs(worst), spread), best + SLACK_ABOVE * max(abs(best), spread)
        self.worst.fill_(low if fresh else min(low, float(self.worst)))
        self.best.fill_(high if fresh else max(high, float(self.best)))
        return ratio

    def bound(self, values: th.Tensor) -> th.Tensor:
        """
        Keep values within what was realised, and a little beyond.

        :param values: in units of value
        :return: the same shape
        """
        return values.clamp(*self.bounds)

    def begin(self, data: CriticData, learner: Learner, rng: np.random.Generator) -> None:
        """
        Prepare for new data.

        :param data: what can be learned from
        :param learner: the policy
        :param rng: draws what must be sampled
        """

    def learn(
        self, data: CriticData, n_updates: int, batch_size: int, learner: Learner, rng: np.random.Generator
    ) -> CriticUpdate:
        """
        Take steps of the optimizer.

        :param data: what to learn from
        :param n_updates: K
        :param batch_size: B
        :param learner: the policy
        :param rng: draws minibatches and actions
        :return: what the updates did
        """
        raise NotImplementedError

    def descend(self, inputs: th.Tensor, targets: th.Tensor, tau: float) -> float:
        """
        One step of the optimizer on the Huber loss, and of the slow copies.

        :param inputs: as from ``read``, ``[B, n_in]``
        :param targets: in units of value, ``[B]``
        :param tau: by how much the slow copies follow
        :return: the loss
        """
        values = self.networks(inputs)[..., 0]
        # the sum over the two networks: each has a loss of its own
        loss = 2.0 * functional.huber_loss(values, targets.expand_as(values))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        follow(self.targets, self.networks, tau)
        if self.features is not None and self.slow_features is not None:
            follow(self.slow_features, self.features, tau)
        return 0.5 * float(loss.detach())


class SoftTwinQ(Critic):
    """Soft Q-functions."""

    def learn(
        self, data: CriticData, n_updates: int, batch_size: int, learner: Learner, rng: np.random.Generator
    ) -> CriticUpdate:
        """
        Take steps of the optimizer on real and imagined steps.

        :param data: what to learn from
        :param n_updates: K
        :param batch_size: B
        :param learner: the policy
        :param rng: draws minibatches and actions
        :return: what the updates did
        """
        from_real = round(self.real_fraction * batch_size) if len(data.imagined) else batch_size
        real = data.real.draw(n_updates * from_real, rng)
        drawn = rng.integers(max(len(data.imagined), 1), size=n_updates * (batch_size - from_real))
        rows = th.as_tensor(drawn, device=data.imagined.rewards.device)
        joined = []
        for name in ("states", "actions", "rewards", "next_states", "continuation"):
            seen, imagined = getattr(real, name), getattr(data.imagined, name)[rows]
            parts = (array.view(n_updates, len(array) // n_updates, *array.shape[1:]) for array in (seen, imagined))
            joined.append(th.cat(tuple(parts), dim=1))
        noise = rng.standard_normal((n_updates, batch_size, learner.actor.action_dim)).astype(np.float32)
        return self.update(Batch(*joined), noise, learner)

    def update(self, batches: Batch, noise: np.ndarray, learner: Learner) -> CriticUpdate:
        """
        Take steps of the optimizer towards the soft Bellman targets.

        :param batches: transitions of each minibatch, rewards in units of value, ``[K, B, ...]``
        :param noise: standard normal, for the next actions, ``[K, B, du]``
        :param learner: the policy
        :return: what the updates did
        """
        if self.is_compiled and learner.actor.is_compiled and supports_optimizer(self.optimizer):
            return self._update_compiled(batches, noise, learner)
        loss_sum, target = 0.0, th.zeros(())
        for k in range(len(noise)):
            batch = Batch(*(getattr(batches, name)[k] for name in vars(batches)))
            target = self._targets(batch, th.as_tensor(noise[k], device=batch.states.device), learner)
            loss_sum += self.descend(self.read(batch.states, batch.actions), target, learner.tau)
        return CriticUpdate(loss_sum / max(len(noise), 1), float(target.mean()))

    def _update_compiled(self, batches: Batch, noise: np.ndarray, learner: Learner) -> CriticUpdate:
        states, actions, rewards, next_states, continuation = (array_of(getattr(batches, name)) for name in vars(batches))
        arrays = CriticBatches(states, actions, rewards, next_states, continuation, noise)
        adam, slow = adam_of(self.networks.flat, self.optimizer, len(noise)), array_of(self.targets.flat)
        policy, soft = learner.actor.arrays(), (learner.temperature, learner.gamma, *self.bounds)
        return CriticUpdate(*update_critic(self.networks.arrays(), slow, adam, learner.tau, policy, arrays, *soft))

    @th.no_grad()
    def _targets(self, batch: Batch, noise: th.Tensor, learner: Learner) -> th.Tensor:
        actions, log_probs = learner.actor.sample(batch.next_states, noise)
        values = self.targets(self.read(batch.next_states, actions, slow=True))[..., 0].amin(0)
        bounded = self.bound(values) - learner.temperature * log_probs
        return batch.rewards + learner.gamma * batch.continuation * bounded
