"""The commands as this user types them."""

import re
import sys
from pathlib import Path

CHECKOUT = (Path(__file__).resolve().parents[3] / "train.py").is_file()
"""Whether raincast runs from its repository, where each command has a script."""


def as_typed(text: str) -> str:
    """Commands in a text as this user types them: `raincast train` where there is no train.py."""
    if CHECKOUT and not sys.argv[0].startswith("raincast "):
        return text
    return re.sub(r"\bpython (train|evaluate|forecast|ingest|export)\.py\b", r"raincast \1", text)
