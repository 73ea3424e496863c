"""Members blended with a weather model: never worse than either, said in the file, and only what is known."""

from importlib.metadata import version

import numpy as np
import pytest
import xarray as xr
from forecasting.test_forecast_file import cf_errors
from pyproj import CRS
from running import compose_config
from scipy.ndimage import gaussian_filter, shift
from standing import Standing, moving

from raincast import schema
from raincast.commands import forecast as command
from raincast.forecaster import Gives, Prediction
from raincast.forecasting import Blending, ForecastPipeline, ModelSettings, WeatherModel
from raincast.forecasting.blending import blend_members, error_of
from raincast.forecasting.files.dataset import MODEL_ONLY
from raincast.forecasting.files.netcdf import write_forecast
from raincast.forecasting.fit import Trained
from raincast.forecasting.gaps import Past
from raincast.forecasting.weather_model import ModelForecast

SIZE, LEADS, MEMBERS, STEP = 64, 12, 6, 20.0
INIT = np.datetime64("2026-01-01T00:15", "ns")


def crps(members, truth):
    """Of (L, M, H, W) at each lead."""
    within = np.abs(members[:, :, None] - members[:, None]).mean(axis=(1, 2, 3, 4))
    return np.abs(members - truth[:, None]).mean(axis=(1, 2, 3)) - within / 2


def storm(seed):
    """(4 + LEADS, 2·SIZE, 2·SIZE) mm/h: it moves by 1 and 2 pixels a step while it fades and is renewed."""
    rng = np.random.default_rng(seed)
    whole = 2 * SIZE

    def field():
        made = gaussian_filter(rng.standard_normal((whole, whole)), 5, mode="wrap")
        return made / made.std()

    now, frames = field(), []
    for _ in range(4 + LEADS):
        now = np.roll(0.97 * now + np.sqrt(1 - 0.97**2) * field(), (1, 2), (0, 1))
        frames.append(np.where(now > 0.8, np.exp(1.5 * (now - 0.8)), 0.0))
    return np.stack(frames).astype(np.float32), rng


def case(seed):
    """The past, a nowcast by extrapolation with random speed, a displaced and scaled model, and the truth."""
    rain, rng = storm(seed)
    cut = slice(SIZE // 2, SIZE // 2 + SIZE)
    newest, nowcast = rain[3], np.empty((LEADS, MEMBERS, SIZE, SIZE), np.float32)
    for member in range(MEMBERS):
        speed = np.array([1, 2]) + rng.normal(0, 0.3, 2)
        for lead in range(LEADS):
            nowcast[lead, member] = shift(newest, speed * (lead + 1), order=1, mode="grid-wrap")[cut, cut]
    moved = rng.choice([-1, 1], 2) * rng.integers(6, 12, 2)
    model = rng.choice([0.6, 1.6]) * np.roll(rain[3:], moved, (1, 2)).astype(np.float32)
    times = INIT - np.arange(4)[::-1] * schema.step_timedelta(STEP)
    past = Past(rain[:4, cut, cut], np.zeros(4, bool), times)
    return past, nowcast, model, rain[4:, cut, cut]


class Known:
    """A model whose fields are known, on a grid of 2·SIZE around that of the radar."""

    settings = ModelSettings()

    def __init__(self, fields):
        self.fields = fields

    def forecast(self, times, grid, needed):
        pad = (grid.shape[0] - self.fields.shape[-1]) // 2
        around = [(0, 0)] * 2 + [(pad, pad)] * 2
        fields = np.pad(self.fields[None], around, constant_values=np.nan) if pad >= 0 else self.fields[None]
        return ModelForecast(fields.astype(np.float32), times[0], "rain", ("a.nc",))


def test_the_blend_is_not_worse_than_members_or_model_at_any_lead():
    everywhere = np.ones((LEADS, SIZE, SIZE), bool)
    scores = []
    for seed in range(2):
        past, nowcast, model, truth = case(seed)
        made = Blending(Known(model))(
            past, nowcast, everywhere, schema.mock_grid(SIZE, SIZE), step_minutes=STEP, num_members=MEMBERS
        )
        cut = slice(SIZE // 2, SIZE // 2 + SIZE)
        alone = model[1:, None, cut, cut]
        scores.append([crps(maps, truth) for maps in (nowcast, alone, made.members)])
        assert made.members.shape == nowcast.shape and np.isfinite(made.members).all()
    members, alone, blended = np.mean(scores, axis=0)
    assert members[0] < 0.5 * alone[0] and members[-1] > members[0]
    assert (blended <= 1.02 * np.minimum(members, alone)).all(), np.round(blended / np.minimum(members, alone), 3)
    assert blended[-1] < 0.9 * min(members[-1], alone[-1])


def test_the_displacement_and_the_amount_of_a_model_are_found():
    past, *_ = case(1)
    newest = past.rain[-1]
    cut = slice(SIZE // 2, SIZE // 2 + SIZE)
    for dy, dx, factor in ((0, 0, 1.0), (6, -9, 1.5), (-8, 4, 0.6)):
        said = factor * np.roll(storm(1)[0][3], (-dy, -dx), (0, 1))[cut, cut]
        error = error_of(newest, said.astype(np.float32), 1.0)
        np.testing.assert_allclose(error.displacement, (dy, dx), atol=2)
        assert error.factor == pytest.approx(1 / factor, rel=0.25) and error.fit > 0.7
    assert not error_of(newest, 0 * newest, 1.0).displacement.any()
    unlike = np.random.default_rng(0).gamma(0.1, 3, newest.shape).astype(np.float32)
    assert error_of(newest, unlike, 1.0).factor == 1


@pytest.mark.parametrize("what", ["radar dry", "model dry", "both dry", "members end", "one nowcast", "a gap"])
def test_what_is_dry_or_lacks_is_blended(what):
    past, nowcast, model, _ = case(0)
    cut = slice(SIZE // 2, SIZE // 2 + SIZE)
    model, rain = model[None, :, cut, cut].repeat(MEMBERS, axis=0), past.rain.copy()
    known = np.ones((LEADS, SIZE, SIZE), bool)
    if what in ("radar dry", "both dry"):
        rain, nowcast = 0 * rain, 0 * nowcast
    if what in ("model dry", "both dry"):
        model = 0 * model
    if what == "members end":
        nowcast[5:] = 0
    if what == "one nowcast":
        nowcast = nowcast.mean(axis=1, keepdims=True)
    if what == "a gap":
        rain[1], rain[:, :5] = np.nan, np.nan
        known[:, :5], known[10:] = False, False
    absent = ~np.isfinite(rain).any(axis=(1, 2))
    made = blend_members(Past(rain, absent, past.times), nowcast, known, model, step_minutes=STEP, pixel_km=1.0)
    assert made.shape == (LEADS, MEMBERS, SIZE, SIZE) and np.isfinite(made).all() and (made >= 0).all()
    means, theirs = made.mean(axis=(1, 2, 3)), model[0, 1:].mean(axis=(1, 2))
    if what == "both dry":
        assert not made.any()
    elif what != "model dry":
        assert 0.4 * theirs[-1] < means[-1] < 1.5 * theirs[-1]  # the model's rain comes
    if what == "a gap":
        np.testing.assert_allclose(made[11], model[:, 12])
    if what == "one nowcast":
        assert made[3].std(axis=0).mean() > 0


class Drawn(Standing):
    """The newest frame, times 1, 2, … in the members."""

    gives = Gives(members=True)

    def predict(self, query):
        made = super().predict(query)
        factors = np.arange(1, MEMBERS + 1, dtype=np.float32)[:, None, None]
        return Prediction(made.rates, members=made.rates * factors, done=made.done)


def model_file(path, frames, *, members=None, hours=8):
    """1 mm each hour, as sums since the run's start, on other pixels that reach beyond those of the frames."""
    grid = schema.grid_of(frames)
    init = frames["time"].values[-1].astype("datetime64[h]").astype("datetime64[ns]")
    ends = init + np.arange(1, hours + 1) * np.timedelta64(1, "h")
    y, x = np.linspace(grid.y[0] + 5e3, grid.y[-1] - 5e3, 40), np.linspace(grid.x[0] - 5e3, grid.x[-1] + 5e3, 40)
    sums = np.arange(1, hours + 1)[:, None, None] * np.ones((y.size, x.size), np.float32)
    dims = ("time", "y", "x")
    if members is not None:
        sums, dims = np.repeat(sums[None], members, axis=0), ("number", *dims)
    dataset = xr.Dataset(
        {
            "tp": (
                dims,
                sums,
                {"units": "kg m-2", "standard_name": "precipitation_amount", "grid_mapping": "crs"},
            ),
            "bnds": (("time", "two"), np.stack([np.full(hours, init), ends], axis=1)),
        },
        {
            "time": ("time", ends, {"bounds": "bnds"}),
            "forecast_reference_time": ((), init, {"standard_name": "forecast_reference_time"}),
            **schema.Grid(y, x, CRS.from_wkt(grid.crs_wkt).to_wkt()).to_coords(),
        },
    )
    dataset["time"].encoding["units"] = "minutes since 2026-01-01"
    dataset.to_netcdf(path)
    return init


def pipeline(files, **settings):
    trained = Trained(4, 6, 5.0, grid_spacing=(1000.0, 1000.0), cell_methods="time: point", max_missing=1)
    given = {"members": MEMBERS, "blending": Blending(WeatherModel(files)), "lead_steps": 12} | settings
    return ForecastPipeline(Drawn(), trained, **given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_blended_file_says_what_was_blended(tmp_path):
    frames = moving(4, 48, 48)
    init = model_file(tmp_path / "cosmo.nc", frames)
    made = pipeline(str(tmp_path / "*.nc"), thresholds=[0.5, 2.0])(frames)
    attrs = made.attrs
    assert (
        attrs["nwp_run_time"] == f"{np.datetime_as_string(init, unit='m')}Z" and attrs["nwp_files"] == "cosmo.nc"
    )
    assert attrs["nwp_variable"] == "tp" and attrs["forecast_method"] == "network"
    assert f"pysteps {version('pysteps')}, blending.steps" in attrs["blending"]
    assert f"{MEMBERS} members, of which {MEMBERS} of the nowcast and 1 of the model" in attrs["blending"]
    members, rates = made["rain_rate_members"].values, made["rain_rate"].values
    np.testing.assert_allclose(rates, members.mean(axis=1), rtol=1e-4, atol=1e-4)
    shares = made["rain_rate_exceedance"].values
    np.testing.assert_allclose(shares[:, 1], (members >= 2).mean(axis=1), atol=1e-6)
    # nobody looked at the two lowest rows: they have the model's rain, and the flag says so
    flags = made["quality_flag"].values
    assert (flags[:, -2:] == MODEL_ONLY).all() and np.isfinite(rates).all() and rates[:, -2:].mean() > 0.3
    assert not (flags[0, 8:40, 8:40] & MODEL_ONLY).any()
    assert pipeline(str(tmp_path / "*.nc"), lead_steps=None).lead_steps == 72
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(write_forecast(made, tmp_path / "forecast.nc")) == []


def test_without_members_or_with_too_many_of_the_model_it_is_refused(tmp_path):
    frames = moving(4, 48, 48)
    model_file(tmp_path / "a.nc", frames, members=MEMBERS + 1)
    with pytest.raises(ValueError, match=f"The model has {MEMBERS + 1} members, more than members={MEMBERS}"):
        pipeline(str(tmp_path / "*.nc"))(frames)
    with pytest.raises(ValueError, match="blended with members: give members=20"):
        pipeline(str(tmp_path / "*.nc"), members=None)
    with pytest.raises(ValueError, match=r"no run covers .* smaller lead_steps"):
        pipeline(str(tmp_path / "*.nc"), lead_steps=120)(frames)


def test_missing_frames_are_extrapolated_and_blended(tmp_path):
    frames = moving(4, 48, 48)
    model_file(tmp_path / "a.nc", frames)
    rain = frames[schema.RAIN].values.copy()
    rain[2] = np.nan
    rain[1] = np.nan
    made = pipeline(str(tmp_path / "a.nc"))(frames.assign({schema.RAIN: frames[schema.RAIN].copy(data=rain)}))
    assert made.attrs["forecast_method"] in ("extrapolation", "persistence")
    assert made.sizes["member"] == MEMBERS and "of which 1 of the nowcast" in made.attrs["blending"]


def test_the_command_blends(tiny_archive, tmp_path):
    with xr.open_dataset(sorted(tiny_archive.glob("*.nc"))[-1]) as day:
        frames = day.isel(time=slice(-4, None)).load()
    model_file(tmp_path / "model.nc", frames)
    given = [f"input={tiny_archive}", "animation=false", "lead_steps=6", "members=3"]
    path = command.run(compose_config("forecast", tmp_path / "a", *given, f"nwp={tmp_path}/model.nc"))
    with xr.open_dataset(path) as made:
        assert (
            made.sizes["member"] == 3 and "of which 3 of the nowcast and 1 of the model" in made.attrs["blending"]
        )
    wrong = [f"nwp={tmp_path}/model.nc", "blending.accumulated=day"]
    with pytest.raises(Exception, match="choose run, step or null"):
        command.run(compose_config("forecast", tmp_path / "b", *given, *wrong))
