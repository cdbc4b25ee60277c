"""Monte Carlo tree search in a system of finitely many actions, which may be random.

Problem: find the action that begins the largest expected return from a state, when all that can be done is to try. A search
repeats (notes of CS285, Alg. 18): walk down the tree to a leaf, evaluate the leaf, and update all values on the way.

- UCT walks by what was earned: an action that was not tried yet comes first, then the child of the best score (9.2.3)

      Q(s_t) / N(s_t) + 2 C sqrt(2 ln N(s_{t-1}) / N(s_t)),

  Q the sum of the returns through the child and N how often it was passed; a default policy evaluates leaves. The scale of C
  is that of returns in [0, 1] (Kocsis and Szepesvari 2006), to which Q / N is rescaled.
- PUCT walks by what a policy and a value function expect (Silver et al. 2017; the constants are theirs, values rescaled as in
  Schrittwieser et al. 2020),

      Q(s, a) / N(s, a) + c p(a | s) sqrt(sum_b N(s, b)) / (1 + N(s, a)),

  where an action that was not tried yet counts as the mean of what its state has returned.

A random system answers anew at each visit, and every outcome has a node of its own. So the tree never knows what will happen:
it averages. Of a deterministic one each edge is asked once.

Shapes: A actions; values are of states, returns with the reward of the edge that leads to them.
"""

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from sb3_dpi.trajopt.types import FloatArray, IntArray

State = TypeVar("State")

UCT_EXPLORATION = 1.0 / math.sqrt(2.0)
"""C with which the bound that the score stands for holds for returns in [0, 1]."""
PUCT_EXPLORATION = 1.25


class FiniteSystem(Protocol[State]):
    """What happens if, where there are finitely many actions. States are whatever the system makes them."""

    @property
    def n_actions(self) -> int:
        """A."""
        ...

    @property
    def is_random(self) -> bool:
        """Whether the same action may lead elsewhere."""
        ...

    def step(self, state: State, action: int, rng: np.random.Generator) -> tuple[State, float, bool]:
        """
        Let one time step pass; the given state stays what it is.

        :param state: where
        :param action: which, from 0 on
        :param rng: all that is drawn comes from it
        :return: the next state, the reward, and whether the episode is over
        """
        ...

    def key(self, state: State) -> Hashable:
        """
        Name a state.

        :param state: which
        :return: the same for states that are the same
        """
        ...


Evaluation = Callable[[State, np.random.Generator], float]
"""Of a state: an estimate of the return from there on, which may be random."""
Guess = Callable[[State], tuple[FloatArray, float]]
"""Of a state: probabilities of the actions, ``[A]``, and its value."""


@dataclass
class Edge:
    """An action in a state, and what came of it."""

    visits: int = 0
    total: float = 0.0
    """sum of the returns"""
    outcomes: dict[Hashable, "Node"] = field(default_factory=dict)
    reward: float = 0.0
    """of the only outcome, where the system is deterministic"""

    @property
    def mean(self) -> float:
        """Of the returns, which must be some."""
        return self.total / self.visits


@dataclass
class Node:
    """A state in the tree."""

    state: Any
    is_over: bool
    edges: list[Edge]
    untried: list[int]
    """actions that UCT has yet to try"""
    visits: int = 0
    total: float = 0.0
    """sum of the returns from here on"""
    priors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SearchResult:
    """What a search found in its first state."""

    visits: IntArray
    """how often each action was tried, ``[A]``"""
    values: FloatArray
    """mean returns of the actions, NaN of those that were not tried, ``[A]``"""
    value: float
    """mean return of all simulations"""
    n_simulations: int
    n_steps: int
    """of the system, those of default policies included"""
    depth: int
    """of the tree, in time steps"""
    root: Node

    @property
    def action(self) -> int:
        """The most visited one; of several the one of the highest value."""
        return max(range(len(self.visits)), key=lambda a: (self.visits[a], np.nan_to_num(self.values[a], nan=-np.inf)))

    def policy(self, temperature: float = 1.0) -> FloatArray:
        """
        Turn visits into probabilities.

        :param temperature: 1 gives shares of the visits, 0 the most visited action
        :return: ``[A]``
        """
        if temperature == 0.0:
            sure: FloatArray = np.eye(len(self.visits))[self.action]
            return sure
        with np.errstate(divide="ignore"):
            logits = np.log(self.visits) / temperature
        weights: FloatArray = np.exp(logits - logits.max())
        weights /= weights.sum()
        return weights

    def subtree(self, action: int, key: Hashable) -> Node | None:
        """
        Keep what is known of what came next, for the next search.

        :param action: the one that was taken
        :param key: of the state that came
        :return: its node; None where it is not in the tree
        """
        return self.root.edges[action].outcomes.get(key)


class _Range:
    """The range of returns, by which they are rescaled to [0, 1].

    :param given: lowest and highest return; None follows those that were seen
    """

    def __init__(self, given: tuple[float, float] | None) -> None:
        if given is not None and not given[0] < given[1]:
            raise ValueError(f"return_range must be a lower and a higher return, got {given}")
        self.is_given = given is not None
        self.low, self.high = given or (math.inf, -math.inf)

    def follow(self, value: float) -> None:
        """:param value: a return that was seen"""
        if not self.is_given:
            self.low, self.high = min(self.low, value), max(self.high, value)

    def scale(self, value: float) -> float:
        """:return: the value in [0, 1]; all are one half until they differ"""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) if self.low < self.high else 0.5


class _Search(Generic[State]):
    """One search: the walk, the update, and their end are the same for both scores."""

    def __init__(
        self, system: FiniteSystem[State], gamma: float, horizon: int, value_range: _Range, rng: np.random.Generator
    ) -> None:
        self.system, self.gamma, self.horizon, self.rng, self.range = system, gamma, horizon, rng, value_range
        self.n_actions, self.is_random = system.n_actions, system.is_random
        self.n_steps, self.depth = 0, 0

    def choose(self, node: Node) -> int:
        """:return: the action that the tree policy takes"""
        raise NotImplementedError

    def evaluate(self, node: Node, depth: int) -> float:
        """:return: an estimate of the return from a new leaf on"""
        raise NotImplementedError

    def new(self, state: State, is_over: bool) -> Node:
        """:return: a node without children"""
        return Node(state, is_over, [Edge() for _ in range(self.n_actions)], list(range(self.n_actions)))

    def simulate(self, root: Node) -> None:
        """Walk, evaluate, update."""
        node = root
        path: list[tuple[Node, Edge, float]] = []
        while not node.is_over and len(path) < self.horizon and (node.visits or not path):
            self.prepare(node)
            action = self.choose(node)
            child, reward = self.follow(node, action)
            path.append((node, node.edges[action], reward))
            node = child
        left = self.horizon - len(path)
        value = 0.0 if node.is_over or not left else self.evaluate(node, len(path))
        node.visits, node.total = node.visits + 1, node.total + value
        for parent, edge, reward in reversed(path):
            value = reward + self.gamma * value
            if not math.isfinite(value):
                raise ValueError(f"The search met a return of {value}: the system's rewards and the values must be finite")
            edge.visits, edge.total = edge.visits + 1, edge.total + value
            parent.visits, parent.total = parent.visits + 1, parent.total + value
            self.range.follow(value)
        self.depth = max(self.depth, len(path))

    def prepare(self, node: Node) -> None:
        """Make a node ready for a choice that was not evaluated: the first, or one at the horizon of an earlier tree."""

    def follow(self, node: Node, action: int) -> tuple[Node, float]:
        """:return: what comes of an action, drawn anew where it is random, and the reward"""
        edge = node.edges[action]
        if edge.outcomes and not self.is_random:
            return next(iter(edge.outcomes.values())), edge.reward
        state, reward, is_over = self.system.step(node.state, action, self.rng)
        self.n_steps += 1
        key = self.system.key(state) if self.is_random else 0
        child = edge.outcomes.get(key)
        if child is None:
            child = edge.outcomes[key] = self.new(state, is_over)
        edge.reward = reward
        return child, reward

    def run(self, root: Node, n_simulations: int, max_seconds: float | None) -> SearchResult:
        """:return: what was found by the simulations for which there was time, at least one"""
        end = math.inf if max_seconds is None else time.perf_counter() + max_seconds
        done = 0
        while done < n_simulations and (not done or time.perf_counter() < end):
            self.simulate(root)
            done += 1
        visits = np.array([edge.visits for edge in root.edges])
        values = np.array([edge.mean if edge.visits else np.nan for edge in root.edges])
        mean = float(np.nansum(values * visits) / visits.sum())
        return SearchResult(visits, values, mean, done, self.n_steps, self.depth, root)


class _UCT(_Search[State]):
    def __init__(self, exploration: float, evaluate: Evaluation[State] | None, *common: Any) -> None:
        super().__init__(*common)
        self.exploration, self.given = exploration, evaluate

    def choose(self, node: Node) -> int:
        if node.untried:
            return node.untried.pop(int(self.rng.integers(len(node.untried))))
        log = 2.0 * math.log(node.visits)
        scores = [self.range.scale(edge.mean) + 2.0 * self.exploration * math.sqrt(log / edge.visits) for edge in node.edges]
        return scores.index(max(scores))

    def evaluate(self, node: Node, depth: int) -> float:
        if self.given is not None:
            return self.given(node.state, self.rng)
        value, discount, state = 0.0, 1.0, node.state
        for _ in range(self.horizon - depth):  # the default policy is uniform
            state, reward, is_over = self.system.step(state, int(self.rng.integers(self.n_actions)), self.rng)
            self.n_steps += 1
            value += discount * reward
            discount *= self.gamma
            if is_over:
                break
        return value


class _PUCT(_Search[State]):
    def __init__(self, exploration: float, guess: Guess[State], *common: Any) -> None:
        super().__init__(*common)
        self.exploration, self.guess = exploration, guess

    def prepare(self, node: Node) -> None:
        if not node.priors:
            value = self.evaluate(node, 0)
            node.visits, node.total = (node.visits, node.total) if node.visits else (1, value)

    def choose(self, node: Node) -> int:
        unknown = self.range.scale(node.total / node.visits)
        bonus = self.exploration * math.sqrt(sum(edge.visits for edge in node.edges))
        if bonus == 0.0 and not any(edge.visits for edge in node.edges):  # nothing tells them apart but the priors
            return node.priors.index(max(node.priors))
        scores = [
            (self.range.scale(edge.mean) if edge.visits else unknown) + bonus * prior / (1 + edge.visits)
            for edge, prior in zip(node.edges, node.priors, strict=True)
        ]
        return scores.index(max(scores))

    def evaluate(self, node: Node, depth: int) -> float:
        priors, value = self.guess(node.state)
        node.priors = [float(prior) for prior in priors]
        if len(node.priors) != self.n_actions:
            raise ValueError(f"The priors must be one for each of {self.n_actions} actions, got {len(node.priors)}")
        return float(value)


def _check(n_simulations: int, horizon: int, gamma: float, exploration: float) -> None:
    for name, value in (("n_simulations", n_simulations), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    if not exploration >= 0.0:
        raise ValueError(f"exploration must be at least 0, got {exploration}")


def uct(
    system: FiniteSystem[State],
    state: State,
    rng: np.random.Generator,
    n_simulations: int = 200,
    horizon: int = 50,
    gamma: float = 1.0,
    exploration: float = UCT_EXPLORATION,
    evaluate: Evaluation[State] | None = None,
    return_range: tuple[float, float] | None = None,
    max_seconds: float | None = None,
    root: Node | None = None,
) -> SearchResult:
    """
    Search by upper confidence bounds.

    :param system: what is searched
    :param state: where to begin; the episode is not over there
    :param rng: everything that is drawn comes from it, the system's chance too
    :param n_simulations: walks from the first state; usual: 50 to 1000
    :param horizon: time steps of a walk with its evaluation; usual: 10 to 100
    :param gamma: discount factor
    :param exploration: C; larger tries more, 0 follows the best mean
    :param evaluate: of leaves; None acts at random to the horizon
    :param return_range: lowest and highest return, rescaled to 0 and 1; None follows the returns that were seen
    :param max_seconds: ends the search early; None never does
    :param root: a tree of an earlier search, of ``SearchResult.subtree``, which grows on; None begins anew
    :return: what was found
    :raises ValueError: if a number is out of range or a reward is not finite
    """
    _check(n_simulations, horizon, gamma, exploration)
    search = _UCT(exploration, evaluate, system, gamma, horizon, _Range(return_range), rng)
    return search.run(search.new(state, False) if root is None else root, n_simulations, max_seconds)


def puct(
    system: FiniteSystem[State],
    state: State,
    guess: Guess[State],
    rng: np.random.Generator,
    n_simulations: int = 50,
    horizon: int = 1000,
    gamma: float = 1.0,
    exploration: float = PUCT_EXPLORATION,
    noise: tuple[float, float] | None = None,
    return_range: tuple[float, float] | None = None,
    max_seconds: float | None = None,
    root: Node | None = None,
) -> SearchResult:
    """
    Search by the priors and values of a policy.

    :param system: what is searched
    :param state: where to begin; the episode is not over there
    :param guess: policy and value of a state
    :param rng: everything that is drawn comes from it, the system's chance too
    :param n_simulations: walks from the first state; usual: 20 to 800
    :param horizon: time steps of a walk; a leaf there is worth nothing, so leave it beyond what the search reaches
    :param gamma: discount factor
    :param exploration: c; larger follows the priors, smaller the values
    :param noise: alpha and share of a Dirichlet distribution in the first state's priors, for those who learn from the search
        (usual: 10 / A and .25); None adds nothing
    :param return_range: lowest and highest return, rescaled to 0 and 1; None follows the returns that were seen
    :param max_seconds: ends the search early; None never does
    :param root: a tree of an earlier search, of ``SearchResult.subtree``, which grows on; None begins anew
    :return: what was found
    :raises ValueError: if a number is out of range, or a reward, value or prior does not fit
    """
    _check(n_simulations, horizon, gamma, exploration)
    search = _PUCT(exploration, guess, system, gamma, horizon, _Range(return_range), rng)
    first = search.new(state, False) if root is None else root
    if noise is not None:
        search.prepare(first)
        drawn = rng.dirichlet(np.full(search.n_actions, noise[0]))
        first.priors = [(1.0 - noise[1]) * p + noise[1] * d for p, d in zip(first.priors, drawn.tolist(), strict=True)]
    return search.run(first, n_simulations, max_seconds)
