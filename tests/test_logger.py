"""What is logged: the keys of Stable-Baselines3, the planner's scalars under ``trajopt/``, and the name of the run."""

import csv
import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from algorithms import ALGORITHMS, Make, Model, every, every_algorithm, small_mdgps
from dummy_envs import HORIZON, ITERATION, PointMass, limited, vec_env
from stable_baselines3.common.logger import HumanOutputFormat, configure
from stable_baselines3.common.monitor import Monitor

from sb3_dpi import DPI, MDGPS, MPC, AggreVaTeDOC, DAgger, DualAC, ExIt

TIME = {"time/fps", "time/time_elapsed", "time/total_timesteps"}
ROLLOUT = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
TRAIN = {"train/learning_rate", "train/n_updates", "train/std"}
TRAJOPT = {f"trajopt/{key}" for key in "kl eta cost_local cost_linearized held_out_error planned_steps".split()}
OWN: dict[type[Any], set[str]] = {
    MDGPS: TRAJOPT
    | {"train/loss"}
    | {f"trajopt/{key}" for key in "kl_step predicted_improvement actual_improvement cost_global".split()},
    AggreVaTeDOC: TRAJOPT
    | {f"train/{key}" for key in "value_loss explained_variance kl_divergence_loss policy_objective".split()}
    | {"train/is_line_search_success", "trajopt/calibration", "trajopt/calibration_error", "trajopt/trust"},
    DPI: {f"train/{key}" for key in "critic_loss critic_target critic_r_squared objective entropy ent_coef kl".split()}
    | {"train/predicted_improvement", "train/real_improvement"}
    | {f"model/{key}" for key in "loss r_squared r_squared_reward window_correlation".split()},
    DualAC: {f"train/{key}" for key in "value_loss inner_steps inner_gap explained_variance policy_objective".split()}
    | {"train/kl_divergence_loss", "train/is_line_search_success", "train/advantage_std"},
    DAgger: {"train/loss", "imitation/beta", "imitation/disagreement"},
    ExIt: {f"train/{key}" for key in "loss policy_loss value_loss kl".split()} | {"time/simulator_steps", "search/depth"},
    MPC: {f"model/{key}" for key in "loss r_squared r_squared_reward".split()}
    | {f"plan/{key}" for key in "seconds plans_per_second predicted_return real_return".split()},
}
SPARSE = {"model/window_correlation"}
"""Not a number where too few windows were seen"""


def table(model: Model, path: Path, total: int, **kwargs: Any) -> list[dict[str, str]]:
    """The rows that the csv logger writes."""
    model.set_logger(configure(str(path), ["csv"]))
    model.learn(total, **kwargs)
    with open(path / "progress.csv") as file:
        return list(csv.DictReader(file))


@every_algorithm
def test_keys(make: Make, tmp_path: Path) -> None:
    rows = table(make(vec_env(1, lambda: Monitor(limited(HORIZON)))), tmp_path, 4 * ITERATION, log_interval=1)
    own = {"train/n_updates"} if make.plans else TRAIN - ({"train/std"} if make.discrete else set())
    expected = own | ROLLOUT | TIME | OWN[make.algorithm]
    assert expected <= set(rows[-1])
    latest = {key: [row[key] for row in rows if row[key]][-1:] for key in expected}  # off-policy ones log episodes
    assert all(latest.values()), latest
    numbers = {key: float(value[0]) for key, value in latest.items() if key not in SPARSE}
    assert np.all(np.isfinite(list(numbers.values()))), numbers
    assert numbers["rollout/ep_len_mean"] == HORIZON and (make.plans or numbers["train/learning_rate"] > 0.0)
    assert numbers["time/total_timesteps"] == 4 * ITERATION


@every(from_conditions=True)
def test_a_row_for_each_iteration(make: Make, tmp_path: Path) -> None:
    rows = table(make(), tmp_path, 4 * ITERATION)
    assert [int(float(row["time/total_timesteps"])) for row in rows] == [ITERATION * i for i in (1, 2, 3, 4)]
    assert [row["train/n_updates"] for row in rows] == ["", "1", "2", "3"]


@every_algorithm
def test_no_key_collides_when_truncated(make: Make) -> None:
    """The printed table refuses two keys that look the same when they are cut."""
    own: dict[str, Any] = {"sampling": "local", "step_rule": "global"} if make.algorithm is MDGPS else {}
    planning = {"replay": 1, "conditions": "fixed", "cost": {"local_window": 1}} if make.from_conditions else {}
    model = make(**planning, **own).learn(2 * ITERATION)
    keys = {*model.logger.name_to_value, *TIME, *ROLLOUT, *TRAIN, *OWN[make.algorithm]}
    stream = io.StringIO()
    HumanOutputFormat(stream).write(dict.fromkeys(keys, 1.0), dict.fromkeys(keys, ()))
    assert stream.getvalue().count("| 1 ") >= len(keys) and "..." not in stream.getvalue()


@every_algorithm
def test_tables_are_printed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """As often as asked for."""
    make(limited(HORIZON), verbose=1).learn(3 * ITERATION, log_interval=None)
    assert "total_timesteps" not in capsys.readouterr().out
    make(limited(HORIZON), verbose=1).learn(4 * ITERATION, log_interval=1)
    every_time = capsys.readouterr().out.count("total_timesteps")
    make(limited(HORIZON), verbose=1).learn(4 * ITERATION, log_interval=2)
    assert capsys.readouterr().out.count("total_timesteps") == every_time // 2 > 0


@every_algorithm
def test_dump_logs_without_arguments(make: Make) -> None:
    model = make().learn(ITERATION)
    model.logger.record("custom", 1.0)
    model.dump_logs()
    assert not model.logger.name_to_value, "dumping clears"


@every_algorithm
def test_steps_per_second(make: Make, tmp_path: Path) -> None:
    """Of the steps since ``learn`` was called, also where the clock stands still."""
    model = make().learn(ITERATION).learn(ITERATION, reset_num_timesteps=False)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    for now in (4.0, 0.0):
        with mock.patch("time.time_ns", return_value=model.start_time + int(now * 1e9)):
            model.dump_logs()
    with open(tmp_path / "progress.csv") as file:
        first, second = csv.DictReader(file)
    assert (int(first["time/fps"]), int(first["time/time_elapsed"])) == (ITERATION // 4, 4)
    assert int(second["time/fps"]) > 1e9 and int(second["time/total_timesteps"]) == 2 * ITERATION


@pytest.mark.parametrize("window", [2, 42])
@every_algorithm
def test_stats_window_size(make: Make, window: int) -> None:
    model = make(limited(HORIZON), stats_window_size=window).learn(2 * ITERATION)
    assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == window
    assert [info["l"] for info in model.ep_info_buffer] == [HORIZON] * min(window, 8)


@every_algorithm
def test_success_rate(make: Make, tmp_path: Path) -> None:
    """Every third episode succeeds."""

    class Successful(PointMass):
        episodes = 0

        def step(self, action: np.ndarray) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            self.episodes += terminated
            return obs, reward, terminated, truncated, {**info, "is_success": self.episodes % 3 == 0}

    model = make(vec_env(1, lambda: Monitor(Successful(death=(4, 5)))))
    rate = float(table(model, tmp_path, 3 * ITERATION, log_interval=1)[-1]["rollout/success_rate"])
    assert rate == pytest.approx(np.mean(model.ep_success_buffer), abs=0.05) and 0.2 < rate < 0.5


@every_algorithm
def test_name_of_the_run(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = make(tensorboard_log=str(tmp_path))
    model.learn(1).learn(1).learn(1, tb_log_name="other").learn(1, tb_log_name="other", reset_num_timesteps=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{make}_{i}" for i in (1, 2)] + ["other_1"]


@every_algorithm
def test_name_of_the_run_without_tensorboard(make: Make, tmp_path: Path) -> None:
    """The same, of the name that reaches SB3's configuration."""
    with mock.patch("stable_baselines3.common.utils.configure_logger", wraps=None) as configure_logger:
        configure_logger.return_value = configure(str(tmp_path), [])
        make().learn(1)
    assert configure_logger.call_args.args[2] == str(make)


def test_every_algorithm_has_its_keys() -> None:
    assert set(OWN) == {make.algorithm for make in ALGORITHMS}


# ---------------------------------------------------------------------- what some log


def test_scalars_mean_what_they_say() -> None:
    model = small_mdgps(kl_step=0.2).learn(3 * ITERATION)
    values = model.logger.name_to_value
    trajectories = model.rollout_buffer.trajectories()
    assert values["trajopt/cost_global"] == pytest.approx(-trajectories.rewards.sum(-1).mean())
    assert values["trajopt/cost_local"] < values["trajopt/cost_linearized"], "the C-step improves on the policy"
    assert values["trajopt/eta"] == pytest.approx(np.mean(model.eta)) and values["trajopt/eta"] > 0.0  # type: ignore[arg-type]
    assert 0.18 <= values["trajopt/kl"] <= 0.2002
    assert values["trajopt/planned_steps"] == HORIZON
    assert values["trajopt/held_out_error"] < 0.1, "the point mass is linear"
    assert values["train/std"] == pytest.approx(float(np.exp(model.policy.log_std.detach().numpy()).mean()))


@pytest.mark.parametrize("n_envs", [1, 3])
@every(from_conditions=True)
def test_episode_return_although_the_horizon_is_shorter(make: Make, n_envs: int, tmp_path: Path) -> None:
    model = make(vec_env(n_envs, lambda: limited(100)))
    rows = table(model, tmp_path, 1)
    returns = model.rollout_buffer.trajectories().returns
    assert float(rows[0]["rollout/ep_rew_mean"]) == pytest.approx(np.nanmean(returns), rel=1e-5)
    assert float(rows[0]["rollout/ep_len_mean"]) == HORIZON


@every(from_conditions=True)
def test_episodes_are_counted_once(make: Make) -> None:
    """Where Monitor reports an episode, or it was cut at the horizon, but never both."""
    model = make(limited(HORIZON), horizon=HORIZON).learn(1)
    assert [info["l"] for info in model.ep_info_buffer or []] == [HORIZON] * 4
    dying = make(PointMass(death=(4, 20))).learn(ITERATION)
    lengths = dying.rollout_buffer.trajectories().alive.sum(-1)
    assert sorted(info["l"] for info in dying.ep_info_buffer or [])[: lengths.size] == sorted(lengths.ravel())
