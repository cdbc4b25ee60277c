"""Every algorithm on a GPU: it learns there, and what it has learned acts alike on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, iterations, modules, parameters, with_references
from dummy_envs import ITERATION, DictPointMass, limited, vec_env

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not th.cuda.is_available(), reason="there is no GPU here")]

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
TASKS: dict[str, dict[str, Any]] = {
    "vectors": {"env": lambda: vec_env(2, lambda: limited(12)), "policy": "MlpPolicy"},
    "dictionaries": {"env": lambda: DictPointMass(("position", "velocity")), "policy": "MultiInputPolicy"},
}


@pytest.mark.parametrize("task", TASKS)
@with_references()
def test_learned_on_the_gpu_and_loaded_on_the_cpu(make: Make, task: str, tmp_path: Path) -> None:
    env, policy = TASKS[task]["env"], TASKS[task]["policy"]
    model = make(env(), policy, device="cuda").learn(2 * ITERATION)
    assert model.device.type == model.policy.device.type == "cuda" and iterations(model) > 0
    assert {parameter.device.type for module in modules(model) for parameter in module.parameters()} == {"cuda"}
    assert np.isfinite(parameters(model))
    observed: Any = OBSERVATIONS
    if policy == "MultiInputPolicy":
        observed = {"position": OBSERVATIONS[:, :1], "velocity": OBSERVATIONS[:, 1:]}
    expected = model.predict(observed, deterministic=True)[0]
    model.save(tmp_path / "model")
    for device in ("cpu", "cuda"):
        loaded = make.algorithm.load(tmp_path / "model", env=env(), device=device)
        assert loaded.device.type == loaded.policy.device.type == device
        np.testing.assert_allclose(loaded.predict(observed, deterministic=True)[0], expected, atol=1e-4)
        before = parameters(loaded)
        loaded.learn(2 * ITERATION)
        assert parameters(loaded) != before and np.isfinite(parameters(loaded))
