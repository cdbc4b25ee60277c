"""
One policy for ten cart-poles (Dual Policy Iteration, section 6.3 and Fig. 2a): seven to learn on, three to test on.

Masses and lengths of the poles differ. AggreVaTeD-OC learns on all seven with a model and an expert for each, the same on one
of them ("non-robust"), and TRPO on all seven; all are tested on the three they never saw.

    python benchmarks/robust_cart_poles.py --seeds 5 --out robust

A call that was stopped goes on where it was.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import TRPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dpi import AggreVaTeDOC, evaluate_on_environments, make_environments
from sb3_dpi.compare.statistics import interquartile_mean
from sb3_dpi.envs import CARTPOLE_ID

EPISODE = 150
"""Time steps"""
EPISODES = 1050
"""Budget"""
TEST_EVERY = 21
"""Episodes between tests, at least"""
TRAJECTORIES = 35
"""Of an iteration of AggreVaTeD-OC, from all cart-poles that it learns on."""
TRPO_STEPS = 300
"""Of an iteration of TRPO on each of the seven: its 2048 in all, as nearly as whole episodes allow."""
N_TRAINING = 7
N_TEST_EPISODES = 10


def cart_poles() -> list[Callable[[], gym.Env]]:
    """:return: ten cart-poles: masses from .05 to .5 kg and half lengths from .25 to 1 m in geometric steps, shuffled apart"""
    rng = np.random.default_rng(0)
    masses, lengths = rng.permutation(np.geomspace(0.05, 0.5, 10)), rng.permutation(np.geomspace(0.25, 1.0, 10))
    return [
        lambda mass=mass, length=length: gym.make(CARTPOLE_ID, pole_mass=mass, pole_length=length)
        for mass, length in zip(masses, lengths, strict=True)
    ]


class Test(BaseCallback):
    """
    Test the policy on unseen cart-poles after every iteration.

    :param environments: to test on
    """

    def __init__(self, environments: list[Callable[[], gym.Env]]) -> None:
        super().__init__()
        self.environments = environments
        self.rows: list[list[float]] = []

    def _on_rollout_start(self) -> None:
        if not self.rows or self.num_timesteps // EPISODE >= self.rows[-1][0] + TEST_EVERY:
            self._on_training_end()

    def _on_training_end(self) -> None:
        costs = -evaluate_on_environments(self.model, self.environments, N_TEST_EPISODES).mean(1)
        self.rows.append([self.num_timesteps // EPISODE, *costs])

    def _on_step(self) -> bool:
        return True


def make_model(algorithm: str, training: list[Callable[[], gym.Env]], seed: int) -> BaseAlgorithm:
    """:return: a model of an algorithm (TRPO learns less with normalised observations here)"""
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if algorithm == "TRPO":
        return TRPO("MlpPolicy", make_environments(training), n_steps=TRPO_STEPS, batch_size=TRPO_STEPS, **common)
    if algorithm == "AggreVaTeD-OC, one":
        training = [training[seed % N_TRAINING]]
    each = TRAJECTORIES // len(training)
    common.update(conditions="random", aggregate=False)  # the poles begin close to each other
    return AggreVaTeDOC("MlpPolicy", training, horizon=EPISODE, samples_per_condition=each, **common)


def run(algorithm: str, seed: int, path: Path) -> None:
    """Train a model and write its test costs."""
    poles = cart_poles()
    model, test = make_model(algorithm, poles[:N_TRAINING], seed), Test(poles[N_TRAINING:])
    model.learn(EPISODES * EPISODE, callback=test, log_interval=None)  # type: ignore[call-arg]
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episodes", *(f"test_cost_{i}" for i in range(len(poles) - N_TRAINING))])
        writer.writerows([[f"{value:.6g}" for value in row] for row in test.rows])
    unfinished.replace(path)
    print(
        f"{algorithm}, seed {seed}: test cost {np.mean(test.rows[-1][1:]):.3f} after {test.rows[-1][0]:.0f} episodes",
        flush=True,
    )


def plot(out: Path, algorithms: tuple[str, ...]) -> None:
    """Draw test cost over episodes: interquartile mean and range over seeds."""
    from matplotlib.figure import Figure

    from sb3_dpi.compare.figures import make_styles

    styles = make_styles(["aggrevated_oc", "one", "trpo"])  # an algorithm has one colour in all figures
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for algorithm, style in zip(algorithms, styles.values(), strict=True):
        runs = [np.loadtxt(path, delimiter=",", skiprows=1) for path in sorted(out.glob(f"{file_name(algorithm)}_*.csv"))]
        length = min(map(len, runs))
        episodes, costs = runs[0][:length, 0], np.stack([rows[:length, 1:].mean(1) for rows in runs])
        (line,) = axes.plot(episodes, [interquartile_mean([column]) for column in costs.T], label=algorithm, color=style.color)
        axes.fill_between(episodes, costs.min(0), costs.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="episodes", ylabel="cost on three unseen cart-poles")
    axes.legend(frameon=False)
    figure.savefig(out / "robust_cart_poles.png", dpi=150)


def file_name(algorithm: str) -> str:
    """:return: the algorithm's name in names of files"""
    return algorithm.lower().replace("-", "_").replace(", ", "_")


def main() -> None:
    """Run what is missing, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("robust"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    algorithms = ("AggreVaTeD-OC, seven", "AggreVaTeD-OC, one", "TRPO")
    for seed in range(1, args.seeds + 1):
        for algorithm in algorithms:
            path = args.out / f"{file_name(algorithm)}_{seed}.csv"
            if not path.exists():
                run(algorithm, seed, path)
    plot(args.out, algorithms)


if __name__ == "__main__":
    main()
