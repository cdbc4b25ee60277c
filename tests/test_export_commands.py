"""The command: which statistics it takes, what it calls its files, and what it says where it cannot go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import (
    IMAGE,
    NAMED,
    SOURCE,
    TOLERANCE,
    VECTOR,
    Drawn,
    check,
    model_of,
    observe,
    predict,
    run_numpy,
    run_numpy_alone,
    run_torchscript,
)
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dpi import DPI, MDGPS
from sb3_dpi.common.saved_files import statistics_beside
from sb3_dpi.export import ExportError, export_policy
from sb3_dpi.export.__main__ import main
from sb3_dpi.export.names import argument_names, importable

RUN = "Env-v0"


def normalizer(mean: float, space: spaces.Space = VECTOR, **options: Any) -> VecNormalize:
    """:return: statistics that can be told from others"""
    env = VecNormalize(DummyVecEnv([lambda: Drawn(space)]), **options)
    for statistics in env.obs_rms.values() if isinstance(space, spaces.Dict) else [env.obs_rms]:
        statistics.mean[...] = mean
    return env


@pytest.fixture(scope="module")
def policy() -> Any:
    """A model without statistics."""
    return model_of(PPO)


def save(model: Any, folder: Path, *files: str) -> None:
    """``NAME.zip`` is the model, ``.pkl`` statistics with a mean of their own, ``.yml`` what RL Zoo writes."""
    for i, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            model.save(path)
        elif path.suffix == ".pkl":
            normalizer(float(i)).save(str(path))
        else:
            path.write_text("{}\n")


def acted_by_command(model: Path, *arguments: str) -> np.ndarray:
    """:return: what the exported file does"""
    assert main([str(model), "--to", "torchscript", *arguments]) == 0
    return run_torchscript(model.with_suffix(".pt"), observe(VECTOR, 20), np.zeros(0))


def wanted_with(policy: Any, statistics: Path | None) -> np.ndarray:
    """:return: what the model does behind these"""
    seen = observe(VECTOR, 20)["observation"]
    if statistics is not None:
        seen = VecNormalize.load(str(statistics), DummyVecEnv([Drawn])).normalize_obs(seen)
    return policy.predict(seen, deterministic=True)[0]


# ---------------------------------------------------------------------- saved models


@pytest.mark.parametrize("algorithm", [PPO, SAC, DPI, MDGPS])
def test_a_saved_model_needs_no_name_of_its_algorithm(algorithm: Any, tmp_path: Path, capsys: Any) -> None:
    model = model_of(algorithm)
    model.save(tmp_path / "model.zip")
    assert main([str(tmp_path / "model.zip"), "--to", "numpy"]) == 0
    assert "Wrote" in capsys.readouterr().out
    seen = observe(VECTOR, 20)
    wanted = predict(model, seen)
    np.testing.assert_allclose(run_numpy(tmp_path / "model.py", seen, wanted), wanted, atol=TOLERANCE)
    said = json.loads((tmp_path / "model.json").read_text())
    assert said["observations"]["observation"] == {
        "kind": "Box", "shape": [5], "dtype": "float64", "low": "-inf", "high": "inf",
    }  # fmt: skip
    assert said["action"]["low"] == [-2.0, 0.0] and said["observations_normalized_inside"] is False


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize("name", [RUN, "best_model", "rl_model_100_steps", "copied"])
@pytest.mark.parametrize("settings", ["args.yml", "config.yml"])
def test_the_zoos_statistics_are_found(name: str, settings: str, policy: Any, tmp_path: Path, capsys: Any) -> None:
    """Of the last model and of others of a run."""
    zoo = [f"{RUN}/{settings}", f"{RUN}/vecnormalize.pkl", *([] if name == "copied" else [f"{RUN}.zip"])]
    save(policy, tmp_path, f"{name}.zip", *zoo)
    acted = acted_by_command(tmp_path / f"{name}.zip")
    statistics = tmp_path / RUN / "vecnormalize.pkl"
    assert f"normalised as {statistics} says" in capsys.readouterr().out
    np.testing.assert_allclose(acted, wanted_with(policy, statistics), atol=TOLERANCE)
    assert np.abs(acted - wanted_with(policy, None)).max() > 0.1
    assert json.loads((tmp_path / f"{name}.json").read_text())["observations_normalized_inside"] is True


@pytest.mark.parametrize("statistics", ["model/vecnormalize.pkl", "vecnormalize.pkl"])
def test_statistics_of_ones_own_are_found(statistics: str, policy: Any, tmp_path: Path) -> None:
    """In a folder of the model's name, or beside it; another run's are left where they are."""
    save(policy, tmp_path, "other/args.yml", "model.zip", statistics, "other.zip", "other/vecnormalize.pkl")
    np.testing.assert_allclose(
        acted_by_command(tmp_path / "model.zip"), wanted_with(policy, tmp_path / statistics), atol=TOLERANCE
    )


@pytest.mark.parametrize(
    "files",
    [
        ["other.zip", "other/args.yml", "other/vecnormalize.pkl"],  # of the model of its name
        ["other/vecnormalize.pkl"],  # of whom, nobody knows
        ["model/config.yml", "other/args.yml", "other/vecnormalize.pkl"],  # the model's own run had none
    ],
)
def test_statistics_of_others_are_not_taken(files: list[str], policy: Any, tmp_path: Path, capsys: Any) -> None:
    save(policy, tmp_path, "model.zip", *files)
    np.testing.assert_allclose(acted_by_command(tmp_path / "model.zip"), wanted_with(policy, None), atol=TOLERANCE)
    assert "Observations are not normalised" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("a", ["a/vecnormalize.pkl", "vecnormalize.pkl"]),
        ("best_model", ["a.zip", "a/args.yml", "a/vecnormalize.pkl", "b/args.yml", "b/vecnormalize.pkl"]),
        ("best_model", ["a.zip", "a/args.yml", "a/vecnormalize.pkl", "b.zip", "b/args.yml"]),  # of b there were none
        ("copied", ["a/args.yml", "a/vecnormalize.pkl", "b/config.yml", "b/vecnormalize.pkl"]),
    ],
)
def test_where_more_than_one_fits_it_asks(name: str, files: list[str], policy: Any, tmp_path: Path, capsys: Any) -> None:
    save(policy, tmp_path, f"{name}.zip", *files)
    model, fits = tmp_path / f"{name}.zip", [tmp_path / file for file in files if file.endswith(".pkl")]
    assert main([str(model), "--to", "torchscript"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "with --vec-normalize FILE, or --no-vec-normalize" in error
    assert all(str(file) in error for file in fits)
    for file in fits:
        acted = acted_by_command(model, "--vec-normalize", str(file))
        np.testing.assert_allclose(acted, wanted_with(policy, file), atol=TOLERANCE)
    np.testing.assert_allclose(acted_by_command(model, "--no-vec-normalize"), wanted_with(policy, None), atol=TOLERANCE)


def test_the_folder_that_one_is_in(policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(policy, tmp_path, f"{RUN}/args.yml", f"{RUN}.zip", f"{RUN}/vecnormalize.pkl")
    monkeypatch.chdir(tmp_path)
    assert statistics_beside(Path(f"{RUN}.zip")) == Path(RUN, "vecnormalize.pkl")


@pytest.mark.parametrize(
    ("space", "given", "words"),
    [
        (VECTOR, normalizer(0.0, spaces.Box(-1.0, 1.0, (3,))), r"are of shape \(3,\), it observes shape \(5,\)"),
        (VECTOR, normalizer(0.0, spaces.Box(-1.0, 1.0, (1,))), r"are of shape \(1,\), it observes shape \(5,\)"),  # broadcasts
        (VECTOR, normalizer(0.0, NAMED), r"are of 'left' \(3,\), 'right' \(2, 2\), it observes shape \(5,\)"),
        (NAMED, normalizer(0.0), r"are of shape \(5,\), it observes 'left' \(3,\), 'right' \(2, 2\)"),
        (NAMED, normalizer(0.0, spaces.Dict(left=VECTOR)), r"are of 'left' \(5,\), it observes"),
        (NAMED, normalizer(0.0, spaces.Dict(up=VECTOR, right=NAMED["right"]), norm_obs_keys=["up"]), "are of 'up'"),
    ],
)
def test_statistics_of_other_observations(
    space: spaces.Space, given: VecNormalize, words: str, tmp_path: Path, capsys: Any
) -> None:
    """The command says so in a line."""
    model = model_of(PPO, "MultiInputPolicy" if space is NAMED else "MlpPolicy", Drawn(space))
    with pytest.raises(ExportError, match=f"do not fit the model: they {words}"):
        export_policy(model, tmp_path / "policy", "numpy", given)
    model.save(tmp_path / "model.zip")
    given.save(str(tmp_path / "others.pkl"))
    assert main([str(tmp_path / "model.zip"), "--vec-normalize", str(tmp_path / "others.pkl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The statistics of VecNormalize do not fit") and error.count("\n") == 1


def test_statistics_of_some_keys_fit(tmp_path: Path) -> None:
    """What they leave alone may be of any kind."""
    env = normalizer(0.3, NAMED, norm_obs_keys=["right"])
    check(model_of(PPO, "MultiInputPolicy", env), "numpy", tmp_path)


def test_statistics_of_rewards_alone(policy: Any, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([Drawn]), norm_obs=False)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    policy.save(tmp_path / "model.zip")
    np.testing.assert_allclose(acted_by_command(tmp_path / "model.zip"), wanted_with(policy, None), atol=TOLERANCE)
    assert json.loads((tmp_path / "model.json").read_text())["observations_normalized_inside"] is False


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("Pendulum-v1", "Pendulum_v1"),
        ("pend_0.5", "pend_0_5"),
        ("2nd try", "policy_2nd_try"),
        ("class", "policy_class"),
        ("numpy", "policy_numpy"),
    ],
)
def test_a_file_to_import_has_a_name_that_can_be(name: str, module: str, policy: Any, tmp_path: Path) -> None:
    assert importable(name) == module
    policy.save(tmp_path / f"{name}.zip")
    for given in (f"{name}.zip", name):  # as load takes it
        (tmp_path / f"{module}.py").unlink(missing_ok=True)
        assert main([str(tmp_path / given), "--to", "numpy"]) == 0
    seen = observe(VECTOR, 20)
    np.testing.assert_allclose(run_numpy_alone(tmp_path / f"{module}.py", seen), predict(policy, seen), atol=TOLERANCE)
    assert {file.name for file in tmp_path.glob(f"{module}.*")} >= {f"{module}.py", f"{module}.npz", f"{module}.json"}


@pytest.mark.parametrize("name", ["my-policy", "class", "numpy.py", "pend_0.5.py"])
def test_what_is_asked_for_and_cannot_be_imported_is_refused(name: str, policy: Any, tmp_path: Path, capsys: Any) -> None:
    policy.save(tmp_path / "model.zip")
    assert main([str(tmp_path / "model.zip"), "--to", "numpy", "--out", str(tmp_path / name)]) == 2
    stem = name.removesuffix(".py")
    assert capsys.readouterr().err == f"error: {stem}.py shall be imported: give a file name like {importable(stem)}.py\n"


@pytest.mark.parametrize(
    ("to", "out", "files"),
    [
        ("numpy", "pend.npz", ["pend.json", "pend.npz", "pend.py"]),
        ("torchscript", "pend_0.5", ["pend_0.5.json", "pend_0.5.pt"]),
        ("torchscript", "pend_0.5.pt", ["pend_0.5.json", "pend_0.5.pt"]),
        ("c", "pend_0.5", ["pend_0.5.h", "pend_0.5.json"]),
        ("numpy", "new/pend.py", ["pend.json", "pend.npz", "pend.py"]),
    ],
)
def test_nothing_of_a_name_is_cut_off(to: str, out: str, files: list[str], policy: Any, tmp_path: Path) -> None:
    policy.save(tmp_path / "model.zip")
    path = tmp_path / "out" / out
    assert main([str(tmp_path / "model.zip"), "--to", to, "--out", str(path)]) == 0
    assert sorted(file.name for file in path.parent.iterdir()) == files


def test_names_of_observations() -> None:
    """Python and C can have them, and no other name in their files is the same."""
    assert argument_names([""]) == ["observation"]
    assert argument_names(["left", "joint_1", "Käse"]) == ["left", "joint_1", "Käse"]
    taken = ["lambda", "int", "sum", "Action", "w0", "relu_", "2d"]
    assert argument_names(taken) == [f"observation_{name}" for name in taken]
    assert argument_names(["a-b", "a_b", "A b"]) == ["a_b", "a_b_2", "A_b_3"]


@pytest.mark.parametrize("to", SOURCE)
def test_observations_of_any_name(to: str, tmp_path: Path) -> None:
    names = ("action", "lambda", "int", "n", "i", "sum", "w0", "tanh_", "exp", "a-b", "a_b", "A b", "2d", "np")
    space = spaces.Dict({name: spaces.Box(-1.0, 1.0, (2 + i % 2,)) for i, name in enumerate(names)})
    check(model_of(PPO, "MultiInputPolicy", Drawn(space)), to, tmp_path)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda model, folder: export_policy(model, folder / "policy", "tflite"), "onnx"),
        (lambda model, folder: export_policy(model_of(PPO, "CnnPolicy", Drawn(IMAGE)), folder / "policy", "c"), "onnx"),
        (lambda model, folder: export_policy(folder / "nothing.zip", folder / "policy"), r"There is no file \S*nothing.zip: "),
        (lambda model, folder: export_policy(folder, folder / "policy"), r"is a folder: give the file"),
        (lambda model, folder: export_policy(model, folder / "my-policy", "numpy"), "my_policy.py"),
        (
            lambda model, folder: export_policy(model, folder / "policy", "c", folder / "none.pkl"),
            r"no file \S*none.pkl: give",
        ),
    ],
)
def test_errors_say_what_to_do(break_it: Callable[[Any, Path], Any], said: str, policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        break_it(policy, tmp_path)


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model.zip").write_bytes(b"no zip")
    (tmp_path / "bad.pkl").write_bytes(b"no pickle")
    for arguments in (["model.zip"], ["nothere.zip"], ["."], ["model.zip", "--vec-normalize", str(tmp_path / "bad.pkl")]):
        assert main([str(tmp_path / arguments[0]), *arguments[1:]]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and error.count("\n") == 1 and "zip.zip" not in error, out
