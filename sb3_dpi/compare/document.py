"""A small document of headings, paragraphs, lists, tables and figures, rendered to Markdown and to one HTML file.

Texts are plain: what has a meaning in Markdown or HTML is escaped when rendering. The HTML file holds its images and its
style, so that it can be sent as it is.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 74rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.35rem; margin-top: 2.6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin-top: 1.6rem; }
nav { font-size: .9rem; margin: 1rem 0; } nav a { margin-right: 1rem; color: #0072b2; text-decoration: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6; }
th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; }
td.text, th.text { text-align: left; } tbody tr:hover { background: #f4f7fa; }
ul.warning { background: #fff6e0; border-left: 4px solid #e69f00; padding: .7rem 1rem .7rem 2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #666; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]
    warning: bool = False
    """Whether HTML puts it into a box that is seen"""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    """Numbers of the columns that hold words and are set to the left; the others hold figures and are set to the right"""


@dataclass(frozen=True)
class Image:
    """A figure, kept as a file beside the Markdown and inside the HTML."""

    path: str
    """Of the file, relative to the document"""
    png: bytes
    caption: str


Block = Heading | Paragraph | Items | Table | Image


@dataclass
class Document:
    """
    A document, built block by block.

    :param title: Its title
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """
        Add blocks at the end.

        :param blocks: In their order
        """
        self.blocks.extend(blocks)

    @property
    def images(self) -> dict[str, bytes]:
        """From the relative path of each image to its PNG."""
        return {block.path: block.png for block in self.blocks if isinstance(block, Image)}

    def markdown(self) -> str:
        """
        Render as Markdown.

        :return: The text of a file; images are links to the files of ``images``
        """
        return "\n\n".join([f"# {_plain(self.title)}", *map(_markdown, self.blocks)]) + "\n"

    def html(self) -> str:
        """
        Render as HTML.

        :return: The text of a file that needs no other
        """
        chapters = [block.text for block in self.blocks if isinstance(block, Heading) and block.level == 2]
        links = "".join(f'<a href="#{_anchor(text)}">{escape(text)}</a>' for text in chapters)
        title = escape(self.title)
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
                f"<h1>{title}</h1>\n<nav>{links}</nav>",
                *map(_html, self.blocks),
                "</body>\n</html>\n",
            ]
        )


def _plain(text: str) -> str:
    # Only what would be taken for markup: "<= 0.1" and "sac_raw" stay readable in the source
    text = re.sub(r"([\\`*|])|(?<![^\W_])_|_(?![^\W_])", lambda found: "\\" + found[0], text)
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text).replace("\n", " ")


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Image):
        return f"![{_plain(block.caption)}]({block.path})"
    rule = [":--" if i in block.text_columns else "--:" for i in range(len(block.header))]
    rows = [list(map(_plain, block.header)), rule, *(list(map(_plain, row)) for row in block.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        anchor = f' id="{_anchor(block.text)}"' if block.level == 2 else ""
        return f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Items):
        items = "\n".join(f"<li>{escape(item)}</li>" for item in block.items)
        return f"<ul{' class=warning' if block.warning else ''}>\n{items}\n</ul>"
    if isinstance(block, Image):
        source = b64encode(block.png).decode("ascii")
        caption = escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
        return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i in block.text_columns else "" for i in range(len(row))]
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        )

    body = "\n".join(cells(row, "td") for row in block.rows)
    return (
        f'<div class="scroll"><table>\n<thead>{cells(block.header, "th")}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )
