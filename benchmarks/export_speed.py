"""Time one action of an exported policy, beside ``model.predict``: microseconds, one thread.

    python benchmarks/export_speed.py

A policy of 17 observations and 6 actions (the sizes of HalfCheetah), one observation a call, in each format.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from runpy import run_path

import gymnasium as gym
import onnxruntime
import torch as th
from stable_baselines3 import PPO, SAC

from sb3_dpi import DPI, MDGPS
from sb3_dpi.export import export_policy

CALLS = 2000


def microseconds(act: Callable[[], object], calls: int = CALLS) -> float:
    """:return: the best of five rounds, one call"""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            act()
        rounds.append((time.perf_counter() - start) / calls)
    return 1e6 * min(rounds)


def time_c(header: Path) -> float:
    """:return: of the header, by its own loop"""
    (header.parent / "main.c").write_text(f"""#include <stdio.h>
#include <time.h>
#include "{header.name}"
int main(void) {{
    double observation[17] = {{0.1}}; float action[6]; float sum = 0;
    clock_t start = clock();
    for (int i = 0; i < 100000; i++) {{ observation[0] = i * 1e-5; policy_act(observation, action); sum += action[0]; }}
    printf("%g %g", (double)(clock() - start) / CLOCKS_PER_SEC * 10, sum);
    return 0;
}}
""")
    subprocess.run(["gcc", "-O3", "-march=native", "-std=c99", "main.c", "-o", "main", "-lm"], cwd=header.parent, check=True)
    printed = subprocess.run([str(header.parent / "main")], capture_output=True, text=True, check=True).stdout
    return float(printed.split()[0])


def main() -> None:
    """Print a table."""
    th.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    print("| policy | `predict` | torchscript | onnx | numpy | c |\n|---|---|---|---|---|---|")
    for algorithm in (DPI, MDGPS, PPO, SAC):
        model = algorithm("MlpPolicy", "HalfCheetah-v5", device="cpu")
        observation = gym.make("HalfCheetah-v5").reset(seed=0)[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "policy"
            for to in ("torchscript", "onnx", "numpy", "c"):
                export_policy(model, path, to)
            script, tensor = th.jit.load(path.with_suffix(".pt")), th.as_tensor(observation[None])
            session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), options)
            act = run_path(str(path.with_suffix(".py")))["act"]
            with th.no_grad():
                times = [
                    microseconds(partial(model.predict, observation, deterministic=True), 500),
                    microseconds(partial(script, tensor)),
                    microseconds(partial(session.run, None, {"observation": observation[None]})),
                    microseconds(partial(act, observation)),
                    time_c(path.with_suffix(".h")),
                ]
        print(f"| {algorithm.__name__} | {' | '.join(f'{value:.3g}' for value in times)} |")


if __name__ == "__main__":
    main()
