"""What identifies a run: configuration, versions, provenance."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stored import CONFIG, NoEngine, contents, write

from sb3_dpi import MDGPS
from sb3_dpi.compare import RunConfig, key
from sb3_dpi.compare.key import configuration_key, provenance, run_key, run_versions
from sb3_dpi.compare.record import read_record
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store, version_differences
from sb3_dpi.compare.study import read_runs, write_run
from sb3_dpi.compare.suite import make_configs, suite_from_arguments
from sb3_dpi.zoo import ALGORITHMS, algorithm_class

pytestmark = pytest.mark.usefixtures("clean_caches")


# ---------------------------------------------------------------------- key

CHANGES: dict[str, Any] = {
    "algo": "a2c",
    "env_id": "Pendulum-v0",
    "seed": 2,
    "n_timesteps": 1001,
    "hyperparams": {**CONFIG.hyperparams, "gamma": 0.91},
    "env_kwargs": {"g": 9.0},
    "device": "cuda",
    "eval_every": 300,
    "n_eval_episodes": 11,
    "source": "elsewhere",
    "label": "variant",
    "task": "heavy",
}


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_key_covers_all_but_names(name: str) -> None:
    changed = replace(CONFIG, **{name: CHANGES[name]})
    is_a_name = name in ("source", "label", "task")
    assert (run_key(changed) == run_key(CONFIG)) is is_a_name
    assert (configuration_key(changed) == configuration_key(CONFIG)) is is_a_name


def test_key_covers_what_is_deep_in_the_hyperparameters() -> None:
    deep = {**CONFIG.hyperparams, "policy_kwargs": {"net_arch": [8], "ortho_init": True}}
    more = {**CONFIG.hyperparams, "n_envs": 1}
    assert len({run_key(CONFIG), *(run_key(replace(CONFIG, hyperparams=changed)) for changed in (deep, more))}) == 3
    backwards = {name: CONFIG.hyperparams[name] for name in reversed(CONFIG.hyperparams)}
    assert run_key(replace(CONFIG, hyperparams=backwards)) == run_key(CONFIG)
    # The budget is n_timesteps of the configuration
    assert run_key(replace(CONFIG, hyperparams={**backwards, "n_timesteps": 77})) == run_key(CONFIG)


def test_key_survives_json() -> None:
    config = replace(CONFIG, hyperparams={**CONFIG.hyperparams, "betas": (0.5, 0.9), "inf": float("inf")})
    assert run_key(RunConfig(**json.loads(json.dumps(config.to_dict())))) == run_key(config)


@pytest.mark.parametrize(
    ("algo", "distribution"), [("ppo", "stable_baselines3"), ("sac", "stable_baselines3"), ("trpo", "sb3_contrib")]
)
def test_versions_of_the_algorithms_own_distribution(algo: str, distribution: str, fresh: None) -> None:
    assert set(run_versions(algo)) == {"gymnasium", "mujoco", distribution}


@pytest.mark.parametrize("changed", ["gymnasium", "mujoco", "stable_baselines3", "sb3_contrib", "torch"])
def test_key_covers_versions(changed: str, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    before = {algo: run_key(replace(CONFIG, algo=algo)) for algo in ("ppo", "trpo", "mdgps")}
    alone = configuration_key(CONFIG)
    for cached in (key.run_versions, key._installed):
        cached.cache_clear()
    real = key.version
    monkeypatch.setattr(key, "version", lambda name: "99.9" if name.lower().replace("-", "_") == changed else real(name))
    differ = {algo for algo, old in before.items() if run_key(replace(CONFIG, algo=algo)) != old}
    everyone = {"ppo", "trpo", "mdgps"}
    assert differ == {"gymnasium": everyone, "mujoco": everyone, "stable_baselines3": {"ppo"}, "sb3_contrib": {"trpo"}}.get(
        changed, set()
    )
    assert configuration_key(CONFIG) == alone


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_key_covers_the_version_of_our_algorithms(algo: str, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    algorithm = algorithm_class(algo)
    assert isinstance(vars(algorithm)["algorithm_version"], int), "each says its own"
    configs = [replace(CONFIG, algo=name) for name in (*ALGORITHMS, "ppo")]
    before = [run_key(config) for config in configs]
    present = algorithm.algorithm_version
    assert run_versions(algo) == {**run_versions(algo), "algorithm_version": str(present)}
    assert set(run_versions(algo)) == {"gymnasium", "mujoco", "algorithm_version"}
    monkeypatch.setattr(algorithm, "algorithm_version", present + 1)
    run_versions.cache_clear()
    assert [config.algo for config, old in zip(configs, before, strict=True) if run_key(config) != old] == [algo]


def test_key_covers_the_version_of_what_a_class_of_the_users_is_derived_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_guided_policy_search.py").write_text("from sb3_dpi import MDGPS\n\n\nclass Mine(MDGPS):\n    pass\n")
    found = run_versions("a_guided_policy_search:Mine")
    assert set(found) == {"gymnasium", "mujoco", "a_guided_policy_search", "algorithm_version"}


def test_key_covers_the_file_of_an_algorithm_outside_any_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "an_algorithm_of_mine.py"
    path.write_text("from stable_baselines3 import PPO\n\n\nclass Mine(PPO):\n    pass\n")
    mine = replace(CONFIG, algo="an_algorithm_of_mine:Mine")
    versions, before = run_versions(mine.algo), run_key(mine)
    assert set(versions) == {"gymnasium", "mujoco", "an_algorithm_of_mine"}
    with path.open("a") as opened:
        opened.write("\n# changed\n")
    run_versions.cache_clear()
    assert run_versions(mine.algo) != versions and run_key(mine) != before
    # One that is only imported there belongs to its own distribution
    assert set(run_versions("an_algorithm_of_mine:PPO")) == {"gymnasium", "mujoco", "stable_baselines3"}


def test_provenance() -> None:
    found = provenance()
    assert {"torch", "stable_baselines3", "gymnasium", "numpy"} <= set(found["packages"])
    assert found["python"] and found["platform"]
    json.dumps(found)


def test_differences_in_words() -> None:
    stored = {"gymnasium": "1.2.0", "mujoco": "3.1", "mine": "0123456789abcdef"}
    assert version_differences(stored, dict(stored)) == ""
    present = {"gymnasium": "1.4.0", "mujoco": "3.1", "stable_baselines3": "2.9"}
    assert version_differences(stored, present) == (
        "gymnasium 1.2.0 (here 1.4.0), mine 0123456789ab (here absent), stable_baselines3 absent (here 2.9)"
    )


@pytest.mark.parametrize("name", ["seed", "n_timesteps", "eval_every", "n_eval_episodes"])
def test_numbers_that_make_no_sense(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(CONFIG, **{name: 0})


def test_paths() -> None:
    assert CONFIG.path == "ppo/Pendulum-v1_1"
    assert replace(CONFIG, label="small", seed=7).path == "small/ppo/Pendulum-v1_7"
    assert replace(CONFIG, label="small", task="heavy").path == "heavy/small/ppo/Pendulum-v1_1"
    assert replace(CONFIG, env_id="sb3_dpi/Task-v0").path == "ppo/sb3_dpi-Task-v0_1"
    assert replace(CONFIG, env_id="a_module:Task-v0").path == "ppo/Task-v0_1"
    assert replace(CONFIG, algo="a_module.inner:Mine").path == "mine/Pendulum-v1_1"
    assert str(replace(CONFIG, label="small", task="heavy")) == "small on heavy, seed 1"


# ---------------------------------------------------------------------- versions of our algorithms

RESULTS = Path(__file__).parents[1] / "results"
STORED = RESULTS / "mdgps" / "zoo_entries"


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch, fresh: None) -> Callable[[], None]:
    """MDGPS learns otherwise from now on."""

    def raise_version() -> None:
        monkeypatch.setattr(MDGPS, "algorithm_version", MDGPS.algorithm_version + 1)
        run_versions.cache_clear()

    return raise_version


def _stored(out: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Copy a run of version 1; here are the packages that it ran with."""
    stored = read_runs(STORED)[0][0]
    record, config = stored.record, stored.config
    assert record["versions"]["algorithm_version"] == "1"
    write_run(stored, record, out / config.path)
    real = key.version
    monkeypatch.setattr(key, "version", lambda name: record["versions"].get(name) or real(name))
    for cached in (run_versions, key._installed):
        cached.cache_clear()
    return config


def test_a_run_of_another_version_is_done_again_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Callable[[], None]
) -> None:
    monkeypatch.setattr(MDGPS, "algorithm_version", 1)
    config = _stored(tmp_path, monkeypatch)
    run, kept = read_record(tmp_path / config.path), contents(tmp_path)
    assert run.key == run_key(config)
    store = Store(tmp_path)
    result = store.load(config)
    assert result is not None and not store.warnings and contents(tmp_path) == kept
    # From elsewhere in the folder, and under another name
    named = replace(config, label="named")
    assert Store(tmp_path).load(named) is not None and read_record(tmp_path / named.path).key == run.key
    raised()
    assert Store(tmp_path).load(config) is None
    write(Store(tmp_path), config, 3.0)
    found = Store(tmp_path).load(config)
    assert found is not None and found.versions["algorithm_version"] == "2" and found.curve.results[0, 0] == 3.0
    monkeypatch.setattr(MDGPS, "algorithm_version", 1)
    run_versions.cache_clear()
    again = Store(tmp_path).load(config)
    assert again is not None and again.final_return == result.final_return


def test_baselines_of_another_version_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Callable[[], None]
) -> None:
    monkeypatch.setattr(MDGPS, "algorithm_version", 1)
    config = _stored(tmp_path / "base", monkeypatch)
    store = Store(tmp_path / "out", [tmp_path / "base"])
    result = store.load(config)
    assert result is not None and result.imported and not store.warnings
    raised()
    store = Store(tmp_path / "out", [tmp_path / "base"])
    assert store.load(config) is None
    assert store.warnings == [f"{config}: the stored baseline ran with algorithm_version 1 (here 2); it is passed over"]


def test_stored_runs_are_what_the_same_arguments_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """As ``compare run`` does: from arguments to configurations, and those are found, each in its place."""
    monkeypatch.setattr(MDGPS, "algorithm_version", 1)
    config = _stored(tmp_path, monkeypatch)
    suite = suite_from_arguments(
        ["mdgps"],
        [config.env_id],
        steps=[str(config.n_timesteps)],
        seeds=1,
        first_seed=config.seed,
        eval_every=config.eval_every,
    )
    (asked,) = make_configs(suite)
    assert asked.path == config.path and Store(tmp_path).load(asked) is not None
    with pytest.raises(AssertionError, match="would be done again"):
        run_all([replace(asked, seed=asked.seed + 1)], Store(tmp_path), NoEngine(), Console(quiet=True))
    results, failures = run_all([asked], Store(tmp_path), NoEngine(), Console(quiet=True))
    assert len(results) == 1 and not failures
