"""An archive goes on with the settings it was made with, or not at all; the report counts all missing times."""

from pathlib import Path

import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import archive_folder, ingest
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


STEP = np.timedelta64(5, "m").astype("timedelta64[ns]")
FIRST = np.datetime64("2026-01-01", "ns")


@pytest.mark.parametrize("seed", range(5))
def test_missing_times_against_the_whole_series(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_folder, "BLOCK", 7)
    rng = np.random.default_rng(seed)
    kept = FIRST + STEP * np.flatnonzero(rng.random(60) < 0.6)
    first, last = FIRST + STEP * 3, FIRST + STEP * 55  # what was there before and after does not count
    num, times = archive_folder.missing_times(first, last, kept, STEP)
    inside = kept[(kept >= first) & (kept <= last)]
    due = first + STEP * np.arange(53)
    np.testing.assert_array_equal(times, np.setdiff1d(due, inside))
    assert num == times.size
    monkeypatch.setattr(archive_folder, "MOST_LISTED", 4)
    assert archive_folder.missing_times(first, last, kept, STEP)[0] == num
    np.testing.assert_array_equal(archive_folder.missing_times(first, last, kept, STEP)[1], times[:4])


def test_a_wrong_century_is_counted_not_listed() -> None:
    kept = np.array(["1926-01-01", "2026-01-01"], "datetime64[ns]")
    num, times = archive_folder.missing_times(kept[0], kept[1], kept, STEP)
    assert num == 36525 * 288 - 1 and times.size == archive_folder.MOST_LISTED
    assert times[0] == kept[0] + STEP
    assert schema.missing_times(kept[:1], STEP).size == 0
