"""How the site is built: `pip install 'medcam-xai[docs]'`, `sphinx-build -n -W --keep-going docs build/docs`. It asks nobody for anything.

The index is the tree: its headings are the kinds of page and its links the pages, so a page that the index does not name is an error.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

import medcam

sys.path.insert(0, str(Path(__file__).parent))

project = "medcam"
author = "The medcam developers"
copyright = "The medcam developers, Apache-2.0"
version = release = medcam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["images/*"]
source_suffix = {".md": "markdown"}
language = "en"
smartquotes = False
nitpicky = True

myst_enable_extensions = ["attrs_block", "dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "medcam"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"}}

# Single backticks in docstrings are names and code.
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# Two rooms may have a class of the same name; a link from a bare name then leads to the first.
suppress_warnings = ["ref.python"]
# Names of other packages and of type variables lead nowhere here, since no inventory is fetched while building; nor do the values that only
# the rooms' own code passes on.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!medcam).*"),
    (r"py:class", r"medcam\.(cohort|engine|options|pacs|plugins|report|workers)\..*"),
]


def tree_of(index: str) -> str:
    """Return the hidden tables of contents that an index's headings and links ask for."""
    parts = []
    for section in re.split(r"^## ", index, flags=re.M)[1:]:
        caption, _, body = section.partition("\n")
        pages = [
            f"{words.replace('`', '')} <{page}>"
            for words, page in re.findall(r"^- \[(.+?)\]\(([^)#:]+)\.md\)", body, re.M)
        ]
        if pages:
            parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(parts)


def _add_tree(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        source[0] += "\n\n" + tree_of(source[0]) + "\n"


def setup(app: Sphinx) -> None:
    """Let the index be the tree."""
    app.connect("source-read", _add_tree)
