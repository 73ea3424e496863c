"""Times stored as floats: on their step wherever they are read."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from checking import rates_of

from raincast import schema
from raincast.archive import Archive
from raincast.baselines import ForecastFiles
from raincast.data.channels import Site
from raincast.data.channels.field import Field
from raincast.forecasting.files.dataset import forecast_dataset
from raincast.ingest.readers.cf import CF
from raincast.transforms import LinearScaling

START = np.datetime64("2020-06-01T00:00", "ns")
TIMES = START + np.timedelta64(5, "m") * np.arange(48)
STORED = {
    "days since 1900-01-01": np.float64,
    "days since 0001-01-01": np.float64,
    "hours since 2020-01-01": np.float32,
    "seconds since 2020-05-20": np.float32,
    "minutes since 1970-01-01 00:00:00": np.float64,
}


def stored(dataset: xr.Dataset, path: Path, units: str, dtype: type) -> Path:
    """The file, its times as numbers of this type in these units."""
    encoding = {"units": units, "dtype": dtype, "calendar": "standard", "_FillValue": None}
    dataset.to_netcdf(path, encoding={"time": encoding})
    return path


def rain() -> xr.Dataset:
    values = np.arange(48, dtype=np.float32)[:, None, None] * np.ones((6, 5), np.float32)
    dataset = schema.rain_dataset(
        values, TIMES, schema.mock_grid(6, 5), step_minutes=5, cell_methods="time: point"
    )
    del dataset.attrs[schema.STEP_MINUTES]
    return dataset.drop_vars(schema.MISSING_TIMES)


@pytest.mark.parametrize(("units", "dtype"), STORED.items())
def test_frames_and_archives_are_on_their_step(units: str, dtype: type, tmp_path: Path) -> None:
    path = stored(rain(), tmp_path / "a.nc", units, dtype)
    np.testing.assert_array_equal(CF().scan(path).times, TIMES)
    archive = Archive.open(path)
    np.testing.assert_array_equal(archive.times, TIMES)
    assert archive.step_minutes == 5.0


def test_bounds_are_rounded_as_their_times(tmp_path: Path) -> None:
    dataset = rain()
    dataset[schema.RAIN].attrs["cell_methods"] = "time: mean"
    dataset["time_bnds"] = (("time", "bnds"), np.stack([TIMES - np.timedelta64(5, "m"), TIMES], axis=1))
    dataset["time"].attrs["bounds"] = "time_bnds"
    path = stored(dataset, tmp_path / "a.nc", "days since 1900-01-01", np.float64)
    np.testing.assert_array_equal(CF().scan(path).times, TIMES)


@pytest.mark.parametrize(("units", "dtype"), STORED.items())
def test_a_past_channel_has_the_value_of_its_own_time(units: str, dtype: type, tmp_path: Path) -> None:
    path = stored(rain(), tmp_path / "a.nc", units, dtype)
    field = Field(str(path), schema.RAIN, "past", LinearScaling())
    reader = field.bind("x", Site(schema.mock_grid(6, 5), lambda: None, "the archive"))
    np.testing.assert_array_equal(reader.read(TIMES, slice(0, 1), slice(0, 1)).ravel(), np.arange(48))


def test_a_mean_is_known_at_the_end_of_its_period(tmp_path: Path) -> None:
    """Services stamp hourly means at their start: a past channel would see an hour ahead."""
    dataset = rain()
    dataset[schema.RAIN].attrs["cell_methods"] = "time: mean"
    dataset["time_bnds"] = (("time", "bnds"), np.stack([TIMES, TIMES + np.timedelta64(5, "m")], axis=1))
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset.to_netcdf(tmp_path / "a.nc")
    for role, first in (("past", 0), ("future", 1)):
        field = Field(str(tmp_path / "a.nc"), schema.RAIN, role, LinearScaling())  # type: ignore[arg-type]
        reader = field.bind("x", Site(schema.mock_grid(6, 5), lambda: None, "the archive"))
        assert reader.read(TIMES[1:2], slice(0, 1), slice(0, 1)).item() == first, role


@pytest.mark.parametrize("unit", ["days", "hours", "seconds"])
def test_lead_times_of_baseline_files(unit: str, tmp_path: Path) -> None:
    rates = np.ones((24, 6, 5), np.float32)
    dataset = forecast_dataset(
        rates, init_time=START, step_minutes=5, grid=schema.mock_grid(6, 5), cell_methods="time: point", attrs={}
    )
    times = {"init_time": {"units": "days since 1900-01-01", "dtype": np.float64}}
    dataset.to_netcdf(tmp_path / "a.nc", encoding=times | {"lead_time": {"units": unit, "dtype": np.float32}})
    files = ForecastFiles(tmp_path)
    shown = np.zeros((1, 2, 1, 6, 5), np.float32)
    assert rates_of(files, shown, 24, times=np.array([START]), grid=schema.mock_grid(6, 5)).min() == 1


def test_what_resolves_too_little_is_refused(tmp_path: Path) -> None:
    dataset = rain().assign_coords(time=START + np.timedelta64(6, "m") * np.arange(48))
    path = stored(dataset, tmp_path / "a.nc", "seconds since 1970-01-01", np.float32)
    with pytest.raises(ValueError, match="resolves 128 s: the exact times are unknown"):
        CF().scan(path)


def test_coarse_times_on_whole_steps_are_told(tmp_path: Path) -> None:
    path = stored(rain(), tmp_path / "a.nc", "seconds since 1970-01-01", np.float32)
    np.testing.assert_array_equal(CF().scan(path).times, TIMES)


def test_files_are_closed_after_they_were_read(tmp_path: Path) -> None:
    path = stored(rain(), tmp_path / "a.nc", "days since 1900-01-01", np.float64)
    CF().scan(path)
    assert str(path) not in {str(Path(link).resolve()) for link in Path("/proc/self/fd").iterdir()}


def test_a_time_zone_is_an_offset_or_refused(tmp_path: Path) -> None:
    """xarray drops a zone's name, and reads UTC+2 and 2:00 as −2 h."""
    for zone, hours in (("", 0), (" UTC", 0), ("Z", 0), (" +02:00", 2), (" -5", -5), (" +0530", 5.5)):
        path = tmp_path / f"a{hours}{len(zone)}.nc"
        numbers = rain().assign_coords(time=("time", 300.0 * np.arange(48)))
        numbers.time.attrs |= {"units": f"seconds since 2020-06-01 00:00:00{zone}"}
        numbers.to_netcdf(path)
        np.testing.assert_array_equal(CF().scan(path).times, TIMES - np.timedelta64(round(3600 * hours), "s"))
    for zone in ("CET", "local", "UTC+2", "2:00", "Europe/Berlin"):
        numbers.time.attrs["units"] = f"seconds since 2020-06-01 00:00:00 {zone}"
        numbers.to_netcdf(tmp_path / "b.nc")
        for read in (CF().scan, Archive.open):
            with pytest.raises(ValueError, match="does not know the time zone"):
                read(tmp_path / "b.nc")
