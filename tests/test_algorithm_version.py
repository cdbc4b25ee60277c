"""That an algorithm which learns otherwise than before says so: ``algorithm_version``.

A few updates of each algorithm are compared with a record, ``records/<name>.json``. Where they differ, and were meant to,
raise ``algorithm_version`` in the class, then write the record anew::

    python tests/test_algorithm_version.py dpi          # of one algorithm, or of several
    python tests/test_algorithm_version.py              # of all

Renamed arguments are changed in ``SETTINGS``; where the settings themselves change the record is written anew too. A record is
of one machine and its libraries: elsewhere, rounding differs, and the test is skipped.
"""

import json
import platform
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS as REGISTRY

from sb3_dpi.aggrevated_oc import aggrevated_oc
from sb3_dpi.common.natural_gradient import natural_gradient_step
from sb3_dpi.zoo import ALGORITHMS, algorithm_class

MAKES = {name: next(make for make in REGISTRY if str(make) == kind) for name, kind in ALGORITHMS.items()}
"""The facts of each algorithm, by its name in YAML files"""
RECORDS = Path(__file__).parent / "records"
TOLERANCE = 1e-3
"""On actions, in [-2, 2], and rewards, in [-16, 0]. Sums in another order stay far below it, a changed step of the arithmetic
does not: see ``test_a_change_of_the_arithmetic_is_seen``"""
OBSERVATIONS = np.random.default_rng(0).uniform(-1.0, 1.0, (10, 3)).astype(np.float32)

_PLANNING = {"horizon": 15, "n_conditions": 2, "samples_per_condition": 3, "policy_kwargs": {"net_arch": [16]}}


def balance(obs: np.ndarray) -> np.ndarray:
    """:return: the torque that holds a pendulum up"""
    return np.clip(-8.0 * obs[:, 1:2] - 2.0 * obs[:, 2:], -2.0, 2.0)


SETTINGS: dict[str, dict[str, Any]] = {
    "aggrevated_oc": {**_PLANNING, "n_critic_updates": 5},
    "dagger": {"expert": balance, "train_freq": 60, "gradient_steps": 20, "policy_kwargs": {"net_arch": [16]}},
    "dpi": {
        "train_freq": 60,
        "learning_starts": 60,
        "batch_size": 16,
        "imagination": {"n_windows": 20, "n_rollout_steps": 100},
        "world_model": {"gradient_steps": 0.5, "width": 16},
        "gradient_steps": 12,
        "policy_delay": 5,
        "policy_kwargs": {"net_arch": {"pi": [16, 16], "qf": [16, 16]}},
    },
    "dual_ac": {"n_steps": 90, "batch_size": 32, "n_critic_updates": 3, "policy_kwargs": {"net_arch": [16]}},
    "exit": {
        "n_simulations": 8,
        "train_freq": 50,
        "gradient_steps": 10,
        "batch_size": 32,
        "policy_kwargs": {"net_arch": [16]},
    },
    "mdgps": {**_PLANNING, "imitation_steps": 20, "batch_size": 32},
    "mpc": {
        "policy": {"kind": "MPPI", "n_samples": 20},
        "horizon": 5,
        "train_freq": 60,
        "learning_starts": 60,
        "world_model": {"gradient_steps": 0.5, "width": 16, "n_members": 2},
    },
}
"""Arguments of small models; every algorithm of the package has its own"""
STEPS = 250


class Rewards(gym.Wrapper):  # type: ignore[type-arg]
    """Remembers what the environment paid: what the algorithm did, its noise included."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.paid: list[float] = []

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.paid.append(float(result[1]))
        return result


def machine() -> dict[str, str]:
    """:return: what rounding depends on"""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return {"torch": th.__version__, "numpy": np.__version__, "processor": f"{platform.machine()} {processor}"}


def learn(name: str, **changes: Any) -> dict[str, list[Any]]:
    """:return: what a small model did in training, and does after it"""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    # More steps of conjugate gradients than these tell rounding apart from rounding
    few = partial(natural_gradient_step, cg_max_steps=3)
    try:
        env = Rewards(gym.make("Pendulum-v1", max_episode_steps=50))
        task = MAKES[name].fit(env)
        with patch.object(aggrevated_oc, "natural_gradient_step", few):
            settings = {"policy": "MlpPolicy", **SETTINGS[name], **changes}
            model = algorithm_class(name)(env=task, seed=0, device="cpu", **settings).learn(STEPS)
    finally:
        th.set_num_threads(threads)
    if MAKES[name].discrete:  # numbers of actions do not tell small changes, their chances do
        with th.no_grad():
            actions = model.policy.get_distribution(th.as_tensor(OBSERVATIONS)).distribution.probs.numpy()
    else:
        actions = model.predict(OBSERVATIONS, deterministic=True)[0]
    return {"rewards": env.paid, "actions": actions.astype(np.float64).ravel().tolist()}


learned = cache(learn)
"""The same for all tests of a model as its settings are"""


def difference(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> float:
    """:return: the largest, infinite where there are more steps or others are missing"""
    if first.keys() != second.keys() or any(len(first[key]) != len(second[key]) for key in first):
        return float("inf")
    return float(np.max([np.max(np.abs(np.subtract(first[key], second[key]))) for key in first]))


def check(name: str, record: dict[str, Any], found: dict[str, list[Any]]) -> None:
    """Fail where an algorithm learns otherwise than its record says."""
    command = f"`python tests/test_algorithm_version.py {name}`"
    differs = difference(found, record["found"])
    assert differs <= TOLERANCE, (
        f"{algorithm_class(name).__name__} learns otherwise than its record: actions or rewards differ by {differs:.2g}. "
        f"If that was meant, raise its algorithm_version, then write the record anew with {command}"
    )


def check_version(name: str, record: dict[str, Any]) -> None:
    version = algorithm_class(name).algorithm_version
    assert version == record["algorithm_version"], (
        f"the record is of version {record['algorithm_version']} of {algorithm_class(name).__name__}, which has version "
        f"{version}: write it anew with `python tests/test_algorithm_version.py {name}`"
    )


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def write(name: str, folder: Path = RECORDS) -> None:
    """Write the record of an algorithm."""
    version = algorithm_class(name).algorithm_version
    record = {"algorithm_version": version, "machine": machine(), "found": learn(name)}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_learn_as_their_version_did(name: str) -> None:
    record = read(name)
    check_version(name, record)
    here = machine()
    if differs := [key for key in here if here[key] != record["machine"][key]]:
        pytest.skip(f"the record was written with another {', '.join(differs)}")
    check(name, record, learned(name))


CHANGES = {
    "aggrevated_oc": {"gamma": 0.98},
    "dagger": {"learning_rate": 0.0011},
    "dpi": {"ent_coef": 0.03},
    "dual_ac": {"gae_lambda": 0.9},
    "exit": {"exploration": 1.0},
    "mdgps": {"kl_step": 0.25},
    "mpc": {"gamma": 0.9},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_change_of_the_arithmetic_is_seen(name: str) -> None:
    record = {"found": learned(name)}
    with pytest.raises(AssertionError, match=rf"raise its algorithm_version, then .*test_algorithm_version\.py {name}`"):
        check(name, record, learn(name, **CHANGES[name]))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rounding_stays_below_the_tolerance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First weights of which the last bits differ learn the same, as far as a record can tell."""
    expected = learned(name)
    algorithm = algorithm_class(name)
    set_up = algorithm._setup_model

    def perturbed(self: Any) -> None:
        set_up(self)
        with th.no_grad():
            for parameter in (self.ensemble if MAKES[name].plans else self.policy).parameters():
                parameter.mul_(1.0 + 1e-6)

    monkeypatch.setattr(algorithm, "_setup_model", perturbed)
    assert 0.0 < difference(learn(name), expected) < TOLERANCE


def test_writing_a_record(tmp_path: Path) -> None:
    write("mdgps", tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert path.name == "mdgps.json" and record["machine"] == machine() and all(record["machine"].values())
    check_version("mdgps", record)
    assert difference(record["found"], learned("mdgps")) == 0.0


def test_a_record_of_another_version_is_asked_to_be_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"algorithm_version": algorithm_class("mdgps").algorithm_version}
    check_version("mdgps", record)
    monkeypatch.setattr(algorithm_class("mdgps"), "algorithm_version", record["algorithm_version"] + 1)
    with pytest.raises(AssertionError, match=r"write it anew with `python tests/test_algorithm_version\.py mdgps`"):
        check_version("mdgps", record)


def test_differences() -> None:
    assert difference({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}) == 0.5
    for other in ({"a": [1.0]}, {"b": [1.0, 2.0]}, {}):
        assert difference({"a": [1.0, 2.0]}, other) == float("inf")  # type: ignore[arg-type]
    nan = float("nan")
    assert not difference({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [nan]}) <= TOLERANCE


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ALGORITHMS:
        write(chosen)
        print(f"wrote {RECORDS / chosen}.json")
