"""A film strip of one episode, where the environment can draw itself."""

import os
import sys
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dpi.common.displays import DISPLAYS, off_screen
from sb3_dpi.common.environments import Environment
from sb3_dpi.diagnose.episodes import Stage, make, policy_act
from sb3_dpi.diagnose.subject import Subject
from sb3_dpi.trajopt.types import FloatArray

FRAMES = 8
"""Evenly over the episode, its end included."""
WIDTH = 240
"""Pixels of a frame at most."""
HEADLESS = "MuJoCo cannot draw without a display: set MUJOCO_GL=egl (a GPU) or MUJOCO_GL=osmesa (the CPU) and run this again"


@dataclass(frozen=True)
class Film:
    """Pictures of one episode."""

    frames: tuple[tuple[int, np.ndarray], ...]
    """time step and picture ``[h, w, 3]``"""
    note: str = ""
    """why there are none"""


def film(subject: Subject, environment: Environment, seed: int, length: int) -> Film:
    """
    Play an episode once more, and take pictures.

    :param subject: the policy
    :param environment: an id, an environment or a function that makes one
    :param seed: of the reset
    :param length: steps of the episode
    :return: the pictures, or why there are none
    """
    with off_screen():
        return _film(subject, environment, seed, length)


def _film(subject: Subject, environment: Environment, seed: int, length: int) -> Film:
    made: gym.Env | None = None
    try:
        made = make(environment, "rgb_array")
        if reason := _why_not(made):
            return Film((), reason)
        _follow(made.unwrapped)
        return Film(tuple(_take(subject, Stage(subject, made), seed, length)))
    except Exception as error:  # whatever a renderer says
        return Film((), f"This environment could not be drawn: {' '.join(str(error).split())[:200] or type(error).__name__}")
    finally:
        if made is not None and made is not environment:
            made.close()


def _why_not(made: gym.Env) -> str:
    if made.render_mode != "rgb_array":
        offered = made.metadata.get("render_modes") or ()
        if "rgb_array" not in offered:
            return "This environment draws no pictures: 'rgb_array' is not among its render modes"
        return "This environment was made without pictures: make it with render_mode='rgb_array'"
    headless = sys.platform.startswith("linux") and not {*DISPLAYS, "MUJOCO_GL"} & set(os.environ)
    return HEADLESS if headless and hasattr(made.unwrapped, "mujoco_renderer") else ""


def _follow(inner: Any) -> None:
    """Let MuJoCo's camera go with a body that runs, where there is one that does."""
    if hasattr(inner, "mujoco_renderer"):
        names = [inner.model.camera(i).name for i in range(inner.model.ncam)]
        if "track" in names:
            inner.mujoco_renderer.camera_id = names.index("track")


def _take(subject: Subject, stage: Stage, seed: int, length: int) -> list[tuple[int, np.ndarray]]:
    times = set(np.linspace(0, length - 1, FRAMES).astype(int).tolist())
    inner, frames = policy_act(subject, True), []

    def act(t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
        if t in times and t < length:  # behind the end a new episode has begun
            frames.append((t, _small(np.asarray(stage.made.render()))))
        return inner(t, seen, states)

    stage.play(act, seed, length)
    return frames


def _small(frame: np.ndarray) -> np.ndarray:
    step = max(-(-frame.shape[1] // WIDTH), 1)
    height, width = (size // step * step for size in frame.shape[:2])
    blocks = frame[:height, :width, :3].reshape(height // step, step, width // step, step, -1)
    small: np.ndarray = blocks.mean((1, 3)).astype(np.uint8)
    return small
