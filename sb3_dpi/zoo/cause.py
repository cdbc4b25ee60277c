"""An exception in one line, with the place in the user's code: what a user reads before anybody opens a log."""

import sys
import sysconfig
import traceback
from io import TextIOWrapper
from pathlib import Path

LONGEST_MESSAGE = 500
"""Characters of a message that are shown: some hold whole arrays"""
PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}


def is_users(filename: str) -> bool:
    """Tell whether a file of a traceback was written by the user: neither this package, nor Python's, nor installed."""
    path = Path(filename)
    # Compiled code has names of its own: "_generator.pyx", which lies nowhere
    if filename.startswith("<") or path.suffix in (".pyx", ".pxd") or not (path.is_absolute() or path.exists()):
        return False
    others = [PACKAGE, Path(sysconfig.get_path("stdlib")).resolve()]
    return not any(path.resolve().is_relative_to(folder) for folder in others) and not INSTALLED & set(path.resolve().parts)


def place_in_users_code(error: BaseException) -> str:
    """Find where the user's code raised an exception, or called what raised it: ``"my_envs.py:12 in step"``, or nothing."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_users(frame.filename):
                return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
        cause = cause.__cause__ or cause.__context__
    return ""


def in_one_line(error: BaseException) -> str:
    """Put an exception into words: its type, its message without line breaks, and the place in the user's code."""
    try:
        message = " ".join(str(error).split())
    except Exception as second:  # whoever cannot say what is wrong still says where
        message = f"(its text fails with {type(second).__name__})"
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]} ..."
    place = place_in_users_code(error)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{text} ({place})" if place else text


def print_anything() -> None:
    """Let this process print what its streams have no letters for: what an exception of the user's says need not be text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
