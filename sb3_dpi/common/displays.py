"""Drawing without a display."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
DRIVER = "SDL_VIDEODRIVER"


def draw_off_screen() -> None:
    """Tell pygame to draw without a display, where there is none: SDL would look for one, and print an error of its own."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in (*DISPLAYS, DRIVER)):
        os.environ[DRIVER] = "dummy"


@contextmanager
def off_screen() -> Iterator[None]:
    """Draw without a display for a while; afterwards the environment is as it was."""
    before = os.environ.get(DRIVER)
    draw_off_screen()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DRIVER, None)
        else:
            os.environ[DRIVER] = before
