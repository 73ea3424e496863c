"""What values in files mean: their period, their packing, their valid range, their Z-R, their unit."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.forecasting import open_series
from raincast.ingest import ingest
from raincast.ingest.readers import Auto
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.geotiff import GeoTIFF
from raincast.ingest.readers.knmi import KNMI
from raincast.schema import MOMENTARY, Meaning

START = np.datetime64("2020-06-01T00:00", "ns")
RAIN = np.random.default_rng(0).gamma(0.5, 4.0, (6, 6, 5)).astype(np.float32).round(2)
DEPTH = {"units": "mm", "standard_name": "rainfall_amount"}


def cf_file(
    path: Path,
    values: Any = RAIN,
    *,
    minutes: Any = None,
    attrs: dict[str, Any] | None = None,
    encoding: dict[str, Any] | None = None,
    file_attrs: dict[str, Any] | None = None,
) -> Path:
    """A CF file of another party: no attribute of ours, times every 30 min unless `minutes` says them."""
    minutes = 30 * np.arange(len(values)) if minutes is None else np.asarray(minutes)
    coords: dict[str, Any] = schema.mock_grid(*np.shape(values)[1:]).to_coords()
    times = START + minutes * np.timedelta64(1, "m")
    rain = {"grid_mapping": "crs"} | ({"units": "mm h-1", "standard_name": "rainfall_rate"} | (attrs or {}))
    dataset = xr.Dataset(
        {"rain": (("time", "y", "x"), values, rain)}, coords={"time": times} | coords, attrs=file_attrs or {}
    )
    dataset.to_netcdf(path, engine="netcdf4", encoding={"rain": encoding or {}})
    return path


# the period of a depth


@pytest.mark.parametrize(
    ("attrs", "file_attrs"),
    [
        ({"accum_time_h": 0.25}, {}),
        ({"accum_time_h": 0.25, "cell_methods": "time: point"}, {}),
        ({"accumulation_period": "PT15M"}, {}),
        ({"cell_methods": "time: sum (interval: 15 minutes)"}, {}),
        ({"cell_methods": "area: mean time: sum (interval: 0.25 hr)"}, {}),
        ({}, {"accutime": 15.0}),
    ],
)
def test_the_period_of_a_depth_is_what_the_file_states(
    tmp_path: Path, attrs: dict[str, Any], file_attrs: dict[str, Any]
) -> None:
    """Depths over 15 min that come every 30 min: 4 times as much an hour, not twice, whatever frames are missing."""
    path = cf_file(
        tmp_path / "a.nc", minutes=[0, 30, 60, 120, 150, 180], attrs=DEPTH | attrs, file_attrs=file_attrs
    )
    assert CF().scan(path).meaning == Meaning("depth", 15)
    ingest([path], tmp_path / "archive", CF())
    archive = Archive.open(tmp_path / "archive")
    np.testing.assert_allclose(archive.read(0, 6), 4 * RAIN, atol=0.005)
    assert archive.step_minutes == 30 and archive.meaning == Meaning("mean", 15)
    assert open_series(path, CF()).read(archive.times[:1]).attrs["accumulation_minutes"] == 15


def test_an_unstated_period_is_asked_for_where_frames_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    whole = cf_file(tmp_path / "whole.nc", attrs=DEPTH)
    ingest([whole], tmp_path / "whole", CF())
    assert "does not state their period: taken as the step, 30 min" in caplog.text
    np.testing.assert_allclose(Archive.open(tmp_path / "whole").read(0, 6), 2 * RAIN, atol=0.005)

    gaps = cf_file(tmp_path / "gaps.nc", minutes=[0, 30, 60, 120, 150, 180], attrs=DEPTH)
    reader = Auto({"cf": CF()})
    remedy = "source.readers.cf.accumulation_minutes=30"
    with pytest.raises(ValueError, match=remedy):
        ingest([gaps], tmp_path / "gaps", reader)
    with pytest.raises(ValueError, match=remedy):
        open_series(gaps, reader).read(np.array([START]))
    ingest([gaps], tmp_path / "gaps", Auto({"cf": CF(accumulation_minutes=15)}))
    np.testing.assert_allclose(Archive.open(tmp_path / "gaps").read(0, 6), 4 * RAIN, atol=0.005)


@pytest.mark.parametrize("attrs", [{"accum_time_h": 0.0}, {"accumulation_period": "PT0H"}])
def test_a_period_of_no_time_is_refused(tmp_path: Path, attrs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no period over 0 min"):
        CF().scan(cf_file(tmp_path / "a.nc", attrs=DEPTH | attrs))


def test_bounds_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with xr.open_dataset(cf_file(tmp_path / "a.nc", attrs=DEPTH)) as opened:
        dataset = opened.load()
    ends = dataset["time"].values
    starts = ends - np.timedelta64(15, "m")
    starts[-1] -= np.timedelta64(45, "m")
    dataset["time_bnds"] = (("time", "nv"), np.stack([starts, ends], axis=1))
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset.to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    with pytest.raises(ValueError, match="cover 15 to 60 min"):
        CF().scan(tmp_path / "b.nc")


def test_meanings_are_compared_by_their_period() -> None:
    assert MOMENTARY.same_as(Meaning("momentary", quantity="RATE"))
    assert Meaning("mean").over(5).same_as(Meaning("depth", 5.0, "RY"))
    assert not Meaning("depth", 60).same_as(Meaning("depth", 5))
    assert not Meaning("depth", 5).same_as(MOMENTARY)
    assert str(Meaning("depth", 60, "ACRR")) == "depths over 60 min (ACRR)"
    hourly = Meaning("depth", 60)
    assert schema.meaning_of(hourly.cell_methods, hourly.attrs(5), 5).same_as(hourly)
    assert schema.meaning_of("time: mean", {}, 5) == Meaning("mean", 5)


def test_depths_of_a_geotiff_have_the_period_that_the_user_states() -> None:
    assert GeoTIFF("accumulation")._meaning("accumulation") == Meaning("depth", None)
    assert GeoTIFF("accumulation", accumulation_minutes=60)._meaning("accumulation") == Meaning("depth", 60)


def test_depths_over_another_time_than_their_step_say_so(write_knmi: Any) -> None:
    """KNMI's hours that come every 5 min; so do FMI's, BoM's and MeteoSwiss' readers, by the same record."""
    dataset = KNMI(step_minutes=5).read(write_knmi("2020-01-01T01:00", minutes=60))
    assert dataset.attrs["accumulation_minutes"] == 60 and dataset.attrs["step_minutes"] == 5
    head = KNMI(step_minutes=5).scan(write_knmi("2020-01-01T01:00", minutes=60))
    assert (head.step_minutes, head.meaning) == (5, Meaning("depth", 60))
