"""Saving, loading and going on: everything that was learned survives, and files that cannot be read say so."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, Make, Model, every_algorithm, every_class, small_aggrevated_oc
from dummy_envs import CONDITIONS, HORIZON, ITERATION, PointMass, limited, parameter_sum, small_mdgps, vec_env
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import MDGPS, AggreVaTeDOC
from sb3_dpi.common.saved_models import FORMAT_VERSION

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def trained(make: Make, **kwargs: Any) -> Model:
    options: dict[str, Any] = {"replay": 2, "conditions": "fixed"}
    if make is small_mdgps:
        options.update(step_rule="global", sampling="local")
    return make(**{**options, **kwargs}).learn(3 * ITERATION)


def predictions(model: Model) -> np.ndarray:
    return model.predict(OBSERVATIONS, deterministic=True)[0]


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of a saved file's data."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    data.update(changes)
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_everything_learned_by_mdgps_survives(tmp_path: Path) -> None:
    model = trained(small_mdgps)
    assert isinstance(model, MDGPS)
    model.save(tmp_path / "model")
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert parameter_sum(loaded) == parameter_sum(model)
    assert (loaded.n_iterations, loaded.num_timesteps, loaded._n_updates) == (3, 3 * ITERATION, 3)
    assert loaded.condition_base == model.condition_base
    assert model.eta is not None and np.all(model.eta > 0) and not np.array_equal(model.step_multiplier, [1.0, 1.0])
    np.testing.assert_array_equal(loaded.eta, model.eta)
    np.testing.assert_array_equal(loaded.step_multiplier, model.step_multiplier)
    assert loaded.previous is not None and model.previous is not None
    for part in ("controller", "model"):
        ours, theirs = getattr(loaded.previous, part), getattr(model.previous, part)
        ours, theirs = (getattr(x, "dynamics", x) for x in (ours, theirs))
        for name in vars(theirs):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert len(loaded.past) == 2
    for ours, theirs in zip(loaded.past, model.past, strict=True):
        np.testing.assert_array_equal(ours.states, theirs.states)
        np.testing.assert_array_equal(ours.alive, theirs.alive)


@every_algorithm
def test_learning_goes_on(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=PointMass())
    loaded.learn(2 * ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.n_iterations) == (5 * ITERATION, 5)
    assert parameter_sum(loaded) != parameter_sum(model)
    loaded.learn(ITERATION)
    assert (loaded.num_timesteps, loaded.n_iterations) == (ITERATION, 6), "the policy knows more than one iteration"


def test_a_loaded_model_samples_from_the_saved_controllers(tmp_path: Path) -> None:
    model = trained(small_mdgps, min_std=1e-3)
    assert isinstance(model, MDGPS)
    model.save(tmp_path / "model")
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    loaded.train = lambda: None  # type: ignore[method-assign]
    assert model.previous is not None
    p = model.previous.controller
    loaded.learn(1, reset_num_timesteps=False)
    sampled = loaded.rollout_buffer.trajectories()
    error = sampled.actions - np.einsum("mtux,mntx->mntu", p.K, sampled.states[:, :, :-1]) - p.k[:, None]
    std = np.sqrt(p.cov[:, None, :, 0, 0])
    assert np.abs(error[..., 0] / std).max() < 5.0
    assert 0.5 < np.std(error[..., 0] / std) < 1.5


@every_algorithm
def test_the_same_conditions_after_loading(make: Make, tmp_path: Path) -> None:
    model = trained(make, seed=None)
    model.save(tmp_path / "model")
    env = PointMass()
    loaded = type(model).load(tmp_path / "model", env=env)
    loaded.learn(1, reset_num_timesteps=False)
    base = model.condition_base
    assert base is not None and {seed for seed in env.seeds if seed is not None} >= {base, base + 1}


@every_algorithm
def test_fresh_conditions_go_on(make: Make, tmp_path: Path) -> None:
    """Seeds that were used before do not come again."""
    env = PointMass()
    model = make(env, conditions="fresh").learn(2 * ITERATION)
    model.save(tmp_path / "model")
    later = PointMass()
    type(model).load(tmp_path / "model", env=later).learn(ITERATION, reset_num_timesteps=False)
    assert len({seed for seed in later.seeds if seed and seed > 2**16} - set(env.seeds)) == CONDITIONS


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
def test_number_of_environments_may_change(make: Make, tmp_path: Path, n_envs: int) -> None:
    model = trained(make, env=vec_env(2))
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=vec_env(n_envs))
    assert loaded.n_envs == n_envs and loaded.rollout_buffer.n_envs == n_envs
    loaded.learn(loaded.n_steps * n_envs, reset_num_timesteps=False)
    assert loaded.n_iterations == 4


@every_algorithm
def test_loading_without_environment(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    with pytest.raises((AssertionError, AttributeError)):
        loaded.learn(1)


@every_algorithm
def test_environment_set_after_loading(make: Make, tmp_path: Path) -> None:
    """The horizon that was the time limit's stays what it was."""
    model = trained(make, env=limited(7), horizon=None)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    loaded.set_env(limited(7))
    loaded.learn(28, reset_num_timesteps=False)
    assert loaded.n_iterations == model.n_iterations + 1
    assert loaded.rollout_buffer.horizon == 7
    assert len(loaded.past) == 2 and loaded.past[0].alive.shape == loaded.past[1].alive.shape


@every_algorithm
def test_set_env(make: Make) -> None:
    model = make()
    other = PointMass()
    model.set_env(other)
    model.learn(ITERATION)
    assert other.n_steps == ITERATION
    with pytest.raises((ValueError, AssertionError)):
        model.set_env(vec_env(2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(PointMass(low=-3.0))


@every_algorithm
def test_vec_normalize_survives(make: Make, tmp_path: Path) -> None:
    env = VecNormalize(vec_env(1))
    model = make(env)
    model.learn(2 * ITERATION)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))
    restored = VecNormalize.load(str(tmp_path / "statistics.pkl"), vec_env(1))
    loaded = type(model).load(tmp_path / "model", env=restored)
    assert loaded.get_vec_normalize_env() is restored
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert loaded.n_iterations == 3


@every_algorithm
def test_get_and_set_parameters(make: Make) -> None:
    model, other = trained(make), make(seed=1)
    parameters: Any = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}
    assert not np.allclose(predictions(other), predictions(model))
    other.set_parameters(parameters)
    np.testing.assert_array_equal(predictions(other), predictions(model))
    with pytest.raises(ValueError):
        other.set_parameters({"policy": parameters["policy"]}, exact_match=True)
    zeros: Any = {"policy": {key: th.zeros_like(value) for key, value in parameters["policy"].items()}}
    zeros["policy"]["features_extractor.obs_std"] += 1.0
    for name in ("pi_features_extractor", "vf_features_extractor"):
        zeros["policy"][f"{name}.obs_std"] += 1.0
    other.set_parameters(zeros, exact_match=False)
    np.testing.assert_array_equal(predictions(other), 0.0)


@every_algorithm
def test_saved_files(make: Make, tmp_path: Path) -> None:
    """To a path, a string or a stream; the version is in it, simulators and buffers are not."""
    model = trained(make)
    model.save(str(tmp_path / "text"))
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    np.testing.assert_array_equal(predictions(type(model).load(buffer)), predictions(model))
    data, parameters, _ = load_from_zip_file(tmp_path / "text")
    assert data is not None and data["format_version"] == FORMAT_VERSION and data["algorithm_name"] == type(model).__name__
    assert not {"env", "policy", "rollout_buffer", "_rng", "_state_view", "_logger"} & set(data)
    assert set(parameters) == {"policy", "policy.optimizer"}


def test_save_excludes_and_includes(tmp_path: Path) -> None:
    model = trained(small_mdgps)
    model.save(tmp_path / "model", exclude=["past", "previous"], include=["rollout_buffer"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert data is not None and "past" not in data and "previous" not in data and "rollout_buffer" in data
    loaded = MDGPS.load(tmp_path / "model", env=PointMass())
    assert loaded.past == () and loaded.previous is None
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert loaded.n_iterations == 4


@every_algorithm
def test_custom_objects_of_the_zoo(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.save(tmp_path / "model")
    custom: dict[str, Any] = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = type(model).load(tmp_path / "model", env=PointMass(), custom_objects=custom, seed=3, device="cpu")
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert loaded.learning_rate == 0.0


SCHEDULES = [
    *[(MDGPS, name) for name in ("kl_step", "min_std", "learning_rate")],
    *[(AggreVaTeDOC, name) for name in ("trust_region", "target_kl", "min_std", "learning_rate")],
]


@pytest.mark.parametrize("algorithm, schedule", SCHEDULES)
def test_schedules_survive(tmp_path: Path, algorithm: type[Model], schedule: str) -> None:
    options: dict[str, Any] = {schedule: lambda progress: 0.1 + 0.2 * progress}
    ALGORITHMS[algorithm](**options).learn(ITERATION).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=PointMass())
    value = loaded.lr_schedule(0.5) if schedule == "learning_rate" else getattr(loaded, schedule)(0.5)
    assert value == pytest.approx(0.2)
    loaded.save(tmp_path / "again")
    assert algorithm.load(tmp_path / "again", env=PointMass()).learn(1).n_iterations == 2


@every_algorithm
def test_known_cost_survives(make: Make, tmp_path: Path) -> None:
    model = make(cost=lambda obs, action, next_obs: (next_obs**2).sum(-1)).learn(ITERATION)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=PointMass())
    assert callable(loaded.cost)
    assert loaded.cost(th.zeros(1, 2), th.zeros(1, 1), th.ones(1, 2)) == 2.0
    assert loaded.learn(1).n_iterations == 2


COMMON_CHANGES: list[dict[str, Any]] = [
    {"horizon": HORIZON + 5},
    {"horizon": HORIZON - 5},
    {"n_conditions": CONDITIONS + 1},
    {"n_conditions": 1},
    {"samples_per_condition": 3},
    {"replay": 0},
    {"dynamics": "gmm"},
]
CHANGES: list[tuple[Make, dict[str, Any]]] = [
    *[(make, changes) for changes in COMMON_CHANGES for make in ALGORITHMS.values()],
    (small_mdgps, {"sampling": "global", "conditions": "random"}),
    (small_mdgps, {"imitation_steps": 1}),
    (small_mdgps, {"kl_step": 0.5, "min_std": 0.3}),
    (small_aggrevated_oc, {"conditions": "continue"}),
    (small_aggrevated_oc, {"trust_region": 0.5, "target_kl": 0.1, "min_std": 0.3}),
    (small_aggrevated_oc, {"trust_region": 0.0, "trust": 0.5, "plan_lambda": 0.5}),
]


@pytest.mark.parametrize("make, changes", CHANGES, ids=str)
def test_arguments_may_change_on_loading(tmp_path: Path, make: Make, changes: dict[str, Any]) -> None:
    model = trained(make)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=PointMass(), **changes)
    loaded.learn(2 * loaded.n_steps, reset_num_timesteps=False)
    assert loaded.n_iterations == 5 and np.isfinite(parameter_sum(loaded))
    for name, value in changes.items():
        kept = getattr(loaded, name)
        assert (kept(1.0) if callable(kept) else kept) == value


# ---------------------------------------------------------------------- files that cannot be read


@every_class
def test_file_of_a_subclass(algorithm: type[Model], tmp_path: Path) -> None:
    other = type(f"Other{algorithm.__name__}", (algorithm,), {})
    name = algorithm.__name__
    ALGORITHMS[algorithm]().save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"holds a {name} model: load it with {name}\.load, not Other{name}\.load"):
        other.load(tmp_path / "model")
    other("MlpPolicy", PointMass(), horizon=HORIZON, device="cpu").save(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"holds a Other{name} model: load it with Other{name}\.load"):
        algorithm.load(tmp_path / "other", env=PointMass())
    assert isinstance(other.load(tmp_path / "other", env=PointMass()), other)


@pytest.mark.parametrize("first, second", [(MDGPS, AggreVaTeDOC), (AggreVaTeDOC, MDGPS)])
def test_file_of_one_of_our_algorithms(first: type[Model], second: type[Model], tmp_path: Path) -> None:
    ALGORITHMS[first]().save(tmp_path / "model")
    for env in (None, PointMass()):
        with pytest.raises(ValueError, match=f"holds a {first.__name__} model: load it with {first.__name__}"):
            second.load(tmp_path / "model", env=env)


@every_class
def test_file_of_another_algorithm(algorithm: type[Model], tmp_path: Path) -> None:
    PPO("MlpPolicy", PointMass(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    for env in (None, PointMass()):
        with pytest.raises(ValueError, match=rf"another algorithm|not .*{algorithm.__name__}"):
            algorithm.load(tmp_path / "ppo", env=env)


@every_algorithm
def test_file_of_a_newer_format(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.save(tmp_path / "model.zip")
    rewrite(tmp_path / "model.zip", format_version=FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match=f"format {FORMAT_VERSION + 1}, newer than the format {FORMAT_VERSION}.*upgrade"):
        type(model).load(tmp_path / "model.zip", env=PointMass())
