"""CPU time of a run in the lab against the bare algorithm with the same evaluations, whole processes, imports included.

``python benchmarks/lab_overhead.py [algorithm] [environment] [steps] [repetitions]``
"""

import resource
import statistics
import subprocess
import sys
import tempfile

BARE = """
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import sync_envs_normalization
from sb3_dpi.compare import RunConfig, build_model
from sb3_dpi.compare.build import make_env
from sb3_dpi.compare.evaluation import evaluation_points, run_episodes
from sb3_dpi.zoo import resolve_hyperparams

class Evaluate(BaseCallback):
    done = 0
    def _on_step(self):
        return True
    def _on_rollout_start(self):
        due = sum(point <= self.num_timesteps for point in points)
        if due > self.done:
            self.done = due
            self.evaluate()
    def evaluate(self):
        if model.get_vec_normalize_env() is not None:
            sync_envs_normalization(model.get_env(), env)
        {evaluate}

th.set_num_threads(1)
config = RunConfig("{algo}", "{env}", 1, {steps}, resolve_hyperparams("{algo}", "{env}").hyperparams)
points = evaluation_points(config.eval_every, config.n_timesteps)
model, env = build_model(config), make_env(config, evaluation=True)
callback = Evaluate()
model.learn(config.n_timesteps, callback=callback)
callback.evaluate()
"""
EVALUATORS = {"lean": "run_episodes(model, env, 1)", "evaluate_policy": "env.seed(1); evaluate_policy(model, env, 10)"}


def cpu_seconds(command: list[str]) -> float:
    """
    Run a command.

    :param command: The command
    :return: CPU seconds of all its processes
    """

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return used() - before


def main(algo: str = "ppo", env: str = "HalfCheetah-v5", steps: str = "100000", repetitions: str = "3") -> None:
    """
    Print the medians and their ratios.

    :param algo: Name of the algorithm
    :param env: Id of the environment
    :param steps: Budget
    :param repetitions: How often each variant runs, in turns
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("lab", *EVALUATORS)}
    for _ in range(int(repetitions)):
        with tempfile.TemporaryDirectory() as out:
            lab = [
                "-m",
                "sb3_dpi.compare",
                "run",
                "--algo",
                algo,
                "--env",
                env,
                "--steps",
                steps,
                "--seeds",
                "1",
                "--out",
                out,
            ]
            seconds["lab"].append(cpu_seconds([sys.executable, *lab, "--no-report"]))
        for name, evaluate in EVALUATORS.items():
            code = BARE.format(algo=algo, env=env, steps=steps, evaluate=evaluate)
            seconds[name].append(cpu_seconds([sys.executable, "-c", code]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name in EVALUATORS:
        overhead = 100 * (medians["lab"] / medians[name] - 1)
        print(f"lab {medians['lab']:.1f} s, bare with {name} {medians[name]:.1f} s: {overhead:+.1f} % ({seconds})")


if __name__ == "__main__":
    main(*sys.argv[1:])
