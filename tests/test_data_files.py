"""Files that cannot be read: what is wrong with them and what to do, never a bare error of what reads them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_data import sampled, write_csv

from sb3_dpi.data import DataError, read
from sb3_dpi.data.__main__ import main


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    for text, words in (
        ("obs_0,action_0,reward\n1,x,3\n", "line 2 has 'x' in column 'action_0'"),
        ("obs_0,action_0,reward\n1,2,3\n\n1,x,3\n", "line 4 has 'x' in column 'action_0'"),
        ("obs_0,action_0,reward\n1,3\n", "line 2 has 2 cells, the header 3"),
        ("1,2,3\n4,5,6\n", "has no header"),
        ("obs_0,reward\n1,2\n", "has no actions"),
        ("obs_0,action_0,reward\n", "holds no step"),
        ("obs_0;action_0;reward\n1;2;3\n", "parts its cells by semicolons"),
        ("obs_0,obs_0,action_0,reward\n1,1,2,3\n", "names columns twice: obs_0"),
        ("obs_0,action_0,reward,episode\n1,2,3,0\n1,2,3,\n", "episode is empty in 1 rows, first in row 1"),
        ("obs_0,action_0,reward,episode\n1,2,3,0\n1,2,3,0.5\n", "episode is 0.5 in row 1: number episodes by integers"),
        ("\N{BYTE ORDER MARK}obs_0,action_0,reward\n1,x,3\n", "line 2 has 'x' in column 'action_0'"),
        ("obs_0,action_0,reward,terminated\n1,0,1,0\n2,0,1,1\n", "The observation in which an episode terminated is missing"),
    ):
        path.write_text(text, encoding="utf-8")
        assert main(["check", str(path)]) == 1
        assert words in capsys.readouterr().out
    for name, words in (
        ("log.csv", "cannot be read as csv"),
        ("log.npz", "is no npz file"),
        ("log.pkl", "cannot be read as pickle"),
    ):
        (tmp_path / name).write_bytes(bytes(range(128, 256)))
        assert main(["check", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().out
    write_csv(path, sampled())
    assert main(["check", str(path), "--env", "Nowhere-v0"]) == 1
    assert "'Nowhere-v0' cannot be made" in capsys.readouterr().out
    with (tmp_path / "other.pkl").open("wb") as file:
        pickle.dump([1, 2], file)
    with pytest.raises(DataError, match="holds a list, not a ReplayBuffer"):
        read(tmp_path / "other.pkl")
    assert main(["check", str(tmp_path / "missing.npz")]) == 1


COLUMNS = {
    "obs_0,obs_2,action_0,reward,next_obs_0,next_obs_1,next_obs_2": "has obs_0, obs_2 but not obs_1",
    "obs_0,obs_1,obs_2,action_0,reward,next_obs_0,next_obs_2": "has next_obs_0, next_obs_2 but not next_obs_1",
    "obs_0,obs_1,action_0,reward,next_obs_0": "has obs_1 without their next_obs",
    "obs_0,action_0,reward,next_obs_0,next_obs_1": "has next_obs_1 without their obs",
    "obs_x,action_0,reward,next_obs_y": "has obs_x without their next_obs and next_obs_y without their obs",
    "obs_0,action_0,action_3,reward": "has action_0, action_3 but not action_1, action_2",
    "obs_2,obs_3,action_0,reward": "has obs_2, obs_3 but not obs_1",
    "obs[0],obs[2],action[0],reward": "has obs[0], obs[2] but not obs[1]",
    "obs_q_0,obs_q_2,action_0,reward": "has obs_q_0, obs_q_2 but not obs_q_1",
    "obs_0_0,obs_0_1,obs_1_1,action_0,reward": "has obs_0_0, obs_0_1, obs_1_1 but not obs_1_0",
    "obs_0,obs_1_0,action_0,reward": "obs_0, obs_1_0 have one number and two",
    "obs_0,obs_9999999,action_0,reward": "but not most of those with lower numbers",
    "obs_1,obs_2,action_0,reward": "counts from 0 in action_0 but from 1 in obs_1",
    "obs_0,obs_speed,action_0,reward": "has numbered columns beside obs_speed",
    "obs_0,observation_0,action_0,reward": "has obs_0 and observation_0, which mean the same",
    "obs_0,action_0,reward,rewards": "has reward and rewards, which mean the same",
    "obs_0,obs.speed,action_0,reward": "which mean the same: keep one of them",
}


@pytest.mark.parametrize("header", COLUMNS)
def test_columns_that_do_not_fit(header: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = ",".join("1" for _ in header.split(","))
    (tmp_path / "log.csv").write_text(f"{header}\n{row}\n{row}\n{row}\n")
    assert main(["check", str(tmp_path / "log.csv")]) == 1
    assert COLUMNS[header] in capsys.readouterr().out


@pytest.mark.parametrize(
    "columns, seen",
    [
        ("obs_1,obs_0,obs_2,next_obs_0,next_obs_1,next_obs_2,action_0", [1, 0, 2, 3, 4, 5]),
        ("obs_2,obs_3,obs_1,next_obs_1,next_obs_2,next_obs_3,action_1", [2, 0, 1, 3, 4, 5]),
        ("obs[0],obs[1],obs[2],next_obs[2],next_obs[0],next_obs[1],action", [0, 1, 2, 4, 5, 3]),
        ("obs_joint_10,obs_joint_9,next_obs_joint_9,next_obs_joint_10,action", None),
        # names keep their places, and what came next follows what was seen
        ("obs_q1,obs_v1,obs_q2,next_obs_v1,next_obs_q2,next_obs_q1,action", [0, 1, 2, 5, 3, 4]),
    ],
)
def test_columns_find_their_places(columns: str, seen: list[int] | None, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    values = ",".join(str(i) for i in range(columns.count(",") + 1))
    path.write_text(f"{columns},reward\n{values},0\n")
    if seen is None:
        with pytest.raises(DataError, match="but not obs_joint_1, obs_joint_2"):
            read(path)
        return
    np.testing.assert_array_equal(np.asarray(read(path).episodes[0].observations).ravel(), seen)


TWO: dict[str, Any] = {"observations": np.zeros((3, 2)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}
ROWS: dict[str, Any] = {**TWO, "observations": np.zeros((2, 2))}
ARRAYS: dict[str, dict[str, Any]] = {
    "array observations holds text, not numbers": {**TWO, "observations": np.array([["a"], ["b"], ["c"]])},
    "array actions holds text, not numbers": {**TWO, "actions": np.array([["a"], ["b"]])},
    "array terminated holds text, not numbers": {**TWO, "terminated": np.array(["no", "yes"])},
    "array actions holds Python objects, not numbers.*one file each": {**TWO, "actions": np.array([[1], None], object)},
    "array rewards holds complex numbers": {**TWO, "rewards": np.zeros(2, complex)},
    "array time holds dates": {**TWO, "time": np.array(["2020-01-01", "2020-01-02"], "datetime64[s]")},
    "array rewards holds values of the type": {**TWO, "rewards": np.zeros(2, [("a", float)])},
    "observations is a single number": {**TWO, "observations": np.float64(3.0)},
    "actions is a single number": {**TWO, "actions": np.float64(3.0)},
    "rewards has shape \\(2, 3\\), a column of one number": {**TWO, "rewards": np.zeros((2, 3))},
    "truncated has shape \\(1, 2\\), a column of one number": {**TWO, "truncated": np.zeros((1, 2))},
    "terminated has 3 entries for 2 steps": {**TWO, "terminated": np.zeros(3)},
    "time has 5 entries for 2 steps": {**TWO, "time": np.arange(5)},
    "episode has 3 entries for 2 rows": {**ROWS, "episode": np.zeros(3)},
    "holds several episodes": {**TWO, "episode": np.arange(2)},
    "shape \\(2, 2\\) and next_observations of shape \\(2, 3\\)": {**ROWS, "next_observations": np.zeros((2, 3))},
    "shape \\(2, 2\\) and next_observations of shape x \\(2, 2\\)": {**ROWS, "next_obs.x": np.zeros((2, 2))},
    "observations and observations.x, which mean the same": {**TWO, "observations.x": np.zeros((3, 1))},
    "obs.x and observations.x, which mean the same": {
        "obs.x": np.zeros((3, 1)),
        "observations.x": np.zeros((3, 1)),
        "actions": np.zeros((2, 1)),
        "rewards": np.zeros(2),
    },
    "observations and obs, which mean the same": {**TWO, "obs": np.zeros((3, 1))},
    "rewards has keys \\(x\\)": {"observations": np.zeros((3, 2)), "actions": np.zeros((2, 1)), "rewards.x": np.zeros(2)},
    "action_low of shape \\(1,\\) .* and action_high of shape \\(2,\\)": {
        **TWO,
        "action_low": np.zeros(1),
        "action_high": np.zeros(2),
    },
}


@pytest.mark.parametrize("words", ARRAYS)
def test_arrays_that_do_not_fit(words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", **ARRAYS[words])
    with pytest.raises(DataError, match=words):
        read(tmp_path / "log.npz")
    assert main(["check", str(tmp_path / "log.npz")]) == 1


def test_what_is_not_read_may_be_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"robot": np.array("arm"), "infos": np.array([{}, {}], object), "infos.x": np.zeros(2)}
    np.savez(tmp_path / "log.npz", **TWO, **more)  # type: ignore[arg-type]
    assert read(tmp_path / "log.npz").n_steps == 2
    assert main(["check", str(tmp_path / "log.npz")]) == 0
    assert "not read: infos, robot" in capsys.readouterr().out


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez_compressed(path, **{**TWO, "observations": np.random.default_rng(0).normal(size=(3, 2000))})
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("observations.npy").header_offset
    whole = path.read_bytes()
    for offset in (60, 500, 5000):
        path.write_bytes(whole[: begin + offset] + bytes(40) + whole[begin + offset + 40 :])
        with pytest.raises(DataError, match="cannot be read as npz"):
            read(path)
