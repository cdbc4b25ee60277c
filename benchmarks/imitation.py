"""What DAgger learns from a planner, beside behaviour cloning.

python benchmarks/imitation.py [--env Reacher-v5 Pendulum-v1] [--seeds 1 2 3] [--ways dagger cloning] [--report]

The expert plans in the simulator. The score of a policy is (R - random) / (expert - random), returns over the same episodes
for all. A job that is done has a row in results/dagger/TASK.csv and is not done again.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dpi import MPC, DAgger

RESULTS = Path(__file__).parents[1] / "results" / "dagger"
FIELDS = ("task", "way", "seed", "real_steps", "return", "std", "seconds", "algorithm_version")


@dataclass(frozen=True)
class Task:
    """What is imitated, and how."""

    planner: dict[str, Any]
    horizon: int
    steps: int
    train_freq: int
    episodes: int
    expert_episodes: int
    guidance: float
    settings: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "Pendulum-v1": Task({"kind": "iCEM", "n_samples": 24}, 15, 2000, 250, 30, 5, 0.1),
    "Reacher-v5": Task({"kind": "iCEM", "n_samples": 24}, 10, 1500, 250, 30, 20, 0.01),
    "HalfCheetah-v5": Task({"kind": "iCEM", "n_samples": 30, "exponent": 0.25}, 30, 6000, 500, 5, 2, 0.1),
}
WAYS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "dagger": lambda task: {},
    "cloning": lambda task: {"beta": 1.0},
    "guided": lambda task: {"guidance": task.guidance},
}
ALL = ("random", "expert", *WAYS)


def make_expert(name: str, env: Any) -> MPC:
    """:return: the planner of a task"""
    task = TASKS[name]
    return MPC(dict(task.planner), env, system="simulator", horizon=task.horizon, seed=0)


def evaluate(model: Any, name: str, n_episodes: int) -> tuple[float, float]:
    """:return: mean and standard deviation of returns, over the same episodes for all"""
    env = DummyVecEnv([lambda: Monitor(gym.make(name))])
    env.seed(77_000)
    if isinstance(model, MPC):
        model.set_env(env)
    mean, std = evaluate_policy(model, env, n_episodes)
    return float(mean), float(std)  # type: ignore[arg-type]


class Random:
    """Uniform actions."""

    def __init__(self, name: str, seed: int) -> None:
        self.space = gym.make(name).action_space
        self.space.seed(seed)

    def predict(self, obs: np.ndarray, state: Any = None, **_: Any) -> tuple[np.ndarray, Any]:
        """:return: see ``evaluate_policy``"""
        return np.array([self.space.sample() for _ in obs]), state


def job(name: str, way: str, seed: int) -> list[tuple[int, float, float]]:
    """:return: real steps, and what comes of the policy then"""
    task = TASKS[name]
    if way == "random":
        return [(0, *evaluate(Random(name, seed), name, task.episodes))]
    if way == "expert":
        return [(0, *evaluate(make_expert(name, name), name, task.expert_episodes))]
    env, found = gym.make(name), []
    settings = {"train_freq": task.train_freq, **task.settings, **WAYS[way](task)}
    model = DAgger("MlpPolicy", env, make_expert(name, env), seed=seed, device="cpu", **settings)
    while model.num_timesteps < task.steps:
        model.learn(task.steps // 2, reset_num_timesteps=False, log_interval=None)
        found.append((model.num_timesteps, *evaluate(model, name, task.episodes)))
        print(name, way, seed, f"{found[-1][0]}: {found[-1][1]:.1f}", flush=True)
    return found


def do(name: str, way: str, seed: int) -> None:
    """One job, unless its rows are there."""
    path = RESULTS / f"{name}.csv"
    wanted = {"task": name, "way": way, "seed": str(seed)}
    if any(wanted.items() <= row.items() for row in rows(path)):
        return
    begun = time.perf_counter()
    made = job(name, way, seed)
    seconds, is_new = time.perf_counter() - begun, not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        for steps, mean, std in made:
            writer.writerow((name, way, seed, steps, f"{mean:.2f}", f"{std:.2f}", f"{seconds:.0f}", DAgger.algorithm_version))
    print(name, way, seed, f"{made[-1][1]:.1f} in {seconds:.0f} s", flush=True)


def rows(path: Path) -> list[dict[str, str]]:
    """:return: what is done"""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(name: str) -> str:
    """:return: a table in Markdown"""
    done = rows(RESULTS / f"{name}.csv")

    def last(way: str) -> dict[str, float]:
        return {row["seed"]: float(row["return"]) for row in done if row["way"] == way}

    lines = [f"### {name}", "", "| who acts | return, mean of seeds (range) | score | seeds |", "|---|---|---|---|"]
    low, high = (float(np.mean(list(last(way).values()) or [np.nan])) for way in ("random", "expert"))
    for way in dict.fromkeys(row["way"] for row in done):
        found = np.array(list(last(way).values()))
        score = (found.mean() - low) / (high - low)
        shown = f"{found.mean():.1f} ({found.min():.1f} to {found.max():.1f})"
        lines.append(f"| {way} | {shown} | {score:.3f} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", choices=list(TASKS), default=["Reacher-v5", "Pendulum-v1"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=ALL, default=["random", "expert", "dagger", "cloning"])
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    args = parser.parse_args()
    th.set_num_threads(1)
    for seed in () if args.report else args.seeds:
        for name, way in product(args.env, args.ways):
            if way in WAYS or seed == args.seeds[0]:  # the others do not learn
                do(name, way, seed)
    print("\n\n".join(map(report, args.env)))


if __name__ == "__main__":
    main()
