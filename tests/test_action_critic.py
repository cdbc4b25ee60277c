"""Dual-AC's critic of actions, against closed forms."""

import copy
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_dual_ac as small
from dummy_envs import ITERATION as STEPS
from dummy_envs import vec_env
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_dpi import DualAC
from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.dual_ac import actor
from sb3_dpi.dual_ac import memory as memories
from sb3_dpi.dual_ac.action_critic import ActionCritic, Guess, suits
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.judgement import judge, trust_in_samples
from sb3_dpi.dual_ac.memory import Memory
from sb3_dpi.dual_ac.policies import MlpPolicy
from sb3_dpi.dual_ac.windows import following_rows, window_lengths
from sb3_dpi.trajopt.types import FloatArray

GAMMA, STD = 0.5, 0.6
SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


def policy(n_inputs: int = 3) -> ActorCriticPolicy:
    th.manual_seed(0)
    made = MlpPolicy(spaces.Box(-9.0, 9.0, (n_inputs,), np.float32), SPACE, lambda _: 1e-3, np.log(STD))
    made.set_standardization(np.zeros(n_inputs), np.ones(n_inputs))
    return made


def rollout(actions: FloatArray, rewards: FloatArray, observations: FloatArray | None = None, dies: bool = False) -> Batch:
    """Of one environment, whose rows are the states of the steps and the one behind them."""
    T = len(actions)
    terminated = np.full((T, 1), dies)
    ends = terminated.copy()
    ends[-1] = True
    following = following_rows(terminated, np.zeros_like(terminated))
    seen = np.zeros((T + 1 - dies, 3)) if observations is None else observations
    return Batch(
        th.as_tensor(seen, dtype=th.float32),
        th.as_tensor(actions, dtype=th.float32),
        rewards.reshape(T, 1),
        following,
        ends,
        window_lengths(ends, 4),
    )


# ---------------------------------------------------------------------- the gradient


def test_what_q_knows_is_not_measured_again() -> None:
    """The reward is the action: with the right Q nothing is left but what Q says, and V, which is wrong, has no part."""
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(8, 2))
    batch = rollout(actions, actions[:, 0])
    guess = Guess(np.zeros(9), actions[:, :1])
    judged = judge(batch, rng.normal(size=9), np.ones((8, 1)), GAMMA, "causal", guess)
    np.testing.assert_allclose(judged.advantages, actions[:, :1], atol=1e-12)
    np.testing.assert_allclose(judged.guessed, actions[:, :1])
    without = judge(batch, np.zeros(9), np.ones((8, 1)), GAMMA, "averaged")
    assert np.abs(without.advantages - actions[:, :1]).max() > 0.1, "the actions behind one are noise"


@pytest.mark.parametrize("gradient", ["causal", "averaged", "literal"])
def test_steps_count_by_the_windows_that_cover_them(gradient: str) -> None:
    """By hand: discounted weights of the windows, with a mean of one; all alike where the steps are averaged."""
    rng = np.random.default_rng(3)
    batch, weights = rollout(np.zeros((9, 2)), np.zeros(9)), rng.uniform(0.2, 2.0, (9, 1))
    covered = np.zeros((9, 1))
    for start in range(9):
        for t in range(start, start + batch.lengths[start, 0]):
            covered[t] += GAMMA ** (t - start) * weights[start]
    judged = judge(batch, rng.normal(size=10), weights, GAMMA, gradient)
    assert np.ptp(covered) > 0.1
    np.testing.assert_allclose(judged.shares, covered / covered.mean() if gradient == "causal" else 1.0)


def test_a_wrong_q_leaves_the_gradient_what_it_is() -> None:
    """E[a Psi] + d/dm E_a[Q] is one in the mean of the action, whatever Q says, where the reward is the action."""
    rng, n = np.random.default_rng(1), 40_000
    actions = rng.normal(size=(n, 1))
    batch = rollout(actions, actions[:, 0], np.zeros((n + 1, 1)))
    for slope in (0.0, 3.0, -1.0):
        judged = judge(batch, np.zeros(n + 1), np.ones((n, 1)), GAMMA, "causal", Guess(np.zeros(n + 1), slope * actions))
        rest = (judged.advantages - judged.guessed) * judged.shares
        assert float((actions * rest).mean()) + slope == pytest.approx(1.0, abs=0.08)


def test_what_is_left_is_measured_by_the_better_v() -> None:
    """The mixture of least variance: all of the right one, half of each where both are as wrong the other way."""
    right, wrong = np.zeros(5), np.array([1.0, -1.0, 2.0, -2.0, 0.5])
    batch = rollout(np.zeros((4, 2)), np.zeros(4))
    none = np.zeros((4, 1))
    for one, other in ((right, wrong), (wrong, right), (wrong, -wrong)):
        judged = judge(batch, one, np.ones((4, 1)), GAMMA, "averaged", Guess(other, none))
        assert np.ptp(judged.advantages) < 1e-12


def test_the_bound_holds_on_average_over_sampled_and_imagined_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the closed form for Gaussians; of the objective the imagined states have their own part."""
    asked: list[Any] = []
    monkeypatch.setattr(actor, "natural_gradient_step", lambda *arguments: asked.append(arguments))
    made, sampled, more = policy(), th.randn(20, 3), th.randn(50, 3)
    actions, factors = th.randn(20, 2), th.randn(20)
    imagined: Any = SimpleNamespace(observations=more, gain=lambda distribution: distribution.mode().square().sum())
    with th.no_grad():
        made.action_net.weight.normal_()
        old = [made.get_distribution(states).distribution.mean.clone() for states in (sampled, more)]
        std, log_prob = made.log_std.exp().clone(), made.get_distribution(sampled).log_prob(actions)
        actor.improve(made, sampled, actions, factors, 0.1, None, imagined)
        _, objective, kl = asked[0][:3]
        assert float(kl()) == pytest.approx(0.0, abs=1e-6)
        made.action_net.weight.mul_(1.3)
        made.log_std.add_(0.2)
        new = [made.get_distribution(states).distribution.mean for states in (sampled, more)]
        apart = (th.cat(new) - th.cat(old)).square()
        expected = (0.2 + (std.square() + apart) / (2.0 * made.log_std.exp().square()) - 0.5).sum(1).mean()
        assert float(expected) > 0.1 and float(kl()) == pytest.approx(float(expected), rel=1e-4)
        ratio = (made.get_distribution(sampled).log_prob(actions) - log_prob).exp()
        assert float(objective()) == pytest.approx(float((ratio * factors).mean() + new[1].square().sum()), rel=1e-4)


def test_samples_are_believed_as_far_as_they_outweigh_their_noise() -> None:
    """n var(Q) / (n var(Q) + directions var(rest)), in any unit."""
    said, rest, even = np.tile([1.0, -1.0], 50), np.tile([3.0, 3.0, 7.0, 7.0], 25), np.ones(100)
    for unit in (1.0, 2.0**-40):
        assert trust_in_samples(unit * rest, unit * said, even, 25) == pytest.approx(100.0 / (100.0 + 25.0 * 4.0))
        assert trust_in_samples(unit * rest, unit * said, even, 100) == pytest.approx(0.2)
    assert trust_in_samples(rest, np.zeros(100), even, 25) == 1.0, "there is no Q"
    assert trust_in_samples(even, said, even, 25) == 1.0, "there is no noise"
    some = np.repeat([1.0, 0.0], 50)
    assert trust_in_samples(rest, said * np.repeat([1.0, 5.0], 50), some, 100) == pytest.approx(0.2, abs=0.01)


# ---------------------------------------------------------------------- Q


@pytest.mark.parametrize("dies", [False, True])
def test_q_is_the_mean_of_what_follows(dies: bool) -> None:
    """Each step earns 1 + a: then Q = 1 + a + gamma / (1 - gamma), or 1 + a where all die at once."""
    rng = np.random.default_rng(2)
    actions = rng.uniform(-1.0, 1.0, (400, 2))
    batch = rollout(actions, 1.0 + actions[:, 0], dies=dies)
    actor = policy()
    with th.no_grad():
        actor.action_net.weight.zero_(), actor.action_net.bias.zero_()
    critic = ActionCritic.untrained(actor).solved(actor, batch, ReturnScale(1.0, 0.5), GAMMA, 1500, rng)
    guess = critic.guess(actor, batch)
    np.testing.assert_allclose(guess.values[:400], 1.0 if dies else 2.0, atol=0.15)
    np.testing.assert_allclose(guess.advantages[:, 0], actions[:, 0], atol=0.15)


def test_actions_beyond_the_bounds_act_as_the_bounds_do() -> None:
    actor = policy()
    critic, features = ActionCritic.untrained(actor), th.randn(6, 3)
    for sign in (1.0, -1.0):
        assert th.equal(critic.judge(features, th.full((6, 2), sign * 7.0)), critic.judge(features, th.full((6, 2), sign)))


def test_q_stays_when_its_units_move() -> None:
    rng = np.random.default_rng(3)
    batch, actor = rollout(rng.uniform(-1.0, 1.0, (20, 2)), rng.normal(size=20)), policy()
    one = ActionCritic.untrained(actor).solved(actor, batch, ReturnScale(3.0, 2.0), GAMMA, 5, rng)
    other = one.solved(actor, batch, ReturnScale(-40.0, 0.1), GAMMA, 0, rng)
    said = []
    for critic in (one, other):
        th.manual_seed(4)
        said.append(critic.guess(actor, batch))
    np.testing.assert_allclose(said[0].values, said[1].values, atol=1e-4)
    np.testing.assert_allclose(said[0].advantages, said[1].advantages, atol=1e-4)


def test_what_is_imagined_is_the_mean_over_actions() -> None:
    """Of a Q that is linear in action and state, weighted by state: w' (m + b' s)."""
    actor, rng = policy(), np.random.default_rng(5)
    linear = nn.Sequential(nn.Linear(5, 1))
    critic = ActionCritic(linear, copy.deepcopy(linear), th.optim.Adam(linear.parameters()), False, 7.0, 3.0)
    seen = rng.normal(size=(31, 3))
    batch, weights = rollout(rng.normal(size=(30, 2)), np.zeros(30), seen), rng.uniform(0.0, 2.0, (30, 1))
    imagined = critic.imagine(actor, batch, weights, 100, 1.5, rng)
    with th.no_grad():
        gained = float(imagined.gain(actor.get_distribution(imagined.observations)))
        inputs = th.cat([batch.observations[:30], actor.get_distribution(batch.observations[:30]).distribution.mean], 1)
        expected = 3.0 / 1.5 * (th.as_tensor(weights, dtype=th.float32) * linear(inputs)).mean()
    assert gained == pytest.approx(float(expected), abs=1e-5)


# ---------------------------------------------------------------------- memory


def test_joined_rollouts_are_what_they_were() -> None:
    rng = np.random.default_rng(6)
    parts = [rollout(rng.normal(size=(n, 2)), rng.normal(size=n), rng.normal(size=(n + 1, 3))) for n in (3, 5)]
    deaths = rollout(rng.normal(size=(4, 2)), rng.normal(size=4), rng.normal(size=(4, 3)), dies=True)
    parts.insert(1, deaths)

    def values(batch: Batch) -> FloatArray:
        return batch.observations.sum(1).double().numpy()

    joined = Batch.joined(parts)
    expected = np.concatenate([part.temporal_differences(values(part), GAMMA) for part in parts])
    np.testing.assert_allclose(joined.temporal_differences(values(joined), GAMMA), expected)
    assert len(joined.observations) == sum(len(part.observations) for part in parts)


def test_the_oldest_rollouts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MOST_KEPT_STEPS", 10)
    memory = Memory()
    for n in (4, 4, 4, 11, 3):
        memory = memory.remember(rollout(np.zeros((n, 2)), np.full(n, float(n))), np.ones((n, 1)))
        kept = [len(batch.rewards) for batch in memory.rollouts]
        assert len(memory.shares) == len(kept)
        assert kept == {4: kept, 11: [11], 3: [3]}[n] and (sum(kept) <= 10 or kept == [11])
    twice = Batch.joined([rollout(np.zeros((3, 2)), np.zeros(3))])
    wide = Batch(twice.observations, twice.actions, np.zeros((3, 2)), np.zeros((3, 2), int), twice.ends, twice.lengths)
    assert memory.remember(wide, np.ones((3, 2))).rollouts == (wide,), "another number of environments"


def test_memory_survives_saving() -> None:
    model = small().learn(3 * STEPS)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = DualAC.load(stream, env=vec_env(1), device="cpu")
    assert [len(batch.rewards) for batch in loaded.memory.rollouts] == 3 * [STEPS]
    ours, theirs = (one.memory.critic for one in (loaded, model))
    assert ours is not None and theirs is not None
    for one, other in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        assert th.equal(one, other)
    assert len(ours.optimizer.state) == len(theirs.optimizer.state) > 0


@pytest.mark.parametrize(
    "options",
    [{"use_sde": True}, {"n_action_critic_updates": 0}, {"gradient": "literal"}, {"policy": "RBFPolicy"}],
    ids=str,
)
def test_there_is_no_q_where_it_does_not_suit(options: dict[str, Any]) -> None:
    model = small(**options).learn(2 * STEPS)
    assert model.memory == Memory()
    assert suits(model.policy) == bool({"n_action_critic_updates", "gradient"} & set(options))


def test_q_is_for_short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says otherwise; what it knew of a short one is gone in a long one."""
    monkeypatch.setattr("sb3_dpi.dual_ac.short_trainings.MOST_KEPT_STEPS", 2 * STEPS)
    model = small(n_action_critic_updates=None).learn(2 * STEPS)
    assert model.memory.critic is not None
    assert model.learn(3 * STEPS).memory == Memory()
    assert small(n_action_critic_updates=3).learn(3 * STEPS).memory.critic is not None


def test_an_iteration_that_fails_leaves_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().learn(2 * STEPS)
    kept = model.memory
    assert kept.critic is not None
    weights = [parameter.clone() for parameter in kept.critic.network.parameters()]

    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(model, "_report", fail)
    with pytest.raises(RuntimeError):
        model.learn(STEPS, reset_num_timesteps=False)
    assert model.memory is kept
    for before, now in zip(weights, kept.critic.network.parameters(), strict=True):
        assert th.equal(before, now)
