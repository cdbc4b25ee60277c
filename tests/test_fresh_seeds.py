"""``benchmarks/fresh_seeds.py``: fresh seeds beside stored runs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "fresh_seeds.py"
    spec = importlib.util.spec_from_file_location("fresh_seeds", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "fresh_seeds", loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_table(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "fresh.csv"
    rows = ["env,seed,steps,return,cpu_seconds"]
    for seed, level in ((201, -150.0), (202, -300.0)):
        rows += [f"Pendulum-v1,{seed},{steps},{level},1" for steps in range(1000, 6000, 1000)]
    rows.append("Pendulum-v1,201,1000,-500,1")  # again: it counts
    rows.append("Pendulum-v1,203,1000,-100,1")  # stopped early: it does not
    path.write_text("\n".join(rows))
    fresh = module.read_fresh(path)
    np.testing.assert_array_equal(fresh["Pendulum-v1"][201][1], [-500.0, -150.0, -150.0, -150.0, -150.0])
    # evaluated beside 5,000, worse afterwards: cut and read between
    steps = np.array([1000.0, 2000.0, 3000.0, 4000.0, 6000.0])
    stored = {"Pendulum-v1": {81: (steps, np.array([-900.0, -100.0, -100.0, -100.0, -300.0]))}}
    before, now = module.make_table(fresh, stored)[2:]
    assert before == ("| Pendulum-v1, 5,000 steps | before | 81 | -200: 2,000 (1/1): 2,000 | -200 (-200) | -125 (-125) |")
    assert now == (
        "| Pendulum-v1, 5,000 steps | now | 201 202 | -200: not reached (1/2): 2,000 - | -225 (-300) | -225 (-300) |"
    )


def test_missing(module: ModuleType) -> None:
    whole = (np.array([2500.0, 5000.0]), np.zeros(2))
    words = module.missing({"Pendulum-v1": {201: whole, 202: (whole[0][:1], whole[1][:1])}}, [201, 202])
    assert "Pendulum-v1 202: 2500 of 5000 steps" in words
    assert "Hopper-v5 201: 0 of 20000 steps" in words
    assert not any("Pendulum-v1 201" in word and "Inverted" not in word for word in words)


def test_stored_runs(module: ModuleType) -> None:
    stored = module.read_stored(module.STORED)
    for env in module.TASKS:
        assert len(stored[env]) == 5
        for steps, returns in stored[env].values():
            assert steps[-1] >= module.TASKS[env].steps and len(steps) == len(returns)
