"""Settings of the documentation: Sphinx with MyST and furo. ``make docs`` builds it, without network, into ``build/docs``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import latex2mathml.converter

import sb3_trpo

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "sb3_trpo"
author = copyright = "the sb3_trpo developers"  # noqa: A001  # Sphinx's name
version = release = sb3_trpo.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["notebooks/*"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "fieldlist"]
myst_heading_anchors = 3

# Inventories are fetched only on request: a build must not need a network.
SITES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "gymnasium": "https://gymnasium.farama.org/",
    "stable_baselines3": "https://stable-baselines3.readthedocs.io/en/master/",
    "sb3_contrib": "https://sb3-contrib.readthedocs.io/en/master/",
}
intersphinx_mapping = {name: (url, None) for name, url in SITES.items()} if "DOCS_LINK_OTHERS" in os.environ else {}

autodoc_typehints = "signature"
maximum_signature_line_length = 120  # a longer one has a line for each parameter
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}

html_theme = "furo"
html_title = f"sb3_trpo {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext()))


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{latex2mathml.converter.convert(node.astext(), display="block")}</div>')


def _skip(renderer: object) -> object:
    from docutils.nodes import SkipNode

    def render(self: HTML5Translator, node: nodes.Node) -> None:
        renderer(self, node)
        raise SkipNode

    return render


def setup(app: Sphinx) -> None:
    """Draw equations as MathML, which every browser knows: MathJax would be fetched from a network at each look."""
    app.add_html_math_renderer("mathml", (_skip(_inline), None), (_skip(_block), None))
