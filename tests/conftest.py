"""Shared by all tests."""

import gc
import re
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import dummy_envs
import pytest
import torch as th
from reports import GRID, VERSIONS, draw_nothing, task, write_run

from sb3_dpi.compare import figures as figures_module
from sb3_dpi.compare import key
from sb3_dpi.compare.suite import Task

BEGIN_WITH = ("test_engines.py", "test_run.py", "test_export.py", "test_zoo_command.py", "test_hub.py", "test_report_speed.py")
"""Two processes begin with the first two, of which one compiles nothing: numba's loops lie in the cache when it comes to them.
The others take long, and would be waited for at the end"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order of files but for these; the option ``--no-loadscope-reorder`` keeps it too."""
    place = {name: i for i, name in enumerate(BEGIN_WITH)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection() -> None:
    """Whatever is made from here to the tests stays: looking for garbage in it takes a fifth of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """And every later look leaves it out."""
    gc.freeze()
    gc.enable()


def _seed_no_missing_devices() -> None:
    """For devices that are not there torch keeps each seed with the stack it came by, and pytest's stacks are deep."""
    for name in ("cuda", "xpu", "mtia"):
        device = getattr(th, name)
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.fixture(scope="session", autouse=True)
def _session() -> None:
    th.set_num_threads(1)
    _seed_no_missing_devices()
    dummy_envs.register()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Leave addresses out of names: processes that share the tests have to give them the same."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        ids = mark.kwargs.get("ids")
        if callable(ids) and not hasattr(ids, "__wrapped__"):

            @wraps(ids)
            def without_addresses(value: Any, ids: Any = ids) -> str:
                return re.sub(r" at 0x[0-9a-f]+", "", str(ids(value)))

            mark.kwargs["ids"] = without_addresses


@pytest.fixture
def seeded() -> None:
    """Conjugate gradients, and networks, start at random."""
    th.manual_seed(0)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    draw_nothing(monkeypatch)


@pytest.fixture
def small_lab(tmp_path: Path, no_figures: None) -> tuple[Path, dict[str, Task]]:
    """Two tasks; on the first all that can happen at a threshold happens."""
    out = tmp_path / "lab"
    for seed, means in enumerate(([0, 8, 8, 8, 8], [0, 0, 9, 9, 9], [8, 8, 8, 0, 3], [0, 0, 0, 8, 8]), 1):
        write_run(out, "mdgps", "A-v0", seed, GRID, means, versions={**VERSIONS, "algorithm_version": "1"})
    for seed, means in enumerate(([0, 0, 8], [0, 1, 2], [0, 0, 4]), 1):
        write_run(out, "trpo", "A-v0", seed, (1000, 4000, 9000), means, seconds=30.0)
    for seed in (1, 2, 3):
        write_run(
            out, "mdgps", "B-v0", seed, GRID, [0, 1, 5, 5 + seed, 5 + seed], versions={**VERSIONS, "algorithm_version": "1"}
        )
        write_run(out, "trpo", "B-v0", seed, (1000, 3000, 4000, 5000), [0, 7, 8, 6 + seed])
    return out, {"B-v0": task("B-v0", 5.0, 7.0, scale=(0.0, 10.0)), "A-v0": task("A-v0", 7.5)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, as matplotlib has them."""
    figures: list[Any] = []
    real = figures_module._drawing
    monkeypatch.setattr(figures_module, "_drawing", lambda figure, series: figures.append(figure) or real(figure, series))
    return figures


@pytest.fixture
def clean_caches() -> Iterator[None]:
    """What is looked up of versions is forgotten afterwards."""
    yield
    for cached in (key.run_versions, key._installed):
        cached.cache_clear()


@pytest.fixture
def fresh() -> None:
    """Versions are looked at anew."""
    for cached in (key.run_versions, key._installed):
        cached.cache_clear()
