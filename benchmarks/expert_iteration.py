"""What expert iteration earns, beside PPO and DQN, and its search beside a search without a network.

python benchmarks/expert_iteration.py [--env CartPole-v1 Taxi-v4] [--seeds 1 2 3] [--ways exit ppo dqn search] [--report]

``exit``, ``ppo`` and ``dqn`` learn until they have taken as many steps of the simulator: for ExIt those of its searches count
like real ones. The network alone is evaluated on the way, without noise; its rows say the steps and the processor's seconds of
training. PPO and DQN have RL Zoo's tuned settings, or where there are none the defaults of Stable-Baselines3. ``search``
plays on with what ``exit`` has learned: ``network``, ``network and search``, and ``uct``, which acts at random behind its
leaves, with as many simulations. A job that is done has rows in results/exit/TASK.csv and is not done again.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dpi import ExIt
from sb3_dpi.compare import RunConfig
from sb3_dpi.compare.build import build_model
from sb3_dpi.systems import Simulator
from sb3_dpi.trajopt.mcts import uct
from sb3_dpi.zoo import resolve_hyperparams

RESULTS = Path(__file__).parents[1] / "results" / "exit"
FIELDS = ("task", "way", "seed", "simulator_steps", "real_steps", "return", "seconds")
WAYS = ("exit", "ppo", "dqn", "search")
NORMALIZED = "normalize"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    budget: int
    """steps of the simulator"""
    episodes: int
    """of an evaluation"""
    search_episodes: int
    search_limit: int
    """steps of an episode that is searched"""
    uct_horizon: int
    """steps of a walk of UCT with its random end"""


SIZES = {
    "CartPole-v1": Size(60_000, 20, 3, 200, 30),
    "FrozenLake-v1": Size(60_000, 200, 50, 100, 50),
    "Taxi-v4": Size(500_000, 50, 5, 50, 50),
    "Acrobot-v1": Size(60_000, 20, 3, 200, 50),
}
N_EVALUATIONS = 6


# ---------------------------------------------------------------------- learning

Row = tuple[int, int, float, float]
"""Steps of the simulator, real ones, return, seconds"""


def evaluate(model: Any, task: str) -> float:
    """:return: mean return of the network over the same episodes for all"""
    env = make_vec_env(task, SIZES[task].episodes, seed=77_000)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        env = type(normalizer)(env, training=False, norm_reward=False)
        env.obs_rms = normalizer.obs_rms
    mean, _ = evaluate_policy(model, env, SIZES[task].episodes)
    return float(mean)  # type: ignore[arg-type]


class Look(BaseCallback):
    """Looks at the network from time to time, between rollouts, and ends with the budget."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.budget, self.rows = task, SIZES[task].budget, list[Row]()
        self.begun, self.looked = time.process_time(), 0.0

    @property
    def steps(self) -> int:
        """Of the simulator, real ones included."""
        return self.num_timesteps + getattr(self.model, "simulator_steps", 0)

    def _on_step(self) -> bool:
        return self.steps < self.budget

    def _on_rollout_start(self) -> None:
        every, last = self.budget // N_EVALUATIONS, self.rows[-1][0] if self.rows else 0
        if self.steps // every > last // every:
            self.look()

    def look(self) -> None:
        """Evaluate now; the clock stands still."""
        now = time.process_time()
        value = evaluate(self.model, self.task)
        self.rows.append((self.steps, self.model.num_timesteps, value, now - self.begun - self.looked))
        self.looked += time.process_time() - now


def learner(task: str, way: str, seed: int) -> Any:
    """:return: with its tuned settings, or defaults"""
    settings = dict(resolve_hyperparams(way, task).hyperparams)
    if task in ("FrozenLake-v1", "Taxi-v4"):  # numbers of states cannot be normalised
        settings.pop(NORMALIZED, None)
    settings["n_timesteps"] = SIZES[task].budget  # what falls with the progress falls within the budget
    sized = {"n_timesteps": SIZES[task].budget, "eval_every": 10**9, "n_eval_episodes": 1, "source": "benchmark"}
    return build_model(RunConfig(way, task, seed=seed, hyperparams=settings, **sized))


def learn(task: str, way: str, seed: int, models: Path) -> list[Row]:
    """:return: how it went"""
    model, look = learner(task, way, seed), Look(task)
    model.learn(SIZES[task].budget, callback=look, log_interval=None)
    look.look()
    if way == "exit":
        model.save(models / f"{task}_{seed}")
    return look.rows


# ---------------------------------------------------------------------- searching


def play(model: ExIt, env: gym.Env, way: str, seed: int, size: Size) -> tuple[float, int]:
    """:return: of an episode, and steps of the simulator that searches took"""
    obs, _ = env.reset(seed=seed)
    model.set_env(env, force_reset=False)
    simulator = Simulator(env, time_limits=False)
    rng, state = np.random.default_rng(seed), None
    total, steps, is_over = 0.0, 0, False
    while not is_over:
        if way == "uct":
            found = uct(simulator, simulator.read(env), rng, model.n_simulations, size.uct_horizon, model.gamma)
            action, steps = found.action, steps + found.n_steps
        else:
            action, state = model.predict(obs, state, deterministic=True, search=way == "network and search")
            steps += 0 if state is None else state[0][0].n_steps
        obs, reward, terminated, truncated, _ = env.step(int(action))
        total, is_over = total + float(reward), terminated or truncated
    return total, steps


def search(task: str, seed: int, models: Path) -> Iterator[tuple[str, Row]]:
    """Play in three ways from the same first states."""
    size = SIZES[task]
    env = gym.make(task, max_episode_steps=size.search_limit)
    model = ExIt.load(models / f"{task}_{seed}", env=env)
    for way in ("network", "network and search", "uct"):
        begun = time.process_time()
        played = [play(model, env, way, 88_000 + i, size) for i in range(size.search_episodes)]
        returns, steps = zip(*played, strict=True)
        yield way, (int(sum(steps)), 0, float(np.mean(returns)), time.process_time() - begun)


# ---------------------------------------------------------------------- jobs


def do(task: str, way: str, seed: int, models: Path) -> None:
    """One job, unless its rows are there."""
    path = RESULTS / f"{task}.csv"
    known = {"network", "network and search", "uct"} if way == "search" else {way}
    if any(row["way"] in known and row["seed"] == str(seed) for row in rows(path)):
        return
    if way == "search" and not (models / f"{task}_{seed}.zip").exists():
        print(f"{task} {seed}: no model of exit in {models}")
        return
    made = list(search(task, seed, models)) if way == "search" else [(way, row) for row in learn(task, way, seed, models)]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        for name, (steps, real, value, seconds) in made:
            writer.writerow((task, name, seed, steps, real, f"{value:.3f}", f"{seconds:.1f}"))
    print(
        task, way, seed, [f"{name} {steps}: {value:.2f} ({seconds:.0f} s)" for name, (steps, _, value, seconds) in made][-3:]
    )


def rows(path: Path) -> list[dict[str, str]]:
    """:return: what is done"""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- report


def spread(values: list[float]) -> str:
    """:return: mean and range"""
    return f"{np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})" if values else "-"


def report(task: str) -> str:
    """:return: tables in Markdown: at equal steps of the simulator, at equal seconds, and with search"""
    done = rows(RESULTS / f"{task}.csv")
    learned: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in done:
        learned.setdefault(row["way"], {}).setdefault(row["seed"], []).append(row)
    quickest = min((float(own[-1]["seconds"]) for way in WAYS[:3] for own in learned.get(way, {}).values()), default=0.0)
    lines = [
        f"### {task}",
        "",
        f"| way | seeds | return, {SIZES[task].budget:,} steps | seconds | return, {quickest:.0f} s |",
        "|---|---|---|---|---|",
    ]
    for way, seeds in learned.items():
        ends = [own[-1] for own in seeds.values()]
        early = [[row for row in own if float(row["seconds"]) <= quickest + 0.5] for own in seeds.values()]
        in_time = spread([float(own[-1]["return"]) for own in early if own]) if way in WAYS else "-"
        seconds = f"{np.mean([float(row['seconds']) for row in ends]):.0f}"
        lines.append(f"| {way} | {len(seeds)} | {spread([float(row['return']) for row in ends])} | {seconds} | {in_time} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--models", type=Path, default=Path("exit_models"), help="folder of models, default: %(default)s")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    args = parser.parse_args()
    th.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    args.models.mkdir(parents=True, exist_ok=True)
    for task in args.env:
        for seed in () if args.report else args.seeds:
            for way in args.ways:
                do(task, way, seed, args.models)
        print(report(task), flush=True)


if __name__ == "__main__":
    main()
