"""What is known before the first run, what is said of a run that failed, and episodes that do not end."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import POINT_MASS_ID, PointMass, limited
from gymnasium.envs.registration import WrapperSpec
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dpi.common import environments as common_environments
from sb3_dpi.common.environments import evaluate_on_environments
from sb3_dpi.compare import RunConfig, build, preflight
from sb3_dpi.compare import __main__ as command_line
from sb3_dpi.compare.checks import SuiteError
from sb3_dpi.compare.engines import RunFailed, _cause, converse, execute
from sb3_dpi.compare.processes import Workers
from sb3_dpi.compare.record import read_record, read_result
from sb3_dpi.compare.run import run_one
from sb3_dpi.compare.suite import suite_from_arguments
from sb3_dpi.zoo import algorithm_class, environments
from sb3_dpi.zoo.cause import in_one_line, is_users
from sb3_dpi.zoo.hyperparams import HYPERPARAMS_FOLDER, _read_entries, zoo_entries
from sb3_dpi.zoo.register import ALGORITHMS, impossible_value

SMALL = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [8]}, "n_steps": 32, "batch_size": 32, "n_epochs": 1}
ENDLESS_ID = "Endless-v0"


def config(algo: str = "ppo", env_id: str = POINT_MASS_ID, **changes: Any) -> RunConfig:
    settings = {"seed": 1, "n_timesteps": 64, "eval_every": 32, "n_eval_episodes": 2, "source": "test", **changes}
    hyperparams = {**SMALL, **settings.pop("hyperparams", {})}
    return RunConfig(algo, env_id, hyperparams=hyperparams, **settings)


@pytest.fixture
def endless() -> Iterator[str]:
    """Id of an environment without time limit whose episodes do not end."""
    gym.register(ENDLESS_ID, PointMass)
    yield ENDLESS_ID
    gym.registry.pop(ENDLESS_ID)


# ---------------------------------------------------------------------- before the first run


def check_here(configs: list[RunConfig], out: Path) -> list[str]:
    """Check in this process, which knows what tests have registered."""
    with patch.object(preflight, "_answers", lambda configs, _: list(map(preflight.check_run, configs))):
        return preflight.check_runs(configs, out)


ENDS = """
import os, sys, time
import gymnasium as gym
from dummy_envs import PointMass

class Ends(PointMass):
    def __init__(self, how):
        super().__init__()
        self.how = how
        print("not for the terminal")
    def reset(self, **kwargs):
        exec(self.how)
        return super().reset(**kwargs)

gym.register("Ends-v0", Ends, max_episode_steps=9)
"""


def test_what_ends_a_process_does_not_end_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ending.py").write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(preflight, "PATIENCE", 0.05)
    hows = ["sys.exit(0)", "raise KeyboardInterrupt", "os.abort()", "os.kill(os.getpid(), 9)", "os._exit(0)", "pass"]
    configs = [
        config(env_id="ending:Ends-v0", task=f"task{number}", env_kwargs={"how": how}) for number, how in enumerate(hows)
    ]
    workers = Workers(fork=True)
    with closing(SimpleNamespace(close=workers.end)), pytest.raises(SuiteError) as caught:
        preflight.check_runs(configs, tmp_path, workers)
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "task0: SystemExit: 0 (ending.py:12 in reset)",
        "task1: KeyboardInterrupt (ending.py:12 in reset)",
    ]
    assert lines[2] == "ppo on task2: killed by signal 6 (Aborted) (ending.py:12 in reset)"
    assert lines[3].startswith("ppo on task3: killed by signal 9 (Killed)")
    assert lines[4:] == ["ppo on task4: ended with exit status 0, without an exception"]
    said = capfd.readouterr()
    assert said.out == "" and "task0, seed 1: not built, reset and stepped within 0 s; waiting on" in said.err
    assert "not for the terminal" not in said.err and "WARN" not in said.err


def test_a_check_that_hangs_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worker.py").write_text(
        "import sys, time\nsys.stdin.readline()\nprint('[]', flush=True)\ntime.sleep(999)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sb3_dpi.compare.processes.WORKER", "some_worker")

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converse({}, tmp_path / "log", Workers(), interrupted)


def test_no_environments() -> None:
    assert "n_envs: at least 1 is needed, not 0" in str(preflight.check_run(config(hyperparams={"n_envs": 0})))


def test_what_runs_passes(tmp_path: Path) -> None:
    assert check_here([config(), config(seed=2)], tmp_path) == []


def test_every_algorithm_is_tried_on_every_task(tmp_path: Path) -> None:
    configs = [
        config(),
        config("sac", "CartPole-v1", hyperparams={"n_steps": 1}),
        config("ppo", "Pendulum-v1", label="small", hyperparams={"policy_kwargs": {"net_arhc": [8]}}),
        config("ppo", "Pendulum-v1", label="wrapped", hyperparams={"normalize": {"norm_ops": True}}),
    ]
    with pytest.raises(SuiteError) as caught:
        check_here(configs, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, *words in zip(
        sorted(lines),
        ("sac on CartPole-v1: TypeError", "small on Pendulum-v1: TypeError", "wrapped on Pendulum-v1: TypeError"),
        ("unexpected keyword argument", "net_arhc", "norm_ops"),
        strict=True,
    ):
        assert all(word in line for word in words) and line.endswith("(hyperparameters of test)")


def test_a_task_that_an_algorithm_cannot_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--algo", "ppo,dpi", "--env", "CartPole-v1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "dpi on CartPole-v1: AssertionError: The algorithm only supports" in error
    assert not (tmp_path / "out").exists()


class Broken(PointMass):
    """Fails as it is told to."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def reset(self, **kwargs: Any) -> Any:
        found = super().reset(**kwargs)
        if self.fault == "reset fails":
            raise OSError("no robot")
        return {"old reset": np.zeros(5), "another shape": (np.zeros(5), {})}.get(self.fault, found)

    def step(self, action: np.ndarray) -> Any:
        if self.fault == "step fails":
            raise OSError("no robot")
        found = super().step(action)
        return {"old step": (*found[:2], False, {}), "no reward": (found[0], None, *found[2:])}.get(self.fault, found)


def line_of(method: Any) -> str:
    return f"(test_preflight.py:{method.__code__.co_firstlineno} in {method.__name__})"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reset fails", f"OSError: no robot (test_preflight.py:{Broken.reset.__code__.co_firstlineno + 3} in reset)"),
        ("step fails", f"OSError: no robot (test_preflight.py:{Broken.step.__code__.co_firstlineno + 2} in step)"),
        ("old reset", f"reset returns one value, and Gymnasium wants observation, info {line_of(Broken.reset)}"),
        (
            "old step",
            "step returns 4 values, and Gymnasium wants observation, reward, terminated, truncated, info "
            f"{line_of(Broken.step)}",
        ),
        (
            "another shape",
            f"reset returns an observation of shape (5,), and observation_space has (2,) {line_of(Broken.reset)}",
        ),
        ("no reward", "TypeError: float() argument must be a string or a real number, not 'NoneType' " + line_of(Broken.step)),
    ],
)
def test_an_environment_that_fails_at_once(fault: str, said: str, tmp_path: Path) -> None:
    with patch.dict(gym.registry):
        gym.register("Broken-v0", Broken, max_episode_steps=9)
        configs = [config(env_id="Broken-v0", env_kwargs={"fault": fault}, label=label) for label in ("one", "other")]
        with pytest.raises(SuiteError) as caught:
            check_here(configs, tmp_path)
    assert str(caught.value) == f"Broken-v0: {said}"


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("gamma=abc", "a number is needed, not 'abc'"),
        ("target_kl=high", "a number is needed, not 'high'"),
        ("gamma=[0.9, 0.99]", "a number is needed, not [0.9, 0.99]"),
        ("n_epochs=0.5", "a whole number is needed, not 0.5"),
    ],
)
def test_values_of_an_impossible_kind(assignment: str, problem: str) -> None:
    with pytest.raises(SuiteError) as caught:
        suite_from_arguments(["ppo"], ["Pendulum-v1"], overrides=[f"ppo.{assignment}"])
    assert str(caught.value) == f"tasks.Pendulum-v1.set.ppo.{assignment.partition('=')[0]}: {problem}"


def test_values_that_are_possible() -> None:
    given = ["learning_rate=lin_1e-3", "gamma=1", "n_steps=1e2", "n_epochs=2.0", "target_kl=null", "clip_range_vf=lin_0.2"]
    given += ["policy_kwargs=dict(net_arch=[8])", "policy_kwargs={net_arch: [8]}", "n_envs=2", "normalize_advantage=false"]
    for assignment in given:
        suite_from_arguments(["ppo"], ["Pendulum-v1"], overrides=[f"ppo.{assignment}"])
    suite_from_arguments(
        ["sac", "dpi", "td3"], ["Pendulum-v1"], overrides=["sac.ent_coef=auto_0.1", "td3.train_freq=[1, episode]"]
    )

    class Mine:
        def __init__(self, weight=1, rate: float | Callable[[float], float] = 0.1) -> None: ...  # type: ignore[no-untyped-def]

    assert impossible_value(Mine, "weight", 0.5) == impossible_value(Mine, "rate", "lin_1") == ""
    assert impossible_value(Mine, "rate", abs) == impossible_value(Mine, "other", "x") == ""
    assert impossible_value(Mine, "weight", "x") == impossible_value(Mine, "rate", "x") == "a number is needed, not 'x'"


def test_no_entry_has_an_impossible_value() -> None:
    for algo in (*ALGORITHMS, "ppo", "sac", "td3", "trpo", "tqc"):
        entries = _read_entries(HYPERPARAMS_FOLDER / f"{algo}.yml") if algo in ALGORITHMS else zoo_entries(algo)
        for entry in entries.values():
            assert not any(impossible_value(algorithm_class(algo), *item) for item in entry.items())


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e6))
    assert check_here([config()], tmp_path / "none" / "yet") == []
    with pytest.raises(SuiteError, match=r"--out .*yet: 5 MB are free, about 6 MB are needed; choose another"):
        check_here([config(seed=seed) for seed in (1, 2, 3)], tmp_path / "none" / "yet")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    preflight.check_device("cpu", here=True)
    preflight.check_device("cuda", here=False)  # of a cluster's nodes
    with pytest.raises(ValueError, match="--device cuda:1: PyTorch finds no such device on this machine"):
        preflight.check_device("cuda:1", here=True)
    with pytest.raises(ValueError, match="--device cdua: Expected one of"):
        preflight.check_device("cdua", here=False)


@pytest.mark.parametrize("arguments", [["--seed", "2"], ["--eval", "100"], ["--no-rep"]])
def test_nothing_is_abbreviated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["run", "--algo", "ppo", "--env", "Pendulum-v1", *arguments])
    assert f"unrecognized arguments: {' '.join(arguments)}" in capsys.readouterr().err


def test_custom_envs_are_known_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "custom_envs.py").write_text("raise ImportError('as planned')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        command_line.main(["report", "--out", str(tmp_path)])
    assert (
        "custom_envs is there but cannot be imported: ImportError: as planned (custom_envs.py:1 in <module>)"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------------- episodes that do not end


def test_an_evaluation_ends(
    endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "LONGEST_EPISODE", 30)
    run_one(config(env_id=endless), tmp_path / "run")
    curve = read_result(read_record(tmp_path / "run")).curve
    assert len(curve.timesteps) == 2 and np.all(curve.lengths == 30)
    assert capsys.readouterr().err.count("2 of 2 episodes of an evaluation did not end and were cut after 30 steps") == 1
    (note,) = check_here([config(env_id=endless), config(env_id=endless, seed=2)], tmp_path)
    assert note.startswith(
        "Endless-v0 has no time limit, or a very long one: the episodes of an evaluation are cut after 30 steps"
    )


class NoEnd(gym.Wrapper):
    """A task that goes on for ever: the end of an episode is not told, or is one that no monitor hears of."""

    def __init__(self, env: gym.Env, told: bool = False) -> None:
        super().__init__(env)
        self.told = told

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            observation, _ = self.env.reset()
        return observation, reward, self.told and self.unwrapped.np_random.random() < 0.3, False, info


class FalseEnd(NoEnd):
    """Ends on its own, before the monitor beneath it hears of an end."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, told=True)


@pytest.mark.parametrize("wrapper", ["NoEnd", "FalseEnd", "registered", "far"])
def test_an_evaluation_ends_whatever_wraps_the_environment(
    wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "LONGEST_EPISODE", 30)
    with patch.dict(gym.registry):
        inner = (WrapperSpec("NoEnd", f"{__name__}:NoEnd", {}),) if wrapper == "registered" else ()
        limit = {"registered": 9, "NoEnd": 9, "FalseEnd": None, "far": 10**9}[wrapper]
        gym.register("Wrapped-v0", PointMass, max_episode_steps=limit, additional_wrappers=inner)
        outer = {"env_wrapper": f"{__name__}.{wrapper}"} if wrapper.endswith("End") else {}
        run_one(config(env_id="Wrapped-v0", hyperparams=outer), tmp_path / "run")
        assert ("Wrapped-v0" in str(check_here([config(env_id="Wrapped-v0")], tmp_path))) == (limit not in (9,))
    assert np.all(read_result(read_record(tmp_path / "run")).curve.lengths == 30)
    assert capsys.readouterr().err.count("did not end and were cut after 30 steps") == 1


def test_an_evaluation_of_the_zoo_ends_whatever_wraps_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "LONGEST_EPISODE", 30)
    env = make_vec_env(lambda: NoEnd(limited(9)), 2)
    model = PPO("MlpPolicy", env, **{name: value for name, value in SMALL.items() if name != "policy"})  # type: ignore[arg-type]
    with environments.evaluations_that_end():
        model.learn(64, callback=EvalCallback(env, eval_freq=20, n_eval_episodes=5, verbose=0))
    assert capsys.readouterr().out.count("did not end: they are cut after 30 steps") == 1


def test_a_time_limit_among_the_arguments(endless: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = config(env_id=endless, env_kwargs={"max_episode_steps": 7})
    run_one(limited, tmp_path / "run")
    assert np.all(read_result(read_record(tmp_path / "run")).curve.lengths == 7)
    assert check_here([limited], tmp_path) == [] and capsys.readouterr().err == ""
    with_limit = build.make_env(config(), evaluation=True)
    assert with_limit.get_attr("_max_episode_steps") == [12, 12]


def test_a_test_on_environments_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common_environments, "LONGEST_EPISODE", 30)
    model = small_mdgps(limited(12))
    with pytest.warns(UserWarning, match="Environment 1: an episode was cut after 30 steps"):
        evaluate_on_environments(model, [POINT_MASS_ID, PointMass], n_eval_episodes=1)


# ---------------------------------------------------------------------- what is said of a run that failed


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_in_one_line() -> None:
    first = raised.__code__.co_firstlineno
    place = f"(test_preflight.py:{first + 2} in raised)"
    assert in_one_line(raised(ValueError("two\n  lines"))) == f"ValueError: two lines {place}"
    assert in_one_line(raised(KeyboardInterrupt())) == f"KeyboardInterrupt {place}"
    long = in_one_line(raised(ValueError("x" * 1000)))
    assert long.endswith(f"x ... {place}") and len(long) < 600
    # The user's code is where the cause arose, not where a library passed it on
    outer = RuntimeError("passed on")
    outer.__cause__ = raised(ValueError("cause"))
    assert in_one_line(outer) == f"RuntimeError: passed on {place}"
    assert in_one_line(ValueError("of nobody")) == "ValueError: of nobody"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise TypeError("nope")


def test_the_place_is_in_a_file_of_the_user() -> None:
    for act in (lambda: np.random.default_rng(0).choice([]), lambda: np.random.default_rng(-1)):
        with pytest.raises(ValueError) as caught:
            act()
        assert in_one_line(caught.value).endswith("in <lambda>)") and "(test_preflight.py:" in in_one_line(caught.value)
    said = in_one_line(raised(Unspeakable()))
    assert said.startswith("Unspeakable: (its text fails with TypeError) (test_preflight.py:")


def test_words_that_cannot_be_printed(tmp_path: Path) -> None:
    """Such as a file name of bytes that are no text, on a stream that refuses them."""
    program = "import sys\nfrom sb3_dpi.compare.__main__ import main\nmain(['report', '--out', 'no\\udcff\\u0416'])"
    for encoding, shown in (("utf-8:strict", "no\\udcff\u0416"), ("ascii:strict", "no\\udcff\\u0416")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 2 and f"--out {shown}: no such folder" in done.stderr.decode(), done.stderr.decode()


def test_whose_code_it_is() -> None:
    assert is_users(__file__) and not is_users("<frozen runpy>") and not is_users("_generator.pyx")
    assert not any(is_users(module.__file__) for module in (preflight, np, shutil))


@pytest.mark.parametrize(
    ("returncode", "log", "expected"),
    [
        (7, "logger.warn(", "ended with exit status 7, without an exception"),
        (-signal.SIGTERM, "", "killed by signal 15 (Terminated)"),
        (1, "Traceback (most recent call last):\n  File x\n    y\nImportError: z\nw", "ImportError: z"),
        (-signal.SIGKILL, "x\n", "killed by signal 9 (Killed), as the system does where memory is short"),
        (
            -signal.SIGSEGV,
            f'Fatal Python error: x\n  File "{shutil.__file__}", line 3 in f\n  File "/me/my.py", line 12 in g\n',
            "killed by signal 11 (Segmentation fault) (my.py:12 in g)",
        ),
    ],
)
def test_a_process_that_could_not_say_how_it_ended(returncode: int, log: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(log)
    assert _cause(returncode, path) == expected


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("print('{\"finished\": true}', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)", None),
        ('print(\'{"failed": "ValueError: x"}\', flush=True)\nprint("later", file=sys.stderr)', "ValueError: x"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by signal 15 (Terminated)"),
    ],
)
def test_the_last_line_of_a_process_counts(
    program: str, cause: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_worker.py").write_text(f"import os, signal, sys\nsys.stdin.readline()\nprint('[3, null]')\n{program}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sb3_dpi.compare.processes.WORKER", "some_worker")
    progress: list[tuple[int, float | None]] = []

    def run() -> None:
        execute(config(), "key", tmp_path, tmp_path / "x.log", lambda *told: progress.append(told))

    if cause is None:
        run()
        assert progress == [(0, None), (3, None)]
    else:
        with pytest.raises(RunFailed) as caught:
            run()
        assert caught.value.cause == cause
