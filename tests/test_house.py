"""What reads well: short functions, short files, short lines of prose. Lines of code are ruff's to measure."""

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION_LINES, FILE_LINES, PROSE_COLUMNS = 60, 500, 127
PACKAGE = sorted((ROOT / "sb3_dpi").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
CHANGING = [
    "sb3_dpi/compare/evaluation.py: Episodes()",  # filled as episodes end
    "sb3_dpi/compare/store.py: Store()",  # learns of runs as they finish
    "sb3_dpi/trajopt/mcts.py: Edge(slots=True)",  # trees grow, and are many of these
    "sb3_dpi/trajopt/mcts.py: Node(slots=True)",
]
"""Data that change."""
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")])


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """:return: lines from the first of the signature to the last of the body, without the docstring"""
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0  # type: ignore[operator]
    return node.end_lineno - node.lineno + 1 - docstring  # type: ignore[operator]


def long_functions(source: str) -> Iterator[str]:
    """:return: functions of too many lines, methods and inner ones included"""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > FUNCTION_LINES:
            yield f"{node.name} has {function_lines(node)} lines"


def long_files(source: str) -> Iterator[str]:
    """:return: the number of lines, where these are too many"""
    if (n_lines := len(source.splitlines())) > FILE_LINES:
        yield f"{n_lines} lines"


def long_prose(page: str) -> Iterator[str]:
    """:return: lines of Markdown that are too long, but for tables, listings, and what cannot be broken, such as a link"""
    listing = False
    for number, line in enumerate(page.splitlines(), 1):
        listing ^= line.lstrip().startswith("```")
        breakable = " " in line.strip().removeprefix("- ")
        if len(line) > PROSE_COLUMNS and breakable and not listing and not line.lstrip().startswith("|"):
            yield f"line {number} has {len(line)} columns"


def changing_data(source: str) -> Iterator[str]:
    """:return: dataclasses that are not frozen, and what they are given instead"""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            options = [ast.unparse(option) for option in decorator.keywords] if isinstance(decorator, ast.Call) else []
            name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if name in ("dataclass", "dataclasses.dataclass") and "frozen=True" not in options:
                yield f"{node.name}({', '.join(options)})"


@pytest.mark.parametrize(
    "find, paths",
    [(long_functions, PACKAGE), (long_files, PACKAGE + TESTS), (long_prose, PAGES)],
    ids=["functions", "files", "prose"],
)
def test_nothing_is_too_long(find: Callable[[str], Iterator[str]], paths: Sequence[Path]) -> None:
    assert [f"{path.relative_to(ROOT)}: {said}" for path in paths for said in find(path.read_text(encoding="utf-8"))] == []


def test_data_do_not_change() -> None:
    """They are handed around, and whoever keeps some must find them as they were."""
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {said}" for path in PACKAGE for said in changing_data(path.read_text("utf-8"))
    ]
    assert found == CHANGING


def test_what_is_found() -> None:
    short = '"""Head."""\ndef f(\n    a,\n):\n    """Long.\n\n    Docstring."""\n' + "    a += 1\n" * (FUNCTION_LINES - 3)
    assert not [*long_functions(short)]
    assert [*long_functions(short + "    return a\n")] == ["f has 61 lines"]
    assert not [*long_files("\n" * FILE_LINES)] and [*long_files("\n" * 501)] == ["501 lines"]
    data = "@dataclass\nclass A: ...\n@dataclasses.dataclass(eq=False, frozen=False)\nclass B: ...\n"
    data += "@dataclass(eq=False, frozen=True)\nclass C: ...\n@other(frozen=False)\nclass D: ...\n"
    assert [*changing_data(data)] == ["A()", "B(eq=False, frozen=False)"]
    wide = "word " * 30
    assert [*long_prose(f"| {wide} |\n```\n{wide}\n```\n{wide}\nshort\n{'x' * 200}\n")] == ["line 5 has 150 columns"]


def test_everything_is_measured() -> None:
    """The lists of files are not empty."""
    assert len(PACKAGE) > 50 and len(TESTS) > 50 and ROOT / "README.md" in PAGES
