"""FMI PGM and GeoTIFF: scales, times, the grid, and what is refused."""

import builtins
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Proj, Transformer

from raincast import schema
from raincast.ingest.readers.fmi import FMI
from raincast.transforms import ZR

CODES = np.array([[0, 64, 255], [100, 200, 70]], np.uint8)
RATES = np.array([[0, 1, np.nan], [1, 1, 1]]) * np.where(CODES > 0, ZR(223, 1.53).to_rate(0.5 * CODES - 32), 0)
HEADER = """P5
# projection_name SUOMI1
# radar VAN 1 24.8730 60.2710
# obstime {time}
# productname LOWEST
# param {param}
{more}# projection radar {{
# type {kind}
# centrallongitude 25
# centrallatitude 90
# truelatitude 60
# bottomleft 18.600000 57.930000
# topright {topright}
# }}
{width} {height}
{largest}
"""
ITEMS = """<GDALMetadata>
<Item name="Observation time" format="YYYYMMDDhhmm">{time}</Item>
<Item name="Quantity" unit="{unit}">{quantity}</Item>
<Item name="Gain">{gain:f}</Item>
<Item name="Offset">{offset:f}</Item>
<Item name="Nodata">{nodata}</Item>
<Item name="Undetect">0</Item>
{more}</GDALMetadata>
"""


def write_pgm(path: Path, codes: Any = CODES, *, zipped: bool = False, **header: Any) -> Path:
    codes = np.asarray(codes)
    largest = header.pop("largest", 255 if codes.itemsize == 1 else 65535)
    words = {
        "time": "201609281445",
        "param": "CorrectedReflectivity",
        "kind": "stereographic",
        "more": "",
        "topright": "34.903 69.005",
    }
    words |= {"width": codes.shape[1], "height": codes.shape[0], "largest": largest}
    content = HEADER.format(**words | header).encode() + codes.astype(codes.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def write_tiff(path: Path, codes: Any = CODES, *, nested: bool = True, more: str = "", **items: Any) -> Path:
    rasterio = pytest.importorskip("rasterio")
    codes = np.asarray(codes)
    words = {
        "time": "202102020100",
        "unit": "dBZ",
        "quantity": "Corrected reflectivity",
        "gain": 0.5,
        "offset": -32,
        "nodata": 255,
    }
    text = ITEMS.format(more=more, **words | items)
    transform = rasterio.Affine(1000, 0, 50_000, 0, -1000, 7_800_000)
    with rasterio.open(
        path, "w", driver="GTiff", height=codes.shape[0], width=codes.shape[1], count=1, dtype=codes.dtype,
        crs="EPSG:3067", transform=transform, compress="deflate",
    ) as file:  # fmt: skip
        file.write(codes, 1)
        file.update_tags(**({"GDAL_METADATA": text} if nested else {"GDAL_METADATA": text.replace("\n", "")}))
    return path


def read(path: Path, **settings: Any) -> np.ndarray:
    values: np.ndarray = FMI(**settings).read(path, step_minutes=5)[schema.RAIN].values
    return values[0]


@pytest.mark.parametrize("zipped", [False, True])
def test_pgm(tmp_path: Path, zipped: bool) -> None:
    path = write_pgm(tmp_path / "a.bin", zipped=zipped)
    assert FMI().recognises(path)
    dataset = FMI().read(path, step_minutes=5)
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], RATES, rtol=1e-6)
    assert dataset[schema.TIME].values[0] == np.datetime64("2016-09-28T14:45")
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    assert (dataset.attrs["zr_a"], dataset.attrs["zr_b"], dataset.attrs["source"]) == (223, 1.53, "FMI")
    schema.check_archive(dataset)
    assert FMI().scan(path).step_minutes is None and FMI(step_minutes=15).scan(path).step_minutes == 15
    with pytest.raises(ValueError, match=r"a\.bin .*states no step.*source\.step_minutes"):
        FMI().read(path)
    assert read(path, zr_a=200, zr_b=1.6)[0, 1] == pytest.approx(float(ZR().to_rate(np.float64(0))))


def test_pgm_states_its_own_scale_and_largest_value(tmp_path: Path) -> None:
    more = "# multiplier 0.1\n# offset -20\n"
    codes = np.array([[0, 200, 1000, 300]], np.uint16)
    rates = read(write_pgm(tmp_path / "a.pgm", codes, more=more, largest=1000))
    np.testing.assert_allclose(
        rates,
        [[0, ZR(223, 1.53).to_rate(np.float64(0)), np.nan, ZR(223, 1.53).to_rate(np.float64(10))]],
        rtol=1e-6,
    )


def test_pgm_lies_between_its_corners(tmp_path: Path) -> None:
    grid = FMI().scan(write_pgm(tmp_path / "a.pgm", np.zeros((1226, 760), np.uint8))).grid
    # the file of SUOMI1 states metersperpixel 999.674053 and 999.62859
    assert np.diff(grid.x).mean() == pytest.approx(999.674053, abs=1e-6)
    assert np.diff(grid.y).mean() == pytest.approx(-999.62859, abs=1e-5)
    to_earth = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    half_x, half_y = 0.5 * 999.674053, 0.5 * 999.62859
    np.testing.assert_allclose(
        to_earth.transform(grid.x[0] - half_x, grid.y[-1] - half_y), (18.6, 57.93), atol=1e-6
    )
    np.testing.assert_allclose(
        to_earth.transform(grid.x[-1] + half_x, grid.y[0] + half_y), (34.903, 69.005), atol=1e-6
    )


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"time": "2016-09-28"}, "observation time '2016-09-28' is not like"),
        ({"param": "PrecipitationRate"}, "it holds PrecipitationRate: raincast reads only reflectivity"),
        ({"kind": "gnomonic"}, "its projection is gnomonic"),
        ({"topright": "18.6 57.93"}, "span no image"),
        ({"topright": "north"}, "could not convert"),
        ({"height": 5}, "it ends early: 6 bytes of 5 × 3 pixels"),
        ({"largest": 99}, "it has the grey value 255, but states 99 as the largest"),
        ({"largest": 70000}, "largest grey value is 70000"),
        ({"width": -3}, r"are \[-3, 2, 255\]"),
    ],
)
def test_pgm_that_cannot_be(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.pgm cannot be read as FMI PGM or GeoTIFF: .*({reason})"):
        read(write_pgm(tmp_path / "a.pgm", **header))


def test_geotiff_reflectivity(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.bin")
    assert FMI().recognises(path)
    dataset = FMI().read(path, step_minutes=5)
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], RATES, rtol=1e-6)
    assert dataset[schema.TIME].values[0] == np.datetime64("2021-02-02T01:00")
    np.testing.assert_array_equal(dataset.y, [7_799_500, 7_798_500])
    np.testing.assert_array_equal(dataset.x, [50_500, 51_500, 52_500])
    schema.check_archive(dataset)
    assert dataset.attrs["zr_b"] == 1.53 and dataset.attrs["title"] == "Corrected reflectivity"


def test_geotiff_rate_and_depth(tmp_path: Path) -> None:
    codes = np.array([[0, 250, 65535]], np.uint16)
    settings = {"codes": codes, "gain": 0.01, "offset": 0, "nodata": 65535}
    rate = FMI().read(
        write_tiff(tmp_path / "a.tif", unit="mm/h", quantity="Rainfall intensity", **settings), step_minutes=5
    )
    np.testing.assert_allclose(rate[schema.RAIN].values[0], [[0, 2.5, np.nan]])
    assert "zr_a" not in rate.attrs and rate[schema.RAIN].attrs["cell_methods"] == "time: point"
    hours = '<Item name="Accumulation time" unit="h">12</Item>\n'
    path = write_tiff(tmp_path / "b.tif", unit="mm", quantity="Precipitation accumulation", more=hours, **settings)
    depth = FMI().read(path, step_minutes=60)
    np.testing.assert_allclose(depth[schema.RAIN].values[0], [[0, 2.5 / 12, np.nan]], rtol=1e-6)
    assert depth[schema.RAIN].attrs["cell_methods"] == "time: mean"
    with pytest.raises(ValueError, match="Accumulation time is absent"):
        FMI().scan(write_tiff(tmp_path / "c.tif", unit="mm", **settings))
    with pytest.raises(ValueError, match="it holds Echo top in km: raincast reads dBZ, mm/h, mm"):
        FMI().scan(write_tiff(tmp_path / "d.tif", unit="km", quantity="Echo top", **settings))


def test_geotiff_with_the_items_in_the_tag_itself(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif")
    from PIL import Image, TiffImagePlugin

    with Image.open(path) as image:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag in (33550, 33922, 34735, 34736, 34737):
            if tag in image.tag_v2:
                info[tag] = image.tag_v2[tag]
                info.tagtype[tag] = image.tag_v2.tagtype[tag]
        info[42112] = ITEMS.format(
            time="202102020100",
            unit="dBZ",
            quantity="Corrected reflectivity",
            gain=0.5,
            offset=-32,
            nodata=255,
            more="",
        )
        image.copy().save(tmp_path / "b.tif", tiffinfo=info)
    assert FMI().recognises(tmp_path / "b.tif")
    np.testing.assert_allclose(read(tmp_path / "b.tif"), RATES, rtol=1e-6)
    assert FMI().scan(tmp_path / "b.tif").grid.same_as(FMI().scan(path).grid)


def test_geotiff_of_somebody_else(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=2, width=3, count=1, dtype="uint8", crs="EPSG:3067",
                       transform=rasterio.Affine(1, 0, 0, 0, -1, 9)) as file:  # fmt: skip
        file.write(CODES, 1)
    assert not FMI().recognises(tmp_path / "a.tif")
    with pytest.raises(
        ValueError, match=r"a\.tif cannot be read .*GDAL_METADATA has no Observation time, Quantity"
    ):
        FMI().scan(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"begins with b'no r': neither a PGM"):
        (tmp_path / "b.pgm").write_text("no radar")
        FMI().scan(tmp_path / "b.pgm")


def test_without_rasterio_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "a.tif")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("rasterio"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert FMI().recognises(path)
    with pytest.raises(ValueError, match=r'a\.tif cannot be read .*rasterio.*pip install -e "\.\[gis\]"'):
        FMI().scan(path)
    assert read(write_pgm(tmp_path / "a.pgm")).shape == (2, 3)


@pytest.mark.radar
def test_real_frame_agrees_with_pysteps(radar_dir: Path) -> None:
    pytest.importorskip("pysteps")
    from pysteps.io.importers import import_fmi_pgm

    path = next((radar_dir / "fmi/20170509").glob("*.pgm.gz"))
    dbz, _, about = import_fmi_pgm(str(path), gzipped=True)
    np.testing.assert_allclose(read(path), ZR(223, 1.53).to_rate(dbz.astype(np.float64)), rtol=1e-5)
    grid = FMI().scan(path).grid
    corner = Proj(about["projection"])(about["x1"], about["y2"], inverse=True)
    step_x, step_y = grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]
    ours = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True).transform(
        grid.x[0] - step_x / 2, grid.y[0] - step_y / 2
    )
    np.testing.assert_allclose(ours, corner, atol=1e-6)
