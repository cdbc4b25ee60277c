"""Benchmarks and experiments run, with tiny settings."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

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


def test_backends() -> None:
    module = load("backends")
    sizes = module.Sizes(3, 2, 2, 8, 4, 6, 4, 4, 2, 2, 3)
    table = module.make_table(sizes, 2)
    assert list(table.columns[0].cells) == ["fit_ensemble", "fit_classifier", "update_critic", "window_gradient"]
    for column in table.columns[1:3]:
        assert all(float(cell) > 0.0 for cell in column.cells)
