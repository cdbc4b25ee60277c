"""Drawing on a machine without a display."""

import os
import sys

import pytest

from sb3_dpi.common.displays import DISPLAYS, DRIVER, draw_off_screen, off_screen
from sb3_dpi.zoo import machine


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty counts as unset, and is undone at the end."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in (*DISPLAYS, DRIVER):
        monkeypatch.setenv(name, "")


def test_without_a_display_pygame_looks_for_none() -> None:
    draw_off_screen()
    assert os.environ[DRIVER] == "dummy"


@pytest.mark.parametrize("name", [*DISPLAYS, DRIVER])
def test_a_display_is_left_to_pygame(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, ":0")
    draw_off_screen()
    assert os.environ[DRIVER] == (":0" if name == DRIVER else "")


def test_other_systems_always_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    draw_off_screen()
    assert os.environ[DRIVER] == ""


@pytest.mark.parametrize("before", ["x11", None])
def test_for_a_while(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is None:
        monkeypatch.delenv(DRIVER)
    else:
        monkeypatch.setenv(DRIVER, before)
    with off_screen():
        assert os.environ[DRIVER] == (before or "dummy")
    assert os.environ.get(DRIVER) == before


def test_videos_of_the_zoo_begin_without_an_error_of_sdl(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what RL Zoo renders afterwards does not bring it either."""
    pytest.importorskip("pygame")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    machine.check_rendering("Pendulum-v1")
    assert "XDG_RUNTIME_DIR" not in capfd.readouterr().err and os.environ[DRIVER] == "dummy"
