"""How long iterations are where nobody says: small, five of them in what ``learn`` gets, said before they begin."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import Make, Model, every, iterations, those
from dummy_envs import ITERATION, limited, vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_dpi import DPI, MPC, DAgger, DualAC
from sb3_dpi.common.iteration_size import FEWEST, IterationSize, SizeRequest, shrink
from sb3_dpi.dual_ac import rollout

OPEN: dict[str, Any] = {"horizon": None, "n_conditions": None, "samples_per_condition": None}
"""Of algorithms that sample from conditions"""
OPEN_BY_NAME: dict[type[Any], dict[str, Any]] = {
    DPI: {"train_freq": None, "learning_starts": None},
    DualAC: {"n_steps": None},
    DAgger: {"train_freq": None},
    MPC: {"train_freq": None, "learning_starts": None},
}


def open_model(make: Make, env: Any, **options: Any) -> Model:
    """:return: a small model whose iterations nobody has measured"""
    return make(env, **{**OPEN_BY_NAME.get(make.algorithm, OPEN), **options})


class Lengths(BaseCallback):
    """
    Remembers the real steps at which rollouts end.

    :param enough: after how many of them training stops
    """

    def __init__(self, enough: float = np.inf) -> None:
        super().__init__()
        self.ends, self.enough = [0], enough

    def _on_rollout_end(self) -> None:
        self.ends.append(self.num_timesteps)

    def _on_step(self) -> bool:
        return len(self.ends) <= self.enough


def said(model: Model, total: int, folder: Path, enough: float = np.inf, **kwargs: Any) -> tuple[str, list[int]]:
    """:return: what the log says of the size, and the steps of each rollout"""
    model.set_logger(configure(str(folder), ["log"]))
    lengths = Lengths(enough)
    model.learn(total, callback=lengths, **kwargs)
    (line,) = [line for line in (folder / "log.txt").read_text().splitlines() if "an iteration takes" in line]
    return line, np.diff(lengths.ends).tolist()


# ---------------------------------------------------------------------- the rule


def request(**options: Any) -> SizeRequest:
    usual: dict[str, Any] = {"longest_horizon": 100, "n_inputs": 8, "least_samples": 2, "copies": 1, "pooled": False}
    return SizeRequest(**{**OPEN, **usual, **options})


@pytest.mark.parametrize(
    ("options", "total", "expected"),
    [
        ({}, None, (100, 2, 2)),
        ({"longest_horizon": 50}, None, (50, 4, 2)),
        ({"n_inputs": 20}, None, (100, 4, 2)),
        ({"n_inputs": 365}, None, (100, 10, 2)),
        ({"pooled": True}, None, (100, 1, 4)),
        ({"least_samples": 4}, None, (100, 1, 4)),
        ({"copies": 8}, None, (50, 4, 2)),
        ({}, 100_000, (100, 2, 2)),
        ({}, 1_500, (100, 1, 3)),
        ({}, 500, (50, 1, 2)),
        ({}, 64, (6, 1, 2)),
        ({"copies": 8}, 500, (12, 4, 2)),
        ({}, 1, (2, 1, 2)),
        ({"longest_horizon": 1}, 1, (1, 1, 2)),
        ({"horizon": 70}, 64, (70, 1, 2)),
        ({"n_conditions": 3}, 64, (2, 3, 2)),
        ({"samples_per_condition": 5}, None, (100, 1, 5)),
        ({"n_conditions": 8, "samples_per_condition": 3, "longest_horizon": 50, "copies": 6}, 30_000, (50, 8, 3)),
        ({"horizon": 10, "n_conditions": 3, "samples_per_condition": 4}, 64, (10, 3, 4)),
    ],
    ids=str,
)
def test_sizes_follow_from_task_and_steps(options: dict[str, Any], total: int | None, expected: tuple[int, int, int]) -> None:
    size = request(**options).choose(total)
    assert (size.horizon, size.n_conditions, size.samples_per_condition) == expected
    copies = options.get("copies", 1)
    assert size.n_batches * copies >= size.n_conditions * size.samples_per_condition > (size.n_batches - 1) * copies
    assert IterationSize(7, 2, 2, 4).n_steps == 28


def test_shrinking() -> None:
    assert [shrink(100, total) for total in (None, 1000, 500, 499, 3)] == [100, 100, 100, 99, 1]


# ---------------------------------------------------------------------- of every algorithm


@pytest.mark.parametrize(("total", "n_envs"), [(100, 3), (200, 1)])
@every(chooses_size=True)
def test_five_iterations_fit_into_few_steps(make: Make, total: int, n_envs: int, tmp_path: Path) -> None:
    """Long episodes or not; at most one iteration goes beyond the end."""
    model = open_model(make, vec_env(n_envs, lambda: limited(5000)))
    line, lengths = said(model, total, tmp_path)
    assert iterations(model) >= FEWEST - 1, "each takes whole steps of all environments"
    assert total <= model.num_timesteps < total + lengths[-1]
    assert f"an iteration takes {lengths[-1]} steps" in line and "5 iterations shall fit into" in line


@every(squashes=False, plans=False, chooses_size=True)
def test_what_is_given_keeps_its_meaning(make: Make, tmp_path: Path) -> None:
    line, lengths = said(make(), ITERATION + 1, tmp_path)
    assert lengths == [ITERATION] * 2 and f"an iteration takes {ITERATION} steps" in line
    assert line.endswith(f"fewer than 5 fit into {ITERATION + 1} steps")
    assert "fit into" not in said(make(), 5 * ITERATION, tmp_path / "more")[0]


@every(chooses_size=True)
def test_a_short_call_does_not_shrink_the_next(make: Make, tmp_path: Path) -> None:
    model = open_model(make, vec_env(5, lambda: limited(200)))
    model.learn(100)
    line, lengths = said(model, 3000, tmp_path, enough=2, reset_num_timesteps=False)
    assert "shall fit" not in line and max(lengths) >= 125, "of DPI, whose blocks are the shortest"


EXTREMES: dict[str, dict[str, Any]] = {
    "batch larger than all": {"batch_size": 10_000},
    "many environments": {"n_envs": 30},
    "windows longer than rollouts": {"window_length": 10_000},
    "passes over nothing": {"n_critic_updates": 0},
    "block longer than the buffer": {"buffer_size": 50, "train_freq": 90},
    "windows longer than episodes": {"imagination": {"horizon": 20, "rollout_length": 30}},
    "reset after the limit": {"early_reset": 10_000},
    "more replay than iterations": {"replay": 50},
    "buffer smaller than the warm-up": {"buffer_size": 40, "learning_starts": 100},
}
OF: dict[str, Callable[[Make], bool]] = {
    "batch larger than all": lambda make: not make.plans,
    "windows longer than rollouts": lambda make: make.algorithm is DualAC,
    "passes over nothing": lambda make: make.algorithm is DualAC,
    "block longer than the buffer": lambda make: make.squashes or make.plans,
    "windows longer than episodes": lambda make: make.squashes,
    "reset after the limit": lambda make: make.leaves_episodes,
    "more replay than iterations": lambda make: make.from_conditions,
    "buffer smaller than the warm-up": lambda make: make.squashes or make.plans,
}


@pytest.mark.parametrize(
    ("make", "what"), [(make, what) for what in EXTREMES for make in those() if OF.get(what, lambda _: True)(make)], ids=str
)
def test_numbers_that_do_not_fit_each_other_still_train(make: Make, what: str) -> None:
    options = dict(EXTREMES[what])
    model = make(vec_env(options.pop("n_envs", 1), lambda: limited(12)), **options)
    model.learn(model.num_timesteps + 140)
    assert iterations(model) > 0


# ---------------------------------------------------------------------- of one


def test_rollouts_show_several_episodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("EPISODES", 4), ("FEWEST_STEPS", 16), ("MOST_STEPS", 60)):
        monkeypatch.setattr(rollout, name, value)
    (make,) = (make for make in those() if make.algorithm is DualAC)
    model = open_model(make, vec_env(2, lambda: limited(6)), n_action_critic_updates=0)
    line, lengths = said(model, 400, tmp_path)
    # each copy ends an episode in its first 8 steps, three in the next 16, one in the next 10
    assert lengths[:4] == [16, 4 * 16 // 2, 4 * 32 // 6 // 2 * 2, 4 * 20 // 2] and "takes 16 steps" in line
    seen = len(next(model.rollout_buffer.get()).actions)
    assert seen == lengths[-1]
    chosen = model.n_steps
    model.save(tmp_path / "model")
    assert DualAC.load(tmp_path / "model", env=vec_env(2, lambda: limited(6))).n_steps == chosen
    assert DualAC.load(tmp_path / "model", env=limited(6), n_steps=5).learn(10).n_steps == 5


def test_rollouts_are_as_long_as_may_be_where_no_episode_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("FEWEST_STEPS", 8), ("MOST_STEPS", 40)):
        monkeypatch.setattr(rollout, name, value)
    (make,) = (make for make in those() if make.algorithm is DualAC)
    model = open_model(make, limited(1000), n_action_critic_updates=0)
    assert said(model, 200, tmp_path)[1] == [8, 40, 40, 40, 40, 40]
    assert said(open_model(make, limited(1000)), 200, tmp_path)[1] == [8] * 25, "where Q spares samples"


def test_random_steps_that_never_end_are_told() -> None:
    (make,) = (make for make in those() if make.squashes)
    with pytest.warns(UserWarning, match=r"DPI does not learn in these 50 steps: .* until 1,000 are kept, 0 are"):
        make(learning_starts=1000).learn(50)
    with pytest.warns(UserWarning, match="until 32 are kept"):
        open_model(make, limited(12)).learn(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert iterations(open_model(make, limited(12)).learn(40)) > 0
        assert iterations(make(learning_starts=40).learn(26)) > 0, "blocks of the warm-up are completed"
    with pytest.warns(UserWarning, match="it acts at random until 40 are kept"):
        assert iterations(make(learning_starts=40).learn(25)) == 0
