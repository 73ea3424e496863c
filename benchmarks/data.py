"""Speed of reading windows from an archive, compared with plain xarray and dask on the same windows.

An archive of 2,000 frames of 512² pixels of moving rain is made once, or `--archive` names an existing one. Then
one core reads random windows of 24 frames, interleaved: crops of 128² and 256² pixels, and whole frames.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import netCDF4
import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from timing import medians, write_json
from torch.utils.data import DataLoader

from raincast import schema
from raincast.archive import Archive, PartWriter, open_part
from raincast.archive.chunks import ChunkedCodes, Unpacked
from raincast.data.dataset import WindowDataset, collate
from raincast.data.rain import Lattice, rain_table
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.data.windows import BlockSplit, split_windows
from raincast.system.heap import keep_freed_memory

SIZE, NUM_FRAMES, STEP_MINUTES = 512, 2000, 5
INPUT_STEPS, LEAD_STEPS, BATCH = 8, 16, 4
PACKED = {"compression": "zstd", "complevel": 3}  # as in archives


def make_archive(folder: Path) -> Archive:
    """Make seven days of moving rain, a fifth of it wet, with noise that compresses as badly as real radar."""
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


def raincast_way(archive: Archive, places: list[Place], *, decoded: bool = False) -> int:
    """Read batches of codes, as training does; on one core, without workers."""
    windows = WindowDataset([Source(archive, INPUT_STEPS, LEAD_STEPS)])
    loader = DataLoader(windows, batch_size=BATCH, sampler=places, collate_fn=collate)
    return sum(len(windows.decode(batch)["input"] if decoded else batch["frames"]) for batch in loader)


def xarray_way(dataset: xr.Dataset, places: list[Place]) -> int:
    """Read the same windows with xarray over dask, decoded by xarray, stacked into tensors."""
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


def draw(rng: np.random.Generator, archive: Archive, size: int | None, num: int) -> list[Place]:
    """Draw places anywhere in the archive: crops of size², or whole frames."""
    rows, columns = archive.grid.shape
    height, width = size or rows, size or columns
    starts = rng.integers(0, archive.num_times - 24, num)
    ys, xs = rng.integers(0, rows - height + 1, num), rng.integers(0, columns - width + 1, num)
    return [Place(int(s), int(y), int(x), height, width) for s, y, x in zip(starts, ys, xs, strict=True)]


def turned(places: list[Place]) -> list[Place]:
    """Return the same places, rotated and mirrored in all eight ways, as training draws them."""
    return [place._replace(orientation=number % 8) for number, place in enumerate(places)]


def keeping_nothing(archive: Archive) -> Archive:
    """Return the archive with caching as in one of many years: no chunk is still unpacked when needed again."""
    with mock.patch.object(open_part, "UNPACKED_BYTES", 0):
        other = Archive.open(archive.path)
        other.read_codes(0, 1)
    return other


def netcdf_way(parts: list[netCDF4.Dataset], archive: Archive, places: list[Place]) -> None:
    """Read with netCDF4 alone, without stacking or tensors: the lower bound for readers of these files."""
    for p in places:
        pieces = []
        for own, part in zip(parts, archive.parts, strict=True):
            start, stop = max(p.start, part.first), min(p.start + 24, part.first + part.num_times)
            if start < stop:
                rows, columns = slice(p.y, p.y + p.height), slice(p.x, p.x + p.width)
                pieces.append(own[schema.RAIN][start - part.first : stop - part.first, rows, columns])
        np.concatenate(pieces)


def measure(archive: Archive, folder: Path, repeats: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Return windows per second, from medians of interleaved repeats."""
    import dask

    rows = []
    plain = xr.open_mfdataset(sorted(folder.glob("*.nc")), engine="netcdf4", chunks={}, combine="nested",
                              concat_dim="time", data_vars="minimal", coords="minimal", compat="override",
                              drop_variables=["missing_times", "coverage"])  # fmt: skip
    rng = np.random.default_rng(1)
    parts = [netCDF4.Dataset(part.path) for part in archive.parts]
    for part in parts:
        part.set_auto_maskandscale(False)
    once = keeping_nothing(archive)
    with dask.config.set(scheduler="synchronous"):  # one core, as for raincast
        for size, num in ((128, 160), (256, 80), (None, 24)):
            if size and size > min(archive.grid.shape):
                continue
            few = max(BATCH, num // 5)
            sets = [[draw(rng, archive, size, num) for _ in range(repeats + 1)] for _ in range(3)]
            # different places for each method on an archive: chunks read by one would already be unpacked for the
            # next
            each = [iter(sets[number]) for number in (0, 1, 2, 0, 0, 0)]
            ways: dict[str, Callable[[], Any]] = {
                "raincast": lambda its=each: raincast_way(archive, next(its[0])),
                "turned": lambda its=each: raincast_way(archive, turned(next(its[1]))),
                "turned, in mm/h": lambda its=each: raincast_way(archive, turned(next(its[2])), decoded=True),
                "turned, nothing kept": lambda its=each: raincast_way(once, turned(next(its[3]))),
                "netCDF4 alone": lambda its=each: netcdf_way(parts, archive, next(its[4])),
                "xarray and dask": lambda its=each, few=few: xarray_way(plain, next(its[5])[:few]),
            }
            seconds = medians(ways, repeats=repeats, warm_up=1, clock=clock)
            read = dict.fromkeys(ways, num) | {"xarray and dask": few}
            window = f"24 × {size}²" if size else "24 × {} × {}".format(*archive.grid.shape)
            rows.append({"window": window} | {name: n / seconds[name] for name, n in read.items()})
    for part in parts:
        part.close()
    return rows


def chunks(archive: Archive, repeats: int) -> list[dict[str, Any]]:
    """Return milliseconds per window, without unpacked chunks, for a day written in several encodings."""
    encodings: dict[str, dict[str, Any]] = {
        f"{frames} × {side}², zstd 3": {"chunksizes": (frames, side, side)} | PACKED
        for frames, side in ((8, 128), (8, 96), (8, 64), (8, 48), (8, 32), (4, 64), (16, 64), (24, 32))
    }
    for name, method, level in (("zstd", "zstd", 1), ("zstd", "zstd", 9), ("zstd", "zstd", 15),
                                ("Blosc LZ4", "blosc_lz4", 5), ("Blosc zstd", "blosc_zstd", 3)):  # fmt: skip
        encodings[f"8 × 64², {name} {level}"] = {
            "chunksizes": (8, 64, 64),
            "compression": method,
            "complevel": level,
        }
    rows: list[dict[str, Any]] = []
    part = max(archive.parts, key=lambda part: part.num_times)
    codes = archive.read_codes(part.first, part.num_times)
    sizes = [(size, num) for size, num in ((128, 80), (256, 40)) if size <= min(archive.grid.shape)]
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / f"{number}.nc" for number in range(len(encodings))]
        for name, path in zip(encodings, paths, strict=True):
            began = time.process_time()
            write_codes(path, codes, encodings[name])
            spent = time.process_time() - began
            rows.append({"chunk": name, "MiB": path.stat().st_size / 2**20, "write, s": spent})
        readers = dict(zip(encodings, map(reader, paths), strict=True))
        for size, num in [*sizes, (None, 12), (0, 20)]:
            places = draw(np.random.default_rng(1), archive, size or None, num)
            starts = [p._replace(start=p.start % (part.num_times - 24)) for p in places]
            frames = 24 if size != 0 else 1
            ways = {name: functools.partial(read, way, starts, frames) for name, way in readers.items()}
            seconds = medians(ways, repeats=repeats, warm_up=1, clock=time.process_time)
            what = f"24 × {size}²" if size else f"{frames} × all"
            for row in rows:
                row[f"{what}, ms"] = 1e3 * seconds[str(row["chunk"])] / num
    return rows


Reader = Callable[[slice, slice, slice], np.ndarray]


def reader(path: Path) -> Reader:
    """Open with our reader if it can, else with netCDF4, neither caching more than one chunk."""
    if chunked := ChunkedCodes.of(path, "codes", Unpacked(0)):
        return chunked.read
    variable = netCDF4.Dataset(path)["codes"]
    variable.set_auto_maskandscale(False)
    variable.set_var_chunk_cache(2**17, 1, 0.75)
    return lambda *window: variable[window]


def write_codes(path: Path, codes: np.ndarray, encoding: dict[str, Any]) -> None:
    """Write a file with only codes (T, H, W)."""
    with netCDF4.Dataset(path, "w") as file:
        for name, size in zip(("time", "y", "x"), codes.shape, strict=True):
            file.createDimension(name, size)
        file.createVariable("codes", "i2", ("time", "y", "x"), **encoding)[:] = codes


def read(way: Reader, places: list[Place], frames: int) -> None:
    """Read windows of `frames` frames."""
    for p in places:
        way(slice(p.start, p.start + frames), slice(p.y, p.y + p.height), slice(p.x, p.x + p.width))


def year() -> dict[str, float]:
    """Return the seconds to find and split the windows of a year of 5-minute frames with gaps."""
    rng = np.random.default_rng(0)
    all_times = np.datetime64("2025-01-01", "ns") + schema.step_timedelta(5) * np.arange(365 * 288)
    times = all_times[rng.random(all_times.size) > 0.002]
    began = time.perf_counter()
    split_windows(times, schema.step_timedelta(5), 24, BlockSplit(), input_steps=8, max_missing=1)
    return {"windows of a year, s": time.perf_counter() - began}


def weigh(archive: Archive) -> dict[str, float]:
    """Return frames per second of the pass that weighs crops by their rain, and seconds once it is cached."""
    lattice = Lattice.of(archive.grid.shape, (128, 128))
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAINCAST_CACHE"] = cache  # nothing is cached from an earlier run
        for _ in range(2):
            began = time.perf_counter()
            rain_table(archive, lattice, 1.0)
            seconds.append(time.perf_counter() - began)
    return {"frames weighed a second": archive.num_times / seconds[0], "weights from the cache, s": seconds[1]}


def main() -> None:
    """Make, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", type=Path, default=Path("outputs/benchmarks/archive"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/data.json"))
    parser.add_argument("--chunks", action="store_true", help="compare encodings of a day instead")
    parser.add_argument("--cpu", action="store_true", help="measure CPU seconds, for a machine that is not idle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    archive = Archive.open(args.archive) if any(args.archive.glob("*.nc")) else make_archive(args.archive)
    if args.chunks:
        rows = chunks(archive, args.repeats)
        show("A day's file, one core", rows)
        write_json(args.json.with_stem("chunks"), {"rows": rows})
        return
    size = sum(f.stat().st_size for f in args.archive.glob("*.nc"))
    clock = time.process_time if args.cpu else time.perf_counter
    rows = measure(archive, args.archive, args.repeats, clock)
    ratios = [row | {"ratio": row["raincast"] / row["xarray and dask"]} for row in rows]
    shape = " × ".join(map(str, archive.grid.shape))
    show(f"windows/s on one core; {archive.num_times} frames of {shape}, {size / 2**20:.0f} MiB", ratios)
    others = year() | weigh(archive)
    Console().print(", ".join(f"{name} {value:.3g}" for name, value in others.items()))
    write_json(args.json, {"rows": rows, **others, "archive_bytes": size})


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table with one column per key."""
    table = Table(title=title)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for first, *values in (row.values() for row in rows):
        table.add_row(first, *(f"{value:.3g}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
