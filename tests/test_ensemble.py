"""The learned model: networks side by side, units, fit, residuals, data in the order of time."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from memories import ListMemory
from torch import nn

from sb3_dpi.trajopt.discounting import discount_for_time_limit, lambda_returns
from sb3_dpi.world_model import critic as critic_module
from sb3_dpi.world_model.actor import SquashedGaussian, gaussian_kl
from sb3_dpi.world_model.critic import CriticData, Learner, RealSteps, SoftTwinQ
from sb3_dpi.world_model.ensemble import DivergedError, Ensemble
from sb3_dpi.world_model.frozen import FrozenEnsemble
from sb3_dpi.world_model.imagination import make_windows, real_batch, roll_out
from sb3_dpi.world_model.mlp import StackedMLP
from sb3_dpi.world_model.rollouts import RolloutOptions, RolloutPool, rollouts
from sb3_dpi.world_model.types import Transitions, returns_to_go, stretch_ends, successors, take_without_outliers


def system(n: int = 400, seed: int = 0, length: int = 20) -> ListMemory:
    """:return: episodes of a nonlinear system in units far from one; it ends where the first number is large"""
    rng = np.random.default_rng(seed)
    states, actions, rewards, following, terminated, ends = [], [], [], [], [], []
    x, t = rng.normal(size=2), 0
    for i in range(n):
        u = rng.uniform(-1.0, 1.0, 1)
        y = x + 0.3 * np.array([x[1], np.sin(x[0]) + 2.0 * u[0]]) - 0.1 * x
        t += 1
        dead = bool(abs(y[0]) > 2.5)
        states.append(x)
        following.append(y)
        actions.append(u)
        rewards.append(float(-(x @ x) - u @ u))
        terminated.append(dead)
        ends.append(dead or t >= length or i == n - 1)
        x, t = (rng.normal(size=2), 0) if ends[-1] else (y, t)
    unit = np.array([100.0, 0.01])
    before = np.array(states) * unit, np.array(actions), 50.0 * np.array(rewards)
    return ListMemory(Transitions(*before, np.array(following) * unit, np.array(terminated)), np.array(ends))


@pytest.fixture(scope="module")
def fitted() -> tuple[Ensemble, ListMemory]:
    th.manual_seed(0)
    memory = system()
    ensemble = Ensemble(2, 1, n_members=3, width=32, learning_rate=1e-3)
    ensemble.observe(memory.data)
    ensemble.fit(memory, 800, 64, np.random.default_rng(0))
    return ensemble, memory


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_stack_is_its_members(layer_norm: bool) -> None:
    stack = StackedMLP(3, (4, 8, 8, 2), layer_norm)
    inputs = th.randn(5, 4)
    for e in range(3):
        hidden = inputs
        for i, (weight, bias) in enumerate(stack.layers()):
            hidden = hidden @ weight[e] + bias[e]
            if i < 2:
                hidden = nn.functional.hardswish(nn.functional.layer_norm(hidden, (8,)) if layer_norm else hidden)
        th.testing.assert_close(stack(inputs)[e], hidden)
        th.testing.assert_close(stack(th.randn(3, 5, 4).index_copy(0, th.tensor([e]), inputs[None]))[e], hidden)
    for activation in (nn.Hardswish, nn.Tanh):
        other = StackedMLP(3, (4, 8, 8, 2), layer_norm, activation_fn=activation)
        th.testing.assert_close(other.frozen()(inputs), other(inputs).detach())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_rescaled_networks_are_the_same_functions(layer_norm: bool) -> None:
    stack, inputs = StackedMLP(2, (4, 8, 8, 2), layer_norm), th.randn(5, 4)
    expected = stack(inputs).detach()
    scale, shift = th.tensor([2.0, 0.5, 3.0]), th.tensor([1.0, -2.0, 0.3])
    stack.rescale_inputs(scale, shift)
    moved = th.cat([(inputs[:, :3] - shift) / scale, inputs[:, 3:]], dim=1)
    th.testing.assert_close(stack(moved).detach(), expected, atol=1e-5, rtol=1e-4)
    stack.rescale_outputs(th.tensor([10.0, 0.1]), th.tensor([5.0, -1.0]))
    restored = stack(moved).detach() * th.tensor([10.0, 0.1]) + th.tensor([5.0, -1.0])
    th.testing.assert_close(restored, expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------- policy


def test_log_probabilities_are_those_of_a_squashed_gaussian() -> None:
    actor = SquashedGaussian(3, 2, (8, 8))
    states, noise = th.randn(6, 3), th.randn(6, 2)
    actions, log_probs = actor.sample(states, noise)
    mean, log_std = actor(states)
    base = th.distributions.Normal(mean, log_std.exp())
    squashed = th.distributions.TransformedDistribution(base, [th.distributions.TanhTransform(cache_size=1)])
    th.testing.assert_close(log_probs, squashed.log_prob(actions).sum(-1), atol=1e-3, rtol=1e-3)


def test_first_standard_deviation() -> None:
    for first in (-2.0, -0.7, 0.2):
        actor = SquashedGaussian(3, 2, (8, 8), log_std_init=first)
        with th.no_grad():
            actor.network.layers()[-1][0].zero_()
        assert actor(th.randn(4, 3))[1].detach().numpy() == pytest.approx(first, abs=1e-5)
    assert SquashedGaussian(3, 2, (8, 8), std_bounds=(0.3, 0.3))(th.randn(4, 3))[1].exp().detach().numpy() == pytest.approx(
        0.3
    )


def test_kl_of_gaussians() -> None:
    mean, log_std, other_mean, other_log_std = th.randn(4, 5, 2).unbind(0)
    expected = th.distributions.kl_divergence(
        th.distributions.Normal(mean, log_std.exp()), th.distributions.Normal(other_mean, other_log_std.exp())
    ).sum(-1)
    th.testing.assert_close(gaussian_kl(mean, log_std, other_mean, other_log_std), expected)


# ---------------------------------------------------------------------- data


def test_discount_follows_time_limits() -> None:
    assert discount_for_time_limit(50) == pytest.approx(0.95)
    assert discount_for_time_limit(1000) == 0.99
    assert discount_for_time_limit(1) == 0.5
    assert discount_for_time_limit(0) == 0.99, "no limit was met"


def test_returns_to_go() -> None:
    ends = np.array([False, True, False, True, False, False, True])
    dead = np.array([False, True, False, False, False, False, False])
    zeros = np.zeros((7, 1))
    rewards = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    beyond = 6.5 / 0.5
    returns = returns_to_go(Transitions(zeros, zeros, rewards, zeros, dead), ends, 0.5, 6.5)
    np.testing.assert_allclose(returns[:4], [2.0, 2.0, 3.0 + 0.5 * (4.0 + 0.5 * beyond), 4.0 + 0.5 * beyond])
    np.testing.assert_allclose(returns[6], 7.0 + 0.5 * beyond)


def test_lambda_returns() -> None:
    """As the recursion says: nothing behind a death, V alone behind a cut, both within an episode."""
    rewards, values = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    dead, ends = np.array([0, 1, 0, 0, 0], bool), np.array([0, 1, 0, 1, 1], bool)
    returns = lambda_returns(rewards, np.where(dead, 0.0, values), ends | dead, 0.9, 0.8)
    third = 4.0 + 0.9 * 40.0
    expected = [1.0 + 0.9 * (0.2 * 10.0 + 0.8 * 2.0), 2.0, 3.0 + 0.9 * (0.2 * 30.0 + 0.8 * third), third, 5.0 + 0.9 * 50.0]
    np.testing.assert_allclose(returns, expected)


def test_successors() -> None:
    memory = system(50, length=7)
    steps, alive = successors(memory, np.arange(50), 5)
    for row in range(50):
        end = row + int(np.argmax(memory.ends[row:]))
        assert alive[:, row].tolist() == [row + t <= end for t in range(5)]
        assert steps[:, row].tolist() == [min(row + t, end) for t in range(5)]
    np.testing.assert_array_equal(stretch_ends(memory, memory.newest(20)), memory.ends[-20:])


# ---------------------------------------------------------------------- the model


def test_it_predicts_what_it_has_not_seen(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, _ = fitted
    state, reward = ensemble.r_squared(system(200, seed=1).data)
    assert state > 0.95 and reward > 0.8
    unseen = system(400, seed=2).data
    assert unseen.terminated.sum() > 5
    chances = ensemble.continuation(*(th.zeros(1),) * 2, ensemble.standardize(unseen.next_states)).detach().numpy()
    assert chances[unseen.terminated].mean() < 0.3 and chances[~unseen.terminated].mean() > 0.9


def test_what_is_explained_is_a_share_of_the_variance() -> None:
    """Of changes, the median of an odd number of them, and of the reward, by hand."""
    rng, ensemble = np.random.default_rng(3), Ensemble(3, 1, n_members=2, width=16)
    states = rng.normal(size=(40, 3)) * [1.0, 10.0, 0.1]
    following = states + rng.normal(size=(40, 3)) * [0.1, 1.0, 0.5]
    data = Transitions(states, rng.uniform(-1.0, 1.0, (40, 1)), rng.normal(size=40), following, np.zeros(40, bool))
    ensemble.observe(data)
    with th.no_grad():
        ensemble.networks.flat.mul_(th.linspace(1.0, 3.0, ensemble.networks.flat.shape[1]))
        predicted, rewards = ensemble.predict(
            ensemble.standardize(states).expand(2, -1, -1), th.as_tensor(data.actions).float().expand(2, -1, -1)
        )
    means = np.mean([ensemble.restore(part) for part in predicted], axis=0)
    shares = 1.0 - np.square(following - means).mean(0) / (following - states).var(0)
    earned = 1.0 - np.square(data.rewards - rewards.mean(0).numpy()).mean() / data.rewards.var()
    assert len(set(np.round(shares, 2))) == 3
    assert ensemble.r_squared(data) == pytest.approx((np.median(shares), earned), rel=1e-3)


def test_the_loss_of_a_fit_is_the_mean_over_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over minibatches, by hand for networks that learn nothing; in torch and compiled."""
    rng, memory = np.random.default_rng(0), system(60)
    ensemble = Ensemble(2, 1, n_members=3, width=8, learning_rate=0.0)
    ensemble.observe(memory.data)
    rows = rng.integers(60, size=2 * 3 * 5)
    data = memory.take(rows)
    inputs, targets = ensemble._inputs(data).view(2, 3, 5, -1), 3.0 * ensemble._targets(data).view(2, 3, 5, -1)
    expected = 0.0
    for k, e in np.ndindex(2, 3):
        errors = (ensemble.networks(inputs[k])[e] - targets[k, e]).abs().detach().numpy()
        expected += np.where(errors < 1.0, 0.5 * errors**2, errors - 0.5).mean() / 3.0
    assert ensemble._descend_on(inputs, targets) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(StackedMLP, "is_compiled", False)
    assert ensemble._descend_on(inputs, targets) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_failures", [0, 1, 2])
def test_a_fit_that_diverges_begins_anew_once(n_failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, memory = Ensemble(2, 1, n_members=2, width=8), system(60)
    ensemble.observe(memory.data)
    losses = iter([np.nan] * n_failures + [0.5])
    monkeypatch.setattr(ensemble, "_descend", lambda *_: next(losses))
    before = ensemble.networks.flat.detach().clone()
    if n_failures < 2:
        assert ensemble.fit(memory, 1, 4, np.random.default_rng(0)) == 0.5
    else:
        with pytest.raises(DivergedError, match="diverged twice"):
            ensemble.fit(memory, 1, 4, np.random.default_rng(0))
    assert th.equal(ensemble.networks.flat, before) == (n_failures == 0)


def test_a_known_end_is_believed(fitted: tuple[Ensemble, ListMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in the environment's units, of the states behind the step."""
    ensemble, memory = fitted
    data = memory.take(np.arange(50))
    bound = float(np.median(data.next_states[:, 0]))
    monkeypatch.setattr(ensemble, "known_end", lambda states, actions, following: following[:, 0] > bound + 1e-4)
    states, following = ensemble.standardize(data.states), ensemble.standardize(data.next_states)
    goes_on = ensemble.continuation(states, th.as_tensor(data.actions).float(), following)
    np.testing.assert_array_equal(goes_on.numpy(), (data.next_states[:, 0] <= bound + 1e-4).astype(np.float32))


def test_units_of_predictions(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, data = fitted[0], fitted[1].data
    states, actions = ensemble.standardize(data.states), th.as_tensor(data.actions, dtype=th.float32)
    with th.no_grad():
        following, rewards = ensemble.predict(states, actions)
    predicted = ensemble.restore(following.mean(0))
    error = np.abs(predicted - data.next_states).mean(0)
    assert np.all(error < 0.1 * np.abs(data.next_states - data.states).mean(0))
    assert np.abs(rewards.mean(0).numpy() - data.rewards).mean() < 0.2 * data.rewards.std()
    np.testing.assert_allclose(ensemble.restore(states), data.states, atol=1e-3)


@th.no_grad()
def test_frozen_it_predicts_the_same(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, memory = fitted
    frozen = FrozenEnsemble(ensemble)
    states, actions = ensemble.standardize(5.0 * memory.data.states), th.as_tensor(memory.data.actions, dtype=th.float32)
    for rows in (states, actions), (states.expand(3, -1, -1), actions.expand(3, -1, -1)):
        following, rewards = ensemble.predict(*rows)
        predicted, earned = frozen.predict(*rows)
        th.testing.assert_close((predicted, earned), (following, rewards))
        limited = ensemble.clip(following)
        assert not th.equal(limited, following)
        th.testing.assert_close(frozen.clip(predicted), limited)
    assert not frozen.never_ends  # it has seen ends
    assert FrozenEnsemble(Ensemble(2, 1)).never_ends


def test_residuals_make_predictions_exact(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, memory = fitted
    rows = np.arange(60)
    data = memory.take(rows)
    residuals = ensemble.residuals(data)
    shape = (3, 20, -1)
    states, actions = ensemble.standardize(data.states).view(shape), th.as_tensor(data.actions, dtype=th.float32).view(shape)
    with th.no_grad():
        following, rewards = ensemble.predict(states, actions)
    real = ensemble.standardize(data.next_states).view(shape)
    th.testing.assert_close(following + residuals.states, real, atol=1e-5, rtol=1e-5)
    th.testing.assert_close((rewards + residuals.rewards).double().flatten(), th.as_tensor(data.rewards), atol=1e-3, rtol=1e-4)


def test_units_are_those_of_all_that_was_seen() -> None:
    """Part by part as at once; slow changes are tested below."""
    memory, whole, parts = system(300), Ensemble(2, 1, 2, 8), Ensemble(2, 1, 2, 8)
    whole.observe(memory.data)
    for rows in np.array_split(np.random.default_rng(0).permutation(300), 4):
        parts.observe(memory.take(rows))
    changes = memory.data.next_states - memory.data.states
    for ensemble in (whole, parts):
        np.testing.assert_allclose(ensemble.state_mean, memory.data.states.mean(0), rtol=1e-9)
        np.testing.assert_allclose(ensemble.change_mean[:-1], changes.mean(0), rtol=1e-6, atol=1e-12)
        assert float(ensemble.n_deaths) == memory.data.terminated.sum() > 0
    np.testing.assert_allclose(whole.state_std, memory.data.states.std(0), rtol=1e-9)
    np.testing.assert_allclose(parts.state_std, whole.state_std, rtol=1e-9)
    np.testing.assert_allclose(parts.change_std, whole.change_std, rtol=1e-9)
    np.testing.assert_allclose(parts.state_high, whole.state_high, rtol=1e-9)
    assert all(value.dtype != th.bool for value in whole.state_dict().values())


def test_units_change_slowly_and_no_prediction_with_them(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, data = copy.deepcopy(fitted[0]), fitted[1].data
    states = data.states[:10]
    actions = th.as_tensor(data.actions[:10], dtype=th.float32)

    def predict() -> tuple[np.ndarray, np.ndarray]:
        with th.no_grad():
            following, rewards = ensemble.predict(ensemble.standardize(states), actions)
        return ensemble.restore(following[1]), rewards[1].numpy()

    expected, std = predict(), ensemble.state_std.clone()
    scaled = Transitions(5.0 * data.states, data.actions, 9.0 * data.rewards, 5.0 * data.next_states, data.terminated)
    change = ensemble.observe(scaled)
    th.testing.assert_close(ensemble.state_std, 1.5 * std)
    th.testing.assert_close(change.scale, th.full((2,), 1.5))
    for one, two in zip(predict(), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-3 * np.abs(two).max())


def observed(memory: ListMemory, block: int = 100) -> Ensemble:
    """:return: a model that has followed the steps block by block, and knew those before"""
    ensemble = Ensemble(2, 1, 2, 8)
    for end in range(block, len(memory) + 1, block):
        known = ListMemory(memory.take(np.arange(end)), memory.ends[:end])
        ensemble.observe(take_without_outliers(known, known.newest(block)))
    return ensemble


@pytest.mark.parametrize("begins", [0, 200])
@pytest.mark.parametrize("is_last", [False, True])
def test_one_wrong_observation_moves_no_unit(begins: int, is_last: bool) -> None:
    """In the first block or a later one, and at the end of an episode, where it is no state of a later step."""
    memory, wrong = system(400), system(400)
    row = begins + int(np.flatnonzero(memory.ends[begins:] == is_last)[0])
    wrong.data.next_states[row] = [1e9, 1e3]
    if not is_last:
        wrong.data.states[row + 1] = [1e9, 1e3]
    expected, found = observed(memory), observed(wrong)
    for name in ("state_mean", "state_std", "change_mean", "change_std", "state_low", "state_high"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0.3, atol=0.1)


def test_units_follow_a_system_that_falls_late() -> None:
    """What hardly varied until then is no outlier when it goes on being large."""
    memory, plain = system(1000), Ensemble(2, 1, 2, 8)
    small = np.where(np.arange(1000) < 800, 1e-4, 1.0)[:, None]
    late = replace(memory.data, states=small * memory.data.states, next_states=small * memory.data.next_states)
    for rows in np.split(np.arange(1000), 10):
        plain.observe(late.take(rows))
    ensemble = observed(ListMemory(late, memory.ends))
    for name in ("state_mean", "state_std", "change_mean", "change_std", "state_low", "state_high"):
        assert th.equal(getattr(ensemble, name), getattr(plain, name))


def test_constant_dimensions() -> None:
    data = system(50).data
    before = data.states * [1.0, 0.0], data.actions, 0.0 * data.rewards
    flat = Transitions(*before, data.next_states * [1.0, 0.0], data.terminated)
    ensemble = Ensemble(2, 1, 2, 8)
    ensemble.observe(flat)
    assert np.isfinite(ensemble.fit(ListMemory(flat, data.terminated), 5, 8, np.random.default_rng(0)))
    assert bool(th.isfinite(ensemble.residuals(flat).states).all())


# ---------------------------------------------------------------------- imagination


def test_windows_follow_the_real_trajectory(fitted: tuple[Ensemble, ListMemory]) -> None:
    """With the real actions, corrected windows are the real ones, for every member."""
    ensemble, memory = fitted
    data = memory.data

    class Replay(SquashedGaussian):
        def sample(self, states: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            return noise, noise.sum(-1)

    rows = np.flatnonzero([not memory.ends[i : i + 4].any() for i in range(len(data) - 4)])[:12]
    states = ensemble.standardize(data.states)
    windows = make_windows(ensemble, memory, rows, 4, True)
    actions = th.as_tensor(data.actions, dtype=th.float32)
    draws = th.stack([actions[rows + t].view(3, 4, 1) for t in range(5)])
    with th.no_grad():
        imagined = roll_out(Replay(2, 1, (8, 8)), ensemble, windows, draws)
    for t in range(5):
        th.testing.assert_close(imagined.states[t].view(12, 2), states[rows + t], atol=1e-4, rtol=1e-4)
    rewards = th.as_tensor(np.stack([data.rewards[rows + t] for t in range(4)]), dtype=th.float32)
    th.testing.assert_close(imagined.rewards.view(4, 12), rewards, atol=2e-2, rtol=1e-3)


def test_corrections_end_with_the_episode(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, memory = fitted
    last = np.flatnonzero(memory.ends)[:3]
    windows = make_windows(ensemble, memory, last, 3, True)
    assert bool((windows.state_residuals[0] != 0.0).any()) and not bool((windows.state_residuals[1:] != 0.0).any())
    assert not bool((windows.reward_residuals[1:] != 0.0).any())


def test_windows_are_dealt_out(fitted: tuple[Ensemble, ListMemory]) -> None:
    windows = make_windows(*fitted, np.arange(24), 2, True)
    parts = windows.split(4)
    assert [part.states.shape for part in parts] == [(3, 2, 2)] * 4
    th.testing.assert_close(th.cat([part.state_residuals for part in parts], 2), windows.state_residuals)
    th.testing.assert_close(th.cat([part.reward_residuals for part in parts], 2), windows.reward_residuals)


def test_rollouts_of_one_step_are_the_policy_s(fitted: tuple[Ensemble, ListMemory]) -> None:
    """Near the real steps for the real actions, and under every member."""
    ensemble, memory = fitted
    actor = SquashedGaussian(2, 1, (8, 8))
    pool = rollouts(ensemble, actor, memory, np.random.default_rng(0), 600, RolloutOptions(1, 0.1, 0.9, corrected=True))
    assert len(pool) == 600 and pool.actions.abs().max() <= 1.0
    x = ensemble.restore(pool.states) / [100.0, 0.01]
    u = pool.actions.numpy()
    true = x + 0.3 * np.stack([x[:, 1], np.sin(x[:, 0]) + 2.0 * u[:, 0]], 1) - 0.1 * x
    error = ensemble.restore(pool.next_states) / [100.0, 0.01] - true
    plain = rollouts(ensemble, actor, memory, np.random.default_rng(0), 600, RolloutOptions(1, 0.1, 0.9))
    uncorrected = ensemble.restore(plain.next_states) / [100.0, 0.01] - true
    assert np.abs(error).mean() < 0.7 * np.abs(uncorrected).mean()
    rewards = 50.0 * (-(x**2).sum(1) - (u**2).sum(1))
    assert np.abs(pool.rewards.numpy() - rewards).mean() < 0.1 * rewards.std()


def test_rollouts_of_several_steps(fitted: tuple[Ensemble, ListMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    """The discounted soft rewards to a rollout's end, as a loop over its steps adds them up."""
    ensemble, data = fitted[0], fitted[1].data
    monkeypatch.setattr(ensemble, "known_end", lambda states, actions, following: th.zeros(len(states), dtype=th.bool))
    actor, gamma, temperature, length, m = SquashedGaussian(2, 1, (8, 8)), 0.9, 0.3, 4, 5
    n = length * ensemble.n_members * m
    pool = rollouts(ensemble, actor, fitted[1], np.random.default_rng(3), n, RolloutOptions(length, temperature, gamma))
    assert len(pool) == length * ensemble.n_members * m
    rng = np.random.default_rng(3)
    rows = rng.integers(len(data), size=ensemble.n_members * m)
    noise = rng.standard_normal((length + 1, ensemble.n_members, m, 1)).astype(np.float32)
    states, rewards, log_probs = ensemble.standardize(data.states[rows]).view(ensemble.n_members, m, 2), [], []
    with th.no_grad():
        for t in range(length):
            actions, log_prob = actor.sample(states, th.as_tensor(noise[t]))
            states, reward = ensemble.predict(states, actions)
            states = ensemble.clip(states)
            rewards.append(reward)
            log_probs.append(log_prob)
    for t in range(length):
        left = range(length - t)
        soft = sum(gamma**i * (rewards[t + i] - temperature * log_probs[t + i] * (i > 0)) for i in left)
        mine = slice(t * ensemble.n_members * m, (t + 1) * ensemble.n_members * m)
        th.testing.assert_close(pool.rewards[mine], soft.flatten(), rtol=1e-4, atol=1e-4)
        th.testing.assert_close(pool.next_states[mine], states.flatten(0, 1), rtol=1e-4, atol=1e-4)
        th.testing.assert_close(pool.continuation[mine], th.full((ensemble.n_members * m,), gamma ** (length - t - 1)))


# ---------------------------------------------------------------------- the critic


def test_real_steps_as_a_critic_sees_them(fitted: tuple[Ensemble, ListMemory]) -> None:
    ensemble, memory = fitted
    batch = real_batch(ensemble, memory.data, 4.0)
    np.testing.assert_allclose(ensemble.restore(batch.states), memory.data.states, atol=1e-3)
    np.testing.assert_allclose(ensemble.restore(batch.next_states), memory.data.next_states, atol=1e-3)
    np.testing.assert_allclose(4.0 * batch.rewards.numpy(), memory.data.rewards, rtol=1e-5)
    np.testing.assert_allclose(batch.actions, memory.data.actions, rtol=1e-5)
    assert batch.continuation.tolist() == [0.0 if ended else 1.0 for ended in memory.data.terminated]


def test_the_critic_solves_a_small_process() -> None:
    """Two states in turn, no choice: the soft values are known."""
    th.manual_seed(0)
    states = np.array([[-1.0], [1.0]] * 50)
    rewards, zeros = np.array([1.0, 0.0] * 50), np.zeros(100, dtype=bool)
    actions = np.random.default_rng(1).uniform(-1.0, 1.0, (100, 1))
    data, ends = Transitions(states, actions, rewards, -states, zeros), np.arange(100) == 99
    ensemble, actor = Ensemble(1, 1, 2, 8), SquashedGaussian(1, 1, (8, 8))
    ensemble.observe(data)
    critic = SoftTwinQ(1, 1, (16, 16), learning_rate=3e-3, real_fraction=0.5)
    critic.follow_rewards(rewards, returns_to_go(data, ends, 0.8, 0.5))
    memory, unit = ListMemory(data, ends), float(critic.unit)
    imagined = RolloutPool(lambda _: real_batch(ensemble, data, unit), len(data))
    both = CriticData(memory, ensemble, RealSteps(memory, ensemble, unit), imagined)
    rng = np.random.default_rng(0)
    for _ in range(30):
        update = critic.learn(both, 50, 16, Learner(actor, 0.0, 0.8, 0.1), rng)
    values = critic(ensemble.standardize(np.array([[-1.0], [1.0]])), th.zeros(2, 1)).detach().numpy() * float(critic.unit)
    np.testing.assert_allclose(values, [1.0 / (1.0 - 0.64), 0.8 / (1.0 - 0.64)], atol=0.1)
    assert update.loss < 1e-3


def test_real_steps_are_drawn_evenly(fitted: tuple[Ensemble, ListMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, memory = fitted
    monkeypatch.setattr(critic_module, "DRAWN_AT_ONCE", 1000)
    real, rng = RealSteps(memory, ensemble, 2.0), np.random.default_rng(0)
    drawn = [real.draw(n, rng) for n in (300, 300, 300, 300, 1500)]
    assert [len(batch) for batch in drawn] == [300, 300, 300, 300, 1500]
    seen = ensemble.restore(th.cat([batch.states for batch in drawn]))
    rows = np.argmin(np.abs(seen[:, None, 0] - memory.data.states[None, :, 0]), axis=1)
    counts = np.bincount(rows, minlength=len(memory))
    assert counts.max() < 25 and (counts > 0).mean() > 0.97, "400 rows, 2700 draws"
    rewards = th.cat([batch.rewards for batch in drawn]).numpy()
    np.testing.assert_allclose(rewards, 0.5 * memory.data.rewards[rows], rtol=1e-5)
