"""A learned model of the system: an ensemble of networks for change of state and reward, and one for the end of an episode.

Every number inside is standardised: states by the mean and standard deviation of all that was seen, changes and rewards by
theirs. A member predicts

    x' = x + b + A f_e(x, u),    r = m + s f_e(x, u),

f_e its network. Where the system is deterministic, the difference between what a member predicts for a real step and what
happened is its error there, and nearly its error for other actions in the same state: ``residuals`` are these differences,
and imagination that adds them is corrected on-policy (Froehlich et al. 2022, on-policy model errors). In a random system they
are the noise that was drawn. They belong to a version of the model: they are computed when needed and never kept.

Units follow running moments of all that was ever seen; a fit standardises the rows that it draws.

Shapes: ``E`` members, ``n`` rows, states ``[n, dx]``, actions in units of the bounds ``[n, du]``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional

from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray
from sb3_dpi.trajopt.units import spread_or_one, varies
from sb3_dpi.world_model.backends import adam_of, array_of, fit_classifier, fit_ensemble
from sb3_dpi.world_model.backends.arrays import CHANGE_LIMIT
from sb3_dpi.world_model.minibatches import Drawing, chunks
from sb3_dpi.world_model.mlp import StackedMLP
from sb3_dpi.world_model.types import Memory, Transitions

SystemFunction = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
"""Of states, actions in units of the bounds and next states, all ``[n, ...]`` and in the environment's units: ``[n]``"""

STATE_LIMIT = 10.0
"""Standard deviations at which standardised states are clipped."""
FASTEST_RESCALE = 1.5
"""Factor by which an update may change a standard deviation: faster ones destroyed models of systems that first fall over."""
SMALLEST_CHANGE, SMALLEST_REWARD = 1e-6, 1e-3
"""Smallest standard deviations that targets are expressed in: of a state's change, in that of the state; of rewards, in the
largest of them."""
RATES = np.linspace(1.0, 0.1, 6)
"""Learning rates of the sixths of a fit, in the given one: large ones follow new data, small ones settle."""
MODEL_BATCH = 64
"""Rows of a step of the model: four times as many steps on a quarter of the rows fit better at the same cost."""
TERMINATION_BATCH = 48, 16
"""Rows of a step of the termination network: of all, and of those that ended an episode."""
ROWS_IN_CACHE = 1024
"""Of each member, that are predicted at a time: a third of the time of all at once."""
SMALLEST_DISAGREEMENT = 1e-4
"""Standard deviations of what is predicted."""


class DivergedError(RuntimeError):
    """The model could not be fitted."""


@dataclass(frozen=True)
class UnitsChange:
    """How standardised states changed: the new ones are ``(old - shift) / scale``."""

    scale: th.Tensor
    """``[dx]``"""
    shift: th.Tensor
    """``[dx]``"""


@dataclass(frozen=True)
class Residuals:
    """What real steps did beyond a member's prediction."""

    states: th.Tensor
    """in standardised units, ``[E, n, dx]``"""
    rewards: th.Tensor
    """in units of the environment, ``[E, n]``"""


@dataclass(frozen=True)
class WorldModel:
    """What the learned model is like.

    :param n_members: networks of the ensemble; usual: 3 to 7
    :param width: of their two hidden layers; usual: 64 to 256
    :param learning_rate: of Adam; it falls to a tenth within the steps between two blocks; usual: 5e-4 to 3e-3
    :param gradient_steps: steps of Adam for each real step; usual: 1 to 8
    :param cost_fn: a known cost, ``cost_fn(obs, action, next_obs) -> cost [n]`` (cost = -reward), in torch, batched and in the
        environment's units: replaces the learned reward
    :param termination_fn: a known end of episodes, ``termination_fn(obs, action, next_obs) -> bool [n]``, likewise
    :param pessimism: What imagined rewards lose for each unit by which the members disagree, in standard deviations of the
        reward (Yu et al. 2020, MOPO): keeps plans where the data are when no real step corrects the model. It takes several
        times as long. 0: nothing; usual offline: .3 to 3
    :raises ValueError: if a number is out of range
    """

    n_members: int = 5
    width: int = 128
    learning_rate: float = 2e-3
    gradient_steps: float = 4.0
    cost_fn: SystemFunction | None = None
    termination_fn: SystemFunction | None = None
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_members", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"world_model: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_steps"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"world_model: {name} must be above 0, got {getattr(self, name)}")
        if not self.pessimism >= 0.0:
            raise ValueError(f"world_model: pessimism must be at least 0, got {self.pessimism}")


class Ensemble(nn.Module):
    """Deterministic members trained as one network, a termination network, and their units.

    :param state_dim: dx
    :param action_dim: du
    :param n_members: E; usual: 3 to 7
    :param width: of the two hidden layers; usual: 64 to 256
    :param learning_rate: of Adam; usual: 5e-4 to 3e-3
    """

    state_mean: th.Tensor
    state_std: th.Tensor
    change_mean: th.Tensor
    change_std: th.Tensor
    state_min: th.Tensor
    state_max: th.Tensor
    state_low: th.Tensor
    state_high: th.Tensor
    moments: th.Tensor
    n_seen: th.Tensor
    n_deaths: th.Tensor
    least_reward: th.Tensor
    largest_reward: th.Tensor

    def __init__(
        self, state_dim: int, action_dim: int, n_members: int = 5, width: int = 128, learning_rate: float = 1e-3
    ) -> None:
        super().__init__()
        self.state_dim, self.action_dim = state_dim, action_dim
        self.networks = StackedMLP(n_members, (state_dim + action_dim, width, width, state_dim + 1), last_gain=0.3)
        self.termination = StackedMLP(1, (state_dim, 64, 64, 1), last_gain=0.1)
        for name, size, value in (
            ("state_mean", state_dim, 0.0),
            ("state_std", state_dim, 1.0),
            ("change_mean", state_dim + 1, 0.0),  # of the change of state, then of the reward
            ("change_std", state_dim + 1, 1.0),
            ("state_min", state_dim, np.inf),  # of all that was seen, in the environment's units
            ("state_max", state_dim, -np.inf),
            ("state_low", state_dim, -STATE_LIMIT),  # limits of imagined states, standardised
            ("state_high", state_dim, STATE_LIMIT),
            ("moments", 2 * state_dim + 1, 0.0),  # sums of squares around the means, of states, then of changes
        ):
            self.register_buffer(name, th.full((size,), value, dtype=th.float64))
        for name, value in (("n_seen", 0.0), ("n_deaths", 0.0), ("least_reward", np.inf), ("largest_reward", -np.inf)):
            self.register_buffer(name, th.tensor(value, dtype=th.float64))
        self.known_reward: SystemFunction | None = None
        self.known_end: SystemFunction | None = None
        self.pessimism = 0.0
        self.optimizer = th.optim.Adam([self.networks.flat], lr=learning_rate)
        self.termination_optimizer = th.optim.Adam([self.termination.flat], lr=learning_rate)

    @property
    def has_units(self) -> bool:
        """Whether anything was seen."""
        return float(self.n_seen) > 0.0

    @property
    def sees_deaths(self) -> bool:
        """Whether an episode has ended for good."""
        return float(self.n_deaths) > 0.0

    @property
    def n_members(self) -> int:
        """E."""
        return self.networks.n_members

    @property
    def change_gain(self) -> th.Tensor:
        """A: from outputs of the network to standardised states, ``[dx]``."""
        return (self.change_std[:-1] / self.state_std).float()

    @property
    def change_offset(self) -> th.Tensor:
        """b, ``[dx]``."""
        return (self.change_mean[:-1] / self.state_std).float()

    def standardize(self, states: FloatArray) -> th.Tensor:
        """
        Express states in standard deviations.

        :param states: in units of the environment, ``[n, dx]``
        :return: clipped, ``[n, dx]``
        """
        raw = th.as_tensor(np.asarray(states, dtype=np.float64), device=self.state_mean.device)
        return ((raw - self.state_mean) / self.state_std).clamp(-STATE_LIMIT, STATE_LIMIT).float()

    def restore(self, states: th.Tensor) -> FloatArray:
        """
        Undo ``standardize``.

        :param states: ``[n, dx]``
        :return: in units of the environment
        """
        return (states.double() * self.state_std + self.state_mean).cpu().numpy()

    @th.no_grad()
    def observe(self, new: Transitions) -> UnitsChange:
        """
        Follow new steps with the units; what the model predicts stays what it was.

        :param new: steps that were not seen before
        :return: what became of standardised states, for other networks that read them
        """
        changes = np.concatenate([new.next_states - new.states, new.rewards[:, None]], axis=1)
        dx, fresh, known = self.state_dim, not self.has_units, self._varied()
        mean, spread = self._follow_moments(np.concatenate([new.states, changes], axis=1))
        self.n_seen += len(new)
        self.n_deaths += int(new.terminated.sum())
        self.least_reward.clamp_(max=float(new.rewards.min()))
        self.largest_reward.clamp_(min=float(new.rewards.max()))
        self._copy("state_min", np.minimum(self.state_min.cpu().numpy(), new.states.min(0)))
        self._copy("state_max", np.maximum(self.state_max.cpu().numpy(), new.states.max(0)))
        state_std = spread_or_one(spread[:dx], mean[:dx])
        least = np.append(SMALLEST_CHANGE * state_std, self._smallest_reward_std(mean[-1]))
        change_std = np.maximum(spread[dx:], np.where(least > 0.0, least, 1.0))
        old = [array.clone() for array in (self.state_mean, self.state_std, self.change_mean, self.change_std)]
        for std, before, is_known in ((state_std, old[1], known[0]), (change_std, old[3], known[1])):
            limits = before.cpu().numpy() / FASTEST_RESCALE, before.cpu().numpy() * FASTEST_RESCALE
            np.copyto(std, np.clip(std, *limits), where=is_known)
        change_std[-1] = max(change_std[-1], least[-1])  # until then the model could not predict what it has seen
        for name, values in (("state_mean", mean[:dx]), ("change_mean", mean[dx:])):
            self._copy(name, values)
        self._copy("state_std", state_std)
        self._copy("change_std", change_std)
        low, high = self.state_min.cpu().numpy() - spread[:dx], self.state_max.cpu().numpy() + spread[:dx]
        self._copy("state_low", np.maximum((low - mean[:dx]) / state_std, -STATE_LIMIT))
        self._copy("state_high", np.minimum((high - mean[:dx]) / state_std, STATE_LIMIT))
        # an untrained network has no function to keep, nor has any of what was constant until now
        scale, shift = self._unit_change(self.state_mean, self.state_std, old[0], old[1], known[0])
        change = UnitsChange(scale, shift)
        if not fresh:
            self.networks.rescale_inputs(scale, shift)
            self.termination.rescale_inputs(scale, shift)
            self.networks.rescale_outputs(*self._unit_change(self.change_mean, self.change_std, old[2], old[3], known[1]))
        return change

    @staticmethod
    def _unit_change(
        mean: th.Tensor, std: th.Tensor, old_mean: th.Tensor, old_std: th.Tensor, is_known: BoolArray
    ) -> tuple[th.Tensor, th.Tensor]:
        """The new standard deviations and means in the old units, one and zero of what had none."""
        known = th.as_tensor(is_known, device=mean.device)
        scale = th.where(known, std / old_std, th.ones_like(std))
        return scale.float(), th.where(known, (mean - old_mean) / old_std, th.zeros_like(mean)).float()

    def _smallest_reward_std(self, mean: float) -> float:
        """So large that no reward is clipped: one that is paid on a step of a thousand is 30 standard deviations away."""
        low, high = float(self.least_reward), float(self.largest_reward)
        return max(SMALLEST_REWARD * max(abs(low), abs(high)), max(high - mean, mean - low) / CHANGE_LIMIT)

    def _varied(self) -> tuple[BoolArray, BoolArray]:
        """Which dimensions of the state, and which of the changes and the reward, have done more than round until now."""
        if not self.has_units:
            return np.zeros(self.state_dim, dtype=bool), np.zeros(self.state_dim + 1, dtype=bool)
        spread = np.sqrt(self.moments.cpu().numpy() / float(self.n_seen))
        states = varies(spread[: self.state_dim], self.state_mean.cpu().numpy())
        return states, np.append(states, float(self.largest_reward) > float(self.least_reward))

    def _follow_moments(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of all that was seen, the new rows included (Chan et al. 1979)."""
        n, k = float(self.n_seen), len(rows)
        before = th.cat([self.state_mean, self.change_mean]).cpu().numpy()
        apart = rows.mean(0) - before if n else np.zeros(rows.shape[1])
        within = np.square(rows - rows.mean(0)).sum(0)
        self._copy("moments", self.moments.cpu().numpy() + within + np.square(apart) * n * k / (n + k))
        mean = before + apart * k / (n + k) if n else rows.mean(0)
        return mean, np.sqrt(self.moments.cpu().numpy() / (n + k))

    def _copy(self, name: str, values: FloatArray) -> None:
        buffer = getattr(self, name)
        buffer.copy_(th.as_tensor(values, dtype=buffer.dtype))

    def _targets(self, data: Transitions) -> th.Tensor:
        changes = np.concatenate([data.next_states - data.states, data.rewards[:, None]], axis=1)
        raw = th.as_tensor(changes, dtype=th.float64, device=self.state_mean.device)
        return ((raw - self.change_mean) / self.change_std).clamp(-CHANGE_LIMIT, CHANGE_LIMIT).float()

    def _inputs(self, data: Transitions) -> th.Tensor:
        actions = th.as_tensor(data.actions, dtype=th.float32, device=self.state_mean.device)
        return th.cat([self.standardize(data.states), actions], dim=1)

    # ------------------------------------------------------------------ learning

    def fit(
        self, memory: Memory, n_steps: int, batch_size: int, rng: np.random.Generator, rows: IntArray | None = None
    ) -> float:
        """
        Take steps of Adam on the Huber loss of standardised predictions, each member on minibatches of its own.

        :param memory: what to learn from
        :param n_steps: steps of each member
        :param batch_size: rows of each member's minibatch; usual: 64 to 256
        :param rng: draws the minibatches
        :param rows: to draw from; None draws from all
        :return: mean loss over the steps
        :raises DivergedError: if the parameters are no longer finite, in spite of a second try from new ones
        """
        for attempt in range(2):
            loss = self._descend(memory, n_steps, batch_size, rng, rows)
            self._fit_termination(memory, n_steps, rng)
            if np.isfinite(loss) and bool(th.isfinite(self.networks.flat).all() and th.isfinite(self.termination.flat).all()):
                return loss
            if attempt == 0:
                self._start_anew()
        raise DivergedError(
            "The model diverged twice: look for observations or rewards of extreme size, or lower its learning_rate"
        )

    def _start_anew(self) -> None:
        with th.no_grad():
            for network in (self.networks, self.termination):
                fresh = StackedMLP(network.n_members, network.sizes, network.layer_norm, last_gain=0.3)
                network.flat.copy_(fresh.flat)
        self.optimizer.state.clear()
        self.termination_optimizer.state.clear()

    def _descend(
        self, memory: Memory, n_steps: int, batch_size: int, rng: np.random.Generator, rows: IntArray | None
    ) -> float:
        group, (E, B) = self.optimizer.param_groups[0], (self.n_members, batch_size)
        rate, total = group["lr"], 0.0
        drawing = Drawing(memory, rows)
        for share, part in zip(RATES, np.array_split(np.arange(n_steps), len(RATES)), strict=True):
            group["lr"] = share * rate
            for k in chunks(len(part)):
                data = memory.take(drawing.draw(k * E, B, rng))
                inputs, targets = self._inputs(data).view(k, E, B, -1), self._targets(data).view(k, E, B, -1)
                total += self._descend_on(inputs, targets)
        group["lr"] = rate
        return total / max(n_steps, 1)

    def _descend_on(self, inputs: th.Tensor, targets: th.Tensor) -> float:
        """Sum of the losses on the minibatches ``[K, E, B, ...]``."""
        K, E = inputs.shape[:2]
        if self.networks.is_compiled:
            adam = adam_of(self.networks.flat, self.optimizer, K)
            return K * fit_ensemble(self.networks.arrays(), adam, array_of(inputs), array_of(targets))
        total = 0.0
        for batch, goal in zip(inputs, targets, strict=True):
            # the sum over members: each has a loss of its own
            loss = functional.smooth_l1_loss(self.networks(batch), goal) * E
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) / E
        return total

    def _fit_termination(self, memory: Memory, n_steps: int, rng: np.random.Generator) -> None:
        """On the next state: on state and action real deaths got probabilities from .01 on, on the next state from .97 on."""
        deaths = memory.terminated_rows()
        if not len(deaths):
            return
        n_any, n_deaths = TERMINATION_BATCH
        for k in chunks(n_steps):
            some = rng.integers(len(memory), size=(k, n_any))
            rows = np.concatenate([some, deaths[rng.integers(len(deaths), size=(k, n_deaths))]], axis=1)
            data = memory.take(rows.reshape(-1))
            states = self.standardize(data.next_states)
            labels = th.as_tensor(data.terminated, dtype=th.float32, device=states.device)
            self._classify(states.view(*rows.shape, -1), labels.view(rows.shape))

    def _classify(self, states: th.Tensor, labels: th.Tensor) -> None:
        """Steps of the termination network on minibatches ``[K, B, dx]``, labels ``[K, B]``."""
        network, optimizer = self.termination, self.termination_optimizer
        if network.is_compiled:
            fit_classifier(network.arrays(), adam_of(network.flat, optimizer, len(states)), array_of(states), array_of(labels))
            return
        for batch, goal in zip(states, labels, strict=True):
            loss = functional.binary_cross_entropy_with_logits(network(batch)[0, :, 0], goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    # ------------------------------------------------------------------ prediction

    def predict(self, states: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Take one imagined step with every member.

        :param states: standardised, the same for all members ``[n, dx]`` or rows for each ``[E, n, dx]``
        :param actions: ``[n, du]`` or ``[E, n, du]``
        :return: next states, standardised and not yet clipped ``[E, n, dx]``; rewards in the environment's units ``[E, n]``
        """
        outputs = self.networks(th.cat([states, actions], dim=-1)).clamp(-CHANGE_LIMIT, CHANGE_LIMIT)
        following = states + self.change_offset + self.change_gain * outputs[..., :-1]
        return following, self.change_mean[-1].float() + self.change_std[-1].float() * outputs[..., -1]

    def clip(self, states: th.Tensor) -> th.Tensor:
        """
        Keep standardised states in the range of what was seen, and a standard deviation beyond.

        :param states: ``[..., dx]``
        :return: the same shape
        """
        return th.maximum(th.minimum(states, self.state_high.float()), self.state_low.float())

    def reward(self, states: th.Tensor, actions: th.Tensor, next_states: th.Tensor, predicted: th.Tensor) -> th.Tensor:
        """
        The known reward where there is one, less what is taken off for disagreement.

        :param states: standardised, ``[..., dx]``
        :param actions: ``[..., du]``
        :param next_states: standardised, ``[..., dx]``
        :param predicted: what the members predicted, ``[...]``
        :return: ``[...]``, in units of the environment
        """
        earned = predicted if self.known_reward is None else self._ask(self.known_reward, states, actions, next_states)
        if not self.pessimism:
            return earned
        return earned - self.pessimism * self.change_std[-1].float() * self.disagreement(states, actions)

    def disagreement(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        How far the members are apart.

        :param states: standardised, ``[..., dx]``
        :param actions: ``[..., du]``
        :return: root mean square over the outputs of their standard deviation over the members, in standard deviations of what
            is predicted, ``[...]``
        """
        rows = th.cat([states, actions], dim=-1)
        outputs = self.networks(rows.reshape(-1, rows.shape[-1])).clamp(-CHANGE_LIMIT, CHANGE_LIMIT)
        # the root has no derivative at zero
        apart = (outputs.var(0, correction=0).mean(-1) + SMALLEST_DISAGREEMENT**2).sqrt()
        disagreement: th.Tensor = apart.view(rows.shape[:-1])
        return disagreement

    def continuation(self, states: th.Tensor, actions: th.Tensor, next_states: th.Tensor) -> th.Tensor:
        """
        Probability that an episode goes on after a step.

        :param states: standardised, ``[..., dx]``
        :param actions: ``[..., du]``
        :param next_states: standardised, ``[..., dx]``
        :return: ``[...]``, one where no episode has ended yet
        """
        if self.known_end is not None:
            return 1.0 - self._ask(self.known_end, states, actions, next_states).float()
        if not self.sees_deaths:
            return th.ones(next_states.shape[:-1], device=next_states.device)
        rows = next_states.reshape(-1, self.state_dim)
        return th.sigmoid(-self.termination(rows)[0, :, 0]).view(next_states.shape[:-1])

    def _ask(self, known: SystemFunction, states: th.Tensor, actions: th.Tensor, next_states: th.Tensor) -> th.Tensor:
        mean, std = self.state_mean.float(), self.state_std.float()
        rows = (array.reshape(-1, array.shape[-1]) for array in (states * std + mean, actions, next_states * std + mean))
        return known(*rows).reshape(next_states.shape[:-1])

    @th.no_grad()
    def residuals(self, data: Transitions) -> Residuals:
        """
        What happened beyond the prediction.

        :param data: real steps of each member behind those of another, ``[E * n]``
        :return: of the member to which each belongs
        """
        E = self.n_members
        states, actions = self._inputs(data).view(E, len(data) // E, -1).split([self.state_dim, self.action_dim], dim=2)
        rows = zip(states.split(ROWS_IN_CACHE, 1), actions.split(ROWS_IN_CACHE, 1), strict=True)
        parts = [self.predict(*part) for part in rows]
        following, rewards = (th.cat(array, dim=1) for array in zip(*parts, strict=True))
        real = th.as_tensor(data.rewards, dtype=th.float32, device=rewards.device).view(rewards.shape)
        return Residuals(self.standardize(data.next_states).view(following.shape) - following, real - rewards)

    @th.no_grad()
    def r_squared(self, data: Transitions) -> tuple[float, float]:
        """
        Share of the variance of real changes and rewards that the members' mean explains.

        :param data: real steps, best ones that were not fitted
        :return: median over the state's dimensions, and for the reward
        """
        targets = self._targets(data)
        errors = (targets - self.networks(self._inputs(data)).mean(0)).square().mean(0)
        shares = 1.0 - errors / targets.var(0, correction=0).clamp_min(1e-9)
        return float(shares[:-1].median()), float(shares[-1])
