"""Files that are replaced while they are open: their frames are found by their times, or the reader is told."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from checking import rates_of

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.archive.open_part import OpenPart
from raincast.baselines import ForecastFiles
from raincast.data.channels import Site
from raincast.data.channels.field import Field
from raincast.forecasting.files.dataset import forecast_dataset
from raincast.forecasting.files.netcdf import write_forecast
from raincast.transforms import LinearScaling

START = np.datetime64("2026-01-01", "ns")


def day(*numbers: int, add: int = 0) -> xr.Dataset:
    """Frames at these numbers of 5 min, each with its own number as its rate."""
    dataset = schema.mock_archive(max(numbers) + 1, height=6, width=5)
    dataset[schema.RAIN].values[:] = np.arange(max(numbers) + 1)[:, None, None] + add
    return dataset.isel(time=list(numbers), missing_times=slice(0))


def replace(path: Path, dataset: xr.Dataset) -> None:
    if path.suffix == ".zarr":
        from raincast.archive import ZarrPartWriter

        with ZarrPartWriter(path, schema.grid_of(dataset), step_minutes=5) as part:
            for frame, time in zip(dataset[schema.RAIN].values, dataset.time.values, strict=True):
                part.add(time, frame)
            part.attrs = {}
    else:
        write_part(dataset, path)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_frames_keep_their_times(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / name
    replace(path, day(3, 4, 6))
    archive = Archive.open(path)
    assert archive.read(0, 3)[:, 0, 0].tolist() == [3, 4, 6]
    replace(path, day(1, 2, 3, 4, 5, 6, 7))
    assert archive.read(0, 3)[:, 0, 0].tolist() == [3, 4, 6]
    assert archive.read(1, 1)[:, 0, 0].tolist() == [4]
    assert (archive.read_codes(0, 3)[:, 0, 0] / 100).tolist() == [3, 4, 6]
    assert caplog.text.count("was rewritten while it was open") == 1
    replace(path, day(3, 4, 6, add=20))  # the same times and chunks, other rain
    assert archive.read(0, 3)[:, 0, 0].tolist() == [23, 24, 26]
    replace(path, day(3, 4))
    with pytest.raises(
        ValueError, match="was rewritten while it was open, and lacks the frame of 2026-01-01T00:30"
    ):
        archive.read(0, 1)


def test_a_part_that_is_first_opened_after_it_was_replaced(tmp_path: Path) -> None:
    write_part(day(3, 4, 6), tmp_path / "a.nc")
    archive = Archive.open(tmp_path)
    write_part(day(2, 3, 4, 6), tmp_path / "a.nc")
    assert archive.to_dataset(0, 3)[schema.RAIN][:, 0, 0].values.tolist() == [3, 4, 6]
    momentary = day(2, 3, 4, 6)
    momentary[schema.RAIN].attrs["cell_methods"] = "time: point"
    write_part(momentary, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="and has another grid, variable or meaning"):
        archive.read(0, 1)
    (tmp_path / "a.nc").unlink()
    with pytest.raises(ValueError, match=r"a\.nc was removed"):
        archive.read(0, 1)


def test_a_part_that_is_replaced_in_the_middle_of_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(day(3, 4, 6), tmp_path / "a.nc")
    archive = Archive.open(tmp_path)
    plain, left = OpenPart.read, [1]

    def read(part: OpenPart, time: slice, y: slice, x: slice) -> np.ndarray:
        if left:
            left.pop()
            write_part(day(2, 3, 4, 5, 6), tmp_path / "a.nc")
        return plain(part, time, y, x)

    monkeypatch.setattr(OpenPart, "read", read)
    assert archive.read(0, 3)[:, 0, 0].tolist() == [3, 4, 6]


def write_field(path: Path, start: np.datetime64, num: int) -> Path:
    times = start + np.timedelta64(5, "m") * np.arange(num)
    values = np.arange(num, dtype=np.float32)[:, None, None] * np.ones((6, 5), np.float32)
    grid = schema.mock_grid(6, 5)
    dataset = xr.Dataset({"cape": (("time", "y", "x"), values)}, coords=grid.to_coords() | {"time": times})
    partial = path.with_suffix(".partial")
    dataset.to_netcdf(partial)
    partial.replace(path)
    return path


def test_a_field_goes_on_when_it_grows_and_says_when_it_changes(tmp_path: Path) -> None:
    path = write_field(tmp_path / "a.nc", START, 3)
    site = Site(schema.mock_grid(6, 5), lambda: None, "the archive")
    reader = Field(str(path), "cape", "past", LinearScaling()).bind("cape", site)
    times = START + np.timedelta64(5, "m") * np.arange(3)
    one = slice(0, 1)
    assert reader.read(times, one, one).ravel().tolist() == [0, 1, 2]
    write_field(path, START, 5)
    assert reader.read(times, one, one).ravel().tolist() == [0, 1, 2]
    write_field(path, START - np.timedelta64(5, "m"), 5)
    with pytest.raises(ValueError, match=r"a\.nc cannot be read: it was rewritten while it was open, with other"):
        reader.read(times, one, one)


def test_a_baseline_file_that_is_now_from_another_time_is_an_error(tmp_path: Path) -> None:
    def write(init_time: np.datetime64) -> None:
        grid, rates = schema.mock_grid(6, 5), np.ones((2, 6, 5), np.float32)
        dataset = forecast_dataset(
            rates, init_time=init_time, step_minutes=5, grid=grid, cell_methods="time: point", attrs={}
        )
        write_forecast(dataset, tmp_path / "a.nc", overwrite=True)

    write(START)
    files = ForecastFiles(tmp_path)
    write(START + np.timedelta64(5, "m"))
    with pytest.raises(ValueError, match=r"a\.nc was rewritten: it is no longer from 2026-01-01T00:00"):
        rates_of(
            files,
            np.zeros((1, 2, 1, 6, 5), np.float32),
            2,
            times=np.array([START]),
            grid=schema.mock_grid(6, 5),
            y=[0],
            x=[0],
        )
