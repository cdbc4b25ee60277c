"""How ExIt searches: trees in copies of the environments, steps while it learns, and predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dpi.common.conventions import as_starts, refuse_tuple
from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.common.finite import check_observation, planning_after
from sb3_dpi.common.kept_originals import KeepsOriginals
from sb3_dpi.common.long_runs import warn_of_long_run
from sb3_dpi.common.observed_states import StateFinder, StateFromObs, evaluation_environments
from sb3_dpi.common.original_observations import as_shown
from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.common.simulator_states import follow_parameters, read_states
from sb3_dpi.common.trajectories import map_observations
from sb3_dpi.expert_iteration.buffers import SearchReplayBuffer
from sb3_dpi.expert_iteration.policies import Evaluator
from sb3_dpi.expert_iteration.targets import reach
from sb3_dpi.systems import Simulator, SimulatorState
from sb3_dpi.trajopt.mcts import Node, SearchResult, guessed, new_node, puct_each
from sb3_dpi.trajopt.types import FloatArray

COPYING, GUESS_SECONDS = 2.0, 5e-5
"""Steps of a copy with its state set and read, in bare steps, and seconds in which a network judges a state. Measured."""
NOISE_CONCENTRATION = 10.0
"""Of the Dirichlet noise, over all actions (Silver et al. 2017 had 10 / 250 to 10 / 35 an action)."""


def _as_arrays(tensor: PyTorchObs) -> tuple[Any, int]:
    """:return: the same in numpy, and how many there are"""
    if isinstance(tensor, dict):
        return {key: rows.cpu().numpy() for key, rows in tensor.items()}, len(next(iter(tensor.values())))
    return tensor.cpu().numpy(), len(tensor)


class Searching(SavedModel, KeepsOriginals):
    """What ExIt adds to the way in which SB3's off-policy algorithms act. ExIt sets the attributes."""

    policy: ActorCriticPolicy
    replay_buffer: SearchReplayBuffer
    n_simulations: int
    horizon: int
    exploration: float
    temperature: float
    root_noise: float
    gae_lambda: float
    search_in_predict: bool
    state_from_obs: StateFromObs | None
    return_scale: ReturnScale
    simulator_steps: int
    _simulator: Simulator | None
    _finder: StateFinder | None
    _evaluator: Evaluator | None
    _kept: np.ndarray
    _seen_through: VecEnv | None
    """as whose wrappers show it the networks see what is observed; None: those of the environments it searches in"""
    _evaluated_in: tuple[VecEnv, ...] = ()
    """by callbacks of ``learn``"""
    _found: list[SearchResult]
    _rng: np.random.Generator

    def _make_simulator(self) -> Simulator:
        raise NotImplementedError

    # ------------------------------------------------------------------ searching

    def search(
        self, states: Sequence[SimulatorState], observations: Any, kept: np.ndarray, explores: bool, rngs: Any
    ) -> list[SearchResult]:
        """
        Improve on the policy in some states.

        :param states: of the simulator, ``n``
        :param observations: what the policy sees there, ``[n, ...]`` or a dictionary of such
        :param kept: last search of each and the action that was taken, or None, ``[n]``: its tree grows on
        :param explores: whether there is noise in the first priors
        :param rngs: what searches draw from, ``n``
        :return: of each state
        """
        evaluator = self._evaluator or Evaluator(self.policy, self.return_scale, self._present)
        roots = [self._tree(state, last) for state, last in zip(states, kept, strict=True)]
        bare = np.array([not root.priors for root in roots])
        if bare.any():  # the policy sees what it was shown, whatever the simulator would show
            priors, values = evaluator.evaluate(map_observations(lambda rows: rows[bare], observations))
            for root, prior, value in zip([root for root in roots if not root.priors], priors, values, strict=True):
                guessed(root, prior, value)
        noise = (NOISE_CONCENTRATION / self._n_actions, self.root_noise) if explores and self.root_noise > 0.0 else None
        numbers = self.n_simulations, self.horizon, self.gamma, self.exploration, noise
        return puct_each(self._make_simulator(), roots, evaluator, rngs, *numbers)

    @property
    def seconds_a_step(self) -> float:
        """Of a core, for each step that it searches for, about: steps of the copy, states that are set and read among them."""
        return self.n_simulations * (COPYING * self._make_simulator().step_seconds + GUESS_SECONDS)

    @property
    def _n_actions(self) -> int:
        assert isinstance(self.action_space, spaces.Discrete)
        return int(self.action_space.n)

    def _present(self, observations: Any) -> Any:
        return as_shown(self.env if self._seen_through is None else self._seen_through, observations)

    def _tree(self, state: SimulatorState, last: tuple[SearchResult, int] | None) -> Node:
        """What an earlier search knows of a state, or a new tree."""
        simulator = self._make_simulator()
        if last is not None:
            found, action = last
            key = simulator.key(state)
            node = found.subtree(action, key)
            if node is not None and not node.is_over and simulator.key(node.state) == key:
                return node
        return new_node(state, self._n_actions)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        search: bool | None = None,
    ) -> tuple[np.ndarray, Any]:
        """
        Get the policy's action, or that of a search which it leads.

        :param observation: one, or one of each environment
        :param state: what the last call with ``search`` returned: its trees grow on. None begins new ones
        :param episode_start: where episodes begin, and trees anew, ``[n]``
        :param deterministic: whether to take the likeliest action, with ``search`` the one that was tried most
        :param search: whether to search, in copies of the environments of ``get_env()``; None: as ``search_in_predict`` says
        :return: actions, and with ``search`` its trees, an array of objects ``[n]``
        :raises ValueError: if an observation is not finite, or its state in the simulator is not known
        """
        refuse_tuple(observation)
        if isinstance(observation, dict) and isinstance(self.observation_space, spaces.Dict):  # as the environments' own are
            observation = {key: observation[key] for key in self.observation_space.spaces if key in observation}
        tensor, is_batch = self.policy.obs_to_tensor(observation)
        check_observation(tensor)
        seen, n = _as_arrays(tensor)
        if n == 0:  # torch has no distribution over nothing
            return np.zeros((0, *(self.action_space.shape or ())), dtype=self.action_space.dtype), state
        if not (self.search_in_predict if search is None else search):
            return self.policy.predict(observation, state, episode_start, deterministic)
        kept = np.full(n, None, dtype=object)
        if state is not None:
            is_one = isinstance(state, np.ndarray) and state.shape == (n,) and state.dtype.kind == "O"
            if not is_one or not all(one is None or isinstance(one, tuple) for one in state):
                raise ValueError(f"state must be what the last predict of this model returned for {n} environments, or None")
            kept = state.copy()
        if episode_start is not None:
            kept[as_starts(episode_start, n)] = None
        simulator = self._make_simulator()
        assert self._finder is not None and self.env is not None
        follow_parameters(simulator, self.env)
        normalizer = unwrap_vec_normalize(self.env)
        originals = seen if normalizer is None else normalizer.unnormalize_obs(seen)
        states = self._finder.find(seen, originals, self.env, self._evaluated_in)
        if self._seen_through is not None:
            own = unwrap_vec_normalize(self._seen_through)
            seen = originals if own is None else own.normalize_obs(originals)
        fixed = [np.random.default_rng([self.seed or 0, i]) for i in range(n)]
        results = self.search(states, seen, kept, False, fixed if deterministic else [self._rng] * n)
        chosen = [self._choose(result, 0.0 if deterministic else 1.0) for result in results]
        after = np.full(n, None, dtype=object)
        after[:] = list(zip(results, chosen, strict=True))
        actions = np.array(chosen, dtype=self.action_space.dtype)
        return actions if is_batch else actions[0], after

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        self._evaluated_in = evaluation_environments(result[1])
        advice = "take fewer n_simulations"
        warn_of_long_run("ExIt", self.seconds_a_step, self._total_timesteps - self.num_timesteps, advice)
        if self._last_obs is not before:  # a reset: what comes next is no part of the episode that was left
            self.replay_buffer.cut()
        return result

    def _choose(self, result: SearchResult, temperature: float) -> int:
        return int(self._rng.choice(self._n_actions, p=result.policy(temperature))) if temperature > 0.0 else result.action

    # ------------------------------------------------------------------ steps

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """See ``OffPolicyAlgorithm``."""
        self._evaluator = Evaluator(self.policy, self.return_scale, self._present)
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
            self._settle_values()
        finally:
            self._evaluator = None
        return rollout

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search from the first step on: what learns later imitates it."""
        assert self.env is not None
        follow_parameters(self._make_simulator(), self.env)
        states = read_states(self._make_simulator(), self.env)
        with planning_after(self.num_timesteps):
            self._found = self.search(states, self._last_obs, self._kept, True, [self._rng] * n_envs)
        self.simulator_steps += sum(result.n_steps for result in self._found)
        chosen = [self._choose(result, self.temperature) for result in self._found]
        self._kept = np.full(n_envs, None, dtype=object)
        self._kept[:] = list(zip(self._found, chosen, strict=True))
        actions = np.array(chosen, dtype=self.action_space.dtype)
        return actions, actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        assert isinstance(replay_buffer, SearchReplayBuffer)
        visits = np.stack([result.visits for result in self._found])
        replay_buffer.note(visits, np.array([result.value for result in self._found]))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _settle_values(self) -> None:
        """Write the targets of new rows, and again of those before them that new rows tell more about."""
        buffer = self.replay_buffer
        if buffer.n_new == 0:
            return
        places = buffer.latest(buffer.n_new + reach(self.gamma, self.gae_lambda, buffer.buffer_size))
        asked = buffer.timeouts[places] > 0
        asked[-1] = True
        kept: Any = buffer.next_observations
        evaluator = self._evaluator
        assert evaluator is not None
        rows_of = map_observations(lambda rows: rows[places][asked], kept)  # images are kept transposed
        seen: Any = rows_of if self._vec_normalize_env is None else self._vec_normalize_env.normalize_obs(rows_of)
        after: FloatArray = np.zeros(asked.shape)
        after[asked] = evaluator.evaluate(seen)[1]
        buffer.settle(places, after, self.gamma, self.gae_lambda)

    def dump_logs(self) -> None:
        """Write log data, with what searches took and found."""
        self.logger.record("time/simulator_steps", self.simulator_steps, exclude="tensorboard")
        if self._found:
            self.logger.record("search/depth", float(np.mean([result.depth for result in self._found])))
        super().dump_logs()
