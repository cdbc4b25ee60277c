"""RL Zoo's plots: what they pass over is named, and what they cannot draw refused in one line."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from test_zoo_command import _process, _zoo, store_evaluations

from sb3_dpi.zoo.plots import check_plot


def all_plots(folder: Path, algos: list[str] | None = None, env: list[str] | None = None) -> Namespace:
    given = Namespace(exp_folders=[str(folder)], algos=algos, env=env, labels=None)
    check_plot("all_plots", given)
    return given


def test_plots_name_what_they_do_not_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, n in {"A-v1_1": 3, "A-v1_2": 2, "A-v1_3": 3, "b-BigA-v1_1": 3}.items():
        store_evaluations(tmp_path / "mdgps" / name, n)
    (tmp_path / ".unfinished" / "x_1").mkdir(parents=True)
    given = all_plots(tmp_path, ["sb3_dpi:MDGPS"], ["envs:b/BigA-v1"])
    assert (given.algos, given.env, capsys.readouterr().out) == (["mdgps"], ["b-BigA-v1"], "")
    all_plots(tmp_path, ["mdgps"], ["A-v1"])
    output = capsys.readouterr().out
    assert "-e A-v1 is part of the names A-v1, b-BigA-v1" in output
    assert output.endswith(f"fewer than others: {tmp_path / 'mdgps' / 'A-v1_2'}\n")
    contents = "mdgps on A-v1 b-BigA-v1$"
    with pytest.raises(ValueError, match=f"-a is needed.*{contents}"):
        all_plots(tmp_path, env=["A-v1"])
    with pytest.raises(ValueError, match=f"no runs of trpo .* only {contents}"):
        all_plots(tmp_path, ["mdgps", "trpo"], ["A-v1"])
    with pytest.raises(ValueError, match=f"no runs on b-C-v1 in .* only {contents}"):
        all_plots(tmp_path, ["mdgps"], ["A-v1", "b/C-v1"])


def test_a_single_run_of_single_episodes_cannot_be_plotted(tmp_path: Path) -> None:
    store_evaluations(tmp_path / "mdgps" / "A-v1_1", 3, n_episodes=1)
    store_evaluations(tmp_path / "mdgps" / "A-v1_2", 1, n_episodes=1)
    with pytest.raises(ValueError, match="A-v1_1: RL Zoo cannot plot a single run whose evaluations are of one episode"):
        all_plots(tmp_path, ["mdgps"], ["A-v1"])
    store_evaluations(tmp_path / "mdgps" / "A-v1_3", 3, n_episodes=1)
    all_plots(tmp_path, ["mdgps"], ["A-v1"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 2), (3, 5)], r"whose evaluations have 2 \(.*_1\) and 5 \(.*_2\) episodes; keep them in folders apart"),
        ([(3, 2), (0, 2)], "_2/evaluations.npz: has no evaluations, at which RL Zoo would stop"),
        ([(0,)], "_1/evaluations.npz: has no evaluations"),
        ([(1, 2), (1, 2)], "all_plots needs two evaluations of a run"),
        ([None], "_1/evaluations.npz: cannot be read"),
    ],
)
def test_what_cannot_be_plotted(shapes: list[tuple[int, ...] | None], message: str, tmp_path: Path) -> None:
    for seed, shape in enumerate(shapes, start=1):
        folder = tmp_path / "mdgps" / f"A-v1_{seed}"
        folder.mkdir(parents=True)
        if shape is None:
            (folder / "evaluations.npz").write_text("cut")
        else:
            np.savez(folder / "evaluations.npz", timesteps=np.arange(shape[0]), results=np.zeros(shape))
    with pytest.raises(ValueError, match=message):
        all_plots(tmp_path, ["mdgps"], ["A-v1"])


def test_what_a_table_does_not_have_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_evaluations(tmp_path / "mdgps" / "A-v1_1", 3, n_episodes=1)
    store_evaluations(tmp_path / "mdgps" / "A-v1_2", 3, n_episodes=1)
    store_evaluations(tmp_path / "mdgps" / "B-v1_1", 1)
    all_plots(tmp_path, ["mdgps"], ["A-v1", "B-v1"])
    said = capsys.readouterr().out
    assert f"says +/- 0 for {tmp_path / 'mdgps'} on A-v1: evaluations of one episode have no spread there\n" in said
    assert f"says 0.0 +/- 0.0 for {tmp_path / 'mdgps'} on B-v1: no run there has two evaluations\n" in said


def test_a_file_of_plots_that_lacks_what_is_drawn(tmp_path: Path) -> None:
    for algo, env, seeds in (("a", "A-v1", (1, 2)), ("a", "B-v1", (1, 2)), ("b", "A-v1", (1, 2)), ("c", "C-v1", (1,))):
        for seed in seeds:
            store_evaluations(tmp_path / "logs" / algo / f"{env}_{seed}", 3)
    plots = ("all_plots", "--no-display", "-l", "x")
    _zoo(*plots, "-a", "a", "b", "-e", "A-v1", "B-v1", "-o", "gap", folder=tmp_path)
    _zoo(*plots, "-a", "c", "-e", "C-v1", "-o", "single", folder=tmp_path)
    for arguments, expected in {
        "gap": "gap.pkl: has no evaluations of B-x on B-v1; add --skip-envs B-v1 or --skip-keys B-x",
        "gap.pkl --keep-keys D-x": "gap.pkl: nothing of it is left to draw, it has A-x B-x on A-v1; A-x on B-v1",
        "single": "single.pkl: has a single run of C-x on each environment",
    }.items():
        assert _zoo("plot_from_file", "-i", *arguments.split(), folder=tmp_path, code=1).splitlines()[-1].startswith(expected)
    for arguments in ("--skip-envs B-v1", "--skip-keys B-x", "--merge single.pkl --skip-keys B-x"):
        _zoo("plot_from_file", "-i", "gap", *arguments.split(), "-o", "x.svg", folder=tmp_path)
        assert (tmp_path / "x.svg").read_text().startswith("<?xml")
        (tmp_path / "x.svg").unlink()


def test_plot_train_needs_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    with pytest.raises(ValueError, match="opens a window and writes no file"):
        check_plot("plot_train", Namespace(algo="mdgps", env=["A-v1"], exp_folder="logs"))


@pytest.mark.slow
def test_plots_of_what_compare_wrote(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / "lab" / "mdgps" / f"Task-v1_{seed}"
        folder.mkdir(parents=True)
        np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20]), results=np.full((2, 3), 5.0 * seed))
    plots = ("-a", "mdgps", "-e", "Task-v1", "-f", "lab", "-l", "lab", "-o", "curves", "--no-display")
    assert "8 +/- 2" in _process("all_plots", *plots, folder=tmp_path)
    _process("plot_from_file", "-i", "curves", "-o", "final.png", "--format", "png", folder=tmp_path)
    assert (tmp_path / "final.png").read_bytes().startswith(b"\x89PNG")
