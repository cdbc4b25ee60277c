"""The cart-pole against an independent formulation of its mechanics, and as a citizen of Gymnasium and Stable-Baselines3."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from scipy.integrate import solve_ivp
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_dpi.envs import CARTPOLE_ID, register_envs
from sb3_dpi.envs.cartpole import CART_MASS, GRAVITY, MAX_FORCE, TIME_STEP, CartPoleBalanceEnv

BODIES = [(0.1, 0.5), (0.5, 0.5), (0.1, 0.25), (2.0, 1.3)]


def pole_particles(env: CartPoleBalanceEnv) -> tuple[np.ndarray, np.ndarray]:
    """A uniform rod as point masses at the nodes of a Gauss rule, which has the rod's mass, centre and inertia exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(3)
    return env.pole_length * (1.0 + nodes), 0.5 * env.pole_mass * weights


def energy(env: CartPoleBalanceEnv, state: np.ndarray) -> float:
    """Kinetic plus potential energy, summed over cart and particles."""
    _, velocity, angle, angular_velocity = state
    distance, mass = pole_particles(env)
    horizontal = velocity + distance * np.cos(angle) * angular_velocity
    vertical = -distance * np.sin(angle) * angular_velocity
    kinetic = 0.5 * CART_MASS * velocity**2 + 0.5 * np.sum(mass * (horizontal**2 + vertical**2))
    return float(kinetic + GRAVITY * np.cos(angle) * np.sum(mass * distance))


def lagrangian_accelerations(env: CartPoleBalanceEnv, state: np.ndarray, force: float) -> np.ndarray:
    """Euler-Lagrange equations, their derivatives taken from the energy by finite differences."""
    q, v = state[[0, 2]], state[[1, 3]]

    def lagrangian(q: np.ndarray, v: np.ndarray) -> float:
        at = np.array([q[0], v[0], q[1], v[1]])
        potential = energy(env, np.array([q[0], 0.0, q[1], 0.0]))
        return energy(env, at) - 2.0 * potential

    h, unit = 1e-4, np.eye(2)
    mass, mixed, pull = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2)
    for i in range(2):
        pull[i] = (lagrangian(q + h * unit[i], v) - lagrangian(q - h * unit[i], v)) / (2 * h)
        for j in range(2):
            corners = [(a, b) for a in (h, -h) for b in (h, -h)]
            mass[i, j] = sum(np.sign(a * b) * lagrangian(q, v + a * unit[i] + b * unit[j]) for a, b in corners) / (4 * h * h)
            mixed[i, j] = sum(np.sign(a * b) * lagrangian(q + b * unit[j], v + a * unit[i]) for a, b in corners) / (4 * h * h)
    return np.linalg.solve(mass, np.array([force, 0.0]) + pull - mixed @ v)


@pytest.mark.parametrize("mass, length", BODIES)
def test_accelerations_follow_from_the_energy(mass: float, length: float) -> None:
    env = CartPoleBalanceEnv(pole_mass=mass, pole_length=length)
    rng = np.random.default_rng(0)
    for _ in range(20):
        state, force = rng.normal(size=4) * [1.0, 2.0, 2.0, 3.0], 10.0 * rng.normal()
        expected = lagrangian_accelerations(env, state, force)
        np.testing.assert_allclose(env.accelerations(state, force), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mass, length", BODIES)
def test_energy_changes_by_the_work_of_the_force(mass: float, length: float) -> None:
    env = CartPoleBalanceEnv(pole_mass=mass, pole_length=length)
    state, h = np.array([0.2, -0.5, 0.8, 1.5]), 1e-6
    for force in (0.0, 7.0):
        acceleration, angular = env.accelerations(state, force)
        flow = np.array([state[1], acceleration, state[3], angular])
        power = (energy(env, state + h * flow) - energy(env, state - h * flow)) / (2 * h)
        assert power == pytest.approx(force * state[1], abs=1e-6)


def test_steps_approximate_the_continuous_motion() -> None:
    env = CartPoleBalanceEnv()
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, 25)
    exact = env.state.copy()
    for action in actions:
        observation = env.step(np.array([action], dtype=np.float32))[0]

        def flow(_: float, s: np.ndarray, force: float = MAX_FORCE * action) -> list[float]:
            acceleration, angular = env.accelerations(s, force)
            return [s[1], acceleration, s[3], angular]

        exact = solve_ivp(flow, (0.0, TIME_STEP), exact, rtol=1e-9).y[:, -1]
    np.testing.assert_allclose(observation, exact, atol=0.05)
    assert np.abs(exact).max() > 0.3


def test_a_fallen_pole_does_not_gain_energy() -> None:
    env = CartPoleBalanceEnv()
    env.reset(seed=0)
    start = energy(env, env.state)
    drift = []
    for _ in range(1500):
        env.step(np.zeros(1, dtype=np.float32))
        drift.append(abs(energy(env, env.state) - start))
    assert max(drift) < 0.15 * 2 * GRAVITY * env.pole_mass * env.pole_length


def test_falling_rate_scales_with_mass_and_length() -> None:
    for mass, length in BODIES:
        env = CartPoleBalanceEnv(pole_mass=mass, pole_length=length)
        angular = env.accelerations(np.array([0.0, 0.0, 1e-6, 0.0]), 0.0)[1] / 1e-6
        total = CART_MASS + mass
        assert angular == pytest.approx(GRAVITY / (length * (4.0 / 3.0 - mass / total)), rel=1e-6)


def test_checkers_and_registration() -> None:
    register_envs()
    register_envs()
    env = gym.make(CARTPOLE_ID)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 150
    gymnasium_check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(gym.make(CARTPOLE_ID, pole_mass=0.3, pole_length=0.4), warn=True)
    made = gym.make(CARTPOLE_ID, pole_mass=0.3, pole_length=0.4).unwrapped
    assert isinstance(made, CartPoleBalanceEnv)
    assert (made.pole_mass, made.pole_length) == (0.3, 0.4)


def test_the_seed_fixes_the_episode() -> None:
    def episode(seed: int) -> np.ndarray:
        env = gym.make(CARTPOLE_ID)
        observations = [env.reset(seed=seed)[0]]
        for action in np.random.default_rng(0).uniform(-1, 1, (30, 1)).astype(np.float32):
            observations.append(env.step(action)[0])
        return np.array(observations)

    np.testing.assert_array_equal(episode(3), episode(3))
    assert not np.array_equal(episode(3), episode(4))
    starts = np.array([CartPoleBalanceEnv().reset(seed=i)[0] for i in range(200)])
    assert np.all(np.abs(starts) <= np.array([0.05, 0.05, 0.1, 0.05], dtype=np.float32))
    assert np.all(np.abs(starts).max(0) > np.array([0.045, 0.045, 0.09, 0.045]))


def returns_and_angles(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    env = gym.make(CARTPOLE_ID)
    totals, late = [], []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        total, angles, done = 0.0, [], False
        while not done:
            observation, reward, terminated, done, info = env.step(np.array([gains @ observation], dtype=np.float32))
            assert not terminated
            assert info["angle"] == pytest.approx(observation[2], abs=1e-5)
            total += float(reward)
            angles.append(abs(info["angle"]))
            assert info["is_success"] == (len(angles) >= 50 and max(angles[-50:]) <= 0.05)
        assert len(angles) == 150
        totals.append(total)
        late.append(max(angles[-50:]))
    return np.array(totals), np.array(late)


def test_balancing_pays_and_doing_nothing_does_not() -> None:
    balanced, angles = returns_and_angles(np.array([2.7, 2.2, 10.1, 2.4]))
    assert balanced.min() > -6
    assert angles.max() < 0.05
    nothing, angles = returns_and_angles(np.zeros(4))
    assert nothing.max() < -50
    assert angles.min() > 0.5


def test_reward_is_bounded_and_counts_the_clipped_action() -> None:
    env = CartPoleBalanceEnv()
    env.reset(seed=0)
    env.state = np.array([0.5, 3.0, -0.2, 1.0])
    twin = CartPoleBalanceEnv()
    twin.reset(seed=0)
    twin.state = env.state.copy()
    reward = env.step(np.array([-5.0], dtype=np.float32))[1]
    assert reward == pytest.approx(-(2 * (1 - np.cos(0.2)) + 0.25 / 1.25 + 0.1))
    twin.step(np.array([-1.0], dtype=np.float32))
    np.testing.assert_array_equal(env.state, twin.state)


def test_the_force_goes_both_ways() -> None:
    env = CartPoleBalanceEnv()
    assert env.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (4,), np.float32)


def test_bad_input_is_named() -> None:
    env = CartPoleBalanceEnv()
    env.reset(seed=0)
    for action in ([np.nan], [0.0, 0.0]):
        with pytest.raises(ValueError, match="one finite number"):
            env.step(np.array(action, dtype=np.float32))
    with pytest.raises(ValueError, match="`pole_mass` must be a positive number"):
        CartPoleBalanceEnv(pole_mass=0.0)
    with pytest.raises(ValueError, match="`pole_length` must be a positive number"):
        CartPoleBalanceEnv(pole_length=float("nan"))
