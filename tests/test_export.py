"""Exported policies act as ``predict`` does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, every
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DAgger, DualAC
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.export import ExportError, export_policy
from sb3_dpi.export.__main__ import main
from sb3_dpi.export.c_header import C_TYPES

TOLERANCE = 1e-5
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
ACTIONS = spaces.Box(np.float32([-2.0, 0.0]), np.float32([3.0, 0.5]))
NAMED = spaces.Dict({"left": spaces.Box(-1.0, 1.0, (3,)), "right": spaces.Box(-1.0, 1.0, (2, 2))})
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class Drawn(gym.Env):
    """Draws observations."""

    def __init__(self, observation_space: Any = VECTOR, action_space: Any = ACTIONS) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


class Layers(BaseFeaturesExtractor):
    """A bit of everything."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 6)
        first = nn.Linear(int(np.prod(space.shape)), 6)
        self.net = nn.Sequential(
            first, nn.LayerNorm(6), nn.GELU(), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.SiLU(), nn.Linear(6, 6), nn.ELU()
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations.flatten(1).float())


class Activations(BaseFeaturesExtractor):
    """Those that no algorithm has by default, beside each other, so that none hides what another does."""

    KINDS = (nn.LeakyReLU, nn.Softplus, nn.Mish, nn.ReLU6, nn.SELU, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid)

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 6 * len(self.KINDS))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(int(np.prod(space.shape)), 6), kind()) for kind in self.KINDS)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([layer(observations.flatten(1).float()) for layer in self.layers], 1)


def model_of(algorithm: Any, policy: str = "MlpPolicy", env: gym.Env | None = None, **kwargs: Any) -> Any:
    """:return: a model with weights that are not small"""
    small: dict[str, Any] = {"buffer_size": 100} if issubclass(algorithm, SAC | TD3 | DPI | DAgger) else {}
    small |= {"expert": np.zeros_like} if issubclass(algorithm, DAgger) else {}
    has_critics = issubclass(algorithm, SAC | TD3 | DPI)
    small_net = {"net_arch": {"pi": [16, 16], "qf": [16, 16]} if has_critics else [16, 16]}
    options = {**small, **kwargs, "policy_kwargs": {**small_net, **kwargs.get("policy_kwargs", {})}}
    model = algorithm(policy, Drawn() if env is None else env, device="cpu", seed=0, **options)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
        for module in model.policy.modules():
            if isinstance(module, Standardizing):  # until then it sees nothing
                module.is_set.fill_(1.0)
                module.obs_mean.normal_()
                module.obs_std.uniform_(0.5, 2.0)
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def observe(space: spaces.Space, n: int) -> dict[str, np.ndarray]:
    """:return: observations by the names of inputs, ``[n, ...]`` each"""
    space.seed(0)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space.spaces}
    return {"observation": np.stack(drawn)}


def predict(model: Any, seen: dict[str, np.ndarray]) -> np.ndarray:
    """:return: what the model does, behind its VecNormalize"""
    obs: Any = seen if isinstance(model.observation_space, spaces.Dict) else seen["observation"]
    normalizer = model.get_vec_normalize_env()
    return model.predict(obs if normalizer is None else normalizer.normalize_obs(obs), deterministic=True)[0]


def run_torchscript(path: Path, seen: dict[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    return th.jit.load(path)(*map(th.as_tensor, seen.values())).numpy()


def run_onnx(path: Path, seen: dict[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return session.run(None, seen)[0]


def run_numpy(path: Path, seen: dict[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    spec = spec_from_file_location("an_exported_policy", path)
    assert spec is not None and spec.loader is not None
    policy = module_from_spec(spec)
    spec.loader.exec_module(policy)
    assert len(policy.act(*(part[:0] for part in seen.values()))) == 0
    actions = policy.act(*seen.values())
    np.testing.assert_allclose(policy.act(*(part[1] for part in seen.values())), actions[1], atol=TOLERANCE)
    return actions


def run_numpy_alone(path: Path, seen: dict[str, np.ndarray]) -> np.ndarray:
    """In a process that knows no torch."""
    code = f"""
import sys
import numpy as np
sys.path.insert(0, {str(path.parent)!r})
import {path.stem} as policy
assert not {{"torch", "stable_baselines3"}} & sys.modules.keys()
np.save("actions.npy", policy.act(*np.load("seen.npz").values()))
"""
    np.savez(path.parent / "seen.npz", **seen)
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=True)
    return np.load(path.parent / "actions.npy")


def run_c(path: Path, seen: dict[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    declared = [f"{C_TYPES[part.dtype.name]} {name}[{part[0].size}];" for name, part in seen.items()]
    read = " && ".join(f"fread({name}, sizeof {name}, 1, stdin)" for name in seen)
    (path.parent / "main.c").write_text(f"""#include <stdio.h>
#include "{path.name}"
int main(void) {{
    {" ".join(declared)} {C_TYPES[like.dtype.name]} action[{like[0].size}];
    while ({read}) {{
        {path.stem}_act({", ".join(seen)}, action);
        fwrite(action, sizeof action, 1, stdout);
    }}
    return 0;
}}
""")
    command = ["gcc", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-std=c99", "main.c", "-o", "main", "-lm"]
    subprocess.run(command, cwd=path.parent, check=True)
    data = b"".join(part[i].tobytes() for i in range(len(like)) for part in seen.values())
    acted = subprocess.run([str(path.parent / "main")], input=data, capture_output=True, check=True).stdout
    return np.frombuffer(acted, like.dtype).reshape(like.shape)


RUN: dict[str, Callable[[Path, dict[str, np.ndarray], np.ndarray], np.ndarray]] = {
    "torchscript": run_torchscript,
    "onnx": run_onnx,
    "numpy": run_numpy,
    "c": run_c,
}
SOURCE = ("numpy", "c")


def check(model: Any, to: str, folder: Path, n: int = 200) -> None:
    """The file acts as the model does."""
    if to == "onnx":
        pytest.importorskip("onnxscript")
    seen = observe(model.observation_space, n)
    wanted = predict(model, seen)
    path, *_ = export_policy(model, folder / "policy", to)
    acted = RUN[to](path, seen, wanted)
    assert acted.dtype == wanted.dtype and acted.shape == wanted.shape
    np.testing.assert_allclose(acted, wanted, atol=TOLERANCE, rtol=0.0)
    assert len(np.unique(wanted)) > 1, "a policy that does always the same proves nothing"


@pytest.mark.parametrize("to", ["torchscript", "numpy", "c"])
@every(plans=False)
def test_every_algorithm(make: Any, to: str, tmp_path: Path) -> None:
    check(model_of(make.algorithm), to, tmp_path)


@every(plans=True)
def test_what_plans_has_nothing_to_export(make: Make, tmp_path: Path) -> None:
    """From a model as from its file."""
    model = make()
    model.save(tmp_path / "model.zip")
    for given in (model, model.policy, tmp_path / "model.zip"):
        with pytest.raises(ExportError, match=r"no network that could be exported: it plans.* Teach one with DPI or DAgger"):
            export_policy(given, tmp_path / "policy", "numpy")


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
@pytest.mark.parametrize("to", ["torchscript", "numpy", "c"])
def test_algorithms_of_stable_baselines3(algorithm: Any, to: str, tmp_path: Path) -> None:
    check(model_of(algorithm), to, tmp_path)


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


@pytest.mark.parametrize("to", SOURCE)
def test_ten_thousand_actions(to: str, tmp_path: Path) -> None:
    check(model_of(DPI), to, tmp_path, 10_000)


def test_numpy_needs_no_torch(tmp_path: Path) -> None:
    model = model_of(DPI)
    seen = observe(model.observation_space, 20)
    path, *_ = export_policy(model, tmp_path / "policy", "numpy")
    np.testing.assert_allclose(run_numpy_alone(path, seen), predict(model, seen), atol=TOLERANCE)


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_images(to: str, tmp_path: Path) -> None:
    check(model_of(PPO, "CnnPolicy", Drawn(IMAGE)), to, tmp_path, 3)


@pytest.mark.parametrize(
    "algorithm", [DPI, DualAC, *(pytest.param(name, marks=pytest.mark.slow) for name in (MDGPS, AggreVaTeDOC, DAgger))]
)
def test_onnx(algorithm: Any, tmp_path: Path) -> None:
    """Two seconds each: the slow ones act by layers of the same kinds as the others."""
    check(model_of(algorithm), "onnx", tmp_path)


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
    assert said["action"]["low"] == [-2.0, 0.0]


def test_the_zoos_statistics_are_found(tmp_path: Path, capsys: Any) -> None:
    env = VecNormalize(DummyVecEnv([Drawn]))
    env.obs_rms.mean[:] = 3.0
    model = model_of(PPO, env=env)
    model.save(tmp_path / "model.zip")
    (tmp_path / "Env-v0").mkdir()
    env.save(tmp_path / "Env-v0/vecnormalize.pkl")
    assert main([str(tmp_path / "model.zip"), "--to", "torchscript"]) == 0
    assert "vecnormalize.pkl" in capsys.readouterr().out
    seen = observe(VECTOR, 20)
    wanted = predict(model, seen)
    np.testing.assert_allclose(run_torchscript(tmp_path / "model.pt", seen, wanted), wanted, atol=TOLERANCE)


def test_exporting_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = model_of(DPI)
    model.policy.set_training_mode(True)
    export_policy(model, tmp_path / "policy", "torchscript")
    assert model.policy.training and all(p.requires_grad for p in model.policy.actor.parameters())


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda model, folder: export_policy(model, folder / "policy", "tflite"), "onnx"),
        (lambda model, folder: export_policy(model_of(PPO, "CnnPolicy", Drawn(IMAGE)), folder / "policy", "c"), "onnx"),
        (lambda model, folder: export_policy(folder / "nothing.zip", folder / "policy"), "saved model"),
        (lambda model, folder: export_policy(model, folder / "my-policy", "numpy"), "my_policy.py"),
        (lambda model, folder: export_policy(model, folder / "policy", "c", folder / "none.pkl"), "VecNormalize"),
    ],
)
def test_errors_say_what_to_do(break_it: Callable[[Any, Path], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        break_it(model_of(PPO), tmp_path)


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model.zip").write_bytes(b"no zip")
    assert main([str(tmp_path / "model.zip")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
