"""The trajectory buffer keeps the time axis: every step is found at its condition, sample and time."""

from typing import Any

import numpy as np
import pytest
from algorithms import small_mdgps
from dummy_envs import HORIZON, PointMass, limited, vec_env
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_dpi.common.trajectories import TrajectoryBuffer, concatenate, map_observations

DX, DU = 3, 2
VECTOR = spaces.Box(-np.inf, np.inf, (DX,), np.float32)
DICT = spaces.Dict({"a": VECTOR, "pixels": spaces.Box(0, 255, (1, 4, 4), np.uint8)})
ACTION = spaces.Box(-1.0, 1.0, (DU,), np.float32)


def make_buffer(n_batches: int, n_envs: int, horizon: int, n_conditions: int, space: Any = VECTOR) -> TrajectoryBuffer:
    return TrajectoryBuffer(
        n_batches * horizon, space, ACTION, "cpu", n_envs=n_envs, horizon=horizon, state_dim=DX, n_conditions=n_conditions
    )


def observe(space: Any, label: np.ndarray) -> Any:
    """Observations that tell which trajectory and time they are from, by labels ``[n_envs]``."""
    if isinstance(space, spaces.Dict):
        pixels = np.tile((label % 256).astype(np.uint8)[:, None, None, None], (1, 1, 4, 4))
        return {"a": np.tile(label[:, None], (1, DX)).astype(np.float32), "pixels": pixels}
    return np.tile(label[:, None], (1, DX)).astype(np.float32)


def fill(buffer: TrajectoryBuffer, lengths: np.ndarray, space: Any = VECTOR) -> None:
    """Trajectory i of length ``lengths[i]``; its time t carries the label 100 i + t, its last observation another .5."""
    for batch in range(buffer.n_batches):
        ids = batch * buffer.n_envs + np.arange(buffer.n_envs)
        alive = np.ones(buffer.n_envs, dtype=bool)
        for t in range(buffer.horizon):
            label = 100.0 * ids + t
            ending = alive & (t == lengths[ids] - 1)
            died = ending & (lengths[ids] < buffer.horizon)
            buffer.add_step(
                observe(space, label),
                np.tile(label[:, None], (1, DX)),
                np.tile(label[:, None], (1, DU)) / 1000.0,
                label,
            )
            if ending.any():
                buffer.end_trajectories(ending, died, observe(space, label + 1.5), np.tile(label[:, None] + 1.5, (1, DX)))
            alive = alive & ~ending
            if not alive.any():
                break
        buffer.end_batch()


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["array", "dict"])
@pytest.mark.parametrize("n_batches, n_envs, n_conditions", [(4, 1, 2), (2, 3, 2), (2, 4, 3), (1, 1, 1), (1, 5, 5)])
def test_every_step_is_where_it_belongs(n_batches: int, n_envs: int, n_conditions: int, space: Any) -> None:
    horizon, n = 4, n_batches * n_envs
    lengths = np.random.default_rng(0).integers(1, horizon + 1, n)
    buffer = make_buffer(n_batches, n_envs, horizon, n_conditions, space)
    fill(buffer, lengths, space)
    assert buffer.full
    sampled = buffer.trajectories()
    n_samples = -(-n // n_conditions)
    assert sampled.alive.shape == (n_conditions, n_samples, horizon)
    assert sampled.states.shape == (n_conditions, n_samples, horizon + 1, DX)
    observations: Any = sampled.observations
    vectors = observations["a"] if isinstance(observations, dict) else observations
    found = 0
    for m in range(n_conditions):
        for s in range(n_samples):
            i = s * n_conditions + m
            if i >= n:
                assert not sampled.alive[m, s].any() and np.isnan(sampled.returns[m, s])
                continue
            found, length = found + 1, lengths[i]
            labels = 100.0 * i + np.arange(length)
            np.testing.assert_array_equal(sampled.alive[m, s], np.arange(horizon) < length)
            np.testing.assert_array_equal(sampled.rewards[m, s, :length], labels)
            np.testing.assert_allclose(sampled.actions[m, s, :length, 1], labels / 1000.0, rtol=1e-6)
            after = np.append(labels, labels[-1] + 1.5)
            np.testing.assert_array_equal(sampled.states[m, s, : length + 1, 0], after)
            np.testing.assert_array_equal(vectors[m, s, : length + 1, 0], after.astype(np.float32))
            if isinstance(observations, dict):
                expected = (after.astype(np.float32) % 256).astype(np.uint8)
                np.testing.assert_array_equal(observations["pixels"][m, s, : length + 1, 0, 2, 1], expected)
            assert sampled.terminated[m, s, length - 1] == (length < horizon)
            assert sampled.returns[m, s] == pytest.approx(labels.sum())
    assert found == n


def test_environments_have_conditions_of_their_own() -> None:
    """Two of the first, three of the second, in two batches; slots that nothing was collected for are dead."""
    horizon, n_batches, kinds = 3, 2, np.array([1, 0, 1, 1, 0])
    buffer = TrajectoryBuffer(
        n_batches * horizon, VECTOR, ACTION, "cpu", n_envs=5, horizon=horizon, state_dim=DX, n_conditions=2,
        environment_indices=kinds,
    )  # fmt: skip
    lengths = np.random.default_rng(1).integers(1, horizon + 1, 10)
    fill(buffer, lengths)
    sampled = buffer.trajectories()
    assert sampled.alive.shape == (4, 3, horizon)
    n_seen, places = [0, 0], set()
    for batch in range(n_batches):
        for env, kind in enumerate(kinds):
            condition, i = 2 * kind + n_seen[kind] % 2, batch * 5 + env
            place = (condition, n_seen[kind] // 2)
            n_seen[kind] += 1
            places.add(place)
            assert buffer.conditions(batch)[env] == condition
            assert sampled.alive[place].tolist() == [t < lengths[i] for t in range(horizon)]
            assert sampled.states[place][: lengths[i], 0].tolist() == [100.0 * i + t for t in range(lengths[i])]
    assert not any(sampled.alive[place].any() for place in np.ndindex(4, 3) if place not in places)


def test_properties() -> None:
    buffer = make_buffer(2, 1, 3, 2)
    fill(buffer, np.array([3, 1]))
    sampled = buffer.trajectories()
    assert sampled.weights.dtype == np.float64
    np.testing.assert_array_equal(sampled.weights[:, 0], [[1, 1, 1], [1, 0, 0]])
    with pytest.raises(AttributeError):
        sampled.alive = sampled.alive  # type: ignore[misc]


def test_last_batch() -> None:
    """Returns and lengths as a Monitor would report them."""
    lengths = np.array([3, 2, 3, 1])
    buffer = make_buffer(2, 2, 3, 2)
    fill(buffer, lengths)
    returns, found = buffer.last_batch()
    np.testing.assert_array_equal(found, lengths[2:])
    np.testing.assert_array_equal(returns, [200.0 + 201.0 + 202.0, 300.0])


def test_reset_forgets() -> None:
    buffer = make_buffer(2, 2, 3, 2)
    fill(buffer, np.array([3, 3, 3, 3]))
    buffer.reset()
    assert not buffer.full and buffer.pos == 0
    assert not buffer.trajectories().alive.any()
    fill(buffer, np.array([1, 1, 1, 1]))
    assert buffer.trajectories().alive.sum() == 4


def test_reading_leaves_the_buffer_alone() -> None:
    buffer = make_buffer(2, 2, 3, 2)
    fill(buffer, np.array([3, 2, 3, 1]))
    before = buffer.trajectories()
    before.states[:] = 0.0
    again = buffer.trajectories()
    list(buffer.get())
    for name in ("states", "actions", "rewards", "alive", "terminated", "observations"):
        np.testing.assert_array_equal(getattr(buffer.trajectories(), name), getattr(again, name))
    assert np.any(again.states != 0.0)


def test_buffer_size_is_a_multiple_of_the_horizon() -> None:
    with pytest.raises(ValueError, match=r"buffer_size \(10\) must be a multiple of the horizon \(4\)"):
        TrajectoryBuffer(10, VECTOR, ACTION, horizon=4)
    assert isinstance(make_buffer(1, 1, 4, 1), RolloutBuffer)


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["array", "dict"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
def test_minibatches_of_living_steps(batch_size: int | None, space: Any) -> None:
    lengths = np.array([3, 1, 2, 3])
    buffer = make_buffer(2, 2, 3, 2, space)
    with pytest.raises(AssertionError, match="not full"):
        next(buffer.get())
    fill(buffer, lengths, space)
    batches: list[Any] = list(buffer.get(batch_size))
    assert len(batches) == (1 if batch_size is None else -(-lengths.sum() // batch_size))
    assert all(len(batch.actions) <= (batch_size or 9) for batch in batches)
    labels = np.concatenate([batch.actions[:, 0].numpy() for batch in batches]) * 1000.0
    expected = np.concatenate([100.0 * i + np.arange(length) for i, length in enumerate(lengths)])
    np.testing.assert_allclose(np.sort(labels), expected, atol=1e-2)
    first = batches[0]
    vectors = first.observations["a"] if isinstance(space, spaces.Dict) else first.observations
    np.testing.assert_allclose(vectors[:, 0].numpy(), first.actions[:, 0].numpy() * 1000.0, rtol=1e-5)
    assert first.advantages.shape == first.returns.shape == (len(first.actions),)


def test_map_observations() -> None:
    array = np.arange(3)
    np.testing.assert_array_equal(map_observations(lambda a: a + 1, array), [1, 2, 3])
    mapped = map_observations(lambda a: a * 2, {"x": array, "y": array + 1})
    assert isinstance(mapped, dict)
    np.testing.assert_array_equal(mapped["y"], [2, 4, 6])


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["array", "dict"])
def test_concatenation(space: Any) -> None:
    """Along the conditions; fewer samples leave empty slots."""
    large, small = make_buffer(6, 1, 3, 2, space), make_buffer(4, 1, 3, 2, space)
    fill(large, np.array([3, 2, 3, 1, 3, 3]), space)
    fill(small, np.array([2, 3, 1, 3]), space)
    parts = [large.trajectories(), small.trajectories(), large.trajectories()]
    joined = concatenate(parts)
    ours: Any
    theirs: Any
    assert joined.alive.shape == (6, 3, 3)
    for i, part in enumerate(parts):
        rows, n = slice(2 * i, 2 * i + 2), part.alive.shape[1]
        for name in ("states", "actions", "rewards", "alive", "terminated"):
            np.testing.assert_array_equal(getattr(joined, name)[rows, :n], getattr(part, name))
        ours, theirs = joined.observations, part.observations
        for key in space.spaces if isinstance(space, spaces.Dict) else ():
            np.testing.assert_array_equal(ours[key][rows, :n], theirs[key])
        if not isinstance(space, spaces.Dict):
            np.testing.assert_array_equal(ours[rows, :n], theirs)
    assert not joined.alive[2:4, 2].any()
    assert np.all(np.isnan(joined.returns[2:4, 2])) and np.isfinite(np.delete(joined.returns[2:4], 2, 1)).all()


def test_concatenation_of_one() -> None:
    buffer = make_buffer(2, 1, 3, 2)
    fill(buffer, np.array([3, 2]))
    part = buffer.trajectories()
    for name in ("states", "actions", "rewards", "alive", "terminated", "observations"):
        np.testing.assert_array_equal(getattr(concatenate([part]), name), getattr(part, name))


# ---------------------------------------------------------------------- as collected


def test_starts_of_trajectories_are_marked() -> None:
    model = small_mdgps()
    model.learn(1)
    starts = model.rollout_buffer.episode_starts.reshape(-1, HORIZON)
    assert np.all(starts[:, 0] == 1.0) and np.all(starts[:, 1:] == 0.0)


def test_samples_of_a_condition_share_their_start() -> None:
    model = small_mdgps(vec_env(3), n_conditions=4, samples_per_condition=3)
    model.learn(1)
    starts = model.rollout_buffer.trajectories().states[:, :, 0]
    np.testing.assert_array_equal(starts, np.repeat(starts[:, :1], 3, axis=1))
    assert len(np.unique(starts[:, 0, 0])) == 4


def test_what_follows_an_action_beyond_the_mean_is_its_advantage() -> None:
    """In the buffer's own places, also where slots stay empty and trajectories die."""
    model = small_mdgps(vec_env(3, lambda: PointMass(death=(4, 12))), n_conditions=2, samples_per_condition=4, gamma=0.9)
    model.learn(1)
    buffer, sampled = model.rollout_buffer, model.rollout_buffer.trajectories()
    rewards = np.where(buffer.alive, buffer.rewards, 0.0)
    for row, column in np.argwhere(buffer.alive):
        following = rewards[row : row - row % HORIZON + HORIZON, column]
        assert buffer.returns[row, column] == pytest.approx(following @ 0.9 ** np.arange(len(following)), rel=1e-5)
    returns, values, advantages = (buffer._fold(getattr(buffer, name)) for name in ("returns", "values", "advantages"))
    np.testing.assert_allclose(returns, values + advantages, atol=1e-5)
    np.testing.assert_allclose(np.where(sampled.alive, advantages, 0.0).sum(1), 0.0, atol=1e-4)
    assert not np.any(buffer.returns[~buffer.alive]) and np.ptp(advantages[sampled.alive]) > 0.1


@pytest.mark.parametrize("make", [lambda: PointMass(death=(5, 6)), lambda: limited(5)], ids=["death", "time limit"])
def test_last_observations_are_those_before_the_automatic_reset(make: Any) -> None:
    model = small_mdgps(make(), horizon=5)
    model.learn(1)
    sampled = model.rollout_buffer.trajectories()
    x, u = sampled.states[:, :, -2], np.clip(sampled.actions[:, :, -1], -1.0, 1.0)
    expected = x + 0.1 * np.stack([x[..., 1], 2.0 * u[..., 0]], -1)
    np.testing.assert_allclose(sampled.states[:, :, -1], expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(sampled.observations)[:, :, -1], expected, atol=1e-5)
