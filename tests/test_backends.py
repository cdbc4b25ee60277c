"""The hot jobs of a world model: loops against torch, from the cache and without one, and where numba is not there."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from test_benchmarks import BENCHMARKS, load
from torch.nn import functional

from sb3_dpi.trajopt import compilation
from sb3_dpi.world_model import backends
from sb3_dpi.world_model.backends import elementwise
from sb3_dpi.world_model.backends.mlp import Stack
from sb3_dpi.world_model.backends.numpy_networks import Weights, forward

jobs = load("backends")
SMALL = jobs.Sizes(dx=3, du=2, members=3, model_width=16, model_batch=8, width=12, termination_batch=8, critic_batch=16,
                   updates=5, horizon=4, windows=6)  # fmt: skip


KERNELS = [name for name, one in vars(elementwise).items() if hasattr(one, "py_func")]


@pytest.fixture(params=["compiled", "plain"] if compilation.COMPILED else ["plain"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops as numba makes them, and the same in plain Python."""
    for name in KERNELS if request.param == "plain" else []:
        monkeypatch.setattr(elementwise, name, getattr(elementwise, name).py_func)


def both(name: str, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """:return: the problem after a job in loops, what that gave, and both in torch; the job is done twice"""
    results = []
    for make in (jobs.loop_jobs, jobs.torch_jobs):
        problem = jobs.Problem(SMALL, 6, **settings)
        job = make(problem)[name]
        job()
        results += [problem, job()]
    return tuple(results)  # type: ignore[return-value]


def assert_same_network(one: Any, two: Any) -> None:
    """Parameters and the optimizer's state."""
    th.testing.assert_close(one.flat, two.flat, atol=1e-5, rtol=1e-3)
    states = one.optimizer.state[one.flat], two.optimizer.state[two.flat]
    assert states[0]["step"] == states[1]["step"] > 0
    for name in ("exp_avg", "exp_avg_sq"):
        th.testing.assert_close(states[0][name], states[1][name], atol=1e-6, rtol=1e-2)


# ---------------------------------------------------------------------- loops against torch


@pytest.mark.usefixtures("loops")
def test_fit_ensemble() -> None:
    fast, loss, slow, expected = both("fit_ensemble")
    assert_same_network(fast.model, slow.model)
    assert loss == pytest.approx(expected, rel=1e-5) and np.isfinite(loss)
    start = jobs.Problem(SMALL, 6).model.flat
    moved = (fast.model.flat - start).detach().abs().mean()
    assert float(moved) > 3e-3, "twelve steps at the learning rate 1e-3"


def test_members_are_fitted_apart() -> None:
    """What one member learns from does not reach another."""
    changed = jobs.Problem(SMALL, 6), jobs.Problem(SMALL, 6)
    changed[1].targets[:, 1] += 1.0
    for problem in changed:
        jobs.loop_jobs(problem)["fit_ensemble"]()
    same = (changed[0].model.flat == changed[1].model.flat).all(dim=1)
    assert same.tolist() == [True, False, True]


@pytest.mark.usefixtures("loops")
def test_fit_classifier() -> None:
    fast, _, slow, _ = both("fit_classifier")
    assert_same_network(fast.termination, slow.termination)


@pytest.mark.usefixtures("loops")
def test_update_critic() -> None:
    fast, found, slow, expected = both("update_critic")
    assert_same_network(fast.critic, slow.critic)
    th.testing.assert_close(fast.slow, slow.slow, atol=1e-5, rtol=1e-3)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("critic_acts", [False, True])
@pytest.mark.parametrize("deaths", [False, True])
def test_window_gradient(deaths: bool, critic_acts: bool) -> None:
    _, found, _, expected = both("window_gradient", deaths=deaths, critic_acts=critic_acts)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6, rtol=1e-3)
    assert found[1:] == pytest.approx(expected[1:], rel=1e-5)
    assert np.abs(found[0]).max() > 1e-3


@pytest.mark.usefixtures("loops")
def test_window_gradient_of_one_step_and_beyond_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where predictions are clipped nothing flows back; where states are, only rewards do."""
    monkeypatch.setattr(jobs, "GAMMA", 0.5)
    results = []
    for make in (jobs.loop_jobs, jobs.torch_jobs):
        problem = jobs.Problem(jobs.Sizes(3, 2, 3, 16, 8, 12, 8, 16, 5, 1, 6))
        with th.no_grad():
            problem.model.flat[0, -1] = 20.0  # bias of the reward
            problem.model.flat[1, -2] = -20.0  # and of a state
        results.append(make(problem)["window_gradient"]())
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6, rtol=1e-3)
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-5)


def test_window_gradient_is_the_slope_of_the_objective() -> None:
    """By differences, without torch."""
    problem = jobs.Problem(SMALL)
    window_gradient = jobs.loop_jobs(problem)["window_gradient"]
    gradient = window_gradient()[0].copy()
    direction = th.as_tensor(gradient / np.linalg.norm(gradient))
    values = []
    for step in (-0.01, 0.02):
        with th.no_grad():
            problem.actor.flat[0] += step * direction
        values.append(window_gradient()[1])
    assert (values[1] - values[0]) / 0.02 == pytest.approx(np.linalg.norm(gradient), rel=0.02)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("sizes", [(4, 8, 2), (4, 8, 6, 1), (4, 8, 8, 8, 3), (4, 6, 1, 1)])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_networks_of_other_shapes(sizes: tuple[int, ...], layer_norm: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 2, 7, 4)).astype(np.float32)
    targets = rng.normal(size=(5, 2, 7, sizes[-1])).astype(np.float32)
    fast, slow = (jobs.Network(np.random.default_rng(1), 2, sizes, layer_norm) for _ in range(2))
    backends.fit_ensemble(fast.arrays, fast.adam(5), inputs, targets)
    for batch, goal in zip(th.as_tensor(inputs), th.as_tensor(targets), strict=True):
        slow.descend(2.0 * functional.smooth_l1_loss(slow(batch), goal))
    if layer_norm and 1 in sizes[1:-1]:  # one number less its mean is nothing: its gradient is rounding
        th.testing.assert_close(fast.flat, slow.flat, atol=1e-2, rtol=0.0)
    else:
        assert_same_network(fast, slow)


# ---------------------------------------------------------------------- torch's memory


def test_torch_goes_on_where_the_loops_left_off() -> None:
    """The optimizer's own state is what the loops worked on."""
    problems = jobs.Problem(SMALL, 6), jobs.Problem(SMALL, 6)
    jobs.loop_jobs(problems[0])["fit_ensemble"]()
    for problem in (problems[0], problems[1], problems[1]):
        jobs.torch_fit_ensemble(problem)
    assert_same_network(problems[0].model, problems[1].model)
    assert problems[0].model.optimizer.state[problems[0].model.flat]["step"] == 12


def test_adam_with_settings_of_its_own() -> None:
    problems = jobs.Problem(SMALL, 6), jobs.Problem(SMALL, 6)
    for problem in problems:
        network = problem.model
        network.optimizer = th.optim.Adam([network.flat], lr=3e-3, betas=(0.7, 0.95), eps=1e-3)
        assert backends.supports_optimizer(network.optimizer)
    jobs.loop_jobs(problems[0])["fit_ensemble"]()
    jobs.torch_fit_ensemble(problems[1])
    assert_same_network(problems[0].model, problems[1].model)


def test_other_optimizers_are_left_to_torch() -> None:
    flat, other = th.nn.Parameter(th.zeros(3)), th.nn.Parameter(th.zeros(3))
    assert backends.supports_optimizer(th.optim.Adam([flat]))
    others = [
        th.optim.SGD([flat], lr=0.1),
        th.optim.AdamW([flat]),
        th.optim.Adam([flat], weight_decay=0.1),
        th.optim.Adam([flat], amsgrad=True),
        th.optim.Adam([flat], maximize=True),
        th.optim.Adam([{"params": [flat]}, {"params": [other]}]),
    ]
    assert not any(backends.supports_optimizer(optimizer) for optimizer in others)


def test_arrays_are_views() -> None:
    tensor = th.zeros(2, 3, requires_grad=True)
    backends.array_of(tensor)[0, 1] = 5.0
    assert tensor[0, 1] == 5.0


# ---------------------------------------------------------------------- the loops themselves


@pytest.mark.parametrize(
    ("broken", "jobs_hit"),
    [
        ("model", {"fit_ensemble", "window_gradient"}),
        ("termination", {"fit_classifier", "window_gradient"}),
        ("critic", {"update_critic", "window_gradient"}),
        ("slow", {"update_critic"}),
        ("actor", {"update_critic", "window_gradient"}),
    ],
)
def test_what_is_not_finite_stays_so_without_a_warning(broken: str, jobs_hit: set[str]) -> None:
    """No limit hides a number that is none: whoever calls looks at parameters and results, and says so once."""
    for name in ("fit_ensemble", "fit_classifier", "update_critic", "window_gradient"):
        problem = jobs.Problem(SMALL, 6)
        with th.no_grad():
            tensor = getattr(problem, broken)
            getattr(tensor, "flat", tensor)[0, -1] = np.nan
        with warnings.catch_warnings():
            if compilation.COMPILED:
                warnings.simplefilter("error")
            result = jobs.loop_jobs(problem)[name]()
        told = problem.termination.flat.detach().numpy() if result is None else result
        finite = all(np.isfinite(part).all() for part in (told if isinstance(told, tuple) else [told]))
        assert finite == (name not in jobs_hit), name


@pytest.mark.usefixtures("loops")
def test_layer_normalisation_and_hardswish() -> None:
    """By their definitions."""
    rng = np.random.default_rng(0)
    sums = (3.0 + 4.0 * rng.normal(size=(2, 5, 7))).astype(np.float32)
    expected = (sums - sums.mean(-1, keepdims=True)) / np.sqrt(sums.var(-1, keepdims=True) + 1e-5)
    inverse, out = np.empty((2, 5), np.float32), np.ones((2, 5, 8), np.float32)
    elementwise.activate(sums, True, inverse, out)
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_allclose(out[..., :-1], expected * np.clip(expected + 3.0, 0.0, 6.0) / 6.0, atol=1e-5)
    np.testing.assert_array_equal(out[..., -1], 1.0)


def test_forward_for_acting() -> None:
    """The numpy version beside torch, for rows and for one."""
    network = jobs.Network(np.random.default_rng(0), 2, (4, 9, 7, 3))
    inputs = np.random.default_rng(1).normal(0.0, 3.0, (6, 4)).astype(np.float32)
    expected = network(th.as_tensor(inputs)[None]).detach().numpy()
    for member in range(2):
        *hidden, last = Stack(network.arrays.flat, network.arrays.sizes).layers
        layers: Weights = [(layer[member, :-1], layer[member, -1], th.nn.Hardswish) for layer in hidden]
        layers.append((last[member, :-1], last[member, -1], None))
        found = forward(inputs, layers)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[member], atol=1e-5)
        np.testing.assert_allclose(forward(inputs[2], layers), expected[member, 2], atol=1e-5)


def test_every_loop_is_compiled_where_numba_is() -> None:
    """What the fixture takes for loops is all of them."""
    functions = [name for name, one in vars(elementwise).items() if getattr(one, "__module__", "") == elementwise.__name__]
    assert len(functions) > 10 and KERNELS == (functions if compilation.COMPILED else [])


def test_what_is_supported() -> None:
    there = compilation.COMPILED
    assert backends.supports((2, 8, 8, 1)) == backends.supports((2, 8, 1), th.device("cpu")) == there
    assert not backends.supports((2, 1)) and not backends.supports((2, 8, 1), "cuda")
    assert not backends.supports((2, 8, 1), th.device("meta"))


# ---------------------------------------------------------------------- compilation

JOBS = "fit_ensemble", "fit_classifier", "update_critic", "window_gradient"
RUN = """
import sys
import numpy as np
{before}
from backends import Problem, Sizes, loop_jobs
from sb3_dpi.world_model import backends
assert backends.supports((2, 8, 1)) == {compiled}
problem = Problem(Sizes(3, 2, 3, 16, 8, 12, 8, 16, 5, 4, 6), 6)
results = {{name: job() for name, job in loop_jobs(problem).items() if name in {names}}}
networks = problem.model.flat, problem.termination.flat, problem.critic.flat, problem.slow
found = [np.hstack(one if isinstance(one, tuple) else [one]) for one in results.values() if one is not None]
np.save(sys.argv[1], np.concatenate([*(network.detach().ravel() for network in networks), *found]).astype(np.float64))
"""


SERVER = """
import json, os, sys, traceback
import numpy, torch
for line in sys.stdin:
    job = json.loads(line)
    if not (pid := os.fork()):
        code = 1
        try:
            os.dup2(os.open(job["said"], os.O_WRONLY | os.O_CREAT), 2)
            os.chdir(job["folder"])
            os.environ.clear()
            os.environ.update(job["env"])
            sys.argv, sys.path[:0] = ["-c", job["out"]], [job["folder"]]
            exec(job["code"], {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Forks processes that have torch, which takes seconds, and nothing of numba, which reads its variables when it is imported"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, env=env, **pipes) as process:
        yield process


@dataclass(frozen=True)
class Installed:
    """A folder with the loops alone, and what forks processes that use it."""

    folder: Path
    server: subprocess.Popen[str]

    def run(
        self, out: Path, before: str = "", compiled: bool = True, names: tuple[str, ...] = JOBS, **variables: str
    ) -> tuple[np.ndarray, str]:
        """:return: all that the jobs gave in a process of their own, and what that said"""
        env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")} | variables
        code, said = RUN.format(before=before, compiled=compiled, names=names), out.with_suffix(".txt")
        job = {"code": code, "env": env, "folder": str(self.folder), "out": str(out), "said": str(said)}
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps(job), file=self.server.stdin, flush=True)
        assert int(self.server.stdout.readline()) == 0, said.read_text()
        return np.load(out), said.read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, server: subprocess.Popen[str]) -> Installed:
    folder = tmp_path_factory.mktemp("installation")
    source = Path(backends.__file__).parent
    package = folder / "sb3_dpi" / "world_model"
    shutil.copytree(source, package / "backends", ignore=shutil.ignore_patterns("__pycache__"))
    trajopt = package.parent / "trajopt"
    trajopt.mkdir()
    shutil.copy(compilation.__file__, trajopt)
    for part in (package, trajopt, package.parent):
        (part / "__init__.py").touch()
    shutil.copy(BENCHMARKS / "backends.py", folder)
    return Installed(folder, server)


def expected_of(*names: str) -> np.ndarray:
    """:return: the same by torch, here"""
    problem = jobs.Problem(SMALL, 6)
    results = [job() for name, job in jobs.torch_jobs(problem).items() if name in names]
    networks = problem.model.flat, problem.termination.flat, problem.critic.flat, problem.slow
    given = [np.hstack(one if isinstance(one, tuple) else [one]) for one in results if one is not None]
    return np.concatenate([*(network.detach().numpy().ravel() for network in networks), *given])


@pytest.fixture(scope="module")
def fresh(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, str, Path]:
    """:return: what the jobs gave in the process that compiled them, what it said, and its cache"""
    folder = tmp_path_factory.mktemp("cache")
    return *installed.run(folder / "fresh.npy", NUMBA_CACHE_DIR=str(folder / "cache")), folder / "cache"


needs_numba = pytest.mark.skipif(not compilation.COMPILED, reason="numba is not there to compile")


@needs_numba
def test_the_cache_gives_the_same_bits(fresh: tuple[np.ndarray, str, Path], installed: Installed, tmp_path: Path) -> None:
    numbers, said, cache = fresh
    assert said.count(compilation.ANNOUNCEMENT) == 1 and compilation.WITHOUT_CACHE not in said
    again, said_again = installed.run(tmp_path / "again.npy", NUMBA_CACHE_DIR=str(cache))
    assert compilation.ANNOUNCEMENT not in said_again
    np.testing.assert_array_equal(numbers, again)
    assert len(numbers) > 1000 and np.isfinite(numbers).all()


@needs_numba
def test_a_read_only_installation(installed: Installed, tmp_path: Path) -> None:
    """Nothing can be kept anywhere, as root could in a folder that is merely protected."""
    blocked = tmp_path / "installation"
    shutil.copytree(installed.folder, blocked, ignore=shutil.ignore_patterns("__pycache__"))
    (blocked / "sb3_dpi" / "world_model" / "backends" / "__pycache__").write_text("no folder")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    numbers, said = replace(installed, folder=blocked).run(tmp_path / "out.npy", names=("fit_classifier",), **nowhere)
    assert said.count(compilation.ANNOUNCEMENT) == said.count(compilation.WITHOUT_CACHE) == 1
    np.testing.assert_allclose(numbers, expected_of("fit_classifier"), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("before", "variables", "words"),
    [
        ("sys.modules['numba'] = None", {}, "numba is missing"),
        ("", {"NUMBA_DISABLE_JIT": "1"}, ""),
    ],
    ids=["missing", "disabled"],
)
def test_without_compilation(before: str, variables: dict[str, str], words: str, installed: Installed, tmp_path: Path) -> None:
    """Nothing is supported, so that callers take torch; what is called gives the same, and what is lost is said."""
    numbers, said = installed.run(tmp_path / "out.npy", before, compiled=False, **variables)
    assert said.count("sb3_dpi:") == said.count(words or "sb3_dpi:") == bool(words)
    np.testing.assert_allclose(numbers, expected_of(*JOBS), atol=1e-5, rtol=1e-3)


def half(x: float) -> float:
    """:return: anything"""
    return 0.5 * x


def test_a_numba_that_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as one that is older than numpy: it is done without, and said once."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(compilation, "COMPILED", True)
    monkeypatch.setattr(compilation, "DISABLED", False)
    compilation.compiles.cache_clear()
    try:
        loop = compilation.Loops("nothing", 0)(half)
        assert [loop(4.0), compilation.compiles(), compilation.compiles()] == [2.0, False, False]
    finally:
        compilation.compiles.cache_clear()
    assert capsys.readouterr().err.count(compilation.BROKEN_NUMBA) == 1
