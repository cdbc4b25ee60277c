"""``python -m sb3_dpi.data check FILE [--env ID]``: what is wrong with logged data, in words."""

import argparse
import sys
from collections.abc import Sequence

import sb3_dpi  # noqa: F401
from sb3_dpi.data.check import check, describe
from sb3_dpi.data.episodes import DataError
from sb3_dpi.data.read import UNITS, read


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Check logged data.

    :param arguments: of the command line
    :return: its exit status: 1 where there is an error, else 0
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_dpi.data", description=__doc__, allow_abbrev=False)
    command = parser.add_subparsers(dest="command", required=True).add_parser("check", allow_abbrev=False)
    command.add_argument(
        "file", help="npz, csv with a header, a folder of these, pkl of a replay buffer, a Minari dataset's folder or id"
    )
    command.add_argument(
        "--env", help="id of the environment to learn in, whose spaces must fit and whose time limit is known then"
    )
    command.add_argument("--actions-in", choices=UNITS, default=UNITS[0], help="units of the actions, default: %(default)s")
    args = parser.parse_args(arguments)
    try:
        episodes = read(args.file, args.env, args.actions_in)
    except (DataError, ImportError) as error:
        print(f"error: {error}")
        return 1
    print(describe(episodes))
    findings = check(episodes)
    for finding in findings:
        print(finding)
    is_wrong = any(finding.is_error for finding in findings)
    if is_wrong:
        print("Repair the errors before anything learns from this")
    elif findings:
        print("No error was found: read the notes before anything learns from this")
    else:
        print("Nothing stands against learning from this")
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
