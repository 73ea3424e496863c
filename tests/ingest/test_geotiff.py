"""GeoTIFF series: what the user must state, times out of names, scales, and what is refused."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiling import check_reads_or_names, spoilt

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers import Auto
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.geotiff import GeoTIFF
from raincast.transforms import ZR

rasterio = pytest.importorskip("rasterio")
PIXELS = np.array([[0, 12, 255], [100, 200, 7]], np.uint8)
NAME = "rain_202001011205.tif"


def write(path: Path, pixels: Any = PIXELS, *, crs: Any = "EPSG:3067", tags: Any = None, **options: Any) -> Path:
    """One raster, 1 km; 255 is nodata, and the tag TIME holds 202001011205."""
    pixels = np.asarray(pixels)
    bands = pixels if pixels.ndim == 3 else pixels[None]
    scales = {name: options.pop(name) for name in ("scales", "offsets") if name in options}
    profile = {"nodata": 255, "transform": rasterio.Affine(1000, 0, 50_000, 0, -1000, 7_800_000)} | options
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands), dtype=bands.dtype,
        crs=crs, **profile,
    ) as file:  # fmt: skip
        file.write(bands)
        file.update_tags(**(tags or {"TIME": "202001011205"}))
        for name, value in scales.items():
            setattr(file, name, value)
    return path


def read(path: Path, quantity: str = "rate", **settings: Any) -> np.ndarray:
    values: np.ndarray = GeoTIFF(quantity, **settings).read(path, step_minutes=5)[schema.RAIN].values
    return values[0]


def test_undetected_may_be_nan(tmp_path: Path) -> None:
    """As in OPERA's: what nobody looked at is a number, and no echo is NaN."""
    path = write(tmp_path / NAME, np.float32([[-9999000, np.nan, 2.5]]), nodata=-9999000)
    np.testing.assert_array_equal(read(path, undetect=float("nan")), [[np.nan, 0, 2.5]])
    np.testing.assert_array_equal(read(path), [[np.nan, np.nan, 2.5]])


def test_masks_scales_in_tags_and_dry_codes_of_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.array([[255, 255, 0], [255, 255, 255]], np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / NAME, nodata=None)
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    masked = np.where(mask == 0, np.nan, PIXELS.astype(np.float32))
    np.testing.assert_array_equal(read(path), masked)
    alpha = write(tmp_path / NAME, np.stack([PIXELS, mask]), nodata=None, alpha="yes", photometric="minisblack")
    np.testing.assert_array_equal(read(alpha, band=1), masked)
    tagged = write(tmp_path / NAME, tags={"gain": "0.1"})
    with pytest.raises(
        ValueError, match=r"its tag gain is 0\.1, but its band states no scale: set source\.scale=0\.1"
    ):
        read(tagged)
    np.testing.assert_allclose(read(tagged, scale=0.1), np.where(PIXELS == 255, np.nan, 0.1 * PIXELS), rtol=1e-6)
    dry = write(tmp_path / NAME, nodata=0)
    assert np.isnan(read(dry)).sum() == 1
    assert "set source=geotiff source.undetect=0" in caplog.text
    np.testing.assert_array_equal(read(dry, undetect=0), PIXELS)


def test_an_archive_goes_on_with_the_same_nan(tmp_path: Path) -> None:
    """NaN equals nothing, itself included."""
    reader = GeoTIFF("rate", undetect=float("nan"), step_minutes=5)
    for time in ("202001011205", "202001011210"):
        write(tmp_path / f"{time}.tif", np.float32([[-9999000, np.nan, 2.5]]), nodata=-9999000)
        report = ingest(str(tmp_path / "*.tif"), tmp_path / "archive", reader)
    assert (report.num_written, report.num_present) == (1, 1)
    with pytest.raises(ValueError, match="undetect: NaN in the archive, null now"):
        ingest(str(tmp_path / "*.tif"), tmp_path / "archive", GeoTIFF("rate", step_minutes=5))


@pytest.mark.parametrize("zipped", [False, True])
def test_rates_time_and_grid(tmp_path: Path, zipped: bool) -> None:
    path = write(tmp_path / NAME)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert GeoTIFF().recognises(path)
    dataset = GeoTIFF("rate").read(path, step_minutes=5)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], np.where(PIXELS == 255, np.nan, PIXELS))
    assert dataset[schema.TIME].values[0] == np.datetime64("2020-01-01T12:05")
    np.testing.assert_allclose(dataset.y, [7_799_500, 7_798_500])
    np.testing.assert_allclose(dataset.x, [50_500, 51_500, 52_500])
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    schema.check_archive(dataset)
    head = GeoTIFF("rate").scan(path)
    assert head.step_minutes is None and head.times[0] == dataset[schema.TIME].values[0]
    with pytest.raises(ValueError, match=rf"{NAME} .*states no step"):
        GeoTIFF("rate").read(path)


def test_the_quantity_is_the_users_to_state(tmp_path: Path) -> None:
    path = write(tmp_path / NAME)
    auto = Auto({"geotiff": GeoTIFF()})
    for reader, key in ((GeoTIFF(), r"source\.quantity"), (auto, r"source\.readers\.geotiff\.quantity")):
        for call in (reader.scan, reader.read):
            with pytest.raises(ValueError, match=rf"{NAME} .*set {key}=rate\|acc"):
                call(path)
    with pytest.raises(ValueError, match="source.quantity=rain is none of rate, accumulation, reflectivity"):
        GeoTIFF("rain")


def test_depths_and_reflectivities(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, np.array([[0, 10, 255]], np.uint8))
    expected = [[0, 12, np.nan]]  # 0.1 mm a step; 10 of them in 5 min
    np.testing.assert_allclose(read(path, "accumulation", scale=0.1), expected)
    np.testing.assert_allclose(read(path, "accumulation", scale=0.1, accumulation_minutes=60), [[0, 1, np.nan]])
    # the fill is a pixel, not a value; undetect is 0 mm/h whatever its dBZ would be
    dbz = read(path, "reflectivity", scale=4, offset=-8, undetect=0, zr_a=300, zr_b=1.4)
    np.testing.assert_allclose(dbz, [[0, ZR(300, 1.4).to_rate(np.float64(32)), np.nan]], rtol=1e-6)
    dataset = GeoTIFF("reflectivity").read(path, step_minutes=5)
    assert (dataset.attrs["zr_a"], dataset[schema.RAIN].attrs["cell_methods"]) == (200, "time: point")
    assert "mean" in GeoTIFF("accumulation").read(path, step_minutes=5)[schema.RAIN].attrs["cell_methods"]


def test_scales_of_the_file_count_where_none_are_stated(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, scales=(0.5,), offsets=(1.0,))
    np.testing.assert_allclose(read(path), np.where(PIXELS == 255, np.nan, 1 + 0.5 * PIXELS))
    np.testing.assert_allclose(read(path, scale=2.0, offset=0.0, nodata=7)[1], [200, 400, np.nan])


@pytest.mark.parametrize("kind", ["int16", "float32", "float64"])
def test_nodata_of_each_type(tmp_path: Path, kind: str) -> None:
    # −9999.9 is none of float32: what the file says is as near as its pixels come
    nodata = -9999.9 if kind.startswith("float") else -9999
    pixels = np.array([[nodata, 1, 2.0]]).astype(kind)
    if kind != "int16":
        pixels[0, 2] = np.nan
    path = write(tmp_path / NAME, pixels, nodata=nodata)
    np.testing.assert_array_equal(read(path), [[np.nan, 1, 2 if kind == "int16" else np.nan]])
    assert np.isfinite(read(write(path, np.full((1, 2), 3, kind), nodata=None))).all()


@pytest.mark.parametrize(
    ("name", "settings", "time"),
    [
        ("202001011205.tif", {}, "2020-01-01T12:05"),
        ("A1_2020010112050000.tif", {}, "2020-01-01T12:05"),  # seconds and more behind
        ("12345678_202001011205.tif", {}, "2020-01-01T12:05"),
        ("RR-2020-01-01_12h05.tif", {"time_format": "%Y-%m-%d_%Hh%M"}, "2020-01-01T12:05"),
        ("x20001.1205.tif", {"time_format": "%y%j.%H%M"}, "2020-01-01T12:05"),
        ("202001011200_202001011205.tif", {"time_format": "_%Y%m%d%H%M"}, "2020-01-01T12:05"),
        ("202001011200.tif", {"time_offset_minutes": 5}, "2020-01-01T12:05"),
        ("no_time.tif", {"time_tag": "TIME"}, "2020-01-01T12:05"),
    ],
)
def test_times(tmp_path: Path, name: str, settings: dict[str, Any], time: str) -> None:
    assert GeoTIFF("rate", **settings).scan(write(tmp_path / name)).times[0] == np.datetime64(time)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("rain.tif", {}, r"'rain\.tif' should hold one time like source\.time_format=%Y%m%d%H%M, found: none"),
        ("202013011205.tif", {}, "found: none"),  # there is no 13th month
        ("120200101120.tif", {}, "found: none"),  # nor a radar in the year 1202
        ("202001011200_202001011205.tif", {}, "found: 2020-01-01 12:00:00 and 2020-01-01 12:05:00"),
        ("a.tif", {"time_tag": "TIMES"}, "no tag TIMES; found: AREA_OR_POINT, TIME"),
    ],
)
def test_times_that_nobody_can_know(tmp_path: Path, name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot be read as GeoTIFF: .*{reason}"):
        GeoTIFF("rate", **settings).scan(write(tmp_path / name))


@pytest.mark.parametrize(
    ("time_format", "reason"),
    [("%d%b%Y", "use %Y, .*, not %b"), ("%H%M", "has no date"), ("%Y%", "not %.")],
)
def test_time_formats(time_format: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"source.time_format={time_format}.* {reason}"):
        GeoTIFF(time_format=time_format)


def test_bands_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, np.stack([PIXELS, PIXELS + 1]))
    with pytest.raises(ValueError, match="it has 2 bands: choose one with source.band=1"):
        read(path)
    np.testing.assert_array_equal(read(path, band=2)[1], [101, 201, 8])
    with pytest.raises(ValueError, match="it has no band 3, only 2"):
        read(path, band=3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crs": None}, "names no projection"),
        ({"transform": rasterio.Affine(1000, 500, 0, 500, -1000, 0)}, "not parallel to x"),
        ({"pixels": PIXELS.astype("complex64"), "nodata": None}, "complex64, not integers or floats"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / NAME, **change)
    with pytest.raises(ValueError, match=rf"{NAME} cannot be read as GeoTIFF: .*{reason}"):
        read(path)


def test_only_tiffs_that_know_their_place(tmp_path: Path) -> None:
    plain = write(tmp_path / NAME, crs=None, transform=None)
    assert not GeoTIFF().recognises(plain)
    assert GeoTIFF().recognises(write(tmp_path / "big.tif", BIGTIFF="YES"))
    assert GeoTIFF().recognises(write(tmp_path / "motorola.tif", ENDIANNESS="BIG"))


def test_a_spoilt_size_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / NAME)
    content = bytearray(path.read_bytes())
    (number,) = struct.unpack_from("<H", content, struct.unpack_from("<I", content, 4)[0])
    first = struct.unpack_from("<I", content, 4)[0] + 2
    for at in range(first, first + 12 * number, 12):
        if struct.unpack_from("<H", content, at)[0] in (256, 257):  # width and height
            struct.pack_into("<HI", content, at + 2, 4, 1)
            struct.pack_into("<I", content, at + 8, 2**30)
    path.write_bytes(bytes(content))
    for call in (GeoTIFF("rate").scan, lambda p: GeoTIFF("rate").read(p, step_minutes=5)):
        with pytest.raises(ValueError, match=NAME):
            call(path)


def test_damaged_files_name_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / NAME)
    packed = gzip.compress(path.read_bytes())
    assert check_reads_or_names(GeoTIFF("rate"), path, spoilt(packed)) > 40


def test_a_series_becomes_an_archive_and_one_frame_says_which_key_is_missing(tmp_path: Path) -> None:
    for minute in (0, 5, 15):
        write(tmp_path / f"r_2020010112{minute:02d}.tif", PIXELS % 50 + np.uint8(minute), nodata=None)
    reader = Auto({"geotiff": GeoTIFF("rate"), "cf": CF()})
    report = ingest(tmp_path / "*.tif", tmp_path / "out", reader)
    assert (report.num_written, report.missing_times) == (3, ("2020-01-01T12:10:00",))
    assert Archive.open(tmp_path / "out").read(1, 1)[0, 0, 0] == 5
    with pytest.raises(ValueError, match=r"Set source\.readers\.geotiff\.step_minutes=5"):
        ingest(tmp_path / "*1205.tif", tmp_path / "one", reader)
    with pytest.raises(ValueError, match=r"Set source\.step_minutes=5"):
        ingest(tmp_path / "*1205.tif", tmp_path / "one", GeoTIFF("rate"))


def test_the_unit_of_the_band_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, np.float32([[1, 2]]))
    with rasterio.open(path, "r+") as file:
        file.set_band_unit(1, "mm/min")
    np.testing.assert_allclose(read(path, None), [[60, 120]])
    with pytest.raises(ValueError, match="its band is in mm/min, a rate, but .*: set source.quantity=rate"):
        GeoTIFF("accumulation").scan(path)


def test_the_files_own_zr_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, np.float32([[20, 30]]), tags={"zr_a": "300", "zr_b": "1.4"})
    dataset = GeoTIFF("reflectivity").read(path, step_minutes=5)
    np.testing.assert_allclose(dataset[schema.RAIN][0], ZR(300, 1.4).to_rate(np.array([[20.0, 30.0]])), rtol=1e-6)
    assert dataset.attrs["zr_from"] == "the file"
    assert GeoTIFF("reflectivity", zr_a=200, zr_b=1.6).read(path, step_minutes=5).attrs["zr_a"] == 200


def test_pixels_of_a_metre_are_refused(tmp_path: Path) -> None:
    """A file with a projection, but without the transform to it."""
    with pytest.raises(ValueError, match=r"steps of 0\.001 km"):
        read(write(tmp_path / NAME, transform=rasterio.Affine(1, 0, 0, 0, -1, 0)))
