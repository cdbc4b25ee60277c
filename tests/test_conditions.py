"""Trajectories from initial conditions: reset seeds, horizons, time limits, deaths, kept iterations."""

from typing import Any

import numpy as np
import pytest
from algorithms import Make, Model, check_transitions, every, logged, parameters, planned
from dummy_envs import (
    CONDITIONS,
    HORIZON,
    ITERATION,
    POINT_MASS_ID,
    POINT_MASS_LIMIT,
    SAMPLES,
    PointMass,
    limited,
    vec_env,
)

from sb3_dpi import MDGPS
from sb3_dpi.common.collector import LONGEST_HORIZON


def check_learned(model: Model, iterations: int) -> None:
    assert model.n_iterations == model._n_updates == iterations
    assert np.isfinite(parameters(model))


# ---------------------------------------------------------------------- conditions


def seeds_of(model: Model) -> list[int | None]:
    assert model.env is not None
    env = model.env.get_attr("unwrapped")[0]
    return [seed for seed in env.seeds if seed is not None and seed >= 2**16]


@pytest.mark.parametrize("conditions", ["fixed", "fresh", "random"])
@every(from_conditions=True)
def test_conditions_are_reset_seeds(make: Make, conditions: str) -> None:
    model = make(conditions=conditions)
    model.learn(2 * ITERATION)
    seeds = seeds_of(model)
    n = CONDITIONS * SAMPLES
    assert len(seeds) == 2 * n
    first, second = seeds[:n], seeds[n:]
    distinct = {"fixed": (2, 2, 2), "fresh": (2, 2, 4), "random": (4, 4, 8)}[conditions]
    assert (len(set(first)), len(set(second)), len(set(seeds))) == distinct
    states = model.rollout_buffer.trajectories().states[:, :, 0]
    same_start = np.allclose(states[:, 0], states[:, 1])
    assert same_start == (conditions != "random")
    assert not np.allclose(states[0], states[1])


@pytest.mark.parametrize("n_envs", [2, 3, 8])
@every(from_conditions=True)
def test_random_conditions_are_distinct_in_every_iteration(make: Make, n_envs: int) -> None:
    model = make(vec_env(n_envs), conditions="random")
    model.learn(3 * model.n_steps * n_envs)
    assert model.env is not None
    used = [seed for env in model.env.get_attr("unwrapped") for seed in env.seeds if seed is not None and seed >= 2**16]
    assert len(used) == len(set(used))


# ---------------------------------------------------------------------- kept iterations, several environments


@every(from_conditions=True)
def test_replay_keeps_iterations(make: Make) -> None:
    model = make(replay=2)
    sizes = []
    fit_model = model.fit_model
    model.fit_model = lambda trajectories: sizes.append(len(trajectories.alive)) or fit_model(trajectories)  # type: ignore
    model.learn(4 * ITERATION)
    assert sizes == [CONDITIONS * n for n in (1, 2, 3, 3)]
    assert len(model.past) == 2


@every(from_conditions=True)
def test_memory_does_not_grow(make: Make) -> None:
    model = make(replay=2)

    def size() -> int:
        kept = sum(part.states.nbytes + part.actions.nbytes for part in model.past)
        if isinstance(model, MDGPS):
            assert model.previous is not None
            kept += model.previous.model.dynamics.F.nbytes + model.previous.controller.K.nbytes
        return kept

    model.learn(3 * ITERATION)
    after_three = size()
    model.learn(6 * ITERATION, reset_num_timesteps=False)
    assert size() == after_three > 0


@pytest.mark.parametrize("n_envs", [1, 2, 3, 8])
@every(from_conditions=True)
def test_several_environments(make: Make, n_envs: int) -> None:
    """The number of trajectories is rounded up to a multiple of the environments."""
    model = make(vec_env(n_envs), n_conditions=3, samples_per_condition=2)
    model.learn(2 * HORIZON * 6)
    n_batches = -(-6 // n_envs)
    assert model.n_steps == n_batches * HORIZON
    assert model.num_timesteps == 2 * n_batches * n_envs * HORIZON
    alive = model.rollout_buffer.trajectories().alive
    assert alive[:, :, 0].sum() == n_batches * n_envs
    assert np.all(alive[:, :, 0].sum(1) >= 2), "no condition gets fewer samples than asked for"
    check_learned(model, 2)


# ---------------------------------------------------------------------- horizons and time limits


@every(from_conditions=True)
def test_horizon_is_the_time_limit_by_default(make: Make) -> None:
    steps = 5 * 7 * CONDITIONS * SAMPLES
    model = make(limited(7), horizon=None).learn(steps)
    assert model.num_timesteps == steps and model.n_iterations == 5
    assert not model.rollout_buffer.terminated.any(), "a time limit is no death"
    check_transitions(model)
    assert model.rollout_buffer.horizon == 7
    infos = list(model.ep_info_buffer or [])
    assert [info["l"] for info in infos] == [7] * 20
    registered = make(POINT_MASS_ID, horizon=None)
    assert registered.rollout_buffer.horizon == POINT_MASS_LIMIT


@every(from_conditions=True)
def test_horizon_without_a_time_limit(make: Make) -> None:
    model = make(PointMass(), horizon=None, n_conditions=1, samples_per_condition=2)
    assert model.learn(1000).num_timesteps == 1000 and model.rollout_buffer.horizon == LONGEST_HORIZON


@every(from_conditions=True)
def test_horizon_shorter_than_the_episode(make: Make) -> None:
    model = make(limited(50), horizon=5)
    model.learn(2 * 20)
    assert model.num_timesteps == 40
    check_learned(model, 2)
    check_transitions(model)
    assert np.all(model.rollout_buffer.trajectories().alive)


@every(from_conditions=True)
def test_time_limit_inside_of_a_horizon(make: Make) -> None:
    """Truncation cuts the plan where nothing says how long episodes are, but is no death."""

    class Truncating(PointMass):
        def step(self, action: np.ndarray) -> Any:
            obs, reward, terminated, _, info = super().step(action)
            return obs, reward, terminated, self.t >= 6, info

    model = make(Truncating())
    model.learn(1)
    trajectories = model.rollout_buffer.trajectories()
    assert np.all(trajectories.alive.sum(-1) == 6)
    assert not trajectories.terminated.any()
    assert logged(model, "trajopt/planned_steps") == 6
    check_transitions(model)
    if isinstance(model, MDGPS):
        assert model.previous is not None and np.all(model.previous.model.cost.const[:, 6:] == 0.0)


# ---------------------------------------------------------------------- early termination


@pytest.mark.parametrize("n_envs", [1, 3])
@every(from_conditions=True)
def test_early_termination(make: Make, n_envs: int) -> None:
    """Deaths are masked, cut from the plan, and every real step counts."""
    env = vec_env(n_envs, lambda: PointMass(death=(3, 12)))
    model = make(env, samples_per_condition=6, conditions="random")
    model.learn(300)
    assert model.num_timesteps == sum(inner.n_steps for inner in env.get_attr("unwrapped"))
    check_learned(model, model.n_iterations)
    trajectories = model.rollout_buffer.trajectories()
    lengths = trajectories.alive.sum(-1)
    assert lengths.min() < HORIZON and lengths.min() >= 3
    assert np.all(trajectories.alive == (np.arange(HORIZON) < lengths[..., None])), "no life after death"
    ends = np.take_along_axis(trajectories.terminated, lengths[..., None] - 1, -1)[..., 0]
    assert np.all(ends[lengths < HORIZON])
    assert (trajectories.terminated & trajectories.alive).sum() == ends.sum()
    check_transitions(model)
    expected = (trajectories.alive.sum(1) >= model.min_samples).sum(-1)
    np.testing.assert_array_equal(planned(model).any(1).sum(-1), expected)
    if isinstance(model, MDGPS):
        assert model.previous is not None
        np.testing.assert_array_equal(model.previous.model.lengths, expected)
    assert logged(model, "trajopt/planned_steps") == pytest.approx(expected.mean())


@every(from_conditions=True)
def test_deaths_end_a_batch_early(make: Make) -> None:
    env = PointMass(death=(4, 5))
    model = make(env)
    model.learn(1)
    assert model.num_timesteps == env.n_steps == 4 * CONDITIONS * SAMPLES
    assert logged(model, "trajopt/planned_steps") == 4


@every(from_conditions=True)
def test_a_death_is_worse_than_what_life_would_have_brought(make: Make) -> None:
    class Cliff(PointMass):
        """Dies beyond .3, where it is rewarded for going."""

        def step(self, action: np.ndarray) -> Any:
            obs, _, _, _, info = super().step(action)
            return obs, 1.0 + 0.1 * float(self.state[1]), bool(self.state[0] > 1.5), False, info

    options: dict[str, Any] = {"imitation_steps": 200, "kl_step": 1.0} if make.algorithm is MDGPS else {"target_kl": 0.2}
    share = []
    for seed in range(2):
        sizes: dict[str, Any] = {"horizon": 30, "n_conditions": 4, "samples_per_condition": 5, "conditions": "random"}
        model = make(vec_env(20, Cliff), **sizes, **options, seed=seed)
        model.learn(5 * 600)
        share.append(model.rollout_buffer.trajectories().alive[:, :, -1].mean())
    assert np.mean(share) > 0.6


@every(from_conditions=True)
def test_one_condition_without_a_plan_does_not_stop_the_others(make: Make) -> None:
    model = make(conditions="fixed", samples_per_condition=4)
    model.learn(1)
    buffer = model.rollout_buffer
    buffer.alive.reshape(-1, HORIZON)[::2] = False  # trajectories of condition 0
    buffer.alive.reshape(-1, HORIZON)[0, 0] = True
    model.train()
    check_learned(model, 2)
    assert logged(model, "trajopt/planned_steps") == HORIZON / 2
    if isinstance(model, MDGPS):
        assert model.previous is not None
        np.testing.assert_array_equal(model.previous.model.lengths, [0, HORIZON])
