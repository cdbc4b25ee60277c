"""AggreVaTeD with optimal control: dual policy iteration with local models (Sun et al., 2018)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, obs_as_tensor

from sb3_dpi.aggrevated_oc.calibration import Calibration, calibrate
from sb3_dpi.aggrevated_oc.surrogate import Samples, Surrogate
from sb3_dpi.common.choices import arguments_of_base, as_schedule, check_number
from sb3_dpi.common.critic import (
    ReturnScale,
    actor_parameters,
    fit_values,
    generalized_advantages,
    rescale_values,
    trajectory_values,
)
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.interruption import whole_or_undone
from sb3_dpi.common.iteration_size import IterationSize
from sb3_dpi.common.local_models import CostSettings, LocalModel, RegressionSettings, fit_local_value, total_cost
from sb3_dpi.common.local_planning import kl_per_step, solve_shortening
from sb3_dpi.common.natural_gradient import NaturalGradientStep, natural_gradient_step
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution
from sb3_dpi.trajopt.lqr import add_next_value, evaluate_controller
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController, QuadraticCost, QuadraticValue
from sb3_dpi.trajopt.units import geometric_mean
from sb3_dpi.world_model.known_cost import CostFunction

SelfAggreVaTeDOC = TypeVar("SelfAggreVaTeDOC", bound="AggreVaTeDOC")

MIN_STD = 1e-6
"""A schedule may end at zero, a standard deviation may not."""


@dataclass(frozen=True)
class Evaluation:
    """What the real rewards say of the policy."""

    advantages: FloatArray
    """of the sampled actions of the latest conditions, by GAE, ``[m, N, T]``"""
    explained_variance: float
    """of the returns by the value function, before it was fitted to them"""
    value_loss: float
    """of the fit"""


@dataclass(frozen=True)
class Expert:
    """eta_n and its cost-to-go under the model and the true cost."""

    model: LocalModel
    """under which it was planned, closed by the learned values, of as many time steps as could be planned"""
    controller: LinearGaussianController
    """``[M, T]``, of the model's conditions"""
    action_value: QuadraticCost
    """``Q_t(s, a)``, ``[M, T]``"""
    solution: KLConstrainedSolution | None
    """of the search for it; None without a trust region, where it is the policy"""


class AggreVaTeDOC(DualPolicyAlgorithm):
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
        limit, at most 100, or less where ``learn`` gets few steps; usual: 50 to 200
    :param n_conditions: Initial conditions M of each environment sampled in an iteration; usual: 1 to 20. None chooses by the
        sizes of state and action, or takes one where it covers all initial states; ``iteration_`` tells what is sampled
    :param samples_per_condition: Trajectories N from each condition; usual: 4 to 40. None chooses by the sizes of state and
        action; ``iteration_`` tells what is sampled
    :param conditions: ``"fresh"``: new reset seeds in every iteration; ``"random"``: a seed for each trajectory, so that a
        condition covers the distribution of initial states, where these lie close together; ``"continue"``: each trajectory
        starts where the last one was cut, a window of an episode that goes on; ``"mixed"``: goes on or begins anew by the
        toss of a coin, for long episodes that end early or are hard to begin; ``"fixed"``: always the same M seeds
    :param replay: Earlier iterations whose trajectories stand behind the prior of the dynamics; the policy learns from the
        latest alone unless ``aggregate``; usual: 0 to 8, and 2 where it takes too long
    :param gamma: Discount factor; usual: .95 to 1
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator; usual: .9 to 1
    :param plan_lambda: The same trade-off for the plan: 1 plans to the end of the trajectory with the model alone, as in the
        paper; below 1 plans over windows of all lengths, that of k steps with weight (1 - lambda) lambda^(k-1), each closed
        by the value function. Lower it where the system is unstable; usual: .7 to 1
    :param trust_region: alpha, bound on KL(expert || policy), nats per time step, mean over the horizon with the plan's
        discount as weight; it can be a function of the progress remaining. 0 leaves the policy itself as the expert, which
        reduces the algorithm to the natural policy gradient with a model; usual: 0 to 1
    :param target_kl: Bound on KL(old policy || new policy), nats, mean over the samples, half of the paper's beta; it can be a
        function of the progress remaining, or ``"lin_0.1"``, which falls to zero; usual: .01 to .2
    :param trust: Share of the step that the expert's advantage has, from 0 (natural policy gradient) to 1 (as in the paper);
        None believes the expert as far as its advantages agree with the sampled ones
    :param aggregate: Whether the policy also imitates at the states of the earlier iterations that ``replay`` keeps, whose
        conditions are planned for again; the sampled advantages are those of the latest alone. It lets small iterations with
        few conditions generalise (a few goals, say); an iteration takes up to ``replay`` times longer
    :param dynamics: Prior of the dynamics fit: ``"nearest"``, ``"niw"`` or ``"gmm"``, or a dictionary
        ``{"prior": "niw", "window": 5}`` (fields of ``common.local_models.RegressionSettings``)
    :param cost: Settings of the quadratic cost that is fitted to the rewards (fields of ``common.local_models.CostSettings``),
        or the known cost, ``cost(obs, action, next_obs) -> [n]`` (torch, batched, the environment's own units, minus the
        reward), expanded by automatic differentiation instead of fitted
    :param cg_damping: Added to the Fisher matrix; usual: 1e-4 to 1e-1
    :param n_critic_updates: Passes of the value function over the samples of an iteration; usual: 5 to 20
    :param critic_replay: Fit the value function to the kept trajectories of earlier iterations as well, and before the
        advantages are estimated: less noise where the reward of a step says little of its worth, for some bias; by default
        it is fitted to the latest ones alone, afterwards
    :param batch_size: Minibatch size of the value function
    :param min_std: Smallest standard deviation of the policy, in units of the action bounds, it can be a function of the
        progress remaining; usual: .05 to .4
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

    algorithm_version: ClassVar[int] = 4
    renamed_arguments: ClassVar[dict[str, str]] = {
        **DualPolicyAlgorithm.renamed_arguments,
        "safeguard": 'trust, None for "calibration" and 1.0 for "off"',
        "linearization": "nothing: the Jacobian where the policy sees what the planner sees, else a regression",
        "cg_max_steps": "nothing: it is fixed",
        "line_search_max_iter": "nothing: it is fixed",
        "line_search_shrinking_factor": "nothing: it is fixed",
    }

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        horizon: int | None = None,
        n_conditions: int | None = None,
        samples_per_condition: int | None = None,
        conditions: str = "fresh",
        replay: int = 8,
        gamma: float = 0.99,
        gae_lambda: float = 0.97,
        plan_lambda: float = 0.95,
        trust_region: float | str | Schedule = 0.3,
        target_kl: float | str | Schedule = 0.05,
        trust: float | None = None,
        aggregate: bool = True,
        dynamics: str | dict[str, Any] | RegressionSettings = "nearest",
        cost: CostFunction | dict[str, Any] | CostSettings | None = None,
        cg_damping: float = 1e-3,
        n_critic_updates: int = 10,
        critic_replay: bool = False,
        batch_size: int = 256,
        min_std: float | str | Schedule = 0.1,
        noise_correlation: float = 0.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(**arguments_of_base(locals(), DualPolicyAlgorithm))
        self.gae_lambda = gae_lambda
        self.plan_lambda = plan_lambda
        self.trust_region = as_schedule("trust_region", trust_region)
        self.target_kl = as_schedule("target_kl", target_kl)
        self.trust = trust
        self.aggregate = aggregate
        self.cg_damping = cg_damping
        self.n_critic_updates = n_critic_updates
        self.critic_replay = critic_replay
        self.batch_size = batch_size
        # learned
        self.eta: FloatArray | None = None
        self.evidence = (1.0, 0.0)
        self.return_scale = ReturnScale(0.0, 0.0)  # before the first returns are known V is zero in any units
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        # arguments may be changed on loading
        self.trust_region = as_schedule("trust_region", self.trust_region)
        self.target_kl = as_schedule("target_kl", self.target_kl)

    def _take_size(self, size: IterationSize) -> None:
        super()._take_size(size)
        if self.eta is not None and len(self.eta) % self.total_conditions:
            self.eta, self.past = None, ()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("gae_lambda", "plan_lambda"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("n_critic_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_number("target_kl", as_schedule("target_kl", self.target_kl)(1.0), 0.0, open_below=True)
        check_number("trust_region", as_schedule("trust_region", self.trust_region)(1.0), 0.0)
        check_number("cg_damping", self.cg_damping, 0.0)
        if self.trust is not None and not 0.0 <= self.trust <= 1.0:
            raise ValueError(f"trust is a share from 0 to 1, or None for what the samples say, got {self.trust}")

    def _planned_conditions(self, trajectories: Trajectories) -> int:
        return len(trajectories.alive) if self.aggregate else self.total_conditions

    def _fitted_conditions(self) -> int:
        pools_all = self.aggregate or RegressionSettings.parse("dynamics", self.dynamics).prior == "niw"
        return super()._fitted_conditions() if pools_all else self.total_conditions

    def _planning_discount(self) -> float:
        return self.gamma * self.plan_lambda

    # ------------------------------------------------------------------ Algorithm 1

    @whole_or_undone
    def train(self) -> None:
        """One iteration of Algorithm 1 on the trajectories in the buffer."""
        self.policy.set_training_mode(False)  # but for its own updates
        self._update_learning_rate(self.policy.optimizer)
        trajectories = self.recall()
        self.standardize(trajectories)
        model = self.fit_model(trajectories)  # P-hat, Eq. 8, by Eq. 2
        evaluation = self.evaluate_policy(trajectories)  # V^pi and A^pi on the real rewards
        value = self.fit_values_around(trajectories, model)  # V^pi as quadratics
        expert = self.improve_expert(model, value)  # eta_n, Eq. 9 and 10
        samples = self.gather(expert, evaluation.advantages, trajectories)
        surrogate = Surrogate(self.policy, samples)
        found = calibrate(self.evidence, surrogate.real.cpu().numpy(), surrogate.predicted.cpu().numpy(), samples.trajectory)
        self.evidence = found.evidence
        step = self.imitate(surrogate, *self.shares(found))  # pi_n+1, Eq. 11 and 12
        self._log(trajectories, model, evaluation, expert, found, step)
        self._end_iteration()

    def evaluate_policy(self, trajectories: Trajectories) -> Evaluation:
        """GAE on the real rewards of the latest conditions, and a fit of the value function to the returns: by default after
        the advantages, which then know nothing of what happened; with ``critic_replay`` before, on all that is kept.

        :param trajectories: of this iteration and those that are kept
        :return: the advantages of the latest conditions
        """
        latest = trajectories.first(self.total_conditions)
        fitted = trajectories if self.critic_replay else latest
        values, advantages = self._advantages(fitted)
        returns = (advantages + values[..., :-1])[fitted.alive]
        explained = float(explained_variance(values[..., :-1][fitted.alive], returns))
        scale = ReturnScale.measured(float(returns.mean()), float(returns.std()))
        # Otherwise old values take the spread of the new returns: they shrink as the policy improves, which learns faster
        if self.critic_replay and self.n_iterations > 0:
            rescale_values(self.policy, self.return_scale, scale)
        self.return_scale = scale
        inputs = self._inputs_at(fitted, fitted.alive)
        loss = fit_values(self.policy, inputs, returns, self.return_scale, self.n_critic_updates, self.batch_size, self._rng)
        judged = self._advantages(latest)[1] if self.critic_replay else advantages
        self.rollout_buffer.fill(advantages=judged)
        return Evaluation(judged, explained, loss)

    def fit_values_around(self, trajectories: Trajectories, model: LocalModel) -> QuadraticValue:
        """Fit quadratics to the learned values around the trajectories, those of each environment apart.

        :param trajectories: of this iteration and those that are kept
        :param model: of ``fit_model``
        :return: cost-to-go of the state after each time step, ``[M, T]``, of the model's conditions
        """
        planned = trajectories.first(len(model.lengths))
        values = trajectory_values(self.policy, planned, self._policy_inputs, self.return_scale)
        settings = CostSettings.parse(self.cost)
        return self._in_each_environment(
            lambda own, n: fit_local_value(planned.take(own), values[own], settings, model.lengths[own]),
            planned,
            len(planned.alive),
        )

    def improve_expert(self, model: LocalModel, value: QuadraticValue) -> Expert:
        """Expert: eta_n = argmin J(eta) subject to KL(eta || pi_n) <= alpha under the model (Eq. 9 and 10), and its Q_t.

        :param model: of ``fit_model``
        :param value: of ``fit_values_around``
        :return: the expert of the model's conditions
        """
        local, discount = self._close(model, value), self._planning_discount()
        alpha = self.trust_region(self._current_progress_remaining)
        controller, solution = local.policy, None
        if alpha > 0.0:
            local, solution = solve_shortening(
                local,
                alpha,
                self._first_guess(len(local.lengths)),
                discount,
                shorten=lambda lengths: self._close(model.shortened(lengths), value),
            )
            controller, self.eta = solution.controller, solution.eta
        # under the true cost: with the soft one of Eq. 10 the disadvantage would be -log eta, and the update plain cloning
        action_value, _ = evaluate_controller(controller, local.dynamics, local.cost, discount)
        return Expert(local, controller, action_value, solution)

    def gather(self, expert: Expert, advantages: FloatArray, trajectories: Trajectories) -> Samples:
        """What the imitation step sees of the samples that were planned for.

        :param expert: of ``improve_expert``
        :param advantages: of ``evaluate_policy``
        :param trajectories: of this iteration and those that are kept
        :return: the samples of the expert's conditions
        """
        lengths = expert.model.lengths
        planned = trajectories.first(len(lengths))
        dx = planned.states.shape[-1]
        chosen = planned.alive & (np.arange(planned.alive.shape[2]) < lengths[:, None, None])
        Q, q = expert.action_value.C, expert.action_value.c
        linear = np.einsum("mtux,mntx->mntu", Q[..., dx:, :dx], planned.states[:, :, :-1]) + q[:, None, :, dx:]
        quadratic = np.broadcast_to(Q[:, None, :, dx:, dx:], (*chosen.shape, *Q[0, 0, dx:, dx:].shape))
        condition, sample, _ = np.nonzero(chosen)
        latest = chosen[: self.total_conditions]

        def tensor(array: np.ndarray) -> th.Tensor:
            return th.as_tensor(array[chosen], dtype=th.float32, device=self.device)

        return Samples(
            obs_as_tensor(self._inputs_at(planned, chosen), self.device),
            tensor(planned.actions),
            tensor(quadratic),
            tensor(linear),
            th.as_tensor(advantages[latest], dtype=th.float32, device=self.device),
            (condition * chosen.shape[1] + sample)[: latest.sum()],
        )

    def shares(self, found: Calibration) -> tuple[float, float]:
        """How much of the step is the expert's.

        :param found: how far it is believed
        :return: its advantage's weight as control variate, and the trust in it; both from 0 to 1
        """
        trust = found.believed if self.trust is None or not found.is_finite else float(self.trust)
        return trust if self.trust == 0.0 else found.believed, trust

    def imitate(self, surrogate: Surrogate, weight: float, trust: float) -> NaturalGradientStep:
        """Imitation: one natural-gradient step on E_s E_{a ~ pi} A^eta(s, a), KL at most ``target_kl`` (Eq. 11 and 12).

        :param surrogate: what is to be maximised
        :param weight: of the expert's advantage as control variate of the sampled one
        :param trust: share of the expert's advantage
        :return: how it went
        """
        step = natural_gradient_step(
            actor_parameters(self.policy),
            surrogate.objective(weight, trust),
            surrogate.divergence(),
            self.target_kl(self._current_progress_remaining),
            cg_damping=self.cg_damping,
        )
        with th.no_grad():
            self.policy.log_std.clamp_(min=float(np.log(max(self.min_std(self._current_progress_remaining), MIN_STD))))
        return step

    # ------------------------------------------------------------------ parts of the steps

    def _first_guess(self, n: int) -> FloatArray | None:
        """eta of the iteration before, for n conditions."""
        if self.eta is None or len(self.eta) == n:
            return self.eta
        return np.full(n, geometric_mean(self.eta))

    def _advantages(self, trajectories: Trajectories) -> tuple[FloatArray, FloatArray]:
        """The values of all observations and the advantages of all actions."""
        values = trajectory_values(self.policy, trajectories, self._policy_inputs, self.return_scale)
        rewards, alive = np.where(trajectories.alive, trajectories.rewards, 0.0), trajectories.alive
        return values, generalized_advantages(rewards, values, alive, trajectories.terminated, self.gamma, self.gae_lambda)

    def _judge_rollout(self, trajectories: Trajectories) -> tuple[FloatArray, FloatArray]:
        values, advantages = self._advantages(trajectories)
        return values[..., :-1], advantages

    def _close(self, model: LocalModel, value: QuadraticValue) -> LocalModel:
        """Close the plan with the learned value: at its end, and with weight 1 - lambda after every step before."""
        steps, end = np.arange(model.cost.const.shape[1]), model.lengths[:, None] - 1
        weight = self.gamma * np.where(steps < end, 1.0 - self.plan_lambda, steps == end)
        return replace(model, cost=add_next_value(model.cost, model.dynamics, value, weight))

    # ------------------------------------------------------------------ what is told

    def _log(
        self,
        trajectories: Trajectories,
        model: LocalModel,
        evaluation: Evaluation,
        expert: Expert,
        found: Calibration,
        step: NaturalGradientStep,
    ) -> None:
        record, planned, discount = self.logger.record, expert.model, self._planning_discount()
        record("trajopt/held_out_error", self._held_out_error(trajectories, model.lengths))
        if expert.solution is not None:
            record("trajopt/kl", kl_per_step(expert.solution, planned.lengths, discount))
            record("trajopt/eta", float(np.mean(expert.solution.eta)))
        record("trajopt/cost_local", float(total_cost(planned, expert.controller, discount).mean()))
        record("trajopt/cost_linearized", float(total_cost(planned, planned.policy, discount).mean()))
        record("trajopt/planned_steps", float(planned.lengths.mean()))
        record("trajopt/calibration", found.slope)
        record("trajopt/calibration_error", found.error)
        record("trajopt/trust", self.shares(found)[1])
        record("train/value_loss", evaluation.value_loss)
        record("train/explained_variance", evaluation.explained_variance)
        record("train/kl_divergence_loss", step.kl)
        record("train/policy_objective", step.improvement)
        record("train/is_line_search_success", float(step.accepted))

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
