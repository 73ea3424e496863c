"""Values that cannot be rain, in archives and radar files: missing everywhere, and named with frame and pixel."""

import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from raincast import schema
from raincast.archive import MISSING_CODE, Archive, rates, write_part
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Limited
from raincast.ingest.readers.cf import CF

PLACE = (2, 3, 4)  # frame, row, column
NAMED = r"the frame of 2026-01-01T00:10, row 3, column 4"


@pytest.fixture(autouse=True)
def _nothing_named_yet() -> None:
    rates._named.clear()


def with_value(value: float) -> xr.Dataset:
    frames = schema.mock_archive(4, 8, 9, start="2026-01-01T00:00")
    rain = np.ones(frames[schema.RAIN].shape, np.float32)
    rain[PLACE] = value
    return frames.assign({schema.RAIN: frames[schema.RAIN].copy(data=rain)})


@pytest.mark.parametrize("value", [1e20, np.inf, -np.inf, -3.0, 9.96921e36])
def test_of_any_archive_such_a_value_is_missing_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    path = tmp_path / "theirs.nc"
    with_value(value).to_netcdf(path, encoding={schema.RAIN: {"dtype": "float64", "_FillValue": None}})
    archive = Archive.open(path)
    with caplog.at_level(logging.WARNING):
        windows = [archive.read(1, 3, y=slice(2, 7), x=slice(3, 9))[1, 1, 1] for _ in range(2)]
        codes = archive.read_codes(0, 4)[PLACE]
        radar = Limited(CF()).read(path)[schema.RAIN].values[PLACE]
    assert np.isnan([*windows, radar]).all() and codes == MISSING_CODE
    (record,) = caplog.records  # once, however often it is read
    assert record.getMessage().startswith(f"{path} holds 1 values") and NAMED in record.getMessage()
    assert f"{np.float32(value):g} in the frame" in record.getMessage()


@pytest.mark.parametrize("ours", [True, False])
def test_negative_codes_are_missing_in_codes_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ours: bool
) -> None:
    import netCDF4

    path = tmp_path / "2026-01-01.nc"
    write_part(schema.mock_archive(4, 8, 9, start="2026-01-01T00:00"), path)
    with netCDF4.Dataset(path, "a") as file:
        file.set_auto_maskandscale(False)
        file[schema.RAIN][PLACE] = -1
        if not ours:
            file[schema.RAIN].scale_factor = 0.1
    archive = Archive.open(path)
    with caplog.at_level(logging.WARNING):
        codes = [archive.read_codes(0, 4)[PLACE] for _ in range(2)]  # of the file, then of the cache
        assert codes == [MISSING_CODE] * 2 and np.isnan(archive.read(0, 4)[PLACE])
    assert NAMED in caplog.text


def test_a_radar_file_is_named_and_hail_is_capped_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for value, expected in ((1e20, np.nan), (50_000.0, 300.0)):
        path = tmp_path / f"{value}.nc"
        with_value(value).to_netcdf(path)
        with caplog.at_level(logging.WARNING):
            rates = Limited(CF()).read(path)[schema.RAIN].values
        clean, num_capped = Quality().clean(rates[PLACE[0]])
        np.testing.assert_equal(clean[PLACE[1:]], np.float32(expected))
        assert num_capped == (not np.isnan(expected))
        assert (f"{path} holds 1 values" in caplog.text) == np.isnan(expected)
