"""What ingest must not lose or mix in silence: frames off the step, other grids and row orders, changed files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive
from raincast.archive.find import find_files
from raincast.forecasting import FileSeries, open_series
from raincast.ingest import IngestReport, ingest
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.odim import ODIM
from raincast.live.folder import Folder
from raincast.live.intake import Intake
from raincast.live.status import Record
from raincast.schema import Grid, mock_grid

GRID = mock_grid(6, 5)
START = np.datetime64("2020-06-01T00:00", "ns")
RAMP = np.arange(30, dtype=np.float32).reshape(6, 5)


def minutes(*numbers: float) -> np.ndarray:
    return START + np.array([round(60 * n) for n in numbers]) * np.timedelta64(1, "s")


def write(path: Path, times: np.ndarray, rain: Any = RAMP, grid: Grid = GRID) -> Path:
    """A CF file that states no step, as those of most services."""
    path.parent.mkdir(exist_ok=True, parents=True)
    frames = np.broadcast_to(np.asarray(rain, np.float32), (len(times), *grid.shape))
    dataset = schema.rain_dataset(frames, times, grid, step_minutes=5, cell_methods="time: point")
    del dataset.attrs[schema.STEP_MINUTES]
    dataset.drop_vars(schema.MISSING_TIMES).to_netcdf(path)
    return path


def turned(grid: Grid) -> Grid:
    return Grid(grid.y[::-1], grid.x, grid.crs_wkt)


@pytest.mark.parametrize(
    ("times", "cause"),
    [
        (minutes(*range(0, 50, 5), 50.3, 54.6, 60), "less than a minute off it: .*source.valid_time=nominal"),
        (
            minutes(*range(0, 60, 15), *range(65, 200, 15)),
            "All frames before the others are 5 min off: the service",
        ),
        (
            minutes(*range(0, 60, 5), 3, 28),
            "Files of two products .* only those of one\\.",
        ),
        (
            minutes(0, 10, 20, 25, 35, 45, 55, 60, 70),
            "Files of two products .* only those of one, or state the finer step: 5 min",
        ),
        (  # ends of scans, a minute early to a minute late
            minutes(-1, 4, 9, 16, 19, 24, 29, 36, 39, 44, 49, 56),
            "up to 2 min off it, one near each .*source.valid_time=nominal",
        ),
    ],
)
def test_more_than_a_hundredth_off_the_step_is_an_error(times: np.ndarray, cause: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.nc", np.sort(times))
    with pytest.raises(
        ValueError, match=rf"frames are off the step of .* the first: 2020.*{cause}.*max_off_step=1"
    ):
        ingest(path, tmp_path / "out", CF())
    assert not (tmp_path / "out").exists()
    report = ingest(path, tmp_path / "out", CF(), max_off_step=1)
    assert report.num_written + len(report.off_step) == times.size


def test_an_archive_is_not_continued_by_frames_that_are_all_off_its_step(tmp_path: Path) -> None:
    ingest(write(tmp_path / "in/a.nc", minutes(0, 5, 10, 15)), tmp_path / "out", CF())
    later = write(tmp_path / "later/b.nc", minutes(1442, 1447, 1452, 1457))
    with pytest.raises(
        ValueError, match=r"4 of 4 frames are off the step .* All of them are 2 min off the archive's"
    ):
        ingest(later, tmp_path / "out", CF())
    with pytest.raises(ValueError, match=r"No frame of 1 files could be used\. 4 frames off the step"):
        ingest(later, tmp_path / "out", CF(), max_off_step=1)
    assert Archive.open(tmp_path / "out").num_times == 4


def test_a_step_that_few_gaps_show_has_to_be_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.nc", minutes(0, 5, 15, 20, 40, 60, 90, 120))
    with pytest.raises(ValueError, match=r"unclear: frames are 5 min \(29%\), .*e\.g\. source\.step_minutes=5"):
        ingest(path, tmp_path / "out", CF())
    assert ingest(path, tmp_path / "out", CF(step_minutes=5)).num_written == 8


def test_row_orders_are_made_one(tmp_path: Path) -> None:
    for number in range(6):
        grid, rain = (turned(GRID), RAMP[::-1]) if number % 2 else (GRID, RAMP)
        write(tmp_path / f"in/{number}.nc", minutes(5 * number), rain, grid)
    ingest(tmp_path / "in", tmp_path / "out", CF())
    archive = Archive.open(tmp_path / "out")
    np.testing.assert_array_equal(archive.read(0, 6), np.broadcast_to(RAMP, (6, 6, 5)))
    series = open_series(tmp_path / "in", CF())
    frames = series.read(series.times)
    assert schema.grid_of(frames).same_as(turned(GRID))  # as the newest
    np.testing.assert_array_equal(frames[schema.RAIN], np.broadcast_to(RAMP[::-1], (6, 6, 5)))


def test_live_mode_takes_rows_in_any_order_and_names_files_of_another_grid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record()
    kept = {"step_minutes": 5, "input_steps": 4, "max_age_minutes": None, "seen_hours": 1}
    intake = Intake(Folder(tmp_path / "in", settle_s=0), CF(), record, **kept)
    for number in range(4):
        grid, rain = (turned(GRID), RAMP[::-1]) if number % 2 else (GRID, RAMP)
        write(tmp_path / f"in/{number}.nc", minutes(5 * number), rain + number, grid)
        list(intake.chunks(2e9, lambda: False))
    frames = intake.recent.read(intake.recent.times)
    np.testing.assert_array_equal(frames[schema.RAIN], RAMP + np.arange(4)[:, None, None])
    assert schema.grid_of(frames).same_as(GRID)
    write(tmp_path / "in/4.nc", minutes(20), RAMP, Grid(GRID.y, GRID.x + 80_000, GRID.crs_wkt))
    list(intake.chunks(2e9, lambda: False))
    assert record.counts["other"] == 1 and intake.recent.times.size == 4
    assert "in/4.nc" in caplog.text and "its grid of (6, 5) is not that of the frames before it" in caplog.text


def test_an_archive_goes_on_with_rows_the_other_way_round(tmp_path: Path) -> None:
    ingest(write(tmp_path / "in/a.nc", minutes(0, 5, 10)), tmp_path / "out", CF())
    later = write(tmp_path / "in/b.nc", minutes(15, 20, 25), RAMP[::-1], turned(GRID))
    ingest(later, tmp_path / "out", CF())
    np.testing.assert_array_equal(Archive.open(tmp_path / "out").read(0, 6), np.broadcast_to(RAMP, (6, 6, 5)))
    with pytest.raises(ValueError, match="another grid"):
        ingest(later, tmp_path / "cropped", CF(), crop=(0, 2, 0, 5))
        ingest(write(tmp_path / "c.nc", minutes(30, 35, 40)), tmp_path / "cropped", CF(), crop=(0, 2, 0, 5))


def test_files_on_another_grid_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    east = Grid(GRID.y, GRID.x + 80_000, GRID.crs_wkt)
    for number in range(6):
        write(tmp_path / f"in/rain_{number}.nc", minutes(5 * number), RAMP, east if number > 3 else GRID)
    series = open_series(tmp_path / "in", CF())
    np.testing.assert_array_equal(series.times, minutes(20, 25))
    assert "4 of 6 files are left out: their grid (6 × 5 pixels from y=-4e+06, x=-300000)" in caplog.text
    assert "rain_0.nc" in caplog.text
    assert schema.grid_of(series.read(series.times)).same_as(east)


def test_a_file_replaced_after_it_was_looked_at_is_read_by_its_times(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.nc", minutes(10, 15), RAMP)
    series = FileSeries(CF(), [path])
    later = write(tmp_path / "b.nc", minutes(5, 10, 15), np.arange(3)[:, None, None] * np.ones((6, 5)))
    later.replace(path)
    np.testing.assert_array_equal(series.read(minutes(10, 15))[schema.RAIN][:, 0, 0], [1, 2])
    write(tmp_path / "c.nc", minutes(20)).replace(path)
    with pytest.raises(ValueError, match=r"a\.nc was replaced and no longer has the frame of 2020-06-01T00:05"):
        series.read(minutes(5))


def test_accompanying_files_are_one_line_and_no_problem(tmp_path: Path) -> None:
    write(tmp_path / "in/a.nc", minutes(0, 5, 10))
    for name in ("README", "a.nc.md5", "index.html", "b.nc.part"):
        (tmp_path / "in" / name).write_text("not radar")
    report = ingest(tmp_path / "in", tmp_path / "out", CF())
    assert report.problems == 0 and len(report.accompanying) == 4
    assert "4 files without radar data (README, a.nc.md5, b.nc.part …)" in str(report)
    assert open_series(tmp_path / "in", CF()).times.size == 3
    assert open_series([f"{tmp_path}/in/a*", tmp_path / "in/README"], CF()).times.size == 3
    with pytest.raises(FileNotFoundError, match=r"No file matches input=.*so that the shell leaves it: input="):
        open_series(f"{tmp_path}/in/*.h5", CF())
    (tmp_path / "in/c.nc").write_text("not radar either")
    assert list(ingest(tmp_path / "in", tmp_path / "out", CF()).bad_files) == [str(tmp_path / "in/c.nc")]


def test_a_changed_file_differs_from_the_archive_and_replaces_it_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "in/a.nc", minutes(0, 5, 10, 15))
    ingest(path, tmp_path / "out", CF())
    part = tmp_path / "out/2020-06-01.nc"
    new = np.stack([RAMP, RAMP + 1, RAMP, RAMP + 2])
    write(path, minutes(0, 5, 10, 15), new)
    os.utime(path, ns=(0, part.stat().st_mtime_ns + 1))
    before = part.read_bytes()
    report = ingest(path, tmp_path / "out", CF())
    assert [text[:16] for text in report.differing] == ["2020-06-01T00:05", "2020-06-01T00:15"]
    assert "2 frames differ from the archive, set replace=true" in caplog.text and part.read_bytes() == before
    report = ingest(path, tmp_path / "out", CF(), replace=True)
    assert (report.num_replaced, report.num_written, report.num_present) == (2, 0, 4)
    np.testing.assert_array_equal(Archive.open(tmp_path / "out").read(0, 4), new)
    assert not ingest(path, tmp_path / "out", CF()).differing


def test_the_better_quality_wins(tmp_path: Path) -> None:
    import test_odim

    for quality, code in ((6, 2), (9, 4), (8, 6)):
        name = tmp_path / f"in/CPC201530000{quality}_00060.001.h5"
        name.parent.mkdir(exist_ok=True)
        test_odim.write(name, {"dataset1/data1": (np.full((2, 3), code, np.uint8), test_odim.RATE)})
    ingest(tmp_path / "in", tmp_path / "out", ODIM(step_minutes=60))
    assert Archive.open(tmp_path / "out").read(0, 1).max() == 2
    series = open_series(tmp_path / "in", ODIM(step_minutes=60))
    assert series.read(series.times)[schema.RAIN].max() == 2


def test_a_better_quality_that_comes_later_replaces_the_worse_one_and_never_the_other_way_round(
    tmp_path: Path,
) -> None:
    import test_odim

    def write_quality(quality: int, code: int) -> Path:
        name = tmp_path / f"in/CPC201530000{quality}_00060.001.h5"
        name.parent.mkdir(exist_ok=True)
        return test_odim.write(name, {"dataset1/data1": (np.full((2, 3), code, np.uint8), test_odim.RATE)})

    def add(**options: bool) -> IngestReport:
        return ingest(tmp_path / "in", tmp_path / "out", ODIM(step_minutes=60), **options)

    write_quality(6, 2)
    add()
    # a copy that keeps the date of its making, before the archive's
    os.utime(write_quality(9, 4), (0, 0))
    assert len(add().differing) == 1 and add(replace=True).num_replaced == 1
    assert Archive.open(tmp_path / "out").read(0, 1).max() == 2
    # the worse one is written anew
    later = (tmp_path / "out").stat().st_mtime_ns + 10**10
    os.utime(write_quality(6, 6), ns=(later, later))
    report = add(replace=True)
    assert not report.differing and not report.num_replaced
    assert Archive.open(tmp_path / "out").read(0, 1).max() == 2


def test_globs_follow_links_folders_stand_for_their_files_and_patterns_may_be_several(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere/2020/06"
    elsewhere.mkdir(parents=True)
    for name in ("a.h5", "b.h5", ".c.h5"):
        (elsewhere / name).touch()
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "linked/2020/loop").symlink_to(tmp_path / "elsewhere/2020")
    names = [path.name for path in find_files(f"{data}/**/*.h5")]
    assert names == ["a.h5", "b.h5"]
    assert find_files(elsewhere) == find_files(f"{elsewhere}/") == [elsewhere / "a.h5", elsewhere / "b.h5"]
    for text in (f"{elsewhere}/a*,{elsewhere}/b*", f"{elsewhere}/a* {elsewhere}/b*", [f"{elsewhere}/?.h5"]):
        assert find_files(text) == [elsewhere / "a.h5", elsewhere / "b.h5"]
    with pytest.raises(FileNotFoundError, match=r"nor '.*/d\*' of it\. Several patterns are written 'files=A,B'"):
        find_files(f"{elsewhere}/a*, {elsewhere}/d*")
    with pytest.raises(FileNotFoundError, match=r"holds linked/\. For files in its folders: files='.*/\*\*/\*'"):
        find_files(data)
    for name in ("odd, name", "ünï (x)=[0-2]", "what?"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.h5").touch()
        assert find_files(f"{folder}/*.h5") == find_files(f"{folder}/[a-c].h5") == [folder / "a.h5"]
