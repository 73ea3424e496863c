"""Commands as the user types them."""

import re
import sys
from pathlib import Path

CHECKOUT = (Path(__file__).resolve().parents[3] / "train.py").is_file()
"""True if raincast runs from its repository, where each command has a script."""


def as_typed(text: str) -> str:
    """Return a text with its commands as the user types them: `raincast train` if there is no train.py."""
    if CHECKOUT and not sys.argv[0].startswith("raincast "):
        return text
    return re.sub(r"\bpython (train|evaluate|forecast|ingest|export)\.py\b", r"raincast \1", text)
