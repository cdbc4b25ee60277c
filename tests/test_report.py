"""The report: what it says of synthetic runs, what it warns of, that it is the same every time, and soon enough."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from reports import GRID, PROVENANCE, VERSIONS, draw_nothing, rows, table_of, task, without_times, write_run
from rich.console import Console

from sb3_dpi.common.extras import install_command
from sb3_dpi.compare import report as report_module
from sb3_dpi.compare import study as study_module
from sb3_dpi.compare.analysis import KEEPS, read_comparison, share_kept
from sb3_dpi.compare.figures import Point, frontier
from sb3_dpi.compare.report import all_tasks, print_table, write_report
from sb3_dpi.compare.runs import thin
from sb3_dpi.compare.study import pack
from sb3_dpi.compare.suite import Task
from sb3_dpi.compare.types import Curve


def test_table_of_a_task(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks)
    text = (out / "report.md").read_text()
    table = table_of(text, "## A-v0")
    assert table["algorithm"][:3] == ["steps to 7.5 (seeds)", "keep it", "ratio to trpo"]
    assert table["algorithm"][3:5] == ["final return, IQM [95 % interval]", "worst seed"]
    # Medians: 2000, 3000, 1000 and never; trpo never, its budget is 9000
    # The third falls again: 8, 8, 8, 0, 3
    assert table["mdgps"][:3] == ["2,500 (3/4)", "2/4", "<= 0.28"]
    assert table["trpo"][:3] == ["> 9,000 (0/3)", "0/3", "-"]
    # Finals 8, 9, 3, 8: the middle two are 8 and 8; the worst is 3
    assert table["mdgps"][3].startswith("8.00 [") and table["mdgps"][4] == "3.00"
    assert table["algorithm"][5] == "return at 5,000 steps, IQM [95 % interval]"
    # At 5000 of 9000 steps trpo is a fifth of the way from its second to its third evaluation: 1.6, 1.2, 0.8
    assert table["trpo"][5].startswith("1.20 [0.80, 1.60]")
    assert table["mdgps"][6:] == ["5,000", "4", "a test"]
    table = table_of(text, "## B-v0")
    assert table["algorithm"][3] == "steps to 7 (seeds)"
    assert table["mdgps"][:6] == ["3,000 (3/3)", "3/3", "1", "> 5,000 (0/3)", "0/3", ">= 1.7"]
    assert table["trpo"][:6] == ["3,000 (3/3)", "3/3", "1", "3,000 (3/3)", "3/3", "1"]
    steps = text.partition("fewest are bold.")[2].partition("Scores")[0]
    assert "| A-v0, 7.5 | **2,500 (3/4)** | > 9,000 (0/3) |" in steps
    assert (
        "| B-v0, 5 | **3,000 (3/3)** | **3,000 (3/3)** |" in steps and "| B-v0, 7 | > 5,000 (0/3) | **3,000 (3/3)** |" in steps
    )
    assert text.index("## B-v0") < text.index("## A-v0"), "the order of the suite"


def test_times_of_a_task(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks, steps=2500)
    _, _, chapter = (out / "report.md").read_text().partition("\n## A-v0\n")
    table = table_of(chapter, "### Time")
    assert table["algorithm"][0] == "wall seconds to 7.5" and table["algorithm"][-1] == "return at 2,500 steps"
    # 10 s for 5 evaluations, 9 CPU s and 1.5 of evaluations for 5000 steps
    assert table["mdgps"][:4] == ["5.00", "10.0", "1.80", "0.300"]
    assert table["trpo"][:3] == ["> 30.0", "30.0", "3.00"]
    assert table["trpo"][4].startswith("0.17 [")
    summary = {(row["task"], row["threshold"], row["name"]): row for row in rows(out / "summary.csv")}
    assert len(summary) == 6
    row = summary["A-v0", "7.5", "mdgps"]
    assert (row["steps_median"], row["seeds_reached"], row["ratio_bound"]) == ("2500.0", "3", "<=")
    assert float(row["ratio"]) == pytest.approx(2500 / 9000)
    assert (row["wall_seconds_to_threshold"], row["final_worst"], row["common_steps"]) == ("5.0", "3.0", "5000")


def test_aggregate(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks)
    text = (out / "report.md").read_text()
    assert "- A-v0: the suite gives it no scale" in text
    assert "| B-v0 | 0 | 10 | 5,000 |" in text
    # Both end with 6, 7, 8 and 7, 8, 9 of 10; with three runs nothing is cut off
    table = table_of(text, "## All tasks")
    assert table["mdgps"] == ["0.700 [0.600, 0.800]", "3"] and table["trpo"] == ["0.800 [0.700, 0.900]", "3"]
    # Of nine pairs mdgps wins one and ties two
    assert f"| mdgps |  | {2 / 9:.2f} [" in text and f"| trpo | {7 / 9:.2f} [" in text
    assert {"iqm.png", "profile.png", "frontier.png", "frontier_tasks.png"} <= {path.name for path in out.glob("figures/*")}


def test_one_seed_has_no_interval(tmp_path: Path, no_figures: None) -> None:
    for algo in ("ppo", "trpo"):
        write_run(tmp_path, algo, "A-v0", 1, GRID, [0, 1, 2, 3, 4])
        write_run(tmp_path, algo, "B-v0", 1, GRID, [0, 2, 4, 6, 8])
    tasks = {name: task(name, scale=(0.0, 10.0)) for name in ("A-v0", "B-v0")}
    write_report(tmp_path, tasks)
    text = (tmp_path / "report.md").read_text()
    assert "| ppo | 0.600 | 2 |" in text and "| ppo |  | 0.50 |" in text
    assert not re.search(r"\[-?[\d.]+, -?[\d.]+\]", text)
    write_run(tmp_path, "ppo", "A-v0", 2, GRID, [0, 1, 2, 3, 5])
    write_report(tmp_path, tasks)
    text = (tmp_path / "report.md").read_text()
    assert (
        re.search(r"\| ppo \| 0\.\d+ \[", text)
        and "| trpo | 0.600 | 2 |" in text
        and re.search(r"\| ppo \|  \| 0\.\d+ \[", text)
    )


def test_an_algorithm_that_was_not_run_everywhere(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_run(out, "ppo", "A-v0", 1, GRID, [1, 2, 3, 4, 5])
    tasks = {**tasks, "A-v0": task("A-v0", scale=(0.0, 10.0))}
    write_report(out, tasks)
    text = (out / "report.md").read_text()
    assert "- B-v0: not run: ppo" in text and "| A-v0 | 0 | 10 | 5,000 |" in text
    # One run has no interval of its own
    assert table_of(text, "## A-v0")["ppo"][0] == "5.00"
    write_run(out, "sac", "C-v0", 1, GRID, [1, 2, 3, 4, 5])
    write_report(out, tasks)
    assert "no task has both a scale and all algorithms" in (out / "report.md").read_text()


def test_steps_that_nobody_reached(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks, steps=1_000_000)
    text = (out / "report.md").read_text()
    assert "No task has evaluations of all algorithms on both sides of 1,000,000 steps." in text
    assert "frontier.png" not in text


def test_no_baseline(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks, baseline="ppo")
    text = (out / "report.md").read_text()
    assert "No ratios: the baseline ppo is not among the algorithms." in text and "| ratio to" not in text


def test_frontier_holds_what_no_other_beats() -> None:
    points = [Point(name, cost, value, value, value) for name, cost, value in CASES]
    assert [point.name for point in frontier(points)] == ["cheap", "good", "best"]


CASES = [
    ("best", 9.0, 5.0),
    ("bad", 2.0, 1.0),
    ("good", 3.0, 4.0),
    ("cheap", 1.0, 2.0),
    ("same", 3.0, 3.0),
    ("dear", 99.0, 5.0),
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"versions": {"gymnasium": "1.2.0"}}, "A-v0: versions differ, gymnasium: 1.2.0 (ppo seed 3); 1.4.0 (ppo seeds 1, 2)"),
        ({"provenance": {"python": "3.10.2"}}, "A-v0: versions differ, python: 3.10.2 (ppo seed 3); 3.12.1 (ppo seeds 1, 2)"),
        ({"device": "cuda"}, "A-v0: versions differ, device: cpu (ppo seeds 1, 2); cuda (ppo seed 3)"),
        (
            {"n_timesteps": 4000},
            "A-v0: budgets differ, so final returns are not at the same number of steps: "
            "4,000 steps (ppo seed 3); 5,000 steps (ppo seeds 1, 2)",
        ),
        (
            {"eval_every": 500},
            "A-v0: evaluations differ, and tables read all on the coarsest grid: "
            "every 250 steps at first, 2 episodes (ppo seeds 1, 2); "
            "every 500 steps at first, 2 episodes (ppo seed 3)",
        ),
        (
            {"hyperparams": {"gamma": 0.9}},
            "A-v0: hyperparameters of ppo are not the same for all seeds: ppo seed 3 differ from the first",
        ),
        ({"imported": True}, "A-v0: imported baselines, matched by configuration and seed: ppo seed 3"),
        (
            {"env_kwargs": {"mass": 2}},
            'A-v0: the environment is not the same for all: A-v0 {"mass": 2} (ppo seed 3); A-v0 {} (ppo seeds 1, 2)',
        ),
        ({"results": [1, 2, 3, 4, float("nan")]}, "A-v0: returns that are not finite: ppo seed 3"),
    ],
)
def test_warnings(changes: dict[str, Any], expected: str, tmp_path: Path, no_figures: None) -> None:
    for seed in (1, 2):
        write_run(tmp_path, "ppo", "A-v0", seed, GRID, [1, 2, 3, 4, 5])
    write_run(tmp_path, "ppo", "A-v0", 3, GRID, **{"results": [1, 2, 3, 4, 5], **changes})
    assert write_report(tmp_path, {}) == [expected]
    assert (tmp_path / "report.md").read_text().splitlines()[2:5] == ["## Warnings", "", f"- {expected}"]


def test_warnings_of_several_tasks_are_put_together(tmp_path: Path, no_figures: None) -> None:
    for env in ("A-v0", "B-v0", "C-v0"):
        for seed in (1, 2):
            write_run(tmp_path, "ppo", env, seed, GRID, [1, 2, 3, 4, 5])
            if env != "C-v0":
                write_run(tmp_path, "sac", env, seed + 1, GRID, [1, 2, 3, 4, 5])
    assert write_report(tmp_path, {}) == ["A-v0, B-v0: seeds differ: ppo has 2 (1, 2); sac has 2 (2, 3)"]


def test_fair_runs_raise_no_warning(tmp_path: Path, no_figures: None) -> None:
    for algo, own in (("ppo", {"stable_baselines3": "2.9.2"}), ("mine", {"mine": "a" * 64}), ("other", {"theirs": "1.0"})):
        for seed in (1, 2):
            write_run(tmp_path, algo, "A-v0", seed, GRID, [1, 2, 3, 4, 5], versions={**VERSIONS, **own})
    # What SB3 is in the versions of one run is in the packages of the others
    provenance = {**PROVENANCE, "packages": {**PROVENANCE["packages"], "stable_baselines3": "2.9.2"}}  # type: ignore[dict-item]
    for path in tmp_path.rglob("run.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": provenance}))
    assert write_report(tmp_path, {}) == []
    assert "## Warnings\n\nNone." in (tmp_path / "report.md").read_text()


def test_versions_of_an_algorithm_say_nothing_of_others(tmp_path: Path, no_figures: None) -> None:
    for algo, version in (("mdgps", "2"), ("dpi", "3")):
        for seed in (1, 2):
            versions = {**VERSIONS, "algorithm_version": version}
            write_run(tmp_path, algo, "A-v0", seed, GRID, [1, 2, 3, 4, 5], versions=versions)
    assert write_report(tmp_path, {}) == []
    path = tmp_path / "dpi/A-v0_1/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {**VERSIONS, "algorithm_version": "1"}}))
    assert write_report(tmp_path, {}) == ["A-v0: versions differ, algorithm_version of dpi: 1 (dpi seed 1); 3 (dpi seed 2)"]


def test_corrupt_runs_are_named_and_left_out(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    (out / "trpo/A-v0_3/evaluations.npz").write_bytes(b"half")
    (out / "trpo/B-v0_1/run.json").write_text("{")
    stream = io.StringIO()
    said = write_report(out, tasks, Console(file=stream))
    text = (out / "report.md").read_text()
    assert said[0].startswith("Corrupt, left out: trpo/B-v0_1/run.json: cannot be read")
    assert said[1].startswith("Corrupt, left out: trpo/A-v0_3/evaluations.npz: not what the run wrote")
    assert all(warning.replace("_", "") in text.replace("_", "").replace("\\", "") for warning in said)
    assert "Warning: Corrupt, left out: trpo/A-v0_3" in stream.getvalue()
    assert table_of(text, "## A-v0")["trpo"][7] == "2"
    assert str(out.parent) not in text + (out / "report.html").read_text()


def test_runs_without_a_result_are_named(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    for name in ("ppo/A-v0_1", "mdgps/A-v0_1", ".unfinished/ppo_2", "set_aside/ppo/A-v0_3", "notes_of_mine"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.log").touch()
    found = [warning for warning in write_report(out, tasks) if "No result" in warning]
    assert [warning.rpartition(": ")[2] for warning in found] == ["ppo/A-v0_1.log"]


def test_the_same_run_twice_counts_once(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    shutil.copytree(out / "trpo/A-v0_1", out / "zzz/trpo/A-v0_1")
    said = write_report(out, tasks)
    assert said[0].startswith("The same run twice, left out: zzz/trpo/A-v0_1")
    assert table_of((out / "report.md").read_text(), "## A-v0")["trpo"][7] == "3"


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished runs to report"):
        write_report(tmp_path, {})
    (write_run(tmp_path, "ppo", "A-v0", 1, GRID, [1, 2, 3, 4, 5]) / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"Corrupt, left out: ppo/A-v0_1/run\.json"):
        write_report(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["ppo"]


def test_same_runs_same_bytes_and_times_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    means = {(algo, seed): rng.normal(10, 3, 5) for algo in ("trpo", "ppo") for seed in (1, 2, 3)}
    tasks = {"A-v0": task("A-v0", 8.0, scale=(0.0, 10.0))}
    for out, factor, order in (("one", 1.0, 1), ("two", 1.0, -1), ("slow", 3.7, 1)):
        for (algo, seed), values in list(means.items())[::order]:
            write_run(tmp_path / out, algo, "A-v0", seed, GRID, values, seconds=factor * (10 + seed))
        if out == "slow":  # of which only the words are compared
            draw_nothing(monkeypatch)
        write_report(tmp_path / out, tasks)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {str(path) for path in files if path.suffix in (".md", ".html", ".csv") or path.parts[0] == "figures"} == {
        *("report.md", "report.html", "summary.csv", "runs.csv", "evaluations.csv"),
        *(f"figures/{name}.png" for name in ("curves_A-v0", "iqm", "profile", "frontier", "frontier_tasks")),
    }
    for path in files - {path for path in files if path.name == "run.json"}:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    one, slow = tmp_path / "one", tmp_path / "slow"
    assert (one / "report.md").read_text() != (slow / "report.md").read_text()
    assert without_times((one / "report.md").read_text()) == without_times((slow / "report.md").read_text())
    assert (one / "evaluations.csv").read_bytes() == (slow / "evaluations.csv").read_bytes()
    for name in ("summary.csv", "runs.csv"):
        kept = [
            [{key: value for key, value in row.items() if "seconds" not in key} for row in rows(out / name)]
            for out in (one, slow)
        ]
        assert rows(one / name) != rows(slow / name) and kept[0] == kept[1]


def test_every_episode_is_in_the_csv(tmp_path: Path, no_figures: None) -> None:
    write_run(tmp_path, "ppo", "A-v0", 1, (10, 20), [[1.25, 2.0], [3.0, 0.1 + 0.2]], label="small", task="variant")
    write_report(tmp_path, {})
    found = rows(tmp_path / "evaluations.csv")
    assert list(found[0]) == ["name", "algo", "env", "seed", "timesteps", "episode", "return", "length", "task"]
    assert [float(row["return"]) for row in found] == [1.25, 2.0, 3.0, 0.1 + 0.2]
    assert found[2] == {
        **{"name": "small", "algo": "ppo", "env": "A-v0", "seed": "1", "timesteps": "20", "episode": "0"},
        **{"return": "3.0", "length": "50", "task": "variant"},
    }
    (run,) = rows(tmp_path / "runs.csv")
    assert (run["folder"], run["final_return"], run["imported"]) == (
        "variant/small/ppo/A-v0_1",
        "1.65",
        "0",
    )


def test_names_that_mean_something_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", "ns/A-v0", 1, GRID, [1, 2, 3, 4, 5], source="<b>a|b</b> *c*")
    write_report(tmp_path, {"ns/A-v0": task("ns/A-v0", 3.0)})
    assert (tmp_path / "figures/curves_ns-A-v0.png").is_file()
    assert r"\<b>a\|b\</b> \*c\*" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;a|b&lt;/b&gt;" in page and "<b>" not in page


def test_published_file() -> None:
    content = yaml.safe_load(report_module.PUBLISHED.read_text())
    assert content["source"] and set(content["tasks"]) == {"HalfCheetah", "Hopper", "Walker2d", "Ant"}
    for entries in content["tasks"].values():
        for entry in entries:
            assert len(entry["steps"]) == len(entry["mean"]) == len(entry["worst"])
            assert entry["steps"] == sorted(entry["steps"]) and entry["seeds"] > 1
            assert all(worst <= mean for worst, mean in zip(entry["worst"], entry["mean"], strict=True))


@pytest.mark.parametrize(("command", "name", "extra"), [("compare", "pandas", "lab"), ("zoo", "yaml", "zoo")])
def test_what_is_missing_is_said_in_one_line(command: str, name: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    line = f"This needs {name}: {install_command(extra)}\n"
    for arguments in (["-m", f"sb3_dpi.{command}"], ["-c", f"import sb3_dpi.{command}"]):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 1 and done.stderr.endswith(line) and (done.stderr == line) is ("-m" in arguments)


def test_a_report_that_cannot_be_replaced_stays(
    small_lab: tuple[Path, dict[str, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tasks = small_lab
    (out / "report.md").write_text("old")

    def refuse(source: Path, target: Path) -> None:
        if target.name == "report.md":
            raise OSError("disk full")
        source.rename(target)

    monkeypatch.setattr(study_module.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(out, tasks)
    assert (out / "report.md").read_text() == "old" and not list(out.rglob("*.tmp"))


def test_terminal_table(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    stream = io.StringIO()
    print_table(Console(file=stream, width=140), read_comparison(out, tasks, "trpo"), out)
    line = next(line for line in stream.getvalue().splitlines() if "2,500 (3/4)" in line)
    assert re.split(r"\s{2,}", re.sub(r" \[.*?\]", "", line.strip())) == [
        *("mdgps", "2,500 (3/4)", "2/4", "<= 0.28", "8.00", "3.00", "4", "10.0", "1.80")
    ]
    assert stream.getvalue().index("B-v0") < stream.getvalue().index("A-v0")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_terminal_table_breaks_no_cell_on_a_narrow_terminal(width: int, small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    stream, wide = io.StringIO(), io.StringIO()
    comparison = read_comparison(out, tasks, "trpo")
    print_table(Console(file=stream, width=width), comparison, out)
    print_table(Console(file=wide, width=300), comparison, out)
    text = stream.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines() if "Left out" not in line)
    assert re.search(r"^ +mdgps +2,500 \(3/4\) .* 8\.00", text, re.MULTILINE)
    # A cell that breaks has its rest on a line of its own, which the wide table has not; headers end at the rule
    assert len([line for line in text.splitlines() if "Left out" not in line]) <= len(wide.getvalue().splitlines())
    assert "Left out" not in wide.getvalue()
    if width <= 80:
        assert "worst seed" in text.partition("Left out of tables")[2].splitlines()[0]
        assert "worst" not in text.partition("Left out of tables")[0]


def curve_of(*means: float, every: int = 1000) -> Curve:
    steps = every * np.arange(1, len(means) + 1)
    returns = np.array(means)[:, None] + np.array([-1.0, 1.0])
    return Curve(steps, returns, np.ones((len(means), 2), dtype=int), wall_seconds=steps / 10)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0, 8, 8, 8), 1.0),
        ((8, 0, 8, 8, 8, 0), 0.75),  # what came before the crossing does not count
        ((8, 8, 8, *[0] * 7), 0.3),
        ((8, 8, 8, *[9] * 6, 0), KEEPS),
        ((0, 8, 8, 0), float("nan")),
    ],
)
def test_share_of_evaluations_that_keep_a_threshold(means: tuple[float, ...], expected: float) -> None:
    assert share_kept(curve_of(*means), 8.0) == pytest.approx(expected, nan_ok=True)


def test_a_seed_keeps_a_threshold_in_nine_of_ten_evaluations(tmp_path: Path, no_figures: None) -> None:
    for seed, lows in ((1, 1), (2, 2)):
        write_run(tmp_path, "ppo", "A-v0", seed, range(1000, 11000, 1000), [*[9] * (10 - lows), *[0] * lows])
    write_report(tmp_path, {"A-v0": task("A-v0", 8.0)})
    (row,) = rows(tmp_path / "summary.csv")
    assert (row["seeds_reached"], row["seeds_keeping"]) == ("2", "1")
    assert [row["share_kept_1"] for row in rows(tmp_path / "runs.csv")] == ["0.9", "0.8"]
    assert "at least 90 % of the evaluations" in (tmp_path / "report.md").read_text()


def test_a_curve_on_another_grid() -> None:
    fine = curve_of(*range(1, 9), every=125)
    kept = thin(fine, [250, 500, 750])
    assert list(kept.timesteps) == [250, 500, 750, 1000] and list(kept.means) == [2, 4, 6, 8]
    assert kept.lengths.shape == (4, 2) and list(kept.wall_seconds) == [25, 50, 75, 100]  # type: ignore[arg-type]
    # The first evaluation that a rollout let happen after a point; two points may have the same
    assert list(thin(curve_of(1, 2, 3, every=300), [250, 500, 550, 5000]).timesteps) == [300, 600, 900]


def test_all_rows_of_a_table_are_read_on_one_grid(tmp_path: Path, no_figures: None) -> None:
    """The finer one's three evaluations in a row are over before the coarser one's."""
    fine = [0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 0, 9, 9, 9, 9, 9]
    write_run(tmp_path, "dpi", "A-v0", 1, range(125, 2001, 125), fine, eval_every=125)
    write_report(tmp_path, {"A-v0": task("A-v0", 8.0)})
    assert table_of((tmp_path / "report.md").read_text(), "## A-v0")["dpi"][:2] == ["875 (1/1)", "1/1"]
    write_run(tmp_path, "trpo", "A-v0", 1, range(250, 2001, 250), fine[1::2])
    write_report(tmp_path, {"A-v0": task("A-v0", 8.0)})
    table = table_of((tmp_path / "report.md").read_text(), "## A-v0")
    assert table["dpi"][:2] == table["trpo"][:2] == ["1,000 (1/1)", "1/1"]
    assert len(rows(tmp_path / "evaluations.csv")) == 2 * 16 + 2 * 8, "every evaluation is kept"


def test_steps_at_random_are_named(tmp_path: Path, no_figures: None) -> None:
    for seed in (1, 2):
        write_run(tmp_path, "sac", "A-v0", seed, GRID, [1, 2, 3, 4, 5], hyperparams={"learning_starts": 2000})
        write_run(tmp_path, "dpi", "A-v0", seed, GRID, [1, 2, 3, 4, 5], hyperparams={"learning_starts": 200})
    assert write_report(tmp_path, {}) == ["A-v0: sac takes the first 2,000 of 5,000 steps at random (learning_starts)"]


def test_seconds_of_training_have_no_evaluations_in_them_and_none_taken_out_again(tmp_path: Path, no_figures: None) -> None:
    write_run(tmp_path, "ppo", "A-v0", 1, GRID, [1, 2, 3, 4, 5], seconds=10.0)
    write_report(tmp_path, {})
    (row,) = rows(tmp_path / "summary.csv")
    # 9 CPU seconds of training and 1.5 of evaluations beside them, in 5000 steps
    assert float(row["cpu_seconds_per_1000_steps"]) == pytest.approx(1.8)
    assert float(row["evaluation_cpu_seconds_per_1000_steps"]) == pytest.approx(0.3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_report_of_several_folders(packed: bool, tmp_path: Path, no_figures: None) -> None:
    first, second, to = tmp_path / "first", tmp_path / "more/second", tmp_path / "report"
    write_run(first, "dpi", "A-v0", 1, GRID, [9, 9, 9, 9, 9])
    write_run(second, "dpi", "A-v0", 2, GRID, [0, 9, 9, 9, 9])
    write_run(second, "dpi", "B-v0", 1, GRID, [0, 0, 9, 9, 9])
    write_run(second, "trpo", "A-v0", 1, GRID, [0, 0, 0, 9, 9])
    write_run(second, "trpo", "B-v0", 1, GRID, [0, 0, 0, 9, 9], hyperparams={"gamma": 0.5})
    write_run(first, "trpo", "B-v0", 2, GRID, [0, 0, 9, 9, 9])
    for folder, thresholds in (
        (first, "{A-v0: {thresholds: [8]}}"),
        (second, "{A-v0: {thresholds: [1]}, B-v0: {scale: [0, 9]}}"),
    ):
        (folder / "tasks.yml").write_text(thresholds)
    if packed:
        pack(first), pack(second)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outs = [first, tmp_path / "more"]
    tasks = all_tasks(outs)
    assert tasks["A-v0"].thresholds == (8,) and tasks["B-v0"].scale == (0, 9), "the first folder's count"
    said = write_report(outs, tasks, to=to)
    assert {path: path.read_bytes() for path in before} == before and set(before) == set(_files(tmp_path)) - set(_files(to))
    # The same settings are one group; of other settings those of the first folder count
    assert [f"Other settings, left out: 1 runs of trpo on B-v0 in {outs[1]}; those of {first} count"] == said[:1]
    table = table_of((to / "report.md").read_text(), "## A-v0")
    assert table["dpi"][0] == "1,500 (2/2)"
    assert table_of((to / "report.md").read_text(), "## B-v0")["trpo"][0].startswith("9.00")
    assert rows(to / "runs.csv")[0]["folder"] == str(first / "dpi/A-v0_1")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
