"""What a user writes for the lab: modules that fail, options and settings that are there twice."""

from pathlib import Path

import pytest

from sb3_dpi.compare import __main__ as command_line
from sb3_dpi.compare.checks import SuiteError
from sb3_dpi.compare.suite import suite_from_arguments


@pytest.mark.parametrize("kind", ["algorithm", "environment"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("TABLE = {}\nTABLE['speed']", "KeyError: 'speed' (failing.py:2 in <module>)"),
        ("x = 1\nassert x == 2", "AssertionError (failing.py:2 in <module>)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (failing.py:2 in <module>)"),
        ("x = (", "SyntaxError: '(' was never closed (failing.py, line 1)"),
    ],
)
def test_a_module_that_fails_says_where(
    kind: str, source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["failing:Mine", "Pendulum-v1"] if kind == "algorithm" else ["ppo", "failing:Mine-v0"]
    with pytest.raises(SuiteError) as caught:
        suite_from_arguments(arguments[:1], arguments[1:])
    assert str(caught.value).endswith(f"cannot be imported: {said}")


@pytest.mark.parametrize(
    ("option", "values"),
    [("steps", ["100", "200"]), ("env_kwargs", ["g=1", "g=2"]), ("overrides", ["ppo.gamma=1", "ppo.gamma=0"])],
)
def test_nothing_is_given_twice(option: str, values: list[str]) -> None:
    with pytest.raises(SuiteError, match="is given twice, "):
        suite_from_arguments(["ppo"], ["Pendulum-v1"], **{option: values})  # type: ignore[arg-type]


@pytest.mark.parametrize("once", ["--seeds", "--out", "--baseline"])
def test_options_add_up_or_are_given_once(once: str, capsys: pytest.CaptureFixture[str]) -> None:
    several = {
        "algo": "ppo",
        "env": "A-v0",
        "env-kwargs": "g=1",
        "steps": "ppo:9",
        "threshold": "3",
        "baselines": "a",
        "set": "x.y=1",
    }
    twice = [word for _ in range(2) for option, value in several.items() for word in (f"--{option}", value)]
    args = command_line.make_parser().parse_args(["run", *twice])
    assert all(getattr(args, option.replace("-", "_")) == [value] * 2 for option, value in several.items())
    assert command_line.make_parser().parse_args(["report", "--out", "a", "--out", "b", "c"]).out == ["a", "b", "c"]
    with pytest.raises(SystemExit):
        command_line.make_parser().parse_args(["run", *twice, once, "2", once, "3"])
    assert f"{once} is given twice: 2 and 3" in capsys.readouterr().err
