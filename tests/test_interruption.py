"""Ctrl-C at any moment of ``learn``: what is left can be saved and goes on."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from algorithms import ALGORITHMS, Make, every_algorithm, small_dpi, small_mdgps
from dummy_envs import ITERATION, limited
from forks import forked
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import sb3_dpi
from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DAgger, DualAC
from sb3_dpi.dpi import offline
from sb3_dpi.trajopt import compilation

INTERRUPTED = tuple(
    str(Path(module.__file__).parent) + os.sep for module in (sb3_dpi, stable_baselines3, th.optim) if module.__file__
)
"""Whose lines are counted and interrupted"""
N_POINTS = 12
STEPS = ITERATION
MOVES_ON = {
    "num_timesteps",
    "start_time",
    "n_episodes",
    "steps_since_training",
    "saw_failure",
    "time_limit",
    "initial_observations",
    "simulator_steps",
}
"""Attributes that follow the steps taken, not the iterations"""

OPTIONS: dict[type[Any], list[dict[str, Any]]] = {
    MDGPS: [{"conditions": "fixed", "step_rule": "classic", "replay": 1}],
    AggreVaTeDOC: [{"conditions": "mixed", "replay": 1, "critic_replay": True}],
    DPI: [{}, {"critic": {"kind": "returns"}, "expert": "lqr"}],
    DualAC: [{"early_reset": 4}],
    DAgger: [{"beta": 0.5}],
}
"""With which there is more to undo"""
CASES = [(make, options) for make in ALGORITHMS for options in OPTIONS.get(make.algorithm, [{}])]


@contextmanager
def interrupted_at(line: int | None, within: str = "") -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at a line of those that are executed, of a file alone; None counts them only."""
    count = [0]

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(INTERRUPTED) or not frame.f_code.co_filename.endswith(within):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


def flat(value: Any) -> Iterator[np.ndarray]:
    """:return: all numbers in nested dictionaries, lists and statistics"""
    if isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    elif isinstance(value, RunningMeanStd):
        yield from flat(vars(value))
    elif isinstance(value, int | float | np.ndarray | th.Tensor):
        yield value.detach().numpy().copy() if isinstance(value, th.Tensor) else np.array(value)


def learned(model: BaseAlgorithm) -> list[np.ndarray]:
    """:return: copies of all parameters, moments, learning rates and other numbers that an iteration changes"""
    own = {name: value for name, value in vars(model).items() if name[0] != "_" and name not in MOVES_ON}
    return list(flat([model.get_parameters(), own, model._n_updates]))


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make, options", CASES, ids=str)
def test_an_iteration_is_done_as_a_whole_or_not_at_all(make: Make, options: dict[str, Any]) -> None:
    env = VecNormalize(DummyVecEnv([lambda: limited(12)]), norm_reward=False)
    model = make(env, **options).learn(2 * STEPS)
    with interrupted_at(None) as count:
        model.learn(STEPS, reset_num_timesteps=False)
    undone = 0
    for line in np.linspace(1, 0.98 * count[0], N_POINTS).astype(int):
        before, n_updates = learned(model), model._n_updates
        with pytest.raises(KeyboardInterrupt), interrupted_at(int(line)):
            model.learn(2 * STEPS, reset_num_timesteps=False)  # an iteration may have fewer lines than another
        if model._n_updates == n_updates:
            undone += 1
            assert_same(learned(model), before)
    assert undone > N_POINTS // 3  # the others came after an iteration
    saved = io.BytesIO()
    model.save(saved)
    saved.seek(0)
    loaded = type(model).load(saved, env)
    observations = np.linspace(-1.0, 1.0, 10).reshape(5, 2)
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, loaded)))
    for one in (model, loaded):
        n_updates = one._n_updates
        one.learn(2 * STEPS, reset_num_timesteps=False)
        assert one._n_updates > n_updates and all(np.isfinite(array).all() for array in flat(one.get_parameters()))


def test_a_block_of_logged_data_is_learned_as_a_whole_or_not_at_all() -> None:
    """Also between what ``learn_offline`` does itself: its lines are few, and all of them are interrupted."""
    model = small_dpi(limited(12)).learn(2 * STEPS)
    own = Path(offline.__file__ or "").name
    with interrupted_at(None) as count:
        model.learn_offline(2)
    with interrupted_at(None, own) as own_count:
        model.learn_offline(2, log_interval=None)
    undone = 0
    for lines, within in ((np.linspace(1, 0.98 * count[0], N_POINTS), ""), (np.arange(1, own_count[0] + 1), own)):
        for line in lines.astype(int):
            before, n_updates = learned(model), model._n_updates
            with pytest.raises(KeyboardInterrupt), interrupted_at(int(line), within):
                model.learn_offline(4, log_interval=None)
            assert model.offline_steps == 0
            if model._n_updates == n_updates:
                undone += 1
                assert_same(learned(model), before)
    assert undone > N_POINTS
    n_updates = model._n_updates
    model.learn_offline(2).learn(STEPS, reset_num_timesteps=False)
    assert model._n_updates > n_updates + 2 and all(np.isfinite(array).all() for array in flat(model.get_parameters()))


@every_algorithm
def test_what_goes_on_begins_with_a_reset(make: Make) -> None:
    """The last observation may be older than the environment."""
    env = limited(12)
    model, resets = make(env).learn(STEPS), len(env.unwrapped.seeds)

    class Stop(BaseException): ...

    def stop(local: Any, _: Any) -> bool:
        if model.num_timesteps % 12 == 7:
            raise Stop
        return True

    with pytest.raises(Stop):
        model.learn(STEPS, callback=stop, reset_num_timesteps=False)
    resets, n_steps = len(env.unwrapped.seeds), env.unwrapped.t
    assert n_steps > 0
    first: list[int] = []
    model.learn(STEPS, callback=lambda *_: first.append(env.unwrapped.t) or True, reset_num_timesteps=False)
    assert len(env.unwrapped.seeds) > resets and first[0] == 1


def test_the_second_press_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restoring is not left half done either."""
    model = small_mdgps(limited(12)).learn(STEPS)
    before, original, presses = learned(model), type(model).set_parameters, []

    def impatient(self: Any, *args: Any, **kwargs: Any) -> None:
        presses.append(True)
        if len(presses) < 3:
            raise KeyboardInterrupt
        original(self, *args, **kwargs)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the midst of an iteration")

    monkeypatch.setattr(type(model), "set_parameters", impatient)
    monkeypatch.setattr(type(model), "_end_iteration", fail)
    with pytest.raises(RuntimeError, match="in the midst"):
        model.learn(STEPS, reset_num_timesteps=False)
    assert len(presses) == 3
    assert_same(learned(model), before)


def test_a_long_fit_ends_at_once(tmp_path: Path) -> None:
    def press() -> None:
        model = small_mdgps(limited(12), imitation_steps=10**7)
        original = model.imitate
        model.imitate = lambda *args: (print("fitting"), original(*args))[1]  # type: ignore[func-returns-value,method-assign]
        try:
            model.learn(100)
        except KeyboardInterrupt:
            model.imitation_steps, model.imitate = 5, original  # type: ignore[method-assign]
            model.save(tmp_path / "model.zip")
            model.learn(100)
            print(model.n_iterations)

    with forked(press) as process:
        assert process.printed.readline() == "fitting\n"
        process.send(signal.SIGINT)
        code, printed = process.end()
    assert code == 0 and int(printed) >= 3
    assert sb3_dpi.MDGPS.load(tmp_path / "model.zip").n_iterations == 0


class PressedWhileImported:
    """Presses Ctrl-C within the import of numba."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "numba.core.event":
            signal.raise_signal(signal.SIGINT)


def interrupt_the_import() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        del sys.modules[name]
    compilation.compiles.cache_clear()
    sys.meta_path.insert(0, PressedWhileImported())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        compilation.compiles()
    assert "numba.core.event" in sys.modules and compilation.compiles()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("whole")


@pytest.mark.skipif(not compilation.COMPILED, reason="nothing is imported")
def test_ctrl_c_while_numba_is_imported() -> None:
    with forked(interrupt_the_import) as process:
        code, printed = process.end()
    assert code == 0 and printed.endswith("whole\n"), printed
