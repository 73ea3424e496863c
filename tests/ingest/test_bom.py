"""BoM netCDF: depths and rates, times, the grid, and what is refused; values and place agree with pysteps."""

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from checking import check_encoded
from pyproj import Proj

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.bom import BoM

DEPTHS = np.array([[0.0, 0.05, 1.25], [-1.0, 20.0, 0.1]])  # mm; −1 is the fill value
ALBERS = {
    "grid_mapping_name": "albers_conical_equal_area",
    "standard_parallel": np.array([-18.0, -36.0]),
    "longitude_of_central_meridian": 132.0,
    "latitude_of_projection_origin": 0.0,
    "semi_major_axis": 6378137.0,
    "semi_minor_axis": 6356752.31414,
}


def write(
    path: Path,
    values: Any = DEPTHS,
    *,
    end: str = "2020-10-31T04:10",
    minutes: float | None = 10,
    name: str = "precipitation",
    units: str = "kg m-2",
    fill: float = -1.0,
    scale: float | None = None,
    kind: str = "NETCDF4",
    **proj: Any,
) -> Path:
    """One frame of Rainfields 3: 2 km pixels, the times in seconds since 1970."""
    values = np.asarray(values)
    with netCDF4.Dataset(path, "w", format=kind) as file:
        for axis, size in zip("yx", values.shape, strict=True):
            file.createDimension(axis, size)
            centres = file.createVariable(axis, "f4", (axis,))
            centres[:] = {"y": -1001.0 - 2 * np.arange(size), "x": -2299.0 + 2 * np.arange(size)}[axis]
            centres.units = "km"
        file.createVariable("proj", "i1").setncatts(ALBERS | proj)
        seconds = np.datetime64(end, "s").astype(int)
        for time, value in (("start_time", seconds - 60 * (minutes or 0)), ("valid_time", seconds)):
            if minutes is not None or time == "valid_time":
                variable = file.createVariable(time, "i4")
                variable.units = "seconds since 1970-01-01 00:00:00 UTC"
                variable[...] = value
        dtype = "f4" if scale is None else "i2"
        rain = file.createVariable(name, dtype, ("y", "x"), fill_value=fill)
        rain.setncatts(
            {"units": units, "grid_mapping": "proj"} | ({} if scale is None else {"scale_factor": scale})
        )
        rain.set_auto_maskandscale(False)
        rain[:] = values if scale is None else np.where(values == fill, fill, np.rint(values / scale))
    return path


@pytest.mark.parametrize(("scale", "kind"), [(None, "NETCDF4"), (0.05, "NETCDF4"), (0.05, "NETCDF3_CLASSIC")])
def test_depths_become_mean_rates(tmp_path: Path, scale: float | None, kind: str) -> None:
    path = write(tmp_path / "310_20201031_041000.prcp-c10.nc", scale=scale, kind=kind)
    assert BoM().recognises(path)
    dataset = BoM().read(path)
    expected = np.where(DEPTHS < 0, np.nan, DEPTHS * 6)  # mm in 10 min
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], expected, rtol=1e-6)
    assert dataset[schema.TIME].values[0] == np.datetime64("2020-10-31T04:10")
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: mean"
    assert BoM().scan(path).step_minutes == 10 and BoM(step_minutes=5).scan(path).step_minutes == 5
    # a depth that overlaps the next is a rate over its own time all the same
    np.testing.assert_array_equal(BoM(step_minutes=5).read(path)[schema.RAIN], dataset[schema.RAIN])
    assert BoM().read(path, slice(1, 2)).sizes[schema.TIME] == 0
    schema.check_archive(dataset)


def test_six_minutes_and_the_other_fill_value(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", [[0, 1.5], [-32768, -0.05]], minutes=6, fill=-32768, scale=0.05, units="mm")
    dataset = BoM().read(path)
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], [[0, 15], [np.nan, np.nan]], rtol=1e-6)
    assert dataset.attrs[schema.STEP_MINUTES] == 6


def test_rates(tmp_path: Path) -> None:
    path = write(tmp_path / "2_20251025.prcp-crate.nc", [[3.5, -1]], name="rain_rate", units="mm/hr", minutes=None)
    assert BoM().scan(path).step_minutes is None
    dataset = BoM().read(path, step_minutes=5)
    np.testing.assert_array_equal(dataset[schema.RAIN].values[0], [[3.5, np.nan]])
    assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    with pytest.raises(ValueError, match=r"prcp-crate\.nc .*states no step"):
        BoM().read(path)


def test_values_and_place_as_pysteps_reads_them(tmp_path: Path) -> None:
    from pysteps.io.importers import import_bom_rf3

    path = write(tmp_path / "a.nc")
    depths, _, said = import_bom_rf3(str(path))
    dataset, grid = BoM().read(path), BoM().scan(path).grid
    theirs = np.ma.filled(depths, np.nan) * 60 / said["accutime"]
    np.testing.assert_allclose(dataset[schema.RAIN].values[0], theirs, rtol=1e-6)
    assert (grid.x[0], grid.x[-1], grid.y[-1], grid.y[0]) == (said["x1"], said["x2"], said["y1"], said["y2"])
    # their projection and ours put the first pixel at the same place
    lon, lat = Proj(said["projection"])(grid.x[0], grid.y[0], inverse=True)
    np.testing.assert_allclose(Proj(grid.crs_wkt)(grid.x[0], grid.y[0], inverse=True), (lon, lat), atol=1e-6)
    assert 110 < lon < 115 and -9 < lat < -7  # the composite's corner, north-west of Australia


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"units": "dBZ"}, "precipitation is in dBZ: raincast knows mm, kg m-2"),
        ({"minutes": 0}, "not a valid accumulation period"),
        ({"minutes": None}, "it has no start_time"),
        ({"name": "reflectivity"}, "it holds neither precipitation nor rain_rate, but"),
        ({"grid_mapping_name": "no_such"}, "pyproj knows no projection"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.nc", **change)
    with pytest.raises(ValueError, match=rf"a\.nc cannot be read as BoM netCDF: .*{reason}"):
        BoM().read(path)


def test_a_spoilt_size_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc")
    with netCDF4.Dataset(path, "w") as file:
        for axis in "yx":
            file.createDimension(axis, 10_000)
            file.createVariable(axis, "f4", (axis,), zlib=True)  # nothing is written: a few bytes
        file.createVariable("precipitation", "f4", ("y", "x"), zlib=True)
    with pytest.raises(ValueError, match=r"a\.nc .* 10000 × 10000 pixels, and max_megapixels=50 allows"):
        BoM().scan(path)


def test_a_folder_becomes_an_archive(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write(tmp_path / f"{number}.nc", DEPTHS + number, end=f"2020-10-31T04:{10 * number:02d}")
    report = ingest(tmp_path / "*.nc", tmp_path / "out", BoM())
    assert (report.num_written, report.missing_times) == (3, ("2020-10-31T04:20:00",))
    archive = Archive.open(tmp_path / "out")
    assert archive.step_minutes == 10 and archive.grid.y[0] == -1_001_000
    check_encoded(archive.read(1, 1)[0, 0], 6 * (DEPTHS[0] + 1))
