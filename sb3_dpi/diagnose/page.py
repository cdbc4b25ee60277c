"""One page of all that was found, that needs no other file, and the tables beside it."""

from base64 import b64encode
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sb3_dpi.diagnose.chapters import chapters, missing
from sb3_dpi.diagnose.film import Film
from sb3_dpi.diagnose.keys import KeyFigure
from sb3_dpi.diagnose.measure import Findings
from sb3_dpi.diagnose.pictures import frame_png

PAGE = "index.html"


def write(findings: Findings, film: Film, environment: str, folder: Path) -> list[Path]:
    """
    Write page and tables.

    :param findings: of ``measure``
    :param film: of one episode
    :param environment: its name
    :param folder: made where it is not there
    :return: what was written, the page first
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / PAGE]
    written[0].write_text(render(findings, film, environment), encoding="utf-8")
    for name, table in findings.tables.items():
        written.append(folder / f"{name}.csv")
        table.to_csv(written[-1], index=False)
    return written


def render(findings: Findings, film: Film, environment: str) -> str:
    """
    Make the page.

    :param findings: of ``measure``
    :param film: of one episode
    :param environment: its name
    :return: HTML
    """
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    templates.filters["uri"] = _uri
    templates.filters["number"] = _number
    episodes, shown = findings.tables["episodes"], chapters(findings)
    return templates.get_template("page.html.j2").render(
        subject=findings.subject,
        environment=environment,
        n_episodes=len(episodes),
        steps=episodes["steps"].mean(),
        keys=findings.keys,
        bad=[key for key in findings.keys if key.is_good is False],
        chapters=shown,
        missing=missing(findings),
        linked={chapter.name for chapter in shown},
        tables=list(findings.tables),
        note=findings.notes.get("model", ""),
        frames=[(t, frame_png(frame)) for t, frame in film.frames],
        film_note=film.note,
    )


def _uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + b64encode(png).decode("ascii")


def _number(key: KeyFigure) -> str:
    return f"{key.value:,.0f}" if abs(key.value) >= 1000 else f"{key.value:.3g}"
