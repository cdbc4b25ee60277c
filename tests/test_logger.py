"""What is logged: the keys of Stable-Baselines3, the planner's scalars under ``trajopt/``, and the name of the run."""

import csv
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from algorithms import Make, Model, every_algorithm, small_aggrevated_oc
from dummy_envs import HORIZON, ITERATION, PointMass, limited, small_mdgps, vec_env
from stable_baselines3.common.logger import HumanOutputFormat, configure

TIME = {"time/iterations", "time/fps", "time/time_elapsed", "time/total_timesteps"}
ROLLOUT = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
TRAIN = {"train/learning_rate", "train/n_updates", "train/std"}
TRAJOPT = {
    "trajopt/kl",
    "trajopt/eta",
    "trajopt/cost_local",
    "trajopt/cost_linearized",
    "trajopt/held_out_error",
    "trajopt/planned_steps",
}
OWN: dict[Make, set[str]] = {
    small_mdgps: {
        "train/loss",
        "trajopt/kl_step",
        "trajopt/predicted_improvement",
        "trajopt/actual_improvement",
        "trajopt/cost_global",
    },
    small_aggrevated_oc: {
        "train/value_loss",
        "train/explained_variance",
        "train/kl_divergence_loss",
        "train/policy_objective",
        "train/is_line_search_success",
        "trajopt/calibration",
        "trajopt/calibration_error",
        "trajopt/trust",
    },
}


def table(model: Model, path: Path, total: int, **kwargs: Any) -> list[dict[str, str]]:
    """The rows that the csv logger writes."""
    model.set_logger(configure(str(path), ["csv"]))
    model.learn(total, **kwargs)
    with open(path / "progress.csv") as file:
        return list(csv.DictReader(file))


@every_algorithm
def test_keys(make: Make, tmp_path: Path) -> None:
    rows = table(make(), tmp_path, 4 * ITERATION)
    expected = TRAIN | TRAJOPT | OWN[make]
    assert TIME | ROLLOUT | expected <= set(rows[-1])
    assert [int(float(row["time/total_timesteps"])) for row in rows] == [ITERATION * i for i in (1, 2, 3, 4)]
    assert [row["train/n_updates"] for row in rows] == ["", "1", "2", "3"]
    numbers = [float(rows[-1][key]) for key in expected | ROLLOUT]
    assert np.all(np.isfinite(numbers))


def test_scalars_mean_what_they_say(tmp_path: Path) -> None:
    model = small_mdgps(kl_step=0.2)
    model.learn(3 * ITERATION)
    values = model.logger.name_to_value
    trajectories = model.rollout_buffer.trajectories()
    assert values["trajopt/cost_global"] == pytest.approx(-trajectories.rewards.sum(-1).mean())
    assert values["trajopt/cost_local"] < values["trajopt/cost_linearized"], "the C-step improves on the policy"
    assert values["trajopt/eta"] == pytest.approx(np.mean(model.eta)) and values["trajopt/eta"] > 0.0  # type: ignore[arg-type]
    assert 0.18 <= values["trajopt/kl"] <= 0.2002
    assert values["trajopt/planned_steps"] == HORIZON
    assert values["trajopt/held_out_error"] < 0.1, "the point mass is linear"
    assert values["train/std"] == pytest.approx(float(np.exp(model.policy.log_std.detach().numpy()).mean()))


@every_algorithm
def test_no_key_collides_when_truncated(make: Make) -> None:
    own = {"sampling": "local", "step_rule": "global"} if make is small_mdgps else {}
    model = make(replay=1, conditions="fixed", cost={"local_window": 1}, **own)
    model.learn(2 * ITERATION)
    model.dump_logs()
    keys = {*model.logger.name_to_value, *TIME, *ROLLOUT, *TRAIN, *TRAJOPT, *OWN[make]}
    length = HumanOutputFormat(mock.MagicMock()).max_length
    assert len({key[:length] for key in keys}) == len(keys)
    assert max(map(len, keys)) < length


@every_algorithm
def test_tables_are_printed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(verbose=1).learn(3 * ITERATION)
    printed = capsys.readouterr().out
    assert printed.count("trajopt/") == 2 and "cost_linearized" in printed and "..." not in printed


@every_algorithm
def test_dump_logs_without_arguments(make: Make) -> None:
    model = make()
    model.learn(ITERATION)
    model.logger.record("custom", 1.0)
    model.dump_logs()
    assert not model.logger.name_to_value, "dumping clears"


@every_algorithm
def test_fps_without_time_passing(make: Make, tmp_path: Path) -> None:
    with mock.patch("time.time_ns", return_value=42.0):
        make().learn(ITERATION)


@pytest.mark.parametrize("window", [2, 42])
@every_algorithm
def test_stats_window_size(make: Make, window: int) -> None:
    model = make(limited(HORIZON), horizon=None, stats_window_size=window)
    model.learn(2 * ITERATION)
    assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == window
    assert len(model.ep_info_buffer) == min(window, 8)


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_episode_return_although_the_horizon_is_shorter(make: Make, n_envs: int, tmp_path: Path) -> None:
    model = make(vec_env(n_envs, lambda: limited(100)))
    rows = table(model, tmp_path, 1)
    returns = model.rollout_buffer.trajectories().returns
    assert float(rows[0]["rollout/ep_rew_mean"]) == pytest.approx(np.nanmean(returns), rel=1e-5)
    assert float(rows[0]["rollout/ep_len_mean"]) == HORIZON


@every_algorithm
def test_episodes_are_counted_once(make: Make, tmp_path: Path) -> None:
    """Where Monitor reports an episode, or it was cut at the horizon, but never both."""
    model = make(limited(HORIZON), horizon=HORIZON)
    model.learn(1)
    assert [info["l"] for info in model.ep_info_buffer or []] == [HORIZON] * 4
    dying = make(PointMass(death=(4, 20)))
    dying.learn(ITERATION)
    lengths = dying.rollout_buffer.trajectories().alive.sum(-1)
    assert sorted(info["l"] for info in dying.ep_info_buffer or [])[: lengths.size] == sorted(lengths.ravel())


@every_algorithm
def test_success_rate(make: Make, tmp_path: Path) -> None:
    class Successful(PointMass):
        def step(self, action: np.ndarray) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "is_success": True}

    model = make(vec_env(1, lambda: Successful(death=(4, 6))))
    assert float(table(model, tmp_path, 1)[0]["rollout/success_rate"]) == 1.0


@every_algorithm
def test_name_of_the_run(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = make(tensorboard_log=str(tmp_path))
    model.learn(ITERATION)
    model.learn(ITERATION)
    model.learn(ITERATION, tb_log_name="other")
    model.learn(ITERATION, tb_log_name="other", reset_num_timesteps=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{type(model).__name__}_{i}" for i in (1, 2)] + ["other_1"]


@every_algorithm
def test_name_of_the_run_without_tensorboard(make: Make, tmp_path: Path) -> None:
    """The same, of the name that reaches SB3's configuration."""
    with mock.patch("stable_baselines3.common.utils.configure_logger", wraps=None) as configure_logger:
        configure_logger.return_value = configure(str(tmp_path), [])
        model = make().learn(ITERATION)
    assert configure_logger.call_args.args[2] == type(model).__name__
