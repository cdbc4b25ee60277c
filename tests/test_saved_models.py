"""Words and formats that have changed: one clear error, in constructors, when loading and in suites."""

import inspect
import io
import json
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, Make, every_algorithm, small_mdgps
from dummy_envs import HORIZON, PointMass, limited
from stable_baselines3 import PPO

from sb3_dpi import MDGPS, DualAC
from sb3_dpi.common.saved_models import FORMAT_VERSION, renamed_arguments
from sb3_dpi.compare.checks import SuiteError, check_hyperparameter

OBSERVATIONS = np.zeros((3, 2), dtype=np.float32)


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of a saved file's data."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["data"] = json.dumps({**json.loads(members["data"]), **changes}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class Renamed(MDGPS):
    """Its constructor takes anything and hands it on."""

    renamed_arguments: ClassVar[dict[str, str]] = {"old": "horizon", "older": "cost={'weight': ...}"}

    def __init__(self, policy: Any, env: Any, width: int = 8, **kwargs: Any):
        """:param width: of nothing"""
        super().__init__(policy, env, **kwargs)
        self.width = width


class Further(Renamed):
    """What it renames comes to what its base renames."""

    renamed_arguments: ClassVar[dict[str, str]] = {"oldest": "width"}


class Again(Renamed):
    """A class of a user's that goes on taking an old word."""

    def __init__(self, policy: Any, env: Any, old: int, **kwargs: Any):
        super().__init__(policy, env, horizon=old, **kwargs)


@pytest.mark.parametrize("algorithm", [Renamed, Further])
def test_constructors_name_the_new_word(algorithm: type[Renamed]) -> None:
    expected = rf"^{algorithm.__name__} takes other words now: instead of old write horizon$"
    with pytest.raises(TypeError, match=expected):
        algorithm("MlpPolicy", PointMass(), old=5)
    with pytest.raises(TypeError, match=r"instead of older write cost=\{'weight': \.\.\.\}, instead of old write horizon$"):
        algorithm("MlpPolicy", PointMass(), older=1, old=5)
    assert algorithm("MlpPolicy", PointMass(), 9, horizon=HORIZON, device="cpu").width == 9


def test_renamed_words_of_bases_hold_and_classes_may_take_them_again() -> None:
    with pytest.raises(TypeError, match="instead of oldest write width"):
        Further("MlpPolicy", PointMass(), oldest=5)
    former = set(renamed_arguments(MDGPS))
    assert set(renamed_arguments(Further)) - former == {"old", "older", "oldest"}
    assert set(renamed_arguments(Renamed)) - former == {"old", "older"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'oldest'"):
        Renamed("MlpPolicy", PointMass(), oldest=5)
    assert Again("MlpPolicy", PointMass(), old=HORIZON, device="cpu").horizon == HORIZON
    with pytest.raises(TypeError, match="instead of older write"):
        Again("MlpPolicy", PointMass(), old=HORIZON, older=3)


def test_signatures_stay_what_they_are() -> None:
    assert list(inspect.signature(Renamed).parameters) == ["policy", "env", "width", "kwargs"]
    assert inspect.signature(Renamed).parameters["width"].default == 8
    assert Renamed.__init__.__doc__ == ":param width: of nothing" and Renamed.__init__.__qualname__ == "Renamed.__init__"
    assert inspect.signature(Further) == inspect.signature(Renamed)


def saved(tmp_path: Path) -> Path:
    small_mdgps(seed=0).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


@pytest.mark.parametrize("as_object", [False, True])
def test_loading_names_the_new_word(as_object: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    # An old word is refused even where the file has an attribute of that name
    monkeypatch.setattr(MDGPS, "renamed_arguments", {"replay": "memory={'iterations': ...}"})
    changes: dict[str, Any] = {"custom_objects": {"replay": 3}} if as_object else {"replay": 3}
    expected = r"^MDGPS takes other words now: instead of replay write memory=\{'iterations': \.\.\.\}$"
    with pytest.raises(TypeError, match=expected):
        MDGPS.load(path, **changes)


def test_suites_name_the_new_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MDGPS, "renamed_arguments", {"old": "horizon"})
    with pytest.raises(SuiteError, match=r"set\.old: MDGPS takes other words now, write horizon"):
        check_hyperparameter("mdgps", "old", "set.old")


def test_loading_refuses_what_the_model_does_not_have(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(TypeError, match=r"MDGPS\.load: the saved model has no 'horizn'.*did you mean 'horizon'"):
        MDGPS.load(path, horizn=3)
    with pytest.raises(TypeError, match=r"no 'policy' .*did you mean 'policy_class'"):
        MDGPS.load(path, env=PointMass(), policy="MlpPolicy")
    with pytest.raises(TypeError, match=r"no 'zzz'.*choose among .*gamma, .*horizon"):
        MDGPS.load(path, zzz=1)


# ---------------------------------------------------------------------- formats


@every_algorithm
def test_older_formats_are_refused_before_anything_is_unpickled(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    model = make()
    model.save(path)
    broken = {":type:": "<class 'type'>", ":serialized:": "gASVDQAAAAAAAACMBGdvbmWUjAFhlJOULg=="}
    rewrite(path, format_version=1, policy_class=broken)
    expected = rf"format 1, older than the format {FORMAT_VERSION} .*train the model again, or load it with the version"
    with pytest.raises(ValueError, match=expected):
        type(model).load(path)
    # a path without its suffix and an open file are the same file
    with pytest.raises(ValueError, match=expected):
        type(model).load(str(tmp_path / "model"))
    with path.open("rb") as file, pytest.raises(ValueError, match=expected):
        type(model).load(file)


@every_algorithm
def test_newer_formats_are_refused(make: Make, tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    rewrite(tmp_path / "model.zip", format_version=FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match=f"format {FORMAT_VERSION + 1}, newer than the format {FORMAT_VERSION}.*upgrade"):
        make.algorithm.load(tmp_path / "model.zip", env=make.fit(PointMass()))


def test_streams_are_read_from_where_they_stand(tmp_path: Path) -> None:
    model = small_mdgps(seed=0)
    stream = io.BytesIO(b"before")
    stream.seek(0, io.SEEK_END)
    start = stream.tell()
    model.save(stream)
    stream.seek(start)
    loaded = MDGPS.load(stream)
    actions = [some.predict(OBSERVATIONS, deterministic=True)[0] for some in (loaded, model)]
    np.testing.assert_array_equal(*actions)


def test_what_is_no_saved_model_is_refused_as_everywhere(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        DualAC.load(tmp_path / "text.zip")
    with pytest.raises(FileNotFoundError):
        DualAC.load(tmp_path / "nothing")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("something", "else")
    with pytest.raises(AssertionError, match="No data"):
        DualAC.load(tmp_path / "empty.zip")
    th.save({}, tmp_path / "weights.zip")
    with pytest.raises((AssertionError, ValueError)):
        DualAC.load(tmp_path / "weights.zip")


# ---------------------------------------------------------------------- other algorithms


@every_algorithm
def test_file_of_a_subclass(make: Make, tmp_path: Path) -> None:
    name = str(make)
    other = type(f"Other{name}", (make.algorithm,), {})
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"holds a {name} model: load it with {name}\.load, not Other{name}\.load"):
        other.load(tmp_path / "model")
    other(make.policy, make.fit(limited(12)), device="cpu").save(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"holds a Other{name} model: load it with Other{name}\.load"):
        make.algorithm.load(tmp_path / "other", env=make.fit(PointMass()))
    assert isinstance(other.load(tmp_path / "other", env=make.fit(limited(12))), other)


@every_algorithm
def test_files_of_other_algorithms(make: Make, tmp_path: Path) -> None:
    """Of ours and of others', with and without an environment."""
    PPO("MlpPolicy", PointMass(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "PPO")
    theirs = next(other for other in ALGORITHMS if other is not make)
    theirs().save(tmp_path / "theirs")
    for env in (None, PointMass()):
        with pytest.raises(ValueError, match=rf"another algorithm: it cannot be loaded with {make}\.load"):
            make.algorithm.load(tmp_path / "PPO", env=env)
        with pytest.raises(ValueError, match=rf"holds a {theirs} model: load it with {theirs}\.load, not {make}\.load"):
            make.algorithm.load(tmp_path / "theirs", env=env)
