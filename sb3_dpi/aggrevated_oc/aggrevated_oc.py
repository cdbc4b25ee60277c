"""AggreVaTeD with optimal control: dual policy iteration with local models (Sun et al., 2018)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, obs_as_tensor

from sb3_dpi.common.choices import as_schedule, check_choice
from sb3_dpi.common.critic import (
    ReturnScale,
    actor_parameters,
    fit_values,
    generalized_advantages,
    rescale_values,
    trajectory_values,
)
from sb3_dpi.common.local_models import CostSettings, LocalModel, fit_local_value, total_cost
from sb3_dpi.common.local_planning import LocalPlanningAlgorithm, solve_shortening
from sb3_dpi.common.natural_gradient import natural_gradient_step
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.models.known_cost import CostFunction
from sb3_dpi.trajopt.lqr import add_next_value, evaluate_controller
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController, QuadraticCost, QuadraticValue

SelfAggreVaTeDOC = TypeVar("SelfAggreVaTeDOC", bound="AggreVaTeDOC")

CALIBRATION_STD = 0.5
"""Prior of the calibration, N(1, std^2): the expert is believed until the samples contradict it."""
CALIBRATION_MEMORY = 0.7
"""What the evidence of earlier iterations still counts."""
SMALLEST_ERROR = 0.05
"""Of a slope that is remembered: an advantage that explodes has a tiny one, and would be remembered for ever."""
MIN_STD = 1e-6
"""A schedule may end at zero, a standard deviation may not."""
SAFEGUARDS = ("calibration", "off")


@dataclass(frozen=True)
class PolicyModel:
    """What an iteration knows of the system and of the policy in it."""

    local: LocalModel
    """of the latest conditions, or of all with ``aggregate``; M counts these"""
    value: QuadraticValue
    """learned cost-to-go of the state after each time step, ``[M, T]``"""
    advantages: FloatArray
    """of the sampled actions, by GAE on the real rewards, of the latest conditions alone, ``[m, N, T]``"""


@dataclass(frozen=True)
class Expert:
    """eta_n and its cost-to-go under the model and the true cost."""

    controller: LinearGaussianController
    """``[M, T]``, of the model's conditions"""
    action_value: QuadraticCost
    """``Q_t(s, a)``, ``[M, T]``"""
    lengths: np.ndarray
    """``[M]``, planned time steps"""
    advantages: FloatArray
    """of the sampled actions, by GAE on the real rewards, of the latest conditions alone, ``[m, N, T]``"""


@dataclass(frozen=True)
class Samples:
    """What the imitation step sees of the planned samples, ``[n]`` leading; the ``k`` of the latest iteration come first."""

    inputs: Any
    """of the policy"""
    actions: th.Tensor
    """as sampled, ``[n, du]``"""
    quadratic: th.Tensor
    """``Quu``, ``[n, du, du]``"""
    linear: th.Tensor
    """``Qus s + qu``, ``[n, du]``"""
    advantages: th.Tensor
    """of GAE, in units of the rewards, ``[k]``"""
    trajectory: np.ndarray
    """which trajectory each belongs to, ``[k]``"""


class AggreVaTeDOC(LocalPlanningAlgorithm):
    """
    AggreVaTeD with Optimal Control (AggreVaTeD-OC), Algorithm 1 of Dual Policy Iteration.

    An expert plans with local linear-Gaussian models, fitted to a few trajectories of the policy, within a trust region around
    it; the policy takes one natural-gradient step on the expert's advantage, whose expectation over actions is known in closed
    form. How far the expert is believed follows from the samples: its advantages are compared with those of generalised
    advantage estimation, and as far as they contradict it the step is the natural policy gradient, with the expert's
    advantage as an action-dependent control variate.

    Paper: https://arxiv.org/abs/1805.10755

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str); the action space must be a Box. A list
        of ids, environments or functions that make one, or a VecEnv of these, trains one policy on all of them
    :param learning_rate: of the value function, it can be a function of the current progress remaining (from 1 to 0);
        usual: 3e-4 to 3e-3
    :param horizon: Time steps of a trajectory, planned and sampled, at most the environment's time limit. None takes the time
        limit, at most 100; usual: 50 to 200
    :param n_conditions: Initial conditions M of each environment sampled in an iteration; usual: 1 to 20
    :param samples_per_condition: Trajectories N from each condition; usual: 4 to 40
    :param conditions: ``"random"``: a seed for each trajectory, so that a condition covers the distribution of initial states;
        ``"continue"``: each trajectory starts where the last one was cut, a window of an episode that goes on;
        ``"mixed"``: goes on or begins anew by the toss of a coin, for long episodes that end early or are hard to begin;
        ``"fresh"``: new reset seeds in every iteration; ``"fixed"``: always the same M seeds
    :param replay: Earlier iterations whose trajectories stand behind the prior of the dynamics; the policy learns from the
        latest alone unless ``aggregate``; usual: 0 to 8
    :param gamma: Discount factor; usual: .95 to 1
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator; usual: .9 to 1
    :param plan_lambda: The same trade-off for the plan: 1 plans to the end of the trajectory with the model alone, as in the
        paper; below 1 plans over windows of all lengths, that of k steps with weight (1 - lambda) lambda^(k-1), each closed
        by the value function. Lower it where the system is unstable; usual: .7 to 1
    :param trust_region: alpha, bound on KL(expert || policy), nats per time step, mean over the horizon; it can be a function
        of the progress remaining. 0 leaves the policy itself as the expert, which reduces the algorithm to the natural policy
        gradient with a model; usual: 0 to 1
    :param target_kl: Bound on KL(old policy || new policy), nats, mean over the samples, half of the paper's beta; it can be a
        function of the progress remaining, or ``"lin_0.1"``, which falls to zero; usual: .01 to .2
    :param safeguard: ``"calibration"``: the expert is believed as far as its advantages agree with the sampled ones;
        ``"off"``: always, as in the paper; a number from 0 (natural policy gradient) to 1: a fixed share
    :param aggregate: Whether the policy also imitates at the states of the earlier iterations that ``replay`` keeps, whose
        conditions are planned for again; the sampled advantages are those of the latest alone. It lets small iterations with
        few conditions generalise (a few goals, say); an iteration takes ``replay`` times as long
    :param dynamics: Prior of the dynamics fit: ``"nearest"``, ``"niw"`` or ``"gmm"``, or a dictionary
        ``{"prior": "niw", "window": 5}`` (fields of ``common.local_models.RegressionSettings``)
    :param linearization: Of the policy: its ``"jacobian"``, a regression with the same choice of priors as the dynamics, or
        ``"auto"``, the Jacobian where the policy sees what the planner sees and a regression where it does not
    :param cost: Settings of the quadratic cost that is fitted to the rewards (fields of ``common.local_models.CostSettings``)
    :param cost_fn: Known cost, ``cost_fn(obs, action, next_obs) -> cost [n]`` (torch, batched, the environment's own units,
        minus the reward), expanded by automatic differentiation instead of fitted
    :param cg_max_steps: Conjugate gradient steps of the natural gradient; usual: 10 to 20
    :param cg_damping: Added to the Fisher matrix; usual: 1e-4 to 1e-1
    :param line_search_shrinking_factor: Of the step, where it was too long or did not improve
    :param line_search_max_iter: Steps that are tried
    :param n_critic_updates: Passes of the value function over the samples of an iteration; usual: 5 to 20
    :param critic_replay: Fit the value function to the kept trajectories of earlier iterations as well, and before the
        advantages are estimated: less noise where the reward of a step says little of its worth, for some bias; by default
        it is fitted to the latest ones alone, afterwards
    :param batch_size: Minibatch size of the value function
    :param min_std: Smallest standard deviation of the policy, in units of the action bounds, it can be a function of the
        progress remaining; usual: .05 to .4
    :param min_samples: Living trajectories that a time step needs to be planned; later ones are cut
    :param environments: How the sub-environments of a VecEnv are told apart: ``"auto"``, by their place in a list, else by id
        and keyword arguments; ``"same"``: all are copies of one; ``"different"``: each is another. Those that differ have
        conditions, a model and an expert each
    :param noise_correlation: Of the exploration noise of one time step with that of the next, 0 for white noise, which cancels
        out where a body is heavy or the medium thick. The objective knows the noise of single steps, so that every action of a
        lasting deviation is credited with all that follows from it; usual: 0 to .9
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators and the initial conditions
    :param device: Device (cpu, cuda, ...) on which the policy is trained
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown, or the environment offers no vector to plan on
    """

    algorithm_version: ClassVar[int] = 1
    longest_default_horizon = 100

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        horizon: int | None = None,
        n_conditions: int = 1,
        samples_per_condition: int = 20,
        conditions: str = "random",
        replay: int = 2,
        gamma: float = 0.99,
        gae_lambda: float = 0.97,
        plan_lambda: float = 0.95,
        trust_region: float | str | Schedule = 0.3,
        target_kl: float | str | Schedule = 0.05,
        safeguard: str | float = "calibration",
        aggregate: bool = False,
        dynamics: str | dict[str, Any] = "nearest",
        linearization: str | dict[str, Any] = "auto",
        cost: dict[str, Any] | None = None,
        cost_fn: CostFunction | None = None,
        cg_max_steps: int = 15,
        cg_damping: float = 1e-3,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        critic_replay: bool = False,
        batch_size: int = 256,
        min_std: float | str | Schedule = 0.1,
        min_samples: int = 2,
        environments: str = "auto",
        noise_correlation: float = 0.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            horizon=horizon,
            n_conditions=n_conditions,
            samples_per_condition=samples_per_condition,
            conditions=conditions,
            replay=replay,
            gamma=gamma,
            dynamics=dynamics,
            linearization=linearization,
            cost=cost,
            cost_fn=cost_fn,
            min_std=min_std,
            min_samples=min_samples,
            environments=environments,
            noise_correlation=noise_correlation,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.gae_lambda = gae_lambda
        self.plan_lambda = plan_lambda
        self.trust_region = as_schedule("trust_region", trust_region)
        self.target_kl = as_schedule("target_kl", target_kl)
        self.safeguard = safeguard
        self.aggregate = aggregate
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.critic_replay = critic_replay
        self.batch_size = batch_size
        # learned
        self.eta: FloatArray | None = None
        self.calibration = (1.0, 0.0)
        self.return_scale = ReturnScale()
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        # arguments may be changed on loading
        self.trust_region = as_schedule("trust_region", self.trust_region)
        self.target_kl = as_schedule("target_kl", self.target_kl)
        if self.eta is not None and len(self.eta) % self.total_conditions:
            self.eta, self.past = None, ()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("gae_lambda", "plan_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("cg_max_steps", "line_search_max_iter", "n_critic_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, least in (("target_kl", "above 0"), ("trust_region", "at least 0"), ("min_std", "at least 0")):
            value = as_schedule(name, getattr(self, name))(1.0)
            if value < 0.0 or (value == 0.0 and name == "target_kl"):
                raise ValueError(f"{name} must be {least}, got {value}")
        if isinstance(self.safeguard, str):
            check_choice("safeguard", self.safeguard, SAFEGUARDS)
        elif not 0.0 <= self.safeguard <= 1.0:
            raise ValueError(f"safeguard is {' or '.join(SAFEGUARDS)} or a fixed trust from 0 to 1, got {self.safeguard}")

    def _planned_conditions(self, trajectories: Trajectories) -> int:
        return len(trajectories.alive) if self.aggregate else self.total_conditions

    def _planning_discount(self) -> float:
        return self.gamma * self.plan_lambda

    def fit_model(self, trajectories: Trajectories) -> PolicyModel:  # type: ignore[override]
        """Fit dynamics (Eq. 8), cost and linearised policy around the trajectories, and the policy's value function.

        :param trajectories: of this iteration and those that are kept, which stand behind the prior of the dynamics
        :return: the model of the latest conditions, or of all with ``aggregate``
        """
        planned = trajectories.first(self._planned_conditions(trajectories))
        local = super().fit_model(trajectories)
        advantages = self._evaluate_policy(trajectories)
        values = trajectory_values(self.policy, planned, self._policy_inputs, self.return_scale)
        settings = CostSettings.parse(self.cost)
        value = self._in_each_environment(
            lambda own, n: fit_local_value(planned.take(own), values[own], settings, local.lengths[own]),
            planned,
            len(planned.alive),
        )
        return PolicyModel(local, value, advantages)

    def improve_expert(self, model: PolicyModel, trajectories: Trajectories) -> Expert:
        """Expert: eta_n = argmin J(eta) subject to KL(eta || pi_n) <= alpha under the model (Eq. 9 and 10), and its Q_t.

        :param model: of ``fit_model``
        :param trajectories: of this iteration and those that are kept
        :return: the expert of the model's conditions
        """
        local, discount = self._close(model.local, model.value), self._planning_discount()
        alpha = self.trust_region(self._current_progress_remaining)
        controller = local.policy
        if alpha > 0.0:
            local, solution = solve_shortening(
                local,
                alpha,
                self._first_guess(len(local.lengths)),
                discount,
                shorten=lambda lengths: self._close(model.local.shortened(lengths), model.value),
            )
            controller, self.eta = solution.controller, solution.eta
            self.logger.record("trajopt/kl", float(np.sum(solution.kl) / max(local.lengths.sum(), 1)))
            self.logger.record("trajopt/eta", float(np.mean(solution.eta)))
        # under the true cost: with the soft one of Eq. 10 the disadvantage would be -log eta, and the update plain cloning
        action_value, _ = evaluate_controller(controller, local.dynamics, local.cost, discount)
        self.logger.record("trajopt/cost_local", float(total_cost(local, controller, discount).mean()))
        self.logger.record("trajopt/cost_linearized", float(total_cost(local, local.policy, discount).mean()))
        self.logger.record("trajopt/planned_steps", float(local.lengths.mean()))
        return Expert(controller, action_value, local.lengths, model.advantages)

    def imitate(self, expert: Expert, trajectories: Trajectories) -> None:
        """Imitation: one natural-gradient step on E_s E_{a ~ pi} A^eta(s, a), KL at most ``target_kl`` (Eq. 11 and 12).

        :param expert: of ``improve_expert``
        :param trajectories: of this iteration and those that are kept
        """
        samples = self._samples(expert, trajectories.first(len(expert.lengths)))
        step = natural_gradient_step(
            actor_parameters(self.policy),
            self._objective(samples),
            self._divergence(samples),
            self.target_kl(self._current_progress_remaining),
            self.cg_max_steps,
            self.cg_damping,
            self.line_search_max_iter,
            self.line_search_shrinking_factor,
        )
        with th.no_grad():
            self.policy.log_std.clamp_(min=float(np.log(max(self.min_std(self._current_progress_remaining), MIN_STD))))
        self.logger.record("train/kl_divergence_loss", step.kl)
        self.logger.record("train/policy_objective", step.improvement)
        self.logger.record("train/is_line_search_success", float(step.accepted))

    def _first_guess(self, n: int) -> FloatArray | None:
        """eta of the iteration before, for n conditions."""
        if self.eta is None or len(self.eta) == n:
            return self.eta
        return np.full(n, np.exp(np.log(self.eta).mean()))

    def _samples(self, expert: Expert, planned: Trajectories) -> Samples:
        dx = planned.states.shape[-1]
        chosen = planned.alive & (np.arange(planned.alive.shape[2]) < expert.lengths[:, None, None])
        Q, q = expert.action_value.C, expert.action_value.c
        linear = np.einsum("mtux,mntx->mntu", Q[..., dx:, :dx], planned.states[:, :, :-1]) + q[:, None, :, dx:]
        quadratic = np.broadcast_to(Q[:, None, :, dx:, dx:], (*chosen.shape, *Q[0, 0, dx:, dx:].shape))
        condition, sample, _ = np.nonzero(chosen)
        latest = chosen[: self.total_conditions]

        def tensor(array: np.ndarray) -> th.Tensor:
            return th.as_tensor(array[chosen], dtype=th.float32, device=self.device)

        inputs = obs_as_tensor(self._inputs_at(planned, chosen), self.device)
        return Samples(
            inputs,
            tensor(planned.actions),
            tensor(quadratic),
            tensor(linear),
            th.as_tensor(expert.advantages[latest], dtype=th.float32, device=self.device),
            (condition * chosen.shape[1] + sample)[: latest.sum()],
        )

    def _evaluate_policy(self, trajectories: Trajectories) -> FloatArray:
        """GAE on the real rewards of the latest conditions, and a fit of the value function to the returns: by default after
        the advantages, which then know nothing of what happened; with ``critic_replay`` before, on all that is kept."""
        latest = trajectories.first(self.total_conditions)
        fitted = trajectories if self.critic_replay else latest
        values, advantages = self._advantages(fitted)
        returns = (advantages + values[..., :-1])[fitted.alive]
        self.logger.record("train/explained_variance", float(explained_variance(values[..., :-1][fitted.alive], returns)))
        scale = ReturnScale(float(returns.mean()), float(max(returns.std(), 1e-6)))
        # Otherwise old values take the spread of the new returns: they shrink as the policy improves, which learns faster
        if self.critic_replay and self.n_iterations > 0:
            rescale_values(self.policy, self.return_scale, scale)
        self.return_scale = scale
        inputs = self._inputs_at(fitted, fitted.alive)
        loss = fit_values(self.policy, inputs, returns, self.return_scale, self.n_critic_updates, self.batch_size, self._rng)
        self.logger.record("train/value_loss", loss)
        return self._advantages(latest)[1] if self.critic_replay else advantages

    def _advantages(self, trajectories: Trajectories) -> tuple[FloatArray, FloatArray]:
        """The values of all observations and the advantages of all actions."""
        values = trajectory_values(self.policy, trajectories, self._policy_inputs, self.return_scale)
        rewards, alive = np.where(trajectories.alive, trajectories.rewards, 0.0), trajectories.alive
        return values, generalized_advantages(rewards, values, alive, trajectories.terminated, self.gamma, self.gae_lambda)

    def _close(self, model: LocalModel, value: QuadraticValue) -> LocalModel:
        """Close the plan with the learned value: at its end, and with weight 1 - lambda after every step before."""
        steps, end = np.arange(model.cost.const.shape[1]), model.lengths[:, None] - 1
        weight = self.gamma * np.where(steps < end, 1.0 - self.plan_lambda, steps == end)
        return replace(model, cost=add_next_value(model.cost, model.dynamics, value, weight))

    def _objective(self, samples: Samples) -> Any:
        """What the step maximises: the expert's advantage in closed form, and as far as the model is not to be trusted the
        sampled advantage with the expert's as its action-dependent control variate."""
        with th.no_grad():
            old_mean, old_log_std = self.policy.action_mean(samples.inputs), self.policy.log_std.clone()

        def expert_advantage(actions: th.Tensor, variance: th.Tensor | None) -> th.Tensor:
            cost = 0.5 * th.einsum("nu,nuv,nv->n", actions, samples.quadratic, actions) + (samples.linear * actions).sum(1)
            if variance is not None:
                cost = cost + 0.5 * (th.diagonal(samples.quadratic, dim1=1, dim2=2) * variance).sum(1)
            return -cost

        n = len(samples.advantages)
        with th.no_grad():
            baseline = expert_advantage(old_mean, (2.0 * old_log_std).exp())
            sampled = (expert_advantage(samples.actions, None) - baseline)[:n]
            centred = samples.advantages - samples.advantages.mean()
            old_log_prob = _log_prob(samples.actions, old_mean, old_log_std)[:n]
        weight, trust = self._calibrate(centred.cpu().numpy(), sampled.cpu().numpy(), samples.trajectory)
        remainder = centred - weight * sampled if weight > 0.0 else centred
        open_, share = 1.0 - trust, n / len(baseline)
        closed, kept = trust * share + open_ * weight, trust * (1.0 - share)

        def objective() -> th.Tensor:
            mean, log_std = self.policy.action_mean(samples.inputs), self.policy.log_std
            total = mean.new_zeros(())
            if trust > 0.0 or weight > 0.0:
                foretold = expert_advantage(mean, (2.0 * log_std).exp()) - baseline
                total = closed * foretold[:n].mean()
                if kept > 0.0:
                    total = total + kept * foretold[n:].mean()
            if open_ > 0.0:
                ratio = (_log_prob(samples.actions, mean, log_std)[:n] - old_log_prob).exp()
                total = total + open_ * (ratio * remainder).mean()
            return total

        return objective

    def _calibrate(self, real: FloatArray, foretold: FloatArray, trajectory: np.ndarray) -> tuple[float, float]:
        """Regress the sampled advantages on the expert's: a slope of 1 means that the model tells the truth on average, one
        of 0 that it tells nothing. The error of the slope is that of independent trajectories."""
        real, foretold = real.astype(np.float64), foretold.astype(np.float64)
        power = float(foretold @ foretold)
        # Nothing foretold is no evidence; what exploded is evidence against the model
        slope, error = 0.0, np.inf if power == 0.0 else 0.0
        if 0.0 < power < np.inf:
            slope = float(real @ foretold) / power
            sums = np.bincount(trajectory, (real - slope * foretold) * foretold)
            n_trajectories = len(np.unique(trajectory))
            error = float(np.sqrt(sums @ sums)) / power
            error = error * np.sqrt(n_trajectories / (n_trajectories - 1)) if n_trajectories > 1 else np.inf
        mean, precision = self.calibration
        new, kept = 1.0 / max(error, 1e-100) ** 2, CALIBRATION_MEMORY * min(precision, SMALLEST_ERROR**-2)
        total = max(kept + new, 1e-100)
        mean = (kept * mean + new * slope) / total
        self.calibration = mean, total
        prior = CALIBRATION_STD**-2
        believed = float(np.clip((prior + total * mean) / (prior + total), 0.0, 1.0)) if np.isfinite(power) else 0.0
        self.logger.record("trajopt/calibration", slope)
        self.logger.record("trajopt/calibration_error", error)
        trust = believed
        if self.safeguard != "calibration" and np.isfinite(power):
            trust = 1.0 if self.safeguard == "off" else float(self.safeguard)
        self.logger.record("trajopt/trust", trust)
        return trust if self.safeguard == 0.0 else believed, trust

    def _divergence(self, samples: Samples) -> Any:
        with th.no_grad():
            old_mean, old_log_std = self.policy.action_mean(samples.inputs), self.policy.log_std.clone()

        def kl() -> th.Tensor:
            mean, log_std = self.policy.action_mean(samples.inputs), self.policy.log_std
            variance = (2.0 * log_std).exp()
            terms = log_std - old_log_std + 0.5 * ((2.0 * old_log_std).exp() + (mean - old_mean) ** 2) / variance - 0.5
            return terms.sum(1).mean()

        return kl

    def learn(
        self: SelfAggreVaTeDOC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "AggreVaTeDOC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAggreVaTeDOC:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def _log_prob(actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """Of a diagonal Gaussian, without its constant."""
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std).sum(1)
