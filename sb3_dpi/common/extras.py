"""Packages that parts of this package need beyond those of its core."""

import sys
from importlib.util import find_spec


def need(extra: str, *packages: str) -> None:
    """
    Look for packages, before anything is begun that would miss them later.

    :param extra: What installs them
    :param packages: Names of their modules
    :raises ImportError: If one is missing; a command, ``python -m``, ends with the same line
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        text = f"This needs {', '.join(missing)}: pip install 'sb3_dpi[{extra}]'"
        # So long as Python imports the package of a command the command has no name
        if sys.argv[:1] == ["-m"]:
            sys.exit(text)
        raise ImportError(text)
