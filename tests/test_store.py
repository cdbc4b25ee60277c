"""How finished runs are found again, and that nothing that is finished is lost or believed wrongly."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import CONFIG, TIMING, contents, harm, write

from sb3_dpi.compare import key
from sb3_dpi.compare.key import run_versions
from sb3_dpi.compare.record import RECORD, CorruptRun, read_record, read_result
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import SET_ASIDE, export_runs, find_runs, read_runs

pytestmark = pytest.mark.usefixtures("clean_caches")


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


DAMAGES = [
    *("record truncated", "record empty", "record is a list", "record is not text", "record without a key"),
    *("record of the future", "hash differs", "evaluations truncated", "evaluations replaced", "evaluations gone"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_read_is_named_set_aside_and_done_again(damage: str, tmp_path: Path) -> None:
    folder = write(Store(tmp_path), CONFIG)
    other = write(Store(tmp_path), replace(CONFIG, seed=2), 3.0)
    harm(damage, folder)
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
    harm(damage, folder)
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
    harm(damage, damaged)
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
    harm("record truncated", bases[0] / CONFIG.path)
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
    # Once more, beside what is there; not with another run in the place of one
    (target / "README.md").write_text("what these are")
    assert export_runs(out, target) == 4
    write(store, replace(CONFIG, n_timesteps=2000), 9.0)
    before = contents(target)
    with pytest.raises(ValueError, match="are two different runs; copy them to folders of their own"):
        export_runs(out, target)
    assert contents(target) == before and (target / "README.md").is_file()
    assert export_runs(tmp_path / "nowhere", tmp_path / "empty") == 0


def test_a_damaged_run_is_not_exported(tmp_path: Path) -> None:
    folder = write(Store(tmp_path / "out"), CONFIG)
    harm("evaluations truncated", folder)
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
