"""The pages: lines that an editor shows whole, links that lead somewhere, examples that run."""

import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dpi.common.saved_models import SavedModel, renamed_arguments
from sb3_dpi.compare.__main__ import make_parser, make_suite
from sb3_dpi.compare.suite import load_suite
from sb3_dpi.dpi import dpi
from sb3_dpi.dpi.presets import PRESETS
from sb3_dpi.zoo import ALGORITHMS, algorithm_class

ROOT = Path(__file__).parents[1]
DOCS_FOLDER = ROOT / "docs"
DOCS = sorted(path for path in DOCS_FOLDER.rglob("*.md") if "_build" not in path.parts)
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, *sorted(ROOT.glob("results/*.md"))]
OURS: list[type[SavedModel]] = [algorithm_class(name) for name in ALGORITHMS]
ALGORITHM_PAGES = sorted((DOCS_FOLDER / "algorithms").glob("*.md"))
SOURCES = "".join(path.read_text("utf-8") for path in (ROOT / "sb3_dpi").rglob("*.py"))
LAB = "python -m sb3_dpi.compare"
LINE_SEARCH = ["line_search_max_iter", "line_search_shrinking_factor"]
LONGEST_LINE, LONGEST_PAGE = 127, 150
SECTIONS = ["Can I use?", "Example", "Equations", "Parameters", "Results"]
PUBLIC = [f"sb3_dpi{part}" for part in ("", ".data", ".diagnose", ".systems", ".trajopt", ".export", ".compare", ".zoo")]
BUDGET = 30
"""Steps that an example learns for."""
NOT_RUN = re.compile(r"<!-- not run: [^>]+-->\s*\Z")
"""What stands before a listing that cannot run here, and says why"""


def relative(page: Path) -> str:
    """:return: the name of a test's case"""
    return str(page.relative_to(ROOT))


def is_current(page: Path) -> bool:
    """:return: whether a page is about the package as it is, and no log of another day"""
    return "research_log" not in page.parts


def prose(text: str) -> list[str]:
    """:return: the lines outside tables, whose rows cannot be wrapped, and outside code"""
    lines, in_code = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith("|"):
            lines.append(line)
    return lines


def headings(text: str, level: str = "#+") -> list[str]:
    """:return: what a page's headings say"""
    return [match[1].strip() for line in prose(text) if (match := re.fullmatch(rf"{level} (.+)", line))]


def anchors(page: Path) -> set[str]:
    """:return: of its headings, as GitHub and Sphinx make them"""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page.read_text("utf-8"))}


def examples(text: str) -> Iterator[str]:
    """:return: the Python listings of a page that are to run"""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not NOT_RUN.search(text[: match.start()]):
            yield match[1]


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples show real budgets; here they take few steps, and register what they like."""

    def shortened(learn: Callable[..., BaseAlgorithm]) -> Callable[..., BaseAlgorithm]:
        signature = inspect.signature(learn)
        _, amount, *_ = signature.parameters

        def few(*args: Any, **kwargs: Any) -> BaseAlgorithm:
            given = signature.bind(*args, **kwargs)
            given.arguments[amount] = min(given.arguments[amount], BUDGET)
            return learn(*given.args, **given.kwargs)

        return few

    for algorithm in (*OURS, PPO):
        for name in ("learn", "learn_offline"):
            if hasattr(algorithm, name):
                monkeypatch.setattr(algorithm, name, shortened(getattr(algorithm, name)))
    for first_fit in ("FIRST_MODEL_STEPS", "FIRST_CRITIC_UPDATES"):
        monkeypatch.setattr(dpi, first_fit, 10)
    monkeypatch.setattr(gym.envs.registration, "registry", gym.registry.copy())


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_lines_are_short(page: Path) -> None:
    assert [line for line in prose(page.read_text("utf-8")) if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", ALGORITHM_PAGES, ids=relative)
def test_algorithms_have_pages_of_one_shape(page: Path) -> None:
    text = page.read_text("utf-8")
    assert headings(text, "##") == SECTIONS
    assert len(text.splitlines()) <= LONGEST_PAGE
    assert "python -m sb3_dpi.compare run --algo" in text and ".. autoclass::" in text


def test_every_algorithm_has_a_page() -> None:
    assert {page.stem for page in ALGORITHM_PAGES} == set(ALGORITHMS)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if is_current(page) and any(examples(page.read_text("utf-8")))], ids=relative
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_trainings: None) -> None:
    """Those of a page in order, each with what those before have named."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for example in examples(page.read_text("utf-8")):
        exec(compile(example, str(page), "exec"), names)


def lab_commands(text: str) -> Iterator[list[str]]:
    """:return: the arguments of a page's commands of the comparison lab, in listings and in lines"""
    listings = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for listing in listings for line in listing.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
    for line in lines + inline:
        if line.startswith(LAB + " ") and " --" in line:
            yield shlex.split(line.removeprefix(LAB), comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if is_current(page)], ids=relative)
def test_the_labs_commands_are_taken(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their arguments exist, their suites are right, and the stored runs that they read are there."""
    if ROOT / "results" in page.parents or page.name == "studies.md":
        return  # commands of other days, with words that stand for numbers
    text = page.read_text("utf-8")
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    for suite in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if "algorithms:" in suite:
            named = re.match(r"# (\w+\.yml)\n", suite)
            Path(named[1] if named else "mine.yml").write_text(suite)
    for written in tmp_path.glob("*.yml"):
        load_suite(str(written))
    for arguments in lab_commands(text):
        args = make_parser().parse_args(arguments)
        if args.command == "run":
            make_suite(args)
        for folder in [args.out] if isinstance(args.out, str) else args.out:
            assert not folder.startswith("results/") or Path(folder).is_dir(), arguments


def other_commands() -> dict[str, set[str]]:
    """:return: of all pages, from command to the options that it is given"""
    given: dict[str, set[str]] = {}
    text = "".join(page.read_text("utf-8").replace("\\\n", " ") for page in PAGES if is_current(page))
    for module, rest in re.findall(r"python -m sb3_dpi\.(data|diagnose|export|zoo) ([^`#|\n]*)", text):
        words = shlex.split(rest)
        command = f"{module} {words[0]}" if module in ("data", "zoo") else module
        given.setdefault(command, set()).update(word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word))
    return given


@pytest.mark.parametrize("command", sorted(other_commands()))
def test_options_of_the_other_commands_exist(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *words = command.split()
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(f"sb3_dpi.{module}.__main__", run_name="__main__")
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    assert other_commands()[command] <= known


def rows(text: str) -> Iterator[list[str]]:
    """:return: the cells of a page's tables"""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("package", PUBLIC)
def test_the_reference_has_every_public_name(package: str) -> None:
    pages = "".join(path.read_text("utf-8") for path in DOCS if path.parent.name in ("reference", "algorithms"))
    directives = "".join(re.findall(r"```{eval-rst}.*?```", pages, re.DOTALL))
    names = [name for name in import_module(package).__all__ if not name.startswith("__")]
    assert names and [name for name in names if not re.search(rf"\b{name}\b", directives)] == []


def test_errors_are_quoted_as_they_are() -> None:
    """Who searches for an error finds it: what is between the dots stands in the package."""
    page = (DOCS_FOLDER / "guides" / "troubleshooting.md").read_text("utf-8")
    quoted = [row[0][1:-1] for row in rows(page.partition("## An error says")[2]) if re.fullmatch("`[^`]*`", row[0])]
    assert len(quoted) > 5
    for error in quoted:
        for part in error.split("..."):
            assert part.strip() in SOURCES, error


def test_logged_names_exist() -> None:
    page = (DOCS_FOLDER / "guides" / "callbacks.md").read_text("utf-8")
    named = {name for row in rows(page) for name in re.findall(r"`((?:train|trajopt|model)/\w+)`", row[0])}
    assert len(named) > 25
    assert {name for name in named if f'"{name}"' not in SOURCES and f'"{name.partition("/")[2]}"' not in SOURCES} == set()


def test_presets_have_the_numbers_of_the_page() -> None:
    page = (DOCS_FOLDER / "theory" / "presets.md").read_text("utf-8")
    checked = 0
    for first, *numbers in rows(page.partition("## The rule")[0]):
        name = re.search(r"`(\w+)`", first)
        if name is None or not hasattr(PRESETS["free"], name[1]):
            continue
        for kind, said in zip(PRESETS, numbers, strict=True):
            number = {"never": 0.0, "the rate stays": 0.0}.get(said)
            assert getattr(PRESETS[kind], name[1]) == (
                float(said.split()[0].replace(",", "")) if number is None else number
            ), name
            checked += 1
    assert checked >= 16


@pytest.mark.parametrize("algorithm", [algorithm for algorithm in OURS if renamed_arguments(algorithm)])
def test_every_former_argument_is_on_the_page(algorithm: type[SavedModel]) -> None:
    page = (DOCS_FOLDER / "migration.md").read_text("utf-8").replace("line_search_*", " ".join(LINE_SEARCH))
    assert [name for name in algorithm.renamed_arguments if not re.search(rf"\b{name}\b", page)] == []


def test_what_is_found() -> None:
    text = "# A `b` c\n\n```python\nx = 1\n```\n\n<!-- not run: needs a robot -->\n```python\nx = 2\n```\n| # row |\n"
    assert [*examples(text)] == ["x = 1\n"]
    command = f"```bash\n{LAB} run --algo dpi \\\n    --seeds 2  # two\n```\nor `{LAB} report --out\na`"
    assert [*lab_commands(command)] == [["run", "--algo", "dpi", "--seeds", "2"], ["report", "--out", "a"]]
    assert headings(text) == ["A `b` c"] and headings(text, "##") == []


def test_pages_know_the_present_versions() -> None:
    """Beside runs of former ones."""
    now = {name: algorithm_class(name).algorithm_version for name in ALGORITHMS}
    told = {page.stem: re.findall(r"the present one is (\d+)", page.read_text("utf-8")) for page in ALGORITHM_PAGES}
    assert {name: [str(now[name])] for name, found in told.items() if found} == {name: x for name, x in told.items() if x}
    folder, page = (ROOT / name for name in ("results/README.md", "docs/benchmarks/results.md"))
    present = f"Today's are {now['mdgps']} (MDGPS), {now['dpi']} (AggreVaTeD-OC, DPI) and {now['dual_ac']} (Dual-AC)"
    assert now["dpi"] == now["aggrevated_oc"] and present in " ".join(folder.read_text("utf-8").split())
    assert f"(now {now['mdgps']}, {now['aggrevated_oc']} and {now['dual_ac']})" in page.read_text("utf-8")
