"""Dual-AC: rollouts, noise, standardisation, the game and its steps."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import logged, parameters
from algorithms import small_dual_ac as small
from dummy_envs import ITERATION as STEPS
from dummy_envs import DictPointMass, ImagePointMass, PointMass, counters, limited, vec_env
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from test_spaces import DISCRETE, Spaces

from sb3_dpi import DualAC
from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.common.early_resets import EarlyReset
from sb3_dpi.dual_ac import dual_ac
from sb3_dpi.dual_ac.conditional_mean import conditional_mean
from sb3_dpi.dual_ac.constants import DEFAULT_KL, INITIAL_STATES
from sb3_dpi.dual_ac.policies import MlpPolicy, limit_noise
from sb3_dpi.dual_ac.windows import NOTHING

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def check_learns(model: DualAC, iterations: int = 3) -> DualAC:
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(iterations * model.n_steps * model.n_envs)
    assert model._n_updates == iterations
    changed = [not th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)]
    assert sum(changed) >= (3 if model.policy_aliases["RBFPolicy"] is type(model.policy) else 4) and np.isfinite(
        parameters(model)
    )
    return model


# ---------------------------------------------------------------------- rollouts


def counted() -> tuple[DualAC, Any]:
    """A model after one rollout of 10 steps and the batch that it learns from."""
    model = small(counters(), n_steps=10, window_length=4, gamma=0.5)
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(40)
    return model, model._batch


def test_true_next_observations() -> None:
    """Also at time limits, at deaths and at the end of the rollout."""
    _, batch = counted()
    observations = batch.observations.numpy()
    for t in range(10):
        for n in range(4):
            before, row = observations[t * 4 + n], batch.following[t, n]
            assert before[0] == n
            died = (n == 0 and t == 6) or (n == 2 and t == 9)
            assert (row == NOTHING) == died
            if not died:
                np.testing.assert_array_equal(observations[row], before + np.array([0.0, 0.0, 1.0]))
    expected = np.zeros((10, 4), dtype=bool)
    expected[[2, 6], 0] = True
    expected[9] = True
    np.testing.assert_array_equal(batch.ends, expected)
    assert batch.lengths[0].tolist() == [3, 4, 4, 4] and batch.lengths[-1].tolist() == [1, 1, 1, 1]


def test_rewards_are_not_touched_at_time_limits() -> None:
    model, batch = counted()
    with th.no_grad():
        model.policy.value_net.bias.fill_(1000.0)
    np.testing.assert_array_equal(batch.rewards, 1.0)
    np.testing.assert_array_equal(model.rollout_buffer.rewards, 1.0)
    values = model._values(batch)
    bootstrapped = values[batch.following[2, 0]]
    returns = batch.path_returns(values, model.discount, model.gae_lambda)
    assert returns[2, 0] == pytest.approx(1.0 + 0.5 * bootstrapped), "a time limit goes on with the present V"
    assert returns[6, 0] == pytest.approx(1.0), "a death does not"


def test_initial_states_are_those_of_resets() -> None:
    model, _ = counted()
    starts = model.initial_observations
    assert sorted((int(n), int(episode)) for n, episode, _ in starts) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0)]
    np.testing.assert_array_equal(starts[:, 2], 0.0)
    model = small(limited(2))
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(40 * STEPS)
    assert len(model.initial_observations) == INITIAL_STATES


@pytest.mark.parametrize("after", [0, 15])
def test_long_episodes_are_left(after: int) -> None:
    """Within the rollout, and not as a death: the true next observation follows."""
    model = small(counters(), n_steps=10, early_reset={"after": after, "spread": False}, gamma=0.5)
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(80)
    batch, left = model._batch, after > 0
    assert batch.ends[:, 3].tolist() == [False] * 4 + [left] + [False] * 4 + [True]
    assert model.rollout_buffer.episode_starts[:, 3].tolist() == [0.0] * 5 + [float(left)] + [0.0] * 4
    np.testing.assert_array_equal(batch.observations[int(batch.following[4, 3])], [3.0, 0.0, 15.0])
    assert model.rollout_buffer.observations[5, 3].tolist() == ([3.0, 1.0, 0.0] if left else [3.0, 0.0, 15.0])


@pytest.mark.parametrize("n_envs", [1, 8])
def test_episodes_end_with_the_defaults(n_envs: int) -> None:
    """On a task of a thousand steps, however short the rollouts are."""
    model = small(vec_env(n_envs, lambda: limited(1000)), n_steps=None)
    ends = 0

    def count(values: dict[str, Any], _: Any) -> bool:
        nonlocal ends
        ends += int(np.sum(values["dones"]))
        return True

    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(3 * 1024, callback=count)
    assert model.early_reset_ == EarlyReset(256)
    # 128 steps at least, 256 in the median, the mean is not much larger below a thousand
    assert 3 <= ends <= 3 * 1024 // 128
    assert model.time_limit in (0, 1000), "an early reset is no time limit"


@pytest.mark.parametrize("steps, after", [(200, 0), (256, 0), (257, 256), (1000, 256)])
def test_short_episodes_are_not_left(steps: int, after: int) -> None:
    model = small(limited(steps)).learn(STEPS)
    assert model.early_reset_ == EarlyReset(after)
    assert small(limited(steps), early_reset=5).learn(STEPS).early_reset_ == EarlyReset(5)


def test_time_limits_and_gamma_are_not_learned_from_early_resets() -> None:
    model = small(limited(40), n_steps=64, early_reset={"after": 10, "spread": False}).learn(128)
    assert (model.time_limit, model.discount) == (0, 0.995)
    assert not model.saw_failure
    model = small(limited(40), n_steps=64, n_critic_updates=0, early_reset=25).learn(1280)
    assert (model.time_limit, model.discount) == (40, pytest.approx(1.0 - 1.0 / 16.0))


@pytest.mark.parametrize(
    "min_std, max_std, smallest, largest",
    [(0.0, math.inf, 0.0, 10.0), (0.0, 0.0, 0.0, 10.0), (0.9, 0.75, 0.9, 0.9), (0.1, 0.3, 0.1, 0.1), (0.0, 0.3, 0.0, 0.05)],
)
def test_noise_keeps_within_its_limits(min_std: float, max_std: float, smallest: float, largest: float) -> None:
    model = small(step_rule="constant", target_kl=0.5, min_std=min_std, max_std=max_std)
    model.learn(12 * STEPS)
    std = model.policy.log_std.detach().exp()
    assert bool((std >= smallest - 1e-6).all()) and bool((std <= largest + 1e-6).all()), "at the end of training"
    if max_std in (0.0, math.inf):
        assert bool((std != 0.5).all()) and bool((std > 0.05).all()), "what nothing limits is learned"


@pytest.mark.parametrize("left, std", [(1.0, 0.8), (0.5, 0.5), (0.0, 0.2), (-0.1, 0.2)])
def test_the_limit_of_noise_falls_with_progress(left: float, std: float) -> None:
    policy = small(policy_kwargs={"net_arch": [8], "log_std_init": 1.0}).policy
    limit_noise(policy, 0.2, 0.8, left)
    np.testing.assert_allclose(policy.log_std.detach().exp().numpy(), std, rtol=1e-6)


@pytest.mark.parametrize("n_actions, std", [(1, 0.75), (4, 0.75), (6, 0.5), (30, 0.1)])
def test_many_actions_begin_with_less_noise_each(n_actions: int, std: float) -> None:
    box = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (n_actions,))
    policy = MlpPolicy(*box, lambda _: 1e-3)
    np.testing.assert_allclose(policy.log_std.detach().exp().numpy(), std, rtol=1e-6)


def test_actions_without_a_standard_deviation_have_no_limits() -> None:
    policy = small(env="CartPole-v1").policy
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    limit_noise(policy, 0.2, 0.8, 0.0)
    assert all(bool((old == new).all()) for old, new in zip(before, policy.parameters(), strict=True))


def test_noise_of_gsde_is_left_alone() -> None:
    model = small(use_sde=True, min_std=10.0)
    model.learn(STEPS)
    assert float(model.policy.log_std.detach().exp().max()) < 10.0


@pytest.mark.parametrize("options, discount", [({}, 1.0 - 1.0 / 16.0), ({"gamma": 0.99}, 0.99)])
def test_discount_follows_time_limits(tmp_path: Path, options: dict[str, Any], discount: float) -> None:
    model = small(limited(40), n_steps=30, early_reset=0, **options)
    first = options.get("gamma", 0.995)
    assert model.discount == first
    model.learn(30)
    assert model.discount == model.rollout_buffer.gamma == first, "no time limit was met yet"
    model.learn(30, reset_num_timesteps=False)
    assert model.discount == pytest.approx(discount)
    model.save(tmp_path / "model")
    assert DualAC.load(tmp_path / "model").discount == pytest.approx(discount)
    assert DualAC.load(tmp_path / "model", gamma=0.9).discount == 0.9


def test_steps_become_small_where_there_is_something_to_lose() -> None:
    bounds = []
    for env in (limited(40), PointMass(death=(5, 9))):
        model = small(env, early_reset=0, step_rule="constant", n_action_critic_updates=0)
        model.learn(2 * STEPS)
        model._current_progress_remaining = 0.25
        bounds.append(model._kl_bound(1.0))
    assert bounds == [DEFAULT_KL, 0.25 * DEFAULT_KL]


@pytest.mark.parametrize("updates, factor", [(1, 2.0), (32, 2.0), (48, 4.0 / 3.0), (64, 1.0), (500, 1.0)])
def test_few_steps_are_large(updates: int, factor: float) -> None:
    for has_q in (True, False):
        model = small(step_rule="constant", n_action_critic_updates=10 if has_q else 0)
        assert model._kl_bound(1.0) == DEFAULT_KL, "before learn"
        model._total_timesteps = updates * STEPS
        assert model._kl_bound(1.0) == pytest.approx(DEFAULT_KL * (factor if has_q else 1.0))


@pytest.mark.parametrize("has_q, expected", [(True, [256, 312, 1024]), (False, [1024, 1024, 1024])])
def test_rollouts_are_shorter_where_learn_has_few_steps(has_q: bool, expected: list[int]) -> None:
    model = small(n_steps=None, n_action_critic_updates=int(has_q))
    model.wanted_steps = 1024
    found = []
    for total in (8000, 10_000, 80_000):
        model._total_timesteps = total
        model._choose_steps()
        found.append(model.n_steps)
    assert found == expected


def test_buffer_is_that_of_stable_baselines() -> None:
    assert type(small().rollout_buffer) is RolloutBuffer
    assert type(small(DictPointMass(), "MultiInputPolicy").rollout_buffer) is DictRolloutBuffer

    class Own(RolloutBuffer):
        pass

    assert type(check_learns(small(rollout_buffer_class=Own)).rollout_buffer) is Own


@pytest.mark.parametrize("n_envs, expected", [(1, 256), (8, 32), (3, 85)])
def test_steps_of_an_iteration(n_envs: int, expected: int) -> None:
    assert small(vec_env(n_envs), n_steps=None).n_steps == expected


# ---------------------------------------------------------------------- spaces


@pytest.mark.parametrize("space", [*DISCRETE, spaces.Box(0.0, 5.0, (2,), np.float32)], ids=str)
def test_random_features_take_every_action_space(space: spaces.Space) -> None:
    model = check_learns(small(vec_env(2, lambda: Spaces(action_space=space)), "RBFPolicy"))
    assert all(space.contains(action) for action in model.predict(OBSERVATIONS)[0])


def test_random_features_of_a_number() -> None:
    check_learns(small(gym.make("Taxi-v4"), "RBFPolicy"))


def test_resets_are_remembered_as_they_are() -> None:
    """Dictionaries by their keys, images as such."""
    model = small(vec_env(2, lambda: DictPointMass(("image", "velocity"))), "MultiInputPolicy", n_steps=4).learn(8)
    assert {key: array.dtype for key, array in model.initial_observations.items()} == {
        "image": np.uint8,
        "velocity": np.float32,
    }
    options = {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 8}}
    env = vec_env(2, lambda: gym.wrappers.TimeLimit(ImagePointMass(), 5))
    model = check_learns(small(env, "CnnPolicy", n_steps=8, policy_kwargs=options), 2)
    assert model.initial_observations.dtype == np.uint8


def test_policies_of_stable_baselines() -> None:
    model = check_learns(small(PointMass(-3.0, 3.0), ActorCriticPolicy))
    assert np.abs(model.predict(100.0 * OBSERVATIONS)[0]).max() <= 3.0


def test_observations_are_standardised() -> None:
    model = small(window_length=3)
    model.learn(STEPS)
    batch = model.rollout_buffer.observations.reshape(-1, 2)
    extractor: Any = model.policy.pi_features_extractor
    np.testing.assert_allclose(extractor.obs_mean, batch.mean(0), atol=1e-4)
    np.testing.assert_allclose(extractor.obs_std, batch.std(0), rtol=1e-3)
    model.learn(STEPS, reset_num_timesteps=False)
    with th.no_grad():
        before = model.policy.predict_values(th.as_tensor(OBSERVATIONS)).clone()
        model._update_standardization(100.0 * OBSERVATIONS)
        after = model.policy.predict_values(th.as_tensor(OBSERVATIONS))
    assert abs(float(extractor.obs_std[0]) - float(batch.std(0)[0])) > 1.0
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_random_features_survive_saving(tmp_path: Path) -> None:
    """Their kernel and scale are no parameters, and V in closed form leaves no optimizer to tell of it."""
    model = small(policy="RBFPolicy").learn(3 * STEPS)
    model.save(tmp_path / "model")
    loaded = DualAC.load(tmp_path / "model", env=limited(12))
    for name, theirs in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], theirs), name
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    assert loaded._scale() == model._scale() != ReturnScale(0.0, 1.0)
    assert loaded.largest_advantage == model.largest_advantage > 0.0
    np.testing.assert_array_equal(loaded.initial_observations, model.initial_observations)


def test_values_stay_when_their_units_move() -> None:
    model, batch = counted()
    model._rescale_values(np.random.default_rng(0).normal(size=(10, 4)))
    before = model._values(batch)
    model._rescale_values(np.random.default_rng(0).normal(300.0, 50.0, size=(10, 4)))
    assert model._scale().std > 10.0
    np.testing.assert_allclose(model._values(batch), before, atol=1e-3)


def test_learning_does_not_depend_on_the_units_of_the_rewards() -> None:
    learned = [small(gym.wrappers.TransformReward(limited(12), lambda r, c=c: c * r)).learn(3 * STEPS) for c in (1.0, 1e3)]
    expected, actions = (model.predict(OBSERVATIONS, deterministic=True)[0] for model in learned)
    np.testing.assert_allclose(actions, expected, atol=1e-2)


# ---------------------------------------------------------------------- the game and its steps


def test_one_inner_step_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(n_critic_updates=0).learn(2 * STEPS)
    assert logged(model, "train/inner_steps") == 1
    model = small(policy="RBFPolicy").learn(2 * STEPS)
    assert (logged(model, "train/inner_steps"), logged(model, "train/inner_gap")) == (1, 0.0)
    monkeypatch.setattr(dual_ac, "TOLERANCE", -math.inf)
    model = small(n_critic_updates=3).learn(2 * STEPS)
    assert logged(model, "train/inner_steps") == 3 * STEPS // 20
    monkeypatch.setattr(dual_ac, "TOLERANCE", 100.0)
    model = small(n_critic_updates=3).learn(2 * STEPS)
    assert logged(model, "train/inner_steps") == 2 * STEPS // 20, "a gain is known from the second pass on"


@pytest.mark.parametrize("eta", [5.0, math.inf])
def test_dual_weights_are_those_of_the_expected_delta(eta: float) -> None:
    model = small(alpha_regularization=eta, window_length=3).learn(2 * STEPS)
    batch, values = model._batch, model._values(model._batch)
    weights = model._judge(batch, values).weights
    if math.isinf(eta):
        np.testing.assert_array_equal(weights, 1.0)
    else:
        delta = batch.deltas(values, model.discount)
        expected = conditional_mean(delta, model._features, batch.lengths)
        alpha = 1.0 + np.maximum(expected, 0.0) / (5.0 * delta.std())
        np.testing.assert_allclose(weights, alpha / alpha.mean())
        assert np.ptp(weights) > 0.0


@pytest.mark.parametrize("held_out", [True, False])
def test_values_that_judge_a_rollout_have_not_seen_it(held_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(held_out_values=held_out).learn(STEPS)
    judged: list[np.ndarray] = []
    judge = model._judge

    def spy(batch: Any, values: np.ndarray) -> Any:
        judged.append(values)
        return judge(batch, values)

    monkeypatch.setattr(model, "_judge", spy)
    model.learn(STEPS, reset_num_timesteps=False)
    before, after = model.rollout_buffer.values.reshape(-1), model._values(model._batch)
    np.testing.assert_allclose(judged[0][:STEPS], before, rtol=1e-5, atol=1e-6)
    assert np.abs(after[:STEPS] - before).max() > 1e-3
    assert len(judged) == (1 if held_out else 2)
    if not held_out:
        np.testing.assert_allclose(judged[1], after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", ["causal", "literal"])
def test_the_buffer_holds_what_the_update_uses(gradient: str) -> None:
    """As callbacks see it at a rollout's end; what they make of it counts."""
    seen: dict[str, np.ndarray] = {}

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            seen.update({name: getattr(buffer, name).copy() for name in ("values", "returns", "advantages", "log_probs")})
            buffer.advantages[:] = 0.0

    model = small(gradient=gradient)
    model.learn(STEPS, callback=Look())
    assert logged(model, "train/advantage_std") == 0.0
    assert all(array.shape == (STEPS, 1) and np.ptp(array) > 0.0 for name, array in seen.items() if name != "values")
    batch, n = model._batch, STEPS
    values = np.append(seen["values"].reshape(-1), np.zeros(len(model._values(batch)) - n))
    assert np.all(values == 0.0), "V before the first returns"
    expected = batch.path_returns(values, model.discount, model.gae_lambda)
    np.testing.assert_allclose(seen["returns"], expected, rtol=1e-5)
    np.testing.assert_allclose(seen["advantages"], model._judge(batch, values).advantages, rtol=1e-4, atol=1e-5)


def test_without_the_game_v_is_a_regression() -> None:
    """And with it, V moves against what alpha weighs."""
    plain, game = (small(policy="RBFPolicy", path_regularization=eta).learn(STEPS) for eta in (math.inf, 0.01))
    shared = [np.array(model._values(model._batch)[:STEPS]) for model in (plain, game)]
    assert np.abs(shared[0] - shared[1]).max() > 1e-3


def test_kl_is_bounded() -> None:
    for rule in ("constant", "adaptive", "decaying"):
        model = small(target_kl=0.02, step_rule=rule).learn(4 * STEPS)
        assert 0.0 <= logged(model, "train/kl_divergence_loss") <= 0.02
    assert model._kl_bound(1.0) < 0.02, "it decays"


@pytest.mark.parametrize("unit", [1.0, 2.0**-20])
def test_the_adaptive_step_shrinks_with_what_is_left_to_gain(unit: float) -> None:
    model = small(target_kl=0.02)
    assert model._kl_bound(5.0 * unit) == pytest.approx(0.02)
    assert model._kl_bound(1.3 * unit) == pytest.approx(0.02)  # locomotion swings that much
    assert model._kl_bound(0.625 * unit) == pytest.approx(0.02 / 4)
    assert 0.0 < model._kl_bound(0.0) < 1e-4
    assert model._kl_bound(50.0 * unit) == pytest.approx(0.02)


def test_it_learns_discrete_actions() -> None:
    """Random actions keep the pole up for some 22 steps."""
    small_steps: dict[str, Any] = {"n_steps": 256, "n_critic_updates": 5, "policy_kwargs": {"net_arch": [32]}}
    model = DualAC("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **small_steps).learn(3072)
    assert model.ep_info_buffer is not None
    assert np.mean([info["r"] for info in list(model.ep_info_buffer)[-10:]]) > 55.0


def test_two_steps_are_the_fewest() -> None:
    assert small(limited(6), n_steps=2).n_steps == 2
    with pytest.raises(ValueError, match=r"must be at least 2, got 1 x 1"):
        small(limited(6), n_steps=1)
