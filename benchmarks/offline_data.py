"""What logged data save, and what can be learned from them alone.

python benchmarks/offline_data.py [--env Pendulum-v1 HalfCheetah-v5] [--seeds 1 2 3] [--ways ...] [--report]

A behaviour run of DPI makes three sets of a task: ``random`` (uniform actions), ``medium`` (its policy on the way, with
noise), ``replay`` (all that it had seen until then). Each way of learning from a set is a job: DPI offline and then online,
DPI offline with pessimism, behaviour cloning, TD3+BC (Fujimoto & Gu 2021); ``empty`` is DPI online from nothing. A job that
is done has rows in results/data/TASK.csv and is not done again; sets are kept in --sets.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import polyak_update

from sb3_dpi import DPI, data
from sb3_dpi.data import Episode, Episodes

RESULTS = Path(__file__).parents[1] / "results" / "data"
FIELDS = ("task", "set", "way", "seed", "real_steps", "updates", "return", "seconds")
SETS = ("random", "medium", "replay")
BEHAVIOUR_SEED, NOISE = 100, 0.3
PESSIMISM = 1.0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    set_steps: int
    behaviour_steps: int
    online_steps: int
    evaluate_every: int
    updates: int
    td3_updates: int
    threshold: float
    episodes: int


SIZES = {
    "Pendulum-v1": Size(1000, 1100, 500, 250, 1000, 3000, -200.0, 10),
    "HalfCheetah-v5": Size(6000, 6000, 3000, 1000, 3000, 10_000, 2000.0, 3),
}


# ---------------------------------------------------------------------- sets


def roll(task: str, act: Callable[[np.ndarray], np.ndarray], n_steps: int) -> Episodes:
    """:return: whole episodes of a policy, the last one cut at ``n_steps``"""
    env, episodes, left = gym.make(task), list[Episode](), n_steps
    while left > 0:
        obs, _ = env.reset(seed=10_000 + len(episodes))
        seen, actions, rewards, died, cut = [obs], [], [], [], []
        while left > 0 and not (died and (died[-1] or cut[-1])):
            actions.append(act(obs))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            seen.append(obs)
            rewards.append(float(reward))
            died.append(terminated)
            cut.append(truncated)
            left -= 1
        episodes.append(Episode(*map(np.array, (seen, actions, rewards, died, cut))))
    return Episodes(tuple(episodes), task, env.observation_space, env.action_space)


def make_sets(task: str, folder: Path) -> None:
    """Write the three sets of a task, if they are not there."""
    if all((folder / task / name).exists() for name in SETS):
        return
    size, rng = SIZES[task], np.random.default_rng(0)
    env = gym.make(task)
    assert isinstance(env.action_space, spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    roll(task, lambda obs: rng.uniform(low, high).astype(np.float32), size.set_steps).save(folder / task / "random")
    model = DPI("MlpPolicy", task, seed=BEHAVIOUR_SEED).learn(size.behaviour_steps)
    data.read(model.replay_buffer).save(folder / task / "replay")

    def noisy(obs: np.ndarray) -> np.ndarray:
        action, _ = model.predict(obs, deterministic=True)
        return np.clip(action + NOISE * 0.5 * (high - low) * rng.standard_normal(low.shape), low, high).astype(np.float32)

    roll(task, noisy, size.set_steps).save(folder / task / "medium")


# ---------------------------------------------------------------------- others to compare with


class Standardized(FlattenExtractor):
    """Observations in standard deviations of the set, as TD3+BC has them."""

    def __init__(self, observation_space: spaces.Space[Any], mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__(observation_space)
        self.mean, self.std = th.as_tensor(mean, dtype=th.float32), th.as_tensor(std, dtype=th.float32)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward((observations - self.mean) / self.std)


class TD3BC(TD3):
    """TD3+BC: Q in units of its mean size, less the squared distance to the action of the data. Weight 0 is cloning."""

    weight = 2.5

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._n_updates += 1
            batch = self.replay_buffer.sample(batch_size)
            if self.weight > 0.0:
                with th.no_grad():
                    noise = (0.2 * th.randn_like(batch.actions)).clamp(-0.5, 0.5)
                    following = (self.actor_target(batch.next_observations) + noise).clamp(-1.0, 1.0)
                    values = th.cat(self.critic_target(batch.next_observations, following), 1).min(1, keepdim=True)[0]
                    target = batch.rewards + (1.0 - batch.dones) * self.gamma * values
                loss = sum((q - target).square().mean() for q in self.critic(batch.observations, batch.actions))
                self.critic.optimizer.zero_grad()
                loss.backward()
                self.critic.optimizer.step()
            if self._n_updates % self.policy_delay == 0 or self.weight == 0.0:
                actions = self.actor(batch.observations)
                loss = (actions - batch.actions).square().mean()
                if self.weight > 0.0:
                    q = self.critic.q1_forward(batch.observations, actions)
                    loss = loss - self.weight * q.mean() / q.abs().mean().detach()
                self.actor.optimizer.zero_grad()
                loss.backward()
                self.actor.optimizer.step()
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)


# ---------------------------------------------------------------------- jobs

Row = tuple[int, int, float]
"""Real steps, updates, return"""


def evaluate(model: Any, task: str) -> float:
    """:return: mean return over the same episodes for all"""
    env = Monitor(gym.make(task))
    env.reset(seed=77_000)
    mean, _ = evaluate_policy(model, env, SIZES[task].episodes)
    return float(mean)  # type: ignore[arg-type]


class Look(BaseCallback):
    """Looks at the policy from time to time, between rollouts."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.rows = task, list[Row]()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        every, last = SIZES[self.task].evaluate_every, self.rows[-1][0] if self.rows else 0
        if self.num_timesteps // every > last // every:
            self.look()

    def look(self) -> None:
        """Evaluate now."""
        assert isinstance(self.model, DPI)
        self.rows.append((self.model.num_timesteps, self.model._n_updates, evaluate(self.model, self.task)))


def online(model: DPI, task: str, n_steps: int) -> list[Row]:
    """Go on with real steps."""
    look = Look(task)
    model.learn(n_steps, callback=look, log_interval=None)
    look.look()
    return look.rows


def job(task: str, folder: Path, name: str, way: str, seed: int) -> Iterator[Row]:
    """Learn in one way from one set."""
    size = SIZES[task]
    if way == "empty":
        model = DPI("MlpPolicy", task, seed=seed)
        yield from online(model, task, 2 * size.set_steps)
        return
    episodes = data.read(folder / task / name, task)
    if way in ("bc", "td3_bc"):
        seen = np.concatenate([episode.observations for episode in episodes.episodes])
        kwargs = {"mean": seen.mean(0), "std": seen.std(0) + 1e-3}
        policy = {"features_extractor_class": Standardized, "features_extractor_kwargs": kwargs}
        other = TD3BC("MlpPolicy", task, buffer_size=episodes.n_steps, seed=seed, policy_kwargs=policy, device="cpu")
        other.weight = 0.0 if way == "bc" else TD3BC.weight
        data.fill(other, episodes)
        other.train(size.td3_updates)
        yield 0, size.td3_updates, evaluate(other, task)
        return
    pessimism = PESSIMISM if way == "dpi_pessimism" else 0.0
    model = DPI("MlpPolicy", task, seed=seed, world_model={"pessimism": pessimism})
    data.fill(model, episodes)
    model.learn_offline(size.updates, log_interval=None)
    yield 0, model._n_updates, evaluate(model, task)
    if way == "dpi":
        yield from online(model, task, size.online_steps)


WAYS = ("dpi", "bc", "td3_bc", "dpi_pessimism")


def jobs(ways: list[str]) -> Iterator[tuple[str, str]]:
    """:return: sets and ways"""
    if "empty" in ways:
        yield "none", "empty"
    yield from ((name, way) for way in ways if way != "empty" for name in SETS)


def do(task: str, folder: Path, name: str, way: str, seed: int) -> None:
    """One job, unless its rows are there."""
    path = RESULTS / f"{task}.csv"
    wanted = {"task": task, "set": name, "way": way, "seed": str(seed)}
    if any(wanted.items() <= row.items() for row in rows(path)):
        return
    begun = time.perf_counter()
    made = [(*row, time.perf_counter() - begun) for row in job(task, folder, name, way, seed)]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        for steps, updates, value, seconds in made:
            writer.writerow((task, name, way, seed, steps, updates, f"{value:.1f}", f"{seconds:.0f}"))
    print(task, name, way, seed, [f"{steps}: {value:.0f}" for steps, _, value, _ in made], flush=True)


def rows(path: Path) -> list[dict[str, str]]:
    """:return: what is done"""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- report


def report(task: str) -> str:
    """:return: tables in Markdown: offline alone, and real steps to the threshold"""
    done, size = rows(RESULTS / f"{task}.csv"), SIZES[task]
    lines = [
        f"### {task}",
        "",
        "| set | way | seeds | offline return | real steps to " + f"{size.threshold:g} |",
        "|---|---|---|---|---|",
    ]
    for name, way in dict.fromkeys((row["set"], row["way"]) for row in done):
        own = [row for row in done if (row["set"], row["way"]) == (name, way)]
        seeds = sorted({row["seed"] for row in own})
        alone = [float(row["return"]) for row in own if row["real_steps"] == "0"]
        shown = f"{np.mean(alone):.0f} ({min(alone):.0f} to {max(alone):.0f})" if alone else "-"
        first = [
            min(
                (int(row["real_steps"]) for row in own if row["seed"] == seed and float(row["return"]) >= size.threshold),
                default=None,
            )
            for seed in seeds
        ]
        steps = ", ".join("not reached" if n is None else str(n) for n in first) if way in ("dpi", "empty") else "-"
        lines.append(f"| {name} | {way} | {len(seeds)} | {shown} | {steps} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=("empty", *WAYS), default=["empty", *WAYS])
    parser.add_argument("--sets", type=Path, default=Path("offline_sets"), help="folder of the sets, default: %(default)s")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    args = parser.parse_args()
    th.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in args.env:
        if not args.report:
            make_sets(task, args.sets)
            for seed in args.seeds:
                for name, way in jobs(args.ways):
                    do(task, args.sets, name, way, seed)
        print(report(task))


if __name__ == "__main__":
    main()
