"""Expert iteration: searches, what the network imitates of them, and predictions with search."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import iterations, parameters, small_exit
from dummy_envs import ITERATION, DictPointMass, ImagePointMass, PointMass, Pushed, Single, limited, pushed, vec_env
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_dpi import ExIt
from sb3_dpi.common.critic import ReturnScale
from sb3_dpi.diagnose import diagnose
from sb3_dpi.expert_iteration import SearchReplayBuffer
from sb3_dpi.expert_iteration.policies import Evaluator, logits_and_values
from sb3_dpi.expert_iteration.targets import reach, value_targets
from sb3_dpi.systems import NotCopyableError, Table
from sb3_dpi.trajopt.mcts import new_node, puct, puct_each

LAKE: dict[str, Any] = {"id": "FrozenLake-v1", "desc": ["SFF", "FHF", "FFG"], "max_episode_steps": 12}
POND = Table.of(gym.make(**LAKE))
OPTIMUM = float(POND.initial @ POND.values(horizon=12).v)
OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


# ---------------------------------------------------------------------- targets and buffers


def test_targets_are_returns_or_values_of_searches() -> None:
    rng, gamma, T = np.random.default_rng(0), 0.9, 6
    rewards, found, after = rng.normal(size=(T, 2)), rng.normal(size=(T, 2)), np.zeros((T, 2))
    ends = np.zeros((T, 2), bool)
    ends[2, 1], after[2, 1], after[5] = True, 7.0, (3.0, 4.0)
    real = value_targets(rewards, found, after, ends, gamma, 1.0)
    assert real[0, 0] == pytest.approx(gamma ** np.arange(6) @ rewards[:, 0] + gamma**6 * 3.0)
    assert real[0, 1] == pytest.approx(gamma ** np.arange(3) @ rewards[:3, 1] + gamma**3 * 7.0)
    assert real[3, 1] == pytest.approx(gamma ** np.arange(3) @ rewards[3:, 1] + gamma**3 * 4.0)
    near = value_targets(rewards, found, after, ends, gamma, 0.0)
    np.testing.assert_allclose(near[:2], rewards[:2] + gamma * found[1:3])
    assert reach(0.5, 0.5, 100) == 5 and reach(1.0, 1.0, 100) == 100 and reach(0.9, 0.0, 100) == 1


@pytest.mark.parametrize(("death", "limit"), [((5, 6), 100), (None, 5)], ids=["death", "time limit"])
def test_only_a_death_is_the_end(death: Any, limit: int) -> None:
    """Behind a time limit the target goes on with what the network says of the true last observation."""
    model = small_exit(limited(limit, death=death), gae_lambda=1.0)
    model.return_scale = ReturnScale(-50.0, 0.0)  # what the network says of everything
    model.learn(ITERATION)
    buffer = model.replay_buffer
    last = buffer.rewards[3:5, 0].astype(float)
    expected = last[1] if death else last[1] - 0.99 * 50.0
    np.testing.assert_allclose(buffer.values[3:5, 0], [last[0] + 0.99 * expected, expected], rtol=1e-6)
    assert buffer.visits[: buffer.pos].sum(-1).min() >= model.n_simulations


def test_the_network_imitates_the_searches() -> None:
    """With nothing else to do, shares of visits and targets of each state are found to the last percent."""
    model = small_exit(gym.make(**LAKE), learning_rate=1e-2, max_grad_norm=10.0, policy_kwargs={"net_arch": [32]})
    buffer, shares = model.replay_buffer, np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    for i in range(20):
        buffer.note((10 * shares[[i % 2]]).round().astype(int), np.zeros(1))
        state, number = np.array([i % 2]), np.array([0])
        buffer.add(state, state, number, np.zeros(1), np.array([True]), [{}])
    buffer.values[:20, 0] = np.where(np.arange(20) % 2, 300.0, -100.0)
    model.learn(0)
    for _ in range(6):
        model.train(50, 16)
    found, values = Evaluator(model.policy, model.return_scale, lambda obs: obs).evaluate(np.array([0, 1]))
    np.testing.assert_allclose(found, shares, atol=0.02)
    np.testing.assert_allclose(values, [-100.0, 300.0], atol=10.0)
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0.0, abs=1e-3)


def test_buffers_are_saved_and_others_refused(tmp_path: Path) -> None:
    model = small_exit().learn(2 * ITERATION)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    again = ExIt.load(tmp_path / "model", env=pushed(limited(12)))
    again.load_replay_buffer(tmp_path / "buffer")
    assert again.simulator_steps == model.simulator_steps > ITERATION and again.return_scale == model.return_scale
    for name in ("visits", "values", "search_values"):
        np.testing.assert_array_equal(getattr(again.replay_buffer, name), getattr(model.replay_buffer, name))
    assert iterations(again.learn(ITERATION, reset_num_timesteps=False)) == 3
    save_to_pkl(tmp_path / "plain.pkl", ReplayBuffer(10, model.observation_space, model.action_space))
    with pytest.raises(ValueError, match="A ReplayBuffer holds no searches"):
        again.load_replay_buffer(tmp_path / "plain.pkl")
    with pytest.raises(ValueError, match="must be SearchReplayBuffer or derived"):
        small_exit(replay_buffer_class=ReplayBuffer)
    assert isinstance(small_exit(replay_buffer_class=SearchReplayBuffer).replay_buffer, SearchReplayBuffer)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(
    ("make", "policy", "found"),
    [
        (PointMass, "MlpPolicy", "cpu"),
        (lambda: DictPointMass(("position", "velocity")), "MultiInputPolicy", "cpu"),
        (ImagePointMass, "CnnPolicy", "meta"),
        (lambda: DictPointMass(("image", "velocity")), "MultiInputPolicy", "meta"),
    ],
    ids=["vector", "vectors", "image", "images"],
)
def test_images_alone_go_to_an_accelerator_unasked(
    make: Any, policy: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``meta``, which needs none, stands in for what torch would choose."""

    def get_device(device: Any) -> th.device:
        return th.device("meta" if device == "auto" else device)

    monkeypatch.setattr("stable_baselines3.common.base_class.get_device", get_device)
    model = small_exit(make(), policy, device="auto")
    assert model.device.type == next(model.policy.parameters()).device.type == found
    small_exit(make(), policy).save(tmp_path / "model")
    for device, kept in (("auto", found), ("cpu", "cpu")):
        assert ExIt.load(tmp_path / "model", device=device).device.type == kept


# ---------------------------------------------------------------------- searches


def test_arrays_say_what_torch_says() -> None:
    for env, seen in ((limited(12), OBSERVATIONS), (gym.make(**LAKE), np.arange(9))):
        model = small_exit(env, policy_kwargs={"net_arch": [8, 8], "activation_fn": th.nn.ReLU})
        asked = Evaluator(model.policy, ReturnScale(3.0, 2.0), lambda obs: obs)
        assert asked.arrays is not None
        priors, values = asked.evaluate(seen)
        with th.no_grad():
            logits, standard = logits_and_values(model.policy, obs_as_tensor(seen, "cpu"))
        np.testing.assert_allclose(priors, th.softmax(logits, 1).numpy(), atol=1e-6)
        np.testing.assert_allclose(values, 3.0 + 2.0 * standard.numpy(), atol=1e-5)


def test_searches_side_by_side_are_searches_one_by_one() -> None:
    """Each draws from its own generator, whatever the others do; leaves are asked about together."""
    best, asked = POND.values(gamma=0.9), []

    def guess(states: list[int]) -> Any:
        asked.append(len(states))
        return np.full((len(states), 4), 0.25), best.v[states]

    rngs = [np.random.default_rng(seed) for seed in range(3)]
    both = puct_each(POND, [new_node(s, 4) for s in (0, 1, 3)], guess, rngs, 30, gamma=0.9, noise=(1.0, 0.2))
    for s, seed, found in zip((0, 1, 3), range(3), both, strict=True):
        rng = np.random.default_rng(seed)
        alone = puct(POND, s, lambda x: (np.full(4, 0.25), best.v[x]), rng, 30, gamma=0.9, noise=(1.0, 0.2))
        np.testing.assert_array_equal(found.visits, alone.visits)
        assert found.value == alone.value
    assert max(asked) == 3


def test_trees_grow_on() -> None:
    """From step to step, while it learns and in ``predict``, if the environment came where the tree says."""
    model = small_exit(n_simulations=20, temperature=0.0)
    model.learn(3)
    root = model._kept[0][0].root
    assert root.visits > 21, "some of it was known before"
    env = model.get_env()
    obs = env.reset()
    action, state = model.predict(obs, deterministic=True, search=True)
    assert state[0][0].root.visits == 21 and action[0] == state[0][0].action
    obs, *_ = env.step(action)
    _, grown = model.predict(obs, state, np.array([False]), deterministic=True, search=True)
    _, anew = model.predict(obs, state, np.array([True]), deterministic=True, search=True)
    assert grown[0][0].root.visits > anew[0][0].root.visits == 21


class Paid(PointMass):
    """A point mass whose rewards are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.pay = 1.0

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gym.Env``."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, self.pay * float(reward), terminated, truncated, info


def test_parameters_are_those_of_each_environment() -> None:
    """Also where they were changed after the model was made, and where they differ from those of the one that is copied."""
    model = small_exit(vec_env(2, lambda: gym.wrappers.TimeLimit(Paid(), 9)))
    env: Any = model.get_env()
    for pays in ((3.0, 5.0), (7.0, 1.0)):
        for each, pay in zip(env.envs, pays, strict=True):
            each.unwrapped.pay = pay
        model.predict(env.reset(), search=True)
        simulator = model._make_simulator()
        states = [simulator.read(each) for each in env.envs]
        earned = [simulator.step(state, 0, np.random.default_rng(0))[1] for state in states]
        np.testing.assert_allclose(earned, env.step([0, 0])[1], rtol=1e-6)
        assert np.all(earned)


def test_actions_are_drawn_by_visits_unless_the_best_is_asked_for() -> None:
    model = small_exit(n_simulations=20)
    obs = model.get_env().reset()
    _, after = model.predict(obs, deterministic=True, search=True)
    found = after[0][0]
    drawn = np.bincount([model._choose(found, 1.0) for _ in range(2000)], minlength=len(found.visits)) / 2000
    np.testing.assert_allclose(drawn, found.visits / found.visits.sum(), atol=0.05)
    assert drawn.max() < 0.9 and {model._choose(found, 0.0) for _ in range(20)} == {found.action}


def test_nothing_beats_value_iteration() -> None:
    """Neither search nor network on a lake of exactly known values; both earn more than chance."""
    by_chance = np.zeros(9)
    for _ in range(12):
        onward = POND.rewards + (1.0 - POND.ends) * by_chance
        by_chance = np.mean(np.sum(POND.transitions * onward, -1), -1)
    options: dict[str, Any] = {"gradient_steps": 40, "batch_size": 64, "policy_kwargs": {"net_arch": [32]}, "gamma": 0.95}
    model = small_exit(gym.make(**LAKE), n_simulations=8, learning_rate=3e-3, **options).learn(320)
    for search, n in ((False, 100), (True, 20)):
        model.search_in_predict = search
        model.get_env().seed(5)
        earned, _ = evaluate_policy(model, model.get_env(), n)
        interval = 2.6 * np.sqrt(OPTIMUM * (1.0 - OPTIMUM) / n)
        assert 2.0 * by_chance[0] < float(earned) <= OPTIMUM + interval < 0.8, search


def test_a_training_that_ends_before_its_first_step() -> None:
    model = small_exit().learn(ITERATION, callback=lambda *_: False)
    assert model.replay_buffer.size() == model.replay_buffer.n_new == 0


def test_actions_that_no_search_tried_have_no_entropy() -> None:
    model = small_exit(gym.make(**LAKE), n_simulations=1)
    assert model.simulator_steps == 0
    model.learn(ITERATION)
    assert np.isfinite(model.logger.name_to_value["train/kl"]) and 0 < model.simulator_steps <= ITERATION


def test_units_of_rewards_do_not_matter() -> None:
    """A factor of two has no rounding: the same searches, the same network."""
    learned = [small_exit(gym.wrappers.TransformReward(limited(12), lambda r, k=k: k * r)) for k in (1.0, 1024.0)]  # type: ignore[misc]
    plain, scaled = (model.learn(3 * ITERATION) for model in learned)
    assert parameters(plain) == pytest.approx(parameters(scaled), abs=1e-5) and iterations(plain) == 3
    np.testing.assert_array_equal(plain.replay_buffer.visits, scaled.replay_buffer.visits)
    assert scaled.return_scale.std == pytest.approx(1024.0 * plain.return_scale.std)


# ---------------------------------------------------------------------- predictions, spaces, wrappers


@pytest.mark.parametrize("kind", ["normalised", "image", "dictionary", "number"])
def test_observations_of_all_kinds(kind: str) -> None:
    """Learned from, acted on, and searched from."""
    policy, options = "MlpPolicy", {}
    if kind == "image":
        env: Any = vec_env(2, lambda: Pushed(gym.wrappers.TimeLimit(ImagePointMass(), 6)))
        policy, options = "CnnPolicy", {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}
    elif kind == "dictionary":
        env = vec_env(2, lambda: Pushed(gym.wrappers.TimeLimit(DictPointMass(("image", "velocity")), 6)))
        policy, options = "MultiInputPolicy", {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}}}
    elif kind == "number":
        env = vec_env(2, lambda: gym.make(**LAKE))
    else:
        env = VecNormalize(vec_env(2, lambda: Pushed(limited(12))))
    model = small_exit(env, policy, **options).learn(ITERATION)
    assert iterations(model) == 1 and np.isfinite(parameters(model))
    env = model.get_env()
    for search in (False, True):
        obs = env.reset()
        actions, state = model.predict(obs, deterministic=True, search=search)
        again, _ = model.predict(obs, deterministic=True, search=search)
        assert actions.shape == (2,) and all(model.action_space.contains(action) for action in actions)
        np.testing.assert_array_equal(actions, again)
        assert (state is not None) == search
    if kind == "normalised":
        assert np.abs(model.replay_buffer.observations[:20]).max() < 4.0, "what is kept is not normalised"


def test_the_last_step_is_closed_by_the_value_behind_it() -> None:
    model = small_exit(limited(3 * ITERATION)).learn(ITERATION)
    model.learning_starts = 10**6  # what is learned now is what says the value
    model.learn(ITERATION, reset_num_timesteps=False)
    buffer = model.replay_buffer
    last = buffer.size() - 1
    after = Evaluator(model.policy, model.return_scale, model._present).evaluate(buffer.next_observations[last])[1]
    assert not buffer.dones.any() and abs(after[0]) > 1e-3
    assert buffer.values[last, 0] == pytest.approx(buffer.rewards[last, 0] + model.gamma * after[0], abs=1e-5)


def test_an_episode_that_was_left_goes_on_with_values(tmp_path: Path) -> None:
    """A reset between two calls of learn, or a buffer that was loaded: the row before says nothing of what comes next."""
    model = small_exit(pushed(limited(100)), learning_starts=10**6).learn(7)
    n = model.replay_buffer.size()
    model.learn(7)
    buffer = model.replay_buffer
    assert buffer.dones[n - 1, 0] == buffer.timeouts[n - 1, 0] == 1.0 and buffer.dones[: n - 1].sum() == 0.0
    after = Evaluator(model.policy, model.return_scale, model._present).evaluate(buffer.next_observations[n - 1])[1]
    assert buffer.values[n - 1, 0] == pytest.approx(buffer.rewards[n - 1, 0] + model.gamma * after[0], abs=1e-5)
    last = buffer.size() - 1
    after = Evaluator(model.policy, model.return_scale, model._present).evaluate(buffer.next_observations[last])[1]
    assert buffer.values[last, 0] == pytest.approx(buffer.rewards[last, 0] + model.gamma * after[0], abs=1e-5)
    assert buffer.n_new == 0, "all targets are known"
    model.save_replay_buffer(tmp_path / "buffer")
    three = small_exit(vec_env(3, lambda: pushed(limited(12))), learning_starts=10**6)
    three.load_replay_buffer(tmp_path / "buffer")
    assert three.replay_buffer.dones[: three.replay_buffer.size()].all()
    size, values = three.replay_buffer.size(), np.sort(buffer.values[: buffer.size(), 0])
    assert size == buffer.size() // 3 and set(three.replay_buffer.values[:size].ravel()) <= set(values)
    three.learn(9)


@pytest.mark.parametrize(
    "task", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"]
)
def test_stock_tasks_say_where_they_are(task: str) -> None:
    """So an evaluation elsewhere can search, also by a model whose own environment was never reset."""
    model, other = small_exit(task), gym.make(task)
    obs, _ = other.reset(seed=7)
    for action in (0, 1, 1):
        assert np.shape(model.predict(obs, search=True)[0]) == ()
        assert model._finder is not None
        found = model._finder.find(*(np.asarray(obs)[None],) * 2, model.env)[0]
        np.testing.assert_allclose(model._finder.simulator.observe(found), obs, atol=1e-5)
        obs = other.step(action)[0]


def test_where_the_simulator_is() -> None:
    """An observation of another environment says it on some tasks; else ``set_env`` is named."""
    model, other = small_exit(), Monitor(pushed(limited(6)))
    obs, _ = other.reset(seed=3)
    assert model.predict(obs)[1] is None
    with pytest.raises(ValueError, match="set_env"):
        model.predict(obs, search=True)

    def into(base: Any, seen: np.ndarray) -> None:
        base.state = seen.copy()

    told = small_exit(state_from_obs=into, search_in_predict=True)
    action, state = told.predict(obs)
    assert np.shape(action) == () and state.shape == (1,)
    model.set_env(other)
    model.search_in_predict = True
    assert np.isfinite(evaluate_policy(model, model.get_env(), 1)[0])
    for wrong in (np.zeros(1), np.full(2, None, dtype=object)):
        with pytest.raises(ValueError, match="what the last predict of this model returned for 1 env"):
            model.predict(obs, wrong)


def test_a_look_inside_knows_its_critic() -> None:
    model = small_exit("CartPole-v1").learn(2 * ITERATION)
    found = diagnose(model, "CartPole-v1", n_episodes=2)
    assert "critic" in found.tables


def test_targets_know_no_wrong_reward() -> None:
    """Two that are both beyond the limit are cut to the same."""
    kept = []
    for wrong in (-1e6, -1e9):
        buffer = SearchReplayBuffer(50, spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2), device="cpu", n_envs=1)
        for t in range(40):
            buffer.note(np.array([[1, 1]]), np.array([wrong if t == 7 else 2.0]))
            obs = np.zeros((1, 1), np.float32)
            buffer.add(obs, obs, np.zeros((1, 1)), np.array([wrong if t == 25 else 1.0]), np.zeros(1), [{}])
        buffer.settle(buffer.latest(40), np.zeros((40, 1)), 0.9, 0.8)
        kept.append(buffer.values[:40].copy())
    np.testing.assert_array_equal(*kept)
    assert np.abs(kept[0]).max() < 150.0


# ---------------------------------------------------------------------- errors


class Box(PointMass):
    """Ignores its seed."""

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**{**kwargs, "seed": None})
        self.state = np.random.default_rng().normal(size=2)
        return self.observation(), result[1]


class Shared(PointMass):
    """Cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("it holds a socket")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExIt("MlpPolicy", limited(12)), "Discrete action space.*take MPC, or DAgger"),
        (lambda: small_exit(Shared()), "cannot be copied.*socket"),
        (lambda: small_exit(Box()), "began two different episodes"),
        (lambda: small_exit(VecFrameStack(vec_env(2), 2)), "VecFrameStack.*FrameStackObservation"),
        (lambda: small_exit().predict((np.zeros(2, np.float32), {})), "given a tuple.*obs, info = env.reset"),
        (lambda: small_exit().predict(np.zeros(2, np.float32), search=True), "get_env.. were not reset yet.*set_env"),
        (lambda: small_exit(n_simulations=2.5), "n_simulations must be a whole number, got 2.5"),
        (lambda: small_exit(n_simulations=0), "n_simulations must be at least 1, got 0"),
        (lambda: small_exit(Single()), "without an axis.*ReshapeObservation"),
        (lambda: small_exit(horizon=0), "horizon must be at least 1, got 0"),
        (lambda: small_exit(gamma=1.01), "gamma must be from 0 to 1, got 1.01"),
        (lambda: small_exit(gae_lambda=-0.1), "gae_lambda must be from 0 to 1"),
        (lambda: small_exit(root_noise=2.0), "root_noise must be from 0 to 1"),
        (lambda: small_exit(temperature=-1.0), "temperature must be at least 0"),
        (lambda: small_exit(gradient_steps=-2), "gradient_steps must be at least -1"),
        (lambda: small_exit(replay_buffer_kwargs={"optimize_memory_usage": True}), "leave optimize_memory_usage off"),
        (lambda: small_exit(gym.wrappers.TransformAction(limited(9), lambda a: a, spaces.Discrete(3, start=1))), "from 0 on"),
    ],
)
def test_errors(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
    assert issubclass(NotCopyableError, ValueError)
