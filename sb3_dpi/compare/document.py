"""From the content of a report to its texts: one template makes the Markdown, and the HTML page is made of that."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from sb3_dpi.compare.figures import Drawing

LEFT = ("algorithm", "task", "hyperparameters", "better than", "as read, not run here")
"""Columns that hold words"""


def plain(text: object) -> str:
    """Escape what would be taken for markup, and no more: ``<= 0.1`` and ``sac_raw`` stay readable. ``Markup`` stays."""
    if isinstance(text, Markup):
        return str(text)
    escaped = re.sub(r"([\\`*|]|\](?=\())|(?<![^\W_])_|_(?![^\W_])", lambda found: "\\" + found[0], str(text))
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", escaped).replace("\n", " ")


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    found = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    found.filters["plain"] = plain
    found.globals["left"] = LEFT
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """Render a report as Markdown: what ``report.md.j2`` names, figures as links to the files of ``figures``."""
    text = _environment().get_template("report.md.j2").render(content)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ ]+$", "", text, flags=re.MULTILINE)).strip() + "\n"


def page(title: str, text: str, figures: Mapping[str, Drawing]) -> str:
    """Make one HTML file of a report's Markdown that needs no other, with the values of figures beneath the pointer."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    chapters: list[tuple[str, str]] = []
    tokens = parser.parse(text)
    for token, content in pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            words = "".join(child.content for child in content.children or [])
            anchor = re.sub(r"\W+", "-", words.lower()).strip("-")
            while not anchor or anchor in dict(chapters):
                anchor += "-"
            token.attrSet("id", anchor)
            chapters.append((anchor, words))
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")

    def figure(found: re.Match[str]) -> str:
        drawing = figures[found[1]]
        source = f"data:image/png;base64,{b64encode(drawing.png).decode('ascii')}"
        panels = escape(json.dumps(drawing.panels, separators=(",", ":")))
        image = f'<img alt="{found[2]}" src="{source}">'
        return f'<figure data-panels="{panels}">\n{image}\n<figcaption>{found[2]}</figcaption>\n</figure>'

    body = re.sub(r'<p><img src="figures/([^"]+)\.png" alt="([^"]*)" ?/?></p>', figure, body)
    return _environment().get_template("page.html.j2").render(title=title, body=body, chapters=chapters)
