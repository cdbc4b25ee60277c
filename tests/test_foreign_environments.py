"""Environments that others write: stacks of wrappers, Monitors that forbid resets, and simulators of a batch."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import (
    ALGORITHMS,
    Make,
    buffer,
    check_transitions,
    every,
    iterations,
    parameters,
    those,
    with_references,
)
from dummy_envs import (
    HORIZON,
    ITERATION,
    POINT_MASS_ID,
    POINT_MASS_LIMIT,
    DictPointMass,
    PointMass,
    limited,
    normalized,
    register,
    vec_env,
)
from gymnasium import spaces
from leaving import Batched, Seen
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from test_early_resets_above import Shifted

from sb3_dpi.common.asking import ask
from sb3_dpi.common.early_resets import install

# ---------------------------------------------------------------------- wrappers

STACKS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "shift": Shifted,
    "monitor, shift, monitor": lambda env: VecMonitor(Shifted(VecMonitor(env))),
    "normalize, shift": lambda env: Shifted(VecNormalize(env)),
    "normalize, monitor, frames, shift": lambda env: Shifted(VecFrameStack(VecMonitor(VecNormalize(env)), 2)),
}
NUMBERS = [1, 3]


def leaves(make: Make, after: int) -> dict[str, Any]:
    """:return: options with which episodes are left, where the algorithm takes steps"""
    return {"early_reset": {"after": after, "spread": False}} if make.leaves_episodes else {}


@pytest.mark.parametrize("n_envs", NUMBERS)
@pytest.mark.parametrize("stack", STACKS)
@every(searches=False)
def test_what_wrappers_show_is_seen_and_kept(make: Make, stack: str, n_envs: int) -> None:
    """The topmost adds a hundred: nothing less is acted on or learned from, and no episode is longer than the longest."""
    seen, env = Seen(), STACKS[stack](vec_env(n_envs, lambda: Monitor(limited(30))))
    model = make(env, **leaves(make, 5)).learn(2 * ITERATION, callback=seen)
    kept = buffer(model).observations
    latest = kept[np.abs(kept).sum(-1) > 0][:, -2:]  # a frame before the first is empty
    assert np.array(seen.observations)[..., -2:].min() > 80.0 and latest.min() > 80.0
    assert model.get_env() is env and iterations(model) >= 1
    assert all(info["terminal_observation"][-2:].min() > 80.0 for info in seen.infos if "terminal_observation" in info)
    lengths = [info["episode"]["l"] for info in seen.infos if "episode" in info]
    longest = HORIZON if make.from_conditions else 5 if make.leaves_episodes else 30
    assert set(lengths) == ({longest} if longest * n_envs <= 2 * ITERATION else set())


@every(keeps_originals=True, searches=False)
def test_rewards_are_those_of_the_topmost_wrapper(make: Make) -> None:
    class Richer(VecEnvWrapper):
        """Adds a thousand to rewards."""

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            return obs, rewards + 1000.0, dones, infos

    model = make(Richer(VecNormalize(vec_env(2, lambda: limited(12))))).learn(2 * ITERATION)
    rewards = buffer(model).rewards
    assert rewards[rewards != 0.0].min() > 900.0
    assert isinstance(model.get_vec_normalize_env(), VecNormalize), "callbacks save it"


@pytest.mark.parametrize("n_envs", NUMBERS)
@with_references()
def test_callbacks_count_episodes(make: Make, n_envs: int) -> None:
    """Also those that end because the next trajectories begin anew."""
    options = {"early_reset": 0} if make.leaves_episodes else {}
    model = make(vec_env(n_envs, lambda: limited(POINT_MASS_LIMIT)), **options)
    model.learn(2000, callback=StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps == 2 * n_envs * (HORIZON if make.from_conditions else POINT_MASS_LIMIT)


@every(from_conditions=True)
def test_what_is_told_of_a_trajectory_that_is_left(make: Make) -> None:
    """Its last observation, its return and its length; what goes on has not ended."""
    seen = Seen()
    model = make(vec_env(2), conditions="fixed").learn(1, callback=seen)
    ends = np.array(seen.dones)
    np.testing.assert_array_equal(ends, np.arange(1, len(ends) + 1)[:, None] % HORIZON == np.zeros((1, 2)))
    told = [info for info in seen.infos if "episode" in info]
    sampled = model.rollout_buffer.trajectories()
    np.testing.assert_allclose(sorted(info["episode"]["r"] for info in told), np.sort(sampled.returns.ravel()), rtol=1e-5)
    np.testing.assert_array_equal(told[0]["terminal_observation"], sampled.observations[0, 0, -1])
    assert all(info["TimeLimit.truncated"] and info["episode"]["l"] == HORIZON for info in told)
    going_on = Seen()
    make(vec_env(2), conditions="continue").learn(1, callback=going_on)
    assert not np.any(going_on.dones)


@pytest.mark.parametrize("n_envs", NUMBERS)
@with_references()
def test_monitors_that_forbid_early_resets(make: Make, n_envs: int) -> None:
    """What needs them says so once, learns on and reports whole episodes."""
    model = make(vec_env(n_envs, lambda: Monitor(limited(POINT_MASS_LIMIT), allow_early_resets=False)), **leaves(make, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(2 * ITERATION)
        model.learn(ITERATION, reset_num_timesteps=False)
    said = [str(warning.message) for warning in caught if "allow_early_resets=True" in str(warning.message)]
    assert len(said) == (make.leaves_episodes or make.from_conditions) and model._n_updates > 0
    assert {episode["l"] for episode in model.ep_info_buffer} == {POINT_MASS_LIMIT}


class OfOtherKinds(VecEnvWrapper):
    """
    Returns rewards and ends otherwise than as arrays of numpy.

    :param venv: beneath
    :param kind: makes something else of an array
    """

    def __init__(self, venv: VecEnv, kind: Callable[[np.ndarray], Any]) -> None:
        super().__init__(venv)
        self.kind = kind

    def reset(self) -> Any:
        """:return: first observations"""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """:return: of another kind"""
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, self.kind(rewards), self.kind(dones), infos


KINDS: dict[str, Callable[[np.ndarray], Any]] = {"lists": list, "tuples": tuple, "tensors": th.tensor}


@pytest.mark.parametrize("kind", KINDS)
@every(searches=False)
def test_rewards_and_ends_need_not_be_arrays(make: Make, kind: str) -> None:
    """What is learned is that of arrays."""
    learned = []
    for as_kind in (np.array, KINDS[kind]):
        model = make(OfOtherKinds(vec_env(2, lambda: limited(POINT_MASS_LIMIT)), as_kind)).learn(2 * ITERATION)
        learned.append(parameters(model))
    assert learned[0] == learned[1] and model._n_updates > 0


@with_references(searches=False)
def test_what_cannot_be_sent_stays_in_its_process(make: Make) -> None:
    """A lambda in a wrapper is in the environment's ``spec``: a worker that has to send it ends."""
    register()

    def task() -> gym.Env:
        return gym.wrappers.TransformReward(gym.make(POINT_MASS_ID), lambda reward: 0.5 * reward)

    env = SubprocVecEnv([task] * 2, start_method="fork")
    try:
        assert ask(env, "spec") is None and ask(env, "_max_episode_steps") == [POINT_MASS_LIMIT] * 2
        assert iterations(make(env).learn(2 * ITERATION)) >= 1
    finally:
        env.close()


# ---------------------------------------------------------------------- simulators of a batch


class Simulator(Batched):
    """
    Point masses as a batch, with what PPO and SAC use and nothing else; one array of observations, used again.

    :param n: copies
    :param takes_seeds: whether ``reset`` looks at them
    :param tells_ends: whether infos say how episodes ended
    :param done_type: of what says that they did
    """

    def __init__(self, n: int = 3, takes_seeds: bool = False, tells_ends: bool = True, done_type: Any = bool) -> None:
        super().__init__(n)
        self.takes_seeds, self.tells_ends, self.done_type = takes_seeds, tells_ends, done_type
        self.x, self.rng, self.seeds = np.zeros((n, 2)), np.random.default_rng(0), list[int]()
        if takes_seeds:
            self._seeds = [None] * n

    def begin(self, i: int, seed: int | None = None) -> None:
        """Draw a first state."""
        self.x[i] = (self.rng if seed is None else np.random.default_rng(seed)).uniform(-1.0, 1.0, 2)
        self.t[i] = 0

    def reset(self) -> np.ndarray:
        """:return: the array that is used again"""
        for i in range(self.num_envs):
            seed = self._seeds[i] if self.takes_seeds else None
            self.seeds += [] if seed is None else [seed]
            self.begin(i, seed)
        if self.takes_seeds:
            self._seeds = [None] * self.num_envs
        self.observations[:] = self.x
        return self.observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self.actions = np.array(actions)

    def step_wait(self) -> Any:
        """:return: arrays that are used again"""
        force = self.actions[:, 0]
        rewards = -(self.x**2).sum(1) - 0.1 * force**2
        self.x += 0.1 * np.stack([self.x[:, 1], 2.0 * force], 1)
        self.t += 1
        self.dones[:] = self.t >= POINT_MASS_LIMIT
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(self.dones):
            if self.tells_ends:
                infos[i] = {"terminal_observation": self.x[i].copy(), "TimeLimit.truncated": True}
            self.begin(i)
        self.observations[:] = self.x
        return self.observations, rewards, self.dones.astype(self.done_type), tuple(infos)


class Raising(Simulator):
    """Answers questions by another error."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Not there."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Not there."""
        raise RuntimeError(method_name)


class Engine:
    """No VecEnv: ``step`` and ``reset``, as pools of environments have them."""

    def __init__(self) -> None:
        self.batch = Simulator()
        self.num_envs, self.render_mode, self.metadata = 3, None, dict[str, Any]()
        self.observation_space, self.action_space = self.batch.observation_space, self.batch.action_space


class Adapter(VecEnvWrapper):
    """A wrapper that alone knows how to step what is beneath it."""

    def reset(self) -> Any:
        """:return: first observations"""
        return self.venv.batch.reset()  # type: ignore[attr-defined]

    def seed(self, seed: int | None = None) -> Any:
        """Nothing is seeded."""

    def step_async(self, actions: np.ndarray) -> None:
        """Pass on."""
        self.venv.batch.step_async(actions)  # type: ignore[attr-defined]

    def step_wait(self) -> Any:
        """:return: what the engine says"""
        return self.venv.batch.step_wait()  # type: ignore[attr-defined]


def adapted() -> Any:
    return Adapter(Engine())  # type: ignore[arg-type]


SIMULATORS: dict[str, Callable[[], VecEnv]] = {
    "minimal": Simulator,
    "one copy": lambda: Simulator(1),
    "seeded": lambda: Simulator(takes_seeds=True),
    "raising": Raising,
    "dones of numbers": lambda: Simulator(done_type=np.uint8),
    "engine": adapted,
    "wrapped engine": lambda: VecMonitor(adapted()),
    "says nothing of ends": lambda: Simulator(tells_ends=False),
}


@pytest.mark.parametrize("kind", SIMULATORS)
@with_references(searches=False)
def test_simulators_of_a_batch(make: Make, kind: str) -> None:
    """All learn, from steps as they were."""
    model = make(SIMULATORS[kind]()).learn(2 * ITERATION)
    assert model._n_updates > 0 and len(buffer(model).observations) > 0
    if make in ALGORITHMS:
        assert np.isfinite(parameters(model))
        if kind != "says nothing of ends" and str(make) != "DualAC":
            check_transitions(model)


@every(from_conditions=True)
def test_conditions_of_a_simulator_that_takes_seeds(make: Make) -> None:
    """Both trajectories of a condition begin where its seed says; without seeds nothing does."""
    env = Simulator(2, takes_seeds=True)
    model = make(env, conditions="fixed").learn(1)
    first = model.rollout_buffer.trajectories().states[:, :, 0]
    base = model.condition_base
    assert env.seeds[-4:] == [base, base + 1] * 2
    for i in range(2):
        np.testing.assert_array_equal(first[i], [np.random.default_rng(base + i).uniform(-1.0, 1.0, 2)] * 2)
    drawn = make(Simulator(2), conditions="fixed").learn(1).rollout_buffer.trajectories().states[:, :, 0]
    assert len(np.unique(drawn[..., 0])) == 4


@every(searches=False)
def test_an_end_that_is_not_told_of(make: Make) -> None:
    """The last observation of the episode stands for the terminal one, never the first of the next."""
    seen = Seen()
    options = {"conditions": "continue"} if make.from_conditions else {}
    make(Simulator(2, tells_ends=False), **options).learn(2 * ITERATION, callback=seen)
    ends = [(int(t), int(i)) for t, i in np.argwhere(np.array(seen.dones)) if "early_reset" not in seen.infos[2 * t + i]]
    told = [seen.infos[2 * t + i]["terminal_observation"] for t, i in ends]
    expected = [seen.observations[t - 1][i] for t, i in ends]
    assert len(told) > 0
    np.testing.assert_array_equal(told, expected)


def test_what_is_not_known() -> None:
    assert ask(vec_env(2, lambda: limited(7)), "_max_episode_steps") == [7, 7]
    for env in (vec_env(2), Simulator(), Raising(), adapted()):
        assert ask(env, "_max_episode_steps") is None
    assert ask(Raising(), "spec") is None


@pytest.mark.parametrize("layered", [False, True])
def test_unknown_batches_are_not_asked_for_what_may_be_missing(layered: bool) -> None:
    """A question that a worker cannot answer may end it, also one that the layer of early resets hands on."""
    asked: list[str] = []

    class Workers(Simulator):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            asked.append(attr_name)
            return [None] * self.num_envs

    env = Workers()
    ask(install(env) if layered else env, "_max_episode_steps")
    assert "_max_episode_steps" not in asked


# ---------------------------------------------------------------------- keys of dictionaries


class Talkative(DictPointMass):
    """Shows a key beyond its space."""

    def observation(self) -> Any:
        """:return: dictionary"""
        return {**super().observation(), "more": np.zeros(3)}


class DictSimulator(Simulator):
    """A batch whose dictionaries have a key beyond their space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"x": self.observation_space})

    def reset(self) -> Any:
        """:return: dictionary"""
        return {"x": super().reset(), "more": np.zeros((self.num_envs, 3))}

    def step_wait(self) -> Any:
        """:return: likewise"""
        obs, rewards, dones, infos = super().step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = {"x": info["terminal_observation"], "more": np.zeros(3)}
        return {"x": obs, "more": np.zeros((self.num_envs, 3))}, rewards, dones, infos


@pytest.mark.parametrize(
    "make, batched", [(make, batched) for make in those(plans=False) for batched in {False, not make.searches}], ids=str
)
def test_keys_beyond_the_space_are_left_out(make: Make, batched: bool) -> None:
    def talkative() -> gym.Env:
        return gym.wrappers.TimeLimit(Talkative(("position", "velocity")), 12)

    model = make(DictSimulator() if batched else vec_env(2, talkative), "MultiInputPolicy", **leaves(make, 5))
    model.learn(2 * ITERATION)
    names = ("x",) if batched else ("position", "velocity")
    assert set(buffer(model).observations) == set(names) and iterations(model) >= 1
    seen = {name: np.full(2 if batched else 1, 0.3) for name in names}
    expected = model.predict(seen, deterministic=True)[0]
    np.testing.assert_array_equal(model.predict({**seen, "more": np.ones(7)}, deterministic=True)[0], expected)


class OneKey(PointMass):
    """
    The point mass in other units.

    :param key: under which a dictionary shows them; None for the vector itself
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key = key
        if key is not None:
            self.observation_space = spaces.Dict({key: self.observation_space})

    def observation(self) -> Any:
        """:return: centimetres from a point far away"""
        seen = (300.0 + 100.0 * self.state).astype(np.float32)
        return seen if self.key is None else {self.key: seen}


@pytest.mark.parametrize("is_normalized", [False, True])
@with_references(plans=False)
def test_a_dictionary_of_one_key_is_the_vector_under_it(make: Make, is_normalized: bool) -> None:
    observations = 300.0 + 100.0 * np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    found = []
    for key in (None, "x"):
        env: Any = vec_env(2, lambda key=key: gym.wrappers.TimeLimit(OneKey(key), 12))  # type: ignore[misc]
        env = VecNormalize(env) if is_normalized else env
        model = make(env, "MlpPolicy" if key is None else "MultiInputPolicy").learn(2 * ITERATION)
        found.append(model.predict(observations if key is None else {key: observations}, deterministic=True)[0])
    np.testing.assert_array_equal(*found)


@every(plans=False)
def test_vectors_of_a_dictionary_are_standardised_behind_each_other(make: Make) -> None:
    """As if they were one."""
    actions = []
    for flat in (False, True):
        env = DictPointMass(("position", "velocity"))
        wrapped: Any = gym.wrappers.FlattenObservation(env) if flat else env
        model = make(gym.wrappers.TimeLimit(wrapped, 12), "MlpPolicy" if flat else "MultiInputPolicy").learn(2 * ITERATION)
        seen = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
        obs: Any = seen if flat else {"position": seen[:, :1], "velocity": seen[:, 1:]}
        actions.append(model.predict(obs, deterministic=True)[0])
    np.testing.assert_array_equal(*actions)


@every(from_conditions=True)
def test_clipped_entries_of_a_dictionary_do_not_react(make: Make) -> None:
    """The policy's Jacobian knows the units and limits of every key."""
    env = vec_env(2, lambda: DictPointMass(("position", "velocity")))
    model = make(VecNormalize(env, norm_obs_keys=["velocity"], clip_obs=5.0), "MultiInputPolicy").learn(1)
    statistics = model.get_vec_normalize_env().obs_rms["velocity"]
    np.testing.assert_allclose(model._input_scale(), [1.0, 1.0 / np.sqrt(statistics.var[0] + 1e-8)])
    np.testing.assert_array_equal(model._input_limit(), [np.inf, 5.0])
    plain = make(normalized(vec_env(2), (0.0, 0.0), (4.0, 9.0)))
    np.testing.assert_allclose(plain._input_scale(), [0.5, 1.0 / 3.0], rtol=1e-6)
