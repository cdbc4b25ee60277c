"""What is said of logged data: faults that spoil learning, each once and with its place, and nothing of sound data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import small_dpi
from dummy_envs import POINT_MASS_ID, POINT_MASS_LIMIT, PointMass, limited, vec_env
from logged_data import assert_same, sampled, write_csv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.data import DataError, Episode, Episodes, check, fill, read
from sb3_dpi.data.__main__ import main
from sb3_dpi.data.episodes import Finding, merged
from sb3_dpi.data.read import time_limit_of


def spoil(episodes: Episodes, **changes: Callable[[Episode], Any]) -> Episodes:
    """:return: episodes with other arrays"""
    changed = (replace(each, **{name: of(each) for name, of in changes.items()}) for each in episodes.episodes)
    return replace(episodes, episodes=tuple(changed))


def spoiled(**changes: Callable[[Episode], Any]) -> Episodes:
    return spoil(sampled(20), **changes)


def said(findings: tuple[Finding, ...], is_error: bool | None = None) -> str:
    """:return: all of it, or errors or notes alone, one a line"""
    return "\n".join(str(each) for each in findings if is_error is None or each.is_error == is_error)


def with_nan(each: Episode) -> np.ndarray:
    rewards = each.rewards.copy()
    rewards[3] = np.nan
    return rewards


EXCHANGED: dict[str, Callable[[Episode], Any]] = {
    "terminated": lambda each: each.truncated,
    "truncated": lambda each: each.terminated,
}
LATE: dict[str, Callable[[Episode], Any]] = {"actions": lambda each: np.concatenate([each.actions[:1], each.actions[:-1]])}
EARLY: dict[str, Callable[[Episode], Any]] = {"actions": lambda each: np.concatenate([each.actions[1:], each.actions[-1:]])}
WRONG: dict[str, dict[str, Callable[[Episode], Any]]] = {
    "rewards are not finite .* in 20 rows, first in episode 0, step 3": {"rewards": with_nan},
    "Observations have shape \\(1,\\), those of the environment \\(2,\\)": {
        "observations": lambda each: each.observations[:, :1]  # type: ignore[index]
    },
    "Actions have 2 numbers": {"actions": lambda each: np.repeat(each.actions, 2, 1)},
    "actions are beyond their bounds, in entry 0 .*other units": {"actions": lambda each: 10.0 * each.actions},
    "All .*20.* length of .*12 steps.*: what a limit ends is truncated": EXCHANGED,
    "20 episodes go on after a step that ended them": {"terminated": lambda each: np.arange(len(each)) == 5},
    "actions are written a row late, or the rows are in reverse order": LATE,
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said(words: str) -> None:
    episodes = spoiled(**WRONG[words])
    assert not said(check(sampled(20)), is_error=True)
    errors = [finding.text for finding in check(episodes) if finding.is_error]
    assert len(errors) == 1
    with pytest.raises(DataError, match=words):
        fill(small_dpi(), episodes)


def test_what_is_merely_told() -> None:
    tame = spoiled(observations=lambda each: np.concatenate([each.observations[:, :1], 0.0 * each.observations[:, 1:]], 1))  # type: ignore
    assert "never change in entry 1" in said(check(tame))
    left = spoiled(truncated=lambda each: np.zeros(len(each), bool))
    assert "20 episodes end without a mark" in said(check(left))
    wide = sampled().action_space
    space = gym.spaces.Box(2.0 * wide.low, 2.0 * wide.high)  # type: ignore[union-attr]
    assert "actions_in='bounds'" in said(check(sampled(20), action_space=space))


# ---------------------------------------------------------------------- ends


def test_a_known_time_limit_tells_what_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = replace(spoil(sampled(1), **EXCHANGED), time_limit=POINT_MASS_LIMIT)
    assert "All terminated episodes (1) have the length of the environment's time limit of 12 steps" in said(check(one), True)
    assert not said(check(replace(one, time_limit=None)), is_error=True), "a single one may have died"
    write_csv(tmp_path / "log.csv", one)
    assert main(["check", str(tmp_path / "log.csv"), "--env", POINT_MASS_ID]) == 1
    assert "time limit of 12 steps" in capsys.readouterr().out
    with pytest.raises(DataError, match="time limit of 12 steps"):
        fill(small_dpi(), replace(one, time_limit=None))
    both = spoil(sampled(3), terminated=lambda each: each.truncated)
    assert "(3) have the length of the environment's time limit" in said(check(both, time_limit=12), True)
    # what ends at other lengths has died; what ends at the limit beside it may have, too
    deaths = sampled(8, limited(POINT_MASS_LIMIT, death=(4, 9)))
    assert said(check(deaths, time_limit=POINT_MASS_LIMIT)) == ""
    mixed = replace(deaths, episodes=(*deaths.episodes, *one.episodes))
    found = check(mixed, time_limit=POINT_MASS_LIMIT)
    assert "1 of 9 terminated episodes have the length" in said(found, False) and not said(found, True)
    # some tasks end themselves after so many steps, before their limit
    assert not said(check(spoiled(**EXCHANGED), time_limit=20), is_error=True)
    assert "20 episodes are longer than the environment's time limit of 5 steps" in said(check(sampled(20), time_limit=5))


def test_exchanged_marks_are_told_where_the_limit_is_known() -> None:
    deaths = spoil(sampled(8, limited(POINT_MASS_LIMIT, death=(4, 9))), **EXCHANGED)
    found = check(deaths, time_limit=POINT_MASS_LIMIT)
    words = "No episode terminated, and 8 were truncated before the environment's time limit of 12 steps, at different lengths"
    assert words in said(found, False) and not said(found, True)
    assert words not in said(check(deaths))
    assert said(check(sampled(8), time_limit=POINT_MASS_LIMIT)) == ""


def test_what_dpi_has_kept_is_sound() -> None:
    model = small_dpi(vec_env(2, lambda: limited(100)), early_reset=8, buffer_size=200).learn(300)
    found = check(read(model.replay_buffer), time_limit=100)
    assert "unless they were left early" in said(found, False)
    assert not said(found, is_error=True)
    assert "row" not in said(found), "nothing of shuffled rows or actions that are elsewhere"


def test_time_limits_are_asked_for() -> None:
    assert time_limit_of(None) is None
    assert time_limit_of(PointMass()) is None
    assert time_limit_of(limited(7)) == 7
    assert time_limit_of(gym.make("Pendulum-v1")) == 200
    assert time_limit_of(VecNormalize(vec_env(3, lambda: limited(7)))) == 7
    lengths = iter((7, 8))
    assert time_limit_of(vec_env(2, lambda: limited(next(lengths)))) is None
    assert read(small_dpi().learn(40).replay_buffer, POINT_MASS_ID).time_limit == POINT_MASS_LIMIT
    assert read(small_dpi().learn(40).replay_buffer, PointMass()).time_limit is None


def test_steps_without_their_last_observation_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    write_csv(path, sampled(), order=lambda rows: [row for row in rows if row[4] != ""])
    assert main(["check", str(path), "--env", POINT_MASS_ID]) == 0
    out = capsys.readouterr().out
    assert f"6 times, first in {path}, row 11: The last step of an episode is left out, for the observation after it" in out
    assert [len(each) for each in read(path).episodes] == [11] * 6
    write_csv(path, sampled())
    assert main(["check", str(path), "--env", POINT_MASS_ID]) == 0
    assert capsys.readouterr().out.endswith("Nothing stands against learning from this\n")


# ---------------------------------------------------------------------- order


def test_late_actions_that_move_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a pendulum's three numbers only the speed tells of the action, and a column that is not read is named."""
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    rows, before, seen = list[list[Any]](), 0.0, env.reset(seed=0)[0]
    for _ in range(200):
        action = env.action_space.sample()
        row = [*seen, action[0], before]
        seen, reward, _, is_cut, _ = env.step(action)
        rows.append([*row, reward, is_cut, False])
        before = float(action[0])
    for names, is_late in (("action_0,previous", False), ("previous,action_0", True)):
        text = f"obs_0,obs_1,obs_2,{names},reward,truncated,done\n"
        (tmp_path / "log.csv").write_text(text + "\n".join(",".join(map(str, row)) for row in rows))
        assert main(["check", str(tmp_path / "log.csv"), "--env", "Pendulum-v1"]) == 0
        out = capsys.readouterr().out
        assert ("written a row late? Or are the rows in reverse order?" in out) == is_late
        assert "not read: done, previous; call the ends of the task terminated" in out
        assert out.endswith("No error was found: read the notes before anything learns from this\n")


def test_rows_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for order, words in (
        (lambda rows: rows[::-1], "row 0: Time runs back"),
        (lambda rows: sorted(rows, key=lambda row: row[1]), "row 6: The rows of an episode are not one below the other"),
    ):
        write_csv(tmp_path / "log.csv", sampled(), order=order)
        assert main(["check", str(tmp_path / "log.csv"), "--env", POINT_MASS_ID]) == 1
        assert words in capsys.readouterr().out


BARE = ("episode", "t", "terminated", "truncated")


@pytest.mark.parametrize(
    "order, words",
    [
        (list, None),
        (lambda rows: [rows[i] for i in np.random.default_rng(0).permutation(len(rows))], "are the rows shuffled?"),
        (lambda rows: rows[::-1], "the rows are in reverse order"),
    ],
)
def test_rows_that_nothing_numbers(order: Any, words: str | None, tmp_path: Path) -> None:
    """Neither next observations nor episodes nor times: what was seen and done must tell."""
    long = sampled(1, limited(300))
    write_csv(tmp_path / "log.csv", long, order=lambda rows: order(rows[:-1]), left_out=BARE)
    found = said(check(read(tmp_path / "log.csv", POINT_MASS_ID)))
    told = [hint for hint in ("shuffled", "reverse order", "row late", "row early") if hint in found]
    assert (words in found) if words else not told
    assert ("shuffled" in found) == (words is not None and "shuffled" in words)


def test_actions_a_row_early_are_told() -> None:
    found = check(spoiled(**EARLY))
    assert "are actions written a row early? A delay of the actuators looks alike" in said(found, False)
    assert not said(found, is_error=True)
    assert "row early" not in said(check(sampled(20))) and "row early" not in said(check(spoiled(**LATE)))


@pytest.mark.parametrize("name", ["InvertedPendulum-v5", "Swimmer-v5"])
def test_what_a_policy_sees_is_no_row_late(name: str) -> None:
    """The next action of a policy without noise tells what it saw, and with it what happened in the step before."""
    env = gym.make(name, max_episode_steps=300)
    size, n = env.action_space.shape[0], env.observation_space.shape[0]  # type: ignore[index]
    gain = 0.3 * np.random.default_rng(1).normal(size=(size, n))
    space: Any = env.action_space
    policy = sampled(5 if name == "Swimmer-v5" else 60, env, act=lambda obs: np.clip(gain @ obs, space.low, space.high))
    assert "row" not in said(check(policy))
    noise = sampled(5 if name == "Swimmer-v5" else 60, env)
    assert "row" not in said(check(noise))
    assert "row late" in said(check(spoil(noise, **LATE)), is_error=True)


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize("last_row", [True, False])
def test_a_lost_number_is_found_where_it_stands(last_row: bool, tmp_path: Path) -> None:
    """It is no break between episodes, and no end of one."""
    path = tmp_path / "log.csv"
    for column, name in ((2, "observations"), (4, "actions"), (5, "rewards")):

        def lose(rows: list[Any], column: int = column) -> list[Any]:
            place = next(i for i, row in enumerate(rows) if row[:2] == [2, 5])
            rows[place][column] = ""
            return rows

        write_csv(path, sampled(), last_row, lose)
        row = 2 * (POINT_MASS_LIMIT + last_row) + 5
        episodes = read(path, POINT_MASS_ID)
        assert [len(each) for each in episodes.episodes] == [POINT_MASS_LIMIT] * 6
        found = check(episodes)
        assert f"{name} are not finite (NaN or infinite) in 1 rows, first in episode 2, step 5 ({path}, row {row})" in said(
            found
        )
        assert "as if by a reset" not in said(found)
    if not last_row:  # the next row shows what is lost

        def forget(rows: list[Any]) -> list[Any]:
            rows[5][8] = "nan"
            return rows

        write_csv(path, sampled(), last_row, forget)
        assert said(check(read(path, POINT_MASS_ID))) == ""
        assert_same(read(path), sampled())


def test_one_row_is_an_episode(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("obs_0,action_0,reward,next_obs_0\n1,2,3,4\n")
    np.testing.assert_array_equal(read(path).episodes[0].observations, [[1.0], [4.0]])


def test_a_fault_of_many_files_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deaths = sampled(30, limited(POINT_MASS_LIMIT, death=(4, 9)))
    for number, each in enumerate(deaths.episodes):
        write_csv(
            tmp_path / f"{number:02}.csv",
            replace(deaths, episodes=(each,)),
            order=lambda rows: rows[:-1],
            left_out=["episode"],
        )
    assert main(["check", str(tmp_path), "--env", POINT_MASS_ID]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = f"{tmp_path / '00.csv'}, row {len(deaths.episodes[0]) - 1}"
    assert lines[1] == (
        f"error: 30 times, first in {place}: The observation in which an episode terminated is missing: add a row with the "
        "last observation and an empty action, or columns next_obs_0, next_obs_1, ..."
    )
    assert sum(line.startswith("error") for line in lines) == 1
    assert lines[-1] == "Repair the errors before anything learns from this"


def test_findings_of_one_kind_are_counted() -> None:
    found = [Finding("A", True, "x"), Finding("B", False), Finding("A", True, "y", 3), Finding("A", False, "z")]
    assert [str(each) for each in merged(found)] == ["error: 4 times, first in x: A", "note: B", "note: z: A"]
