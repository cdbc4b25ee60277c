"""The game of Dual-AC: its saddle point on finite problems, alpha and V in closed form, gradients by finite differences."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.optimize import linprog, minimize
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dpi import DualAC
from sb3_dpi.dual_ac import MlpPolicy, RBFPolicy
from sb3_dpi.dual_ac.critic import ValueProblem, descend, objective, solve_in_closed_form, value_is_linear
from sb3_dpi.dual_ac.game import dual_weights, lagrangian

S, A, GAMMA = 3, 2, 0.7
RNG = np.random.default_rng(6)
P = RNG.dirichlet(0.7 * np.ones(S), size=(S, A))
R = RNG.uniform(size=(S, A))
MU = np.array([0.2, 0.5, 0.3])


def linear_programme() -> tuple[np.ndarray, np.ndarray]:
    """V* and the optimal occupancy of Eq. 3 and 5."""
    constraints = np.array([[GAMMA * P[s, a, j] - (s == j) for j in range(S)] for s in range(S) for a in range(A)])
    solution = linprog((1.0 - GAMMA) * MU, A_ub=constraints, b_ub=-R.ravel(), bounds=[(None, None)] * S)
    return solution.x, -solution.ineqlin.marginals.reshape(S, A)


class ExactGame:
    """Every window of k + 1 steps of the finite problem, with the Lagrangian's exact expectation.

    :param k: as in the paper
    """

    def __init__(self, k: int) -> None:
        steps = list(itertools.product(range(A), range(S)))
        paths = np.array([[s, *itertools.chain(*rest)] for s in range(S) for rest in itertools.product(steps, repeat=k + 1)])
        self.states, self.actions = paths[:, 0::2], paths[:, 1::2]
        now, then = self.states[:, :-1], self.states[:, 1:]
        self.probability = th.as_tensor(P[now, self.actions, then].prod(1))
        self.returns = th.as_tensor((GAMMA ** np.arange(k + 1) * R[now, self.actions]).sum(1))
        self.discounts = th.full_like(self.returns, GAMMA ** (k + 1))

    def value(self, v: th.Tensor, alpha: th.Tensor, pi: th.Tensor) -> th.Tensor:
        """Eq. 8."""
        start, end = self.states[:, 0], self.states[:, -1]
        weights = alpha[start] * self.probability * pi[self.states[:, :-1], self.actions].prod(1)
        return lagrangian(v, th.as_tensor(MU), v[start], v[end], self.returns, self.discounts, weights)


# ---------------------------------------------------------------------- saddle point


@pytest.mark.parametrize("k, rate, alpha_rate, n_steps", [(0, 0.05, 0.4, 1600), (1, 0.4, 1.0, 300), (2, 0.4, 1.0, 250)])
def test_saddle_point_is_the_optimal_policy_and_value(k: int, rate: float, alpha_rate: float, n_steps: int) -> None:
    """Theorems 2 and 3: eta_V = 0, no regulariser of alpha, mu > 0 everywhere; by extragradient steps, natural ones of pi."""
    game, (optimum, occupancy) = ExactGame(k), linear_programme()
    v, log_alpha, logits = th.zeros(S).double(), th.full((S,), -np.log(S)).double(), th.zeros(S, A).double()

    def step(at: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        value, alpha, pi = at[0].clone().requires_grad_(), at[1].exp().requires_grad_(), at[2].softmax(1).requires_grad_()
        to_value, to_alpha, to_pi = th.autograd.grad(game.value(value, alpha, pi), (value, alpha, pi))
        return v - to_value, log_alpha + alpha_rate * to_alpha, logits + rate * to_pi / alpha.detach()[:, None]

    for _ in range(n_steps):
        v, log_alpha, logits = step(step((v, log_alpha, logits)))
    alpha, pi = log_alpha.exp(), logits.softmax(1)
    np.testing.assert_allclose(v, optimum, atol=1e-3)
    np.testing.assert_allclose(pi, occupancy / occupancy.sum(1, keepdims=True), atol=1e-3)
    assert float(game.value(v, alpha, pi)) == pytest.approx((1.0 - GAMMA ** (k + 1)) * MU @ optimum, abs=1e-3)
    if k == 0:
        np.testing.assert_allclose(alpha[:, None] * pi, occupancy, atol=1e-3)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_no_player_gains_by_leaving_the_optimum(k: int) -> None:
    game, (optimum, occupancy) = ExactGame(k), linear_programme()
    greedy = th.as_tensor(occupancy / occupancy.sum(1, keepdims=True))
    # the k-step occupancy of the optimal policy: alpha' = (1 - g) mu + g alpha' P_pi^{k+1}
    chain = np.linalg.matrix_power(np.einsum("sa,saj->sj", greedy, P), k + 1)
    g = GAMMA ** (k + 1)
    alpha = th.as_tensor(np.linalg.solve((np.eye(S) - g * chain).T, (1.0 - g) * MU))
    assert float(alpha.sum()) == pytest.approx(1.0)
    best = float(game.value(th.as_tensor(optimum), alpha, greedy))
    rng = np.random.default_rng(k)
    for _ in range(50):
        other = th.as_tensor(optimum + rng.normal(size=S))
        assert float(game.value(other, alpha, greedy)) == pytest.approx(best), "V finds no slope"
        actor = th.as_tensor(rng.exponential(size=S)), th.as_tensor(rng.dirichlet(np.ones(A), size=S))
        assert float(game.value(th.as_tensor(optimum), *actor)) <= best + 1e-9, "the weighted actor finds no gain"


def test_constants_do_not_matter_where_weights_sum_to_one() -> None:
    """Also where some windows ended by death, and others are shorter."""
    rng = np.random.default_rng(0)
    start, end, returns, initial = (rng.normal(size=20) for _ in range(4))
    discounts, weights = rng.choice([0.0, 0.5, 0.9], size=20), rng.dirichlet(np.ones(20))
    mu = np.full(20, 0.05)
    plain = lagrangian(initial, mu, start, end, returns, discounts, weights)
    assert lagrangian(initial + 7.0, mu, start + 7.0, end + 7.0, returns, discounts, weights) == pytest.approx(plain)
    assert lagrangian(initial, mu, start + 7.0, end, returns, discounts, weights) == pytest.approx(plain - 7.0)


# ---------------------------------------------------------------------- alpha


@pytest.mark.parametrize("mu_weight", [0.0, 0.3, 1.0])
def test_alpha_maximises_the_regularised_game(mu_weight: float) -> None:
    """Theorem 6 against a numeric optimum."""
    delta, eta = np.random.default_rng(0).normal(size=8), 1.7

    def loss(alpha: np.ndarray) -> float:
        return -float(np.mean(alpha * delta) - 0.5 * eta * delta.std() * np.mean(alpha**2))

    found = minimize(loss, np.ones(8), bounds=[(0.0, None)] * 8, options={"ftol": 1e-14, "gtol": 1e-10}).x
    expected = (found + mu_weight) / np.mean(found + mu_weight)
    np.testing.assert_allclose(dual_weights(delta, float(delta.std()), eta, mu_weight), expected, atol=1e-4)


@pytest.mark.parametrize("mu_weight", [0.0, 0.5])
@pytest.mark.parametrize("delta", [np.zeros((2, 3)), -np.arange(6.0), np.ones(4)], ids=["zero", "negative", "equal"])
def test_nothing_to_weigh_by(delta: np.ndarray, mu_weight: float) -> None:
    weights = dual_weights(delta, float(delta.std()), 5.0, mu_weight)
    np.testing.assert_array_equal(weights, np.ones_like(delta))


def test_weights_do_not_depend_on_units() -> None:
    delta = np.random.default_rng(0).normal(size=(5, 4))
    weights = dual_weights(delta, float(delta.std()), 5.0, 1.0)
    np.testing.assert_allclose(dual_weights(1000.0 * delta, 1000.0 * float(delta.std()), 5.0, 1.0), weights)
    assert weights.mean() == pytest.approx(1.0) and weights.min() > 0.0


# ---------------------------------------------------------------------- V

SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Discrete(2)
N_SAMPLES = 60


def problem(path_regularization: float) -> ValueProblem:
    th.manual_seed(0)
    return ValueProblem(
        th.randn(N_SAMPLES + 9, 2),
        th.randn(7, 2),
        th.randn(N_SAMPLES),
        th.randint(N_SAMPLES + 9, (N_SAMPLES,)),
        th.randn(N_SAMPLES),
        th.tensor([0.0, 0.9, 0.5]).repeat(N_SAMPLES // 3),
        2.0 * th.rand(N_SAMPLES),
        path_regularization,
    )


def loss_of(policy: Any, samples: ValueProblem) -> th.Tensor:
    return objective(policy, samples, th.arange(N_SAMPLES), th.arange(7))


def small_policy(policy_class: Any = MlpPolicy, **kwargs: Any) -> Any:
    th.manual_seed(1)
    return policy_class(SPACE, ACTIONS, lambda _: 1e-2, **kwargs)


@pytest.mark.parametrize("eta", [0.0, 0.3, 20.0, np.inf])
def test_gradient_of_the_value_objective(eta: float) -> None:
    policy, samples = small_policy(net_arch=[5]).double(), problem(eta)
    policy.set_standardization(np.zeros(2), np.ones(2))
    samples = ValueProblem(
        *(x.double() if isinstance(x, th.Tensor) and x.is_floating_point() else x for x in vars(samples).values())
    )
    loss = loss_of(policy, samples)
    parameters = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    gradients = th.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    largest = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat, slope = parameter.data.view(-1), gradient.reshape(-1)
        for i in range(len(flat)):
            kept, h = float(flat[i]), 1e-6
            with th.no_grad():
                flat[i] = kept + h
                above = float(loss_of(policy, samples))
                flat[i] = kept - h
                below = float(loss_of(policy, samples))
                flat[i] = kept
            assert (above - below) / (2 * h) == pytest.approx(float(slope[i]), abs=1e-6)
            largest = max(largest, abs(float(slope[i])))
    assert largest > 1e-2


def test_value_objective_by_hand() -> None:
    """Eq. 9, sample by sample."""
    policy, samples, eta = small_policy(net_arch=[5]), problem(3.0), 3.0
    with th.no_grad():
        every = policy.predict_values(samples.observations).flatten().numpy()
        initial = policy.predict_values(samples.initial_observations).flatten().numpy()
        found = float(loss_of(policy, samples))
    w, d = (samples.weights / samples.weights.sum()).numpy(), samples.discounts.numpy()
    game = (
        sum(w[i] * (float(samples.returns[i]) + d[i] * every[samples.end_rows[i]] - every[i]) for i in range(N_SAMPLES))
        + (1.0 - float(w @ d)) * initial.mean()
    )
    path = np.mean([(float(samples.targets[i]) - every[i]) ** 2 for i in range(N_SAMPLES)])
    assert found == pytest.approx((game + eta * path) / eta, rel=1e-5)


@pytest.mark.parametrize("eta", [0.5, 20.0, np.inf])
@pytest.mark.parametrize("policy_class", [RBFPolicy, MlpPolicy])
def test_closed_form_of_v(policy_class: Any, eta: float) -> None:
    """No gradient is left, but for what the small ridge holds."""
    policy, samples = small_policy(policy_class, net_arch=[]), problem(eta)
    assert value_is_linear(policy)
    before = float(loss_of(policy, samples).detach())
    solve = solve_in_closed_form(policy, samples)
    loss = loss_of(policy, samples)
    assert (solve.n_steps, solve.gap) == (1, 0.0) and solve.objective == pytest.approx(float(loss.detach()), rel=1e-5)
    assert solve.objective < before
    gradients = th.autograd.grad(loss, policy.value_net.parameters())
    assert max(float(gradient.abs().max()) for gradient in gradients) < 2e-2
    descend(policy, samples, 0.0, 20, 60, np.random.default_rng(0))
    assert float(loss_of(policy, samples).detach()) > solve.objective - 1e-3, "descent finds nothing better"


def test_values_of_networks_are_not_linear() -> None:
    assert not value_is_linear(small_policy(net_arch=[4]))
    assert value_is_linear(small_policy(net_arch={"pi": [4], "vf": []}))


def test_descent_ends_when_nothing_is_gained() -> None:
    policy, samples = small_policy(net_arch=[16]), problem(20.0)
    actor = [parameter.clone() for parameter in policy.action_net.parameters()]
    rng = np.random.default_rng(0)
    solve = descend(policy, samples, 1e-4, 1000, 20, rng)
    assert 3 < solve.n_steps < 3000 and solve.n_steps % 3 == 0 and solve.gap < 1e-4
    assert descend(policy, samples, 1e-4, 5, 20, rng).n_steps <= 15, "no more passes than allowed"
    one = descend(policy, samples, 1e-4, 0, 20, rng)
    assert one.n_steps == 1, "one inner step"
    assert all(th.equal(a, b) for a, b in zip(actor, policy.action_net.parameters(), strict=True))


# ---------------------------------------------------------------------- the algorithm on a finite problem


class FiniteProblem(gym.Env[int, int]):
    """The same problem as an environment with numbers as observations and actions."""

    observation_space = spaces.Discrete(S)
    action_space = spaces.Discrete(A)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.s = int(self.np_random.choice(S, p=MU))
        return self.s, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = float(R[self.s, int(action)])
        self.s = int(self.np_random.choice(S, p=P[self.s, int(action)]))
        return self.s, reward, False, False, {}


@pytest.mark.parametrize("k", [1, 3])
def test_it_finds_the_optimal_policy_and_value_from_samples(k: int) -> None:
    """One-hot observations: policy and V are tables, V is solved in closed form."""
    env = DummyVecEnv(8 * [lambda: gym.wrappers.TimeLimit(FiniteProblem(), 20)])
    model = DualAC("MlpPolicy", env, n_steps=32, gamma=GAMMA, window_length=k, policy_kwargs={"net_arch": []}, seed=0)
    model.learn(24 * 256)
    optimum, occupancy = linear_programme()
    states = th.arange(S)[:, None]
    with th.no_grad():
        probabilities = model.policy.get_distribution(states).distribution.probs
        standard = model.policy.predict_values(states).flatten().double().numpy()
    np.testing.assert_allclose(probabilities, occupancy / occupancy.sum(1, keepdims=True), atol=0.1)
    scale = model._scale()
    np.testing.assert_allclose(scale.mean + scale.std * standard, optimum, rtol=0.05)
