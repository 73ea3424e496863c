"""An archive goes on with the settings it was made with, or not at all."""

from pathlib import Path

import pytest

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.archive_folder import describe
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Auto
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.knmi import KNMI
from raincast.ingest.region import Region


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """An archive of the first of two files, by CF's defaults."""
    for number, start in enumerate(("2026-01-01T00:00", "2026-01-01T00:30")):
        schema.mock_archive(6, start=start).to_netcdf(tmp_path / f"{number}.nc", engine="netcdf4")
    ingest(tmp_path / "0.nc", tmp_path / "out", CF())
    return tmp_path / "out"


def test_settings_are_plain_data() -> None:
    settings = describe(Auto({"cf": CF(zr_a=256.0)}), Quality(), Region((0, 1, 0, 1), 1))
    assert settings["source"]["readers"]["cf"]["zr_a"] == 256.0
    grid = {"crop": [0, 1, 0, 1], "coarsen": 1, "reproject": None, "spacing": None, "bounds": None}
    assert (settings["max_rate"], settings["grid"]) == (300.0, grid)


def test_other_settings_are_refused_with_the_difference(half: Path) -> None:
    before = (half / "2026-01-01.nc").read_bytes()
    with pytest.raises(ValueError, match=r"(?s)max_rate: 300\.0.* 200\.0.*zr_b: null in the archive, 1\.5 now"):
        ingest(half.parent / "1.nc", half, CF(zr_b=1.5), max_rate=200.0)
    with pytest.raises(ValueError, match="source: CF in the archive, KNMI now"):
        ingest(half.parent / "1.nc", half, KNMI())
    with pytest.raises(ValueError, match="zr_a"):
        ingest(half.parent / "1.nc", half, Auto({"cf": CF(zr_a=300.0)}))
    assert (half / "2026-01-01.nc").read_bytes() == before


def test_the_same_reader_among_others_goes_on_and_so_does_a_stated_step(half: Path) -> None:
    ingest(half.parent / "1.nc", half, Auto({"knmi": KNMI(), "cf": CF(step_minutes=5)}))
    assert Archive.open(half).num_times == 12
