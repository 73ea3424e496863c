"""Parts as Zarr stores: the same rain as in netCDF, whole or not at all, by the mlcast specification."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from raincast import schema
from raincast.archive import Archive, PartWriter, ZarrPartWriter
from raincast.schema import mock_archive
from raincast.system.files import put_in_place, restore

RAIN = schema.RAIN
PUBLISHED = {
    "license": "CC-BY-4.0",
    "mlcast_created_on": "2026-11-01T00:00:00",
    "mlcast_created_by": "Jane Doe <jane@example.org>",
    "mlcast_created_with": "https://github.com/mlcast-community/mlcast-dataset-NL-KNMI@v1.0.0",
    "mlcast_dataset_version": "1.0.0",
    "mlcast_dataset_validator_version": "0.4.0",
    "mlcast_dataset_identifier": "NL-KNMI-precipitation",
}


def write(path: Path, dataset: xr.Dataset, kind=ZarrPartWriter, **attrs) -> Path:
    grid = schema.mock_grid(*dataset[RAIN].shape[1:])
    with kind(path, grid, step_minutes=5.0, cell_methods="time: mean", attrs=attrs) as part:
        for time, rain in zip(dataset.time.values, dataset[RAIN].values, strict=True):
            part.add(time, rain)
    return path


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def problems(store: Path, *, min_years: float = 3) -> list[str]:
    """What of the specification 0.3.0 a store breaks, by the numbers of its published text.

    github.com/mlcast-community/mlcast-dataset-validator, specs/source_data/radar_precipitation.py. What only the
    net or the look of rain can tell (does the repository exist, is the sensing area whole) is left out.
    """
    found: list[str] = []

    def demand(condition: bool, what: str) -> None:
        if not condition:
            found.append(what)

    # as any user opens it: a warning, of metadata that are not consolidated say, fails the test
    with xr.open_dataset(store, engine="zarr", chunks=None) as data:
        names = {str(c.attrs.get("standard_name")): c for c in data.coords.values()}
        latlon, projected = ("latitude", "longitude"), ("projection_y_coordinate", "projection_x_coordinate")
        demand({*latlon, *projected, "time"} <= names.keys(), "3.1 coordinates")
        demand(all("units" in names[n].attrs for n in (*latlon, *projected) if n in names), "3.1 units")
        demand([data[a].attrs.get("axis") for a in "yx"] == ["Y", "X"], "3.1 axis")
        steps = [abs(np.diff(data[axis].values)) for axis in "yx"]
        demand(all((step <= 1010).all() for step in steps), "3.2 at most 1 km")
        demand(data.sizes["y"] >= 256 and data.sizes["x"] >= 256, "3.2 256 × 256 pixels")
        times, missing = data.time.values, data["missing_times"].values
        demand(times[-1] - times[0] >= min_years * np.timedelta64(365 * 24 * 60, "m"), "3.3 three years")
        gaps = np.diff(times)
        every = np.arange(times[0], times[-1] + gaps.min(), gaps.min())
        demand(bool((gaps > np.timedelta64(0)).all()), "3.3 ascending")
        demand(np.array_equal(missing, np.setdiff1d(every, times)), "3.3 missing_times")
        demand(np.unique(gaps).size == 1 or "consistent_timestep_start" in data.attrs, "5.1 variable timestep")
        for name, rain in data.data_vars.items():  # each one is data, to the specification
            demand(rain.dims == ("time", "y", "x"), f"4.3 dimensions of {name}")
            demand(
                json.loads((store / str(name) / "zarr.json").read_text())["data_type"] == "float32", "4.3 float"
            )
            demand(rain.encoding["chunks"] == (1, data.sizes["y"], data.sizes["x"]), "4.1 chunks")
            demand("Zstd" in str(rain.encoding["compressors"]), "4.2 zstd")
            demand(name in ("mmh", "rr", "rain_rate", "rainfall_rate", "rainfall_flux"), "4.4 name")
            demand(rain.attrs["standard_name"] == "rainfall_flux" and "long_name" in rain.attrs, "4.4 attributes")
            demand(rain.attrs["units"] in ("kg m-2 h-1", "mm h-1", "mm/h"), "4.4 units")
            crs = data[rain.attrs["grid_mapping"]].attrs
            demand(CRS.from_wkt(crs["crs_wkt"]).area_of_use is not None, "4.5 bounding box")
            demand(CRS.from_wkt(crs["spatial_ref"]) == CRS.from_wkt(crs["crs_wkt"]), "4.5 spatial_ref")
            own = {k: v for k, v in crs.items() if k not in ("crs_wkt", "spatial_ref")}
            for definition in (CRS.from_cf(own), CRS.from_wkt(crs["crs_wkt"])):
                to_degrees = Transformer.from_crs(definition, "EPSG:4326", always_xy=True)
                lon, lat = to_degrees.transform(*np.meshgrid(data.x, data.y))
                off = max(abs(lon - data["lon"].values).max(), abs(lat - data["lat"].values).max())
                demand(off <= 1e-4, "4.5 lat and lon")
        demand(str(data.attrs.get("license")).startswith(("CC-BY", "OGL")), "5.2 license")
        demand(json.loads((store / "zarr.json").read_text())["zarr_format"] == 3, "5.3 Zarr 3")
        found += [f"5.4 {name}" for name in PUBLISHED if name not in data.attrs]
    return found


@pytest.mark.filterwarnings("error")
def test_a_store_keeps_the_specification(tmp_path: Path) -> None:
    dataset = mock_archive(9, 260, 256, missing=(3, 4))
    store = write(tmp_path / "a.zarr", dataset, **PUBLISHED)
    assert problems(store) == ["3.3 three years"]
    plain = write(tmp_path / "plain.zarr", mock_archive(3))
    assert problems(plain) == [
        "3.2 256 × 256 pixels",
        "3.3 three years",
        "5.2 license",
        *(f"5.4 {name}" for name in PUBLISHED),
    ]


def test_the_validator_of_mlcast_finds_three_years_alone_missing(tmp_path: Path) -> None:
    """Its version 0.4.0, of the specification 0.3.0; what it looks up in the net is a warning without one."""
    name = "mlcast_dataset_validator.specs.source_data.radar_precipitation"
    specification = pytest.importorskip(name, exc_type=ImportError)
    assert specification.VERSION == "0.3.0"
    store = write(tmp_path / "a.zarr", mock_archive(9, 260, 256, missing=(3, 4)), **PUBLISHED)
    with xr.open_zarr(store) as dataset:
        report, _ = specification.validate_dataset(dataset)
    assert len(report.results) > 30
    assert [one.requirement for one in report.results if one.status == "FAIL"] == ["Minimum 3-year coverage"]


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_the_check_finds_what_a_plain_xarray_store_lacks(tmp_path: Path) -> None:
    dataset = mock_archive(9, 260, 256, missing=(3,)).drop_vars("missing_times")
    dataset["missing_times"] = ("missing_times", dataset.time.values[:1])
    wrong = (("y", "x"), np.zeros((260, 256)))
    packed = {"chunks": (4, 128, 128), "dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768}
    dataset = dataset.assign_coords(lat=wrong, lon=wrong)
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=True, encoding={RAIN: packed})
    lacks = {problem.split()[0] for problem in problems(tmp_path / "a.zarr")}
    assert lacks == {"3.1", "3.3", "4.1", "4.3", "4.4", "4.5", "5.1", "5.2", "5.4"}


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    dataset = mock_archive(20, 30, 28, missing=(7,))
    dataset[RAIN].values[:, 3, 4] = np.nan
    dataset[RAIN].values[0, 0, :3] = [0.5, 0.004, 327]
    in_zarr = Archive.open(write(tmp_path / "a.zarr", dataset, title="both"))
    in_netcdf = Archive.open(write(tmp_path / "a.nc", dataset, PartWriter, title="both"))
    np.testing.assert_array_equal(in_zarr.read(0, 19), in_netcdf.read(0, 19))
    np.testing.assert_array_equal(in_zarr.read_codes(0, 19), in_netcdf.read_codes(0, 19))
    np.testing.assert_array_equal(in_zarr.coverage, in_netcdf.coverage)
    np.testing.assert_array_equal(in_zarr.missing_times, dataset.missing_times)
    assert in_zarr.identity == in_netcdf.identity
    assert in_zarr.grid.same_as(in_netcdf.grid)
    for archive in (in_zarr, in_netcdf):
        assert archive.rain_attrs["cell_methods"] == "time: mean" and archive.attrs["title"] == "both"


def test_codes_are_their_own_floats(tmp_path: Path) -> None:
    """Every code that an archive may hold, there and back."""
    dataset = mock_archive(1, 300, 109)
    codes = np.arange(32700, dtype=np.int16).reshape(1, 300, 109)
    dataset[RAIN].values[:] = codes * 0.01
    np.testing.assert_array_equal(Archive.open(write(tmp_path / "a.zarr", dataset)).read_codes(0, 1), codes)


def test_a_store_that_grew_is_byte_for_byte_one_written_in_one_go(tmp_path: Path) -> None:
    dataset = mock_archive(12, missing=(2,))
    whole = content(write(tmp_path / "whole.zarr", dataset))
    first = write(tmp_path / "a.zarr", dataset.isel(time=[0, 4, 5, 9]))
    old = Archive.open(first)
    # the grid of what is there, whose projection was written and read
    with ZarrPartWriter(first, old.grid, step_minutes=5.0, cell_methods="time: mean") as part:
        for number, time in enumerate(dataset.time.values):
            if time in old.times:
                at = int(np.searchsorted(old.times, time))
                part.copy(old, at, at + 1)
            else:
                part.add(time, dataset[RAIN].values[number])
    assert content(first) == whole
    assert list(tmp_path.glob(".*")) == []


def test_a_store_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, *_):
        raise OSError("disk full")

    store = write(tmp_path / "a.zarr", mock_archive(3))
    before = content(store)
    for step in ("_append", "_write_times", "_check_whole"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(ZarrPartWriter, step, fail)
            write(store, mock_archive(3, seed=1))
        assert content(store) == before and list(tmp_path.iterdir()) == [store]
    with pytest.raises(ValueError, match="mm/h is over 327"):
        write(store, mock_archive(3) + 328)
    assert content(store) == before and list(tmp_path.iterdir()) == [store]
    with ZarrPartWriter(tmp_path / "empty.zarr", schema.mock_grid(), step_minutes=5.0):
        pass
    assert list(tmp_path.iterdir()) == [store]


def test_of_two_writers_of_one_store_the_later_wins_and_the_other_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, path = mock_archive(4), tmp_path / "a.zarr"
    times, rain = dataset.time.values, dataset[RAIN].values
    with (
        pytest.raises((OSError, KeyError)),
        ZarrPartWriter(path, schema.mock_grid(), step_minutes=5.0) as slow,
    ):
        slow.add(times[0], rain[0])
        monkeypatch.setattr("os.getpid", lambda: -1)  # another process
        write(path, dataset)
        slow.add(times[1], rain[1])
    assert Archive.open(path).num_times == 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for number in range(3):
        new = tmp_path / ".new"
        new.mkdir()
        (new / str(number)).touch()
        put_in_place(new, tmp_path / "a.zarr")
        assert [p.name for p in tmp_path.rglob("*")] == ["a.zarr", str(number)]


def test_what_stepped_aside_comes_back_unless_the_new_one_came(tmp_path: Path) -> None:
    (tmp_path / ".a.zarr.aside/old").mkdir(parents=True)
    (tmp_path / ".b.zarr.aside/old").mkdir(parents=True)
    (tmp_path / "b.zarr/new").mkdir(parents=True)
    restore(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.zarr",
        "a.zarr/old",
        "b.zarr",
        "b.zarr/new",
    ]


def test_nothing_is_held_but_a_frame(tmp_path: Path) -> None:
    import tracemalloc

    rain, peaks = mock_archive(1, 300, 280)[RAIN].values[0], []
    times = np.datetime64("2026-01-01", "ns") + np.timedelta64(5, "m") * np.arange(60)
    for num in (6, 60):
        tracemalloc.start()
        with ZarrPartWriter(tmp_path / f"{num}.zarr", schema.mock_grid(300, 280), step_minutes=5.0) as part:
            for time in times[:num]:
                part.add(time, rain)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10 * rain.nbytes  # sixty frames are not held


def test_lat_lon_grids_have_no_second_pair_and_areas_may_cross_the_date_line(tmp_path: Path) -> None:
    rain = mock_archive(1)[RAIN].values[0]
    grids = {
        "degrees": schema.Grid(50 - 0.01 * np.arange(12.0), 5 + 0.01 * np.arange(10.0), CRS(4326).to_wkt()),
        "fiji": schema.Grid(8e6 - 1e3 * np.arange(12.0), 2e6 + 1e5 * np.arange(10.0), CRS(3460).to_wkt()),
    }
    bounds = {}
    for name, grid in grids.items():
        with ZarrPartWriter(tmp_path / f"{name}.zarr", grid, step_minutes=5.0) as part:
            part.add(np.datetime64("2026-01-01", "ns"), rain)
        archive = Archive.open(tmp_path / f"{name}.zarr")
        np.testing.assert_array_equal(archive.read(0, 1)[0], rain)
        assert archive.grid.same_as(grid)
        bounds[name] = CRS.from_wkt(archive.grid.crs_wkt).area_of_use.bounds
    assert not (tmp_path / "degrees.zarr/lat").exists()
    assert bounds["degrees"] == pytest.approx((5, 49.89, 5.09, 50), abs=0.011)
    west, _, east, _ = bounds["fiji"]
    assert 178 < west < 180 and -176 < east < -170


def of_others(**attrs) -> xr.Dataset:
    """As others publish it: floats, SI-like units, lat and lon, times of two steps, the regular ones from #6 on."""
    data = mock_archive(20).rename({RAIN: "rr"}).drop_vars("missing_times")
    minutes = np.r_[np.arange(6) * 12, 80 + 5 * np.arange(14)]
    times = np.datetime64("2020-01-01", "ns") + minutes.astype("timedelta64[m]")
    data = data.assign_coords(time=times, lat=(("y", "x"), np.ones((12, 10))), lon=(("y", "x"), np.ones((12, 10))))
    data["rr"].attrs = {"standard_name": "rainfall_flux", "units": "kg m-2 h-1", "grid_mapping": "crs"}
    data.attrs = {"license": "CC-BY-SA-4.0"} | attrs
    return data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_of_others_are_read_from_where_their_step_is_regular(tmp_path: Path, zarr_format: int) -> None:
    data = of_others(consistent_timestep_start="2020-01-01T01:20")
    for name in ("a.zarr", "without_the_suffix"):
        data.to_zarr(
            tmp_path / name,
            zarr_format=zarr_format,
            consolidated=zarr_format == 2,
            encoding={"rr": {"chunks": (1, 12, 10), "dtype": "float32"}},
        )
        archive = Archive.open(tmp_path / name)
        assert (archive.num_times, archive.step_minutes) == (14, 5.0)
        np.testing.assert_array_equal(archive.read(2, 3, x=slice(1, 5)), data["rr"].values[8:11, :, 1:5])
    of_others().to_zarr(tmp_path / "b.zarr", zarr_format=zarr_format, consolidated=zarr_format == 2)
    with pytest.raises(ValueError, match="times are off the step"):
        Archive.open(tmp_path / "b.zarr")


def test_the_start_may_name_its_zone() -> None:
    for start in ("2020-01-01T01:20:00Z", "2020-01-01T01:20+00:00", "2020-01-01T01:20:00.000000000"):
        assert schema.regular_part(of_others(consistent_timestep_start=start)).sizes["time"] == 14
