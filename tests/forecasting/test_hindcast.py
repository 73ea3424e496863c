"""Ranges of init times, gone on with where they stopped."""

import numpy as np
import pytest
import xarray as xr
from running import compose_config

from raincast.commands.forecast import run as forecast
from raincast.forecasting import FileSeries, init_times
from raincast.schema import mock_archive

TIMES = np.datetime64("2026-01-01T00:00", "ns") + np.arange(10) * np.timedelta64(5, "m")


def texts(times):
    return [str(np.datetime_as_string(time, unit="m"))[11:] for time in times]


def test_init_times():
    assert texts(init_times("latest", TIMES, 5.0)) == ["00:45"]
    assert texts(init_times("2026-01-01T00:20Z", TIMES, 5.0)) == ["00:20"]
    assert texts(init_times("2026-01-01T00:30/2026-01-01T00:45", TIMES, 5.0)) == [
        "00:30",
        "00:35",
        "00:40",
        "00:45",
    ]
    # on the step of the input, whatever the minute; due also where a frame is missing
    gap = np.delete(TIMES, 6)
    assert texts(init_times("2026-01-01T00:22/2026-01-01T00:41", gap, 5.0, 2)) == ["00:25", "00:35"]
    assert texts(init_times("/2026-01-01T00:05", TIMES, 5.0)) == ["00:00", "00:05"]
    assert len(init_times("/", TIMES, 5.0, 3)) == 4
    assert texts(init_times("2025-12-31T23:50/2026-01-01T00:00", TIMES, 5.0)) == ["23:50", "23:55", "00:00"]


@pytest.mark.parametrize(
    ("text", "every", "message"),
    [
        ("2026-01-01T01:00/2026-01-01T00:00", 1, "ends before it begins"),
        ("2026-01-01T00:01/2026-01-01T00:02", 1, r"contains no time step of the input \(5 min\)"),
        ("yesterday/", 1, "write latest or"),
        ("/", 0, "every=0"),
    ],
)
def test_init_times_that_are_none(text, every, message):
    with pytest.raises(ValueError, match=message):
        init_times(text, TIMES, 5.0, every)


def test_a_hindcast_goes_on_where_it_stopped(tiny_run, tiny_archive, tmp_path, caplog):
    common = [
        f"checkpoint={tiny_run}/checkpoints/best.ckpt", f"input={tiny_archive}", "device=cpu", "animation=false",
        f"folder={tmp_path}/out", "every=2",
    ]  # fmt: skip
    with xr.open_dataset(next(tiny_archive.glob("*.nc"))) as day:
        first, last = (str(np.datetime_as_string(day["time"].values[n], unit="m")) for n in (3, 9))

    def run(*more):
        forecast(compose_config("forecast", tmp_path / "run", *common, f"init_time={first}/{last}", *more))
        return {path.name: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nc"))}

    whole = run()
    assert len(whole) == 4
    names = list(whole)
    (tmp_path / "out" / names[1]).unlink()
    (tmp_path / "out" / names[2]).write_bytes(b"cut short")
    again = run()
    assert list(again) == names
    assert [again[name] == whole[name] for name in names] == [True, False, False, True]
    with xr.open_dataset(tmp_path / "out" / names[1]) as file:
        alone = compose_config(
            "forecast", tmp_path / "b", *common[:-2], f"init_time={file['init_time'].values.astype('M8[m]')}",
            f"folder={tmp_path}/alone",
        )  # fmt: skip
        with xr.open_dataset(forecast(alone)) as one:
            np.testing.assert_array_equal(one["rain_rate"], file["rain_rate"])
    with pytest.raises(ValueError, match=r"another network or over 3 steps.*overwrite=true"):
        run("lead_steps=2")
    assert run("lead_steps=2", "overwrite=true") != again


def test_a_range_without_any_frame_is_one_message(tiny_run, tiny_archive, tmp_path):
    config = compose_config(
        "forecast", tmp_path / "run", f"checkpoint={tiny_run}/checkpoints/best.ckpt", f"input={tiny_archive}",
        "init_time=1999-01-01T00:00/1999-01-01T00:10",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"no forecast from any of 3 init times\. The first: .* has none of the"):
        forecast(config)


def test_files_are_read_once_for_a_range_and_anew_when_they_change(tmp_path):
    from raincast.ingest.readers.cf import CF

    class Counting:
        def __init__(self):
            self.reads = 0
            self.reader = CF()

        def scan(self, path):
            return self.reader.scan(path)

        def read(self, path, frames, *, step_minutes=None):
            self.reads += 1
            return self.reader.read(path, frames, step_minutes=step_minutes)

    mock_archive(6, 8, 8).drop_vars("missing_times").to_netcdf(tmp_path / "a.nc")
    counting = Counting()
    series = FileSeries(counting, [tmp_path / "a.nc"])
    series.read(series.times[:3])
    assert counting.reads == 3
    series.read(series.times[1:4])
    assert counting.reads == 4
    series.add(tmp_path / "a.nc")
    series.read(series.times[1:4])
    assert counting.reads == 7


def test_a_file_that_cannot_be_read_is_a_missing_frame(tmp_path, caplog):
    from raincast.ingest.readers.cf import CF

    mock = mock_archive(4, 8, 8).drop_vars("missing_times")
    paths = [tmp_path / f"{number}.nc" for number in range(4)]
    for number, path in enumerate(paths):
        mock.isel(time=[number]).to_netcdf(path)
    paths[1].write_bytes(paths[1].read_bytes()[:400])
    series = FileSeries(CF(), paths)
    assert texts(series.times) == [texts(mock["time"].values)[number] for number in (0, 2, 3)]
    assert "1 of 4 files cannot be read and are left out" in caplog.text and "1.nc" in caplog.text
    with pytest.raises(ValueError, match=r"1\.nc"):
        FileSeries(CF(), paths[1:2])
