"""Observations as the environments returned them, beneath VecNormalize, transposed images and dictionaries."""

from typing import Any

import numpy as np
import pytest
from dummy_envs import DictPointMass, ImagePointMass, counters, vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize, VecTransposeImage

from sb3_dpi.common.original_observations import (
    UnclippedTerminals,
    before_reset,
    original_obs,
    original_rewards,
    step_unclipped,
)

ACTIONS = np.zeros((4, 1), np.float32)


def narrow(env: Any = None, **kwargs: Any) -> VecNormalize:
    """:return: a wrapper that clips much of what it shows"""
    wrapped = VecNormalize(counters() if env is None else env, clip_obs=0.2, **kwargs)
    wrapped.reset()
    return wrapped


class Broken(VecEnvWrapper):
    """Fails in its step."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        raise RuntimeError("broken")


class TestSteps:
    """Steps whose terminal observations are not clipped."""

    def test_terminal_observations_can_be_unnormalised(self) -> None:
        env = narrow()
        for _ in range(3):
            obs, _, dones, infos = step_unclipped(env, env, ACTIONS)
            assert np.abs(obs).max() <= 0.2 and env.clip_obs == 0.2
        assert dones.tolist() == [True, False, False, False]
        shown = infos[0]["terminal_observation"]
        assert np.abs(shown).max() > 0.2
        np.testing.assert_allclose(env.unnormalize_obs(shown), [0.0, 0.0, 3.0], atol=1e-5)

    def test_everything_else_is_that_of_a_step(self) -> None:
        ours, theirs = narrow(), narrow()
        for _ in range(12):
            left, right = step_unclipped(ours, ours, ACTIONS), theirs.step(ACTIONS)
            for a, b in zip(left[:3], right[:3], strict=True):
                np.testing.assert_array_equal(a, b)
            for mine, other in zip(left[3], right[3], strict=True):
                assert mine.keys() == other.keys() and mine["TimeLimit.truncated"] == other["TimeLimit.truncated"]

    @pytest.mark.parametrize("normalizer", [None, "rewards only"])
    def test_without_normalised_observations_it_is_a_step(self, normalizer: str | None) -> None:
        env: Any = narrow(norm_obs=False) if normalizer else counters()
        if normalizer is None:
            env.reset()
        for _ in range(3):
            obs, _, _, infos = step_unclipped(env, None if normalizer is None else env, ACTIONS)
        np.testing.assert_array_equal(obs[1], [1.0, env.get_attr("episode")[1], 3.0])
        np.testing.assert_array_equal(infos[0]["terminal_observation"][2], 3.0)

    def test_the_limit_holds_again_after_an_error(self) -> None:
        env = narrow(Broken(counters()))
        with pytest.raises(RuntimeError, match="broken"):
            step_unclipped(env, env, ACTIONS)
        assert env.clip_obs == 0.2

    def test_keys_that_are_not_normalised_are_not_clipped(self) -> None:
        env = narrow(vec_env(2, lambda: DictPointMass(("position", "velocity"))), norm_obs_keys=["velocity"])
        for _ in range(30):
            obs, *_ = step_unclipped(env, env, np.ones((2, 1), np.float32))
        assert np.abs(obs["velocity"]).max() <= 0.2 < np.abs(obs["position"]).max()  # type: ignore[call-overload]

    def test_the_wrapper_steps_so_for_loops_of_others(self) -> None:
        inner = narrow()
        env = UnclippedTerminals(inner, inner)
        assert env.num_envs == 4 and np.abs(env.reset()).max() <= 0.2
        for _ in range(4):  # the second episode of the first one
            obs, rewards, dones, infos = env.step(ACTIONS)
        assert np.abs(obs).max() <= 0.2 and rewards.shape == dones.shape == (4,) and inner.clip_obs == 0.2
        np.testing.assert_allclose(inner.unnormalize_obs(infos[0]["terminal_observation"])[2], 4.0, atol=1e-5)


class TestOriginals:
    """What the environments returned."""

    def test_observations_and_rewards(self) -> None:
        env = narrow()
        obs, rewards, _, _ = step_unclipped(env, env, ACTIONS)
        episodes = env.get_attr("episode")
        np.testing.assert_allclose(original_obs(env, env, obs), [[i, episodes[i], 1.0] for i in range(4)])
        np.testing.assert_array_equal(original_rewards(env, rewards), 1.0)
        assert not np.allclose(rewards, 1.0)

    def test_without_a_wrapper_they_are_what_they_are(self) -> None:
        env, obs, rewards = counters(), np.ones((4, 3)), np.ones(4)
        assert original_obs(env, None, obs) is obs and original_rewards(None, rewards) is rewards

    @pytest.mark.parametrize("keys", [None, ("image", "position")])
    def test_images_are_transposed_as_the_policy_sees_them(self, keys: tuple[str, ...] | None) -> None:
        make = ImagePointMass if keys is None else lambda: DictPointMass(keys)
        inner = VecNormalize(vec_env(2, make), norm_obs_keys=None if keys is None else ["position"], norm_obs=keys is not None)
        env = VecTransposeImage(inner)
        original: Any = original_obs(env, inner, env.reset())
        states = np.stack(inner.get_attr("state"))
        image = original if keys is None else original["image"]
        assert image.shape == (2, 1, 36, 36) and image.dtype == np.uint8
        if keys is not None:
            np.testing.assert_allclose(original["position"], states[:, :1], atol=1e-6)
            np.testing.assert_array_equal(image[:, 0, 0, 0], (128 + 60 * states[:, 0]).astype(np.uint8))

    @pytest.mark.parametrize("normalise", [False, True])
    def test_before_a_reset(self, normalise: bool) -> None:
        """Terminal observations where an episode has ended, the others as they are; what came in stays what it was."""
        env: Any = narrow() if normalise else counters()
        normalizer = env if normalise else None
        if not normalise:
            env.reset()
        for _ in range(3):
            obs, _, dones, infos = step_unclipped(env, normalizer, ACTIONS)
        after: Any = original_obs(env, normalizer, obs)
        kept = np.array(after)
        followed: Any = before_reset(normalizer, after, dones, infos)
        assert kept[0, 2] == 0.0, "a new episode"
        np.testing.assert_allclose(followed[:, 2], 3.0, atol=1e-5)
        np.testing.assert_allclose(followed[1:], kept[1:])
        np.testing.assert_array_equal(after, kept)

    def test_dictionaries_before_a_reset(self) -> None:
        class Short(DictPointMass):
            def __init__(self) -> None:
                super().__init__(("position", "velocity"))
                self.death = (2, 3)

        env = narrow(vec_env(2, Short))
        states = np.stack(env.get_attr("state"))
        for _ in range(2):
            states = states + 0.1 * np.stack([states[:, 1], 0.0 * states[:, 1]], -1)
            obs, _, dones, infos = step_unclipped(env, env, np.zeros((2, 1), np.float32))
        assert dones.all()
        followed: Any = before_reset(env, original_obs(env, env, obs), dones, infos)
        np.testing.assert_allclose(followed["position"], states[:, :1], atol=1e-5)
        np.testing.assert_allclose(followed["velocity"], states[:, 1:], atol=1e-5)
