"""Momentary rates, means and depths over other periods never lie in one archive or series."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import test_odim
import xarray as xr

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.forecasting import open_series
from raincast.ingest import ingest
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.odim import ODIM
from raincast.live.folder import Folder
from raincast.live.intake import Intake
from raincast.live.status import Record
from raincast.schema import Meaning


def odim(path: Path, time: str, quantity: str, minutes: int = 60) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    end = np.datetime64(time, "s")
    start = end - np.timedelta64(minutes if quantity == "ACRR" else 0, "m")
    stamps = {}
    for which, at in (("start", start), ("end", end)):
        stamps[f"{which}date"], stamps[f"{which}time"] = str(at).replace("-", "").replace(":", "").split("T")
    nominal = {"date": stamps["enddate"], "time": stamps["endtime"]}
    images = {"dataset1/data1": (test_odim.CODES, test_odim.RATE | {"quantity": quantity})}
    return test_odim.write(path, images, levels={"dataset1": stamps}, nominal=nominal)


def days(folder: Path) -> None:
    """A day of momentary rates, and a day of hourly depths, both every 15 min."""
    for minute in (0, 15, 30, 45):
        odim(folder / f"rate_{minute:02d}.hdf", f"2020-06-01T00:{minute:02d}", "RATE")
        odim(folder / f"acrr_{minute:02d}.hdf", f"2020-06-02T00:{minute:02d}", "ACRR")


def cf(path: Path, start: str, *, step: int = 5, cell_methods: str = "time: point", **attrs: float) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    times = np.datetime64(start, "ns") + np.timedelta64(step, "m") * np.arange(4)
    dataset = schema.rain_dataset(
        np.ones((4, 6, 5), np.float32), times, schema.mock_grid(6, 5), step_minutes=step, cell_methods=cell_methods
    )
    dataset.attrs |= attrs
    dataset.to_netcdf(path)
    return path


def test_rates_and_depths_are_refused_with_both_named(tmp_path: Path) -> None:
    days(tmp_path / "in")
    both = r"depths over 60 min \(ACRR\), .*momentary rates \(RATE\)\. They cannot be mixed"
    with pytest.raises(ValueError, match=both):
        ingest(tmp_path / "in", tmp_path / "out", ODIM())
    assert not (tmp_path / "out").exists()
    ingest(f"{tmp_path}/in/rate*", tmp_path / "out", ODIM())
    with pytest.raises(ValueError, match=r"acrr_00\.hdf holds depths over 60 min \(ACRR\), .*out holds momentary"):
        ingest(f"{tmp_path}/in/acrr*", tmp_path / "out", ODIM())
    assert Archive.open(tmp_path / "out").num_times == 4
    ingest(f"{tmp_path}/in/acrr*", tmp_path / "hours", ODIM())
    with pytest.raises(ValueError, match="holds momentary rates .*hours holds means over 60 min"):
        ingest(f"{tmp_path}/in/rate*", tmp_path / "hours", ODIM())
    quarters = odim(tmp_path / "quarter.hdf", "2020-06-02T01:00", "ACRR", minutes=15)
    with pytest.raises(ValueError, match="holds depths over 15 min .*hours holds means over 60 min"):
        ingest(quarters, tmp_path / "hours", ODIM())


def test_one_file_of_another_meaning_is_a_bad_file(tmp_path: Path) -> None:
    days(tmp_path / "in")
    for minute in (15, 30, 45):
        (tmp_path / f"in/acrr_{minute}.hdf").unlink()
    report = ingest(tmp_path / "in", tmp_path / "out", ODIM())
    (why,) = report.bad_files.values()
    assert "acrr_00.hdf holds depths over 60 min (ACRR); " in why and report.num_written == 4


def test_no_setting_is_suggested_that_would_make_hourly_depths_pass(tmp_path: Path) -> None:
    ingest(cf(tmp_path / "a.nc", "2020-06-01T00:00", cell_methods="time: mean"), tmp_path / "out", CF())
    hourly = cf(tmp_path / "b.nc", "2020-06-02T00:00", step=60, cell_methods="time: mean")
    with pytest.raises(ValueError, match="means over 60 min.*out holds means over 5 min") as error:
        ingest(hourly, tmp_path / "out", CF())
    assert "step_minutes" not in str(error.value)


def test_an_archive_of_two_meanings_cannot_be_opened(tmp_path: Path) -> None:
    for name, methods in (("a", "time: point"), ("b", "time: mean")):
        dataset = schema.mock_archive(4, start=f"2020-01-0{1 + (name == 'b')}T00:00")
        dataset[schema.RAIN].attrs["cell_methods"] = methods
        write_part(dataset, tmp_path / f"{name}.nc")
    with pytest.raises(ValueError, match=r"mixes momentary rates in a\.nc and means over 5 min in b\.nc"):
        Archive.open(tmp_path)


def test_input_of_a_forecast_is_of_the_newest_meaning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days(tmp_path / "in")
    series = open_series(tmp_path / "in", ODIM())
    assert series.times.size == 4 and series.times.min() == np.datetime64("2020-06-02")
    assert "4 of 8 files are left out" in caplog.text and "momentary rates (RATE)" in caplog.text


def test_live_mode_refuses_another_meaning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days(tmp_path / "all")
    (tmp_path / "in").mkdir()
    record = Record()
    intake = live_intake(tmp_path / "in", record)
    for name in ("rate_00", "rate_15", "acrr_00"):
        shutil.copy(tmp_path / f"all/{name}.hdf", tmp_path / "in")
        list(intake.chunks(2e9, lambda: False))
    assert intake.recent.times.size == 2 and record.counts["other"] == 1
    assert "it holds depths over 60 min (ACRR), the frames before it momentary rates (RATE)" in caplog.text


def test_rates_and_reflectivities_do_not_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder with both products of a service, at the same times: the newest, or the first by name, won in silence."""
    for minute in range(0, 75, 15):
        for quantity in ("RATE", "DBZH") if minute < 60 else ("RATE",):
            odim(
                tmp_path / f"in/{quantity}_{minute:02d}.hdf",
                f"2020-06-01T{minute // 60:02d}:{minute % 60:02d}",
                quantity,
            )
    both = r"momentary rates from reflectivity \(DBZH\).*They cannot be mixed"
    with pytest.raises(ValueError, match=both):
        ingest(tmp_path / "in", tmp_path / "out", ODIM())
    ingest(f"{tmp_path}/in/RATE*", tmp_path / "out", ODIM())
    with pytest.raises(ValueError, match=both):
        ingest(f"{tmp_path}/in/DBZH*", tmp_path / "out", ODIM())
    ingest(f"{tmp_path}/in/DBZH*", tmp_path / "dbz", ODIM())
    assert Archive.open(tmp_path / "dbz").meaning.from_reflectivity
    files = sorted((tmp_path / "in").iterdir(), reverse=True)  # DBZH is added last, and RATE has the newest time
    series = open_series(files, ODIM())
    assert series.times.size == 5 and "4 of 9 files are left out" in caplog.text
    assert {path.name[:4] for path, _ in series._on_one_grid().values()} == {"RATE"}  # type: ignore[attr-defined]


def test_products_of_one_meaning_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for minute, quantity in ((0, "DBZH"), (15, "TH"), (30, "DBZH"), (45, "TH")):
        odim(tmp_path / f"in/{minute:02d}.hdf", f"2020-06-01T00:{minute:02d}", quantity)
    ingest(tmp_path / "in", tmp_path / "out", ODIM())
    assert "The files are of 2 products" in caplog.text and "TH in" in caplog.text


def live_intake(folder: Path, record: Record, max_age_minutes: float | None = None) -> Intake:
    return Intake(
        Folder(folder, settle_s=0), ODIM(), record,
        step_minutes=15, input_steps=4, max_age_minutes=max_age_minutes, seen_hours=1,
    )  # fmt: skip


def test_live_mode_keeps_its_meaning_over_a_restart_and_follows_a_service_that_changes_it(tmp_path: Path) -> None:
    days(tmp_path / "all")
    (tmp_path / "in").mkdir()
    intake = live_intake(tmp_path / "in", Record())
    shutil.copy(tmp_path / "all/rate_00.hdf", tmp_path / "in")
    list(intake.chunks(2e9, lambda: False))
    record = Record()
    again = live_intake(tmp_path / "in", record)
    again.from_state(intake.to_state())
    again.refill()
    odim(tmp_path / "in/dbz.hdf", "2020-06-01T00:15", "DBZH")
    list(again.chunks(2e9, lambda: False))
    assert again.recent.times.size == 1 and record.counts["other"] == 1
    # a day later no fresh frame of the rates is left
    now = np.datetime64("2020-06-02T00:01").astype("datetime64[s]").astype(float)
    record = Record()
    intake = live_intake(tmp_path / "in", record, max_age_minutes=30)
    list(intake.chunks(now - 86400, lambda: False))
    shutil.copy(tmp_path / "all/acrr_00.hdf", tmp_path / "in")
    list(intake.chunks(now, lambda: False))
    assert record.counts["new_grid"] == 1 and intake.recent.times.size == 1
    assert intake.meaning == Meaning("depth", 60.0)


def test_periods_that_are_known_with_the_step_do_not_mix_in_an_input(tmp_path: Path) -> None:
    """Means that state no period are over the step: they are no hourly ones."""
    for number, minutes in enumerate((0, 60)):
        path = cf(tmp_path / f"in/{number}.nc", f"2020-06-01T00:{20 * number:02d}", cell_methods="time: mean")
        if minutes:
            with xr.open_dataset(path) as opened:
                hourly = opened.load().assign_attrs(accumulation_minutes=60.0)
            hourly.to_netcdf(path)
    series = open_series(tmp_path / "in", CF())
    with pytest.raises(
        ValueError, match="The frames mix means over 5 min and means over 60 min: give files of one"
    ):
        series.read(series.times)
    assert series.read(series.times[-2:]).attrs["accumulation_minutes"] == 60
