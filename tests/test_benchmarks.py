"""Benchmarks and experiments run, with tiny settings."""

import copy
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from dummy_envs import POINT_MASS_ID

from sb3_dpi.common.saved_models import renamed_arguments
from sb3_dpi.zoo import ALGORITHMS, algorithm_class

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    """:return: a script as a module"""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("algo", ["mdgps", "aggrevated_oc"])
def test_iteration(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("iteration")
    monkeypatch.setattr(module, "HORIZON", 8)
    monkeypatch.setattr(module, "TRAJECTORIES", 4)
    settings = module.make_settings(algo)
    row = module.measure(settings[0], 1)
    parts = [row[label] for label, _, _ in module.PARTS[algo]]
    # a part that is no longer called would take no time at all
    assert np.all(np.array(parts) > 0.0) and row["all but the stepping"] > 0.0
    assert module.make_table([settings[0]], [row]).row_count == len(parts) + 4


def test_robust_cart_poles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load("robust_cart_poles")
    for name, value in (
        ("EPISODE", 10),
        ("EPISODES", 15),
        ("TEST_EVERY", 1),
        ("TRAJECTORIES", 14),
        ("TRPO_STEPS", 20),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "N_TEST_EPISODES", 1)
    monkeypatch.setattr(sys, "argv", ["robust_cart_poles.py", "--seeds", "1", "--out", str(tmp_path)])
    module.main()
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 4 and "robust_cart_poles.png" in written
    for path in tmp_path.glob("*.csv"):
        rows = np.loadtxt(path, delimiter=",", skiprows=1)
        assert rows.shape[1] == 4 and rows[-1, 0] >= 15 and np.all(np.diff(rows[:, 0]) > 0) and np.all(rows[:, 1:] > 0)
    module.main()
    again = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.csv")}
    assert again.items() <= written.items(), "finished runs are not run again"


CHEAP = r"^mdgps-(fixed|niw)\.plain$"
"""Two cases of ``same_numbers``, without compilation"""


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """:return: ``same_numbers``, which writes to a folder of its own"""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("numbers")))
        yield load("same_numbers")


def cheap(numbers: ModuleType) -> list[str]:
    """:return: names of the cheap cases"""
    return [name.removesuffix(".plain") for name in numbers.full_names(CHEAP)]


@pytest.fixture(scope="module")
def outcomes(numbers: ModuleType) -> dict[str, Any]:
    """:return: of the cheap cases at HEAD; a copy stands for the working tree, whose process would take seconds too"""
    try:
        commit = numbers.resolve("HEAD")
    except numbers.GitError as error:
        pytest.skip(f"needs a git checkout: {error}")
    with numbers.checked_out(commit) as tree:
        found = numbers.run_tree(tree, "plain", cheap(numbers))
    assert not tree.exists() and str(tree) not in numbers.git("worktree", "list")
    return {"HEAD": found, "here": copy.deepcopy(found)}


def compare(numbers: ModuleType, outcomes: dict[str, Any], patch: pytest.MonkeyPatch, *options: str) -> int:
    """:return: the command's exit status where trainings had these outcomes"""
    patch.setattr(numbers, "run_tree", lambda tree, mode, names: outcomes["here" if tree == numbers.ROOT else "HEAD"])
    return int(numbers.main(["HEAD", "--only", CHEAP, *options]))


def test_same_numbers(
    numbers: ModuleType, outcomes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(numbers, outcomes, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines[:-1]] == ["mdgps-fixed.plain same", "mdgps-niw.plain same"]
    values = outcomes["here"]["mdgps-fixed"].values
    assert {"steps", "actions", "returns"} < set(values) and any("exp_avg_sq" in name for name in values)
    assert any(numbers.difference(values[name], outcomes["here"]["mdgps-niw"].values[name]) > 0.0 for name in values)


@pytest.mark.slow
def test_the_working_tree_has_the_numbers_of_its_commit(
    numbers: ModuleType, outcomes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if numbers.git("status", "--porcelain", "--", "sb3_dpi", "benchmarks"):
        pytest.skip("sb3_dpi or benchmarks have changes that are not committed, which may change numbers")
    here = numbers.run_tree(numbers.ROOT, "plain", cheap(numbers))
    assert compare(numbers, {**outcomes, "here": here}, monkeypatch) == 0


def test_other_numbers(
    numbers: ModuleType, outcomes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, weight = next((key, value) for key, value in outcomes["here"]["mdgps-niw"].values.items() if key.endswith("weight"))
    other = copy.deepcopy(outcomes)
    other["here"]["mdgps-niw"].values[name] = weight * np.float32(1.0 + 1e-4)
    assert compare(numbers, other, monkeypatch) == 1
    fixed, niw, summary = capsys.readouterr().out.splitlines()
    assert "same" in fixed and f"differs in 1 of {len(outcomes['here']['mdgps-niw'].values)} arrays: first {name} by 1" in niw
    assert summary == "2 cases, 1 differ or fail"
    assert compare(numbers, other, monkeypatch, "--tolerance", "2e-4") == 0
    assert "same within 1" in capsys.readouterr().out


def test_failing_numbers(numbers: ModuleType) -> None:
    Outcome = numbers.Outcome
    ran = Outcome("ran", values={"steps": np.array(3), "policy/weight": np.ones(2)})
    renamed = Outcome("ran", values={"steps": np.array(3), "actor/weight": np.ones(2)})
    judge = numbers.compare
    assert judge(ran, Outcome("failed", "KeyError: 'x'"), "v1", 0.0) == numbers.Verdict(
        "fails in the working tree with KeyError: 'x'", True
    )
    assert judge(ran, Outcome("gone", "no form"), "v1", 0.0) == numbers.Verdict("only in v1: no form", False)
    assert judge(ran, renamed, "v1", 0.0).differs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "RENAMED_PARAMETERS", ((r"^policy\b", "actor"),))
        assert judge(ran, renamed, "v1", 0.0) == numbers.Verdict("same", False)


def test_difference(numbers: ModuleType) -> None:
    nan = np.array([1.0, np.nan])
    assert numbers.difference(nan, nan.copy()) == 0.0
    assert numbers.difference(nan, np.ones(2)) == numbers.difference(np.ones(2), np.ones(3)) == np.inf
    assert numbers.difference(np.array([1.0, 4.0]), np.array([1.5, 4.0])) == 0.125
    assert numbers.difference(np.array([True]), np.array([1.0])) == 0.0


def test_translation(numbers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, trainings = sys.modules["number_cases"], load("short_trainings")
    words = {"n_steps": "train_freq", "width": "world_model.width", "kind_of_model": "world_model"}
    table = {name: cases.Renamed(new) for name, new in words.items()} | {"share": cases.Renamed("odds", lambda p: p / (1 - p))}
    table |= {"depth": cases.Renamed(""), "critic": cases.Renamed("critic.kind", beside="odds")}
    monkeypatch.setitem(cases.RENAMED, "X", table)
    monkeypatch.setitem(cases.REMOVED, "X", ("tests",))
    old = {"n_steps": 4, "width": 8, "kind_of_model": "big", "share": 0.75, "depth": 2, "critic": "q"}
    assert trainings.translate("X", old, set(old)) == old
    new = {"train_freq": 4, "world_model": {"width": 8, "kind": "big"}, "odds": 3.0, "critic": {"kind": "q"}}
    assert trainings.translate("X", old, set(new)) == new
    assert trainings.translate("X", {"train_freq": 4}, {"n_steps"}) == {"n_steps": 4}
    with pytest.raises(trainings.GoneError, match="no argument tests"):
        trainings.translate("X", {"tests": 2}, {"n_steps"})
    with pytest.raises(ValueError, match="add a row for other"):
        trainings.translate("X", {"other": 2}, {"n_steps"})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_table_has_every_former_word(name: str, numbers: ModuleType) -> None:
    algorithm, words = ALGORITHMS[name], sys.modules["former_words"]
    in_table = {*words.RENAMED.get(algorithm, {}), *words.GONE.get(algorithm, ())}
    # of both kinds: DPI's critic is an argument now too
    assert set(renamed_arguments(algorithm_class(name))) == in_table - ({"critic"} if name == "dpi" else set())


@pytest.mark.parametrize(
    "algorithm, former, present",
    [
        ("AggreVaTeDOC", {"safeguard": "off"}, {"trust": 1.0}),
        ("AggreVaTeDOC", {"safeguard": "calibration"}, {"trust": None}),
        ("AggreVaTeDOC", {"safeguard": 0.5}, {"trust": 0.5}),
        ("DualAC", {"restart_after": None}, {"early_reset": {"after": 0}}),
        ("DualAC", {"restart_spread": False, "restart_after": 9}, {"early_reset": {"spread": False, "after": 9}}),
        ("DualAC", {"dual_weights": False, "inner_tolerance": None}, {"alpha_regularization": inf, "n_critic_updates": 0}),
        ("DualAC", {"dual_weights": True, "inner_tolerance": 1e-4}, {}),
        ("DPI", {"expert": "lqr", "trust_region": 0.1}, {"expert": {"kind": "lqr", "trust_region": 0.1}}),
        ("DPI", {"critic": "returns", "critic_settling": None}, {"critic": {"kind": "returns", "lr_decay_after": 0}}),
        ("DPI", {"averaging": 1.0, "target_kl": None}, {"preset": {"polyak": 1.0, "target_kl": 0}}),
        ("PPO", {"target_kl": None, "n_steps": 8}, {"target_kl": None, "n_steps": 8}),
    ],
)
def test_former_words(algorithm: str, former: dict, present: dict, numbers: ModuleType) -> None:
    known = {"DualAC": {"early_reset", "alpha_regularization", "n_critic_updates"}, "DPI": {"world_model"}}.get(
        algorithm, set()
    )
    assert load("short_trainings").translate(algorithm, former, known | set(present)) == present


def test_backends() -> None:
    module = load("backends")
    sizes = module.Sizes(3, 2, 2, 8, 4, 6, 4, 4, 2, 2, 3)
    table = module.make_table(sizes, 2)
    assert list(table.columns[0].cells) == ["fit_ensemble", "fit_classifier", "update_critic", "window_gradient"]
    for column in table.columns[1:3]:
        assert all(float(cell) > 0.0 for cell in column.cells)


def test_imitation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that are done are not done again; the expert's score is 1, that of random actions 0."""
    module = load("imitation")
    planner = {"kind": "iCEM", "n_samples": 4, "n_elites": 2, "n_rounds": 1}
    task = module.Task(planner, 2, 12, 6, 1, 1, 0.1, {"gradient_steps": 5})
    monkeypatch.setattr(module, "TASKS", {POINT_MASS_ID: task})
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    ways = ("random", "expert", "dagger", "guided")
    monkeypatch.setattr(sys, "argv", ["imitation.py", "--env", POINT_MASS_ID, "--seeds", "1", "--ways", *ways])
    for _ in range(2):
        module.main()
    (path,) = tmp_path.rglob("*.csv")
    expected = [("random", "0"), ("expert", "0"), *[(way, steps) for way in ways[2:] for steps in ("6", "12")]]
    assert [(row["way"], row["real_steps"]) for row in module.rows(path)] == expected
    table = capsys.readouterr().out
    assert "| random |" in table and "| 0.000 | 1 |" in table and "| 1.000 | 1 |" in table
