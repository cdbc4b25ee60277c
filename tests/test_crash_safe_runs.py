"""A run that is killed goes on from what was saved last, and a killed saving leaves the one before whole."""

import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import Make, buffer, iterations, parameters, small_dpi, small_mdgps, with_references
from dummy_envs import ITERATION, POINT_MASS_LIMIT, limited, vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, MDGPS
from sb3_dpi.data import DataError, SaveRun, load_run, runs, save_run


def env() -> Any:
    return vec_env(2, lambda: limited(POINT_MASS_LIMIT))


@with_references
def test_everything_comes_back(make: Make, tmp_path: Path) -> None:
    model = make(VecNormalize(env())).learn(ITERATION)
    save_run(model, tmp_path / "robot.run")
    again = load_run(make.algorithm, tmp_path / "robot.run", env())
    assert parameters(again) == parameters(model)
    assert (again.num_timesteps, again._episode_num, iterations(again)) == (
        model.num_timesteps,
        model._episode_num,
        iterations(model),
    )
    old, new = model.get_vec_normalize_env(), again.get_vec_normalize_env()
    assert new is not None and new is not old
    np.testing.assert_array_equal(new.obs_rms.mean, old.obs_rms.mean)  # type: ignore[union-attr]
    np.testing.assert_array_equal(new.ret_rms.var, old.ret_rms.var)  # type: ignore[union-attr]
    if isinstance(model, OffPolicyAlgorithm):
        np.testing.assert_array_equal(buffer(again).observations, buffer(model).observations)
        assert buffer(again).pos == buffer(model).pos > 0
    if hasattr(model, "_rng"):
        assert again._rng.random() == model._rng.random()
    again.learn(ITERATION, reset_num_timesteps=False)
    assert again.num_timesteps == 2 * ITERATION
    assert iterations(again) > iterations(model)


MOMENTS = {
    "before anything": ("os.fdopen", False),
    "before the buffer": ("pickle.dump", False),
    "after the buffer": ("pickle.dump", True),
    "before the name": ("os.replace", False),
    "after the name": ("os.replace", True),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_saving_leaves_a_whole_run(moment: str, tmp_path: Path) -> None:
    model, path = small_dpi(), tmp_path / "robot.run"
    save_run(model, path)
    model.num_timesteps = 77
    name, is_after = MOMENTS[moment]
    child = os.fork()
    if child == 0:
        module, function = name.split(".")
        real = getattr(getattr(runs, module), function)

        def deadly(*args: Any, **kwargs: Any) -> Any:
            if is_after:
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(getattr(runs, module), function, deadly)
        try:
            save_run(model, path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    found = load_run(DPI, path, limited(POINT_MASS_LIMIT))
    assert found.num_timesteps == (77 if moment == "after the name" else 0)
    save_run(model, path)
    assert load_run(DPI, path).num_timesteps == 77
    assert os.listdir(tmp_path) == ["robot.run"], "what the killed one had begun is gone"


def test_callback_saves_between_rollouts(tmp_path: Path) -> None:
    path, seen = tmp_path / "deep" / "robot.run", []

    class Told(SaveRun):
        def _save(self) -> None:
            super()._save()
            kept = load_run(DPI, path)
            seen.append((kept.num_timesteps, kept.replay_buffer.pos))

    small_dpi().learn(3 * ITERATION, callback=Told(path, every=ITERATION))
    assert seen == [(ITERATION, ITERATION), (2 * ITERATION, 2 * ITERATION), (3 * ITERATION, 3 * ITERATION)]


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    model = small_mdgps(VecNormalize(env()))
    with pytest.raises(DataError, match="does not exist"):
        load_run(MDGPS, tmp_path / "robot.run")
    (tmp_path / "robot.run").write_bytes(b"half a file")
    with pytest.raises(DataError, match="is no file of save_run"):
        load_run(MDGPS, tmp_path / "robot.run")
    model.save(tmp_path / "model.zip")
    assert zipfile.is_zipfile(tmp_path / "model.zip")
    with pytest.raises(DataError, match=r"load it with MDGPS\.load"):
        load_run(MDGPS, tmp_path / "model.zip")
    save_run(model, tmp_path / "robot.run")
    with pytest.raises(DataError, match="without VecNormalize"):
        load_run(MDGPS, tmp_path / "robot.run", VecNormalize(env()))
    with pytest.raises(DataError, match=r"holds a run of MDGPS: load_run\(MDGPS, path\), not DPI"):
        load_run(DPI, tmp_path / "robot.run")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        SaveRun(tmp_path / "robot.run", every=0)
