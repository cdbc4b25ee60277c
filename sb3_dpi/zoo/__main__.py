"""RL Zoo's command line with the algorithms of this package in it: ``python -m sb3_dpi.zoo train|enjoy|...``.

What RL Zoo needs and does not find is looked for here before it begins, and named in one line.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import os
import pickle
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dpi.zoo import resolved
from sb3_dpi.zoo.hyperparams import ZOO_HINT, resolve_hyperparams
from sb3_dpi.zoo.register import ALGORITHMS, closest, register_algorithms

AGENTS = ("enjoy", "record_video")
PLOTS = ("plot_train", "all_plots", "plot_from_file")
HUB = ("push_to_hub", "load_from_hub")
COMMANDS = ("train", *AGENTS, *PLOTS, *HUB)

USAGE = f"""usage: python -m sb3_dpi.zoo {"|".join((*COMMANDS[:1], *AGENTS, *PLOTS))} [any argument of rl_zoo3]

train           without --conf-file: our hyperparameters for {", ".join(ALGORITHMS)}, RL Zoo's for every other algorithm
                (an id without an entry uses the newest older version of the task, else SB3's defaults with normalized
                observations); -optimize searches for better ones, --trial-id N|best trains with those that were found
enjoy           runs a trained agent; without --folder: the agents in logs/
record_video    writes an mp4 of it
plot_train      shows training episodes;   all_plots, plot_from_file: evaluations; without --exp-folders: those in logs/

The arguments of rl_zoo3: python -m sb3_dpi.zoo train --help"""

PACKAGES = {
    "train": (),
    "enjoy": ("requests",),
    "record_video": ("moviepy",),
    **dict.fromkeys(PLOTS, ("matplotlib", "pandas", "seaborn")),
    "push_to_hub": (),
    "load_from_hub": ("requests",),
}
NOT_IN_EXTRA = ("optunahub", "tensorboard", "wandb")
NO_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
"""Backends of Matplotlib that draw into files only"""


def _parse(command: str, arguments: list[str]) -> argparse.Namespace:
    """Read the few arguments of RL Zoo that decide what is added or checked here, under their names there."""
    parser = argparse.ArgumentParser(prog=f"python -m sb3_dpi.zoo {command}", add_help=False)
    if command in PLOTS:
        parser.add_argument("-a", "--algo", "--algos", nargs="+", default=[])
        parser.add_argument("-e", "--env", nargs="+", default=[])
        parser.add_argument("-f", "--exp-folder", "--exp-folders", dest="folders", nargs="+", default=[])
        parser.add_argument("-i", "--input")
        return parser.parse_known_args(arguments)[0]
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    if command == "train":
        parser.add_argument("-f", "--log-folder", default="logs")
        parser.add_argument("-conf", "--conf-file")
        parser.add_argument("-optimize", "--optimize-hyperparameters", dest="optimize", action="store_true")
        parser.add_argument("--no-optim-plots", action="store_true")
        parser.add_argument("--sampler")
        parser.add_argument("--storage")
        parser.add_argument("--study-name")
        parser.add_argument("--trial-id")
        parser.add_argument("-tb", "--tensorboard-log")
        parser.add_argument("--track", action="store_true")
    elif command in AGENTS:
        parser.add_argument("-f", "--folder")
        parser.add_argument("--exp-id", type=int, default=0)
        parser.add_argument("--load-best", action="store_true")
        parser.add_argument("--load-checkpoint")
        parser.add_argument("--load-last-checkpoint", action="store_true")
        parser.add_argument("--no-render", action="store_true")
    return parser.parse_known_args(arguments)[0]


def _asks_for_help(arguments: list[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def check_packages(command: str, arguments: list[str]) -> None:
    """
    Look for the packages that a command needs.

    :param command: One of ``COMMANDS``
    :param arguments: Its arguments
    :raises ImportError: If any is missing; the message says how to install it
    """
    names = ["rl_zoo3", *PACKAGES[command]]
    if command == "train" and not _asks_for_help(arguments):
        given = _parse(command, arguments)
        wanted = {
            "optuna": given.optimize or given.trial_id,
            "pandas": given.optimize,
            "matplotlib": given.optimize and not given.no_optim_plots,
            "optunahub": given.optimize and given.sampler == "auto",
            "tensorboard": given.tensorboard_log,
            "wandb": given.track,
        }
        names += [name for name, needed in wanted.items() if needed]
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        others = [name for name in missing if name in NOT_IN_EXTRA]
        hint = ZOO_HINT if len(others) < len(missing) else "Install what is missing with:"
        together = " and " if others and hint == ZOO_HINT else " "
        hint = f"{hint}{together}pip install {' '.join(others)}" if others else hint
        raise ImportError(f"{' and '.join(missing)} not found. {hint}")


def import_custom_envs() -> None:
    """
    Import the user's ``custom_envs``, which RL Zoo would import too, but without a word where that fails.

    :raises ImportError: If it is there and cannot be imported
    """
    if find_spec("custom_envs") is None:
        return
    try:
        importlib.import_module("custom_envs")
    except ImportError as error:
        raise ImportError(f"custom_envs is there but cannot be imported: {error}") from error


def _complete_train(arguments: list[str]) -> list[str]:
    given = _parse("train", arguments)
    _check_env(given.env, given.gym_packages)
    if given.optimize:
        _check_search_space(given.algo)
    completed, lines = arguments, []
    if not given.conf_file:
        choice = resolve_hyperparams(given.algo, given.env)
        lines.append(f"Hyperparameters of {given.algo} for {given.env}: {choice.source}")
        resolved.hyperparams[given.env] = choice.hyperparams
        completed = [*completed, "--conf-file", resolved.__name__]
    if given.trial_id is not None:
        if not (given.storage and given.study_name):
            raise ValueError("--trial-id needs --storage and --study-name: RL Zoo ignores it without them")
        trial, index = importlib.import_module("sb3_dpi.zoo.samplers").find_trial(
            given.storage, given.study_name, given.trial_id
        )
        note = "" if index == str(trial.number) else f", for RL Zoo --trial-id={index}, because it skips 0"
        lines.append(f"Changed by trial {trial.number} of study {given.study_name} (value {trial.value}{note})")
        alone = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        alone.add_argument("--trial-id")
        completed = [*alone.parse_known_args(completed)[1], f"--trial-id={index}"]
    if lines:
        print("\n".join(lines))
    return completed


def _check_search_space(algo: str) -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    from sb3_dpi.zoo.samplers import SEARCH_SPACES

    known = {*HYPERPARAMS_SAMPLER, *SEARCH_SPACES}
    if algo not in known:
        raise ValueError(f"There is no search space of {algo} for -optimize, only of {', '.join(sorted(known))}")


def _check_env(env_id: str, packages: Sequence[str]) -> None:
    import gymnasium as gym

    # They register environments, as RL Zoo's own module does
    for module in ("rl_zoo3.import_envs", *packages):
        importlib.import_module(module)
    if env_id not in gym.registry:
        suggestion = closest(env_id, gym.registry, 3)
        raise ValueError(f"Unknown environment {env_id!r}; {suggestion}" if suggestion else f"Unknown environment {env_id!r}")


def _complete_agent(command: str, arguments: list[str]) -> list[str]:
    given = _parse(command, arguments)
    _check_env(given.env, given.gym_packages)
    _check_agent(command, given)
    if command == "record_video" or not given.no_render:
        check_rendering(given.env, window=command == "enjoy")
    return arguments if given.folder else [*arguments, "--folder", "logs"]


def _check_agent(command: str, given: argparse.Namespace) -> None:
    from rl_zoo3.utils import get_model_path

    folder, env_name = given.folder or "logs", importlib.import_module("huggingface_sb3").EnvironmentName(given.env)
    which = (given.load_best, given.load_checkpoint, given.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            get_model_path(given.exp_id, folder, given.algo, env_name, *which)
    except (AssertionError, ValueError) as error:
        if command == "enjoy" and "rl-trained-agents" in folder:
            check_hub("load_from_hub")
            return
        paths = Path(folder, given.algo).glob(f"{env_name}_*/{env_name}.zip")
        found = sorted((path.parent.name.rpartition("_")[2] for path in paths), key=lambda number: (len(number), number))
        where = f"--exp-id {' or '.join(found)} has one" if found else "train one, or name its folder with -f"
        raise ValueError(f"{error}; {where}") from error


def check_rendering(env_id: str, window: bool = False) -> None:
    """
    Render one frame, so that what is missing for it is known before any work is done.

    :param env_id: Id of the task in Gymnasium
    :param window: Whether a window will be opened; else frames are drawn off screen
    :raises ValueError: If it cannot be rendered; the message says what to do
    """
    import gymnasium as gym

    if window and sys.platform.startswith("linux") and not _has_display():
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
        text, spec = str(error).rstrip("."), gym.registry[env_id]
        hint = ZOO_HINT
        if "mujoco" in str(spec.entry_point):
            hint = "MuJoCo needs OpenGL: without a display set MUJOCO_GL=egl (needs libegl1) or MUJOCO_GL=osmesa (libosmesa6)"
        raise ValueError(f"{env_id} cannot be rendered here ({text}). {hint}") from error
    with contextlib.suppress(Exception):
        env.close()


def _has_display() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def _complete_plot(command: str, arguments: list[str]) -> list[str]:
    given = _parse(command, arguments)
    if command == "plot_from_file":
        _check_plot_file(given.input)
        return arguments
    if command == "plot_train" and importlib.import_module("matplotlib").get_backend().lower() in NO_WINDOWS:
        raise ValueError(
            "plot_train opens a window and writes no file, and there is no display: use all_plots -o and plot_from_file -o, "
            "or the figures of python -m sb3_dpi.compare report"
        )
    folders = given.folders or ["logs"]
    _check_runs(folders, given.algo, given.env)
    if command == "all_plots":
        for folder, algo, env in itertools.product(folders, given.algo, given.env):
            _name_left_out(Path(folder, algo.lower()), env)
    return arguments if given.folders else [*arguments, "-f", "logs"]


def _check_runs(folders: Sequence[str], algos: Sequence[str], envs: Sequence[str]) -> None:
    """See that every algorithm and environment has a run; RL Zoo shows zeros or nothing for those that have none."""
    stored: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in Path(folder).glob("[!.]*/*_*") if path.is_dir()):
        stored.setdefault(path.parent.name, set()).add(path.name.rpartition("_")[0])
    for flag, values in {"-a": algos, "-e": envs}.items():
        if not values:
            raise ValueError(f"{flag} is needed; in {', '.join(folders)}: {_contents(stored)}")
    for algo in algos:
        if algo.lower() not in stored:
            raise ValueError(f"There are no runs of {algo} in {', '.join(folders)}, only {_contents(stored)}")
    names = {name for algo in algos for name in stored[algo.lower()]}
    for env in envs:
        matching = sorted(name for name in names if env in name)
        if not matching:
            hint = f" (in folders {env.replace('/', '-')})" if "/" in env else ""
            raise ValueError(f"There are no runs on {env}{hint} in {', '.join(folders)}, only {_contents(stored)}")
        if len(matching) > 1:
            print(f"-e {env} is part of the names {', '.join(matching)}: RL Zoo takes their runs for one environment's")


def _name_left_out(folder: Path, env: str) -> None:
    """Name the runs that RL Zoo leaves out of its means without a word."""
    lengths = {}
    for path in sorted(folder.glob(f"*{env}*/evaluations.npz")):
        with np.load(path) as stored:
            lengths[path.parent] = len(stored["timesteps"])
    left_out = [str(run) for run, length in lengths.items() if length == 1 or length < max(lengths.values())]
    if left_out:
        print(f"Left out by RL Zoo, a single evaluation or fewer than others: {', '.join(left_out)}")


def _contents(stored: dict[str, set[str]]) -> str:
    return ", ".join(f"{algo} on {' '.join(sorted(envs))}" for algo, envs in sorted(stored.items())) or "nothing"


def _check_plot_file(name: str | None) -> None:
    path = Path((name or "").removesuffix(".pkl") + ".pkl")
    if not name or not path.is_file():
        raise ValueError(f"{path if name else '-i'} not found: -i names the file that all_plots -o wrote")
    results: dict[str, Any] = pickle.loads(path.read_bytes())
    envs = {env: runs for env, runs in results.items() if env != "results_table"}
    keys = {key for runs in envs.values() for key in runs}
    if not keys:
        raise ValueError(f"{path} holds no results: every run needs two or more evaluations")
    for env, runs in envs.items():
        for key in sorted(keys):
            if key not in runs:
                raise ValueError(f"{path}: no runs of {key} on {env}; plot_from_file needs all algorithms on all environments")
            if getattr(runs[key]["last_evals"], "ndim", 0) == 0:
                raise ValueError(f"{path}: one run of {key} on {env}; plot_from_file needs two or more, other seeds")


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


def complete_arguments(command: str, arguments: list[str]) -> list[str]:
    """
    Add to a command for RL Zoo the hyperparameters or the folder that it does not name, and check what it is about.

    :param command: One of ``COMMANDS``
    :param arguments: Its arguments, as RL Zoo takes them
    :return: The arguments to hand over; for ``"train"``, ``resolved.hyperparams`` is filled too
    :raises ValueError: If the command cannot work: unknown algorithm or trial, no such agent or runs, no way to render, ...
    """
    if command == "push_to_hub":
        check_hub(command)
    if _asks_for_help(arguments):
        return arguments
    if command == "train":
        return _complete_train(arguments)
    if command in AGENTS:
        return _complete_agent(command, arguments)
    if command in PLOTS:
        return _complete_plot(command, arguments)
    if command == "load_from_hub":
        check_hub(command)
    return arguments


def _register() -> None:
    zoo = importlib.import_module("rl_zoo3")
    register_algorithms(zoo.ALGOS)
    if find_spec("optuna") is not None:
        spaces = importlib.import_module("rl_zoo3.hyperparams_opt")
        samplers = importlib.import_module("sb3_dpi.zoo.samplers")
        samplers.register_samplers(spaces.HYPERPARAMS_SAMPLER, spaces.HYPERPARAMS_CONVERTER)


def _run(command: str, arguments: list[str]) -> None:
    sys.argv = [f"sb3_dpi.zoo {command}", *arguments]
    if command in PLOTS:
        # Not through runpy: the package has functions by the names of its modules
        getattr(importlib.import_module("rl_zoo3.plots"), command)()
        return
    reports: Path | None = None
    if command == "train" and not _asks_for_help(arguments):
        given = _parse(command, arguments)
        reports = Path(given.log_folder, given.algo) if given.optimize and not given.no_optim_plots else None
    before = set(reports.glob("report_*.pkl")) if reports else set()
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")
    for report in sorted(set(reports.glob("report_*.pkl")) - before) if reports else ():
        for path in importlib.import_module("sb3_dpi.zoo.samplers").draw_study(report):
            print(f"Figure: {path}")


def main(arguments: list[str]) -> None:
    """
    Register the algorithms in RL Zoo, complete the arguments and hand over.

    :param arguments: The command, one of ``COMMANDS``, and its arguments
    """
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(USAGE)
    command, rest = arguments[0], arguments[1:]
    try:
        check_packages(command, rest)
        if command == "train" or command in AGENTS:
            import_custom_envs()
        if command not in PLOTS:
            _register()
        rest = complete_arguments(command, rest)
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    _run(command, rest)


if __name__ == "__main__":
    main(sys.argv[1:])
