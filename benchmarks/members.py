"""Members of the bundled forecaster compared with those of STEPS: pixels, boxes, and sums over an hour.

    python benchmarks/members.py mch=data/mch2016 fmi=data/fmi2017 --starts 6

Windows, frames and pixels are those of `benchmarks/leave_one_out.py`, with 20 members each. The CRPS (mm/h) is
that of means over boxes of 1, 4, 16 and 64 pixels, and of the mean rate of the hour; a box counts if all of it was
observed. It is printed with the difference from STEPS in percent and its 95 % interval, from resampling start
times. The fair CRPS treats ensembles of all sizes alike. Energy and variogram score
(`raincast.metrics.ensemble`) judge all boxes of a map together. Spread over error is best at 1
(`raincast.metrics.ensemble`). Seconds are those of one processor per start time.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from leave_one_out import LEADS, Maps, inside_window, windows
from rich.console import Console
from rich.table import Table

from raincast.baselines import Steps
from raincast.baselines.motion import find_motion
from raincast.forecaster import Query
from raincast.forecasting.network import box_forecaster
from raincast.metrics import ensemble

BOXES = (1, 4, 16, 64)
MEMBERS = 20


def scores(members: Maps, observed: Maps, counted: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return scores of M members (M, V, U) where (V, U) are `counted`."""
    one = (torch.from_numpy(members)[None, None], torch.from_numpy(observed)[None, None, None])
    mask = torch.from_numpy(counted)[None, None, None]
    sums, maps = ensemble.ensemble_sums(*one, mask), ensemble.multivariate_sums(*one, mask)
    made = {
        "crps": ensemble.crps(sums), "fair": ensemble.fair_crps(sums),
        "spread": sums.variance / sums.count, "error": sums.squared_error / sums.count,
        "energy": ensemble.energy_score(maps), "variogram": ensemble.variogram_score(maps),
    }  # fmt: skip
    return {name: float(value) for name, value in made.items()}


def boxes(maps: Maps, size: int) -> Maps:
    """Return means over boxes of `size` × `size` pixels, (…, H, W) → (…, H // size, W // size)."""
    h, w = (length // size for length in maps.shape[-2:])
    cut = maps[..., : h * size, : w * size]
    means: Maps = cut.reshape(*maps.shape[:-2], h, size, w, size).mean((-3, -1))
    return means


def score(window: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each lead time, box and forecaster."""
    past, later, step, pixel = (window[name] for name in ("past", "later", "step", "pixel"))
    motion = find_motion(past[-3:], "lucas_kanade")
    if motion is None:
        return
    query = Query.for_steps(past[None, :, None], len(later), step_minutes=step, pixel_km=pixel, members=True)
    made, seconds = {}, {}
    for name, forecaster in (
        ("STEPS", Steps(num_members=MEMBERS)),
        ("raincast", box_forecaster().with_members(MEMBERS)),
    ):
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            members = forecaster.predict(query).members
        assert members is not None
        made[name], seconds[name] = members[0], time.process_time() - began
    fields = {f"{lead} min": round(lead / step) - 1 for lead in LEADS if lead % step == 0 and lead >= step}
    for what, number in {**fields, "mean of the hour": None}.items():
        leads = slice(number, number + 1) if number is not None else slice(0, len(later))
        counted = np.isfinite(later[leads]).all(0) & inside_window(past[-1], motion, leads.stop)
        truth = np.nan_to_num(later[leads]).mean(0)
        for size in BOXES:
            whole = boxes(counted.astype(np.float32), size) > 0.999
            if not whole.any():
                continue
            for name, members in made.items():
                row = {"start": window["start"], "what": what, "box": size, "who": name, "seconds": seconds[name]}
                yield row | scores(boxes(members[leads].mean(0), size), boxes(truth, size), whole)


def report(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    """Print one line for each lead time and box."""
    starts = len({row["start"] for row in rows})
    table = Table(title=f"{name}: {starts} start times, CRPS in mm/h", title_justify="left")
    table.add_column("means over")
    for column in ("box", "STEPS", "raincast", "CRPS less STEPS'", "fair CRPS", "energy", "variogram"):
        table.add_column(column)
    for who in ("STEPS", "raincast"):
        table.add_column(f"spread/error, {who}")
    for what, box in dict.fromkeys((row["what"], row["box"]) for row in rows):
        found = {
            who: [row for row in rows if (row["what"], row["box"], row["who"]) == (what, box, who)]
            for who in ("STEPS", "raincast")
        }
        means = {who: _mean(found[who], "crps") for who in found}
        ratio = {
            who: np.sqrt(
                np.mean([row["spread"] for row in found[who]]) / np.mean([row["error"] for row in found[who]])
            )
            for who in found
        }
        differences = [_difference(found, score) for score in ("crps", "fair", "energy", "variogram")]
        texts = [f"{means[who]:.4f}" for who in found] + differences + [f"{ratio[who]:.2f}" for who in found]
        table.add_row(what, f"{box} px", *texts)
    console.print(table)
    for who in ("STEPS", "raincast"):
        console.print(f"{who}: {np.median([row['seconds'] for row in rows if row['who'] == who]):.1f} s a start")


def _mean(rows: list[dict[str, Any]], score: str) -> float:
    return float(np.mean([row[score] for row in rows]))


def _difference(found: dict[str, list[dict[str, Any]]], score: str) -> str:
    pairs = np.array([[row[score] for row in found[who]] for who in ("raincast", "STEPS")]).T
    share = pairs[:, 0].mean() / pairs[:, 1].mean() - 1
    if len(pairs) < 4:
        return f"{share:+.0%}"
    chosen = pairs[np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))].mean(1)
    low, high = np.quantile(chosen[:, 0] / chosen[:, 1] - 1, [0.025, 0.975])
    return f"{share:+.0%} [{low:+.0%}, {high:+.0%}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the archives, forecast, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NAME=ARCHIVE[,ARCHIVE…]")
    parser.add_argument("--starts", type=int, default=6, help="start times of each archive")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=180)
    for entry in options.networks:
        name, paths = entry.split("=", 1)
        rows = [
            row
            for path in paths.split(",")
            for window in windows(Path(path), options.starts, options.size)
            for row in score(window)
        ]
        if rows:
            report(console, name, rows)


if __name__ == "__main__":
    main()
