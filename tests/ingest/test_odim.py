"""ODIM HDF5 composites: quantities, levels, codes, times, corners, and what is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pyproj import CRS, Transformer

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.odim import ODIM
from raincast.transforms import ZR

LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
CODES = np.array([[0, 1, 50], [255, 100, 3]], np.uint8)  # 0: undetected, 255: no data
TIMES = {"startdate": "20241126", "starttime": "005500", "enddate": "20241126", "endtime": "010000"}
RATE = {"quantity": "RATE", "gain": 0.5, "offset": 0.0, "nodata": 255.0, "undetect": 0.0}
PATTERN = "opera_cirrus/20241126/*.hdf"


def put(group: Any, name: str, attrs: dict[str, Any]) -> None:
    texts = {k: np.bytes_(v.encode()) if isinstance(v, str) else v for k, v in attrs.items()}
    group.require_group(name).attrs.update(texts)


def where(
    shape: tuple[int, int],
    *,
    projdef: str = LAEA,
    pixel: float = 2000.0,
    corners: str = "LL UL UR LR",
    centres: bool = False,
) -> dict[str, Any]:
    """The where group of an image whose upper left corner is at (100 km, −200 km)."""
    to_earth = Transformer.from_crs(projdef, "EPSG:4326", always_xy=True)
    inset = 0.5 * pixel if centres else 0.0
    left, top = 1e5 + inset, -2e5 - inset
    right, bottom = 1e5 + pixel * shape[1] - inset, -2e5 - pixel * shape[0] + inset
    attrs = {"projdef": projdef, "xsize": shape[1], "ysize": shape[0], "xscale": pixel, "yscale": pixel}
    for name in corners.split():
        lon, lat = to_earth.transform(left if name[1] == "L" else right, bottom if name[0] == "L" else top)
        attrs |= {f"{name}_lon": lon, f"{name}_lat": lat}
    return attrs


def write(
    path: Path,
    images: dict[str, tuple[Any, dict[str, Any]]] | None = None,
    *,
    kind: str = "COMP",
    levels: dict[str, dict[str, Any]] | None = None,
    place: dict[str, Any] | None = None,
    nominal: dict[str, str] | None = None,
) -> Path:
    """`images` is dataset1/data1 → codes and what of the data; `levels` is dataset1 → what of the dataset."""
    images = {"dataset1/data1": (CODES, RATE)} if images is None else images
    shape = next((np.shape(codes) for codes, _ in images.values()), (2, 3))
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_(b"ODIM_H5/V2_3")
        put(
            file,
            "what",
            {
                "object": kind,
                "source": "ORG:1",
                **({"date": "20241126", "time": "010000"} if nominal is None else nominal),
            },
        )
        put(file, "where", where(shape) if place is None else place)
        for name in {name.split("/")[0] for name in images}:
            put(file, f"{name}/what", {"product": "MAX", **TIMES} | (levels or {}).get(name, {}))
        for name, (codes, what) in images.items():
            put(file, f"{name}/what", what)
            file[name].create_dataset("data", data=codes, compression="gzip")
    return path


def read(path: Path, **settings: Any) -> np.ndarray:
    values: np.ndarray = ODIM(**settings).read(path, step_minutes=5)[schema.RAIN].values
    return values[0]


def test_rates_times_and_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin")
    assert ODIM().recognises(path)
    dataset = ODIM().read(path, step_minutes=5)
    expected = np.array([[0, 0.5, 25], [np.nan, 50, 1.5]], np.float32)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], expected)
    np.testing.assert_array_equal(dataset[schema.TIME], np.array(["2024-11-26T01:00"], "datetime64[ns]"))
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    assert dataset.attrs["source"] == "ODIM ORG:1" and dataset.attrs["title"] == "COMP MAX RATE"
    schema.check_archive(dataset)
    assert ODIM().scan(path).step_minutes is None
    with pytest.raises(ValueError, match=r"a\.bin .*states no step.*source\.step_minutes=5"):
        ODIM().read(path)
    assert ODIM(step_minutes=15).scan(path).step_minutes == 15
    assert ODIM().read(path, slice(0, 0), step_minutes=5)[schema.RAIN].shape == (0, 2, 3)


@pytest.mark.parametrize("quantity", ["DBZH", "TH"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_reflectivity_by_the_stated_zr(tmp_path: Path, quantity: str, dtype: str) -> None:
    what = RATE | {"quantity": quantity, "gain": 0.5, "offset": -32.0}
    path = write(tmp_path / "a.h5", {"dataset1/data1": (CODES.astype(dtype), what)})
    expected = ZR(256, 1.42).to_rate(CODES * 0.5 - 32)
    expected[CODES == 0], expected[CODES == 255] = 0, np.nan
    np.testing.assert_allclose(read(path, zr_a=256, zr_b=1.42), expected, rtol=1e-6)
    attrs = ODIM().read(path, step_minutes=5).attrs
    assert (attrs["zr_a"], attrs["zr_b"]) == (200, 1.6)


def test_accumulation_is_a_mean_over_its_interval(tmp_path: Path) -> None:
    images = {"dataset1/data1": (CODES, RATE | {"quantity": "ACRR"})}
    hour = {
        "dataset1": {"startdate": "20241125", "starttime": "233000", "enddate": "20241126", "endtime": "003000"}
    }
    path = write(tmp_path / "a.h5", images, levels=hour)
    dataset = ODIM().read(path)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], np.float32([[0, 0.5, 25], [np.nan, 50, 1.5]]))
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    assert dataset[schema.TIME].values[0] == np.datetime64("2024-11-26T00:30")
    np.testing.assert_allclose(read(path, accumulation_minutes=5)[0], [0, 6, 300])
    with pytest.raises(ValueError, match="not a valid accumulation period"):
        read(write(tmp_path / "b.h5", images, levels={"dataset1": {"starttime": "010000"}}))


def test_what_of_the_data_wins_over_that_of_the_dataset(tmp_path: Path) -> None:
    at_dataset = {"dataset1": RATE}
    assert read(write(tmp_path / "a.h5", {"dataset1/data1": (CODES, {})}, levels=at_dataset))[0, 2] == 25
    path = write(
        tmp_path / "b.h5", {"dataset1/data1": (CODES, {"gain": 0.1, "undetect": 50.0})}, levels=at_dataset
    )
    np.testing.assert_allclose(read(path)[0], [0, 0.1, 0], rtol=1e-6)


def test_absent_and_huge_codes(tmp_path: Path) -> None:
    # defaults: gain 1, offset 0, no code for missing or undetected
    path = write(tmp_path / "a.h5", {"dataset1/data1": (CODES, {"quantity": "RATE"})})
    np.testing.assert_array_equal(read(path), CODES)
    # −9999000 in bytes is 24 by wrapping round: no such code
    codes = np.array([[24, 0, 1]], np.uint8)
    huge = {"quantity": "RATE", "nodata": -9999000.0, "undetect": 65535.0}
    np.testing.assert_array_equal(read(write(tmp_path / "b.h5", {"dataset1/data1": (codes, huge)})), codes)
    # 1e30 is no float32, but what the file holds is the nearest one
    values = np.array([[1e30, -8888000, np.nan, 2.5]], np.float32)
    huge = {"quantity": "RATE", "nodata": 1e30, "undetect": -8888000.0}
    np.testing.assert_array_equal(
        read(write(tmp_path / "c.h5", {"dataset1/data1": (values, huge)})), [[np.nan, 0, np.nan, 2.5]]
    )
    huge["nodata"] = 1e300
    assert read(write(tmp_path / "d.h5", {"dataset1/data1": (values, huge)}))[0, 3] == 2.5


@pytest.mark.parametrize(
    ("nodata", "undetect", "expected"),
    [
        (-9999000.0, np.nan, [np.nan, 0, 2.5, np.inf]),  # OPERA, as its GeoTIFF says
        (np.nan, np.inf, [-9999000, np.nan, 2.5, 0]),  # MeteoSwiss
        (np.nan, np.nan, [-9999000, np.nan, 2.5, np.inf]),
        (-9999000.0, np.inf, [np.nan, np.nan, 2.5, 0]),
    ],
)
def test_nan_is_missing_unless_it_says_no_echo(
    tmp_path: Path, nodata: float, undetect: float, expected: list[float]
) -> None:
    values = np.array([[-9999000, np.nan, 2.5, np.inf]])
    what = {"quantity": "RATE", "nodata": nodata, "undetect": undetect}
    path = write(tmp_path / "a.h5", {"dataset1/data1": (values, what)})
    np.testing.assert_array_equal(read(path)[0], np.float32(expected))


def test_outliers_are_left_to_the_quality_limits(tmp_path: Path) -> None:
    what = {"quantity": "DBZH", "nodata": -9999000.0, "undetect": -8888000.0}
    rates = read(write(tmp_path / "a.h5", {"dataset1/data1": (np.array([[78.0, 1e6]]), what)}))
    assert rates[0, 0] == pytest.approx(float(ZR().to_rate(np.float64(78)))) and rates[0, 0] > 2500
    assert np.isinf(rates[0, 1])


def test_choice_of_the_quantity(tmp_path: Path) -> None:
    images = {
        "dataset1/data1": (CODES, RATE | {"quantity": "QIND"}),
        "dataset1/data2": (CODES, RATE | {"quantity": "DBZH"}),
        "dataset2/data1": (CODES, RATE | {"quantity": "ACRR"}),
        "dataset10/data1": (CODES, RATE),
    }
    path = write(tmp_path / "a.h5", images)
    assert read(path)[1, 1] == 50  # RATE before ACRR before DBZH, whatever their place
    assert read(path, quantity="ACRR")[1, 1] == 600
    assert read(path, quantity="DBZH")[1, 1] == pytest.approx(float(ZR().to_rate(np.float64(50))), rel=1e-6)
    assert read(path, dataset="dataset2")[1, 1] == 600
    with pytest.raises(
        ValueError, match=r"no source\.quantity=TH; found: QIND in dataset1/data1, DBZH in dataset1/data2, ACRR"
    ):
        read(path, quantity="TH")
    with pytest.raises(ValueError, match=r"no rain in source\.dataset=dataset3; found"):
        read(path, dataset="dataset3")
    with pytest.raises(ValueError, match="none of auto, RATE, ACRR, DBZH, TH"):
        ODIM(quantity="VRAD")
    with pytest.raises(ValueError, match="neither end nor nominal"):
        ODIM(valid_time="start")
    other = write(tmp_path / "b.h5", {"dataset1/data1": (CODES, RATE | {"quantity": "VRAD"})})
    with pytest.raises(
        ValueError, match=r"no rain; found: VRAD in dataset1/data1\. raincast reads RATE \(mm/h\), ACRR"
    ):
        read(other)


def test_several_datasets_are_frames_or_a_choice(tmp_path: Path) -> None:
    images = {f"dataset{n}/data1": (np.full((2, 3), n, np.uint8), RATE) for n in (1, 2, 10)}
    ends = {f"dataset{n}": {"endtime": f"01{5 * i:02d}00"} for i, n in enumerate((1, 2, 10))}
    path = write(tmp_path / "a.h5", images, levels=ends)
    dataset = ODIM().read(path, slice(1, 3), step_minutes=5)
    np.testing.assert_array_equal(dataset[schema.RAIN][:, 0, 0], [1, 5])
    np.testing.assert_array_equal(
        dataset[schema.TIME], np.array(["2024-11-26T01:05", "2024-11-26T01:10"], "datetime64[ns]")
    )
    assert ODIM().scan(path).times.size == 3
    same = write(tmp_path / "b.h5", images)
    with pytest.raises(ValueError, match=r"3 images of RATE have the same time: .*source\.dataset=dataset1"):
        ODIM().scan(same)
    assert read(same, dataset="dataset2/data1")[0, 0] == 1


def test_nominal_time_or_the_end_of_the_scan(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", levels={"dataset1": {"starttime": "005912", "endtime": "010500"}})
    assert ODIM().scan(path).times[0] == np.datetime64("2024-11-26T01:00")
    assert ODIM(valid_time="end").scan(path).times[0] == np.datetime64("2024-11-26T01:05")
    attrs = ODIM().read(path, step_minutes=5).attrs
    assert (attrs["scan_start_s"], attrs["scan_end_s"]) == (-48, 300)
    with h5py.File(path, "a") as file:
        for name in TIMES:
            del file["dataset1/what"].attrs[name]
    assert ODIM(valid_time="end").scan(path).times[0] == np.datetime64("2024-11-26T01:00")
    with h5py.File(path, "a") as file:
        del file["what"].attrs["time"]
    with pytest.raises(ValueError, match="neither an end nor a nominal time"):
        ODIM().scan(path)
    without = write(tmp_path / "b.h5", nominal={})
    assert ODIM().scan(without).times[0] == np.datetime64("2024-11-26T01:00")
    with pytest.raises(ValueError, match="endtime=noon is not a time like"):
        ODIM().scan(write(tmp_path / "c.h5", levels={"dataset1": {"endtime": "noon"}}))


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("010012", "01:00:00"), ("005958", "01:00:00"), ("010230", "01:02:30"), ("010500", "01:05:00")],
)
def test_the_second_at_which_a_scan_ended_is_rounded_away(tmp_path: Path, stated: str, expected: str) -> None:
    path = write(tmp_path / "a.h5", levels={"dataset1": {"endtime": stated}})
    assert ODIM(valid_time="end").scan(path).times[0] == np.datetime64(f"2024-11-26T{expected}")


@pytest.mark.parametrize("ends", ["jitter", "two conventions"])
def test_all_frames_are_at_their_nominal_times(tmp_path: Path, ends: str) -> None:
    """Scans that end 34 s before to 31 s after the nominal time; ends 5 min after it in older files, at it in newer."""
    nominal = np.datetime64("2020-06-01T00:00:00") + np.timedelta64(15, "m") * np.arange(8)
    jitter = [-33, -32, 20, 31, 4, -34, 30, -3]
    offsets = jitter if ends == "jitter" else [300] * 4 + [0] * 4
    for number, (time, offset) in enumerate(zip(nominal, offsets, strict=True)):
        end = time + np.timedelta64(offset, "s")
        start = end - np.timedelta64(900, "s")
        stamps = [str(t).replace("-", "").replace(":", "").split("T") for t in (start, end, time)]
        (startdate, starttime), (enddate, endtime), (date, clock) = stamps
        level = {"startdate": startdate, "starttime": starttime, "enddate": enddate, "endtime": endtime}
        write(tmp_path / f"{number}.h5", levels={"dataset1": level}, nominal={"date": date, "time": clock})
    report = ingest(str(tmp_path / "*.h5"), tmp_path / "archive", ODIM())
    assert (report.num_written, report.off_step) == (8, ())
    archive = Archive.open(tmp_path / "archive")
    np.testing.assert_array_equal(archive.times, nominal)
    assert archive.attrs["scan_end_s"] == offsets[0]


@pytest.mark.parametrize("corners", ["LL UL UR LR", "LL UR", "UL LR"])
@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize(
    "projdef",
    [
        LAEA,
        "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=14 +ellps=bessel",
        "+proj=lcc +lat_1=50 +lat_0=50 +lon_0=4 +R=6371000",
    ],
)
def test_pixels_lie_between_the_corners(tmp_path: Path, corners: str, centres: bool, projdef: str) -> None:
    codes = np.zeros((40, 30), np.uint8)
    place = where(codes.shape, projdef=projdef, corners=corners, centres=centres)
    grid = ODIM().scan(write(tmp_path / "a.h5", {"dataset1/data1": (codes, RATE)}, place=place)).grid
    np.testing.assert_allclose(grid.y, -2e5 - 2000 * (np.arange(40) + 0.5), atol=1e-2)
    np.testing.assert_allclose(grid.x, 1e5 + 2000 * (np.arange(30) + 0.5), atol=1e-2)
    assert CRS.from_wkt(grid.crs_wkt).axis_info[0].unit_name == "metre"


def test_projection_in_km_and_lat_lon(tmp_path: Path) -> None:
    place = where((2, 3), projdef=LAEA, pixel=2000.0)
    place["projdef"] = (
        LAEA.replace("units=m", "units=km").replace("1950000.0", "1950").replace("-2100000.0", "-2100")
    )
    in_km = ODIM().scan(write(tmp_path / "a.h5", place=place)).grid
    assert in_km.same_as(ODIM().scan(write(tmp_path / "b.h5")).grid)
    corners = {
        f"{n}_{c}": v
        for n in ("LL", "UR")
        for c, v in zip(("lon", "lat"), {"LL": (5, 50), "UR": (5.3, 50.2)}[n], strict=True)
    }
    place = {
        "projdef": "+proj=longlat +datum=WGS84",
        "xsize": 3,
        "ysize": 2,
        "xscale": 0.1,
        "yscale": 0.1,
    } | corners
    grid = ODIM().scan(write(tmp_path / "c.h5", place=place)).grid
    np.testing.assert_allclose(grid.y, [50.15, 50.05])
    np.testing.assert_allclose(grid.x, [5.05, 5.15, 5.25])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"projdef": None}, "where has no projdef"),
        ({"projdef": "+proj=nowhere"}, "pyproj knows no projection"),
        ({"LL_lon": None, "UL_lon": None}, r"too few corners \(UR, LR\)"),
        ({"xscale": 1000.0}, r"apart in x, but xsize × xscale"),
        ({"xsize": 5}, r"apart in x, but xsize × xscale"),
        ({"ysize": 0}, "are not an image"),
    ],
)
def test_where_that_cannot_be(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    place = {k: v for k, v in (where((2, 3)) | change).items() if v is not None}
    with pytest.raises(ValueError, match=rf"a\.h5 cannot be read as ODIM HDF5: .*{reason}"):
        ODIM().scan(write(tmp_path / "a.h5", place=place))


def test_image_of_another_size_than_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", place=where((3, 3)))
    with pytest.raises(ValueError, match=r"is \(2, 3\) of uint8: .*\(3, 3\)"):
        read(path)


@pytest.mark.parametrize("kind", ["PVOL", "SCAN"])
def test_polar_objects_are_refused_with_the_way_to_grid_them(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.h5", kind=kind)
    assert not ODIM().recognises(path)
    with pytest.raises(
        ValueError, match=rf"a\.h5 \(ODIM HDF5, object {kind}\) holds rays.*pyart.*wradlib.*source=cf"
    ):
        ODIM().scan(path)
    with pytest.raises(ValueError, match="what/object is VP: raincast reads COMP and IMAGE"):
        ODIM().scan(write(tmp_path / "b.h5", kind="VP"))


@pytest.mark.parametrize("name", ["what", "where", "dataset1", "dataset1/data1/data", "dataset1/data1/what"])
def test_missing_groups_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file[name]
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read as ODIM HDF5: .+"):
        ODIM().scan(path)


@pytest.mark.radar
def test_real_opera(radar_dir: Path) -> None:
    paths = sorted(radar_dir.glob(PATTERN))
    heads = [ODIM().scan(path) for path in paths]
    times = [head.times[0] for head in heads]
    assert len(times) == 13 and np.unique(np.diff(times)) == [np.timedelta64(5, "m")]
    assert (times[0], times[-1]) == (np.datetime64("2024-11-26T01:00"), np.datetime64("2024-11-26T02:00"))
    assert all(head.grid is heads[0].grid for head in heads)
    frames = np.concatenate([ODIM().read(path, step_minutes=5)[schema.RAIN].values for path in paths[::9]])
    assert frames.shape == (2, 4400, 3800)
    covered = ~np.isnan(frames)
    # .163 to .169 from frame to frame, .166 over all
    assert (frames[covered] > 0.1).mean() == pytest.approx(0.166, abs=0.003)
    assert covered.mean() == pytest.approx(0.51, abs=0.01)
    assert np.nanmax(frames) == pytest.approx(2734, abs=1)


@pytest.mark.radar
def test_real_corners(radar_dir: Path) -> None:
    path = next(radar_dir.glob(PATTERN))
    grid = ODIM().scan(path).grid
    with h5py.File(path) as file:
        stated = {
            n: (file["where"].attrs[f"{n}_lon"], file["where"].attrs[f"{n}_lat"]) for n in ("LL", "UL", "UR", "LR")
        }
    to_map = Transformer.from_crs(4326, grid.crs_wkt, always_xy=True)
    for name, place in stated.items():
        x = grid.x[0] - 500 if name[1] == "L" else grid.x[-1] + 500
        y = grid.y[-1] - 500 if name[0] == "L" else grid.y[0] + 500
        np.testing.assert_allclose(to_map.transform(*place), (x, y), atol=1)
