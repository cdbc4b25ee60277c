"""The same seed gives the same numbers, to the last bit."""

from typing import Any

import numpy as np
import pytest
from dummy_envs import ITERATION, DictPointMass, PointMass, limited, parameter_sum, small_mdgps, vec_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import MDGPS


def numbers(seed: int | None, **kwargs: Any) -> tuple[float, float, list[float]]:
    """Parameters, evaluation and planner's scalars after some iterations."""
    env = kwargs.pop("make_env", PointMass)()
    model: MDGPS = small_mdgps(env, seed=seed, **kwargs)
    model.learn(3 * ITERATION)
    values = [model.logger.name_to_value[key] for key in ("trajopt/kl", "trajopt/eta", "trajopt/held_out_error", "train/loss")]
    if isinstance(model.env, VecNormalize) or "policy" in kwargs:
        return parameter_sum(model), 0.0, values
    evaluation = vec_env(1, lambda: Monitor(limited(20)))
    evaluation.seed(7)
    mean, _ = evaluate_policy(model, evaluation, 3)
    assert isinstance(mean, float)
    return parameter_sum(model), mean, values


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dynamics": "gmm"},
    {"dynamics": "niw", "linearization": "gmm"},
    {"sampling": "local", "conditions": "fixed", "step_rule": "classic"},
    {"conditions": "random", "replay": 2},
    {"make_env": lambda: vec_env(3)},
    {"make_env": lambda: VecNormalize(vec_env(2))},
    {"make_env": lambda: PointMass(death=(4, 12))},
    {"make_env": DictPointMass, "policy": "MultiInputPolicy"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_seed_same_numbers(options: dict[str, Any]) -> None:
    first = numbers(3, **options)
    np.random.default_rng().normal()
    np.random.seed(99)
    assert first == numbers(3, **options)
    assert first != numbers(4, **options)


def test_no_seed_is_no_seed() -> None:
    assert numbers(None) != numbers(None)


def test_different_seeds_have_different_conditions() -> None:
    bases = {small_mdgps(seed=seed).condition_base for seed in (0, 1, 2, 10**6, None)}
    assert len(bases) == 5
    assert all(base is not None and base > 10**4 for base in bases), "far from the seeds of evaluations"


def test_set_random_seed_after_construction() -> None:
    """As in SB3, the seed of the constructor counts for networks; actions drawn in prediction follow the new one."""
    model = small_mdgps()
    model.set_random_seed(5)
    first = model.predict(np.zeros(2, np.float32))[0]
    model.set_random_seed(5)
    assert model.predict(np.zeros(2, np.float32))[0] == first


def test_evaluations_do_not_change_what_is_learned() -> None:
    """A deterministic evaluation on an environment of its own leaves no trace."""
    plain, watched = small_mdgps(), small_mdgps()
    plain.learn(3 * ITERATION)
    watched.learn(3 * ITERATION, callback=EvalCallback(Monitor(limited(5)), n_eval_episodes=2, eval_freq=17, verbose=0))
    assert parameter_sum(plain) == parameter_sum(watched)


def test_two_halves_learn_as_well_as_the_whole() -> None:
    """They may differ in their numbers, not in what they count."""
    whole, halves = small_mdgps(), small_mdgps()
    whole.learn(4 * ITERATION)
    halves.learn(2 * ITERATION).learn(2 * ITERATION, reset_num_timesteps=False)
    assert (whole.num_timesteps, whole.n_iterations) == (halves.num_timesteps, halves.n_iterations)
