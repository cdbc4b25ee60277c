"""The same seed gives the same numbers, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import ALGORITHMS, Make, every_algorithm, logged, small_aggrevated_oc
from dummy_envs import ITERATION, DictPointMass, PointMass, limited, parameter_sum, small_mdgps, vec_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize


def numbers(make: Make, seed: int | None, **kwargs: Any) -> tuple[float, float, list[float]]:
    """Parameters, evaluation and planner's scalars after some iterations."""
    env = kwargs.pop("make_env", PointMass)()
    model = make(env, seed=seed, **kwargs)
    model.learn(3 * ITERATION)
    own = ("train/loss",) if make is small_mdgps else ("train/value_loss", "train/kl_divergence_loss", "trajopt/trust")
    values = [logged(model, key) for key in ("trajopt/kl", "trajopt/eta", "trajopt/held_out_error", *own)]
    if isinstance(model.env, VecNormalize) or "policy" in kwargs:
        return parameter_sum(model), 0.0, values
    evaluation = vec_env(1, lambda: Monitor(limited(20)))
    evaluation.seed(7)
    mean, _ = evaluate_policy(model, evaluation, 3)
    assert isinstance(mean, float)
    return parameter_sum(model), mean, values


COMMON: list[dict[str, Any]] = [
    {},
    {"dynamics": "gmm"},
    {"dynamics": "niw"},
    {"conditions": "random", "replay": 2},
    {"make_env": lambda: vec_env(3)},
    {"make_env": lambda: VecNormalize(vec_env(2))},
    {"make_env": lambda: PointMass(death=(4, 12))},
    {"make_env": DictPointMass, "policy": "MultiInputPolicy"},
]
OPTIONS: list[tuple[Make, dict[str, Any]]] = [
    *[(make, options) for options in COMMON for make in ALGORITHMS.values()],
    (small_mdgps, {"dynamics": "niw", "linearization": "gmm"}),
    (small_mdgps, {"sampling": "local", "conditions": "fixed", "step_rule": "classic"}),
    (small_aggrevated_oc, {"conditions": "continue"}),
    (small_aggrevated_oc, {"conditions": "mixed"}),
    (small_aggrevated_oc, {"conditions": "continue", "make_env": lambda: vec_env(2, lambda: PointMass(death=(4, 30)))}),
]


@pytest.mark.parametrize("make, options", OPTIONS, ids=str)
def test_same_seed_same_numbers(make: Make, options: dict[str, Any]) -> None:
    first = numbers(make, 3, **options)
    np.random.default_rng().normal()
    np.random.seed(99)
    assert first == numbers(make, 3, **options)
    assert first != numbers(make, 4, **options)


@every_algorithm
def test_no_seed_is_no_seed(make: Make) -> None:
    assert numbers(make, None) != numbers(make, None)


@every_algorithm
def test_different_seeds_have_different_conditions(make: Make) -> None:
    bases = {make(seed=seed).condition_base for seed in (0, 1, 2, 10**6, None)}
    assert len(bases) == 5
    assert all(base is not None and base > 10**4 for base in bases), "far from the seeds of evaluations"


@every_algorithm
def test_set_random_seed_after_construction(make: Make) -> None:
    """As in SB3, the seed of the constructor counts for networks; actions drawn in prediction follow the new one."""
    model = make()
    model.set_random_seed(5)
    first = model.predict(np.zeros(2, np.float32))[0]
    model.set_random_seed(5)
    assert model.predict(np.zeros(2, np.float32))[0] == first


@every_algorithm
def test_evaluations_do_not_change_what_is_learned(make: Make) -> None:
    """A deterministic evaluation on an environment of its own leaves no trace."""
    plain, watched = make(), make()
    plain.learn(3 * ITERATION)
    watched.learn(3 * ITERATION, callback=EvalCallback(Monitor(limited(5)), n_eval_episodes=2, eval_freq=17, verbose=0))
    assert parameter_sum(plain) == parameter_sum(watched)


@every_algorithm
def test_two_halves_learn_as_well_as_the_whole(make: Make) -> None:
    """They may differ in their numbers, not in what they count."""
    whole, halves = make(), make()
    whole.learn(4 * ITERATION)
    halves.learn(2 * ITERATION).learn(2 * ITERATION, reset_num_timesteps=False)
    assert (whole.num_timesteps, whole.n_iterations) == (halves.num_timesteps, halves.n_iterations)


ONE_RUN = """
from sb3_dpi import DPI

model = DPI("MlpPolicy", "Pendulum-v1", seed=3, learning_starts=100, update_to_data=0.1).learn(300)
print(model.policy.actor.network.flat.detach().numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_the_run_that_compiles_gives_the_numbers_of_later_ones(tmp_path: Path) -> None:
    """Compiled loops that come from numba's cache add up in the same order as those just compiled."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ONE_RUN]
    first, second = (subprocess.run(command, env=env, check=True, capture_output=True).stdout for _ in range(2))
    assert first == second and len(first) > 1000
