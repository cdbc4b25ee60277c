"""Returns of imagined windows as a loop over their steps adds them up, with deaths on the way."""

import numpy as np
import pytest
import torch as th
from test_experts import GAMMA, TEMPERATURE, leave_to_torch, prepare

from sb3_dpi.world_model.critic import CriticData
from sb3_dpi.world_model.experts.lqr import Expansion, expand, solve
from sb3_dpi.world_model.experts.pathwise import window_objective
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.experts.sampling import try_out, window_gains
from sb3_dpi.world_model.imagination import Imagined, roll_out
from sb3_dpi.world_model.rollouts import RolloutOptions, rollouts

H, E, M = 3, 3, 10


@pytest.fixture(scope="module")
def prepared() -> tuple[PlanningProblem, CriticData]:
    with pytest.MonkeyPatch.context() as patch:
        leave_to_torch(patch)
        problem, data = prepare()
    with th.no_grad():  # half of the chances to go on are far from one
        problem.ensemble.termination.flat.add_(0.5 * th.randn_like(problem.ensemble.termination.flat))
    return problem, data


@pytest.fixture
def problem(prepared: tuple[PlanningProblem, CriticData], monkeypatch: pytest.MonkeyPatch) -> PlanningProblem:
    leave_to_torch(monkeypatch)
    return prepared[0]


@pytest.fixture
def noise() -> th.Tensor:
    return th.as_tensor(np.random.default_rng(1).standard_normal((H + 1, E, M, 1)), dtype=th.float32)


def walk(problem: PlanningProblem, noise: th.Tensor) -> Imagined:
    """The corrected model step by step, member by member."""
    actor, ensemble, windows = problem.actor, problem.ensemble, problem.windows
    states, alive = [windows.states], [th.ones(E, M)]
    actions, log_probs, rewards = [], [], []
    for t in range(H + 1):
        chosen, log_prob = actor.sample(states[t], noise[t])
        actions.append(chosen)
        log_probs.append(log_prob)
        if t < H:
            following, reward = ensemble.predict(states[t], chosen)
            following = (following + windows.state_residuals[t]).clamp(ensemble.state_low.float(), ensemble.state_high.float())
            chances = th.sigmoid(-ensemble.termination(following.reshape(-1, 2))[0, :, 0]).view(E, M)
            states.append(following)
            rewards.append(reward + windows.reward_residuals[t])
            alive.append(alive[t] * chances)
    return Imagined(*(th.stack(parts).detach() for parts in (states, actions, log_probs, rewards, alive)))


def test_windows_by_hand(problem: PlanningProblem, noise: th.Tensor) -> None:
    found, expected = roll_out(problem.actor, problem.ensemble, problem.windows, noise), walk(problem, noise)
    for name, array in vars(expected).items():
        th.testing.assert_close(getattr(found, name).detach(), array, atol=1e-5, rtol=1e-5)
    assert expected.continuation[-1].min() < 0.5


def test_objective_by_hand(problem: PlanningProblem, noise: th.Tensor) -> None:
    """sum_t gamma^t c_t (r_t / unit - alpha log pi) + gamma^H c_H (Q - alpha log pi), and the mean entropy."""
    steps, unit = walk(problem, noise), float(problem.critic.unit)
    with th.no_grad():
        objective, entropy = window_objective(problem, noise)
        gains, weights = window_gains(problem, steps)
        tried = try_out(problem, noise.reshape(H + 1, E * M, 1, 1).numpy())
    total = th.zeros(E, M)
    for t in range(H + 1):
        if t < H:
            earned = steps.rewards[t] / unit
        else:
            earned = th.stack([problem.critic(steps.states[H, e], steps.actions[H, e]) for e in range(E)]).detach()
        factor = GAMMA**t * steps.continuation[t]
        total = total + factor * (earned - TEMPERATURE * steps.log_probs[t])
        # of its own actions' entropy the expert is reminded elsewhere: here that of the closing one alone counts
        own = earned - (TEMPERATURE * steps.log_probs[t] if t == H else 0.0)
        th.testing.assert_close(weights[t], factor)
        th.testing.assert_close(gains[t], factor * own, atol=1e-5, rtol=1e-5)
    assert float(objective) == pytest.approx(float(total.mean()), abs=1e-5)
    assert float(entropy) == pytest.approx(-float(steps.log_probs.mean()), abs=1e-5)
    np.testing.assert_allclose(tried.returns[:, 0], gains.sum(0).flatten().numpy(), atol=1e-4)
    th.testing.assert_close(tried.states[:, :, :, 0], steps.states, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(tried.weights[..., 0], weights, atol=1e-5, rtol=1e-5)


def test_particles_of_a_window_begin_where_it_does(problem: PlanningProblem, noise: th.Tensor) -> None:
    several = np.repeat(noise.reshape(H + 1, E * M, 1, 1).numpy(), 4, axis=2)
    several[:, :, 1:] *= -1.0
    tried, alone = try_out(problem, several), try_out(problem, several[:, :, :1])
    np.testing.assert_allclose(tried.returns[:, 0], alone.returns[:, 0], atol=1e-4)
    th.testing.assert_close(tried.states[0], problem.windows.states[:, :, None].expand(E, M, 4, 2))
    np.testing.assert_allclose(tried.returns[:, 1], tried.returns[:, 3], atol=1e-4)


def test_rollouts_with_deaths_by_hand(prepared: tuple[PlanningProblem, CriticData], problem: PlanningProblem) -> None:
    """Steps that an episode is unlikely to come to are few; what lies behind a likely death counts little."""
    ensemble, actor, memory = problem.ensemble, problem.actor, prepared[1].memory
    length, n = 4, 4 * 3 * 20
    pool = rollouts(ensemble, actor, memory, np.random.default_rng(5), n, RolloutOptions(length, 0.3, 0.9))
    rng = np.random.default_rng(5)
    rows = rng.integers(len(memory), size=60)
    noise = rng.standard_normal((length + 1, 3, 20, 1)).astype(np.float32)
    chance = rng.random((length, 3, 20))
    states = [ensemble.standardize(memory.take(rows).states).view(3, 20, 2)]
    rewards, log_probs, alive, actions, on = [], [], [th.ones(3, 20)], [], []
    with th.no_grad():
        for t in range(length):
            chosen, log_prob = actor.sample(states[t], th.as_tensor(noise[t]))
            following, reward = ensemble.predict(states[t], chosen)
            states.append(ensemble.clip(following))
            on.append(ensemble.continuation(states[t], chosen, states[-1]))
            alive.append(alive[t] * on[t])
            rewards.append(reward)
            log_probs.append(log_prob)
            actions.append(chosen)
    expected: list[list[th.Tensor]] = [[], [], [], [], []]
    for t in range(length):
        soft, factor = rewards[t].clone(), th.ones(3, 20)
        for i in range(t + 1, length):
            factor = factor * on[i - 1]
            soft += 0.9 ** (i - t) * factor * (rewards[i] - 0.3 * log_probs[i])
        closing = 0.9 ** (length - t - 1) * factor * on[-1]
        kept = th.as_tensor(chance[t]) <= alive[t]
        for column, array in zip(expected, (states[t], actions[t], soft, states[-1], closing), strict=True):
            column.append(array[kept])
    assert 0.3 * n < len(pool) < n
    for name, column in zip(("states", "actions", "rewards", "next_states", "continuation"), expected, strict=True):
        th.testing.assert_close(getattr(pool, name), th.cat(column), atol=1e-4, rtol=1e-4)


def test_expansion_against_finite_differences(problem: PlanningProblem, noise: th.Tensor) -> None:
    """The closed loop's Jacobian, and the slope of what a window loses, member by member, step by step."""
    with th.no_grad():
        steps = roll_out(problem.actor, problem.ensemble, problem.windows, noise)
        gains, weights = window_gains(problem, steps)
    found = expand(problem, steps, noise, gains, weights)
    assert found.F.shape == (E * M, H + 1, 2, 3) and not found.F[:, H].any()
    for e, m, t in [(0, 0, 0), (1, 4, 1), (2, 9, 2)]:
        w = e * M + m

        def step(z: np.ndarray, e: int = e, m: int = m, t: int = t) -> tuple[np.ndarray, float]:
            states, draws = steps.states[t].clone(), noise[t].clone()
            states[e, m], draws[e, m] = th.as_tensor(z[:2]), th.as_tensor(z[2:])
            with th.no_grad():
                actions, _ = problem.actor.sample(states, draws)
                predicted, reward = problem.ensemble.predict(states, actions)
                following = problem.ensemble.clip(predicted + problem.windows.state_residuals[t])
                going_on = problem.ensemble.continuation(states, actions, following)[e, m].log()
            earned = float(reward[e, m]) / float(problem.critic.unit) * float(weights[t, e, m])
            return following[e, m].numpy(), -earned - float(gains[t + 1 :, e, m].sum() * going_on)

        z = np.concatenate([steps.states[t, e, m].numpy(), noise[t, e, m].numpy()]).astype(np.float64)
        for i in range(3):
            shift = np.zeros(3)
            shift[i] = 1e-2
            (up, above), (down, below) = step(z + shift), step(z - shift)
            np.testing.assert_allclose(found.F[w, t, :, i], (up - down) / 2e-2, atol=2e-2)
            assert found.c[w, t, i] == pytest.approx((above - below) / 2e-2, abs=2e-2 * max(1.0, np.abs(found.c[w]).max()))
    np.testing.assert_allclose(found.C, found.C[:1].repeat(E * M, 0))
    assert np.linalg.eigvalsh(found.C[0]).min() > -1e-9


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
def test_the_shared_dual_variable_is_found_from_anywhere(beta: float) -> None:
    """Steps that stand alone, each with a quadratic cost of its noise alone: the tempered optimum in closed form."""
    rng = np.random.default_rng(6)
    W, T = 4, 2
    c, drawn = rng.normal(size=(W, T, 2)), rng.normal(size=(W, T, 1))
    C = np.broadcast_to(np.diag([0.0, 1.0]), (W, T, 2, 2)).copy()
    expansion = Expansion(np.zeros((W, T, 1, 2)), C, c)
    (_, k, S, kl, failed), found, divergence = solve(expansion, drawn, 0.2, beta)
    assert 0.9 * 0.2 <= divergence <= 0.2 and divergence == pytest.approx(kl.mean()) and (failed < 0).all()
    # noise w costs c (w - drawn) + (w - drawn)^2 / 2, and beta w^2 / 2 for leaving the policy
    np.testing.assert_allclose(k[..., 0], (drawn[..., 0] - c[..., 1]) / (1.0 + found), rtol=1e-6)
    np.testing.assert_allclose(S[..., 0, 0], found / (1.0 + found), rtol=1e-6)
