"""Callbacks see what Stable-Baselines3 promises them: every real step once, and local variables under the usual names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, every_algorithm
from dummy_envs import HORIZON, ITERATION, PointMass, limited, parameter_sum, vec_env
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
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm


class Witness(BaseCallback):
    """Records the order of events."""

    def __init__(self, answers: Any = True, stop_at: int = 10**9) -> None:
        super().__init__()
        self.events: list[tuple[str, float]] = []
        self.answers, self.stop_at = answers, stop_at

    def record(self, event: str) -> None:
        assert isinstance(self.model, DualPolicyAlgorithm)
        self.events.append((event, parameter_sum(self.model)))

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
        assert isinstance(self.model, DualPolicyAlgorithm)
        assert self.locals["rollout_buffer"] is self.model.rollout_buffer
        self.record("rollout_end")

    def _on_training_end(self) -> None:
        self.record("training_end")


@every_algorithm
def test_one_step_for_each_real_step(make: Make) -> None:
    model, witness = make(), Witness()
    model.learn(3 * ITERATION, callback=witness)
    assert witness.n_calls == witness.num_timesteps == model.num_timesteps == 3 * ITERATION
    names = [event for event, _ in witness.events]
    iteration = ["rollout_start", *["step"] * ITERATION, "rollout_end"]
    assert names == ["training_start", *iteration * 3, "training_end"]


@every_algorithm
def test_one_step_for_each_step_of_the_environments(make: Make) -> None:
    model, witness = make(vec_env(2, lambda: PointMass(death=(2, 9)))), Witness()
    model.learn(100, callback=witness)
    assert model.env is not None
    taken = sum(env.n_steps for env in model.env.get_attr("unwrapped"))
    assert 2 * witness.n_calls == model.num_timesteps == taken


@every_algorithm
def test_a_rollout_starts_after_the_update(make: Make) -> None:
    """What an evaluation at the start of a rollout sees is the policy that was just learned."""
    model, witness = make(), Witness()
    model.learn(3 * ITERATION, callback=witness)
    starts = [value for event, value in witness.events if event == "rollout_start"]
    ends = [value for event, value in witness.events if event == "rollout_end"]
    assert len(set(starts)) == 3
    assert starts == ends, "nothing is learned while trajectories are collected"
    assert witness.events[-1][1] not in ends, "the last rollout is learned from"


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_local_variables(make: Make, n_envs: int) -> None:
    seen = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            assert isinstance(self.model, DualPolicyAlgorithm)
            v = self.locals
            shapes = {name: np.shape(v[name]) for name in ("dones", "rewards", "actions", "new_obs")}
            assert shapes == {"dones": (n_envs,), "rewards": (n_envs,), "actions": (n_envs, 1), "new_obs": (n_envs, 2)}
            assert len(v["infos"]) == n_envs
            assert v["self"] is self.model and v["callback"] is not None and v["env"] is self.training_env
            seen.append(v["new_obs"])
            return True

        def _on_rollout_start(self) -> None:
            if seen:
                assert isinstance(self.model, DualPolicyAlgorithm)
                assert self.model._last_obs is seen[-1]

    model = make(vec_env(n_envs))
    model.learn(2 * ITERATION, callback=Reader())
    assert len(seen) * n_envs == model.num_timesteps


@pytest.mark.parametrize("answer", [False, np.bool_(False), th.tensor(False)], ids=["bool", "numpy", "torch"])
@every_algorithm
def test_a_callback_stops_training(make: Make, answer: Any) -> None:
    model, witness = make(), Witness(answer, stop_at=ITERATION + 7)
    model.learn(5 * ITERATION, callback=witness)
    assert model.num_timesteps == ITERATION + 7
    assert [event for event, _ in witness.events][-2:] == ["step", "training_end"]
    assert model.n_iterations == 1, "half a rollout is not learned from"
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.n_iterations == 2


@every_algorithm
def test_function_as_callback(make: Make) -> None:
    calls: list[int] = []

    def callback(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(variables["t"])
        return True

    make().learn(1, callback=callback)
    assert calls == [*range(HORIZON)] * 4


@every_algorithm
def test_eval_callback(make: Make, tmp_path: Path) -> None:
    stop = StopTrainingOnRewardThreshold(-1e6)
    options: dict[str, Any] = {"n_eval_episodes": 2, "eval_freq": 15, "verbose": 0, "log_path": str(tmp_path)}
    callback = EvalCallback(Monitor(limited(5)), best_model_save_path=str(tmp_path), **options)
    model = make()
    model.learn(2 * ITERATION, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(results["timesteps"], [15, 30, 45, 60, 75])
    assert isinstance(type(model).load(tmp_path / "best_model"), type(model))
    stopped = make()
    stopped.learn(2 * ITERATION, callback=EvalCallback(Monitor(limited(5)), callback_on_new_best=stop, **options))
    assert stopped.num_timesteps == 15


@every_algorithm
def test_eval_callback_with_vec_normalize(make: Make) -> None:
    env, eval_env = VecNormalize(vec_env(2)), VecNormalize(vec_env(1, lambda: Monitor(limited(5))), training=False)
    make(env).learn(ITERATION, callback=EvalCallback(eval_env, n_eval_episodes=2, eval_freq=15, verbose=0))
    # synchronised at the evaluation, not at the end
    statistics: Any = env.obs_rms
    synchronised: Any = eval_env.obs_rms
    assert statistics.count > synchronised.count > 1.0
    assert not np.allclose(synchronised.mean, 0.0)


@every_algorithm
def test_evaluations_at_rollout_starts(make: Make) -> None:
    class AtRolloutStart(BaseCallback):
        def __init__(self, child: BaseCallback) -> None:
            super().__init__()
            self.child, self.steps = child, list[int]()

        def _on_rollout_start(self) -> None:
            self.steps.append(self.model.num_timesteps)

        def _on_step(self) -> bool:
            return True

    callback = AtRolloutStart(Witness())
    make().learn(3 * ITERATION, callback=callback)
    assert callback.steps == [0, ITERATION, 2 * ITERATION]


@every_algorithm
def test_checkpoint_callback(make: Make, tmp_path: Path) -> None:
    model = make().learn(2 * ITERATION, callback=CheckpointCallback(30, str(tmp_path), name_prefix="m"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_30_steps.zip", "m_60_steps.zip"]
    loaded = type(model).load(tmp_path / "m_60_steps", env=PointMass())
    assert (loaded.num_timesteps, loaded.n_iterations) == (60, 1)
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.n_iterations) == (60 + ITERATION, 2)


@every_algorithm
def test_stop_training_on_max_episodes(make: Make) -> None:
    model = make(limited(HORIZON), horizon=None)
    callback = StopTrainingOnMaxEpisodes(max_episodes=3)
    model.learn(10 * ITERATION, callback=callback)
    assert callback.n_episodes == 3 and model.num_timesteps == 3 * HORIZON


@every_algorithm
def test_progress_bar_callback(make: Make) -> None:
    callback = ProgressBarCallback()
    make().learn(2 * ITERATION, callback=callback)
    assert callback.pbar.n == 2 * ITERATION


@every_algorithm
def test_log_every_n_timesteps(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(verbose=1)
    model.learn(2 * ITERATION, callback=LogEveryNTimesteps(n_steps=20), log_interval=None)  # type: ignore[arg-type]
    assert capsys.readouterr().out.count("total_timesteps") == 4


@every_algorithm
def test_several_callbacks(make: Make) -> None:
    first, second, third = Witness(), Witness(), Witness()
    make().learn(1, callback=CallbackList([first, EveryNTimesteps(10, second), third]))
    assert (first.n_calls, second.n_calls, third.n_calls) == (ITERATION, ITERATION // 10, ITERATION)
    make().learn(1, callback=[first, second])
