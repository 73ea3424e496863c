"""raincast inside pysteps: its method and its importer, as pysteps finds and calls them."""

import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pysteps
import pytest
import xarray as xr
from running import REPO

import raincast
import raincast.pysteps
from raincast import schema
from raincast.forecaster import Gives, Prediction, Query
from raincast.projection import mapping_attrs

STORMS = REPO / "src/raincast/sample/2016-07-11.nc"
STEP = {"timestep": 5, "kmperpixel": 1.0}


def storms(num_frames: int = 4, size: int = 64) -> np.ndarray:
    """Frames of the event in the package, (T, size, size)."""
    with xr.open_dataset(STORMS) as dataset:
        return dataset["rain_rate"][:num_frames, 150 : 150 + size, 230 : 230 + size].values


class Asked:
    """A forecaster that keeps what it is asked, and gives the newest frame plus the number of the step."""

    name = "asked"

    def __init__(self, members: int = 0) -> None:
        self.gives = Gives(members=members > 0)
        self.num_members = members

    def predict(self, query: Query) -> Prediction:
        self.query = query
        newest = np.nan_to_num(query.rain[:, -1:, :1])
        rates = newest + np.array(query.lead_minutes, np.float32)[:, None, None, None] / np.float32(5)
        drawn = np.arange(self.num_members, dtype=np.float32)[:, None, None]
        return Prediction(rates, members=rates + drawn if query.members and len(drawn) else None)


@pytest.fixture
def nowcast() -> Any:
    return pysteps.nowcasts.get_method("raincast")


@pytest.fixture
def importer() -> Any:
    return pysteps.io.get_method("raincast", "importer")


def test_a_script_of_pysteps_uses_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of docs/pysteps.md."""
    (tmp_path / "radar").mkdir()
    with xr.open_dataset(STORMS) as dataset:
        for number in range(4):
            part = dataset.isel(time=slice(number, number + 1), y=slice(150, 214), x=slice(230, 294))
            part.encoding = {}
            part.drop_vars("missing_times").to_netcdf(tmp_path / f"radar/{number}.nc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    script = re.search(r"```python\n(.*?)```", (REPO / "docs/pysteps.md").read_text(encoding="utf-8"), re.DOTALL)
    assert script and len([line for line in script[1].splitlines() if line]) <= 10
    made: dict[str, Any] = {}
    exec(script[1].replace("*.h5", "*.nc"), made)
    np.testing.assert_allclose(made["precip"], storms(), rtol=1e-6)
    forecast = made["forecast"]
    assert forecast.shape == (12, 64, 64) and forecast.dtype == np.float64
    assert np.nanmax(forecast[0]) > 1 and np.isfinite(forecast[0]).mean() > 0.8 and np.nanmin(forecast) >= 0
    assert np.isnan(forecast).sum(axis=(1, 2))[-1] > np.isnan(forecast).sum(axis=(1, 2))[0], "rain from outside"
    motion = pysteps.motion.get_method("lk")(np.log10(np.maximum(storms(), 0.03)))
    theirs = pysteps.nowcasts.get_method("extrapolation")(made["precip"][-1], motion, 6)
    assert (np.isnan(theirs) == np.isnan(forecast[:6])).mean() > 0.97, "NaN lies where pysteps has it"
    next_frame = storms(5)[4]
    both = np.isfinite(forecast[0]) & np.isfinite(next_frame)
    assert np.corrcoef(forecast[0][both], next_frame[both])[0, 1] > 0.7


def test_units_and_steps(nowcast: Any) -> None:
    rain = np.where(storms() < 0.1, 0, storms())
    asked = Asked()
    plain = nowcast(rain, None, 3, checkpoint=asked, **STEP)
    assert asked.query.step_minutes == 5 and asked.query.pixel_km == pytest.approx(1.0)
    np.testing.assert_allclose(asked.query.rain[0, :, 0], rain, rtol=1e-6)
    known = np.isfinite(plain)
    np.testing.assert_allclose(plain[known], (rain[-1] + np.arange(1, 4)[:, None, None])[known], rtol=1e-6)
    listed = nowcast(rain, None, [1.0, 3.0], checkpoint=asked, **STEP)
    np.testing.assert_array_equal(listed, plain[[0, 2]])
    metadata = {"unit": "mm/h", "transform": None, "threshold": 0.1, "zerovalue": 0.0}
    for unit, scaled in (
        ("dBR", pysteps.utils.dB_transform(rain, metadata)[0]),
        ("dBZ", pysteps.utils.to_reflectivity(rain, metadata)[0]),
    ):
        nowcast(scaled, None, 1, unit=unit, checkpoint=asked, **STEP)
        np.testing.assert_allclose(asked.query.rain[0, :, 0], rain, rtol=1e-4)
    masked = np.ma.masked_greater(rain, 5)
    nowcast(masked, None, 1, checkpoint=asked, reach=False, **STEP)
    np.testing.assert_array_equal(np.isnan(asked.query.rain[0, :, 0]), masked.mask)


def test_probabilities_and_members(nowcast: Any) -> None:
    rain = storms(size=48)
    box = raincast.load_forecaster(device="cpu")
    chances = nowcast(rain, None, [2, 4], thresholds=np.array([0.1, 1]), checkpoint=box, **STEP)
    assert chances.shape == (2, 2, 48, 48)
    known = np.isfinite(chances)
    assert known.mean() > 0.3 and chances[known].min() >= 0 and chances[known].max() <= 1
    assert (chances[:, 0] >= chances[:, 1])[known[:, 0]].all()
    members = nowcast(rain, None, 2, n_ens_members=3, checkpoint=Asked(members=4), **STEP)
    assert members.shape == (3, 2, 48, 48)
    known = np.isfinite(members)
    expected = rain[-1] + np.arange(1, 3)[:, None, None] + np.arange(3)[:, None, None, None]
    np.testing.assert_allclose(members[known], expected[known], rtol=1e-6)
    with pytest.raises(ValueError, match="asked gives 4 members"):
        nowcast(rain, None, 2, n_ens_members=5, checkpoint=Asked(members=4), **STEP)
    with pytest.raises(ValueError, match=r"asked gives no members .*Use thresholds=.*get_method..steps"):
        nowcast(rain, None, 2, n_ens_members=5, checkpoint=Asked(), **STEP)
    own, again, other = (nowcast(rain, None, 2, n_ens_members=3, seed=seed, **STEP) for seed in (0, 0, 1))
    assert own.shape == (3, 2, 48, 48) and not np.array_equal(own, other, equal_nan=True)
    np.testing.assert_array_equal(own, again)


def test_frames_that_never_come_and_pixels_that_nobody_sees(nowcast: Any) -> None:
    rain = storms(3)
    rain[:, :5] = np.nan
    rain[1] = np.nan
    forecast = nowcast(rain, None, 1, **STEP)
    assert np.isnan(forecast[:, :5]).all() and np.isfinite(forecast).mean() > 0.5


def test_velocity_is_named_as_unused_where_it_rains(nowcast: Any) -> None:
    rain, still = storms(size=16), np.zeros((2, 16, 16))
    with pytest.warns(UserWarning, match="does not use velocity") as caught:
        nowcast(rain, still, 1, checkpoint=Asked(), **STEP)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nowcast(np.zeros((2, 16, 16)), still, 1, checkpoint=Asked(), **STEP)
    with pytest.raises(ValueError, match=r"velocity has shape \(2, 9, 9\)"):
        nowcast(rain, np.zeros((2, 9, 9)), 1, **STEP)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timestep": None}, "^timestep must be given"),
        ({"timestep": None, "kmperpixel": None}, "^timestep and kmperpixel must be given"),
        ({"kmperpixel": 0}, "must be above 0"),
        ({"timesteps": 0}, "timesteps=0: give the number"),
        ({"timesteps": [2, 1]}, "increasing list of whole numbers above 0"),
        ({"timesteps": [0.5, 1]}, "whole numbers"),
        ({"unit": "mm"}, "choose one of mm/h, dBR, dBZ"),
        ({"precip": np.zeros((8, 8))}, "at least two frames"),
        ({"precip": np.zeros((1, 8, 8))}, "at least two frames"),
        ({"precip": np.full((2, 8, 8), -15.0)}, 'give unit="dBR"'),
        ({"precip": np.full((2, 8, 8), np.nan)}, "no observed one"),
        ({"precip": np.full((2, 8, 8), np.inf)}, "infinite"),
        ({"thresholds": [1], "n_ens_members": 2}, "one of thresholds and n_ens_members"),
    ],
)
def test_what_cannot_be_is_named(nowcast: Any, changed: dict[str, Any], message: str) -> None:
    given = {"precip": np.zeros((2, 8, 8)), "velocity": None, "timesteps": 1} | STEP | changed
    with pytest.raises(ValueError, match=message):
        nowcast(**given)


def write(path: Path, grid: schema.Grid, rain: np.ndarray, **others: Any) -> Path:
    times = np.datetime64("2026-06-05T12:00", "ns") + np.timedelta64(5, "m") * np.arange(len(rain))
    settings = {"step_minutes": 5.0, "cell_methods": "time: point"} | others
    made = schema.rain_dataset(rain, times, grid, **settings)
    made.drop_vars("missing_times").to_netcdf(path)
    return path


def test_images_come_north_first_with_what_pysteps_needs(importer: Any, tmp_path: Path) -> None:
    from pyproj import CRS

    grid = schema.mock_grid(6, 4)
    south_first = schema.Grid(grid.y[::-1], grid.x, grid.crs_wkt)
    rain = np.random.default_rng(0).gamma(0.5, 4, (3, 6, 4)).astype(np.float32).round(2)
    rain[:, 0, 0] = np.nan
    path = write(tmp_path / "a.nc", south_first, rain[:, ::-1], attrs={"institution": "the service"})
    precip, quality, metadata = importer(str(path))
    assert quality is None and precip.dtype == np.float64
    np.testing.assert_allclose(precip, rain[2], rtol=1e-6)
    assert metadata["yorigin"] == "upper" and metadata["institution"] == "the service"
    assert metadata["timestamps"][0].isoformat() == "2026-06-05T12:10:00" and metadata["accutime"] == 5
    assert (metadata["x1"], metadata["x2"], metadata["xpixelsize"]) == (-300_500, -296_500, 1000)
    assert (metadata["y1"], metadata["y2"], metadata["ypixelsize"]) == (-4_005_500, -3_999_500, 1000)
    assert (
        CRS(metadata["projection"]).to_cf()["grid_mapping_name"]
        == mapping_attrs(grid.crs_wkt)["grid_mapping_name"]
    )
    earlier, _, _ = importer(path, time="2026-06-05T12:05", dtype="float32", fillna=-1.0)
    np.testing.assert_allclose(earlier, np.nan_to_num(rain[1], nan=-1), rtol=1e-6)
    assert earlier.dtype == np.float32
    with pytest.raises(ValueError, match="no frame of 2026-06-05T13:00: it has 3 from 2026-06-05T12:00"):
        importer(path, time="2026-06-05T13:00")
    with pytest.raises(FileNotFoundError):
        importer(tmp_path / "b.nc")

    depth, of_depth = pysteps.utils.to_raindepth(precip, metadata)
    np.testing.assert_allclose(depth, precip / 12)
    np.testing.assert_allclose(pysteps.utils.to_rainrate(depth, of_depth)[0], precip)
    dbz, of_dbz = pysteps.utils.to_reflectivity(precip, metadata)
    back = pysteps.utils.to_rainrate(dbz, of_dbz)[0]
    np.testing.assert_allclose(back[precip >= 0.1], precip[precip >= 0.1])
    clipped, of_clipped = pysteps.utils.clip_domain(precip, metadata, (-299_500, -297_500, -4_005_500, -4_003_500))
    np.testing.assert_array_equal(clipped, precip[4:, 1:3])
    assert of_clipped["x1"] == -299_500
    axes = pysteps.visualization.plot_precip_field(precip, geodata=metadata)
    assert axes.images


def test_degrees_and_rates_of_a_moment_without_a_step(importer: Any, tmp_path: Path) -> None:
    from pyproj import CRS

    grid = schema.Grid(50 - 0.01 * np.arange(5), 7 + 0.02 * np.arange(4), CRS.from_epsg(4326).to_wkt())
    path = write(tmp_path / "a.nc", grid, np.ones((1, 5, 4), np.float32))
    with xr.open_dataset(path) as dataset:
        stepless = dataset.load()
    del stepless.attrs["step_minutes"]
    stepless.to_netcdf(tmp_path / "b.nc")
    _, _, metadata = importer(tmp_path / "b.nc")
    assert metadata["cartesian_unit"] == "degrees" and "+proj=longlat" in metadata["projection"]
    assert metadata["x2"] == pytest.approx(7.07) and metadata["ypixelsize"] == pytest.approx(0.01)
    assert "accutime" not in metadata, "nobody knows it"
    assert importer(tmp_path / "b.nc", timestep=10)[2]["accutime"] == 10


def test_the_wheel_advertises_them() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]
    assert points["pysteps.plugins.importers"] == {"raincast": "raincast.pysteps:import_raincast"}
    assert points["pysteps.plugins.nowcasts"] == {"raincast": "raincast.pysteps:forecast"}


@pytest.mark.parametrize("first", ["pysteps", "raincast.pysteps", "raincast.baselines"])
def test_pysteps_finds_them_whichever_is_imported_first(first: str, tmp_path: Path) -> None:
    """In a process of its own, with the entry points that an install would leave; nothing heavy comes along."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = tmp_path / "raincast-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: raincast\nVersion: 0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )
    (installed / "entry_points.txt").write_text("\n".join(groups))
    lines = f"""
        import sys, {first}
        heavy = [name for name in ("torch", "lightning", "hydra") if name in sys.modules]
        import pysteps
        assert not heavy, heavy
        method, importer = pysteps.nowcasts.get_method("raincast"), pysteps.io.get_method("raincast", "importer")
        assert method.__module__ == importer.__module__ == "raincast.pysteps"
        assert pysteps.io.importers.import_raincast is importer
    """
    path = os.pathsep.join([str(tmp_path), str(REPO / "src")])
    ran = subprocess.run(
        [sys.executable, "-c", re.sub(r"^ {8}", "", lines, flags=re.MULTILINE)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
