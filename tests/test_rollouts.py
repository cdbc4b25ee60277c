"""Model rollouts: noise of what members miss, members that take turns, parts that are renewed, windows that begin at them."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import parameters
from algorithms import small_dpi as small
from dummy_envs import ITERATION as STEPS
from memories import ListMemory

from sb3_dpi import DPI
from sb3_dpi.dpi import dpi as dpi_module
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Batch, Imagination, Misses, Windows, make_windows, roll_out
from sb3_dpi.world_model.rollouts import RolloutOptions, RolloutPool, rollouts
from sb3_dpi.world_model.types import Transitions

E, M, H = 3, 8, 4
EXACT = "donot_use_mm_for_euclid_dist"
FREE = {"kind": "free"}


@pytest.fixture
def noisy() -> tuple[Ensemble, ListMemory]:
    """A walk x' = .9 x + u + N(0, .3^2), and a model that is right about its mean."""
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(3000, 2)), rng.uniform(-1.0, 1.0, (3000, 2))
    following = 0.9 * x + u + 0.3 * rng.normal(size=x.shape)
    memory = ListMemory(Transitions(x, u, -(x**2).sum(1), following, np.zeros(3000, bool)), np.ones(3000, bool))
    ensemble = Ensemble(2, 2, n_members=E, width=32, learning_rate=2e-3)
    ensemble.observe(memory.data)
    ensemble.fit(memory, 1500, 64, np.random.default_rng(0))
    return ensemble, memory


def begin(ensemble: Ensemble, memory: ListMemory, m: int = M, horizon: int = H) -> Windows:
    rows = np.random.default_rng(1).integers(len(memory), size=E * m)
    return make_windows(ensemble, memory, rows, horizon, False)


def test_noise_spreads_as_the_world_does(noisy: tuple[Ensemble, ListMemory]) -> None:
    """Of the same state and action; without noise all members' windows end close together."""
    ensemble, memory = noisy
    start = begin(ensemble, memory, 2000, 1)
    same = replace(start, states=th.zeros_like(start.states))
    actor = SquashedGaussian(2, 2, (8, 8))
    still = th.zeros(2, E, 2000, 2)

    def spread(windows: Windows) -> np.ndarray:
        with th.no_grad():
            ends = roll_out(actor, ensemble, windows, still).states[-1]
        return (ends * ensemble.state_std).flatten(0, 1).std(0).numpy()

    assert np.all(spread(same) < 0.1)
    for scale in (1.0, 0.5):
        disturbed = Misses.of(ensemble, memory, 1000, scale).added_to(same, np.random.default_rng(2))
        np.testing.assert_allclose(spread(disturbed), 0.3 * scale, rtol=0.15)
        assert th.equal(disturbed.reward_residuals, same.reward_residuals)


@pytest.mark.parametrize("members_change", [False, True])
def test_noise_is_what_that_member_missed(noisy: tuple[Ensemble, ListMemory], members_change: bool) -> None:
    """On the latest steps alone, drawn anew for every step of every window."""
    ensemble, memory = noisy
    misses = Misses.of(ensemble, memory, 40, 2.0)
    drawn = misses.added_to(begin(ensemble, memory), np.random.default_rng(0), members_change).state_residuals
    data = memory.take(memory.newest(40))
    inputs = (
        ensemble.standardize(data.states).expand(E, -1, -1),
        th.as_tensor(data.actions, dtype=th.float32).expand(E, -1, -1),
    )
    with th.no_grad():
        missed = ensemble.standardize(data.next_states) - ensemble.predict(*inputs)[0]
    for t, first in np.ndindex(H, E):
        member = (first + t * members_change) % E
        distance = th.cdist(drawn[t, first], 2.0 * missed[member], compute_mode=EXACT).amin(1)
        assert distance.max() < 1e-4
    assert len(drawn.flatten(0, 2).unique(dim=0)) > 60


def test_members_take_turns(noisy: tuple[Ensemble, ListMemory]) -> None:
    """The one of window e is e, e + 1 and so on, by a loop over windows."""
    ensemble, memory = noisy
    windows, actor = begin(ensemble, memory), SquashedGaussian(2, 2, (8, 8))
    noise = th.randn(H + 1, E, M, 2)
    with th.no_grad():
        found = roll_out(actor, ensemble, windows, noise, members_change=True)
        for first in range(E):
            states = windows.states[first]
            for t in range(H):
                actions, _ = actor.sample(states, noise[t, first])
                member = (first + t) % E
                following, rewards = ensemble.predict(states.expand(E, -1, -1), actions.expand(E, -1, -1))
                states = ensemble.clip(following[member])
                th.testing.assert_close(found.states[t + 1, first], states)
                th.testing.assert_close(found.rewards[t, first], rewards[member])


def numbered() -> Any:
    """:return: what draws batches whose rows say which draw they are of"""
    drawn = iter(range(100))

    def draw(n: int) -> Batch:
        k = float(next(drawn))
        return Batch(th.full((n, 2), k), *(th.full((n,), k) for _ in fields(Batch)[1:]))

    return draw


def test_the_oldest_part_is_renewed() -> None:
    pool = RolloutPool(numbered(), 40, 4)
    for expected in ([0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]):
        assert pool.steps.rewards.tolist() == [k for k in expected for _ in range(10)]
        pool.renew()


@pytest.mark.parametrize(("share", "n"), [(0.0, 0), (0.125, 1), (0.25, 2), (1.0, 8)])
def test_a_share_of_windows_begins_at_rollouts(share: float, n: int) -> None:
    pool = RolloutPool(numbered(), 40, 4)
    real = Windows(th.full((E, M, 2), -1.0), th.randn(H, E, M, 2), th.randn(H, E, M))
    begun = pool.begin(real, share, np.random.default_rng(0))
    assert (begun.states[:, :n] >= 0.0).all() and (begun.states[:, n:] == -1.0).all()
    assert begun.state_residuals is real.state_residuals and begun.reward_residuals is real.reward_residuals
    assert n < M or set(begun.states.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_an_empty_pool_leaves_windows_at_real_steps() -> None:
    pool = RolloutPool(lambda n: Batch(th.zeros(0, 2), *(th.zeros(0) for _ in fields(Batch)[1:])), 40, 4)
    real = Windows(th.zeros(E, M, 2), th.zeros(H, E, M, 2), th.zeros(H, E, M))
    assert pool.begin(real, 1.0, np.random.default_rng(0)) is real


# ---------------------------------------------------------------------- in DPI


def test_dpi_begins_its_windows_in_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """That are renewed while the policy learns; the same numbers for the same seed."""
    monkeypatch.setattr(dpi_module, "RENEWED_AFTER", 2)
    drawn: list[int] = []
    original, improve = dpi_module.rollouts, DPI.improve_expert
    begun: list[th.Tensor] = []

    def record(*args: Any) -> Batch:
        drawn.append(args[-2])
        assert args[-1].members_change and args[-1].misses.scale == 0.5
        return original(*args)

    def plan(self: DPI, windows: Windows) -> Any:
        begun.append(windows.states)
        assert windows.state_residuals.abs().sum() > 0.0
        return improve(self, windows)

    options: dict[str, Any] = {
        "gradient_steps": 300,  # of which a fiftieth are taken
        "preset": FREE,
        "imagination": {"imagined_starts": 1.0, "model_noise": 0.5},
    }
    expected = parameters(small(seed=3, **options).learn(2 * STEPS))
    monkeypatch.setattr(dpi_module, "rollouts", record)
    monkeypatch.setattr(DPI, "improve_expert", plan)
    model = small(seed=3, **options).learn(2 * STEPS)
    assert parameters(model) == expected
    n_parts = dpi_module.N_PARTS
    assert len(drawn) > model.n_iterations * n_parts and len(set(drawn)) == 1
    kept = model.ensemble.standardize(model.memory.take(model.memory.newest(10_000)).states)
    assert th.cdist(begun[-1].flatten(0, 1), kept).amin(1).median() > 1e-4


def test_an_expansion_is_the_first_steps_of_whole_rollouts(noisy: tuple[Ensemble, ListMemory]) -> None:
    """That begin at real states, each with a target of all steps, and then the same steps once more."""
    ensemble, memory = noisy
    actor, options = SquashedGaussian(2, 2, (8, 8)), RolloutOptions(H, 0.3, 0.9)
    every = rollouts(ensemble, actor, memory, np.random.default_rng(3), H * E * M, options)
    pairs = rollouts(ensemble, actor, memory, np.random.default_rng(3), 2 * E * M, replace(options, expanding=True))
    for part in fields(Batch):
        both = getattr(pairs, part.name).unflatten(0, (E, 2, M))
        th.testing.assert_close(both[:, 0].flatten(0, 1), getattr(every, part.name)[: E * M])
        assert th.equal(both[:, 0], both[:, 1]) == (part.name in ("states", "actions", "continuation"))
    assert len(pairs) == 2 * E * M and pairs.continuation.tolist() == pytest.approx([0.9 ** (H - 1)] * len(pairs))
    assert th.cdist(pairs.states, ensemble.standardize(memory.data.states), compute_mode=EXACT).amin(1).max() < 1e-4


def test_pairs_of_an_expansion_cancel_the_noise_of_the_policy(noisy: tuple[Ensemble, ListMemory]) -> None:
    """Where the system is nearly linear: a pair's mean end and return are nearly those of a policy without noise."""
    ensemble, memory = noisy
    actor = SquashedGaussian(2, 2, (8, 8))
    options = RolloutOptions(3, 0.0, 0.9, corrected=True, expanding=True)

    class Still:
        """Draws the same, without noise after the first step."""

        def __init__(self) -> None:
            self.integers, self.random = (rng := np.random.default_rng(4)).integers, rng.random
            self._normal = rng.standard_normal

        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            drawn = self._normal(shape)
            drawn[1:] = 0.0
            return drawn

    found = rollouts(ensemble, actor, memory, np.random.default_rng(4), 2 * E * 500, options)
    still: Any = Still()
    wanted = rollouts(ensemble, actor, memory, still, 2 * E * 500, options)
    for part in fields(Batch):  # nothing but the noise sets them apart
        both = getattr(wanted, part.name).unflatten(0, (E, 2, 500))
        th.testing.assert_close(both[:, 0], both[:, 1])
    for name in ("next_states", "rewards"):
        misses = (getattr(found, name) - getattr(wanted, name)).unflatten(0, (E, 2, 500))
        assert misses.mean(1).square().mean() < 0.2 * misses.square().mean()


@pytest.mark.parametrize("preset", ["free", "corrected"])
def test_dpi_expands_values_of_real_states(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, RolloutOptions, Batch]] = []
    original = dpi_module.rollouts

    def record(*args: Any) -> Batch:
        made = original(*args)
        seen.append((*args[-2:], made))
        return made

    monkeypatch.setattr(dpi_module, "rollouts", record)
    model = small(preset=preset, imagination={"value_expansion": 60, "rollout_length": 3}).learn(2 * STEPS)
    assert len(seen) == model.n_iterations == 2
    for n, options, made in seen:
        assert (n, options.length, options.expanding) == (60, 3, True)
        assert options.corrected == (preset == "corrected") and 0 < len(made) <= 60 + 2 * model.ensemble.n_members
    model.preset = {"kind": preset, "value_expansion": 30}
    assert model._resolve(preset).value_expansion == 60, "what is given stands in every preset"


def test_by_default_rollouts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = dpi_module.rollouts

    def record(*args: Any) -> Batch:
        seen.append(args[-1])
        return original(*args)

    monkeypatch.setattr(dpi_module, "rollouts", record)
    model = small().learn(2 * STEPS)
    assert len(seen) == model.n_iterations and not any(options.members_change or options.misses for options in seen)


@pytest.mark.parametrize(
    "number",
    [
        {"imagined_starts": 1.5},
        {"imagined_starts": -0.1},
        {"model_noise": -1.0},
        {"model_noise": np.inf},
        {"value_expansion": -1},
    ],
)
def test_numbers_out_of_range_are_refused(number: dict[str, float]) -> None:
    (name,) = number
    with pytest.raises(ValueError, match=f"imagination: {name} must be"):
        Imagination(**number)
    with pytest.raises(ValueError, match=name):
        small(preset={**FREE, **number})


@pytest.mark.parametrize("number", [{"imagined_starts": 1.0}, {"model_noise": 1.0}])
def test_what_is_given_turns_the_other_off(number: dict[str, float]) -> None:
    """Whichever preset it stands beside; both at once are refused."""
    (name,) = number
    for preset in ("corrected", "free", None):
        numbers = small(preset=preset, imagination=number).numbers
        assert not numbers.on_policy_correction and getattr(numbers, name) == 1.0
    corrected = small(preset={**FREE, "on_policy_correction": True}).numbers
    assert corrected.on_policy_correction and corrected.model_noise == corrected.imagined_starts == 0.0
    with pytest.raises(ValueError, match="for windows from real steps alone"):
        small(imagination={**number, "on_policy_correction": True})


def test_an_expansion_has_no_states_to_begin_at() -> None:
    with pytest.raises(ValueError, match="value_expansion does not keep"):
        Imagination(value_expansion=60, imagined_starts=1.0)
    with pytest.raises(ValueError, match="value_expansion does not keep"):
        small(preset={**FREE, "imagined_starts": 1.0}, imagination={"value_expansion": 60})
