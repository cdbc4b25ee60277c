"""The report as a page: one file, its figures, what they tell on hover, in a browser."""

import html
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from reports import GRID, task, write_run

from sb3_dpi.compare import figures as figures_module
from sb3_dpi.compare.document import page, plain
from sb3_dpi.compare.figures import COLORS, Drawing, Line, Point, frontier_figure, make_styles
from sb3_dpi.compare.report import write_report
from sb3_dpi.compare.suite import Task


def test_html_needs_no_other_file(small_lab: tuple[Path, dict[str, Task]]) -> None:
    out, tasks = small_lab
    write_report(out, tasks)
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert len(sources) > 6 and all(source.startswith(("data:", "#")) for source in sources)
    links = {link[1:] for link in sources if link.startswith("#")}
    assert links and links == set(re.findall(r'<h2 id="([^"]+)"', page))


def test_every_task_has_a_figure_and_a_chapter_of_its_own(tmp_path: Path) -> None:
    for number, name in enumerate(("Ünï-v0", "Ünü-v0", "a/B-v0", "a-B-v0", "a-b-v0", "%41-v0")):
        write_run(tmp_path / "runs", "ppo", f"E{number}-v0", 1, (10, 20), [number, 9], task="x")
        (tmp_path / "runs" / "x").rename(tmp_path / "runs" / str(number))
        record = tmp_path / "runs" / str(number) / "ppo" / f"E{number}-v0_1" / "run.json"
        content = json.loads(record.read_text())
        content["config"] |= {"task": "", "env_id": name}
        record.write_text(json.dumps(content))
    write_report(tmp_path / "runs", {}, to=tmp_path / "to")
    made = (tmp_path / "to" / "report.html").read_text()
    curves = list((tmp_path / "to" / "figures").glob("curves_*"))
    assert len(curves) == 6 and all(path.name.isascii() for path in curves)
    panels = [found for found in re.findall(r'<figure data-panels="([^"]+)">\n<img alt="Return on', made)]
    assert len(panels) == 6 == len(set(panels))
    anchors = re.findall(r'<h2 id="([^"]+)"', made)
    assert len(anchors) == len(set(anchors)) and set(anchors) == set(re.findall(r'href="#([^"]+)"', made))


def test_words_that_mean_something_in_markdown() -> None:
    assert plain("x <= 1, a_b, _c_, a|b\nc") == "x <= 1, a_b, \\_c\\_, a\\|b c"
    assert plain("<b>, [a](b), [0, 1]") == "\\<b>, [a\\](b), [0, 1]"


def test_the_page_tells_the_values_of_figures() -> None:
    panel = {"box": [0.1, 0.1, 0.9, 0.9], "x": [1, 9], "log": False, "series": [{"name": 'a"b', "x": [2], "y": [3]}]}
    text = "# A\n\n## One <b>\n\n![A & B](figures/f.png)\n\n| algorithm | n |\n| :-- | --: |\n| a | 1 |\n"
    made = page("A", text, {"f": Drawing(b"png", [panel])})
    assert '<h2 id="one-b">' in made and '<a href="#one-b">' in made and "<b>" not in made
    found = re.search(r'<figure data-panels="([^"]+)">\n<img alt="A &amp; B" src="data:image/png;base64,cG5n">', made)
    assert found is not None and json.loads(html.unescape(found[1])) == [panel]
    assert '<div class="scroll"><table>' in made and '<td style="text-align:right">1</td>' in made


def test_published_curves_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", "Hopper-v5", 1, (10_000, 50_000, 100_000), [100, 500, 900])
    write_run(tmp_path, "ppo", "Hopper-v5", 1, (10_000, 50_000), [100, 500], task="heavy", env_kwargs={"mass": 2})
    write_report(tmp_path, {})
    plain, figure = (tmp_path / "report.md").read_text(), (tmp_path / "figures/curves_Hopper-v5.png").read_bytes()
    assert "as read" not in plain
    write_report(tmp_path, {}, published=True)
    text = (tmp_path / "report.md").read_text()
    assert text.count("| as read, not run here |") == 1, "not for a changed environment"
    assert "| CrossQ, UTD 1 | 10 | 486 (63) | 903 (337) | 1,421 (366) | 2,764 (1,369) | 2,577 (1,254) |" in text
    assert (tmp_path / "figures/curves_Hopper-v5.png").read_bytes() != figure


def test_figures_of_odd_runs(tmp_path: Path) -> None:
    """One evaluation, equal returns, a return that is not finite, a seed that diverged, evaluations that do not overlap."""
    write_run(tmp_path, "ppo", "A-v0", 1, (1000,), [5])
    write_run(tmp_path, "sac", "A-v0", 1, GRID, [5, 5, 5, 5, 5])
    write_run(tmp_path, "tqc", "A-v0", 1, GRID, [5, float("nan"), 5, 5, float("inf")])
    write_run(tmp_path, "trpo", "A-v0", 1, GRID, [5, 6, -1e9, 5, 5], seconds=0.0)
    write_run(tmp_path, "ars", "A-v0", 1, (1, 2), [5, 6])
    write_run(tmp_path, "ars", "A-v0", 2, (3, 4), [5, 6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, {"A-v0": task("A-v0", 5.0, scale=(0.0, 10.0))}, published=True)
        write_report(tmp_path, {"A-v0": task("A-v0", 5.0, scale=(0.0, 10.0))}, steps=1000)
    assert (tmp_path / "figures/curves_A-v0.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("n", "tasks"), [(2, 1), (9, 1), (9, 5)])
def test_words_of_a_frontier_are_apart_and_inside(n: int, tasks: int, drawn: list[Any]) -> None:
    points = [Point(f"algorithm_{i}", 1.0 + i, float(i), float(i), float(i)) for i in range(n)]
    panels = frontier_figure(
        [(f"A-v{i}", points) for i in range(tasks)], make_styles([p.name for p in points]), "return"
    ).panels
    (figure,) = drawn
    figure.draw_without_rendering()
    axes, (legend,) = figure.axes[0], figure.legends
    names, words = legend.get_window_extent(), figure._supxlabel.get_window_extent()
    assert names.y0 > axes._left_title.get_window_extent().y1
    assert axes.get_window_extent().y0 > words.y1
    for box in (names, words):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert len(panels) == tasks and [series["x"] for series in panels[0]["series"]] == [[1.0 + i] for i in range(n)]


def test_a_figure_is_the_same_whatever_the_process_has_set() -> None:
    """Seaborn's ``set``, which the zoo's plots call, makes every word larger, for as long as the process lives."""
    points = [Point(f"algorithm_{i}", 1.0 + i, float(i), float(i), float(i)) for i in range(9)]

    def drawn() -> bytes:
        return frontier_figure([("A-v0", points)], make_styles([p.name for p in points]), "return").png

    plain = drawn()
    with rc_context({"legend.fontsize": 11.0, "axes.titlesize": 12.0, "axes.facecolor": "#EAEAF2", "font.family": "serif"}):
        assert drawn() == plain


def test_a_single_evaluation_is_seen(drawn: list[Any]) -> None:
    """Also at the very edge, where the run with the largest budget ends."""
    one, many = np.array([5000.0]), np.array(GRID[:3], dtype=float)
    figures_module.curves_figure(
        "A-v0", [Line("ppo", one, one, one, one), Line("sac", many, many, many, many)], make_styles(["ppo", "sac"])
    )
    marks = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o" and list(line.get_xdata()) == [5000.0]]
    assert marks and not marks[0].get_clip_on()


@pytest.mark.parametrize("log", [False, True])
def test_what_a_page_knows_of_a_figure_is_where_it_is_drawn(log: bool, drawn: list[Any]) -> None:
    x = np.array([1000.0, 2000.0, 9000.0])
    lines = [Line("ppo", x, x, x, x), Line("sac", x / (9 if log else 1), -x, -x, -x)]
    (panel,) = figures_module.curves_figure("A-v0", lines, make_styles(["ppo", "sac"]), published=[lines[0]]).panels
    assert panel["log"] is log and [series["name"] for series in panel["series"]] == ["ppo", "sac", "ppo"]
    axes, (left, top, right, bottom) = drawn[0].axes[0], panel["box"]
    scale = np.log if log else np.asarray
    low, high = scale(panel["x"])
    for series in panel["series"][:2]:
        across = left + (scale(series["x"]) - low) / (high - low) * (right - left)
        pixels = axes.transData.transform(np.column_stack([series["x"], series["y"]]))
        expected = drawn[0].transFigure.inverted().transform(pixels)
        np.testing.assert_allclose(across, expected[:, 0], atol=1e-3)
        assert np.all((expected[:, 1] > 1 - bottom) & (expected[:, 1] < 1 - top))


def test_one_colour_an_algorithm_in_all_reports() -> None:
    alone, beside = make_styles(["trpo"]), make_styles(["mine", "dpi", "other", "trpo", "sac"])
    assert alone["trpo"] == beside["trpo"] and len({style.color for style in beside.values()}) == 5
    many = make_styles([f"algorithm_{i}" for i in range(30)])
    assert len({(style.color, str(style.dash)) for style in many.values()}) == len(COLORS) * 3


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
POINT = """<script>
window.addEventListener("error", event => { document.title = "error: " + event.message; });
window.addEventListener("load", () => {
  const image = document.querySelector("figure img"), frame = image.getBoundingClientRect();
  const event = {clientX: frame.left + .4 * frame.width, clientY: frame.top + .5 * frame.height};
  image.dispatchEvent(new PointerEvent("pointermove", event));
  document.body.dataset.wide = document.documentElement.scrollWidth - window.innerWidth;
});
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_in_a_browser(width: int, tmp_path: Path) -> None:
    """Offline, without an error, no wider than the window, and the pointer finds a value."""
    for algo in ("ppo", "trpo"):
        write_run(tmp_path, algo, "A-v0", 1, GRID, [1, 2, 3, 4, 5], source="words " * 60)
    write_report(tmp_path, {"A-v0": task("A-v0", 3.0)})
    (tmp_path / "page.html").write_text((tmp_path / "report.html").read_text().replace("</head>", POINT))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    page = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=300).stdout
    assert "<title>ppo, trpo on A-v0</title>" in page
    assert (
        re.search(r'<div class="tip"[^>]*>.*?trpo: [\d.]+ \([\d,.]+\)</div>', page)
        and int(
            re.search(r'data-wide="(-?\d+)"', page)[1]  # type: ignore[index]
        )
        <= 0
    )
