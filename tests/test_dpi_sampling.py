"""How DPI takes steps: memory, warm-up, blocks, and the noise that it explores with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms import kept
from algorithms import small_dpi as small
from dummy_envs import ITERATION as STEPS
from dummy_envs import counters, limited, vec_env
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_dpi import DPI
from sb3_dpi.common.replay_memory import ReplayMemory
from sb3_dpi.dpi import dpi as dpi_module
from sb3_dpi.world_model import types

# ---------------------------------------------------------------------- memory


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
    monkeypatch.setattr(dpi_module, "RECENT", 500)
    monkeypatch.setattr(types, "JUDGED_BY", 500)
    read = []
    take = ReplayMemory.take
    monkeypatch.setattr(ReplayMemory, "take", lambda self, rows: (read.append(len(rows)), take(self, rows))[1])

    def rows_of_a_block() -> int:
        read.clear()
        model.learn(STEPS, reset_num_timesteps=False)
        return sum(read)

    model = small(early_reset=0).learn(1_200 // STEPS * STEPS)
    before = rows_of_a_block()
    untrained(model).learn(2_000, reset_num_timesteps=False)
    del model.train
    model.steps_since_training = 0
    assert rows_of_a_block() == pytest.approx(before, rel=0.01)


def test_warm_up_ends_early_where_episodes_are_short() -> None:
    model = small(vec_env(1, lambda: limited(5)), learning_starts=None).learn(1)
    assert model.num_timesteps == 25 and model.n_iterations == 0
    model = small(vec_env(1, lambda: limited(5)), learning_starts=None).learn(300)
    assert model.n_iterations > 0 and np.abs(kept(model)[0].actions[:125]).max() > 0.97
    model = untrained(small(vec_env(1, lambda: limited(500)), learning_starts=None))
    model.learn(2000)
    assert model.num_timesteps == 1000 + 25 * STEPS


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
    model.learn(1000)
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


def test_nothing_follows_the_newest_step() -> None:
    """Of a ring that is full, though its oldest step begins alike; elsewhere what belongs to the same episode does."""
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    buffer, flat = ReplayBuffer(8, space, space, n_envs=2), np.zeros((2, 1))
    for t in range(6):  # four places an environment: steps 2 to 5 stay, 4 and 5 in front
        buffer.add(flat, flat, flat, np.zeros(2), np.array([t == 3, False]), [{}, {}])
    rows, same = ReplayMemory(buffer, lambda obs: obs).follows(np.arange(8))
    assert rows.tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    assert same.tolist() == [True, True, False, False, True, True, False, True]
