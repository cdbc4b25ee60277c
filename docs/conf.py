"""Sphinx builds the pages by this file: ``make docs``."""

import warnings
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.deprecation import RemovedInNextVersionWarning
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent

project = "sb3_dpi"
author = "sb3_dpi contributors"
copyright = f"2026, {author}"
release = version = (ROOT / "sb3_dpi" / "version.txt").read_text("utf-8").strip()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_autodoc_typehints", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Types stand beside the descriptions: signatures of thirty arguments are read by name and default
autodoc_typehints = "none"
always_use_bars_union = True
typehints_document_rtype = False
# Stable-Baselines3's own aliases of types name what their module does not import
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference"]
warnings.filterwarnings("ignore", category=RemovedInNextVersionWarning, module="sphinx_autodoc_typehints")
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"sb3_dpi {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False


def visit_inline(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula as MathML: browsers show it without scripts and without a network."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands alone."""
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the writer of formulas."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
