"""The report: what it says of synthetic runs, what it warns of, that it is the same every time, and soon enough."""

import csv
import io
import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from sb3_dpi.compare import figures as figures_module
from sb3_dpi.compare import report as report_module
from sb3_dpi.compare.document import Document, Heading, Image, Items, Paragraph, Table
from sb3_dpi.compare.figures import Line, Point, _spread, frontier, frontier_panels, make_styles
from sb3_dpi.compare.report import print_table, write_report
from sb3_dpi.compare.suite import Task
from sb3_dpi.compare.types import RunConfig, Timing

VERSIONS = {"gymnasium": "1.4.0", "mujoco": "4.0.0"}
PROVENANCE = {"python": "3.12.1", "platform": "test", "packages": {**VERSIONS, "torch": "2.13.0"}}


def write_run(
    out: Path,
    algo: str,
    env: str,
    seed: int,
    timesteps: Iterable[float],
    results: Any,
    seconds: float = 10.0,
    **changes: Any,
) -> Path:
    """Write a finished run as the lab does; ``results`` are means ``[k]`` or returns ``[k, episodes]``."""
    steps = np.array(list(timesteps), dtype=np.int64)
    returns = np.asarray(results, dtype=np.float64)
    if returns.ndim == 1:
        returns = returns[:, None] + np.array([-1.0, 1.0])
    record = {key: changes.pop(key) for key in ("versions", "provenance", "imported") if key in changes}
    settings = {"n_timesteps": int(steps[-1]), "hyperparams": {"gamma": 0.99}, "source": "a test", "n_eval_episodes": 2}
    config = RunConfig(algo, env, seed, **{**settings, **changes})
    folder = out / config.path
    folder.mkdir(parents=True)
    lengths = np.full(returns.shape, 50)
    walls = np.linspace(0.0, seconds, len(steps) + 1)[1:]
    np.savez(folder / "evaluations.npz", timesteps=steps, results=returns, ep_lengths=lengths, wall_seconds=walls)
    content = {
        "format": 1,
        "config": config.to_dict(),
        "key": str(config),
        "configuration_key": str(config),
        "versions": VERSIONS,
        "provenance": PROVENANCE,
        "timing": vars(Timing(seconds, 0.9 * seconds, 2.0, 1.5)),
        "evaluations_sha256": sha256((folder / "evaluations.npz").read_bytes()).hexdigest(),
        **record,
    }
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def task(name: str, *thresholds: float, scale: tuple[float, float] | None = None) -> Task:
    return Task(name, name, thresholds, scale)


def learning(out: Path, n_tasks: int, algos: Iterable[str], seeds: int, evaluations: int, episodes: int) -> dict[str, Task]:
    """Write runs that learn at different speeds."""
    rng = np.random.default_rng(0)
    tasks = {}
    for i in range(n_tasks):
        env = f"Task{i}-v{i}"
        tasks[env] = task(env, 800.0, *([900.0] if i % 4 == 0 else []), scale=(0.0, 1000.0))
        for j, algo in enumerate(algos):
            for seed in range(1, seeds + 1):
                budget = (30_000, 200_000)[j % 2]
                steps = np.linspace(budget / evaluations, budget, evaluations)
                rate = rng.uniform(0.5, 1.5) * (j + 1) / 30_000
                means = 1000 * (1 - np.exp(-rate * steps)) * rng.uniform(0.7, 1.0)
                returns = means[:, None] + rng.normal(0, 40, (evaluations, episodes))
                extra = {"versions": {**VERSIONS, "sources": "f" * 64}} if j == 0 else {}
                write_run(out, algo, env, seed, steps, returns, 20 * (j + 1), n_eval_episodes=episodes, **extra)
    return tasks


def without_times(markdown: str) -> str:
    return re.sub(r"^### Time$.*?(?=^#|\Z)", "", markdown, flags=re.MULTILINE | re.DOTALL)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(markdown: str, chapter: str) -> dict[str, list[str]]:
    """The first table of a chapter, from the first cell of each row to the others."""
    _, _, text = markdown.partition(f"\n{chapter}\n")
    lines = list(dropwhile(lambda line: not line.startswith("| algorithm"), text.splitlines()))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in takewhile(lambda line: line.startswith("|"), lines)]
    return {name: others for name, *others in cells}


GRID = (1000, 2000, 3000, 4000, 5000)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    for name in ("curves_figure", "profile_figure", "frontier_figure", "frontier_panels"):
        monkeypatch.setattr(report_module, name, lambda *_, **__: b"a figure")


@pytest.fixture
def small(tmp_path: Path, no_figures: None) -> tuple[Path, dict[str, Task]]:
    """Two tasks; on the first all that can happen at a threshold happens."""
    out = tmp_path / "lab"
    for seed, means in enumerate(([0, 8, 8, 8, 8], [0, 0, 9, 9, 9], [8, 8, 8, 0, 3], [0, 0, 0, 8, 8]), 1):
        write_run(out, "mdgps", "A-v0", seed, GRID, means, versions={**VERSIONS, "sources": "a" * 64})
    for seed, means in enumerate(([0, 0, 8], [0, 1, 2], [0, 0, 4]), 1):
        write_run(out, "trpo", "A-v0", seed, (1000, 4000, 9000), means, seconds=30.0)
    for seed in (1, 2, 3):
        write_run(out, "mdgps", "B-v0", seed, GRID, [0, 1, 5, 5 + seed, 5 + seed], versions={**VERSIONS, "sources": "a" * 64})
        write_run(out, "trpo", "B-v0", seed, (1000, 3000, 4000, 5000), [0, 7, 8, 6 + seed])
    return out, {"B-v0": task("B-v0", 5.0, 7.0, scale=(0.0, 10.0)), "A-v0": task("A-v0", 7.5)}


def test_table_of_a_task(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    write_report(out, tasks)
    text = (out / "report.md").read_text()
    table = table_of(text, "## A-v0")
    assert table["algorithm"][:3] == ["steps to 7.5 (seeds)", "ratio to trpo", "final return, IQM [95 % interval]"]
    # Medians: 2000, 3000, 1000 and never; trpo never, its budget is 9000
    assert table["mdgps"][:2] == ["2,500 (3/4)", "<= 0.28"]
    assert table["trpo"][:2] == ["> 9,000 (0/3)", "-"]
    # Finals 8, 9, 3, 8: the middle two are 8 and 8; the worst is 3
    assert table["mdgps"][2].startswith("8.00 [") and table["mdgps"][3] == "3.00"
    assert table["algorithm"][4] == "return at 5,000 steps, IQM [95 % interval]"
    # At 5000 of 9000 steps trpo is a fifth of the way from its second to its third evaluation: 1.6, 1.2, 0.8
    assert table["trpo"][4].startswith("1.20 [0.80, 1.60]")
    assert table["mdgps"][5:] == ["5,000", "4", "a test"]
    table = table_of(text, "## B-v0")
    assert table["algorithm"][2] == "steps to 7 (seeds)"
    assert table["mdgps"][:4] == ["3,000 (3/3)", "1", "> 5,000 (0/3)", ">= 1.7"]
    assert table["trpo"][:4] == ["3,000 (3/3)", "1", "3,000 (3/3)", "1"]
    assert text.index("## B-v0") < text.index("## A-v0"), "the order of the suite"


def test_times_of_a_task(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
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


def test_aggregate(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
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


def test_an_algorithm_that_was_not_run_everywhere(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
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


def test_steps_that_nobody_reached(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    write_report(out, tasks, steps=1_000_000)
    text = (out / "report.md").read_text()
    assert "No task has evaluations of all algorithms on both sides of 1,000,000 steps." in text
    assert "frontier.png" not in text


def test_no_baseline(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
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
            "A-v0: evaluations differ: every 250 steps at first, 2 episodes (ppo seeds 1, 2); "
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
    for algo, own in (("ppo", {"stable_baselines3": "2.9.2"}), ("mine", {"sources": "a" * 64}), ("other", {"theirs": "1.0"})):
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
    # An old record is one of version 1
    path = tmp_path / "dpi/A-v0_1/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {**VERSIONS, "sources": "a" * 64}}))
    assert write_report(tmp_path, {}) == ["A-v0: versions differ, algorithm_version of dpi: 1 (dpi seed 1); 3 (dpi seed 2)"]


def test_corrupt_runs_are_named_and_left_out(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    (out / "trpo/A-v0_3/evaluations.npz").write_bytes(b"half")
    (out / "trpo/B-v0_1/run.json").write_text("{")
    stream = io.StringIO()
    said = write_report(out, tasks, Console(file=stream))
    text = (out / "report.md").read_text()
    assert said[0].startswith("Corrupt, left out: trpo/A-v0_3/evaluations.npz: not what the run wrote")
    assert said[1].startswith("Corrupt, left out: trpo/B-v0_1/run.json: cannot be read")
    assert all(warning.replace("_", "") in text.replace("_", "").replace("\\", "") for warning in said)
    assert "Warning: Corrupt, left out: trpo/A-v0_3" in stream.getvalue()
    assert table_of(text, "## A-v0")["trpo"][6] == "2"
    assert str(out.parent) not in text + (out / "report.html").read_text()


def test_runs_without_a_result_are_named(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    for name in ("ppo/A-v0_1", "mdgps/A-v0_1", ".unfinished/ppo_2", "set_aside/ppo/A-v0_3", "notes_of_mine"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.log").touch()
    found = [warning for warning in write_report(out, tasks) if "No result" in warning]
    assert [warning.rpartition(": ")[2] for warning in found] == ["ppo/A-v0_1.log"]


def test_the_same_run_twice_counts_once(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    shutil.copytree(out / "trpo/A-v0_1", out / "zzz/trpo/A-v0_1")
    said = write_report(out, tasks)
    assert said[0].startswith("The same run twice, left out: zzz/trpo/A-v0_1")
    assert table_of((out / "report.md").read_text(), "## A-v0")["trpo"][6] == "3"


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished runs to report"):
        write_report(tmp_path, {})
    (write_run(tmp_path, "ppo", "A-v0", 1, GRID, [1, 2, 3, 4, 5]) / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"Corrupt, left out: ppo/A-v0_1/run\.json"):
        write_report(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["ppo"]


def test_same_runs_same_bytes_and_times_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    means = {(algo, seed): rng.normal(10, 3, 5) for algo in ("trpo", "ppo") for seed in (1, 2, 3)}
    tasks = {"A-v0": task("A-v0", 8.0, scale=(0.0, 10.0))}
    for out, factor, order in (("one", 1.0, 1), ("two", 1.0, -1), ("slow", 3.7, 1)):
        for (algo, seed), values in list(means.items())[::order]:
            write_run(tmp_path / out, algo, "A-v0", seed, GRID, values, seconds=factor * (10 + seed))
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


def test_html_needs_no_other_file(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    write_report(out, tasks)
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert len(sources) > 6 and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    links = {link[1:] for link in sources if link.startswith("#")}
    assert links and links == set(re.findall(r'<h2 id="([^"]+)"', page))


def test_document() -> None:
    document = Document("a_b")
    document.add(Heading("One", 2), Paragraph("x <= 1, a_b, _c_"), Items(["y\nz"], warning=True))
    document.add(Table(["name", "n"], [["a|b", "1"]]), Image("f/x.png", b"png", "A figure"))
    assert document.images == {"f/x.png": b"png"}
    assert document.markdown() == (
        "# a_b\n\n## One\n\nx <= 1, a_b, \\_c\\_\n\n- y z\n\n"
        "| name | n |\n| :-- | --: |\n| a\\|b | 1 |\n\n![A figure](f/x.png)\n"
    )
    assert "<ul class=warning>" in document.html() and 'src="data:image/png;base64,cG5n"' in document.html()


def test_published_curves_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", "Hopper-v5", 1, (10_000, 50_000, 100_000), [100, 500, 900])
    write_run(tmp_path, "ppo", "Hopper-v5", 1, (10_000, 50_000), [100, 500], task="heavy", env_kwargs={"mass": 2})
    write_report(tmp_path, {})
    plain, figure = (tmp_path / "report.md").read_text(), (tmp_path / "figures/curves_Hopper-v5.png").read_bytes()
    assert "as read" not in plain
    write_report(tmp_path, {}, published=True)
    text = (tmp_path / "report.md").read_text()
    assert text.count("| as read, not run here |") == 1, "not for a changed environment"
    assert "| CrossQ, UTD 1 | 10 | 486 (63) | 903 (337) | 1,421 (366) | 2,764 (1,369) | 2,577 (1,254) |" in text
    assert (tmp_path / "figures/curves_Hopper-v5.png").read_bytes() != figure


def test_figures_of_odd_runs(tmp_path: Path) -> None:
    """One evaluation, equal returns, a return that is not finite, a seed that diverged, evaluations that do not overlap."""
    write_run(tmp_path, "ppo", "A-v0", 1, (1000,), [5])
    write_run(tmp_path, "sac", "A-v0", 1, GRID, [5, 5, 5, 5, 5])
    write_run(tmp_path, "tqc", "A-v0", 1, GRID, [5, float("nan"), 5, 5, float("inf")])
    write_run(tmp_path, "trpo", "A-v0", 1, GRID, [5, 6, -1e9, 5, 5], seconds=0.0)
    write_run(tmp_path, "ars", "A-v0", 1, (1, 2), [5, 6])
    write_run(tmp_path, "ars", "A-v0", 2, (3, 4), [5, 6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, {"A-v0": task("A-v0", 5.0, scale=(0.0, 10.0))}, published=True)
        write_report(tmp_path, {"A-v0": task("A-v0", 5.0, scale=(0.0, 10.0))}, steps=1000)
    assert (tmp_path / "figures/curves_A-v0.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n", [2, 9])
def test_words_of_a_single_panel_are_apart_and_inside(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(figures_module, "_png", lambda figure: figures.append(figure) or b"")
    points = [Point(f"algorithm_{i}", 1.0 + i, float(i), float(i), float(i)) for i in range(n)]
    frontier_panels([("A-v0", points)], make_styles([point.name for point in points]))
    (figure,) = figures
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    names, words = legend.get_window_extent(), figure._supxlabel.get_window_extent()
    assert names.y0 > axes._left_title.get_window_extent().y1
    assert axes.get_window_extent().y0 > words.y1
    for box in (names, words):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_a_single_evaluation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the very edge, where the run with the largest budget ends."""
    figures: list[Any] = []
    monkeypatch.setattr(figures_module, "_png", lambda figure: figures.append(figure) or b"")
    one, many = np.array([5000.0]), np.array(GRID[:3], dtype=float)
    figures_module.curves_figure(
        "A-v0", [Line("ppo", one, one, one, one), Line("sac", many, many, many, many)], make_styles(["ppo", "sac"])
    )
    marks = [line for line in figures[0].axes[0].lines if line.get_marker() == "o" and list(line.get_xdata()) == [5000.0]]
    assert marks and not marks[0].get_clip_on()


def test_published_file() -> None:
    content = yaml.safe_load(report_module.PUBLISHED.read_text())
    assert content["source"] and set(content["tasks"]) == {"HalfCheetah", "Hopper", "Walker2d"}
    for entries in content["tasks"].values():
        for entry in entries:
            assert len(entry["steps"]) == len(entry["mean"]) == len(entry["worst"])
            assert entry["steps"] == sorted(entry["steps"]) and entry["seeds"] > 1
            assert all(worst <= mean for worst, mean in zip(entry["worst"], entry["mean"], strict=True))


def test_missing_matplotlib_is_said_before_anything_is_written(
    small: tuple[Path, dict[str, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tasks = small
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    before = sorted(out.rglob("*"))
    with pytest.raises(ImportError, match=re.escape("sb3_dpi[plots]")):
        write_report(out, tasks)
    assert sorted(out.rglob("*")) == before


def test_a_report_that_cannot_be_replaced_stays(small: tuple[Path, dict[str, Task]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, tasks = small
    (out / "report.md").write_text("old")

    def refuse(source: Path, target: Path) -> None:
        if target.name == "report.md":
            raise OSError("disk full")
        source.rename(target)

    monkeypatch.setattr(report_module.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(out, tasks)
    assert (out / "report.md").read_text() == "old" and not list(out.rglob("*.tmp"))


def test_terminal_table(small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    stream = io.StringIO()
    print_table(Console(file=stream, width=140), out, tasks)
    line = next(line for line in stream.getvalue().splitlines() if "2,500 (3/4)" in line)
    assert re.split(r"\s{2,}", re.sub(r" \[.*?\]", "", line.strip())) == [
        *("mdgps", "2,500 (3/4)", "<= 0.28", "8.00", "3.00", "4", "10.0", "1.80")
    ]
    assert stream.getvalue().index("B-v0") < stream.getvalue().index("A-v0")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_terminal_table_breaks_no_cell_on_a_narrow_terminal(width: int, small: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small
    stream, wide = io.StringIO(), io.StringIO()
    print_table(Console(file=stream, width=width), out, tasks)
    print_table(Console(file=wide, width=300), out, tasks)
    text = stream.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines() if "Left out" not in line)
    assert re.search(r"^ +mdgps +2,500 \(3/4\) .* 8\.00", text, re.MULTILINE)
    # A cell that breaks has its rest on a line of its own, which the wide table has not; headers end at the rule
    assert len([line for line in text.splitlines() if "Left out" not in line]) <= len(wide.getvalue().splitlines())
    assert "Left out" not in wide.getvalue()
    if width <= 80:
        assert "worst seed" in text.partition("Left out of tables")[2].splitlines()[0]
        assert "worst" not in text.partition("Left out of tables")[0]


@pytest.mark.parametrize("places", [[], [0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 0.9, 1.0, 1.0], [0.1, 0.19, 0.2, 0.6], [0.0] * 30])
def test_labels_are_spread(places: list[float]) -> None:
    spread = _spread(places, 0.1)
    gap = min(0.1, 1 / max(len(places) - 1, 1))
    assert len(spread) == len(places) and all(-1e-9 <= place <= 1 + 1e-9 for place in spread)
    assert np.all(np.diff(spread) >= gap - 1e-9)


def test_two_hundred_runs_in_ten_seconds(tmp_path: Path) -> None:
    """Of the processor: what else the machine does is not the report's."""
    tasks = learning(
        tmp_path, n_tasks=8, algos=("mdgps", "trpo", "ppo", "sac", "crossq"), seeds=5, evaluations=100, episodes=10
    )
    start = time.process_time()
    write_report(tmp_path, tasks)
    assert time.process_time() - start < 10.0
    assert len(rows(tmp_path / "runs.csv")) == 200
    assert (tmp_path / "evaluations.csv").read_bytes().count(b"\n") == 200 * 100 * 10 + 1
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8 + 4
