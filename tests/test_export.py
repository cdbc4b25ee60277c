"""Exported policies act as ``predict`` does."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, every, those
from exporting import (
    IMAGE,
    IMAGE_AND_JOINTS,
    NAMED,
    SOURCE,
    TOLERANCE,
    VECTOR,
    Activations,
    Drawn,
    Layers,
    check,
    model_of,
    observe,
    predict,
    run_numpy,
    run_numpy_alone,
)
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dpi import DPI, MDGPS, DAgger, DualAC, ExIt
from sb3_dpi.export import ExportError, export_policy

MANY = 10_000
"""Actions that are compared"""
DISCRETE = spaces.Discrete(4)
RBF: dict[str, Any] = {"net_arch": [], "features_extractor_kwargs": {"n_features": 50}}
ON_VECTORS: dict[str, Callable[[], Any]] = {
    **{str(make): partial(model_of, make.algorithm) for make in those(plans=False)},
    "DAgger-discrete": lambda: model_of(DAgger, env=Drawn(action_space=DISCRETE), expert=choose_all),
    "DualAC-RBF": lambda: model_of(DualAC, "RBFPolicy", policy_kwargs=RBF),
    "ExIt": lambda: model_of(ExIt, env=Drawn(action_space=DISCRETE)),
    **{algorithm.__name__: partial(model_of, algorithm) for algorithm in (PPO, SAC, TD3)},
}
"""Every policy of this package that sees vectors, and the three of Stable-Baselines3"""
SLOW = ("MDGPS", "AggreVaTeDOC", "DAgger", "DAgger-discrete", "DualAC-RBF", "ExIt")
"""Two seconds each to ONNX: they act by layers of the same kinds as the others"""


def choose_all(observations: np.ndarray) -> np.ndarray:
    """:return: one of each number"""
    return np.arange(len(observations)) % DISCRETE.n


@pytest.mark.parametrize("to", ["torchscript", *SOURCE])
@pytest.mark.parametrize("name", ON_VECTORS)
def test_ten_thousand_actions(name: str, to: str, tmp_path: Path) -> None:
    check(ON_VECTORS[name](), to, tmp_path, MANY)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ON_VECTORS])
def test_ten_thousand_actions_of_onnx(name: str, tmp_path: Path) -> None:
    check(ON_VECTORS[name](), "onnx", tmp_path, MANY)


@every(plans=True)
def test_what_plans_has_nothing_to_export(make: Make, tmp_path: Path) -> None:
    """From a model as from its file."""
    model = make()
    model.save(tmp_path / "model.zip")
    for given in (model, model.policy, tmp_path / "model.zip"):
        with pytest.raises(ExportError, match=r"no network that could be exported: it plans.* Teach one with DPI or DAgger"):
            export_policy(given, tmp_path / "policy", "numpy")


@pytest.mark.parametrize(
    ("algorithm", "to"), [*((algorithm, "numpy") for algorithm in (PPO, SAC, DPI, MDGPS, DualAC)), (SAC, "c"), (DPI, "c")]
)
def test_dictionaries(algorithm: Any, to: str, tmp_path: Path) -> None:
    check(model_of(algorithm, "MultiInputPolicy", Drawn(NAMED)), to, tmp_path)


@pytest.mark.parametrize("to", SOURCE)
@pytest.mark.parametrize("algorithm", [PPO, DPI, DualAC])
def test_layers_of_all_kinds(algorithm: Any, to: str, tmp_path: Path) -> None:
    check(model_of(algorithm, policy_kwargs={"features_extractor_class": Layers}), to, tmp_path)


@pytest.mark.parametrize("to", SOURCE)
def test_activations(to: str, tmp_path: Path) -> None:
    check(model_of(PPO, policy_kwargs={"features_extractor_class": Activations, "net_arch": [9]}), to, tmp_path)


@pytest.mark.parametrize("to", SOURCE)
@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=str)
def test_actions_that_are_chosen(actions: spaces.Space, to: str, tmp_path: Path) -> None:
    check(model_of(DualAC, env=Drawn(action_space=actions)), to, tmp_path)


def test_numpy_needs_no_torch(tmp_path: Path) -> None:
    model = model_of(DPI)
    seen = observe(model.observation_space, 20)
    path, *_ = export_policy(model, tmp_path / "policy", "numpy")
    np.testing.assert_allclose(run_numpy_alone(path, seen), predict(model, seen), atol=TOLERANCE)


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("algorithm", "policy", "space"),
    [
        (PPO, "CnnPolicy", IMAGE),
        (DualAC, "CnnPolicy", IMAGE),
        pytest.param(MDGPS, "MultiInputPolicy", IMAGE_AND_JOINTS, marks=pytest.mark.slow),
    ],
    ids=["PPO", "DualAC", "MDGPS"],
)
def test_images(algorithm: Any, policy: str, space: spaces.Space, to: str, tmp_path: Path) -> None:
    check(model_of(algorithm, policy, Drawn(space)), to, tmp_path, 20)


@pytest.mark.parametrize("to", ["torchscript", *SOURCE])
@pytest.mark.parametrize("space", [VECTOR, NAMED], ids=["vector", "dictionary"])
def test_statistics_of_vec_normalize_are_inside(space: spaces.Space, to: str, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Drawn(space)]), clip_obs=1.5)
    for statistics in env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]:
        statistics.mean[:], statistics.var[:] = 0.3, 0.2
    check(model_of(SAC, "MultiInputPolicy" if space is NAMED else "MlpPolicy", env), to, tmp_path)


def test_the_planners_state_is_not_asked_for(tmp_path: Path) -> None:
    space = spaces.Dict({"seen": spaces.Box(-1.0, 1.0, (3,)), "state": spaces.Box(-1.0, 1.0, (7,))})
    model = model_of(MDGPS, "MultiInputPolicy", Drawn(space))
    path, *_, said = export_policy(model, tmp_path / "policy", "numpy")
    assert list(json.loads(said.read_text())["observations"]) == ["seen"]
    seen = observe(space, 5)
    np.testing.assert_allclose(run_numpy(path, {"seen": seen["seen"]}, seen["seen"]), predict(model, seen), atol=TOLERANCE)


def test_exporting_without_gradients(tmp_path: Path) -> None:
    """Distributions turn them on while they are made, which a graph would show."""
    with th.no_grad():
        check(ON_VECTORS["ExIt"](), "numpy", tmp_path)


def test_exporting_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = model_of(DPI)
    model.policy.set_training_mode(True)
    export_policy(model, tmp_path / "policy", "torchscript")
    assert model.policy.training and all(p.requires_grad for p in model.policy.actor.parameters())
