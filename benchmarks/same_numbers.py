"""Show that a change of the code changed no number: ``python benchmarks/same_numbers.py REV``.

Short trainings (``number_cases.py``) run at the git revision REV, checked out to a temporary folder, and in the working tree.
Each runs with numba's loops (``.numba``) and without (``.plain``). What is compared: steps taken, every tensor of
``get_parameters()`` that both have (networks and optimizers), actions on fixed observations and returns of two episodes.

::

    python benchmarks/same_numbers.py HEAD                      # all cases, bit for bit; status 1 if anything differs
    python benchmarks/same_numbers.py HEAD~3 --only '^dpi'      # some: a regular expression, searched for in names
    python benchmarks/same_numbers.py HEAD --tolerance 1e-5     # where sums are taken in another order
    python benchmarks/same_numbers.py main --jobs 2             # both trees at once
    python benchmarks/same_numbers.py --list                    # names of all cases

A difference is relative to the largest number of its tensor. Each case prints a line: same, differs, only in one tree (the
other has not what the case is about, which is no difference), or fails; a failure counts as a difference. Renamed arguments
and parameters belong into the tables of ``number_cases.py``. Needs git. What numba compiles for REV is kept in the system's
temporary folder: the first run of a tree takes some minutes more than the next ones. REV's files are removed at the end.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from number_cases import CASES, RENAMED_PARAMETERS, Outcome

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "short_trainings.py"
MODES = ("numba", "plain")
HERE = "the working tree"


class GitError(Exception):
    """Git could not do what was asked."""


@dataclass(frozen=True)
class Verdict:
    """On a case."""

    text: str
    differs: bool


def git(*arguments: str) -> str:
    """
    Run git in this checkout.

    :param arguments: of its command line
    :return: what it printed
    :raises GitError: if it fails, with its reason
    """
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, env=clean_environment())
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode:
        raise GitError(done.stderr.strip() or f"git {arguments[0]} failed")
    return done.stdout.strip()


def clean_environment() -> dict[str, str]:
    """:return: the environment without what makes git look elsewhere, as within a hook"""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def resolve(revision: str) -> str:
    """
    Find a commit.

    :param revision: as git understands it
    :return: its full hash
    :raises GitError: if there is none, or this is no checkout
    """
    top = Path(git("rev-parse", "--show-toplevel")).resolve()
    if top != ROOT:
        raise GitError(f"{ROOT} is not the top of a git checkout: run this script in a clone")
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitError:
        raise GitError(f"{revision} is no commit that this clone has: a shallow one needs git fetch --unshallow") from None


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """
    Put a commit's package into a temporary folder, the same each time, so that compiled code can be kept beside it.

    :param commit: its hash
    :return: the folder, until the context ends
    :raises GitError: if git fails or another run has the folder
    """
    mark = hashlib.sha256(f"{ROOT} {commit}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"same_numbers-{mark}"
    folder.mkdir(exist_ok=True)
    tree = folder / "tree"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GitError(f"another run compares with {commit[:12]} in {folder}: wait for its end") from None
        remove(tree)  # of a run that was killed
        try:
            git("worktree", "add", "--detach", "--force", "--no-checkout", str(tree), commit)
            git("-C", str(tree), "checkout", commit, "--", "sb3_dpi")
            moment = int(git("show", "--no-patch", "--format=%ct", commit))
            for path in tree.rglob("*.py"):
                os.utime(path, (moment, moment))  # by which numba tells whether what it compiled is still true
            yield tree
        finally:
            remove(tree)


def remove(tree: Path) -> None:
    """
    Remove a checkout, if it is there.

    :param tree: its folder
    """
    if tree.exists():
        git("worktree", "remove", "--force", "--force", str(tree))


def run_tree(tree: Path, mode: str, names: Sequence[str]) -> dict[str, Outcome]:
    """
    Run cases with the package of a tree, in one process as long as none crashes.

    :param tree: folder with ``sb3_dpi``
    :param mode: one of ``MODES``
    :param names: of cases
    :return: their outcomes
    """
    environment = {**clean_environment(), "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment["NUMBA_DISABLE_JIT"] = "1" if mode == "plain" else "0"
    if tree != ROOT:
        environment["NUMBA_CACHE_DIR"] = str(tree.parent / "compiled")
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        while pending := [name for name in names if name not in outcomes]:
            command = [sys.executable, str(WORKER), str(tree), folder, *pending]
            done = subprocess.run(
                command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for name in pending:
                path = Path(folder) / f"{name}.pkl"
                if not path.exists():
                    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    outcomes[name] = Outcome("failed", f"the process ended with status {done.returncode}: {last}")
                    break
                outcomes[name] = Outcome.load(path)
    return outcomes


def pairs(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Find what is to be compared.

    :param before: numbers at REV by name
    :param after: in the working tree
    :return: those that both have, by their newer name
    """
    found = {}
    for name, value in before.items():
        if name not in after:
            for pattern, new in RENAMED_PARAMETERS:
                name = re.sub(pattern, new, name)
        if name in after:
            found[name] = value, after[name]
    return found


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """
    How far numbers differ.

    :param before: at REV
    :param after: in the working tree
    :return: the largest deviation in units of the largest number, 0 if they are equal, NaNs in the same places included;
        infinite if shapes differ or what is finite here is not there
    """
    if before.shape != after.shape:
        return float("inf")
    if np.array_equal(before, after, equal_nan=True):
        return 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = max(np.abs(a[finite]).max(), np.abs(b[finite]).max())
    return float(np.abs(a[finite] - b[finite]).max() / scale)


def compare(before: Outcome, after: Outcome, revision: str, tolerance: float) -> Verdict:
    """
    Judge a case.

    :param before: at the revision
    :param after: in the working tree
    :param revision: its name
    :param tolerance: differences up to here are none
    :return: what to say, and whether it counts as a difference
    """
    sides = {revision: before, HERE: after}
    failed = {where: side.message for where, side in sides.items() if side.status == "failed"}
    if failed:
        return Verdict("fails " + "; ".join(f"in {where} with {message}" for where, message in failed.items()), True)
    gone = {where: side.message for where, side in sides.items() if side.status == "gone"}
    if len(gone) == 2:
        return Verdict(f"in neither tree: {after.message}", False)
    if gone:
        where = HERE if revision in gone else revision
        return Verdict(f"only in {where}: {next(iter(gone.values()))}", False)
    common = pairs(before.values, after.values)
    unpaired = len(before.values) + len(after.values) - 2 * len(common)
    note = f"; {unpaired} arrays in one tree only" if unpaired else ""
    if not set(common) - {"steps", "actions", "returns"}:
        return Verdict(f"differs: no tensor has the same name{note}: add rows to RENAMED_PARAMETERS", True)
    sizes = {name: difference(*values) for name, values in common.items()}
    differing = {name: size for name, size in sizes.items() if size > tolerance}
    if not differing:
        largest = max(sizes.values())
        return Verdict(("same" if largest == 0.0 else f"same within {largest:.1e}") + note, False)
    first, most = next(iter(differing)), max(differing, key=lambda name: differing[name])
    text = f"differs in {len(differing)} of {len(common)} arrays: first {first} by {differing[first]:.1e}"
    return Verdict(text + f", most {most} by {differing[most]:.1e}{note}", True)


def full_names(pattern: str) -> list[str]:
    """
    Choose cases.

    :param pattern: a regular expression
    :return: names with their modes
    """
    return [name for mode in MODES for case in CASES if re.search(pattern, name := f"{case}.{mode}")]


def report(revision: str, tree: Path, names: Sequence[str], tolerance: float, jobs: int) -> int:
    """
    Run and compare cases, and print a line for each.

    :param revision: its name
    :param tree: where it is checked out
    :param names: with modes
    :param tolerance: differences up to here are none
    :param jobs: processes at once, 1 or 2
    :return: how many differ or fail
    """
    differ = 0
    for mode in MODES:
        chosen = [name.removesuffix(f".{mode}") for name in names if name.endswith(f".{mode}")]
        if mode == "numba" and chosen and importlib.util.find_spec("numba") is None:
            print(f"numba is not installed: {len(chosen)} cases are left out")
            continue
        with ThreadPoolExecutor(jobs) as pool:
            before, after = pool.map(lambda where, mode=mode, chosen=chosen: run_tree(where, mode, chosen), (tree, ROOT))
        for name in chosen:
            verdict = compare(before[name], after[name], revision, tolerance)
            differ += verdict.differs
            times = f"{before[name].seconds:.1f} and {after[name].seconds:.1f} s"
            print(f"{f'{name}.{mode}':34} {verdict.text} ({times})", flush=True)
    return differ


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Compare a revision with the working tree.

    :param arguments: of the command line, None for this process's
    :return: the exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="what to compare the working tree with, like HEAD or a hash")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative; 0, the default, asks for equal bits")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name this regular expression matches")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="trainings at once")
    parser.add_argument("--list", action="store_true", help="print the names of cases and do nothing")
    options = parser.parse_args(arguments)
    names = full_names(options.only)
    if options.list:
        print(*names, sep="\n")
        return 0
    if options.revision is None:
        parser.error("say which revision to compare with, like HEAD")
    if not names:
        parser.error(f"no case matches {options.only!r}: --list prints all")
    try:
        with checked_out(resolve(options.revision)) as tree:
            differ = report(options.revision, tree, names, options.tolerance, options.jobs)
    except GitError as error:
        print(f"same_numbers: {error}", file=sys.stderr)
        return 2
    print(f"{len(names)} cases, {differ} differ or fail")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
