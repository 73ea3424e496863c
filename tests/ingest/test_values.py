"""What values in files mean: their period, their packing, their valid range, their Z-R, their unit."""

import logging
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_odim as odim
import xarray as xr
from checking import check_encoded

from raincast import schema
from raincast.archive import Archive
from raincast.archive.packing import Packing
from raincast.data.channels import Site
from raincast.data.channels.field import Field
from raincast.forecasting import open_series
from raincast.ingest import ingest
from raincast.ingest.quality import Cleaned, Quality
from raincast.ingest.readers import Auto, Limited
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.geotiff import GeoTIFF
from raincast.ingest.readers.knmi import KNMI
from raincast.ingest.readers.odim import ODIM
from raincast.schema import MOMENTARY, Meaning
from raincast.transforms import ZR, LinearScaling
from raincast.units import parse_unit

START = np.datetime64("2020-06-01T00:00", "ns")
RAIN = np.random.default_rng(0).gamma(0.5, 4.0, (6, 6, 5)).astype(np.float32).round(2)
DEPTH = {"units": "mm", "standard_name": "rainfall_amount"}


def cf_file(
    path: Path,
    values: Any = RAIN,
    *,
    minutes: Any = None,
    attrs: dict[str, Any] | None = None,
    encoding: dict[str, Any] | None = None,
    file_attrs: dict[str, Any] | None = None,
) -> Path:
    """A CF file of another party: no attribute of ours, times every 30 min unless `minutes` says them."""
    minutes = 30 * np.arange(len(values)) if minutes is None else np.asarray(minutes)
    coords: dict[str, Any] = schema.mock_grid(*np.shape(values)[1:]).to_coords()
    times = START + minutes * np.timedelta64(1, "m")
    rain = {"grid_mapping": "crs"} | ({"units": "mm h-1", "standard_name": "rainfall_rate"} | (attrs or {}))
    dataset = xr.Dataset(
        {"rain": (("time", "y", "x"), values, rain)}, coords={"time": times} | coords, attrs=file_attrs or {}
    )
    dataset.to_netcdf(path, engine="netcdf4", encoding={"rain": encoding or {}})
    return path


# the period of a depth


@pytest.mark.parametrize(
    ("attrs", "file_attrs"),
    [
        ({"accum_time_h": 0.25}, {}),
        ({"accum_time_h": 0.25, "cell_methods": "time: point"}, {}),
        ({"accumulation_period": "PT15M"}, {}),
        ({"cell_methods": "time: sum (interval: 15 minutes)"}, {}),
        ({"cell_methods": "area: mean time: sum (interval: 0.25 hr)"}, {}),
        ({}, {"accutime": 15.0}),
    ],
)
def test_the_period_of_a_depth_is_what_the_file_states(
    tmp_path: Path, attrs: dict[str, Any], file_attrs: dict[str, Any]
) -> None:
    """Depths over 15 min that come every 30 min: 4 times as much an hour, not twice, whatever frames are missing."""
    path = cf_file(
        tmp_path / "a.nc", minutes=[0, 30, 60, 120, 150, 180], attrs=DEPTH | attrs, file_attrs=file_attrs
    )
    assert CF().scan(path).meaning == Meaning("depth", 15)
    ingest([path], tmp_path / "archive", CF())
    archive = Archive.open(tmp_path / "archive")
    check_encoded(archive.read(0, 6), np.round(4 * RAIN.astype(float), 4))
    assert archive.step_minutes == 30 and archive.meaning == Meaning("mean", 15)
    assert open_series(path, CF()).read(archive.times[:1]).attrs["accumulation_minutes"] == 15


def test_an_unstated_period_is_asked_for_where_frames_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    whole = cf_file(tmp_path / "whole.nc", attrs=DEPTH)
    ingest([whole], tmp_path / "whole", CF())
    assert "does not state their period: taken as the step, 30 min" in caplog.text
    check_encoded(Archive.open(tmp_path / "whole").read(0, 6), np.round(2 * RAIN.astype(float), 4))

    gaps = cf_file(tmp_path / "gaps.nc", minutes=[0, 30, 60, 120, 150, 180], attrs=DEPTH)
    reader = Auto({"cf": CF()})
    remedy = "source.readers.cf.accumulation_minutes=30"
    with pytest.raises(ValueError, match=remedy):
        ingest([gaps], tmp_path / "gaps", reader)
    with pytest.raises(ValueError, match=remedy):
        open_series(gaps, reader).read(np.array([START]))
    ingest([gaps], tmp_path / "gaps", Auto({"cf": CF(accumulation_minutes=15)}))
    check_encoded(Archive.open(tmp_path / "gaps").read(0, 6), np.round(4 * RAIN.astype(float), 4))


@pytest.mark.parametrize("attrs", [{"accum_time_h": 0.0}, {"accumulation_period": "PT0H"}])
def test_a_period_of_no_time_is_refused(tmp_path: Path, attrs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a period over 0 min"):
        CF().scan(cf_file(tmp_path / "a.nc", attrs=DEPTH | attrs))


def test_bounds_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with xr.open_dataset(cf_file(tmp_path / "a.nc", attrs=DEPTH)) as opened:
        dataset = opened.load()
    ends = dataset["time"].values
    starts = ends - np.timedelta64(15, "m")
    starts[-1] -= np.timedelta64(45, "m")
    dataset["time_bnds"] = (("time", "nv"), np.stack([starts, ends], axis=1))
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset.to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    with pytest.raises(ValueError, match="cover 15 to 60 min"):
        CF().scan(tmp_path / "b.nc")


def test_an_archive_of_another_party_has_the_times_and_periods_that_ingest_finds(tmp_path: Path) -> None:
    """Of time bounds the end counts, and their length is the period: also where no ingest came before."""
    with xr.open_dataset(cf_file(tmp_path / "a.nc", attrs={"units": "mm h-1"})) as opened:
        dataset = opened.load()
    name = next(name for name, array in dataset.data_vars.items() if array.ndim == 3)
    dataset[name].attrs |= {"standard_name": "rainfall_rate", "cell_methods": "time: mean"}
    starts = dataset["time"].values
    dataset["time_bnds"] = (("time", "nv"), np.stack([starts, starts + np.timedelta64(15, "m")], axis=1))
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset.to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    ingest([tmp_path / "b.nc"], tmp_path / "archive", CF())
    ours, theirs = Archive.open(tmp_path / "archive"), Archive.open(tmp_path / "b.nc")
    np.testing.assert_array_equal(theirs.times, ours.times)
    np.testing.assert_array_equal(theirs.times, starts + np.timedelta64(15, "m"))
    assert theirs.meaning == ours.meaning == Meaning("mean", 15)
    assert theirs.attrs["accumulation_minutes"] == 15
    stated = dataset.drop_vars("time_bnds")
    del stated["time"].attrs["bounds"]
    stated[name].attrs["accumulation_period"] = "PT1H"
    stated.to_netcdf(tmp_path / "c.nc", engine="netcdf4")
    assert Archive.open(tmp_path / "c.nc").meaning == Meaning("mean", 60)
    # the interval of the samples that a mean is made of is no period
    del stated[name].attrs["accumulation_period"]
    stated[name].attrs["cell_methods"] = "time: mean (interval: 1 minute)"
    stated.to_netcdf(tmp_path / "d.nc", engine="netcdf4")
    assert Archive.open(tmp_path / "d.nc").meaning == Meaning("mean", 30)
    assert CF().scan(tmp_path / "d.nc").meaning == Meaning("mean", None)


def test_meanings_are_compared_by_their_period() -> None:
    assert MOMENTARY.same_as(Meaning("momentary", quantity="RATE"))
    assert Meaning("mean").over(5).same_as(Meaning("depth", 5.0, "RY"))
    assert not Meaning("depth", 60).same_as(Meaning("depth", 5))
    assert not Meaning("depth", 5).same_as(MOMENTARY)
    assert str(Meaning("depth", 60, "ACRR")) == "depths over 60 min (ACRR)"
    hourly = Meaning("depth", 60)
    assert schema.meaning_of(hourly.cell_methods, hourly.attrs(5), 5).same_as(hourly)
    assert schema.meaning_of("time: mean", {}, 5) == Meaning("mean", 5)


def test_depths_of_a_geotiff_have_the_period_that_the_user_states() -> None:
    assert GeoTIFF("accumulation")._meaning("accumulation") == Meaning("depth", None)
    assert GeoTIFF("accumulation", accumulation_minutes=60)._meaning("accumulation") == Meaning("depth", 60)


def test_depths_over_another_time_than_their_step_say_so(write_knmi: Any) -> None:
    """KNMI's hours that come every 5 min; so do FMI's, BoM's and MeteoSwiss' readers, by the same record."""
    dataset = KNMI(step_minutes=5).read(write_knmi("2020-01-01T01:00", minutes=60))
    assert dataset.attrs["accumulation_minutes"] == 60 and dataset.attrs["step_minutes"] == 5
    head = KNMI(step_minutes=5).scan(write_knmi("2020-01-01T01:00", minutes=60))
    assert (head.step_minutes, head.meaning) == (5, Meaning("depth", 60))


# packing, valid ranges


PACKED = np.rint(RAIN / 0.01).astype(np.int16)
IN_CODES = {"scale_factor": 0.01}
NO_DATA = np.int16(-1)


def packed_file(path: Path, numbers: Any = PACKED, fill: Any = NO_DATA, **attrs: Any) -> Path:
    """An archive in another party's codes, as they lie on disk: nothing is encoded on the way."""
    cf_file(path, numbers, minutes=5 * np.arange(len(numbers)), attrs={"_FillValue": fill} | attrs)
    return path


def read_everywhere(path: Path) -> list[np.ndarray]:
    """The rain of a file by ingest, as an archive, as input of a forecast, and as a channel."""
    archive = Archive.open(path)
    whole = slice(None)
    field = Field(str(path), "rain", "past", LinearScaling(0.0, 1.0))
    channel = field.bind("c", Site.of(archive))
    ingested = CF().read(path)[schema.RAIN].values
    return [
        ingested,
        archive.read(0, archive.num_times),
        open_series(path, CF()).read(archive.times)[schema.RAIN].values,
        channel.read(archive.times, whole, whole),
    ]


@pytest.mark.parametrize(
    ("attrs", "beyond"),
    [
        # of the unpacked type: in mm/h
        ({"valid_min": np.float32(0), "valid_max": np.float32(300)}, 300.0),
        ({"valid_range": np.array([0, 5], np.float64)}, 5.0),
        # of the packed type: in codes
        ({"valid_range": np.array([0, 500], np.int16)}, 5.0),
        ({"valid_max": np.int16(500)}, 5.0),
        # a text has no type: the wider reading
        ({"valid_range": "0, 300"}, 300.0),
        ({"valid_range": "300, 0"}, 300.0),
        ({"valid_min": "0", "valid_max": "300"}, 300.0),
        ({"valid_range": "0.0 5.0"}, 5.0),
        ({"valid_range": np.array([5, 0], np.float64)}, 5.0),
        ({"valid_range": "of rain"}, 300.0),
        ({"valid_max": np.float32(np.nan)}, 300.0),
    ],
)
def test_valid_ranges_are_in_the_units_of_their_type(tmp_path: Path, attrs: dict[str, Any], beyond: float) -> None:
    expected = np.where(beyond + 1e-6 < RAIN, np.nan, RAIN)
    for rain in read_everywhere(packed_file(tmp_path / "a.nc", **IN_CODES, **attrs)):
        np.testing.assert_allclose(rain, expected, rtol=1e-6)


def test_a_negative_scale_turns_the_valid_range_round(tmp_path: Path) -> None:
    """A number of 0 is 20 mm/h, one of 2000 is none: from 0 to 5 mm/h the numbers are 1500 to 2000."""
    packing = {"scale_factor": -0.01, "add_offset": 20.0}
    rain = np.minimum(RAIN, 19).astype(np.float32)
    numbers = np.rint((20 - rain) / 0.01).astype(np.int16)
    expected = np.where(rain > 5 + 1e-6, np.nan, rain)
    for limits in ("0, 5", "1500 2000", "2000;1500"):  # which of both is meant nobody knows: nothing is lost
        found = read_everywhere(packed_file(tmp_path / "a.nc", numbers, **packing, valid_range=limits))[0]
        assert np.isfinite(found[rain <= 5]).all()
    for limits in (np.array([0.0, 5.0]), np.array([1500, 2000], np.int16)):
        for found in read_everywhere(packed_file(tmp_path / "a.nc", numbers, **packing, valid_range=limits)):
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_unsigned_numbers_in_signed_bytes_are_read_so_everywhere(tmp_path: Path) -> None:
    rain = np.minimum(np.rint(RAIN * 4) / 4, 60).astype(np.float32)
    numbers = (rain / 0.25).astype(np.uint8)
    numbers[0, 0, 0] = 255
    path = packed_file(
        tmp_path / "a.nc", numbers.view(np.int8), np.int8(-1), scale_factor=0.25, _Unsigned="true",
        valid_range=np.array([0, -2], np.int8),
    )  # fmt: skip
    rain[0, 0, 0] = np.nan
    for found in read_everywhere(path):
        np.testing.assert_allclose(found, rain)


def test_a_valid_range_that_takes_most_values_away_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rain = np.full((2, 6, 5), 30, np.float32)
    path = packed_file(tmp_path / "most.nc", (rain * 100).astype(np.int16), **IN_CODES, valid_max=np.float32(3))
    assert all(np.isnan(found).all() for found in read_everywhere(path)[:3])
    assert "most.nc, rain: its valid_min, valid_max or valid_range (-inf to 3.005 in its unit)" in caplog.text
    assert "leaves out 100% of the observed values" in caplog.text


def test_a_valid_range_that_takes_the_heavy_rain_away_is_named_and_codes_of_missing_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Most of a frame is dry: a limit of 3 mm/h takes a few pixels of it, and all that matters."""
    caplog.set_level(logging.WARNING)
    rain = np.zeros((2, 20, 20), np.float32)
    rain[:, 5:9, 5:9] = np.linspace(10, 50, 16).reshape(4, 4)
    codes = np.rint(rain * 100).astype(np.int16)
    codes[:, :2] = 32000  # no fill value, but beyond the range
    codes[:, 2] = 32001
    path = packed_file(tmp_path / "flags.nc", codes, **IN_CODES, valid_range=np.array([0, 10_000], np.int16))
    assert np.isnan(CF().read(path)[schema.RAIN][0, :3]).all()
    assert not caplog.text
    path = packed_file(tmp_path / "heavy.nc", codes, **IN_CODES, valid_max=np.int64(300))
    for found in read_everywhere(path)[:3]:
        assert np.nanmax(found) == 0
    assert (
        "heavy.nc, rain: its valid_min, valid_max or valid_range (-inf to 3.005 in its unit) leaves out"
        in caplog.text
    )


def test_a_scale_of_zero_is_an_error(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "a.nc", scale_factor=0.0)
    for read in (CF().read, Archive.open, lambda path: open_series(path, CF())):
        with pytest.raises(ValueError, match="scale_factor is 0"):
            read(path)


# the Z-R relation


def test_the_files_own_zr_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    zr = ZR(300, 1.4)
    dbz = {"units": "dBZ", "standard_name": "equivalent_reflectivity_factor"}
    path = cf_file(tmp_path / "a.nc", zr.to_dbz(RAIN), attrs=dbz | {"zr_a": 300.0, "zr_b": 1.4})
    read = CF().read(path)
    np.testing.assert_allclose(read[schema.RAIN], RAIN, rtol=1e-4)
    assert [read.attrs[key] for key in ("zr_a", "zr_b", "zr_from")] == [300, 1.4, "the file"]
    assert not caplog.text
    own = CF(zr_a=200, zr_b=1.6).read(path)
    assert [own.attrs[key] for key in ("zr_a", "zr_b", "zr_from")] == [200, 1.6, "the configuration"]
    assert "Z = 300 R^1.4; source.zr_a and source.zr_b replace it by Z = 200 R^1.6" in caplog.text
    without = CF().read(cf_file(tmp_path / "b.nc", RAIN, attrs=dbz))
    assert [without.attrs[key] for key in ("zr_a", "zr_b", "zr_from")] == [200, 1.6, "the default"]
    ingest([path], tmp_path / "archive", CF())
    assert Archive.open(tmp_path / "archive").attrs["zr_from"] == "the file"
    with pytest.raises(ValueError, match="zr_a=-1.0, zr_b=1.4 are not a Z-R relation: set source.zr_a=200"):
        CF().read(cf_file(tmp_path / "c.nc", RAIN, attrs=dbz | {"zr_a": -1.0, "zr_b": 1.4}))


# units


@pytest.mark.parametrize(
    "spelling",
    [
        "mm/hour",
        "mm hr-1",
        "mm per hour",
        "kg m-2 h-1",
        "mm h⁻¹",
        "mm.h-1",
        "kg/(m2 h)",
        "millimetres / hours",
        "l m-2 h-1",
        "mm h^{-1}",
        "5 mm/5h",
    ],
)
def test_units_are_understood_by_one_list(tmp_path: Path, spelling: str) -> None:
    path = cf_file(tmp_path / "a.nc", minutes=5 * np.arange(6), attrs={"units": spelling})
    for rain in read_everywhere(path):
        np.testing.assert_array_equal(rain, RAIN)


@pytest.mark.parametrize(
    "text",
    [
        "K",
        "mm/h*32",
        "s-1",
        "kg",
        "mm month-1",
        "1",
        "",
        None,
        "m2",
        "kg m-2 s",
        "0 mm",
        "mm/0min",
        "5 min",
        "mm/5",
    ],
)
def test_what_is_no_unit_of_rain(text: Any) -> None:
    assert parse_unit(text) is None


def test_units_have_numbers() -> None:
    spelled = {
        "0.1 mm": 0.1,
        "1e-2 mm h-1": 0.01,
        "1/100 mm": 0.01,
        "mm/5min": 12,
        "mm/(10 min)": 6,
        "mm per 3 hours": 1 / 3,
    }
    for text, factor in spelled.items():
        assert parse_unit(text).factor == pytest.approx(factor), text  # type: ignore[union-attr]


def test_a_file_without_units_names_the_key_that_states_them(tmp_path: Path) -> None:
    attrs = {"units": "", "standard_name": "", "grid_mapping": "crs"}
    path = cf_file(tmp_path / "a.nc", attrs=attrs)
    with pytest.raises(
        ValueError, match=r"rain states no units: set source\.readers\.cf\.units=mm/h for a rain"
    ) as error:
        Auto({"cf": CF()}).scan(path)
    assert "quantity" not in str(error.value)
    # what it says works when it is typed
    for remedy, factor in (("mm/h", 1), ("mm", 2)):
        read = Auto({"cf": CF(units=remedy)}).read(path)
        np.testing.assert_allclose(read[schema.RAIN], factor * RAIN, rtol=1e-6)
    with pytest.raises(ValueError, match="source.units=furlongs is not a unit of rain"):
        CF(units="furlongs")


def test_a_wrong_unit_is_replaced_where_the_variable_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = cf_file(tmp_path / "a.nc", attrs={"units": "mm"}, minutes=5 * np.arange(6))
    read = CF(variable="rain", units="mm/h").read(path)
    np.testing.assert_array_equal(read[schema.RAIN], RAIN)
    assert "rain is read in mm/h, as source.units states; the file states mm" in caplog.text


@pytest.mark.parametrize(
    ("name", "attrs", "is_rain"),
    [
        ("precip", {"units": "mm"}, True),
        ("R", {"units": "mm/h", "long_name": "rain rate"}, True),
        ("rain_5min", {"units": "mm"}, True),
        ("pr", {"units": "kg m-2 s-1", "long_name": "snow and rain: precipitation rate"}, True),
        ("vil", {"units": "kg m-2"}, False),
        ("swe", {"units": "mm", "long_name": "snow water equivalent"}, False),
        ("et", {"units": "kg m-2 s-1", "standard_name": "water_evapotranspiration_flux"}, False),
        ("rain_max", {"units": "mm/h", "long_name": "maximum rain rate in the last hour"}, False),
        ("rain_error", {"units": "mm/h"}, False),
        ("column", {"units": "kg m-2"}, False),
        ("snow_acc", {"units": "mm", "long_name": "snow accumulation"}, False),
        ("tot_prec", {"units": "mm", "long_name": "total precipitation, snow included"}, True),
        ("pwat", {"units": "kg m-2", "long_name": "precipitable water"}, False),
        ("MESH", {"units": "mm"}, False),
        ("D0", {"units": "mm", "long_name": "raindrop median diameter"}, False),
        ("runoff", {"units": "mm", "long_name": "accumulated runoff"}, False),
        ("zdr", {"units": "dBZ", "long_name": "differential reflectivity"}, False),
    ],
)
def test_a_quantity_is_what_a_file_states(tmp_path: Path, name: str, attrs: dict[str, str], is_rain: bool) -> None:
    """A unit alone makes no rain of a variable whose names say otherwise."""
    with xr.open_dataset(cf_file(tmp_path / "a.nc", attrs={"standard_name": ""} | attrs)) as opened:
        dataset = opened.load().rename(rain=name)
    if "standard_name" not in attrs:
        del dataset[name].attrs["standard_name"]
    dataset.to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    if is_rain:
        assert CF().scan(tmp_path / "b.nc").times.size == 6
    else:
        with pytest.raises(ValueError, match=r"no variable on \(time, y, x\) is rain"):
            CF().scan(tmp_path / "b.nc")


def test_an_extreme_over_time_is_no_rain_rate(tmp_path: Path) -> None:
    for methods in ("time: maximum", "time: y: x: maximum"):
        path = cf_file(tmp_path / "a.nc", attrs={"cell_methods": methods}, minutes=5 * np.arange(6))
        for read in (CF().scan, Archive.open):
            with pytest.raises(ValueError, match=r"rain is a maximum over time .*means over time and depths"):
                read(path)


def test_the_method_over_time_is_told_from_that_over_areas(tmp_path: Path) -> None:
    for methods, kind in (
        ("time: y: x: mean", "mean"),
        ("area: mean time: point", "momentary"),
        ("area: mean", "momentary"),
    ):
        path = cf_file(tmp_path / "a.nc", attrs={"cell_methods": methods}, minutes=5 * np.arange(6))
        assert CF().scan(path).meaning.kind == Archive.open(path).meaning.kind == kind, methods


def test_knmis_other_products_are_refused_by_name(write_knmi: Any) -> None:
    """Reflectivity and echo tops have one time, so that they looked like a depth over no time."""
    for quantity in (b"REFLECTIVITY_[DBZ]", b"HEIGHT_[KM]"):
        path = write_knmi("2020-01-01T00:05", minutes=0)
        with h5py.File(path, "r+") as file:
            file["image1"].attrs["image_geo_parameter"] = np.bytes_(quantity)
        for read in (KNMI().scan, KNMI().read):
            with pytest.raises(ValueError, match=rf"holds {re.escape(quantity.decode())} .*Use RAD_NL25_RAC"):
                read(path)


def test_an_odim_files_own_zr_and_a_gain_of_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    zr = ZR(316, 1.5)
    codes = np.array([[0, 1, 100], [255, 150, 30]], np.uint8)
    images = {"dataset1/data1": (codes, odim.RATE | {"quantity": "DBZH", "gain": 0.5, "offset": -32.0})}
    path = odim.write(tmp_path / "a.h5", images)
    with h5py.File(path, "r+") as file:
        file.require_group("how").attrs.update(zr_a=316.0, zr_b=1.5)
    expected = zr.to_rate(0.5 * codes - 32)
    expected[codes == 0], expected[codes == 255] = 0, np.nan
    read = ODIM().read(path, step_minutes=5)
    np.testing.assert_allclose(read[schema.RAIN][0], expected, rtol=1e-6)
    assert [read.attrs[key] for key in ("zr_a", "zr_b", "zr_from")] == [316, 1.5, "the file"]
    assert ODIM(zr_a=200, zr_b=1.6).read(path, step_minutes=5).attrs["zr_from"] == "the configuration"
    assert "Z = 316 R^1.5; source.zr_a and source.zr_b replace it" in caplog.text

    with h5py.File(path, "r+") as file:
        for group in ("dataset1/what", "dataset1/data1/what"):
            if group in file:
                file[group].attrs["gain"] = 0.0
    for call in (ODIM().scan, ODIM().read):
        with pytest.raises(ValueError, match="its gain is 0 and its offset -32: values cannot be computed"):
            call(path)


# codes that look like values


def test_codes_that_are_not_declared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Undeclared codes of missing are not rain, and never the dry pixels that a Z-R relation makes of −9999 dBZ."""
    reader = Limited(CF())
    dbz = np.where(RAIN > 5, np.float32(30), np.float32(-np.inf))
    dbz[:, 0, 0] = -9999
    attrs = {"units": "dBZ", "standard_name": "equivalent_reflectivity_factor"}
    read = reader.read(cf_file(tmp_path / "dbz.nc", dbz, attrs=attrs))[schema.RAIN].values
    assert np.isnan(read[:, 0, 0]).all() and np.isnan(read).sum() == len(read)
    assert "cannot be rain" in caplog.text
    codes = np.full(RAIN.shape, 100, np.uint16)
    codes[:, 0, 0] = 65535  # netCDF's own fill value
    stated = xr.Variable(("time", "y", "x"), codes, {"scale_factor": 0.01})
    assert np.isnan(Packing.of(stated).decode(codes)[:, 0, 0]).all()
    stated.attrs = {"scale_factor": 0.01, "nodata": 100}
    assert np.isnan(Packing.of(stated).decode(codes)).all()


def test_a_scale_under_another_name_is_refused_and_a_dry_code_of_missing_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes = np.ones(RAIN.shape, np.int16)
    for name in ("gain", "scale", "slope"):
        path = cf_file(tmp_path / f"{name}.nc", codes, attrs={name: 0.01})
        with pytest.raises(ValueError, match=rf"{name}=0.01, which no convention applies"):
            CF().scan(path)
    for code, told in ((-1, 0), (0, 1)):
        path = cf_file(tmp_path / f"{told}.nc", codes, attrs={"missing_value": np.int16(code)})
        CF().scan(path)
        assert caplog.text.count("pixels without rain count as missing") == told


def test_many_capped_pixels_and_forecasts_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = cf_file(tmp_path / "a.nc", np.full(RAIN.shape, 655.35, np.float32))
    Cleaned(CF(), Quality()).read(path)
    assert "exceed max_rate=300 mm/h" in caplog.text
    with xr.open_dataset(path) as dataset:
        run = dataset.load().assign_coords(run=dataset.time[0].values - np.timedelta64(1, "h"))
    run.run.attrs["standard_name"] = "forecast_reference_time"
    run.to_netcdf(tmp_path / "run.nc")
    CF().scan(tmp_path / "run.nc")
    assert "holds forecasts" in caplog.text
