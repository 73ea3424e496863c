"""The documentation site: `make docs`. It is built without a network."""

import re
from typing import Any

from raincast.version import __version__

project = "raincast"
author = "The raincast developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"raincast {release}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository (conf/, benchmarks/) lead nowhere on the site
    "myst.header",
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn docstrings, plain text with `code` in single backticks, into reStructuredText."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        for index, part in enumerate(parts):
            if part.startswith("`") and part.endswith("`") and len(part) > 2:
                parts[index] = f"`{part}`"
            else:
                parts[index] = re.sub(r"([*|_\\])", r"\\\1", part)
        lines[number] = "".join(parts)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_rst)
