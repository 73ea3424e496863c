"""Forecasts of another party, from the files that forecast.py writes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from checking import query, rates_of

from raincast.baselines import ForecastFiles
from raincast.evaluation import evaluate
from raincast.forecasting.files.dataset import MEMBER, MEMBERS, forecast_dataset, with_members
from raincast.forecasting.files.netcdf import write_forecast
from raincast.schema import EXCEEDANCE, Grid, mock_grid
from raincast.schema import RAIN as RAIN_NAME

GRID = mock_grid(12, 10)
START = np.datetime64("2026-01-01T10:00", "s")
RAIN = np.zeros((2, 3, 1, 5, 4), np.float32)


def rates(number: int) -> np.ndarray:
    """(4, 12, 10) mm/h, in hundredths as files hold them; no two pixels the same."""
    return (np.arange(4 * 12 * 10).reshape(4, 12, 10) / 100 + 10 * number).astype(np.float32)


def write(folder: Path, number: int, *, grid: Grid = GRID, rain: np.ndarray | None = None) -> Path:
    dataset = forecast_dataset(
        rates(number) if rain is None else rain,
        init_time=START + np.timedelta64(5 * number, "m"),
        step_minutes=5,
        grid=grid,
        cell_methods="time: point",
        attrs={},
    )
    return write_forecast(dataset, folder / f"{number}.nc")


def read(path: Path, num_steps: int, *, at: np.ndarray, y: int = 0, x: int = 0, name: str = "file") -> np.ndarray:
    """What `ForecastFiles` has for one window, (num_steps, 5, 4)."""
    files = ForecastFiles(path, name=name)
    return rates_of(files, RAIN[:1], num_steps, times=at, grid=GRID, y=[y], x=[x])[0, :, 0]


def times(*numbers: int) -> np.ndarray:
    return START + np.timedelta64(5, "m") * np.array(numbers)


def test_windows_get_their_time_and_place(tmp_path):
    for number in range(3):
        write(tmp_path, number)
    out = rates_of(ForecastFiles(tmp_path), RAIN, 2, times=times(2, 0), grid=GRID, y=[3, 7], x=[0, 6])
    assert out.shape == (2, 2, 1, 5, 4)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, :, 0], rates(2)[:2, 3:8, :4], rtol=1e-6)
    np.testing.assert_allclose(out[1, :, 0], rates(0)[:2, 7:12, 6:], rtol=1e-6)


def test_a_file_turned_upside_down_is_read_by_its_coordinates(tmp_path):
    turned = Grid(GRID.y[::-1].copy(), GRID.x, GRID.crs_wkt)
    write(tmp_path, 0, grid=turned, rain=rates(0)[:, ::-1].copy())
    out = read(tmp_path / "0.nc", 4, at=times(0), y=2, x=1)
    np.testing.assert_allclose(out, rates(0)[:, 2:7, 1:5], rtol=1e-6)


def test_missing_pixels_are_no_rain(tmp_path):
    rain = rates(0)
    rain[:, :3] = np.nan
    write(tmp_path, 0, rain=rain)
    out = read(tmp_path, 1, at=times(0))[0]
    assert not out[:3].any()
    assert out[3:].all()


@pytest.mark.parametrize("other", ["moved", "smaller"])
def test_another_grid_is_refused(tmp_path, other):
    if other == "moved":
        write(tmp_path, 0, grid=Grid(GRID.y, GRID.x + 300.0, GRID.crs_wkt))
    else:
        write(tmp_path, 0, grid=Grid(GRID.y[:4], GRID.x, GRID.crs_wkt), rain=rates(0)[:, :4])
    with pytest.raises(ValueError, match=r"0\.nc does not have the pixels that are scored"):
        read(tmp_path, 1, at=times(0))


def test_what_was_never_forecast_is_an_error(tmp_path):
    write(tmp_path, 0)
    with pytest.raises(ValueError, match=r"no forecast from 2026-01-01T10:05; it has 1, from 2026-01-01T10:00"):
        read(tmp_path, 1, at=times(1))
    with pytest.raises(ValueError, match=r"lacks lead times, the first 25 min"):
        read(tmp_path, 5, at=times(0))
    with pytest.raises(ValueError, match="service are forecasts in files"):
        rates_of(ForecastFiles(tmp_path, name="service"), RAIN, 1)


def test_paths_without_forecasts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"baseline\.file\.path="):
        ForecastFiles(None)
    with pytest.raises(ValueError, match="neither a forecast file nor a folder"):
        ForecastFiles(tmp_path)
    (tmp_path / "a.nc").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.nc cannot be read as a CF netCDF file"):
        ForecastFiles(tmp_path)
    (tmp_path / "a.nc").unlink()
    write(tmp_path, 0).rename(tmp_path / "first.nc")
    write(tmp_path, 0)
    with pytest.raises(ValueError, match=r"are both from 2026-01-01T10:00"):
        ForecastFiles(tmp_path)


def test_evaluation_tells_time_and_place(tmp_path):
    for number in range(2):
        write(tmp_path, number)
    # what comes true is what the files say: each batch as one window elsewhere and at another time
    batches = []
    for number, top, left in ((1, 4, 2), (0, 0, 6)):
        target = torch.from_numpy(rates(number)[:2, top : top + 5, left : left + 4])[None, :, None]
        batches.append(
            {
                "input": torch.zeros(1, 3, 1, 5, 4),
                "target": target,
                "target_mask": torch.ones_like(target, dtype=torch.bool),
                "time": torch.tensor([times(number)[0].astype(np.int64)]),
                "y": torch.tensor([top]),
                "x": torch.tensor([left]),
            }
        )
    scores = evaluate(
        [ForecastFiles(tmp_path)], batches, thresholds=[1.0], lead_steps=2, step_minutes=5.0, grid=GRID
    )
    np.testing.assert_allclose(scores["mae"], 0, atol=1e-5)
    np.testing.assert_array_equal(scores["csi"], 1)


def test_lead_times_that_are_no_steps_are_read_by_their_time(tmp_path):
    write(tmp_path, 0)
    asked = query(RAIN[:1], 4, step_minutes=4.0, times=times(0), grid=GRID)
    out = ForecastFiles(tmp_path).predict(dataclasses.replace(asked, lead_minutes=[10.0, 20.0])).rates
    np.testing.assert_allclose(out[0, :, 0], rates(0)[[1, 3], :5, :4], rtol=1e-6)


def write_members(folder: Path, number: int, num_members: int, *, alone: bool = False) -> Path:
    """A forecast whose member m has m mm/h more, and rates of its own; with `alone`, none."""
    path = write(folder, number)
    with xr.open_dataset(path, decode_timedelta=True) as file:
        dataset = file.load()
    dataset = with_members(dataset, np.stack([rates(number) + m for m in range(num_members)], axis=1))
    path.unlink()
    return write_forecast(dataset, path) if not alone else _renamed(dataset.drop_vars(RAIN_NAME), path)


def _renamed(dataset: xr.Dataset, path: Path) -> Path:
    """In another party's words."""
    dataset.rename({MEMBERS: "precipitation", MEMBER: "realization"}).to_netcdf(path, engine="netcdf4")
    return path


@pytest.mark.parametrize("alone", [False, True])
def test_members_are_scored_as_an_ensemble(tmp_path, alone):
    for number in range(2):
        write_members(tmp_path, number, 3, alone=alone)
    files = ForecastFiles(tmp_path)
    assert files.gives.members
    asked = query(RAIN, 2, times=times(1, 0), grid=GRID, y=[3, 7], x=[0, 6])
    made = files.predict(dataclasses.replace(asked, members=True))
    one, other = rates(1)[:2, 3:8, :4], rates(0)[:2, 7:12, 6:]
    for sample, known in enumerate((one, other)):
        for member in range(3):
            np.testing.assert_allclose(made.members[sample, :, member], known + member, atol=1e-3)
        np.testing.assert_allclose(made.rates[sample, :, 0], known + alone, atol=1e-3)
    assert files.predict(asked).members is None
    likely = files.predict(dataclasses.replace(asked, thresholds=(0.5, 1.5)))
    assert likely.members is None and likely.probabilities.shape[2] == 2
    for k, rate in enumerate((0.5, 1.5)):
        np.testing.assert_array_equal(likely.probabilities[:, :, k], (made.members >= rate).mean(2))
    np.testing.assert_allclose(files.predict(asked).rates, made.rates)
    rate_alone = ForecastFiles(tmp_path, members=False)
    assert not rate_alone.gives.members and len(rate_alone.gives.times) == 2


def test_forecasts_without_members_among_others_are_left_out_and_named(tmp_path, caplog):
    write(tmp_path, 0)
    write_members(tmp_path, 1, 3)
    files = ForecastFiles(tmp_path)
    assert "1 of the 2 forecasts" in caplog.text and list(files.gives.times) == [times(1)[0]]
    assert len(ForecastFiles(tmp_path, members=False).gives.times) == 2
    write_members(tmp_path, 2, 4)
    with pytest.raises(ValueError, match="have 3 and 4 members"):
        ForecastFiles(tmp_path)
    (tmp_path / "1.nc").unlink()
    write_members(tmp_path, 1, 4)
    asked = dataclasses.replace(query(RAIN[:1], 2, times=times(1), grid=GRID), members=True)
    with pytest.raises(ValueError, match="was rewritten: it no longer has 3 members"):
        files.predict(asked)


def test_unused_probabilities_are_named(tmp_path, caplog):
    path = write(tmp_path, 0)
    ForecastFiles(tmp_path)
    assert not caplog.records
    with xr.open_dataset(path) as dataset:
        dataset = dataset.load()
    chances = xr.zeros_like(dataset[RAIN_NAME]).expand_dims(threshold=[1.0]).astype(np.float32)
    chances.encoding = {}
    dataset.assign({EXCEEDANCE: chances}).to_netcdf(path)
    ForecastFiles(tmp_path)
    assert "rain_rate_exceedance of 1 forecasts" in caplog.text and "is not used" in caplog.text
