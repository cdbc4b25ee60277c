"""Packages that parts of this package need beyond those of its core."""

import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """
    Say how an extra is added to this installation, from where that came: an index, a folder, a file or a repository.

    :param extra: Its name
    :return: A command line
    """
    try:
        origin = json.loads(distribution("sb3_dpi").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url, vcs = origin.get("url"), origin.get("vcs_info")
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{url2pathname(urlsplit(url).path)}[{extra}]'"
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"pip install 'sb3_dpi[{extra}]{f' @ {url}' if url else ''}'"


def need(extra: str, *packages: str) -> None:
    """
    Look for packages, before anything is begun that would miss them later.

    :param extra: What installs them
    :param packages: Names of their modules
    :raises ImportError: If one is missing; a command, ``python -m``, ends with the same line
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        text = f"This needs {', '.join(missing)}: {install_command(extra)}"
        # So long as Python imports the package of a command the command has no name
        if sys.argv[:1] == ["-m"]:
            sys.exit(text)
        raise ImportError(text)
