"""Spaces of observations and actions: units of the bounds, dictionaries, images, and what the policy may not see."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, answers, buffer, every, every_algorithm, executed, iterations, parameters
from dummy_envs import HORIZON, IMAGE_SHAPE, ITERATION, DictPointMass, ImagePointMass, Matrix, PointMass, Single, vec_env
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise

from sb3_dpi.common.planner_state import is_vector_space, make_state_view

BOUNDS = [(-1.0, 1.0), (-3.0, 3.0), (0.0, 10.0), (-0.2, 5.0), (-1.0, 0.5)]
OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


class Spaces(PointMass):
    """Any spaces; the first number of an action pushes."""

    def __init__(self, observation_space: Any = None, action_space: Any = None) -> None:
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        force = float(np.ravel(action)[0])
        self.state = self.state + 0.1 * np.array([self.state[1], 2.0 * force - 1.0])
        self.t += 1
        return self.observation(), -float(self.state @ self.state), False, self.t >= 12, {}


class Flat(Matrix):
    """The matrices as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observation(self) -> Any:
        return super().observation()[:, 0]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(action[:, None])


def loud(make: Make, log_std: float) -> dict[str, Any]:
    """:return: options with which actions that are cut off reach beyond their bounds"""
    if make.acts_as_predicted:
        return {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, np.exp(log_std)))}
    return {} if make.squashes or make.plans else {"policy_kwargs": {"net_arch": [8], "log_std_init": log_std}}


# ---------------------------------------------------------------------- actions


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@every(discrete=False)
def test_actions_reach_the_environment_in_its_own_units(make: Make, bounds: tuple[float, float]) -> None:
    low, high = bounds
    env = PointMass(low, high)
    model = make(env, **loud(make, 0.5)).learn(2 * ITERATION)
    in_units = executed(model)[:, 0]
    assert len(in_units) == ITERATION and np.ptp(in_units) > 1.0
    assert make.plans or make.squashes == (np.abs(in_units).max() < 1.0), "what is sampled beyond the bounds is cut off"
    np.testing.assert_allclose(env.actions[-ITERATION:], low + 0.5 * (in_units + 1.0) * (high - low), atol=1e-5)


@pytest.mark.parametrize("bounds", BOUNDS[1:], ids=str)
@every(discrete=False)
def test_learning_does_not_depend_on_the_units(make: Make, bounds: tuple[float, float]) -> None:
    """The same task in other units of the action: the same policy in units of the bounds."""
    plain, scaled = make(PointMass()), make(PointMass(*bounds))
    low, high = bounds
    # what rounds off in the units is small, but a second natural gradient amplifies it along flat directions
    for tolerance in (1e-4, 5e-2):
        for model in (plain, scaled):
            model.set_random_seed(1)
            model.learn(ITERATION, reset_num_timesteps=False)
        expected = plain.predict(OBSERVATIONS, deterministic=True)[0]
        actions = scaled.predict(OBSERVATIONS, deterministic=True)[0]
        np.testing.assert_allclose((actions - low) / (high - low) * 2.0 - 1.0, expected, atol=tolerance)


@pytest.mark.parametrize("deterministic", [True, False])
@every(discrete=False)
def test_predicted_actions_are_within_the_bounds(make: Make, deterministic: bool) -> None:
    model = make(PointMass(-0.2, 5.0), **loud(make, 2.0))
    if not make.squashes and not make.plans:  # before there are statistics they see nothing
        model.policy.set_standardization(np.zeros(2), np.ones(2))
    observations = 100.0 * np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=deterministic)
    assert actions.shape == (50, 1) and actions.min() >= -0.2 and actions.max() <= 5.0 and np.ptp(actions) > 0.01
    assert model.action_space.contains(model.predict(observations[0])[0])


@every(discrete=False)
def test_matrices_are_vectors(make: Make) -> None:
    """As observation and action: the same numbers in another shape."""
    model, flat = (make(env).learn(ITERATION) for env in (Matrix(), Flat()))
    assert parameters(model) == pytest.approx(parameters(flat), abs=5e-3)
    action, expected = (one.predict(x, deterministic=True)[0] for one, x in ((model, np.ones((2, 1))), (flat, np.ones(2))))
    assert action.shape == (2, 1)
    np.testing.assert_allclose(action[:, 0], expected, atol=5e-3)


@every(from_conditions=True)
def test_known_cost_gets_the_environments_units(make: Make) -> None:
    seen = []

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        assert obs.shape == next_obs.shape and action.shape == (*obs.shape[:-1], 1)
        seen.append(action.detach().numpy().copy())
        return (next_obs**2).sum(-1) + 0.1 * ((action - 5.0) ** 2).sum(-1)

    model = make(PointMass(0.0, 10.0), cost=cost_fn).learn(1)
    sampled = 5.0 + 5.0 * model.rollout_buffer.trajectories().actions
    np.testing.assert_allclose(np.sort(seen[0].ravel()), np.sort(sampled.ravel()), atol=1e-5)


DISCRETE = [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)]


@pytest.mark.parametrize("action_space", DISCRETE[1:], ids=str)
@every(any_space=False, discrete=False)
def test_other_discrete_actions_are_refused(make: Make, action_space: spaces.Space) -> None:
    with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.* as action spaces but .* was provided"):
        make(Spaces(action_space=action_space))


@pytest.mark.parametrize("action_space", DISCRETE[:1], ids=str)
@every(any_space=False, takes_discrete=False, discrete=False)
def test_discrete_actions_are_refused(make: Make, action_space: spaces.Space) -> None:
    with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.* as action spaces but .* was provided"):
        make(Spaces(action_space=action_space))


@pytest.mark.parametrize("action_space", [*DISCRETE, spaces.Box(0.0, 5.0, (2,), np.float32)], ids=str)
@every(any_space=True)
def test_actions_of_all_kinds(make: Make, action_space: spaces.Space) -> None:
    """The environments check each action; observations in other places get other actions, one or many at once."""
    model = make(vec_env(2, lambda: Spaces(action_space=action_space))).learn(3 * ITERATION)
    assert iterations(model) == 3 and np.isfinite(parameters(model))
    actions = model.predict(10.0 * OBSERVATIONS, deterministic=True)[0]
    assert len(actions) == 20 and all(action_space.contains(action) for action in actions)
    assert len(np.unique(actions, axis=0)) > 1
    np.testing.assert_allclose(model.predict(10.0 * OBSERVATIONS[3], deterministic=True)[0], actions[3], rtol=1e-6)


@every(any_space=False, takes_discrete=False, discrete=False)
def test_discrete_actions_of_a_real_task(make: Make) -> None:
    with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.*Discrete\(2\) was provided"):
        make("CartPole-v1")


@every(discrete=False)
def test_unbounded_actions(make: Make) -> None:
    with pytest.raises(AssertionError, match="must have a finite lower and upper bound"):
        make(Spaces(action_space=spaces.Box(-np.inf, np.inf, (1,))))


# ---------------------------------------------------------------------- observations


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@every_algorithm
def test_types_of_observations(make: Make, dtype: Any) -> None:
    class Typed(PointMass):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-1000, 1000, (2,), dtype)
            self.seen: list[np.ndarray] = []

        def observation(self) -> Any:
            self.seen.append((100 * self.state).astype(dtype))
            return self.seen[-1]

    env = Typed()
    model = make(env).learn(2 * ITERATION)
    kept = buffer(model).observations
    rows = {tuple(row) for row in kept.reshape(-1, 2)} - {(0, 0)}
    assert kept.dtype == dtype and iterations(model) == 2 and np.isfinite(parameters(model))
    assert len(rows) > 10 and rows <= {tuple(row) for row in env.seen}, "nothing is rounded"


@every(plain_networks=False)
def test_single_numbers(make: Make) -> None:
    """Observed without any axis, one or many at once."""

    model = make(gym.wrappers.TimeLimit(Single(), 12)).learn(2 * ITERATION)
    actions = model.predict(OBSERVATIONS[:, 0], deterministic=True)[0]
    assert iterations(model) >= 1 and len(actions) == 20
    assert np.shape(model.predict(OBSERVATIONS[0, 0], deterministic=True)[0]) == model.action_space.shape


@pytest.mark.parametrize("observation_space", [spaces.Discrete(3), spaces.MultiBinary(3)], ids=str)
@every(from_conditions=True)
def test_observations_without_numbers(make: Make, observation_space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r'planner needs a vector and found none .* key "state" is a vector'):
        make(Spaces(observation_space=observation_space))


@every(any_space=True)
def test_observations_that_are_a_number(make: Make) -> None:
    """Each cell has its own policy."""
    model = make("FrozenLake-v1").learn(2 * ITERATION)
    with th.no_grad():
        chances = model.policy.get_distribution(th.arange(16)).distribution.probs.numpy()
    assert iterations(model) == 2 and len(np.unique(chances[[0, 1, 4]], axis=0)) == 3


@every(plans=False)
def test_dictionaries(make: Make) -> None:
    """The policy looks at all their keys, in one observation or a batch."""
    env = vec_env(2, lambda: gym.wrappers.TimeLimit(DictPointMass(("position", "velocity")), 12))
    model = make(env, "MultiInputPolicy").learn(2 * ITERATION)
    batch = {"position": OBSERVATIONS[:, :1], "velocity": OBSERVATIONS[:, 1:]}
    told = answers(model, batch)
    assert iterations(model) == 2 and len(told) == 20
    for key in batch:
        assert np.abs(answers(model, {**batch, key: batch[key] + 1.0}) - told).min() > 0.0, key
    single, actions = (
        model.predict(obs, deterministic=True)[0] for obs in ({key: array[3] for key, array in batch.items()}, batch)
    )
    np.testing.assert_allclose(single, actions[3], atol=1e-6)


@every(plans=False)
def test_dictionaries_need_a_multi_input_policy(make: Make) -> None:
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        make(DictPointMass(("position", "velocity")))


@every(any_space=True)
@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_images(make: Make, policy: str) -> None:
    """The policy looks at them, alone or beside a vector."""
    task = ImagePointMass if policy == "CnnPolicy" else lambda: DictPointMass(("image", "velocity"))
    env = vec_env(2, lambda: gym.wrappers.TimeLimit(task(), 5))
    small = {"features_extractor_kwargs": {"features_dim" if policy == "CnnPolicy" else "cnn_output_dim": 8}}
    model = make(env, policy, policy_kwargs=small, n_steps=8).learn(32)
    dark, light = (np.full(IMAGE_SHAPE, grey, np.uint8) for grey in (50, 200))
    seen = [image if policy == "CnnPolicy" else {"image": image, "velocity": np.zeros(1)} for image in (dark, light)]
    assert iterations(model) == 2
    assert model.predict(seen[0], deterministic=True)[0] != model.predict(seen[1], deterministic=True)[0]


# ---------------------------------------------------------------------- what the planner sees and the policy may not


def states_of(make: Make, keys: tuple[str, ...]) -> tuple[Any, np.ndarray, Any]:
    model = make(DictPointMass(keys), "MultiInputPolicy")
    model.learn(2 * ITERATION)
    assert np.isfinite(parameters(model))
    trajectories = model.rollout_buffer.trajectories()
    return model, trajectories.states, trajectories.observations


@every(from_conditions=True)
def test_state_is_what_the_planner_sees(make: Make) -> None:
    _, states, observations = states_of(make, ("position", "state", "velocity"))
    np.testing.assert_allclose(states, observations["state"], atol=1e-6)


@every(from_conditions=True)
def test_without_state_the_planner_sees_the_vectors(make: Make) -> None:
    _, states, observations = states_of(make, ("image", "position", "velocity"))
    expected = np.concatenate([observations["position"], observations["velocity"]], -1)
    np.testing.assert_allclose(states, expected, atol=1e-6)
    assert observations["image"].shape == (2, 2, HORIZON + 1, IMAGE_SHAPE[2], *IMAGE_SHAPE[:2])
    grey = np.clip(128 + 60 * observations["position"][..., 0], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(observations["image"][..., 0, 0, 0], grey)


@every(from_conditions=True)
def test_images_with_state(make: Make) -> None:
    model, states, _ = states_of(make, ("image", "state"))
    assert states.shape[-1] == 2
    before = parameters(model)
    image = np.full(IMAGE_SHAPE, 50, np.uint8)
    dark = model.predict({"image": image}, deterministic=True)[0]
    light = model.predict({"image": image + 150}, deterministic=True)[0]
    assert dark != light, "the policy looks at the image"
    assert parameters(model) == before


@every(from_conditions=True)
def test_policy_is_blind_to_the_state(make: Make) -> None:
    model, *_ = states_of(make, ("state", "position"))
    for training in (False, True):
        model.policy.set_training_mode(training)
        obs = {"state": th.randn(5, 2, requires_grad=True), "position": th.randn(5, 1, requires_grad=True)}
        model.policy.action_mean(obs).sum().backward()
        assert obs["state"].grad is None and obs["position"].grad is not None
    position = np.array([0.3], np.float32)
    predictions = [
        model.predict({"position": position, "state": state}, deterministic=True)[0]
        for state in (np.zeros(2, np.float32), np.full(2, 100.0, np.float32))
    ]
    predictions.append(model.predict({"position": position}, deterministic=True)[0])
    assert predictions[0] == predictions[1] == predictions[2]


@every(from_conditions=True)
def test_deployed_without_state(make: Make) -> None:
    """One observation or a batch, whatever the keys' shapes."""
    model, *_ = states_of(make, ("image", "state"))
    image = np.full(IMAGE_SHAPE, 50, np.uint8)
    single = model.predict({"image": image}, deterministic=True)[0]
    batch = model.predict({"image": np.stack([image] * 3)}, deterministic=True)[0]
    assert single.shape == (1,) and batch.shape == (3, 1)
    np.testing.assert_allclose(batch, np.tile(single, (3, 1)), atol=1e-6)
    transposed = model.predict({"image": np.moveaxis(image, -1, 0)}, deterministic=True)[0]
    np.testing.assert_allclose(transposed, single, atol=1e-6)


@every(from_conditions=True)
def test_the_key_state_may_have_any_shape(make: Make) -> None:
    class MatrixState(DictPointMass):
        def __init__(self) -> None:
            super().__init__()
            assert isinstance(self.observation_space, spaces.Dict)
            self.observation_space.spaces["state"] = spaces.Box(-np.inf, np.inf, (2, 1))

        def observation(self) -> Any:
            obs = super().observation()
            return {**obs, "state": obs["state"][:, None]}

    model = make(MatrixState(), "MultiInputPolicy")
    model.learn(1)
    assert model.rollout_buffer.trajectories().states.shape == (2, 2, HORIZON + 1, 2)
    assert model.predict({"position": np.zeros(1, np.float32)})[0].shape == (1,)


@every(from_conditions=True)
def test_cnn_policy_sees_the_image_beside_the_state(make: Make, tmp_path: Path) -> None:
    model = make(DictPointMass(("image", "state")), "CnnPolicy")
    model.learn(2 * ITERATION)
    image = np.full(IMAGE_SHAPE, 50, np.uint8)
    dark, light = (model.predict({"image": shade}, deterministic=True)[0] for shade in (image, image + 150))
    assert dark != light
    seen = model.predict({"image": image, "state": np.ones(2, np.float32)}, deterministic=True)[0]
    np.testing.assert_array_equal(seen, dark)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(type(model).load(tmp_path / "model").predict({"image": image}, deterministic=True)[0], dark)


@every(from_conditions=True)
def test_cnn_policy_sees_one_image_only(make: Make) -> None:
    with pytest.raises(ValueError, match=r"CnnPolicy sees one image beside \"state\".* use MultiInputPolicy"):
        make(DictPointMass(("image", "state", "position")), "CnnPolicy")


def test_goals() -> None:
    """Gymnasium-Robotics' dictionaries: the planner sees all of their vectors."""
    names = ("achieved_goal", "desired_goal", "observation")
    space = spaces.Dict({name: spaces.Box(-1.0, 1.0, (2,)) for name in names})
    view, size = make_state_view(space)
    obs = {name: np.full((4, 2), i, np.float32) for i, name in enumerate(names)}
    assert size == 6
    np.testing.assert_array_equal(view(obs), np.tile([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], (4, 1)))


def test_vector_spaces() -> None:
    assert is_vector_space(spaces.Box(-1.0, 1.0, (3,)))
    assert is_vector_space(spaces.Box(0, 255, (3,), np.uint8))
    assert not is_vector_space(spaces.Discrete(2))
    for shape in ((36, 36, 3), (3, 36, 36), (36, 36, 7)):
        assert not is_vector_space(spaces.Box(0, 255, shape, np.uint8))
    with pytest.raises(ValueError, match="planner needs a vector"):
        make_state_view(spaces.Dict({"state": spaces.Discrete(2), "x": spaces.Box(-1.0, 1.0, (1,))}))


@every(from_conditions=True)
def test_flattening_wrappers_work(make: Make) -> None:
    """What they show is the point mass."""
    env = gym.wrappers.FlattenObservation(DictPointMass(("position", "velocity")))
    assert parameters(make(env).learn(ITERATION)) == parameters(make(PointMass()).learn(ITERATION))
