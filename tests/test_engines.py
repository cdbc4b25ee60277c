"""The engines of a comparison: reuse, failures, processes and nodes that are killed, what is shown meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from forks import forked
from rich.console import Console
from stored import InProcess

from sb3_dpi.compare import processes, worker
from sb3_dpi.compare.display import Display
from sb3_dpi.compare.engines import Ended, LocalEngine, Progress, RayEngine, RunFailed, execute
from sb3_dpi.compare.key import run_key
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.study import find_runs
from sb3_dpi.compare.types import Curve, RunConfig, RunResult, Timing

HYPERPARAMS = {
    "policy": "MlpPolicy",
    "n_envs": 1,
    "policy_kwargs": "dict(net_arch=[8])",
    "n_steps": 64,
    "batch_size": 64,
    "n_epochs": 2,
}
MARK = "SB3_DPI_TEST_MARK"
ENDLESS = 10_000_000

LINUX = Path("/proc/self/environ").exists()
linux = pytest.mark.skipif(not LINUX, reason="looks for processes in /proc")


def make_config(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {"seed": 1, "n_timesteps": 128, "hyperparams": HYPERPARAMS, "eval_every": 64}
    return RunConfig("ppo", "Pendulum-v1", n_eval_episodes=2, **{**settings, **changes})


BAD = make_config(label="bad", hyperparams={**HYPERPARAMS, "no_such_argument": 1})
GOOD = [make_config(), make_config(seed=2)]
VICTIM = make_config(label="victim", n_timesteps=ENDLESS)
VICTIMS = [VICTIM] if LINUX else []
REPEATED: list[Ended] = []


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable that all processes started from here inherit: others may run comparisons on this machine."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


@pytest.fixture
def node_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the nodes of a Ray on this machine run: one that is killed leaves its folder behind."""
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # a longer path is no place for its sockets
    folder = tmp_path / "nodes"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def workers_alive(mark: str) -> list[int]:
    """And what forks them."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            words = (folder / "cmdline").read_bytes()
            if marked and (b"sb3_dpi.compare.worker" in words or b"sb3_dpi.compare.fork_server" in words):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def worker_of(log: Path) -> int:
    """The only process whose errors go there."""
    (pid,) = (int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/fd/2") if path.resolve() == log)
    return pid


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition: Callable[[], Any], seconds: float) -> float:
    start = time.perf_counter()
    while not condition():
        assert time.perf_counter() - start < seconds, "waited in vain"
        time.sleep(0.05)
    return time.perf_counter() - start


def work(config: RunConfig, store: Store) -> None:
    """What the process of a run does, once it has imported all."""
    sys.stderr = io.StringIO()  # it empties its log
    worker._run(config, store, run_key(config), sys.stdout)


def quiet() -> Console:
    return Console(file=io.StringIO())


def assert_same(results: Sequence[RunResult], expected: Sequence[RunResult]) -> None:
    assert [str(result.config) for result in results] == [str(result.config) for result in expected]
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.curve.timesteps, other.curve.timesteps)
        np.testing.assert_array_equal(result.curve.results, other.curve.results)
        np.testing.assert_array_equal(result.curve.lengths, other.curve.lengths)


@dataclass(frozen=True)
class Local:
    """A comparison in processes of this machine."""

    results: list[RunResult]
    failures: dict[str, RunFailed]
    """By their labels"""
    repeated: Ended
    """The second end of the first good run"""
    out: Path
    printed: str


class Eventful(LocalEngine):
    """Kills the worker of one run once it trains, and does another one twice, as two comparisons may."""

    def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        killed: list[int] = []

        def kill(config: RunConfig, timesteps: int, mean_return: float | None) -> None:
            if config == VICTIM and timesteps > 0 and not killed:
                killed.append(worker_of(store.log(VICTIM)))
                os.kill(killed[0], signal.SIGKILL)
            report(config, timesteps, mean_return)

        seen: list[RunConfig] = []
        for ended in super().run([*configs, GOOD[0]], store, kill):
            if ended.config in seen:
                REPEATED.append(ended)
            else:
                seen.append(ended.config)
                yield ended
        assert len(killed) == (VICTIM in configs)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    out, console = tmp_path_factory.mktemp("local"), quiet()
    results, failures = run_all([*VICTIMS, BAD, *GOOD], Store(out), Eventful(2), console)
    by_label = {failure.config.label: failure for failure in failures}
    (repeated,) = REPEATED
    return Local(results, by_label, repeated, out, console.file.getvalue())  # type: ignore[attr-defined]


def test_a_run_that_another_comparison_has_finished_is_no_failure(local: Local) -> None:
    """Its process ends as soon as its parent reads so: the closed pipe must not end it in another way."""
    assert local.repeated == Ended(GOOD[0], None)
    # The log is that of the run, not of who came too late
    log = Store(local.out).log(GOOD[0]).read_text()
    assert log.count(f"{GOOD[0]}, hyperparameters of") == log.count("64 steps: return") == log.count(" finished\n") == 1


def test_a_failed_run_names_its_log_and_stops_no_other(local: Local) -> None:
    assert [result.config for result in local.results] == GOOD
    assert set(local.failures) == {config.label for config in (BAD, *VICTIMS)}
    log, said, printed = Store(local.out).log(BAD), str(local.failures[BAD.label]), local.printed
    assert said.startswith("bad on Pendulum-v1, seed 1 failed: TypeError")
    assert "no_such_argument" in said and str(log) in said
    assert "Traceback" in log.read_text()
    assert "64 steps: return" in Store(local.out).log(GOOD[0]).read_text()
    assert "bad on Pendulum-v1, seed 1: started" in printed and "bad on Pendulum-v1, seed 1: failed: TypeError" in printed
    assert "finished, return" in printed and f"2 of {3 + len(VICTIMS)} runs finished, {1 + len(VICTIMS)} failed" in printed


def test_the_processes_of_the_local_engine_do_what_run_one_does(local: Local, tmp_path: Path) -> None:
    results, failures = run_all(GOOD, Store(tmp_path), InProcess(), quiet())
    assert not failures
    assert_same(results, local.results)


def test_finished_runs_are_read_half_written_ones_done_again(tmp_path: Path) -> None:
    store, first = Store(tmp_path), InProcess()
    run_all(GOOD[:1], store, first, quiet())
    left_over = store.unfinished(GOOD[1]) / "left_over"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    second, console = InProcess(), quiet()
    results, failures = run_all(GOOD[::-1], Store(tmp_path), second, console)
    assert first.executed == ["ppo on Pendulum-v1, seed 1"] and second.executed == ["ppo on Pendulum-v1, seed 2"]
    assert [result.config for result in results] == GOOD[::-1] and not failures
    assert not left_over.exists() and not (store.folder(GOOD[1]) / "left_over").exists()
    assert "1 of 2 runs were finished before" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_same_run_under_two_names_is_done_once(tmp_path: Path) -> None:
    engine, again = InProcess(), make_config(label="again")
    configs = [again, GOOD[0], GOOD[0], BAD]
    results, failures = run_all(configs, Store(tmp_path), engine, quiet())
    assert engine.executed == ["again on Pendulum-v1, seed 1", "bad on Pendulum-v1, seed 1"]
    assert [result.config for result in results] == configs[:3] and len(failures) == 1
    assert {path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)} == {again.path, GOOD[0].path}


def test_what_another_comparison_is_busy_with_comes_last(tmp_path: Path) -> None:
    store, engine, console = Store(tmp_path), InProcess(), quiet()
    unfinished = store.unfinished(GOOD[0])
    unfinished.parent.mkdir(parents=True)
    with filelock.FileLock(unfinished.with_name(f"{unfinished.name}.lock")):
        results, failures = run_all(GOOD, store, engine, console)
    assert engine.executed == [str(GOOD[1]), str(GOOD[0])] and len(results) == 2 and not failures
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Another comparison is busy in {tmp_path}: the results of the runs that it does are waited for" in printed


def test_another_comparison_is_told_before_its_first_run_has_begun(tmp_path: Path) -> None:
    """Its workers may still import what they need; this one begins at the other end."""
    consoles, second = [quiet(), quiet(), quiet()], InProcess()

    class First(InProcess):
        def run(self, *given: Any) -> Generator[Ended, None, None]:
            run_all(GOOD, Store(tmp_path), second, consoles[1])
            yield from super().run(*given)

    for engine, console in ((First(), consoles[0]), (InProcess(), consoles[2])):
        run_all([*GOOD, BAD], Store(tmp_path), engine, console)
    assert second.executed == [str(GOOD[1]), str(GOOD[0])]
    told = [console.file.getvalue() for console in consoles]  # type: ignore[attr-defined]
    assert ["Another comparison is busy" in text for text in told] == [False, True, False]


def test_what_is_checked_is_what_is_not_finished(tmp_path: Path) -> None:
    def check(pending: Sequence[RunConfig]) -> None:
        raise ValueError(" and ".join(map(str, pending)))

    run_all(GOOD[:1], Store(tmp_path), InProcess(), quiet())
    engine = InProcess()
    with pytest.raises(ValueError, match=r"^ppo on Pendulum-v1, seed 2$"):
        run_all(GOOD, Store(tmp_path), engine, quiet(), check)
    assert not engine.executed


def test_two_different_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"different runs have the folder ppo/Pendulum-v1_1.*labels"):
        run_all([GOOD[0], make_config(n_timesteps=192)], Store(tmp_path), InProcess(), quiet())


def test_a_corrupt_run_is_named_and_done_again(tmp_path: Path) -> None:
    run_all(GOOD[:1], Store(tmp_path), InProcess(), quiet())
    evaluations = Store(tmp_path).folder(GOOD[0]) / "evaluations.npz"
    evaluations.write_bytes(evaluations.read_bytes()[:100])
    engine, console = InProcess(), quiet()
    results, _ = run_all(GOOD[:1], Store(tmp_path), engine, console)
    assert len(results) == 1 and len(engine.executed) == 1
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Warning: {evaluations}" in printed and "set_aside" in printed


def test_a_log_that_cannot_be_written_fails_only_its_run(tmp_path: Path) -> None:
    (tmp_path / "bad").touch()  # where the folder of the label would be
    store = Store(tmp_path)
    ends = list(LocalEngine(1).run([BAD], store, lambda config, timesteps, mean_return: None))
    assert len(ends) == 1 and ends[0].failure is not None and "bad" in ends[0].failure.cause


@linux
def test_kill_of_a_worker_fails_only_its_run(local: Local) -> None:
    failure = local.failures[VICTIM.label]
    assert "victim" in str(failure) and "killed by signal 9" in str(failure) and "Traceback" not in failure.log.read_text()
    assert [result.config for result in local.results] == GOOD


@linux
@pytest.mark.parametrize("moment", ["while it imports", "later"])
def test_workers_start_without_a_fork_server(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worker.py").write_text("print('{\"finished\": true}')")
    (tmp_path / "some_server.py").write_text("import os; os.read(0, 100)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "WORKER", "some_worker")
    monkeypatch.setattr(processes, "FORK_SERVER", "some_server" if moment == "later" else "no_such_module")
    workers = processes.Workers(fork=True)
    try:
        execute(GOOD[0], "key", tmp_path, tmp_path / "x.log", lambda timesteps, mean_return: None, workers)
    finally:
        workers.end()


LAB = """
import json, signal, sys
from pathlib import Path
from sb3_dpi.compare.engines import RayEngine
from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.types import RunConfig
# tests that are started in the background hand down that Ctrl-C is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
run_all([RunConfig(**config) for config in json.loads(sys.argv[2])], Store(Path(sys.argv[1])), RayEngine(jobs=2))
"""


@contextmanager
def start_lab_with_ray(out: Path, configs: Sequence[RunConfig]) -> Iterator[subprocess.Popen[str]]:
    """Of its own: Ray bears no copies of a process."""
    arguments = [str(out), json.dumps([config.to_dict() for config in configs])]
    with subprocess.Popen([sys.executable, "-u", "-c", LAB, *arguments], stdout=subprocess.PIPE, text=True) as lab:
        try:
            yield lab
        finally:
            lab.kill()  # else a test that fails would wait for an endless run


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_that_ends_leaves_no_worker(tmp_path: Path, mark: str, end: signal.Signals) -> None:
    store, long = Store(tmp_path), make_config(label="long", n_timesteps=ENDLESS)
    with forked(lambda: run_all([long], Store(tmp_path), LocalEngine(2))) as lab:
        wait_for(lambda: any(store.unfinished(long).glob("*.monitor.csv")), 200)
        # The worker, what waits for it and what forks both
        assert len(workers_alive(mark)) == 3 and worker_of(store.log(long)) in workers_alive(mark)
        lab.send(end)
        _, printed = lab.end()
    wait_for(lambda: not workers_alive(mark), 5)
    assert "long on Pendulum-v1, seed 1: started" in printed and not list(find_runs(tmp_path))
    assert "Traceback" not in store.log(long).read_text()
    if end is signal.SIGKILL:
        # The same folder again: what the killed one left there is in nobody's way
        short = make_config(label="long")
        with forked(lambda: work(short, Store(tmp_path))) as again:
            assert again.end()[0] == 0
        assert Store(tmp_path).load(short) is not None


def test_ray_gives_the_same_evaluations(local: Local, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    console = quiet()
    results, failures = run_all([BAD, *GOOD], Store(tmp_path), RayEngine(jobs=2), console)
    assert not ray.is_initialized()
    assert_same(results, local.results)
    assert [failure.cause for failure in failures] == [local.failures[BAD.label].cause]
    assert "Traceback" in failures[0].log.read_text() and failures[0].log == Store(tmp_path).log(BAD)
    assert "64 steps: return" in Store(tmp_path).log(GOOD[0]).read_text()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ppo on Pendulum-v1, seed 1: started" in printed and "2 of 3 runs finished, 1 failed" in printed
    names = [sorted(path.name for path in Store(out).folder(GOOD[0]).rglob("*")) for out in (tmp_path, local.out)]
    assert names[0] == names[1]
    engine = InProcess()
    assert len(run_all(GOOD, Store(tmp_path), engine, quiet())[0]) == 2 and not engine.executed


def test_without_ray_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"\[ray\]"):
        run_all(GOOD, Store(tmp_path), RayEngine(), quiet())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_where_nobody_answers_is_named_at_once(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConnectionError, match=f"No Ray cluster answers at {address}"):
        run_all(GOOD, Store(tmp_path), RayEngine(address), quiet())


@linux
@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.usefixtures("node_folders")
def test_a_node_that_dies_has_its_runs_redone(tmp_path: Path, mark: str, shared: bool) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    configs = [make_config(seed=seed, n_timesteps=10_000, eval_every=1000) for seed in (1, 2, 3)]
    expected, _ = run_all(configs, Store(tmp_path / "local"), LocalEngine(2), quiet())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        raylet = second.all_processes["raylet"][0].process.pid
        seen: set[str] = set()
        committed: list[str] = []
        lost: list[int] = []

        class CountingStore(Store):
            def commit(self, config: RunConfig) -> None:
                super().commit(config)
                committed.append(config.path)

        class Killer(RayEngine):
            def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
                def kill(config: RunConfig, timesteps: int, mean_return: float | None) -> None:
                    report(config, timesteps, mean_return)
                    if timesteps > 0:
                        seen.add(config.path)
                    if len(seen) >= 2 and not lost:
                        lost.extend(pid for pid in workers_alive(mark) if parent(parent(pid)) == raylet)
                        assert len(lost) == 1
                        cluster.remove_node(second, allow_graceful=False)
                        wait_for(lambda: lost[0] not in workers_alive(mark), 10)

                yield from super().run(configs, store, kill)

        console, store = quiet(), CountingStore(tmp_path / "ray")
        if shared:  # a Ray that the user has started already
            ray.init(address=cluster.address, log_to_driver=False)
        results, failures = run_all(configs, store, Killer(cluster.address, shared=shared), console)
        assert ray.is_initialized() == shared
    finally:
        ray.shutdown()
        cluster.shutdown()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert lost and not failures and "its node was lost, started again" in printed
    assert_same(results, expected)
    assert sorted(committed) == ([] if shared else sorted(config.path for config in configs))
    assert len(list(find_runs(tmp_path / "ray"))) == 3 and not (tmp_path / "ray" / "set_aside").exists()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_with_ray_that_ends_leaves_no_worker(tmp_path: Path, mark: str, node_folders: Path, end: signal.Signals) -> None:
    pytest.importorskip("ray")
    with start_lab_with_ray(tmp_path, [make_config(n_timesteps=ENDLESS)]) as lab:
        wait_for(lambda: any(node_folders.glob("*/.unfinished/*/*.monitor.csv")), 200)
        lab.send_signal(end)
        assert lab.stdout is not None and "started" in lab.stdout.readline()
        lab.wait(60)
    wait_for(lambda: not workers_alive(mark), 15)
    if end is signal.SIGINT:
        assert not list(node_folders.glob("sb3_dpi-*"))


def result_of(config: RunConfig) -> RunResult:
    curve = Curve(np.array([128]), np.array([[-150.0, -50.0]]), np.array([[200, 200]]))
    return RunResult(config, curve, Timing(10.0, 10.0, 2.0, 2.0))


def test_lines_are_few() -> None:
    console, config = quiet(), make_config(n_timesteps=1000)
    with Display(console, total=3, finished=1) as display:
        for steps in (*range(0, 1000), 1040):
            display.update(config, steps, None if steps < 500 else -200.0)
        for steps in (0, 150):
            display.update(config, steps, None)
        display.finish(config, result_of(config))
        display.update(BAD, 0, None)
        display.finish(BAD, RunFailed(BAD, "TypeError: [no] markup", Path("bad.log")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    name = "ppo on Pendulum-v1, seed 1"
    assert lines[0] == f"{name}: started"
    assert lines[1] == f"{name}: 100 of 1,000 steps"
    assert lines[5] == f"{name}: 500 of 1,000 steps, return -200.0"
    assert lines[10] == f"{name}: 1,040 of 1,000 steps, return -200.0"
    assert lines[11:] == [
        f"{name}: its node was lost, started again",
        f"{name}: started",
        f"{name}: 150 of 1,000 steps",
        f"{name}: finished, return -100.0, 12 s (2 of 3 runs finished)",
        "bad on Pendulum-v1, seed 1: started",
        "bad on Pendulum-v1, seed 1: failed: TypeError: [no] markup (2 of 3 runs finished, 1 failed)",
    ]


def test_the_live_display_shows_what_runs_and_costs_little() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    running = [make_config(seed=seed, n_timesteps=100_000) for seed in (1, 2)]
    with Display(console, total=4, finished=1) as display:
        start = time.perf_counter()
        for steps in range(0, 20_000, 20):
            for config in running:
                display.update(config, steps, -123.4)
            time.sleep(0.002)
        seconds = time.perf_counter() - start
        drawn = console.file.getvalue().count("runs finished")  # type: ignore[attr-defined]
        display.progress.refresh()
        before = len(console.file.getvalue())  # type: ignore[attr-defined]
        assert [task.description for task in display.progress.tasks] == ["all", *map(str, running)]
        assert display.progress.tasks[0].completed == pytest.approx(1 + 2 * 0.1998)
        display.finish(running[0], result_of(running[0]))
        assert [task.description for task in display.progress.tasks] == ["all", str(running[1])]
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 4 runs finished" in printed[:before] and "19,980 of 100,000 steps, return -123.4" in printed[:before]
    assert "ppo on Pendulum-v1, seed 1: finished, return -100.0, 12 s" in printed[before:]
    assert "2 of 4 runs finished" in printed[before:]
    # The start and each new bar are drawn at once
    assert drawn <= 2 * seconds + 4
