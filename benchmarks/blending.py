"""Members, a weather model, and both blended, to 6 hours: CRPS on synthetic storms.

    python benchmarks/blending.py --cases 8

The truth are storms of the built-in archive on 128 × 128 km. The model is the truth with errors: displaced by 5 to
20 km and by up to 3 km more each hour along either axis, amounts multiplied by 0.5 to 2, on pixels of 4 km, as
hourly sums since the run's start in a CF file. It is read, reprojected and blended as `forecast.py nwp=…` does.
The CRPS (mm/h) is that of means over boxes of 1 and 16 pixels, over all pixels. That of the model, one field, is
its absolute error. Ratios have 95 % intervals by resampling cases: to the better one of the two at that lead
time. "as it is" blends the fields without displacing them (blending.corrected=false).
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from members import boxes
from rich.console import Console
from rich.table import Table

from raincast import schema
from raincast.forecaster import Query
from raincast.forecasting import Blending, ModelSettings, WeatherModel
from raincast.forecasting.gaps import Past
from raincast.forecasting.motion import quality_flags
from raincast.forecasting.network import box_forecaster
from raincast.metrics import ensemble
from raincast.synthetic import _rates
from raincast.synthetic.fields import draw_weather, rain_fields

SIZE, EDGE, STEP, PAST, LEADS = 128, 48, 15, 4, 24
"""Pixels of 1 km of the radar, and more around it for the model; minutes; frames."""
PIXEL = 4
BOXES = (1, 16)
SHOWN = (15, 30, 60, 90, 120, 180, 240, 300, 360)
INIT = np.datetime64("2026-06-01T12:00", "ns")
Maps = np.ndarray[Any, np.dtype[np.float32]]


def crps(members: Maps, observed: Maps) -> float:
    """Return the mean CRPS of M members (M, V, U) where (V, U) is observed everywhere."""
    one = torch.from_numpy(np.ascontiguousarray(members))[None, None], torch.from_numpy(observed)[None, None, None]
    return float(ensemble.crps(ensemble.ensemble_sums(*one, torch.ones_like(one[1], dtype=torch.bool))))


def storms(case: int) -> tuple[Maps, np.random.Generator]:
    """(PAST + LEADS, SIZE + 2·EDGE, …) mm/h, and the generator for errors."""
    rng = np.random.default_rng(case)
    weather = draw_weather(case, 7, rng)
    whole = SIZE + 2 * EDGE
    fields = np.stack(list(rain_fields(weather, whole, PAST + LEADS, STEP / 60, rng)))
    return _rates(fields, np.ones((whole, whole), bool), weather), rng


def write_model(rain: Maps, rng: np.random.Generator, path: Path) -> None:
    """Hourly sums since the run's start at INIT, of wrong storms on larger pixels."""
    angle, km, amount = rng.uniform(0, 2 * np.pi), rng.uniform(5, 20), 2.0 ** rng.uniform(-1, 1)
    drift = rng.uniform(-3, 3, 2)
    hours = np.arange(LEADS + 1) * STEP / 60
    moved = []
    for lead, hour in enumerate(hours):
        dy, dx = np.rint(km * np.array([np.sin(angle), np.cos(angle)]) + drift * hour).astype(int)
        moved.append(amount * np.roll(rain[PAST - 1 + lead], (dy, dx), (0, 1)))
    quarter = np.stack(moved)
    per_hour = 60 // STEP
    means = quarter[1:].reshape(LEADS // per_hour, per_hour, *quarter.shape[1:]).mean(1)
    coarse = means.reshape(len(means), means.shape[1] // PIXEL, PIXEL, -1, PIXEL).mean((2, 4))
    sums = np.cumsum(coarse, axis=0)
    radar = schema.mock_grid(SIZE, SIZE)
    number = coarse.shape[1]
    y = radar.y[0] + 1000.0 * (EDGE + 0.5) - 1000.0 * PIXEL * (np.arange(number) + 0.5)
    x = radar.x[0] - 1000.0 * (EDGE + 0.5) + 1000.0 * PIXEL * (np.arange(number) + 0.5)
    ends = INIT + np.arange(1, len(sums) + 1) * np.timedelta64(1, "h")
    dataset = xr.Dataset(
        {
            "precipitation": (
                ("time", "y", "x"),
                sums,
                {"standard_name": "precipitation_amount", "units": "kg m-2", "grid_mapping": "crs"},
            ),
            "time_bnds": (("time", "bnds"), np.stack([np.full(len(ends), INIT), ends], axis=1)),
        },
        {
            "time": ("time", ends, {"bounds": "time_bnds", "standard_name": "time"}),
            "forecast_reference_time": ((), INIT, {"standard_name": "forecast_reference_time"}),
            **schema.Grid(y, x, radar.crs_wkt).to_coords(),
        },
    )
    dataset["time"].encoding["units"] = "minutes since 2026-01-01"
    dataset.to_netcdf(path)


def score(case: int, num_members: int) -> Iterator[dict[str, Any]]:
    """A row for each lead time, box and forecast."""
    rain, rng = storms(case)
    inner = rain[:, EDGE:-EDGE, EDGE:-EDGE]
    later = inner[PAST:]
    past = Past(inner[:PAST], np.zeros(PAST, bool), INIT - np.arange(PAST)[::-1] * np.timedelta64(STEP, "m"))
    query = Query.for_steps(past.rain[None, :, None], LEADS, step_minutes=STEP, pixel_km=1.0, members=True)
    members = box_forecaster().with_members(num_members).predict(query).members
    assert members is not None
    grid = schema.mock_grid(SIZE, SIZE)
    known = quality_flags(past, LEADS, pixel_km=1.0) == 0
    made = {"nowcast": members[0]}
    with tempfile.TemporaryDirectory() as folder:
        write_model(rain, rng, Path(folder) / "model.nc")
        for name, corrected in (("blend", True), ("as it is", False)):
            model = WeatherModel(folder, ModelSettings(corrected=corrected))
            blended = Blending(model)(
                past, members[0], known, grid, step_minutes=float(STEP), num_members=num_members
            )
            made[name] = blended.members
        times = INIT + np.arange(LEADS + 1) * np.timedelta64(STEP, "m")
        found = model.forecast(times, grid, np.ones(grid.shape, bool))
        made["model"] = found.rates[:, 1:].transpose(1, 0, 2, 3)
    for minutes in SHOWN:
        lead = minutes // STEP - 1
        for size in BOXES:
            truth = boxes(later[lead], size)
            for name, maps in made.items():
                found_crps = crps(boxes(maps[lead], size), truth)
                yield {"case": case, "minutes": minutes, "box": size, "who": name, "crps": found_crps}


def report(console: Console, rows: list[dict[str, Any]]) -> None:
    """One line for each box and lead time."""
    cases = sorted({row["case"] for row in rows})
    table = Table(title=f"{len(cases)} cases, CRPS in mm/h", title_justify="left")
    for column in (
        "min",
        "box",
        "nowcast",
        "model",
        "blend",
        "blend / better",
        "worst case",
        "as it is",
        "/ better",
    ):
        table.add_column(column)
    for box in BOXES:
        for minutes in SHOWN:
            found = {
                who: np.array(
                    [
                        row["crps"]
                        for row in rows
                        if (row["minutes"], row["box"], row["who"]) == (minutes, box, who)
                    ]
                )
                for who in ("nowcast", "model", "blend", "as it is")
            }
            better = min((found["nowcast"], found["model"]), key=lambda values: float(values.mean()))
            worst = (found["blend"] / np.minimum(found["nowcast"], found["model"])).max()
            table.add_row(
                f"{minutes}", f"{box} px", *(f"{found[who].mean():.4f}" for who in ("nowcast", "model", "blend")),
                _ratio(found["blend"], better), f"{worst:.2f}", f"{found['as it is'].mean():.4f}",
                _ratio(found["as it is"], better),
            )  # fmt: skip
    console.print(table)


def _ratio(own: Any, other: Any) -> str:
    chosen = np.random.default_rng(0).integers(len(own), size=(2000, len(own)))
    low, high = np.quantile(own[chosen].mean(1) / other[chosen].mean(1), [0.025, 0.975])
    return f"{own.mean() / other.mean():.2f} [{low:.2f}, {high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make storms, forecast, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--members", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=150)
    rows = [row for case in range(options.cases) for row in score(case, options.members)]
    report(console, rows)


if __name__ == "__main__":
    main()
