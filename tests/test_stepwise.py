"""DPI and Dual-AC as algorithms of Stable-Baselines3: saving, callbacks, logs, determinism, what is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import Stepwise, block, every_stepwise_algorithm, logged, parameters, small_dpi, small_dual_ac
from dummy_envs import DictPointMass, PointMass, limited, vec_env
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import DPI, DualAC

Make = Callable[..., Stepwise]
OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def trained(make: Make, *args: Any, iterations: int = 2, **kwargs: Any) -> Stepwise:
    model = make(*args, **kwargs)
    return model.learn(iterations * block(model) * model.n_envs)


@pytest.mark.parametrize("algorithm, steps", [(DPI, 25), (DualAC, 1024)])
def test_string_environment_without_further_argument(algorithm: type[Stepwise], steps: int) -> None:
    assert algorithm("MlpPolicy", "Pendulum-v1").learn(1).num_timesteps == steps


# ---------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    "make, changes", [(small_dpi, {"learning_rate": 1e-5}), (small_dual_ac, {"learning_rate": 0.0, "target_kl": 0.2})], ids=str
)
def test_loaded_models_predict_without_environment(make: Make, changes: dict[str, Any], tmp_path: Path) -> None:
    model = trained(make)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", **changes)
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    for name, value in changes.items():
        kept = getattr(loaded, name)
        assert (kept(1.0) if callable(kept) else kept) == value
    loaded.set_env(limited(12))
    loaded.learn(block(loaded), reset_num_timesteps=False)


@every_stepwise_algorithm
def test_policies_are_saved_by_themselves(make: Make, tmp_path: Path) -> None:
    model = trained(make)
    model.policy.save(str(tmp_path / "policy.pt"))
    loaded = type(model.policy).load(str(tmp_path / "policy.pt"))
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )


@pytest.mark.parametrize("algorithm", [DPI, DualAC])
def test_models_of_others_are_refused(algorithm: type[Stepwise], tmp_path: Path) -> None:
    PPO("MlpPolicy", limited(12), n_steps=8, batch_size=8).save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=rf"another algorithm: it cannot be loaded with {algorithm.__name__}\.load"):
        algorithm.load(tmp_path / "ppo")


# ---------------------------------------------------------------------- callbacks and logs


class Witness(BaseCallback):
    """Looks at what callbacks look at."""

    events = ""

    def _on_rollout_start(self) -> None:
        self.events += "("

    def _on_step(self) -> bool:
        assert self.locals["new_obs"].shape == (2, 2) and self.locals["rewards"].shape == self.locals["dones"].shape == (2,)
        assert len(self.locals["infos"]) == 2 and self.locals["actions"].shape == (2, 1)
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, DPI) or self.locals["rollout_buffer"].full
        self.events += ")"


@every_stepwise_algorithm
def test_callbacks(make: Make) -> None:
    witness = Witness()
    model = make(vec_env(2, lambda: limited(12)))
    total = 3 * 2 * block(model)
    model.learn(total, callback=witness)
    assert set(witness.events.split(")")) == {"(", ""} and 2 * witness.n_calls == model.num_timesteps >= total


@every_stepwise_algorithm
def test_a_callback_stops_training(make: Make) -> None:
    model = make(vec_env(1, lambda: Monitor(limited(5)))).learn(1000, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps == 15


@every_stepwise_algorithm
def test_evaluations_do_not_change_what_is_learned(make: Make) -> None:
    plain, watched = trained(make, iterations=3), make()
    callback = EvalCallback(Monitor(limited(5)), n_eval_episodes=2, eval_freq=17, verbose=0)
    watched.learn(3 * block(watched), callback=callback)
    assert parameters(watched) == parameters(plain)


KEYS = {
    small_dpi: "train/critic_loss train/critic_target train/critic_r_squared train/objective train/entropy train/ent_coef "
    "train/kl train/predicted_improvement train/real_improvement "
    "model/loss model/r_squared model/r_squared_reward model/window_correlation",
    small_dual_ac: "train/value_loss train/inner_steps train/inner_gap train/explained_variance train/policy_objective "
    "train/kl_divergence_loss train/is_line_search_success train/advantage_std",
}


@every_stepwise_algorithm
def test_logs(make: Make, tmp_path: Path) -> None:
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(3 * block(model), progress_bar=False)
    columns = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    common = {"train/std", "train/n_updates", "train/learning_rate", "rollout/ep_rew_mean", "time/fps"}
    assert common | set(KEYS[make].split()) <= set(columns)


@every_stepwise_algorithm
def test_name_of_the_run(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = trained(make, tensorboard_log=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [f"{type(model).__name__}_1"]


# ---------------------------------------------------------------------- determinism

NORMALIZED: dict[str, Any] = {"env": lambda: VecNormalize(vec_env(2, lambda: limited(12)))}
DICTIONARIES: dict[str, Any] = {"env": lambda: DictPointMass(("position", "velocity")), "policy": "MultiInputPolicy"}
OPTIONS: list[tuple[Make, dict[str, Any]]] = [
    *[(make, options) for options in ({}, NORMALIZED, DICTIONARIES) for make in (small_dpi, small_dual_ac)],
    (small_dpi, {"expert": "lqr"}),
    (small_dpi, {"expert": "mppi"}),
    (small_dual_ac, {"policy": "RBFPolicy"}),
    (small_dual_ac, {"use_sde": True}),
    (small_dual_ac, {"gradient": "literal", "n_critic_updates": 0}),
]


@pytest.mark.parametrize("make, options", OPTIONS, ids=str)
def test_same_seed_same_numbers(make: Make, options: dict[str, Any]) -> None:
    def numbers(seed: int) -> tuple[float, float]:
        kwargs = dict(options)
        model = trained(make, kwargs.pop("env", lambda: limited(12))(), iterations=3, seed=seed, **kwargs)
        return parameters(model), logged(model, "train/critic_loss" if make is small_dpi else "train/value_loss")

    first = numbers(3)
    np.random.seed(99)
    assert first == numbers(3) != numbers(4)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("what", ["reward", "observation"])
@every_stepwise_algorithm
def test_not_finite(make: Make, what: str, norm_obs: bool) -> None:
    env = PointMass()
    model = trained(make, VecNormalize(vec_env(1, lambda: env), norm_obs=norm_obs))
    before, bad = parameters(model), 2 * block(model) + 10
    env.broken = (what, bad)
    with pytest.raises(ValueError, match=rf"Environment 0 returned an? {what} that is not finite after {bad} steps"):
        model.learn(block(model), reset_num_timesteps=False)
    assert parameters(model) == before
    env.broken = None
    model.learn(block(model), reset_num_timesteps=False)
    assert np.isfinite(parameters(model)), "what raised can be mended, the statistics of VecNormalize included"


@every_stepwise_algorithm
def test_dictionaries_need_their_policy(make: Make) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make(DictPointMass(("position", "velocity")))
