"""The built-in archive: the contract, the statistics of rain, determinism, and how hard it is to forecast."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from raincast import schema, synthetic
from raincast.archive import Archive
from raincast.synthetic import build_builtin_archive
from raincast.synthetic.fields import Drift, Flow, draw_weather, rain_fields

SMALL = {"num_days": 3, "frames_per_day": 36, "size": 32}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "small"
    build_builtin_archive(path, **SMALL)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Days long enough to forecast an hour on, on a grid wide enough for rain to stay in it."""
    path = tmp_path_factory.mktemp("synthetic") / "large"
    build_builtin_archive(path, num_days=8, frames_per_day=40, size=96)
    return path


def days_of(path: Path) -> list[np.ndarray]:
    return [rain_of(file) for file in sorted(path.glob("*.nc"))]


def rain_of(file: Path) -> np.ndarray:
    with xr.open_dataset(file, engine="netcdf4", chunks=None) as dataset:
        return dataset[schema.RAIN].values


def assert_same_data(first: Path, second: Path) -> None:
    assert [p.name for p in sorted(first.glob("*.nc"))] == [p.name for p in sorted(second.glob("*.nc"))]
    for a, b in zip(sorted(first.glob("*.nc")), sorted(second.glob("*.nc")), strict=True):
        with xr.open_dataset(a, engine="netcdf4") as one, xr.open_dataset(b, engine="netcdf4") as two:
            xr.testing.assert_identical(one.load(), two.load())


# --- the contract


def test_every_day_keeps_the_contract_and_says_how_it_was_made(small):
    for file in sorted(small.glob("*.nc")):
        with xr.open_dataset(file, engine="netcdf4") as dataset:
            schema.check_archive(dataset, file.name)
            assert dataset.attrs["source"] == synthetic.SOURCE
            assert '"seed": 0' in dataset.attrs[synthetic.CONFIG_ATTR]
            assert dataset.attrs["raincast_version"]
            assert dataset[schema.RAIN].attrs["cell_methods"] == "time: point"
    archive = Archive.open(small)
    assert archive.grid.shape == (32, 32)
    assert abs(np.diff(archive.grid.x)).max() == 1000
    assert "Polar_Stereographic" in archive.grid.crs_wkt or "Polar Stereographic" in archive.grid.crs_wkt


def test_missing_frames_leave_long_runs(small):
    for file in sorted(small.glob("*.nc")):
        archive = Archive.open(file)
        assert archive.num_times + archive.missing_times.size == SMALL["frames_per_day"]
        assert archive.missing_times.size == 1
        assert (archive.times > archive.missing_times[-1]).sum() >= 31


def test_a_full_day_misses_one_percent_with_a_pair_and_no_window_crosses_midnight(tmp_path):
    build_builtin_archive(tmp_path, num_days=2, frames_per_day=288, size=8)
    archive = Archive.open(tmp_path)
    gaps = np.diff(archive.times) / archive.step
    assert gaps.max() == 3
    midnight = np.datetime64("2026-06-02T00:00")
    assert midnight in archive.times
    assert midnight - archive.step in archive.missing_times
    # per day: the pair, one more, and (not listed in the last day's file) the frame before midnight
    assert 5 <= archive.missing_times.size <= 7


def test_area_without_coverage_is_the_same_in_every_frame(large):
    for rain in days_of(large):
        unseen = np.isnan(rain[0])
        assert (np.isnan(rain) == unseen).all()
        assert 0.05 < unseen.mean() < 0.10


# --- the seed


def test_same_seed_gives_the_same_data_and_another_seed_does_not(small, tmp_path):
    build_builtin_archive(tmp_path / "again", **SMALL)
    assert_same_data(small, tmp_path / "again")
    build_builtin_archive(tmp_path / "other", num_days=1, frames_per_day=36, size=32, seed=1)
    ours, other = days_of(small)[0], days_of(tmp_path / "other")[0]
    num_both = min(len(ours), len(other))
    assert not np.array_equal(ours[:num_both], other[:num_both], equal_nan=True)


def test_a_day_does_not_depend_on_how_many_there_are(small, tmp_path):
    build_builtin_archive(tmp_path, **SMALL | {"num_days": 1})
    np.testing.assert_array_equal(days_of(tmp_path)[0], days_of(small)[0])


def test_days_differ_in_weather():
    weathers = [draw_weather(day, 0, np.random.default_rng(day)) for day in range(8)]
    assert np.ptp([w.convective for w in weathers]) > 0.6
    assert np.ptp([w.heading_deg for w in weathers]) > 90
    assert len({w.speed_km_h for w in weathers}) == 8


# --- interruption


def test_a_rerun_keeps_finished_days_and_ends_with_the_same_data(small, tmp_path):
    def give_up(done: int, total: int) -> None:
        if done > 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_builtin_archive(tmp_path, **SMALL, progress=give_up)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.nc")}
    assert len(finished) == 2
    (tmp_path / ".2026-06-03.nc.partial").write_bytes(b"half a day")  # what a kill while writing leaves
    seen: list[tuple[int, int]] = []
    build_builtin_archive(tmp_path, **SMALL, progress=lambda *counts: seen.append(counts))
    assert seen[0] == (73, 108)
    assert seen[-1] == (108, 108)
    assert all(file.stat().st_mtime_ns == before for file, before in finished.items())
    assert_same_data(small, tmp_path)


def test_a_finished_archive_is_left_alone(small):
    before = {file: file.stat().st_mtime_ns for file in small.iterdir()}
    build_builtin_archive(small, **SMALL)
    assert {file: file.stat().st_mtime_ns for file in small.iterdir()} == before


def test_other_files_and_other_arguments_are_refused(small, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.txt.*Choose an empty or new folder"):
        build_builtin_archive(tmp_path, **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]
    with pytest.raises(ValueError, match=r'made with .*"seed": 0.*not with .*"seed": 7'):
        build_builtin_archive(small, **SMALL, seed=7)
    with pytest.raises(ValueError, match="is a file"):
        build_builtin_archive(tmp_path / "thesis.txt", **SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_days": 0}, "at least 1 day"),
        ({"frames_per_day": 400}, "not in 8 to 288"),
        ({"step_minutes": 0.0}, "not above 0"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        build_builtin_archive(tmp_path / "new", **SMALL | wrong)
    assert not (tmp_path / "new").exists()


# --- the statistics of rain


def test_wet_share_and_rates_of_every_day(large):
    for rain in days_of(large):
        seen = rain[:, ~np.isnan(rain[0])]
        assert 0.05 <= (seen > 0).mean() <= 0.30
        assert seen[seen > 0].min() >= 0.1
        assert 20 <= seen.max() <= synthetic.MAX_MM_H
        np.testing.assert_allclose(seen, seen.round(2), rtol=1e-6)


def test_log_rates_are_close_to_normal(large):
    from scipy.stats import kurtosis, skew

    for rain in days_of(large):
        log_rate = np.log(rain[rain > 0])
        # cut at 0.1 mm/h below: the skewness of a normal distribution cut at −2 σ is +0.2
        assert -0.2 < skew(log_rate) < 0.5
        assert abs(kurtosis(log_rate)) < 0.8


def test_spectrum_is_a_power_law(large):
    """Radially averaged 2-d power of the rain in dB: radar rain has slopes of about −2 to −3.5."""
    window = np.outer(np.hanning(64), np.hanning(64))
    wavenumber = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    bins = np.geomspace(1 / 32, 1 / 4, 9)
    for rain in days_of(large):
        inner = np.log10(np.maximum(rain[:, 16:80, 16:80], 0.1))
        power = (np.abs(np.fft.fft2((np.nan_to_num(inner) + 1) * window)) ** 2).mean(0)
        radial = [power[(wavenumber >= a) & (wavenumber < b)].mean() for a, b in itertools.pairwise(bins)]
        middle = np.log10(np.sqrt(bins[1:] * bins[:-1]))
        slope, offset = np.polyfit(middle, np.log10(radial), 1)
        assert -4.0 < slope < -1.8
        # a straight line in log-log: no ringing, no gap between scales
        assert np.abs(np.log10(radial) - (slope * middle + offset)).max() < 0.3


def test_rain_moves_with_the_steering_flow():
    """36 km/h towards 30° north of east are 2.6 columns and −1.5 rows in five minutes."""
    rng = np.random.default_rng(0)
    weather = dataclasses.replace(
        draw_weather(0, 0, rng), heading_deg=30.0, turn_deg=0.0, speed_km_h=36.0, eddy_km_h=0.0
    )
    fields = np.stack(list(rain_fields(weather, 64, 12, 5 / 60, rng)))
    shifts = [(0, 0), (-1, 3), (-2, 3), (1, -3), (2, 3), (-2, -3)]
    correlation = {
        (dy, dx): np.mean(
            [
                np.corrcoef(now[8:-8, 8:-8].ravel(), np.roll(before, (dy, dx), (0, 1))[8:-8, 8:-8].ravel())[0, 1]
                for before, now in itertools.pairwise(fields)
            ]
        )
        for dy, dx in shifts
    }
    assert max(correlation, key=correlation.get) in [(-1, 3), (-2, 3)]
    assert correlation[-2, 3] > correlation[0, 0] + 0.02


def test_rain_grows_up_the_ridge_and_fades_in_the_lee(monkeypatch):
    """The same day with and without the ridge: what a network can learn and extrapolation cannot know."""
    calm = draw_weather(0, 0, np.random.default_rng(0))
    westerly = dataclasses.replace(calm, heading_deg=0.0, turn_deg=0.0, speed_km_h=30.0, eddy_km_h=3.0)

    def mean_field() -> np.ndarray:
        fields = rain_fields(westerly, 96, 24, 5 / 60, np.random.default_rng(0))
        return np.mean(list(fields), axis=0)

    with_ridge = mean_field()
    monkeypatch.setattr(
        "raincast.synthetic.fields.ridge_height", lambda torus: np.zeros((torus, torus), np.float32)
    )
    gain = (with_ridge - mean_field()).mean(0)
    crest = int(gain.argmax())
    assert gain[crest] > 0.3
    assert gain[crest + 25 :].min() < -0.05


def test_field_keeps_its_variance_while_it_drifts():
    """Advection by splines smooths; the renewal must make up for it, or the rain would fade out in hours."""
    rng = np.random.default_rng(1)
    weather = draw_weather(1, 0, rng)
    drift = Drift(weather, 160, 5 / 60, rng)
    flow = Flow.draw(weather, 160, rng)
    still = np.zeros((160, 160), np.float32)
    fine = [np.diff(drift.step(flow.velocity(n / 12), still)).std() for n in range(100)]
    # the fine structure, as differences between neighbours, at the end against the beginning
    # (shear draws large structures out into fine ones, so it may rise a little)
    assert 0.85 < np.mean(fine[-10:]) / fine[0] < 1.35


# --- how hard it is


@pytest.fixture(scope="module")
def critical_success(large):
    """CSI at 1 mm/h an hour ahead, of persistence and of optical flow, over 24 starts."""
    pytest.importorskip("cv2")
    from pysteps.extrapolation.semilagrangian import extrapolate
    from pysteps.motion.lucaskanade import dense_lucaskanade

    counts = np.zeros((2, 3))
    for rain in days_of(large):
        seen = ~np.isnan(rain[0])
        rain = np.nan_to_num(rain)
        for last in (12, 19, 26):
            decibel = 10 * np.log10(np.maximum(rain[last - 2 : last + 1], 0.03))
            extrapolated = extrapolate(rain[last], dense_lucaskanade(decibel), 12)[-1]
            truth = rain[last + 12][seen] >= 1
            for row, forecast in enumerate((rain[last], np.nan_to_num(extrapolated))):
                rainy = forecast[seen] >= 1
                counts[row] += (rainy & truth).sum(), (rainy & ~truth).sum(), (~rainy & truth).sum()
    return counts[:, 0] / counts.sum(1)


@pytest.mark.filterwarnings("ignore")  # pysteps meets deprecations of NumPy and SciPy
def test_extrapolation_beats_persistence_clearly_and_is_clearly_imperfect(critical_success):
    persistence, extrapolation = critical_success
    assert persistence > 0.03
    assert extrapolation > 1.5 * persistence
    assert 0.2 < extrapolation < 0.6


def test_import_is_light():
    code = (
        "import sys, raincast.synthetic; "
        "sys.exit([m for m in ('torch', 'pysteps', 'matplotlib', 'hydra') if m in sys.modules] or None)"
    )
    # as its own process: the tests beside this one have imported everything
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    )
