"""The rain of S-PROG, ANVIL, STEPS and LINDA changes as it moves; all of them, and each way to find motion."""

import logging
import warnings

import numpy as np
import pytest
from checking import query, rates_of
from pyproj import CRS
from scipy.ndimage import gaussian_filter

from raincast.baselines import METHODS, Anvil, Extrapolation, FastSProg, Linda, Persistence, SProg, Steps
from raincast.baselines.evolution import from_decibels, to_decibels
from raincast.baselines.motion import find_motion
from raincast.schema import Grid, mock_grid

QUICK = {
    "persistence": Persistence(),
    "extrapolation": Extrapolation(),
    "extrapolation_darts": Extrapolation(method="darts"),
    "extrapolation_farneback": Extrapolation(method="farneback"),
    "sprog": SProg(),
    "sprog_fast": FastSProg(),
    "anvil": Anvil(ar_order=1),
    "steps": Steps(num_members=2),
}
SLOW = {
    "extrapolation_vet": Extrapolation(method="vet", motion_frames=2),
    "linda": Linda(num_members=2, num_cells=2),
}
ENSEMBLES = {"steps": Steps(num_members=3), "linda": Linda(num_members=2, num_cells=1)}


def moving(frames: int = 8, dx: int = 2, dy: int = 1, size: int = 48) -> np.ndarray:
    """(frames, size, size) in mm/h, of which each frame is the last one moved by (dx, dy) pixels."""
    noise = np.random.default_rng(0).standard_normal((3 * size, 3 * size))
    field = gaussian_filter(noise, 3)
    rain = np.clip(field / field.std() - 0.5, 0, None) * 6
    return np.stack(
        [rain[size - t * dy : 2 * size - t * dy, size - t * dx : 2 * size - t * dx] for t in range(frames)]
    ).astype(np.float32)


def changing(frames: int = 8, size: int = 48) -> np.ndarray:
    """As `moving`, with fine structure that is new in every frame."""
    rng = np.random.default_rng(1)
    fine = np.stack([gaussian_filter(rng.standard_normal((size, size)), 1) for _ in range(frames)])
    return (moving(frames, size=size) * np.exp(3 * fine)).astype(np.float32)


def as_batch(frames: np.ndarray) -> np.ndarray:
    return frames[None, :, None].astype(np.float32)


def members_of(forecaster, rain: np.ndarray, num_steps: int, **others: object) -> np.ndarray:
    return forecaster.predict(query(rain, num_steps, members=True, **others)).members


def csi(forecast: np.ndarray, observed: np.ndarray, threshold: float = 1.0) -> float:
    inner = (..., slice(12, -4), slice(18, -4))  # what flows in from the left and above nobody can know
    a, b = forecast[inner] >= threshold, observed[inner] >= threshold
    return float((a & b).sum() / (a | b).sum())


def gapped() -> np.ndarray:
    rain = moving(4, size=32).copy()
    rain[:, :14, :10] = np.nan
    rain[-1, 20:, 20:] = np.nan
    return rain


def half_dry() -> np.ndarray:
    rain = moving(3).copy()
    rain[:, :, 20:] = 0
    return rain


AWKWARD = {
    "no rain": np.zeros((3, 32, 32)),
    "all missing": np.full((3, 32, 32), np.nan),
    "one pixel": np.full((3, 1, 1), 2.0),
    "one pixel missing": np.full((3, 1, 1), np.nan),
    "tiny": np.arange(27.0).reshape(3, 3, 3),
    "narrow": moving(3)[:, :, :5],
    "smallest": moving(3)[:, 20:28, 20:28],
    "a little larger": moving(3)[:, 20:31, 20:33],
    "odd": moving(3)[:, :29, :23],
    "one frame": moving(1),
    "two frames": moving(2),
    "constant": np.full((3, 40, 40), 5.0),
    "one wet pixel": np.pad(np.full((3, 1, 1), 9.0), ((0, 0), (20, 20), (20, 20))),
    "half dry": half_dry(),
    "parts missing": gapped(),
    "middle frame missing": np.where(np.arange(4)[:, None, None] == 2, np.nan, moving(4)),
    "last frame missing": np.where(np.arange(5)[:, None, None] == 4, np.nan, moving(5)),
    "new rain": np.concatenate([np.zeros((1, 48, 48)), moving(2)]),
    "infinite": np.where(np.arange(48) == 20, np.inf, moving(3)),
    "extreme": moving(3) * 1e4,
    "noise": np.random.default_rng(0).random((3, 48, 48)) * 20,
}
FEW = ["no rain", "all missing", "one pixel", "one frame", "parts missing"]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_always_finite_and_never_negative(name):
    forecaster = (QUICK | SLOW)[name]
    assert forecaster.name == name
    for case in AWKWARD if name in QUICK else FEW:
        rain = as_batch(AWKWARD[case])
        before = rain.copy()
        out = rates_of(forecaster, rain, 3)
        assert out.shape == (1, 3, 1, *rain.shape[-2:]), case
        assert out.dtype == np.float32, case
        assert np.isfinite(out).all(), case
        assert (out >= 0).all(), case
        np.testing.assert_array_equal(rain, before, case)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_without_motion_they_are_persistence(name):
    for case in ("no rain", "all missing", "one pixel", "tiny", "narrow", "one frame"):
        rain = as_batch(AWKWARD[case])
        expected = rates_of(Persistence(), rain, 2)
        np.testing.assert_allclose(
            rates_of((QUICK | SLOW)[name], rain, 2), expected, rtol=1e-6, atol=0, err_msg=case
        )


@pytest.mark.parametrize("name", ["sprog", "anvil", "steps", "linda"])
def test_with_too_few_frames_they_are_extrapolation(name, caplog):
    caplog.set_level(logging.INFO, logger="raincast.baselines")
    forecaster = {"sprog": SProg, "anvil": Anvil, "steps": Steps, "linda": Linda}[name]()
    rain = np.concatenate([as_batch(moving(2))] * 2)
    np.testing.assert_allclose(rates_of(forecaster, rain, 2), rates_of(Extrapolation(), rain, 2), rtol=1e-6)
    needs = 4 if name == "anvil" else 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} is extrapolation in some windows: fewer than {needs} consecutive frames."
    ]


def test_where_pysteps_stops_the_forecast_is_extrapolation(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="raincast.baselines")

    def stop(*args: object, **settings: object) -> None:
        raise ValueError("no rain for me")

    monkeypatch.setattr("pysteps.nowcasts.sprog.forecast", stop)
    rain = as_batch(moving(3))
    np.testing.assert_array_equal(rates_of(SProg(), rain, 2), rates_of(Extrapolation(), rain, 2))
    assert "pysteps failed (ValueError: no rain for me)" in caplog.text


def test_where_pysteps_gives_nan_the_pixel_is_extrapolated(monkeypatch):
    rain = as_batch(moving(3))

    def holes(frames: np.ndarray, motion: np.ndarray, num_steps: int, **settings: object) -> np.ndarray:
        out = np.full((num_steps, 48, 48), 10.0)  # 10 dB is 10 mm/h
        out[:, 20:30] = np.nan
        return out

    monkeypatch.setattr("pysteps.nowcasts.sprog.forecast", holes)
    out = rates_of(SProg(), rain, 2)
    plain = rates_of(Extrapolation(), rain, 2)
    np.testing.assert_array_equal(out[..., 20:30, :], plain[..., 20:30, :])
    np.testing.assert_allclose(out[..., :20, :], 10.0, rtol=1e-6)
    assert plain[..., 20:30, :].max() > 1


# Farnebäck's flow falls short at a blob's rim; DARTS, whose grid is periodic and has to be full, is left out
@pytest.mark.parametrize(("method", "at_least"), [("lucas_kanade", 0.9), ("vet", 0.9), ("farneback", 0.6)])
def test_a_blob_is_moved_as_it_moved(method, at_least):
    y, x = np.mgrid[:64, :64]
    blobs = [20 * np.exp(-((x - 32 - 2 * t) ** 2 + (y - 36 + t) ** 2) / 40) for t in range(2)]
    out = rates_of(Extrapolation(method=method), as_batch(np.stack(blobs)), 6)[0, -1, 0]
    # the last frame shows it at x = 34, y = 35; six steps of (2, -1) on it is at (46, 29)
    moved_x, moved_y = (out * x).sum() / out.sum() - 34, (out * y).sum() / out.sum() - 35
    assert at_least * 12 < moved_x < 1.1 * 12
    assert -1.1 * 6 < moved_y < -at_least * 6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_direction(method):
    dx, dy = find_motion(moving(9, size=96)[-3 if method == "vet" else 0 :], method).mean(axis=(1, 2))
    assert dx > 0.5
    assert dy / dx == pytest.approx(1 / 2, abs=0.25)


# linda would take seconds more
@pytest.mark.parametrize("name", [name for name in (*QUICK, "extrapolation_vet") if name != "persistence"])
def test_all_beat_persistence_on_a_translating_field(name):
    rain = moving(10)
    past, future = as_batch(rain[:6]), as_batch(rain[6:])
    still = csi(rates_of(Persistence(), past, 4), future)
    assert csi(rates_of((QUICK | SLOW)[name], past, 4), future) > still + 0.05


def test_after_a_missing_frame_they_catch_up():
    rain = moving(8)
    past, future = as_batch(rain[:5]).copy(), as_batch(rain[5:])
    past[:, -1] = np.nan
    for forecaster in (SProg(), Anvil(ar_order=1)):
        still = csi(rates_of(Persistence(), past, 3), future)
        assert csi(rates_of(forecaster, past, 3), future) > still + 0.05


def roughness(frame: np.ndarray) -> float:
    """Variance of differences of neighbours over that of the pixels: what is left of fine scales."""
    inner = frame[10:-10, 16:-10]
    return float(np.diff(inner, axis=1).var() / inner.var())


def test_sprog_is_smoother_than_extrapolation_and_grows_smoother_with_lead():
    past = as_batch(changing(3, size=64))
    smooth, plain = rates_of(SProg(), past, 6)[0, :, 0], rates_of(Extrapolation(), past, 6)[0, :, 0]
    assert roughness(smooth[0]) < roughness(plain[0])
    assert roughness(smooth[-1]) < 0.8 * roughness(plain[-1])
    assert roughness(smooth[-1]) < roughness(smooth[0])


def test_fast_sprog_agrees_with_that_of_pysteps_and_needs_a_pixel_size():
    past = as_batch(changing(3, size=64))
    ours, theirs = rates_of(FastSProg(), past, 6)[0, :, 0], rates_of(SProg(), past, 6)[0, :, 0]
    inner = (slice(None), slice(12, -6), slice(18, -6))
    logs = [np.log(np.maximum(rates[inner], 0.05)).reshape(6, -1) for rates in (ours, theirs)]
    correlations = [np.corrcoef(*lead)[0, 1] for lead in zip(*logs, strict=True)]
    assert correlations[0] > 0.95 and min(correlations) > 0.85, correlations
    assert roughness(ours[-1]) == pytest.approx(roughness(theirs[-1]), rel=0.5)
    with pytest.raises(ValueError, match="sprog_fast needs the size of a pixel"):
        rates_of(FastSProg(), past, 1, pixel_km=None)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_members_differ_and_their_mean_is_the_forecast(name):
    past = as_batch(changing(3))
    found = ENSEMBLES[name].predict(query(past, 3, members=True, thresholds=[1.0, 4.0]))
    members = found.members
    assert members.shape == (1, 3, ENSEMBLES[name].num_members, 48, 48)
    assert members.dtype == np.float32
    assert np.isfinite(members).all()
    assert (members >= 0).all()
    assert (members.std(axis=2).mean(axis=(0, 2, 3)) > 0.05).all()
    mean = members.mean(axis=2, keepdims=True)
    np.testing.assert_array_equal(found.rates, mean)
    # probabilities are shares of the members
    np.testing.assert_array_equal(found.probabilities[:, :, 1], (members >= 4).mean(axis=2))
    assert found.thresholds == (1.0, 4.0) and found.done == (name,)
    # a second run: the same members again
    np.testing.assert_array_equal(rates_of(ENSEMBLES[name], past, 3), mean)


def test_spread_grows_with_lead():
    spread = (
        members_of(Steps(num_members=6), as_batch(changing(3)), 4)[0]
        .std(axis=1)[:, 12:-12, 18:-12]
        .mean(axis=(1, 2))
    )
    assert spread[-1] > spread[0]


def test_the_same_window_gives_the_same_members():
    one, other = as_batch(changing(3)), as_batch(changing(3)[:, ::-1])
    first = members_of(Steps(num_members=2), one, 2)
    again = Steps(num_members=2)
    np.testing.assert_array_equal(members_of(again, np.concatenate([other, one]), 2)[1:], first)
    assert not np.array_equal(members_of(Steps(num_members=2, seed=1), one, 2), first)


def test_motion_is_perturbed_by_the_pixels_and_steps_of_the_archive():
    past = as_batch(changing(3))
    grid = mock_grid(48, 48)  # pixels of 1 km
    two_km = Grid(grid.y * 2, grid.x * 2, grid.crs_wkt)
    plain, stated = Steps(num_members=2), Steps(num_members=2, km_per_pixel=2, step_minutes=10)
    members = members_of(plain, past, 2, grid=two_km, pixel_km=None, step_minutes=10.0)
    # what is stated stays
    np.testing.assert_array_equal(members, members_of(stated, past, 2, grid=grid, pixel_km=None))
    assert not np.array_equal(members, members_of(plain, past, 2, grid=grid, pixel_km=None))
    with pytest.raises(ValueError, match="steps needs the size of a pixel: give the query a grid or pixel_km"):
        members_of(plain, past, 2, pixel_km=None)


def test_pixels_in_degrees_have_a_size_in_km():
    degrees = Grid(np.linspace(60, 61, 101), np.linspace(10, 11, 101), CRS.from_epsg(4326).to_wkt())
    assert degrees.pixel_km == pytest.approx(1.112)


def test_numpys_generator_is_as_before():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    rates_of(Steps(num_members=2), as_batch(moving(3)), 1)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("name", ["extrapolation", "sprog", "anvil", "steps", "extrapolation_darts"])
def test_nothing_is_printed_and_warning_filters_stay(name, capfd):
    before = list(warnings.filters)
    rates_of(QUICK[name], as_batch(moving(3)), 1)
    assert warnings.filters == before
    assert capfd.readouterr() == ("", "")


def test_decibels_there_and_back():
    rain = np.array([0.0, 0.05, 0.1, 1.0, 150.0])
    there = to_decibels(rain)
    np.testing.assert_allclose(there, [-15, -15, -10, 0, 10 * np.log10(150)])
    # below 0.1 mm/h is no rain
    np.testing.assert_allclose(from_decibels(there), [0, 0, 0.1, 1, 150])
    assert np.isnan(from_decibels(np.array([np.nan]))).all()


def test_wrong_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="method=optical is unknown: choose one of lucas_kanade, vet"):
        Extrapolation(method="optical")
    with pytest.raises(ValueError, match="ar_order=3"):
        Anvil(ar_order=3)
    with pytest.raises(ValueError, match="num_members=1"):
        Steps(num_members=1)
    with pytest.raises(ValueError, match="km_per_pixel=0"):
        Steps(km_per_pixel=0)
    for method in (Extrapolation, SProg):
        with pytest.raises(ValueError, match="motion_frames=1"):
            method(motion_frames=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"raincast\[linda\]"):
        Linda()
