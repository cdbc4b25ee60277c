"""What is logged: the keys of Stable-Baselines3, the planner's scalars under ``trajopt/``, and the name of the run."""

import csv
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from dummy_envs import HORIZON, ITERATION, PointMass, limited, small_mdgps, vec_env
from stable_baselines3.common.logger import HumanOutputFormat, configure

from sb3_dpi import MDGPS

TIME = {"time/iterations", "time/fps", "time/time_elapsed", "time/total_timesteps"}
ROLLOUT = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
TRAIN = {"train/learning_rate", "train/loss", "train/n_updates", "train/std"}
TRAJOPT = {
    "trajopt/kl",
    "trajopt/eta",
    "trajopt/kl_step",
    "trajopt/predicted_improvement",
    "trajopt/actual_improvement",
    "trajopt/cost_local",
    "trajopt/cost_linearized",
    "trajopt/cost_global",
    "trajopt/held_out_error",
}


def table(model: MDGPS, path: Path, total: int, **kwargs: Any) -> list[dict[str, str]]:
    """The rows that the csv logger writes."""
    model.set_logger(configure(str(path), ["csv"]))
    model.learn(total, **kwargs)
    with open(path / "progress.csv") as file:
        return list(csv.DictReader(file))


def test_keys(tmp_path: Path) -> None:
    rows = table(small_mdgps(), tmp_path, 4 * ITERATION)
    assert TIME | ROLLOUT | TRAIN | TRAJOPT <= set(rows[-1])
    assert [int(float(row["time/total_timesteps"])) for row in rows] == [ITERATION * i for i in (1, 2, 3, 4)]
    assert [row["train/n_updates"] for row in rows] == ["", "1", "2", "3"]
    numbers = [float(rows[-1][key]) for key in TRAIN | TRAJOPT | ROLLOUT]
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


def test_no_key_collides_when_truncated() -> None:
    model = small_mdgps(replay=1, sampling="local", conditions="fixed", step_rule="global", cost={"local_window": 1})
    model.learn(2 * ITERATION)
    model.dump_logs()
    keys = {*model.logger.name_to_value, *TIME, *ROLLOUT, *TRAIN, *TRAJOPT}
    length = HumanOutputFormat(mock.MagicMock()).max_length
    assert len({key[:length] for key in keys}) == len(keys)
    assert max(map(len, keys)) < length


def test_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    small_mdgps(verbose=1).learn(3 * ITERATION)
    printed = capsys.readouterr().out
    assert printed.count("trajopt/") == 2 and "predicted_improvement" in printed and "..." not in printed


def test_dump_logs_without_arguments() -> None:
    model = small_mdgps()
    model.learn(ITERATION)
    model.logger.record("custom", 1.0)
    model.dump_logs()
    assert not model.logger.name_to_value, "dumping clears"


def test_fps_without_time_passing(tmp_path: Path) -> None:
    with mock.patch("time.time_ns", return_value=42.0):
        small_mdgps().learn(ITERATION)


@pytest.mark.parametrize("window", [2, 42])
def test_stats_window_size(window: int) -> None:
    model = small_mdgps(limited(HORIZON), horizon=None, stats_window_size=window)
    model.learn(2 * ITERATION)
    assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == window
    assert len(model.ep_info_buffer) == min(window, 8)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_episode_return_although_the_horizon_is_shorter(n_envs: int, tmp_path: Path) -> None:
    model = small_mdgps(vec_env(n_envs, lambda: limited(100)))
    rows = table(model, tmp_path, 1)
    returns = model.rollout_buffer.trajectories().returns
    assert float(rows[0]["rollout/ep_rew_mean"]) == pytest.approx(np.nanmean(returns), rel=1e-5)
    assert float(rows[0]["rollout/ep_len_mean"]) == HORIZON


def test_episodes_are_counted_once(tmp_path: Path) -> None:
    """Where Monitor reports an episode, or it was cut at the horizon, but never both."""
    model = small_mdgps(limited(HORIZON), horizon=HORIZON)
    model.learn(1)
    assert [info["l"] for info in model.ep_info_buffer or []] == [HORIZON] * 4
    dying = small_mdgps(PointMass(death=(4, 20)))
    dying.learn(ITERATION)
    lengths = dying.rollout_buffer.trajectories().alive.sum(-1)
    assert sorted(info["l"] for info in dying.ep_info_buffer or [])[: lengths.size] == sorted(lengths.ravel())


def test_success_rate(tmp_path: Path) -> None:
    class Successful(PointMass):
        def step(self, action: np.ndarray) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "is_success": True}

    model = small_mdgps(vec_env(1, lambda: Successful(death=(4, 6))))
    assert float(table(model, tmp_path, 1)[0]["rollout/success_rate"]) == 1.0


def test_name_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = small_mdgps(tensorboard_log=str(tmp_path))
    model.learn(ITERATION)
    model.learn(ITERATION)
    model.learn(ITERATION, tb_log_name="other")
    model.learn(ITERATION, tb_log_name="other", reset_num_timesteps=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MDGPS_1", "MDGPS_2", "other_1"]


def test_name_of_the_run_without_tensorboard(tmp_path: Path) -> None:
    """The same, of the name that reaches SB3's configuration."""
    with mock.patch("stable_baselines3.common.utils.configure_logger", wraps=None) as configure_logger:
        configure_logger.return_value = configure(str(tmp_path), [])
        small_mdgps().learn(ITERATION)
    assert configure_logger.call_args.args[2] == "MDGPS"
