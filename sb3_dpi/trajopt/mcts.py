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
it averages. Of a deterministic one each edge is asked once, and of one that turns random on the way those that drew nothing.
A actions; values are of states, returns with the reward of the edge that leads to them.
"""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from scipy.special import softmax

from sb3_dpi.trajopt.types import FloatArray, IntArray, NotFiniteReturnError

State = TypeVar("State")

UCT_EXPLORATION = 1.0 / math.sqrt(2.0)
"""C with which the bound that the score stands for holds for returns in [0, 1]."""
PUCT_EXPLORATION = 1.25
MUST_BE_FINITE = "rewards, observations and values must be finite"


class FiniteSystem(Protocol[State]):
    """What happens if, where there are finitely many actions. States are whatever the system makes them."""

    @property
    def n_actions(self) -> int:
        """A."""
        ...

    @property
    def is_random(self) -> bool:
        """Whether the same action may lead elsewhere, as far as was seen; it may turn true in a step that draws."""
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
Guesses = Callable[[list[State]], tuple[FloatArray, FloatArray]]
"""Of states: probabilities of the actions, ``[n, A]``, and values, ``[n]``."""


@dataclass(slots=True)
class Edge:
    """An action in a state, and what came of it."""

    visits: int = 0
    total: float = 0.0
    """sum of the returns"""
    outcomes: dict[Hashable, "Node"] = field(default_factory=dict)
    reward: float = 0.0
    """of the only outcome, where it is not random"""
    is_random: bool = False

    @property
    def mean(self) -> float:
        """Of the returns, which must be some."""
        return self.total / self.visits


@dataclass(slots=True)
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


Path = list[tuple[Node, Edge, float]]  # nodes, the edges that were taken from them, and rewards


def new_node(state: Any, n_actions: int, is_over: bool = False) -> Node:
    """
    Begin a tree.

    :param state: its first one
    :param n_actions: A
    :param is_over: whether the episode is
    :return: a node that was not visited yet
    """
    return Node(state, is_over, [Edge() for _ in range(n_actions)], list(range(n_actions)))


def guessed(root: Node, priors: FloatArray, value: float) -> None:
    """
    Tell a first node what a policy makes of its state.

    :param root: it is written into
    :param priors: probabilities of the actions, ``[A]``
    :param value: of the state
    :raises ValueError: if priors are of another number of actions
    """
    _tell(root, priors)
    if not root.visits:  # one at the horizon of an earlier search has some
        root.visits, root.total = 1, float(value)


def _tell(node: Node, priors: FloatArray) -> None:
    node.priors = [float(prior) for prior in priors]
    if len(node.priors) != len(node.edges):
        raise ValueError(f"The priors must be one for each of {len(node.edges)} actions, got {len(node.priors)}")


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
    depth: int  # of the tree, in time steps
    root: Node

    @property
    def action(self) -> int:
        """The most visited one; of several the one of the highest value."""
        return max(range(len(self.visits)), key=lambda a: (self.visits[a], self.values[a]))

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
        return np.asarray(softmax(logits))

    def subtree(self, action: int, key: Hashable) -> Node | None:
        """
        Keep what is known of what came next, for the next search.

        :param action: the one that was taken
        :param key: of the state that came, where several can
        :return: its node; None where it is not in the tree
        """
        edge = self.root.edges[action]
        return edge.outcomes.get(key if edge.is_random else 0)


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
        self.n_actions = system.n_actions
        self.n_steps, self.depth, self.index = 0, 0, 0

    def choose(self, node: Node) -> int:
        """:return: the action that the tree policy takes"""
        raise NotImplementedError

    def is_leaf(self, node: Node) -> bool:
        """:return: whether it waits to be evaluated"""
        raise NotImplementedError

    def walk(self, root: Node) -> tuple[Node, Path]:
        """:return: where the tree policy leads, and the way"""
        node, path = root, Path()
        while not node.is_over and len(path) < self.horizon and (not path or not self.is_leaf(node)):
            action = self.choose(node)
            child, reward = self.follow(node, action)
            path.append((node, node.edges[action], reward))
            node = child
        return node, path

    def is_settled(self, node: Node, path: Path) -> bool:
        """:return: whether nothing can come after the end of a walk"""
        return node.is_over or len(path) >= self.horizon

    def update(self, node: Node, path: Path, value: float) -> None:
        """Add what the end of a walk is worth to all that led there."""
        node.visits, node.total = node.visits + 1, node.total + value
        for parent, edge, reward in reversed(path):
            value = reward + self.gamma * value
            if not math.isfinite(value):
                raise NotFiniteReturnError(f"the search met a return of {value}: {MUST_BE_FINITE}", self.index)
            edge.visits, edge.total = edge.visits + 1, edge.total + value
            parent.visits, parent.total = parent.visits + 1, parent.total + value
            self.range.follow(value)
        self.depth = max(self.depth, len(path))

    def follow(self, node: Node, action: int) -> tuple[Node, float]:
        """:return: what comes of an action, drawn anew where it is random, and the reward"""
        edge = node.edges[action]
        if edge.outcomes and not edge.is_random:
            return edge.outcomes[0], edge.reward
        state, reward, is_over = self.system.step(node.state, action, self.rng)
        self.n_steps += 1
        edge.is_random = self.system.is_random
        key = self.system.key(state) if edge.is_random else 0
        child = edge.outcomes.get(key)
        if child is None:
            child = edge.outcomes[key] = new_node(state, self.n_actions, is_over)
        edge.reward = reward
        return child, reward

    def result(self, root: Node, n_simulations: int) -> SearchResult:
        """:return: what was found"""
        visits = np.array([edge.visits for edge in root.edges])
        values = np.array([edge.mean if edge.visits else np.nan for edge in root.edges])
        mean = float(np.nansum(values * visits) / visits.sum())
        return SearchResult(visits, values, mean, n_simulations, self.n_steps, self.depth, root)


class _UCT(_Search[State]):
    def __init__(self, exploration: float, evaluate: Evaluation[State] | None, *common: Any) -> None:
        super().__init__(*common)
        self.exploration, self.given = exploration, evaluate

    def is_leaf(self, node: Node) -> bool:
        return not node.visits

    def choose(self, node: Node) -> int:
        if node.untried:
            return node.untried.pop(int(self.rng.integers(len(node.untried))))
        log = 2.0 * math.log(node.visits)
        scores = [self.range.scale(edge.mean) + 2.0 * self.exploration * math.sqrt(log / edge.visits) for edge in node.edges]
        return scores.index(max(scores))

    def evaluate(self, node: Node, depth: int) -> float:
        """:return: an estimate of the return from a new leaf on"""
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
    def __init__(self, exploration: float, *common: Any) -> None:
        super().__init__(*common)
        self.exploration = exploration

    def is_leaf(self, node: Node) -> bool:
        return not node.priors

    def choose(self, node: Node) -> int:
        """:return: that of the highest score; written out, for nothing else is done as often"""
        edges, low, high = node.edges, self.range.low, self.range.high
        width = high - low if low < high else math.inf
        base = low if low < high else 0.0
        n_visits = 0
        for edge in edges:
            n_visits += edge.visits
        if not n_visits:  # nothing tells them apart but the priors
            return node.priors.index(max(node.priors))
        bonus = self.exploration * math.sqrt(n_visits)
        unknown = node.total / node.visits
        chosen, best = 0, -math.inf
        for action, prior in enumerate(node.priors):
            edge = edges[action]
            visits = edge.visits
            value = ((edge.total / visits if visits else unknown) - base) / width
            score = min(max(value, 0.0), 1.0) + bonus * prior / (1 + visits)
            if score > best:
                chosen, best = action, score
        return chosen


def _ask(guess: Guesses[State], nodes: list[Node]) -> list[float]:
    """:return: values of leaves, which are told the priors"""
    if not nodes:
        return []
    priors, values = guess([node.state for node in nodes])
    for node, prior in zip(nodes, priors, strict=True):
        _tell(node, prior)
    return [float(value) for value in values]


def _end(max_seconds: float | None) -> float:
    return math.inf if max_seconds is None else time.perf_counter() + max_seconds


def _check(n_simulations: int, horizon: int, gamma: float, exploration: float, noise: tuple[float, float] | None) -> None:
    for name, value in (("n_simulations", n_simulations), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (0.0 <= gamma <= 1.0 and exploration >= 0.0):
        raise ValueError(f"gamma must be in [0, 1] and exploration at least 0, got {gamma} and {exploration}")
    if noise is not None and not (noise[0] > 0.0 and 0.0 <= noise[1] <= 1.0):
        raise ValueError(f"noise must be a concentration above 0 and a share from 0 to 1, got {noise}")


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
    _check(n_simulations, horizon, gamma, exploration, None)
    search = _UCT(exploration, evaluate, system, gamma, horizon, _Range(return_range), rng)
    first = new_node(state, search.n_actions) if root is None else root
    n_done, end = 0, _end(max_seconds)
    while n_done < n_simulations and (not n_done or time.perf_counter() < end):
        node, path = search.walk(first)
        search.update(node, path, 0.0 if search.is_settled(node, path) else search.evaluate(node, len(path)))
        n_done += 1
    return search.result(first, n_done)


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

    def of_each(states: list[State]) -> tuple[FloatArray, FloatArray]:
        priors, values = zip(*map(guess, states), strict=True)
        return np.array(priors), np.array(values)

    first = new_node(state, system.n_actions) if root is None else root
    common = n_simulations, horizon, gamma, exploration, noise, return_range, max_seconds
    return puct_each(system, [first], of_each, [rng], *common)[0]


def puct_each(
    system: FiniteSystem[State],
    roots: Sequence[Node],
    guess: Guesses[State],
    rngs: Sequence[np.random.Generator],
    n_simulations: int = 50,
    horizon: int = 1000,
    gamma: float = 1.0,
    exploration: float = PUCT_EXPLORATION,
    noise: tuple[float, float] | None = None,
    return_range: tuple[float, float] | None = None,
    max_seconds: float | None = None,
) -> list[SearchResult]:
    """
    Search from several states side by side, so that a network sees the leaves of all at once. See ``puct``.

    :param system: what is searched
    :param roots: where to begin: of ``new_node``, told by ``guessed`` or not, or of ``SearchResult.subtree``
    :param guess: policies and values of states
    :param rngs: one a root
    :param n_simulations: walks from each first state; this and all that follows as for ``puct``
    :return: what each found
    :raises ValueError: if a number is out of range, or a reward, value or prior does not fit
    """
    _check(n_simulations, horizon, gamma, exploration, noise)
    searches = [_PUCT[State](exploration, system, gamma, horizon, _Range(return_range), rng) for rng in rngs]
    bare = [root for root in roots if not root.priors]
    for root, value in zip(bare, _ask(guess, bare), strict=True):
        guessed(root, np.array(root.priors), value)
    for i, (search, root) in enumerate(zip(searches, roots, strict=True)):
        search.index = i
        if noise is not None:
            drawn = search.rng.dirichlet(np.full(search.n_actions, noise[0]))
            root.priors = [(1.0 - noise[1]) * p + noise[1] * d for p, d in zip(root.priors, drawn.tolist(), strict=True)]
    n_done, end = 0, _end(max_seconds)
    while n_done < n_simulations and (not n_done or time.perf_counter() < end):
        walks = [search.walk(root) for search, root in zip(searches, roots, strict=True)]
        leaves = [not search.is_settled(*walk) for search, walk in zip(searches, walks, strict=True)]
        values = iter(_ask(guess, [node for (node, _), is_open in zip(walks, leaves, strict=True) if is_open]))
        for search, (node, path), is_open in zip(searches, walks, leaves, strict=True):
            search.update(node, path, next(values) if is_open else 0.0)
        n_done += 1
    return [search.result(root, n_done) for search, root in zip(searches, roots, strict=True)]
