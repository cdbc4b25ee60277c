"""What a plan closes with: two networks with slow copies, of which there are three kinds (for V-functions see ``values``).

Soft Q-functions learn from real and imagined steps:

    y = r / unit + gamma c (min_i Q_i'(x', u') - alpha log pi(u'|x')),   u' ~ pi(.|x'),

c the probability that the episode goes on, Q' slow copies of the two networks. Rewards are expressed in a unit that follows
their size, so that learning rates and the temperature alpha mean the same on every task. What a target may promise is bounded
by what has been realised: critics that believe their own optimism ended otherwise good runs.

Shapes: ``K`` updates of ``B`` rows, states ``[n, dx]``, actions ``[n, du]``.
"""

from dataclasses import dataclass

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional

from sb3_dpi.models import kernels
from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.models.data import Transitions
from sb3_dpi.models.ensemble import Ensemble, Residuals
from sb3_dpi.models.imagination import Pool
from sb3_dpi.models.networks import StackedMLP
from sb3_dpi.trajopt.types import FloatArray

REALISED_QUANTILE = 0.999
"""Of the returns, what counts as the best realised."""
SLACK_BELOW, SLACK_ABOVE = 0.2, 0.3
"""How far targets may lie beyond the realised returns, in their own size."""
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
class Lessons:
    """What can be learned from between two blocks of real steps."""

    data: Transitions
    """real steps"""
    real: Pool
    """the same, standardised, rewards in the environment's units"""
    pool: Pool
    """real steps, then imagined ones, rewards in units of value"""
    ensemble: Ensemble
    residuals: Residuals | None
    """of the model on the real steps, None without anchor"""


class Critic(nn.Module):
    """Two networks with layer normalisation, their slow copies and their units.

    :param state_dim: dx
    :param action_dim: du
    :param hidden: widths of the hidden layers; usual: (64, 64) to (256, 256)
    :param learning_rate: of Adam; usual: 3e-4 to 1e-3
    :param tau: by how much the slow copies follow at each update; usual: .005 to .02
    :param real_fraction: share of real rows in a minibatch; usual: .1 to 1
    """

    uses_actions = True
    """whether the networks read the action"""
    unit: th.Tensor
    low: th.Tensor
    high: th.Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: tuple[int, ...] = (64, 64),
        learning_rate: float = 1e-3,
        tau: float = 0.02,
        real_fraction: float = 0.2,
    ):
        super().__init__()
        sizes = (state_dim + action_dim * self.uses_actions, *hidden, 1)
        self.networks = StackedMLP(2, sizes, layer_norm=True, last_gain=0.1)
        self.targets = StackedMLP(2, sizes, layer_norm=True, last_gain=0.1)
        self.targets.load_state_dict(self.networks.state_dict())
        self.targets.requires_grad_(False)
        self.tau, self.real_fraction = tau, real_fraction
        self.register_buffer("unit", th.ones((), dtype=th.float64))
        self.register_buffer("low", th.tensor(-np.inf))  # of targets, in units of value
        self.register_buffer("high", th.tensor(np.inf))
        self.optimizer = th.optim.Adam([self.networks.flat], lr=learning_rate)

    def forward(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Mean of the two networks.

        :param states: standardised, ``[n, dx]``
        :param actions: ``[n, du]``
        :return: in units of value, ``[n]``
        """
        return self.networks(th.cat([states, actions], dim=-1) if self.uses_actions else states).mean(0)[:, 0]

    def rescale_states(self, scale: th.Tensor, shift: th.Tensor) -> None:
        """
        Follow a change of the states' units.

        :param scale: as in ``UnitsChange``
        :param shift: as in ``UnitsChange``
        """
        for networks in (self.networks, self.targets):
            networks.rescale_inputs(scale, shift)

    def follow_rewards(self, rewards: FloatArray, returns: FloatArray) -> float:
        """
        Express value in the size of the latest rewards, and bound it by the realised returns.

        :param rewards: the latest, ``[k]``
        :param returns: discounted returns to go of all steps, ``[n]``
        :return: the old unit in the new one, by which what is in units of value must be multiplied
        """
        unit = UNIT_IN_REWARDS * max(float(np.sqrt(np.mean(np.square(rewards)))), 1e-8)
        ratio = float(self.unit) / unit
        for networks in (self.networks, self.targets):
            networks.rescale_outputs(1.0 / ratio)
        self.unit.fill_(unit)
        spread, worst, best = returns.std(), returns.min(), np.quantile(returns, REALISED_QUANTILE)
        self.low.fill_((worst - SLACK_BELOW * max(abs(worst), spread)) / unit)
        self.high.fill_((best + SLACK_ABOVE * max(abs(best), spread)) / unit)
        return ratio

    def bound(self, values: th.Tensor) -> th.Tensor:
        """
        Keep values within what was realised, and a little beyond.

        :param values: in units of value
        :return: the same shape
        """
        return th.minimum(th.maximum(values, self.low), self.high)

    def begin(
        self, lessons: Lessons, actor: SquashedGaussian, temperature: float, gamma: float, rng: np.random.Generator
    ) -> None:
        """
        Prepare for new lessons.

        :param lessons: what can be learned from
        :param actor: the policy
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :param rng: draws what must be sampled
        """

    def learn(
        self,
        lessons: Lessons,
        n_updates: int,
        batch_size: int,
        actor: SquashedGaussian,
        temperature: float,
        gamma: float,
        rng: np.random.Generator,
    ) -> CriticUpdate:
        """
        Take steps of Adam.

        :param lessons: what to learn from
        :param n_updates: K
        :param batch_size: B
        :param actor: the policy
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :param rng: draws minibatches and actions
        :return: what the updates did
        """
        raise NotImplementedError

    def descend(self, inputs: th.Tensor, targets: th.Tensor) -> float:
        """
        One step of Adam on the Huber loss, and of the slow copies.

        :param inputs: ``[B, n_in]``
        :param targets: in units of value, ``[B]``
        :return: the loss
        """
        values = self.networks(inputs)[..., 0]
        # the sum over the two networks: each has a loss of its own
        loss = 2.0 * functional.huber_loss(values, targets.expand_as(values))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with th.no_grad():
            self.targets.flat.lerp_(self.networks.flat, self.tau)
        return 0.5 * float(loss.detach())


class SoftTwinQ(Critic):
    """Soft Q-functions."""

    def learn(
        self,
        lessons: Lessons,
        n_updates: int,
        batch_size: int,
        actor: SquashedGaussian,
        temperature: float,
        gamma: float,
        rng: np.random.Generator,
    ) -> CriticUpdate:
        """
        Take steps of Adam on real and imagined steps.

        :param lessons: what to learn from
        :param n_updates: K
        :param batch_size: B
        :param actor: the policy
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :param rng: draws minibatches and actions
        :return: what the updates did
        """
        n_real, n = len(lessons.data), len(lessons.pool)
        from_real = round(self.real_fraction * batch_size) if n > n_real else batch_size
        real = rng.integers(n_real, size=(n_updates, from_real))
        imagined = rng.integers(min(n_real, n - 1), n, size=(n_updates, batch_size - from_real))
        rows = np.concatenate([real, imagined], axis=1)
        noise = rng.standard_normal((*rows.shape, actor.action_dim)).astype(np.float32)
        return self.update(lessons.pool, rows, noise, actor, temperature, gamma)

    def update(
        self, pool: Pool, rows: np.ndarray, noise: np.ndarray, actor: SquashedGaussian, temperature: float, gamma: float
    ) -> CriticUpdate:
        """
        Take steps of Adam towards the soft Bellman targets.

        :param pool: transitions, rewards in units of value
        :param rows: of each minibatch, ``[K, B]``
        :param noise: standard normal, for the next actions, ``[K, B, du]``
        :param actor: the policy
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :return: what the updates did
        """
        if kernels.serves(self.networks, actor.network):
            return CriticUpdate(*kernels.update_critic(self, pool, rows, noise, actor, temperature, gamma))
        loss_sum, target = 0.0, th.zeros(())
        for k in range(len(rows)):
            index = th.as_tensor(rows[k], device=pool.states.device)
            target = self._targets(pool, index, th.as_tensor(noise[k], device=index.device), actor, temperature, gamma)
            loss_sum += self.descend(th.cat([pool.states[index], pool.actions[index]], dim=1), target)
        return CriticUpdate(loss_sum / max(len(rows), 1), float(target.mean()))

    @th.no_grad()
    def _targets(
        self, pool: Pool, index: th.Tensor, noise: th.Tensor, actor: SquashedGaussian, temperature: float, gamma: float
    ) -> th.Tensor:
        following = pool.next_states[index]
        actions, log_probs = actor.sample(following, noise)
        values = self.targets(th.cat([following, actions], dim=1))[..., 0].amin(0)
        bounded = self.bound(values) - temperature * log_probs
        return pool.rewards[index] + gamma * pool.survival[index] * bounded
