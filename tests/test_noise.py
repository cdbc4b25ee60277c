"""Exploration noise against its covariance, and in what the environments receive."""

from typing import Any

import numpy as np
import pytest
from algorithms import small_aggrevated_oc
from dummy_envs import ITERATION, vec_env

from sb3_dpi.trajopt.noise import correlate


@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_covariance_over_time(correlation: float) -> None:
    """Variance 1 from the first step on, correlation ** distance, dimensions apart."""
    white = np.random.default_rng(0).standard_normal((6, 100_000, 2))
    noise = correlate(white, correlation)
    assert noise.shape == white.shape
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    for i in range(2):
        np.testing.assert_allclose(noise[..., i] @ noise[..., i].T / 100_000, correlation**distance, atol=0.02)
    assert np.abs((noise[..., 0] * noise[..., 1]).mean()) < 0.01


def test_recursion() -> None:
    white = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    noise = correlate(white, 0.8)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise[0], white[0])
    np.testing.assert_allclose(noise[1:], 0.8 * noise[:-1] + 0.6 * white[1:], rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_short_noise(length: int) -> None:
    assert correlate(np.ones((length, 2)), 0.5).shape == (length, 2)


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 0.0), (0.8, 0.8)])
def test_actions_are_correlated(correlation: float, expected: float) -> None:
    options: dict[str, Any] = {"horizon": 50, "samples_per_condition": 20, "n_conditions": 1, "conditions": "random"}
    model = small_aggrevated_oc(vec_env(2), noise_correlation=correlation, **options)
    model._setup_learn(1)
    assert model.env is not None
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
    trajectories = model.rollout_buffer.trajectories()
    flat = np.asarray(trajectories.observations)[:, :, :-1].reshape(-1, 2)
    means = model._actor(flat).reshape(trajectories.actions.shape)
    noise = (trajectories.actions - means)[..., 0]
    found = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    assert found == pytest.approx(expected, abs=0.1)
    assert noise.std() == pytest.approx(float(model.policy.log_std.detach().exp()), rel=0.1)
    model.learn(ITERATION)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0])
def test_range(bad: float) -> None:
    with pytest.raises(ValueError, match="noise_correlation must be at least 0 and below 1, got"):
        small_aggrevated_oc(noise_correlation=bad)
