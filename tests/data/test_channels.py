"""Channels beside the rain: what they hold, where and when, and how they turn with the crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.data.channels import Coverage, DayAngle, Observed, RadarDistance, SeasonAngle, Site, Sun
from raincast.data.channels.declared import Channels
from raincast.data.channels.field import Field
from raincast.data.dataset import WindowDataset, orient
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.schema import Grid, mock_archive
from raincast.transforms import LinearScaling

PLAIN = LinearScaling()
ALL = slice(None)


def lat_lon_grid(lat: np.ndarray, lon: np.ndarray) -> Grid:
    from pyproj import CRS

    return Grid(lat, lon, CRS.from_epsg(4326).to_wkt())


def site(grid: Grid) -> Site:
    return Site(grid, lambda: None, "the archive")


def minutes(*numbers: float) -> np.ndarray:
    return np.datetime64("2026-01-01", "ns") + np.array([schema.step_timedelta(n) for n in numbers])


def test_the_sun_stands_where_it_does() -> None:
    """Four points whose elevation is known: sin 90°, the tropic, the polar night, and the equator at 6 h."""
    grid = lat_lon_grid(np.array([80.0, 23.44, 0.0]), np.array([0.0, 90.0]))
    read = Sun().bind("sun", site(grid)).read
    june = read(np.array(["2026-06-21T12:02"], "datetime64[ns]"), ALL, ALL)[0]  # solar noon at Greenwich
    assert june[1, 0] == pytest.approx(1.0, abs=1e-4)
    assert june[0, 0] == pytest.approx(np.sin(np.radians(90 - 80 + 23.44)), abs=1e-3)
    # a quarter of the way round it is evening: cos H = 0 leaves sin φ sin δ
    assert june[1, 1] == pytest.approx(np.sin(np.radians(23.44)) ** 2, abs=1e-2)
    december = read(np.array(["2026-12-21T12:00"], "datetime64[ns]"), ALL, ALL)[0]
    assert december[0].max() < 0
    march = read(np.array(["2026-03-20T06:07"], "datetime64[ns]"), ALL, ALL)[
        0
    ]  # the equinox, by the equation of time
    assert march[2, 0] == pytest.approx(0.0, abs=0.01)


def test_day_and_season_are_angles() -> None:
    grid = lat_lon_grid(np.array([50.0, 51.0]), np.array([0.0, 90.0]))
    times = np.array(["2026-01-01T06:00", "2026-07-02T12:00"], "datetime64[ns]")
    day = {part: DayAngle(part).bind("day", site(grid)).read(times, ALL, ALL) for part in ("sin", "cos")}
    # at 6 h UTC the local time is 6 h at Greenwich and 12 h a quarter to the east
    np.testing.assert_allclose(day["sin"][0, 0], [1, 0], atol=1e-5)
    np.testing.assert_allclose(day["cos"][0, 0], [0, -1], atol=1e-5)
    np.testing.assert_allclose(day["cos"][1, 0], [-1, 0], atol=1e-5)
    season = {part: SeasonAngle(part).bind("season", site(grid)).read(times, ALL, ALL) for part in ("sin", "cos")}
    assert season["sin"].shape == (2, 2, 2)
    # a quarter of a day, and half of a year of 365 days
    np.testing.assert_allclose(season["sin"][:, 0, 0], [np.sin(2 * np.pi * 0.25 / 365), 0], atol=1e-6)
    np.testing.assert_allclose(season["cos"][:, 0, 0], [1, -1], atol=1e-4)


def test_the_distance_to_the_nearest_radar_is_that_of_the_globe() -> None:
    from pyproj import Geod

    grid = lat_lon_grid(np.linspace(55, 50, 6), np.linspace(3, 8, 5))
    radars = [[52.1, 5.2], [54.0, 7.0]]
    found = RadarDistance(radars).bind("distance", site(grid)).read(minutes(0), ALL, ALL)[0]
    lon, lat = np.meshgrid(grid.x, grid.y)
    globe = Geod(a=6371000.0, b=6371000.0)
    each = [globe.inv(lon, lat, np.full_like(lon, r[1]), np.full_like(lat, r[0]))[2] / 1000 for r in radars]
    np.testing.assert_allclose(found, np.minimum(*each), atol=0.1)
    with pytest.raises(ValueError, match=r"radars=\[\[152.0, 5.0\]\]: give \[latitude, longitude\]"):
        RadarDistance([[152.0, 5.0]])
    with pytest.raises(ValueError, match=r"give \[latitude, longitude\] of each, in this order"):
        RadarDistance([[10.0, 53.0]]).bind("distance", site(schema.mock_grid()))


def write_field(path: Path, values: np.ndarray, times: np.ndarray | None, grid: Grid, name: str = "cape") -> Path:
    coords = grid.to_coords()
    dims = (schema.TIME, schema.Y, schema.X)[3 - values.ndim :]
    field = xr.Dataset({name: (dims, values.astype(np.float32), {"grid_mapping": "crs"})}, coords=coords)
    if times is not None:
        field = field.assign_coords({schema.TIME: times})
    path.parent.mkdir(exist_ok=True)
    field.to_netcdf(path)
    return path


GRID = schema.mock_grid()
RAMP = np.arange(120.0).reshape(12, 10)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # values of 0, 10 and 30 at 0, 30 and 60 minutes; nothing between 60 and 180
        ("previous", [np.nan, 0, 0, 10, 30, 30, np.nan, 180]),
        ("nearest", [0, 0, 10, 10, 30, 30, np.nan, 180]),
        ("linear", [np.nan, 0, 20 / 3, 10, 30, np.nan, np.nan, 180]),
    ],
)
def test_a_field_with_a_step_of_its_own_is_read_at_any_time(method: str, expected: list, tmp_path: Path) -> None:
    own = minutes(0, 30, 60, 180)
    values = np.array([0, 10, 30, 180.0])[:, None, None] + 0 * RAMP
    for number, part in enumerate((slice(0, 2), slice(2, 4))):  # two files, as of a weather model
        write_field(tmp_path / f"{number}.nc", values[part], own[part], GRID)
    field = Field(f"{tmp_path}/*.nc", "cape", "future", PLAIN, time_method=method)
    asked = minutes(-10, 0, 20, 30, 60, 90, 120, 180)
    found = field.bind("cape", site(GRID)).read(asked, slice(2, 5), slice(1, 3))
    assert found.shape == (8, 3, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-6)
    assert (np.isnan(found) == np.isnan(found[:, :1, :1])).all()


def test_files_of_a_field_are_found_as_those_of_ingest(tmp_path: Path) -> None:
    for number in range(2):
        write_field(tmp_path / f"{number}/a.nc", number + RAMP[None], minutes(60 * number), GRID)
    for path in (f"{tmp_path}/0/*,{tmp_path}/1/*", f"{tmp_path}/0/a.nc {tmp_path}/1/a.nc", f"{tmp_path}/**/*.nc"):
        found = Field(path, "cape", "past", PLAIN).bind("cape", site(GRID)).read(minutes(0, 60), ALL, ALL)
        np.testing.assert_array_equal(found, [RAMP, RAMP + 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"channels\.cape\.path=.*empty is a folder without \.nc files"):
        Field(f"{tmp_path}/empty", "cape", "past", PLAIN).bind("cape", site(GRID))
    with pytest.raises(FileNotFoundError, match=r"No file matches channels\.cape\.path=.*, nor '.*/2/\*' of it"):
        Field(f"{tmp_path}/0/*,{tmp_path}/2/*", "cape", "past", PLAIN).bind("cape", site(GRID))


def test_a_field_whose_longitudes_jump_at_the_date_line_lies_on_a_grid_that_goes_on(tmp_path: Path) -> None:
    across = lat_lon_grid(np.linspace(-16, -17, 12), np.linspace(179.5, 180.4, 10))
    jumps = Grid(across.y, np.where(across.x > 180, across.x - 360, across.x), across.crs_wkt)
    write_field(tmp_path / "a.nc", RAMP, None, jumps)
    found = Field(f"{tmp_path}/a.nc", "cape", "static", PLAIN).bind("cape", site(across))
    np.testing.assert_array_equal(found.read(minutes(0), ALL, ALL)[0], RAMP)


def test_a_field_the_other_way_up_and_in_km_is_turned(tmp_path: Path) -> None:
    write_field(
        tmp_path / "a.nc", RAMP[::-1, ::-1], None, Grid(GRID.y[::-1], GRID.x[::-1], GRID.crs_wkt), "height"
    )
    with xr.open_dataset(tmp_path / "a.nc") as turned:
        km = turned.load().assign_coords(y=turned.y / 1000, x=turned.x / 1000)
    for axis in ("y", "x"):
        km[axis].attrs["units"] = "km"
    km.to_netcdf(tmp_path / "b.nc")
    for name in "ab":
        read = Field(str(tmp_path / f"{name}.nc"), "height", "static", PLAIN).bind("terrain", site(GRID)).read
        np.testing.assert_array_equal(read(minutes(0), slice(3, 7), slice(2, 10))[0], RAMP[3:7, 2:10])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "none.nc"}, r"No file matches channels\.cape\.path=none\.nc"),
        ({"variable": "cap"}, r"there is no variable cap, but cape. Set channels\.cape\.variable=…"),
        ({"role": "static"}, r"channels\.cape is static, but .* has several times"),
        ({"role": "past", "time_method": "linear"}, "after the newest input frame.*Use previous"),
        ({"role": "time"}, "a variable of a file is past, future or static"),
    ],
)
def test_a_field_that_is_not_there_or_looks_ahead_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    path = write_field(tmp_path / "a.nc", np.zeros((3, 12, 10)), minutes(0, 30, 60), GRID)
    given = {"path": str(path), "variable": "cape", "role": "past", "transform": PLAIN} | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Field(**given).bind("cape", site(GRID))


def test_a_field_on_another_grid_is_refused(tmp_path: Path) -> None:
    path = write_field(tmp_path / "a.nc", RAMP, None, Grid(GRID.y + 500, GRID.x, GRID.crs_wkt))
    with pytest.raises(ValueError, match=r"cape is on a grid of 12×10 pixels .*reproject_match"):
        Field(str(path), "cape", "static", PLAIN).bind("cape", site(GRID))


def test_coverage_is_the_archives(tmp_path: Path) -> None:
    write_part(mock_archive(4), tmp_path / "a.nc")
    archive = Archive.open(tmp_path)
    expected = np.ones((12, 10))
    expected[:2, :2] = 0
    found = Coverage().bind("coverage", Site.of(archive)).read(minutes(0), ALL, ALL)[0]
    np.testing.assert_array_equal(found, expected)
    # of files that do not say it, from an archive of the same grid
    elsewhere = Coverage(str(tmp_path)).bind("coverage", site(archive.grid)).read(minutes(0), ALL, ALL)[0]
    np.testing.assert_array_equal(elsewhere, expected)
    with pytest.raises(ValueError, match=r"does not state its coverage.*channels\.coverage\.path=…"):
        Coverage().bind("coverage", site(archive.grid))


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> WindowDataset:
    """26 frames, a wind of 2 along x and 1 along y with one component more each 5 minutes, terrain and the sun."""
    folder = tmp_path_factory.mktemp("channels")
    (folder / "archive").mkdir()
    write_part(mock_archive(26), folder / "archive" / "a.nc")
    times = minutes(*range(0, 26 * 5, 5))
    steps = np.arange(26.0)[:, None, None] + 0 * RAMP
    write_field(folder / "u.nc", 2 + steps + RAMP, times, GRID, "u")
    write_field(folder / "v.nc", 1 + steps - RAMP, times, GRID, "v")
    write_field(folder / "h.nc", RAMP, None, GRID, "height")
    channels = Channels(
        {
            "wind_x": Field(str(folder / "u.nc"), "u", "future", PLAIN, vector="wind.x"),
            "observed": Observed(),
            "terrain": Field(str(folder / "h.nc"), "height", "static", PLAIN),
            "sun": Sun(),
            "wind_y": Field(str(folder / "v.nc"), "v", "future", PLAIN, vector="wind.y"),
        }
    )
    archive = Archive.open(folder / "archive")
    return WindowDataset([Source(archive, 3, 4, channels=channels.bind(Site.of(archive)))])


def test_a_sample_holds_the_channels_of_its_place_and_times(windows: WindowDataset) -> None:
    sample = windows.sample(Place(start=5, y=2, x=1, height=6, width=8))
    # frames 5, 6, 7 go in and 8 to 11 are forecast
    np.testing.assert_array_equal(sample["past"][:, 0], 2 + np.arange(5, 8)[:, None, None] + RAMP[2:8, 1:9])
    np.testing.assert_array_equal(sample["future"][:, 0], 2 + np.arange(8, 12)[:, None, None] + RAMP[2:8, 1:9])
    np.testing.assert_array_equal(sample["future"][:, 1], 1 + np.arange(8, 12)[:, None, None] - RAMP[2:8, 1:9])
    channels = windows.sources[0].channels
    assert channels is not None
    names = channels.channels
    assert names.past == ("wind_x", "sun", "wind_y") and names.static == ("terrain",) and names.observed
    assert [c["name"] for c in names.describe()] == ["rain", "observed", "wind_x", "sun", "wind_y", "terrain"]
    assert sample["past"].shape == (3, 4, 6, 8) and sample["future"].shape == (4, 2, 6, 8)
    for step in range(3):
        np.testing.assert_array_equal(sample["past"][step, 3], RAMP[2:8, 1:9])
    assert sample["past"][:, 1].min() > -1 and sample["past"][:, 1].max() < 0  # night at 0:30


def test_channels_turn_with_the_rain_and_vectors_by_their_own_angle(windows: WindowDataset) -> None:
    """Against the definition: a vector leads from one pixel to another, and leads there still when both are turned."""
    plain = windows.sample(Place(5, 1, 1, 8, 8))
    grid = windows.sources[0].archive.grid
    columns, rows = np.sign(grid.x[1] - grid.x[0]), np.sign(grid.y[1] - grid.y[0])
    numbers = np.arange(64).reshape(8, 8)
    for k in range(8):
        turned = windows.sample(Place(5, 1, 1, 8, 8, k))
        np.testing.assert_array_equal(turned["past"][:, 3], orient(plain["past"][:, 3].numpy(), k))
        where = {int(n): np.array(place) for place, n in np.ndenumerate(orient(numbers, k))}
        for (row, column), (east, south) in (((3, 3), (1, 0)), ((3, 3), (0, 1))):
            # one pixel along the columns or rows, as the vector points in the plain crop
            moved = where[int(numbers[row + south, column + east])] - where[int(numbers[row, column])]
            u, v = plain["future"][0, :, row, column].tolist()
            there = where[int(numbers[row, column])]
            found_u, found_v = turned["future"][0, :, there[0], there[1]].tolist()
            along = u * columns * east + v * rows * south
            assert found_v * rows * moved[0] + found_u * columns * moved[1] == pytest.approx(along)


def test_oblong_crops_turn_their_vectors_by_half_turns(windows: WindowDataset) -> None:
    plain, turned = (windows.sample(Place(5, 1, 1, 6, 8, k))["future"].numpy() for k in (0, 4))
    np.testing.assert_array_equal(turned, plain)
    turned = windows.sample(Place(5, 1, 1, 6, 8, 2))["future"].numpy()  # a quarter became a half
    np.testing.assert_array_equal(turned, -plain[..., ::-1, ::-1])


def test_batches_of_channels_are_stacked_alike_by_workers(windows: WindowDataset) -> None:
    from torch.utils.data import DataLoader

    places = [Place(i, i % 4, i % 3, 6, 6, i % 8) for i in range(4)]
    for num_workers in (0, 1):
        batch = windows.decode(
            next(iter(DataLoader(windows, batch_size=4, sampler=places, num_workers=num_workers)))
        )
        for number, place in enumerate(places):
            for name in ("past", "future"):
                assert torch.equal(batch[name][number], windows.sample(place)[name])


def test_half_a_vector_is_refused(tmp_path: Path) -> None:
    u = Field("u.nc", "u", "future", PLAIN, vector="wind.x")
    for declared in ({"u": u}, {"u": u, "v": Field("v.nc", "v", "past", PLAIN, vector="wind.y")}):
        with pytest.raises(ValueError, match="The vector wind of data.channels needs both"):
            Channels(declared)
    with pytest.raises(ValueError, match=r"data\.channels\.u\.vector=wind: write wind\.x"):
        Channels({"u": Field("u.nc", "u", "future", PLAIN, vector="wind")})
