"""The largest part of a grid that fits into memory at once."""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raincast.forecasting.motion import extrapolation_bytes
from raincast.forecasting.tiles import Tiling

if TYPE_CHECKING:
    from raincast.forecasting.network import NetworkForecaster

log = logging.getLogger(__name__)

PROBE = 128
"""Side in pixels of the grid for which a network's memory is estimated."""
SLACK = 1.5
"""Memory held by allocators, relative to the memory in use."""
UNKNOWN_BYTES = 4096
"""Bytes per pixel assumed for a forecaster without an estimate, such as an exported network."""
BASE_GIB = 0.5
"""Memory of Python and its libraries."""
GIB = 2**30
LEAST_OVERLAP = 32
"""Smallest overlap of tiles in pixels, however little memory there is."""


def _unknown_bytes(lead_steps: int) -> float:
    return float(UNKNOWN_BYTES)


@dataclass(frozen=True)
class Footprint:
    """The memory that a forecaster takes.

    It holds `input_steps` frames and computes on `device`. Tiles begin at multiples of `stride` pixels.
    `bytes_per_pixel` maps the number of lead steps to the bytes that a forecast of one sample allocates.
    `whole_bytes_per_pixel` is the same of what is computed for the whole grid even in tiles; None: nothing is, or
    the forecaster cannot say.
    """

    input_steps: int
    device: str = "cpu"
    stride: int = 1
    bytes_per_pixel: Callable[[int], float] = _unknown_bytes
    whole_bytes_per_pixel: Callable[[int], float] | None = None

    @classmethod
    def of_network(cls, forecaster: "NetworkForecaster") -> "Footprint":
        """Estimate without running the network, on first use, which takes a second or two."""
        stride = int(getattr(forecaster.network, "stride", 1))
        side = -(-PROBE // stride) * stride
        kind: Literal["cpu", "cuda"] = "cpu" if forecaster.device.type == "cpu" else "cuda"

        def per_pixel(lead_steps: int, **further: Any) -> float:
            from raincast.models.size import forecast_bytes

            found = forecast_bytes(
                forecaster.network,
                input_steps=forecaster.input_steps,
                lead_steps=lead_steps,
                height=side,
                width=side,
                device=kind,
                **further,
            )
            return found / side**2

        @functools.cache
        def whole(lead_steps: int) -> float:
            import torch

            from raincast.models.lagrangian import Tile

            smallest = slice(0, stride)
            tile = Tile(smallest, smallest, torch.empty(stride, stride, device="meta"))
            return per_pixel(lead_steps, tiles=[tile])

        footprint = cls(forecaster.input_steps, str(forecaster.device), stride, per_pixel)
        return replace(footprint, whole_bytes_per_pixel=whole) if forecaster.gives.whole_grid else footprint

    @classmethod
    def of_box(cls, forecaster: "NetworkForecaster") -> "Footprint":
        """Return the footprint of the bundled network, which is known for the CPU."""
        from raincast.models.weights import box_bytes_per_pixel, box_whole_bytes_per_pixel

        estimated = cls.of_network(forecaster)
        if forecaster.device.type != "cpu":
            return estimated
        return replace(
            estimated, bytes_per_pixel=box_bytes_per_pixel, whole_bytes_per_pixel=box_whole_bytes_per_pixel
        )


class Memory:
    """Tiles for grids that do not fit within `gib` (by default half of the free memory) in one pass.

    Tiles share `overlap` pixels, or fewer, with a warning, if memory is too small. `last` describes the tiles of
    the last forecast. `kept_bytes` is the memory that the input series keeps.
    """

    def __init__(self, gib: float | None = None, *, overlap: int = 192) -> None:
        if gib is not None and not gib > 0:
            raise ValueError(f"memory_gib={gib}: give the GiB that a forecast may take, above 0.")
        if overlap < 0:
            raise ValueError(f"tile_overlap={overlap}: give a number of pixels, 0 or more.")
        self.gib = gib
        self.overlap = overlap
        self.kept_bytes = 0
        self.last: str | None = None
        self._known: dict[int, float] = {}

    def tiling(
        self, footprint: Footprint, shape: tuple[int, ...], lead_steps: int, num_maps: int
    ) -> Tiling | None:
        """Return the tiles for a grid of `shape` (H, W); None if one pass fits.

        Where what is computed for the whole grid does not fit, tiles are `apart`, with a warning. Raises
        ValueError if not even one tile fits.
        """
        H, W = shape
        self.last = None
        device, stride = footprint.device, footprint.stride
        per_pixel = self._bytes_per_pixel(footprint, lead_steps)
        arrays = _array_bytes(footprint, shape, lead_steps, num_maps) + self.kept_bytes
        on_host = device == "cpu"
        # Python's own share is already gone from the free memory
        allowed = self.gib or free_gib(device) / 2 + BASE_GIB * on_host
        available = allowed * GIB - (arrays if on_host else 0)
        if per_pixel * H * W <= available:
            return None
        wanted = -(-self.overlap // stride) * stride
        least = min(wanted, -(-LEAST_OVERLAP // stride) * stride)
        whole = 0.0
        if footprint.whole_bytes_per_pixel is not None:
            whole = SLACK * footprint.whole_bytes_per_pixel(lead_steps) * H * W
        side, overlap = _largest_tile(available - whole, per_pixel, wanted, stride)
        apart = whole > 0 and overlap < least
        if apart:
            side, overlap = _largest_tile(available, per_pixel, wanted, stride)
        if overlap < least:
            needed = (arrays * on_host + per_pixel * (2 * least + stride) ** 2) / GIB
            raise ValueError(
                f"A forecast of {H}×{W} pixels needs at least {needed:.1f} GiB, tile by tile; it may take "
                f"{allowed:.1f}. Allow more with memory_gib=…, or crop the input (python ingest.py … grid.crop=…)."
            )
        needed = (arrays * on_host + whole + per_pixel * (2 * wanted + stride) ** 2) / GIB
        if apart:
            log.warning(
                "%.1f GiB of memory are not enough for the motion, S-PROG and the areas of all %d×%d pixels: each "
                "tile is forecast by itself, and differs from the whole. memory_gib=%.1f is enough.",
                *(allowed, H, W, needed),
            )
        elif overlap < wanted:
            log.warning(
                "%.1f GiB of memory are not enough for tiles that share tile_overlap=%d pixels: they share %d. "
                "Near tile edges the forecast may differ from that of the whole grid. memory_gib=%.1f is enough.",
                *(allowed, self.overlap, overlap, needed),
            )
        # along an axis that is shorter there is one tile, however little it is longer than the overlap
        tiling = Tiling((int(side), int(side)), overlap, stride, apart)
        height, width = (min(int(side), n) for n in shape)
        rows, columns = tiling.num_tiles((H, W))
        self.last = f"{rows} × {columns} (y × x) of {height} × {width} pixels that share {overlap} or more"
        self.last += ", each forecast by itself" * apart
        log.info("%d×%d pixels in tiles: %s", H, W, self.last)
        return tiling

    def in_one_pass(self, footprint: Footprint, shape: tuple[int, ...], lead_steps: int, num_maps: int) -> float:
        """Return the GiB of a process that forecasts a grid of `shape` (H, W) on the CPU without tiles.

        It is the larger of the forecaster's and the extrapolation's, plus the memory that the series keeps.
        """
        by_forecaster = self._bytes_per_pixel(footprint, lead_steps) * shape[0] * shape[1]
        most = max(by_forecaster, extrapolation_bytes(shape))
        arrays = _array_bytes(footprint, shape, lead_steps, num_maps)
        return (most + arrays + self.kept_bytes) / GIB

    def _bytes_per_pixel(self, footprint: Footprint, lead_steps: int) -> float:
        if lead_steps not in self._known:
            self._known[lead_steps] = SLACK * footprint.bytes_per_pixel(lead_steps)
        return self._known[lead_steps]


def _largest_tile(available: float, per_pixel: float, wanted: int, stride: int) -> tuple[int, int]:
    """Return the side of the largest tile that fits into `available` bytes, and the overlap, at most `wanted`."""
    side = int(int(max(available, 0) / per_pixel) ** 0.5) // stride * stride
    return side, min(wanted, (side - stride) // 2 // stride * stride)


def _array_bytes(footprint: Footprint, shape: tuple[int, ...], lead_steps: int, num_maps: int) -> float:
    """Return the bytes of the input (read, concatenated and filled), prediction, output file, and Python."""
    maps = 3 * footprint.input_steps + lead_steps * (3 + 2 * num_maps)
    return shape[0] * shape[1] * 4 * maps + BASE_GIB * GIB


def free_gib(device: str) -> float:
    """Return the free memory of the machine or of a GPU in GiB."""
    if device != "cpu":
        import torch

        return float(torch.cuda.mem_get_info(device)[0]) / GIB
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> float:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024 / GIB
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / GIB / 2


def _free_of_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the GiB that control groups (v1 or v2) leave; infinite if none limits the memory."""
    free = math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return free
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, most, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            folder, most, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # a container mounts its own group as the root; limits of parent groups apply, too
        inside = folder / path.lstrip("/")
        for group in (inside, *inside.parents):
            with contextlib.suppress(OSError, ValueError):
                left = int((group / most).read_text()) - int((group / used).read_text())
                free = min(free, (left + _cache_bytes(group)) / GIB)
            if group == folder:
                break
    return free


def _cache_bytes(group: Path) -> int:
    """Return the bytes of a group's file cache, which counts as used but is dropped when memory is needed."""
    said = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(said.get("total_inactive_file", said.get("inactive_file", 0)))
