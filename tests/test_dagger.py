"""DAgger: who acts, what is labelled, what is learned from it, and experts of all kinds."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Model, parameters, small_dagger, small_exit, small_ppo, small_sac
from dummy_envs import ITERATION, POINT_MASS_ID, DictPointMass, PointMass, limited, normalized, pushed, vec_env
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage
from torch.distributions import Normal, kl_divergence

from sb3_dpi import MPC, DAgger
from sb3_dpi.dagger import dagger
from sb3_dpi.dagger.buffers import LabelledReplayBuffer
from sb3_dpi.dagger.constants import MIN_STD
from sb3_dpi.dagger.imitation import draw_to, fit_std, outputs
from sb3_dpi.mpc.known_costs import CostedSystem
from sb3_dpi.systems import ContinuousSimulator

PROBES = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)


def pull(obs: np.ndarray) -> np.ndarray:
    """:return: what brings the point mass to rest"""
    return -np.tanh(obs @ np.array([[1.0], [0.5]]))


def rows(model: Model, name: str) -> np.ndarray:
    """:return: what the buffer holds, in the order of time, ``[n, n_envs, k]``"""
    buffer = model.replay_buffer
    return getattr(buffer, name)[: buffer.size()]


class Choice(PointMass):
    """Pushed to the left, not at all or to the right."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        self.state = self.state + 0.1 * np.array([self.state[1], 2.0 * (float(action) - 1.0)])
        return self.observation(), -float(self.state @ self.state), False, False, {}


class Shown(PointMass):
    """Says what it would observe in any state."""

    def _get_obs(self) -> np.ndarray:
        return self.observation()


class Position(PointMass):
    """Its velocity is not observed."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def observation(self) -> Any:
        return self.state[:1].astype(np.float32)


# ---------------------------------------------------------------------- who acts


@pytest.mark.parametrize(
    ("beta", "shares"), [(None, (1.0, 0.0, 0.0)), (1.0, (1.0,) * 3), (0.0, (0.0,) * 3), ("lin_1.0", (0.8, 0.5, 0.2))]
)
def test_the_expert_acts_as_often_as_beta_says(beta: Any, shares: tuple[float, ...]) -> None:
    model = small_dagger(vec_env(4), expert=pull, beta=beta).learn(3 * ITERATION)
    by_expert = np.isclose(rows(model, "actions"), rows(model, "labels"), atol=1e-6).reshape(3, -1).mean(1)
    np.testing.assert_allclose(by_expert, shares, atol=0.0 if beta != "lin_1.0" else 0.2)
    if beta == "lin_1.0":
        assert by_expert[0] > by_expert[2]


@pytest.mark.parametrize("is_normalized", [False, True])
def test_all_visited_states_are_labelled_and_labels_are_saved(is_normalized: bool, tmp_path: Path) -> None:
    """A function is shown what the environments return, whatever the policy sees; labels are in units of the bounds."""
    env: Any = vec_env(2, lambda: gym.wrappers.TimeLimit(PointMass(-0.5, 1.5), 7))
    env = normalized(env, [5.0, -5.0], [4.0, 9.0]) if is_normalized else env
    model = small_dagger(env, expert=lambda obs: 0.5 + pull(obs)).learn(2 * ITERATION)
    seen, labels = rows(model, "observations"), rows(model, "labels")
    assert seen.shape == (ITERATION, 2, 2)
    np.testing.assert_allclose(labels, pull(seen), atol=1e-6)
    model.save_replay_buffer(tmp_path / "rows.pkl")
    other = small_dagger(vec_env(1, lambda: PointMass(-0.5, 1.5)), expert=pull)
    other.load_replay_buffer(tmp_path / "rows.pkl")
    assert other.replay_buffer.size() == 2 * ITERATION
    np.testing.assert_allclose(rows(other, "labels"), pull(rows(other, "observations")), atol=1e-6)
    other.replay_buffer = ReplayBuffer(10, other.observation_space, other.action_space)
    other.save_replay_buffer(tmp_path / "plain.pkl")
    with pytest.raises(ValueError, match="holds no labels of an expert"):
        other.load_replay_buffer(tmp_path / "plain.pkl")


class Remembering:
    """Acts by the number of the step in its episode, which it is handed back."""

    def predict(
        self, obs: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        steps = np.where(episode_start, 0, np.zeros(len(obs)) if state is None else state + 1)
        return 0.05 * steps[:, None], steps


def test_what_an_expert_remembers_is_handed_back_to_it() -> None:
    model = small_dagger(vec_env(2, lambda: limited(9)), expert=Remembering()).learn(2 * ITERATION)
    expected = 0.05 * (np.arange(ITERATION) % 9)
    np.testing.assert_allclose(rows(model, "labels")[:, :, 0], np.stack([expected] * 2, 1), atol=1e-6)


# ---------------------------------------------------------------------- what is learned


def test_the_standard_deviation_minimises_the_divergence_from_the_expert() -> None:
    """KL(expert || policy), mean over the states, which rises whatever entry is moved."""
    model = small_dagger(expert=pull).learn(ITERATION)
    policy, rng = model.policy, np.random.default_rng(1)
    targets, spreads = rng.normal(size=(30, 1)), rng.uniform(0.1, 0.5, (30, 1))
    fit_std(policy, PROBES, targets, spreads)
    mean = th.as_tensor(outputs(policy, PROBES))

    def divergence(std: float) -> float:
        expert = Normal(th.as_tensor(targets), th.as_tensor(spreads))
        return float(kl_divergence(expert, Normal(mean, std)).mean())

    found = float(policy.log_std.detach().exp())
    assert divergence(found) < min(divergence(0.99 * found), divergence(1.01 * found))
    fit_std(policy, PROBES, outputs(policy, PROBES), np.zeros((30, 1)))
    assert float(policy.log_std.detach().exp()) == pytest.approx(MIN_STD)


def test_gaussians_of_an_expert_are_imitated() -> None:
    """PPO's, whose standard deviation is in the environment's units; where the network fits, its noise is the policy's."""
    env = gym.wrappers.TimeLimit(PointMass(-2.0, 2.0), 12)
    expert = PPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [4], "log_std_init": -0.5})
    with th.no_grad():
        expert.policy.action_net.weight.mul_(50.0)
    found = {}
    for imitate in ("action", "distribution"):
        model = small_dagger(env, expert=expert, imitate=imitate, gradient_steps=200, learning_rate=1e-2)
        model.learn(3 * ITERATION)
        found[imitate] = float(model.policy.log_std.detach().exp())
        np.testing.assert_allclose(rows(model, "spreads"), 0.5 * np.exp(-0.5) * (imitate == "distribution"), rtol=1e-5)
    assert found["distribution"] == pytest.approx(np.hypot(0.5 * np.exp(-0.5), found["action"]), rel=0.05)
    assert np.abs(model.predict(PROBES, deterministic=True)[0] - expert.predict(PROBES, deterministic=True)[0]).mean() < 0.2


def test_discrete_actions_are_learned_by_cross_entropy() -> None:
    def choose(obs: np.ndarray) -> np.ndarray:
        total = obs.sum(1)
        return np.where(total > 0.3, 0, np.where(total < -0.3, 2, 1))

    env = gym.wrappers.TimeLimit(Choice(), 12)
    model = small_dagger(env, expert=choose, gradient_steps=100, learning_rate=2e-2).learn(3 * ITERATION)
    assert rows(model, "labels").sum(-1).min() == 1.0 and model.predict(PROBES[0])[0].shape == ()
    near = PROBES[np.abs(PROBES).max(1) < 1.0]
    assert np.mean(model.predict(near, deterministic=True)[0] == choose(near)) > 0.8
    expert = PPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [4]})
    model = small_dagger(env, expert=expert, imitate="distribution").learn(ITERATION)
    labels = rows(model, "labels")[:, 0]
    seen, _ = expert.policy.obs_to_tensor(rows(model, "observations")[:, 0])
    np.testing.assert_allclose(labels, expert.policy.get_distribution(seen).distribution.probs.detach(), atol=1e-6)


def test_an_iteration_has_a_step_of_each_environment_at_least() -> None:
    model = small_dagger(vec_env(3, lambda: gym.wrappers.TimeLimit(Position(), 9)), train_freq=None).learn(6)
    assert model.train_freq.frequency == 1 and model.replay_buffer.pos == 2


def test_an_expert_is_made_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it remembers of its plans goes on from iteration to iteration; the policy that guides it is another in each."""
    made: list[DAgger] = []
    make = DAgger._make_adviser
    monkeypatch.setattr(DAgger, "_make_adviser", lambda model: made.append(model) or make(model))
    small_dagger(gym.wrappers.TimeLimit(Position(), 9), expert=lambda obs: -obs).learn(3 * ITERATION)
    assert len(made) == 1


def test_as_many_updates_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    regress = dagger.regress_mean
    monkeypatch.setattr(dagger, "regress_mean", lambda *given: taken.append(len(given[-1])) or regress(*given))
    monkeypatch.setattr(dagger, "BLOCK", 4)
    small_dagger(gym.wrappers.TimeLimit(Position(), 9), expert=lambda obs: -obs, gradient_steps=9).learn(ITERATION)
    assert taken == [4, 4, 1]


# ---------------------------------------------------------------------- experts that plan

ICEM = {"kind": "iCEM", "n_samples": 8, "n_elites": 3, "n_rounds": 2}


@pytest.mark.parametrize("planner", [ICEM, {"kind": "iLQR", "max_iterations": 2}], ids=["iCEM", "iLQR"])
def test_plans_begin_where_the_environments_are(planner: Any) -> None:
    """Of several, of which observations do not say the state; the model that was given stays as it was."""
    expert = MPC(planner, gym.wrappers.TimeLimit(Position(), 9), system="simulator", horizon=4, seed=0)
    before = expert.get_env()
    env = vec_env(2, lambda: gym.wrappers.TimeLimit(Position(), 9))
    model = small_dagger(env, expert=expert, train_freq=3).learn(6)
    labels, states = rows(model, "labels"), rows(model, "observations")
    assert expert.get_env() is before and expert.n_envs == 1 and labels.shape == (3, 2, 1)
    alone = expert.as_expert(env)
    state = None
    env.seed(0)
    env.reset()
    for t in range(3):
        shown = np.array([inner.observation() for inner in env.get_attr("unwrapped")])
        np.testing.assert_allclose(shown, states[t])
        action, state = alone.predict(shown, state, np.full(2, t == 0), deterministic=True)
        np.testing.assert_allclose(action, labels[t], atol=1e-6)
        env.step(labels[t])


@pytest.mark.parametrize("with_statistics", [False, True])
def test_guidance_is_a_weight_of_the_divergence(with_statistics: bool) -> None:
    env: Any = vec_env(1, lambda: limited(12))
    env = normalized(env, [0.5, 0.2], [2.0, 3.0], clip_obs=1.0) if with_statistics else env
    model = small_dagger(env, expert=pull, policy_kwargs={"net_arch": [8], "log_std_init": -1.0}).learn(ITERATION)
    actions = np.random.default_rng(2).uniform(-1.0, 1.0, (30, 1))
    shown = env.normalize_obs(PROBES) if with_statistics else PROBES
    mean = th.as_tensor(outputs(model.policy, shown)).clamp(-1.0, 1.0)
    std = float(np.exp(-1.0))
    expected = 0.3 * kl_divergence(Normal(th.as_tensor(actions), std), Normal(mean, std)).sum(1)
    found = draw_to(model.policy, model.get_vec_normalize_env(), 0.3)(PROBES.astype(np.float64), actions)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("planner", [ICEM, "iLQR"], ids=["iCEM", "iLQR"])
def test_guidance_draws_plans_to_the_policy(planner: Any) -> None:
    """With all weight on it they are the policy's actions."""
    env = vec_env(1, Shown)
    model = small_dagger(env, expert=pull).learn(ITERATION)
    expert = MPC(planner, Shown(), system="simulator", horizon=3, seed=0)
    env.reset()
    shown = np.array([inner.unwrapped.observation() for inner in env.envs])
    own = outputs(model.policy, shown)[0, 0]
    found = []
    for weight in (0.0, 1e4):
        drawn = expert.as_expert(env, draw_to(model.policy, None, weight) if weight else None)
        found.append(float(drawn.predict(shown, deterministic=True)[0][0, 0]))
    near = 0.02 if planner == "iLQR" else 0.5
    assert abs(found[1] - own) < near and abs(found[0] - own) > 2.0 * abs(found[1] - own)


def test_penalties_count_at_each_step_of_a_rollout() -> None:
    system, rng = ContinuousSimulator(Shown()), np.random.default_rng(0)
    state = system.begin(system.simulator.reset(seed=1))
    actions = rng.uniform(-1.0, 1.0, (3, 4, 1))

    def penalty(obs: np.ndarray, taken: np.ndarray) -> np.ndarray:
        return obs[:, 0] ** 2 + taken[:, 0]

    plain = system.rollout(state[None], actions, rng).rewards
    found = CostedSystem(system, None, penalty, lambda a: a).rollout(state[None], actions, rng).rewards
    for b in range(3):
        now = state[None]
        for t in range(4):
            assert found[b, t] == pytest.approx(plain[b, t] - penalty(system.observe(now), actions[b : b + 1, t])[0], abs=1e-5)
            now = system.step(now, actions[b : b + 1, t])


# ---------------------------------------------------------------------- whom it asks


def test_what_a_model_as_expert_is_shown() -> None:
    """What the environments return, through its own VecNormalize where it has one, whatever the learning policy sees."""
    theirs = normalized(vec_env(1), [1.0, 2.0], [0.25, 0.5])
    ours = normalized(vec_env(1), [-3.0, 0.5], [4.0, 9.0])
    expert = PPO("MlpPolicy", theirs, seed=0, device="cpu", n_steps=4, batch_size=4, policy_kwargs={"log_std_init": -3.0})
    with th.no_grad():
        expert.policy.action_net.weight.mul_(50.0)
    model = small_dagger(ours, expert=expert, train_freq=5).learn(5)
    seen, labels = rows(model, "observations")[:, 0], rows(model, "labels")[:, 0]
    np.testing.assert_allclose(labels, expert.predict(theirs.normalize_obs(seen), deterministic=True)[0], atol=1e-3)
    for without in (small_sac(), small_sac().policy):
        without.env = None
        model = small_dagger(ours, expert=without, train_freq=5).learn(5)
        seen, labels = rows(model, "observations")[:, 0], rows(model, "labels")[:, 0]
        np.testing.assert_allclose(labels, without.predict(seen, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("way", ["beside", "named", "none"])
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("make", [small_ppo, small_exit])
def test_a_saved_expert_sees_what_it_learned_from(make: Any, is_normalized: bool, way: str, tmp_path: Path) -> None:
    """A search asks its networks about what it was saved with, too."""
    searches = make is small_exit

    def task() -> Any:
        return pushed(vec_env(2, Shown)) if searches else vec_env(2, lambda: limited(12))

    theirs = normalized(task(), [1.0, 2.0], [0.25, 0.5], training=False, norm_reward=False)
    expert = make(theirs)
    with th.no_grad():
        expert.policy.action_net.weight.mul_(50.0)
    expert.save(tmp_path / "expert")
    theirs.save(str(tmp_path / ("vecnormalize.pkl" if way == "beside" else "other.pkl")))
    named: dict[str, Any] = {
        "beside": {},
        "named": {"vec_normalize": tmp_path / "other.pkl"},
        "none": {"vec_normalize": False},
    }
    given = {"algo": "exit" if searches else "ppo", "path": tmp_path / "expert", "device": "cpu", **named[way]}
    given |= {"search_in_predict": True} if searches else {}
    ours = normalized(task(), [-3.0, 0.5], [4.0, 9.0]) if is_normalized else task()
    model = small_dagger(ours, expert=given, train_freq=5)
    obs = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    asked = model._adviser.expert._present(obs) if searches else model._adviser._view(obs, obs)
    np.testing.assert_allclose(asked, obs if way == "none" else theirs.normalize_obs(obs), rtol=1e-5)
    model.learn(10)
    if not searches:
        seen, labels = rows(model, "observations")[:, 0], rows(model, "labels")[:, 0]
        inputs = seen if way == "none" else theirs.normalize_obs(seen)
        np.testing.assert_allclose(labels, expert.predict(inputs, deterministic=True)[0], atol=1e-3)


def test_statistics_that_may_be_meant_are_named(tmp_path: Path) -> None:
    small_sac(POINT_MASS_ID).save(tmp_path / "sac")
    VecNormalize(vec_env(1, Position)).save(str(tmp_path / "vecnormalize.pkl"))
    with pytest.raises(ValueError, match=r"do not fit the model.*In a dictionary write 'vec_normalize': FILE, or False"):
        small_dagger(POINT_MASS_ID, expert={"algo": "sac", "path": tmp_path / "sac"})


def test_an_expert_that_searches() -> None:
    """In the environments that are learned in; its networks see what they have learned from, whatever the policy is shown."""

    def three() -> Any:
        return pushed(vec_env(3, Shown))

    expert = small_exit(normalized(pushed(vec_env(1, Shown)), [1.0, 2.0], [0.25, 0.5]), n_simulations=6)
    with th.no_grad():
        expert.policy.action_net.weight.mul_(50.0)
    said = {}
    for searches in (True, False):
        expert.search_in_predict = searches
        for name, env in (("plain", three()), ("other units", normalized(three(), [-3.0, 0.5], [4.0, 9.0]))):
            model = small_dagger(env, expert=expert, train_freq=8).learn(24)
            said[searches, name] = rows(model, "labels").argmax(-1)
        np.testing.assert_array_equal(said[searches, "plain"], said[searches, "other units"])
    assert np.mean(said[True, "plain"] == said[False, "plain"]) < 1.0
    own = normalized(three(), [1.0, 2.0], [0.25, 0.5])
    model = small_dagger(own, expert=expert.as_expert(own), train_freq=8).learn(24)
    expert.search_in_predict = True
    assert expert.n_envs == 1 and expert.env.num_envs == 1, "it stays where it is"
    others = normalized(three(), [-3.0, 0.5], [4.0, 9.0])
    searching, asked = expert.as_expert(others), []
    searching.search = lambda _, seen, *rest: asked.append(seen) or expert.search(_, seen, *rest)  # type: ignore[method-assign]
    shown = others.reset()
    searching.predict(shown)
    np.testing.assert_allclose(asked[0], expert.env.normalize_obs(others.unnormalize_obs(shown)), rtol=1e-5)
    with pytest.raises(ValueError, match="set imitate='action'"):
        small_dagger(three(), expert=expert, imitate="distribution")
    with pytest.raises(ValueError, match="knows no penalty"):
        expert.as_expert(own, lambda obs, actions: obs[:, 0])


def test_experts_that_a_file_can_say(tmp_path: Path) -> None:
    small_sac(POINT_MASS_ID).save(tmp_path / "sac")
    saved = small_dagger(POINT_MASS_ID, expert={"algo": "sac", "path": str(tmp_path / "sac.zip")})
    assert type(saved.expert_) is SAC
    planned = small_dagger(POINT_MASS_ID, expert={"algo": "mpc", "policy": "iLQR", "system": "simulator", "horizon": 3})
    assert type(planned.expert_) is MPC and planned.expert_.horizon == 3 and planned.expert_.seed == planned.seed
    chosen = DAgger("MlpPolicy", POINT_MASS_ID)
    assert chosen.expert is None and chosen.expert_.planner == "iCEM"
    planned.save(tmp_path / "model")
    assert DAgger.load(tmp_path / "model", env=limited(12)).expert_.horizon == 3


def test_an_object_as_expert_is_not_saved(tmp_path: Path) -> None:
    model = small_dagger(expert=pull).learn(ITERATION)
    model.save(tmp_path / "model")
    loaded = DAgger.load(tmp_path / "model", env=limited(12))
    np.testing.assert_array_equal(loaded.predict(PROBES, deterministic=True)[0], model.predict(PROBES, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"saved without its expert, an object: DAgger\.load\(path, env=env, expert=\.\.\.\)"):
        loaded.learn(1)
    loaded = DAgger.load(tmp_path / "model", env=limited(12), expert=pull)
    assert loaded.learn(ITERATION, reset_num_timesteps=False).n_iterations == 2
    assert parameters(loaded) != parameters(model)


# ---------------------------------------------------------------------- errors

OTHER = PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [4]})
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"expert": 3}, "expert is a model with a method predict, or a function"),
    ({"expert": OTHER}, "The expert's observation_space is .* take an expert of this task"),
    ({"expert": {"policy": "iCEM"}}, "expert has no key 'algo'"),
    ({"expert": {"algo": "mcp"}}, "Unknown algorithm 'mcp': name one of sb3_dpi"),
    ({"expert": {"algo": "sac", "path": "nowhere.zip"}}, "There is no file nowhere.zip: give what model.save"),
    ({"expert": MPC}, r"expert is the class MPC: give a model of it, MPC\(\.\.\.\), or its load\(path\)"),
    ({"expert": MPC("iCEM", limited(12))}, r"MPC plans in an ensemble that has learned nothing: let it learn first"),
    ({"expert": "sac.zip"}, "Say whose model this is"),
    ({"expert": "iCME"}, "Policy iCME unknown: MPC has 'iCEM'"),
    ({"expert": lambda obs: obs[0, :1]}, r"float32 of shape \(1,\) where actions of shape \(1, 1\) are needed"),
    ({"expert": lambda obs: np.full((1, 1), np.nan)}, "action in environment 0 is not finite"),
    ({"expert": pull, "guidance": 1.0}, "does not plan: set guidance=0, or take MPC as expert"),
    ({"expert": pull, "guidance": -1.0}, "guidance must be at least 0, got -1.0"),
    ({"expert": pull, "imitate": "distribution"}, "tells no Gaussian .* set imitate='action'"),
    ({"expert": MPC("iLQR", limited(12), system="simulator", horizon=2), "guidance": 1.0}, "observes in a state is not known"),
    ({"imitate": "mean"}, "Unknown imitate 'mean': choose one of 'action', 'distribution'"),
    ({"beta": 1.5}, "beta is a share from 0 to 1"),
    ({"beta": "falling"}, "beta='falling' is no schedule"),
    ({"beta": lambda left: 1.0 if left > 0.9 else 2.0}, r"beta is a share .* the given function says 2\.0 where 0\.5 of"),
    ({"beta": lambda left: 1.0 if left > 0.9 else np.nan}, "the given function says nan"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"early_reset": -1}, "early_reset must be at least 0"),
    ({"replay_buffer_class": type("Own", (DictReplayBuffer,), {})}, "Own keeps no labels"),
    ({"env": Choice(), "expert": None}, "No planner is known for Discrete"),
    ({"env": Choice(), "expert": lambda obs: np.array([3])}, "whole numbers from 0 to 2"),
    ({"env": Choice(), "guidance": 1.0}, "which Discrete ones have not"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda x: str(x)[:40])
def test_what_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_dagger(**{**options, "train_freq": 1}).learn(2)


def test_images_are_transposed_beneath_vec_normalize() -> None:
    def images() -> Any:
        return vec_env(2, lambda: DictPointMass(("image", "position")))

    def learn(env: Any) -> Model:
        wrapped = VecNormalize(env, norm_obs_keys=["position"])
        return small_dagger(wrapped, "MultiInputPolicy", expert=lambda obs: -obs["position"], gradient_steps=1).learn(1)

    with pytest.raises(ValueError, match=r"write VecNormalize\(VecTransposeImage\(env\)\)"):
        learn(images())
    assert learn(VecTransposeImage(images())).n_iterations == 1


def test_classes_of_buffers_with_labels_are_taken() -> None:
    own = type("Own", (LabelledReplayBuffer,), {})
    assert type(small_dagger(replay_buffer_class=own).replay_buffer) is own
    assert isinstance(small_dagger(replay_buffer_class=ReplayBuffer).replay_buffer, LabelledReplayBuffer)
