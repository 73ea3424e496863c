"""The rolling scores are those of counting pixels by hand, each observation once."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from checking import check_encoded, rates_of

from raincast import schema
from raincast.archive import CODE_MM_H, MISSING_CODE, nearest_codes
from raincast.baselines import Extrapolation, Persistence, SProg
from raincast.forecasting import forecast_name
from raincast.forecasting.files.dataset import forecast_dataset
from raincast.forecasting.files.netcdf import write_forecast
from raincast.live.verification import METHODS, Verification

LEADS, STEP, THRESHOLDS = 3, np.timedelta64(5, "m"), (0.5, 2.0)
START = np.datetime64("2026-06-01T10:50", "ns")


def verification(
    folder: Path, hours: float = 24.0, checkpoint: str = "abc", sprog_pixels: int = 10_000
) -> Verification:
    return Verification(
        folder, step_minutes=5.0, lead_steps=LEADS, thresholds=THRESHOLDS, hours=hours, checkpoint=checkpoint,
        sprog_pixels=sprog_pixels,
    )  # fmt: skip


def rain_of(frames: int, seed: int = 0) -> np.ndarray:
    rain = np.random.default_rng(seed).gamma(0.5, 2.0, (frames, 24, 20)).round(2).astype(np.float32)
    rain[:, :3] = np.nan
    return rain


def publish(folder: Path, init_time: np.datetime64, rain: np.ndarray, checkpoint: str = "abc") -> None:
    dataset = forecast_dataset(
        rain, init_time=init_time, step_minutes=5.0, grid=schema.mock_grid(24, 20), cell_methods="time: point",
        attrs={"checkpoint_sha256": checkpoint},
    )  # fmt: skip
    write_forecast(dataset, folder / f"{forecast_name(init_time)}.nc")


def csi(pred: list[np.ndarray], seen: list[np.ndarray], threshold: float) -> float:
    hits = misses = false = 0
    for p, s in zip(pred, seen, strict=True):
        valid = np.isfinite(s) & np.isfinite(p)
        hits += int((valid & (p >= threshold) & (s >= threshold)).sum())
        misses += int((valid & (p < threshold) & (s >= threshold)).sum())
        false += int((valid & (p >= threshold) & (s < threshold)).sum())
    return hits / (hits + misses + false)


def test_rolling_csi_is_that_of_counting_by_hand(tmp_path: Path) -> None:
    observed, forecasts = rain_of(8), [rain_of(LEADS, seed) for seed in range(1, 9)]
    scored = verification(tmp_path)
    said: dict[str, dict[int, list[np.ndarray]]] = {m: {lead: [] for lead in range(LEADS)} for m in METHODS}
    seen: dict[int, list[np.ndarray]] = {lead: [] for lead in range(LEADS)}
    for number in range(8):  # across 11 o'clock: two sums of an hour
        time = START + number * STEP
        assert scored.observe(time, observed[number]) == min(number, LEADS)
        past = observed[max(0, number - 2) : number + 1]
        publish(tmp_path, time, forecasts[number])
        scored.remember(time, past)
        moved = rates_of(Extrapolation(), past[None, :, None], LEADS)[0, :, 0]
        still = rates_of(Persistence(), past[None, :, None], LEADS)[0, :, 0]
        smooth = rates_of(SProg(), past[None, :, None], LEADS)[0, :, 0]
        for lead in range(min(LEADS, 7 - number)):
            seen[lead].append(observed[number + lead + 1])
            said["forecast"][lead].append(forecasts[number][lead])
            said["persistence"][lead].append(np.where(np.isnan(forecasts[number][lead]), np.nan, still[lead]))
            for method, rates in (("extrapolation", moved), ("sprog", smooth)):
                codes = nearest_codes(rates[lead])  # as it is kept
                said[method][lead].append(np.where(codes == MISSING_CODE, np.nan, codes * CODE_MM_H))
    assert len(scored.counts) == 2
    summary = scored.summary()
    assert summary["observations"] == 7 and summary["comparisons"] == sum(map(len, seen.values()))
    for method in METHODS:
        for k, threshold in enumerate(THRESHOLDS):
            by_hand = [csi(said[method][lead], seen[lead], threshold) for lead in range(LEADS)]
            assert summary["csi"][method][k] == pytest.approx(by_hand, abs=2e-4)
            assert summary["mean_csi"][method][k] == pytest.approx(np.mean(by_hand), abs=2e-4)


def test_a_perfect_forecast_scores_one_and_nothing_scores_nothing(tmp_path: Path) -> None:
    observed = rain_of(4)
    scored = verification(tmp_path)
    assert scored.summary()["csi"]["forecast"] == [[None] * LEADS] * 2
    publish(tmp_path, START, observed[1:])
    scored.remember(START, observed[:1])
    for number in (1, 2, 3):
        assert scored.observe(START + number * STEP, observed[number]) == 1
    assert scored.summary()["csi"]["forecast"] == [[1.0] * LEADS] * 2


def test_a_grid_that_is_too_large_for_s_prog_is_scored_without_it(tmp_path: Path) -> None:
    observed = rain_of(4)
    scored = verification(tmp_path, sprog_pixels=observed[0].size - 1)
    publish(tmp_path, START, observed[1:])
    scored.remember(START, observed[:1])
    for number in (1, 3):
        assert scored.observe(START + number * STEP, observed[number]) == 1
    csi = scored.summary()["csi"]
    assert csi["sprog"] == [[None] * LEADS] * 2 and csi["forecast"] == [[1.0, None, 1.0]] * 2
    assert all(0 < value < 1 for row in csi["extrapolation"] for value in (row[0], row[2]))


def test_forecasts_of_another_network_or_damaged_ones_do_not_count(tmp_path: Path) -> None:
    observed = rain_of(3)
    scored = verification(tmp_path)
    publish(tmp_path, START, observed, checkpoint="another")
    scored.remember(START, observed[:1])
    assert scored.observe(START + STEP, observed[1]) == 0
    path = tmp_path / f"{forecast_name(START + STEP)}.nc"
    publish(tmp_path, START + STEP, observed)
    scored.remember(START + STEP, observed[:1])
    path.write_bytes(path.read_bytes()[:2000])
    assert scored.observe(START + 2 * STEP, observed[2]) == 0


def test_sums_go_on_after_a_restart_but_not_with_another_network(tmp_path: Path) -> None:
    observed = rain_of(3)
    scored = verification(tmp_path)
    publish(tmp_path, START, observed)
    scored.remember(START, observed[:1])
    scored.observe(START + STEP, observed[1])
    again = verification(tmp_path)
    again.from_state(scored.to_state())
    assert again.summary() == scored.summary() and again.has_scored(START + STEP)
    other = verification(tmp_path, checkpoint="another")
    other.from_state(scored.to_state())
    assert other.summary()["comparisons"] == 0


def test_old_sums_and_references_are_dropped(tmp_path: Path) -> None:
    observed = rain_of(3)
    scored = verification(tmp_path, hours=2.0)
    publish(tmp_path, START, observed)
    scored.remember(START, observed[:1])
    scored.observe(START + STEP, observed[1])
    scored.forget(START + STEP)
    assert scored.counts and scored.remembers(START)
    scored.forget(START + np.timedelta64(4, "h"))
    assert not scored.counts and not scored.scored and not scored.remembers(START)


def test_references_are_small_and_exact_to_a_code(tmp_path: Path) -> None:
    observed = rain_of(3)
    scored = verification(tmp_path)
    scored.remember(START, observed)
    with xr.open_dataset(next((tmp_path / ".references").glob("*.nc"))) as file:
        assert file["rain_rate"].shape == (1 + 2 * LEADS, 24, 20)
        check_encoded(file["rain_rate"][0], rates_of(Persistence(), observed[None, :, None], 1)[0, 0, 0])
