"""What MPC earns, and at what price: swing-ups, plans in the simulator, plans in what it learns.

::

    python benchmarks/mpc.py swing_up      # box-iLQR and iCEM in the simulator, from 20 starts of two tasks
    python benchmarks/mpc.py simulator     # 1,000 steps of MuJoCo tasks: return and seconds a step over samples x horizon
    python benchmarks/mpc.py learned       # an ensemble, fitted as it goes
    python benchmarks/mpc.py terminal      # DPI's policy, and plans in DPI's model with and without its critic behind them
    python benchmarks/mpc.py report        # tables, and the figure docs/images/mpc_simulator.png

Rows go to results/mpc/PART.csv; what has its rows of this ``algorithm_version``, or of one alike, is not done
again. ``--only TEXT``
takes the jobs whose names begin with the text, ``--seeds`` others than those that are reported. Seconds are processor time of
one thread.
"""

import argparse
import csv
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_dpi import DPI, MPC
from sb3_dpi.systems import EnsembleSystem
from sb3_dpi.trajopt.shooting import ICEM
from sb3_dpi.zoo.hyperparams import resolve_hyperparams

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "mpc"
FIGURE = ROOT / "docs" / "images" / "mpc_simulator.png"
Row = dict[str, Any]
Jobs = Iterator[tuple[str, int, Callable[[], list[Row]]]]
"""Name, seed, and what makes the rows"""

# ---------------------------------------------------------------------- swing-ups

UPRIGHT, LAST_STEPS = 0.95, 20
"""Cosine of the angle that counts as upright, and for how many steps at the end"""


class CartPoleSwingUp(gym.Env):
    """
    A cart pushes a pole from hanging down to upright and holds it there.

    Observation: position, cosine and sine of the angle (0 is up), their velocities. Reward: cos(angle) - .1 position^2 - .001
    force^2.
    """

    CART, POLE, HALF_LENGTH, GRAVITY, FORCE, STEP, SUBSTEPS = 1.0, 0.1, 0.5, 9.81, 10.0, 0.05, 5

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = spaces.Box(-self.FORCE, self.FORCE, (1,), np.float64)
        self.state = np.zeros(4)

    def _get_obs(self) -> np.ndarray:
        x, angle, velocity, spin = self.state
        return np.array([x, math.cos(angle), math.sin(angle), velocity, spin])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Hang down, nearly at rest."""
        super().reset(seed=seed)
        self.state = np.array([0.0, math.pi, 0.0, 0.0]) + self.np_random.uniform(-0.2, 0.2, 4)
        return self._get_obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push."""
        force, h = float(action[0]), self.STEP / self.SUBSTEPS
        x, angle, velocity, spin = self.state.tolist()
        for _ in range(self.SUBSTEPS):  # semi-implicit Euler
            sin, cos, mass = math.sin(angle), math.cos(angle), self.CART + self.POLE
            pull = (force + self.POLE * self.HALF_LENGTH * spin**2 * sin) / mass
            bend = (self.GRAVITY * sin - cos * pull) / (self.HALF_LENGTH * (4 / 3 - self.POLE * cos**2 / mass))
            velocity += h * (pull - self.POLE * self.HALF_LENGTH * bend * cos / mass)
            spin += h * bend
            x, angle = x + h * velocity, angle + h * spin
        self.state = np.array([x, angle, velocity, spin])
        return self._get_obs(), math.cos(angle) - 0.1 * x**2 - 0.001 * force**2, False, False, {}


SWING_UPS: dict[str, tuple[Callable[[], gym.Env], int, int]] = {
    "Pendulum-v1": (lambda: gym.make("Pendulum-v1"), 0, 200),
    "cart-pole": (CartPoleSwingUp, 1, 150),
}
"""How to make a task, where its observation has the cosine, and the steps of an episode"""
SWINGERS: dict[str, dict[str, Any]] = {
    "iLQR": {"policy": {"kind": "iLQR", "max_iterations": 8}, "horizon": 40, "replan_every": 10},
    "iCEM": {"policy": {"kind": "iCEM", "n_samples": 40}, "horizon": 30, "replan_every": 2},
}
STARTS = range(20)


def swing(task: str, planner: str, seed: int) -> list[Row]:
    """:return: one row: return, seconds a step, and whether it ended upright"""
    make, cosine, n_steps = SWING_UPS[task]
    env = Monitor(make())
    model = MPC(env=env, system="simulator", seed=seed, **SWINGERS[planner])
    env_of_model: Any = model.get_env()
    env_of_model.seed(seed)
    obs, state, total, cosines, begun = env_of_model.reset(), None, 0.0, [], time.process_time()
    for _ in range(n_steps):
        action, state = model.predict(obs, state, deterministic=True)
        obs, reward, _, infos = env_of_model.step(action)
        seen = infos[0].get("terminal_observation", obs[0])
        total, cosines = total + float(reward[0]), [*cosines, float(seen[cosine])]
    seconds = (time.process_time() - begun) / n_steps
    is_up = min(cosines[-LAST_STEPS:]) > UPRIGHT
    return [{"return": round(total, 2), "seconds_a_step": round(seconds, 4), "is_upright": int(is_up)}]


def swing_ups(seeds: list[int] | None) -> Jobs:
    """:return: the jobs"""
    for task in SWING_UPS:
        for planner in SWINGERS:
            for seed in seeds or STARTS:
                yield f"{task} {planner}", seed, lambda task=task, planner=planner, seed=seed: swing(task, planner, seed)


# ---------------------------------------------------------------------- the simulator

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
SIZES = ((30, 15), (100, 15), (30, 30), (100, 30))
"""Samples and horizon"""
EXPONENT = 0.25
"""Of the noise: what runs must be quick (Pinneri et al. 2020)"""


def act(task: str, n_samples: int, horizon: int, seed: int) -> list[Row]:
    """:return: one row of an episode of at most 1,000 steps"""
    planner = {"kind": "iCEM", "n_samples": n_samples, "exponent": EXPONENT}
    model = MPC(planner, task, horizon=horizon, system="simulator", seed=seed)
    env: Any = model.get_env()
    env.seed(seed)
    begun = time.process_time()
    returns, lengths = evaluate_policy(model, env, 1, return_episode_rewards=True)
    seconds = (time.process_time() - begun) / lengths[0]  # type: ignore[index]
    return [{"return": round(returns[0], 1), "steps": lengths[0], "seconds_a_step": round(seconds, 4)}]  # type: ignore[index]


def acts(seeds: list[int] | None) -> Jobs:
    """:return: the jobs"""
    for n_samples, horizon in SIZES:
        for task in TASKS:
            for seed in seeds or [11]:
                job = (task, n_samples, horizon, seed)
                yield f"{task} {n_samples} x {horizon}, exponent {EXPONENT}", seed, lambda job=job: act(*job)


# ---------------------------------------------------------------------- learning

STEPS = {"Pendulum-v1": 1500, "HalfCheetah-v5": 10_000}
EVALUATED = {"Pendulum-v1": (1500, 5), "HalfCheetah-v5": (5_000, 1)}
"""Every so many steps, in so many episodes"""


class Follow(BaseCallback):
    """Notes episodes, and evaluates between rollouts."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.rows, self.begun, self.apart = task, list[Row](), time.process_time(), 0.0

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._note("training", info["episode"]["r"])
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps and self.num_timesteps % EVALUATED[self.task][0] == 0:
            self.evaluate()

    def evaluate(self) -> None:
        """Test on episodes that are the same for all seeds."""
        begun, env = time.process_time(), Monitor(gym.make(self.task))
        env.reset(seed=77_000)
        mean, _ = evaluate_policy(self.model, env, EVALUATED[self.task][1])
        self.apart += time.process_time() - begun
        self._note("evaluation", float(mean))  # type: ignore[arg-type]

    def _note(self, kind: str, value: float) -> None:
        seconds = time.process_time() - self.begun - self.apart
        self.rows.append({"kind": kind, "steps": self.num_timesteps, "return": round(value, 1), "seconds": round(seconds)})
        print(self.rows[-1], flush=True)


def learn(task: str, seed: int) -> list[Row]:
    """:return: a row each episode of training, and each evaluation"""
    kept = resolve_hyperparams("mpc", task).hyperparams
    model = MPC(env=task, seed=seed, **{name: value for name, value in kept.items() if name != "n_timesteps"})
    follow = Follow(task)
    model.learn(STEPS[task], callback=follow, log_interval=None)
    follow.evaluate()
    return follow.rows


def learned(seeds: list[int] | None) -> Jobs:
    """:return: the jobs"""
    for task in STEPS:
        for seed in seeds or [11, 12, 13]:
            yield task, seed, lambda task=task, seed=seed: learn(task, seed)


# ---------------------------------------------------------------------- a critic behind the plan

OF_DPI = {"Pendulum-v1": (1500, 10), "HalfCheetah-v5": (10_000, 2)}
"""Steps that DPI learns, and test episodes"""
PLANS = {"horizon 5, critic": (5, True), "horizon 15, critic": (15, True), "horizon 15": (15, False)}


def beside_dpi(task: str, seed: int) -> list[Row]:
    """:return: a row for DPI's own policy and one for each kind of plan, on the same episodes"""
    steps, n_episodes = OF_DPI[task]
    dpi = DPI("MlpPolicy", task, seed=seed).learn(steps)
    policy = resolve_hyperparams("mpc", task).hyperparams["policy"]
    agents: dict[str, Any] = {"policy": dpi}
    for name, (horizon, has_critic) in PLANS.items():
        system, critic = EnsembleSystem(dpi.ensemble), dpi if has_critic else None
        agents[name] = MPC(policy, task, horizon=horizon, system=system, terminal_value=critic, seed=seed)
    made = []
    for name, agent in agents.items():
        begun, env = time.process_time(), Monitor(gym.make(task))
        env.reset(seed=77_000)
        found, lengths = evaluate_policy(agent, env, n_episodes, return_episode_rewards=True)
        seconds = round((time.process_time() - begun) / sum(lengths), 4)
        made.append({"acts": name, "return": round(float(np.mean(found)), 1), "seconds_a_step": seconds})
        print({"task": task, "seed": seed, **made[-1]}, flush=True)
    return made


def terminal(seeds: list[int] | None) -> Jobs:
    """:return: the jobs"""
    for task in OF_DPI:
        for seed in seeds or [11, 12, 13]:
            yield task, seed, lambda task=task, seed=seed: beside_dpi(task, seed)


PARTS: dict[str, Callable[[list[int] | None], Jobs]] = {
    "swing_up": swing_ups,
    "simulator": acts,
    "learned": learned,
    "terminal": terminal,
}

# ---------------------------------------------------------------------- rows


ALIKE = {"1", "2", str(MPC.algorithm_version)}
"""Versions between which iCEM and iLQR, of which all jobs are, did not change on tasks that do not end."""


def rows(part: str) -> list[dict[str, str]]:
    """:return: what is done"""
    path = RESULTS / f"{part}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def do(part: str, only: str, seeds: list[int] | None) -> None:
    """Each job of a part, unless its rows are there."""
    done = {(row["job"], row["seed"]) for row in rows(part) if row["version"] in ALIKE}
    for name, seed, job in PARTS[part](seeds):
        if not name.startswith(only) or (name, str(seed)) in done:
            continue
        made = [{"job": name, "seed": seed, "version": MPC.algorithm_version, **row} for row in job()]
        path = RESULTS / f"{part}.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(made[0]))
            if is_new:
                writer.writeheader()
            writer.writerows(made)
        print(json.dumps(made[-1]), flush=True)


def _each(part: str) -> dict[str, list[dict[str, str]]]:
    done = [row for row in rows(part) if row["version"] in ALIKE]
    return {name: [row for row in done if row["job"] == name] for name in dict.fromkeys(row["job"] for row in done)}


def report() -> str:
    """:return: tables in Markdown"""
    lines = ["| swing-up | upright at the end | mean return | seconds a step |", "|---|---|---|---|"]
    for name, own in _each("swing_up").items():
        total, seconds = (np.mean([float(row[key]) for row in own]) for key in ("return", "seconds_a_step"))
        lines.append(f"| {name} | {sum(int(row['is_upright']) for row in own)} of {len(own)} | {total:.0f} | {seconds:.2f} |")
    lines += ["", "| simulator, samples x horizon | return | steps | seconds a step |", "|---|---|---|---|"]
    for name, own in _each("simulator").items():
        cells = [", ".join(row[key] for row in own) for key in ("return", "steps", "seconds_a_step")]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += ["", "| learned | steps | return of each seed | seconds of training |", "|---|---|---|---|"]
    for name, own in _each("learned").items():
        tested = [row for row in own if row["kind"] == "evaluation"]
        for steps in sorted({int(row["steps"]) for row in tested}):
            cells = [", ".join(row[key] for row in tested if int(row["steps"]) == steps) for key in ("return", "seconds")]
            lines.append(f"| {name} | {steps} | {cells[0]} | {cells[1]} |")
    lines += ["", "| after DPI has learned | acts | return of each seed | seconds a step |", "|---|---|---|---|"]
    for name, own in _each("terminal").items():
        for acting in dict.fromkeys(row["acts"] for row in own):
            cells = [", ".join(row[key] for row in own if row["acts"] == acting) for key in ("return", "seconds_a_step")]
            lines.append(f"| {name} | {acting} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def draw() -> None:
    """Return against seconds a step."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(3.2 * len(TASKS), 2.8), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for name, own in _each("simulator").items():
            if name.startswith(f"{task} "):
                size, _, is_quick = name.removeprefix(f"{task} ").partition(", ")
                x, y = (np.mean([float(row[key]) for row in own]) for key in ("seconds_a_step", "return"))
                axis.plot(x, y, "o", color="C0" if is_quick else "C1")
                axis.annotate(size, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(title=task, xlabel="seconds a step")
        axis.margins(0.25)
        axis.set_xlim(left=0.0)
    axes[0].plot([], [], "o", color="C0", label=f"exponent {EXPONENT}")
    axes[0].plot([], [], "o", color="C1", label=f"exponent {ICEM.exponent}")
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel("return of an episode")
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    """Do a part, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--only", default="", help="beginning of the names of jobs")
    parser.add_argument("--seeds", nargs="+", type=int)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message="You are trying to run")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.part == "report":
        draw()
        print(report())
        return
    do(arguments.part, arguments.only, arguments.seeds)


if __name__ == "__main__":
    main()
