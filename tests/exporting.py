"""Models to export, and what runs the files they are exported to."""

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
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dpi import DPI, DAgger, ExIt
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.export import export_policy
from sb3_dpi.export.c_header import C_TYPES

TOLERANCE = 1e-5
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
ACTIONS = spaces.Box(np.float32([-2.0, 0.0]), np.float32([3.0, 0.5]))
NAMED = spaces.Dict({"left": spaces.Box(-1.0, 1.0, (3,)), "right": spaces.Box(-1.0, 1.0, (2, 2))})
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
IMAGE_AND_JOINTS = spaces.Dict({"image": IMAGE, "joints": spaces.Box(-1.0, 1.0, (2,)), "state": spaces.Box(-1.0, 1.0, (3,))})
"""of which MDGPS shows the last to its planner alone"""


class Drawn(gym.Env):
    """Draws observations."""

    def __init__(self, observation_space: Any = VECTOR, action_space: Any = ACTIONS) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action: Any) -> Any:
        return self.draw(), 0.0, False, False, {}

    def draw(self) -> Any:
        """:return: an observation, the same in an exact copy"""
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


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
    small: dict[str, Any] = {"buffer_size": 100} if issubclass(algorithm, SAC | TD3 | DPI | DAgger | ExIt) else {}
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
    batched = batch_space(space, n)
    batched.seed(0)
    drawn = batched.sample()
    return {key: drawn[key] for key in space.spaces} if isinstance(space, spaces.Dict) else {"observation": drawn}


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
    path, *_, said = export_policy(model, folder / "policy", to)
    shown = [part for key, part in seen.items() if key != "state"]
    acted = RUN[to](path, dict(zip(json.loads(said.read_text())["observations"], shown, strict=True)), wanted)
    assert acted.dtype == wanted.dtype and acted.shape == wanted.shape
    np.testing.assert_allclose(acted, wanted, atol=TOLERANCE, rtol=0.0)
    assert len(np.unique(wanted)) > 1, "a policy that does always the same proves nothing"
