"""The same seed gives the same numbers, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, Make, every, every_algorithm, iterations, parameters
from dummy_envs import ITERATION, DictPointMass, PointMass, limited, vec_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, MDGPS, AggreVaTeDOC, DAgger, DualAC


def dictionaries() -> Any:
    return DictPointMass(("position", "velocity"))


def numbers(make: Make, seed: int | None, **kwargs: Any) -> dict[str, str]:
    """:return: parameters, all scalars of the last iteration but the times, and an evaluation, each with all its digits"""
    task = kwargs.pop("env", lambda: limited(12))
    model = make(task(), seed=seed, **kwargs).learn(2 * ITERATION)
    scalars = {
        key: float(value)
        for key, value in model.logger.name_to_value.items()
        if not key.startswith("time/") and "second" not in key
    }
    assert len(scalars) > (3 if make.plans else 5) and np.isfinite(parameters(model))
    scalars["parameters"] = parameters(model)
    if task is not dictionaries and not isinstance(model.env, VecNormalize):
        evaluation = vec_env(1, lambda: Monitor(make.fit(limited(20))))
        evaluation.seed(7)
        scalars["evaluation"], _ = evaluate_policy(model, evaluation, 3)  # type: ignore[assignment]
    return {key: repr(value) for key, value in scalars.items()}  # what is not a number is equal to itself here


COMMON: list[dict[str, Any]] = [
    {},
    {"env": lambda: vec_env(3, lambda: limited(12))},
    {"env": lambda: VecNormalize(vec_env(2, lambda: limited(12)))},
    {"env": lambda: PointMass(death=(4, 12))},
    {"env": dictionaries, "policy": "MultiInputPolicy"},
]
PLANNING: list[dict[str, Any]] = [{"dynamics": "gmm"}, {"dynamics": "niw"}, {"conditions": "random", "replay": 2}]
OWN: dict[type[Any], list[dict[str, Any]]] = {
    MDGPS: [
        *PLANNING,
        {"dynamics": "niw", "linearization": "gmm"},
        {"sampling": "local", "conditions": "fixed", "step_rule": "classic"},
    ],
    AggreVaTeDOC: [
        *PLANNING,
        {"conditions": "continue"},
        {"conditions": "mixed"},
        {"conditions": "continue", "env": lambda: vec_env(2, lambda: PointMass(death=(4, 30)))},
    ],
    DPI: [{"expert": "lqr"}, {"expert": "mppi"}],
    DualAC: [{"policy": "RBFPolicy"}, {"use_sde": True}, {"gradient": "literal", "n_critic_updates": 0}],
    DAgger: [{"beta": 0.5}],
}


def variants(make: Make) -> list[dict[str, Any]]:
    """:return: options and environments"""
    if make.discrete:
        return COMMON[:3]
    vectors = [options for options in COMMON if "policy" not in options]
    return [*(vectors if make.plans else COMMON), *OWN.get(make.algorithm, [])]


@pytest.mark.parametrize("make, options", [(make, options) for make in ALGORITHMS for options in variants(make)], ids=str)
def test_same_seed_same_numbers(make: Make, options: dict[str, Any]) -> None:
    first = numbers(make, 3, **options)
    np.random.default_rng().normal()
    np.random.seed(99)
    assert first == numbers(make, 3, **options)
    if not options:  # the others draw from the same generators
        assert first != numbers(make, 4, **options)


@every_algorithm
def test_no_seed_is_no_seed(make: Make) -> None:
    assert numbers(make, None) != numbers(make, None)


@every(from_conditions=True)
def test_different_seeds_have_different_conditions(make: Make) -> None:
    bases = {make(seed=seed).condition_base for seed in (0, 1, 2, 10**6, None)}
    assert len(bases) == 5
    assert all(base is not None and base > 10**4 for base in bases), "far from the seeds of evaluations"


@every_algorithm
def test_set_random_seed_after_construction(make: Make) -> None:
    """As in SB3, the seed of the constructor counts for networks; actions drawn in prediction follow the new one."""
    model = make()

    def drawn(seed: int) -> list[float]:
        model.set_random_seed(seed)
        return model.predict(np.zeros((20, 2), np.float32))[0].ravel().tolist()

    assert drawn(5) == drawn(5) != drawn(6)


@every_algorithm
def test_own_draws_follow_a_new_seed(make: Make) -> None:
    """Those of learning too, which do not come from numpy's and torch's global generators."""
    model = make()

    def drawn(seed: int | None) -> list[float]:
        model.set_random_seed(seed)
        return [float(own.random()) for name, own in sorted(vars(model).items()) if isinstance(own, np.random.Generator)]

    assert drawn(5) == drawn(5) != drawn(6) != drawn(None)


@every_algorithm
def test_seeds_of_other_libraries(make: Make, tmp_path: Path) -> None:
    """They are the numbers that they are, also on loading and afterwards."""

    def drawn(model: Any, seed: Any) -> list[float]:
        model.set_random_seed(seed)
        return [parameters(model), *model.predict(np.zeros((20, 2), np.float32))[0].ravel().tolist()]

    plain = make(seed=7)
    expected = drawn(plain, 7)
    assert expected != drawn(make(seed=8), 7)
    for seed in (np.int32(7), np.int64(7), np.uint8(7), np.array(7), th.tensor(7)):
        given = make(seed=seed)
        assert type(given.seed) is int and vars(given).get("condition_base") == vars(plain).get("condition_base")
        assert drawn(given, seed) == expected
    given.save(tmp_path / "model")
    loaded = make.algorithm.load(tmp_path / "model", env=make.fit(limited(12)), seed=np.int64(9))
    assert loaded.seed == 9 and iterations(loaded.learn(ITERATION)) == 1


@every_algorithm
def test_seeds_at_the_ends_of_their_range(make: Make) -> None:
    for seed in (0, 2**32 - 1):
        assert iterations(make(vec_env(2, lambda: limited(12)), seed=seed).learn(ITERATION)) == 1


@every_algorithm
def test_seeds_out_of_range(make: Make) -> None:
    for seed in (-1, 2**32, 10**30, np.int64(-7)):
        with pytest.raises(ValueError, match=rf"seed must be from 0 to 2\*\*32 - 1, got {int(seed)}"):
            make(seed=seed)
    with pytest.raises(TypeError, match=r"seed must be an integer .* got '7'"):
        make(seed="7")


@every_algorithm
def test_evaluations_do_not_change_what_is_learned(make: Make) -> None:
    """A deterministic evaluation on an environment of its own leaves no trace."""
    plain, watched = make(), make()
    callback = EvalCallback(Monitor(make.fit(limited(5))), n_eval_episodes=2, eval_freq=17, verbose=0)
    for model, given in ((plain, None), (watched, callback)):
        model.set_random_seed(1)
        model.learn(2 * ITERATION, callback=given)
    assert parameters(plain) == parameters(watched)
    assert callback.n_calls == 2 * ITERATION and callback.best_mean_reward > -np.inf


@every_algorithm
def test_two_halves_are_the_whole(make: Make) -> None:
    """Going on takes a new episode, and as many steps; where every iteration begins with resets, also the same numbers."""
    whole, halves = make(), make()
    whole.set_random_seed(1)
    whole.learn(4 * ITERATION)
    halves.set_random_seed(1)
    halves.learn(2 * ITERATION).learn(2 * ITERATION, reset_num_timesteps=False)
    assert whole.num_timesteps == halves.num_timesteps == 4 * ITERATION
    if make.from_conditions:
        assert parameters(whole) == parameters(halves)


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
