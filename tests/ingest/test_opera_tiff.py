"""OPERA's GeoTIFF: what is no echo and what nobody saw, the half pixel, times, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.opera_tiff import OperaTiff
from raincast.transforms import ZR

rasterio = pytest.importorskip("rasterio")
LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +datum=WGS84 +units=m"
NODATA = -9999000.0
VALUES = np.float32([[NODATA, np.nan, 0.02], [577.9, 1.5, NODATA]])
NAMES = {
    "RATE": "OPERA NIMBUS instantaneous rain rate composite",
    "DBZH": "OPERA CIRRUS maximum reflectivity composite",
    "ACRR": "OPERA NIMBUS rain accumulation composite",
}


def write(
    path: Path,
    values: Any = VALUES,
    *,
    quantity: str = "RATE",
    pixel: float = 2000.0,
    start: tuple[str, str] = ("20260810", "000000"),
    end: tuple[str, str] = ("20260810", "000000"),
    shift: float = -0.5,
    tags: dict[str, str] | None = None,
) -> Path:
    """A composite as EUMETNET publishes it; `shift` is that of its corner, in pixels."""
    corner = shift * pixel - 0.0002714, -shift * pixel - 0.0000876
    height, width = np.shape(values)
    said = {"object": "COMP", "prodname": NAMES.get(quantity, "OPERA"), "undetect": "nan", "product": "PPI"}
    said |= dict(zip(("startdate", "starttime", "enddate", "endtime"), (*start, *end), strict=True))
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=2, dtype="float32", nodata=NODATA, crs=LAEA,
        transform=rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), compress="deflate",
    ) as file:  # fmt: skip
        file.write(np.stack([np.asarray(values, np.float32), np.ones((height, width), np.float32)]))
        file.descriptions = quantity, "QIND"
        file.update_tags(**(said | (tags or {})))
    return path


def test_no_echo_is_zero_and_what_nobody_saw_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "OPERA@20260810T0000@0@RATE.tiff")
    assert OperaTiff().recognises(path)
    dataset = OperaTiff().read(path, step_minutes=15)
    expected = np.float32([[np.nan, 0, 0.02], [577.9, 1.5, np.nan]])
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], expected)
    assert dataset[schema.TIME].values[0] == np.datetime64("2026-08-10T00:00")
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    schema.check_archive(dataset)
    with pytest.raises(ValueError, match=r"RATE\.tiff .*states no step"):
        OperaTiff().read(path)


@pytest.mark.parametrize("shift", [-0.5, 0.0])
@pytest.mark.parametrize("pixel", [1000.0, 2000.0])
def test_the_corner_of_the_grid_is_at_the_origin(tmp_path: Path, shift: float, pixel: float) -> None:
    grid = OperaTiff().scan(write(tmp_path / "a.tiff", shift=shift, pixel=pixel)).grid
    np.testing.assert_array_equal(grid.x, pixel * np.array([0.5, 1.5, 2.5]))
    np.testing.assert_array_equal(grid.y, pixel * np.array([-0.5, -1.5]))


def test_reflectivity_and_depth(tmp_path: Path) -> None:
    dbz = np.float32([[NODATA, np.nan, -21.0, 55.5]])
    path = write(tmp_path / "a.tiff", dbz, quantity="DBZH", start=("20260809", "235001"))
    dataset = OperaTiff(zr_a=300, zr_b=1.4).read(path, step_minutes=5)
    expected = [np.nan, 0, *ZR(300, 1.4).to_rate(np.array([-21.0, 55.5]))]
    np.testing.assert_allclose(dataset[schema.RAIN].values[0, 0], expected, rtol=1e-6)
    assert dataset.attrs["zr_a"] == 300
    path = write(tmp_path / "b.tiff", np.float32([[3.0, np.nan]]), quantity="ACRR", start=("20260809", "230000"))
    dataset = OperaTiff().read(path, step_minutes=15)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0, 0], [3, 0])
    assert dataset.attrs["accumulation_minutes"] == 60 and "running means" in dataset.attrs["comment"]
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"


def test_an_archive_of_them(tmp_path: Path) -> None:
    for number in range(3):
        time = "20260810", f"00{15 * number:02d}01"  # the second at which a scan ended
        write(tmp_path / f"{number}.tiff", start=time, end=time)
    report = ingest(str(tmp_path / "*.tiff"), tmp_path / "archive", OperaTiff())
    archive = Archive.open(tmp_path / "archive")
    assert not report.problems and archive.num_times == 3 and archive.step_minutes == 15
    np.testing.assert_allclose(archive.read(2, 1)[0], [[np.nan, 0, 0.02], [300, 1.5, np.nan]], atol=1e-6)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a\.tiff cannot be read as OPERA GeoTIFF: its first band is QIND: raincast reads"
    ):
        OperaTiff().scan(write(tmp_path / "a.tiff", quantity="QIND"))
    with pytest.raises(ValueError, match="endtime=noon is not a time like"):
        OperaTiff().scan(write(tmp_path / "b.tiff", tags={"endtime": "noon"}))
    with pytest.raises(ValueError, match="not a valid accumulation period"):
        OperaTiff().read(write(tmp_path / "c.tiff", quantity="ACRR"))
    assert not OperaTiff().recognises(write(tmp_path / "d.tiff", tags={"prodname": "of another service"}))
