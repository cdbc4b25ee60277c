"""DPI: sampling, spaces, switches, saving, bad arguments; what it shares with Dual-AC is in ``test_stepwise``."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import DPI_STEPS as STEPS
from algorithms import kept, parameters
from algorithms import small_dpi as small
from dummy_envs import DictPointMass, ImagePointMass, Matrix, PointMass, counters, limited, vec_env
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_dpi import DPI
from sb3_dpi.dpi import dpi as dpi_module
from sb3_dpi.dpi.replay import ReplayMemory
from sb3_dpi.world_model.ensemble import DivergedError, Ensemble
from sb3_dpi.world_model.experts.plan_targets import PolicyGradient

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def check_learns(model: DPI, iterations: int = 3) -> DPI:
    networks = (model.policy.actor.network, model.ensemble.networks, model.critic.networks, model.critic.targets)
    before = [network.flat.detach().clone() for network in networks]
    model.learn(iterations * model.train_freq.frequency * model.n_envs)
    assert model.n_iterations == iterations and model._n_updates >= iterations
    for network, old in zip(networks, before, strict=True):
        assert not th.equal(network.flat, old) and bool(th.isfinite(network.flat).all())
    return model


def scalars(model: DPI) -> dict[str, Any]:
    return model.logger.name_to_value


# ---------------------------------------------------------------------- sampling


def untrained(model: DPI) -> DPI:
    model.train = lambda *args: None  # type: ignore[method-assign]
    return model


def counted(early_reset: int, wrap: bool = False) -> DPI:
    """:return: a model that remembers three blocks of 10 steps of four environments"""
    env = VecNormalize(counters(), clip_obs=0.5) if wrap else counters()
    return untrained(small(env, train_freq=10, learning_starts=40, early_reset=early_reset)).learn(120)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("early_reset", [0, 12])
def test_memory(early_reset: int, wrap: bool) -> None:
    """True next observations at deaths, time limits and where an episode was left, in the environment's units."""
    model = counted(early_reset, wrap)
    assert len(model.memory) == 120 and isinstance(model.replay_buffer, ReplayBuffer)
    data, ends = kept(model)
    np.testing.assert_allclose(data.next_states, data.states + np.array([0.0, 0.0, 1.0]), atol=1e-5)
    np.testing.assert_allclose(data.rewards, 1.0)
    np.testing.assert_allclose(data.states[:, 0], np.repeat(np.arange(4), 30), atol=1e-5)
    same = ~ends[:-1]
    np.testing.assert_allclose(data.states[1:][same], data.next_states[:-1][same], atol=1e-5)
    died = data.terminated.reshape(4, 30)
    assert not died[1].any() and not died[3].any()
    if not early_reset:
        assert np.flatnonzero(died[2]).tolist() == [9, 19, 29]
    rows = model.memory.terminated_rows()
    assert sorted(rows % 4 * 30 + rows // 4) == np.flatnonzero(data.terminated).tolist()
    last = np.flatnonzero(ends.reshape(4, 30)[3])
    left = np.diff(last, prepend=-1)[:-1]
    assert last[-1] == 29 and (len(left) >= 1 and left.min() > 5 if early_reset else len(left) == 0)
    assert data.states[90:, 1].max() == pytest.approx(len(left), abs=1e-5)


def test_frame_stacks_see_early_resets() -> None:
    """The layer lies beneath: a stack begins with the episode."""
    model = untrained(small(VecFrameStack(counters(), 2), train_freq=10, learning_starts=40, early_reset=8)).learn(120)
    data, ends = kept(model)
    begins = np.flatnonzero(ends.reshape(4, 30)[3][:-1]) + 91
    assert len(begins) and not data.states[begins][:, :3].any() and data.states[begins][:, 3].all()


def test_discount_follows_the_time_limit(tmp_path: Path) -> None:
    assert small(limited(20), gamma=0.9).learn(2 * STEPS).discount == 0.9
    model = small(limited(20), learning_starts=50)
    assert model.gamma is None
    model.learn(60).save(tmp_path / "model")
    assert model.discount == DPI.load(tmp_path / "model").discount == pytest.approx(0.875)
    left = small(limited(1000), learning_starts=60, early_reset=10)
    assert left.learn(60).discount == 0.99, "episodes that were left met no limit"


def test_long_episodes_are_left_in_the_warm_up_too() -> None:
    model = untrained(small(vec_env(1, lambda: limited(1000)), learning_starts=100, early_reset=20)).learn(100)
    assert model.time_limit == 0
    data, ends = kept(model)
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    assert len(lengths) > 2 and lengths[:-1].min() >= 10 and not data.terminated.any()
    begun = np.flatnonzero(ends)[:-1] + 1
    assert not np.allclose(data.states[begun], data.next_states[begun - 1]), "each begins anew"


def test_learning_anew_begins_new_episodes() -> None:
    model = untrained(small(vec_env(1, lambda: limited(1000)), early_reset=0))
    model.learn(STEPS).learn(STEPS).learn(STEPS, reset_num_timesteps=False)
    assert np.flatnonzero(kept(model)[1]).tolist() == [STEPS - 1, 3 * STEPS - 1]


def test_memory_forgets_the_oldest() -> None:
    model = untrained(small(vec_env(2, lambda: limited(12)), buffer_size=60)).learn(160)
    data, ends = kept(model)
    assert len(data) == 60
    same = ~ends[:-1]
    np.testing.assert_allclose(data.states[1:][same], data.next_states[:-1][same])


def test_a_block_reads_no_more_of_a_larger_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    take = ReplayMemory.take
    monkeypatch.setattr(ReplayMemory, "take", lambda self, rows: (read.append(len(rows)), take(self, rows))[1])

    def rows_of_a_block() -> int:
        read.clear()
        model.learn(STEPS, reset_num_timesteps=False)
        return sum(read)

    model = small(early_reset=0).learn(11_000 // STEPS * STEPS)
    before = rows_of_a_block()
    untrained(model).learn(20_000, reset_num_timesteps=False)
    del model.train
    model.steps_since_training = 0
    assert rows_of_a_block() == pytest.approx(before, rel=0.01)


def test_warm_up_ends_early_where_episodes_are_short() -> None:
    model = small(vec_env(1, lambda: limited(5)), learning_starts=None).learn(1)
    assert model.num_timesteps == 25 and model.n_iterations == 0
    model = small(vec_env(1, lambda: limited(5)), learning_starts=None).learn(300)
    assert model.n_iterations > 0 and np.abs(kept(model)[0].actions[:125]).max() > 0.97
    model = untrained(small(vec_env(1, lambda: limited(500)), learning_starts=None))
    model.learn(1001)
    assert model.num_timesteps == 1000 + STEPS


def test_the_warm_up_counts_rows(tmp_path: Path) -> None:
    """A second ``learn`` does not warm up again, nor does a new model with loaded rows."""
    model = small().learn(STEPS)
    assert model.n_iterations == 1
    model.learn(STEPS)
    assert model.n_iterations == 2
    model.save_replay_buffer(tmp_path / "buffer")
    other = small()
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    other.learn(1)
    assert other.n_iterations == 1 and other.num_timesteps == 1 and len(other.memory) == 2 * STEPS + 1


def test_a_small_buffer_learns_when_it_is_full() -> None:
    assert small(buffer_size=60, learning_starts=200).learn(300).n_iterations > 0


@pytest.mark.parametrize("n_envs, expected", [(1, 125), (5, 25), (200, 1)])
def test_steps_of_an_iteration(n_envs: int, expected: int) -> None:
    model = small(vec_env(n_envs, lambda: limited(30)), train_freq=None, learning_starts=150)
    blocks: list[int] = []
    model.train = lambda *args: blocks.append(model.num_timesteps)  # type: ignore[method-assign]
    model.learn(500)
    later = blocks[0] // n_envs + expected * np.arange(len(blocks))
    np.testing.assert_array_equal(blocks, n_envs * later)


def test_gradient_steps() -> None:
    """As with SAC: a number, or one a transition; ``update_to_data`` multiplies them."""
    for options, expected in (({}, STEPS), ({"gradient_steps": 3}, 3), ({"gradient_steps": 3, "update_to_data": 2.0}, 6)):
        model = small(**{"update_to_data": 1.0, **options})
        asked: list[int] = []
        model.train = lambda steps, batch, asked=asked: asked.append(steps)  # type: ignore[method-assign]
        model.learn(STEPS)
        assert asked == [expected]
    assert small(gradient_steps=0).learn(2 * STEPS).n_iterations == 0
    assert small(train_freq=(2, "episode")).learn(100).n_iterations > 0


# ---------------------------------------------------------------------- noise


def noise_of(model: DPI) -> np.ndarray:
    data, _ = kept(model)
    mean = model.policy.export(model.ensemble.state_mean, model.ensemble.state_std)(data.states)[0]
    return (np.arctanh(data.actions.clip(-0.999, 0.999)) - mean)[:, 0]


def test_lasting_noise() -> None:
    def correlation(rho: float) -> float:
        preset = {"noise_correlation": rho}
        model = small(vec_env(1, lambda: limited(40)), preset=preset, early_reset=0, learning_rate=1e-9).learn(12 * STEPS)
        noise = noise_of(model)[2 * STEPS :]
        return float(np.corrcoef(noise[1:], noise[:-1])[0, 1])

    assert correlation(0.95) > 0.6 > 0.3 > correlation(0.0)


@pytest.mark.parametrize(
    "scale, early, late", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), ("lin_1.0", 0.75, 0.25), (lambda left: left**2, 0.56, 0.06)]
)
def test_noise_in_units_of_the_standard_deviation(scale: Any, early: float, late: float) -> None:
    options = {"policy_kwargs": {"net_arch": [8, 8], "std_bounds": (0.2, 0.2)}, "learning_rate": 1e-9, "early_reset": 0}
    model = small(vec_env(1, lambda: limited(40)), preset={"noise_scale": scale}, **options)
    n = 24 * STEPS
    noise = noise_of(model.learn(n))
    for begin, end, expected in ((n // 8, 3 * n // 8, early), (5 * n // 8, 7 * n // 8, late)):
        assert float(noise[begin:end].std()) / 0.2 == pytest.approx(expected, rel=0.4, abs=0.05)


def test_action_noise_comes_on_top() -> None:
    """In units of the bounds, as with SAC."""
    options = {"preset": {"noise_scale": 0.0}, "learning_rate": 1e-9, "early_reset": 0}
    model = small(vec_env(2, lambda: limited(40)), action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), **options)
    model.learn(16 * STEPS)
    data, _ = kept(model)
    mean = model.policy.export(model.ensemble.state_mean, model.ensemble.state_std)(data.states)[0]
    apart = (data.actions - np.tanh(mean)).reshape(2, -1)[:, 4 * STEPS :]
    assert float(apart.std()) == pytest.approx(0.1, rel=0.3)


# ---------------------------------------------------------------------- spaces


def test_box_actions_are_in_units_of_the_bounds() -> None:
    env = PointMass(-0.2, 5.0)
    model = check_learns(small(gym.wrappers.TimeLimit(env, 12)))
    sampled = kept(model)[0].actions
    np.testing.assert_allclose(env.actions, (-0.2 + 0.5 * (sampled + 1.0) * 5.2).ravel(), atol=1e-5)
    assert -0.2 <= model.predict(100.0 * OBSERVATIONS)[0].min() and model.predict(100.0 * OBSERVATIONS)[0].max() <= 5.0


def test_matrices() -> None:
    model = check_learns(small(gym.wrappers.TimeLimit(Matrix(), 12)))
    assert model.predict(np.zeros((2, 1), np.float32))[0].shape == (2, 1)


def test_dictionaries() -> None:
    env = vec_env(2, lambda: gym.wrappers.TimeLimit(DictPointMass(("position", "velocity")), 12))
    model = check_learns(small(env, "MultiInputPolicy", train_freq=20))
    observation = {"position": np.zeros(1, np.float32), "velocity": np.ones(1, np.float32)}
    assert model.predict(observation)[0].shape == (1,)


def test_observations_are_standardised() -> None:
    model = small().learn(3 * STEPS)
    data, _ = kept(model)
    np.testing.assert_allclose(model.policy.obs_mean, data.states.mean(0))
    np.testing.assert_allclose(model.policy.obs_std, data.states.std(0))


def test_no_function_changes_with_the_units() -> None:
    model = small().learn(2 * STEPS)
    data, _ = kept(model)
    states = data.states[:20]

    def functions() -> list[np.ndarray]:
        seen = model.ensemble.standardize(states)
        actions = th.as_tensor(data.actions[:20], dtype=th.float32)
        with th.no_grad():
            following, rewards = model.ensemble.predict(seen, actions)
            value = model.critic(seen, actions) * float(model.critic.unit)
            moved = following * model.ensemble.state_std.float() + model.ensemble.state_mean.float()
            chances = th.sigmoid(model.ensemble.termination(seen))
        return [array.numpy() for array in (model.policy.actor(seen)[0].detach(), moved, rewards, value, chances)]

    before, temperature = functions(), model.temperature * float(model.critic.unit)
    buffer, model.steps_since_training = model.replay_buffer, 30
    for name, factor in (("observations", 1.3), ("next_observations", 1.3), ("rewards", 3.0)):
        getattr(buffer, name)[buffer.pos - 30 : buffer.pos] *= factor
    std = model.ensemble.state_std.clone()
    model._follow_units()
    assert not th.equal(std, model.ensemble.state_std)
    for one, two in zip(before, functions(), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)
    assert model.temperature * float(model.critic.unit) == pytest.approx(temperature)


def test_vec_normalize() -> None:
    """Everything inside is in the environment's units: the policy alone must undo the wrapper."""
    env = VecNormalize(vec_env(2, lambda: limited(12)))
    model = check_learns(small(env, train_freq=20), 4)
    states = kept(model)[0].states[:20]
    inside = model.policy.actor(model.ensemble.standardize(states))[0].detach().tanh()
    outside = model.predict(env.normalize_obs(states.astype(np.float32)), deterministic=True)[0]
    np.testing.assert_allclose(outside, inside, atol=1e-4)


def test_learning_does_not_depend_on_units() -> None:
    def act(scale: float, unit: float) -> np.ndarray:
        env: gym.Env = gym.wrappers.TransformReward(limited(12), lambda r: scale * r)
        space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        env = gym.wrappers.TransformObservation(env, lambda obs: (unit * obs).astype(np.float32), space)
        return small(env).learn(3 * STEPS).predict(unit * OBSERVATIONS, deterministic=True)[0]

    expected = act(1.0, 1.0)
    np.testing.assert_allclose(act(1e3, 1.0), expected, atol=2e-2)
    np.testing.assert_allclose(act(1.0, 1e3), expected, atol=2e-2)


# ---------------------------------------------------------------------- what can be switched off or chosen

SWITCHES: list[dict[str, Any]] = [
    {"expert": "lqr"},
    {"expert": {"kind": "mppi", "trust_region": 0.3}},
    {"expert": "icem"},
    {"expert": {"kind": "mppi", "n_particles": 4}},
    {"expert": {"kind": "pathwise", "imitation_steps": 3}},
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
    {"ent_coef": "auto"},
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
]


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_switches(options: dict[str, Any]) -> None:
    check_learns(small(**options))


def test_episodes_that_end() -> None:
    model = check_learns(small(gym.wrappers.TimeLimit(PointMass(death=(3, 9)), 12)))
    assert model.ensemble.sees_deaths


def test_fixed_std() -> None:
    model = small(policy_kwargs={"net_arch": [8, 8], "std_bounds": (0.2, 0.2)}).learn(3 * STEPS)
    assert scalars(model)["train/std"] == pytest.approx(0.2)


def test_fixed_temperature() -> None:
    model = small(ent_coef=0.1).learn(STEPS)
    assert model.temperature == pytest.approx(0.1)
    unit = float(model.critic.unit)
    model.learn(3 * STEPS, reset_num_timesteps=False)
    assert float(model.critic.unit) != unit
    assert model.temperature * float(model.critic.unit) == pytest.approx(0.1 * unit), "the same in rewards"


@dataclass(frozen=True)
class Still:
    """A plan that asks for nothing."""

    entropy: float

    def gradient(self, actor: Any, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        return PolicyGradient(th.zeros_like(actor.network.flat), 0.0, self.entropy)


@pytest.mark.parametrize("entropy", [-2.0, -0.3, 0.4])
def test_the_temperature_follows_the_entropy(entropy: float) -> None:
    """It falls while the policy is more random than asked for, and rises while it is less."""
    model = small(target_entropy=-0.3, learning_rate=0.01)
    before = model.log_temperature
    model.imitate(Still(entropy))
    assert before is not None and model.log_temperature == pytest.approx(before - 0.01 * (entropy + 0.3))


def test_rollouts_pay_for_entropy_in_the_unit_of_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = dpi_module.rollouts

    def record(*args: Any) -> Any:
        seen.append(args[-2:])
        return original(*args)

    monkeypatch.setattr(dpi_module, "rollouts", record)
    model = small(gamma=0.9).learn(2 * STEPS)
    model.imagine(1)
    unit = float(model.critic.unit)
    assert abs(unit - 1.0) > 0.1 and seen[-1] == pytest.approx((model.temperature * unit, 0.9))


def test_the_policy_rate_follows_the_divergence() -> None:
    model = small(preset={"target_kl": 1.0})
    for divergence, factor in ((0.7, 1.0), (0.4, 1.2), (2.1, 1.0), (2.1, 1.0 / 1.2)):
        model._follow_divergence(divergence)
        assert model.rate_factor == pytest.approx(factor)
    for divergence, bound in ((9.0, 0.1), (0.0, 5.0)):
        for _ in range(40):
            model._follow_divergence(divergence)
        assert model.rate_factor == pytest.approx(bound)
    model._update_learning_rates()
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(5.0 * 3e-4)
    fixed = small(preset={"target_kl": 0})
    fixed._follow_divergence(9.0)
    assert fixed.rate_factor == 1.0


def test_the_critic_settles(tmp_path: Path) -> None:
    """Its rate falls with one over the root of its updates, to a tenth, on from where it was after loading."""

    def rate(model: DPI) -> float:
        return float(model.critic.optimizer.param_groups[0]["lr"])

    model = small(critic={"lr_decay_after": 100, "learning_rate": 1e-3}, policy_delay=10)
    for n_updates, share in ((0, 1.0), (10, 1.0), (5000, 0.1), (40, 0.5)):
        model._n_updates = n_updates
        model._update_learning_rates()
        assert rate(model) == pytest.approx(share * 1e-3)
    model.save(tmp_path / "settled")
    loaded = DPI.load(tmp_path / "settled", env=model.get_env())
    loaded._update_learning_rates()
    assert rate(loaded) == rate(model)
    assert rate(small(critic={"learning_rate": 1e-3}).learn(3 * STEPS)) == pytest.approx(1e-3)


def test_the_deployed_policy_is_an_average() -> None:
    def flat(model: DPI, name: str) -> np.ndarray:
        return getattr(model.policy, name).network.flat.detach().numpy().copy()

    model = small(preset={"polyak": 1.0}).learn(3 * STEPS)
    np.testing.assert_array_equal(flat(model, "actor"), flat(model, "averaged"))
    with th.no_grad():
        model.policy.actor.network.flat.add_(0.1)
    middle = 0.5 * (flat(model, "actor") + flat(model, "averaged"))
    model.policy.follow(0.5)
    np.testing.assert_allclose(flat(model, "averaged"), middle, atol=1e-7)
    mean = model.policy.averaged(model.policy.standardize(th.as_tensor(OBSERVATIONS)))[0]
    np.testing.assert_allclose(
        model.policy(th.as_tensor(OBSERVATIONS), deterministic=True).detach(), mean.tanh().detach(), atol=1e-6
    )


def test_known_cost_and_end() -> None:
    """In the environment's units, of the right arguments, and instead of what is learned."""
    seen = []

    def cost(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        seen.append((obs.detach(), action.detach(), next_obs.detach()))
        return obs.square().sum(-1) + 0.1 * (0.5 * action).square().sum(-1)

    def end(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return next_obs[:, 0].abs() > 100.0

    model = check_learns(
        small(gym.wrappers.TimeLimit(PointMass(-2.0, 2.0), 12), world_model={"cost_fn": cost, "termination_fn": end})
    )
    real = kept(model)[0]
    obs, action, following = (th.cat([row[i] for row in seen]) for i in range(3))
    assert action.min() < -1.2 and action.max() > 1.2 and action.abs().max() <= 2.0
    assert float(obs.min()) >= real.states.min() - 2.0 and float(obs.max()) <= real.states.max() + 2.0
    assert bool((following - obs)[:, 0].sub(0.1 * obs[:, 1]).abs().median() < 0.5)
    assert model.predict(OBSERVATIONS)[0].shape == (20, 1)


def test_it_learns_a_double_integrator() -> None:
    env = vec_env(1, lambda: limited(30))
    options = {"gamma": 0.95, "update_to_data": 0.3, "imagination": {"horizon": 3, "n_rollout_steps": 1000}}
    model = small(env, train_freq=100, learning_starts=200, batch_size=64, **options)

    def score() -> float:
        test = Monitor(limited(30))
        test.reset(seed=7)
        return float(np.mean(evaluate_policy(model, test, 20)[0]))

    before = score()
    model.learn(1_200)
    assert score() > max(before + 10.0, -18.0)


# ---------------------------------------------------------------------- processes and saving


def test_processes() -> None:
    env = SubprocVecEnv([lambda: limited(12)] * 2, start_method="fork")
    check_learns(small(env, train_freq=20))
    env.close()


def test_everything_learned_survives(tmp_path: Path) -> None:
    model = small(gym.wrappers.TimeLimit(PointMass(death=(3, 9)), 12)).learn(3 * STEPS)
    model.save(tmp_path / "model")
    loaded = DPI.load(tmp_path / "model", env=gym.wrappers.TimeLimit(PointMass(death=(3, 9)), 12))
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    assert parameters(loaded) == parameters(model)
    assert loaded.preset_ == model.preset_ and loaded.time_limit == model.time_limit
    assert loaded.critic.bounds == model.critic.bounds and len(loaded.memory) == 0
    assert loaded.temperature == model.temperature and float(loaded.critic.unit) == float(model.critic.unit)
    for name in ("policy", "ensemble", "critic"):
        one, two = (getattr(m, name).optimizer.state_dict()["state"][0] for m in (loaded, model))
        assert th.equal(one["exp_avg_sq"], two["exp_avg_sq"]) and int(one["step"]) == int(two["step"]) > 0
    model.save_replay_buffer(tmp_path / "buffer")
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(kept(loaded)[0].states, kept(model)[0].states)
    loaded.learn(2 * STEPS, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.n_iterations, len(loaded.memory)) == (5 * STEPS, 5, 5 * STEPS)
    assert parameters(loaded) != parameters(model)


def test_continued_without_its_buffer(tmp_path: Path) -> None:
    """It acts by its policy, with the units that it had, and trains again from ``learning_starts`` rows on."""
    model = small(buffer_size=100_000, learning_starts=2 * STEPS).learn(4 * STEPS)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 300_000
    loaded = DPI.load(tmp_path / "model", env=limited(12), preset={"noise_scale": 0.0})
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert len(loaded.memory) == STEPS and parameters(loaded) == parameters(model)
    np.testing.assert_allclose(noise_of(loaded), 0.0, atol=1e-3)
    before = loaded.ensemble.state_mean.clone()
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert loaded.n_iterations == model.n_iterations + 1 and parameters(loaded) != parameters(model)
    assert float(loaded.ensemble.n_seen) == float(model.ensemble.n_seen) + 2 * STEPS
    assert not th.equal(before, loaded.ensemble.state_mean)


@pytest.mark.parametrize("keys", [None, ("position", "velocity")])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_number_of_environments_may_change(n_envs: int, keys: tuple[str, ...] | None, tmp_path: Path) -> None:
    policy = "MlpPolicy" if keys is None else "MultiInputPolicy"

    def env(n: int) -> Any:
        return vec_env(n, lambda: limited(12) if keys is None else gym.wrappers.TimeLimit(DictPointMass(keys), 12))

    model = small(env(2), policy, train_freq=20).learn(3 * STEPS)
    assert isinstance(model.replay_buffer, DictReplayBuffer) == (keys is not None)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DPI.load(tmp_path / "model", env=env(n_envs))
    loaded.load_replay_buffer(tmp_path / "buffer")
    data, ends = kept(loaded)
    assert (loaded.replay_buffer.n_envs, len(data)) == (n_envs, 3 * STEPS)
    same = ~ends[:-1]
    assert same.mean() > 0.8
    np.testing.assert_allclose(data.states[1:][same], data.next_states[:-1][same])
    loaded.learn(STEPS, reset_num_timesteps=False)


# ---------------------------------------------------------------------- errors

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"expert": "cem"}, "Unknown expert 'cem': choose one of 'pathwise', 'lqr', 'mppi', 'icem'"),
    ({"expert": {"kind": "mppi", "samples": 3}}, "Unknown key 'samples' of expert 'mppi': it has trust_region, n_particles"),
    ({"critic": {"kind": "v"}}, "Unknown critic 'v': choose one of 'q', 'returns'"),
    ({"critic": {"widths": 3}}, "Unknown key 'widths' of critic"),
    ({"train_freq": (1, "minute")}, "unit of the `train_freq`"),
    ({"batch_size": 0}, "batch_size must"),
    ({"gradient_steps": -2}, "gradient_steps must be at least -1, got -2"),
    ({"imagination": {"n_windows": 0}}, "n_windows must"),
    ({"imagination": {"horizon": -1}}, "horizon must be at least 0, got -1"),
    ({"imagination": {"rollout_length": 0}}, "rollout_length must be at least 1, got 0"),
    ({"world_model": {"n_members": 0}}, "n_members must be at least 1, got 0"),
    ({"gamma": 1.0}, "gamma must be at least 0 and below 1, got 1.0"),
    ({"preset": "anchored"}, "Unknown preset 'anchored': choose one of 'corrected', 'free'"),
    ({"preset": {"noise": 1.0}}, "'noise' is unknown; its numbers are short_warm_up"),
    ({"preset": {"noise_correlation": 1.0}}, "noise_correlation must"),
    ({"preset": {"noise_scale": -0.1}}, "noise_scale must be at least 0, got -0.1"),
    ({"preset": {"noise_scale": "falling"}}, "noise_scale='falling' is no schedule"),
    ({"preset": {"polyak": 1.5}}, "polyak must"),
    ({"preset": {"target_kl": -1.0}}, "target_kl must be at least 0"),
    ({"critic": {"real_fraction": 1.5}}, "real_fraction must be from 0 to 1, got 1.5"),
    ({"critic": {"lr_decay_after": -1}}, "lr_decay_after must be at least 0, got -1"),
    ({"early_reset": -1}, "early_reset must"),
    ({"tau": 0.0}, "tau must be above 0"),
    ({"update_to_data": 0.0}, "update_to_data must be above 0, got 0.0"),
    ({"ent_coef": "automatic"}, "ent_coef='automatic'"),
    ({"ent_coef": 0.0}, "ent_coef must be above 0"),
    ({"policy_kwargs": {"std_bounds": (0.5, 0.1)}}, "std_bounds"),
    ({"policy_kwargs": {"use_sde": True}}, "leave use_sde off"),
    ({"replay_buffer_class": HerReplayBuffer}, "HerReplayBuffer, whose sample"),
    ({"replay_buffer_kwargs": {"optimize_memory_usage": True}}, "leave optimize_memory_usage off"),
]


@pytest.mark.parametrize("options, message", ARGUMENTS, ids=lambda x: str(x)[:40])
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


FORMER = ("restart_after", "effort", "n_steps", "anchor", "averaging", "critic_width", "use_sde", "optimize_memory_usage")


@pytest.mark.parametrize("name", FORMER)
def test_former_arguments_name_the_new_word(name: str, tmp_path: Path) -> None:
    message = rf"DPI takes other words now: instead of {name} write \w"
    with pytest.raises(TypeError, match=message):
        DPI("MlpPolicy", limited(12), **{name: 1})
    small().save(tmp_path / "model")
    with pytest.raises(TypeError, match=message):
        DPI.load(tmp_path / "model", **{name: 1})


def test_arguments_may_change_on_loading(tmp_path: Path) -> None:
    small().learn(2 * STEPS).save(tmp_path / "model")
    options = {
        "critic": {"learning_rate": 1e-5},
        "preset": {"polyak": 0.5},
        "world_model": {"width": 16, "learning_rate": 1e-4},
    }
    loaded = DPI.load(tmp_path / "model", env=limited(12), **options)
    assert loaded.critic_options.learning_rate == 1e-5 and loaded.world_model.learning_rate == 1e-4
    assert loaded.numbers.polyak == 0.5
    with pytest.raises(TypeError, match=r"DPI\.load: the saved model has no 'polyak' that could be changed"):
        DPI.load(tmp_path / "model", polyak=0.5)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(AssertionError, match="only supports"):
        DPI("MlpPolicy", "CartPole-v1")


def test_unbounded_actions_are_refused() -> None:
    with pytest.raises((AssertionError, ValueError), match=r"[Bb]ound"):
        small(PointMass(-np.inf, np.inf))


def test_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images and discrete observations have no model here"):
        small(ImagePointMass())
    with pytest.raises(ValueError, match="under the key 'image'"):
        small(DictPointMass(("image", "velocity")), "MultiInputPolicy")
    with pytest.raises(ValueError, match="must see all that the planner sees"):
        small(DictPointMass(("state", "position")), "MultiInputPolicy")


def test_a_model_that_diverges_is_fitted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().learn(2 * STEPS)
    with th.no_grad():
        model.ensemble.networks.flat.fill_(math.nan)
    model.learn(STEPS, reset_num_timesteps=False)
    assert np.isfinite(parameters(model))


def test_a_model_that_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last good policy is saved, and the error says where."""
    model = small()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2 * STEPS)
    expected = model.predict(OBSERVATIONS, deterministic=True)[0]
    monkeypatch.setattr(Ensemble, "_descend", lambda *args: math.nan)
    with pytest.raises(DivergedError, match=r"diverged twice.*last_good_model\.zip"):
        model.learn(STEPS, reset_num_timesteps=False)
    loaded = DPI.load(tmp_path / "last_good_model.zip")
    np.testing.assert_allclose(loaded.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-6)
