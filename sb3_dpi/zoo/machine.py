"""What RL Zoo needs of a machine and finds missing only after its work, or in a traceback: packages, a display."""

import contextlib
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec

import gymnasium as gym

from sb3_dpi.common.displays import DISPLAYS, DRIVER, draw_off_screen
from sb3_dpi.zoo.hyperparams import ZOO_HINT

NOT_IN_EXTRA = ("optunahub", "tensorboard", "wandb")


def check_packages(names: Sequence[str]) -> None:
    """Look for packages; those that are missing are named with what installs them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        others = [name for name in missing if name in NOT_IN_EXTRA]
        hint = ZOO_HINT if len(others) < len(missing) else "Install what is missing with:"
        together = " and " if others and hint == ZOO_HINT else " "
        hint = f"{hint}{together}pip install {' '.join(others)}" if others else hint
        raise ImportError(f"{' and '.join(missing)} not found. {hint}")


def packages_of_training(given: Namespace) -> list[str]:
    """Name the packages that a training needs before its end."""
    search = given.optimize_hyperparameters
    wanted = {
        "pandas": search,
        "matplotlib": search and not given.no_optim_plots,
        "optunahub": search and given.sampler == "auto",
        "tensorboard": given.tensorboard_log,
        "wandb": given.track,
    }
    return [name for name, is_needed in wanted.items() if is_needed]


def check_rendering(env_id: str, window: bool = False) -> None:
    """Render one frame, so that what is missing for a window, or for frames off screen, is known before any work is done."""
    if window and sys.platform.startswith("linux") and not any(os.environ.get(name) for name in (*DISPLAYS, DRIVER)):
        raise ValueError("There is no display for a window: add --no-render, or use record_video, which needs none")
    draw_off_screen()  # for good: RL Zoo renders later
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gym.make(env_id, render_mode="rgb_array")
            env.reset()
            env.render()
    except TypeError:
        # RL Zoo makes it with arguments that are not known here
        return
    except Exception as error:
        text, hint = str(error).rstrip("."), ZOO_HINT
        if env_id in gym.registry and "mujoco" in str(gym.registry[env_id].entry_point):
            hint = "MuJoCo needs OpenGL: without a display set MUJOCO_GL=egl (needs libegl1) or MUJOCO_GL=osmesa (libosmesa6)"
        raise ValueError(f"{env_id} cannot be rendered here ({text}). {hint}") from error
    with contextlib.suppress(Exception):
        env.close()
