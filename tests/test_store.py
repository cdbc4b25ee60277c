"""What identifies a run, how finished runs are found again, and that nothing that is finished is lost or believed wrongly."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sb3_dpi import MDGPS
from sb3_dpi.compare import RunConfig, key
from sb3_dpi.compare.key import configuration_key, provenance, run_key, run_versions
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import (
    RECORD,
    SET_ASIDE,
    CorruptRun,
    Store,
    export_runs,
    find_runs,
    make_record,
    read_record,
    read_result,
    version_differences,
)
from sb3_dpi.compare.study import read_runs, write_run
from sb3_dpi.compare.suite import make_configs, suite_from_arguments
from sb3_dpi.compare.types import Timing
from sb3_dpi.zoo import ALGORITHMS, algorithm_class

CONFIG = RunConfig(
    algo="ppo",
    env_id="Pendulum-v1",
    seed=1,
    n_timesteps=1000,
    hyperparams={"policy": "MlpPolicy", "gamma": 0.9, "policy_kwargs": {"net_arch": [8], "ortho_init": False}},
    source="the test",
)
TIMING = Timing(4.0, 3.0, 2.0, 1.0)


@pytest.fixture(autouse=True)
def _caches() -> Iterator[None]:
    yield
    for cached in (key.run_versions, key._installed):
        cached.cache_clear()


@pytest.fixture
def fresh() -> None:
    """Versions are looked at anew."""
    for cached in (key.run_versions, key._installed):
        cached.cache_clear()


def write(store: Store, config: RunConfig, value: float = 0.0) -> Path:
    """Write a finished run as ``run_one`` would."""
    folder = store.unfinished(config)
    settings = folder / config.env_name
    settings.mkdir(parents=True)
    for name in ("config.yml", "args.yml", "vecnormalize.pkl"):
        (settings / name).write_text(f"{config}")
    for name in ("best_model.zip", f"{config.env_name}.zip", "0.monitor.csv", "progress.csv"):
        (folder / name).write_text("x" * 1000)
    steps = 100 * np.arange(1, 4)
    np.savez_compressed(
        folder / "evaluations.npz",
        timesteps=steps,
        results=np.full((3, 2), value) + np.arange(2.0),
        ep_lengths=np.full((3, 2), 200),
        wall_seconds=steps / 10,
    )
    (folder / RECORD).write_text(json.dumps(make_record(config, TIMING, folder)))
    store.commit(config)
    return store.folder(config)


def contents(*folders: Path) -> set[bytes]:
    """All that is in all files."""
    return {path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


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


# ---------------------------------------------------------------------- finished runs


def test_a_finished_run_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load(CONFIG) is None
    folder = write(store, CONFIG, 5.0)
    assert folder == tmp_path / "ppo" / "Pendulum-v1_1" and not store.unfinished(CONFIG).exists()
    for looking in (store, Store(tmp_path)):
        # With the words of the present, not those of then
        result = looking.load(replace(CONFIG, source="other words"))
        assert result is not None and result.config.source == "other words" and not result.imported
        np.testing.assert_array_equal(result.curve.results, [[5.0, 6.0]] * 3)
        np.testing.assert_array_equal(result.curve.timesteps, [100, 200, 300])
        np.testing.assert_array_equal(result.curve.wall_seconds, [10.0, 20.0, 30.0])
        assert result.curve.successes is None and result.timing == TIMING and result.final_return == 5.5
        assert looking.load(replace(CONFIG, seed=2)) is None and looking.load(replace(CONFIG, n_timesteps=999)) is None
        assert not looking.warnings
    assert list(find_runs(tmp_path)) == [folder]


def test_other_versions_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Store(tmp_path), CONFIG)
    run_versions.cache_clear()
    monkeypatch.setattr(key, "version", lambda name: "99.9")
    store = Store(tmp_path)
    assert store.load(CONFIG) is None
    write(store, CONFIG, 1.0)
    assert Store(tmp_path).load(CONFIG).curve.results[0, 0] == 1.0
    monkeypatch.undo()
    run_versions.cache_clear()
    assert Store(tmp_path).load(CONFIG).curve.results[0, 0] == 0.0


def test_half_written_runs_are_done_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # Killed between the record and the move to its place, and what an older hand has left in its place
    write(store, CONFIG).rename(tmp_path / "kept")
    store.unfinished(CONFIG).parent.mkdir(exist_ok=True)
    (tmp_path / "kept").rename(store.unfinished(CONFIG))
    store.folder(CONFIG).mkdir()
    (store.folder(CONFIG) / "left_over").write_text("something")
    store = Store(tmp_path)
    assert store.load(CONFIG) is None and list(find_runs(tmp_path)) == []
    shutil.rmtree(store.unfinished(CONFIG))
    folder = write(store, CONFIG)
    assert not (folder / "left_over").exists() and Store(tmp_path).load(CONFIG) is not None
    assert b"something" in contents(tmp_path / SET_ASIDE)


def test_only_complete_runs_are_put_in_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, CONFIG)
    store.unfinished(CONFIG).mkdir(parents=True)
    (store.unfinished(CONFIG) / "evaluations.npz").write_text("")
    with pytest.raises(CorruptRun, match=RECORD):
        store.commit(CONFIG)
    assert Store(tmp_path).load(CONFIG) is not None


def _damage(name: str, folder: Path) -> None:
    path = folder / ("run.json" if name.startswith(("record", "hash")) else "evaluations.npz")
    if name in ("record truncated", "evaluations truncated"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "record empty":
        path.write_bytes(b"")
    elif name == "record is a list":
        path.write_text("[]")
    elif name == "record is not text":
        path.write_bytes(b"\xff\xfe\x00")
    elif name == "record without a key":
        record = json.loads(path.read_text())
        del record["timing"]["cpu_seconds"]
        path.write_text(json.dumps(record))
    elif name == "record of the future":
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    elif name == "hash differs":
        path.write_text(json.dumps({**json.loads(path.read_text()), "evaluations_sha256": "0" * 64}))
    elif name == "evaluations replaced":
        np.savez(path, timesteps=[1], results=[[1.0]], ep_lengths=[[1]])
    elif name == "evaluations gone":
        path.unlink()


DAMAGES = [
    *("record truncated", "record empty", "record is a list", "record is not text", "record without a key"),
    *("record of the future", "hash differs", "evaluations truncated", "evaluations replaced", "evaluations gone"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_read_is_named_set_aside_and_done_again(damage: str, tmp_path: Path) -> None:
    folder = write(Store(tmp_path), CONFIG)
    other = write(Store(tmp_path), replace(CONFIG, seed=2), 3.0)
    _damage(damage, folder)
    before = contents(tmp_path)
    store = Store(tmp_path)
    assert store.load(CONFIG) is None
    (warning,) = store.warnings
    name = "run.json" if damage.startswith("record") else "evaluations.npz"
    assert str(folder / name) in warning
    (aside,) = (tmp_path / SET_ASIDE / "ppo").iterdir()
    assert str(aside) in warning and not folder.exists() and contents(tmp_path) == before
    assert store.load(CONFIG) is None and len(store.warnings) == 1
    write(store, CONFIG, 7.0)
    store = Store(tmp_path)
    assert store.load(CONFIG).curve.results[0, 0] == 7.0 and not store.warnings
    assert list(find_runs(tmp_path)) == [folder, other] and before <= contents(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whoever_reads_a_damaged_run_is_told_the_file(damage: str, tmp_path: Path) -> None:
    folder = write(Store(tmp_path), CONFIG)
    _damage(damage, folder)
    with pytest.raises(CorruptRun, match=str(folder)):
        read_result(read_record(folder))


def test_a_run_of_another_configuration_is_set_aside_and_comes_back(tmp_path: Path) -> None:
    longer = replace(CONFIG, n_timesteps=2000)
    first = write(Store(tmp_path), CONFIG, 1.0)
    before = contents(tmp_path)
    store = Store(tmp_path)
    assert store.load(longer) is None and first.is_dir()
    assert write(store, longer, 2.0) == first
    # Within the same comparison, and in a later one
    for looking in (store, Store(tmp_path), Store(tmp_path)):
        for config, expected in ((CONFIG, 1.0), (longer, 2.0)):
            result = looking.load(config)
            assert result is not None and result.curve.results[0, 0] == expected and result.config == config
            assert list(find_runs(tmp_path)) == [first]
            assert read_record(first).config == config
    assert before <= contents(tmp_path)


def test_the_same_run_under_another_name(tmp_path: Path) -> None:
    folder = write(Store(tmp_path), CONFIG, 1.0)
    variant = replace(CONFIG, label="variant", task="easy", source="elsewhere")
    result = Store(tmp_path).load(variant)
    assert result is not None and result.config == variant and result.timing == TIMING
    copy = tmp_path / variant.path
    assert list(find_runs(tmp_path)) == sorted([folder, copy])
    assert read_record(copy).config == variant and read_record(folder).config == CONFIG
    assert read_result(read_record(copy)).curve.results[0, 0] == 1.0
    assert (copy / "best_model.zip").is_file()


def test_folders_of_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    configs = [replace(CONFIG, seed=seed, label=label) for label in ("", "b", "a") for seed in (2, 10, 1)]
    folders = [write(store, config) for config in configs]
    store.set_aside(folders[0])
    store.unfinished(configs[0]).mkdir()
    (store.unfinished(configs[0]) / RECORD).write_text("{}")
    assert list(find_runs(tmp_path)) == sorted(folders[1:])
    assert list(find_runs(tmp_path / "nowhere")) == []
    assert len({store.unfinished(config) for config in configs} | {store.log(config) for config in configs}) == 18


def test_several_runs_set_aside_from_one_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asides = [store.set_aside(write(store, CONFIG, float(value))) for value in range(3)]
    assert len(set(asides)) == 3
    assert [read_result(read_record(aside)).curve.results[0, 0] for aside in asides] == [0.0, 1.0, 2.0]


# ---------------------------------------------------------------------- baselines


def _with_version(folder: Path, **versions: str) -> None:
    """Make it a run of other versions."""
    record = json.loads((folder / RECORD).read_text())
    record["versions"] = {**record["versions"], **versions}
    record["key"] = "of other versions"
    (folder / RECORD).write_text(json.dumps(record))


def test_baselines_match_by_configuration_and_seed(tmp_path: Path) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    _with_version(write(Store(base), CONFIG, 4.0), gymnasium="0.1")
    before = contents(base)
    assert Store(out).load(CONFIG) is None
    store = Store(out, [base])
    for other in (replace(CONFIG, seed=2), replace(CONFIG, n_timesteps=2), replace(CONFIG, algo="a2c")):
        assert store.load(other) is None
    assert not store.warnings and not out.exists()
    result = store.load(replace(CONFIG, label="variant"))
    assert result is not None and result.imported and result.curve.results[0, 0] == 4.0 and result.config.label == "variant"
    (warning,) = store.warnings
    assert "gymnasium 0.1" in warning and "variant on Pendulum-v1, seed 1" in warning and "mujoco" not in warning
    assert result.versions["gymnasium"] == "0.1"
    # From now on without the baselines, and still not as a run of here
    store = Store(out)
    again = store.load(replace(CONFIG, label="variant"))
    assert again is not None and again.imported and len(store.warnings) == 1
    assert read_record(out / "variant" / CONFIG.path).imported
    assert contents(base) == before and len(list(find_runs(base))) == 1


def test_baselines_of_the_same_versions_come_without_a_warning(tmp_path: Path) -> None:
    write(Store(tmp_path / "base"), CONFIG)
    store = Store(tmp_path / "out", [tmp_path / "nowhere", tmp_path / "base"])
    result = store.load(CONFIG)
    assert result is not None and result.imported and not store.warnings


def test_own_runs_come_before_baselines(tmp_path: Path) -> None:
    write(Store(tmp_path / "base"), CONFIG, 1.0)
    write(Store(tmp_path / "out"), CONFIG, 2.0)
    result = Store(tmp_path / "out", [tmp_path / "base"]).load(CONFIG)
    assert result is not None and not result.imported and result.curve.results[0, 0] == 2.0


def test_a_run_replaces_an_imported_one_of_another_configuration(tmp_path: Path) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    _with_version(write(Store(base), CONFIG, 1.0), mujoco="0.1")
    longer = replace(CONFIG, n_timesteps=2000)
    assert Store(out, [base]).load(CONFIG) is not None
    store = Store(out, [base])
    assert store.load(longer) is None
    write(store, longer, 2.0)
    for _ in range(2):
        store = Store(out, [base])
        imported, own = store.load(CONFIG), store.load(longer)
        assert imported is not None and imported.imported and imported.curve.results[0, 0] == 1.0
        assert own is not None and not own.imported and own.curve.results[0, 0] == 2.0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_baseline_is_named_and_passed_over(damage: str, tmp_path: Path) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    damaged = write(Store(base), CONFIG, 1.0)
    write(Store(base), replace(CONFIG, seed=2), 2.0)
    _damage(damage, damaged)
    before = contents(base)
    store = Store(out, [base])
    assert store.load(CONFIG) is None
    (warning,) = store.warnings
    assert str(damaged) in warning
    assert store.load(replace(CONFIG, seed=2)) is not None
    assert contents(base) == before and damaged.is_dir()


def test_the_second_baseline_stands_in_for_a_damaged_first(tmp_path: Path) -> None:
    bases = [tmp_path / "first", tmp_path / "second"]
    for value, base in enumerate(bases):
        write(Store(base), CONFIG, float(value))
    _damage("record truncated", bases[0] / CONFIG.path)
    result = Store(tmp_path / "out", bases).load(CONFIG)
    assert result is not None and result.curve.results[0, 0] == 1.0


def test_two_comparisons_read_the_same_baseline_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    write(Store(base), CONFIG, 4.0)
    copytree, found = shutil.copytree, []
    second = threading.Thread(target=lambda: found.append(Store(out, [base]).load(CONFIG)), daemon=True)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        done = copytree(*args, **kwargs)
        if threading.current_thread() is not second and second.ident is None:
            second.start()
            second.join(1.0)
        return done

    monkeypatch.setattr(shutil, "copytree", interrupted)
    found.append(Store(out, [base]).load(CONFIG))
    second.join(10.0)
    assert [result.curve.results[0, 0] for result in found] == [4.0, 4.0]
    assert list(find_runs(out)) == [out / CONFIG.path] and not (out / SET_ASIDE).exists()


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
    """Copy a run whose record names a hash of sources; here are the packages that it ran with."""
    stored = next(run for run in read_runs(STORED)[0] if "sources" in run.record["versions"])
    record, config = stored.record, stored.config
    assert "algorithm_version" not in record["versions"]
    if stored.table:
        write_run(stored, record, out / config.path)
    else:
        shutil.copytree(stored.folder, out / config.path)
    real = key.version
    monkeypatch.setattr(key, "version", lambda name: record["versions"].get(name) or real(name))
    for cached in (run_versions, key._installed):
        cached.cache_clear()
    return config


def test_a_record_that_names_sources_counts_as_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Callable[[], None]
) -> None:
    monkeypatch.setattr(MDGPS, "algorithm_version", 1)
    config = _stored(tmp_path, monkeypatch)
    run, kept = read_record(tmp_path / config.path), contents(tmp_path)
    assert run.versions["algorithm_version"] == "1" and "sources" not in run.versions and run.key == run_key(config)
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
        n_eval_episodes=config.n_eval_episodes,
    )
    (asked,) = make_configs(suite)
    assert asked.path == config.path and Store(tmp_path).load(asked) is not None
    with pytest.raises(AssertionError, match="would be done again"):
        run_all([replace(asked, seed=asked.seed + 1)], Store(tmp_path), NoEngine(), Console(quiet=True))
    results, failures = run_all([asked], Store(tmp_path), NoEngine(), Console(quiet=True))
    assert len(results) == 1 and not failures


class NoEngine:
    """Runs nothing."""

    def run(self, configs: Any, store: Store, update: Any) -> Any:
        raise AssertionError(f"would be done again: {configs}")


# ---------------------------------------------------------------------- export


def test_export(tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "target"
    store = Store(out)
    configs = [replace(CONFIG, seed=seed, label=label) for seed in (1, 2) for label in ("", "variant")]
    configs[1::2] = [replace(config, eval_every=100) for config in configs[1::2]]
    for number, config in enumerate(configs):
        write(store, config, float(number))
    store.set_aside(write(store, replace(CONFIG, seed=3)))
    assert export_runs(out, target) == 4
    assert sorted(path.name for path in target.rglob("*")) == ["study.csv", "study.npz"]
    runs, problems = read_runs(target)
    assert not problems and [run.folder for run in runs] == sorted(target / config.path for config in configs)
    found = {str(run.config): read_result(run).curve.results[0, 0] for run in runs}
    assert found == {str(config): float(number) for number, config in enumerate(configs)}
    # As baselines of another comparison
    result = Store(tmp_path / "next", [target]).load(configs[3])
    assert result is not None and result.imported and result.curve.results[0, 0] == 3.0
    # Once more, with a newer run in the place of one, and beside what is there
    longer = replace(CONFIG, n_timesteps=2000)
    write(store, longer, 9.0)
    (target / "README.md").write_text("what these are")
    assert export_runs(out, target) == 4
    runs, _ = read_runs(target)
    assert [read_result(run).curve.results[0, 0] for run in runs if run.config == longer] == [9.0]
    assert (target / "README.md").is_file() and len(runs) == 4
    assert export_runs(tmp_path / "nowhere", tmp_path / "empty") == 0


def test_a_damaged_run_is_not_exported(tmp_path: Path) -> None:
    folder = write(Store(tmp_path / "out"), CONFIG)
    _damage("evaluations truncated", folder)
    with pytest.raises(CorruptRun, match=str(folder)):
        export_runs(tmp_path / "out", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions mean nothing here")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write(Store(tmp_path / "out"), CONFIG)
    finally:
        tmp_path.chmod(0o700)
