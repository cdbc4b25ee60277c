"""The two forms of DPI: which is taken, what stands in both, what choosing leaves as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import small_dpi as small
from dummy_envs import PointMass, limited

from sb3_dpi import DPI
from sb3_dpi.dpi.forms import ANCHORED, FREE, Form
from sb3_dpi.models.ensemble import DivergedError, Ensemble


class Rough(PointMass):
    """It observes its state with noise that no model can tell."""

    def observation(self) -> Any:
        return (self.state + self.np_random.normal(0.0, 1.0, 2)).astype(np.float32)


class Even(Rough):
    """Every step pays the same."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, 1.0 - terminated, terminated, truncated, info


FORMS: list[tuple[type[PointMass], tuple[int, int] | None, Form, int]] = [
    (PointMass, (4, 6), ANCHORED, 130),
    (PointMass, (14, 18), ANCHORED, 400),
    (Rough, (4, 6), FREE, 1000),
    (Rough, (14, 18), FREE, 1000),
    (Rough, (60, 80), FREE, 1000),
    (Even, (14, 18), ANCHORED, 400),
    (Rough, (140, 160), ANCHORED, 1000),
    (Rough, None, ANCHORED, 1000),
]
"""A task and when its episodes end, the form that follows, and about how many steps are random"""


@pytest.mark.parametrize("task, death, form, start", FORMS)
def test_the_form_follows_the_first_random_steps(
    task: type[PointMass], death: tuple[int, int] | None, form: Form, start: int, tmp_path: Path
) -> None:
    env = gym.wrappers.TimeLimit(task(death=death), 200)
    model = small(env, n_steps=None, learning_starts=None)
    blocks: list[int] = []
    train = model.train
    model.train = lambda: (blocks.append(model.num_timesteps), train())[1]  # type: ignore[func-returns-value,method-assign]
    model.learn(1500)
    assert model.form == form and model.form_is_chosen and blocks[0] == pytest.approx(start, rel=0.2)
    np.testing.assert_array_equal(np.diff(blocks), form.n_steps)
    assert model.critic.tau == form.tau and model._restarts.after == form.restart_after
    assert model.gamma == pytest.approx(form.gamma if model.time_limit == 0 else 1.0 - 2.5 / 200)
    assert (model.tau, model.anchor, model.n_steps) == ("auto", "auto", None), "what was given stays"
    del model.train
    model.save(tmp_path / "model")
    loaded = DPI.load(tmp_path / "model", env=env)
    assert loaded.form == form and loaded.critic.tau == form.tau and loaded._restarts.after == form.restart_after
    assert th.equal(loaded.critic.networks.flat, model.critic.networks.flat)
    loaded.learn(form.n_steps, reset_num_timesteps=False)
    assert loaded.form == form and loaded.num_timesteps == model.num_timesteps + form.n_steps


def test_what_is_given_stands_in_every_form(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tau": 0.01, "anchor": True, "target_kl": 0.3, "restart_after": 40, "averaging": 0.1}
    given |= {"noise_correlation": 0.3, "critic_settling": 50, "branch_length": 3}
    model = small(gym.wrappers.TimeLimit(Rough(death=(14, 18)), 100), learning_starts=None, **given).learn(1001)
    assert model.form == replace(FREE, **given)
    model.save(tmp_path / "model")
    other = DPI.load(tmp_path / "model", env=limited(100), averaging=0.2)
    assert other.form == replace(FREE, **{**given, "averaging": 0.2})
    short = small(gym.wrappers.TimeLimit(Rough(death=(14, 18)), 100), learning_starts=100).learn(120)
    assert short.form == ANCHORED, "too few episodes to tell"


def test_what_a_form_chooses_could_have_been_given() -> None:
    found = small(Rough(death=(14, 18)), n_steps=None, learning_starts=None).learn(1500)
    names = ("tau", "critic_settling", "branch_length", "noise_scale", "noise_correlation", "gamma")
    given = {name: getattr(FREE, name) for name in names}
    spelled = small(Rough(death=(14, 18)), n_steps=None, learning_starts=1000, **given).learn(1500)
    assert found.form == spelled.form == FREE
    for ours, theirs in ((found.policy, spelled.policy), (found.critic, spelled.critic)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert th.equal(a, b)


def test_a_model_that_diverges_while_a_form_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be saved and where is said by the first fit that counts."""

    def diverge(*args: Any) -> float:
        raise DivergedError("It diverged")

    monkeypatch.setattr(Ensemble, "fit", diverge)
    model = small(gym.wrappers.TimeLimit(Rough(death=(4, 6)), 100), learning_starts=None)
    with pytest.raises(DivergedError, match=r"It diverged\. The policy is as before"):
        model.learn(2000)
    assert model.form == FREE and model.n_iterations == 0


def test_looking_for_a_form_changes_nothing_else() -> None:
    """The fit that tells draws no random numbers of the run's, and leaves the model as it was."""
    env = gym.wrappers.TimeLimit(PointMass(death=(4, 6)), 100)
    model = small(env, n_steps=None, learning_starts=None)
    model.train = lambda: None  # type: ignore[method-assign]
    before = model.ensemble.networks.flat.detach().clone()
    model.learn(200)
    drawn = model._rng.bit_generator.state, th.get_rng_state()
    model.form_is_chosen = False
    model._choose_form()
    assert model._rng.bit_generator.state == drawn[0] and th.equal(th.get_rng_state(), drawn[1])
    assert th.equal(model.ensemble.networks.flat, before) and not bool(model.ensemble.has_units)
