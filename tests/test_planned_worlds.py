"""What is planned in is what happens: parameters, memories, chance, truncations and ends, of environments of the user's."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from sb3_dpi import MPC
from sb3_dpi.mpc.known_costs import CostedSystem
from sb3_dpi.systems import ContinuousSimulator, LocalSystem, Rollouts, Simulator, VariedSystem
from sb3_dpi.systems.keys import frozen
from sb3_dpi.trajopt.mcts import uct
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianDynamics, QuadraticCost

ICEM = {"kind": "iCEM", "n_samples": 20}


class World(gym.Env):  # type: ignore[type-arg]
    """A point on a line, pushed; a subclass says how."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self) -> None:
        self.x = np.zeros(1)

    def _get_obs(self) -> FloatArray:
        return self.x.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = np.zeros(1)
        return self._get_obs(), {}

    def push(self, action: float) -> None:
        """Move."""
        self.x = self.x + 0.1 * action

    def outcome(self) -> tuple[float, bool, bool]:
        """:return: reward, whether it terminated, whether it was truncated"""
        return -float((self.x[0] - 1.0) ** 2), False, False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.push(float(np.ravel(action)[0]))
        return self._get_obs(), *self.outcome(), {}


def rewards_of(system: Any, env: gym.Env, actions: FloatArray) -> FloatArray:
    """:return: of one sequence, from where the environment is"""
    begun = system.begin(system.simulator.read(env))
    rewards: FloatArray = system.rollout(begun[None], actions[None], np.random.default_rng(0)).rewards[0]
    return rewards


# ---------------------------------------------------------------------- parameters


class Car(World):
    """Has a mass, a goal that each episode draws, and falls into a ditch far out."""

    def __init__(self, mass: float = 1.0) -> None:
        super().__init__()
        self.mass, self.in_ditch = mass, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed)
        self.goal, self.in_ditch = float(self.np_random.uniform(-1.0, 1.0)), False
        return found

    def push(self, action: float) -> None:
        self.in_ditch = self.in_ditch or abs(self.x[0]) > 2.0
        self.x = self.x + (0.0 if self.in_ditch else 0.1 * action / self.mass)

    def outcome(self) -> tuple[float, bool, bool]:
        return self.x[0] - self.goal, False, False


def test_a_model_keeps_its_parameters_and_takes_the_rest() -> None:
    """However often it begins; what moves too seldom to be seen in the check is read as well."""
    env, heavy = Car(), ContinuousSimulator(Car(5.0))
    own = ContinuousSimulator(env)
    for seed in (3, 4):
        env.reset(seed=seed)
        for system, mass in ((heavy, 5.0), (own, 1.0)):
            assert rewards_of(system, env, np.ones((1, 1)))[0] == pytest.approx(0.1 / mass - env.goal)
    for place in (3.0, 0.5):
        env.x, env.in_ditch = np.array([place]), place > 2.0
        moved = rewards_of(heavy, env, np.ones((1, 1)))[0] + env.goal - place
        assert moved == pytest.approx(0.0 if env.in_ditch else 0.02)
    heavy.simulator.write(env, heavy.simulator.reset(seed=9), np.random.default_rng(0))
    assert env.mass == 1.0 and env.x[0] == 0.0, "an environment that is written to keeps its own"


def test_the_simulator_of_the_environment_itself_reads_its_parameters() -> None:
    """Also those that were changed after it was made."""
    env = Car()
    env.reset(seed=3)
    system = ContinuousSimulator(Simulator(env, keeps_parameters=False))
    env.mass = 5.0
    assert rewards_of(system, env, np.ones((1, 1)))[0] == pytest.approx(0.02 - env.goal)


class Held(World):
    """Keeps its mass in an object that moves."""

    def __init__(self, mass: float = 1.0) -> None:
        super().__init__()
        self.robot = SimpleNamespace(mass=mass, speed=0.0)

    def push(self, action: float) -> None:
        self.robot.speed += action / self.robot.mass
        self.x = self.x + 0.1 * self.robot.speed


def test_variants_begin_where_the_environment_is() -> None:
    env = Car()
    env.reset(seed=3)
    masses = (0.5, 1.0, 5.0)
    varied = VariedSystem([ContinuousSimulator(Car(mass)) for mass in masses])
    begun = varied.begin(varied.variants[0].simulator.read(env))  # type: ignore[attr-defined]
    rewards = varied.rollout(begun[None], np.ones((1, 1, 1)), np.random.default_rng(0)).rewards
    assert rewards[0, 0] == pytest.approx(np.mean([0.1 / mass - env.goal for mass in masses]))
    alike = VariedSystem([ContinuousSimulator(Held(mass)) for mass in (1.0, 5.0)])
    held = Held()
    held.reset(seed=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="Variants are the same simulator"):
            alike.begin(alike.variants[0].simulator.read(held))  # type: ignore[attr-defined]
    repeated = VariedSystem([ContinuousSimulator(Held())] * 2)
    repeated.begin(repeated.variants[0].simulator.read(held))  # type: ignore[attr-defined]


@pytest.mark.parametrize("planner", [ICEM, "iLQR"], ids=str)
def test_mpc_plans_in_another_environment_and_over_several(planner: Any) -> None:
    """What a plan predicts is the mean over the variants; a known cost and a value of the last state are averaged alike."""
    limited = [TimeLimit(Car(mass), 50) for mass in (1.0, 0.5, 5.0)]
    options: dict[str, Any] = {"horizon": 3, "seed": 0}
    known = {"cost_fn": lambda obs, action, following: -following[:, 0], "terminal_value": lambda obs: 2.0 * obs[:, 0]}
    for system, masses in ((limited[2], [5.0]), (limited[1:], [0.5, 5.0])):
        for more in ({}, known):
            model = MPC(planner, limited[0], system=system, **options, **more)
            env: Any = model.get_env()
            env.seed(3)
            obs = env.reset()
            for _ in range(2):
                _, state = model.predict(obs, deterministic=True)
            at = np.mean([np.cumsum(0.1 * state["actions"][0, :, 0] / mass) for mass in masses], axis=0)
            offset = -3.0 * env.envs[0].unwrapped.goal if not more else 2.0 * at[-1]
            assert state["predicted_return"][0] == pytest.approx(at.sum() + offset, abs=1e-5)


# ---------------------------------------------------------------------- memories and chance


class Progress(gym.RewardWrapper):  # type: ignore[type-arg]
    """Pays for progress since its last step."""

    last = 0.0

    def reset(self, **kwargs: Any) -> Any:
        found = self.env.reset(**kwargs)
        self.last = float(self.unwrapped.x[0])  # type: ignore[attr-defined]
        return found

    def reward(self, reward: Any) -> float:
        now = float(self.unwrapped.x[0])  # type: ignore[attr-defined]
        progress, self.last = now - self.last, now
        return progress


class Listed(World):
    """Its state is a list, beside a number that is none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.paid = [0.0], 0.0

    def _get_obs(self) -> FloatArray:
        return np.array(self.place)

    def reset(self, **kwargs: Any) -> Any:
        self.place = [0.0]
        return super().reset(**kwargs)

    def push(self, action: float) -> None:
        self.place = [self.place[0] + 0.1 * action]

    def outcome(self) -> tuple[float, bool, bool]:
        self.paid = -((self.place[0] - 1.0) ** 2)
        return self.paid, False, False


class Counted(Listed):
    """Its state is a whole number."""

    def outcome(self) -> tuple[float, bool, bool]:
        return -abs(round(10.0 * self.place[0]) - 3.0), False, False


class Wind(World):
    """Walks at random."""

    def push(self, action: float) -> None:
        self.x = self.x + 0.1 * action + self.np_random.normal()

    def outcome(self) -> tuple[float, bool, bool]:
        return float(self.x[0]), False, False


class Weighted(gym.RewardWrapper):  # type: ignore[type-arg]
    """Weighs rewards by how many there were."""

    n = 0

    def reward(self, reward: Any) -> float:
        self.n += 1
        return self.n * float(reward)


STATEFUL: dict[str, Callable[[], gym.Env]] = {
    "numbers": lambda: Progress(World()),
    "MuJoCo": lambda: Weighted(gym.make("InvertedPendulum-v5")),
    "list": Listed,
    "whole number": Counted,
}


def unpaid(observations: FloatArray, actions: FloatArray) -> FloatArray:
    """:return: a penalty of nothing"""
    return np.zeros(len(observations))


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_penalty_of_nothing_changes_nothing(kind: str) -> None:
    """Nor does a known cost see anything but what is observed on the way."""
    env = STATEFUL[kind]()
    env.reset(seed=0)
    system = ContinuousSimulator(env, time_limits=False)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (4, 1))
    expected = rewards_of(system, env, actions)
    assert np.ptp(expected) > 0.0
    np.testing.assert_allclose(rewards_of(CostedSystem(system, None, unpaid, lambda a: a), env, actions), expected)
    met: list[th.Tensor] = []
    costed = CostedSystem(system, lambda obs, action, following: met.append((obs, following)) or obs[:, 0], None, lambda a: a)
    earned = rewards_of(costed, env, actions)
    ((obs, following),) = met
    seen = [observation for observation, *_ in (env.step(system.units_to_actions(action)) for action in actions)]
    np.testing.assert_allclose(following.numpy(), seen)
    np.testing.assert_allclose(obs.numpy()[1:], seen[:-1])
    np.testing.assert_allclose(earned, -obs.numpy()[:, 0])


@pytest.mark.parametrize("kind", STATEFUL)
def test_ilqr_refuses_where_vectors_are_no_states(kind: str) -> None:
    """It steps them; who samples needs none."""
    env = TimeLimit(STATEFUL[kind](), 50)
    MPC(ICEM, env, system="simulator", horizon=3)
    if kind == "numbers":
        MPC("iLQR", env, system="simulator", horizon=3)
        return
    with pytest.raises(ValueError, match="iLQR cannot plan in"):
        MPC("iLQR", env, system="simulator", horizon=3)


def test_a_known_cost_stands_in_for_rewards_with_a_memory() -> None:
    """Where the motion itself is all in the vector iLQR plans by it."""
    model = MPC("iLQR", TimeLimit(Weighted(World()), 50), system="simulator", horizon=3, cost_fn=lambda o, a, n: -n[:, 0])
    action, _ = model.predict(model.get_env().reset())  # type: ignore[union-attr, arg-type]
    assert action[0, 0] > 0.9


def test_chance_is_drawn_on_the_way() -> None:
    """A random walk of a known cost spreads as the walk does; iLQR, which would plan against one draw, refuses."""
    env = Wind()
    env.reset(seed=0)
    system = ContinuousSimulator(env)
    begun = system.begin(system.simulator.read(env))
    costed = CostedSystem(system, None, unpaid, lambda a: a)
    last = costed.rollout(begun[None], np.zeros((600, 9, 1)), np.random.default_rng(0)).rewards[:, -1]
    assert abs(last.mean()) < 0.5 and last.var() == pytest.approx(9.0, rel=0.25)
    with pytest.raises(ValueError, match="iLQR plans without chance"):
        MPC("iLQR", TimeLimit(Wind(), 50), system="simulator", horizon=3)


@dataclass(slots=True)
class Slots:
    """A card in slots."""

    card: float = 0.0


@dataclass(frozen=True)
class Frozen:
    """A card that no hash has."""

    card: Any


HOLDERS: dict[str, Callable[[float], Any]] = {
    "list": lambda card: [card],
    "deque": lambda card: deque([card], maxlen=3),
    "slots": Slots,
    "frozen": lambda card: Frozen(np.array([card])),
    "tensor": lambda card: th.tensor([card, 0.0]),
    "tensor of no axis": lambda card: th.tensor(card),
    "set": lambda card: {(card, 1)},
    "functor": lambda card: Noise(card),
    "bytes": lambda card: bytearray([int(card)]),
}


class Noise:
    """Can be called."""

    def __init__(self, card: float) -> None:
        self.card, self.rng = card, np.random.default_rng()

    def __call__(self) -> float:
        return self.card


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_states_are_told_apart_whatever_holds_them(hold: Callable[[float], Any]) -> None:
    """And named the same where they are the same; generators are no part of them."""
    keys = [hash(frozen({"held": hold(card)})) for card in (1.0, 2.0, 1.0)]
    assert keys[0] == keys[2] != keys[1]


def test_objects_that_hold_one_another_have_a_key() -> None:
    nodes = [SimpleNamespace(n=i) for i in range(60)]
    for node in nodes:
        node.others = nodes
    assert frozen(nodes) == frozen(nodes)
    assert frozen({1: 0.5, (2, 3): 0.5}) == frozen({(2, 3): 0.5, 1: 0.5}) != frozen({1: 0.5, (2, 3): 0.6})


class Lottery(World):
    """Fifteen steps, and then: .3 for sure, or 1 with a probability of a tenth, held in a deque."""

    action_space = spaces.Discrete(2)

    def __init__(self, n_steps: int = 15) -> None:
        super().__init__()
        self.n_steps = n_steps

    def reset(self, **kwargs: Any) -> Any:
        self.t, self.cards = 0, deque([0.0], maxlen=2)
        return super().reset(**kwargs)

    def push(self, action: float) -> None:
        self.t += 1
        if self.t == self.n_steps + 1:
            self.cards.append(0.3 if action == 0 else float(self.np_random.random() < 0.1))

    def outcome(self) -> tuple[float, bool, bool]:
        return (self.cards[-1], True, False) if self.t > self.n_steps + 1 else (0.0, False, False)


@pytest.mark.parametrize("n_steps", [0, 15])
def test_chance_that_comes_late_is_averaged(n_steps: int) -> None:
    """The first search of a simulator that saw none; each outcome has a node, of whatever it is held in."""
    values = []
    for seed in range(12):
        simulator = Simulator(Lottery(n_steps), n_checked_steps=10)
        state = simulator.reset(seed=0)
        for _ in range(n_steps):
            state, *_ = simulator.step(state, 0, np.random.default_rng(0))
        assert simulator.is_random == (n_steps == 0)
        found = uct(simulator, state, np.random.default_rng(seed), 150, 5)
        assert simulator.is_random and found.action == 0
        assert found.subtree(0, simulator.key(state)) is not None or found.root.edges[0].is_random
        values.append(found.values[1])
    assert np.mean(values) == pytest.approx(0.1, abs=0.05) and max(values) < 0.4


# ---------------------------------------------------------------------- truncations and ends


class Arena(World):
    """Leaves the arena beyond .5, which truncates."""

    def outcome(self) -> tuple[float, bool, bool]:
        return -1.0, False, bool(self.x[0] > 0.5)


def test_truncations_are_no_ends_where_time_limits_are_none() -> None:
    """Plans go on behind them, and earn on: to be put back is no way out."""
    env = TimeLimit(Arena(), 8)
    env.reset(seed=0)
    for time_limits in (True, False):
        system = ContinuousSimulator(env, time_limits=time_limits)
        begun = system.begin(system.simulator.read(env))
        tried = system.rollout(begun[None], np.ones((1, 9, 1)), np.random.default_rng(0))
        assert tried.rewards.sum() == (-6.0 if time_limits else -9.0)
        assert tried.continuation[0, 0] == (not time_limits)


class Cliff(World):
    """Pays for being far out, and ends beyond 1."""

    def push(self, action: float) -> None:
        self.x = self.x + 0.2 * action

    def outcome(self) -> tuple[float, bool, bool]:
        return float(self.x[0]), bool(self.x[0] > 1.0), False


def test_ilqr_does_not_predict_what_comes_behind_an_end() -> None:
    """A plan that ends the episode is worth what it earns until then, and gives way to one that earns more."""
    model = MPC("iLQR", TimeLimit(Cliff(), 30), system="simulator", horizon=15, seed=0)
    env: Any = model.get_env()
    obs, state, total, predicted = env.reset(), None, 0.0, 0.0
    for t in range(29):
        action, state = model.predict(obs, state)
        predicted = float(state["predicted_return"][0]) if t == 0 else predicted
        obs, reward, done, _ = env.step(action)
        total += reward[0]
        assert not done[0]
    assert predicted <= 15.0 < total


# ---------------------------------------------------------------------- systems that are given


class Object:
    """A system of the user's."""

    state_dim, tangent_dim, action_dim, particles = 1, 1, 1, 1

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """:return: of a random walk"""
        x = states[:, None, 0] + np.cumsum(0.1 * actions[..., 0] + rng.normal(size=actions.shape[:2]), 1)
        last = np.tile(x[:, -1:, None], (1, self.particles, 1))
        return Rollouts(x, last, np.ones((len(actions), self.particles)))


def without(**others: Any) -> Any:
    """:return: an object with other attributes, those of None left out"""
    kept = {name: value for name, value in {**vars(Object), **others}.items() if value is not None}
    return type("Object", (), kept)()


@pytest.mark.parametrize(
    ("system", "options", "said"),
    [
        (without(action_dim=2), {}, "Actions of the given system have 2 numbers, those of the environment 1"),
        (without(tangent_dim=None), {}, "system has no tangent_dim: give 'ensemble'"),
        (Object(), {"policy": "iLQR"}, "system has no step"),
        (without(state_dim=4), {}, r"States of the given system have 4 numbers.* begin\(observation\)"),
        ([], {}, "No variant of a system"),
        (TimeLimit(gym.wrappers.RescaleAction(World(), -2.0, 2.0), 9), {}, "has the action_space Box.*give one alike"),
        (
            LocalSystem(
                LinearGaussianDynamics(np.zeros((3, 1, 2)), np.zeros((3, 1)), np.zeros((3, 1, 1))),
                QuadraticCost(np.zeros((3, 2, 2)), np.zeros((3, 2)), np.zeros(3)),
            ),
            {},
            "States of the given system have 2 numbers, observations have 1",
        ),
    ],
    ids=str,
)
def test_systems_that_do_not_fit_are_refused(system: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MPC(**{"policy": ICEM, "env": TimeLimit(World(), 9), "system": system, "horizon": 3, **options})


def test_rollouts_of_other_shapes_are_refused() -> None:
    for wrong in (np.zeros((20, 2)), np.zeros(20)):
        system = without(rollout=lambda self, states, actions, rng, wrong=wrong: Rollouts(wrong, wrong, wrong))
        with pytest.raises(ValueError, match=r"rollout of the system must return rewards \[B, T\]"):
            MPC(ICEM, TimeLimit(World(), 9), system=system, horizon=3).predict(np.zeros(1))


def test_given_systems_with_a_known_cost() -> None:
    """They walk on from what they drew; with several particles they cannot, and an object may say where plans begin."""
    costed = CostedSystem(Object(), None, unpaid, lambda a: a)
    last = costed.rollout(np.zeros((1, 1)), np.zeros((600, 9, 1)), np.random.default_rng(0)).rewards[:, -1]
    assert last.var() == pytest.approx(9.0, rel=0.25)
    with pytest.raises(ValueError, match="give it a method trace, or leave cost_fn and guidance out"):
        CostedSystem(without(particles=2), None, unpaid, lambda a: a).rollout(
            np.zeros((1, 1)), np.zeros((2, 2, 1)), np.random.default_rng(0)
        )
    begun: list[FloatArray] = []
    system = without(state_dim=2, begin=lambda self, obs: begun.append(obs) or np.append(obs, 7.0))
    MPC(ICEM, TimeLimit(World(), 9), system=system, horizon=3).predict(np.full(1, 0.5))
    assert begun[0] == [0.5]
