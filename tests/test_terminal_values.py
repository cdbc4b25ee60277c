"""What MPC counts: values of trained models behind its plans, in units of the reward, discounts and known costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import (
    small_aggrevated_oc,
    small_dagger,
    small_dpi,
    small_dual_ac,
    small_mdgps,
    small_mpc,
    small_ppo,
    small_sac,
)
from dummy_envs import ITERATION, limited, normalized, vec_env
from sb3_contrib import TQC, RecurrentPPO

from sb3_dpi import MPC
from sb3_dpi.common.critic import value_units
from sb3_dpi.mpc.known_costs import CostedSystem
from sb3_dpi.mpc.planning import Planning, make_planner
from sb3_dpi.mpc.terminal_values import as_terminal_value
from sb3_dpi.systems import Rollouts, Trace
from sb3_dpi.trajopt.types import FloatArray

LIMIT = 6


def planner(**kwargs: Any) -> MPC:
    """:return: plans in the simulator of a point mass"""
    return small_mpc(limited(LIMIT), system="simulator", **kwargs)


@pytest.mark.parametrize("make", [small_dpi, small_ppo, small_sac])
def test_values_of_models(make: Any) -> None:
    model = make().learn(40)
    value = as_terminal_value(model)
    assert value is not None
    seen = np.random.default_rng(0).normal(size=(5, 2))
    assert value(seen).shape == (5,) and np.all(np.isfinite(value(seen))) and np.ptp(value(seen)) > 0.0
    assert planner(terminal_value=model).discount == getattr(model, "discount", model.gamma)


@pytest.mark.parametrize("make", [small_aggrevated_oc, small_dual_ac])
def test_values_are_in_units_of_the_reward(make: Any) -> None:
    """Those of networks that predict standardised returns, whose units are unlike one."""
    model = make().learn(2 * ITERATION)
    units, value = value_units(model), as_terminal_value(model)
    assert units is not None and value is not None and abs(units.mean) > 0.5
    seen = np.random.default_rng(0).normal(size=(5, 2))
    with th.no_grad():
        standard = model.policy.predict_values(th.as_tensor(seen, dtype=th.float32)).double().numpy()[:, 0]
    np.testing.assert_allclose(value(seen), units.mean + units.std * standard, rtol=1e-5)


def test_models_without_values_of_observations() -> None:
    others = (small_mdgps(), small_dagger(expert=lambda obs: obs[:, :1]), TQC("MlpPolicy", limited(LIMIT), buffer_size=9))
    for other in (*others, RecurrentPPO("MlpLstmPolicy", limited(LIMIT), device="cpu")):
        with pytest.raises(ValueError, match=f"{type(other).__name__} has no value function of observations: as term"):
            planner(terminal_value=other)
    with pytest.raises(ValueError, match=r"The PPO given as terminal_value has the observation_space .* give one alike"):
        planner(terminal_value=small_ppo("Pendulum-v1"))
    with pytest.raises(ValueError, match="terminal_value is a trained model or a function"):
        planner(terminal_value=type(others[0]))


def test_a_value_function_that_a_file_can_say(tmp_path: Path) -> None:
    env = normalized(vec_env(1, lambda: limited(LIMIT)), [1.0, 2.0], [4.0, 9.0], norm_reward=False)
    ppo = small_ppo(env)
    ppo.save(tmp_path / "ppo")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    model = planner(terminal_value={"algo": "ppo", "path": tmp_path / "ppo"}, gamma=None)
    seen = np.random.default_rng(0).normal(size=(5, 2))
    known: Any = as_terminal_value(ppo)
    found: Any = model._planning.terminal_value  # type: ignore[union-attr]
    np.testing.assert_allclose(found(seen), known(seen), rtol=1e-6)
    assert model.discount == ppo.gamma
    model.save(tmp_path / "mpc")
    assert MPC.load(tmp_path / "mpc", env=limited(LIMIT)).discount == ppo.gamma
    with pytest.raises(ValueError, match="named by its class under 'algo' and its file under 'path'"):
        planner(terminal_value={"algo": "ppo"})


def test_plans_by_slopes_discount_as_those_by_samples() -> None:
    """What a step earns and the value of the end, the mean over variants, by hand."""

    def rollout(states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        return Rollouts(states[:, :1] + actions[:, :, 0], states[:, None], np.ones((len(states), 1)))

    def value(observations: FloatArray) -> FloatArray:
        worth: FloatArray = observations @ np.array([1.0, 10.0, 100.0])
        return worth

    system: Any = SimpleNamespace(rollout=rollout)
    plans = Planning(make_planner("iLQR"), system, lambda states: states.reshape(-1, 2, 3), 4, 1, 0.5, value, None)
    cost, rng = plans._cost(np.random.default_rng(0), np.inf), np.random.default_rng(0)
    states, actions = rng.normal(size=(5, 6)), rng.normal(size=(5, 1))
    expected = -0.125 * 0.5 * (value(states[:, :3]) + value(states[:, 3:]))
    np.testing.assert_allclose(cost.final_value(states, 3), expected)
    running = cost.value(states, actions, np.arange(5))
    np.testing.assert_allclose(running, -(states[:, 0] + actions[:, 0]) / np.array([1, 2, 4, 8, 16]))


def test_known_costs_count_while_an_episode_goes_on() -> None:
    """By hand, for two particles that end after different steps; what is past an end may be anything."""
    alive = np.array([[1.0, 0.5, 0.25, 0.25], [1.0, 1.0, 0.0, 0.0]])
    seen = np.arange(16.0).reshape(1, 2, 4, 2)
    seen[0, 1, 3] = np.nan
    actions = np.array([[[0.1], [0.2], [0.3]]])
    given: Any = SimpleNamespace(trace=lambda *_: Trace(np.zeros((1, 2, 3)), seen, alive[None]))

    def cost(obs: th.Tensor, taken: th.Tensor, following: th.Tensor) -> th.Tensor:
        return obs[:, 0] + taken[:, 0] + 100.0 * following[:, 1]

    def penalty(obs: FloatArray, taken: FloatArray) -> FloatArray:
        size: FloatArray = obs[:, 1] * taken[:, 0]
        return size

    system = CostedSystem(given, cost, penalty, lambda units: 1000.0 * units)
    found = system.rollout(np.zeros((1, 2)), actions, np.random.default_rng(0))
    for t in range(3):
        earned = 0.0
        for k in range(2):
            if alive[k, t] > 0.0:
                now, following, action = seen[0, k, t], seen[0, k, t + 1], actions[0, t, 0]
                earned -= 0.5 * alive[k, t] * (now[0] + 1000.0 * action + 100.0 * following[1] + now[1] * action)
        assert found.rewards[0, t] == pytest.approx(earned)
    np.testing.assert_array_equal(found.continuation, [[0.25, 0.0]])
    np.testing.assert_array_equal(found.last_observations, [[seen[0, 0, 3], seen[0, 1, 2]]])
