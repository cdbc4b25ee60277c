"""A study as a table: nothing is lost, whenever packing is killed, and runs are found in it as in their folders."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from reports import learning, rows
from reports import write_run as write_report_run
from rich.console import Console
from stored import CONFIG, NoEngine, contents, harm, write

from sb3_dpi.compare import __main__ as command_line
from sb3_dpi.compare import load_study
from sb3_dpi.compare.record import CorruptRun, StoredRun, read_arrays
from sb3_dpi.compare.report import write_report
from sb3_dpi.compare.runs import Reader
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import (
    SET_ASIDE,
    archive,
    export_runs,
    find_runs,
    find_without_result,
    pack,
    read_runs,
    read_table,
    studies,
)

CONFIGS = [replace(CONFIG, seed=seed, label=label) for label in ("", "b") for seed in (1, 2)]
CONFIGS[2:] = [replace(config, eval_every=100, hyperparams={"a": 1e6, "b": [1.0, None]}) for config in CONFIGS[2:]]


def exported(out: Path, configs: list[Any] = CONFIGS) -> Path:
    """Write runs without models and logs."""
    for number, config in enumerate(configs):
        folder = write(Store(out), config, float(number))
        for path in folder.glob("*"):
            if path.name not in ("run.json", "evaluations.npz"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out / ".unfinished")
    (out / "tasks.yml").write_text("Pendulum-v1: {thresholds: [0.4]}")
    return out


def facts(out: Path) -> dict[str, Any]:
    """All that a folder says of its runs."""
    runs, problems = read_runs(out)
    assert not problems
    found = {}
    for run in runs:
        arrays = {name: (array.dtype.str, array.tolist()) for name, array in read_arrays(run).items()}
        found[run.folder.relative_to(out).as_posix()] = (json.dumps(run.record, sort_keys=True), run.key, arrays)
    assert len(found) == len(runs)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_packed_study_says_what_its_folders_said(tmp_path: Path) -> None:
    out = exported(tmp_path)
    before = facts(out)
    assert len(names(out)) == 4 * 2 + 1 and pack(out) == 4
    assert names(out) == ["study.csv", "study.npz", "tasks.yml"] and facts(out) == before
    table = (out / "study.csv").read_bytes(), (out / "study.npz").read_bytes()
    assert pack(out) == 4 and facts(out) == before
    assert ((out / "study.csv").read_bytes(), (out / "study.npz").read_bytes()) == table
    with (out / "study.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["label"] == "b")
    assert (row["algo"], row["seed"], row["cpu_seconds"], row["evaluation_cpu_seconds"]) == ("ppo", "1", "3.0", "1.0")
    assert json.loads(row["hyperparams"]) == {"a": 1e6, "b": [1.0, None]} and row["algorithm_version"] == ""


def test_a_report_of_folders_and_of_a_table_has_the_same_numbers(tmp_path: Path, no_figures: None) -> None:
    tasks = learning(tmp_path / "old", n_tasks=2, algos=("mdgps", "trpo"), seeds=2, evaluations=12, episodes=3)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert pack(tmp_path / "new") == 8 and not list(find_runs(tmp_path / "new"))
    for name in ("old", "new"):
        write_report(tmp_path / name, tasks, to=tmp_path / f"report_{name}")
    reports = [
        {path.name: path.read_bytes() for path in (tmp_path / f"report_{name}").rglob("*.*")} for name in ("old", "new")
    ]
    assert reports[0] == reports[1] and len(reports[0]) > 8


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed before its n-th change of a file system; returns whether it was."""
    child = os.fork()
    if not child:
        left = number

        def kill(event: str, _arguments: object) -> None:
            nonlocal left
            left -= event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir")
            if left < 0:
                os._exit(9)

        sys.addaudithook(kill)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("again", [False, True])
def test_packing_loses_nothing_whenever_it_is_killed(again: bool, tmp_path: Path) -> None:
    original = exported(tmp_path / "original", [CONFIGS[0], CONFIGS[3]])
    if again:
        # A table is there, and two newer runs, one of them in the place of a row
        pack(original)
        exported(tmp_path / "more", [replace(CONFIG, seed=7), replace(CONFIGS[0], n_timesteps=2000)])
        shutil.copytree(tmp_path / "more" / "ppo", original / "ppo")
    before, moments = facts(original), 0
    for moments in range(200):
        out = tmp_path / str(moments)
        shutil.copytree(original, out)
        was_killed = killed_at(moments, lambda out=out: pack(out))  # type: ignore[misc]
        assert facts(out) == before, moments
        assert pack(out) == len(before) and facts(out) == before, moments
        assert [name for name in names(out) if not name.startswith("set_aside")] == ["study.csv", "study.npz", "tasks.yml"]
        if again:
            # The row whose place was taken is not forgotten
            assert Store(out).load(CONFIGS[0]) is not None, moments
        if not was_killed:
            break
    assert 10 < moments < 199


def test_models_stay_where_they_are(tmp_path: Path) -> None:
    folder = write(Store(tmp_path), CONFIG, 1.0)
    kept, before = set(names(folder)) - {"run.json"}, facts(tmp_path)
    pack(tmp_path)
    assert set(names(folder)) == kept and {"best_model.zip", "evaluations.npz"} < kept and facts(tmp_path) == before
    (folder.with_name("Pendulum-v1_1.log")).touch()
    assert list(find_without_result(tmp_path)) == [], "its result is in the table"


def test_evaluations_that_the_table_does_not_have_stay(tmp_path: Path) -> None:
    out = exported(tmp_path, CONFIGS[:1])
    pack(out)
    (out / CONFIG.path).mkdir(parents=True)
    (out / CONFIG.path / "evaluations.npz").write_bytes(b"of another run")
    pack(out)
    assert (out / CONFIG.path / "evaluations.npz").read_bytes() == b"of another run"


def test_a_packed_study_is_run_no_more(tmp_path: Path) -> None:
    out = exported(tmp_path / "out")
    pack(out)
    for engine in (Store(out), Store(tmp_path / "other", [out])):
        results, failures = run_all(CONFIGS, engine, NoEngine(), Console(quiet=True))
        assert not failures and [result.curve.results[0, 0] for result in results] == [0.0, 1.0, 2.0, 3.0]
        assert [result.config for result in results] == CONFIGS
    assert [result.imported for result in results] == [True] * 4
    assert names(out) == ["study.csv", "study.npz", "tasks.yml"], "reading leaves it as it was"
    # From now on without the baselines
    assert Store(tmp_path / "other").load(CONFIGS[0]) is not None
    with pytest.raises(AssertionError, match="would be done again"):
        run_all([replace(CONFIG, seed=3)], Store(out), NoEngine(), Console(quiet=True))


def test_a_run_of_another_configuration_takes_the_place_of_a_row_and_gives_it_back(tmp_path: Path) -> None:
    out, longer = exported(tmp_path), replace(CONFIG, n_timesteps=2000)
    pack(out)
    store = Store(out)
    assert store.load(longer) is None
    write(store, longer, 9.0)
    assert {run.config.n_timesteps for run in read_runs(out)[0] if run.folder == out / CONFIG.path} == {2000}
    for packed in (False, True):
        if packed:
            pack(out)
        for config, value in ((CONFIG, 0.0), (longer, 9.0), (replace(CONFIG, label="named"), 0.0)):
            result = Store(out).load(config)
            assert result is not None and result.curve.results[0, 0] == value and result.config == config
    assert (out / SET_ASIDE).is_dir() and len(read_runs(out)[0]) == 5


def test_only_whole_studies_are_packed(tmp_path: Path) -> None:
    out = exported(tmp_path / "out")
    before = contents(out)
    (out / "ppo" / "Pendulum-v1_9.log").touch()
    with pytest.raises(ValueError, match=r"no result of ppo/Pendulum-v1_9\.log; finish these runs"):
        pack(out)
    (out / "ppo" / "Pendulum-v1_9.log").unlink()
    with Store(out).lock(CONFIG), pytest.raises(ValueError, match="runs still go on here"):
        pack(out)
    harm("evaluations truncated", out / CONFIG.path)
    with pytest.raises(CorruptRun, match=r"evaluations\.npz"):
        pack(out)
    assert (
        len(list(find_runs(out))) == 4 and not (out / "study.csv").exists() and len(before & contents(out)) == len(before) - 1
    )
    with pytest.raises(ValueError, match="no finished runs to pack"):
        pack(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["table cut", "table without a column", "no curves", "curves cut", "other curves"])
def test_a_damaged_table_is_named_and_nothing_is_run_again(damage: str, tmp_path: Path) -> None:
    out = exported(tmp_path)
    pack(out)
    table, curves = out / "study.csv", out / "study.npz"
    if damage == "table cut":
        table.write_bytes(table.read_bytes()[:1100])
    elif damage == "table without a column":
        table.write_text(table.read_text().replace("cpu_seconds", "seconds"))
    elif damage == "no curves":
        curves.unlink()
    elif damage == "curves cut":
        curves.write_bytes(curves.read_bytes()[: curves.stat().st_size // 2])
    else:
        np.savez_compressed(curves, **{f"{row.curve}/results": np.ones((3, 2)) for row in read_table(out)})
    name = table.name if damage.startswith("table") else curves.name
    with pytest.raises(CorruptRun, match=name):
        run_all(CONFIGS, Store(out), NoEngine(), Console(quiet=True))
    with pytest.raises(CorruptRun, match=name):
        load_study(out)
    if damage == "table cut":  # the rows before its end are whole
        (problem,) = Reader([out]).problems
    else:
        with pytest.raises(ValueError, match=rf"Corrupt, left out: study\.{name[-3:]}") as caught:
            write_report(out, {}, to=tmp_path / "report")
        problem = str(caught.value)
    assert f"Corrupt, left out: study.{name[-3:]}" in problem


@pytest.mark.parametrize("damage", ["cell", "quote", "bytes", "curve"])
def test_damage_of_one_run_loses_that_one_alone(damage: str, tmp_path: Path) -> None:
    out = exported(tmp_path)
    pack(out)
    table, curves, (lost, *_) = out / "study.csv", out / "study.npz", read_table(out)
    head, first, *others = table.read_bytes().splitlines(keepends=True)
    harmed = {
        "cell": first.replace(b",1,", b",{1,"),
        "quote": b'"' + first,
        "bytes": first.replace(b"the test", b"the \xffest"),
    }
    table.write_bytes(head + harmed.get(damage, first) + b"".join(others))
    if damage == "curve":
        with ZipFile(curves) as archived:
            place = archived.getinfo(f"{lost.curve}/results.npy").header_offset
        content = bytearray(curves.read_bytes())
        content[place + 130] ^= 1
        curves.write_bytes(content)
    reader = Reader([out])
    assert len(reader.runs) == 3 and len(reader.problems) == 1, reader.problems
    said = {"quote": "study.csv: cannot be read up to line 2", "curve": str(lost.config)}.get(damage, lost.config.path)
    assert reader.problems[0].startswith("Corrupt, left out: study.") and said in reader.problems[0]
    with pytest.raises(CorruptRun):  # it might be done again
        Store(out).load(lost.config)


def test_load_study(tmp_path: Path) -> None:
    tmp_path /= "inner"
    write_report_run(tmp_path, "ppo", "A-v0", 1, (10, 20), [[1.25, 2.0], [3.0, 0.1 + 0.2]], label="small", task="variant")
    write_report_run(tmp_path, "trpo", "A-v0", 2, (10,), [[4.0, 5.0]])
    folders = load_study(tmp_path)
    assert list(folders.columns) == ["algorithm", "task", "seed", "step", "episode", "return", "length"]
    assert folders[folders["task"] == "variant"].iloc[3].tolist() == ["small", "variant", 1, 20, 1, 0.1 + 0.2, 50]
    assert folders.groupby(["algorithm", "task", "step"])["return"].mean()["trpo", "A-v0", 10] == 4.5
    pack(tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "study.csv", tmp_path.parent):
        assert (
            load_study(path).sort_values(["task", "step", "episode"]).equals(folders.sort_values(["task", "step", "episode"]))
        )
    with pytest.raises(ValueError, match="no finished runs"):
        load_study(tmp_path / "nowhere")


def test_several_studies_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("few", 1.0), ("inner/many", 2.0)):
        write_report_run(tmp_path / name, "ppo", "A-v0", 1, (10,), [[value, value]])
    for study in (tmp_path / "few", tmp_path / "inner/many"):  # as folders, then one packed, then both
        found = load_study(tmp_path)
        assert found[["study", "return"]].values.tolist() == [*[["few", 1.0]] * 2, *[["inner/many", 2.0]] * 2]
        assert found.columns[0] == "study" and "study" not in load_study(tmp_path / "inner")
        pack(study)
    assert load_study(tmp_path).equals(found)
    write_report_run(tmp_path, "trpo", "A-v0", 1, (10,), [[3.0]])
    assert sorted(set(load_study(tmp_path)["study"])) == [".", "few", "inner/many"]


def test_success_is_there_where_it_is_told(tmp_path: Path) -> None:
    folder = write_report_run(tmp_path, "ppo", "A-v0", 1, (10,), [[1.0, 2.0]])
    write_report_run(tmp_path, "ppo", "A-v0", 2, (10,), [[1.0, 2.0]])
    with np.load(folder / "evaluations.npz") as stored:
        np.savez(folder / "evaluations.npz", **stored, successes=[[True, False]])
    record = json.loads((folder / "run.json").read_text())
    record["evaluations_sha256"] = sha256((folder / "evaluations.npz").read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(record))
    assert load_study(tmp_path)["success"].fillna(-1).tolist() == [1, 0, -1, -1]
    write_report(tmp_path, {}, to=tmp_path / "report")
    assert [row["success"] for row in rows(tmp_path / "report/evaluations.csv")] == ["1", "0", "", ""]


def test_an_archive_has_all_that_was_moved_into_it(tmp_path: Path) -> None:
    for name in ("former/one", "former/two", "kept"):
        exported(tmp_path / name)
    (tmp_path / "trials.csv").write_text("a,b\n1,2\n")
    before, target = facts(tmp_path / "former/one"), tmp_path / "2026.zip"
    assert studies(tmp_path) == [tmp_path / "former/one", tmp_path / "former/two", tmp_path / "kept"]
    for out in studies(tmp_path):
        pack(out)
    assert archive([tmp_path / "former/one", tmp_path / "trials.csv"], target) == 4
    assert archive([tmp_path / "former"], target) == 3
    assert names(tmp_path) == ["2026.zip", *(f"kept/{name}" for name in ("study.csv", "study.npz", "tasks.yml"))]
    with ZipFile(target) as archived:
        assert archived.testzip() is None
        archived.extractall(tmp_path)
    assert facts(tmp_path / "former/one") == before == facts(tmp_path / "former/two")
    assert (tmp_path / "trials.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("place", ["study/old.zip", "study/in/old.zip", "link/old.zip", "study", "lower/old.zip", "file"])
def test_nothing_is_packed_for_an_archive_that_cannot_be(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = exported(tmp_path / "study")
    (tmp_path / "link").symlink_to(study)
    (tmp_path / "lower").mkdir()
    (tmp_path / "file").write_text("no archive")
    before = contents(tmp_path)
    monkeypatch.chdir(study)
    for arguments in ((str(study), str(tmp_path / place)), (".", os.path.relpath(tmp_path / place))):
        with pytest.raises(SystemExit):
            command_line.main(["pack", "--out", arguments[0], "--archive", arguments[1]])
        assert f"--archive {arguments[1]}: " in capsys.readouterr().err and contents(tmp_path) == before


def test_an_archive_takes_what_is_in_it_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = exported(tmp_path / "study"), exported(tmp_path / "other")
    (study / "link").symlink_to(other)
    (study / "link.yml").symlink_to(other / "tasks.yml")
    before = contents(other)
    assert archive([study, study / "ppo"], tmp_path / "old.zip") == 9
    assert contents(other) == before and sorted(path.name for path in study.iterdir()) == ["link", "link.yml"]
    (study / "tasks.yml").write_text("others of the same name")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"has another study/tasks\.yml; choose another name"):
        archive([study], tmp_path / "old.zip")
    with pytest.raises(ValueError, match="is a link"):
        archive([study / "link"], study / "old.zip")
    assert contents(tmp_path) == before
    monkeypatch.chdir(other)
    assert archive([Path()], Path("../new.zip")) == 9 and not other.exists()


def test_nothing_is_written_into_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = exported(tmp_path / "all" / "study")
    (tmp_path / "link").symlink_to(study)
    (study / ".notes.tmp").write_text("not the lab's")
    before = contents(tmp_path)
    for to in (study, study / "in", tmp_path / "link" / "in", tmp_path / "all"):
        for command in (["export", "--out", str(study), "--to", str(to)],) + (
            (["run", "--algo", "ppo", "--env", "Pendulum-v1", "--baselines", str(study), "--out", str(to)],)
            if to.name != "all"
            else ()
        ):
            with pytest.raises(SystemExit):
                command_line.main(command)
            assert "which is read; choose another folder" in capsys.readouterr().err and contents(tmp_path) == before
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "ppo").symlink_to(study / "ppo")
    with pytest.raises(ValueError, match="is a link; pack what it names by itself"):
        pack(tmp_path / "linked")
    pack(study)
    assert (study / ".notes.tmp").is_file()


def test_linked_studies_are_read_once(tmp_path: Path) -> None:
    study = exported(tmp_path / "one")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(study)
    (study / "back").symlink_to(tmp_path / "links")
    assert len(read_runs(tmp_path / "links")[0]) == 4 == len(read_runs(tmp_path)[0])
    assert studies(tmp_path / "links") == [tmp_path / "links" / "a"]


def test_an_export_of_two_studies_keeps_all_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path / "all/one", CONFIGS[:1])
    exported(tmp_path / "all/two", [replace(CONFIG, n_timesteps=2000)])
    export = ["export", "--out", str(tmp_path / "all"), "--to", str(tmp_path / "to")]
    with pytest.raises(SystemExit):
        command_line.main(export)
    assert "are two different runs; copy them to folders" in capsys.readouterr().err and not (tmp_path / "to").exists()
    shutil.rmtree(tmp_path / "all/two")
    exported(tmp_path / "all/two", CONFIGS[1:])
    assert command_line.main(export) == 0 and "4 runs copied" in capsys.readouterr().out
    assert len(read_table(tmp_path / "to")) == 4 and "0.4" in (tmp_path / "to/tasks.yml").read_text()


def test_runs_by_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        write_report_run(tmp_path / name, "ppo", "A-v0", 1, (10,), [[value, value]])
    for name, words in (("same", "The same run twice"), ("other", "Two different runs by the same name")):
        (problem,) = Reader([tmp_path / "one", tmp_path / name]).problems
        assert problem.startswith(f"{words}, left out: ")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, to = exported(tmp_path / "a/one"), exported(tmp_path / "a/two", CONFIGS[:1]), tmp_path / "report"
    assert command_line.main(["pack", "--out", str(tmp_path / "a")]) == 0
    assert f"{one}: 4 runs in {one / 'study.csv'}" in capsys.readouterr().out.replace("\n", "")
    before = contents(tmp_path)
    assert command_line.main(["report", "--out", str(one), str(two), "--to", str(to)]) == 0
    assert contents(one, two) == before and "steps to 0.4 (seeds)" in (to / "report.md").read_text()
    for inside in (one, one / "report"):
        with pytest.raises(SystemExit):
            command_line.main(["report", "--out", str(two), str(one), "--to", str(inside)])
        assert f"--to {inside}: is in {one}, which is read; choose another folder" in capsys.readouterr().err
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "one.csv").write_text("a,b\n1,2\n")
    moved = ["pack", "--out", str(two), str(tmp_path / "trials"), "--archive", str(tmp_path / "2026.zip")]
    assert command_line.main(moved) == 0 and "4 files moved" in capsys.readouterr().out
    assert not two.exists() and not (tmp_path / "trials").exists() and (tmp_path / "2026.zip").is_file()


def test_reading_needs_no_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read tables, and have no time to import it."""
    pack(exported(tmp_path))
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert Store(tmp_path).load(CONFIG) is not None


def test_an_export_joins_a_table(tmp_path: Path) -> None:
    exported(tmp_path / "one", CONFIGS[:2])
    exported(tmp_path / "two", CONFIGS[1:])
    target = exported(tmp_path / "target", [replace(CONFIG, seed=5)])
    for name in ("one", "two"):
        assert export_runs(tmp_path / name, target) in (2, 3)
    found: list[StoredRun] = read_runs(target)[0]
    assert len(found) == 5 and names(target) == ["study.csv", "study.npz", "tasks.yml"]
