"""ODIM HDF5 as single services write it: where they stray from the format, and what they pack in a tar.

Attributes are those of real files as public readers of them describe them: DWD's radar composites in HDF5 (since
2025, RV, WN and RS as a tar of 25 lead times), DMI's open data (2026), MeteoSwiss' CombiPrecip (2023).
"""

import io
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_radolan
from pyproj import Transformer
from test_odim import put

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.odim import ODIM
from raincast.ingest.readers.radolan import RADOLAN
from raincast.transforms import ZR

DWD_PROJDEF = (
    "+proj=stere +lat_ts=60 +lat_0=90 +lon_0=10 +x_0=543196.83521776402 +y_0=3622588.8619310022 +units=m "
    "+a=6378137 +b=6356752.3142451802 +no_defs"
)
DMI_PROJDEF = "+proj=stere +ellps=WGS84 +lat_0=56 +lon_0=10.5666 +lat_ts=56"
DMI_CORNERS = {
    "LL_lat": 52.29427206432812,
    "LL_lon": 4.379082700525593,
    "LR_lat": 52.29427206432812,  # that of LL: 15 km too far north
    "LR_lon": 18.893280870398133,
    "UL_lat": 60.0,
    "UL_lon": 3.0,
    "UR_lat": 59.827708427801085,
    "UR_lon": 20.735140174892805,
}
MCH_PROJDEF = (
    "+proj=somerc +lat_0=46.95240555555556 +lon_0=7.439583333333333 +k_0=1 +x_0=2600000 +y_0=1200000 "
    "+ellps=bessel +towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs"
)
NODATA = 2**32 - 1


def stamps(prefix: str, time: str) -> dict[str, str]:
    """'2026-08-05T06:25' → the attributes of a date and a time."""
    date, clock = time.split("T")
    return {f"{prefix}date": date.replace("-", ""), f"{prefix}time": clock.replace(":", "").ljust(6, "0")}


def shifted(time: str, minutes: int) -> str:
    return str(np.datetime64(time, "m") + np.timedelta64(minutes, "m"))


def dwd(codes: Any, run: str, lead: int, *, minutes: int = 5, simulated: str | None = None) -> bytes:
    """A member of composite_rv_YYYYMMDD_HHMM.tar, on a part of the grid DE1200."""
    end = shifted(run, lead)
    content = io.BytesIO()
    height, width = np.shape(codes)
    to_earth = Transformer.from_crs(DWD_PROJDEF, 4326, always_xy=True)
    corners = {}
    for name, x, y in (("UL", 0, 0), ("LR", width - 1, 1 - height)):
        corners[f"{name}_lon"], corners[f"{name}_lat"] = to_earth.transform(1000 * x, 1000 * y)
    with h5py.File(content, "w") as file:
        file.attrs["Conventions"] = "ODIM_H5/V2_3"
        put(file, "what", {"object": "COMP", "version": "H5rad 2.3", "source": "ORG:78", **stamps("", run)})
        put(file, "how", {"simulated": str(lead > 0) if simulated is None else simulated})
        size = {"xsize": width, "ysize": height, "xscale": 1000.0, "yscale": 1000.0}
        put(file, "where", {"projdef": DWD_PROJDEF, **size, **corners})
        put(file, "dataset1/what", {**stamps("start", shifted(end, -minutes)), **stamps("end", end)})
        what = {
            "quantity": "ACRR",
            "gain": np.float32(0.001),
            "offset": np.float32(-0.001),
            "nodata": float(NODATA),
            "undetect": 0.0,
        }
        put(file, "dataset1/data1/what", what)
        data = np.asarray(codes, np.uint32)
        file["dataset1/data1"].create_dataset("data", data=data, compression="gzip", chunks=data.shape)
    return content.getvalue()


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def run_of(path: Path, run: str, codes: Any, *, mode: str = "w", **options: Any) -> Path:
    """A run's tar: the analysis, and forecasts of much rain."""
    stamp = run.replace("-", "").replace("T", "_").replace(":", "")
    heavy = np.full(np.shape(codes), 5001, np.uint32)
    leads = {0: codes, 5: heavy, 10: heavy}
    members = {
        f"composite_rv_{stamp}_{lead:03d}-hd5": dwd(of_lead, run, lead, **options)
        for lead, of_lead in leads.items()
    }
    return pack(path, members, mode)


CODES = np.array([[0, 1, 101], [NODATA, 1001, 4193]], np.uint32)
RATES = np.float32([[0, 0, 1.2], [np.nan, 12, 50.304]])  # (code − 1)/1000 mm over 5 min, twelve times


def write_tar(path: Path) -> Path:
    return run_of(path, "2026-08-05T06:25", CODES)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
@pytest.mark.parametrize("simulated", [None, "False"])
def test_of_a_dwd_run_the_analysis_is_read_and_no_forecast(
    tmp_path: Path, mode: str, simulated: str | None
) -> None:
    path = run_of(
        tmp_path / "composite_rv_20260805_0625.tar", "2026-08-05T06:25", CODES, mode=mode, simulated=simulated
    )
    assert ODIM().recognises(path)
    head = ODIM().scan(path)
    assert list(head.times) == [np.datetime64("2026-08-05T06:25")]
    dataset = ODIM().read(path, step_minutes=5)
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], RATES, atol=1e-5)
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    assert "accumulation_minutes" not in dataset.attrs


def test_dwd_runs_become_an_archive_of_what_was_seen(tmp_path: Path) -> None:
    """The forecast of 06:30, made at 06:25, is not what was seen at 06:30, although it comes first."""
    for number in range(3):
        run = shifted("2026-08-05T06:25", 5 * number)
        run_of(tmp_path / f"composite_rv_{number}.tar", run, CODES)
    report = ingest(str(tmp_path / "*.tar"), tmp_path / "archive", ODIM())
    archive = Archive.open(tmp_path / "archive")
    assert not report.problems and archive.num_times == 3 and archive.step_minutes == 5
    assert archive.read(0, 3)[:, 1, 1].tolist() == [12, 12, 12]


def test_a_forecast_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "composite_rv_20260805_0625_005-hd5"
    path.write_bytes(dwd(CODES, "2026-08-05T06:25", 5))
    with pytest.raises(ValueError, match=r"_005-hd5 cannot be read as ODIM HDF5: it holds only forecasts \(1\)"):
        ODIM().scan(path)
    path.write_bytes(dwd(CODES, "2026-08-05T06:25", 0))
    assert ODIM().scan(path).times[0] == np.datetime64("2026-08-05T06:25")


def test_hours_that_come_every_five_minutes_are_running_means(tmp_path: Path) -> None:
    path = tmp_path / "composite_rs_20260805_0625_000-hd5"
    path.write_bytes(dwd(CODES, "2026-08-05T06:25", 0, minutes=60))
    attrs = ODIM().read(path, step_minutes=5).attrs
    assert attrs["accumulation_minutes"] == 60 and "running means" in attrs["comment"]
    assert "comment" not in ODIM().read(path, step_minutes=60).attrs


def test_dwd_hdf5_lies_where_its_radolan_does(tmp_path: Path) -> None:
    path = tmp_path / "a-hd5"
    path.write_bytes(dwd(np.zeros((1200, 1100), np.uint32), "2026-08-05T06:25", 0))
    binary = test_radolan.write(tmp_path / "a.bin", np.zeros((1200, 1100), np.uint16), product="RV", version=5)
    south_first = RADOLAN().scan(binary).grid
    north_first = schema.Grid(south_first.y[::-1], south_first.x, south_first.crs_wkt)
    assert ODIM().scan(path).grid.same_as(north_first)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    good = dwd(CODES, "2026-08-05T06:25", 0)
    path = pack(tmp_path / "a.tar", {"b-hd5": good, "c-hd5": good[:900]})
    with pytest.raises(ValueError, match=r"a\.tar cannot be read as ODIM HDF5: c-hd5 in it: .*truncated"):
        ODIM().scan(path)
    path = pack(tmp_path / "d.tar", {"b-hd5": good, "README": b"of the files"})
    with pytest.raises(ValueError, match=r"d\.tar cannot be read as ODIM HDF5: README in it: .*not HDF5"):
        ODIM().scan(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"d\.tar cannot be read as ODIM HDF5"):
        ODIM().scan(path)


def dmi(codes: Any, time: str, *, corners: dict[str, float] | None = None, pixel: float = 500.0) -> bytes:
    """A composite of DMI: the scale at the root, the quantity at the group, no size, a second too many."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        what = {"object": "COMP", "source": "DMI-RADARGROUP", "product": "DBZH", **stamps("", time)}
        what |= {"gain": [0.5], "offset": [-32.0], "nodata": [255.0], "undetect": [0.0]}
        put(file, "what", what)
        put(
            file,
            "where",
            {"projdef": DMI_PROJDEF, "xscale": [pixel], "yscale": [pixel], **(corners or DMI_CORNERS)},
        )
        file.create_group("dataset1/data1").attrs["quantity"] = np.bytes_(b"DBZH")
        file["dataset1/data1"].create_dataset("data", data=np.asarray(codes, np.uint8), compression="gzip")
    return content.getvalue()


def test_dmi_as_it_is(tmp_path: Path) -> None:
    codes = np.zeros((1728, 1984), np.uint8)
    codes[0, :3] = 255, 110, 1
    path = tmp_path / "dk.com.202605171940.500_max.h5"
    path.write_bytes(dmi(codes, "2026-05-17T19:40:01"))
    head = ODIM().scan(path)
    assert list(head.times) == [np.datetime64("2026-05-17T19:40")]
    # three of the four corners are the centres of pixels of 500 m
    np.testing.assert_allclose(head.grid.x[[0, -1]], [-422114.8, 569385.2], atol=0.1)
    np.testing.assert_allclose(head.grid.y[[0, -1]], [469381.0, -394119.0], atol=0.1)
    rain = ODIM().read(path, step_minutes=5)[schema.RAIN].values[0]
    expected = [np.nan, *ZR().to_rate(np.array([23.0, -31.5])), 0]
    np.testing.assert_allclose(rain[0, :4], expected, rtol=1e-6)


def test_a_day_of_dmi_in_a_tar(tmp_path: Path) -> None:
    to_earth = Transformer.from_crs(DMI_PROJDEF, 4326, always_xy=True)
    corners = {}
    for name, x, y in (("LL", 0, -2000), ("UR", 3000, 0)):
        corners[f"{name}_lon"], corners[f"{name}_lat"] = to_earth.transform(x, y)
    members = {
        f"data/composite/dk.com.2026051719{10 * i}.500_max.h5": dmi(
            np.full((4, 6), 100 + i), f"2026-05-17T19:{10 * i:02d}:0{i}", corners=corners
        )
        for i in range(4)
    }
    path = pack(tmp_path / "composite.20260517.max.h5.tar", members)
    assert ODIM().scan(path).times.size == 4
    expected = ZR().to_rate(np.array([18.5, 19.0]))
    rain = ODIM().read(path, slice(1, 3), step_minutes=10)[schema.RAIN].values
    np.testing.assert_allclose(rain[:, 0, 0], expected, rtol=1e-6)
    report = ingest(path, tmp_path / "archive", ODIM())
    assert report.num_written == 4 and not report.off_step and not report.problems


def test_combiprecip_with_its_scale_in_km(tmp_path: Path) -> None:
    """Infinity is undetected and NaN missing, of an hour that comes every 10 minutes."""
    path = tmp_path / "CPC2335513304_00060.001.h5"
    values = np.full((640, 710), np.inf)
    values[0, :3] = np.nan, 2.4, 0.0
    corners = {"LL": (3.169, 43.6301), "UL": (2.6896, 49.3767), "UR": (12.4634, 49.3654), "LR": (11.9566, 43.6201)}
    with h5py.File(path, "w") as file:
        put(file, "what", {"object": "COMP", "source": "ORG:215, CTY:644", **stamps("", "2023-12-21T13:30")})
        place = {
            f"{name}_{key}": value
            for name, of in corners.items()
            for key, value in zip(("lon", "lat"), of, strict=True)
        }
        size = {"xsize": [710], "ysize": [640], "xscale": [1.0], "yscale": [1.0]}
        put(file, "where", {"projdef": MCH_PROJDEF, **size, **place})
        hour = {**stamps("start", "2023-12-21T12:30"), **stamps("end", "2023-12-21T13:30")}
        put(file, "dataset1/what", {"product": "RR", "prodname": "CHCPC_00060", **hour})
        what = {"quantity": "ACRR", "gain": [1.0], "offset": [0.0], "nodata": [np.nan], "undetect": [np.inf]}
        put(file, "dataset1/data1/what", what)
        file["dataset1/data1"].create_dataset("data", data=values, compression="gzip")
    dataset = ODIM().read(path, step_minutes=10)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0, 0, :4], np.float32([np.nan, 2.4, 0, 0]))
    assert dataset.attrs["accumulation_minutes"] == 60
    grid = ODIM().scan(path).grid
    # a pixel of 1 km, from 2255 km east and 1480 km north on; the corners come to the fourth place
    assert grid.x[0] == pytest.approx(2_255_500, abs=100) and np.diff(grid.x[:2]) == 1000
    assert grid.y[0] == pytest.approx(1_479_500, abs=300) and grid.y[-1] == pytest.approx(840_500, abs=300)
