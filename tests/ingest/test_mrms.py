"""MRMS GRIB2: values, times, the grid, and what is refused."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raincast import schema
from raincast.ingest.readers.mrms import MRMS

pytest.importorskip("rasterio")
RATES = np.array([[-3, -1, 0, 0.1], [2.5, 152.8, 0.3, 0]])
PATTERN = "mrms/20190610/*.grib2"


def message(
    values: Any, *, time: tuple[int, ...] = (2019, 6, 10, 0, 2, 0), parameter: tuple[int, int, int] = (209, 6, 1)
) -> bytes:
    """One GRIB2 message as MRMS writes them: template 3.0 (lat/lon), 4.0, 5.41 (PNG, 0.1 mm/h from −3)."""
    values = np.asarray(values)
    height, width = values.shape
    discipline, category, number = parameter
    png = io.BytesIO()
    Image.fromarray(np.rint(10 * values + 30).astype(np.uint16)).save(png, "PNG")
    north, west = 54_995_000, 230_005_000  # 1e-6 degrees, of the pixel centres
    sections = [
        (1, struct.pack(">HHBBBHBBBBBBB", 161, 0, 255, 1, 3, *time, 2, 7)),
        (
            3,
            struct.pack(">BIBBH", 0, values.size, 0, 0, 0)
            + struct.pack(">BBIBIBI", 2, 1, 6367470, 1, 6378160, 1, 6356775)
            + struct.pack(">IIII", width, height, 1, 1_000_000)
            + struct.pack(">IIBII", north, west, 0x30, north - 10_000 * (height - 1), west + 10_000 * (width - 1))
            + struct.pack(">IIB", 10_000, 10_000, 0),
        ),
        (4, struct.pack(">HHBBBBBHBBIBBIBBI", 0, 0, category, number, 8, 0, 97, 0, 0, 0, 0, 102, 0, 0, 255, 1, 0)),
        (5, struct.pack(">IHfHHBB", values.size, 41, -30.0, 0, 1, 16, 0)),
        (6, b"\xff"),
        (7, png.getvalue()),
    ]
    body = b"".join(struct.pack(">IB", len(content) + 5, number) + content for number, content in sections)
    return struct.pack(">4sHBBQ", b"GRIB", 0, discipline, 2, len(body) + 20) + body + b"7777"


def write(path: Path, *messages: bytes) -> Path:
    path.write_bytes(b"".join(messages) or message(RATES))
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_values_time_and_grid(tmp_path: Path, zipped: bool) -> None:
    path = write(tmp_path / "a.bin", gzip.compress(message(RATES)) if zipped else message(RATES))
    assert MRMS().recognises(path)
    dataset = MRMS().read(path, step_minutes=2)
    expected = np.where(RATES < 0, np.nan, RATES)  # neither no coverage nor missing is dry
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], expected, atol=1e-5)
    assert dataset[schema.TIME].values[0] == np.datetime64("2019-06-10T00:02")
    np.testing.assert_allclose(dataset.y, [54.995, 54.985], atol=1e-9)
    np.testing.assert_allclose(dataset.x, -129.995 + 0.01 * np.arange(4), atol=1e-9)
    assert dataset[schema.Y].attrs["units"] == "degrees_north"
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    schema.check_archive(dataset)
    assert MRMS().scan(path).step_minutes is None and MRMS(step_minutes=2).scan(path).step_minutes == 2
    with pytest.raises(ValueError, match=r"a\.bin .*states no step.*source\.step_minutes=2"):
        MRMS().read(path)


def test_several_messages_are_frames(tmp_path: Path) -> None:
    messages = [message(RATES + n, time=(2019, 6, 10, 23, 2 * n, 0)) for n in (29, 3, 4)]
    path = write(tmp_path / "a.grib2", *messages, message(RATES, parameter=(209, 6, 0)))
    times = [np.datetime64(f"2019-06-10T23:{m:02d}") for m in (58, 6, 8)]
    np.testing.assert_array_equal(MRMS().scan(path).times, np.array(times, "datetime64[ns]"))
    dataset = MRMS().read(path, slice(1, 3), step_minutes=2)
    np.testing.assert_allclose(dataset[schema.RAIN][:, 0, 2], [3, 4], atol=1e-5)
    np.testing.assert_array_equal(dataset[schema.TIME], np.array(times[1:], "datetime64[ns]"))


def test_other_parameters_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.grib2", message(RATES, parameter=(209, 6, 2)))
    assert MRMS().recognises(path)
    with pytest.raises(ValueError, match=r"a\.grib2 cannot .*no PrecipRate \(209, 6, 1\); found: .*\(209, 6, 2\)"):
        MRMS().scan(path)
    path = write(
        tmp_path / "MRMS_MergedReflectivityQCComposite_00.50_a.grib2", message(RATES, parameter=(209, 10, 0))
    )
    with pytest.raises(
        ValueError, match=r"found: reflectivity .*it is MergedReflectivityQCComposite.*MRMS_PrecipRate"
    ):
        MRMS().scan(path)
    assert not MRMS().recognises(write(tmp_path / "b.grib2", message(RATES, parameter=(0, 1, 7))))


@pytest.mark.radar
def test_real_figures(radar_dir: Path) -> None:
    paths = sorted(radar_dir.glob(PATTERN))
    heads = [MRMS().scan(path) for path in paths]
    times = np.array([head.times[0] for head in heads])
    assert len(times) == 36
    assert (times[0], times[-1]) == (np.datetime64("2019-06-10T00:00"), np.datetime64("2019-06-10T01:10"))
    assert set(np.diff(times)) == {np.timedelta64(2, "m")}
    grid = heads[0].grid
    assert grid.shape == (3500, 7000)
    np.testing.assert_allclose(grid.y[[0, -1]], (54.995, 20.005), atol=1e-9)
    np.testing.assert_allclose(grid.x[[0, -1]], (-129.995, -60.005), atol=1e-9)
    largest = paths[30]  # 152.8 mm/h: the largest of all
    frame = MRMS().read(largest, step_minutes=2)[schema.RAIN].values[0]
    covered = ~np.isnan(frame)
    assert (frame[covered] > 0.1).mean() == pytest.approx(0.06, abs=0.005)
    assert covered.mean() == pytest.approx(0.64, abs=0.01)
    assert np.nanmax(frame) == pytest.approx(153, abs=0.5)
    assert np.nanmin(frame) == 0
