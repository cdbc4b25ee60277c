"""Plans whose size is known before anything is sampled, and what becomes of states that are too large for one."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from algorithms import Make, every, parameters, small_dpi, small_mdgps
from dummy_envs import ITERATION, PointMass
from gymnasium import spaces

from sb3_dpi.common import local_models, plan_size
from sb3_dpi.common.local_models import RegressionSettings, fit_regression
from sb3_dpi.common.plan_size import LARGEST_PLAN, PlanSize, reduce_states
from sb3_dpi.common.trajectories import Trajectories


class Wide(PointMass):
    """
    The point mass behind many sensors, each of which sees position and velocity in a mixture and units of its own.

    :param n: sensors
    """

    def __init__(self, n: int = 30) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (n,), np.float32)
        rng = np.random.default_rng(0)
        self.mixture = rng.normal(size=(n, 2)) * 10.0 ** rng.uniform(-6.0, 6.0, (n, 1))

    def observation(self) -> Any:
        """:return: what the sensors see"""
        return (self.mixture @ self.state).astype(np.float32)


def size(**changed: Any) -> PlanSize:
    numbers: dict[str, Any] = {
        "n_conditions": 25, "n_samples": 4, "horizon": 200, "state_dim": 350, "action_dim": 2, "prior": "nearest",
    }  # fmt: skip
    return PlanSize(**{**numbers, **changed})


def test_the_largest_state_that_fits_is_kept() -> None:
    """Every prior, horizon and number of conditions within both limits, and one more number beyond one of them."""
    for prior in ("nearest", "gmm", "niw"):
        for horizon in (50, 200, 1000):
            plan = size(prior=prior, horizon=horizon)
            rank = plan.rank()
            assert rank is not None and 4 <= rank < 350 and plan.n_bytes(rank) <= LARGEST_PLAN
            assert plan.n_bytes(rank + 1) > LARGEST_PLAN or plan.operations(rank + 1) > plan_size.LONGEST_PLAN
    assert size(state_dim=17).rank() is None
    assert size(n_conditions=1, horizon=20).rank() is None
    # joint covariances of 702 numbers at 5,000 time steps fill 20 GB
    assert size().n_bytes(350) > 8 * 702**2 * 5000


def test_time_is_limited_as_well() -> None:
    rank = size(n_conditions=1, horizon=10, state_dim=1500).rank()
    assert rank is not None and size(n_conditions=1, horizon=10).n_bytes(rank) < LARGEST_PLAN


def test_fits_take_time_too() -> None:
    """Regressions of large states, mixtures of many points, and the many features of a cost that has as many samples; what
    is only kept behind the fits counts in them."""
    by_prior = {prior: size(prior=prior, state_dim=60).operations(60) for prior in ("niw", "nearest", "gmm")}
    planning = 3.0 * plan_size.PASSES * 25 * 200 * 62.0**3
    assert planning < by_prior["niw"] < by_prior["nearest"] < by_prior["gmm"]
    few, many = (size(n_samples=n, state_dim=30, horizon=20, prior="niw").operations(30) for n in (2, 40))
    features = 33 * 34 // 2
    assert many - few == pytest.approx(0.5 * (20000 * features**2 - 1000 * 65**2) + (features**3 - 65**3) / 3.0)
    assert size(n_pooled=1000, state_dim=30).operations(30) > size(state_dim=30).operations(30)
    mixture = size(prior="gmm", state_dim=85, n_samples=24, n_conditions=10, horizon=100)
    assert mixture.operations(85) > plan_size.LONGEST_PLAN > mixture.operations(mixture.rank() or 85)
    assert mixture.n_bytes(85) < LARGEST_PLAN, "memory alone would let it pass"


@pytest.mark.parametrize("changed", [{"horizon": 10**7}, {"n_conditions": 10**6}, {"action_dim": 2000}], ids=str)
def test_plans_that_do_not_fit_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"GiB and .* are the most. Set a shorter horizon, or lower n_conditions"):
        size(**changed).rank()


@every(from_conditions=True)
def test_it_is_known_at_construction(make: Make) -> None:
    """350 observations under the numbers of conditions and steps that are usual; nothing is sampled."""
    env = Wide(350)
    options: dict[str, Any] = {"horizon": 200, "n_conditions": 5, "samples_per_condition": 4, "replay": 4, "dynamics": "niw"}
    with pytest.warns(UserWarning, match=r"all 350 numbers of the state takes .* GiB: it is made in the \d+ directions"):
        model = make(env, **options)
    assert env.n_steps == 0 and 10 < model.state_rank < 100
    with pytest.raises(ValueError, match=r"GiB, and a known cost cannot do with fewer numbers: a shorter horizon"):
        make(env, cost=lambda obs, action, next_obs: (obs**2).sum(-1), **options)
    with pytest.raises(ValueError, match="Set a shorter horizon"):
        make(horizon=10**9)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sampling": "local", "conditions": "fixed"}, 'sampling="local"'),
        ({"step_rule": "classic"}, 'step_rule="classic"'),
        ({"initial_controller": "pd"}, 'initial_controller="pd"'),
        ({"linearization": "jacobian"}, 'linearization="jacobian"'),
    ],
)
def test_what_needs_the_whole_state(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"and {named} cannot do with fewer numbers"):
        small_mdgps(Wide(350), horizon=200, n_conditions=10, replay=4, **given)


@pytest.mark.parametrize("prior", ["nearest", "niw"])
def test_memory_is_what_was_predicted(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a quarter of it and all, where the matrices count."""
    for module in (local_models, plan_size):
        monkeypatch.setattr(module, "FITTED_AT_ONCE", 1e6)
    model = small_mdgps(Wide(60), horizon=10, n_conditions=5, dynamics=prior).learn(1)
    model._setup_learn(1)
    tracemalloc.start()
    model.train()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    predicted = PlanSize(5, 2, 10, 60, 1, prior).n_bytes(60)
    assert 0.25 * predicted < peak < predicted + 5e6


@every(from_conditions=True)
def test_it_learns_in_a_few_directions(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directions are all that thirty sensors see: the plan is as good as one that sees the state itself."""
    options: dict[str, Any] = {"samples_per_condition": 6, "conditions": "fixed"}
    plain = make(PointMass(), **options).learn(1)
    monkeypatch.setattr(PlanSize, "rank", lambda self: 2 if self.state_dim > 2 else None)
    with pytest.warns(UserWarning, match="in the 2 directions of most variance"):
        model = make(Wide(), **options)
    model.learn(1)
    found, expected = (one.fit_model(one.recall()) for one in (model, plain))
    found, expected = (getattr(fit, "local", fit) for fit in (found, expected))
    assert found.dynamics.F.shape[-2:] == (2, 3) and model.state_rank == 2

    def poles(fit: Any) -> np.ndarray:
        return np.sort_complex(np.linalg.eigvals(fit.dynamics.F[..., :2].mean((0, 1))))

    np.testing.assert_allclose(poles(found), poles(expected), atol=0.1)
    before = parameters(model)
    model.learn(2 * ITERATION, reset_num_timesteps=False)
    assert np.isfinite(parameters(model)) and parameters(model) != before
    assert model.rollout_buffer.trajectories().states.shape[-1] == 30, "what is kept is whole"


def test_directions_keep_distances() -> None:
    """Of states that lie in a plane, in standard deviations of each number, whatever its units."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(2, 3, 6, 2))
    states = 5.0 + (flat @ rng.normal(size=(2, 9))) * 10.0 ** rng.uniform(-5.0, 5.0, 9)
    alive = np.ones((2, 3, 5), dtype=bool)
    none = np.zeros((2, 3, 5))
    reduced = reduce_states(Trajectories(states, states, none[..., None], none, alive, ~alive), 2).states
    standard = (states - states[:, :, :-1].mean((0, 1, 2))) / states[:, :, :-1].std((0, 1, 2))
    assert reduced.shape == (2, 3, 6, 2)
    np.testing.assert_allclose((reduced**2).sum(-1), (standard**2).sum(-1), rtol=1e-8)


@pytest.mark.parametrize("prior", ["nearest", "gmm", "niw"])
def test_fits_do_not_depend_on_how_many_are_made_at_once(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(5, 4, 6, 5)), np.ones((5, 4, 6))
    settings = RegressionSettings(prior=prior)
    together = fit_regression(points, weights, 3, settings, np.random.default_rng(1), n_fitted=4)
    monkeypatch.setattr(local_models, "FITTED_AT_ONCE", 1.0)
    apart = fit_regression(points, weights, 3, settings, np.random.default_rng(1), n_fitted=4)
    assert together.coef.shape == (4, 6, 2, 3)
    for name in ("coef", "bias", "cov"):
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-9, atol=1e-12)


def test_windows_of_large_states() -> None:
    """The second-order expert knows matrices of every window and step, the others do not."""
    env, usual = Wide(350), {"n_windows": 200, "horizon": 10}
    with pytest.raises(ValueError, match=r"200 windows of 10 steps takes .* GiB for states of 350 numbers"):
        small_dpi(env, expert="lqr", imagination=usual)
    assert env.n_steps == 0
    for options in ({"expert": "pathwise", "imagination": usual}, {"expert": "lqr"}):
        assert small_dpi(Wide(350), **options).policy.state_dim == 350  # type: ignore[arg-type]
