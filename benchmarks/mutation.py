"""Mutation testing: change the package's mathematics one place at a time, and see whether the tests notice.

    python benchmarks/mutation.py run SESSION [--packages trajopt] [--modules gmm lqr] [--minutes 60] [--survivors]
    python benchmarks/mutation.py report SESSION [--csv results/mutation/survivors.csv]

``mutation.toml`` says what is changed and which tests look at it. SESSION is a database of cosmic-ray, which its own reports
read; a run that was stopped goes on where it was. No file is changed: tests are collected once, each mutant is a fork that
gets the changed function, and runs those tests that pass through the changed statement, the quickest first, until one fails.
What is changed outside functions is imported anew. Compilation is off: tests see the code that was changed.
``--quick 2`` runs only the first seconds of tests, and leaves what they do not notice to a later run. What ``VERDICTS`` calls
equivalent meets the quickest tests alone. Needs Python 3.11.
"""

import argparse
import contextlib
import csv
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomllib

try:
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
    from forked_tests import ChangedModule, Watch, collect, functions_below, in_fork
    from mutants import FunctionKey, Places, describe, find_code, find_mutants, mutate, order
except ImportError as error:
    raise SystemExit(f"{error}. Install cosmic-ray: pip install 'cosmic-ray>=8,<9'") from error

ROOT = Path(__file__).resolve().parent.parent
VERDICTS = ROOT / "results/mutation/survivors.csv"
NAMES = ("file", "operator", "was", "became")
"""What a survivor is known by."""
ENOUGH = 0.3
"""Seconds of tests for a mutant that was shown to be equivalent: slow ones would only tell the same."""


def configuration() -> dict[str, Any]:
    """:return: what ``mutation.toml`` says"""
    return tomllib.loads((ROOT / "benchmarks/mutation.toml").read_text())


def read_verdicts(table: Path | None) -> dict[tuple[str, ...], str]:
    """
    Read what was said of survivors.

    :param table: CSV file; there may be none
    :return: verdicts, by what a survivor is known by
    """
    if table is None or not table.exists():
        return {}
    with table.open(newline="") as file:
        return {tuple(row[name] for name in NAMES): row["verdict"] for row in csv.DictReader(file)}


@dataclass
class Baseline:
    """What the tests do with the package as it is."""

    seconds: dict[str, float] = field(default_factory=dict)
    """of computing, a test"""
    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """tests that pass through a line, a file"""

    def covering(self, mutation: MutationSpec, places: Places) -> list[str]:
        """:return: tests that pass through the changed statement, or file if it runs at import, the quickest first"""
        lines = self.lines.get(str(mutation.module_path), {})
        line = mutation.start_pos[0]
        wanted = map(str, places.statements[line]) if line in places.functions else lines
        tests = {test for line in wanted for test in lines.get(line, [])}
        if line not in places.functions:  # also those that look at what is defined and run nothing of it
            passing = {test for files in self.lines.values() for found in files.values() for test in found}
            tests |= self.seconds.keys() - passing
        return sorted(tests, key=lambda test: self.seconds.get(test, 0.0))

    def within(self, tests: list[str], seconds: float) -> list[str]:
        """:return: the first of these tests that take so long together, at least one"""
        spent = itertools.accumulate(self.seconds[test] for test in tests)
        return [test for i, (test, until) in enumerate(zip(tests, spent, strict=True)) if i == 0 or until <= seconds]


def measure(tests: list[str], modules: list[str]) -> Baseline:
    """
    Run the tests on the package as it is.

    :param tests: files
    :param modules: files whose lines are watched
    :return: which test passes where
    """
    import coverage

    tracer = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / module) for module in modules])
    baseline = Baseline()

    @contextlib.contextmanager
    def timed(test: str) -> Any:
        start = time.process_time()
        tracer.switch_context(test)
        yield
        baseline.seconds[test] = time.process_time() - start

    def loop(watch: Watch, session: pytest.Session) -> None:
        tracer.start()
        watch.run(session.items, timed)
        tracer.stop()

    watch = collect(tests, loop)
    if watch.failed:
        raise SystemExit(f"{watch.failed} fails without any change: mutants say nothing about tests that fail")
    data = tracer.get_data()
    for module in modules:
        found = data.contexts_by_lineno(str(ROOT / module))
        baseline.lines[module] = {str(line): [test for test in contexts if test] for line, contexts in found.items()}
    return baseline


class Session:
    """A session: its database, and beside it in a JSON file what the tests do.

    :param path: of the database
    :param package: whose mutants
    :param only: test the mutants of these modules alone
    """

    def __init__(self, path: Path, package: str, only: list[str] | None = None) -> None:
        self.config = configuration()
        chosen = self.config["packages"][package]
        self.package, self.path = package, path
        self.modules = [f"sb3_dpi/{package}/{module}.py" for module in chosen["modules"]]
        self.tests = [f"tests/test_{test}.py" for test in chosen["tests"]]
        self.sample: int = chosen["sample"]
        self.constants: bool = chosen["constants"]
        self.sources = {module: (ROOT / module).read_text() for module in self.modules}
        self.wanted = {
            module for module, name in zip(self.modules, chosen["modules"], strict=True) if not only or name in only
        }
        self.places = {module: Places.of(source) for module, source in self.sources.items()}
        verdicts = read_verdicts(VERDICTS).items()
        self.equivalent = {names for names, verdict in verdicts if verdict.startswith("equivalent")}

    def prepare(self, db: WorkDB) -> None:
        """Write the mutants of the package into the database, once.

        :param db: of the session
        """
        beside = self.path.with_name(f"{self.path.stem}_{self.package}_sources.json")
        sums = {module: hashlib.sha256(source.encode()).hexdigest() for module, source in self.sources.items()}
        if not beside.exists():
            kinds = self.config["operators"], self.constants
            found = [item for module in self.modules for item in find_mutants(ROOT, module, *kinds)]
            found.sort(key=lambda item: order(self.config["seed"], item.job_id))
            db.add_work_items(found[: self.sample or len(found)])
            beside.write_text(json.dumps({"all": len(found), "sha256": sums}))
        elif json.loads(beside.read_text())["sha256"] != sums:
            raise SystemExit(f"sb3_dpi/{self.package} is not what {self.path} was begun with: begin another session")

    def baseline(self, again: bool) -> Baseline:
        """:return: what the tests do with the package as it is, measured once, or again"""
        stored = self.path.with_name(f"{self.path.stem}_{self.package}_tests.json")
        if again or not stored.exists():

            def work() -> str:
                measured = measure(self.tests, self.modules)
                return json.dumps([measured.seconds, measured.lines])

            answer = in_fork(work)
            if not answer.startswith("["):
                raise SystemExit("The tests do not pass without any change: run them with NUMBA_DISABLE_JIT=1")
            stored.write_text(answer)
        return Baseline(*json.loads(stored.read_text()))

    def module_of(self, item: WorkItem) -> str:
        """:return: the file that a mutant changes"""
        return str(item.mutations[0].module_path)

    def is_equivalent(self, mutation: MutationSpec) -> bool:
        """:return: whether this was said of a mutant"""
        file, line = str(mutation.module_path), mutation.start_pos[0]
        was = self.sources[file].splitlines()[line - 1].strip()
        names = file, mutation.operator_name.split("/")[1], was
        if names not in {known[:3] for known in self.equivalent}:  # to make the change takes longer
            return False
        return (*names, str(describe(ROOT, mutation)["became"])) in self.equivalent


def notice_import(module: str, source: str, tests: list[str]) -> str:
    """:return: the test that notices a changed file, ``"-"`` for none; leaves this process changed"""
    name = module.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, ChangedModule(name, str(ROOT / module), source))

    def loop(watch: Watch, session: pytest.Session) -> None:
        rank = {test: i for i, test in enumerate(tests)}
        watch.run(sorted((item for item in session.items if item.nodeid in rank), key=lambda item: rank[item.nodeid]))

    return collect(sorted({test.split("::")[0] for test in tests}), loop).failed or "-"


@dataclass(frozen=True)
class Judge:
    """Finds out whether the tests notice a mutant.

    :param session: of what package
    :param baseline: what the tests do
    :param db: gets the results
    :param quick: seconds of tests for a mutant, infinite for all that see it
    :param deadline: when to stop
    """

    session: Session
    baseline: Baseline
    db: WorkDB
    quick: float
    deadline: float

    def judge(self, item: WorkItem, notice: Callable[[str, list[str]], str]) -> None:
        """
        Test one mutant.

        :param item: the mutant
        :param notice: names the test that notices a changed source, in a fork
        """
        mutation, module = item.mutations[0], self.session.module_of(item)
        source = mutate(self.session.sources[module], mutation)
        every = self.baseline.covering(mutation, self.session.places[module])
        is_known = self.session.is_equivalent(mutation)
        tests = self.baseline.within(every, min(self.quick, ENOUGH) if is_known else self.quick)
        seconds = self.session.config["slack"] * (1.0 + sum(self.baseline.seconds[test] for test in tests))
        noticed = in_fork(lambda: notice(source, tests), seconds) if tests else "-"
        outcome = TestOutcome.SURVIVED if noticed == "-" else TestOutcome.KILLED
        output, left = noticed if tests else "no test passes here", noticed == "-" and tests != every and not is_known
        if not left:
            self.db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, output, outcome, None))
        word = "left" if left else outcome.value
        print(f"{word:9} {item.job_id} line {mutation.start_pos[0]}: {output}", file=sys.__stderr__, flush=True)

    def functions(self, items: list[WorkItem]) -> None:
        """
        Test mutants of functions, with the package imported and the tests collected once.

        :param items: the mutants
        """

        def loop(watch: Watch, collected: pytest.Session) -> None:
            by_name = {item.nodeid: item for item in collected.items}
            functions = functions_below(ROOT / "sb3_dpi")
            gc.freeze()  # forks share what none of them collects
            for item in items:
                if time.monotonic() > self.deadline:
                    return
                module = self.session.module_of(item)
                key = self.session.places[module].functions[item.mutations[0].start_pos[0]]
                path = str(ROOT / module)

                def notice(source: str, tests: list[str], path: str = path, key: FunctionKey = key) -> str:
                    mutated = find_code(compile(source, path, "exec"), key)
                    assert mutated is not None
                    for function in functions[(path, *key)]:
                        function.__code__ = mutated
                    watch.run([by_name[test] for test in tests])
                    return watch.failed or "-"

                self.judge(item, notice)

        def warm() -> str:
            collect(self.session.tests, loop)
            return "done"

        in_fork(warm)

    def imports(self, items: list[WorkItem]) -> None:
        """
        Test mutants of what runs at import, each in a process that imports the package anew.

        :param items: the mutants
        """
        for item in items:
            if time.monotonic() > self.deadline:
                return
            self.judge(item, functools.partial(notice_import, self.session.module_of(item)))


def run(path: Path, packages: list[str], modules: list[str] | None, minutes: float, quick: float, survivors: bool) -> None:
    """
    Test mutants.

    :param path: of the database
    :param packages: whose mutants, one package after the other
    :param modules: test the mutants of these alone
    :param minutes: after which to stop
    :param quick: seconds of tests for a mutant
    :param survivors: test again what no test noticed
    """
    deadline = time.monotonic() + 60.0 * minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.chdir(ROOT)
    for name in configuration()["preloaded"]:
        importlib.import_module(name)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what pytest prints
    for package in packages:
        session = Session(path, package, modules)
        with use_db(path, WorkDB.Mode.create) as db:
            session.prepare(db)
            if survivors:
                forget_survivors(db, session)
            judge = Judge(session, session.baseline(survivors), db, quick, deadline)
            pending = [item for item in db.pending_work_items if session.module_of(item) in session.wanted]
            pending.sort(key=lambda item: order(session.config["seed"], item.job_id))
            inside = [item.mutations[0].start_pos[0] in session.places[session.module_of(item)].functions for item in pending]
            judge.functions([item for item, within in zip(pending, inside, strict=True) if within])
            judge.imports([item for item, within in zip(pending, inside, strict=True) if not within])


def forget_survivors(db: WorkDB, session: Session) -> None:
    """
    Make mutants that no test noticed pending again.

    :param db: loses their results
    :param session: says which package
    """
    again = [
        item for item, result in db.completed_work_items if not result.is_killed and session.module_of(item) in session.wanted
    ]
    if again:
        import sqlite3

        with contextlib.closing(sqlite3.connect(session.path)) as connection, connection:
            connection.executemany("delete from work_results where job_id = ?", [(item.job_id,) for item in again])


def report(path: Path, table: Path | None) -> None:
    """
    Print the scores, and write the survivors.

    :param path: of the database
    :param table: CSV file for the survivors; verdicts that stand in it are kept, and those of equivalent ones counted
    """
    verdicts = read_verdicts(table)
    counts: dict[str, list[int]] = {}
    rows = []
    with use_db(path, WorkDB.Mode.open) as db:
        results = dict(db.results)
        for item in sorted(db.work_items, key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].start_pos)):
            package = str(item.mutations[0].module_path).split("/")[1]
            count = counts.setdefault(package, [0, 0, 0, 0])
            count[0] += 1
            if (result := results.get(item.job_id)) is None:
                continue
            count[1] += 1
            count[2] += result.is_killed
            if not result.is_killed:
                row = describe(ROOT, item.mutations[0])
                row["verdict"] = verdicts.get(tuple(str(row[name]) for name in NAMES), "")
                count[3] += row["verdict"].startswith("equivalent")
                rows.append(row)
    for package, (n, tested, caught, same) in counts.items():
        score = 100.0 * caught / max(tested - same, 1)
        print(f"{package:14} {n:5} mutants, {tested:5} tested, {caught:5} caught, {same:4} equivalent: score {score:.1f} %")
    if table is not None:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "line", "operator", "was", "became", "verdict"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    """Read the command line."""
    os.environ.update(NUMBA_DISABLE_JIT="1", OMP_NUM_THREADS="1", SDL_VIDEODRIVER="dummy")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running, reporting = commands.add_parser("run"), commands.add_parser("report")
    for command in (running, reporting):
        command.add_argument("session", type=Path)
    known = list(configuration()["packages"])
    running.add_argument("--packages", nargs="+", choices=known, default=known)
    running.add_argument("--modules", nargs="+", default=None, help="of the packages, as in mutation.toml")
    running.add_argument("--minutes", type=float, default=240.0, help="after which to stop; a later call goes on")
    running.add_argument("--quick", type=float, default=math.inf, help="seconds of tests for a mutant, by default all")
    running.add_argument("--survivors", action="store_true", help="test again what no test noticed")
    reporting.add_argument(
        "--csv", type=Path, default=None, help="where to write what no test noticed, beside verdicts given before"
    )
    arguments = parser.parse_args()
    path = arguments.session.resolve()
    if arguments.command == "report":
        report(path, arguments.csv)
    else:
        run(path, arguments.packages, arguments.modules, arguments.minutes, arguments.quick, arguments.survivors)


if __name__ == "__main__":
    main()
