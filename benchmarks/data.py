"""How fast windows come out of an archive, against plain xarray and dask reading the same windows.

An archive of 2,000 frames of 512² pixels of moving rain is made once; then, interleaved, one core reads random
windows of 24 frames: crops of 128² and 256² pixels, and whole frames.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch.utils.data import DataLoader

from raincast import schema
from raincast.archive import Archive, PartWriter
from raincast.data.dataset import WindowDataset
from raincast.data.rain import Lattice, rain_table
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.data.windows import BlockSplit, split_windows

SIZE, NUM_FRAMES, STEP_MINUTES = 512, 2000, 5
INPUT_STEPS, LEAD_STEPS, BATCH = 8, 16, 4


def make_archive(folder: Path) -> Archive:
    """Seven days of rain that moves, a fifth of it wet, with the noise that keeps real radar from packing well."""
    rng = np.random.default_rng(0)
    scales = [(16, 1.0), (4, 0.5), (1, 0.3)]
    field = sum(
        w * _normal(ndimage.gaussian_filter(rng.standard_normal((1024, 1024)), s, mode="wrap")) for s, w in scales
    )
    grid = schema.mock_grid(SIZE, SIZE)
    start = np.datetime64("2026-01-01", "ns")
    times = start + schema.step_timedelta(STEP_MINUTES) * np.arange(NUM_FRAMES)
    for day in np.unique(times.astype("datetime64[D]")):
        own = np.flatnonzero(times.astype("datetime64[D]") == day)
        with PartWriter(folder / f"{day}.nc", grid, step_minutes=STEP_MINUTES) as part:
            for number in own:
                moved = np.roll(field, (number, 2 * number), axis=(0, 1))[:SIZE, :SIZE]
                rain = np.maximum(0.0, np.expm1(1.5 * (moved - 1.0))) * rng.gamma(20, 1 / 20, moved.shape)
                part.add(times[number], rain.clip(max=150.0))
    return Archive.open(folder)


def _normal(values: np.ndarray) -> np.ndarray:
    return values / values.std()


def raincast_way(archive: Archive, places: list[Place]) -> int:
    """Batches of codes, as training gets them; one core: no workers."""
    windows = WindowDataset([Source(archive, INPUT_STEPS, LEAD_STEPS)])
    loader = DataLoader(windows, batch_size=BATCH, sampler=places)
    return sum(len(batch["frames"]) for batch in loader)


def xarray_way(dataset: xr.Dataset, places: list[Place]) -> int:
    """The same windows by xarray over dask, decoded as it decodes them, stacked into tensors."""
    count = 0
    for first in range(0, len(places), BATCH):
        frames = [
            dataset[schema.RAIN]
            .isel(time=slice(p.start, p.start + 24), y=slice(p.y, p.y + p.height), x=slice(p.x, p.x + p.width))
            .values
            for p in places[first : first + BATCH]
        ]
        count += len(torch.from_numpy(np.stack(frames)))
    return count


def draw(rng: np.random.Generator, size: int, num: int) -> list[Place]:
    """Places anywhere in the archive."""
    starts = rng.integers(0, NUM_FRAMES - 24, num)
    ys, xs = rng.integers(0, SIZE - size + 1, (2, num))
    return [Place(int(s), int(y), int(x), size, size) for s, y, x in zip(starts, ys, xs, strict=True)]


def rate(way: Callable[[list[Place]], int], places: list[Place]) -> float:
    """Windows a second."""
    began = time.perf_counter()
    count = way(places)
    return count / (time.perf_counter() - began)


def measure(archive: Archive, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Medians of interleaved repeats."""
    import dask

    rows = []
    plain = xr.open_mfdataset(sorted(folder.glob("*.nc")), engine="netcdf4", chunks={}, combine="nested",
                              concat_dim="time", data_vars="minimal", coords="minimal", compat="override",
                              drop_variables=["missing_times", "coverage"])  # fmt: skip
    with dask.config.set(scheduler="synchronous"):  # one core, as ours
        for size, num in ((128, 160), (256, 80), (SIZE, 24)):
            found: dict[str, list[float]] = {"raincast": [], "xarray and dask": []}
            rng = np.random.default_rng(1)
            for repeat in range(repeats + 1):
                places = draw(rng, size, num)
                ours = rate(lambda p: raincast_way(archive, p), places)
                theirs = rate(lambda p: xarray_way(plain, p), places[: max(BATCH, num // 5)])
                if repeat:  # the first warms up
                    found["raincast"].append(ours)
                    found["xarray and dask"].append(theirs)
            rows.append({"window": f"24 × {size}²", **{k: float(np.median(v)) for k, v in found.items()}})
    return rows


def year() -> dict[str, float]:
    """Seconds to find and split the windows of a year of 5-minute frames with gaps."""
    rng = np.random.default_rng(0)
    all_times = np.datetime64("2025-01-01", "ns") + schema.step_timedelta(5) * np.arange(365 * 288)
    times = all_times[rng.random(all_times.size) > 0.002]
    began = time.perf_counter()
    split_windows(times, schema.step_timedelta(5), 24, BlockSplit(), input_steps=8, max_missing=1)
    return {"windows of a year, s": time.perf_counter() - began}


def weigh(archive: Archive) -> dict[str, float]:
    """Frames a second of the pass that weighs crops by their rain, and seconds when it is known."""
    lattice = Lattice.of(archive.grid.shape, (128, 128))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        rain_table(archive, lattice, 1.0)
        seconds.append(time.perf_counter() - began)
    return {"frames weighed a second": archive.num_times / seconds[0], "weights from the cache, s": seconds[1]}


def main() -> None:
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", type=Path, default=Path("outputs/benchmarks/archive"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/data.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    archive = Archive.open(args.archive) if any(args.archive.glob("*.nc")) else make_archive(args.archive)
    size = sum(f.stat().st_size for f in args.archive.glob("*.nc"))
    console = Console()
    rows = measure(archive, args.archive, args.repeats)
    table = Table(title=f"windows/s on one core; {archive.num_times} frames of {SIZE}², {size / 2**20:.0f} MiB")
    for name in ("window", "raincast", "xarray and dask", "ratio"):
        table.add_column(name, justify="left" if name == "window" else "right")
    for row in rows:
        ours, theirs = row["raincast"], row["xarray and dask"]
        table.add_row(row["window"], f"{ours:.0f}", f"{theirs:.1f}", f"{ours / theirs:.1f}")
    console.print(table)
    others = year() | weigh(archive)
    console.print(", ".join(f"{name} {value:.3g}" for name, value in others.items()))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor(), "python": platform.python_version(), "torch": torch.__version__}
    args.json.write_text(json.dumps({"rows": rows, **others, **machine, "archive_bytes": size}, indent=1))


if __name__ == "__main__":
    main()
