"""Saving, loading and going on: everything that was learned survives."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import (
    OBSERVATIONS,
    Make,
    Model,
    called,
    every,
    every_algorithm,
    iterations,
    kept,
    parameters,
    predictions,
    those,
)
from dummy_envs import CONDITIONS, HORIZON, ITERATION, DictPointMass, PointMass, limited, vec_env
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DualAC
from sb3_dpi.common.saved_models import FORMAT_VERSION

OPTIONS: dict[type[Model], dict[str, Any]] = {
    MDGPS: {"replay": 2, "conditions": "fixed", "step_rule": "global", "sampling": "local"},
    AggreVaTeDOC: {"replay": 2, "conditions": "fixed"},
}
"""With which there is more to save"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: of the models that tests only read"""
    return tmp_path_factory.mktemp("saved")


@cache
def trained(make: Make) -> Model:
    """:return: a model after three iterations, which tests only read"""
    return make(**OPTIONS.get(make.algorithm, {})).learn(3 * ITERATION)


def saved(make: Make, folder: Path) -> Path:
    """:return: its file, and that of its replay buffer beside it"""
    path = folder / str(make)
    if not path.with_suffix(".zip").exists():
        trained(make).save(path)
        if isinstance(trained(make), OffPolicyAlgorithm):
            trained(make).save_replay_buffer(folder / f"{make}_buffer")
    return path


def flat(values: Any) -> list[Any]:
    """:return: the leaves of parameters, those of optimizers included"""
    if isinstance(values, dict):
        return [leaf for key in sorted(values, key=str) for leaf in flat(values[key])]
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in flat(value)]
    return [values]


def rewind(make: Make, model: Model) -> None:
    """Let models that have learned the same draw the same from now on."""
    model.set_env(make.fit(limited(12)))
    model.set_random_seed(5)
    for name, value in vars(model).items():
        if isinstance(value, np.random.Generator):
            setattr(model, name, np.random.default_rng(5))
    if isinstance(model, DPI):
        model._noise[:] = 0.0


# ---------------------------------------------------------------------- what survives


@every_algorithm
def test_everything_learned_survives(make: Make, folder: Path) -> None:
    """With the same environment and the same draws the loaded model goes on exactly as the one that was saved."""
    loaded = make.algorithm.load(saved(make, folder), env=make.fit(limited(12)))
    model = make(**OPTIONS.get(make.algorithm, {})).learn(3 * ITERATION)
    assert iterations(loaded) == iterations(model) == 3 and loaded.num_timesteps == 3 * ITERATION
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    for ours, theirs in zip(flat(loaded.get_parameters()), flat(model.get_parameters()), strict=True):
        assert th.equal(ours, theirs) if isinstance(theirs, th.Tensor) else ours == theirs
    if isinstance(model, OffPolicyAlgorithm):
        loaded.load_replay_buffer(folder / f"{make}_buffer")
    for one in (loaded, model):
        rewind(make, one)
        one.learn(2 * ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, iterations(loaded)) == (5 * ITERATION, 5)
    assert parameters(loaded) == parameters(model) != parameters(trained(make))
    loaded.learn(ITERATION)
    assert (loaded.num_timesteps, iterations(loaded)) == (ITERATION, 6), "the policy knows more than one iteration"


@every_algorithm
def test_loading_without_environment(make: Make, folder: Path) -> None:
    loaded = make.algorithm.load(saved(make, folder))
    np.testing.assert_array_equal(predictions(loaded), predictions(trained(make)))
    expected = rf"You must set the environment before calling learn.*{make}\.load\(path, env=env\), or model\.set_env\(env\)"
    for reset_num_timesteps in (True, False):
        with pytest.raises(AssertionError, match=expected):
            loaded.learn(1, reset_num_timesteps=reset_num_timesteps)
    loaded.set_env(make.fit(limited(12)))
    assert iterations(loaded.learn(ITERATION, reset_num_timesteps=False)) == 4


@every_algorithm
def test_set_env(make: Make) -> None:
    model, other = make(PointMass()), PointMass()
    model.set_env(make.fit(other))
    model.learn(ITERATION)
    assert other.n_steps == ITERATION
    with pytest.raises((ValueError, AssertionError)):
        model.set_env(vec_env(2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(PointMass(low=-3.0))


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_number_of_environments_may_change(make: Make, tmp_path: Path, n_envs: int) -> None:
    make(vec_env(2, lambda: limited(12))).learn(2 * ITERATION).save(tmp_path / "model")
    envs = vec_env(n_envs, lambda: make.fit(limited(12)))
    loaded = make.algorithm.load(tmp_path / "model", env=envs)
    steps = 2 * ITERATION * n_envs
    loaded.learn(steps, reset_num_timesteps=False)
    assert loaded.n_envs == n_envs and iterations(loaded) > 2
    taken = [env.n_steps for env in envs.get_attr("unwrapped")]
    assert len(set(taken)) == 1 and sum(taken) == loaded.num_timesteps - 2 * ITERATION >= steps


@every_algorithm
def test_vec_normalize_survives(make: Make, tmp_path: Path) -> None:
    """The statistics are saved beside the model, as everywhere; both together act as before."""
    env = VecNormalize(vec_env(1, lambda: limited(12)))
    model = make(env).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))
    restored = VecNormalize.load(str(tmp_path / "statistics.pkl"), vec_env(1, lambda: make.fit(limited(12))))
    loaded = make.algorithm.load(tmp_path / "model", env=restored)
    assert loaded.get_vec_normalize_env() is restored
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert iterations(loaded.learn(ITERATION, reset_num_timesteps=False)) == 3


@every(plans=False)
def test_get_and_set_parameters(make: Make) -> None:
    model, other = trained(make), make(seed=1)
    given: Any = model.get_parameters()
    assert {"policy", "policy.optimizer"} <= set(given)
    assert not np.allclose(predictions(other), predictions(model))
    other.set_parameters(given)
    np.testing.assert_array_equal(predictions(other), predictions(model))
    with pytest.raises(ValueError):
        other.set_parameters({"policy": given["policy"]}, exact_match=True)


@every_algorithm
def test_saved_files(make: Make, folder: Path) -> None:
    """To a path, a string or a stream; the version is in it, simulators, buffers and generators are not."""
    model, stream = trained(make), io.BytesIO()
    model.save(stream)
    stream.seek(0)
    np.testing.assert_array_equal(predictions(make.algorithm.load(stream)), predictions(model))
    data, given, _ = load_from_zip_file(str(saved(make, folder)))
    assert data is not None and data["format_version"] == FORMAT_VERSION and data["algorithm_name"] == str(make)
    assert not {"env", "policy", "rollout_buffer", "replay_buffer", "reset_layer", "_rng", "_logger"} & set(data)
    assert not any(isinstance(value, np.random.Generator | th.nn.Module) for value in data.values())
    assert set(given) == set(model.get_parameters())


@every(plans=False)
def test_a_policy_is_saved_by_itself(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.policy.save(str(tmp_path / "policy.pt"))
    loaded = type(model.policy).load(str(tmp_path / "policy.pt"))
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], predictions(model))


# ---------------------------------------------------------------------- what may change


@every_algorithm
def test_what_the_ecosystem_hands_over_is_taken(make: Make, folder: Path) -> None:
    """RL Zoo's ``enjoy`` and ``train -i``, Stable-Baselines3's own tests."""
    custom: dict[str, Any] = {"lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0, "what": 1}
    loaded = make.algorithm.load(
        saved(make, folder),
        env=make.fit(limited(12)),
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
        gamma=0.5,
    )
    if not make.plans:  # whose plans know gamma
        np.testing.assert_array_equal(predictions(loaded), predictions(trained(make)))
    assert (loaded.seed, loaded.gamma, loaded.learning_rate) == (3, 0.5, 1e-3)
    frozen = make.algorithm.load(saved(make, folder), custom_objects={"learning_rate": 0.0})
    assert frozen.learning_rate == 0.0 and frozen.lr_schedule(1.0) == 0.0


SCHEDULES = [
    *[(make, "learning_rate") for make in those(plans=False)],
    *[(make, name) for make in called(MDGPS) for name in ("kl_step", "min_std")],
    *[(make, name) for make in called(AggreVaTeDOC) for name in ("trust_region", "target_kl", "min_std")],
    *[(make, "target_kl") for make in called(DualAC)],
]


@pytest.mark.parametrize("make, schedule", SCHEDULES, ids=str)
def test_schedules_survive(tmp_path: Path, make: Make, schedule: str) -> None:
    options: dict[str, Any] = {schedule: lambda progress: 0.1 + 0.2 * progress}
    make(**options).save(tmp_path / "model")
    loaded = make.algorithm.load(tmp_path / "model", env=make.fit(limited(12)))
    value = loaded.lr_schedule(0.5) if schedule == "learning_rate" else getattr(loaded, schedule)(0.5)
    assert value == pytest.approx(0.2)
    loaded.save(tmp_path / "again")
    again = make.algorithm.load(tmp_path / "again", env=make.fit(limited(12))).learn(1)
    assert iterations(again) == (0 if make.squashes else 1)


CHANGES: list[tuple[Make, dict[str, Any]]] = [
    *[(make, {"learning_rate": 1e-5}) for make in those(plans=False)],
    *[
        (make, changes)
        for make in called(MDGPS, AggreVaTeDOC)
        for changes in (
            {"horizon": HORIZON + 5},
            {"horizon": HORIZON - 5},
            {"n_conditions": CONDITIONS + 1},
            {"n_conditions": 1},
            {"samples_per_condition": 3},
            {"replay": 0},
            {"dynamics": "gmm"},
        )
    ],
    *[
        (make, changes)
        for make in called(MDGPS)
        for changes in (
            {"sampling": "global", "conditions": "random"},
            {"imitation_steps": 1},
            {"kl_step": 0.5, "min_std": 0.3},
        )
    ],
    *[
        (make, changes)
        for make in called(AggreVaTeDOC)
        for changes in (
            {"conditions": "continue"},
            {"trust_region": 0.5, "target_kl": 0.1, "min_std": 0.3},
            {"trust_region": 0.0, "trust": 0.5, "plan_lambda": 0.5},
        )
    ],
    *[(make, {"window_length": 3, "target_kl": 0.2}) for make in called(DualAC)],
    *[(make, {"gradient_steps": 3, "tau": 0.1}) for make in called(DPI)],
]


@pytest.mark.parametrize("make, changes", CHANGES, ids=str)
def test_arguments_may_change_on_loading(folder: Path, make: Make, changes: dict[str, Any]) -> None:
    """They hold, and what is learned with them is something else."""
    loaded = continued(make, folder, **changes)
    assert iterations(loaded) >= 4 and np.isfinite(parameters(loaded))
    for name, value in changes.items():
        now = getattr(loaded, name)
        assert (now(1.0) if callable(now) else now) == value
    assert parameters(loaded) != unchanged(make, folder)


def continued(make: Make, folder: Path, **changes: Any) -> Model:
    loaded = make.algorithm.load(saved(make, folder), env=make.fit(PointMass()), **changes)
    loaded.set_random_seed(5)
    return loaded.learn(2 * ITERATION, reset_num_timesteps=False)


@cache
def unchanged(make: Make, folder: Path) -> float:
    return parameters(continued(make, folder))


def test_settings_of_dpi_may_change_on_loading(folder: Path) -> None:
    (make,) = called(DPI)
    options: dict[str, Any] = {
        "critic": {"learning_rate": 1e-5},
        "preset": {"polyak": 0.5},
        "world_model": {"width": 16, "learning_rate": 1e-4},
    }
    loaded = DPI.load(saved(make, folder), env=limited(12), **options)
    assert loaded.critic_options.learning_rate == 1e-5 and loaded.world_model.learning_rate == 1e-4
    assert loaded.numbers.polyak == 0.5
    with pytest.raises(TypeError, match=r"DPI\.load: the saved model has no 'polyak' that could be changed"):
        DPI.load(saved(make, folder), polyak=0.5)


# ---------------------------------------------------------------------- what only some have


def test_save_excludes_and_includes(tmp_path: Path) -> None:
    (make,) = called(MDGPS)
    model = trained(make)
    model.save(tmp_path / "model", exclude=["past", "previous"], include=["rollout_buffer"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert data is not None and "past" not in data and "previous" not in data and "rollout_buffer" in data
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    assert loaded.past == () and loaded.previous is None
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert loaded.n_iterations == 4


def test_a_loaded_model_samples_from_the_saved_controllers(tmp_path: Path) -> None:
    (make,) = called(MDGPS)
    make(**OPTIONS[MDGPS], min_std=1e-3).learn(3 * ITERATION).save(tmp_path / "model")
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    loaded.train = lambda: None  # type: ignore[method-assign]
    assert loaded.previous is not None
    p = loaded.previous.controller
    loaded.learn(1, reset_num_timesteps=False)
    sampled = loaded.rollout_buffer.trajectories()
    error = sampled.actions - np.einsum("mtux,mntx->mntu", p.K, sampled.states[:, :, :-1]) - p.k[:, None]
    std = np.sqrt(p.cov[:, None, :, 0, 0])
    assert np.abs(error[..., 0] / std).max() < 5.0
    assert 0.5 < np.std(error[..., 0] / std) < 1.5


@every(from_conditions=True)
def test_the_same_conditions_after_loading(make: Make, folder: Path) -> None:
    env, base = PointMass(), trained(make).condition_base
    make.algorithm.load(saved(make, folder), env=env).learn(1, reset_num_timesteps=False)
    assert base is not None and {seed for seed in env.seeds if seed is not None and seed >= 2**16} == {base, base + 1}


@every(from_conditions=True)
def test_fresh_conditions_go_on(make: Make, tmp_path: Path) -> None:
    """Seeds that were used before do not come again."""
    env, later = PointMass(), PointMass()
    make(env, conditions="fresh").learn(2 * ITERATION).save(tmp_path / "model")
    make.algorithm.load(tmp_path / "model", env=later).learn(ITERATION, reset_num_timesteps=False)
    assert len({seed for seed in later.seeds if seed and seed > 2**16} - set(env.seeds)) == CONDITIONS


@every(from_conditions=True)
def test_environment_set_after_loading(make: Make, tmp_path: Path) -> None:
    """The horizon that was the time limit's stays what it was."""
    model = make(limited(7), horizon=None, replay=2).learn(5 * 28)
    model.save(tmp_path / "model")
    loaded = make.algorithm.load(tmp_path / "model")
    loaded.set_env(make.fit(limited(7)))
    loaded.learn(5 * 28, reset_num_timesteps=False)
    assert loaded.n_iterations == 10 and loaded.rollout_buffer.horizon == 7
    assert len(loaded.past) == 2 and loaded.past[0].alive.shape == loaded.past[1].alive.shape


@every(from_conditions=True)
def test_known_cost_survives(make: Make, tmp_path: Path) -> None:
    make(cost=lambda obs, action, next_obs: (next_obs**2).sum(-1)).save(tmp_path / "model")
    loaded = make.algorithm.load(tmp_path / "model", env=make.fit(PointMass()))
    assert callable(loaded.cost) and loaded.cost(th.zeros(1, 2), th.zeros(1, 1), th.ones(1, 2)) == 2.0
    assert loaded.learn(1).n_iterations == 1


def test_continued_without_its_buffer(folder: Path, tmp_path: Path) -> None:
    """DPI acts by its policy, with the units that it had, and trains again from ``learning_starts`` rows on."""
    (make,) = called(DPI)
    model = make(buffer_size=100_000, learning_starts=2 * ITERATION).learn(4 * ITERATION)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 300_000
    loaded = DPI.load(tmp_path / "model", env=limited(12), preset={"noise_scale": 0.0})
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert len(loaded.memory) == ITERATION and parameters(loaded) == parameters(model)
    data = kept(loaded)[0]
    mean = loaded.policy.export(loaded.ensemble.state_mean, loaded.ensemble.state_std)(data.states)[0]
    np.testing.assert_allclose(data.actions, np.tanh(mean), atol=1e-3)
    before = loaded.ensemble.state_mean.clone()
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert loaded.n_iterations == model.n_iterations + 1 and parameters(loaded) != parameters(model)
    assert float(loaded.ensemble.n_seen) == float(model.ensemble.n_seen) + 2 * ITERATION
    assert not th.equal(before, loaded.ensemble.state_mean)


@pytest.mark.parametrize("keys", [None, ("position", "velocity")])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_replay_buffer_of_other_environments(n_envs: int, keys: tuple[str, ...] | None, tmp_path: Path) -> None:
    policy = "MlpPolicy" if keys is None else "MultiInputPolicy"

    def env(n: int) -> Any:
        return vec_env(n, lambda: limited(12) if keys is None else gym.wrappers.TimeLimit(DictPointMass(keys), 12))

    (make,) = called(DPI)
    model = make(env(2), policy).learn(3 * ITERATION)
    assert isinstance(model.replay_buffer, DictReplayBuffer) == (keys is not None)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(env(n_envs), policy)
    other.load_replay_buffer(tmp_path / "buffer")
    data, ends = kept(other)
    assert (other.replay_buffer.n_envs, len(data)) == (n_envs, 3 * ITERATION)
    same = ~ends[:-1]
    assert same.mean() > 0.8
    np.testing.assert_allclose(data.states[1:][same], data.next_states[:-1][same])
    other.learn(ITERATION, reset_num_timesteps=False)
    assert other.n_iterations > 0, "the warm-up counts loaded rows"
