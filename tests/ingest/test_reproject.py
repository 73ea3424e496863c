"""Area means on another projection: what stays, what is missing, and where it lies."""

from pathlib import Path

import numpy as np
import pytest
from checking import check_encoded
from pyproj import CRS, Transformer

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.readers.cf import CF
from raincast.ingest.region import Region
from raincast.ingest.reproject import Weights, target_grid, weights_between
from raincast.schema import Grid

NAN = np.nan
# equal-area projections with other middles: an area is the same on both
EUROPE, ALPS = "EPSG:3035", "+proj=laea +lat_0=46 +lon_0=2 +ellps=GRS80 +units=m"


def grid_of(
    crs: str, height: int = 120, width: int = 100, *, lon: float = 8, lat: float = 50, size: float = 1000
) -> Grid:
    """A grid about a place, y descending."""
    crs_wkt = CRS.from_user_input(crs).to_wkt()
    x, y = Transformer.from_crs("EPSG:4326", crs_wkt, always_xy=True).transform(lon, lat)
    return Grid(
        y + size * (height / 2 - 0.5 - np.arange(height)), x + size * (np.arange(width) - width / 2 + 0.5), crs_wkt
    )


def storms(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Rain that is gone before the edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    rain = np.zeros(shape)
    for _ in range(12):
        middle, size = rng.uniform(0.25, 0.75, 2), rng.uniform(0.005, 0.05)
        rain += rng.gamma(2, 5) * np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / (2 * size**2))
    return rain.astype(np.float32)


@pytest.mark.parametrize("flip", [(1, 1), (-1, 1), (1, -1)])
@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:4326", schema.MOCK_CRS_PROJ])
def test_on_their_own_grid_images_stay_what_they_are(crs: str, flip: tuple[int, int]) -> None:
    grid = grid_of(crs, 40, 30, size=0.01 if crs == "EPSG:4326" else 1000)
    grid = Grid(grid.y[:: flip[0]], grid.x[:: flip[1]], grid.crs_wkt)
    rain = storms(grid.shape)
    rain[3:5, 4:9] = NAN
    np.testing.assert_array_equal(Weights(grid, grid).mean(rain), rain)
    # the same grid in other words and from top to bottom, as `target_grid` makes it
    step = abs(grid.y[1] - grid.y[0])
    bounds = [f(axis) + sign * step / 2 for axis in (grid.y, grid.x) for f, sign in ((np.min, -1), (np.max, 1))]
    again = target_grid(grid, crs, step, tuple(bounds))
    assert again.same_as(Grid(-np.sort(-grid.y), np.sort(grid.x), grid.crs_wkt))
    np.testing.assert_array_equal(Weights(grid, again).mean(rain), rain[:: flip[0], :: flip[1]])


@pytest.mark.parametrize("spacing", [500, 1000, 2000, 5000, 10_000])
def test_the_total_rain_stays(spacing: float) -> None:
    source = grid_of(EUROPE)
    target = target_grid(source, ALPS, spacing)
    rain = storms(source.shape)
    means = Weights(source, target).mean(rain)
    assert np.nanmin(means) >= 0
    before, after = rain.sum(dtype=float) * 1000**2, np.nansum(means, dtype=float) * spacing**2
    assert after == pytest.approx(before, rel=0.002)


def test_a_constant_stays_and_a_plane_is_where_it_was() -> None:
    source, target_crs = grid_of(EUROPE), schema.MOCK_CRS_PROJ
    target = target_grid(source, target_crs, 3000)
    weights = Weights(source, target)
    constant = weights.mean(np.full(source.shape, 0.5, np.float32))
    assert 0.7 < np.isfinite(constant).mean() < 1 and (constant[np.isfinite(constant)] == 0.5).all()
    # a plane over the source's coordinates, in mm/h a kilometre; its area mean is its value in the middle
    to_source = Transformer.from_crs(target.crs_wkt, source.crs_wkt, always_xy=True)
    x, y = to_source.transform(*np.meshgrid(target.x, target.y))

    def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 100 + 0.3 * (x - source.x[0]) / 1000 + 0.2 * (source.y[0] - y) / 1000

    means = weights.mean(plane(*np.meshgrid(source.x, source.y)).astype(np.float32))
    inside = (x > source.x[3]) & (x < source.x[-4]) & (y < source.y[3]) & (y > source.y[-4])
    # from one source pixel to the next it rises by 0.36: the points know where they end to a quarter of one
    np.testing.assert_allclose(means[inside], plane(x, y)[inside], atol=0.12)
    assert abs((means[inside] - plane(x, y)[inside]).mean()) < 0.003  # and err to no side


def test_means_against_loops_over_points() -> None:
    """Each new pixel's points, one by one, transformed exactly."""
    source, rng = grid_of(EUROPE, 30, 40), np.random.default_rng(0)
    target = target_grid(source, "EPSG:4326", 0.031)
    rain = rng.gamma(0.3, 4, source.shape).astype(np.float32)
    rain[rng.random(source.shape) < 0.4] = NAN
    weights = Weights(source, target)
    means, k = weights.mean(rain), weights.points
    to_source = Transformer.from_crs(target.crs_wkt, source.crs_wkt, always_xy=True)
    offsets = ((np.arange(k) + 0.5) / k - 0.5) * 0.031
    num_missing = 0
    for (row, column), mean in np.ndenumerate(means):
        lon, lat = np.meshgrid(target.x[column] + offsets, target.y[row] + offsets)
        x, y = to_source.transform(lon, lat)
        at = (
            np.floor((source.y[0] + 500 - y) / 1000).astype(int),
            np.floor((x - source.x[0] + 500) / 1000).astype(int),
        )
        inside = (at[0] >= 0) & (at[0] < 30) & (at[1] >= 0) & (at[1] < 40)
        rates = np.full((k, k), NAN)
        rates[inside] = rain[at[0][inside], at[1][inside]]
        if np.isfinite(rates).mean() < 0.5:
            assert np.isnan(mean)
            num_missing += 1
        else:
            np.testing.assert_allclose(mean, np.nanmean(rates), rtol=1e-5)
    assert 0.1 < num_missing / means.size < 0.9


def test_half_observed_is_enough() -> None:
    source = grid_of(EUROPE, 8, 8)
    bounds = source.y[-1] - 500, source.y[0] + 500, source.x[0] - 500, source.x[-1] + 500
    rain = np.arange(64, dtype=np.float32).reshape(8, 8)
    rain[:2, :2] = [[NAN, NAN], [3, 5]]
    rain[:2, 2:4] = [[NAN, NAN], [3, NAN]]
    means = Weights(source, target_grid(source, EUROPE, 2000, bounds)).mean(rain)
    assert means.shape == (4, 4) and means[0, 0] == 4 and np.isnan(means[0, 1])
    np.testing.assert_array_equal(means[1:], Region(coarsen=2).mean(rain)[1:])


def test_many_tiles_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    source = grid_of(EUROPE)
    target, rain = target_grid(source, "EPSG:3857", 1500), storms(source.shape)
    whole = Weights(source, target).mean(rain)
    monkeypatch.setattr("raincast.ingest.reproject.TILE_POINTS", 5000)
    tiled = Weights(source, target)
    assert len(tiled._tiles) > 20
    np.testing.assert_array_equal(tiled.mean(rain), whole)


@pytest.mark.parametrize(
    "crs",
    [
        *(
            "EPSG:4326",
            "EPSG:4258",
            "EPSG:32632",
            "EPSG:2056",
            "EPSG:28992",
            "EPSG:27700",
            "EPSG:3413",
            "EPSG:3857",
        ),
        *("EPSG:2263", "ESRI:54030", "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180"),
        *(
            "+proj=geos +h=35785831 +lon_0=0",
            "+proj=gnom +lat_0=50 +lon_0=8",
            "+proj=aeqd +lat_0=52 +lon_0=5 +units=km",
        ),
    ],
)
def test_any_projection(crs: str) -> None:
    """There and back, over a blob: the middle stays where it was, and the rain over it."""
    source = grid_of(EUROPE, 60, 60)
    y, x = np.mgrid[-30:30, -30:30] + 0.5
    rain = (20 * np.exp(-(y**2 + x**2) / 2 / 8**2)).astype(np.float32)
    definition = CRS.from_user_input(crs)
    unit = 1.0 if definition.is_geographic else definition.axis_info[0].unit_conversion_factor
    spacing = 0.005 if definition.is_geographic or "ob_tran" in crs else 500 / unit
    middle = target_grid(source, crs, spacing)
    assert min(middle.shape) > 50
    schema.check_archive(
        schema.rain_dataset(
            np.zeros((1, *middle.shape), np.float32),
            np.array(["2026-01-01"], "datetime64[ns]"),
            middle,
            step_minutes=5,
            cell_methods="time: point",
        )
    )
    back = Weights(middle, source).mean(Weights(source, middle).mean(rain))
    inside = rain > 1
    assert np.isfinite(back[inside]).all()
    assert back.flat[np.nanargmax(back)] == pytest.approx(20, rel=0.05)
    np.testing.assert_allclose(back[inside], rain[inside], atol=2.0)
    assert np.nansum(back) == pytest.approx(rain.sum(), rel=0.02)


def test_lat_lon_images_across_the_date_line() -> None:
    source = Grid(-18 + 0.01 * np.arange(60, 0, -1.0), 179.5 + 0.01 * np.arange(100.0), CRS(4326).to_wkt())
    rain = np.full(source.shape, 2, np.float32)
    target = target_grid(source, "EPSG:3460", 2000)  # Fiji
    means = Weights(source, target).mean(rain)
    assert target.shape[1] < 60 and np.isfinite(means).mean() > 0.9
    back = target_grid(target, "EPSG:4326", 0.02)
    assert back.shape[1] < 70 and back.x[0] < 180 < back.x[-1]
    assert np.isfinite(Weights(target, back).mean(means)).mean() > 0.8


def test_the_grid_reaches_over_the_image_with_edges_at_multiples() -> None:
    source = grid_of(EUROPE)
    grid = target_grid(source, ALPS, 2000)
    np.testing.assert_allclose((grid.y - 1000) % 2000, 0)
    assert (np.diff(grid.y) == -2000).all() and (np.diff(grid.x) == 2000).all()
    x, y = Transformer.from_crs(source.crs_wkt, grid.crs_wkt, always_xy=True).transform(
        *np.meshgrid(source.x, source.y)
    )
    # over the middles of all pixels, and no further than their edges and a pixel of its own
    assert grid.y[0] + 1000 >= y.max() > grid.y[0] - 2000 and grid.x[0] - 1000 <= x.min() < grid.x[0] + 2000
    # a projection restated by a metre of the Earth's radius leaves the grid as it is
    radii = (
        target_grid(grid_of(f"+proj=laea +lat_0=52 +lon_0=10 +R={r}"), ALPS, 2000) for r in (6371000, 6371001)
    )
    one, other = radii
    assert one.same_as(other)
    in_feet = target_grid(source, "EPSG:2263", 6561.679)
    assert abs(in_feet.x[1] - in_feet.x[0]) == pytest.approx(2000, rel=1e-4)


def test_weights_are_made_once() -> None:
    source = grid_of(EUROPE, 20, 20)
    one = weights_between(source, target_grid(source, ALPS, 2000))
    copy = Grid(source.y.copy(), source.x.copy(), source.crs_wkt)
    assert weights_between(copy, target_grid(copy, ALPS, 2000)) is one
    assert weights_between(copy, target_grid(copy, ALPS, 4000)) is not one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing": 1000}, r"grid\.spacing=1000 needs another projection: name it with grid\.reproject"),
        ({"bounds": (0, 1, 0, 1)}, r"grid\.bounds=.* needs another projection"),
        ({"reproject": EUROPE}, r"grid\.spacing=None must be over 0"),
        ({"reproject": EUROPE, "spacing": -1}, r"grid\.spacing=-1 must be over 0"),
        ({"reproject": "EPSG:1", "spacing": 1}, "pyproj knows no projection"),
        ({"reproject": EUROPE, "spacing": 1, "bounds": (1, 0, 0, 1)}, r"must be \[y0,y1,x0,x1\] in units"),
        ({"reproject": EUROPE, "spacing": 1, "bounds": 5}, r"must be \[y0,y1,x0,x1\]"),
    ],
)
def test_wrong_projections_are_refused_before_a_file_is_touched(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ingest("nowhere/*.nc", "nowhere", CF(), **arguments)


def test_spacings_of_other_units_are_refused() -> None:
    source = grid_of(EUROPE)
    with pytest.raises(ValueError, match=r"grid\.spacing=2000 \(degrees\) makes .* from y=49\.4.* at least 2 × 2"):
        target_grid(source, "EPSG:4326", 2000)
    with pytest.raises(ValueError, match="at most 1e"):
        target_grid(source, ALPS, 0.01)
    with pytest.raises(ValueError, match="lie outside the projection"):
        target_grid(source, "+proj=geos +h=35785831 +lon_0=180", 1000)


def test_an_archive_on_another_projection_goes_on_with_it_alone(tmp_path: Path) -> None:
    for number, start in enumerate(("2026-01-01T00:00", "2026-01-01T00:30")):
        schema.mock_archive(6, 40, 30, start=start).to_netcdf(tmp_path / f"{number}.nc", engine="netcdf4")
    choice = {"crop": (0, 40, 0, 28), "coarsen": 2, "reproject": 3035, "spacing": 2000}
    ingest(tmp_path / "0.nc", tmp_path / "out", CF(), **choice)
    for other in ({"spacing": 4000}, {"reproject": ALPS}, {"bounds": (3e6, 3.1e6, 4e6, 4.1e6)}, {"coarsen": 4}):
        with pytest.raises(ValueError, match=f"grid.{next(iter(other))}: .* in the archive, .* now"):
            ingest(tmp_path / "1.nc", tmp_path / "out", CF(), **choice | other)
    with pytest.raises(ValueError, match='grid.reproject: "EPSG:3035" in the archive, null now'):
        ingest(tmp_path / "1.nc", tmp_path / "out", CF())
    ingest(tmp_path / "1.nc", tmp_path / "out", CF(), **choice | {"reproject": EUROPE})
    archive = Archive.open(tmp_path / "out")
    assert archive.num_times == 12
    with_cf = CF().read(tmp_path / "1.nc")[schema.RAIN]
    own = Region((0, 40, 0, 28), 2).mean(with_cf.values[2, :, :28])
    coarse = Region((0, 40, 0, 28), 2).grid(CF().scan(tmp_path / "1.nc").grid)
    expected = Weights(coarse, archive.grid).mean(own)
    check_encoded(archive.read(8, 1)[0], expected)
    np.testing.assert_array_equal(archive.coverage, np.isfinite(archive.read(0, 12)).any(axis=0))


def test_archives_from_before_there_was_a_choice_go_on(tmp_path: Path) -> None:
    import json

    import netCDF4

    for number, start in enumerate(("2026-01-01T00:00", "2026-01-01T00:30")):
        schema.mock_archive(6, start=start).to_netcdf(tmp_path / f"{number}.nc", engine="netcdf4")
    ingest(tmp_path / "0.nc", tmp_path / "out", CF())
    with netCDF4.Dataset(tmp_path / "out/2026-01-01.nc", "a") as file:
        settings = json.loads(file.raincast_config)
        del settings["attrs"]
        settings["grid"] = {"crop": None, "coarsen": 1}
        file.raincast_config = json.dumps(settings)
    with pytest.raises(ValueError, match="another grid"):
        ingest(tmp_path / "1.nc", tmp_path / "out", CF(), reproject=EUROPE, spacing=1000)
    ingest(tmp_path / "1.nc", tmp_path / "out", CF())
    assert Archive.open(tmp_path / "out").num_times == 12


@pytest.mark.radar
def test_real_knmi_keeps_its_rain(radar_dir: Path, tmp_path: Path) -> None:
    from pyproj import Proj

    files, totals = radar_dir / "knmi/20100826/*_20100826060?.h5", []
    for name, choice in {"own": {}, "laea": {"reproject": EUROPE, "spacing": 2000.0}}.items():
        from raincast.ingest.readers.knmi import KNMI

        ingest(files, tmp_path / name, KNMI(), **choice)
        archive = Archive.open(tmp_path / name)
        projection = Proj(archive.grid.crs_wkt)
        lon, lat = projection(*np.meshgrid(archive.grid.x, archive.grid.y), inverse=True)
        area = abs(np.diff(archive.grid.x)[0]) ** 2 / projection.get_factors(lon, lat).areal_scale
        totals.append(float(np.nansum(archive.read(0, 1)[0] * area)))
    assert totals[1] == pytest.approx(
        totals[0], rel=0.003
    )  # missing pixels at the radars' range are the most of it
