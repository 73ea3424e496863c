import logging
import subprocess
import sys

import numpy as np
import pytest
from checking import query, rates_of
from scipy.ndimage import gaussian_filter

from raincast.baselines import Extrapolation, Persistence
from raincast.baselines.motion import evenly_spaced, find_motion


def moving(dx: int = 3, dy: int = 2, frames: int = 8, size: int = 96) -> np.ndarray:
    """Rain cells (frames, size, size) in mm/h, of which each frame is the last one moved by (dx, dy)."""
    noise = np.random.default_rng(0).standard_normal((3 * size, 3 * size))
    field = gaussian_filter(noise, 5)
    rain = np.clip(field / field.std() - 0.5, 0, None) * 6
    return np.stack(
        [rain[size - t * dy : 2 * size - t * dy, size - t * dx : 2 * size - t * dx] for t in range(frames)]
    ).astype(np.float32)


def as_batch(frames: np.ndarray) -> np.ndarray:
    return frames[None, :, None]


def mse(a: np.ndarray, b: np.ndarray) -> float:
    inner = (..., slice(20, -20), slice(20, -20))  # what flows in at the border nobody can know
    return float(np.mean((a[inner] - b[inner]) ** 2))


def test_persistence_repeats_the_last_frame():
    rain = moving()
    out = rates_of(Persistence(), as_batch(rain), 4)
    np.testing.assert_array_equal(out, np.broadcast_to(rain[-1], (1, 4, 1, 96, 96)))


def test_persistence_takes_each_pixels_last_valid_observation():
    rain = np.array([[[1.0, 2.0, np.nan]], [[np.nan, 3.0, np.nan]]], dtype=np.float32)
    np.testing.assert_array_equal(rates_of(Persistence(), as_batch(rain), 1)[0, 0, 0], [[1.0, 3.0, 0.0]])


@pytest.mark.parametrize(("num_past", "missing"), [(4, []), (5, [4]), (8, [6])])
def test_extrapolation_clearly_beats_persistence_on_a_moving_pattern(num_past, missing):
    """Also where the newest frame is missing, or the one before it."""
    rain = moving(frames=12)
    past, future = as_batch(rain[:num_past]).copy(), as_batch(rain[num_past : num_past + 4])
    past[:, missing] = np.nan
    flow = mse(rates_of(Extrapolation(), past, 4), future)
    assert flow < 0.15 * mse(rates_of(Persistence(), past, 4), future)


@pytest.mark.parametrize(
    ("missing", "used", "spacing"),
    [((), [5, 6, 7], 1), ((7,), [4, 5, 6], 1), ((6,), [3, 5, 7], 2), ((5, 6), [1, 4, 7], 3), ((0, 1, 2, 3, 4, 6), [5, 7], 2),
     ((5,), [6, 7], 1), (range(7), [7], 1), (range(8), [0], 1)],
)  # fmt: skip
def test_motion_is_taken_from_evenly_spaced_frames_up_to_the_last(missing, used, spacing):
    frames = np.zeros((8, 2, 2), np.float32)
    frames[list(missing)] = np.nan
    numbers, found = evenly_spaced(frames, 3)
    assert (numbers.tolist(), found) == (used, spacing)


@pytest.mark.parametrize("missing", [[6], [5, 6]])
def test_motion_over_a_gap_is_that_of_a_step(missing):
    rain = moving()
    rain[missing] = np.nan
    numbers, spacing = evenly_spaced(rain, 3)
    motion = find_motion(rain[numbers], "lucas_kanade", spacing=spacing)
    wet = np.zeros((96, 96), bool)
    wet[25:-25, 25:-25] = rain[-1, 25:-25, 25:-25] > 1
    assert np.abs(np.median(motion[:, wet], axis=1) - (3, 2)).max() < 0.3


def test_extrapolation_moves_samples_apart():
    rain = moving()
    pair = np.concatenate([as_batch(rain[:4]), as_batch(rain[3::-1])])
    together = rates_of(Extrapolation(), pair, 2)
    for b in range(2):
        np.testing.assert_array_equal(together[b : b + 1], rates_of(Extrapolation(), pair[b : b + 1], 2))


def test_only_the_first_channel_is_rain():
    past = as_batch(moving()[:3])
    two = np.concatenate([past, np.full_like(past, 50.0)], axis=2)
    np.testing.assert_array_equal(rates_of(Extrapolation(), two, 2), rates_of(Extrapolation(), past, 2))


def test_the_fallback_is_logged_once(caplog):
    caplog.set_level(logging.INFO, logger="raincast.baselines")
    forecaster = Extrapolation()
    for _ in range(3):
        rates_of(forecaster, np.zeros((2, 2, 1, 16, 16), np.float32), 1)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_what_flows_in_is_no_rain():
    rain = moving(dx=6, dy=0)
    out = rates_of(Extrapolation(), as_batch(rain[:4]), 8)[0, -1, 0]
    assert not out[:, :30].any()  # 8 steps of about 6 pixels from the left
    assert out[:, 60:].any()


def test_importing_the_module_does_not_import_pysteps():
    code = "import sys, raincast.baselines; print('pysteps' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_how_each_sample_was_made_is_said():
    rain = moving()[:3]
    pair = np.stack([rain, np.zeros_like(rain)])[:, :, None]
    assert Extrapolation().predict(query(pair, 2)).done == ("extrapolation", "persistence")
    assert Persistence().predict(query(pair, 2)).done == ("persistence", "persistence")
