"""Time one action of an exported policy, beside ``model.predict``: microseconds, one thread.

    OMP_NUM_THREADS=1 python benchmarks/export_speed.py

Policies of 17 observations and 6 actions (the sizes of HalfCheetah; ExIt's are 6 numbers to choose from), and one of four
frames of 84 x 84 pixels; one observation a call, in each format that the policy can be exported to. ``--calls 20`` tries it.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from runpy import run_path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DAgger, DualAC, ExIt
from sb3_dpi.export import export_policy
from sb3_dpi.export.c_header import C_TYPES

VECTOR = spaces.Box(-np.inf, np.inf, (17,), np.float64)
FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
FORCES, CHOICES = spaces.Box(-1.0, 1.0, (6,)), spaces.Discrete(6)
ROUNDS, LOOPS = 5, 50
"""Rounds of which the best counts; C is called so many times as often"""


class Sized(gym.Env):
    """
    Random observations.

    :param observation_space: their space
    :param action_space: of actions that change nothing
    """

    def __init__(self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space = FORCES) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action: Any) -> Any:
        return self.draw(), 0.0, False, False, {}

    def draw(self) -> Any:
        """:return: an observation, the same in an exact copy"""
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


# Buffers are not filled: with their usual sizes they are the memory that a training takes
POLICIES: dict[str, Callable[[], Any]] = {
    "DPI": lambda: DPI("MlpPolicy", Sized(), device="cpu", buffer_size=100),
    "MDGPS": lambda: MDGPS("MlpPolicy", Sized(), device="cpu"),
    "AggreVaTeD-OC": lambda: AggreVaTeDOC("MlpPolicy", Sized(), device="cpu"),
    "Dual-AC": lambda: DualAC("MlpPolicy", Sized(), device="cpu"),
    "DAgger": lambda: DAgger("MlpPolicy", Sized(), expert=np.zeros_like, device="cpu", buffer_size=100),
    "ExIt": lambda: ExIt("MlpPolicy", Sized(action_space=CHOICES), device="cpu", buffer_size=100),
    "PPO": lambda: PPO("MlpPolicy", Sized(), device="cpu"),
    "SAC": lambda: SAC("MlpPolicy", Sized(), device="cpu", buffer_size=100),
    "TD3": lambda: TD3("MlpPolicy", Sized(), device="cpu", buffer_size=100),
    "Dual-AC, images": lambda: DualAC("CnnPolicy", Sized(FRAMES), device="cpu"),
}


def microseconds(act: Callable[[], object], calls: int) -> float:
    """:return: the best of five rounds, one call"""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            act()
        rounds.append((time.perf_counter() - start) / calls)
    return 1e6 * min(rounds)


def time_c(header: Path, calls: int, actions: np.ndarray) -> float:
    """:return: of the header, by its own loop, the best of five rounds"""
    kind = C_TYPES[actions.dtype.name]
    (header.parent / "main.c").write_text(f"""#include <stdio.h>
#include <time.h>
#include "{header.name}"
int main(void) {{
    double observation[17] = {{0.1}}, best = 1e30; {kind} action[{actions.size}]; float sum = 0;
    for (int round = 0; round < {ROUNDS}; round++) {{
        clock_t start = clock();
        for (int i = 0; i < {calls}; i++) {{
            observation[0] = i / {calls}.0; policy_act(observation, action); sum += action[0];
        }}
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds < best) best = seconds;
    }}
    printf("%g %g", best / {calls} * 1e6, sum);
    return 0;
}}
""")
    subprocess.run(["gcc", "-O3", "-march=native", "-std=c99", "main.c", "-o", "main", "-lm"], cwd=header.parent, check=True)
    printed = subprocess.run([str(header.parent / "main")], capture_output=True, text=True, check=True).stdout
    return float(printed.split()[0])


@th.no_grad()
def times(model: Any, folder: Path, calls: int) -> list[float]:
    """:return: of ``predict``, torchscript, onnx, and of vectors numpy and c"""
    path, is_vector = folder / "policy", len(model.observation_space.shape) == 1
    for to in ("torchscript", "onnx", *(("numpy", "c") if is_vector else ())):
        export_policy(model, path, to)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    observation, _ = model.get_env().envs[0].unwrapped.reset(seed=0)
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), options)
    found = [
        microseconds(partial(model.predict, observation, deterministic=True), max(calls // 4, 1)),
        microseconds(partial(th.jit.load(path.with_suffix(".pt")), th.as_tensor(observation[None])), calls),
        microseconds(partial(session.run, None, {"observation": observation[None]}), calls),
    ]
    if is_vector:
        act = run_path(str(path.with_suffix(".py")))["act"]
        found += [microseconds(partial(act, observation), calls)]
        found += [time_c(path.with_suffix(".h"), LOOPS * calls, np.atleast_1d(act(observation)))]
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="of each round, default: %(default)s")
    calls = parser.parse_args().calls
    th.set_num_threads(1)
    print("| policy | `predict` | torchscript | onnx | numpy | c |\n|---|---|---|---|---|---|")
    for name, make in POLICIES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = times(make(), Path(folder), calls)
        cells = [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in found]
        print(f"| {name} | {' | '.join(cells + [''] * (5 - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
