"""Logged data for tests: what a point mass or another task was seen to do, and how files hold it."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from dummy_envs import POINT_MASS_LIMIT, limited

from sb3_dpi.data import Episode, Episodes


def sampled(
    n: int = 6, env: gym.Env[Any, Any] | None = None, seed: int = 0, act: Callable[[Any], np.ndarray] | None = None
) -> Episodes:
    """:return: episodes of uniform actions, or of what a policy does"""
    env = limited(POINT_MASS_LIMIT) if env is None else env
    env.action_space.seed(seed)
    episodes = []
    for i in range(n):
        seen, steps, ended = [env.reset(seed=seed + i)[0]], [], False
        while not ended:
            action = env.action_space.sample() if act is None else act(seen[-1])
            obs, reward, terminated, truncated, _ = env.step(action)
            seen.append(obs)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        observations = {key: np.array([obs[key] for obs in seen]) for key in seen[0]} if isinstance(seen[0], dict) else seen
        columns = [np.array(column) for column in zip(*steps, strict=True)]
        episodes.append(Episode(observations if isinstance(observations, dict) else np.array(observations), *columns))
    return Episodes(tuple(episodes), "sampled", env.observation_space, env.action_space)  # type: ignore[arg-type]


def assert_same(first: Episodes, second: Episodes) -> None:
    assert len(first) == len(second)
    for one, other in zip(first.episodes, second.episodes, strict=True):
        for name in ("observations", "actions", "rewards", "terminated", "truncated"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)


HEADER = ["episode", "t", "obs_0", "obs_1", "action_0", "reward", "terminated", "truncated"]


def write_csv(
    path: Path,
    episodes: Episodes,
    last_row: bool = True,
    order: Callable[[list[Any]], Any] = list,
    left_out: Sequence[str] = (),
) -> None:
    """A file with the last observation of each episode in a row without action, or in columns of what came next."""
    rows = []
    for number, each in enumerate(episodes.episodes):
        seen = np.asarray(each.observations)
        for t in range(len(each)):
            after = [] if last_row else seen[t + 1].tolist()
            rows.append(
                [number, t, *seen[t], *each.actions[t], each.rewards[t], each.terminated[t], each.truncated[t], *after]
            )
        if last_row:
            rows.append([number, len(each), *seen[-1], "", "", "", ""])
    header = [*HEADER, *([] if last_row else ["next_obs_0", "next_obs_1"])]
    kept = [i for i, name in enumerate(header) if name not in left_out]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([[row[i] for i in kept] for row in (header, *order(rows))])
