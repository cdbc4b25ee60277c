"""E[delta | s] by regressions that have not seen what they judge."""

import numpy as np
import pytest

from sb3_dpi.dual_ac.conditional_mean import RIDGES, Moments, conditional_mean, parts_of
from sb3_dpi.dual_ac.game import dual_weights
from sb3_dpi.dual_ac.windows import window_lengths, window_sums

SHAPES = [(240, 1), (120, 2), (80, 3), (60, 4), (40, 8)]


def rollout(T: int, N: int, seed: int = 0, window_length: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the states, where episodes end and the lengths of the windows."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(size=(T, N)) < 0.03
    ends[-1] = True
    return rng.normal(size=(T * N, 3)), ends, window_lengths(ends, window_length)


def test_regressions_are_ridge_regressions() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 2.0, rng.normal(size=50)
    slopes, constants = Moments.of(x, y).regressions()
    centred = x - x.mean(0)
    for ridge, slope, constant in zip(RIDGES[:-1], slopes, constants, strict=False):
        expected = np.linalg.solve(centred.T @ centred / 50 + ridge * np.eye(4), centred.T @ y / 50)
        np.testing.assert_allclose(slope, expected, rtol=1e-8)
        assert constant == pytest.approx(y.mean() - expected @ x.mean(0))
    np.testing.assert_array_equal(slopes[-1], 0.0)
    assert constants[-1] == pytest.approx(y.mean()), "the largest ridge leaves the mean"


def test_errors_are_those_on_the_samples_themselves() -> None:
    rng = np.random.default_rng(1)
    x, y, other_x, other_y = rng.normal(size=(30, 3)), rng.normal(size=30), rng.normal(size=(20, 3)), rng.normal(size=20)
    slopes, constants = (Moments.of(x[:10], y[:10]) + Moments.of(x[10:], y[10:])).regressions()
    errors = Moments.of(other_x, other_y).squared_errors(slopes, constants)
    expected = [np.sum((other_y - other_x @ slope - constant) ** 2) for slope, constant in zip(slopes, constants, strict=True)]
    np.testing.assert_allclose(errors, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts_share_no_step(shape: tuple[int, int]) -> None:
    """No window that a regression may see meets one that it judges."""
    _, _, lengths = rollout(*shape)
    part, alone = parts_of(lengths)
    assert part.max() + 1 >= 5 and 0.3 < alone.mean()
    steps = np.arange(shape[0])[:, None]
    for n in range(shape[1]):
        covers = (steps >= steps.T) & (steps < steps.T + lengths[:, n])  # step of the row by window of the column
        meet = covers.T.astype(int) @ covers.astype(int) > 0
        strangers = part[:, n][:, None] != part[:, n]
        assert not np.any(meet & strangers & alone[:, n])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_state_is_judged_by_what_followed_it(shape: tuple[int, int]) -> None:
    """Whatever is earned in a window, the estimate for its state is the same."""
    features, ends, lengths = rollout(*shape)
    rewards = np.random.default_rng(3).normal(size=shape) + features[:, 0].reshape(shape)
    before = conditional_mean(window_sums(rewards, ends, lengths, 0.9), features, lengths)
    for t, n in [(0, 0), (shape[0] // 2, shape[1] - 1), (shape[0] - 1, 0)]:
        changed = rewards.copy()
        changed[t : t + lengths[t, n], n] += 5.0
        after = conditional_mean(window_sums(changed, ends, lengths, 0.9), features, lengths)
        assert after[t, n] == pytest.approx(before[t, n], abs=1e-9)
        assert not np.allclose(after, before), "others have seen it"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_linear_is_found(shape: tuple[int, int]) -> None:
    features, _, _ = rollout(*shape)
    lengths = np.ones(shape, int)
    mean = (features @ np.array([1.0, -2.0, 0.0]) + 0.5).reshape(shape)
    noise = np.random.default_rng(4).normal(size=shape)
    np.testing.assert_allclose(conditional_mean(mean, 100.0 * features + 7.0, lengths), mean, atol=0.01)
    estimate = conditional_mean(mean + noise, features, lengths)
    assert np.std(estimate - mean) < 0.3 * np.std(noise)


@pytest.mark.parametrize("shape", [(60, 4), (40, 8)], ids=str)
def test_regressions_and_their_ridges_have_not_seen_what_they_judge(shape: tuple[int, int]) -> None:
    """By loops over the samples themselves."""
    _, _, lengths = rollout(*shape, window_length=3)
    rng = np.random.default_rng(8)
    features = rng.normal(size=(lengths.size, 12)) * 7.0 - 2.0
    delta = (features @ rng.normal(size=12) + 40.0 * rng.normal(size=lengths.size)).reshape(shape)
    part, alone = (array.reshape(-1) for array in parts_of(lengths))
    rows = [np.flatnonzero(alone & (part == name)) for name in range(part.max() + 1)]
    x, y = (features - features.mean(0)) / features.std(0), delta.reshape(-1)

    def regress(seen: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
        centred, mean = x[seen] - x[seen].mean(0), y[seen].mean()
        slope = np.linalg.solve(centred.T @ centred / len(seen) + ridge * np.eye(12), centred.T @ (y[seen] - mean) / len(seen))
        return slope, mean - slope @ x[seen].mean(0)

    expected, chosen = np.zeros(len(y)), set()
    for one in range(len(rows)):
        errors = np.zeros(len(RIDGES))
        for other in range(len(rows)):
            seen = np.concatenate([rows[name] for name in range(len(rows)) if name not in (one, other)])
            for i, ridge in enumerate(RIDGES[:-1] if other != one else []):
                slope, constant = regress(seen, ridge)
                errors[i] += np.square(y[rows[other]] - x[rows[other]] @ slope - constant).sum()
        best = int(np.argmin(errors[:-1]))
        chosen.add(best)
        slope, constant = regress(np.concatenate(rows[:one] + rows[one + 1 :]), RIDGES[best])
        expected[part == one] = x[part == one] @ slope + constant
    assert chosen & set(range(1, len(RIDGES) - 2)), "some ridge is neither the least nor the largest"
    np.testing.assert_allclose(conditional_mean(delta, features, lengths), expected.reshape(shape), rtol=1e-7, atol=1e-9)


def test_of_noise_the_mean_is_left() -> None:
    rng = np.random.default_rng(5)
    estimates = [
        conditional_mean(2.0 + rng.normal(size=(100, 8)), rng.normal(size=(800, 20)), np.ones((100, 8), int))
        for _ in range(20)
    ]
    assert np.std([estimate.mean() for estimate in estimates]) < 0.1
    assert np.mean([np.std(estimate) for estimate in estimates]) < 0.1, "twenty features explain little of nothing"


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (5, 1), (1, 3), (3, 2)], ids=str)
def test_short_rollouts(shape: tuple[int, int]) -> None:
    """Too few parts say nothing."""
    delta = np.random.default_rng(6).normal(size=shape)
    lengths = window_lengths(np.arange(shape[0])[:, None] + np.zeros(shape) == shape[0] - 1, 50)
    estimate = conditional_mean(delta, np.ones((delta.size, 2)), lengths)
    assert estimate.shape == shape and np.all(np.isfinite(estimate))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_units_do_not_matter(scale: float) -> None:
    features, _, lengths = rollout(40, 8)
    delta = np.random.default_rng(7).normal(size=(40, 8)) + features[:, 0].reshape(40, 8)
    plain = conditional_mean(delta, features, lengths)
    np.testing.assert_array_equal(conditional_mean(scale * delta, scale * features, lengths), scale * plain)


def standardized(delta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """:return: advantages, of mean zero and deviation one by the weights"""
    centred = delta - np.sum(weights * delta) / np.sum(weights)
    spread: np.ndarray = centred / np.sqrt(np.sum(weights * centred**2) / np.sum(weights))
    return spread


@pytest.mark.parametrize(("eta", "bias"), [(1.0, 0.57), (5.0, 0.17)])
def test_weights_do_not_bias_the_gradient(eta: float, bias: float) -> None:
    """One state, one step, delta = a ~ N(0, 1): the gradient by the logarithm of the standard deviation is zero. With weights
    from samples of delta it would be E[max(0, a) a (a^2 - 1)] = 1 over eta, and over the weights' mean; of standardised
    advantages .57 and .17."""
    rng = np.random.default_rng(8)
    gradients, wrong, told = [], [], []
    for _ in range(400):
        actions = rng.normal(size=(32, 8))
        lengths, score = np.ones(actions.shape, int), actions**2 - 1.0
        expected = conditional_mean(actions, np.ones((actions.size, 1)), lengths)
        gradients.append(np.mean(dual_weights(expected, float(actions.std()), eta) * actions * score))
        of_samples = dual_weights(actions, float(actions.std()), eta)
        wrong.append(np.mean(of_samples * actions * score))
        told.append(np.mean(of_samples * standardized(actions, of_samples) * score))
    error = np.std(gradients) / 20.0
    assert abs(np.mean(gradients)) < 3.0 * error and error < 0.02
    assert np.mean(wrong) == pytest.approx(1.0 / (eta + 1.0 / np.sqrt(2.0 * np.pi)), rel=0.1)
    assert np.mean(told) == pytest.approx(bias, abs=0.02)


@pytest.mark.parametrize("n_envs", [1, 8])
def test_weights_and_gradient_of_a_finite_game(n_envs: int) -> None:
    """Windows of one step in a game of three states and two actions, against Theorem 6 and Eq. 10 with exact expectations."""
    rng = np.random.default_rng(9)
    P, V = rng.dirichlet(np.ones(3), size=(3, 2)), np.array([0.5, -1.0, 0.2])
    R = rng.normal(size=(3, 2)) + np.array([[1.0], [-1.0], [0.0]])
    pi, gamma, steps = rng.dirichlet(np.ones(2), size=3), 0.7, 40_000 // n_envs
    states, actions, then = (np.zeros((steps, n_envs), int) for _ in range(3))
    state = np.zeros(n_envs, int)
    for t in range(steps):
        action = (rng.uniform(size=n_envs) > pi[state, 0]).astype(int)
        following = (rng.uniform(size=(n_envs, 1)) > P[state, action].cumsum(1)[:, :2]).sum(1)
        states[t], actions[t], then[t] = state, action, following
        state = following
    advantage = R + gamma * P @ V - V[:, None]
    exact = (pi * advantage).sum(1)
    delta = R[states, actions] + gamma * V[then] - V[states] + rng.normal(size=states.shape)
    estimate = conditional_mean(delta, np.eye(3)[states.reshape(-1)], np.ones(states.shape, int))
    for s in range(3):
        np.testing.assert_allclose(estimate[states == s], exact[s], atol=0.06)
    occupancy = np.bincount(states.reshape(-1)) / states.size
    alpha = np.maximum(exact, 0.0) / delta.std() + 1.0
    alpha /= occupancy @ alpha
    weights = dual_weights(estimate, float(delta.std()), 1.0)
    # by the logits: grad log pi(a | s) = e_a - pi(s)
    score = np.eye(2)[actions] - pi[states]
    of_steps = (weights * delta)[..., None] * score
    sampled = np.array([np.mean(of_steps * (states == s)[..., None], axis=(0, 1)) for s in range(3)])
    centred = pi * (advantage - exact[:, None])
    np.testing.assert_allclose(sampled, (occupancy * alpha)[:, None] * centred, atol=0.02)
    assert np.ptp(alpha) > 0.2 and np.max(np.abs(centred)) > 0.1, "it has something to tell"
