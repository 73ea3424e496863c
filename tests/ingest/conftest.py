"""Small files in the formats of the services."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import knmi_file
import pytest

WriteKNMI = Callable[..., Path]


@pytest.fixture
def write_knmi(tmp_path: Path) -> WriteKNMI:
    """Write one frame of codes (0.01 mm) as KNMI HDF5: write_knmi("2020-01-01T00:05", codes)."""

    def write(end: str, codes: Any = None, *, name: str = "", **settings: Any) -> Path:
        path = tmp_path / (name or f"RAD_{datetime.fromisoformat(end):%Y%m%d%H%M}.h5")
        return knmi_file.write(path, end, codes, **settings)

    return write
