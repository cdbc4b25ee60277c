"""Tree search: known trees, and lakes whose values are known exactly."""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest

from sb3_dpi.systems import Simulator, SimulatorState, Table
from sb3_dpi.trajopt.mcts import UCT_EXPLORATION, Node, SearchResult, guessed, new_node, puct, puct_each, uct
from sb3_dpi.trajopt.types import FloatArray, NotFiniteReturnError
from sb3_dpi.trajopt.value_iteration import value_iteration

LAKE = Table.of(gym.make("FrozenLake-v1"))
SMALL, HORIZON = ["SFF", "FHF", "FFG"], 12
"""A lake on which chance alone sometimes gets through, and the time that there is."""
POND = Table.of(gym.make("FrozenLake-v1", desc=SMALL))
OPTIMUM = float(POND.initial @ POND.values(horizon=HORIZON).v)


@dataclass
class Tree:
    """Three actions for two steps; the best first step is not the one that earns most at once."""

    rewards: tuple[float, ...] = (30.0, 0.0, 10.0)
    later: tuple[tuple[float, ...], ...] = ((0.0, 0.0, -10.0), (50.0, -50.0, -50.0), (20.0, 25.0, 15.0))
    is_random: bool = False
    n_actions: int = 3
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def step(self, state: tuple[int, ...], action: int, rng: np.random.Generator) -> tuple[tuple[int, ...], float, bool]:
        """:return: what a node of the tree has"""
        self.asked.append((*state, action))
        return (*state, action), self.later[state[0]][action] if state else self.rewards[action], len(state) == 1

    def key(self, state: tuple[int, ...]) -> Hashable:
        """:return: the path"""
        return state


@dataclass
class Arms(Tree):
    """They earn at once what they earn."""

    n_actions: int = 2

    def step(self, state: tuple[int, ...], action: int, rng: np.random.Generator) -> tuple[tuple[int, ...], float, bool]:
        """:return: an end"""
        return (action,), self.rewards[action], True


def uniform(_: object) -> tuple[FloatArray, float]:
    """:return: priors and a value that know nothing"""
    return np.full(3, 1 / 3), 0.0


@pytest.mark.parametrize("n_simulations", [400, 2000])
@pytest.mark.parametrize("search", ["uct", "puct"])
def test_the_optimal_action_is_found(search: str, n_simulations: int) -> None:
    """Values are 30, 50 and 35; each node of a deterministic tree is asked once by the tree policy."""
    tree, rng = Tree(), np.random.default_rng(0)
    if search == "uct":
        found = uct(tree, (), rng, n_simulations, evaluate=lambda state, rng: 0.0)
    else:
        found = puct(tree, (), uniform, rng, n_simulations)
    assert found.action == 1 and found.depth == 2 and found.visits.sum() == found.n_simulations == n_simulations
    assert found.visits[1] > (0.4 if n_simulations == 400 else 0.6) * n_simulations
    assert found.values[1] > 35.0 and found.values[0] <= 30.0
    child = found.subtree(1, (1,))
    assert child is not None and child.state == (1,)
    assert len(tree.asked) == len(set(tree.asked)) == found.n_steps <= 12


def test_the_score_is_the_printed_one() -> None:
    """With a known range the visits of two arms are those of the formula, computed by hand."""
    rewards, n = (0.4, 0.6), 60
    found = uct(Arms(rewards), (), np.random.default_rng(0), n, exploration=0.3, return_range=(0.0, 2.0))
    visits = np.ones(2, int)
    for total in range(2, n):
        visits[np.argmax(np.array(rewards) / 2.0 + 2.0 * 0.3 * np.sqrt(2.0 * np.log(total) / visits))] += 1
    np.testing.assert_array_equal(found.visits, visits)
    np.testing.assert_allclose(found.policy(), visits / n)
    np.testing.assert_array_equal(found.policy(0.0), [0.0, 1.0])
    np.testing.assert_allclose(found.policy(0.5), visits**2 / np.sum(visits**2))
    assert found.value == pytest.approx(visits @ rewards / n) and pytest.approx(0.5**0.5) == UCT_EXPLORATION


def test_priors_and_values_lead() -> None:
    """The first walk takes the likeliest action; one that is certain is all that is tried where values do not differ."""
    sure = np.array([0.0, 0.0, 1.0])
    found = puct(Tree((0.0, 0.0, 0.0), ((0.0,) * 3,) * 3), (), lambda _: (sure, 0.0), np.random.default_rng(0), 10)
    assert list(found.visits) == [0, 0, 10] and np.isnan(found.values[0])
    noisy = puct(Tree(), (), lambda _: (sure, 0.0), np.random.default_rng(0), 200, noise=(1.0, 0.5))
    assert np.all(noisy.visits > 0)
    valued = puct(Tree(), (), lambda state: (np.full(3, 1 / 3), 1e3 * (state == (2,))), np.random.default_rng(0), 9)
    assert valued.visits[2] >= 3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 9, 60])
def test_the_score_with_priors_is_the_printed_one(n: int) -> None:
    """By hand, of arms within the range of returns, below and above it: what was not tried counts as the mean of the state."""
    rewards, priors, first, c = np.array([-3.0, 0.6, 2.5, 0.4]), np.array([0.4, 0.3, 0.1, 0.2]), 0.7, 0.8
    options = {"exploration": c, "return_range": (0.5, 2.0)}
    arms = Arms(tuple(rewards.tolist()), n_actions=4)
    found = puct(arms, (), lambda _: (priors, first), np.random.default_rng(0), n, **options)  # type: ignore[arg-type]
    visits, total = np.zeros(4, int), first
    for k in range(n):
        value = (np.where(visits > 0, rewards, total / (k + 1)) - 0.5) / 1.5
        scores = priors if k == 0 else np.clip(value, 0.0, 1.0) + c * priors * np.sqrt(k) / (1 + visits)
        visits[scores.argmax()] += 1
        total += rewards[scores.argmax()]
    np.testing.assert_array_equal(found.visits, visits)
    assert (n < 60 or visits.min() > 0) and found.value == pytest.approx(visits @ rewards / n)


@pytest.mark.parametrize("rewards", [(1.0, 1.5), (0.0, -0.5)])
@pytest.mark.parametrize("search", ["uct", "puct"])
def test_beyond_the_range_returns_do_not_differ(search: str, rewards: tuple[float, float]) -> None:
    """What is at an end of the range given and what is beyond it are tried as often."""
    arms, rng, given = Arms(rewards), np.random.default_rng(0), (0.0, 1.0)
    if search == "uct":
        found = uct(arms, (), rng, 40, return_range=given)
    else:
        found = puct(arms, (), lambda _: (np.full(2, 0.5), rewards[0]), rng, 40, return_range=given)
    assert found.visits.tolist() == [20, 20]


@pytest.mark.parametrize("guess, visits", [(0.2, [9, 0]), (0.8, [1, 8])])
def test_an_untried_action_counts_as_the_mean_of_its_state(guess: float, visits: list[int]) -> None:
    """Where nothing speaks for what is new: it is tried only where the state promised more than the first action earned."""
    priors, options = np.array([0.6, 0.4]), {"exploration": 0.0, "return_range": (0.0, 1.0)}
    arms, rng = Arms((0.4, 0.5)), np.random.default_rng(0)
    found = puct(arms, (), lambda _: (priors, guess), rng, 9, **options)  # type: ignore[arg-type]
    assert found.visits.tolist() == visits


def test_noise_in_the_first_priors() -> None:
    """Shares of the policy and of the first draw of the generator, in the first state alone."""
    priors = np.array([0.2, 0.3, 0.5])
    found = puct(Tree(), (), lambda _: (priors, 0.0), np.random.default_rng(4), 9, noise=(0.7, 0.25))
    drawn = np.random.default_rng(4).dirichlet(np.full(3, 0.7))
    np.testing.assert_allclose(found.root.priors, 0.75 * priors + 0.25 * drawn)
    child = found.subtree(int(found.action), 0)
    assert child is not None and child.priors == priors.tolist()


def test_without_exploration_the_best_mean_is_followed() -> None:
    found = uct(Tree(later=((0.0,) * 3,) * 3), (), np.random.default_rng(0), 20, horizon=1, exploration=0.0)
    assert list(found.visits) == [18, 1, 1] and list(found.values) == [30.0, 0.0, 10.0]


def test_without_a_future_the_reward_is_all() -> None:
    found = uct(Tree(), (), np.random.default_rng(0), 90, gamma=0.0)
    assert found.action == 0 and list(found.values) == [30.0, 0.0, 10.0]


def check_sums(node: Node, guess: float, gamma: float) -> int:
    """A node is worth what was said of it first and what came through its edges; returns how many there are below."""
    if not node.visits:
        return 0
    own = 0.0 if node.is_over else guess
    n_own = node.visits - sum(edge.visits for edge in node.edges)
    assert n_own == 1 or node.is_over
    assert node.total == pytest.approx(n_own * own + sum(edge.total for edge in node.edges))
    children = [(edge, child) for edge in node.edges for child in edge.outcomes.values()]
    for edge, child in children:
        assert edge.visits == child.visits and edge.total == pytest.approx(edge.visits * edge.reward + gamma * child.total)
    return len(children) + sum(check_sums(child, guess, gamma) for _, child in children)


@pytest.mark.parametrize("n_simulations", [5, 40])
def test_values_add_up_all_over_the_tree(n_simulations: int) -> None:
    led = puct(Tree(), (), lambda _: (np.full(3, 1 / 3), 7.0), np.random.default_rng(0), n_simulations, gamma=0.9)
    assert check_sums(led.root, 7.0, 0.9) == led.n_steps > 3
    tried = uct(Tree(), (), np.random.default_rng(0), n_simulations, gamma=0.9, evaluate=lambda state, rng: 7.0)
    root = tried.root
    assert root.visits == n_simulations and root.total == pytest.approx(sum(edge.total for edge in root.edges))
    below = [child for edge in root.edges for child in edge.outcomes.values()]
    assert sum(check_sums(child, 7.0, 0.9) for child in below) + len(below) == tried.n_steps


def test_the_guess_of_a_first_state_counts_once() -> None:
    root = new_node((), 3)
    guessed(root, np.full(3, 1 / 3), 5.0)
    assert (root.visits, root.total) == (1, 5.0)
    guessed(root, np.array([0.2, 0.3, 0.5]), 9.0)
    assert (root.visits, root.total, root.priors) == (1, 5.0, [0.2, 0.3, 0.5])


@dataclass
class Chain:
    """One action, which earns 1 and leads on, to the end where there is one."""

    end: int = 10**6
    n_actions: int = 1
    is_random: bool = False

    def step(self, state: int, action: int, rng: np.random.Generator) -> tuple[int, float, bool]:
        """:return: the next link"""
        return state + 1, 1.0, state + 1 == self.end

    def key(self, state: int) -> Hashable:
        """:return: which link"""
        return state


@pytest.mark.parametrize("n_simulations", range(1, 7))
def test_walks_and_default_policies_are_discounted_to_the_horizon(n_simulations: int) -> None:
    """Whatever part of four steps the tree knows, they are worth 1 + 1/2 + 1/4 + 1/8; each walk knows one step more."""
    found = uct(Chain(), 0, np.random.default_rng(0), n_simulations, horizon=4, gamma=0.5)
    assert found.value == found.values[0] == 1.875 and found.visits[0] == n_simulations
    assert found.depth == min(n_simulations, 4) and found.n_steps == [4, 7, 9, 10, 10, 10][n_simulations - 1]
    ended = uct(Chain(end=3), 0, np.random.default_rng(0), n_simulations, horizon=9, gamma=0.5)
    assert ended.value == 1.75 and ended.depth == min(n_simulations, 3)
    led = puct(Chain(), 0, lambda state: (np.ones(1), 2.0), np.random.default_rng(0), n_simulations, horizon=3, gamma=0.5)
    # a leaf is worth 2, as all that follows it, but at the horizon there is nothing
    assert led.values[0] == pytest.approx((2.0 * min(n_simulations, 2) + 1.75 * max(n_simulations - 2, 0)) / n_simulations)


def test_chance_is_averaged() -> None:
    """Two arms of a coin: the value is the mean, each outcome has a node, and outcomes are drawn at each visit."""
    P = np.zeros((3, 2, 3))
    P[0, 0, 1:], P[0, 1, 1:], P[1:, :, 0] = (0.3, 0.7), (0.6, 0.4), 1.0
    rewards, ends = np.zeros((3, 2, 3)), np.ones((3, 2, 3))
    rewards[0, :, 1] = 1.0
    coin = Table(P, rewards, ends, np.eye(3)[0])
    assert coin.is_random and not replace(coin, transitions=np.eye(3)[np.zeros((3, 2), int)]).is_random
    found = uct(coin, 0, np.random.default_rng(0), 4000, exploration=2.0)
    error = 5.0 * np.sqrt(0.25 / found.visits)
    assert found.action == 1 and np.all(np.abs(found.values - [0.3, 0.6]) < error)
    assert set(found.root.edges[0].outcomes) == {1, 2} and found.n_steps == 4000
    kept = [found.subtree(0, state) for state in range(3)]
    assert [node and node.state for node in kept] == [None, 1, 2]


def play(plan: str, seed: int) -> float:
    """:return: of an episode on the lake, its model known to the search but not its chance"""
    rng = np.random.default_rng(seed)
    state, best = POND.reset(rng), POND.values(gamma=0.9)
    for left in range(HORIZON, 0, -1):
        if plan == "uct":
            action = uct(POND, state, rng, 40, left, exploration=0.3).action
        else:
            action = puct(POND, state, lambda s: (np.full(4, 0.25), best.v[s]), rng, 20, gamma=0.9).action
        state, reward, is_over = POND.step(state, action, rng)
        if is_over:
            return reward
    return 0.0


@pytest.mark.parametrize("plan", ["uct", "puct"])
def test_no_search_beats_the_optimum(plan: str) -> None:
    """That of exact value iteration with as many steps; but it earns more than chance."""
    n, by_chance = 30, np.zeros(9)
    for _ in range(HORIZON):
        onward = POND.rewards + (1.0 - POND.ends) * by_chance
        by_chance = np.mean(np.sum(POND.transitions * onward, -1), -1)
    earned = np.mean([play(plan, seed) for seed in range(n)])
    interval = 2.6 * np.sqrt(OPTIMUM * (1.0 - OPTIMUM) / n)
    assert 2.0 * by_chance[0] < earned < OPTIMUM + interval < 0.75


def test_a_long_search_finds_what_value_iteration_finds() -> None:
    """Beside the goal, with three steps left: an action as good as the best, and nearly its value."""
    q = POND.values(horizon=3).q[7]
    found = uct(POND, 7, np.random.default_rng(0), 3000, 3, exploration=0.2)
    assert q.max() - q[found.action] < 0.01 < q.max() - np.median(q)
    assert abs(found.values[found.action] - q.max()) < 0.05


def test_a_simulator_does_not_see_the_future() -> None:
    """The search in copies of a real lake, played in the real lake: one that saw how it will slip would pass the bound."""
    env, n = gym.make("FrozenLake-v1", desc=SMALL, max_episode_steps=HORIZON), 24
    simulator = Simulator(env)
    total, rng = 0.0, np.random.default_rng(0)
    for seed in range(n):
        env.reset(seed=seed)
        is_over = False
        while not is_over:
            action = uct(simulator, simulator.read(env), rng, 16, HORIZON).action
            _, reward, terminated, truncated, _ = env.step(action)
            total, is_over = total + float(reward), terminated or truncated
    assert total / n <= OPTIMUM + 2.6 * np.sqrt(OPTIMUM * (1.0 - OPTIMUM) / n) < 0.75


def test_cartpole_is_balanced() -> None:
    """For 60 steps, ten times what chance does in the half that is planned; the tree is kept from step to step."""
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    simulator = Simulator(env, time_limits=False)
    rng, root = np.random.default_rng(0), None
    for _ in range(60):
        state = simulator.read(env)
        found: SearchResult = uct(simulator, state, rng, 15, 25, root=root)
        assert not env.step(found.action)[2]
        root = found.subtree(found.action, 0)
        assert root is not None and root.visits > 0 and isinstance(root.state, SimulatorState)
        assert simulator.key(root.state) == simulator.key(simulator.read(env))


def test_searches_follow_their_seed_and_their_clock() -> None:
    runs = [uct(LAKE, 0, np.random.default_rng(seed), 50, 20) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0].visits, runs[1].visits)
    assert (
        not np.array_equal(np.nan_to_num(runs[0].values), np.nan_to_num(runs[2].values)) or runs[0].n_steps != runs[2].n_steps
    )
    begun = time.perf_counter()
    found = uct(LAKE, 0, np.random.default_rng(0), 10**9, 20, max_seconds=0.02)
    assert 1 <= found.n_simulations < 10**6 and time.perf_counter() - begun < 5.0
    assert uct(LAKE, 0, np.random.default_rng(0), 50, 20, max_seconds=1e6).n_simulations == 50


def test_a_return_that_is_not_finite_is_named_by_its_search() -> None:
    """The only one, or of those side by side the one where it came."""
    with pytest.raises(NotFiniteReturnError, match="nan") as caught:
        uct(Tree((np.nan,) * 3), (), np.random.default_rng(0))
    assert caught.value.index == 0
    roots = [new_node((), 3), new_node((0,), 3)]
    with pytest.raises(NotFiniteReturnError, match="inf") as caught:
        tree = Tree(later=((np.inf,) * 3,) * 3)
        puct_each(tree, roots, lambda s: (np.full((len(s), 3), 1 / 3), np.zeros(len(s))), [np.random.default_rng(0)] * 2)
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "options, said",
    [
        ({"n_simulations": 0}, "n_simulations must be at least 1"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"gamma": 1.1}, "gamma must be in"),
        ({"gamma": -0.1}, "gamma must be in"),
        ({"exploration": -1.0}, "exploration"),
        ({"return_range": (1.0, 1.0)}, "return_range"),
        ({"evaluate": lambda state, rng: np.nan}, "must be finite"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        uct(Tree(), (), np.random.default_rng(0), **options)  # type: ignore[arg-type]


def test_priors_of_another_number_are_refused() -> None:
    for noise in ((1.0, 0.0), (1.0, 1.0)):
        assert puct(Tree(), (), uniform, np.random.default_rng(0), 9, noise=noise, max_seconds=0.0).n_simulations == 1
    for noise in ((0.0, 0.5), (1.0, 1.5), (1.0, -0.5)):
        with pytest.raises(ValueError, match="noise must be a concentration above 0 and a share"):
            puct(Tree(), (), uniform, np.random.default_rng(0), noise=noise)
    roots, rngs = [new_node((), 3), new_node((), 3)], [np.random.default_rng(0)] * 2
    with pytest.raises(ValueError, match="shorter"):
        puct_each(Tree(), roots, lambda states: (np.full((1, 3), 1 / 3), np.zeros(2)), rngs)
    with pytest.raises(ValueError, match="one for each of 3 actions, got 2"):
        puct(Tree(), (), lambda _: (np.ones(2), 0.0), np.random.default_rng(0))


def test_value_iteration() -> None:
    """Against the linear equations of the best policy, and by hand for one and two steps."""
    P, rewards = np.zeros((2, 2, 2)), np.array([[1.0, 0.0], [2.0, 0.0]])
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 0] = 1.0
    values = value_iteration(P, rewards, gamma=0.9)
    np.testing.assert_allclose(values.v, [18.0, 20.0], atol=1e-9)
    assert list(values.policy) == [1, 0]
    np.testing.assert_allclose(value_iteration(P, rewards, horizon=1).v, [1.0, 2.0])
    np.testing.assert_allclose(value_iteration(P, rewards, horizon=3).v, [4.0, 6.0])
    with pytest.raises(ValueError, match="lower gamma, or give a horizon"):
        value_iteration(P, rewards, max_sweeps=100)
    lake = LAKE.values(gamma=0.95)
    chosen = lake.policy[:, None, None]
    onward = np.take_along_axis(LAKE.transitions * (1.0 - LAKE.ends), chosen, 1)[:, 0]
    earned = np.take_along_axis(np.sum(LAKE.transitions * LAKE.rewards, -1), lake.policy[:, None], 1)[:, 0]
    np.testing.assert_allclose(lake.v, np.linalg.solve(np.eye(16) - 0.95 * onward, earned), atol=1e-9)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        LAKE.values(horizon=0)


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_values_come_to_rest_within_their_tolerance(gamma: float) -> None:
    """A reward of 1 for ever is worth 1 / (1 - gamma), of which n sweeps miss gamma^n: the first n that misses too little."""
    P, rewards = np.ones((1, 1, 1)), np.ones((1, 1))
    found = value_iteration(P, rewards, gamma=gamma, tolerance=1e-3)
    missed = gamma ** np.arange(200) / (1.0 - gamma)
    assert found.n_sweeps == np.argmax(missed <= 1e-3)
    assert 1.0 / (1.0 - gamma) - found.v[0] == pytest.approx(missed[found.n_sweeps])


def test_values_without_a_limit_to_contract_to() -> None:
    """Without discount a sweep may still move values by the tolerance, without future the second moves none."""
    P, ends = np.ones((1, 1, 1)), np.full((1, 1, 1), 0.5)
    assert value_iteration(P, np.ones((1, 1)), ends, tolerance=0.25).n_sweeps == 3
    still = value_iteration(P, np.ones((1, 1, 1)), gamma=0.0)
    assert still.n_sweeps == 2 and still.v[0] == still.q[0, 0] == 1.0
    with pytest.raises(ValueError, match="after 2 sweeps"):
        value_iteration(P, np.ones((1, 1)), ends, tolerance=0.25, max_sweeps=2)


def test_a_state_that_is_reached_in_several_ways() -> None:
    """Its reward and its end are means over these ways."""

    class Known(gym.Env):  # type: ignore[type-arg]
        P: ClassVar = {
            0: {0: [(0.5, 1, 2.0, True), (0.25, 1, 4.0, False), (0.25, 0, 1.0, False)]},
            1: {0: [(1.0, 1, 0.0, True)]},
        }
        initial_state_distrib: ClassVar = [1.0, 0.0]

    table = Table.of(Known())
    np.testing.assert_allclose(table.transitions[:, 0], [[0.25, 0.75], [0.0, 1.0]])
    np.testing.assert_allclose(table.rewards[:, 0], [[1.0, 2.0 / 0.75], [0.0, 0.0]])
    np.testing.assert_allclose(table.ends[:, 0], [[0.0, 0.5 / 0.75], [0.0, 1.0]])


def test_tables() -> None:
    """They draw what they say, and refuse what is none."""
    rng = np.random.default_rng(0)
    drawn = np.bincount([LAKE.step(0, 2, rng)[0] for _ in range(3000)], minlength=16) / 3000
    np.testing.assert_allclose(drawn, LAKE.transitions[0, 2], atol=0.03)
    assert LAKE.step(14, 1, np.random.default_rng(2))[1:] in ((0.0, False), (1.0, True))
    with pytest.raises(ValueError, match="has no table"):
        Table.of(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="add up to one"):
        replace(LAKE, initial=LAKE.initial * 0.5)
    with pytest.raises(ValueError, match="rewards must have shape"):
        replace(LAKE, rewards=LAKE.rewards[0])
