"""MeteoNet npz: values, times without loading pickles, the grid, and what is refused."""

import os
import pickle
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiling import check_reads_or_names, spoilt

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.common.pickled import unpickle_dates
from raincast.ingest.readers.meteonet import MeteoNet

START = datetime(2016, 8, 21, 0, 10)
DATES = [START + timedelta(minutes=5 * n) for n in (0, 1, 3)]  # one is missing
DEPTHS = np.array([[[0, 1 + n, -1], [25, 100 + n, 7]] for n in range(3)], np.int16)
NW = Path("radar_coords_NW.npz")


def objects(values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def write_frames(
    path: Path, depths: Any = DEPTHS, dates: Any = DATES, *, packed: bool = True, **arrays: Any
) -> Path:
    save: Any = np.savez_compressed if packed else np.savez
    with path.open("wb") as file:
        missing = objects([START + timedelta(minutes=10)])
        dates = dates if isinstance(dates, np.ndarray) else objects(dates)
        save(file, data=depths.astype("int16") if depths.dtype.kind == "i" else depths, dates=dates,
             miss_dates=missing, **arrays)  # fmt: skip
    return path


def write_coordinates(path: Path, shape: tuple[int, int] = (2, 3), *, flat: bool = False) -> Path:
    lats, lons = 51.896 - 0.01 * np.arange(shape[0]), -5.842 + 0.01 * np.arange(shape[1])
    if not flat:
        lats, lons = np.repeat(lats[:, None], shape[1], 1), np.repeat(lons[None], shape[0], 0)
    with path.open("wb") as file:
        np.savez_compressed(file, lats=lats, lons=lons)
    return path


def write(path: Path) -> Path:
    """Three frames, and the coordinates beside them."""
    write_coordinates(path.with_name(NW.name))
    return write_frames(path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_values_times_and_grid(tmp_path: Path, packed: bool, flat: bool) -> None:
    write_coordinates(tmp_path / NW, flat=flat)
    path = write_frames(tmp_path / "rainfall_NW_2016_08.3.npz", packed=packed)
    assert MeteoNet().recognises(path)
    dataset = MeteoNet().read(path)
    expected = np.where(DEPTHS == -1, np.nan, DEPTHS * 0.12)  # 0.01 mm in 5 min
    np.testing.assert_allclose(dataset[schema.RAIN], expected, rtol=1e-6)
    np.testing.assert_array_equal(dataset[schema.TIME], np.array(DATES, "datetime64[ns]"))
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    assert dataset[schema.MISSING_TIMES].values == np.datetime64("2016-08-21T00:20")
    np.testing.assert_allclose(dataset.y, [51.896, 51.886])
    np.testing.assert_allclose(dataset.x, [-5.842, -5.832, -5.822])
    assert dataset[schema.Y].attrs["units"] == "degrees_north"
    schema.check_archive(dataset)
    head = MeteoNet().scan(path)
    assert head.step_minutes == 5 and head.grid.shape == (2, 3)


@pytest.mark.parametrize("frames", [slice(0, 0), slice(2, 3), slice(0, 2), slice(1, 9), slice(None, None, 2)])
def test_some_frames_in_any_order(tmp_path: Path, frames: slice) -> None:
    path = write(tmp_path / "a.npz")
    whole, some = MeteoNet().read(path), MeteoNet().read(path, frames)  # back from the end
    np.testing.assert_array_equal(some[schema.RAIN], whole[schema.RAIN][frames])
    np.testing.assert_array_equal(some[schema.TIME], whole[schema.TIME][frames])


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "rainfall.npz")
    assert MeteoNet().read(path)[schema.RAIN].values[0, 1, 0] == pytest.approx(3)
    os.utime(write_frames(path, DEPTHS + 1), (0, 0))
    assert MeteoNet().read(path)[schema.RAIN].values[0, 1, 0] == pytest.approx(3.12)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dates_of_each_protocol(protocol: int) -> None:
    dates = DATES * 1000
    assert unpickle_dates(pickle.dumps(objects(dates), protocol=protocol)) == dates


def test_dates_of_older_numpy() -> None:
    # NumPy 1 has its core under another name
    content = pickle.dumps(objects(DATES), protocol=3).replace(b"numpy._core", b"numpy.core")
    assert unpickle_dates(content) == DATES


class Runs:
    """Leaves a file behind where a pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_run_no_code(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(objects([Runs(tmp_path / "ran")]), protocol=protocol)
    with pytest.raises(ValueError, match="its dates (name .* and is not loaded|hold more than dates)"):
        unpickle_dates(content)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # as it would have


def test_a_file_with_code_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    write_frames(path, DEPTHS[:1], objects([Runs(tmp_path / "ran")]))
    assert MeteoNet().recognises(path)
    for call in (MeteoNet().scan, MeteoNet().read):
        with pytest.raises(ValueError, match=r"a\.npz cannot be read as MeteoNet npz: its dates .*not loaded"):
            call(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(objects([{"a": 1}])),
        pickle.dumps(objects([datetime(2016, 1, 1, tzinfo=UTC)])),
        pickle.dumps(objects(["2016-01-01"])),
        pickle.dumps(START),
        pickle.dumps([START]),
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of two thousand million entries
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of a terabyte
        b"",
    ],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        unpickle_dates(content)


def test_dates_without_a_pickle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    write_frames(path, dates=np.array(DATES, "datetime64[s]"))
    np.testing.assert_array_equal(MeteoNet().scan(path).times, np.array(DATES, "datetime64[ns]"))


def test_coordinates_beside_above_stated_or_published(tmp_path: Path) -> None:
    folder = tmp_path / "NW/radar/rainfall"
    folder.mkdir(parents=True)
    path = write_frames(folder / "a.npz")
    with pytest.raises(
        ValueError, match=r"a\.npz .*2 × 3 pixels lie \(no radar_coords_\*\.npz .*source\.coordinates="
    ):
        MeteoNet().scan(path)
    write_coordinates(tmp_path / "NW/radar_coords_SE.npz", (4, 4))  # of another zone
    with pytest.raises(ValueError, match=r"radar_coords_SE\.npz"):
        MeteoNet().scan(path)
    stated = write_coordinates(tmp_path / "mine.npz")
    assert MeteoNet(coordinates=str(stated)).scan(path).grid.y[0] == 51.896
    write_coordinates(tmp_path / NW)
    assert MeteoNet().scan(path).grid.y[0] == 51.896
    with pytest.raises(ValueError, match=r"a\.npz .*No such file"):
        MeteoNet(coordinates=str(tmp_path / "absent.npz")).scan(path)


@pytest.mark.parametrize(("shape", "south", "east"), [((565, 784), 46.256, 1.988), ((515, 784), 41.11, 9.83)])
def test_zones_are_known_by_their_shape(tmp_path: Path, shape: tuple[int, int], south: float, east: float) -> None:
    path = write_frames(tmp_path / "rainfall_a.npz", np.zeros((1, *shape), np.int16), DATES[:1])
    grid = MeteoNet().scan(path).grid
    assert (grid.y[-1], grid.x[-1]) == pytest.approx((south, east))
    # as the file of coordinates has it
    if south == 46.256:
        write_coordinates(tmp_path / NW, shape)
        stated = MeteoNet().scan(path).grid
        np.testing.assert_allclose(stated.y, grid.y)
        np.testing.assert_allclose(stated.x, grid.x)


def test_a_file_of_coordinates_has_no_frames(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    assert MeteoNet().recognises(tmp_path / NW) and MeteoNet().scan(tmp_path / NW).times.size == 0
    with pytest.raises(ValueError, match=r"radar_coords_NW\.npz .*it holds no data\.npy; found: lats"):
        MeteoNet().read(tmp_path / NW)
    report = ingest(tmp_path / "*.npz", tmp_path / "out", MeteoNet())
    assert report.num_written == 3 and not report.bad_files and report.missing_times == ("2016-08-21T00:20:00",)
    rain = Archive.open(tmp_path / "out").read(0, 3)
    np.testing.assert_allclose(rain, np.where(DEPTHS == -1, np.nan, DEPTHS * 0.12), atol=0.005)


@pytest.mark.parametrize(
    ("depths", "more", "reason"),
    [
        (DEPTHS.astype(np.uint8), {}, r"data is uint8 \(3, 2, 3\), not int16"),  # the old reflectivity
        (DEPTHS, {"prob": np.zeros(3)}, "it holds reflectivity"),
        (DEPTHS - 100, {}, "data goes down to -101"),
        (DEPTHS[0], {}, "not int16"),
        (DEPTHS[:2], {}, r"dates are \(3,\) in .* bytes, not one for each of 2 frames"),
    ],
)
def test_what_is_refused(tmp_path: Path, depths: np.ndarray, more: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.npz")
    write_frames(path, depths, **more)
    with pytest.raises(ValueError, match=rf"a\.npz cannot be read as MeteoNet npz: .*{reason}"):
        MeteoNet().read(path)


def test_coordinates_that_are_no_regular_grid(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.npz")
    lats, lons = np.mgrid[0:2, 0:3] * 0.01
    with (tmp_path / NW).open("wb") as file:
        np.savez(file, lats=lats + lons, lons=lons)
    with pytest.raises(ValueError, match=r"radar_coords_NW\.npz cannot be .*lats\.npy varies along both axes"):
        MeteoNet().scan(path)


@pytest.mark.parametrize("claims", [(10**6, 2000, 2000), (3, 10**6, 10**6), (10**12, 2, 3)])
def test_spoilt_sizes_are_refused_before_anything_is_loaded(tmp_path: Path, claims: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    header = members["data.npy"][:128].replace(b"(3, 2, 3)", str(claims).encode())[:127].rstrip() + b" " * 60
    members["data.npy"] = header[:127] + b"\n" + members["data.npy"][128:]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    for call in (MeteoNet().scan, MeteoNet().read):
        with pytest.raises(ValueError, match=r"a\.npz .*data states .* but has 36 bytes"):
            call(path)


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_name_themselves(tmp_path: Path, packed: bool) -> None:
    write(tmp_path / "a.npz")
    path = write_frames(tmp_path / "a.npz", packed=packed)
    assert check_reads_or_names(MeteoNet(), path, spoilt(path.read_bytes())) > 40


def test_reflectivity_in_the_same_layout_is_refused(tmp_path: Path) -> None:
    """Its dBZ are no 1/100 mm, and its 255 for missing is no 30.6 mm/h."""
    dbz = np.where(DEPTHS < 0, 255, np.minimum(DEPTHS, 60)).astype(np.int16)
    write_coordinates(tmp_path / NW)
    for name in ("reflectivity_old_NW_2016_06.1.npz", "renamed.npz"):
        path = write_frames(tmp_path / name, dbz)
        for read in (MeteoNet().scan, MeteoNet().read):
            with pytest.raises(
                ValueError, match=rf"{name} .*it holds reflectivity .*Take the files\s+rainfall_NW"
            ):
                read(path)
    # without a missing pixel in the first frame only a name, or the user, says it
    unclear = write_frames(tmp_path / "b.npz", np.maximum(DEPTHS, 0))
    with pytest.raises(ValueError, match=r"b\.npz .*source\.quantity=rainfall"):
        MeteoNet().scan(unclear)
    assert MeteoNet(quantity="rainfall").scan(unclear).times.size == 3
    assert MeteoNet().scan(write_frames(tmp_path / "rainfall_NW.npz", np.maximum(DEPTHS, 0))).times.size == 3
    with pytest.raises(ValueError, match="source.quantity=dbz is none of auto, rainfall"):
        MeteoNet(quantity="dbz")
