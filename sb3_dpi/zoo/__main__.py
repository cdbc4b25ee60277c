"""RL Zoo's command line with the algorithms of this package in it: ``python -m sb3_dpi.zoo train|enjoy ...``."""

import argparse
import importlib
import runpy
import sys
from importlib.util import find_spec

from sb3_dpi.zoo import resolved
from sb3_dpi.zoo.hyperparams import ZOO_HINT, resolve_hyperparams
from sb3_dpi.zoo.register import ALGORITHMS, register_algorithms

USAGE = f"""usage: python -m sb3_dpi.zoo train|enjoy --algo ALGO --env ENV [any argument of rl_zoo3]

train   without --conf-file: our hyperparameters for {", ".join(ALGORITHMS)}, RL Zoo's for every other algorithm
        (an id without an entry uses the newest older version of the task, else SB3's defaults with normalized observations)
enjoy   without --folder: the agents in logs/; -f rl-trained-agents downloads those of RL Zoo

The arguments of rl_zoo3: python -m sb3_dpi.zoo train --help"""


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Read the few arguments of RL Zoo that decide what is added here, under their names there."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-f", "--folder", "--log-folder")
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    return parser.parse_known_args(arguments)[0]


def complete_arguments(command: str, arguments: list[str]) -> list[str]:
    """
    Add to a command for RL Zoo the hyperparameters or the folder that it does not name.

    :param command: ``"train"`` or ``"enjoy"``
    :param arguments: Its arguments, as RL Zoo takes them
    :return: The arguments to hand over; for ``"train"``, ``resolved.hyperparams`` is filled too
    :raises ValueError: If the algorithm is unknown, or a search of hyperparameters is asked for one of this package
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        return arguments
    given = _parse(arguments)
    if command == "enjoy":
        return arguments if given.folder else [*arguments, "--folder", "logs"]
    if given.optimize_hyperparameters and given.algo in ALGORITHMS:
        raise ValueError(f"{given.algo} has no search space for --optimize-hyperparameters; set values with -params instead")
    if given.conf_file:
        return arguments
    choice = resolve_hyperparams(given.algo, given.env)
    print(f"Hyperparameters of {given.algo} for {given.env}: {choice.source}")
    resolved.hyperparams[given.env] = choice.hyperparams
    return [*arguments, "--conf-file", resolved.__name__]


def main(arguments: list[str]) -> None:
    """
    Register the algorithms in RL Zoo, complete the arguments and hand over.

    :param arguments: The command (``"train"`` or ``"enjoy"``) and its arguments
    """
    if not arguments or arguments[0] not in ("train", "enjoy"):
        sys.exit(USAGE)
    missing = [name for name in ("rl_zoo3", "requests") if find_spec(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found. {ZOO_HINT}")
    command, rest = arguments[0], arguments[1:]
    try:
        rest = complete_arguments(command, rest)
    except ValueError as error:
        sys.exit(str(error))
    register_algorithms(importlib.import_module("rl_zoo3").ALGOS)
    sys.argv = [f"sb3_dpi.zoo {command}", *rest]
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
