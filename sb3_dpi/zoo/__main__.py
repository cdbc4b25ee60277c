"""RL Zoo's command line with the algorithms of this package in it: ``python -m sb3_dpi.zoo train|enjoy|...``.

RL Zoo parses its own arguments and checks them. What it parsed is completed here before it sees it, and what it would miss too
late, or answer with a traceback, is named in one line.
"""

import importlib
import runpy
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sb3_dpi.zoo import resolved
from sb3_dpi.zoo.cause import in_one_line, place_in_users_code, print_anything
from sb3_dpi.zoo.environments import evaluations_that_end, find_environment, import_custom_envs, import_environment
from sb3_dpi.zoo.hub import check_trust, ready_for_hub
from sb3_dpi.zoo.hyperparams import ENV_KEYS, NOISE_KEYS, OTHER_KEYS, resolve_hyperparams
from sb3_dpi.zoo.machine import check_packages, check_rendering, packages_of_training
from sb3_dpi.zoo.parser import Refused, completed_by
from sb3_dpi.zoo.plots import check_plot
from sb3_dpi.zoo.register import ALGORITHMS, impossible_value, register_algorithms, unknown_argument
from sb3_dpi.zoo.simulators import planning_where_they_act
from sb3_dpi.zoo.training import one_line_for_setup

AGENTS = ("enjoy", "record_video")
PLOTS = ("plot_train", "all_plots", "plot_from_file")
HUB = ("push_to_hub", "load_from_hub")
COMMANDS = ("train", *AGENTS, *PLOTS, *HUB)
PACKAGES = {
    "train": ("optuna",),
    "enjoy": ("requests",),
    "record_video": ("moviepy",),
    **dict.fromkeys(PLOTS, ("matplotlib", "pandas", "seaborn")),
    "push_to_hub": ("moviepy",),
    "load_from_hub": ("requests",),
}

USAGE = f"""usage: python -m sb3_dpi.zoo {"|".join(COMMANDS)} [any argument of rl_zoo3]

train           without --conf-file: our hyperparameters for {", ".join(ALGORITHMS)}, RL Zoo's for every other algorithm
                (an id without an entry uses the newest older version of the task, else SB3's defaults with normalized
                observations); -optimize searches for better ones, --trial-id N|best trains with those that were found
enjoy           runs a trained agent; without --folder: the agents in logs/
record_video    writes an mp4 of it
plot_train      shows training episodes;   all_plots, plot_from_file: evaluations; without --exp-folders: those in logs/
push_to_hub     evaluates an agent, records it and uploads both with it and a model card;   load_from_hub: the way back

--algo takes module:Class too, --env module:Id-v0.   The arguments of rl_zoo3: python -m sb3_dpi.zoo train --help"""


def complete_train(given: Namespace, registry: dict[str, Any]) -> None:
    """Complete the arguments of ``train``, as RL Zoo has parsed them: hyperparameters, a trial of a study."""
    check_packages(packages_of_training(given))
    _import_packages(given)
    algo, given.env = given.algo, find_environment(given.env).id
    (given.algo,) = register_algorithms(registry, algo)
    algorithm = registry[given.algo]
    for name, value in (given.hyperparams or {}).items():
        problem = unknown_argument(algorithm, name, (*ENV_KEYS, *NOISE_KEYS, *OTHER_KEYS))
        if problem := problem or impossible_value(algorithm, name, value):
            raise ValueError(f"-params {name}: {problem}")
    if given.optimize_hyperparameters:
        _check_search_space(given.algo)
    if not given.conf_file:
        choice = resolve_hyperparams(algo, given.env)
        print(f"Hyperparameters of {algo} for {given.env}: {choice.source}")
        resolved.hyperparams[given.env] = choice.hyperparams
        given.conf_file = resolved.__name__
    if given.trial_id is not None:
        if not (given.storage and given.study_name):
            raise ValueError("--trial-id needs --storage and --study-name: RL Zoo ignores it without them")
        trial, index = importlib.import_module("sb3_dpi.zoo.samplers").find_trial(
            given.storage, given.study_name, given.trial_id
        )
        note = "" if index == str(trial.number) else f", for RL Zoo --trial-id={index}, because it skips 0"
        print(f"Changed by trial {trial.number} of study {given.study_name} (value {trial.value}{note})")
        given.trial_id = int(index)


def _import_packages(given: Namespace) -> None:
    for package in getattr(given, "gym_packages", ()):
        importlib.import_module(package)


def _check_search_space(algo: str) -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    if algo not in HYPERPARAMS_SAMPLER:
        known = ", ".join(sorted(HYPERPARAMS_SAMPLER))
        raise ValueError(f"There is no search space of {algo} for -optimize, only of {known}")


def complete_agent(command: str, given: Namespace, registry: dict[str, Any]) -> None:
    """Complete the arguments of a command that runs an agent or stores it, as RL Zoo has parsed them."""
    if command == "load_from_hub":
        check_trust()
    _import_packages(given)
    written = f"--algo {given.algo} --env {given.env.gym_id}"
    env_id = import_environment(given.env.gym_id)
    # Nothing is run by that command, and what an agent ran on need not be installed
    given.env = type(given.env)(env_id if command == "load_from_hub" else find_environment(given.env.gym_id).id)
    (given.algo,) = register_algorithms(registry, given.algo)
    if command in AGENTS and "rl-trained-agents" not in given.folder:  # where RL Zoo downloads what is not there
        _check_agent(given, written)
    if command == "record_video" or not getattr(given, "no_render", True):
        check_rendering(given.env.gym_id, window=command == "enjoy")


def _check_agent(given: Namespace, written: str) -> None:
    which = given.exp_id, given.folder, given.algo, given.env, given.load_best, given.load_checkpoint
    try:
        with redirect_stdout(None):
            importlib.import_module("rl_zoo3.utils").get_model_path(*which, given.load_last_checkpoint)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"There is no agent to run: {error}. Train one with python -m sb3_dpi.zoo train {written}, or say with --algo, "
            "--env, --folder and --exp-id which one"
        ) from error


def _register(registry: dict[str, Any]) -> None:
    register_algorithms(registry)
    if find_spec("optuna") is not None:
        spaces = importlib.import_module("rl_zoo3.hyperparams_opt")
        samplers = importlib.import_module("sb3_dpi.zoo.samplers")
        samplers.register_samplers(spaces.HYPERPARAMS_SAMPLER, spaces.HYPERPARAMS_CONVERTER)


def _draw_search(given: Namespace) -> None:
    if given.optimize_hyperparameters and not given.no_optim_plots:
        report = max(Path(given.log_folder, given.algo).glob("report_*.pkl"), key=lambda path: path.stat().st_mtime)
        for path in importlib.import_module("sb3_dpi.zoo.samplers").draw_study(report):
            print(f"Figure: {path}")


def _run(command: str, arguments: list[str]) -> None:
    """Let RL Zoo do it, with arguments that are completed on the way."""
    sys.argv = [f"sb3_dpi.zoo {command}", *arguments]
    if command in PLOTS:
        with completed_by(lambda given: check_plot(command, given), "logs"):
            # Not through runpy: the package has functions by the names of its modules
            getattr(importlib.import_module("rl_zoo3.plots"), command)()
        return
    registry = importlib.import_module("rl_zoo3").ALGOS
    _register(registry)
    parsed: list[Namespace] = []

    def complete(given: Namespace) -> None:
        parsed.append(given)
        if command == "train":
            complete_train(given, registry)
        else:
            complete_agent(command, given, registry)

    ready = one_line_for_setup() if command == "train" else ready_for_hub(command, parsed)
    folder = None if command == "train" else "logs"
    with completed_by(complete, folder), ready, evaluations_that_end(), planning_where_they_act():
        runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")
    if command == "train":
        _draw_search(parsed[0])


def main(arguments: list[str]) -> None:
    """Register the algorithms in RL Zoo, and hand over."""
    print_anything()
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(USAGE)
    command, rest = arguments[0], arguments[1:]
    try:
        check_packages(["rl_zoo3", *PACKAGES.get(command, ())])
        if command not in PLOTS:
            import_custom_envs()
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    try:
        _run(command, rest)
    except Refused as error:
        sys.exit(str(error))
    except Exception as error:
        # Whoever wrote the code that went wrong wants its traceback
        if command == "train" or place_in_users_code(error):
            raise
        sys.exit(f"RL Zoo's {command} stopped: {in_one_line(error)}")


if __name__ == "__main__":
    main(sys.argv[1:])
