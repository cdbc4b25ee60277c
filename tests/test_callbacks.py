"""Callbacks see what Stable-Baselines3 promises them: every real step once, and local variables under the usual names."""

import re
import time
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, every, every_algorithm, iterations, parameters
from dummy_envs import HORIZON, ITERATION, PointMass, limited, vec_env
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_dpi.common import progress_bars as paces
from sb3_dpi.trajopt.compilation import Stopwatch


class Witness(BaseCallback):
    """Records the order of events."""

    def __init__(self, answers: Any = True, stop_at: int = 10**9) -> None:
        super().__init__()
        self.events: list[tuple[str, float]] = []
        self.answers, self.stop_at = answers, stop_at

    def record(self, event: str) -> None:
        # steps are many, and what they see is checked by where they lie
        self.events.append((event, 0.0 if event == "step" else parameters(self.model)))

    def _on_training_start(self) -> None:
        assert self.locals["total_timesteps"] >= self.model.num_timesteps
        assert self.locals["tb_log_name"] == type(self.model).__name__
        self.record("training_start")

    def _on_rollout_start(self) -> None:
        self.record("rollout_start")

    def _on_step(self) -> bool:
        self.record("step")
        return self.answers if self.n_calls >= self.stop_at else True

    def _on_rollout_end(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm):
            assert self.locals["rollout_buffer"] is self.model.rollout_buffer
        self.record("rollout_end")

    def _on_training_end(self) -> None:
        self.record("training_end")


@every_algorithm
def test_one_step_for_each_real_step(make: Make) -> None:
    """And what an evaluation at the start of a rollout sees is the policy that was just learned."""
    model, witness = make(), Witness()
    model.learn(3 * ITERATION, callback=witness)
    assert witness.n_calls == witness.num_timesteps == model.num_timesteps == 3 * ITERATION and iterations(model) == 3
    names = [name for name, _ in groupby(event for event, _ in witness.events)]
    n_rollouts = names.count("rollout_start")
    assert names == ["training_start", *["rollout_start", "step", "rollout_end"] * n_rollouts, "training_end"]
    starts, ends = ([value for event, value in witness.events if event == f"rollout_{at}"] for at in ("start", "end"))
    assert len(set(starts)) == 3
    assert starts == ends, "nothing is learned while steps are taken"
    assert witness.events[-1][1] not in ends, "the last rollout is learned from"


@every(from_conditions=True)
def test_rollouts_are_iterations(make: Make) -> None:
    witness = Witness()
    make().learn(2 * ITERATION, callback=witness)
    iteration = ["rollout_start", *["step"] * ITERATION, "rollout_end"]
    assert [event for event, _ in witness.events] == ["training_start", *iteration * 2, "training_end"]


@every_algorithm
def test_one_step_for_each_step_of_the_environments(make: Make) -> None:
    envs, witness = vec_env(2, lambda: PointMass(death=(2, 9))), Witness()
    model = make(envs).learn(100, callback=witness)
    assert 2 * witness.n_calls == model.num_timesteps == sum(env.n_steps for env in envs.get_attr("unwrapped")) >= 100


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_local_variables(make: Make, n_envs: int) -> None:
    seen = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            v = self.locals
            shapes = {name: np.shape(v[name]) for name in ("dones", "rewards", "actions", "new_obs")}
            assert shapes == {
                "dones": (n_envs,),
                "rewards": (n_envs,),
                "actions": (n_envs, *self.model.action_space.shape),
                "new_obs": (n_envs, 2),
            }
            assert len(v["infos"]) == n_envs
            assert v["self"] is self.model and v["callback"] is not None and v["env"] is self.training_env
            seen.append(v["new_obs"])
            return True

        def _on_rollout_start(self) -> None:
            if seen:
                assert self.model._last_obs is seen[-1]

    model = make(vec_env(n_envs)).learn(2 * ITERATION, callback=Reader())
    assert len(seen) * n_envs == model.num_timesteps


@pytest.mark.parametrize("answer", [False, np.bool_(False), th.tensor(False)], ids=["bool", "numpy", "torch"])
@every_algorithm
def test_a_callback_stops_training(make: Make, answer: Any) -> None:
    model, witness = make(), Witness(answer, stop_at=ITERATION + 7)
    model.learn(5 * ITERATION, callback=witness)
    assert model.num_timesteps == ITERATION + 7
    assert [event for event, _ in witness.events][-2:] == ["step", "training_end"]
    assert iterations(model) == 1, "half a rollout is not learned from"
    model.learn(ITERATION, reset_num_timesteps=False)
    assert iterations(model) == 2


@every_algorithm
def test_functions_as_callbacks(make: Make) -> None:
    calls: list[int] = []

    def callback(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(variables["self"].num_timesteps)
        return len(calls) < 11

    model = make().learn(ITERATION, callback=callback)
    assert calls == [*range(1, 12)] and model.num_timesteps == 11


@every_algorithm
def test_eval_callback(make: Make, tmp_path: Path) -> None:
    """It saves the model with the best mean, which evaluates the same when it is loaded."""
    options: dict[str, Any] = {"n_eval_episodes": 2, "eval_freq": 15, "verbose": 0, "log_path": str(tmp_path)}
    test = Monitor(make.fit(limited(5)))
    callback = EvalCallback(test, best_model_save_path=str(tmp_path), **options)
    make().learn(2 * ITERATION, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(results["timesteps"], [15, 30, 45, 60, 75])
    assert callback.best_mean_reward == results["results"].mean(1).max()
    best = make.algorithm.load(tmp_path / "best_model")
    assert best.num_timesteps == results["timesteps"][results["results"].mean(1).argmax()]
    stop, stopped = StopTrainingOnRewardThreshold(-1e6), make()
    stopped.learn(2 * ITERATION, callback=EvalCallback(Monitor(make.fit(limited(5))), callback_on_new_best=stop, **options))
    assert stopped.num_timesteps == 15


@every_algorithm
def test_checkpoint_callback(make: Make, tmp_path: Path) -> None:
    make().learn(2 * ITERATION, callback=CheckpointCallback(30, str(tmp_path), name_prefix="m"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_30_steps.zip", "m_60_steps.zip"]
    loaded = make.algorithm.load(tmp_path / "m_60_steps", env=make.fit(PointMass()))
    assert (loaded.num_timesteps, iterations(loaded)) == (60, 1)
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, iterations(loaded)) == (60 + ITERATION, 2)


@every_algorithm
def test_stop_training_on_max_episodes(make: Make) -> None:
    model = make(limited(HORIZON))
    callback = StopTrainingOnMaxEpisodes(max_episodes=3)
    model.learn(10 * ITERATION, callback=callback)
    assert callback.n_episodes == 3 and model.num_timesteps == 3 * HORIZON


@every_algorithm
def test_progress_bar(make: Make) -> None:
    """By a callback or by ``learn``: it counts every real step."""
    callback = ProgressBarCallback()
    make().learn(ITERATION, callback=callback, progress_bar=True)
    assert callback.pbar.n == ITERATION


class Slow(BaseCallback):
    """Lets a clock go on as if steps took 10 ms and learning 2 s, the warm-up none; reads the bars beside it."""

    def __init__(self, bar: ProgressBarCallback):
        super().__init__()
        self.bar, self.now = bar, 0.0
        self.rates, self.left = list[tuple[float, float]](), list[tuple[float | None, float]]()

    def _on_training_start(self) -> None:
        self.start = time.monotonic()

    def _on_step(self) -> bool:
        self.bar.pbar.refresh()
        self.now += 0.01
        return True

    def _on_rollout_end(self) -> None:
        (task,) = self.bar.pbar._prog.tasks
        self.rates.append((float(task.speed), self.model.num_timesteps / (time.monotonic() - self.start)))
        self.left.append((task.time_remaining, self.now))
        if not isinstance(self.model, OffPolicyAlgorithm) or self.model.num_timesteps > ITERATION:
            self.now += 2.0


@every_algorithm
def test_progress_bars_tell_the_truth_and_end_full(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pauses count, a warm-up does not, and a last iteration that is completed beyond the total leaves no bar behind."""
    bar = ProgressBarCallback()
    slow = Slow(bar)
    monkeypatch.setattr(paces, "ONCE", Stopwatch())
    monkeypatch.setattr(paces, "time", SimpleNamespace(monotonic=lambda: slow.now))
    model = make(verbose=1).learn(7 * ITERATION + 5, callback=[bar, slow])
    assert bar.pbar.n == bar.pbar.total == model.num_timesteps == 8 * ITERATION
    (task,) = bar.pbar._prog.tasks
    assert task.percentage == 100.0 and task.time_remaining == 0.0
    for shown, true in slow.rates:
        assert shown == pytest.approx(true, rel=0.2)
    known = [(left, slow.now - moment) for left, moment in slow.left if left is not None]
    assert slow.left[0][0] is None and len(known) >= 6
    assert all(left == pytest.approx(true, abs=0.02) for left, true in known)
    printed = capsys.readouterr()
    # the frame that stays: no time is left
    assert re.search(r"100%.*< 0:00:00", " ".join((printed.out + printed.err).split()[-20:]))
    (said,) = [line for line in printed.out.splitlines() if "1,000 steps take some" in line]
    assert f"{make}: 1,000 steps take some {2000.0 / ITERATION + 10.0:.3g} s here; the other " in said


@every_algorithm
def test_log_every_n_timesteps(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(verbose=1).learn(2 * ITERATION, callback=LogEveryNTimesteps(n_steps=20), log_interval=None)
    assert capsys.readouterr().out.count("total_timesteps") == 4


@every_algorithm
def test_several_callbacks(make: Make) -> None:
    first, second, third = Witness(), Witness(), Witness()
    make().learn(ITERATION, callback=CallbackList([first, EveryNTimesteps(10, second), third]))
    assert (first.n_calls, second.n_calls, third.n_calls) == (ITERATION, ITERATION // 10, ITERATION)
    first, second = Witness(), Witness()
    make().learn(ITERATION, callback=[first, second])
    assert first.n_calls == second.n_calls == ITERATION
