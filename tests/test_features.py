"""Random Fourier features: the kernel that they approximate, the median trick, and what a policy makes of them."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dpi.common.features import RandomFourierExtractor, RandomFourierFeatures, median_bandwidth

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def test_inner_products_approximate_the_gaussian_kernel() -> None:
    th.manual_seed(0)
    features = RandomFourierFeatures(3, 20_000)
    features.bandwidth.fill_(1.7)
    x = th.randn(15, 3)
    phi = features(x)
    kernel = th.exp(-(th.cdist(x, x) ** 2) / (2 * 1.7**2))
    np.testing.assert_allclose(phi @ phi.T / 20_000, kernel, atol=0.03)
    assert not list(features.parameters()), "nothing learns"


def test_median_bandwidth() -> None:
    points = np.random.default_rng(0).normal(size=(300, 4))
    distances = [np.linalg.norm(points[i] - points[j]) for i in range(300) for j in range(i)]
    assert median_bandwidth(points) == pytest.approx(np.median(distances), rel=1e-9)
    assert median_bandwidth(3.0 * points) == pytest.approx(3.0 * np.median(distances), rel=1e-9)
    large = np.random.default_rng(1).normal(size=(20_000, 4))
    assert median_bandwidth(large) == pytest.approx(np.sqrt(8.0) * 0.91, rel=0.1), "a part of the points is enough"


@pytest.mark.parametrize("points", [np.ones((50, 2)), np.zeros((1, 2))], ids=["equal", "one"])
def test_median_of_no_distance(points: np.ndarray) -> None:
    assert median_bandwidth(points) == 1.0


def test_the_first_fit_counts() -> None:
    th.manual_seed(0)
    extractor = RandomFourierExtractor(SPACE, n_features=7)
    x = th.randn(200, 3) * th.tensor([0.01, 1.0, 100.0]) + 5.0
    x = th.cat([x[:, :2], th.full((200, 1), 4.0)], 1)
    nothing = math.sqrt(2.0) * th.cos(extractor.features.phases)
    th.testing.assert_close(extractor(x), nothing.expand(200, -1))  # until then
    extractor.fit(x)
    np.testing.assert_allclose(extractor.obs_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(extractor.obs_std, [*x.std(0, correction=0)[:2], 1.0], rtol=1e-5)
    standard = ((x - extractor.obs_mean) / extractor.obs_std).numpy()
    assert float(extractor.features.bandwidth) == pytest.approx(median_bandwidth(standard), rel=1e-4)
    before = extractor(x)
    assert before.shape == (200, 7)
    extractor.fit(10.0 * x)
    assert th.equal(extractor(x), before)


def test_a_bandwidth_may_be_given() -> None:
    extractor = RandomFourierExtractor(SPACE, bandwidth=0.3)
    extractor.fit(th.randn(50, 3))
    assert float(extractor.features.bandwidth) == pytest.approx(0.3)


def test_scale_and_bandwidth_are_saved() -> None:
    first, second = RandomFourierExtractor(SPACE), RandomFourierExtractor(SPACE)
    x = th.randn(50, 3)
    first.fit(2.0 * x)
    second.load_state_dict(first.state_dict())
    assert th.equal(first(x), second(x))
    second.fit(x)
    assert th.equal(first(x), second(x)), "fitted is fitted"


@pytest.mark.parametrize("options", [{"n_features": 0}, {"bandwidth": 0.0}, {"bandwidth": -1.0}], ids=str)
def test_bad_arguments(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="n_features of at least 1 and a positive bandwidth"):
        RandomFourierExtractor(SPACE, **options)  # type: ignore[arg-type]
