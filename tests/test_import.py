"""What importing loads: no library before it is used."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import sb3_dpi
from sb3_dpi.common import extras

SLOW = ("matplotlib", "mujoco", "numba", "pandas", "sb3_contrib", "scipy.signal", "scipy.sparse.linalg", "scipy.stats")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sb3_dpi", ("torch", "stable_baselines3", "scipy", *SLOW)),
        ("import sb3_dpi.trajopt", ("torch", "stable_baselines3", *SLOW)),
        ("from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DualAC, make_environments", SLOW),
    ],
    ids=["package", "trajopt", "algorithms"],
)
def test_nothing_is_loaded_before_it_is_used(statement: str, absent: tuple[str, ...]) -> None:
    show = "import sys\nprint(*sys.modules)"
    code = f"{statement}\n{show}"
    if "torch" not in absent:  # then the process of a run costs little more, and reads its table without it
        code += f"\nimport sb3_dpi.compare.worker\n{show}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, *worker = (set(line.split()) for line in said.splitlines())
    assert "sb3_dpi" in first and first.isdisjoint(absent)
    assert len(worker) == ("torch" not in absent)
    assert all("sb3_dpi.compare.store" in loaded and "pandas" not in loaded for loaded in worker)


def test_names_are_found_where_they_are_asked_for() -> None:
    assert set(sb3_dpi.__all__) <= set(dir(sb3_dpi))
    assert all(getattr(sb3_dpi, name) is not None for name in sb3_dpi.__all__)
    assert sb3_dpi.DPI.__module__ == "sb3_dpi.dpi.dpi" and sb3_dpi.trajopt.__name__ == "sb3_dpi.trajopt"
    with pytest.raises(AttributeError, match=r"^module 'sb3_dpi' has no attribute 'PPO'$"):
        _ = sb3_dpi.PPO
    with pytest.raises(ImportError):
        exec("from sb3_dpi import _DPI")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'sb3_dpi[lab]'"),
        ({"url": "file:///a%20b", "dir_info": {"editable": True}}, "pip install -e '/a b[lab]'"),
        ({"url": "file:///a", "dir_info": {}}, "pip install 'sb3_dpi[lab] @ file:///a'"),
        ({"url": "https://x.org/r", "vcs_info": {"vcs": "git", "commit_id": "e1"}}, "pip install 'sb3_dpi[lab] @ git+https://x.org/r@e1'"),
    ],
    ids=["index", "clone", "folder", "repository"],
)  # fmt: skip
def test_an_extra_comes_from_where_the_package_came_from(
    origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = SimpleNamespace(read_text=lambda name: None if origin is None else json.dumps(origin))
    monkeypatch.setattr(extras, "distribution", lambda name: installed)
    assert extras.install_command("lab") == command
