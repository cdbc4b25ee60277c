"""Where runs are executed: in processes of this machine, or as Ray tasks on a laptop or a cluster.

A run is always one process, ``python -m sb3_dpi.compare.worker`` or a fork that does the same, whose standard input is held
open by the process that wants the run: when that one dies, in whatever way, the pipe is closed by the system and the worker
ends too.
"""

import json
import os
import re
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

from sb3_dpi.common.extras import need
from sb3_dpi.compare.evaluation import Report
from sb3_dpi.compare.key import run_key
from sb3_dpi.compare.processes import Workers
from sb3_dpi.compare.record import CorruptRun
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.compare.worker import FAILED, FINISHED
from sb3_dpi.zoo.cause import is_users

LOSSES_PER_RUN = 5
"""How many nodes may die under one run before it is given up: a run that kills its nodes must not go on for ever"""
SECONDS_BETWEEN_POLLS = 0.5
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_END = 3.0
"""What the tasks of an interrupted comparison get to remove their temporary folders"""
GPU_SHARE = 0.25
"""What a run with a CUDA device asks of a Ray node: its networks are small, but it must land where there is a GPU"""


class RunFailed(RuntimeError):
    """A run ended without a result, for a cause in one line; its log says more."""

    def __init__(self, config: RunConfig, cause: str, log: Path) -> None:
        super().__init__(f"{config} failed: {cause} (all of it in {log})")
        self.config = config
        self.cause = cause
        self.log = log


Progress = Callable[[RunConfig, int, float | None], None]
"""Told the environment steps of a run so far, 0 at its start, and the mean return of its last evaluation"""


@dataclass(frozen=True)
class Ended:
    """The end of a run."""

    config: RunConfig
    failure: RunFailed | None
    """None where the result is in the store"""


class Engine(Protocol):
    """Executes runs."""

    def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        """
        Execute runs, each with a folder of its own; closing the generator ends those that are not finished. The ends come in
        the order of time.
        """


def _cause(returncode: int, log: Path) -> str:
    """Say how a process ended that could not say so itself."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    before_its_start = text.rpartition("Traceback (most recent call last):")[2]
    if returncode == 1 and before_its_start != text:
        return next((line for line in before_its_start.splitlines() if line[:1].strip()), "a traceback that breaks off")
    words = f"ended with exit status {returncode}, without an exception"
    if returncode < 0:
        words = f"killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    if -returncode == signal.SIGKILL:
        words += ", as the system does where memory is short"
    crash = text.rpartition("Fatal Python error")[2]
    for filename, line, function in re.findall(r'File "(.+)", line (\d+) in (\S+)', crash) if crash != text else ():
        if is_users(filename):
            return f"{words} ({Path(filename).name}:{line} in {function})"
    return words


def converse(
    order: dict[str, Any], log: Path, workers: Workers, hear: Callable[[Any], object], begun: Callable[[], None] = lambda: None
) -> str:
    """
    Let a process of its own, with one thread, do what it is told.

    :param log: File that gets what the process prints
    :param workers: Where it is noted while it is alive
    :param hear: Told what it says
    :param begun: Called when it is there
    :return: Why it did not come to its end, empty where it did
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    end: dict[str, Any] = {}
    # Appending: it is another comparison's log while that one is busy with the same run
    with log.open("a", encoding="utf-8") as errors, workers.start(errors) as process:
        assert process.stdin is not None and process.stdout is not None
        begun()
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # it died at once, and its log says why
            with suppress(BrokenPipeError):
                process.stdin.close()
        try:
            for told in map(json.loads, process.stdout):
                if isinstance(told, dict):
                    end = told
                else:
                    hear(told)
        except BaseException:  # Ctrl-C: nobody waits for code that hangs
            process.kill()
            raise
    # What happens to a process after its last line does not concern the run
    return "" if FINISHED in end else end.get(FAILED) or _cause(process.returncode, log)


def execute(config: RunConfig, key: str, out: Path, log: Path, report: Report, workers: Workers | None = None) -> None:
    """
    Execute one run in a process of its own.

    :param key: Its key; a machine where it is another one refuses the run
    :param out: Folder of the comparison that gets the finished run
    :param log: What it held before is lost once the run begins
    :param report: Told the progress: 0 steps at the start, then at most twice a second
    :raises RunFailed: If the process ends with an error or is killed
    """
    order = {"config": config.to_dict(), "out": str(out), "key": key}
    if cause := converse(order, log, workers or Workers(), lambda told: report(*told), partial(report, 0, None)):
        raise RunFailed(config, cause, log)


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine, a few at a time."""

    jobs: int = 1
    """How many; at most the number of processor cores is sensible"""
    workers: Workers | None = None
    """By default of its own, which are forked unless there is a GPU"""

    def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        """Execute runs; the progress is told from several threads."""
        # The driver of a GPU bears no fork of a process that has talked to it
        workers = self.workers or Workers(fork=all(config.device == "cpu" for config in configs))
        executor = ThreadPoolExecutor(self.jobs)
        futures: dict[Future[None], RunConfig] = {}
        try:
            for config in configs:
                arguments = (config, run_key(config), store.out, store.log(config), partial(report, config), workers)
                futures[executor.submit(execute, *arguments)] = config
            for future in as_completed(futures):
                config, error = futures[future], future.exception()
                if isinstance(error, OSError):
                    error = RunFailed(config, f"{type(error).__name__}: {error}", store.log(config))
                if error is not None and not isinstance(error, RunFailed):
                    raise error
                yield Ended(config, error)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            workers.end()
            executor.shutdown()


@dataclass(frozen=True)
class Returned:
    """What a Ray task sends back."""

    error: str
    """What happened to the run, empty for nothing"""
    log: bytes = b""
    """The text of its log, where the folder is not shared"""
    files: bytes = b""
    """The finished run's folder as a zip archive, where the folder is not shared"""


def run_on_node(config: RunConfig, key: str, shared: tuple[str, str] | None, board: Any) -> Returned:
    """
    Execute one run as a Ray task.

    :param shared: Folder of the comparison and log file where all nodes see them; None: run into a temporary folder
    :param board: Ray queue that is told the progress
    :return: How it went; an error of the run is data here, because Ray repeats a task only for the loss of its node
    """

    def report(timesteps: int, mean_return: float | None) -> None:
        # Without waiting: progress is a comfort, and no run fails for want of it
        board.actor.put_nowait.remote((config.path, timesteps, mean_return))

    with tempfile.TemporaryDirectory(prefix="sb3_dpi-", ignore_cleanup_errors=True) as temporary:
        out, log = map(Path, shared or (temporary, os.path.join(temporary, "run.log")))
        error, files = "", b""
        try:
            _execute_interruptibly(config, key, out, log, report)
            if not shared:
                folder = Store(out).folder(config)
                files = Path(shutil.make_archive(f"{folder}.packed", "zip", folder)).read_bytes()
        except RunFailed as failure:
            error = failure.cause
        return Returned(error, b"" if shared else log.read_bytes(), files)


def _execute_interruptibly(config: RunConfig, key: str, out: Path, log: Path, report: Report) -> None:
    """Execute one run; a cancelled task interrupts its main thread, which notices that between two waits alone."""
    workers = Workers()
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(execute, config, key, out, log, report, workers)
        try:
            while not wait([future], SECONDS_BETWEEN_POLLS).done:
                pass
        except BaseException:
            workers.end()
            raise
    future.result()


def _check_address(address: str) -> None:
    """Say in seconds what Ray says after minutes by ending the process: that nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # "auto" and the like: Ray looks itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No Ray cluster answers at {address} ({error}). Give the host:port that `ray start --head` printed."
        ) from error


def _start_board(ray: Any) -> Any:
    """Start the queue of the progress where the driver is: it must not die with another node."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


@dataclass(frozen=True)
class RayEngine:
    """Ray tasks, one CPU each; a node that dies has its runs redone elsewhere."""

    address: str | None = None
    """Of a running cluster (``"auto"``: the one of this machine); None starts Ray on this machine alone"""
    jobs: int | None = None
    """How many at a time; None: as many as there are CPUs"""
    shared: bool = False
    """Whether all nodes see the comparison's folder under the same path; if not, finished runs come back through Ray"""

    def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        """Execute runs. A Ray that is running in this process already is used and left running."""
        need("ray", "ray")
        import ray

        ours = not ray.is_initialized()
        if ours:
            self._start(ray)
        try:
            yield from self._run(ray, configs, store, report)
        finally:
            if ours:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Without it a Ray worker that asks for no GPU warns of a change of its defaults to come
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            ray.init(address="local", num_cpus=self.jobs or os.cpu_count(), include_dashboard=False, **quiet)
        else:
            _check_address(self.address)
            ray.init(address=self.address, **quiet)

    def _run(self, ray: Any, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        board = _start_board(ray)
        by_path = {config.path: config for config in configs}
        waiting, running = deque(configs), dict[Any, RunConfig]()
        try:
            while waiting or running:
                while waiting and (self.jobs is None or len(running) < self.jobs):
                    config = waiting.popleft()
                    running[self._submit(ray, config, store, board)] = config
                done, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_POLLS)
                with suppress(ray.exceptions.RayError):
                    for path, timesteps, mean_return in board.get_nowait_batch(board.qsize()):
                        if by_path[path] in running.values():
                            report(by_path[path], timesteps, mean_return)
                for task in done:
                    config = running.pop(task)
                    yield Ended(config, self._collect(ray, task, config, store))
        finally:
            self._cancel(ray, list(running))

    def _submit(self, ray: Any, config: RunConfig, store: Store, board: Any) -> Any:
        gpus = GPU_SHARE if config.device.startswith("cuda") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=LOSSES_PER_RUN, retry_exceptions=False)(run_on_node)
        shared = (str(store.out.absolute()), str(store.log(config).absolute())) if self.shared else None
        return task.remote(config, run_key(config), shared, board)

    def _collect(self, ray: Any, task: Any, config: RunConfig, store: Store) -> RunFailed | None:
        log = store.log(config)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            returned: Returned = ray.get(task)
        except ray.exceptions.RayError as error:
            log.write_text(f"{error}\n", encoding="utf-8")
            lines = str(error).strip().splitlines() or [""]
            # An error within the task ends with its own line, one about nodes begins with what happened
            line = lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]
            return RunFailed(config, f"{type(error).__name__}: {line}", log)
        try:
            if not self.shared:
                log.write_bytes(returned.log)
            if returned.files:
                _unpack(returned.files, config, store)
        except (OSError, CorruptRun) as error:
            return RunFailed(config, f"cannot be stored ({type(error).__name__}: {error})", log)
        return RunFailed(config, returned.error, log) if returned.error else None

    def _cancel(self, ray: Any, tasks: list[Any]) -> None:
        if not tasks:
            return
        with suppress(ray.exceptions.RayError):
            for task in tasks:
                ray.cancel(task)
            _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_END)
            for task in tasks:
                ray.cancel(task, force=True)


def _unpack(files: bytes, config: RunConfig, store: Store) -> None:
    unfinished = store.unfinished(config)
    # Another comparison in the same folder may have done the run in the meantime
    with store.lock(config):
        if store.load(config) is None:
            shutil.rmtree(unfinished, ignore_errors=True)
            with ZipFile(BytesIO(files)) as archive:
                archive.extractall(unfinished)
            store.commit(config)
