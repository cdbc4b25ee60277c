"""What MPC counts behind its plans: the values of trained models, in units of the reward."""

from pathlib import Path
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
from sb3_dpi.mpc.terminal_values import as_terminal_value

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
