"""The documentation site: `make docs`. It is built without a network; notebooks and gallery are run for it."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from raincast.version import __version__

HERE = Path(__file__).parent
sys.path.append(str(HERE))

project = "raincast"
author = "The raincast developers"
copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = ["_build", "_gallery", "_jupyter_cache"]
html_theme = "furo"
html_title = f"raincast {release}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository (conf/, benchmarks/) lead nowhere on the site
    "myst.header",
]
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_jupyter_cache")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True

html_extra_path = ["_gallery"]
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
    from make_gallery import make_gallery

    os.environ.setdefault("OMP_NUM_THREADS", "2")
    # Sphinx reads what lies beside its pages
    shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
    make_gallery(HERE / "_gallery" / "gallery")
    app.connect("autodoc-process-docstring", _as_rst)
