"""How far model, critic and plan can be trusted: numbers for the logger."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.utils import explained_variance

from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.world_model.actor import SquashedGaussian, gaussian_kl
from sb3_dpi.world_model.critic import Critic, CriticUpdate
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.experts.plan_targets import PolicyGradient
from sb3_dpi.world_model.types import Memory, Transitions, successors


def correlation(first: FloatArray, second: FloatArray) -> float:
    """
    Pearson's correlation, zero where one does not vary.

    :param first: ``[n]``
    :param second: ``[n]``
    :return: from -1 to 1
    """
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spread if spread > 0.0 else 0.0


@th.no_grad()
def window_correlation(
    ensemble: Ensemble,
    critic: Critic,
    actor: SquashedGaussian,
    memory: Memory,
    rows: IntArray,
    horizon: int,
    gamma: float,
) -> float:
    """
    Whether the model knows which real action sequences were good: the advantages of real windows, as the members' mean
    predicts them uncorrected, against what they turned out to be; both closed by the critic.

    :param ensemble: the model
    :param critic: closes the windows
    :param actor: the policy, whose value is the baseline
    :param memory: real steps
    :param rows: where windows begin, best where the model has not been fitted yet, ``[n]``
    :param horizon: H
    :param gamma: discount factor
    :return: correlation, zero if no window fits
    """
    if horizon == 0:
        return 0.0
    rows, alive = successors(memory, rows, horizon)
    whole = alive.all(0) & ~memory.take(rows[-1]).terminated
    if whole.sum() < 2:
        return 0.0
    steps = [memory.take(row) for row in rows[:, whole]]
    unit = float(critic.unit)

    def value(states: th.Tensor) -> FloatArray:
        actions, _ = actor.sample(states, states.new_zeros(len(states), actor.action_dim))
        values: FloatArray = critic(states, actions).cpu().numpy().astype(np.float64)
        return values

    imagined = ensemble.standardize(steps[0].states)
    baseline = value(imagined)
    predicted, real = -baseline, -baseline
    for t in range(horizon):
        actions = th.as_tensor(steps[t].actions, dtype=th.float32, device=imagined.device)
        following, rewards = ensemble.predict(imagined, actions)
        following = ensemble.clip(following.mean(0))
        earned = ensemble.reward(imagined, actions, following, rewards.mean(0))
        predicted = predicted + gamma**t * earned.cpu().numpy() / unit
        real = real + gamma**t * steps[t].rewards / unit
        imagined = following
    last = ensemble.standardize(steps[-1].next_states)
    return correlation(predicted + gamma**horizon * value(imagined), real + gamma**horizon * value(last))


@th.no_grad()
def critic_r_squared(ensemble: Ensemble, critic: Critic, data: Transitions, returns: FloatArray) -> float:
    """
    Share of the variance of realised returns that the critic explains.

    :param ensemble: its units are used
    :param critic: the critic
    :param data: real steps
    :param returns: realised, ``[n]``
    :return: at most 1; NaN where returns do not vary
    """
    actions = th.as_tensor(data.actions, dtype=th.float32, device=ensemble.state_mean.device)
    values = critic(ensemble.standardize(data.states), actions).cpu().numpy() * float(critic.unit)
    return float(explained_variance(values, returns))


@th.no_grad()
def policy_change(before: SquashedGaussian, actor: SquashedGaussian, states: th.Tensor) -> tuple[float, float]:
    """
    How far a policy has moved.

    :param before: as it was
    :param actor: the policy
    :param states: standardised, ``[n, dx]``
    :return: KL(before || now), nats, mean over the states, and the mean standard deviation before tanh
    """
    mean, log_std = actor(states)
    old_mean, old_log_std = before(states)
    return float(gaussian_kl(old_mean, old_log_std, mean, log_std).mean()), float(log_std.exp().mean())


def prediction_quality(
    ensemble: Ensemble, critic: Critic, actor: SquashedGaussian, memory: Memory, n_new: int, horizon: int, gamma: float
) -> dict[str, float]:
    """
    How well the model predicts steps that it has not been fitted to yet.

    :param ensemble: the model
    :param critic: closes windows
    :param actor: the policy
    :param memory: real steps
    :param n_new: the latest ones, that are new to the model
    :param horizon: H of windows
    :param gamma: discount factor
    :return: by the names of the log
    """
    fresh = memory.newest(n_new)
    new, before = memory.take(fresh), memory.take(np.setdiff1d(memory.newest(2 * n_new), fresh))
    state, reward = ensemble.r_squared(new)
    return {
        "model/r_squared": state,
        "model/r_squared_reward": reward,
        "model/window_correlation": window_correlation(ensemble, critic, actor, memory, fresh, horizon, gamma),
        "train/real_improvement": float(new.rewards.mean() - before.rewards.mean()) if len(before) else 0.0,
    }


def progress(updates: Sequence[CriticUpdate], gradients: Sequence[PolicyGradient]) -> dict[str, float]:
    """
    What the updates between two blocks did.

    :param updates: of the critic
    :param gradients: that the policy followed
    :return: by the names of the log, values in units of value
    """
    objectives = [gradient.objective for gradient in gradients]
    tenth = max(len(objectives) // 10, 1)
    return {
        "train/entropy": float(np.mean([gradient.entropy for gradient in gradients])),
        "train/objective": float(np.mean(objectives)),
        "train/predicted_improvement": float(np.mean(objectives[-tenth:]) - np.mean(objectives[:tenth])),
        "train/critic_loss": float(np.mean([update.loss for update in updates])),
        "train/critic_target": updates[-1].target,
    }
