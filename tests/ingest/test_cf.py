"""CF netCDF and Zarr: quantities, packing, coordinates, projections, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from raincast import schema
from raincast.archive import Archive
from raincast.archive.head import open_packed
from raincast.ingest.readers import Auto, cf
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.knmi import KNMI
from raincast.transforms import ZR

TIMES = np.datetime64("2020-01-01T00:05", "ns") + np.timedelta64(5, "m") * np.arange(4)
LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +datum=WGS84 +units=m"
RAIN = np.random.default_rng(0).gamma(0.5, 4.0, (4, 6, 5)).astype(np.float32).round(2)
RAIN[:, 0, 0] = np.nan


def rain_file(path: Path, values: Any = RAIN, *, units: str = "mm h-1", **attrs: Any) -> Path:
    """A CF file as the contract wants it, but for `units` and attributes of the rain."""
    dataset = schema.rain_dataset(RAIN, TIMES, schema.mock_grid(6, 5), step_minutes=5, cell_methods="time: point")
    dataset[schema.RAIN].values = values
    dataset[schema.RAIN].attrs |= {"units": units} | attrs
    return to_file(dataset, path)


def to_file(dataset: xr.Dataset, path: Path, **encoding: Any) -> Path:
    if path.suffix == ".zarr":
        dataset.to_zarr(path, encoding=encoding, consolidated=False)
    else:
        dataset.to_netcdf(path, engine="netcdf4", encoding=encoding)
    return path


def lat_lon_dataset(**rename: str) -> xr.Dataset:
    coords = {
        "time": TIMES,
        "lat": ("lat", 50 + 0.01 * np.arange(6), {"units": "degrees_north"}),
        "lon": ("lon", 5 + 0.01 * np.arange(5), {"units": "degrees_east"}),
    }
    rain = xr.DataArray(RAIN, dims=("time", "lat", "lon"), coords=coords, attrs={"units": "mm/h"})
    return xr.Dataset({"precip": rain}).rename(rename)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_a_good_file_comes_back(tmp_path: Path, name: str) -> None:
    path = rain_file(tmp_path / name)
    dataset = CF().read(path)
    np.testing.assert_array_equal(dataset[schema.RAIN], RAIN)
    np.testing.assert_array_equal(dataset[schema.TIME], TIMES)
    head = CF().scan(path)
    assert head.grid.same_as(schema.mock_grid(6, 5))
    assert CRS.from_wkt(head.grid.crs_wkt) == CRS.from_wkt(schema.mock_grid().crs_wkt)
    assert head.step_minutes == 5.0
    schema.check_archive(dataset)


def test_only_the_frames_asked_for(tmp_path: Path) -> None:
    dataset = CF().read(rain_file(tmp_path / "a.nc"), slice(1, 3))
    np.testing.assert_array_equal(dataset[schema.RAIN], RAIN[1:3])
    np.testing.assert_array_equal(dataset[schema.TIME], TIMES[1:3])


@pytest.mark.parametrize(
    ("units", "standard_name", "per_mm_h"),
    [
        ("kg m-2 s-1", "precipitation_flux", 1 / 3600),
        ("kg/m2/s", "rainfall_flux", 1 / 3600),
        ("kg m**-2 s**-1", "rainfall_flux", 1 / 3600),
        ("kg m^-2 s^-1", "rainfall_flux", 1 / 3600),
        ("m s-1", "lwe_precipitation_rate", 1 / 3.6e6),
        ("mm/hr", "rainfall_rate", 1.0),
        ("mm hour-1", "rainfall_rate", 1.0),
        ("mm/day", "rainfall_rate", 24.0),
        # depths over the step of 5 min
        ("mm", "rainfall_amount", 1 / 12),
        ("kg m-2", "precipitation_amount", 1 / 12),
        ("m", "thickness_of_rainfall_amount", 1e-3 / 12),
    ],
)
def test_units(tmp_path: Path, units: str, standard_name: str, per_mm_h: float) -> None:
    path = rain_file(tmp_path / "a.nc", RAIN * per_mm_h, units=units, standard_name=standard_name)
    np.testing.assert_allclose(CF().read(path)[schema.RAIN], RAIN, rtol=1e-5)


def test_accumulation_over_bounds_is_dated_at_their_end(tmp_path: Path) -> None:
    dataset = xr.open_dataset(rain_file(tmp_path / "a.nc", units="mm", standard_name="rainfall_amount")).load()
    starts = TIMES - np.timedelta64(5, "m")
    dataset = dataset.assign_coords(time=starts, missing_times=starts[:0])
    dataset[schema.RAIN].attrs["cell_methods"] = "time: sum"
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset["time"].encoding["units"] = "seconds since 1970-01-01"
    # depth of the last 15 min, every 5 min
    ends = TIMES + np.timedelta64(10, "m")
    dataset["time_bnds"] = (("time", "nv"), np.stack([starts, ends], axis=1))
    read = CF().read(to_file(dataset, tmp_path / "b.nc"))
    np.testing.assert_array_equal(read[schema.TIME], ends)
    np.testing.assert_allclose(read[schema.RAIN], RAIN * 4, rtol=1e-6)
    assert read[schema.RAIN].attrs["cell_methods"] == "time: mean"


@pytest.mark.parametrize(("period", "factor"), [("PT1H", 1), ("PT1H30M", 2 / 3), ("PT15M", 4), ("of rain", 12)])
def test_an_amount_over_its_stated_period(tmp_path: Path, period: str, factor: float) -> None:
    """As in the hours of RADCLIM that come every 5 min; without a period an amount is that of a step."""
    path = rain_file(tmp_path / "a.nc", units="kg m-2", standard_name="precipitation_amount")
    dataset = xr.open_dataset(path).load()
    dataset[schema.RAIN].attrs["accumulation_period"] = period
    read = CF().read(to_file(dataset, tmp_path / "b.nc"))
    np.testing.assert_allclose(read[schema.RAIN], RAIN * factor, rtol=1e-6)
    assert ("running means" in read.attrs.get("comment", "")) == (period != "of rain")
    np.testing.assert_allclose(
        CF(accumulation_minutes=30).read(tmp_path / "b.nc")[schema.RAIN], RAIN * 2, rtol=1e-6
    )


def test_reflectivity_by_the_stated_zr(tmp_path: Path) -> None:
    zr = ZR(256, 1.42)
    path = rain_file(
        tmp_path / "a.nc", zr.to_dbz(RAIN), units="dBZ", standard_name="equivalent_reflectivity_factor"
    )
    dataset = CF(zr_a=256, zr_b=1.42).read(path)
    np.testing.assert_allclose(dataset[schema.RAIN], RAIN, rtol=1e-4)
    assert (dataset[schema.RAIN].values[RAIN == 0] == 0).all()
    assert (dataset.attrs["zr_a"], dataset.attrs["zr_b"]) == (256, 1.42)
    dry = CF(missing_is_dry=True).read(path)
    assert float(dry[schema.RAIN][0, 0, 0]) == 0.0


def test_a_file_is_opened_again_only_to_unpack_its_coordinates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = []
    monkeypatch.setattr(cf, "open_packed", lambda *a: again.append(a[0].name) or open_packed(*a))
    dataset = schema.rain_dataset(RAIN, TIMES, schema.mock_grid(6, 5), step_minutes=5, cell_methods="time: point")
    packing = {"dtype": "int16", "scale_factor": 500.0, "_FillValue": -1}
    to_file(dataset, tmp_path / "packed.nc", x=packing)
    for path in (rain_file(tmp_path / "plain.nc"), rain_file(tmp_path / "plain.zarr"), tmp_path / "packed.nc"):
        assert CF().scan(path).grid.same_as(schema.mock_grid(6, 5))
        np.testing.assert_array_equal(CF().read(path)[schema.RAIN], RAIN)
    assert again == ["packed.nc"] * 2


def test_packed_integers_and_valid_range(tmp_path: Path) -> None:
    dataset = lat_lon_dataset()
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 1.0, "_FillValue": -9999}
    np.testing.assert_allclose(
        CF().read(to_file(dataset, tmp_path / "a.nc", precip=packing))[schema.RAIN], RAIN, atol=1e-5
    )
    # limits are in packed units: 0.5 mm/h is code -50, 5 mm/h is code 400
    dataset["precip"].attrs["valid_range"] = np.array([-50, 400], np.int16)
    read = CF().read(to_file(dataset, tmp_path / "b.nc", precip=packing))[schema.RAIN].values
    np.testing.assert_array_equal(np.isnan(read), np.isnan(RAIN) | (RAIN < 0.5) | (RAIN > 5.0))


def test_lat_lon_under_other_names_and_order(tmp_path: Path) -> None:
    dataset = lat_lon_dataset(lat="northsouth", lon="eastwest", time="when").transpose(
        "eastwest", "when", "northsouth"
    )
    path = to_file(dataset.expand_dims("height"), tmp_path / "a.nc")
    read = CF(step_minutes=5).read(path, slice(1, 3))
    np.testing.assert_array_equal(read[schema.RAIN], RAIN[1:3])
    assert CRS.from_wkt(CF().scan(path).grid.crs_wkt).is_geographic
    assert read[schema.Y].attrs["units"] == "degrees_north"


def test_float32_axes_are_evened_out(tmp_path: Path) -> None:
    dataset = lat_lon_dataset()
    dataset = dataset.assign_coords(lon=("lon", (120 + 0.01 * np.arange(5)).astype(np.float32), dataset.lon.attrs))
    schema.check_archive(CF().read(to_file(dataset, tmp_path / "a.nc")))


def test_uneven_axis_is_refused(tmp_path: Path) -> None:
    dataset = lat_lon_dataset()
    dataset = dataset.assign_coords(lat=("lat", 0.01 * np.arange(6.0) ** 2, dataset.lat.attrs))
    with pytest.raises(ValueError, match=r"a\.nc .*not evenly spaced"):
        CF().scan(to_file(dataset, tmp_path / "a.nc"))


@pytest.mark.parametrize("axis_units", ["km", None])
def test_km_axes_become_metres(tmp_path: Path, axis_units: str | None) -> None:
    y, x = (xr.DataArray(v, dims=d) for v, d in ((300.0 - np.arange(6), "y"), (20.0 + np.arange(5), "x")))
    dataset = xr.Dataset(
        {"rate": (("time", "y", "x"), RAIN, {"units": "mm/h"})},
        {"time": TIMES, "y": y, "x": x},
        {"proj4": LAEA.replace("units=m", "units=km")},
    )
    if axis_units:
        dataset.y.attrs["units"] = dataset.x.attrs["units"] = axis_units
    grid = CF().scan(to_file(dataset, tmp_path / "a.nc")).grid
    np.testing.assert_allclose(grid.y, 1000 * (300.0 - np.arange(6)))
    assert CRS.from_wkt(grid.crs_wkt).axis_info[0].unit_name == "metre"
    point = Transformer.from_crs(grid.crs_wkt, LAEA, always_xy=True).transform(grid.x[0], grid.y[0])
    np.testing.assert_allclose(point, (20_000, 300_000), atol=1e-3)


@pytest.mark.parametrize("where", ["crs_wkt", "spatial_ref", "proj4_params", "cf", "global"])
def test_projection_from_wherever_it_is_stated(tmp_path: Path, where: str) -> None:
    crs = CRS.from_proj4(LAEA)
    mapping = {
        "crs_wkt": {"crs_wkt": crs.to_wkt()},
        "spatial_ref": {"spatial_ref": crs.to_wkt("WKT1_GDAL")},
        "proj4_params": {"proj4_params": LAEA},
        "cf": {k: v for k, v in crs.to_cf().items() if k != "crs_wkt"},
        "global": {},
    }[where]
    dataset = xr.Dataset(
        {"rate": (("time", "y", "x"), RAIN, {"units": "mm/h"})},
        {"time": TIMES, "y": np.arange(6) * -1e3, "x": np.arange(5) * 1e3},
        {"proj_string": LAEA} if where == "global" else {"projection": "Lambert"},
    )
    if mapping:
        dataset["laea"] = ((), 0, mapping)
        dataset["rate"].attrs["grid_mapping"] = "laea: x y"
    found = CRS.from_wkt(CF().scan(to_file(dataset, tmp_path / "a.nc")).grid.crs_wkt)
    point = Transformer.from_crs(4326, found, always_xy=True).transform(10, 55)
    np.testing.assert_allclose(point, (1_950_000, -2_100_000), atol=1)


def test_no_projection_asks_for_one(tmp_path: Path) -> None:
    dataset = xr.Dataset(
        {"rate": (("time", "y", "x"), RAIN, {"units": "mm/h"})},
        {"time": TIMES, "y": np.arange(6) * -1e3, "x": np.arange(5) * 1e3},
    )
    path = to_file(dataset, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"source\.crs="):
        CF().scan(path)
    assert CRS.from_wkt(CF(crs="EPSG:3035").scan(path).grid.crs_wkt) == CRS.from_epsg(3035)
    with pytest.raises(ValueError, match="pyproj knows no projection 'nonsense'"):
        CF(crs="nonsense").scan(path)
    with pytest.raises(ValueError, match="coordinates are in"):
        CF(crs="EPSG:4326").scan(path)


def test_two_dimensional_lat_lon_only_is_refused_with_the_remedy(tmp_path: Path) -> None:
    dataset = xr.Dataset(
        {"rate": (("time", "j", "i"), RAIN, {"units": "mm/h"})},
        {"time": TIMES, "lat": (("j", "i"), np.ones((6, 5))), "lon": (("j", "i"), np.ones((6, 5)))},
    )
    with pytest.raises(ValueError, match=r"no 1-D coordinate along j and i.*2-D.*lat.*reproject"):
        CF().scan(to_file(dataset, tmp_path / "a.nc"))


def test_choice_of_the_variable(tmp_path: Path) -> None:
    dataset = lat_lon_dataset()
    dataset["other"] = dataset["precip"].copy()
    dataset["wind"] = dataset["precip"].assign_attrs(units="m s-1")
    path = to_file(dataset, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"2 variables are a rate of rain: .*source\.variable="):
        CF().scan(path)
    assert CF(variable="other").read(path)[schema.RAIN].shape == RAIN.shape
    with pytest.raises(ValueError, match=r"no variable rain; found: precip"):
        CF(variable="rain").scan(path)
    with pytest.raises(ValueError, match="'mm/h': not a unit of accumulation"):
        CF(variable="other", quantity="accumulation").scan(path)
    only_wind = to_file(dataset[["wind"]], tmp_path / "wind.nc")
    with pytest.raises(ValueError, match=r"no variable on \(time, y, x\) is rain.*wind"):
        CF().scan(only_wind)
    with pytest.raises(ValueError, match="none of auto, rate"):
        CF(quantity="depth")


def test_one_frame_with_a_scalar_time(tmp_path: Path) -> None:
    path = to_file(lat_lon_dataset().isel(time=2), tmp_path / "a.nc")
    assert CF().scan(path).step_minutes is None
    with pytest.raises(ValueError, match=r"source\.step_minutes"):
        CF().read(path)
    read = CF().read(path, step_minutes=5)
    np.testing.assert_array_equal(read[schema.RAIN], RAIN[2:3])


def test_netcdf3_by_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    lat_lon_dataset().to_netcdf(path, engine="netcdf4", format="NETCDF3_CLASSIC")
    assert CF().recognises(path)
    np.testing.assert_array_equal(CF().read(path)[schema.RAIN], RAIN)


@pytest.mark.parametrize("keep", [0, 8, 0.3, 0.9])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = rain_file(tmp_path / "a.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for reader in (CF(), Auto({"knmi": KNMI(), "cf": CF()})):
        with pytest.raises(ValueError, match=r"a\.nc"):
            reader.scan(path)


def test_auto_tells_formats_by_content(tmp_path: Path, write_knmi: Any) -> None:
    auto = Auto({"knmi": KNMI(), "cf": CF()})
    knmi = write_knmi("2020-01-01T00:05", name="a.bin")
    netcdf = rain_file(tmp_path / "a.nc").rename(tmp_path / "b.bin")
    assert not CF().recognises(knmi) and not KNMI().recognises(netcdf)
    assert auto.read(knmi)[schema.RAIN].shape == (1, 6, 5)
    assert auto.read(netcdf)[schema.RAIN].shape == (4, 6, 5)
    (tmp_path / "c.bin").write_text("no radar")
    with pytest.raises(ValueError, match=r"c\.bin .*none of the formats raincast knows: knmi, cf"):
        auto.read(tmp_path / "c.bin")
    assert not auto.recognises(tmp_path / "c.bin")


@pytest.mark.radar
def test_real_smhi(radar_dir: Path) -> None:
    path = radar_dir / "smhi/openmrg_rad_8d.nc"
    dataset = CF().read(path)
    rain = dataset[schema.RAIN].values
    assert rain.shape == (2304, 48, 37)
    assert (rain[~np.isnan(rain)] > 0.1).mean() == pytest.approx(0.14, abs=0.005)
    assert dataset.attrs["license"] == "https://creativecommons.org/licenses/by-sa/4.0"
    assert schema.find_step_minutes(dataset) == 5.0
    # the file's own lat and lon say the same as our projection
    with xr.open_dataset(path, engine="netcdf4") as raw:
        lon, lat = raw["lon"].values, raw["lat"].values
    x, y = np.meshgrid(dataset[schema.X], dataset[schema.Y])
    wkt = dataset[schema.CRS].attrs["crs_wkt"]
    found = Transformer.from_crs(4326, wkt, always_xy=True).transform(lon, lat)
    assert np.hypot(found[0] - x, found[1] - y).max() < 1000


def placed(y: Any, x: Any, unit: str, mapping: dict[str, Any], **more: Any) -> xr.Dataset:
    """Rain on coordinates in `unit` and on the projection that `mapping` describes."""
    axes = {name: (name, values, {"units": unit}) for name, values in (("y", y), ("x", x))}
    attrs = {"units": "mm/h", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), RAIN, attrs)}, {"time": TIMES, **axes, "crs": ((), 0, mapping), **more}
    )


KM_Y, KM_X = -3650.5 - np.arange(6.0), 200.5 + np.arange(5.0)
KNMI_KM = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 +y_0=0"
CF_LAEA = {
    "grid_mapping_name": "lambert_azimuthal_equal_area",
    "latitude_of_projection_origin": 52.0,
    "longitude_of_projection_origin": 10.0,
    "false_easting": 4321.0,
    "false_northing": 3210.0,
}
LAEA_M = "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +ellps=WGS84"


@pytest.mark.parametrize(
    ("mapping", "y", "x", "true"),
    [
        ({"proj4_params": KNMI_KM}, KM_Y, KM_X, KNMI_KM.replace("6378.14", "6378140").replace("6356.75", "6356750")),
        ({"crs_wkt": CRS.from_proj4(KNMI_KM).to_wkt()}, KM_Y, KM_X, KNMI_KM.replace("78.14", "78140").replace("56.75", "56750")),
        (CF_LAEA, 3210.0 + KM_Y[::-1] + 3650, 4321.0 + KM_X, LAEA_M),
        (CF_LAEA | {"false_easting": 4_321_000.0, "false_northing": 3_210_000.0}, 3210.0 + KM_Y[::-1] + 3650, 4321.0 + KM_X, LAEA_M),
    ],
    ids=["radii in km", "WKT with radii in km", "false origin in km", "false origin in m"],
)  # fmt: skip
def test_lengths_in_km_are_at_their_place_in_files_and_archives(
    tmp_path: Path, mapping: dict[str, Any], y: Any, x: Any, true: str
) -> None:
    path = to_file(placed(y, x, "km", mapping), tmp_path / "a.nc")
    grids = [CF().scan(path).grid]
    if "proj4_params" not in mapping:  # archives state their projection as CF does
        grids.append(Archive.open(path).grid)
    expected = Transformer.from_crs(true, "EPSG:4326", always_xy=True).transform(1000 * x[0], 1000 * y[0])
    for grid in grids:
        point = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True).transform(grid.x[0], grid.y[0])
        np.testing.assert_allclose(point, expected, atol=1e-6)
        assert grid.pixel_km == pytest.approx(1.0)


def test_coordinates_that_are_no_lengths_are_refused(tmp_path: Path) -> None:
    numbers = placed(np.arange(6.0), np.arange(5.0), "", {"crs_wkt": CRS.from_epsg(3035).to_wkt()})
    path = to_file(numbers, tmp_path / "numbers.nc")
    for read in (CF().scan, Archive.open):
        with pytest.raises(ValueError, match=r"steps of 0\.001 km"):
            read(path)
    rotated = lat_lon_dataset()
    for name, role in (("lat", "grid_latitude"), ("lon", "grid_longitude")):
        rotated[name].attrs = {"units": "degrees", "standard_name": role}
    with pytest.raises(ValueError, match="names no projection"):
        CF().scan(to_file(rotated, tmp_path / "rotated.nc"))


def test_a_projection_is_compared_with_the_files_own_latitudes_and_longitudes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    y, x = 3_200_000.0 + 1000 * np.arange(6), 4_300_000.0 + 1000 * np.arange(5)
    lon, lat = Transformer.from_crs(3035, 4326, always_xy=True).transform(*np.meshgrid(x, y))
    for name, epsg, told in (("right", 3035, 0), ("wrong", 3034, 1)):
        caplog.clear()
        own = {
            "lat": (("y", "x"), lat, {"units": "degrees_north"}),
            "lon": (("y", "x"), lon, {"units": "degrees_east"}),
        }
        dataset = placed(y, x, "m", {"crs_wkt": CRS.from_epsg(epsg).to_wkt()}, **own)
        CF().scan(to_file(dataset, tmp_path / f"{name}.nc"))
        assert caplog.text.count("km from its own latitudes and longitudes") == told, name
