"""DWD RADOLAN: values, flags, times, both models of the Earth, packing, and what is refused."""

import bz2
import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Transformer
from spoiling import check_reads_or_names, spoilt

from raincast import schema
from raincast.ingest.pipeline import ingest
from raincast.ingest.readers import radolan
from raincast.ingest.readers.radolan import RADOLAN
from raincast.schema import Grid
from raincast.transforms import ZR

SMALL = (2, 4)
# plain, second source, no data, clutter, clutter without a value, negative, no data without its code, largest
CODES = np.array([[0, 25, 0x1019, 0x29C4], [0x8019, 0x89BA, 0x4019, 4095]], np.uint16)
RX_CODES = np.array([[0, 1, 65, 117], [248, 249, 250, 255]], np.uint8)
# headers as DWD wrote them, with what their fields mean
REAL = [
    ("RX290600100000516BY 810138VS 3SW   2.13.1PR E+00INT   5GP 900x 900MS 66<boo,ros,emd,hnr,umd,pro,ess,fld,drs,neu,"
     "oft,eis,tur,isn,fbg,mem> ", "2016-05-29T06:00", (900, 900), 1, 1.0, 5, 0, False),
    ("RW310850100001217BY1980164VS 3SW   2.18.3PR E-01INT  60U0GP1100x 900MF 00000001VR2017.002MS 69<boo,ros,emd,hnr,"
     "umd,pro,ess,fld,drs,neu,nhb,oft,eis,tur,isn,fbg,mem>", "2017-12-31T08:50", (1100, 900), 2, 0.1, 60, 0, False),
    ("RY182355100001019BY1620142VS 3SW   2.21.0PR E-02INT   5GP 900x 900MS 70<asb,boo,ros,hnr,umd,pro,ess,fld,drs,neu,"
     "nhb,oft,eis,tur,isn,fbg,mem> ", "2019-10-18T23:55", (900, 900), 2, 0.01, 5, 0, False),
    ("RQ012030100000220BY1620166VS 3SW   2.28.0PR E-01INT  60GP 900x 900VV  60MF        8QN 000MS 70<asb,boo,drs,eis,"
     "ess,fbg,fld,hnr,isn,mem,neu,nhb,oft,pro,ros,tur,umd>", "2020-02-01T20:30", (900, 900), 2, 0.1, 60, 60, False),
    ("RV161355100000926BY   2640195VS 5SW  P42001HPR E-02INT   5GP1200x1100VV 000MF 00000008MS103<deasb,deboo,dedrs,"
     "deeis,deess,defbg,defld,dehnr,deisn,demem,deneu,denhb,deoft,depro,deros,detur,deumd>",
     "2026-09-16T13:55", (1200, 1100), 2, 0.01, 5, 0, True),
]  # fmt: skip


def content(
    codes: Any = None,
    *,
    product: str = "RY",
    time: str = "1823551019",
    site: str = "10000",
    version: int = 3,
    precision: str = "E-02",
    interval: int = 5,
    more: str = "",
    grid: str = "",
) -> bytes:
    """A product: `time` is DDHHMMmmYY, codes are bytes for uint8 and else little-endian."""
    if codes is None:
        codes = np.zeros((900, 900), np.uint8 if product in ("RX", "WX", "EX") else np.uint16)
        codes.flat[:4] = RX_CODES[0] if codes.itemsize == 1 else CODES[0]
    rows, columns = codes.shape
    text = "{}{}{}{}BY{:7d}VS{:2d}SW   2.21.0PR {}INT{:4d}GP{}{}MS 10<boo,MVV99>"
    words = (version, precision, interval, grid or f"{rows:4d}x{columns:4d}", more)
    size = len(text.format(product, time[:6], site, time[6:], 0, *words)) + 1
    header = text.format(product, time[:6], site, time[6:], size + codes.nbytes, *words)
    return header.encode() + b"\x03" + codes.astype(codes.dtype.newbyteorder("<")).tobytes()


def write(path: Path, codes: Any = None, **header: Any) -> Path:
    path.write_bytes(content(codes, **header))
    return path


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        folder = tarfile.TarInfo("day")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(f"day/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path) -> Path:
    """A depth over 5 min at two times, in a tar that is gzipped as a whole."""
    path.write_bytes(gzip.compress(tar({"1": content(), "2": gzip.compress(content(time="1900001019"))})))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A grid of 2 × 4 pixels, so that tests are quick."""
    monkeypatch.setitem(radolan.GRIDS, SMALL, (1, 2))
    radolan._grid.cache_clear()
    yield
    radolan._grid.cache_clear()


def rates(path: Path, **settings: Any) -> np.ndarray:
    values: np.ndarray = RADOLAN(**settings).read(path)[schema.RAIN].values
    return values[0]


@pytest.mark.parametrize(("header", "time", "shape", "pixel_bytes", "precision", "minutes", "lead", "wgs84"), REAL)
def test_real_headers(
    header: str, time: str, shape: tuple[int, int], pixel_bytes: int, precision: float, minutes: int, lead: int,
    wgs84: bool,
) -> None:  # fmt: skip
    parsed = radolan._parse(header.encode() + b"\x03" + bytes(2000))
    assert (parsed.product, parsed.time) == (header[:2], np.datetime64(time))
    assert (parsed.shape, parsed.pixel_bytes, parsed.precision) == (shape, pixel_bytes, precision)
    assert (parsed.minutes, parsed.lead_minutes) == (minutes, lead)
    assert (parsed.earth == radolan.WGS84) is wgs84


def test_depth_and_flags(tmp_path: Path, small: None) -> None:
    path = write(tmp_path / "a.bin", CODES)
    assert RADOLAN().recognises(path)
    dataset = RADOLAN().read(path)
    # 25 · 0.01 mm in 5 min are 3 mm/h
    np.testing.assert_allclose(
        dataset[schema.RAIN].values[0], [[0, 3, 3, np.nan], [np.nan, np.nan, np.nan, 491.4]], rtol=1e-6
    )
    assert dataset[schema.TIME].values[0] == np.datetime64("2019-10-18T23:55")
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    assert "accumulation_minutes" not in dataset.attrs and "comment" not in dataset.attrs
    assert (dataset.attrs["source"], dataset.attrs["title"]) == (
        "DWD",
        "RY composite",
    ) and "zr_a" not in dataset.attrs
    schema.check_archive(dataset)
    np.testing.assert_allclose(
        rates(path, keep_clutter=True), [[0, 3, 3, np.nan], [3, np.nan, np.nan, 491.4]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("product", "precision", "interval", "rate"),
    [("RW", "E-01", 60, 2.5), ("RW", "E-00", 60, 25), ("YW", "E-02", 5, 3), ("RQ", "E-01", 60, 2.5)],
)
def test_rates_follow_precision_and_interval(
    tmp_path: Path, small: None, product: str, precision: str, interval: int, rate: float
) -> None:
    path = write(tmp_path / "a.bin", CODES, product=product, precision=precision, interval=interval)
    assert rates(path)[0, 1] == np.float32(rate)


def test_reflectivity(tmp_path: Path, small: None) -> None:
    path = write(tmp_path / "a.bin", RX_CODES, product="RX", precision="E+00")
    dataset = RADOLAN().read(path)
    dbz = np.array([[-32.5, -32, 0, 26], [91.5, np.nan, np.nan, np.nan]])
    expected = (10 ** (dbz / 10) / 256) ** (1 / 1.42)
    expected[0, :2] = 0
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], expected, rtol=1e-5)
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    assert (dataset.attrs["zr_a"], dataset.attrs["zr_b"]) == (256, 1.42)
    assert rates(path, zr_a=200, zr_b=1.6)[0, 2] == np.float32(ZR().to_rate(np.float64(0)))
    # clutter has no value in a product of bytes
    assert np.isnan(rates(path, keep_clutter=True)[1, 1])


def test_reflectivity_of_two_bytes(tmp_path: Path, small: None) -> None:
    codes = np.array([[0, 650, 1170, 0x29C4], [0x8000 + 650, 0x89BA, 10, 11]], np.uint16)
    path = write(tmp_path / "a.bin", codes, product="WN", precision="E-01")
    zr = ZR(256, 1.42)
    expected = [[0, zr.to_rate(np.float64(0)), zr.to_rate(np.float64(26)), np.nan], [np.nan, np.nan, 0, 0.0]]
    np.testing.assert_allclose(rates(path), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("3123550119", "2019-01-31T23:55"),
        ("0100000219", "2019-02-01T00:00"),
        ("2923550220", "2020-02-29T23:55"),
        ("3123551299", "2099-12-31T23:55"),
        ("0100000100", "2000-01-01T00:00"),
    ],
)
def test_times(tmp_path: Path, small: None, time: str, expected: str) -> None:
    head = RADOLAN().scan(write(tmp_path / "a.bin", CODES, time=time))
    assert head.times[0] == np.datetime64(expected) and head.step_minutes == 5
    assert RADOLAN(step_minutes=15).scan(tmp_path / "a.bin").step_minutes == 15


def corners(grid: Grid) -> np.ndarray:
    """Longitude and latitude of the outer corners: lower left, lower right, upper right, upper left."""
    for axis in (grid.y, grid.x):
        np.testing.assert_allclose(np.diff(axis), 1000)
    west, east, south, north = grid.x[0] - 500, grid.x[-1] + 500, grid.y[0] - 500, grid.y[-1] + 500
    to_earth = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    return np.transpose(to_earth.transform([west, east, east, west], [south, south, north, north]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # DWD's own, to four places
        ((900, 900), [(3.5889, 46.9526), (14.6209, 47.0705), (15.7208, 54.7405), (2.0715, 54.5877)]),
        ((1100, 900), [(4.6759, 46.1929), (15.4801, 46.1827), (17.1128, 55.5342), (3.0889, 55.5482)]),
        ((1500, 1400), [(2.3419, 43.9336)]),
    ],
)
def test_corners_on_the_sphere(
    tmp_path: Path, shape: tuple[int, int], expected: list[tuple[float, float]]
) -> None:
    path = write(tmp_path / "a.bin", np.zeros(shape, np.uint8), product="RX", precision="E+00")
    found = corners(RADOLAN().scan(path).grid)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=6e-5)


@pytest.mark.parametrize(
    ("shape", "x_0", "y_0", "lower_left"),
    [
        # false easting and northing of DWD's proj strings, where the upper left pixel's centre is the origin
        ((900, 900), 523196.83521777776, 3772588.861931134, (3.604382995, 46.95361536)),
        ((1200, 1100), 543196.83521776402, 3622588.8619310018, (3.566994635, 45.69642538)),
    ],
)
def test_grids_of_the_ellipsoid(
    tmp_path: Path, shape: tuple[int, int], x_0: float, y_0: float, lower_left: tuple[float, float]
) -> None:
    path = write(tmp_path / "a.bin", np.zeros(shape, np.uint16), version=5)
    grid = RADOLAN().scan(path).grid
    assert (grid.x[0], grid.y[-1]) == pytest.approx((-x_0, -y_0), abs=1e-3)
    np.testing.assert_allclose(corners(grid)[0], lower_left, atol=1e-8)
    old = RADOLAN().scan(write(tmp_path / "b.bin", np.zeros(shape, np.uint16), version=4)).grid
    assert not old.same_as(grid)
    # the sphere's degrees are not those of WGS 84: about a kilometre
    distance = np.abs(corners(old)[0] - corners(grid)[0])
    assert 0.0005 < distance.max() < 0.02


PACKERS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress]


@pytest.mark.parametrize("inside", PACKERS)
@pytest.mark.parametrize("around", PACKERS)
def test_packed(tmp_path: Path, small: None, inside: Callable[..., bytes], around: Callable[..., bytes]) -> None:
    path = tmp_path / "a.bin"
    times = ["3123550119", "0100000219", "0100050219"]
    products = [content(CODES + np.uint16(i), time=time) for i, time in enumerate(times)]
    path.write_bytes(around(products[0]))
    assert RADOLAN().recognises(path) and rates(path)[0, 1] == 3
    path.write_bytes(around(tar({f"{i}": inside(product) for i, product in enumerate(products)})))
    assert RADOLAN().recognises(path)
    head = RADOLAN().scan(path)
    expected = np.array(["2019-01-31T23:55", "2019-02-01T00:00", "2019-02-01T00:05"], "datetime64[ns]")
    np.testing.assert_array_equal(head.times, expected)
    whole = RADOLAN().read(path)
    np.testing.assert_allclose(whole[schema.RAIN].values[:, 0, 1], [3, 3.12, 3.24], rtol=1e-6)
    schema.check_archive(whole)
    for part in (slice(1, 2), slice(1, 3), slice(0, 0), slice(2, None), slice(None, None, 2)):
        some = RADOLAN().read(path, part)
        np.testing.assert_array_equal(some[schema.RAIN].values, whole[schema.RAIN].values[part])
        np.testing.assert_array_equal(some[schema.TIME].values, expected[part])


def test_only_what_is_asked_for_is_read(tmp_path: Path, small: None) -> None:
    good, bad = content(CODES), content(CODES, time="1900001019")[:-3]
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"good": good, "bad.gz": gzip.compress(bad)}))
    assert len(RADOLAN().scan(path).times) == 2
    assert RADOLAN().read(path, slice(0, 1)).sizes[schema.TIME] == 1
    with pytest.raises(
        ValueError, match=r"a\.tar cannot be read as DWD RADOLAN: day/bad\.gz in it: it ends early: 3 of 16"
    ):
        RADOLAN().read(path, slice(1, 2))


def test_forecasts(tmp_path: Path, small: None) -> None:
    products = {
        f"{lead:03d}": content(CODES, product="RV", more=f"VV {lead:03d}MF 00000008") for lead in (0, 5, 120)
    }
    (tmp_path / "a.tar.bz2").write_bytes(bz2.compress(tar(products)))
    assert len(RADOLAN().scan(tmp_path / "a.tar.bz2").times) == 1
    assert RADOLAN().read(tmp_path / "a.tar.bz2").sizes[schema.TIME] == 1
    del products["000"]
    (tmp_path / "b.tar").write_bytes(tar(products))
    (tmp_path / "c").write_bytes(products["005"])
    for name in ("b.tar", "c"):
        assert RADOLAN().recognises(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} .*holds only forecasts \(VV 5 min and more\)"):
            RADOLAN().scan(tmp_path / name)


def test_hourly_depths_every_ten_minutes_are_running_means(tmp_path: Path, small: None) -> None:
    hourly = {"product": "RW", "precision": "E-01", "interval": 60}
    (tmp_path / "in").mkdir()
    for minute in range(0, 60, 10):
        write(tmp_path / f"in/{minute}", CODES, time=f"0107{minute:02d}0219", **hourly)
    path = write(tmp_path / "in/60", CODES, time="0108000219", **hourly)
    assert RADOLAN().scan(path).step_minutes is None
    assert RADOLAN().read(path).attrs["step_minutes"] == 60 and "comment" not in RADOLAN().read(path).attrs
    report = ingest(str(tmp_path / "in/*"), tmp_path / "ten", RADOLAN())
    assert report.num_written == 7 and not report.problems
    import xarray as xr

    with xr.open_dataset(tmp_path / "ten/2019-02-01.nc", engine="netcdf4") as day:
        assert day.attrs["step_minutes"] == 10 and day.attrs["accumulation_minutes"] == 60
        assert day.attrs["comment"] == "running means: each rate is that of 60 min, not of the step"
        assert day[schema.RAIN].attrs["cell_methods"] == "time: mean"
    report = ingest(str(tmp_path / "in/*"), tmp_path / "hours", RADOLAN(step_minutes=60), max_off_step=1)
    assert report.num_written == 2 and len(report.off_step) == 5


def test_ingest_of_a_tar_and_files(tmp_path: Path, small: None) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(
        tar({t: gzip.compress(content(CODES, time=t)) for t in ("3123500119", "3123550119", "0100050219")})
    )
    (tmp_path / "in/b.gz").write_bytes(gzip.compress(content(CODES, time="0100000219")))
    (tmp_path / "in/c.tar").write_bytes(tar({"1": content(CODES, time="0100100219"), "2": b"no radar"}))
    report = ingest(str(tmp_path / "in/*"), tmp_path / "archive", RADOLAN())
    assert report.num_written == 4 and not report.missing_times
    (reason,) = report.bad_files.values()
    assert "day/2 in it: it begins with b'no radar': not a RADOLAN header" in reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"product": "RE"}, "it is the product RE: raincast reads RX, WX"),
        ({"product": "SF", "interval": 1440}, "it is the product SF"),
        ({"site": "10132"}, "it is from the radar 10132: raincast reads only composites"),
        ({"grid": " 900x 901"}, r"its grid is 900x901 \(GP\): raincast knows 900x900, 1100x900"),
        ({"precision": "E+09"}, r"its precision is E\+09"),
        ({"interval": 0}, "its interval is 0"),
        ({"interval": 1440}, "its interval is 1440, unit 0"),
        ({"time": "3123550219"}, "2019-02-31|out of range"),
        ({"time": "0125000219"}, "25|out of range"),
    ],
)
def test_what_cannot_be(tmp_path: Path, small: None, header: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.bin", CODES, **header)
    for call in (RADOLAN().scan, RADOLAN().read):
        with pytest.raises(ValueError, match=rf"a\.bin cannot be read as DWD RADOLAN: .*({reason})"):
            call(path)


def test_days_are_no_minutes(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content(CODES).replace(b"INT   5GP", b"INT   5U0GP"))
    assert rates(path)[0, 1] == 3
    path.write_bytes(content(CODES).replace(b"INT   5GP", b"INT   5U1GP"))
    with pytest.raises(ValueError, match=r"a\.bin .*its interval is 5, unit 1"):
        RADOLAN().scan(path)


def test_tars_of_other_things(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({}))
    with pytest.raises(ValueError, match=r"a\.tar .*it is a tar without files"):
        RADOLAN().scan(path)
    path.write_bytes(tar({"1": content(CODES), "2": content(CODES, product="YW")}))
    with pytest.raises(ValueError, match=r"day/2 in it: it is YW, 2x4, 5 min, .*, but the first is RY"):
        RADOLAN().scan(path)
    path.write_bytes(tar({"1": tar({"2": content(CODES)})}))
    assert not RADOLAN().recognises(path)
    with pytest.raises(ValueError, match=r"day/1 in it: it begins with b'day"):
        RADOLAN().scan(path)
    path.write_bytes(content(CODES) + b"\n")
    with pytest.raises(ValueError, match="it continues after its last pixel"):
        RADOLAN().read(path)


def test_tar_that_is_cut_or_spoilt_between_members_is_refused(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.tar"
    whole = tar({str(i): content(CODES, time=f"010{i}000219") for i in range(3)})
    second = whole.index(b"day/1")
    for damaged in (
        whole[:second],
        whole[:second] + bytes([whole[second] ^ 1]) + whole[second + 1 :],
        whole[: second + 99],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.tar .*(ends early|end of data|damaged)"):
            RADOLAN().scan(path)


def test_checksum_of_the_packing_is_compared(tmp_path: Path, small: None) -> None:
    packed = bytearray(gzip.compress(content(CODES)))
    packed[-8] ^= 1  # the CRC
    (tmp_path / "a.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"a\.gz .*CRC"):
        RADOLAN().read(tmp_path / "a.gz")


@pytest.mark.parametrize("kind", ["bin", "gz", "bz2", "tar", "tar.gz"])
def test_any_damage_reads_or_is_a_value_error(tmp_path: Path, small: None, kind: str) -> None:
    products = {str(i): gzip.compress(content(CODES, time=f"010{i}000219")) for i in range(3)}
    whole = {
        "bin": content(CODES), "gz": gzip.compress(content(CODES)), "bz2": bz2.compress(content(CODES)),
        "tar": tar(products), "tar.gz": gzip.compress(tar(products)),
    }[kind]  # fmt: skip
    assert check_reads_or_names(RADOLAN(), tmp_path / f"a.{kind}", spoilt(whole)) > 40


def test_bombs_take_no_memory(tmp_path: Path, small: None) -> None:
    zeros = gzip.compress(content(CODES) + bytes(2**28))
    pax = bytearray(tar({"a": b""})[:512])
    pax[156:157] = b"x"  # an extended header, of 4 GB
    pax[124:136] = b"37777777777\0"
    pax[148:156] = b"%06o\0 " % (sum(pax[:148]) + 8 * 32 + sum(pax[156:512]))
    claims = gzip.compress(bytes(pax) + bytes(2**28))
    for name, bomb in (("a.gz", zeros), ("b.tar.gz", claims), ("c.tar", tar({"a.gz": zeros}))):
        (tmp_path / name).write_bytes(bomb)
        tracemalloc.start()
        with pytest.raises(ValueError, match=name):
            RADOLAN().read(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**25
