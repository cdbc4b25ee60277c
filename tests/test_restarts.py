"""Leaving long episodes."""

import numpy as np
import pytest
from dummy_envs import DictPointMass, counters, vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.common.restarts import Restarts


def test_only_long_episodes_are_left() -> None:
    env = counters()
    env.reset()
    restarts = Restarts(3, 4)
    observations = np.ones((4, 3), dtype=np.float32)
    for dones in ([0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]):
        restarts.count(np.array(dones, dtype=bool))
    restarts.begin(np.array([False, False, True, False]))
    fresh, left = restarts.leave(env, observations, None)
    assert left.tolist() == [0, 3]
    assert fresh[:, 0].tolist() == [0.0, 1.0, 1.0, 3.0] and np.all(observations == 1.0), "a copy"
    assert not len(restarts.leave(env, fresh, None)[1]), "they have just begun"


def test_limits_are_spread() -> None:
    n = 40_000
    env, lengths, steps = counters(), [], np.zeros(4, dtype=int)
    env.reset()
    restarts = Restarts(16, 4, np.random.default_rng(1))
    observations = np.ones((4, 3), dtype=np.float32)
    for _ in range(n):
        steps += 1
        dones = steps == 1000
        restarts.count(dones)
        left = restarts.leave(env, observations, None)[1]
        lengths.extend(steps[left])
        steps[left], steps[dones] = 0, 0
    found = np.array(lengths)
    assert found.min() in (8, 9)
    for limit in (16, 64):
        assert (found > limit).mean() == pytest.approx(8 / limit, rel=0.1), "twice as long half as often"


def test_spared_episodes_are_not_left() -> None:
    env = counters()
    env.reset()
    restarts = Restarts(2, 4)
    restarts.spare(1)
    observations = np.ones((4, 3), dtype=np.float32)
    for _ in range(3):
        restarts.count(np.zeros(4, dtype=bool))
    assert restarts.leave(env, observations, None)[1].tolist() == [0, 2, 3]
    restarts.count(np.array([False, True, False, False]))
    for _ in range(3):
        restarts.count(np.zeros(4, dtype=bool))
    assert 1 in restarts.leave(env, observations, None)[1], "the next episode is one like any other"


def test_dictionaries_are_normalised_as_their_wrapper_does() -> None:
    env = VecNormalize(vec_env(2, DictPointMass))
    observations = env.reset()
    restarts = Restarts(1, 2)
    restarts.count(np.array([False, True]))
    fresh, left = restarts.leave(env, observations, env)
    assert left.tolist() == [0]
    raw = env.env_method("observation", indices=0)[0]
    for key, array in env.normalize_obs({key: np.asarray(value)[None] for key, value in raw.items()}).items():
        np.testing.assert_allclose(fresh[key][0], array[0], rtol=1e-6)
        np.testing.assert_array_equal(fresh[key][1], observations[key][1])
