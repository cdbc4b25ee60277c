"""Mirror descent guided policy search (Montgomery & Levine, 2016)."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor

from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm, check_choice
from sb3_dpi.common.local_models import (
    History,
    LocalModel,
    PriorSettings,
    as_controller,
    as_dynamics,
    average_jacobians,
    cut_cost,
    fit_regression,
    held_out_error,
    initial_state,
    planned_lengths,
    policy_mean_and_jacobian,
    step_costs,
    transition_points,
)
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Trajectories, map_observations
from sb3_dpi.models.known_cost import expand_cost
from sb3_dpi.trajopt.cost import anchor, fit_cost, project_psd
from sb3_dpi.trajopt.kl_lqr import solve_kl_constrained
from sb3_dpi.trajopt.lqr import expected_cost, forward_marginals
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController, QuadraticCost

SelfMDGPS = TypeVar("SelfMDGPS", bound="MDGPS")


@dataclass(frozen=True)
class PreviousIteration:
    """What the step rules compare the present iteration with."""

    model: LocalModel
    """fitted at iteration k - 1"""
    controller: LinearGaussianController
    """p^k, optimised under that model"""


class MDGPS(DualPolicyAlgorithm):
    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        horizon: int | None = None,
        n_conditions: int = 5,
        samples_per_condition: int = 4,
        conditions: str = "fresh",
        sampling: str = "global",
        gamma: float = 0.99,
        kl_step: float | Schedule = 0.3,
        step_rule: str = "fixed",
        step_limits: tuple[float, float] = (0.1, 3.0),
        kl_per_time_step: bool = False,
        dynamics: dict | None = None,
        cost: dict | None = None,
        cost_fn: Any = None,
        imitation_steps: int = 200,
        batch_size: int = 256,
        min_std: float = 0.1,
        min_samples: int = 2,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy, env, learning_rate, horizon, n_conditions, samples_per_condition, conditions, gamma,
            stats_window_size, tensorboard_log, policy_kwargs, verbose, seed, device,
        )
        self.sampling = sampling
        self.kl_step = kl_step
        self.step_rule = step_rule
        self.step_limits = step_limits
        self.kl_per_time_step = kl_per_time_step
        self.dynamics = PriorSettings(**(dynamics or {}))
        self.cost = cost or {}
        self.cost_fn = cost_fn
        self.imitation_steps = imitation_steps
        self.batch_size = batch_size
        self.min_std = min_std
        self.min_samples = min_samples
        self.history = History()
        self.multiplier = np.ones(n_conditions)
        self.eta = None
        self.previous: PreviousIteration | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.kl_step = FloatSchedule(self.kl_step)

    def fit_model(self, tr: Trajectories) -> LocalModel:
        lengths = planned_lengths(tr, self.min_samples)
        points = transition_points(tr)
        n_inputs = tr.states.shape[-1] + tr.actions.shape[-1]
        share = self.conditions != "fixed"
        fit, self.history = fit_regression(points, tr.weights, n_inputs, self.dynamics, self.history, share, self._rng)
        dynamics = as_dynamics(fit)
        z = np.concatenate([tr.states[:, :, :-1], tr.actions], -1)
        costs = step_costs(tr, self.gamma)
        cost = cut_cost(fit_cost(z, costs, tr.weights, **self.cost), lengths)
        if self.cost_fn is not None:
            c = expand_cost(self.cost_fn, tr.states[:, :, :-1], tr.actions, tr.states[:, :, 1:], tr.alive, dynamics, self.action_space.low, self.action_space.high)
            mean = np.average(z, axis=1, weights=np.broadcast_to(np.maximum(tr.weights,1e-9)[..., None], z.shape))
            cost = anchor(c.C, c.c, c.const, project_psd(c.C), mean)
        policy = self.linearize(tr)
        err = held_out_error(points, tr.weights, n_inputs, self.dynamics, self.n_iterations % tr.alive.shape[1], lengths)
        self.logger.record("trajopt/held_out_error", err)
        return LocalModel(dynamics, cost, policy, initial_state(tr), lengths)

    def linearize(self, tr: Trajectories) -> LinearGaussianController:
        obs = map_observations(lambda a: a[:, :, :-1].reshape(-1, *a.shape[3:]), tr.observations)
        scale = np.ones(tr.states.shape[-1])
        if self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            scale = 1.0 / np.sqrt(self._vec_normalize_env.obs_rms.var + self._vec_normalize_env.epsilon)
        mean, jac = policy_mean_and_jacobian(self.policy, obs, scale)
        shape = tr.alive.shape
        fit = average_jacobians(tr.states[:, :, :-1], mean.reshape(*shape, -1), jac.reshape(*shape, *jac.shape[1:]), tr.weights)
        std = np.exp(self.policy.log_std.detach().cpu().numpy().astype(np.float64))
        return as_controller(fit, std)

    def improve_expert(self, model: LocalModel, tr: Trajectories) -> LinearGaussianController:
        self._adjust_steps(model)
        kl = self.kl_step(self._current_progress_remaining) * self.multiplier
        total = kl * model.lengths
        eps = np.broadcast_to(kl[:, None], model.cost.const.shape) if self.kl_per_time_step else np.maximum(total, 1e-3)
        sol = solve_kl_constrained(model.dynamics, model.cost, model.policy, model.initial, eps, eta=self.eta, discount=self.gamma, per_time_step=self.kl_per_time_step)
        self.eta = sol.eta
        lin = self.total(model.cost, model, model.policy).mean()
        new = self.total(model.cost, model, sol.controller).mean()
        self.logger.record("trajopt/cost_policy", lin)
        self.logger.record("trajopt/cost_local", new)
        self.logger.record("trajopt/kl", sol.kl.mean())
        self.logger.record("trajopt/eta", sol.eta.mean())
        self.logger.record("trajopt/mult", self.multiplier.mean())
        self.logger.record("trajopt/passes", sol.n_passes)
        self.logger.record("trajopt/return", np.nanmean(tr.returns))
        self.logger.record("trajopt/len", model.lengths.mean())
        self.previous = PreviousIteration(model, sol.controller)
        return sol.controller

    def total(self, cost: QuadraticCost, model: LocalModel, controller: LinearGaussianController) -> FloatArray:
        marg = forward_marginals(controller, model.dynamics, model.initial)
        T = cost.const.shape[1]
        return np.sum(expected_cost(cost, marg) * self.gamma ** np.arange(T), -1)

    def _adjust_steps(self, model: LocalModel) -> None:
        if self.step_rule == "fixed" or self.previous is None:
            return
        prev = self.previous
        before = self.total(prev.model.cost, prev.model, prev.model.policy)
        predicted = self.total(prev.model.cost, prev.model, prev.controller)
        actual = self.total(model.cost, model, model.policy if self.step_rule == "global" else prev.controller)
        if self.conditions != "fixed":
            before, predicted, actual = (np.full_like(a, a.mean()) for a in (before, predicted, actual))
        ratio = (before - predicted) / (2 * np.maximum(1e-4, actual - predicted))
        self.multiplier = np.clip(self.multiplier * np.clip(ratio, 0.1, 5.0), *self.step_limits)
        self.logger.record("trajopt/pred", (before - predicted).mean())
        self.logger.record("trajopt/actual", (before - actual).mean())

    def imitate(self, expert: LinearGaussianController, tr: Trajectories) -> None:
        planned = np.arange(tr.alive.shape[2]) < self.previous.model.lengths[:, None, None]
        mask = (tr.alive & planned).reshape(-1)
        x = tr.states[:, :, :-1]
        target = np.einsum("mtux,mntx->mntu", expert.K, x) + expert.k[:, None]
        prec = np.linalg.inv(expert.cov)
        precs = np.broadcast_to(prec[:, None], (*tr.alive.shape, *prec.shape[2:])).reshape(-1, *prec.shape[2:])[mask]
        pm = np.mean(np.diagonal(precs, axis1=-2, axis2=-1), 0)
        dev = self.device
        obs = map_observations(lambda a: a[:, :, :-1].reshape(-1, *a.shape[3:])[mask], tr.observations)
        obs = obs_as_tensor(obs, dev)
        targets = th.as_tensor(target.reshape(-1, target.shape[-1])[mask], dtype=th.float32, device=dev)
        precs = th.as_tensor(precs / pm.mean(), dtype=th.float32, device=dev)
        n = len(targets)
        bs = min(self.batch_size, n)
        losses = []
        order = th.as_tensor(np.stack([self._rng.permutation(n)[:bs] for _ in range(self.imitation_steps)]))
        for idx in order:
            d = self.policy.action_mean(obs[idx]) - targets[idx]
            loss = 0.5 * th.einsum("bi,bij,bj->b", d, precs[idx], d).mean()
            self.policy.optimizer.zero_grad()
            loss.backward()
            self.policy.optimizer.step()
            losses.append(loss.item())
        var = 1.0 / pm
        std = np.maximum(np.sqrt(var), self.min_std)
        self.policy.log_std.data.copy_(th.as_tensor(np.log(std)))
        self.logger.record("train/loss0", losses[0])
        self.logger.record("train/loss", losses[-1])

    def learn(self: SelfMDGPS, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 1, tb_log_name: str = "MDGPS",
        reset_num_timesteps: bool = True, progress_bar: bool = False) -> SelfMDGPS:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
