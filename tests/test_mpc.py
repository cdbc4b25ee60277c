"""MPC: plans as actions, their way through ``predict``, and where the simulator is."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import (
    small_exit,
    small_mpc,
    small_ppo,
)
from dummy_envs import ImagePointMass, PointMass, limited, pushed, vec_env
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_dpi import MPC
from sb3_dpi.common.blocks import SMALLEST_MEMORY
from sb3_dpi.compare.evaluation import run_episodes
from sb3_dpi.mpc import mpc, planning
from sb3_dpi.mpc.constants import WARM_UP
from sb3_dpi.mpc.planning import PLANNERS, make_planner
from sb3_dpi.systems import NotCopyableError
from sb3_dpi.trajopt import ilqr, in_time, shooting

SMALL: dict[str, dict[str, Any]] = {
    "random": {"n_samples": 20},
    "CEM": {"n_samples": 20, "n_elites": 5, "n_rounds": 2},
    "iCEM": {"n_samples": 20, "n_elites": 5, "n_rounds": 2},
    "MPPI": {"n_samples": 20},
    "iLQR": {"max_iterations": 2},
}
LIMIT = 6


def small(env: Any = None, planner: str = "iCEM", **kwargs: Any) -> MPC:
    """:return: plans in the simulator of a point mass"""
    options: dict[str, Any] = {"horizon": 4, "system": "simulator", "seed": 0}
    return MPC({"kind": planner, **SMALL[planner]}, limited(LIMIT) if env is None else env, **{**options, **kwargs})


def into(base: Any, obs: np.ndarray) -> None:
    """Put a point mass where it is seen."""
    base.state = obs.copy()


def force(state: np.ndarray, horizon: int) -> float:
    """:return: the first action of the point mass's best plan, as dense least squares"""
    A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([0.0, 0.2])
    free, driven = [state], [np.zeros((2, horizon))]
    for t in range(horizon - 1):
        free.append(A @ free[-1])
        pushed = A @ driven[-1]
        pushed[:, t] += B
        driven.append(pushed)
    G = np.concatenate([*driven, np.sqrt(0.1) * np.eye(horizon)])
    return float(np.linalg.lstsq(G, -np.concatenate([*free, np.zeros(horizon)]), rcond=None)[0][0])


@pytest.mark.parametrize("planner", SMALL)
def test_every_planner_acts_as_a_policy_with_a_memory(planner: str) -> None:
    model = small(vec_env(2, lambda: limited(LIMIT)), planner)
    obs = model.get_env().reset()  # type: ignore[union-attr]
    actions, state = model.predict(obs, deterministic=True)
    assert actions.shape == (2, 1) and actions.dtype == np.float32 and np.all(np.abs(actions) <= 1.0)
    again, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(actions, again)
    kept = state.copy()
    _, following = model.predict(obs, state, np.array([False, False]), deterministic=True)
    assert state.tobytes() == kept.tobytes() and following["n_plans"].tolist() == [2, 2]
    mixed, _ = model.predict(obs, state, np.array([True, False]), deterministic=True)
    assert mixed[0] == actions[0]
    mean, _ = evaluate_policy(model, model.get_env(), 1, warn=False)  # type: ignore[arg-type]
    assert np.isfinite(mean)


def test_ilqr_finds_the_least_squares_plan_and_its_feedback_acts_in_between() -> None:
    model = small(planner="iLQR", horizon=6, replan_every=6, state_from_obs=into)
    x = np.array([0.2, -0.1])
    action, state = model.predict(x.astype(np.float32))
    assert action[0] == pytest.approx(force(x, 6), abs=1e-5)
    moved = np.array([0.25, -0.05])
    between, state = model.predict(moved.astype(np.float32), state)
    assert state["n_plans"] == 1 and between[0] == pytest.approx(force(moved, 5), abs=1e-5)


def test_each_plan_of_ilqr_begins_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, where no drawn sequence is better; the least squares plan, that is never."""
    begun: list[Any] = []
    plan = ilqr.ILQR.plan
    monkeypatch.setattr(
        ilqr.ILQR, "plan", lambda self, *given, **limits: begun.append(given[3]) or plan(self, *given, **limits)
    )
    model, state = small(planner="iLQR", horizon=6, state_from_obs=into), None
    obs = np.array([0.2, -0.1], dtype=np.float32)
    for _ in range(3):
        _, state = model.predict(obs, state)
    assert [isinstance(start, ilqr.ILQRPlan) for start in begun] == [False, True, True]


def test_a_plan_that_is_worse_than_what_was_tried_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an end of the episode, which iLQR does not know; at rest, resting costs nothing."""
    plan = ilqr.ILQR.plan
    monkeypatch.setattr(ilqr.ILQR, "plan", lambda *given, **limits: replace(plan(*given, **limits), actions=np.ones((4, 1))))
    action, state = small(planner="iLQR", state_from_obs=into).predict(np.zeros(2, dtype=np.float32))
    assert action[0] == 0.0 and state["predicted_return"][0] == 0.0 and not state["gains"].any()


def test_what_is_kept_of_a_plan() -> None:
    """The seconds that it took, and the best sequence, where no elites are fitted."""
    model = small(planner="random", state_from_obs=into)
    _, state = model.predict(np.zeros(2, dtype=np.float32))
    assert 0.0 < state["seconds"] < 60.0
    np.testing.assert_array_equal(state["elites"][0], state["actions"])


def test_rows_of_another_number_of_environments(tmp_path: Path) -> None:
    model = small_mpc(limited(LIMIT)).learn(7)
    model.save_replay_buffer(tmp_path / "rows.pkl")
    other = small_mpc(vec_env(3, lambda: limited(LIMIT)))
    other.load_replay_buffer(tmp_path / "rows.pkl")
    kept = other.replay_buffer.size()
    assert other.replay_buffer.n_envs == 3 and kept == model.replay_buffer.size() // 3
    other.learn(6)
    assert other.replay_buffer.size() == kept + 2


def test_names_are_known_in_any_case() -> None:
    assert {type(make_planner(name)) for name in ("ICEM", "icem", "iCEM")} == {type(make_planner({"kind": "icem"}))}
    assert {name.lower() for name in MPC.policy_aliases} == set(PLANNERS)


# ---------------------------------------------------------------------- where the simulator is


def test_another_environment() -> None:
    model, other = small(), Monitor(limited(LIMIT))
    with pytest.raises(ValueError, match="set_env"):
        evaluate_policy(model, other, 1)
    told = small(state_from_obs=into)
    assert np.isfinite(evaluate_policy(told, other, 1)[0])
    episodes = run_episodes(model, vec_env(2, lambda: Monitor(limited(LIMIT))), 3)
    assert len(episodes.returns) == 2 and np.all(np.isfinite(episodes.returns)), "the lab's"
    model.set_env(other)
    assert np.isfinite(evaluate_policy(model, model.get_env(), 1)[0])  # type: ignore[arg-type]


class Shown(PointMass):
    """Says what it would observe in any state."""

    def _get_obs(self) -> np.ndarray:
        return np.asarray(self.observation())


SEARCHES: dict[str, Callable[[Any], Any]] = {"MPC": small, "ExIt": lambda env: small_exit(env, search_in_predict=True)}


@pytest.mark.parametrize("kind", SEARCHES)
def test_loops_of_those_who_gave_the_environment(kind: str) -> None:
    """Whoever resets and steps it, and evaluates in it or beside it while it learns."""
    env = gym.wrappers.TimeLimit(Shown(), LIMIT)
    model = SEARCHES[kind](env)
    env = env if kind == "MPC" else model.get_env().envs[0].env
    obs, _ = env.reset(seed=3)
    for _ in range(3):
        action, _ = model.predict(obs)
        obs, *_ = env.step(action)
    beside = vec_env(2, lambda: Monitor(gym.wrappers.TimeLimit(Shown(), LIMIT)))
    beside = beside if kind == "MPC" else pushed(beside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(3, callback=[EvalCallback(beside, n_eval_episodes=1, eval_freq=2, verbose=0)])
        evaluate_policy(model, model.get_env(), 1)
        model.learn(3, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="episode_start must say of each of 1 environments"):
        model.predict(obs, episode_start=np.array([True, False]))
    with pytest.raises(ValueError, match="set_env"):
        model.predict(obs + 1.0)


def test_parameters_that_change_are_followed() -> None:
    for env_id, change in (("Pendulum-v1", "g"), ("InvertedDoublePendulum-v5", "mass")):
        env = gym.make(env_id)
        model = small(env, "random", horizon=3, replan_every=3)
        base: Any = env.unwrapped
        if change == "g":
            base.g = 1.0
        else:
            base.model.body_mass[:] *= 3.0
            base.model.opt.gravity[2] = -3.0
        vec: Any = model.get_env()
        obs, state, earned = vec.reset(), None, 0.0
        for _ in range(3):
            action, state = model.predict(obs, state)
            obs, reward, _, _ = vec.step(action)
            earned += float(reward[0])
        assert state["predicted_return"][0] == pytest.approx(earned, rel=1e-5), env_id
    both = vec_env(2, lambda: gym.make("Pendulum-v1"))
    model = small(both, horizon=3)
    obs = both.reset()
    model.predict(obs)
    both.envs[1].unwrapped.g = 1.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Environment 1 differs from the first in g: plans for all are made in one simulator"):
        model.predict(obs)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5", "Reacher-v5", "InvertedDoublePendulum-v5"])
def test_stock_tasks_are_found_by_what_is_seen(env_id: str) -> None:
    """A plan from the observation alone is the plan from the true state."""
    env, other = gym.make(env_id), gym.make(env_id)
    model = small(env, horizon=3)
    obs, _ = other.reset(seed=5)
    other.action_space.seed(0)
    for _ in range(3):
        obs, *_ = other.step(other.action_space.sample())
    deduced, _ = model.predict(obs, deterministic=True)
    same = small(other, horizon=3)
    shown = same._finder.simulator.read(other)  # type: ignore[union-attr]
    same._finder._read = lambda env, n: ([shown], "")  # type: ignore[union-attr, method-assign]
    same._finder.state_from_obs = None  # type: ignore[union-attr]
    np.testing.assert_allclose(same.predict(obs, deterministic=True)[0], deduced, atol=1e-3)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "InvertedDoublePendulum-v5"])
def test_velocities_that_are_cut_off_are_not_believed(env_id: str) -> None:
    """They show as the limit, from which plans would begin."""
    model, base = small(gym.make(env_id), horizon=3), gym.make(env_id).unwrapped
    base.reset(seed=0)
    for speed, is_seen in ((9.0, True), (11.0, False), (-11.0, False)):
        velocities = np.zeros(base.model.nv)  # type: ignore[attr-defined]
        velocities[-1] = speed
        base.set_state(base.init_qpos, velocities)  # type: ignore[attr-defined]
        obs = base._get_obs()  # type: ignore[attr-defined]
        if is_seen:
            model.predict(obs)
            continue
        with pytest.raises(ValueError, match=r"an observation of \w+ does not say it. Call model.set_env\(env\)"):
            model.predict(obs)


def test_time_limits_of_the_zoo_end_no_plan_either() -> None:
    patched = type("PatchedTimeLimit", (gym.wrappers.TimeLimit,), {"__module__": "rl_zoo3.gym_patches"})
    model = small(patched(PointMass(), LIMIT))
    assert [name.rpartition(".")[2] for name in model._finder.simulator.layer_names] == ["PointMass"]  # type: ignore


def test_normalised_observations() -> None:
    env = VecNormalize(vec_env(2, lambda: limited(LIMIT)))
    model = small(env, train_freq=3)
    assert np.isfinite(evaluate_policy(model, env, 1, warn=False)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(12)


# ---------------------------------------------------------------------- arguments


class Locked(PointMass):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Deaf(PointMass):
    """Its resets ignore their seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.state, self.t = np.random.default_rng().normal(size=2), 0
        return self.observation(), {}


class Unbounded(PointMass):
    """Has no units of actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
        ({"horizon": 2.5}, ValueError, "horizon must be a whole number, got 2.5"),
        ({"replan_every": 9}, ValueError, "replan_every must be from 1"),
        ({"system": "dream"}, ValueError, "Unknown system 'dream'"),
        ({"env": "CartPole-v1"}, AssertionError, r"Discrete\(2\) was provided: for Discrete actions take ExIt"),
        ({"env": Deaf()}, ValueError, "began two different episodes"),
        ({"env": ImagePointMass(), "system": "ensemble", "buffer_size": 10**12}, ValueError, "no model of images"),
        ({"system": gym.make("Pendulum-v1")}, ValueError, "give one alike"),
        ({"policy_kwargs": {"net_arch": [8]}}, ValueError, "leave policy_kwargs out"),
        ({"learning_starts": -1}, ValueError, "learning_starts must be at least 0"),
        ({"early_reset": -1}, ValueError, "early_reset must be at least 0"),
        ({"cost_fn": 3}, ValueError, "cost_fn must be a function"),
        ({"gamma": 2.0}, ValueError, "gamma must be above 0"),
        ({"env": Unbounded()}, AssertionError, "finite lower and upper bound"),
        ({"env": VecFrameStack(vec_env(2), 2)}, ValueError, "VecFrameStack.*wrap each environment instead"),
        ({"env": Locked()}, NotCopyableError, "cannot be copied"),
        ({"planner": "iLQR", "system": "ensemble"}, ValueError, "plan in the simulator"),
        ({"max_plan_seconds": -1.0}, ValueError, "max_plan_seconds must be at least 0, which sets no limit"),
        ({"terminal_value": 3}, ValueError, "terminal_value"),
    ],
    ids=str,
)
def test_what_is_refused(kwargs: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        small(**kwargs)


def test_costs_that_are_not_finite_and_unknown_planners() -> None:
    model = small(cost_fn=lambda obs, action, following: obs[:, 0] * np.nan)
    with pytest.raises(ValueError, match="must be finite"):
        model.predict(model.get_env().reset())  # type: ignore[union-attr, arg-type]
    obs = np.zeros(2, np.float32)
    for cost in (th.ones(3), np.ones(20)):
        with pytest.raises(ValueError, match="cost_fn must return a tensor of one cost a row"):
            small(cost_fn=lambda *_, cost=cost: cost, state_from_obs=into).predict(obs)
    with pytest.raises(ValueError, match="terminal_value must return one number a row"):
        small(terminal_value=lambda seen: seen, state_from_obs=into).predict(obs)
    for name in ("dream", {"kind": "dream"}, {"n_samples": 3}, None, type(small_ppo().policy)):
        with pytest.raises(ValueError, match=r"unknown: MPC has 'iCEM'.* its policy is the planner"):
            MPC(name, limited(LIMIT))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_elites=10 of n_samples=5: give no more elites than samples"):
        MPC({"kind": "iCEM", "n_samples": 5}, limited(LIMIT))
    with pytest.raises(ValueError, match=r"MPC needs an environment .* MPC\('iCEM', 'Pendulum-v1'\)"):
        MPC("iCEM", None)
    with pytest.raises(ValueError, match="state must be"):
        model.predict(np.zeros(2), state=np.zeros(1))


@pytest.mark.parametrize(("n_steps", "n_random"), [(300, 150), (2000, WARM_UP), (20, SMALLEST_MEMORY)])
def test_half_of_a_short_training_is_random_at_most(n_steps: int, n_random: int) -> None:
    """Of the steps that this call takes."""
    model = small_mpc(learning_starts=None)
    model._total_timesteps, model._num_timesteps_at_start = 100 + n_steps, 100
    assert model._missing() == n_random


@pytest.mark.parametrize(("noise", "expected"), [(5.0, 1.0), (-5.0, -1.0)])
def test_noise_on_planned_actions_stays_within_the_bounds(noise: float, expected: float) -> None:
    model = small(action_noise=NormalActionNoise(np.full(1, noise), np.zeros(1))).learn(LIMIT)
    assert model.replay_buffer is not None
    assert model.replay_buffer.actions[:LIMIT].ravel().tolist() == [expected] * LIMIT


def test_a_known_cost_and_a_terminal_value_decide() -> None:
    def cost(obs: th.Tensor, action: th.Tensor, following: th.Tensor) -> th.Tensor:
        return obs.square().sum(-1) + 0.1 * action.square().sum(-1)

    obs, options = np.array([0.5, 0.5], np.float32), {"state_from_obs": into}
    plain, _ = small(**options).predict(obs, deterministic=True)
    known, _ = small(cost_fn=cost, **options).predict(obs, deterministic=True)
    np.testing.assert_allclose(plain, known, atol=1e-6)
    for sign in (1.0, -1.0):
        model = small(terminal_value=lambda seen, sign=sign: 100.0 * sign * seen[:, 1], **options)
        assert sign * model.predict(obs, deterministic=True)[0][0] > 0.2


class Clock:
    """Goes on by a second for each step of an environment."""

    now = 0.0

    def monotonic(self) -> float:
        """:return: seconds"""
        return self.now

    perf_counter = monotonic


@pytest.mark.parametrize("planner", SMALL)
@pytest.mark.parametrize("limit", [1.0, 200.0])
def test_time_ends_a_plan_wherever_it_is(planner: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (in_time, shooting, ilqr, planning):
        monkeypatch.setattr(module, "time", clock)
    step = PointMass.step

    def slow(self: PointMass, action: Any) -> Any:
        clock.now += 1.0
        return step(self, action)

    many = {} if planner == "iLQR" else {"n_samples": 1000}
    model = MPC(
        {"kind": planner, **SMALL[planner], **many},
        limited(50),
        horizon=4,
        system="simulator",
        max_plan_seconds=limit,
        state_from_obs=into,
        seed=0,
    )
    monkeypatch.setattr(PointMass, "step", slow)
    obs, state = np.array([0.5, 0.5], np.float32), None
    for _ in range(3):
        begun = clock.now
        action, state = model.predict(obs, state)
        # to say what a plan of iLQR is takes a trajectory, its cost and its return
        assert clock.now - begun <= limit + 4.0 * (3 if planner == "iLQR" else 1)
        assert np.isfinite(action).all() and np.isfinite(state["predicted_return"]).all()


def test_time_ends_a_plan() -> None:
    model = small(state_from_obs=into, max_plan_seconds=1e-9)
    rollout, calls = model._planning.system.rollout, []  # type: ignore[union-attr]
    model._planning.system.rollout = lambda *args: calls.append(1) or rollout(*args)  # type: ignore
    model.predict(np.zeros(2, np.float32))
    assert len(calls) == 1


def test_no_seconds_set_no_limit() -> None:
    found, wanted = (small(state_from_obs=into, max_plan_seconds=limit) for limit in (0.0, None))
    x = np.array([0.3, -0.2], np.float32)
    np.testing.assert_array_equal(found.predict(x)[0], wanted.predict(x)[0])


# ---------------------------------------------------------------------- learning


def test_with_a_simulator_what_is_predicted_comes_true() -> None:
    model = small(limited(50), replan_every=4, train_freq=8)
    with pytest.warns(UserWarning, match="nothing to learn"):
        model.learn(40, log_interval=None)
    measured = model._predicted_returns.summary()
    assert measured["plan/predicted_return"] == pytest.approx(measured["plan/real_return"], rel=1e-4)
    assert measured["plan/plans_per_second"] * measured["plan/seconds"] == pytest.approx(1.0)


def test_what_is_predicted_and_what_comes_are_in_one_unit() -> None:
    def cost(obs: th.Tensor, action: th.Tensor, following: th.Tensor) -> th.Tensor:
        return 100.0 * following.square().sum(-1) + obs[:, 0].abs() + action.square().sum(-1)

    env = VecNormalize(vec_env(2, lambda: gym.wrappers.TimeLimit(Shown(-3.0, 3.0), 50)))
    model = small(env, replan_every=4, train_freq=8, cost_fn=cost)
    with pytest.warns(UserWarning, match="nothing to learn"):
        model.learn(40, log_interval=None)
    measured = model._predicted_returns.summary()
    assert measured["plan/predicted_return"] == pytest.approx(measured["plan/real_return"], rel=1e-3)


@pytest.mark.parametrize("particles", ["ts1", "tsinf"])
def test_learned(particles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpc, "FIRST_FIT", 75)
    model = MPC(
        {"kind": "iCEM", **SMALL["iCEM"]},
        VecNormalize(vec_env(2, lambda: Monitor(limited(LIMIT)))),
        horizon=5,
        particles=particles,
        world_model={"width": 16, "n_members": 2},
        learning_starts=40,
        train_freq=40,
        seed=0,
    )
    model.learn(160, log_interval=1)
    assert model.n_iterations == 3 and model._predicted_returns is not None
    assert model.logger.name_to_value["model/r_squared"] > 0.5
    model.save(tmp_path / "mpc")
    loaded = MPC.load(tmp_path / "mpc")
    assert isinstance(model.env, VecNormalize)
    obs: Any = model.env.normalize_obs(np.array([[0.5, 0.5]], np.float32))
    plain, _ = loaded.predict(obs, deterministic=True)
    np.testing.assert_allclose(plain, model.predict(obs, deterministic=True)[0], atol=1e-5)
    assert plain[0, 0] < 0.0 and loaded.predict(obs + 1.0, deterministic=True)[0] != plain
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(MPC.load(tmp_path / "again").predict(obs, deterministic=True)[0], plain)


def test_long_episodes_are_left_while_it_learns_and_not_in_tests() -> None:
    model = small_mpc(limited(40), early_reset=8, learning_starts=40).learn(80)
    buffer = model.replay_buffer
    assert buffer is not None
    lengths = np.diff(np.flatnonzero(buffer.dones[:80, 0]), prepend=-1)
    assert len(lengths) > 2 and lengths.min() >= 4 and lengths.max() < 40
    assert not (buffer.dones * (1.0 - buffer.timeouts))[:80].any(), "nothing has ended"
    assert evaluate_policy(model, model.get_env(), 1, return_episode_rewards=True)[1] == [40]  # type: ignore[arg-type]


def test_objects_are_not_saved(tmp_path: Path) -> None:
    model = small(terminal_value=small_ppo())
    model.save(tmp_path / "mpc")
    with pytest.raises(ValueError, match=r"make or load it, and hand it over with MPC\.load\(path, terminal_value=\.\.\.\)"):
        MPC.load(tmp_path / "mpc")
    loaded = MPC.load(tmp_path / "mpc", terminal_value=small_ppo())
    with pytest.raises(ValueError, match="set_env"):
        loaded.predict(np.zeros(2, np.float32))
