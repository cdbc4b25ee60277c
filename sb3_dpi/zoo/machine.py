"""What RL Zoo needs of a machine and finds missing only after its work, or in a traceback: packages, a display, the hub."""

import contextlib
import importlib
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec

import gymnasium as gym

from sb3_dpi.zoo.hyperparams import ZOO_HINT

NOT_IN_EXTRA = ("optunahub", "tensorboard", "wandb")


def check_packages(names: Sequence[str]) -> None:
    """
    Look for packages.

    :param names: Of their modules
    :raises ImportError: If any is missing; the message says how to install it
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        others = [name for name in missing if name in NOT_IN_EXTRA]
        hint = ZOO_HINT if len(others) < len(missing) else "Install what is missing with:"
        together = " and " if others and hint == ZOO_HINT else " "
        hint = f"{hint}{together}pip install {' '.join(others)}" if others else hint
        raise ImportError(f"{' and '.join(missing)} not found. {hint}")


def packages_of_training(given: Namespace) -> list[str]:
    """
    Name the packages that a training needs before its end.

    :param given: The arguments of ``train``, as RL Zoo has parsed them
    :return: Their modules
    """
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
    """
    Render one frame, so that what is missing for it is known before any work is done.

    :param env_id: Id of the task in Gymnasium
    :param window: Whether a window will be opened; else frames are drawn off screen
    :raises ValueError: If it cannot be rendered; the message says what to do
    """
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if window and sys.platform.startswith("linux") and not any(os.environ.get(name) for name in displays):
        raise ValueError("There is no display for a window: add --no-render, or use record_video, which needs none")
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


def check_hub(command: str) -> None:
    """
    Look for what RL Zoo's way to the Hugging Face hub breaks on.

    :param command: ``"push_to_hub"`` or ``"load_from_hub"``
    :raises ValueError: If it cannot work; the message says what to do instead
    """
    if command == "push_to_hub":
        if not hasattr(importlib.import_module("huggingface_sb3.push_to_hub"), "generate_metadata"):
            raise ValueError(
                "push_to_hub of the installed rl_zoo3 does not go with the installed sb3-team-hf-integration (no "
                "generate_metadata there): upload the agent's folder with: hf upload REPO FOLDER"
            )
        return
    if os.environ.get("TRUST_REMOTE_CODE", "").lower() not in ("y", "yes", "t", "true", "on", "1"):
        raise ValueError(
            "Agents are pickles, which run code when they are loaded: set TRUST_REMOTE_CODE=True to download those you trust"
        )
    error = importlib.import_module("huggingface_hub.errors").HfHubHTTPError
    if not issubclass(error, importlib.import_module("requests").HTTPError):
        print(
            "With the installed huggingface_hub RL Zoo cannot download an agent that was trained without VecNormalize "
            "(it stops at the missing vec_normalize.pkl)"
        )
