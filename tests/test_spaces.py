"""Spaces of observations and actions: units of the bounds, dictionaries, images, and what the policy may not see."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import Make, every_algorithm
from dummy_envs import (
    HORIZON,
    IMAGE_SHAPE,
    ITERATION,
    DictPointMass,
    ImagePointMass,
    Matrix,
    PointMass,
    parameter_sum,
    small_mdgps,
    vec_env,
)
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage

from sb3_dpi.common.planner_state import is_vector_space, make_state_view

BOUNDS = [(-1.0, 1.0), (-3.0, 3.0), (0.0, 10.0), (-0.2, 5.0), (-1.0, 0.5)]


class Spaces(PointMass):
    """Any spaces."""

    def __init__(self, observation_space: Any = None, action_space: Any = None) -> None:
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space


# ---------------------------------------------------------------------- actions


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@every_algorithm
def test_actions_reach_the_environment_in_its_own_units(make: Make, bounds: tuple[float, float]) -> None:
    low, high = bounds
    env = PointMass(low, high)
    model = make(env, policy_kwargs={"net_arch": [8], "log_std_init": 0.5})
    model.learn(2 * ITERATION)
    sampled = model.rollout_buffer.trajectories()
    in_units = sampled.executed_actions
    assert np.abs(sampled.actions).max() > 1.0 >= np.abs(in_units).max()
    expected = low + 0.5 * (in_units + 1.0) * (high - low)
    # trajectory i has condition i mod 2
    by_trajectory = np.swapaxes(expected[..., 0], 0, 1).reshape(-1)
    np.testing.assert_allclose(env.actions[ITERATION:], by_trajectory, atol=1e-5)


@pytest.mark.parametrize("bounds", BOUNDS[1:], ids=str)
@every_algorithm
def test_learning_does_not_depend_on_the_units(make: Make, bounds: tuple[float, float]) -> None:
    """The same task in other units of the action: the same policy in units of the bounds."""
    plain, scaled = make(PointMass()), make(PointMass(*bounds))
    low, high = bounds
    observations = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    # what rounds off in the units is small, but the second natural gradient amplifies it along flat directions
    for tolerance in (1e-4, 1e-4 if make is small_mdgps else 5e-2):
        for model in (plain, scaled):
            model.learn(ITERATION, reset_num_timesteps=False)
        assert parameter_sum(scaled) == pytest.approx(parameter_sum(plain), rel=tolerance)
        expected = plain.predict(observations, deterministic=True)[0]
        actions = scaled.predict(observations, deterministic=True)[0]
        np.testing.assert_allclose((actions - low) / (high - low) * 2.0 - 1.0, expected, atol=tolerance)


@pytest.mark.parametrize("deterministic", [True, False])
@every_algorithm
def test_predicted_actions_are_within_the_bounds(make: Make, deterministic: bool) -> None:
    model = make(PointMass(-0.2, 5.0), policy_kwargs={"net_arch": [8], "log_std_init": 2.0})
    observations = 100.0 * np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=deterministic)
    assert actions.shape == (50, 1) and actions.min() >= -0.2 and actions.max() <= 5.0
    assert model.action_space.contains(model.predict(observations[0])[0])


@every_algorithm
def test_known_cost_gets_the_environments_units(make: Make) -> None:
    seen = []

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        seen.append(action.detach().numpy().copy())
        return (next_obs**2).sum(-1) + 0.1 * ((action - 5.0) ** 2).sum(-1)

    model = make(PointMass(0.0, 10.0), cost=cost_fn)
    model.learn(1)
    sampled = 5.0 + 5.0 * model.rollout_buffer.trajectories().actions
    np.testing.assert_allclose(np.sort(seen[0].ravel()), np.sort(sampled.ravel()), atol=1e-5)


@every_algorithm
def test_matrices_as_observation_and_action(make: Make) -> None:
    model = make(Matrix())
    model.learn(2 * ITERATION)
    assert model.predict(np.zeros((2, 1), np.float32))[0].shape == (2, 1)
    assert model.rollout_buffer.trajectories().actions.shape[-1] == 2
    known = make(Matrix(), cost=lambda obs, action, next_obs: (next_obs**2).sum(-1) + (action**2).sum(-1))
    assert known.learn(1).n_iterations == 1


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)], ids=str)
@every_algorithm
def test_discrete_actions(make: Make, action_space: spaces.Space) -> None:
    with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.* as action spaces but .* was provided"):
        make(Spaces(action_space=action_space))


@every_algorithm
def test_discrete_actions_of_a_real_task(make: Make) -> None:
    with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.*Discrete\(2\) was provided"):
        make("CartPole-v1")


@every_algorithm
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

        def observation(self) -> Any:
            return (100 * self.state).astype(dtype)

    model = make(Typed())
    model.learn(2 * ITERATION)
    assert np.isfinite(parameter_sum(model))
    assert model.rollout_buffer.observations.dtype == dtype


@pytest.mark.parametrize("observation_space", [spaces.Discrete(3), spaces.MultiBinary(3)], ids=str)
@every_algorithm
def test_observations_without_numbers(make: Make, observation_space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r'planner needs a vector and found none .* key "state" is a vector'):
        make(Spaces(observation_space=observation_space))


def states_of(make: Make, keys: tuple[str, ...]) -> tuple[Any, np.ndarray, Any]:
    model = make(DictPointMass(keys), "MultiInputPolicy")
    model.learn(2 * ITERATION)
    assert np.isfinite(parameter_sum(model))
    trajectories = model.rollout_buffer.trajectories()
    return model, trajectories.states, trajectories.observations


@every_algorithm
def test_state_is_what_the_planner_sees(make: Make) -> None:
    _, states, observations = states_of(make, ("position", "state", "velocity"))
    np.testing.assert_allclose(states, observations["state"], atol=1e-6)


@every_algorithm
def test_without_state_the_planner_sees_the_vectors(make: Make) -> None:
    _, states, observations = states_of(make, ("image", "position", "velocity"))
    expected = np.concatenate([observations["position"], observations["velocity"]], -1)
    np.testing.assert_allclose(states, expected, atol=1e-6)
    assert observations["image"].shape == (2, 2, HORIZON + 1, IMAGE_SHAPE[2], *IMAGE_SHAPE[:2])
    grey = np.clip(128 + 60 * observations["position"][..., 0], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(observations["image"][..., 0, 0, 0], grey)


@every_algorithm
def test_images_with_state(make: Make) -> None:
    model, states, _ = states_of(make, ("image", "state"))
    assert states.shape[-1] == 2
    before = parameter_sum(model)
    image = np.full(IMAGE_SHAPE, 50, np.uint8)
    dark = model.predict({"image": image}, deterministic=True)[0]
    light = model.predict({"image": image + 150}, deterministic=True)[0]
    assert dark != light, "the policy looks at the image"
    assert parameter_sum(model) == before


@every_algorithm
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


@every_algorithm
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


@every_algorithm
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


@every_algorithm
def test_dictionaries_need_a_multi_input_policy(make: Make) -> None:
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        make(DictPointMass(("image", "state")), "MlpPolicy")


@every_algorithm
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


@every_algorithm
def test_cnn_policy_sees_one_image_only(make: Make) -> None:
    with pytest.raises(ValueError, match=r"CnnPolicy sees one image beside \"state\".* use MultiInputPolicy"):
        make(DictPointMass(("image", "state", "position")), "CnnPolicy")


@every_algorithm
def test_pixels_alone(make: Make) -> None:
    with pytest.raises(ValueError, match=r'planner needs a vector and found none .* key "state" is a vector'):
        make(ImagePointMass(), "CnnPolicy")


@pytest.mark.parametrize("transpose_first", [False, True])
@every_algorithm
def test_images_beside_normalised_vectors(make: Make, transpose_first: bool) -> None:
    """SB3 puts the transposition of images around VecNormalize."""
    env: Any = vec_env(2, lambda: DictPointMass(("image", "state", "position")))
    env = VecNormalize(VecTransposeImage(env) if transpose_first else env, norm_obs_keys=["state", "position"])
    model = make(env, "MultiInputPolicy")
    model.learn(2 * ITERATION)
    observations: Any = model.rollout_buffer.trajectories().observations
    grey = np.clip(128 + 60 * observations["position"][..., 0], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(observations["image"][..., 0, 0, 0], grey)
    np.testing.assert_allclose(observations["state"][..., 0], observations["position"][..., 0], atol=1e-5)


@every_algorithm
def test_dictionaries_under_vec_normalize(make: Make) -> None:
    """Also where episodes end, whose last observations come back normalised."""

    class Mortal(DictPointMass):
        def __init__(self) -> None:
            super().__init__(("state", "position"))
            self.death = (4, 9)

    model = make(VecNormalize(vec_env(2, Mortal)), "MultiInputPolicy")
    model.learn(3 * ITERATION)
    sampled = model.rollout_buffer.trajectories()
    observations: Any = sampled.observations
    alive = np.concatenate([sampled.alive[:, :, :1], sampled.alive], -1)
    assert not sampled.alive.all()
    np.testing.assert_allclose(observations["position"][alive][:, 0], sampled.states[alive][:, 0], atol=1e-4)


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


@every_algorithm
def test_flattening_wrappers_work(make: Make) -> None:
    env = gym.wrappers.FlattenObservation(DictPointMass(("position", "velocity")))
    assert make(env).learn(1).n_iterations == 1
