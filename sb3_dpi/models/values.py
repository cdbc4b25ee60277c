"""V-functions: what a plan closes with where Q is not wanted.

``ReturnsV`` learns from real steps alone, by TD(lambda) on the latest ones: what the policy that took them has earned. It is
the critic of on-policy methods, right where the model is not, and late where the policy has moved on.

``WindowsV`` learns from imagined windows under the present policy, whose lambda-returns

    R_t = r_t / unit - alpha log pi(u_t|x_t) + gamma c_t ((1 - lambda) V'(x_{t+1}) + lambda R_{t+1})

take V' from the lower of the slow copies, and from real steps, whose TD(lambda) returns anchor it.

Shapes: ``H`` steps of ``E`` members with ``m`` windows each.
"""

import numpy as np
import torch as th

from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.models.critics import Critic, CriticUpdate, Lessons
from sb3_dpi.models.data import Transitions
from sb3_dpi.models.imagination import make_windows, roll_out
from sb3_dpi.trajopt.types import FloatArray, IntArray

LATEST = 5000
"""Real steps that V is anchored in."""
REAL_LAMBDA, WINDOW_LAMBDA = 0.95, 0.95
WINDOW_STEPS, N_WINDOWS = 10, 200
UPDATES_PER_ROLLOUT = 10
"""Of ``WindowsV``: so many minibatches come from the same windows."""


def lambda_returns(data: Transitions, rows: IntArray, rewards: FloatArray, values: FloatArray, gamma: float) -> FloatArray:
    """
    TD(lambda) returns of the latest steps.

    :param data: all steps
    :param rows: the latest ones of each environment, in the order of ``data``, ``[n]``
    :param rewards: in units of value, ``[n]``
    :param values: of the next states, in units of value, ``[n]``
    :param gamma: discount factor
    :return: ``[n]``
    """
    returns, ahead = np.empty(len(rows)), 0.0
    for i in range(len(rows) - 1, -1, -1):
        row = rows[i]
        if data.terminated[row]:
            ahead = 0.0
        elif data.ends[row] or i == len(rows) - 1 or rows[i + 1] != row + 1:
            ahead = values[i]
        else:
            ahead = (1.0 - REAL_LAMBDA) * values[i] + REAL_LAMBDA * ahead
        ahead = rewards[i] + gamma * ahead
        returns[i] = ahead
    return returns


class ReturnsV(Critic):
    """V by TD(lambda) on the latest real steps."""

    uses_actions = False
    _states: th.Tensor
    _returns: th.Tensor

    @th.no_grad()
    def begin(
        self, lessons: Lessons, actor: SquashedGaussian, temperature: float, gamma: float, rng: np.random.Generator
    ) -> None:
        """
        Compute the returns of the latest real steps.

        :param lessons: what can be learned from
        :param actor: not used: the returns are those of the policies that acted
        :param temperature: not used
        :param gamma: discount factor
        :param rng: not used
        """
        data = lessons.data
        rows = np.flatnonzero(data.age < LATEST)
        values = self.bound(self.targets(lessons.real.next_states[rows])[..., 0].mean(0))
        rewards = data.rewards[rows] / float(self.unit)
        returns = lambda_returns(data, rows, rewards, values.cpu().numpy().astype(np.float64), gamma)
        self._states = lessons.real.states[rows]
        self._returns = th.as_tensor(returns, dtype=th.float32, device=values.device)

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
        Take steps of Adam towards the returns.

        :param lessons: not used beyond ``begin``
        :param n_updates: K
        :param batch_size: B
        :param actor: not used
        :param temperature: not used
        :param gamma: not used
        :param rng: draws minibatches
        :return: what the updates did
        """
        loss = 0.0
        for rows in rng.integers(len(self._returns), size=(n_updates, batch_size)):
            loss += self.descend(self._states[rows], self._returns[rows]) / n_updates
        return CriticUpdate(loss, float(self._returns.mean()))


class WindowsV(ReturnsV):
    """V on imagined windows, anchored in real returns."""

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
        Take steps of Adam towards returns of imagined windows and of real steps.

        :param lessons: where windows begin
        :param n_updates: K
        :param batch_size: B
        :param actor: the policy
        :param temperature: alpha, in units of value
        :param gamma: discount factor
        :param rng: draws windows and minibatches
        :return: what the updates did
        """
        from_real = round(self.real_fraction * batch_size)
        loss, mean = 0.0, 0.0
        for k in range(n_updates):
            if k % UPDATES_PER_ROLLOUT == 0:
                states, returns, chances = self._imagine(lessons, actor, temperature, gamma, rng)
                mean = float(returns.mean())
            rows = rng.choice(len(returns), batch_size - from_real, p=chances)
            real = rng.integers(len(self._returns), size=from_real)
            inputs = th.cat([states[rows], self._states[real]])
            loss += self.descend(inputs, th.cat([returns[rows], self._returns[real]])) / n_updates
        return CriticUpdate(loss, mean)

    @th.no_grad()
    def _imagine(
        self, lessons: Lessons, actor: SquashedGaussian, temperature: float, gamma: float, rng: np.random.Generator
    ) -> tuple[th.Tensor, th.Tensor, FloatArray]:
        """States of windows ``[n, dx]``, their lambda-returns ``[n]``, and how likely they are reached ``[n]``."""
        E = lessons.ensemble.n_members
        starts = rng.integers(len(lessons.data), size=N_WINDOWS // E * E)
        windows = make_windows(lessons.ensemble, lessons.data, lessons.real.states, lessons.residuals, starts, WINDOW_STEPS)
        shape = (WINDOW_STEPS + 1, *windows.states.shape[:2], actor.action_dim)
        noise = rng.standard_normal(shape).astype(np.float32)
        imagined = roll_out(actor, lessons.ensemble, windows, th.as_tensor(noise, device=windows.states.device))
        flat = imagined.states.flatten(0, 2)
        values = self.bound(self.targets(flat)[..., 0].amin(0)).view(imagined.survival.shape)
        going_on = imagined.survival[1:] / imagined.survival[:-1].clamp_min(1e-6)
        rewards = imagined.rewards / self.unit.float() - temperature * imagined.log_probs[:-1]
        returns, ahead = th.empty_like(rewards), values[-1]
        for t in range(WINDOW_STEPS - 1, -1, -1):
            mixed = (1.0 - WINDOW_LAMBDA) * values[t + 1] + WINDOW_LAMBDA * ahead
            ahead = rewards[t] + gamma * going_on[t] * mixed
            returns[t] = ahead
        chances = imagined.survival[:-1].flatten().double().cpu().numpy() + 1e-9
        return imagined.states[:-1].flatten(0, 2), returns.flatten(), chances / chances.sum()
