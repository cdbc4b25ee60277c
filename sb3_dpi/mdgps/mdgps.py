"""Mirror descent guided policy search (Montgomery & Levine, 2016)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_dpi.common.choices import arguments_of_base, as_schedule, check_choice, check_number, parse_choice
from sb3_dpi.common.collector import Sampler
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.interruption import whole_or_undone
from sb3_dpi.common.iteration_size import IterationSize
from sb3_dpi.common.local_models import CostSettings, LocalModel, RegressionSettings, initial_state, total_cost
from sb3_dpi.common.local_planning import kl_per_step, solve_shortening
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.regression import regress_mean
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.controllers import lqr_hold_controller, pd_controller
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController
from sb3_dpi.trajopt.units import geometric_mean
from sb3_dpi.world_model.known_cost import CostFunction

SelfMDGPS = TypeVar("SelfMDGPS", bound="MDGPS")

MIN_KL_STEP = 1e-6
"""A schedule may end at zero, a trust region may not."""
STEP_LIMITS = (0.1, 3.0)
"""Smallest and largest multiple of ``kl_step`` that a step rule may choose."""
STEP_RULES = ("classic", "global", "fixed")
SAMPLING = ("global", "local")


def _none(x0: FloatArray, horizon: int, du: int) -> None:
    """The policy itself samples."""


INITIAL_CONTROLLERS: dict[str, Callable[..., LinearGaussianController | None]] = {
    "policy": _none,
    "lqr": lqr_hold_controller,
    "pd": pd_controller,
}


@dataclass(frozen=True)
class CStep:
    """A model and the controllers that were optimised under it: what the step rule compares with the next (section 4.2)."""

    model: LocalModel
    """fitted at this iteration"""
    controller: LinearGaussianController
    """p, of the same conditions"""


@dataclass(frozen=True)
class Improvement:
    """Costs by which the step rule judges the last C-step, ``[M]``, of the latest conditions (appendix B.3)."""

    before: FloatArray
    """of the linearised policy under the last model, l_{k-1}^{k-1, pi}"""
    predicted: FloatArray
    """of the controllers under the last model, l_{k-1}^k"""
    actual: FloatArray
    """of the linearised policy that imitated them under the present one, l_k^{k, pi}"""
    achieved: FloatArray
    """of what ``step_rule`` judges under the present one: the policy, or the controllers, l_k^k"""


class MDGPS(DualPolicyAlgorithm):
    """
    Mirror Descent Guided Policy Search (MDGPS), Algorithm 4 of the paper.

    Local linear-Gaussian controllers are improved by KL-constrained LQR on dynamics and cost fitted to a few trajectories
    from each initial condition (C-step); the global policy learns to imitate them all (S-step), and the next
    controllers are constrained to stay close to it.

    Paper: https://arxiv.org/abs/1607.04614

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str); the action space must be a Box. A list
        of ids, environments or functions that make one, or a VecEnv of these, trains one policy on all of them
    :param learning_rate: of the S-step, it can be a function of the current progress remaining (from 1 to 0);
        usual: 3e-4 to 3e-3
    :param horizon: Time steps of a trajectory, planned and sampled, at most the environment's time limit. None takes the time
        limit, at most 100, or less where ``learn`` gets few steps. Shorter horizons need fewer steps and often carry over to
        whole episodes
    :param n_conditions: Initial conditions M of each environment sampled in an iteration; usual: 1 to 20. None chooses by the
        sizes of state and action; ``iteration_`` tells what is sampled
    :param samples_per_condition: Trajectories N from each condition; usual: 4 to 20. None takes two, or all of an iteration
        where one condition covers all initial states
    :param conditions: ``"fresh"``: new reset seeds in every iteration; ``"fixed"``: always the same M seeds, as in the paper;
        ``"random"``: a seed for each trajectory, so that a condition covers the distribution of initial states;
        ``"continue"`` and ``"mixed"``: windows of episodes that go on, always or by the toss of a coin
    :param replay: Earlier iterations whose conditions are planned for and imitated again beside the new ones; usual: 0 to 10
    :param gamma: Discount factor; usual: .95 to 1
    :param sampling: Trajectories are sampled from the ``"global"`` policy (on-policy) or from the ``"local"`` controllers
        (off-policy, with fixed conditions)
    :param initial_controller: What samples first: the ``"policy"``, or on torque tasks a controller that holds the
        initial state (``"lqr"``) or is proportional (``"pd"``), which the policy then learns first; a dictionary
        ``{"kind": "lqr", "stiffness": 2.0}`` sets the arguments of ``trajopt.controllers``
    :param kl_step: epsilon, bound on KL(p || policy), nats per time step, mean over the horizon with the discount as weight;
        it can be a function of the progress remaining; usual: .03 to 1
    :param kl_per_time_step: Bound every time step by epsilon instead of their mean
    :param step_rule: Adjustment of epsilon (section 4.2): ``"classic"``, ``"global"`` or ``"fixed"``; per condition where
        conditions are fixed, else averaged over them
    :param dynamics: Prior of the dynamics fit: ``"nearest"``, ``"niw"`` or ``"gmm"``, or a dictionary
        ``{"prior": "niw", "window": 5}`` (fields of ``common.local_models.RegressionSettings``)
    :param linearization: Of the policy: its ``"jacobian"``, or a regression with the same choice of priors as the dynamics.
        None takes the Jacobian where the policy sees what the planner sees and a regression where it does not
    :param cost: Settings of the quadratic cost that is fitted to the rewards (fields of ``common.local_models.CostSettings``),
        or the known cost, ``cost(obs, action, next_obs) -> [n]`` (torch, batched, the environment's own units, minus the
        reward), expanded by automatic differentiation instead of fitted
    :param imitation_steps: Minibatch updates of the S-step; usual: 100 to 2000
    :param batch_size: Minibatch size of the S-step
    :param min_std: Smallest standard deviation of the policy, in units of the action bounds, it can be a function of the
        progress remaining; without one the dynamics are no longer identified; usual: .05 to .4
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

    renamed_arguments: ClassVar[dict[str, str]] = {
        **DualPolicyAlgorithm.renamed_arguments,
        "step_limits": "nothing: they are fixed",
    }
    algorithm_version: ClassVar[int] = 2

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        horizon: int | None = None,
        n_conditions: int | None = None,
        samples_per_condition: int | None = None,
        conditions: str = "fresh",
        replay: int = 4,
        gamma: float = 0.99,
        sampling: str = "global",
        initial_controller: str | dict[str, Any] = "policy",
        kl_step: float | str | Schedule = 0.3,
        kl_per_time_step: bool = False,
        step_rule: str = "fixed",
        dynamics: str | dict[str, Any] | RegressionSettings = "nearest",
        linearization: str | dict[str, Any] | RegressionSettings | None = None,
        cost: CostFunction | dict[str, Any] | CostSettings | None = None,
        imitation_steps: int = 300,
        batch_size: int = 256,
        min_std: float | str | Schedule = 0.2,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(**arguments_of_base(locals(), DualPolicyAlgorithm))
        self.sampling = sampling
        self.initial_controller = initial_controller
        self.kl_step = as_schedule("kl_step", kl_step)
        self.kl_per_time_step = kl_per_time_step
        self.step_rule = step_rule
        self.imitation_steps = imitation_steps
        self.batch_size = batch_size
        self._check_arguments()
        # learned: what the next iteration starts from (created here, so that it survives save and load)
        self.step_multiplier: FloatArray = np.ones(0)
        self.eta: FloatArray | None = None
        self.previous: CStep | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.kl_step = as_schedule("kl_step", self.kl_step)

    def _take_size(self, size: IterationSize) -> None:
        super()._take_size(size)
        if len(self.step_multiplier) != self.total_conditions:
            self.step_multiplier, self.eta, self.previous, self.past = np.ones(self.total_conditions), None, None, ()
        if self.previous is not None and self.previous.controller.K.shape[1] != size.horizon:
            self.previous = None

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("kl_step", as_schedule("kl_step", self.kl_step)(1.0), 0.0)
        check_choice("sampling", self.sampling, SAMPLING)
        check_choice("step_rule", self.step_rule, STEP_RULES)
        kind, options = parse_choice("initial_controller", self.initial_controller, tuple(INITIAL_CONTROLLERS))
        known = [*inspect.signature(INITIAL_CONTROLLERS[kind]).parameters][3:]  # after x0, horizon and du
        if unknown := [name for name in options if name not in known]:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"Unknown key {unknown[0]!r} of initial_controller {kind!r}: {has}")
        if self.sampling == "local" and self.conditions != "fixed":
            raise ValueError(
                'sampling="local" runs the controllers of the last iteration, which belong to their conditions: set '
                'conditions="fixed"'
            )

    def _check_size(self) -> None:
        super()._check_size()
        self._initial_controllers(np.zeros((1, self._state_dim)), 2)  # whether it can be made of such a state

    def _whole_state_needed_by(self) -> list[str]:
        kind, _ = parse_choice("initial_controller", self.initial_controller, tuple(INITIAL_CONTROLLERS))
        # directions change from iteration to iteration, and what is compared or run later belongs to the former ones
        needed = {
            f'initial_controller="{kind}"': kind != "policy",
            'sampling="local"': self.sampling == "local",
            'step_rule="classic"': self.step_rule == "classic",
        }
        return [*super()._whole_state_needed_by(), *(name for name, is_set in needed.items() if is_set)]

    # ------------------------------------------------------------------ Algorithm 4

    @whole_or_undone
    def train(self) -> None:
        """One iteration of Algorithm 4 on the trajectories in the buffer (lines 1 and 2 sampled them)."""
        self.policy.set_training_mode(False)  # but for its own updates
        self._update_learning_rate(self.policy.optimizer)
        trajectories = self.recall()
        self.standardize(trajectories)
        if self.n_iterations == 0:
            self.imitate_initial_controllers(trajectories)
        model = self.fit_model(trajectories)  # lines 3 and 4
        improvement = self.judge_last_step(model)  # line 7: l_{k-1}^{k-1, pi}, l_{k-1}^k and l_k of appendix B.3
        self.adjust_step(improvement)  # line 7: epsilon, section 4.2
        planned, solution = self.improve_expert(model)  # line 5: the C-step
        losses = self.imitate(solution.controller, trajectories)  # line 6: the S-step
        self.previous = self._of_latest(planned, solution.controller)
        self._log(trajectories, model, improvement, planned, solution, losses)
        self._end_iteration()

    def imitate_initial_controllers(self, trajectories: Trajectories) -> None:
        """Let the policy learn the controllers that sampled first, if it was not the policy itself.

        :param trajectories: of the first iteration
        """
        controller = self._initial_controllers(initial_state(trajectories).mean, trajectories.alive.shape[2])
        if controller is not None:
            self.imitate(controller, trajectories)

    def judge_last_step(self, model: LocalModel) -> Improvement | None:
        """Compare what the last C-step predicted with what came of it (section 4.2, appendix B.3).

        :param model: of all conditions
        :return: costs of the latest conditions; None at the first iteration
        """
        if self.previous is None:
            return None
        last, latest = self.previous, model.first(self.total_conditions)
        shared = np.minimum(last.model.lengths, latest.lengths)  # episodes that end early leave plans of other lengths
        then, now = last.model.shortened(shared), latest.shortened(shared)
        actual = total_cost(now, now.policy, self.gamma)
        achieved = total_cost(now, last.controller, self.gamma) if self.step_rule == "classic" else actual
        before, predicted = (total_cost(then, controller, self.gamma) for controller in (then.policy, last.controller))
        return Improvement(before, predicted, actual, achieved)

    def adjust_step(self, improvement: Improvement | None) -> None:
        """Adjust epsilon to how well the last C-step's prediction held (section 4.2, appendix B.3).

        :param improvement: of ``judge_last_step``
        """
        if improvement is None or self.step_rule == "fixed":
            return
        before, predicted, achieved = improvement.before, improvement.predicted, improvement.achieved
        if self.conditions != "fixed":  # other conditions than last time: only their average compares
            before, predicted, achieved = (np.full_like(array, array.mean()) for array in (before, predicted, achieved))
        # epsilon' = epsilon (l_{k-1}^k - l_{k-1}^{k-1, pi}) / 2 (l_{k-1}^k - l_k); no loss of accuracy means no limit
        loss = np.maximum(achieved - predicted, 1e-4 * np.abs(before - predicted))
        with np.errstate(invalid="ignore"):
            change = np.nan_to_num((before - predicted) / (2.0 * loss), nan=0.0, posinf=5.0, neginf=0.0)
        self.step_multiplier = np.clip(self.step_multiplier * np.clip(change, 0.1, 5.0), *STEP_LIMITS)

    def improve_expert(self, model: LocalModel) -> tuple[LocalModel, KLConstrainedSolution]:
        """C-step: p <- argmin E_p[cost] subject to KL(p || linearised policy) <= epsilon (Algorithm 4, lines 5 and 7).

        :param model: of ``fit_model``
        :return: the model, of as many time steps as could be planned, and the local controllers p of all conditions
        """
        epsilon = max(self.kl_step(self._current_progress_remaining), MIN_KL_STEP) * self._for_all(self.step_multiplier, model)
        eta = None if self.eta is None else self._for_all(self.eta, model)
        planned, solution = solve_shortening(model, epsilon, eta, self.gamma, self.kl_per_time_step)
        # where the next search begins
        self.eta = solution.eta[: self.total_conditions].reshape(self.total_conditions, -1).mean(-1)
        return planned, solution

    def imitate(self, expert: LinearGaussianController, trajectories: Trajectories) -> FloatArray:
        """S-step: policy <- argmin sum KL(policy(u|x) || p(u|x)) over the samples (Algorithm 4, line 6; appendix B.2).

        :param expert: local controllers p
        :param trajectories: samples of all conditions
        :return: loss of each minibatch, ``[imitation_steps]``
        """
        chosen = self._planned(trajectories)
        targets = np.swapaxes(
            np.swapaxes(trajectories.states[:, :, :-1], 1, 2) @ np.swapaxes(expert.K, -1, -2) + expert.k[:, :, None], 1, 2
        )
        precision = np.linalg.inv(expert.cov)
        per_sample = np.broadcast_to(precision[:, None], (*chosen.shape, *precision.shape[2:]))[chosen]
        losses = self._regress_mean(self._inputs_at(trajectories, chosen), targets[chosen], per_sample)
        # appendix B.2: the covariance that minimises tr(C^-1 Sigma) - log |Sigma|, here diagonal
        mean_precision = np.mean(np.diagonal(per_sample, axis1=-2, axis2=-1), 0)
        std = np.maximum(1.0 / np.sqrt(mean_precision), self.min_std(self._current_progress_remaining))
        with th.no_grad():
            self.policy.log_std.copy_(th.as_tensor(np.log(std)))
        return losses

    def _regress_mean(self, inputs: Any, targets: FloatArray, precisions: FloatArray) -> FloatArray:
        """Precision-weighted regression of the policy's mean on the controllers' means."""
        # the scale of the precisions would only act as a change of the learning rate
        unit = float(np.trace(precisions.mean(0))) / targets.shape[1]
        n = len(targets)
        minibatches = self._rng.integers(n, size=(self.imitation_steps, min(self.batch_size, n)))
        return regress_mean(self.policy, inputs, targets, precisions / unit, minibatches)

    def _for_all(self, values: FloatArray, model: LocalModel) -> FloatArray:
        """Values of the latest conditions, repeated for those of the iterations that are kept."""
        n = len(model.lengths)
        if self.conditions != "fixed":
            return np.full(n, geometric_mean(values))
        return np.tile(values, -(-n // len(values)))[:n]

    def _of_latest(self, model: LocalModel, controller: LinearGaussianController) -> CStep:
        latest = model.first(self.total_conditions)
        return CStep(latest, latest.take(controller))

    # ------------------------------------------------------------------ sampling

    def _initial_controllers(self, x0: FloatArray, horizon: int) -> LinearGaussianController | None:
        kind, options = parse_choice("initial_controller", self.initial_controller, tuple(INITIAL_CONTROLLERS))
        du = int(np.prod(self.action_space.shape))  # type: ignore[arg-type]
        try:
            return INITIAL_CONTROLLERS[kind](x0, horizon, du, **options)
        except ValueError as error:
            raise ValueError(f"initial_controller {kind!r}: {error}") from None

    def _make_sampler(self, conditions: np.ndarray, first_states: FloatArray, horizon: int) -> Sampler:
        controller = None
        if self.n_iterations == 0:
            controller = self._initial_controllers(first_states, horizon)
        elif self.sampling == "local" and self.previous is not None:
            p = self.previous.controller
            controller = replace(p, K=p.K[conditions], k=p.k[conditions], cov=p.cov[conditions])
        if controller is None:
            return super()._make_sampler(conditions, first_states, horizon)
        K, k = controller.K, controller.k
        noise = self._rng.standard_normal((len(conditions), horizon, k.shape[-1], 1))
        offset = k + (np.linalg.cholesky(controller.cov) @ noise)[..., 0]
        return lambda t, obs, states: (K[:, t] @ states[..., None])[..., 0] + offset[:, t]

    # ------------------------------------------------------------------ what is told

    def _log(
        self,
        trajectories: Trajectories,
        fitted: LocalModel,
        improvement: Improvement | None,
        planned: LocalModel,
        solution: KLConstrainedSolution,
        losses: FloatArray,
    ) -> None:
        record, n = self.logger.record, self.total_conditions
        step, first = self._of_latest(planned, solution.controller), fitted.first(n)
        record("trajopt/held_out_error", self._held_out_error(trajectories, fitted.lengths))
        if improvement is not None:
            record("trajopt/predicted_improvement", float(np.mean(improvement.before - improvement.predicted)))
            record("trajopt/actual_improvement", float(np.mean(improvement.before - improvement.actual)))
        record("trajopt/kl", kl_per_step(solution, step.model.lengths, self.gamma))
        record("trajopt/eta", float(np.mean(self.eta)))  # type: ignore[arg-type]
        record("trajopt/kl_step", self.kl_step(self._current_progress_remaining) * float(self.step_multiplier.mean()))
        record("trajopt/cost_local", float(total_cost(step.model, step.controller, self.gamma).mean()))
        record("trajopt/cost_linearized", float(total_cost(first, first.policy, self.gamma).mean()))
        record("trajopt/cost_global", float(-np.nanmean(trajectories.returns[:n])))
        record("trajopt/planned_steps", float(step.model.lengths.mean()))
        record("trajopt/lqr_passes", solution.n_passes)
        record("trajopt/recoveries", solution.n_recoveries)
        record("trajopt/inactive", int(np.sum(~solution.active)))
        record("trajopt/unconverged", int(np.sum(~solution.converged)))
        record("train/loss", float(losses[-20:].mean()))

    def learn(
        self: SelfMDGPS,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MDGPS",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMDGPS:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
