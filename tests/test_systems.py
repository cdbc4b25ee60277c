"""Simulators: exact copies, in which plans draw their own chance."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dummy_envs import DictPointMass, PointMass
from gymnasium import spaces
from gymnasium.wrappers import ClipReward, FlattenObservation, FrameStackObservation, NormalizeObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_dpi.common.environments import NumberedEnvironment
from sb3_dpi.common.observed_states import environment_of
from sb3_dpi.common.simulator_states import read_states
from sb3_dpi.envs import CARTPOLE_ID
from sb3_dpi.systems import ContinuousSimulator, NotCopyableError, ReadableState, Simulator
from sb3_dpi.systems.physics import LAGGING, pack, part
from sb3_dpi.systems.tasks import Readings, known_task
from sb3_dpi.trajopt.types import FloatArray

STOCK = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "Pusher-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
)
OTHERS = ("Humanoid-v5", "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0", CARTPOLE_ID)


def played(env: gym.Env, n_steps: int, seed: int = 0) -> tuple[gym.Env, FloatArray]:
    """:return: the environment some random steps later, and more actions"""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = np.array([env.action_space.sample() for _ in range(2 * n_steps)])
    for action in actions[:n_steps]:
        env.step(action)
    return env, actions[n_steps:]


def equal(a: Any, b: Any) -> bool:
    """:return: whether observations are equal to the last bit"""
    if isinstance(a, dict):
        return all(equal(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))


@pytest.mark.parametrize("env_id", [*STOCK, *OTHERS])
def test_a_copy_steps_as_the_environment(env_id: str) -> None:
    """From a state read on the way, to the last bit: observations, rewards and ends, and the next state."""
    env, actions = played(gym.make(env_id), 6)
    simulator = Simulator(env)
    assert not simulator.is_random
    state = simulator.read(env)
    for action in actions:
        observation, reward, *ends, _ = env.step(action)
        seen, earned, is_over = simulator.act(state, action, np.random.default_rng(0))
        assert equal(observation, seen) and reward == earned and is_over == any(ends)
        state = simulator.step(state, action, np.random.default_rng(0))[0]
        assert simulator.key(state) == simulator.key(simulator.read(env))
        assert equal(simulator.observe(state), observation)
        assert equal(simulator.observe(simulator.read(env)), observation)


WRAPPED: dict[str, Callable[[], gym.Env]] = {
    "memory": lambda: FrameStackObservation(gym.make("CartPole-v1"), 3),
    "rewards": lambda: ClipReward(gym.make("Pendulum-v1"), -1.0, 0.0),
    "dict": lambda: Monitor(gym.wrappers.TimeLimit(DictPointMass(), 12)),
    "scaled": lambda: gym.wrappers.RescaleAction(gym.make("Hopper-v5"), -2.0, 2.0),
    "changed": lambda: _heavier(gym.make("Hopper-v5")),
}


def _heavier(env: gym.Env, factor: float = 1.5) -> gym.Env:
    base: Any = env.unwrapped
    base.model.body_mass[:] *= factor
    return env


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_and_parameters_belong_to_the_copy(make: Callable[[], gym.Env]) -> None:
    """Their memories and step counts, and what was changed in a model after it was made."""
    env, actions = played(make(), 5)
    simulator = Simulator(env)
    state = simulator.read(env)
    for action in actions:
        before = state
        observation, reward, *ends, _ = env.step(action)
        seen, earned, is_over = simulator.act(before, action, np.random.default_rng(0))
        assert equal(observation, seen) and reward == earned and is_over == any(ends)
        state, *_ = simulator.step(before, action, np.random.default_rng(0))
        assert equal(simulator.observe(state), observation)
        if any(ends):
            break


def test_time_limits() -> None:
    """They end plans where they end episodes, or do not."""
    env = gym.make("Pendulum-v1", max_episode_steps=3)
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    for limited, ends in ((True, [False, True]), (False, [False, False])):
        simulator = Simulator(env, time_limits=limited)
        state, over = simulator.read(env), []
        for _ in range(2):
            state, _, is_over = simulator.step(state, np.zeros(1, np.float32), np.random.default_rng(0))
            over.append(is_over)
        assert over == ends


def test_plans_draw_their_own_chance() -> None:
    """A deep copy of a lake slips as the lake will; a simulator slips as its caller's generator says, and often otherwise."""
    env = gym.make("FrozenLake-v1")
    simulator = Simulator(env)
    assert simulator.is_random
    agreed = 0
    for seed in range(40):
        env.reset(seed=seed)
        state, twin = simulator.read(env), copy.deepcopy(env)
        outcomes = [simulator.step(state, 2, np.random.default_rng(n))[0].attributes[-1][1]["s"] for n in (seed, seed)]
        assert outcomes[0] == outcomes[1]
        slipped = env.step(2)[0]
        assert twin.step(2)[0] == slipped
        agreed += outcomes[0] == slipped
    assert agreed < 25  # of 40, each by a probability of 1/3 where both are drawn


class OwnGenerator(PointMass):
    """Draws from a generator that is hidden in an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weather = [np.random.default_rng(3)]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, float(self.weather[0].random()), *rest


def test_hidden_generators_are_drawn_anew() -> None:
    env = OwnGenerator()
    env.reset(seed=0)
    simulator = Simulator(env)
    state, action = simulator.read(env), np.zeros(1, np.float32)
    drawn = [simulator.step(state, action, np.random.default_rng(seed))[1] for seed in (0, 1, 1)]
    assert drawn[0] != drawn[1] == drawn[2] and env.step(action)[1] not in drawn


class Global(PointMass):
    """Part of its state belongs to the class."""

    count = 0

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Global.count += 1
        return np.full(2, Global.count, np.float32), 0.0, False, False, {}


class Unseeded(PointMass):
    """Begins where chance will have it."""

    def observation(self) -> Any:
        return np.random.default_rng().standard_normal(2).astype(np.float32)


class Stream(PointMass):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = (i for i in range(3))


class Unbounded(PointMass):
    """Has no bounds of its actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    "env, error, said",
    [
        (Global(), NotCopyableError, "went different ways"),
        (Unseeded(), ValueError, "super\\(\\).reset\\(seed=seed\\)"),
        (Stream(), NotCopyableError, "Stream cannot be copied"),
        ("CartPole-v1", ValueError, "got str"),
    ],
)
def test_what_cannot_be_copied_is_refused(env: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Simulator(env)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: gym.make("CartPole-v1"), "Discrete ones use Simulator"),
        (DictPointMass, "FlattenObservation"),
        (Unbounded, "need bounds of the actions"),
    ],
)
def test_spaces_without_continuous_plans(make: Callable[[], gym.Env], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ContinuousSimulator(make())


def test_spaces_without_searches() -> None:
    with pytest.raises(ValueError, match="Discrete action space"):
        _ = Simulator(gym.make("Pendulum-v1")).n_actions


def test_planning_leaves_the_environment_alone() -> None:
    """What it will draw too; and a copy shows nothing."""
    env, twin = gym.make("FrozenLake-v1", render_mode="rgb_array"), gym.make("FrozenLake-v1")
    env.reset(seed=5)
    twin.reset(seed=5)
    for environment in (env, twin):
        environment.action_space.seed(0)
    for _ in range(6):
        simulator = Simulator(env)
        assert simulator.env.render_mode is None and env.render_mode == "rgb_array"
        state = simulator.read(env)
        simulator.reset(seed=1)
        for action in range(4):
            state, *_ = simulator.step(state, action, np.random.default_rng(action))
        action = env.action_space.sample()
        assert action == twin.action_space.sample() and env.step(action)[:3] == twin.step(action)[:3]


class Held(PointMass):
    """Keeps its state in an object, which knows the environment."""

    def reset(self, **kwargs: Any) -> Any:
        self.held = SimpleNamespace(count=0.0, owner=self)
        return super().reset(**kwargs)


def test_states_in_objects_have_names_of_their_own() -> None:
    simulator = Simulator(Held())
    state = simulator.reset(seed=0)
    simulator.env.unwrapped.held.count = 1.0  # type: ignore[attr-defined]
    moved = simulator.key(simulator.read(simulator.env))
    assert moved == simulator.key(simulator.read(simulator.env)) != simulator.key(state)


def test_wrappers_with_a_memory_are_not_asked() -> None:
    """What they would say is not what they said."""
    env = NormalizeObservation(gym.make("Pendulum-v1"))
    simulator = Simulator(env)
    env.reset(seed=0)
    assert simulator.observe(simulator.read(env)) is None
    plain = FlattenObservation(env.env)
    asked = Simulator(plain)
    assert asked.observe(asked.read(plain)) is not None


def test_states_of_another_kind_are_refused() -> None:
    simulator = Simulator(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="make the simulator of the environment"):
        simulator.read(gym.make("Pendulum-v1"))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("env_id", STOCK)
def test_rollouts_in_threads_are_those_of_the_environment(env_id: str, n_threads: int) -> None:
    """Random and falling episodes, from states on the way: rewards, the last observation, and whether they go on."""
    env = gym.make(env_id, max_episode_steps=40)
    system = ContinuousSimulator(env, n_threads)
    assert system.task is not None
    rng, T = np.random.default_rng(1), 25
    actions = rng.uniform(-1.0, 1.0, (4, T, system.action_dim))
    actions[2:] = np.sign(actions[2:, :1])  # held, so that most fall
    begun, expected = [], []
    for b, sequence in enumerate(actions):
        env, _ = played(env, 1 + (10 if b % 2 else 0), seed=b // 2)
        begun.append(system.begin(system.simulator.read(env)))
        rewards, goes_on = np.zeros(T), True
        for t, action in enumerate(system.units_to_actions(sequence)):
            observation, rewards[t], terminated, *_ = env.step(action)
            if terminated:
                goes_on = False
                break
        expected.append((rewards, observation, goes_on))
    tried = system.rollout(np.stack(begun), actions, rng)
    for b, (rewards, observation, goes_on) in enumerate(expected):
        np.testing.assert_allclose(tried.rewards[b], rewards, rtol=0.0, atol=1e-9)
        np.testing.assert_allclose(tried.last_observations[b, 0], observation, rtol=0.0, atol=1e-9)
        assert tried.continuation[b, 0] == goes_on
        if not system.task.reads:  # nothing is computed but copied
            np.testing.assert_array_equal(tried.last_observations[b, 0], observation)
    if env_id in ("Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"):
        assert not all(goes_on for _, _, goes_on in expected)


@pytest.mark.parametrize(
    "make, is_known",
    [
        (lambda: gym.make("Ant-v5"), True),
        (lambda: gym.make("Humanoid-v5"), False),
        (WRAPPED["scaled"], False),
        (lambda: gym.make("Pendulum-v1"), False),
    ],
    ids=["Ant", "Humanoid", "scaled", "Pendulum"],
)
def test_steps_of_arrays_are_those_of_the_environment(make: Callable[[], gym.Env], is_known: bool) -> None:
    """Of a task that is known and of others, to the last bit: next states, and rollouts."""
    env, _ = played(make(), 3)
    system = ContinuousSimulator(env)
    assert (system.task is not None) == is_known
    rng = np.random.default_rng(0)
    begun, actions = system.begin(system.simulator.read(env)), rng.uniform(-1.0, 1.0, (4, system.action_dim))
    tried, now = system.rollout(begun[None], actions[None], rng), begun
    for t, action in enumerate(system.units_to_actions(actions)):
        observation, reward, *_ = env.step(action)
        assert tried.rewards[0, t] == pytest.approx(reward, abs=1e-12)
        now = system.step(now[None], actions[t : t + 1])[0]
        np.testing.assert_array_equal(now, system.begin(system.simulator.read(env)))
    np.testing.assert_array_equal(tried.last_observations[0, 0], observation)


def test_rollouts_end_at_the_time_limit() -> None:
    """In threads as in copies."""
    for env_id in ("HalfCheetah-v5", "Pendulum-v1"):
        env, _ = played(gym.make(env_id, max_episode_steps=10), 6)
        for limited, n_steps in ((True, 4), (False, 8)):
            system = ContinuousSimulator(env, time_limits=limited)
            begun = system.begin(system.simulator.read(env))
            tried = system.rollout(begun[None], np.full((3, 8, system.action_dim), 0.5), np.random.default_rng(0))
            assert np.count_nonzero(tried.rewards[0]) == n_steps and tried.continuation[0, 0] == (not limited)
            np.testing.assert_array_equal(tried.rewards[0], tried.rewards[2])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_steps_are_linearised(env_id: str) -> None:
    """Against differences of what ``env.step`` does from states that were set."""
    env, _ = played(gym.make(env_id), 4 if "v5" in env_id else 2)
    system = ContinuousSimulator(env)
    simulator, begun = system.simulator, system.begin(system.simulator.read(env))
    action = np.full(system.action_dim, 0.3)
    fx, fu = (part[0] for part in system.linearize(begun[None], action[None]))
    assert fx.shape == (system.tangent_dim, system.tangent_dim) and fu.shape == (system.tangent_dim, system.action_dim)

    def after(change: FloatArray, move: FloatArray) -> FloatArray:
        simulator.write(env, system.state(system.integrate(begun, change)), np.random.default_rng(0))
        env.step(system.units_to_actions(action + move))
        return system.begin(simulator.read(env))

    is_single = env_id == "MountainCarContinuous-v0"
    width, still = (1e-2 if is_single else 1e-5), np.zeros(system.action_dim)
    for column in range(system.tangent_dim):
        change = width * np.eye(system.tangent_dim)[column]
        slope = system.difference(after(-change, still), after(change, still)) / (2.0 * width)
        np.testing.assert_allclose(fx[:, column], slope, atol=(2e-2 if is_single else 1e-3) * (1.0 + np.abs(fx).max()))
    for column in range(system.action_dim):
        move = 1e-2 * np.eye(system.action_dim)[column]
        none = np.zeros(system.tangent_dim)
        slope = system.difference(after(none, -move), after(none, move)) / 2e-2
        np.testing.assert_allclose(fu[:, column], slope, atol=1e-2 * (1e-2 + np.abs(fu).max()))


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Pendulum-v1"])
def test_rewards_can_be_differentiated(env_id: str) -> None:
    """Where actions are not rounded, second differences of rewards by actions are those of the known cost."""
    env, _ = played(gym.make(env_id), 2)
    rounded, smooth = (ContinuousSimulator(env, round_actions=rounds) for rounds in (True, False))
    begun, h = smooth.begin(smooth.simulator.read(env)), 1e-3
    rounded.begin(rounded.simulator.read(env))
    actions = np.full((3, 1, smooth.action_dim), 0.3)
    actions[:, 0, 0] += [-h, 0.0, h]
    rewards = [system.rollout(begun[None], actions, np.random.default_rng(0)).rewards[:, 0] for system in (rounded, smooth)]
    np.testing.assert_allclose(rewards[0], rewards[1], atol=1e-5)
    if env_id == "Pendulum-v1":
        assert (rewards[1] @ [1.0, -2.0, 1.0]) / h**2 == pytest.approx(-2.0 * 0.001 * 2.0**2, rel=1e-5)
    assert np.ptp(rewards[1]) > 0.0


def test_tangent_space() -> None:
    """A free body has seven coordinates and six changes."""
    env, _ = played(gym.make("Ant-v5"), 3)
    system = ContinuousSimulator(env)
    origin = system.begin(system.simulator.read(env))
    changes = 0.3 * np.random.default_rng(0).standard_normal((5, system.tangent_dim))
    states = system.integrate(origin, changes)
    np.testing.assert_allclose(np.linalg.norm(states[:, 4:8], axis=-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(system.difference(origin, states), changes, atol=1e-12)
    np.testing.assert_allclose(system.integrate(origin, system.difference(origin, states)), states, atol=1e-12)


@pytest.mark.parametrize("wrap", ["dummy", "processes"])
def test_states_of_vectorised_environments(wrap: str) -> None:
    """Through VecNormalize and Monitor, from the same process or another."""
    kind: Any = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if wrap == "processes" else {}
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1, wrapper_class=ReadableState, **kind))
    simulator = Simulator(gym.make("Pendulum-v1"), time_limits=False)
    env.reset()
    env.step(np.array([[1.0], [-1.0]], np.float32))
    states = read_states(simulator, env)
    for state, observation in zip(states, env.get_original_obs(), strict=True):
        np.testing.assert_array_equal(simulator.observe(state), observation)
    env.close()


class Squared(gym.ActionWrapper):  # type: ignore[type-arg]
    """Says nobody how it was made, and holds what cannot be sent."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.function = lambda action: action**2

    def action(self, action: np.ndarray) -> np.ndarray:
        """:return: its square"""
        return np.asarray(self.function(action))


class Recorded(Squared, gym.utils.RecordConstructorArgs):
    """Says how it was made."""

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)


def elsewhere(wrap: Callable[[gym.Env], gym.Env]) -> SubprocVecEnv:
    """:return: a pendulum in another process"""
    made = lambda: ReadableState(wrap(NumberedEnvironment(Monitor(gym.make("Pendulum-v1")), 0)))  # noqa: E731
    return SubprocVecEnv([made], start_method="fork")


def test_a_copy_of_what_is_in_another_process_has_its_wrappers() -> None:
    env = elsewhere(lambda task: gym.wrappers.RescaleAction(task, np.float32(-1), np.float32(1)))
    env.seed(3)
    env.reset()
    simulator = Simulator(environment_of(env))
    (state,) = read_states(simulator, env)
    action = np.array([0.5], np.float32)
    _, reward, _ = simulator.step(state, action, np.random.default_rng(0))
    assert simulator.action_space == env.action_space and reward == pytest.approx(float(env.step(action[None])[1][0]))
    env.close()


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (Squared, "How Squared was made in the other process is not known: derive it from"),
        (Recorded, "cannot be sent .*: use a DummyVecEnv"),
        (lambda env: gym.wrappers.TransformReward(env, lambda reward: -reward), "SubprocVecEnv cannot be copied: use a Dummy"),
    ],
)
def test_what_another_process_cannot_tell(wrap: Any, said: str) -> None:
    """It is said, and the process lives on."""
    env = elsewhere(wrap)
    env.reset()
    with pytest.raises(ValueError, match=said):
        read_states(Simulator(environment_of(env)), env)
    env.step(np.zeros((1, 1), np.float32))
    env.close()


def test_states_that_cannot_be_read() -> None:
    simulator = Simulator(gym.make("Pendulum-v1"))
    env = make_vec_env("Pendulum-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    with pytest.raises(ValueError, match="wrapper_class=ReadableState"):
        read_states(simulator, env)
    env.close()


def test_what_stands_and_what_is_cut() -> None:
    """Ant stands between its two heights, both included; of InvertedDoublePendulum forces are cut at 10."""
    ant = known_task(gym.make("Ant-v5").unwrapped)
    positions = np.zeros((6, 15))
    positions[:, 2] = 0.1, 0.2, 0.6, 1.0, 1.1, np.nan
    assert ant is not None and ant.terminated(Readings(positions, np.zeros((6, 14)))).tolist() == [1, 0, 0, 0, 1, 1]
    double = known_task(gym.make("InvertedDoublePendulum-v5").unwrapped)
    forces = {"qfrc_constraint": np.array([[-99.0, 0.0, 0.0], [99.0, 0.0, 0.0], [9.5, 0.0, 0.0]])}
    assert double is not None
    assert double.observe(Readings(np.zeros((3, 3)), np.full((3, 3), 50.0), forces))[:, 5:].tolist() == [
        [10.0, 10.0, 10.0, force] for force in (-10.0, 10.0, 9.5)
    ]


def test_arrays_are_found_in_states() -> None:
    base: Any = played(gym.make("Ant-v5"), 3)[0].unwrapped
    state = pack(base.model, base.data)
    for name in ("qpos", "qvel", "qacc_warmstart", *LAGGING):
        read = part(base.model, base.data, np.stack([-state, state]), name)
        np.testing.assert_array_equal(read[1], getattr(base.data, name))
