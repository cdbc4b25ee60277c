"""What critics learn towards and how they step: soft Bellman targets, the Huber loss, slow copies, shares of real steps."""

from typing import Any

import numpy as np
import pytest
import torch as th
from memories import ListMemory
from torch import nn
from torch.nn import functional

from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.critic import UNIT_IN_REWARDS, CriticData, Learner, RealSteps, SoftTwinQ
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Batch
from sb3_dpi.world_model.mlp import StackedMLP
from sb3_dpi.world_model.rollouts import RolloutPool
from sb3_dpi.world_model.types import Transitions


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled loops are compared with torch elsewhere."""
    monkeypatch.setattr(StackedMLP, "is_compiled", False)
    th.manual_seed(0)


def some_batch(n: int) -> Batch:
    return Batch(th.randn(n, 3), th.rand(n, 2), th.randn(n), th.randn(n, 3), th.rand(n))


def small_critic() -> SoftTwinQ:
    critic = SoftTwinQ(3, 2, (8, 8), learning_rate=1e-2)
    with th.no_grad():
        for networks in (critic.networks, critic.targets):
            networks.flat.add_(0.3 * th.randn_like(networks.flat))
    return critic


def test_soft_bellman_targets() -> None:
    """r + gamma c (min_i Q_i'(x', u') within what was realised - alpha log pi(u'|x'))."""
    critic, actor, batch, noise = small_critic(), SquashedGaussian(3, 2, (8, 8)), some_batch(40), th.randn(40, 2)
    critic.unit.fill_(2.0)
    critic.worst.fill_(-0.2)
    critic.best.fill_(0.4)
    found = critic._targets(batch, noise, Learner(actor, 0.7, 0.9, 0.01))
    with th.no_grad():
        actions, log_probs = actor.sample(batch.next_states, noise)
        one, two = critic.targets(th.cat([batch.next_states, actions], 1))[..., 0]
        values = th.minimum(one, two)
        assert (values < -0.1).any() and (values > 0.2).any()
        expected = batch.rewards + 0.9 * batch.continuation * (values.clamp(-0.1, 0.2) - 0.7 * log_probs)
    th.testing.assert_close(found, expected)


def test_a_step_descends_the_huber_loss_of_each_network() -> None:
    critic, inputs, targets = small_critic(), th.randn(16, 5), 3.0 * th.randn(16)
    before, slow = critic.networks.flat.detach().clone(), critic.targets.flat.clone()
    values = critic.networks(inputs)[..., 0]
    losses = th.stack([functional.huber_loss(value, targets) for value in values])
    (gradient,) = th.autograd.grad(losses.sum(), [critic.networks.flat])
    assert critic.descend(inputs, targets, 0.25) == pytest.approx(0.5 * losses.sum().item(), rel=1e-5)
    # the first step of Adam
    stepped = before - 1e-2 * gradient / (gradient.abs() + 1e-8)
    th.testing.assert_close(critic.networks.flat.detach(), stepped, atol=1e-5, rtol=1e-4)
    th.testing.assert_close(critic.targets.flat, 0.75 * slow + 0.25 * critic.networks.flat.detach())


def test_another_optimizer_steps_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the compiled loops, which know Adam alone, would be taken too."""
    for network in (StackedMLP, SquashedGaussian):
        monkeypatch.setattr(network, "is_compiled", True)
    options: dict[str, Any] = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"weight_decay": 0.5}}
    critic, batch, noise = SoftTwinQ(3, 2, (8, 8), learning_rate=1e-2, **options), some_batch(6), th.randn(6, 2)
    before, learner = critic.networks.flat.detach().clone(), Learner(SquashedGaussian(3, 2, (8, 8)), 0.1, 0.9, 0.05)
    values = critic.networks(th.cat([batch.states, batch.actions], 1))[..., 0]
    targets = critic._targets(batch, noise, learner)
    loss = sum(functional.huber_loss(value, targets) for value in values)
    (gradient,) = th.autograd.grad(loss, [critic.networks.flat])
    critic.update(Batch(*(getattr(batch, name)[None] for name in vars(batch))), noise[None].numpy(), learner)
    th.testing.assert_close(critic.networks.flat.detach(), before - 1e-2 * (gradient + 0.5 * before))


def test_updates_take_one_minibatch_after_the_other() -> None:
    critic, twin, actor = small_critic(), SoftTwinQ(3, 2, (8, 8), learning_rate=1e-2), SquashedGaussian(3, 2, (8, 8))
    twin.load_state_dict(critic.state_dict())
    learner, noise, parts = Learner(actor, 0.1, 0.9, 0.05), np.random.default_rng(0).standard_normal((3, 6, 2)), []
    noise = noise.astype(np.float32)
    batches = [some_batch(6) for _ in range(3)]
    losses = []
    for batch, draws in zip(batches, noise, strict=True):
        targets = twin._targets(batch, th.as_tensor(draws), learner)
        losses.append(twin.descend(th.cat([batch.states, batch.actions], 1), targets, 0.05))
        parts.append(targets)
    stacked = Batch(*(th.stack([getattr(batch, name) for batch in batches]) for name in vars(batches[0])))
    update = critic.update(stacked, noise, learner)
    th.testing.assert_close(critic.networks.flat, twin.networks.flat)
    th.testing.assert_close(critic.targets.flat, twin.targets.flat)
    assert update.loss == pytest.approx(np.mean(losses)) and update.target == pytest.approx(float(parts[-1].mean()))


@pytest.mark.parametrize(("n_imagined", "expected"), [(50, 4), (0, 10)])
def test_share_of_real_steps(n_imagined: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps have reward 1 here, imagined ones 0; without any of these all steps are real."""
    data = Transitions(
        np.random.default_rng(0).normal(size=(30, 3)), np.zeros((30, 2)), np.ones(30), np.ones((30, 3)), np.zeros(30, bool)
    )
    ensemble, memory = Ensemble(3, 2, 2, 8), ListMemory(data, np.arange(30) == 29)
    ensemble.observe(data)
    batch = some_batch(n_imagined)
    imagined = Batch(batch.states, batch.actions, 0.0 * batch.rewards, batch.next_states, batch.continuation)
    critic = SoftTwinQ(3, 2, (8, 8), real_fraction=0.4)
    seen: list[Any] = []
    monkeypatch.setattr(critic, "update", lambda batches, noise, learner: seen.append((batches, noise)))
    learner = Learner(SquashedGaussian(3, 2, (8, 8)), 0.1, 0.9, 0.05)
    data_of_both = CriticData(memory, ensemble, RealSteps(memory, ensemble, 1.0), RolloutPool(lambda _: imagined, n_imagined))
    critic.learn(data_of_both, 5, 10, learner, np.random.default_rng(0))
    ((batches, noise),) = seen
    assert batches.states.shape == (5, 10, 3) and noise.shape == (5, 10, 2)
    assert (batches.rewards == 1.0).sum(1).tolist() == [expected] * 5


def test_the_unit_follows_the_size_of_rewards() -> None:
    critic = small_critic()
    inputs, rewards, returns = th.randn(20, 5), np.array([3.0, -4.0]), np.array([-5.0, 1.0, 2.0, 40.0])
    assert critic.follow_rewards(np.zeros(2), np.zeros(4)) == 1.0 and np.isinf(float(critic.worst)), "nothing earned, no unit"
    plain = [networks(inputs).detach() for networks in (critic.networks, critic.targets)]
    assert critic.follow_rewards(0.1 * rewards, 0.1 * returns) == 1.0, "an untrained network has no function to keep"
    assert float(critic.unit) == pytest.approx(0.1 * UNIT_IN_REWARDS * np.sqrt(12.5))
    for networks, was in zip((critic.networks, critic.targets), plain, strict=True):
        assert th.equal(networks(inputs), was)
    before = [networks(inputs).detach() * float(critic.unit) for networks in (critic.networks, critic.targets)]
    ratio = critic.follow_rewards(rewards, returns)
    unit = UNIT_IN_REWARDS * np.sqrt(12.5)
    assert float(critic.unit) == pytest.approx(unit) and ratio == pytest.approx(0.1)
    for networks, was in zip((critic.networks, critic.targets), before, strict=True):
        th.testing.assert_close(networks(inputs).detach() * unit, was.float(), atol=1e-4, rtol=1e-4)
    best, spread = np.quantile(returns, 0.999), returns.std()
    assert float(critic.worst) == pytest.approx(-5.0 - 0.2 * spread)
    assert float(critic.best) == pytest.approx(best + 0.3 * max(best, spread))
    critic.follow_rewards(rewards, 10.0 * returns)
    assert float(critic.worst) == pytest.approx(10.0 * (-5.0 - 0.2 * spread)), "the bounds widen"
    critic.follow_rewards(np.zeros(2), np.full(4, -1.0))
    assert float(critic.unit) == pytest.approx(unit), "nothing earned of late leaves the unit"
    assert float(critic.best) == pytest.approx(10.0 * (best + 0.3 * max(best, spread))), "nor do they narrow"


def test_targets_are_bounded_by_what_was_realised() -> None:
    critic = SoftTwinQ(1, 1, (8, 8))
    returns = np.linspace(-10.0, 30.0, 1000)
    ratio = critic.follow_rewards(np.full(5, 2.0), returns)
    assert float(critic.unit) == pytest.approx(20.0) and ratio == 1.0
    assert float(critic.worst) == pytest.approx(-10.0 - 0.2 * returns.std())
    best = np.quantile(returns, 0.999)
    assert float(critic.best) == pytest.approx(1.3 * best)
    assert critic.bounds == pytest.approx((float(critic.worst) / 20.0, float(critic.best) / 20.0))
    before = critic(th.zeros(1, 1), th.zeros(1, 1)).detach() * 20.0
    critic.follow_rewards(np.full(5, 5.0), returns)
    th.testing.assert_close(critic(th.zeros(1, 1), th.zeros(1, 1)).detach() * 50.0, before)
    critic.follow_rewards(np.full(5, 5.0), 0.1 * returns)
    assert float(critic.best) == pytest.approx(1.3 * best), "what was realised once can be realised again"


class Reads(nn.Module):
    """Features in units of their own."""

    features_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, states: th.Tensor) -> th.Tensor:
        found: th.Tensor = self.layer(states)
        return found


@pytest.mark.parametrize("reads", [False, True])
def test_networks_follow_units_of_states(reads: bool) -> None:
    """They say the same of the same state; those that read features stay, and so do these."""
    actor = SquashedGaussian(3, 2, (8, 8), features=Reads() if reads else None)
    critic, batch = SoftTwinQ(3, 2, (8, 8), features=Reads() if reads else None), some_batch(20)
    assert not any(parameter.requires_grad for parameter in critic.targets.parameters())

    @th.no_grad()
    def says(states: th.Tensor) -> list[th.Tensor]:
        return [*actor(states), critic(states, batch.actions), critic.targets(critic.read(states, batch.actions))]

    before, scale, shift = says(batch.states), th.tensor([2.0, 0.5, 3.0]), th.tensor([1.0, -2.0, 0.3])
    for network in (actor, critic):
        network.rescale_states(scale, shift)
    after = says(batch.states if reads else (batch.states - shift) / scale)
    th.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
