import dataclasses
import sys
import time

import numpy as np
import pytest
import xarray as xr
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from pyproj import CRS

from raincast import schema
from raincast.evaluation.report.score_figures import csi_plot, lead_curves, svg
from raincast.plotting import animation, rain_image
from raincast.plotting.map_lines import Graticule, coast_lines, coast_pixels, resolution
from raincast.plotting.pictures import DOTS_PER_INCH, forecast_animation, forecast_picture, save
from raincast.plotting.rain_image import MISSING_CLASS, RAIN_BOUNDARIES, RAIN_COLOURS, MapView
from raincast.schema import Grid

INIT = np.datetime64("2026-01-01T12:00")


def when(**more):
    return {"init_time": INIT, "step_minutes": 5.0} | more


def rgb(path, frame=0):
    with Image.open(path) as image:
        image.seek(frame)
        return np.asarray(image.convert("RGB")).astype(int)


def where(pixels, colour):
    """Rows and columns of the pixels of exactly this colour."""
    return np.nonzero((pixels == np.round(255 * np.array(to_rgb(colour)))).all(axis=-1))


def linear_luminance(colour):
    # relative luminance of sRGB, IEC 61966-2-1
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_each_colour_is_darker_than_the_one_before():
    # CIE lightness; a step of 5 is well visible side by side, with any colour vision
    lightness = [116 * np.cbrt(linear_luminance(c)) - 16 for c in (rain_image.DRY_COLOUR, *RAIN_COLOURS)]
    assert (np.diff(lightness) < -5).all()


def test_classes_and_colours_change_at_the_boundaries():
    at = np.array([[0.0, 0.09, *RAIN_BOUNDARIES, np.nan]], np.float32)
    np.testing.assert_array_equal(rain_image.rain_classes(at)[0], [0, 0, *range(1, 11), MISSING_CLASS])
    colours, norm = rain_image.rain_colours()
    drawn = colours(norm(np.ma.masked_invalid([0.05, 0.1, 0.5, 99.0, 100.0, np.nan])))
    expected = (rain_image.DRY_COLOUR, RAIN_COLOURS[0], RAIN_COLOURS[1], RAIN_COLOURS[8], RAIN_COLOURS[9])
    np.testing.assert_allclose(drawn[:5, :3], [to_rgb(c) for c in expected], atol=1e-6)
    assert drawn[5, 3] == 0  # missing is transparent: the hatching shows


def test_resampling_keeps_the_mean_and_the_missing():
    rain = np.random.default_rng(0).gamma(0.3, 4.0, (30, 40)).astype(np.float32)
    np.testing.assert_array_equal(rain_image.resample(rain, 30, 40), rain)
    blocks = rain.reshape(10, 3, 10, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(rain_image.resample(rain, 10, 10), blocks, rtol=1e-5)
    np.testing.assert_array_equal(rain_image.resample(rain, 60, 80), rain.repeat(2, 0).repeat(2, 1))
    rain[:15] = np.nan
    half = rain_image.resample(rain, 2, 1)
    assert np.isnan(half[0, 0]) and half[1, 0] == pytest.approx(rain[15:].mean(), rel=1e-5)


def grids():
    north_first = schema.mock_grid(40, 30)
    south_first = dataclasses.replace(north_first, y=north_first.y[::-1].copy())
    east_first = dataclasses.replace(north_first, x=north_first.x[::-1].copy())
    latlon = Grid(y=50 + 0.02 * np.arange(40), x=4 + 0.03 * np.arange(30), crs_wkt=CRS.from_epsg(4326).to_wkt())
    return {
        "north first": north_first,
        "south first": south_first,
        "east first": east_first,
        "lat/lon": latlon,
    }


@pytest.fixture(params=grids().values(), ids=grids().keys())
def grid(request):
    return request.param


def rain_in_the_north_west(grid, num_frames=3):
    """15 mm/h in the ninth of the map that is north and west."""
    north, west = grid.y > np.quantile(grid.y, 2 / 3), grid.x < np.quantile(grid.x, 1 / 3)
    frame = np.where(north[:, None] & west[None], 15.0, 0.0).astype(np.float32)
    return np.repeat(frame[None], num_frames, axis=0)


def test_north_is_up_in_pictures(grid, tmp_path):
    rain = rain_in_the_north_west(grid)
    path = forecast_picture(
        None, {"f": rain}, grid=grid, path=tmp_path / "a.png", leads_minutes=[5], graticule=False, **when()
    )
    pixels = rgb(path)
    rows, columns = where(pixels[:, : pixels.shape[1] // 2], RAIN_COLOURS[5])
    assert rows.size > 100
    # the map fills the left part: the block must lie in its upper left, above the white of the rest
    assert rows.max() < pixels.shape[0] * 0.55
    white_below = (pixels[rows.max() + 20, columns] == 255).all()
    assert white_below


def test_north_is_up_in_animations(grid, tmp_path):
    path = forecast_animation(None, rain_in_the_north_west(grid), grid=grid, path=tmp_path / "a.gif", **when())
    height, width = MapView.of(grid).fit(640)
    rows, columns = where(rgb(path)[:, : width // 2 + 8], RAIN_COLOURS[5])
    top, left = animation._HEADER, animation._MARGIN
    assert rows.min() == top and columns.min() == left
    assert rows.max() - top == pytest.approx(height / 3, rel=0.1)
    assert columns.max() - left == pytest.approx(width / 3, rel=0.1)


def test_a_pixel_lies_where_its_coordinates_say():
    grid = schema.mock_grid(4, 6)
    view = MapView.of(grid)
    # edges are half a pixel of 1 km outside the centres
    assert view.extent == pytest.approx((-300.5, -294.5, -4003.5, -3999.5))
    lon, lat = view.lonlat(2, 2)
    assert (lat[0] > lat[1]).all() and (lon[:, 0] < lon[:, 1]).all()


def test_longitudes_run_on_over_the_date_line():
    grid = Grid(y=np.linspace(-20, -10, 5), x=np.linspace(175, 185, 5), crs_wkt=CRS.from_epsg(4326).to_wkt())
    lon, _ = MapView.of(grid).lonlat(3, 9)
    assert (np.diff(lon, axis=1) > 0).all()


def frames(num, value, shape=(12, 10)):
    return np.full((num, *shape), value, np.float32)


@pytest.mark.parametrize("value", [0.0, np.nan, 500.0])
def test_dry_missing_and_extreme_frames_are_drawn(value, tmp_path):
    grid = schema.mock_grid()
    rain = frames(2, value)
    picture = forecast_picture(rain, {"f": rain}, grid=grid, path=tmp_path / "a.png", **when())
    moving = forecast_animation(rain, rain, grid=grid, path=tmp_path / "a.gif", observed=rain, **when())
    assert rgb(picture).std() > 0
    seen = where(rgb(moving)[60:200, 20:200], rain_image.MISSING_COLOUR)[0].size
    assert (seen > 0) == np.isnan(value)


def test_one_pixel_is_drawn(tmp_path):
    grid = schema.mock_grid(1, 1)
    rain = frames(1, 3.0, (1, 1))
    forecast_picture(None, {"f": rain}, grid=grid, path=tmp_path / "a.png", **when())
    path = forecast_animation(rain, rain, grid=grid, path=tmp_path / "a.gif", **when())
    assert where(rgb(path), RAIN_COLOURS[3])[0].size > 1000


def test_an_animation_has_past_and_forecast_frames(tmp_path):
    grid = schema.mock_grid()
    rain = frames(4, 0.0)
    path = forecast_animation(rain, rain[:3], grid=grid, path=tmp_path / "a.gif", observed=rain[:1], **when())
    with Image.open(path) as image:
        assert image.n_frames == 7
        assert image.info["loop"] == 0
    # the right half stays white in the frame that shows forecasts, the left is missing: not observed yet
    assert where(rgb(path, 6)[60:200, 20:200], rain_image.MISSING_COLOUR)[0].size > 1000
    assert where(rgb(path, 4)[60:200, 20:200], rain_image.MISSING_COLOUR)[0].size == 0


def test_an_mp4_is_played_by_another_program(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (the extra video)")
    import cv2

    grid = schema.mock_grid()
    path = forecast_animation(
        frames(2, 0.0), frames(3, 3.0), grid=grid, path=tmp_path / "a.mp4", max_pixels=301, **when()
    )
    gif = forecast_animation(
        frames(2, 0.0), frames(3, 3.0), grid=grid, path=tmp_path / "a.gif", max_pixels=301, **when()
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.mp4"]
    animation = cv2.VideoCapture(str(path))
    shown = []
    while (read := animation.read())[0]:
        shown.append(read[1][..., ::-1])
    assert animation.get(cv2.CAP_PROP_FPS) == 4
    # a rest of three before the forecast begins, and of six at the end
    assert len(shown) == 1 + 3 + 2 + 6
    height, width = rgb(gif).shape[:2]
    assert shown[0].shape == (height + height % 2, width + width % 2, 3)
    for number, same in ((0, 0), (-1, 4)):
        difference = np.abs(shown[number][:height, :width].astype(int) - rgb(gif, same))
        assert difference.mean() < 2, number
    assert np.abs(shown[-1].astype(int) - shown[0]).mean() > 20


def test_an_mp4_without_its_package_is_refused_before_anything_runs(monkeypatch):
    from raincast.forecasting import Outputs
    from raincast.plotting import animation

    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r'animation=mp4 needs the package imageio-ffmpeg: pip install -e "\.\[video'
    ):
        Outputs(animation="mp4")
    with pytest.raises(ValueError, match="animation=avi: choose gif, mp4 or false"):
        Outputs(animation="avi")


def test_labels_count_from_init_time():
    past, forecast = frames(2, 0.0), frames(3, 1.0)
    assert list(animation._panels_of(0, past, forecast, None, 5.0)) == ["observed"]
    assert list(animation._panels_of(2, past, forecast, None, 5.0)) == ["forecast +10 min"]
    assert list(animation._panels_of(3, past, forecast, forecast[:2], 5.0)) == [
        "not observed yet",
        "forecast +15 min",
    ]
    past[0] = 7.0
    assert animation._panels_of(-1, past, forecast, None, 5.0)["observed"].max() == 7


def test_an_animation_of_a_country_is_quick_and_small(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.gamma(0.2, 5.0, (18, 77, 70)).astype(np.float32)
    rain = coarse.repeat(10, 1).repeat(10, 2)[:, :765, :700]
    grid = schema.mock_grid(765, 700)
    start = time.process_time()  # others may be at work beside
    path = forecast_animation(rain[:6], rain[6:], grid=grid, path=tmp_path / "a.gif", **when())
    assert time.process_time() - start < 5
    assert path.stat().st_size < 2e6
    assert max(MapView.of(grid).fit(640)) == 640


def test_lead_times_must_exist(tmp_path):
    rain = frames(3, 0.0)
    with pytest.raises(ValueError, match="from 5 to 15"):
        forecast_picture(
            None, {"f": rain}, grid=schema.mock_grid(), path=tmp_path / "a.png", leads_minutes=[20], **when()
        )
    with pytest.raises(ValueError, match="nothing to draw"):
        forecast_picture(None, {}, grid=schema.mock_grid(), path=tmp_path / "a.png", **when())
    with pytest.raises(ValueError, match="has shape"):
        forecast_animation(None, rain[0], grid=schema.mock_grid(), path=tmp_path / "a.gif", **when())


def scores(csi):
    dims = ("forecaster", "threshold", "lead_time")
    coords = {"forecaster": ["a", "b"], "threshold": [0.1, 1.0, 5.0, 10.0], "lead_time": [5.0, 10.0, 15.0]}
    return xr.Dataset({"csi": (dims, csi)}, coords=coords)


@pytest.mark.parametrize("num_thresholds", [1, 3, 4])
def test_csi_is_plotted_with_undefined_values(num_thresholds, tmp_path):
    csi = np.linspace(0.9, 0.1, 24).reshape(2, 4, 3)
    csi[0, 0, 1] = np.nan
    csi[:, 3] = np.nan
    path = csi_plot(scores(csi).isel(threshold=slice(num_thresholds)), tmp_path / "csi.png")
    assert rgb(path).std() > 0


def test_figures_are_drawn_once_and_as_matplotlib_saves_them(tmp_path, monkeypatch):
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(1) or draw(self, renderer))
    panels = {"CSI": scores(np.linspace(0.9, 0.1, 24).reshape(2, 4, 3))["csi"][:, 0]}
    made, expected, as_svg, as_expected = (lead_curves(scores(np.zeros((2, 4, 3))), panels) for _ in range(4))
    written, svg_bytes = save(made, tmp_path / "a.png").read_bytes(), svg(as_svg)
    assert len(drawn) == 2
    expected.savefig(tmp_path / "b.png", dpi=DOTS_PER_INCH)
    with rc_context({"svg.hashsalt": "raincast"}):
        as_expected.savefig(tmp_path / "b.svg", metadata={"Date": None})
    assert (written, svg_bytes) == tuple((tmp_path / name).read_bytes() for name in ("b.png", "b.svg"))


def test_pictures_leave_pyplot_alone(tmp_path):
    rain = frames(1, 1.0)
    before = "matplotlib.pyplot" in sys.modules
    forecast_picture(None, {"f": rain}, grid=schema.mock_grid(), path=tmp_path / "a.png", **when())
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_stills_scale_and_local_time(tmp_path):
    grid = schema.mock_grid(60, 80)
    rain = np.zeros((4, 60, 80), np.float32)
    stills = tmp_path / "forecast_x"
    path = forecast_animation(rain, rain, grid=grid, path=tmp_path / "a.gif", stills=stills, **when())
    assert (
        next(iter(sorted(stills.iterdir()))).name == "forecast_x_+005min.png" and len(list(stills.iterdir())) == 4
    )
    with Image.open(stills / "forecast_x_+005min.png") as still, Image.open(path) as gif:
        assert still.size == gif.size
    view = MapView.of(grid)
    assert view.width_km == pytest.approx(80)
    time = np.datetime64("2026-07-31T22:30")
    assert rain_image.valid_text(time) == "2026-07-31 22:30 UTC"
    assert rain_image.valid_text(time, "Europe/Amsterdam") == "2026-07-31 22:30 UTC (00:30 CEST)"
    with pytest.raises(ValueError, match="time_zone=Mars"):
        rain_image.valid_text(time, "Mars")


def test_a_coast_is_drawn_where_it_is():
    """Ireland fits into the map: its outline surrounds Athlone and leaves the Irish Sea free."""
    from scipy.ndimage import label

    grid = Grid(
        y=56.5 - 0.05 * np.arange(120), x=-12.0 + 0.05 * np.arange(160), crs_wkt=CRS.from_epsg(4326).to_wkt()
    )
    coast = coast_pixels(MapView.of(grid), 480, 640)
    assert 0.005 < coast.mean() < 0.15
    regions, _ = label(~coast)

    def region(lat, lon):
        return int(regions[int((56.5 - lat) / 6 * 480), int((lon + 12) / 8 * 640)])

    assert region(53.4, -7.9) == region(52.3, -8.5)  # two places in Ireland
    assert region(53.4, -7.9) != region(51.0, -11.0) == region(55.9, -11.0)  # the Atlantic is one, and another


def degrees_grid(height, width, step):
    return Grid(
        y=55 - step * np.arange(height), x=2 + step * np.arange(width), crs_wkt=CRS.from_epsg(4326).to_wkt()
    )


def test_stills_have_coasts_and_their_resolution_suits_the_extent(tmp_path):
    grid = degrees_grid(50, 60, 0.1)  # the Netherlands
    dry = np.zeros((1, *grid.shape), np.float32)
    path = forecast_picture(None, {"f": dry}, grid=grid, path=tmp_path / "a.png", graticule=False, **when())
    assert where(rgb(path), rain_image.COAST_COLOUR)[0].size > 60
    far = [resolution(MapView.of(degrees_grid(20, 20, step))) for step in (0.05, 2.0, 8.0)]
    assert far == ["i", "l", "c"]
    assert len(coast_lines(MapView.of(degrees_grid(20, 20, 2.0)))) > 10


def test_maps_end_where_nothing_was_observed(tmp_path):
    grid = schema.mock_grid(200, 300)
    rain = np.full((2, *grid.shape), np.nan, np.float32)
    rain[0, 50:90, 100:160] = 1.0  # 40 × 60 pixels in a corner of the grid
    kept, part = rain_image.cropped({"f": rain}, grid)
    assert part.shape == (44, 66) and kept["f"].shape == (2, 44, 66)
    np.testing.assert_array_equal(part.y, grid.y[48:92])
    np.testing.assert_array_equal(part.x, grid.x[97:163])
    same, whole = rain_image.cropped({"f": rain * np.nan}, grid)
    assert whole.shape == grid.shape and same["f"].shape == rain.shape
    path = forecast_animation(None, rain, grid=grid, path=tmp_path / "a.gif", max_pixels=300, **when())
    pixels = rgb(path)
    hatched = where(pixels, rain_image.HATCH_COLOUR)[0].size
    assert hatched < 0.1 * where(pixels, RAIN_COLOURS[2])[0].size


def test_degrees_are_written_at_the_edges():
    grid = Grid(y=np.linspace(-5, 5, 40), x=np.linspace(175, 190, 60), crs_wkt=CRS.from_epsg(4326).to_wkt())
    labels = Graticule.of(MapView.of(grid)).labels()
    assert {label.text for label in labels if label.at_bottom} >= {"180°", "175°W"}
    assert {"0°"} <= {label.text for label in labels if not label.at_bottom} <= {"4°S", "2°S", "0°", "2°N", "4°N"}


def test_a_map_says_whose_data_it_shows():
    assert rain_image.credit({"institution": "KNMI", "license": "CC BY 4.0"}) == "Data: KNMI (CC BY 4.0)"
    assert rain_image.credit({"source": "x" * 200})[-1] == "…" and rain_image.credit({}) == ""


def test_a_title_that_is_too_long_is_cut():
    assert animation._fitted("Data: " + 300 * "x", 200)[-1] == "…"
