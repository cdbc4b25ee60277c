"""Expert iteration: a tree search improves on a network, and the network imitates it (Anthony et al., 2017)."""

import copy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from sb3_dpi.common.choices import arguments_of_base
from sb3_dpi.common.critic import ReturnScale, rescale_values
from sb3_dpi.common.interruption import reset_when_interrupted, whole_or_undone
from sb3_dpi.common.observed_states import StateFinder, StateFromObs, environment_of
from sb3_dpi.common.original_observations import seen_through
from sb3_dpi.common.replay_memory import check_buffer
from sb3_dpi.common.saved_models import FORMAT_VERSION
from sb3_dpi.expert_iteration.buffers import SearchDictReplayBuffer, SearchReplayBuffer
from sb3_dpi.expert_iteration.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, logits_and_values
from sb3_dpi.expert_iteration.searching import Searching
from sb3_dpi.systems import Simulator
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.mcts import PUCT_EXPLORATION

SelfExIt = TypeVar("SelfExIt", bound="ExIt")

AT_LEAST_ONE = ("n_simulations", "horizon", "buffer_size", "batch_size")
RANGES = {"gamma": (0.0, 1.0), "gae_lambda": (0.0, 1.0), "root_noise": (0.0, 1.0)}
NOT_NEGATIVE = ("exploration", "temperature", "vf_coef", "max_grad_norm")


class ExIt(Searching):
    """
    Expert iteration (ExIt): a tree search teaches a network

    At each step Monte Carlo tree search tries actions in a copy of the environment, led by the policy's probabilities and
    closed by the value network (PUCT, as in AlphaZero). The policy imitates how often the search tried each action, the value
    network what came of it. Next time the search begins from there.

    Paper: https://arxiv.org/abs/1705.08439

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy), as of PPO
    :param env: The environment to learn from (if registered in Gymnasium, can be str); its actions must be Discrete, and
        copies of it must do what it does
    :param learning_rate: it can be a function of the current progress remaining (from 1 to 0); usual: 3e-4 to 3e-3
    :param buffer_size: size of the replay buffer; the network imitates all searches in it
    :param learning_starts: steps before learning starts; it searches from the first
    :param batch_size: Minibatch size for each gradient update
    :param gamma: the discount factor; usual: .95 to .999
    :param train_freq: Update the model every ``train_freq`` steps of the vectorised environment, or a tuple like
        ``(5, "step")`` or ``(2, "episode")``
    :param gradient_steps: How many gradient steps to do after each rollout; -1: as many as steps in the environment, which
        costs more time than the searches
    :param n_simulations: walks of a search, each of which tries one new state at most; usual: 10 to 200. Real steps cost this
        many steps of the simulator
    :param horizon: time steps of a walk at most; leave it beyond what searches reach
    :param exploration: c of PUCT: larger follows the policy, smaller the values; usual: .5 to 3
    :param temperature: of actions while it learns: 1 takes them as often as the search tried them, 0 the most tried one
    :param root_noise: share of Dirichlet noise in the first probabilities of a search while it learns; usual: 0 to .25
    :param gae_lambda: Factor for trade-off of bias vs variance of the values' targets: 1 takes real returns, 0 what the search
        in the next state found
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param search_in_predict: whether ``predict`` searches where it is not told; otherwise it asks the network alone
    :param state_from_obs: ``state_from_obs(env, obs)`` puts a copy of the environment, without wrappers, into the state that
        an observation shows: ``predict`` with search asks it where the environments of the model show something else. None:
        known for some tasks
    :param replay_buffer_class: ``SearchReplayBuffer`` or ``SearchDictReplayBuffer``; None: what fits
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, as of PPO
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run. ``"auto"`` takes the CPU, on which searches ask
        small networks fastest, but for images
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, or the environment cannot be searched
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    algorithm_version: ClassVar[int] = 2

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 20_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 64,
        gradient_steps: int = 16,
        n_simulations: int = 16,
        horizon: int = 1000,
        exploration: float = PUCT_EXPLORATION,
        temperature: float = 1.0,
        root_noise: float = 0.25,
        gae_lambda: float = 0.95,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        search_in_predict: bool = False,
        state_from_obs: StateFromObs | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self._device_is_chosen = device != "auto"
        super().__init__(**arguments_of_base(locals(), OffPolicyAlgorithm), support_multi_env=True, sde_support=False)
        self.n_simulations, self.horizon, self.exploration = n_simulations, horizon, exploration
        self.temperature, self.root_noise = temperature, root_noise
        self.gae_lambda, self.vf_coef, self.max_grad_norm = gae_lambda, vf_coef, max_grad_norm
        self.search_in_predict, self.state_from_obs = search_in_predict, state_from_obs
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        # what is learned and counted beside the networks survives saving
        self.return_scale = ReturnScale(0.0, 0.0)  # nothing is known: any unit would be one of some task
        self.simulator_steps = 0
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        self._check_saved_format()
        self._check_arguments()
        if not self._device_is_chosen and not any(is_image_space(part, normalized_image=True) for part in self._parts):
            self.device = th.device("cpu")
        is_dict = isinstance(self.observation_space, spaces.Dict)
        fitting = SearchDictReplayBuffer if is_dict else SearchReplayBuffer
        if self.replay_buffer_class is None:
            self.replay_buffer_class = fitting
        if not issubclass(self.replay_buffer_class, fitting):
            raise ValueError(
                f"ExIt keeps what searches found beside the steps: replay_buffer_class must be {fitting.__name__} or derived "
                f"from it, got {self.replay_buffer_class.__name__}"
            )
        super()._setup_model()
        if not isinstance(self.policy, ActorCriticPolicy):
            raise ValueError(
                f"ExIt needs a policy with a value network, as PPO's ActorCriticPolicy, got {type(self.policy).__name__}"
            )
        self._rng = np.random.default_rng(self.seed)
        self._found, self._evaluator = [], None
        self._begin_anew()

    def _check_arguments(self) -> None:
        if not isinstance(self.action_space, spaces.Discrete) or self.action_space.start != 0:
            raise ValueError(
                f"ExIt searches among finitely many actions and needs a Discrete action space from 0 on, got "
                f"{self.action_space}: for a Box take MPC, or DAgger for a network that imitates it"
            )
        if any(isinstance(part, spaces.Box) and not part.shape for part in self._parts):
            raise ValueError(
                "Observations without an axis are not read: wrap the environment in ReshapeObservation(env, (1,))"
            )
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.gradient_steps < -1:
            raise ValueError(f"gradient_steps must be at least -1, got {self.gradient_steps}")
        check_buffer(None, self.replay_buffer_kwargs)

    @property
    def _parts(self) -> list[spaces.Space[Any]]:
        """Spaces that make up an observation."""
        space = self.observation_space
        return list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]

    def _begin_anew(self) -> None:
        """Make what is searched, and forget trees."""
        self._simulator, self._finder, self._seen_through = None, None, None
        self._kept = np.full(self.n_envs, None, dtype=object)
        if self.env is not None:
            self._make_simulator()

    def _make_simulator(self) -> Simulator:
        if self._simulator is None:
            if self.env is None:
                raise ValueError("A search needs an environment to copy: load(path, env=env), or model.set_env(env)")
            # a time limit is no part of the task: the value network closes what it would cut
            self._simulator = Simulator(environment_of(self.env), time_limits=False, keeps_parameters=False)
            self._finder = StateFinder(self._simulator, self.state_from_obs)
        return self._simulator

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Act in another environment, in whose copies it searches from now on.

        :param env: The environment to act in
        :param force_reset: Force call to ``reset()`` before learning
        """
        super().set_env(env, force_reset)
        self._begin_anew()

    def as_expert(self, env: VecEnv, penalty: Penalty | None = None) -> "ExIt":
        """
        Search for whoever acts in other environments.

        :param env: what they are; any number of environments
        :param penalty: not known to a search: None
        :return: a model beside this one, which stays as it is; what is learned belongs to both
        :raises ValueError: if there is a penalty
        """
        if penalty is not None:
            raise ValueError("A search of ExIt knows no penalty: set guidance=0")
        expert = copy.copy(self)
        expert.n_envs = env.num_envs
        expert.set_env(env)
        expert._seen_through = seen_through(env, self.get_vec_normalize_env()) if self.env is None else self.env
        return expert

    def _as_own(self, loaded: ReplayBuffer) -> ReplayBuffer:
        if not isinstance(loaded, SearchReplayBuffer):
            name = type(loaded).__name__
            raise ValueError(f"A {name} holds no searches to imitate: load what save_replay_buffer of an ExIt wrote")
        own = super()._as_own(loaded)
        assert isinstance(own, SearchReplayBuffer)
        own.cut(everywhere=own is not loaded)  # the last episode is always left as if behind a time limit
        return own

    def _excluded_save_params(self) -> list[str]:
        own = [
            "_rng",
            "_found",
            "_evaluator",
            "_kept",
            "_simulator",
            "_finder",
            "_seen_through",
            "_evaluated_in",
            "_statistics",
            "_device_is_chosen",
        ]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    # ------------------------------------------------------------------ learning

    @reset_when_interrupted
    def learn(
        self: SelfExIt,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "ExIt",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfExIt:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    @whole_or_undone
    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Imitate the searches in the replay buffer (Anthony et al. 2017, Algorithm 1; targets of Silver et al. 2017).

        :param gradient_steps: how many
        :param batch_size: searches of each
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._follow_returns()
        losses = []
        for _ in range(gradient_steps):
            expert = self.replay_buffer.sample_searches(batch_size, self._rng, self._vec_normalize_env)
            logits, values = logits_and_values(self.policy, expert.observations)
            imitation = F.cross_entropy(logits, expert.policies)  # -sum_a pi*(a | s) log pi(a | s)
            regression = F.mse_loss(values, self.return_scale.standardize(expert.values))
            loss = imitation + self.vf_coef * regression
            self.policy.optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            entropy = -(expert.policies * (expert.policies + 1e-12).log()).sum(1).mean()
            losses.append([float(part.detach()) for part in (imitation, regression, loss, imitation - entropy)])
        self.policy.set_training_mode(False)
        self._n_updates += gradient_steps
        names = ("policy_loss", "value_loss", "loss", "kl")  # KL(search || policy): what is left to imitate
        for name, value in zip(names, np.mean(losses, axis=0), strict=True):
            self.logger.record(f"train/{name}", float(value))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _follow_returns(self) -> None:
        """Units of the value network; what it says in units of the rewards stays the same (van Hasselt et al. 2016)."""
        targets = self.replay_buffer.values[: self.replay_buffer.size()]
        scale = ReturnScale.measured(float(targets.mean()), float(targets.std()))
        rescale_values(self.policy, self.return_scale, scale)
        self.return_scale = scale
