"""Time one iteration on HalfCheetah-v5 in units of the raw ``env.step`` calls that it makes: ``make bench``.

Every repetition times one iteration and then the same number of raw steps with the same actions, so that a change of the
machine's speed meets both. Times are CPU times of one thread; the tables show medians over the repetitions.
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import MDGPS, AggreVaTeDOC
from sb3_dpi.common import dual_policy_algorithm
from sb3_dpi.compare.build import constructor_arguments
from sb3_dpi.trajopt.compilation import COMPILED
from sb3_dpi.zoo import algorithm_class, resolve_hyperparams

ENV_ID = "HalfCheetah-v5"
HORIZON = 100
TRAJECTORIES = 20
PARTS: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "mdgps": (
        ("collection", MDGPS, "collect_rollouts"),
        ("dynamics fit", dual_policy_algorithm, "fit_regression"),
        ("held-out error", dual_policy_algorithm, "held_out_error"),
        ("cost fit", dual_policy_algorithm, "fit_local_cost"),
        ("linearisation", MDGPS, "_linearize"),
        ("C-step", MDGPS, "improve_expert"),
        ("S-step", MDGPS, "imitate"),
    ),
    "aggrevated_oc": (
        ("collection", AggreVaTeDOC, "collect_rollouts"),
        ("dynamics fit", dual_policy_algorithm, "fit_regression"),
        ("held-out error", dual_policy_algorithm, "held_out_error"),
        ("cost fit", dual_policy_algorithm, "fit_local_cost"),
        ("linearisation", AggreVaTeDOC, "_linearize"),
        ("value function", AggreVaTeDOC, "evaluate_policy"),
        ("expert", AggreVaTeDOC, "improve_expert"),
        ("imitation", AggreVaTeDOC, "imitate"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """One column of the table."""

    algo: str
    name: str
    n_envs: int
    arguments: dict[str, Any]
    """of the constructor"""
    normalize: bool = False

    def make_model(self) -> MDGPS | AggreVaTeDOC:
        """:return: an untrained model with its environment"""
        env = make_vec_env(ENV_ID, n_envs=self.n_envs, seed=1)
        wrapped = VecNormalize(env, norm_reward=False) if self.normalize else env
        make = algorithm_class(self.algo)
        return make(**{"policy": "MlpPolicy", **self.arguments, "env": wrapped, "seed": 1, "device": "cpu"})


def make_settings(algo: str) -> list[Setting]:
    """
    Choose what is timed.

    :param algo: name in the zoo
    :return: the pooled setting with one and with four environments, and the zoo entry
    """
    pooled = {"conditions": "random", "n_conditions": 1, "samples_per_condition": TRAJECTORIES, "replay": 0}
    pooled["horizon"] = HORIZON
    entry = resolve_hyperparams(algo, ENV_ID)
    arguments = {**constructor_arguments(entry.hyperparams), "horizon": HORIZON}
    samples = arguments.setdefault("samples_per_condition", 4)
    arguments["n_conditions"] = max(TRAJECTORIES // samples, 1)
    n_envs = int(entry.hyperparams.get("n_envs", 1))
    name = f"zoo entry ({entry.source.rpartition(', ')[2]}), n_envs={n_envs}"
    return [
        Setting(algo, "replay=0, n_envs=1", 1, pooled),
        Setting(algo, "replay=0, n_envs=4", 4, pooled),
        Setting(algo, name, n_envs, arguments, bool(entry.hyperparams.get("normalize", False))),
    ]


@contextmanager
def stopwatch(algo: str) -> Iterator[dict[str, float]]:
    """Time the parts of an iteration.

    :param algo: of which
    :return: from part to the CPU seconds spent in it since the start
    """
    spent = dict.fromkeys((label for label, _, _ in PARTS[algo]), 0.0)

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[label] += time.process_time() - start
            return result

        return call

    with ExitStack() as stack:
        for label, owner, name in PARTS[algo]:
            stack.enter_context(patch.object(owner, name, timed(label, getattr(owner, name))))
        yield spent


def raw_seconds(env: gym.Env, actions: np.ndarray) -> float:
    """CPU seconds of the environment's own steps.

    :param env: the environment, not vectorised
    :param actions: ``[n, T, du]``
    :return: seconds, without the resets
    """
    total = 0.0
    for i, sequence in enumerate(actions):
        env.reset(seed=i)
        start = time.process_time()
        for action in sequence:
            env.step(action)
        total += time.process_time() - start
    return total


def measure(setting: Setting, repetitions: int) -> dict[str, float]:
    """Time iterations of one setting.

    :param setting: what to run
    :param repetitions: timed iterations, after those that fill ``replay``
    :return: raw steps a second, and medians of all parts in units of the raw steps
    """
    model, env = setting.make_model(), gym.make(ENV_ID)
    for _ in range(model.replay + 2):  # the first one also compiles
        model.learn(1, reset_num_timesteps=False)
    rows = []
    for _ in range(repetitions):
        with stopwatch(setting.algo) as spent:
            start = time.process_time()
            model.learn(1, reset_num_timesteps=False)
            total = time.process_time() - start
        taken = np.clip(model.rollout_buffer.trajectories().actions, -1.0, 1.0)
        actions = model.policy.unscale_action(taken.reshape(-1, *taken.shape[2:]).astype(np.float32))
        raw = raw_seconds(env, actions)
        row = {label: seconds / raw for label, seconds in spent.items()}
        row["rest"] = (total - sum(spent.values())) / raw
        row["all but the stepping"] = total / raw - 1.0
        row["share of raw speed"] = 1.0 / row["collection"]
        row["collection"] -= 1.0
        row["raw steps a second"] = actions.shape[0] * actions.shape[1] / raw
        rows.append(row)
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def memory(setting: Setting, iterations: tuple[int, int]) -> list[tuple[float, float]]:
    """Memory after some iterations.

    :param setting: what to run
    :param iterations: when to look
    :return: MiB held by Python and numpy, and MiB of the process (NaN where the system does not tell), at these times
    """
    model, found = setting.make_model(), []
    tracemalloc.start()
    for iteration in range(1, max(iterations) + 1):
        model.learn(1, reset_num_timesteps=False)
        if iteration in iterations:
            gc.collect()
            found.append((tracemalloc.get_traced_memory()[0] / 2**20, resident_mib()))
    tracemalloc.stop()
    return found


def resident_mib() -> float:
    """:return: memory of this process in MiB, NaN where there is no ``/proc``"""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), float("nan"))


def make_table(settings: list[Setting], results: list[dict[str, float]]) -> Table:
    """
    Put the medians side by side.

    :param settings: the columns
    :param results: of ``measure``
    :return: the table
    """
    algo = settings[0].algo
    table = Table(title=f"One iteration of {algo} on {ENV_ID}, {TRAJECTORIES} trajectories of {HORIZON} steps")
    table.caption = "Times of the raw env.step calls of the same iteration; CPU time, one thread, medians."
    table.add_column("")
    for setting in settings:
        table.add_column(setting.name, justify="right")
    table.add_column("target", justify="right")
    labels = [label for label, _, _ in PARTS[algo]]
    rows = [("raw steps a second", ",.0f", ""), ("share of raw speed", ".0%", "at least 50%")]
    rows += [(label, ".2f", "") for label in [*labels, "rest"]]
    rows += [("all but the stepping", ".2f", "at most 4")]
    titles = {"share of raw speed": "collection, share of raw speed", "collection": "collection but the stepping"}
    for key, digits, target in rows:
        if key in ("collection", "all but the stepping"):
            table.add_section()
        table.add_row(titles.get(key, key), *(format(result[key], digits) for result in results), target)
    return table


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="mdgps,aggrevated_oc", help="which, separated by commas (default: all)")
    parser.add_argument("--repetitions", type=int, default=7, help="timed iterations of each setting (default: 7)")
    parser.add_argument("--iterations", type=int, default=25, help="iterations until memory is looked at again (default: 25)")
    args = parser.parse_args()
    th.set_num_threads(1)
    console = Console()
    console.print(f"numba {'compiles the kernels' if COMPILED else 'is not used: install the extra [fast]'}")
    for algo in args.algo.split(","):
        settings = make_settings(algo)
        console.print(make_table(settings, [measure(setting, args.repetitions) for setting in settings]))
        # from the first of these on, replay is full
        first = max(5, *(setting.arguments.get("replay", 4) + 1 for setting in settings))
        times = (first, max(args.iterations, first + 1))
        table = Table("", *(f"after {n} iterations" for n in times), title="Memory, MiB: Python and numpy (whole process)")
        for setting in settings:
            table.add_row(setting.name, *(f"{held:.1f} ({resident:.0f})" for held, resident in memory(setting, times)))
        console.print(table)


if __name__ == "__main__":
    main()
