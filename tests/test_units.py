"""That nothing learned depends on the units of rewards and observations, nor on one number that is wrong."""

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import ITERATION, Make, Model, answers, called, every, every_algorithm, parameters
from dummy_envs import POINT_MASS_LIMIT, DictPointMass, PointMass
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DualAC
from sb3_dpi.common.finite import NotFiniteError
from sb3_dpi.trajopt.units import (
    FARTHEST,
    cut_outliers,
    geometric_mean,
    outlier_limit,
    power_of_two,
    replace_outliers,
    spread_or_one,
    varies,
)

PROBES = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 2)).astype(np.float32).astype(np.float64)


class OtherUnits(gym.Wrapper):  # type: ignore[type-arg]
    """
    The point mass, which now and then ends early, in other units: ``scale (observation + offset)``.

    :param reward: factor of the rewards
    :param scale: of the observations
    :param offset: of the observations
    :param double: whether they are observed in double precision
    :param outlier: the 25th reward
    """

    def __init__(
        self, reward: float = 1.0, scale: float = 1.0, offset: float = 0.0, double: bool = False, outlier: float | None = None
    ) -> None:
        super().__init__(gym.wrappers.TimeLimit(PointMass(death=(8, 20)), POINT_MASS_LIMIT))
        self.reward, self.scale, self.offset, self.outlier, self.n = reward, scale, offset, outlier, 0
        self.dtype: Any = np.float64 if double else np.float32
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), self.dtype)

    def observe(self, observation: np.ndarray) -> np.ndarray:
        """:return: in these units"""
        return (self.scale * (observation.astype(np.float64) + self.offset)).astype(self.dtype)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: in these units"""
        observation, info = self.env.reset(**kwargs)
        return self.observe(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """:return: in these units"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.n += 1
        paid = float(np.float32(reward)) * self.reward
        return self.observe(observation), self.outlier if self.n == 25 and self.outlier else paid, terminated, truncated, info


def learn(make: Make, n_iterations: int, units: dict[str, Any], policy: str = "MlpPolicy", **kwargs: Any) -> Model:
    """:return: a small model that has learned in these units"""
    model = make(OtherUnits(**units), policy, **kwargs)
    return model.learn(ITERATION * (n_iterations + make.squashes))  # whose first iteration follows a warm-up


def actions(model: Model, scale: float = 1.0, offset: float = 0.0, double: bool = False, **_: Any) -> np.ndarray:
    """:return: where the point mass is at ``PROBES``"""
    return answers(model, (scale * (PROBES + offset)).astype(np.float64 if double else np.float32))


@cache
def plain(make: Make, n_iterations: int, double: bool = False) -> Model:
    """:return: a model of the same environment in its own units"""
    return learn(make, n_iterations, {"double": double})


def check_bits(first: Model, second: Model) -> None:
    """All that the policy is made of is the same, or what plans do."""
    np.testing.assert_array_equal(actions(first), actions(second))
    one, other = first.policy.state_dict(), second.policy.state_dict()
    assert [name for name in one if not th.equal(one[name], other[name])] == []


# ---------------------------------------------------------------------- rewards


@pytest.mark.parametrize("exponent", [-20, 20])
@every_algorithm
def test_a_power_of_two_of_the_rewards_changes_no_bit(make: Make, exponent: int) -> None:
    check_bits(learn(make, 2, {"reward": 2.0**exponent}), plain(make, 2))


VARIANTS: list[tuple[type[Model], dict[str, Any]]] = [
    (MDGPS, {"conditions": "fixed", "step_rule": "classic", "replay": 1, "gamma": 0.9}),
    (MDGPS, {"kl_per_time_step": True, "step_rule": "global", "dynamics": "gmm"}),
    (AggreVaTeDOC, {"critic_replay": True, "aggregate": True, "replay": 1}),
    (AggreVaTeDOC, {"trust": 0.5, "cost": {"local_window": 2}}),
    (DPI, {"critic": {"kind": "returns"}, "expert": "mppi"}),
    (DPI, {"expert": "lqr", "preset": "free"}),
    (DPI, {"expert": "icem", "policy_kwargs": {"activation_fn": th.nn.Tanh}}),
    (DualAC, {"policy": "RBFPolicy", "gradient": "literal"}),
    (DualAC, {"use_sde": True, "held_out_values": False, "policy_kwargs": {"net_arch": [8]}}),
]


@pytest.mark.parametrize("algorithm, options", VARIANTS, ids=str)
def test_no_variant_knows_the_unit_of_rewards(algorithm: type[Model], options: dict[str, Any]) -> None:
    (make,) = called(algorithm)
    check_bits(*(learn(make, 2, {"reward": reward}, **options) for reward in (1.0, 2.0**-20)))


@pytest.mark.parametrize("reward", [1e-8, 1e8])
@every_algorithm
def test_no_factor_of_the_rewards_matters_beyond_rounding(make: Make, reward: float) -> None:
    np.testing.assert_allclose(actions(learn(make, 1, {"reward": reward})), actions(plain(make, 1)), atol=1e-3)


# ---------------------------------------------------------------------- observations

SINGLE = [{"scale": scale, "offset": offset} for scale, offset in ((1e-8, 0.0), (1e8, 0.0), (1.0, 500.0), (1e-8, -500.0))]
DOUBLE = [{"scale": scale, "offset": 1e6, "double": True} for scale in (1e-8, 1.0, 1e8)]
DOUBLE += [{"scale": scale, "double": True} for scale in (1e-140, 1e140)]


@pytest.mark.parametrize("units", SINGLE + DOUBLE, ids=str)
@every(plain_networks=False)
def test_units_of_the_observations_do_not_matter(make: Make, units: dict[str, Any]) -> None:
    """Offsets are in units of what is observed, whose standard deviation is about a half."""
    expected = actions(plain(make, 1, units.get("double", False)))
    np.testing.assert_allclose(actions(learn(make, 1, units), **units), expected, atol=1e-3)


@every(plain_networks=False)
def test_an_untrained_policy_knows_no_units(make: Make) -> None:
    """What samples first must not depend on them; gSDE, whose noise is made of what it sees, does."""
    acts = [actions(make(OtherUnits(scale=scale)), scale, double=True) for scale in (1.0, 1e8)]
    if make.squashes or make.plans:  # it begins with random actions
        return
    np.testing.assert_array_equal(*acts)


# ---------------------------------------------------------------------- one number that is wrong


@every_algorithm
def test_an_outlier_counts_as_far_as_the_limit(make: Make) -> None:
    """Of two that are both beyond it the size is not seen. That hardly any is seen at all is measured in returns, which
    ``test_run.py`` compares with those without one."""
    far, farther = (learn(make, 2, {"outlier": outlier}) for outlier in (-1e6, -1e9))
    check_bits(far, farther)


def test_outliers() -> None:
    rewards = np.full(3000, 2.0)
    rewards[[5, 10, 2000]] = -1e9, 150.0, 40.0
    assert outlier_limit(rewards) == pytest.approx(2.0 * FARTHEST)
    cut = cut_outliers(rewards)
    assert cut[[5, 10, 2000]].tolist() == [-100.0, 100.0, 40.0]
    np.testing.assert_array_equal(np.delete(cut, [5, 10]), np.delete(rewards, [5, 10]))
    assert outlier_limit(2.0**-30 * rewards) == 2.0**-30 * outlier_limit(rewards)
    rewards[:10] = 1e9
    assert outlier_limit(rewards) > 1e9, "what is more than one in a thousand is no outlier"
    sparse = np.zeros(1000)
    sparse[7] = 1.0
    assert outlier_limit(sparse) == np.inf, "where nothing else was earned it is all there is"
    assert outlier_limit(np.array([3.0])) == np.inf and outlier_limit(np.array([3.0, 5.0])) == pytest.approx(3.0 * FARTHEST)


def test_the_limit_is_that_of_all_but_the_largest() -> None:
    values = np.random.default_rng(0).standard_cauchy(2500)
    for n_each in (1, 2, 833):  # which leaves one number
        rest = np.sort(np.abs(values))[: 2500 - 3 * n_each]
        assert outlier_limit(values, n_each) == pytest.approx(FARTHEST * np.sqrt(np.mean(rest**2)))
    rounded = (1e3 + 2e-11 * np.random.default_rng(0).normal(size=200))[:, None]
    assert replace_outliers(np.array([[1e3 + 1e-6]]), rounded) == 1e3 + 1e-6, "what only rounds has no outliers"


def test_outliers_of_a_variable_are_medians() -> None:
    """Each variable is judged by itself, in any units, and what never varied or varies often has none."""
    rng = np.random.default_rng(0)
    known = np.stack([rng.normal(size=1000), 500.0 + 1e-9 * rng.normal(size=1000), np.ones(1000), np.zeros(1000)], 1)
    values = known[:3].copy()
    values[1] = -1e6, 600.0, 7.0, 1.0
    found = replace_outliers(values, known)
    np.testing.assert_array_equal(found[[0, 2]], known[[0, 2]])
    np.testing.assert_array_equal(found[1], [np.median(known[:, 0]), np.median(known[:, 1]), 7.0, 1.0])
    scale = np.array([2.0**-30, 2.0**20, 8.0, 1.0])
    np.testing.assert_array_equal(replace_outliers(scale * values, scale * known), scale * found)
    known[0, 0] = 1e6
    assert replace_outliers(values, known)[1, 0] == np.median(known[:, 0]), "one of a thousand is an outlier"
    known[1, 0] = 1e6
    assert replace_outliers(values, known)[1, 0] == -1e6, "two of a thousand are no outliers"
    assert replace_outliers(values, known, n_each=2)[1, 0] == np.median(known[:, 0]), "where one spoils two, they are"


# ---------------------------------------------------------------------- units


def test_powers_of_two() -> None:
    sizes = np.array([1.0, 1.999, 2.0, 0.75, 1e-300, 0.0, np.inf])
    assert power_of_two(sizes).tolist() == [1.0, 1.0, 2.0, 0.5, 2.0**-997, 1.0, 1.0]


def test_geometric_mean() -> None:
    values = np.array([0.3, 7.0, 11.0])
    assert geometric_mean(values) == pytest.approx(np.cbrt(0.3 * 7.0 * 11.0))
    assert geometric_mean(2.0**-20 * values) == 2.0**-20 * geometric_mean(values)


def test_what_varies() -> None:
    """Each is judged by its own mean: rounding is relative to that, whatever units others have."""
    std, mean = np.array([1e-8, 1e-3, 1e-6, 0.0, 1e-16, 1e12]), np.array([0.0, 1e7, 1e7, 3.0, 0.0, 1e20])
    assert varies(std, mean).tolist() == [True, True, False, False, True, True]
    assert spread_or_one(std, mean).tolist() == [1e-8, 1e-3, 1.0, 1.0, 1e-16, 1e12]
    with pytest.warns(UserWarning, match="at most 1e-151 are too small to compute with"):
        assert varies(np.array([1e-151, 1e-149, 0.0]), np.zeros(3)).tolist() == [False, True, False]


# ---------------------------------------------------------------------- NaN


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_algorithm
def test_no_action_is_predicted_for_what_is_not_finite(make: Make, bad: float) -> None:
    model = make()
    with pytest.raises(NotFiniteError, match=r"number 1 of observation 0 is (nan|inf)"):
        model.predict(np.array([0.5, bad], np.float32))
    with pytest.raises(NotFiniteError, match="number 0 of observation 2"):
        model.predict(np.array([[0.5, 0.0], [0.0, 0.0], [bad, 0.0]], np.float32))


@every_algorithm
def test_numbers_that_vanish_count_as_constant(make: Make) -> None:
    """Their squares are no numbers. Single precision, which PPO reads and ExIt with it, sees zeros long before."""
    if make.plain_networks:
        assert np.isfinite(parameters(learn(make, 1, {"scale": 1e-160, "double": True})))
        return
    for scale in (1e-160, 1e-200):
        with pytest.warns(
            UserWarning, match=r"at most \de-(160|161|200|201) are too small.* count as constant: rescale these"
        ):
            model = learn(make, 1, {"scale": scale, "double": True})
        assert np.isfinite(parameters(model)) and np.isfinite(actions(model, scale=scale, double=True)).all()


@every(plans=False)
def test_the_key_that_is_not_finite_is_named(make: Make) -> None:
    keys = ("position", "velocity")
    model = make(gym.wrappers.TimeLimit(DictPointMass(keys), POINT_MASS_LIMIT), "MultiInputPolicy")
    with pytest.raises(NotFiniteError, match="number 0 of 'velocity' in observation 0"):
        model.predict({"position": np.zeros(1, np.float32), "velocity": np.full(1, np.nan, np.float32)})


def test_running_statistics_of_nothing_have_no_unit() -> None:
    """What Dual-AC relies on: with a count of zero the first numbers alone count."""
    statistics, values = RunningMeanStd(epsilon=0.0), 1e-9 * np.array([1.0, 2.0, 4.0])
    statistics.update(values)
    assert statistics.mean == pytest.approx(values.mean()) and statistics.var == pytest.approx(values.var())
