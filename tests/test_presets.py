"""The presets of DPI: which is taken, what stands in both, what choosing leaves as it was."""

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
from sb3_dpi.dpi.presets import PRESETS, choose_preset
from sb3_dpi.world_model.ensemble import DivergedError, Ensemble

FREE = PRESETS["free"]


class Rough(PointMass):
    """It observes its state with noise that no model can tell."""

    def observation(self) -> Any:
        return (self.state + self.np_random.normal(0.0, 1.0, 2)).astype(np.float32)


class Even(Rough):
    """Every step pays the same."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, 1.0 - terminated, terminated, truncated, info


TASKS: list[tuple[type[PointMass], tuple[int, int] | None, str, int]] = [
    (PointMass, (4, 6), "corrected", 130),
    (PointMass, (14, 18), "corrected", 400),
    (Rough, (4, 6), "free", 1000),
    (Rough, (60, 80), "free", 1000),
    (Even, (14, 18), "corrected", 400),
    (Rough, (140, 160), "corrected", 1000),
    (Rough, None, "corrected", 1000),
]
"""A task and when its episodes end, the preset that follows, and about how many steps are random"""


@pytest.mark.parametrize("task, death, kind, start", TASKS)
def test_the_preset_follows_the_first_random_steps(
    task: type[PointMass], death: tuple[int, int] | None, kind: str, start: int, tmp_path: Path
) -> None:
    env = gym.wrappers.TimeLimit(task(death=death), 200)
    model = small(env, train_freq=None, learning_starts=None)
    blocks: list[int] = []
    train = model.train
    model.train = lambda *args: (blocks.append(model.num_timesteps), train(*args))[1]  # type: ignore[func-returns-value,method-assign]
    model.learn(min(start + 6 * PRESETS[kind].train_freq, 2300))  # room for five updates, which are else nearer
    gamma = PRESETS[kind].gamma if model.time_limit == 0 else 1.0 - 2.5 / 200
    expected = replace(PRESETS[kind], gamma=gamma)
    assert model.preset_ == expected and blocks[0] == pytest.approx(start, rel=0.25)
    assert len(blocks) > 2 and set(np.diff(blocks)) == {expected.train_freq}
    assert (model.tau, model.gamma, model.train_freq, model.preset) == (None,) * 4, "what was given stays"
    del model.train
    model.save(tmp_path / "model")
    loaded = DPI.load(tmp_path / "model", env=env)
    assert loaded.preset_ == expected and th.equal(loaded.critic.networks.flat, model.critic.networks.flat)
    loaded.learn(expected.train_freq, reset_num_timesteps=False)
    assert loaded.preset_ == expected and loaded.num_timesteps == model.num_timesteps + expected.train_freq


def test_what_is_given_stands_in_every_preset() -> None:
    numbers = {"target_kl": 0.3, "polyak": 0.1, "noise_correlation": 0.3}
    given: dict[str, Any] = {"tau": 0.01, "gamma": 0.9, "early_reset": 40, "critic": {"lr_decay_after": 50}}
    given |= {"imagination": {"on_policy_correction": True, "rollout_length": 3}, "preset": numbers}
    model = small(gym.wrappers.TimeLimit(Rough(death=(14, 18)), 100), learning_starts=None, **given).learn(1001)
    expected = {"tau": 0.01, "gamma": 0.9, "early_reset": 40, "lr_decay_after": 50, "on_policy_correction": True}
    assert model.preset_ == replace(FREE, **numbers, **expected, rollout_length=3)
    short = small(gym.wrappers.TimeLimit(Rough(death=(14, 18)), 100), learning_starts=100).learn(120)
    assert short.preset_ is not None and short.preset_.kind == "corrected", "too few episodes to tell"
    assert small(preset="free").learn(50).preset_.kind == "free"


def test_what_a_preset_chooses_could_have_been_named() -> None:
    found = small(Rough(death=(14, 18)), train_freq=None, learning_starts=None).learn(1500)
    named = small(Rough(death=(14, 18)), train_freq=None, learning_starts=None, preset="free").learn(1500)
    assert found.preset_ == named.preset_ == FREE
    for ours, theirs in ((found.policy, named.policy), (found.critic, named.critic)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert th.equal(a, b)


def test_it_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    small(limited(12), verbose=1).learn(40)
    assert "DPI takes the preset 'corrected' after 40 random steps: 0 of the latest" in capsys.readouterr().out


def test_a_model_that_diverges_while_a_preset_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be saved and where is said by the first fit that counts."""

    def diverge(*args: Any) -> float:
        raise DivergedError("It diverged")

    monkeypatch.setattr(Ensemble, "fit", diverge)
    model = small(gym.wrappers.TimeLimit(Rough(death=(4, 6)), 100), learning_starts=None)
    with pytest.raises(DivergedError, match=r"It diverged\. The policy is as before"):
        model.learn(2000)
    assert model.preset_ is not None and model.preset_.kind == "free" and model.n_iterations == 0


def test_choosing_changes_nothing_else() -> None:
    """The fit that tells draws no random numbers of the run's, and leaves the model as it was."""
    model = small(gym.wrappers.TimeLimit(PointMass(death=(4, 6)), 100), train_freq=None, learning_starts=None)
    model.train = lambda *args: None  # type: ignore[method-assign]
    before = model.ensemble.networks.flat.detach().clone()
    model.learn(200)
    drawn = model._rng.bit_generator.state, th.get_rng_state()
    choose_preset(model.ensemble, model.memory)
    assert model._rng.bit_generator.state == drawn[0] and th.equal(th.get_rng_state(), drawn[1])
    assert th.equal(model.ensemble.networks.flat, before) and not model.ensemble.has_units
