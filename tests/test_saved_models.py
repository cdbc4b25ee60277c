"""Words and formats that have changed: one clear error, in constructors, when loading and in suites."""

import inspect
import io
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from algorithms import every_stepwise_algorithm, small_dual_ac
from dummy_envs import HORIZON, PointMass, limited, small_mdgps
from test_save_load import rewrite

from sb3_dpi import MDGPS, DualAC
from sb3_dpi.common.saved_models import FORMAT_VERSION, renamed_arguments
from sb3_dpi.compare.checks import SuiteError, check_hyperparameter

OBSERVATIONS = np.zeros((3, 2), dtype=np.float32)


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


@pytest.mark.parametrize(
    "make, horizon", [(small_mdgps, {"horizon": HORIZON - 1}), (small_dual_ac, {"window_length": 3})], ids=["MDGPS", "DualAC"]
)
def test_what_the_ecosystem_hands_over_is_taken(make: Any, horizon: dict[str, Any], tmp_path: Path) -> None:
    """RL Zoo's ``enjoy`` and ``train -i``, Stable-Baselines3's own tests."""
    model = make(seed=0)
    model.save(tmp_path / "model.zip")
    custom: dict[str, Any] = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0, "what": 1}
    loaded = type(model).load(
        tmp_path / "model.zip",
        env=limited(12),
        device="cpu",
        custom_objects=custom,
        print_system_info=False,
        force_reset=True,
        seed=3,
        verbose=0,
        tensorboard_log=None,
        n_envs=1,
        clip_range=0.1,
        learning_rate=1e-3,
        lr_schedule=None,
        gamma=0.5,
        **horizon,
    )
    assert (loaded.seed, loaded.gamma, loaded.learning_rate) == (3, 0.5, 1e-3)
    assert all(getattr(loaded, name) == value for name, value in horizon.items())


# ---------------------------------------------------------------------- formats


@every_stepwise_algorithm
def test_older_formats_are_refused_before_anything_is_unpickled(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    model = make()
    model.save(path)
    broken = {":type:": "<class 'type'>", ":serialized:": "gASVDQAAAAAAAACMBGdvbmWUjAFhlJOULg=="}
    rewrite(path, format_version=1, policy_class=broken)
    expected = rf"format 1, older than the format {FORMAT_VERSION} .*train the model again, or load it with the version"
    with pytest.raises(ValueError, match=expected):
        type(model).load(path)
    # A path without its suffix and an open file are the same file
    with pytest.raises(ValueError, match=expected):
        type(model).load(str(tmp_path / "model"))
    with path.open("rb") as file, pytest.raises(ValueError, match=expected):
        type(model).load(file)


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
