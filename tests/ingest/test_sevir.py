"""SEVIR: nominal times, place and rates, the catalog, and events that windows never cross."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checking import check_encoded
from pyproj import Proj

from raincast import schema
from raincast.archive import Archive
from raincast.data.windows import BlockSplit, split_windows, window_starts
from raincast.ingest import ingest
from raincast.ingest.readers.sevir import PROJ4, SEVIR, vil_of_codes

SIZE, LENGTH = 6, 7
OFFSETS = tuple(range(-15, 20, 5))
TIMES = {"R3": "2018-06-02 00:10:00", "S1": "2018-06-01 12:00:00", "S2": "2018-06-01 12:05:00"}
LOWER_LEFT = (37.5, -97.0)


def codes(name: str) -> np.ndarray:
    """(y, x, frame) of an event."""
    return np.random.default_rng(ord(name[-1])).integers(0, 240, (SIZE, SIZE, LENGTH), np.uint8)


def write_vil(path: Path, names: Any = tuple(TIMES), **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=np.stack([codes(name) for name in names]), **options)
        file.create_dataset("id", data=np.array(names, "S20"))
    return path


def row(
    name: str, *, file: str = "vil/a.bin", index: int = 0, offsets: Any = OFFSETS, **other: Any
) -> dict[str, Any]:
    """An event of 6 × 6 km."""
    x, y = Proj(PROJ4)(LOWER_LEFT[1], LOWER_LEFT[0])
    east, north = Proj(PROJ4)(x + 1000 * SIZE, y + 1000 * SIZE, inverse=True)
    return {
        "id": name,
        "file_name": file,
        "file_index": index,
        "img_type": "vil",
        "time_utc": TIMES.get(name, "2019-01-01 00:00:00"),
        "minute_offsets": ":".join(map(str, offsets)),
        "event_type": "Hail",
        "llcrnrlat": LOWER_LEFT[0],
        "llcrnrlon": LOWER_LEFT[1],
        "urcrnrlat": north,
        "urcrnrlon": east,
        "proj": PROJ4 + " ",
    } | other


def write_catalog(path: Path, rows: Any = None) -> Path:
    rows = rows or [row(name, index=number) for number, name in enumerate(TIMES)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), extrasaction="ignore")
        table.writeheader()
        table.writerows([rows[0] | {"img_type": "ir069"}, *rows])
    return path


def write(path: Path) -> Path:
    """Three events, and the catalog beside them."""
    write_catalog(path.with_name("CATALOG.csv"))
    return write_vil(path)


def write_at(path: Path, minute: int, frame: np.ndarray) -> Path:
    """One event of one frame, one of those of minutes 0, 5 … 20: in that order, eight hours apart."""
    rows = [row(f"S{m}", time_utc=f"2018-06-01 12:{m:02d}:00", offsets=(0,)) for m in range(0, 25, 5)]
    write_catalog(path.with_name("CATALOG.csv"), rows)
    with h5py.File(path, "w") as file:
        file.create_dataset("vil", data=frame[None, :, :, None])
        file.create_dataset("id", data=np.array([f"S{minute}"], "S20"))
    return path


def starts(*slots: int) -> np.ndarray:
    return np.datetime64("2100-01-01T03:55", "ns") + np.timedelta64(8, "h") * np.array(slots)


def test_each_event_has_eight_hours_in_the_order_of_true_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin")
    assert SEVIR().recognises(path)
    head = SEVIR().scan(path)
    # S1 was first, S2 five minutes later, R3 the day after: their frames overlap in time, their slots do not
    np.testing.assert_array_equal(head.times.reshape(3, LENGTH)[:, 0], starts(2, 0, 1))
    assert (np.diff(head.times.reshape(3, LENGTH)) == np.timedelta64(5, "m")).all()
    assert head.step_minutes == 5 and np.unique(head.times).size == 3 * LENGTH
    dataset = SEVIR().read(path)
    np.testing.assert_array_equal(dataset[schema.TIME], head.times)
    vil = vil_of_codes()[np.concatenate([np.moveaxis(codes(name), -1, 0) for name in TIMES])]
    expected = 3.1027 * vil**1.09375  # see the docstring; (7/4)/1.6
    np.testing.assert_allclose(dataset[schema.RAIN], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="ascend"):
        schema.check_archive(dataset)  # as they lie in the file: the ingest puts them in order


@pytest.mark.parametrize("frames", [slice(0, 0), slice(5, 9), slice(7, 14), slice(20, 99), slice(None, None, 3)])
def test_frames_are_counted_through_the_events(tmp_path: Path, frames: slice) -> None:
    path = write(tmp_path / "a.bin")
    whole, some = SEVIR().read(path), SEVIR().read(path, frames)
    np.testing.assert_array_equal(some[schema.RAIN], whole[schema.RAIN][frames])
    np.testing.assert_array_equal(some[schema.TIME], whole[schema.TIME][frames])


def test_codes_are_vil_as_the_tutorial_says() -> None:
    vil = vil_of_codes()
    assert not vil[:6].any() and np.isnan(vil[255])
    assert vil[6] == pytest.approx(4 / 90.66) and vil[18] == pytest.approx(16 / 90.66)
    assert vil[19] == pytest.approx(np.exp(-64.9 / 38.9)) and vil[254] == pytest.approx(79.26, abs=0.01)
    assert (np.diff(vil[5:255]) > 0).all()


def test_rates_of_sevirs_thresholds_are_those_of_the_docs() -> None:
    table = SEVIR()._rate_of_codes()
    rates = [0.40, 2.3, 12.3, 26.4, 47.6, 138]
    np.testing.assert_allclose(table[[16, 74, 133, 160, 181, 219]], rates, rtol=0.03)
    assert table[246] < 300 < table[247] and not table[:6].any() and np.isnan(table[255])
    # every code below the cap keeps a rate of its own in an archive's steps of 0.01 mm/h
    assert np.unique(np.rint(100 * table[5:247])).size == 242
    # half the depth: twice the water content, Z 2^1.75 and R 2^(1.75/1.6) as much
    np.testing.assert_allclose(SEVIR(depth_m=2500)._rate_of_codes()[6:255] / table[6:255], 2**1.09375, rtol=1e-5)
    with pytest.raises(ValueError, match="source.depth_m=0 must be"):
        SEVIR(depth_m=0)


def test_the_grid_is_local_and_runs_from_south_to_north(tmp_path: Path) -> None:
    grid = SEVIR().scan(write(tmp_path / "a.bin")).grid
    np.testing.assert_array_equal(grid.y, 1000 * np.arange(-2.5, 3))
    np.testing.assert_array_equal(grid.x, grid.y)
    assert Proj(grid.crs_wkt)(0, 0, inverse=True) == pytest.approx((-98, 38))


def test_one_event_comes_out_at_its_true_times_and_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin")
    reader = SEVIR(event="S2")
    head, dataset = reader.scan(path), reader.read(path)
    assert (
        head.times[[0, -1]].tolist()
        == np.array(["2018-06-01T11:50", "2018-06-01T12:20"], "datetime64[ns]").tolist()
    )
    np.testing.assert_array_equal(dataset[schema.RAIN], SEVIR().read(path, slice(14, 21))[schema.RAIN])
    lon, lat = Proj(head.grid.crs_wkt)(head.grid.x[0] - 500, head.grid.y[0] - 500, inverse=True)
    assert (lat, lon) == pytest.approx(LOWER_LEFT, abs=1e-6) and head.grid.y[1] > head.grid.y[0]
    np.testing.assert_allclose(np.diff(head.grid.x), 1000, atol=1e-3)
    schema.check_archive(dataset)
    # another file has none of its frames, and is no bad file for that
    assert SEVIR(event="S1").scan(write_vil(tmp_path / "b.bin", ["S2"])).times.size == 0
    report = ingest([tmp_path / "b.bin", path], tmp_path / "out", SEVIR(event="S1"))
    assert report.num_written == LENGTH and not report.bad_files


def test_an_archive_of_events(tmp_path: Path) -> None:
    names = [f"S{number}" for number in range(9)]
    folder = tmp_path / "data/vil/2018"
    folder.mkdir(parents=True)
    times = [f"2018-06-0{1 + number % 3} 12:{number:02d}:00" for number in range(9)]
    rows = [
        row(name, index=number, time_utc=time)
        for number, (name, time) in enumerate(zip(names, times, strict=True))
    ]
    write_catalog(tmp_path / "CATALOG.csv", rows)
    for number in range(3):
        write_vil(folder / f"{number}.h5", names[3 * number : 3 * number + 3])
    ingest(folder / "0.h5", tmp_path / "out", SEVIR())
    report = ingest(folder / "*.h5", tmp_path / "out", SEVIR())  # later files change no event's slot
    assert (report.num_written, report.num_present, report.duplicates) == (6 * LENGTH, 3 * LENGTH, ())
    archive = Archive.open(tmp_path / "out")
    assert archive.num_times == 9 * LENGTH
    # no window holds frames of two events
    num_windows = window_starts(archive.times, archive.step, 3).size
    assert num_windows == 9 * (LENGTH - 2)
    # blocks of eight hours split by event, whole days by three of them; an embargo of 235 min costs no frame
    for block, num_blocks in ((480.0, 9), (1440.0, 3)):
        split = BlockSplit(block_minutes=block, embargo_minutes=235)
        windows = split_windows(archive.times, archive.step, 3, split)
        assert sum(found.size for found in windows.starts.values()) == num_windows
        assert len(windows.ranges) == num_blocks
        assert all(r.stop - r.start >= np.timedelta64(245, "m") for r in windows.ranges)
    # each day says what its events truly were, in the order of their slots
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]  # by day, then minute
    listed = []
    for day in sorted((tmp_path / "out").glob("*.nc")):
        attrs = Archive.open(day).attrs
        assert "nominal" in attrs["comment"] and attrs["vil_depth_m"] == 5000
        listed += json.loads(attrs["sevir_events"])
    assert [event["id"] for event in listed] == [f"S{number}" for number in order]
    assert [np.datetime64(event["start"]) for event in listed] == list(starts(*range(9)))
    assert listed[0]["time_utc"] == "2018-06-01T12:00:00" and listed[0]["llcrnrlat"] == LOWER_LEFT[0]
    rain = archive.read(LENGTH, LENGTH)  # of S3
    expected = SEVIR()._rate_of_codes()[np.moveaxis(codes("S3"), -1, 0)]
    check_encoded(rain, expected)


def test_frames_that_sevir_repeats_in_a_gap_are_left_out(tmp_path: Path) -> None:
    offsets = (-15, -10, -10, 0, 4, 10, 15)  # one is filled by the one before; one a minute early
    write_catalog(tmp_path / "CATALOG.csv", [row("S1", offsets=offsets)])
    path = write_vil(tmp_path / "a.h5", ["S1"])
    report = ingest(path, tmp_path / "out", SEVIR())
    assert report.num_written == 6 and len(report.duplicates) == 1 and not report.off_step
    assert report.missing_times == ("2100-01-01T04:05:00",)
    archive = Archive.open(tmp_path / "out")
    expected = SEVIR()._rate_of_codes()[codes("S1")[..., 1]]
    check_encoded(archive.read(1, 1)[0], expected)


def test_the_catalog_is_found_above_or_said_to_be_needed(tmp_path: Path) -> None:
    folder = tmp_path / "data/vil/2018"
    folder.mkdir(parents=True)
    path = write_vil(folder / "a.bin")
    for catalog, where in (
        (None, "was not found beside or above it"),
        (str(tmp_path / "no.csv"), r"at .*no\.csv"),
    ):
        with pytest.raises(ValueError, match=rf"a\.bin cannot be .*CATALOG\.csv,.* {where}.*source\.catalog=PATH"):
            SEVIR(catalog).scan(path)
    catalog = str(write_catalog(tmp_path / "mine.csv"))
    assert SEVIR(catalog).scan(path).times.size == 3 * LENGTH
    write_catalog(tmp_path / "CATALOG.csv", [row("S1")])
    assert SEVIR().scan(path).times.size == LENGTH  # of some rows, only those events


def test_ids_that_occur_twice_are_told_by_file_and_index(tmp_path: Path) -> None:
    rows = [
        row("S1", index=0),
        row("S1", index=1, time_utc="2018-07-01 00:00:00"),
        row("S1", file="vil/b.bin", index=0),
    ]
    write_catalog(tmp_path / "CATALOG.csv", rows)
    head = SEVIR().scan(write_vil(tmp_path / "a.bin", ["S1", "S1"]))
    np.testing.assert_array_equal(head.times[::LENGTH], starts(0, 2))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"id": "S1"}], "not SEVIR's catalog: it has no column file_name"),
        ([row("S9")], r"lists none of its 3 events \(R3"),
        ([row("S1", offsets=(0, 5))], "has 2 minute_offsets of S1, not 7"),
        ([row("S1", time_utc="noon")], "the row of S1 cannot be read"),
        ([row("S1", llcrnrlat="")], "the row of S1 cannot be read"),
    ],
)
def test_catalogs_that_do_not_fit(tmp_path: Path, rows: Any, reason: str) -> None:
    write_catalog(tmp_path / "CATALOG.csv", rows)
    with pytest.raises(ValueError, match=rf"a\.bin cannot be read as SEVIR HDF5: .*{reason}"):
        SEVIR().scan(write_vil(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    ("vil", "ids", "reason"),
    [
        (np.zeros((1, 4, 4, 3), np.int16), [b"S1"], "vil is int16"),
        (np.zeros((1, 4, 4), np.uint8), [b"S1"], r"vil is uint8 \(1, 4, 4\), not"),
        (np.zeros((2, 4, 4, 3), np.uint8), [b"S1"], r"id is object \(1,\), not a name for each of 2 events"),
        (None, [b"S1"], "it holds no vil; found: id"),
    ],
)
def test_what_is_refused(tmp_path: Path, vil: Any, ids: Any, reason: str) -> None:
    write_catalog(tmp_path / "CATALOG.csv", [row("S1")])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["id"] = ids
        if vil is not None:
            file["vil"] = vil
    with pytest.raises(ValueError, match=rf"a\.h5 cannot be read as SEVIR HDF5: {reason}"):
        SEVIR().scan(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(1, 2**20, 2**20, 49), (10**9, 8, 8, 7)])
def test_spoilt_sizes_are_refused_before_anything_is_loaded(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_catalog(tmp_path / "CATALOG.csv", [row("S1")])
    with h5py.File(tmp_path / "a.h5", "w") as file:  # nothing is written: a few kilobytes
        file.create_dataset("vil", shape, np.uint8, chunks=(1, 8, 8, 7))
        file.create_dataset("id", shape[:1], "S20", chunks=(1,))
    for call in (SEVIR().scan, lambda path: SEVIR().read(path, slice(0, 1))):
        with pytest.raises(ValueError, match=r"a\.h5 .*(no event is larger|max_megapixels=50 allows)"):
            call(tmp_path / "a.h5")
