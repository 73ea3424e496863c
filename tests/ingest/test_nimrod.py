"""NIMROD: values, times, the grid, several fields and tars, and what is refused."""

import bz2
import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Transformer
from spoiling import check_reads_or_names, spoilt
from test_radolan import tar

from raincast import schema
from raincast.ingest.pipeline import ingest
from raincast.ingest.readers.nimrod import NIMROD
from raincast.schema import Meaning

CODES = np.array([[0, 32, -1, 64], [1, 4096, -1, 48]], np.int16)
RATES = np.array([[0, 1, np.nan, 2], [1 / 32, 128, np.nan, 1.5]])
# the header of the 1 km composite of 2020-02-07 00:00, by element from 1; -32767 is not stated
INTEGERS = {
    **{1: 2020, 2: 2, 3: 7, 4: 0, 5: 0, 6: 0, 7: 2020, 8: 2, 9: 7, 10: 0, 11: 0, 12: 1, 13: 2, 15: 0, 16: 2175},
    **{17: 1725, 18: 2, 19: 213, 20: 5, 22: 0, 23: 11, 24: 0, 25: -1},
}
REALS = {32: 9999.0, 34: 1549500.0, 35: 1000.0, 36: -404500.0, 37: 1000.0, 38: -1.0, 39: 0.0, 40: 0.0}


def field(
    pixels: Any = CODES,
    *,
    time: str = "2020-02-07T00:05:00",
    data_time: str | None = None,
    units: str = "mm/h*32",
    title: str = "Rainfall rate Composite",
    record_bytes: int | None = None,
    **elements: float,
) -> bytes:
    """A field; `elements` replace those of the real header, as e19=213."""
    pixels = np.asarray(pixels)
    kind = {"f": 0, "i": 1}[pixels.dtype.kind]
    numbers: dict[int, float] = dict.fromkeys(range(1, 60), -32767) | INTEGERS | REALS
    for first, text, num in ((1, time, 6), (7, data_time or time, 5)):
        words = map(int, text.replace("T", "-").replace(":", "-").split("-"))
        numbers |= dict(zip(range(first, first + num), words, strict=False))
    numbers |= {12: kind, 13: pixels.itemsize, 16: pixels.shape[0], 17: pixels.shape[1]}
    numbers |= {int(name[1:]): value for name, value in elements.items()}
    header = struct.pack(">31h", *(int(numbers[i]) for i in range(1, 32)))
    header += struct.pack(">28f", *(numbers[i] for i in range(32, 60))) + struct.pack(">45f", *[-32767.0] * 45)
    header += struct.pack("8s24s24s", units.encode(), b"Plr single site radars", title.encode())
    header += struct.pack(">51h", *[-32767] * 51)
    assert len(header) == 512
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    marker = struct.pack(">i", len(data) if record_bytes is None else record_bytes)
    return b"\0\0\2\0" + header + b"\0\0\2\0" + marker + data + marker


def write(path: Path, pixels: Any = CODES, **header: Any) -> Path:
    path.write_bytes(field(pixels, **header))
    return path


def write_tar(path: Path) -> Path:
    path.write_bytes(
        tar({"1.gz": gzip.compress(field()), "2.gz": gzip.compress(field(time="2020-02-07T00:10:00"))})
    )
    return path


def rates(path: Path) -> np.ndarray:
    values: np.ndarray = NIMROD().read(path, step_minutes=5)[schema.RAIN].values
    return values[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_values_time_and_what_is_said(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(pack(field()))
    assert NIMROD().recognises(path)
    dataset = NIMROD().read(path, step_minutes=5)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], RATES.astype(np.float32))
    assert dataset[schema.TIME].values[0] == np.datetime64("2020-02-07T00:05")
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    assert (dataset.attrs["source"], dataset.attrs["title"]) == ("UK Met Office", "Rainfall rate Composite")
    schema.check_archive(dataset)
    assert NIMROD().scan(path).step_minutes is None and NIMROD(step_minutes=15).scan(path).step_minutes == 15
    with pytest.raises(ValueError, match=r"a\.bin .*states no step.*source\.step_minutes"):
        NIMROD().read(path)


def test_the_uk_composite_lies_where_it_should(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", np.zeros((2175, 1725), np.int16))
    grid = NIMROD().scan(path).grid
    # the outer edges of the 1 km composite: 1550 km north of the false origin to 625 km south of it
    assert (grid.y[0] + 500, grid.y[-1] - 500) == (1_550_000, -625_000)
    assert (grid.x[0] - 500, grid.x[-1] + 500) == (-405_000, 1_320_000)
    to_earth = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    # the Greenwich observatory, TQ 388 773 in the National Grid
    assert to_earth.transform(538_890, 177_320) == pytest.approx((0, 51.4779), abs=2e-3)


@pytest.mark.parametrize(
    ("pixels", "header"),
    [
        (CODES.astype(np.int32), {}),
        (CODES.astype(np.float32), {}),
        (np.nan_to_num(RATES, nan=-1).astype(np.float32), {"units": "mm/h"}),
        (np.nan_to_num(RATES, nan=-32767).astype(np.float32), {"units": "mm/h", "e38": -32767}),
        (np.where(CODES < 0, 32767, CODES).astype(np.int16), {"e25": 32767}),
        (np.where(CODES < 0, 9999, CODES).astype(np.float32), {"e38": 9999}),
    ],
)
def test_types_and_missing_values(tmp_path: Path, pixels: np.ndarray, header: dict[str, Any]) -> None:
    np.testing.assert_array_equal(rates(write(tmp_path / "a.dat", pixels, **header)), RATES.astype(np.float32))


def test_bytes(tmp_path: Path) -> None:
    pixels = np.array([[0, 8, -1, 127]], np.int8)
    np.testing.assert_array_equal(
        rates(write(tmp_path / "a.dat", pixels, units="mm/hr*8")), [[0, 1, np.nan, 15.875]]
    )
    np.testing.assert_array_equal(
        rates(write(tmp_path / "b.dat", pixels, units="mm/h*8", e12=2)), [[0, 1, np.nan, 15.875]]
    )


def test_origin(tmp_path: Path) -> None:
    top = NIMROD().scan(write(tmp_path / "a.dat")).grid
    bottom = NIMROD().scan(write(tmp_path / "b.dat", e24=1)).grid
    np.testing.assert_array_equal(top.y, [1_549_500, 1_548_500])
    np.testing.assert_array_equal(bottom.y, [1_549_500, 1_550_500])
    for grid in (top, bottom):
        np.testing.assert_array_equal(grid.x, [-404_500, -403_500, -402_500, -401_500])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_several_fields(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "a.dat"
    times = ["2019-12-31T23:55:00", "2020-01-01T00:00:00", "2020-01-01T00:05:00"]
    fields = [field(CODES + np.int16(i), time=time, e6=-32767) for i, time in enumerate(times)]
    other = field(np.zeros((3, 3), np.int16), e19=27, title="snow fraction")
    forecast = field(time="2020-02-07T01:00:00", data_time="2020-02-07T00:00:00")
    path.write_bytes(pack(fields[0] + other + fields[1] + forecast + fields[2]))
    np.testing.assert_array_equal(NIMROD().scan(path).times, np.array(times, "datetime64[ns]"))
    whole = NIMROD().read(path, step_minutes=5)
    np.testing.assert_array_equal(whole[schema.RAIN].values[:, 0, 1], [1, 33 / 32, 34 / 32])
    for part in (slice(1, 2), slice(2, 3), slice(0, 0), slice(1, None)):
        some = NIMROD().read(path, part, step_minutes=5)
        np.testing.assert_array_equal(some[schema.RAIN].values, whole[schema.RAIN].values[part])
        np.testing.assert_array_equal(some[schema.TIME].values, whole[schema.TIME].values[part])
    for bad, reason in ((other, r"field code 27 \(snow fraction\)"), (other + forecast, "27 .*, forecasts")):
        path.write_bytes(pack(bad))
        assert NIMROD().recognises(path)
        with pytest.raises(ValueError, match=rf"a\.dat .*holds no observed rain rates, but .*{reason}"):
            NIMROD().scan(path)
    path.write_bytes(pack(fields[0] + field(np.zeros((3, 3), np.int16))))
    with pytest.raises(ValueError, match="more than one grid"):
        NIMROD().scan(path)


@pytest.mark.parametrize("around", [bytes, gzip.compress])
def test_a_day_as_ceda_has_it(tmp_path: Path, around: Any) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/metoffice-c-band-rain-radar_uk_20200207_1km-composite.dat.gz.tar"
    members = {f"{m:02d}.dat.gz": gzip.compress(field(time=f"2020-02-07T00:{m:02d}:00")) for m in range(0, 60, 5)}
    damaged = bytearray(gzip.compress(field(np.ones((2, 4), np.int16), time="2020-02-07T01:00:00")))
    damaged[-6] ^= 1
    members["60.dat.gz"] = bytes(damaged)
    path.write_bytes(around(tar(members)))
    assert NIMROD().recognises(path) and len(NIMROD().scan(path).times) == 13
    report = ingest(str(tmp_path / "in/*"), tmp_path / "archive", NIMROD())
    assert report.num_written == 12 and report.missing_times == ("2020-02-07T01:00:00",)
    (reason,) = report.bad_files.values()
    assert "day/60.dat.gz in it: CRC" in reason
    np.testing.assert_array_equal(
        NIMROD().read(path, slice(3, 5), step_minutes=5)[schema.RAIN].values, [RATES] * 2
    )


def test_a_tar_with_several_fields_in_a_member(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"a": field() + field(time="2020-02-07T00:10:00")}))
    with pytest.raises(ValueError, match=r"a\.tar .*day/a in it: it holds several fields: unpack the tar"):
        NIMROD().read(tmp_path / "a.tar", step_minutes=5)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"units": "dBZ"}, "its unit is dBZ: raincast reads mm/h"),
        ({"units": ""}, "its unit is not stated"),
        ({"units": "mm/h*0"}, r"its unit is mm/h\*0"),
        ({"e12": 3}, "its pixels are of type 3 of 2 bytes"),
        ({"e13": 4}, r"its record of pixels has 16 bytes, but 2 × 4 pixels of 4 bytes take 32"),
        ({"e15": 1}, "its grid is of type 1"),
        ({"e24": 3}, "it begins in corner 3"),
        ({"e16": 0}, "it has 0 × 4 pixels"),
        ({"e16": 32767, "e17": 32767}, "it claims an image of 32767 × 32767 pixels"),
        ({"e35": 0}, "its pixels are 0 by 1000 m"),
        ({"e36": float("nan")}, "not a valid grid"),
        ({"e40": 3}, r"have the offset 3 \(element 40\)"),
        ({"time": "0-02-07T00:05:00"}, "its year is 0"),
        ({"time": "2020-13-07T00:05:00"}, "13"),
        ({"record_bytes": 15}, "15 bytes"),
        ({"record_bytes": -1}, "a length of -1 bytes"),
    ],
)
def test_what_cannot_be(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.dat", **header)
    for call in (NIMROD().scan, lambda p: NIMROD().read(p, step_minutes=5)):
        with pytest.raises(ValueError, match=rf"a\.dat cannot be read as NIMROD: .*({reason})"):
            call(path)


def test_what_is_cut_or_spoilt(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    for content, reason in (
        (field()[:-2], "ends early: 2 of 4"),
        (field()[:-4] + b"abcd", "does not end where it should"),
        (field() + b"\0\0", "not a NIMROD header"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            NIMROD().scan(path)
    assert not NIMROD().recognises(tmp_path / "absent")
    path.write_bytes(b"\0\0\2\0" + bytes(600))
    assert not NIMROD().recognises(path)


@pytest.mark.parametrize("kind", ["dat", "gz", "tar"])
def test_any_damage_reads_or_is_a_value_error(tmp_path: Path, kind: str) -> None:
    fields = [field(time=f"2020-02-07T0{i}:00:00") for i in range(3)]
    whole = {
        "dat": b"".join(fields), "gz": gzip.compress(b"".join(fields)),
        "tar": tar({f"{i}": gzip.compress(one) for i, one in enumerate(fields)}),
    }[kind]  # fmt: skip
    assert check_reads_or_names(NIMROD(), tmp_path / f"a.{kind}", spoilt(whole)) > 40


def test_sizes_that_a_spoilt_header_claims_take_no_memory(tmp_path: Path) -> None:
    claimed = 5000 * 5000 * 4
    content = field(CODES, e16=5000, e17=5000, e13=4, record_bytes=claimed)
    for name, bomb in (("a.dat", content), ("a.gz", gzip.compress(content + bytes(2**28)))):
        (tmp_path / name).write_bytes(bomb)
        tracemalloc.start()
        with pytest.raises(ValueError, match=name):
            NIMROD().scan(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            NIMROD().read(tmp_path / name, step_minutes=5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # nothing for a short file, and what the header claims for a long one
        assert peak < 2**22 if name == "a.dat" else peak < 2.5 * claimed


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            {"title": "Maximum rain rate in the last hour", "e19": 63},
            r"field code 63 \(Maximum rain .*by its title",
        ),
        ({"title": "Rain rate", "e19": 63, "e31": 8192, "e26": 60}, "an extreme over 60 min"),
        ({"title": "Precip accumulation"}, "not a rain rate, by its title"),
    ],
)
def test_other_fields_of_rain_are_refused_by_name(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.dat", **header)
    with pytest.raises(ValueError, match=rf"a\.dat .*{reason}.*Use the composites of rain rates"):
        NIMROD().scan(path)


def test_averaged_rates_are_means_over_their_period(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", e31=128, e26=15)
    assert NIMROD().scan(path).meaning == Meaning("mean", 15)
    read = NIMROD().read(path, step_minutes=5)
    assert read[schema.RAIN].attrs["cell_methods"] == "time: mean" and read.attrs["accumulation_minutes"] == 15
