"""Early resets: one layer above the environments that step the copies, beneath all wrappers."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from dummy_envs import Counter, DictPointMass, counters, limited, vec_env
from leaving import Batched, Seen, leaving, long_counters, steps
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from sb3_dpi.common.early_resets import EarlyReset, ResetLayer, as_early_reset, counted_infos, install

# ---------------------------------------------------------------------- the layer


def test_an_episode_is_left_at_its_limit() -> None:
    layer = install(counters())
    layer.reset()
    layer.limit_episodes(5)
    seen = steps(layer, 6)
    observations, rewards, dones, infos = seen[4]
    # the first copy ended by its time limit after 3 steps; it has two steps of its second episode
    assert dones.tolist() == [False, True, True, True]
    assert observations.tolist() == [[0, 1, 2], [1, 1, 0], [2, 1, 0], [3, 1, 0]]
    np.testing.assert_array_equal(rewards, 1.0)
    for i in (1, 2, 3):
        assert infos[i]["early_reset"] and infos[i]["TimeLimit.truncated"]
        np.testing.assert_array_equal(infos[i]["terminal_observation"], [i, 0, 5])
    assert layer.lengths.tolist() == [3, 5, 5, 5]
    _, _, dones, infos = seen[2]
    assert dones.tolist() == [True, False, False, False] and "early_reset" not in infos[0]
    assert layer.steps.tolist() == [3, 1, 1, 1] and not seen[5][2].any()


def test_a_death_at_the_limit_is_a_death() -> None:
    layer = install(DummyVecEnv([lambda: Counter(0, (-5,))]))
    layer.reset()
    layer.limit_episodes(5)
    _, _, dones, infos = steps(layer, 5)[-1]
    assert dones[0] and not infos[0]["TimeLimit.truncated"] and "early_reset" not in infos[0]


def test_limits_are_drawn() -> None:
    """Half of the median at least; one of two only after the whole, one of four after twice as much."""
    layer = install(long_counters(4, 10_000))
    layer.reset()
    layer.limit_episodes(16, np.random.default_rng(1))
    lengths: list[int] = []
    for _, _, dones, _ in (steps(layer, 1)[0] for _ in range(40_000)):
        lengths.extend(layer.lengths[dones])
    found = np.array(lengths)
    assert found.min() in (8, 9)
    for limit in (16, 32, 64):
        assert (found > limit).mean() == pytest.approx(8 / limit, rel=0.1)


def test_limits_change_while_episodes_go_on() -> None:
    layer = install(long_counters(2))
    layer.reset()
    layer.limit_episodes(10)
    assert not any(dones.any() for _, _, dones, _ in steps(layer, 6))
    layer.limit_episodes(None)
    assert not any(dones.any() for _, _, dones, _ in steps(layer, 20))
    layer.limit_episodes(30)
    assert [bool(dones.all()) for _, _, dones, _ in steps(layer, 5)] == [False, False, False, True, False]
    layer.limit_episodes(0)
    assert not any(dones.any() for _, _, dones, _ in steps(layer, 50))


def test_the_same_generator_gives_the_same_limits() -> None:
    found = []
    for _ in range(2):
        layer = install(long_counters(3))
        layer.reset()
        layer.limit_episodes(6, np.random.default_rng(5))
        found.append([dones.tolist() for _, _, dones, _ in steps(layer, 60)])
    assert found[0] == found[1] and np.array(found[0]).any()


def test_episodes_whose_limit_lies_beyond_the_time_limit_count() -> None:
    """Whether an episode counts is known at its start: the mean of those that count is that of all, here of lengths .

    An episode dies after 10 or lasts 40 steps by the toss of a coin; of those that last until their end more would be short.
    """
    coin = np.random.default_rng(0)
    lengths = tuple(int(length) for length in coin.choice([-10, 1000], 4000))
    layer = install(DummyVecEnv([lambda: gym.wrappers.TimeLimit(Counter(0, lengths), 40)]))
    layer.reset()
    layer.limit_episodes(16, np.random.default_rng(1))
    counted, survivors = [], []
    for _ in range(30_000):
        _, _, dones, infos = steps(layer, 1)[0]
        if dones[0]:
            survivors.extend([] if infos[0].get("early_reset", False) else [layer.lengths[0]])
            counted.extend([layer.lengths[0]] if infos[0]["early_reset_counted"] else [])
    assert np.mean(counted) == pytest.approx(25.0, abs=2.5)
    assert np.mean(survivors) < 20.0
    assert len(counted) > 100


def test_the_longest_episode_stands_for_a_time_limit_that_is_not_known() -> None:
    layer = install(DummyVecEnv([lambda: Counter(0, (30, -4))]))
    assert layer.time_limit is None
    layer.reset()
    steps(layer, 34)
    layer.limit_episodes(20)
    _, _, dones, infos = steps(layer, 20)[-1]
    assert dones[0] and infos[0]["early_reset"] and not infos[0]["early_reset_counted"]
    assert not steps(layer, 4)[-1][3][0]["early_reset_counted"], "a limit of 20 lies before 30 steps"
    layer.limit_episodes(31)
    assert steps(layer, 30)[-1][3][0]["early_reset_counted"]


def test_infos_that_count() -> None:
    infos = [{"episode": 1, "is_success": True, "early_reset_counted": False, "x": 2}, {"episode": 3}]
    assert counted_infos(infos) == [{"early_reset_counted": False, "x": 2}, {"episode": 3}]
    assert "episode" in infos[0], "others may read it"


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: VecNormalize(VecMonitor(env)), VecCheckNan])
def test_reset_seeds(wrap: Callable[[VecEnv], VecEnv]) -> None:
    env = wrap(vec_env(3))
    layer = install(env)
    top: VecEnv = layer if env is layer.unwrapped else env
    assert layer.takes_seeds is None
    layer.reset_with_seeds([7, 7, 3])
    top.reset()
    assert [copy.seeds[-1] for copy in layer.envs] == [7, 7, 3] and layer.takes_seeds
    top.reset()
    assert [copy.seeds[-1] for copy in layer.envs] == [None] * 3, "seeds serve once"
    top.seed(5)
    top.reset()
    assert [copy.seeds[-1] for copy in layer.envs] == [5, 6, 7]
    with pytest.raises(ValueError, match="3 environments need as many reset seeds, got 1"):
        layer.reset_with_seeds([1])


def test_environments_that_do_not_take_seeds_are_known() -> None:
    layer = install(Batched())
    layer.reset_with_seeds([1, 2, 3])
    layer.reset()
    assert layer.takes_seeds is False


def test_time_limits() -> None:
    assert install(vec_env(2, lambda: limited(40))).time_limit == 40
    assert install(DummyVecEnv([lambda: limited(40), lambda: limited(60)])).time_limit == 60
    assert install(vec_env(2)).time_limit is None
    assert install(Batched()).time_limit is None


def test_settings() -> None:
    assert as_early_reset(5) == as_early_reset({"after": 5}) == as_early_reset(EarlyReset(5)) == EarlyReset(5, True)
    assert as_early_reset({"after": 5, "spread": False}) == EarlyReset(5, False)
    for given, message in (
        (-1, "early_reset must be at least 0"),
        ({"after": 5, "spred": 1}, "Unknown key 'spred' of early_reset: it has after, spread"),
        ({"spread": True}, "early_reset is not complete"),
        ("often", "early_reset is a EarlyReset or a dictionary of after, spread, got 'often'"),
    ):
        with pytest.raises(ValueError, match=message):
            as_early_reset(given)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what is beneath


def test_dictionaries() -> None:
    layer = install(vec_env(2, DictPointMass))
    layer.reset()
    layer.limit_episodes(3)
    before = steps(layer, 2)[-1][0]
    observations, _, dones, infos = steps(layer, 1)[0]
    assert dones.all()
    for i, environment in enumerate(layer.envs):
        assert {key: array[i].tolist() for key, array in observations.items()} == {
            key: array.tolist() for key, array in environment.observation().items()
        }
        assert infos[i]["terminal_observation"].keys() == observations.keys()
        assert infos[i]["terminal_observation"]["state"][0] == pytest.approx(
            before["state"][i, 0] + 0.1 * before["state"][i, 1], abs=1e-6
        )


def test_subprocesses() -> None:
    env = SubprocVecEnv([lambda i=i: gym.wrappers.TimeLimit(Counter(i, (1000,)), 40) for i in range(2)])  # type: ignore[misc]
    try:
        layer = install(VecMonitor(env))
        assert layer.can_reset_one and layer.time_limit == 40
        layer.reset_with_seeds([4, 4])
        layer.reset()
        assert layer.takes_seeds
        layer.limit_episodes(4)
        observations, _, dones, infos = steps(layer, 4)[-1]
        assert dones.all() and observations.tolist() == [[0, 1, 0], [1, 1, 0]]
        assert [info["terminal_observation"].tolist() for info in infos] == [[0, 0, 4], [1, 0, 4]]
    finally:
        env.close()


def test_subprocesses_whose_monitors_forbid_early_resets() -> None:
    env = SubprocVecEnv([lambda: Monitor(limited(12), allow_early_resets=False)])
    try:
        layer = install(env)
        layer.reset()
        with pytest.warns(UserWarning, match="cannot reset one copy"):
            layer.limit_episodes(4)
        assert [bool(dones[0]) for _, _, dones, _ in steps(layer, 12)] == [False] * 11 + [True]
    finally:
        env.close()


@pytest.mark.parametrize("outer", [False, True])
def test_monitors_that_forbid_early_resets(outer: bool) -> None:
    """Also where another Monitor that allows them is around: the warning comes once, learning goes on."""

    def make() -> gym.Env:
        env = Monitor(limited(12), allow_early_resets=False)
        return Monitor(env) if outer else env

    model = leaving(vec_env(2, make))
    with pytest.warns(UserWarning, match=r"cannot reset one copy.*early_reset=0"):
        model.learn(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, reset_num_timesteps=False)  # a reset of all is an early one as well
    assert [episode["l"] for episode in model.ep_info_buffer] == [12] * len(model.ep_info_buffer)
    assert len(model.ep_info_buffer) > 0


def test_a_simulator_of_a_batch() -> None:
    """It has no get_attr, resets all copies at once and uses its arrays again."""
    env, seen = Batched(), Seen()
    model = leaving(env)
    with pytest.warns(UserWarning, match="Batched cannot reset one copy"):
        model.learn(48, callback=seen)
    assert np.array(seen.observations)[:, 0, 0].tolist() == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    # PPO keeps the observation before a step after that step was taken
    assert model.rollout_buffer.observations.reshape(3, 16, 2)[0, :, 0].tolist() == [
        0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0,
    ]  # fmt: skip
    assert model.rollout_buffer.episode_starts[:, 0].tolist() == [1, 0, 0, 0, 0] * 3 + [1]


def test_arrays_of_the_environments_are_not_changed() -> None:
    class Reusing(Batched):
        """Resets one copy."""

        resets_single_copies = True

        def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
            """:return: a first observation, and what else is to say"""
            (i,) = indices
            self.t[i] = 0
            return [(np.array([0.0, 7.0]), {"began": i})]

    env = Reusing(2)
    layer = install(env)
    layer.reset()
    layer.limit_episodes(3)
    observations, _, dones, infos = steps(layer, 3)[-1]
    assert observations.tolist() == [[0.0, 7.0]] * 2 and dones.all()
    assert env.observations.tolist() == [[3.0, 0.0]] * 2 and not env.dones.any()
    assert infos[1]["terminal_observation"].tolist() == [3.0, 0.0]
    assert layer.reset_infos == [{"began": 0}, {"began": 1}]
    steps(layer, 1)
    assert observations.tolist() == [[0.0, 7.0]] * 2 and infos[1]["terminal_observation"].tolist() == [3.0, 0.0]


def test_it_is_not_noticed() -> None:
    base = long_counters(2)
    base.note = "of a user"  # type: ignore[attr-defined]
    env = VecNormalize(base)
    layer = install(env)
    assert isinstance(layer, ResetLayer) and isinstance(layer, DummyVecEnv) and not isinstance(layer, VecEnvWrapper)
    assert env.unwrapped is layer.unwrapped is base
    for asked in (layer, env):
        assert asked.note == "of a user" and asked.envs is base.envs and asked.num_envs == 2
        assert asked.get_attr("number") == [0, 1] and asked.env_method("observation", indices=1)[0][0] == 1.0
        assert asked.has_attr("number") and not asked.has_attr("nonsense")
        assert asked.env_is_wrapped(Monitor) == [False, False] and asked.render_mode is None
        with pytest.raises(AttributeError):
            _ = asked.nonsense
        asked.set_attr("number", 5, indices=0)
        assert base.envs[0].number == 5
        asked.set_attr("number", 0, indices=0)
    layer.set_options({"a": 1})
    assert base._options == [{"a": 1}] * 2
    assert layer.getattr_depth_check("note", True) is not None and layer.getattr_depth_check("note", False) is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: cloudpickle.loads(cloudpickle.dumps(layer))])
def test_copies(duplicate: Callable[[ResetLayer], ResetLayer]) -> None:
    layer = install(DummyVecEnv([lambda: Counter(0, (1000,))]))
    layer.reset()
    layer.limit_episodes(5, np.random.default_rng(0))
    steps(layer, 1)
    other = duplicate(layer)
    assert type(other) is ResetLayer and other.unwrapped is not layer.unwrapped
    assert [d.tolist() for _, _, d, _ in steps(other, 20)] == [d.tolist() for _, _, d, _ in steps(layer, 20)]
    assert pickle.loads(pickle.dumps(install(Batched()))).num_envs == 3
