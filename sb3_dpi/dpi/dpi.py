"""Dual policy iteration on a learned neural ensemble, whose imagination is anchored in what was real."""

import math
import os
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_dpi.common.choices import check_choice
from sb3_dpi.common.restarts import Restarts
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.dpi.arguments import first_temperature, make_expert, noise_scale_schedule
from sb3_dpi.dpi.challenges import Challenges
from sb3_dpi.dpi.diagnostics import critic_r_squared, policy_change, window_correlation
from sb3_dpi.dpi.forms import ANCHORED, AUTO, adapt
from sb3_dpi.dpi.memory import TransitionBuffer
from sb3_dpi.dpi.policies import MlpPolicy, MultiInputPolicy
from sb3_dpi.dpi.sampling import ContinuingSampler
from sb3_dpi.models.advice import Plan
from sb3_dpi.models.critics import Critic, Lessons, SoftTwinQ
from sb3_dpi.models.data import Transitions, discount_for_time_limit, returns_to_go
from sb3_dpi.models.ensemble import DivergedError, Ensemble, Residuals, SystemFunction
from sb3_dpi.models.experts import Expert
from sb3_dpi.models.imagination import branch, join, make_windows, real_pool
from sb3_dpi.models.pathwise import Pathwise
from sb3_dpi.models.problem import PlanningProblem
from sb3_dpi.models.values import ReturnsV, WindowsV
from sb3_dpi.trajopt.types import FloatArray, IntArray

SelfDPI = TypeVar("SelfDPI", bound="DPI")

CRITICS: dict[str, type[Critic]] = {"q": SoftTwinQ, "windows": WindowsV, "returns": ReturnsV}
RECENT = 5000
"""Steps that count as recent: from half of them windows begin, and their rewards give the unit of value."""
FIRST_MODEL_STEPS = 1500
"""Steps of the model's optimizer at first."""
FIRST_CRITIC_UPDATES = 2000
"""More updates of the critic at first."""
REPORTED = 1000
"""Latest steps that the logger's numbers are about."""
MODEL_BATCH = 64
"""Rows of a step of the model: four times as many steps on a quarter of the rows fit better at the same cost."""
SMALLEST_MEMORY = 32
"""Steps below which there is nothing to learn from."""
AVERAGED_SHARE = 8.0
"""The average is one of the last eighth of the policy's steps, until that is as long as ``averaging`` says."""
RATE_CHANGE, RATE_BOUNDS = 1.2, (0.1, 5.0)
"""By how much the policy's learning rate follows ``target_kl`` after each block, and how far at most."""
SETTLED_SHARE = 0.1
"""Of the critic's learning rate, what is left when it has settled."""
LOG_TEMPERATURE_BOUNDS = -12.0, 2.0


class DPI(SavedModel, ContinuingSampler):
    """
    Dual policy iteration (DPI) on a learned neural ensemble

    An ensemble of networks learns the system from all real steps. An expert plans in short windows that the model imagines
    from real states, closed by soft Q-functions that learn from real and imagined steps; the policy imitates it, many times
    for each block of real steps (Sun et al., 2018, with nonlinear dynamics). What the model foretells is anchored: a member's
    error on the real step from the same state is added, so that only the effect of acting differently is imagined.

    Paper: https://arxiv.org/abs/1805.10755

    :param policy: The policy model to use (MlpPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str); its actions must be a bounded Box, its
        observations vectors
    :param learning_rate: of the policy, it can be a function of the current progress remaining (from 1 to 0); usual: 1e-4 to
        1e-3
    :param n_steps: The number of steps to run for each environment per update. None takes 125 over all environments, 250 in
        the free form. Of its two forms DPI takes the free one where ten random episodes or more ended by themselves, rewards
        vary by a twentieth and a first model explains less than .99 of the variance of new steps, else the anchored one
        (``sb3_dpi.dpi.forms``; the attribute ``form`` tells): what is ``"auto"`` follows from that
    :param learning_starts: Random steps before learning starts. None takes 1000, in the anchored form fewer where 25 episodes
        end earlier
    :param buffer_size: Real steps that are kept
    :param batch_size: Minibatch size for the critic
    :param gamma: Discount factor; usual: .95 to .999. None takes .99, free .995, or less where a time limit ends random
        episodes before 250 steps, free 500: 1 - 2.5 / steps (.95 for 50)
    :param tau: the soft update coefficient of the critic's slow copies; usual: .005 to .02. ``"auto"``: .02, free .005
    :param horizon: Steps H of a window; usual: 1 to 10
    :param n_windows: Windows of a plan; usual: 100 to 500
    :param expert: ``"pathwise"``: the gradient of the window's return, the limit of small trust regions; ``"lqr"``:
        KL-constrained LQR along the windows; ``"mppi"``, ``"icem"``: sampled plans; or a dictionary of options whose key
        ``"kind"`` is one of these, or an object with their method ``plan``
    :param trust_region: KL(expert || policy), nats a step, of experts that have one; usual: .05 to .5
    :param imitation_steps: Steps of the policy for each plan. None takes 1 with the pathwise expert, whose plan costs no more
        than a step, 10 with others
    :param effort: Trades time for samples: multiplies the steps of model, critic and policy; usual: .25 to 2
    :param model_steps: Steps of the model's optimizer for each real step; usual: 1 to 8
    :param critic_updates: Updates of the critic for each real step; usual: 5 to 20
    :param policy_delay: Updates of the critic for each step of the policy; usual: 5 to 20
    :param real_fraction: Share of real steps in the critic's minibatches, the others are imagined; usual: .1 to 1
    :param n_branches: Imagined steps between updates, in branches from states drawn from all that is kept
    :param branch_length: Steps of a branch, whose end the critic closes. Long ones tell it what actions do later and end leaps
        and standstills where a step is short; in unstable systems they mislead; usual: 1 to 32. ``"auto"``: 1, free 10
    :param anchor: Whether imagination is anchored in real steps; without it models of unstable systems mislead. ``"auto"``:
        True, free False
    :param ent_coef: Temperature alpha of the soft values, in units of value (ten root mean squares of the reward): a number or
        ``"auto_0.02"`` to let it follow ``target_entropy`` from there
    :param target_entropy: of the policy, nats; ``"auto"`` takes -.5 for each action; usual: -1 to 0 for each action
    :param restart_after: Median of the steps after which an episode is left, so that a new one begins: long ones otherwise
        show their beginnings seldom, and what goes wrong once lasts. Each is left after half of it at least, one of two only
        after the whole, one of four after twice as much. None leaves none; usual: 100 to 500. ``"auto"``: 125, free
        None
    :param noise_correlation: of the exploration noise of one step with that of the next; usual: 0 to .9. ``"auto"``: 0,
        free .8
    :param noise_scale: what multiplies the policy's standard deviation in real steps, it can be a function of the progress
        remaining, or ``"lin_1.0"``, which falls to zero; 0: no noise. ``policy_kwargs=dict(std_bounds=(.3, .3))`` fixes the
        standard deviation itself; usual: .3 to 2. ``"auto"``: 1, free 2
    :param n_members: Networks of the ensemble; usual: 3 to 7
    :param model_width: of their two hidden layers; usual: 64 to 256
    :param model_learning_rate: of the ensemble; it falls to a tenth within the steps between two blocks; usual: 5e-4 to 3e-3
    :param critic: what closes a plan: ``"q"``: soft Q-functions on real and imagined steps; ``"windows"``: V on imagined
        windows, anchored in real returns; ``"returns"``: V by TD(lambda) on the latest real steps
    :param critic_width: of the critic's two hidden layers; usual: 64 to 256
    :param critic_learning_rate: of the critic; usual: 3e-4 to 1e-3
    :param critic_settling: Updates of the critic after which its learning rate falls, as one over the root of their number, to
        a tenth at the least. None: never; usual: 1e4 to 1e5. ``"auto"``: None, free 20000
    :param target_kl: KL(policy before || after) of the updates between two blocks, nats, that the policy's learning rate aims
        at: after less than half of it the rate rises, after more than double it falls, within a tenth and five times
        ``learning_rate``. None leaves the rate alone; usual: .3 to 3. ``"auto"``: 1, free None
    :param averaging: by how much the policy that is deployed, which ``predict`` uses, follows the one that learns and explores
        at each of its steps: what swings around a good policy is good on average (Polyak and Juditsky, 1992). 1 deploys the
        policy that learns; usual: .001 to .01. ``"auto"``: .004, free .001
    :param test_every: Of so many episodes of an environment one is a test: the average as it is when it begins plays it
        without noise, and what has earned most in tests is deployed (``sb3_dpi.dpi.challenges``). None deploys the average;
        usual: 2 to 10
    :param max_grad_norm: The maximum value for the gradient clipping of the policy
    :param cost_fn: A known cost, ``cost_fn(obs, action, next_obs) -> cost [n]`` (cost = -reward), in torch, batched and in the
        environment's units: replaces the learned reward
    :param termination_fn: A known end of episodes, ``termination_fn(obs, action, next_obs) -> bool [n]``, likewise
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run. ``"auto"`` takes the CPU, on which networks of this
        size learn fastest
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown, or observations are no vectors
    """

    algorithm_version: ClassVar[int] = 1
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    critic: Critic

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        learning_starts: int | None = None,
        buffer_size: int = 100_000,
        batch_size: int = 128,
        gamma: float | None = None,
        tau: float | str = AUTO,
        horizon: int = 4,
        n_windows: int = 200,
        expert: str | dict[str, Any] | Expert = "pathwise",
        trust_region: float = 0.1,
        imitation_steps: int | None = None,
        effort: float = 1.0,
        model_steps: float = 4.0,
        critic_updates: int = 10,
        policy_delay: int = 10,
        real_fraction: float = 0.2,
        n_branches: int = 20_000,
        branch_length: int | str = AUTO,
        anchor: bool | str = AUTO,
        ent_coef: str | float = "auto_0.02",
        target_entropy: str | float = "auto",
        restart_after: int | str | None = AUTO,
        noise_correlation: float | str = AUTO,
        noise_scale: float | str | Schedule = AUTO,
        n_members: int = 5,
        model_width: int = 128,
        model_learning_rate: float = 2e-3,
        critic: str = "q",
        critic_width: int = 64,
        critic_learning_rate: float = 1e-3,
        critic_settling: int | str | None = AUTO,
        target_kl: float | str | None = AUTO,
        averaging: float | str = AUTO,
        test_every: int | None = None,
        max_grad_norm: float = 1.0,
        cost_fn: SystemFunction | None = None,
        termination_fn: SystemFunction | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]  # has no value function
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]  # None until the number of environments is known
            gamma=gamma,  # type: ignore[arg-type]  # None until the random episodes are known
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device="cpu" if device == "auto" else device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.learning_starts = learning_starts
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.tau = tau
        self.horizon = horizon
        self.n_windows = n_windows
        self.expert = expert
        self.trust_region = trust_region
        self.imitation_steps = imitation_steps
        self.effort = effort
        self.model_steps = model_steps
        self.critic_updates = critic_updates
        self.policy_delay = policy_delay
        self.real_fraction = real_fraction
        self.n_branches = n_branches
        self.branch_length = branch_length
        self.anchor = anchor
        self.ent_coef = ent_coef  # type: ignore[assignment]
        self.target_entropy = target_entropy
        self.restart_after = restart_after
        self.noise_correlation = noise_correlation
        self.noise_scale = noise_scale_schedule(noise_scale)
        self.n_members = n_members
        self.model_width = model_width
        self.model_learning_rate = model_learning_rate
        self.critic_kind = critic
        self.critic_width = critic_width
        self.critic_learning_rate = critic_learning_rate
        self.critic_settling = critic_settling
        self.target_kl = target_kl
        self.averaging = averaging
        self.test_every = test_every
        self.cost_fn = cost_fn
        self.termination_fn = termination_fn
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        # what is learned beside the networks survives saving
        self.memory = None
        self.log_temperature: float | None = None
        self.rate_factor = 1.0
        self.n_iterations = 0
        self.n_episodes = 0
        self.time_limit = 0
        self.steps_since_training = 0
        self.form, self.form_is_chosen = ANCHORED, False  # until random episodes have shown which suits
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_saved_format()
        self.form = adapt(self.form, vars(self))
        self._check_arguments()
        self._expert = make_expert(self.expert, self.trust_region)
        self.noise_scale = noise_scale_schedule(self.noise_scale)  # may be changed on loading
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._rng = np.random.default_rng(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        dx, du = self.policy.state_dim, self.policy.actor.action_dim
        self.ensemble = Ensemble(dx, du, self.n_members, self.model_width, self.model_learning_rate).to(self.device)
        self.ensemble.known_reward, self.ensemble.known_end = self._known_reward(), self._known_end()
        critic_class, widths = CRITICS[self.critic_kind], (self.critic_width,) * 2
        self.critic = critic_class(dx, du, widths, self.critic_learning_rate, self.form.tau, self.real_fraction).to(
            self.device
        )
        if self.memory is None:
            self.memory = TransitionBuffer(self.buffer_size, dx, du, self.n_envs)
        elif self.memory.n_envs != self.n_envs:
            self.memory = self.memory.for_environments(self.n_envs)
        self.rollout_buffer = self.memory  # type: ignore[assignment]  # what the loop hands to ``collect_rollouts``
        if self.log_temperature is None:
            self.log_temperature = math.log(first_temperature(self.ent_coef))
        self._noise = np.zeros((self.n_envs, du))
        self._start_correlation = np.zeros((self.n_envs, 1))
        self._restarts = Restarts(self.form.restart_after, self.n_envs, self._rng)
        self._challenges = Challenges(self.test_every, self.policy)
        self._objectives: list[float] = []

    def _check_arguments(self) -> None:
        check_choice("critic", self.critic_kind, tuple(CRITICS))
        counts = ["buffer_size", "batch_size", "n_windows", "critic_updates", "policy_delay", "n_branches"]
        optional = ("n_steps", "imitation_steps", "test_every")
        counts += [name for name in optional if getattr(self, name) is not None]
        for name in (*counts, "n_members", "model_width", "critic_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.real_fraction <= 1.0:
            raise ValueError(f"real_fraction must be from 0 to 1, got {self.real_fraction}")
        if self.gamma is not None and not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must be at least 0 and below 1, got {self.gamma}")
        for name in ("trust_region", "effort", "model_steps", "model_learning_rate", "critic_learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.horizon >= 0:
            raise ValueError(f"horizon must be at least 0, got {self.horizon}")

    def _known_reward(self) -> SystemFunction | None:
        known = self.cost_fn
        if known is None:
            return None
        return lambda state, action, following: -known(state, self._env_units(action), following)

    def _known_end(self) -> SystemFunction | None:
        known = self.termination_fn
        if known is None:
            return None
        return lambda state, action, following: known(state, self._env_units(action), following)

    def _env_units(self, actions: th.Tensor) -> th.Tensor:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = (th.as_tensor(bound.reshape(-1), device=actions.device) for bound in (space.low, space.high))
        return low + 0.5 * (actions + 1.0) * (high - low)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_rng",
            "_noise",
            "_restarts",
            "_challenges",
            "_start_correlation",
            "_actor",
            "_expert",
            "_plan",
            "_objectives",
            "ensemble",
            "critic",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules = ["policy", "policy.optimizer", "ensemble", "ensemble.optimizer", "ensemble.termination_optimizer"]
        return [*modules, "critic", "critic.optimizer"], []

    # ------------------------------------------------------------------ learning

    def train(self) -> None:
        """Dual policy iteration on all that is remembered."""
        assert self.memory is not None
        if self._is_starting() or len(self.memory) < SMALLEST_MEMORY:
            return
        self.policy.set_training_mode(True)
        self._update_rates()
        data = self.memory.transitions()
        if self.n_iterations == 0:
            self._choose_form()
            self.critic.tau, self._restarts.after = self.form.tau, self.form.restart_after
        if self.gamma is None:
            self.gamma = discount_for_time_limit(self.time_limit, self.form.gamma)
        self._report_model(data)
        returns = self._follow_units(data)
        residuals = self.fit_model(data)  # P-hat, Eq. 2
        lessons = self._lessons(data, residuals)
        before = self.policy.actor.network.flat.detach().clone()
        self.critic.begin(lessons, self.policy.actor, self.temperature, self.gamma, self._rng)
        for i in range(-self._warm_up(), self._n_rounds()):
            self.evaluate(lessons)
            if i < 0:
                continue  # a critic that knows nothing yet has nothing to say
            if i % self._steps_per_plan() == 0:
                expert = self.improve_expert(lessons)  # eta_n, Eq. 4
            self.imitate(expert)  # pi_n+1, Eq. 5
        self._report(lessons, returns, before)
        self.n_iterations += 1
        self.steps_since_training = 0

    def _update_rates(self) -> None:
        rate = self.lr_schedule(self._current_progress_remaining) * self.rate_factor
        update_learning_rate(self.policy.optimizer, rate)
        if self.form.critic_settling is not None:
            taken = max(self._n_updates * self.policy_delay, 1)
            share = float(np.clip(math.sqrt(self.form.critic_settling / taken), SETTLED_SHARE, 1.0))
            update_learning_rate(self.critic.optimizer, share * self.critic_learning_rate)
        self.logger.record("train/learning_rate", rate)

    def _follow_divergence(self, divergence: float) -> None:
        """The same step moves some policies hardly at all and others off a cliff."""
        aim = self.form.target_kl
        if aim is None:
            return
        if divergence > 2.0 * aim:
            self.rate_factor = max(self.rate_factor / RATE_CHANGE, RATE_BOUNDS[0])
        elif divergence < 0.5 * aim:
            self.rate_factor = min(self.rate_factor * RATE_CHANGE, RATE_BOUNDS[1])

    def _steps_per_plan(self) -> int:
        if self.imitation_steps is not None:
            return self.imitation_steps
        return 1 if isinstance(self._expert, Pathwise) else 10

    def _warm_up(self) -> int:
        """Rounds at first in which the critic alone learns."""
        return int(self.effort * FIRST_CRITIC_UPDATES) // self.policy_delay if self.n_iterations == 0 else 0

    def _n_rounds(self) -> int:
        """Each is ``policy_delay`` updates of the critic and one of the policy."""
        new = self.steps_since_training if self.n_iterations > 0 else self._block() * self.n_envs
        return max(int(self.effort * self.critic_updates * new) // self.policy_delay, 1)

    def _follow_units(self, data: Transitions) -> FloatArray:
        """Standardise by all that was seen; no network's function changes. Returns the realised returns."""
        fresh = not bool(self.ensemble.has_units)
        change = self.ensemble.update_units(data)
        if not fresh:
            for actor in (self.policy.actor, self.policy.averaged, self.policy.deployed):
                actor.network.rescale_inputs(change.scale, change.shift)
            self.critic.rescale_states(change.scale, change.shift)
        recent = data.rewards[data.age * self.n_envs < 2 * RECENT]
        returns = returns_to_go(data, self.gamma)
        ratio = self.critic.follow_rewards(recent, returns)
        if not fresh:
            assert self.log_temperature is not None
            self.log_temperature += math.log(ratio)
        self.policy.set_standardization(*self._policy_units())
        return returns

    def _policy_units(self) -> tuple[th.Tensor, th.Tensor]:
        """By which the policy reads observations, normalised or not by a wrapper."""
        mean, std = self.ensemble.state_mean, self.ensemble.state_std
        if self._vec_normalize_env is None:
            return mean, std
        wrapper, center, spread = self._vec_normalize_env, mean.cpu().numpy(), std.cpu().numpy()
        seen = [self.policy.join(wrapper.normalize_obs(self.policy.split(center + step)))[0] for step in (0.0, spread)]
        return th.as_tensor(seen[0], device=mean.device), th.as_tensor(seen[1] - seen[0], device=mean.device)

    def fit_model(self, data: Transitions) -> Residuals | None:
        """
        Fit the ensemble to all that was seen.

        :param data: real steps
        :return: what happened beyond the members' predictions, None without anchor
        :raises DivergedError: if there is no finite model
        """
        n_steps = FIRST_MODEL_STEPS if self.n_iterations == 0 else self.model_steps * self.steps_since_training
        try:
            loss = self.ensemble.fit(data, max(int(self.effort * n_steps), 1), MODEL_BATCH, self._rng)
        except DivergedError as error:
            raise DivergedError(f"{error}. {self._keep_last_good_model()}") from error
        self.logger.record("model/loss", loss)
        return self.ensemble.residuals(data) if self.form.anchor else None

    def _keep_last_good_model(self) -> str:
        """Save what acts as well as before; says where."""
        folder = self.logger.get_dir()
        if folder is None:
            return "The policy is as before and can be saved"
        path = os.path.join(folder, "last_good_model.zip")
        self.save(path)
        return f"The policy is as before and was saved to {path}"

    def _lessons(self, data: Transitions, residuals: Residuals | None) -> Lessons:
        real = real_pool(self.ensemble, data)
        size, alpha = (self.n_branches, self.form.branch_length), self.temperature * float(self.critic.unit)
        imagined = branch(self.ensemble, self.policy.actor, data, residuals, self._rng, *size, alpha, self.gamma)
        return Lessons(data, real, join(real, imagined, float(self.critic.unit)), self.ensemble, residuals)

    def evaluate(self, lessons: Lessons) -> None:
        """
        Update the critic.

        :param lessons: real and imagined steps
        """
        learner = (self.policy.actor, self.temperature, self.gamma, self._rng)
        update = self.critic.learn(lessons, self.policy_delay, self.batch_size, *learner)
        self.logger.record_mean("train/critic_loss", update.loss)
        self.logger.record("train/critic_target", update.target * float(self.critic.unit))

    @property
    def temperature(self) -> float:
        """alpha, in units of value."""
        assert self.log_temperature is not None
        return math.exp(self.log_temperature)

    def improve_expert(self, lessons: Lessons) -> Plan:
        """
        Plan in imagined windows.

        :param lessons: where windows begin
        :return: what the policy should do
        """
        rows = self._starts(lessons.data, max(self.n_windows // self.n_members, 1) * self.n_members)
        anchors = lessons.data, lessons.real.states, lessons.residuals
        windows = make_windows(self.ensemble, *anchors, rows, self.horizon)
        problem = PlanningProblem(self.policy.actor, self.ensemble, self.critic, windows, self.temperature, self.gamma)
        return self._expert.plan(problem, self._rng)

    def _starts(self, data: Transitions, n: int) -> IntArray:
        """Half from what is recent, half from all."""
        recent = np.flatnonzero(data.age * self.n_envs < RECENT)
        some = recent[self._rng.integers(len(recent), size=n // 2)]
        rows = np.concatenate([some, self._rng.integers(len(data), size=n - n // 2)])
        self._rng.shuffle(rows)
        return rows

    def imitate(self, expert: Plan) -> None:
        """
        Take one step towards the expert, and let the temperature follow the entropy.

        :param expert: its plan
        """
        gradient = expert.gradient(self.policy.actor, self.temperature, self._rng)
        flat = self.policy.actor.network.flat
        flat.grad = -gradient.direction
        norm = th.nn.utils.clip_grad_norm_([flat], self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        self.policy.follow(min(max(self.form.averaging, AVERAGED_SHARE / self._n_updates), 1.0))
        if isinstance(self.ent_coef, str):
            assert self.log_temperature is not None
            du = self.policy.actor.action_dim
            target = -0.5 * du if self.target_entropy == "auto" else float(self.target_entropy)
            rate = self.lr_schedule(self._current_progress_remaining)
            moved = self.log_temperature - rate * (gradient.entropy - target)
            self.log_temperature = float(np.clip(moved, *LOG_TEMPERATURE_BOUNDS))
        self.logger.record_mean("train/grad_norm", float(norm))
        self.logger.record_mean("train/objective", gradient.objective * float(self.critic.unit))
        self.logger.record_mean("train/entropy", gradient.entropy)
        self._objectives.append(gradient.objective)

    # ------------------------------------------------------------------ logging

    def _report_model(self, data: Transitions) -> None:
        """How well the model foretells the steps that it has not been fitted to yet."""
        if self.n_iterations == 0:
            return
        fresh = np.flatnonzero(data.age * self.n_envs < self.steps_since_training)
        state, reward = self.ensemble.r_squared(data.take(fresh))
        self.logger.record("model/r_squared", state)
        self.logger.record("model/r_squared_reward", reward)
        trust = (self.ensemble, self.critic, self.policy.actor, data, fresh, self.horizon, self.gamma)
        self.logger.record("model/window_correlation", window_correlation(*trust))
        older = np.flatnonzero(data.age * self.n_envs < 2 * self.steps_since_training)
        before, now = data.rewards[np.setdiff1d(older, fresh)], data.rewards[fresh]
        if len(before):
            self.logger.record("train/real_improvement", float(now.mean() - before.mean()))

    def _report(self, lessons: Lessons, returns: FloatArray, before: th.Tensor) -> None:
        data, real = lessons.data, lessons.real
        recent = np.flatnonzero(data.age * self.n_envs < REPORTED)
        divergence, std = policy_change(self.policy.actor, before, real.states[recent])
        self._follow_divergence(divergence)
        self.logger.record("train/kl", divergence)
        self.logger.record("train/std", std)
        self.logger.record("train/ent_coef", self.temperature * float(self.critic.unit))
        explained = critic_r_squared(self.ensemble, self.critic, data, returns, recent)
        self.logger.record("train/critic_r_squared", explained)
        tenth = max(len(self._objectives) // 10, 1)
        gain = float(np.mean(self._objectives[-tenth:]) - np.mean(self._objectives[:tenth])) * float(self.critic.unit)
        # of a reward a step, as the real one is
        self.logger.record("train/predicted_improvement", gain * (1.0 - self.gamma))
        self._objectives.clear()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self: SelfDPI,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DPI",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDPI:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
