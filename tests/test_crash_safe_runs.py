"""A run that is killed goes on from what was saved last, and a killed saving leaves the one before whole."""

import os
import signal
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import (
    Make,
    buffer,
    check_transitions,
    iterations,
    parameters,
    small_dpi,
    small_mdgps,
    small_ppo,
    small_sac,
    with_references,
)
from dummy_envs import ITERATION, POINT_MASS_LIMIT, DictPointMass, PointMass, limited, vec_env
from forks import forked
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, MDGPS
from sb3_dpi.data import DataError, SaveRun, load_run, runs, save_run


def env() -> Any:
    return vec_env(2, lambda: limited(POINT_MASS_LIMIT))


@with_references()
def test_everything_comes_back(make: Make, tmp_path: Path) -> None:
    model = make(VecNormalize(env())).learn(ITERATION)
    save_run(model, tmp_path / "robot.run")
    again = load_run(make.algorithm, tmp_path / "robot.run", make.fit(env()))
    assert parameters(again) == parameters(model)
    assert (again.num_timesteps, again._episode_num, iterations(again)) == (
        model.num_timesteps,
        model._episode_num,
        iterations(model),
    )
    old, new = model.get_vec_normalize_env(), again.get_vec_normalize_env()
    assert new is not None and new is not old
    np.testing.assert_array_equal(new.obs_rms.mean, old.obs_rms.mean)
    np.testing.assert_array_equal(new.ret_rms.var, old.ret_rms.var)
    if isinstance(model, OffPolicyAlgorithm):
        np.testing.assert_array_equal(buffer(again).observations, buffer(model).observations)
        assert buffer(again).pos == buffer(model).pos > 0
    if hasattr(model, "_rng"):
        assert again._rng.random() == model._rng.random()
    again.learn(ITERATION, reset_num_timesteps=False)
    assert again.num_timesteps == 2 * ITERATION
    assert iterations(again) > iterations(model)


MOMENTS = {
    "before anything": ("zipfile.ZipFile", False),
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


class Told(SaveRun):
    """Says what it has saved."""

    def _save(self) -> None:
        super()._save()
        print(self.last, repr(parameters(self.model)), flush=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child")
@pytest.mark.parametrize("make", [small_dpi, small_sac, small_mdgps, small_ppo])
def test_a_run_that_is_killed_while_it_learns_goes_on(make: Callable[..., Any], tmp_path: Path) -> None:
    """Killed at any moment: in an update, in a step, while it saves. What the file holds is the latest saved or one after."""
    path = tmp_path / "robot.run"

    def learn() -> None:
        make(VecNormalize(env())).learn(10**6, callback=Told(path, every=ITERATION))

    with forked(learn) as fork:
        told = [fork.printed.readline().split() for _ in range(3)]
        fork.send(signal.SIGKILL)
        code, rest = fork.end()
    assert code == -signal.SIGKILL
    told += [line.split() for line in rest.splitlines() if line.count(" ") == 1 and line[-1].isdigit()]
    saved = {int(steps): float(learned) for steps, learned in told}
    model = load_run(make.__annotations__["return"], path, env())
    assert model.num_timesteps >= max(saved) and model.num_timesteps % ITERATION == 0
    assert saved.get(model.num_timesteps, parameters(model)) == parameters(model)
    begun = model.num_timesteps
    if isinstance(model, OffPolicyAlgorithm):
        assert buffer(model).size() * 2 == min(begun, buffer(model).buffer_size * 2)
        check_transitions(model)
    before = iterations(model)
    model.learn(2 * ITERATION, callback=SaveRun(path, every=ITERATION), reset_num_timesteps=False)
    assert model.num_timesteps == begun + 2 * ITERATION and iterations(model) > before
    assert load_run(type(model), path, env()).num_timesteps == model.num_timesteps
    assert os.listdir(tmp_path) == ["robot.run"]


@pytest.mark.parametrize("n_envs", [1, 3, 4])
def test_what_was_kept_is_dealt_out_to_other_environments(n_envs: int, tmp_path: Path) -> None:
    for sac, space in (
        (small_sac(env()), lambda: limited(POINT_MASS_LIMIT)),
        (
            small_sac(
                vec_env(2, dictionaries), "MultiInputPolicy", replay_buffer_kwargs={"handle_timeout_termination": False}
            ),
            dictionaries,
        ),
    ):
        sac.learn(ITERATION)
        save_run(sac, tmp_path / "robot.run")
        again = load_run(SAC, tmp_path / "robot.run", vec_env(n_envs, space))
        old, new = buffer(sac), buffer(again)
        assert new.n_envs == n_envs and new.size() == ITERATION // n_envs and new.buffer_size == 1000 // n_envs
        assert new.handle_timeout_termination == old.handle_timeout_termination
        rewards = old.rewards[: old.size()].T.ravel()
        np.testing.assert_array_equal(new.rewards[: new.size()].T.ravel(), rewards[len(rewards) % n_envs :])
        if not isinstance(new.observations, dict):
            check_transitions(again)
        again.learn(ITERATION, reset_num_timesteps=False)
        # steps of all environments are counted, whole rounds of them
        assert 2 * ITERATION <= again.num_timesteps < 2 * ITERATION + n_envs * ITERATION


def dictionaries() -> gym.Env[Any, Any]:
    """:return: the same that observes in two parts"""
    return gym.wrappers.TimeLimit(DictPointMass(("velocity", "position")), POINT_MASS_LIMIT)


def test_noise_follows_the_number_of_environments(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    options: dict[str, Any] = {"learning_starts": 5, "action_noise": noise, "policy_kwargs": {"net_arch": [8]}}
    save_run(TD3("MlpPolicy", env(), device="cpu", **options).learn(20), tmp_path / "robot.run")
    for n_envs in (1, 3):
        again = load_run(TD3, tmp_path / "robot.run", vec_env(n_envs, lambda: limited(POINT_MASS_LIMIT)))
        again.learn(12, reset_num_timesteps=False)
        assert np.shape(again.action_noise()) == ((1,) if n_envs == 1 else (3, 1))  # type: ignore[misc]


def test_buffers_that_cannot_be_dealt_out_say_so(tmp_path: Path) -> None:
    path = tmp_path / "robot.run"
    save_run(small_sac(env(), n_steps=3).learn(30), path)
    with pytest.raises(
        DataError, match=r"holds steps of 2 environments, which a NStepReplayBuffer cannot deal out to 1: give 2"
    ):
        load_run(SAC, path, limited(POINT_MASS_LIMIT))
    again = load_run(SAC, path, env())
    kept = buffer(again)
    # the environments begin anew: returns of several steps end where the run was left
    np.testing.assert_array_equal(kept.dones[kept.pos - 1] - kept.timeouts[kept.pos - 1], 0.0)
    np.testing.assert_array_equal(kept.dones[kept.pos - 1], 1.0)
    lean = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    save_run(small_sac(env(), **lean).learn(30), path)
    with pytest.raises(DataError, match="a ReplayBuffer with optimize_memory_usage cannot deal out"):
        load_run(SAC, path, limited(POINT_MASS_LIMIT))
    kept = buffer(load_run(SAC, path, env()))
    assert kept.dones[kept.pos - 1].all(), "what it leads to is overwritten by another episode"


def test_files_are_for_whom_the_umask_lets(tmp_path: Path) -> None:
    model = small_mdgps()
    before = os.umask(0o027)
    try:
        save_run(model, tmp_path / "robot.run")
        os.umask(0o002)
        save_run(model, tmp_path / "other.run")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("robot.run", "other.run")]
    assert modes == [0o640, 0o664]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    """Their names may begin alike."""
    ours, other = ".robot.0123abcd.unfinished", ".robot.run.0123abcd.unfinished"
    for name in (ours, other):
        (tmp_path / name).touch()
    save_run(small_mdgps(), tmp_path / "robot")
    assert sorted(os.listdir(tmp_path)) == [other, "robot"]


def test_callback_saves_between_rollouts(tmp_path: Path) -> None:
    path, seen = tmp_path / "deep" / "robot.run", []

    class Checked(SaveRun):
        def _save(self) -> None:
            super()._save()
            kept = load_run(DPI, path)
            seen.append((kept.num_timesteps, kept.replay_buffer.pos))

    small_dpi().learn(3 * ITERATION, callback=Checked(path, every=ITERATION))
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


class Wide(PointMass):
    """It observes a number more."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def observation(self) -> Any:
        """:return: a zero beside the rest"""
        return np.append(super().observation(), np.float32(0.0))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("make", [small_dpi, small_ppo])
def test_another_environment_is_refused(make: Callable[..., Any], normalizes: bool, tmp_path: Path) -> None:
    path, algorithm = tmp_path / "robot.run", DPI if make is small_dpi else PPO
    save_run(make(VecNormalize(env()) if normalizes else env()), path)
    for other in (Wide, lambda: PointMass(low=-3.0)):
        with pytest.raises(DataError, match=r"holds a run in another environment.*Give the environment that the run began in"):
            load_run(algorithm, path, vec_env(2, other))
    whole = path.read_bytes()
    for end in (len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="was damaged"):
            load_run(algorithm, path)
