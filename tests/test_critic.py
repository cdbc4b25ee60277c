"""Advantages against sums written out and Stable-Baselines3, and a value fit that leaves the actor alone."""

from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import IMAGE_SHAPE, PointMass
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_dpi.common.critic import (
    ReturnScale,
    actor_parameters,
    fit_values,
    generalized_advantages,
    predict_values,
    trajectory_values,
)
from sb3_dpi.common.policies import BoundedGaussianCnnPolicy, BoundedGaussianMultiInputPolicy, BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Trajectories, map_observations

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (IMAGE_SHAPE[2], *IMAGE_SHAPE[:2]), np.uint8)
SEEDS = range(3)


# ---------------------------------------------------------------------- advantages


def episodes(seed: int, deaths: bool = True) -> dict[str, np.ndarray]:
    """Trajectories of all lengths, those of the horizon and empty slots included; nothing that is undefined is a number."""
    rng = np.random.default_rng(seed)
    M, N, T = 3, 8, 9
    lengths = rng.integers(0, T + 1, (M, N))
    lengths[0, :3], lengths[1, 0], lengths[2, 0] = T, 0, 1
    alive = np.arange(T) < lengths[..., None]
    dies = rng.random((M, N)) < 0.5
    dies[0, :2] = [True, False]
    terminated = alive & (np.arange(T) == lengths[..., None] - 1) & dies[..., None] & deaths
    rewards = np.where(alive, rng.normal(size=alive.shape), np.nan)
    values = np.where(np.arange(T + 1) <= lengths[..., None], rng.normal(size=(M, N, T + 1)), np.nan)
    return {"rewards": rewards, "values": values, "alive": alive, "terminated": terminated}


def written_out(data: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """The average of the advantages of n steps, weighted by (1 - lambda) lambda^(n-1), the longest taking what is left."""
    advantages = np.zeros_like(data["rewards"])
    for index in np.ndindex(advantages.shape[:-1]):
        rewards, values = data["rewards"][index], data["values"][index]
        length, died = int(data["alive"][index].sum()), bool(data["terminated"][index].any())
        for t in range(length):
            for n in range(1, length - t + 1):
                last = n == length - t
                total = sum(gamma**i * rewards[t + i] for i in range(n))
                if not (last and died):
                    total += gamma**n * values[t + n]
                weight = gae_lambda ** (n - 1) * (1.0 if last else 1.0 - gae_lambda)
                advantages[(*index, t)] += weight * (total - values[t])
    return advantages


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deaths", [False, True])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (1.0, 1.0), (0.9, 1.0), (0.9, 0.0), (0.0, 0.9), (1.0, 0.95)])
def test_advantages_are_averages_over_numbers_of_steps(seed: int, deaths: bool, gamma: float, gae_lambda: float) -> None:
    """What dead slots hold is not a number, and never read."""
    data = episodes(seed, deaths)
    advantages = generalized_advantages(**data, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, written_out(data, gamma, gae_lambda), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(advantages[~data["alive"]], 0.0)
    assert np.all(advantages[data["alive"]] != 0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deaths", [False, True])
def test_advantages_are_those_of_stable_baselines3(seed: int, deaths: bool) -> None:
    """There a step is followed by the next episode, and a time limit adds the value of the last observation to the reward."""
    data = {name: array.reshape(-1, array.shape[-1]) for name, array in episodes(seed, deaths).items()}
    n, T = data["alive"].shape
    buffer = RolloutBuffer(T, VECTOR, ACTIONS, "cpu", gae_lambda=0.8, gamma=0.9, n_envs=n)
    alive, rewards, values = data["alive"], np.nan_to_num(data["rewards"]), np.nan_to_num(data["values"])
    follows = np.concatenate([alive[:, 1:], np.zeros((n, 1), bool)], 1)
    timed_out = alive & ~follows & ~data["terminated"]
    timed_out[:, -1] = False  # nor does the end of the rollout start an episode
    rewards = rewards + np.where(timed_out, 0.9 * values[:, 1:], 0.0)
    buffer.rewards[:], buffer.values[:] = rewards.T, values[:, :-1].T
    buffer.episode_starts[1:] = (~follows[:, :-1]).T
    buffer.compute_returns_and_advantage(th.as_tensor(values[:, -1]), data["terminated"][:, -1])
    ours = generalized_advantages(**data, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_allclose(ours[alive], buffer.advantages.T[alive], rtol=1e-4, atol=1e-5)


def test_ends_of_trajectories() -> None:
    """One step of reward 1 in the middle of values of 10, for everything that can come behind it."""
    alive = np.array([[True, True], [True, False], [True, True], [True, False], [False, False]])
    terminated = np.array([[False, False], [False, False], [False, True], [True, False], [False, False]])
    advantages = generalized_advantages(np.ones((5, 2)), np.full((5, 3), 10.0), alive, terminated, gamma=0.5, gae_lambda=0.5)
    going_on, dead = 1.0 + 5.0 - 10.0, 1.0 - 10.0
    horizon, time_limit, death_at_the_horizon, death, empty = advantages
    np.testing.assert_allclose(horizon, [going_on + 0.25 * going_on, going_on])
    np.testing.assert_allclose(time_limit, [going_on, 0.0])
    np.testing.assert_allclose(death_at_the_horizon, [going_on + 0.25 * dead, dead])
    np.testing.assert_allclose(death, [dead, 0.0])
    np.testing.assert_allclose(empty, 0.0)


def test_nothing_behind_a_death_is_read() -> None:
    data = episodes(0)
    deaths = np.nonzero(data["terminated"])
    expected = generalized_advantages(**data, gamma=0.9, gae_lambda=0.8)
    data["values"][deaths[0], deaths[1], deaths[2] + 1] = np.nan
    np.testing.assert_array_equal(generalized_advantages(**data, gamma=0.9, gae_lambda=0.8), expected)


def test_exact_values_leave_no_advantage() -> None:
    """Where the values predict what happens, deaths and cuts surprise nobody."""
    data = episodes(1)
    values = np.zeros_like(data["values"])
    values[..., -1] = 3.0
    for t in reversed(range(9)):
        ahead = np.where(data["terminated"][..., t], 0.0, values[..., t + 1])
        values[..., t] = np.where(data["alive"][..., t], np.nan_to_num(data["rewards"][..., t]) + 0.9 * ahead, 3.0)
    advantages = generalized_advantages(data["rewards"], values, data["alive"], data["terminated"], 0.9, 0.7)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-12)


def test_one_trajectory_without_leading_axes() -> None:
    data = episodes(2)
    together = generalized_advantages(**data, gamma=0.9, gae_lambda=0.8)
    for index in np.ndindex(3, 8):
        alone = generalized_advantages(**{name: array[index] for name, array in data.items()}, gamma=0.9, gae_lambda=0.8)
        np.testing.assert_array_equal(alone, together[index])


# ---------------------------------------------------------------------- policies

KINDS = ["vector", "deep", "image", "dict"]


def make_policy(
    kind: str = "vector", shared: bool = True, learning_rate: float = 1e-2, **kwargs: Any
) -> BoundedGaussianPolicy:
    """A small policy of each of the package's classes."""
    th.manual_seed(0)
    options: dict[str, Any] = {"net_arch": [8], "share_features_extractor": shared, **kwargs}
    if kind == "image":
        options["features_extractor_kwargs"] = {"features_dim": 8}
        return BoundedGaussianCnnPolicy(IMAGE, ACTIONS, lambda _: learning_rate, **options)
    if kind == "dict":
        space = spaces.Dict({"image": IMAGE, "seen": VECTOR, "state": VECTOR})
        options["features_extractor_kwargs"] = {"cnn_output_dim": 8}
        return BoundedGaussianMultiInputPolicy(space, ACTIONS, lambda _: learning_rate, **options)
    if kind == "deep":
        options["features_extractor_class"] = Encoder
    policy = BoundedGaussianPolicy(VECTOR, ACTIONS, lambda _: learning_rate, **options)
    if kind == "vector":  # until then it sees nothing
        policy.set_standardization(np.zeros(3), np.ones(3))
    return policy


class Encoder(th.nn.Module):
    """Features of vectors that are learned."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__()
        self.features_dim, self.network = 6, th.nn.Sequential(th.nn.Linear(3, 6), th.nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.network(observations)


def make_inputs(kind: str = "vector", n: int = 24) -> Any:
    rng = np.random.default_rng(0)
    vectors, images = (rng.normal(size=(n, 3)).astype(np.float32) for _ in range(2)), rng.integers(0, 256, (n, *IMAGE.shape))
    if kind == "dict":
        return {"image": images.astype(np.uint8), "seen": next(vectors), "state": next(vectors)}
    return images.astype(np.uint8) if kind == "image" else next(vectors)


def make_targets(n: int = 24) -> np.ndarray:
    x = make_inputs(n=n).astype(np.float64)
    return 30.0 * (x[:, 0] - 0.5 * x[:, 1] ** 2) + 100.0


def scale_of(targets: np.ndarray) -> ReturnScale:
    return ReturnScale(float(targets.mean()), float(targets.std()))


def bits(policy: BoundedGaussianPolicy) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in policy.state_dict().items()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def fit(policy: BoundedGaussianPolicy, kind: str = "vector", seed: int = 0, n_epochs: int = 3, batch_size: int = 8) -> float:
    targets = make_targets()
    rng = np.random.default_rng(seed)
    return fit_values(policy, make_inputs(kind), targets, scale_of(targets), n_epochs, batch_size, rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_actor_parameters_are_all_that_actions_depend_on(kind: str, shared: bool) -> None:
    policy = make_policy(kind, shared)
    distribution = policy.get_distribution(obs_as_tensor(make_inputs(kind), policy.device))
    log_prob = distribution.log_prob(th.ones(24, 2)).sum()
    parameters = list(policy.parameters())
    gradients = th.autograd.grad(log_prob, parameters, allow_unused=True)
    expected = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    actor = actor_parameters(policy)
    assert {id(parameter) for parameter in actor} == expected
    assert len(actor) == len(expected), "none of them twice"
    assert id(policy.log_std) in expected and len(expected) < len(parameters)


def test_actor_parameters_of_other_distributions() -> None:
    """Without a standard deviation of its own there is none to find."""
    policy = make_policy()
    log_std, n = policy.log_std, len(actor_parameters(policy))
    del policy.log_std
    remaining = actor_parameters(policy)
    assert len(remaining) == n - 1 and all(parameter is not log_std for parameter in remaining)


def test_return_scale() -> None:
    policy, inputs = make_policy(), make_inputs()
    with th.no_grad():
        plain = policy.predict_values(th.as_tensor(inputs)).numpy()[:, 0]
    identity = predict_values(policy, inputs, ReturnScale())
    assert identity.dtype == np.float64 and identity.shape == (24,) and np.std(identity) > 0.0
    np.testing.assert_array_equal(identity, plain)
    np.testing.assert_allclose(predict_values(policy, inputs, ReturnScale(-7.0, 300.0)), 300.0 * plain - 7.0, rtol=1e-6)


# ---------------------------------------------------------------------- the fit


@pytest.mark.parametrize("kind", ["vector", "deep"])
def test_fit_explains_the_returns(kind: str) -> None:
    """In units of the rewards, far from zero as they are."""
    policy, inputs, targets = make_policy(kind, False, net_arch=[32, 32]), make_inputs(n=200), make_targets(200)
    scale, rng = scale_of(targets), np.random.default_rng(0)
    first = fit_values(policy, inputs, targets, scale, 1, 50, rng)
    last = fit_values(policy, inputs, targets, scale, 60, 50, rng)
    residual = predict_values(policy, inputs, scale) - targets
    assert last < 0.1 < 0.5 < first
    assert residual.var() < 0.1 * targets.var() and abs(residual.mean()) < 0.1 * targets.std()


@pytest.mark.parametrize("kind", ["image", "dict"])
def test_fit_of_images_and_dictionaries(kind: str) -> None:
    policy = make_policy(kind)
    if kind == "dict":  # until then its vector is not seen
        policy.set_standardization(np.zeros(policy.features_dim), np.ones(policy.features_dim))
    first = fit(policy, kind, n_epochs=1)
    assert fit(policy, kind, n_epochs=20) < 0.8 * first


@pytest.mark.parametrize("batch_size", [6, 24, 1000])
def test_loss_is_the_mean_squared_error_in_units_of_the_variance(batch_size: int) -> None:
    policy, targets = make_policy(learning_rate=0.0), make_targets()
    loss = fit_values(policy, make_inputs(), targets, scale_of(targets), 2, batch_size, np.random.default_rng(0))
    residual = predict_values(policy, make_inputs(), scale_of(targets)) - targets
    assert loss == pytest.approx(np.mean(residual**2) / targets.var(), rel=1e-5)


def test_loss_is_that_of_the_last_pass() -> None:
    losses = [fit(make_policy(), n_epochs=n) for n in (1, 2, 3)]
    policy, rng, targets = make_policy(), np.random.default_rng(0), make_targets()
    apart = [fit_values(policy, make_inputs(), targets, scale_of(targets), 1, 8, rng) for _ in range(3)]
    assert losses == apart and len(set(losses)) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_fit_leaves_the_actor_alone(kind: str, shared: bool) -> None:
    """Features that both see are the actor's; neither momentum nor gradients of the past move them."""
    policy, inputs = make_policy(kind, shared), make_inputs(kind)
    policy.get_distribution(obs_as_tensor(inputs, policy.device)).log_prob(th.ones(24, 2)).mean().backward()
    policy.optimizer.step()  # leaves momentum and gradients
    before = bits(policy)
    actor = {name for name, parameter in policy.named_parameters() if any(parameter is p for p in actor_parameters(policy))}
    critic = {name for name, _ in policy.named_parameters()} - actor
    fit(policy, kind)
    # the extractor of both is registered twice
    assert changed(before, bits(policy)) == critic
    assert any("value_net" in name for name in critic)
    assert any("vf_features_extractor" in name for name in critic) == (not shared and kind != "vector")
    assert all(parameter.grad is None for parameter in actor_parameters(policy))


def test_order_of_the_samples_is_that_of_the_generator() -> None:
    fitted = []
    for seed, outside in ((0, 1), (0, 2), (1, 1)):
        policy = make_policy()
        np.random.seed(outside)
        th.manual_seed(outside)
        fitted.append((fit(policy, seed=seed), bits(policy)))
    assert fitted[0] == fitted[1]
    assert changed(fitted[0][1], fitted[2][1])


@pytest.mark.parametrize(("batch_size", "sizes"), [(10, [8, 8, 8]), (24, [24]), (23, [12, 12]), (1, [1] * 24), (7, [6] * 4)])
def test_every_pass_sees_every_sample_once(batch_size: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = make_policy(learning_rate=0.0), []
    predict = policy.predict_values

    def spy(observations: Any) -> th.Tensor:
        seen.append(observations.numpy())
        return predict(observations)

    monkeypatch.setattr(policy, "predict_values", spy)
    fit(policy, n_epochs=3, batch_size=batch_size)
    assert [len(rows) for rows in seen] == 3 * sizes
    inputs = make_inputs()
    orders = []
    for i in range(3):
        rows = np.concatenate(seen[i * len(sizes) : (i + 1) * len(sizes)])
        order = [int(np.flatnonzero((inputs == row).all(1))[0]) for row in rows]
        assert sorted(order) == list(range(24))
        orders.append(tuple(order))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("shift,factor", [(0.0, 1.0), (-1e4, 1.0), (0.0, 1e-4), (50.0, 1e5)])
def test_units_of_the_rewards_do_not_matter(shift: float, factor: float) -> None:
    """The network learns the same from returns of any size."""
    inputs, targets = make_inputs(), make_targets()
    policies = [make_policy(), make_policy()]
    for policy, returns in zip(policies, (targets, factor * targets + shift), strict=True):
        fit_values(policy, inputs, returns, scale_of(returns), 5, 8, np.random.default_rng(0))
    plain, scaled = (predict_values(policy, inputs, ReturnScale()) for policy in policies)
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-4)
    there = predict_values(policies[1], inputs, scale_of(factor * targets + shift))
    back = (there - shift) / factor
    np.testing.assert_allclose(back, predict_values(policies[0], inputs, scale_of(targets)), rtol=1e-3)


def test_targets_belong_to_their_inputs() -> None:
    """Only the order of the updates depends on the permutation."""
    policy, inputs = make_policy(net_arch=[64]), make_inputs(n=12)
    targets = np.where(np.arange(12) % 2, 1.0, -1.0)
    fit_values(policy, inputs, targets, ReturnScale(), 150, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sign(predict_values(policy, inputs, ReturnScale())), targets)


# ---------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_values_of_trajectories(kind: str) -> None:
    """Every observation's own, seen through what the policy sees of it."""
    M, N, T = 2, 3, 4
    policy, flat = make_policy(kind), make_inputs(kind, M * N * (T + 1))
    observations = map_observations(lambda array: array.reshape(M, N, T + 1, *array.shape[1:]), flat)
    shape, scale = (M, N, T), ReturnScale(2.0, 3.0)
    sampled = Trajectories(
        observations,
        np.zeros((M, N, T + 1, 5)),
        np.zeros((*shape, 2)),
        np.zeros(shape),
        np.ones(shape, bool),
        np.zeros(shape, bool),
    )

    def seen(array: np.ndarray) -> np.ndarray:
        return array[..., ::-1].copy()

    values = trajectory_values(policy, sampled, lambda given: map_observations(seen, given), scale)
    assert values.shape == (M, N, T + 1) and np.std(values) > 0.0
    for i, index in enumerate(np.ndindex(M, N, T + 1)):
        own = map_observations(lambda array, i=i: seen(array[i : i + 1]), flat)  # type: ignore[misc]
        np.testing.assert_allclose(values[index], predict_values(policy, own, scale)[0], rtol=1e-4, atol=1e-5)


class Interrupted(PointMass):
    """The environment's own time limit, of a random number of steps."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, dies, _, info = super().step(action)
        return obs, reward, False, dies, info


MAKE = {"horizon": PointMass, "deaths": lambda: PointMass(death=(3, 14)), "cuts": lambda: Interrupted(death=(3, 14))}


@pytest.mark.parametrize("what", MAKE)
def test_advantages_of_sampled_trajectories(what: str) -> None:
    """From an environment to advantages; what dead slots hold has no influence."""
    model = small_mdgps(MAKE[what](), n_conditions=8)
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(1)
    sampled, scale = model.rollout_buffer.trajectories(), ReturnScale(-5.0, 4.0)
    values = trajectory_values(model.policy, sampled, model._policy_inputs, scale)
    assert sampled.alive.all() == (what == "horizon") and sampled.terminated.any() == (what == "deaths")
    parts = {"rewards": sampled.rewards, "values": values, "alive": sampled.alive, "terminated": sampled.terminated}
    advantages = generalized_advantages(**parts, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_allclose(advantages, written_out(parts, 0.9, 0.8), rtol=1e-10, atol=1e-10)
    lengths = sampled.alive.sum(-1)[..., None]
    observations: Any = sampled.observations
    dead = np.arange(observations.shape[2]) > lengths
    spoilt = Trajectories(
        np.where(dead[..., None], np.nan, observations),
        sampled.states,
        sampled.actions,
        np.where(sampled.alive, sampled.rewards, np.nan),
        sampled.alive,
        sampled.terminated,
    )
    parts |= {
        "rewards": spoilt.rewards,
        "values": trajectory_values(model.policy, spoilt, model._policy_inputs, scale),
    }
    np.testing.assert_array_equal(generalized_advantages(**parts, gamma=0.9, gae_lambda=0.8), advantages)
