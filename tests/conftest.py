"""What all tests share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def radar_dir() -> Path:
    """The folder of real radar files: $RAINCAST_RADAR, or shared/radar beside the checkout."""
    path = Path(os.environ.get("RAINCAST_RADAR", REPO.parent / "shared" / "radar"))
    if not path.is_dir():
        pytest.skip(f"needs the real radar files, and {path} is no folder (set RAINCAST_RADAR)")
    return path
