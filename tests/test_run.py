"""Every algorithm trains: what a user calls, every choice of arguments, several environments and processes, tasks."""

import inspect
import math
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, Model, called, every, every_algorithm, iterations, kept, logged, parameters, those
from dummy_envs import ITERATION, POINT_MASS_ID, limited, vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_dpi import DPI, MDGPS, MPC, AggreVaTeDOC, DAgger, DualAC, ExIt

# ---------------------------------------------------------------------- what a user calls


@every_algorithm
def test_string_environment_without_further_argument(make: Make) -> None:
    model = make.algorithm(make.policy, make.fit(POINT_MASS_ID))
    assert model.learn(1).num_timesteps == make.first_steps


@pytest.mark.parametrize("total", [1e2, np.float64(100)], ids=repr)
@every_algorithm
def test_total_timesteps_may_be_a_float(make: Make, total: Any) -> None:
    model = make().learn(total)
    assert model.num_timesteps == 3 * ITERATION, "a lower bound, and the last iteration is completed"
    assert iterations(model) == 3


@every_algorithm
def test_arguments_may_be_numbers_of_numpy(make: Make, tmp_path: Path) -> None:
    """Every one that is a number learns the same as Python's, from the constructor and from a file."""
    parameters_of = inspect.signature(make.algorithm.__init__).parameters
    kept = {name: getattr(make(), name, None) for name in parameters_of}
    given = {name: value for name, value in kept.items() if type(value) in (int, float)}
    of_numpy = {name: np.int32(value) if type(value) is int else np.float64(value) for name, value in given.items()}
    networks = {} if make.plans else {"learning_rate": float(np.float32(1e-3)), "policy_kwargs": {"net_arch": [8]}}
    shared = {"gamma": 0.9, "stats_window_size": 7, **networks}
    shared = {name: value for name, value in shared.items() if name in parameters_of}
    rate = {} if make.plans else {"learning_rate": np.float32(1e-3)}
    model = make(**{**of_numpy, **shared, **rate, "stats_window_size": np.int64(7)})
    model.learn(ITERATION)
    expected = make(**{**given, **shared}).learn(ITERATION)
    assert len(of_numpy) > 5 and not [name for name in of_numpy if isinstance(getattr(model, name), np.generic)]
    assert parameters(model) == parameters(expected)
    model.save(tmp_path / "model")
    assert type(make.algorithm.load(tmp_path / "model", gamma=np.float32(0.5)).gamma) is float


# ---------------------------------------------------------------------- choices

WITH = "with"
"""What a choice needs to make a difference, and what it is compared with"""
PLANNING: list[dict[str, Any]] = [
    {"conditions": "fixed"},
    {"conditions": "random"},
    {"conditions": "continue"},
    {"conditions": "mixed"},
    {"dynamics": "niw"},
    {"dynamics": "niw", "conditions": "fixed", "replay": 2},
    {"dynamics": "gmm"},
    {"dynamics": {"prior": "niw", "window": 5, "cov_count": 2.0}},
    {"dynamics": {"prior": "nearest", "neighbours": 10}},
    {"dynamics": {"prior": "gmm", "max_clusters": 2}},
    {"cost": {"local_window": 2}},
    {"cost": {"ridge": 1e-2}},
    {"replay": 1},
    {"replay": 3},
    {"gamma": 1.0},
    {"gamma": 0.5},
    {"horizon": 2},
    {"n_conditions": 1},
    {"samples_per_condition": 7},
    {"batch_size": 3},
]
OWN: dict[type[Any], list[dict[str, Any]]] = {
    MDGPS: [
        {"linearization": "niw"},
        {"linearization": "nearest"},
        {"linearization": "gmm"},
        {"linearization": {"prior": "nearest", "neighbours": 10}},
        {"sampling": "local", "conditions": "fixed"},
        {"sampling": "local", "conditions": "fixed", "initial_controller": "lqr"},
        {"step_rule": "classic"},
        {"step_rule": "global"},
        {"step_rule": "classic", "conditions": "fixed"},
        {"step_rule": "global", "conditions": "fixed"},
        {"initial_controller": "lqr"},
        {"initial_controller": "pd"},
        {"initial_controller": {"kind": "lqr", "stiffness": 2.0}},
        {"initial_controller": {"kind": "pd", "position_gains": 2.0, "positions": [0], "velocities": [1]}},
        {"kl_per_time_step": True},
    ],
    AggreVaTeDOC: [
        {"conditions": "continue", "replay": 2},
        {"gae_lambda": 0.0},
        {"gae_lambda": 1.0},
        {"plan_lambda": 0.0},
        {"plan_lambda": 0.5},
        {"plan_lambda": 1.0},
        {"target_kl": 0.2},
        {"trust_region": 3.0},
        {"trust": 0},
        {"trust": 0.3},
        {"trust": 0.5},
        {"cg_damping": 0.1},
        {"n_critic_updates": 1},
        {"noise_correlation": 0.8},
        {"critic_replay": True, WITH: {"replay": 2}},
        {"aggregate": False, WITH: {"replay": 2}},
        {"target_kl": "lin_0.1", WITH: {"replay": 2}},
    ],
    DPI: [
        {"expert": "lqr"},
        {"expert": {"kind": "mppi", "trust_region": 0.3}},
        {"expert": "icem"},
        {"expert": {"kind": "mppi", "n_samples": 4}},
        {"expert": {"kind": "pathwise", "imitation_steps": 3}, WITH: {"gradient_steps": 150}},
        {"critic": {"kind": "returns"}},
        {"imagination": {"horizon": 0}},
        {"imagination": {"on_policy_correction": False}},
        {"critic": {"real_fraction": 1.0}},
        {"critic": {"real_fraction": 0.0}},
        {"early_reset": 0},
        {"early_reset": {"after": 7, "spread": False}},
        {"preset": "free"},
        {"preset": {"kind": "free", "target_kl": 0.5}},
        {"preset": {"target_kl": 0}},
        {"ent_coef": 0.1},
        {"target_entropy": -0.1},
        {"preset": {"noise_correlation": 0.9}},
        {"preset": {"noise_scale": "lin_0.5"}},
        {"learning_rate": lambda progress: 1e-3 * progress},
        {"world_model": {"n_members": 2}},
        {"policy_kwargs": {"net_arch": [8]}},
        {"policy_kwargs": {"net_arch": {"pi": [8, 8], "qf": [12]}}},
        {"policy_kwargs": {"activation_fn": th.nn.Tanh}},
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 1e-3}}},
        {"policy_kwargs": {"net_arch": [8, 8], "std_bounds": (0.2, 0.2)}},
    ],
    DualAC: [
        {"window_length": 1},
        {"window_length": 5},
        {"path_regularization": 0.0},
        {"path_regularization": math.inf},
        {"n_critic_updates": 0},
        {"held_out_values": False},
        {"window_length": 1, "path_regularization": 0.0, "n_critic_updates": 0},
        {"gradient": "literal"},
        {"gradient": "averaged"},
        {"step_rule": "constant"},
        {"step_rule": "decaying"},
        {"gae_lambda": 1.0},
        {"gamma": 1.0},
        {"target_kl": LinearSchedule(0.1, 0.01, 1.0)},
        {"target_kl": "lin_0.05"},
        {"learning_rate": LinearSchedule(1e-2, 1e-3, 1.0)},
        {"use_sde": True},
        {"use_sde": True, "sde_sample_freq": 4},
    ],
    DAgger: [
        {"beta": 0.0},
        {"beta": 0.5},
        {"beta": 1.0},
        {"beta": "lin_1.0"},
        {"expert": lambda obs: -np.sign(obs[:, :1])},
    ],
}
CHOICES: list[tuple[Make, dict[str, Any]]] = [
    *[(make, options) for make in those(from_conditions=True) for options in PLANNING],
    *[(make, options) for name, choices in OWN.items() for make in called(name) for options in choices],
]


@cache
def plain(make: Make, n_iterations: int, **base: Any) -> float:
    return parameters(make(**base).learn(n_iterations * ITERATION))


@pytest.mark.parametrize("make, options", CHOICES, ids=str)
def test_choices(make: Make, options: dict[str, Any]) -> None:
    """Each is learned with, and something else is learned than without it."""
    base = options.get(WITH, {})
    model = make(**base, **{name: value for name, value in options.items() if name != WITH})
    steps = model.n_steps if make.from_conditions else ITERATION
    n_iterations = 3 if "step_rule" in options else 2  # steps are adapted from the third on
    model.learn(n_iterations * steps)
    assert iterations(model) == n_iterations and np.isfinite(parameters(model))
    assert parameters(model) != plain(make, n_iterations, **base), "the choice is ignored"
    if make.from_conditions:
        assert logged(model, "trajopt/kl") > 0.0


@pytest.mark.parametrize("options", OWN[DualAC], ids=str)
def test_choices_with_random_features(options: dict[str, Any]) -> None:
    """Where V is solved in closed form."""
    (make,) = called(DualAC)
    model = make(policy="RBFPolicy", **{name: value for name, value in options.items() if name != WITH})
    before = parameters(model)
    model.learn(2 * ITERATION)
    assert iterations(model) == 2 and np.isfinite(parameters(model)) and parameters(model) != before
    assert 0.0 <= logged(model, "train/kl_divergence_loss") < 1.0


@every(from_conditions=True)
def test_smallest_standard_deviation(make: Make) -> None:
    model = make(min_std=0.9).learn(1)
    assert float(model.policy.log_std.detach().exp()) == pytest.approx(0.9)


# ---------------------------------------------------------------------- environments


@every(searches=False)
def test_processes_are_as_good(make: Make) -> None:
    """The same numbers as without them."""
    tasks = [lambda: make.fit(limited(12))] * 2
    learned = []
    for envs in (vec_env(2, tasks[0]), SubprocVecEnv(tasks, start_method="fork")):
        try:
            learned.append(parameters(make(envs).learn(2 * ITERATION)))
        finally:
            envs.close()
    assert learned[0] == learned[1]


@every(keeps_originals=True)
def test_deaths_of_a_gymnasium_task(make: Make) -> None:
    """A pendulum has fallen where it leans further than .2, and only there; every step on its feet pays 1."""
    env = gym.make("InvertedPendulum-v5")
    if make.from_conditions:
        model = make(env, samples_per_condition=4, horizon=30).learn(1)
        sampled = model.rollout_buffer.trajectories()
        following, died = sampled.states[:, :, 1:][sampled.alive], sampled.terminated[sampled.alive]
        rewards = sampled.rewards[sampled.alive]
    else:
        data, _ = kept(make(env).learn(3 * ITERATION))
        following, died, rewards = data.next_states, data.terminated, data.rewards
    assert died.sum() >= 3
    np.testing.assert_array_equal(died, np.abs(following[:, 1]) > 0.2)
    np.testing.assert_allclose(rewards, 1.0 - died)


# ---------------------------------------------------------------------- it learns

ALIGNED: dict[str, Any] = {"horizon": 20, "n_conditions": 1, "samples_per_condition": 20, "conditions": "random"}
LEARNING: dict[type[Any], tuple[dict[str, Any], int, float]] = {
    MDGPS: ({**ALIGNED, "imitation_steps": 100, "kl_step": 1.0}, 2400, 10.0),
    AggreVaTeDOC: ({**ALIGNED, "n_critic_updates": 10, "target_kl": 0.1}, 2400, 10.0),
    DPI: (
        {
            "gamma": 0.95,
            "update_to_data": 0.3,
            "imagination": {"horizon": 3, "n_rollout_steps": 1000},
            "train_freq": 100,
            "learning_starts": 200,
            "batch_size": 64,
        },
        1200,
        8.0,
    ),
    DualAC: ({"n_steps": 256, "gamma": 0.95, "n_critic_updates": 5, "policy_kwargs": {"net_arch": [32]}}, 1024, 8.0),
    DAgger: ({"expert": lambda obs: -1.5 * obs.sum(1, keepdims=True), "gradient_steps": 300}, 200, 8.0),
    MPC: (
        {"policy": {"kind": "iCEM", "n_samples": 20, "n_elites": 5, "n_rounds": 2}, "horizon": 8, "world_model": {}},
        160,
        8.0,
    ),
    ExIt: (
        {
            "gamma": 0.95,
            "n_simulations": 32,
            "train_freq": 100,
            "gradient_steps": 100,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "gae_lambda": 0.8,
            "policy_kwargs": {"net_arch": [32]},
        },
        300,
        100.0,  # at first it pushes one way
    ),
}
"""Settings, steps, and how much better it is to get"""


WRONG: dict[str, dict[str, Any]] = {
    "the first observation": {"broken": ("observation", 1), "bad": 1e6},
    "the last observation of an episode": {"broken": ("observation", 120), "bad": 1e6},
    "a reward": {"broken": ("reward", 55), "bad": 1e9},
}
"""One number of those that are learned from is so many times too large"""


class Measured(gym.Wrapper):  # type: ignore[type-arg]
    """
    Rewards in another unit, and observations.

    :param env: with one observation
    :param reward: by which its rewards are multiplied
    :param scale: by which its observations are
    """

    def __init__(self, env: gym.Env, reward: float, scale: float) -> None:
        super().__init__(env)
        self.reward, self.scale = reward, scale

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        return np.float32(self.scale) * obs, info

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        return np.float32(self.scale) * obs, self.reward * float(reward), *rest


@cache
def scores(make: Make, wrong: str | None = None, units: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    """:return: mean returns before and after learning, in the task's own units"""
    options, steps, _ = LEARNING[make.algorithm]
    model = make(Measured(limited(20, **(WRONG[wrong] if wrong else {})), *units), **options)

    def score(model: Model) -> float:
        # side by side: a step of many costs little more
        test = vec_env(8, lambda: Monitor(make.fit(Measured(limited(20), *units))))
        test.seed(5)
        return float(np.mean(evaluate_policy(model, test, 8)[0])) / units[0]

    return score(model), score(model.learn(steps))


@every_algorithm
def test_it_learns_a_double_integrator(make: Make) -> None:
    """What no random search finds so soon; returns are about -22 at first, and -5 with the best regulator."""
    before, after = scores(make)
    assert after > before + LEARNING[make.algorithm][2]


@pytest.mark.parametrize("wrong", WRONG)
@every(searches=False)
def test_one_wrong_number_sets_nothing_back(make: Make, wrong: str) -> None:
    """Seeds differ by one; where one number decides the unit of all, most lose five and more. What is searched in is wrong
    itself, for all searches that come to that step."""
    assert scores(make, wrong)[1] > scores(make)[1] - 3.0


@pytest.mark.parametrize("units", [(1e-6, 1e-8), (1e4, 1e8)], ids=str)
@every(imitates=False)
def test_returns_do_not_depend_on_units(make: Make, units: tuple[float, float]) -> None:
    """Where units count, some learned nothing at all: seeds differ by one. An expert has units of its own."""
    assert abs(scores(make, None, units)[1] - scores(make)[1]) < 3.0
