"""Environments that differ: telling them apart, a model and an expert for each, one policy, tests on others."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithms import Make, every, parameters, small_aggrevated_oc
from dummy_envs import POINT_MASS_ID, POINT_MASS_LIMIT, PointMass, limited, normalized, register
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_dpi import evaluate_on_environments, make_environments
from sb3_dpi.common.environments import environment_indices
from sb3_dpi.common.trajectories import TrajectoryBuffer
from sb3_dpi.envs import CARTPOLE_ID

GAINS = (1.0, -2.0, 4.0)


class Gain(PointMass):
    """
    A point mass whose force has a gain.

    :param gain: of the force
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: a time step of a tenth"""
        velocity = self.state[1]
        _, *rest = super().step(action)
        self.state[1] = velocity + self.gain * (self.state[1] - velocity)
        return self.observation(), *rest


def gains(*values: float) -> list[Any]:
    return [lambda value=value: Gain(value) for value in values]


def force_on_velocity(model: Any) -> np.ndarray:
    """:return: what the fitted dynamics of the last iteration say of the force, ``[M, T]``"""
    fitted = model.fit_model(model.rollout_buffer.trajectories())
    return getattr(fitted, "local", fitted).dynamics.F[:, :, 1, 2]


def test_a_list_knows_its_places() -> None:
    register()
    env = make_environments([POINT_MASS_ID, PointMass, lambda: limited(5)], n_envs=2)
    assert env.num_envs == 6 and env.get_attr("environment_index") == [0, 0, 1, 1, 2, 2]
    assert environment_indices(env).tolist() == [0, 0, 1, 1, 2, 2]
    assert all(env.env_is_wrapped(Monitor))


def test_processes_know_their_places() -> None:
    env = make_environments([CARTPOLE_ID, CARTPOLE_ID], vec_env_cls=SubprocVecEnv)
    try:
        assert environment_indices(env).tolist() == [0, 1]
    finally:
        env.close()


@pytest.mark.parametrize("kind", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")], ids=["here", "processes"])
def test_arguments_of_make_tell_apart(kind: Any) -> None:
    def make(**kwargs: Any) -> Any:
        return lambda: gym.make(CARTPOLE_ID, **kwargs)

    env = kind([make(pole_mass=0.2), make(), make(pole_mass=0.2), make(pole_mass=0.3)])
    assert environment_indices(env).tolist() == [0, 1, 0, 2]
    env.close()


def test_names_tell_apart_where_specs_cannot_be_sent() -> None:
    def scaled(name: str) -> Any:
        return lambda: gym.wrappers.TransformReward(gym.make(name), lambda reward: 0.1 * reward)

    env = SubprocVecEnv([scaled("CartPole-v0"), scaled("CartPole-v1"), scaled("CartPole-v1")], start_method="fork")
    assert environment_indices(env).tolist() == [0, 1, 1]
    env.close()


def test_what_nothing_tells_apart_is_the_same() -> None:
    env = DummyVecEnv(gains(*GAINS))
    assert environment_indices(env).tolist() == [0, 0, 0]
    for index, inner in enumerate(env.envs):
        inner.environment_index = index  # type: ignore[attr-defined]
    assert small_aggrevated_oc(env).total_conditions == 3 * 2
    assert small_aggrevated_oc(make_vec_env(CARTPOLE_ID, n_envs=3)).total_conditions == 2


def test_bad_lists() -> None:
    with pytest.raises(ValueError, match="empty list"):
        make_environments([])
    with pytest.raises(ValueError, match="empty list"):
        evaluate_on_environments(small_aggrevated_oc(), [])
    with pytest.raises(ValueError, match="Entry 1 of the environments is a int"):
        make_environments([PointMass, lambda: 3])  # type: ignore[list-item, return-value]
    with pytest.raises(ValueError, match="cannot be copied"):
        make_environments([PointMass()], n_envs=2)
    with pytest.raises(ValueError, match="Entry 1 of the environments has another action_space"):
        make_environments([PointMass, lambda: PointMass(low=-3.0)], n_envs=2)


@pytest.mark.parametrize("indices", [[0, 1, 2], [0, 0, 1, 1], [1, 0, 1], [0, 1, 1, 1]])
@pytest.mark.parametrize("n_conditions", [1, 2, 3])
def test_trajectories_are_read_by_environment(indices: list[int], n_conditions: int) -> None:
    """Every slot of the buffer holds (batch, sub-environment) of the condition that ``conditions`` tells."""
    n_envs, n_batches, horizon = len(indices), 4, 2
    space, action = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1.0, 1.0, (1,))
    buffer = TrajectoryBuffer(
        n_batches * horizon,
        space,
        action,
        "cpu",
        n_envs=n_envs,
        horizon=horizon,
        state_dim=2,
        n_conditions=n_conditions,
        environment_indices=np.array(indices),
    )
    everyone = np.ones(n_envs, bool)
    for batch in range(n_batches):
        place = np.stack([np.full(n_envs, batch), np.arange(n_envs)], 1).astype(np.float32)
        for _ in range(horizon):
            buffer.add_step(place, place, np.zeros((n_envs, 1)), np.zeros(n_envs))
        buffer.end_trajectories(everyone, ~everyone, place, place)
        buffer.end_batch()
    sampled = buffer.trajectories()
    assert len(sampled.alive) == (max(indices) + 1) * n_conditions
    seen = set()
    for condition, of_condition in enumerate(sampled.alive):
        for slot in np.flatnonzero(of_condition[:, 0]):
            batch, env = map(int, sampled.states[condition, slot, 0])
            assert np.all(sampled.states[condition, slot] == sampled.states[condition, slot, 0])
            assert buffer.conditions(batch)[env] == condition and condition // n_conditions == indices[env]
            seen.add((batch, env))
    assert len(seen) == n_batches * n_envs


@every(from_conditions=True)
@pytest.mark.parametrize("replay", [0, 2])
def test_each_environment_has_its_model(make: Make, replay: int) -> None:
    model = make(gains(*GAINS), samples_per_condition=5, replay=replay).learn(3 * 300)
    assert model.n_environments == 3 and model.total_conditions == 6
    truth = 0.2 * np.repeat(GAINS, 2)
    np.testing.assert_allclose(force_on_velocity(model), np.broadcast_to(truth[:, None], (6, 10)), rtol=0.12)


def test_environments_called_the_same_share_a_model() -> None:
    """What the test above would see if the fit pooled everything."""
    model = small_aggrevated_oc(DummyVecEnv(gains(*GAINS)), samples_per_condition=12).learn(1)
    assert model.n_environments == 1 and np.ptp(force_on_velocity(model)) < 0.5


@every(from_conditions=True)
def test_conditions_of_an_environment_have_its_seeds(make: Make) -> None:
    made = [PointMass(), PointMass()]
    model = make(made, n_conditions=2, samples_per_condition=3, conditions="fixed").learn(1)
    base = model.condition_base
    assert base is not None
    assert [seed for seed in made[0].seeds if seed is not None and seed >= base] == [base, base + 1] * 3
    assert [seed for seed in made[1].seeds if seed is not None and seed >= base] == [base + 2, base + 3] * 3


@every(from_conditions=True)
@pytest.mark.parametrize("conditions", ["fresh", "fixed", "random", "continue", "mixed"])
def test_it_learns_on_unequal_numbers_of_copies(make: Make, conditions: str) -> None:
    env = DummyVecEnv([lambda gain=gain: Gain(gain) for gain in (1.0, 1.0, 2.0)])  # type: ignore[misc]
    for i, index in enumerate((0, 0, 1)):
        env.envs[i].environment_index = index  # type: ignore[attr-defined]
    model = make(env, conditions=conditions, replay=1, n_conditions=1, samples_per_condition=4)
    # the environment with one copy has to have its four trajectories
    assert model.learn(2 * 120).num_timesteps == 2 * 4 * 3 * 10
    assert model.total_conditions == 2 and np.isfinite(parameters(model))
    alive = model.rollout_buffer.trajectories().alive[:, :, 0].sum(1)
    np.testing.assert_array_equal(alive, [8, 4])


@every(from_conditions=True)
def test_shortest_episode_bounds_the_horizon(make: Make) -> None:
    register()
    short = gym.spec(POINT_MASS_ID).make(max_episode_steps=POINT_MASS_LIMIT - 5)
    assert make([POINT_MASS_ID, short], horizon=None).size.horizon == POINT_MASS_LIMIT - 5
    with pytest.raises(ValueError, match="longer than the environment's episodes"):
        make([POINT_MASS_ID, short], horizon=POINT_MASS_LIMIT)


@every(from_conditions=True)
def test_save_load_and_go_on(make: Make, tmp_path: Path) -> None:
    model = make(gains(*GAINS), replay=1).learn(2 * 120)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=gains(*GAINS))
    assert parameters(loaded) == parameters(model)
    for each in (model, loaded):
        each.set_random_seed(3)
        each._rng = np.random.default_rng(3)
        each.learn(120, reset_num_timesteps=False)
    assert loaded.n_environments == 3 and parameters(loaded) == parameters(model)
    alone = type(model).load(tmp_path / "model")
    assert alone.total_conditions == 6
    fewer = type(model).load(tmp_path / "model", env=gains(*GAINS[:2]))
    assert fewer.learn(1, reset_num_timesteps=False).total_conditions == 4


@every(from_conditions=True)
def test_set_env_keeps_the_structure(make: Make) -> None:
    model = make(gains(*GAINS))
    model.set_env(gains(3.0, 2.0, 1.0))
    with pytest.raises(ValueError, match="Other sub-environments differ"):
        model.set_env(DummyVecEnv(gains(*GAINS)))


def test_same_seed_same_numbers() -> None:
    first, second = (small_aggrevated_oc(gains(*GAINS)).learn(2 * 120) for _ in range(2))
    assert parameters(first) == parameters(second)


def test_one_policy_learns_for_all() -> None:
    everywhere = gains(1.0, 2.0, 3.0)
    options: dict[str, Any] = {"trust": 1.0, "plan_lambda": 1.0, "target_kl": 0.1, "horizon": 20}
    model = small_aggrevated_oc([lambda f=f: gym.wrappers.TimeLimit(f(), 20) for f in everywhere], **options)
    unseen = [lambda: gym.wrappers.TimeLimit(Gain(1.5), 20), lambda: gym.wrappers.TimeLimit(Gain(2.5), 20)]
    before = evaluate_on_environments(model, unseen, 20).mean(1)
    model.learn(15 * 240)
    assert np.all(evaluate_on_environments(model, unseen, 20).mean(1) > before + 2.0)


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_equals_that_of_each(deterministic: bool) -> None:
    model = small_aggrevated_oc()
    makers = [lambda: limited(5), lambda: limited(9)]
    for maker in (made := [make() for make in makers]):
        maker.reset(seed=3)
    returns = evaluate_on_environments(model, made, 3, deterministic)
    assert returns.shape == (2, 3)
    if deterministic:
        for make, row in zip(makers, returns, strict=True):
            env = Monitor(make())
            env.reset(seed=3)
            assert evaluate_policy(model, env, 3, return_episode_rewards=True)[0] == pytest.approx(row)


def test_evaluation_normalises_as_training_did() -> None:
    env = normalized(DummyVecEnv([lambda: limited(6)]), (0.5, 0.0), (4.0, 4.0), norm_reward=False)
    model = small_aggrevated_oc(env, horizon=6)
    statistics = model.get_vec_normalize_env().obs_rms  # type: ignore[union-attr]
    count = statistics.count  # type: ignore[union-attr]
    test, same = limited(6), limited(6)
    test.reset(seed=1)
    same.reset(seed=1)
    returns = evaluate_on_environments(model, [test], 2)[0]
    env.training = False
    env.venv = DummyVecEnv([lambda: Monitor(same)])
    expected, _ = evaluate_policy(model, env, 2, return_episode_rewards=True)
    assert returns == pytest.approx(np.array(expected)) and statistics.count == count  # type: ignore[union-attr]
