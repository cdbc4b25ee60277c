"""Logged data in: reading and checking episodes, models that start from them, runs that go on after a crash."""

from sb3_dpi.data.check import check
from sb3_dpi.data.episodes import DataError, Episode, Episodes, Finding
from sb3_dpi.data.fill import fill
from sb3_dpi.data.read import read
from sb3_dpi.data.runs import SaveRun, load_run, save_run

__all__ = ["DataError", "Episode", "Episodes", "Finding", "SaveRun", "check", "fill", "load_run", "read", "save_run"]
