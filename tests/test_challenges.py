"""Tests of what was learned, and what is deployed after them."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch as th
from algorithms import DPI_STEPS as STEPS
from algorithms import small_dpi as small
from dummy_envs import limited
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from sb3_dpi import DPI
from sb3_dpi.dpi.challenges import Challenges
from sb3_dpi.dpi.policies import MlpPolicy

MEAN, STD = th.zeros(2, dtype=th.float64), th.ones(2, dtype=th.float64)
STATES = np.random.default_rng(0).normal(size=(5, 2))
GOING, ENDED = np.array([False]), np.array([True])


def policy_of(net_arch: tuple[int, int] = (8, 8)) -> MlpPolicy:
    th.manual_seed(0)
    box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy = MlpPolicy(spaces.Box(-np.inf, np.inf, (2,), np.float32), box, lambda _: 1e-3, net_arch=net_arch)
    shift(policy)
    return policy


def shift(policy: MlpPolicy) -> None:
    """Let the average become another policy."""
    with th.no_grad():
        policy.averaged.network.flat.add_(th.randn_like(policy.averaged.network.flat))


def acts(policy: MlpPolicy) -> np.ndarray:
    """:return: what ``predict`` does"""
    return policy.predict(STATES.astype(np.float32), deterministic=True)[0]


def play(challenges: Challenges, earned: float) -> None:
    """An episode of two steps."""
    challenges.begin(0, MEAN, STD)
    challenges.count(np.array([earned + 1.0]), GOING, MEAN, STD)
    challenges.count(np.array([-1.0]), ENDED, MEAN, STD)


def test_which_episodes_are_tests() -> None:
    challenges = Challenges(3, policy_of())
    assert [challenges.begin(0, MEAN, STD) for _ in range(7)] == [False, False, True, False, False, True, False]
    assert [challenges.begin(1, MEAN, STD) for _ in range(3)] == [False, False, True], "each environment counts its own"
    none = Challenges(None, policy_of())
    assert not any(none.begin(0, MEAN, STD) for _ in range(9))


def test_what_earns_more_is_deployed() -> None:
    policy = policy_of()
    challenges = Challenges(1, policy)
    first = acts(policy)
    play(challenges, 10.0)
    assert policy.was_tested and float(policy.tested_return) == 10.0
    shift(policy)
    np.testing.assert_allclose(acts(policy), first, atol=1e-6, err_msg="the average goes on, what acts does not")
    play(challenges, 10.0)
    np.testing.assert_allclose(acts(policy), first, atol=1e-6, err_msg="as much is not more")
    play(challenges, 4.0)  # the third test is one of what is deployed
    assert float(policy.tested_return) == 7.0 and int(policy.n_tests) == 2
    play(challenges, 8.0)
    assert float(policy.tested_return) == 8.0 and int(policy.n_tests) == 1
    expected = th.tanh(policy.averaged(policy.standardize(th.as_tensor(STATES)))[0]).detach().numpy()
    np.testing.assert_allclose(acts(policy), expected, atol=1e-6)
    assert np.abs(acts(policy) - first).max() > 0.01


def test_the_mean_is_one_of_the_latest_tests() -> None:
    policy = policy_of()
    policy.deploy(policy.averaged, 100.0)
    for _ in range(30):
        policy.note_test(0.0)
    assert float(policy.tested_return) < 1.0, "with all tests it would be 3.2"


def test_tests_are_played_without_noise() -> None:
    policy = policy_of()
    challenges = Challenges(1, policy)
    challenges.begin(1, MEAN, STD)
    noisy = np.full((5, 1), 0.3)
    acted = challenges.act(STATES, noisy.copy())
    np.testing.assert_array_equal(np.delete(acted, 1, axis=0), np.delete(noisy, 1, axis=0))
    np.testing.assert_allclose(acted[1], acts(policy)[1], atol=1e-6)
    shift(policy)
    np.testing.assert_array_equal(challenges.act(STATES, noisy.copy()), acted, "by the policy as it was at the beginning")
    challenges.begin(1, MEAN, STD)
    assert np.abs(challenges.act(STATES, noisy.copy()) - acted).max() > 0.01, "an episode that was broken off is no test"


def test_units_may_change_while_a_test_goes_on() -> None:
    policy = policy_of()
    before = acts(policy)
    challenges = Challenges(1, policy)
    challenges.begin(0, MEAN, STD)
    mean, std = th.tensor([0.3, -0.2], dtype=th.float64), th.tensor([1.4, 0.7], dtype=th.float64)
    policy.set_standardization(mean, std)
    challenges.count(np.zeros(1), ENDED, mean, std)
    np.testing.assert_allclose(acts(policy), before, atol=1e-5)


@pytest.mark.parametrize("restart_after", [None, 5])
def test_learning_with_tests(restart_after: int | None, tmp_path: Path) -> None:
    """Episodes of 12 steps: after the random ones each second is a test, remembered like the others, and none is left."""
    model = small(limited(12), test_every=2, restart_after=restart_after)
    seen: list[tuple[int, float]] = []
    judge = model._challenges._judge

    def note(test, *args):  # type: ignore[no-untyped-def]
        seen.append((model.num_timesteps, test.earned))
        judge(test, *args)

    model._challenges._judge = note  # type: ignore[method-assign]
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(6 * STEPS)
    assert model.memory is not None and len(seen) >= 3 and model.policy.was_tested
    rewards = model.memory.transitions().rewards
    for end, earned in seen:
        assert rewards[end - 12 : end].sum() == pytest.approx(earned, rel=1e-5)
    assert {"rollout/test_reward", "rollout/deployed_reward"} <= set(
        (tmp_path / "progress.csv").read_text().split("\n")[0].split(",")
    )
    model.save(tmp_path / "tested")
    loaded = DPI.load(tmp_path / "tested", env=limited(12))
    assert float(loaded.policy.tested_return) == float(model.policy.tested_return) and loaded.test_every == 2
    obs = STATES.astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.learn(2 * STEPS, reset_num_timesteps=False)


def test_the_deployed_policy_follows_units() -> None:
    """What acts stays the same while what learns goes on and the units of states change."""
    model = small(limited(12), test_every=2).learn(2 * STEPS)
    model.policy.deploy(copy.deepcopy(model.policy.averaged), 1e9)
    obs = STATES.astype(np.float32)
    before = model.predict(obs, deterministic=True)[0]
    mean = model.ensemble.state_mean.clone()
    model._challenges = Challenges(None, model.policy)
    model.learn(4 * STEPS, reset_num_timesteps=False)
    assert not th.equal(model.ensemble.state_mean, mean)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], before, atol=1e-4)
