"""`python export.py`: a checkpoint → one file, ONNX or torch.export, that forecasts without raincast."""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from raincast import assembly
from raincast.commands import report
from raincast.system.files import atomic
from raincast.version import __version__

if TYPE_CHECKING:
    from raincast.export import Arrays
    from raincast.forecasting.network import NetworkForecaster
    from raincast.models.inputs import Inputs

log = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
METRES = 5.0
"""Grid spacings above this value are in metres, not degrees."""

TOLERANCE = 1e-4
"""Largest allowed difference between the file's forecast and the network's, on the transform's scale of 0 to 1."""

MAPS = 3
"""Number of maps on which the file of a physical network is compared."""

ROUNDING = 1e-6
"""Largest relative change of the rain with which the network is compared with itself."""

PIXEL = 0.01
"""Difference on the logarithmic scale above which a pixel of a physical network differs: 7 % of a high rate."""


def run(cfg: DictConfig) -> Path:
    """Write the network of `cfg.checkpoint` to `cfg.path`, and compare the file with the network.

    Raises RuntimeError if they differ by more than `TOLERANCE`, or those of a physical network by more than
    `allowed` of its own sensitivity; the file is then not kept.
    """
    from raincast import export

    path = _path(cfg)
    _check_packages(cfg.format)
    size = _size(cfg.size)
    if cfg.lead_steps is not None and cfg.lead_steps < 1:
        raise ValueError(f"lead_steps={cfg.lead_steps}: give a whole number of at least 1.")
    checkpoint = assembly.read_checkpoint(cfg.checkpoint)
    forecaster = assembly.forecaster_of(checkpoint, device="cpu")
    lead_steps = cfg.lead_steps or forecaster.lead_steps
    scale = _scale(cfg, checkpoint) if forecaster.physical else None
    log.info("tracing %d → %d frames, which may take a minute or two …", forecaster.input_steps, lead_steps)
    traced = export.trace_forecast(
        forecaster.network,
        forecaster.head,
        forecaster.transform,
        input_steps=forecaster.input_steps,
        lead_steps=lead_steps,
        inputs=forecaster.inputs,
        size=size,
        scale=scale,
    )
    smallest = export.smallest_grid(forecaster.network)
    metadata = describe(checkpoint, forecaster, lead_steps, size=size, smallest=smallest)
    if scale is not None:
        metadata |= {"step_minutes": f"{scale[0]:g}", "grid_spacing": f"{1000 * scale[1]:g}, {1000 * scale[1]:g}"}
    grids = [size] if size else [(smallest + 1, 2 * smallest + 3), (3 * smallest - 2, 2 * smallest)]
    with atomic(path, keep_suffix=True) as partial:
        if cfg.format == "onnx":
            run_file, _ = export.read_onnx(export.write_onnx(traced, partial, metadata))
        else:
            run_file, _ = export.read_torch(export.write_torch(traced, partial, metadata))
        difference = compare(run_file, forecaster, lead_steps, grids, scale)
        if not difference.small:
            raise RuntimeError(
                f"The {cfg.format} file gives a different forecast from the network's: {difference}. It was not "
                "kept. Try another format= or another version of the exporter."
            )
    _tell(path, metadata, difference, grids)
    return path


@dataclass(frozen=True)
class Apart:
    """How far apart two forecasts are on the logarithmic scale.

    `share` is that of the pixels which differ by more than `PIXEL`, `mean` the mean difference where either has
    rain, with none counted as more than `PIXEL`, and `rain` the relative difference of the mean rain in mm/h.
    """

    share: float
    mean: float
    rain: float

    @classmethod
    def of(cls, made: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> "Apart":
        """Compare two forecasts in mm/h. Numbers are NaN where one is NaN, and then above every limit."""
        from raincast.transforms import LogScaling

        apart = _apart(LogScaling().forward(made), LogScaling().forward(expected))
        wet = (made > 0) | (expected > 0) | np.isnan(apart)
        rain = _apart(made.mean(dtype=np.float64), expected.mean(dtype=np.float64)) / max(expected.mean(), 1e-6)
        share = float(np.mean(~(apart <= PIXEL)))
        return cls(share, float(np.minimum(apart[wet], PIXEL).sum() / max(wet.sum(), 1)), float(rain))

    def within(self, limit: "Apart") -> bool:
        """Return True if nothing exceeds `limit`."""
        return self.share <= limit.share and self.mean <= limit.mean and self.rain <= limit.rain

    def __str__(self) -> str:
        """Return the numbers as one line."""
        return (
            f"{self.share:.2%} of the pixels by more than {PIXEL:g} of the scale, rain by {self.mean:.1e} of the "
            f"scale on average, its amount by {self.rain:.2%}"
        )


LEAST, MOST = Apart(1e-3, 1e-4, 1e-3), Apart(1e-2, 1e-3, 1e-2)
"""Bounds of what is allowed. Files without an error are five to ten times below the first on the bundled event."""


def allowed(itself: Apart) -> Apart:
    """Return the difference that is allowed to the file of a network which differs so much from `itself`.

    A physical network amplifies rounding: a pixel passes the cut between rain and none, or a threshold at which
    pixels are counted. It is allowed as much as the network differs from itself when its rain changes by
    `ROUNDING`, at least `LEAST` and at most `MOST`.
    """
    numbers = ("share", "mean", "rain")
    return Apart(*(min(max(getattr(itself, n), getattr(LEAST, n)), getattr(MOST, n)) for n in numbers))


@dataclass(frozen=True)
class Difference:
    """Largest difference between forecasts of a file and of its network, on the transform's scale and in mm/h.

    `highest` is the highest rate (mm/h) that was forecast. For a physical network, `apart` is the mean of all maps
    and `limit` what is allowed.
    """

    scaled: float
    rate: float
    highest: float
    apart: Apart | None = None
    limit: Apart | None = None

    @property
    def small(self) -> bool:
        """True if the file may be kept."""
        if self.apart is None or self.limit is None:
            return self.scaled <= TOLERANCE
        return self.apart.within(self.limit)

    def __str__(self) -> str:
        """Return the difference and what is allowed as one line."""
        largest = (
            f"{self.scaled:.1e} of the network's scale, {self.rate:.1e} mm/h of up to {self.highest:.1f} mm/h"
        )
        if self.apart is None:
            return f"{largest}, allowed is {TOLERANCE:g}"
        return f"{self.apart} (largest {largest}); allowed are {self.limit}"


def compare(
    run_file: "Callable[..., Arrays]",
    forecaster: "NetworkForecaster",
    lead_steps: int,
    grids: list[tuple[int, int]],
    physical_scale: tuple[float, float] | None = None,
) -> Difference:
    """Return the difference between file and network on grids of (y, x) pixels.

    Maps are random, those of a physical network are of the bundled event: such a network needs rain that moves.
    The largest difference is computed on the transform's scale, since a transform may jump from 0 to its lowest
    rate in mm/h.
    """
    from raincast.forecaster import Query
    from raincast.transforms import LogScaling

    minutes, km = physical_scale or (forecaster.step_minutes, None)
    scale = forecaster.transform.forward if physical_scale is None else LogScaling().forward

    def by_network(rain: npt.NDArray[np.float32], covariates: dict[str, Any]) -> npt.NDArray[np.float32]:
        query = Query.for_steps(rain, lead_steps, step_minutes=minutes, pixel_km=km, covariates=covariates)
        return forecaster.predict(query).rates

    found, apart, itself = [], [], []
    for number, grid in enumerate(grids if physical_scale is None else grids * MAPS, start=1):
        if physical_scale is None:
            rain = random_rain((number, forecaster.input_steps, 1, *grid), seed=number)
        else:
            rain = real_rain(forecaster.input_steps, grid, number=number)
        covariates = random_covariates(forecaster.inputs, rain.shape, lead_steps, seed=number)
        expected = by_network(rain, covariates)
        (made,) = run_file(rain, *covariates.values())
        found.append(
            (_apart(scale(made), scale(expected)).max(), _apart(made, expected).max(), float(expected.max()))
        )
        if physical_scale is not None:
            # more, not less: radars measure in steps, and many pixels have exactly the rate of a threshold
            more = 1.0 + ROUNDING * np.random.default_rng(number).random(rain.shape)
            changed = by_network((rain * more).astype(np.float32), covariates)
            apart.append(Apart.of(made, expected))
            itself.append(Apart.of(changed, expected))
    scaled, rate, highest = np.max(found, axis=0).tolist()  # NaN where one is
    if not apart:
        return Difference(scaled, rate, highest)
    return Difference(scaled, rate, highest, _mean(apart), allowed(_mean(itself)))


def _mean(found: list[Apart]) -> Apart:
    return Apart(*np.mean([(one.share, one.mean, one.rain) for one in found], axis=0).tolist())


def real_rain(steps: int, grid: tuple[int, int], *, number: int) -> npt.NDArray[np.float32]:
    """Return rain of the bundled event, (1, steps, 1, y, x) in mm/h, the later the higher `number` to `MAPS`.

    A small grid gets the part with the most rain at the end, a large one the event several times, mirrored. A
    corner is missing.
    """
    from raincast.archive import Archive
    from raincast.system.paths import sample_path

    event = Archive.open(sample_path())
    steps_read = min(steps, event.num_times)
    frames = event.read(number * (event.num_times - steps_read) // MAPS, steps_read)
    missing = [max(0, wanted - known) for wanted, known in zip((steps, *grid), frames.shape, strict=True)]
    frames = np.pad(frames, [(missing[0], 0), (0, missing[1]), (0, missing[2])], mode="symmetric")
    wet = np.pad((frames[-1] >= 0.1).astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y, x = grid
    sums = wet[y:, x:] - wet[:-y, x:] - wet[y:, :-x] + wet[:-y, :-x]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    rain = np.ascontiguousarray(frames[None, :, None, top : top + y, left : left + x], dtype=np.float32)
    rain[..., -2:, :2] = np.nan
    return rain


def random_rain(shape: tuple[int, ...], *, seed: int) -> npt.NDArray[np.float32]:
    """Return random patches of rain, (B, T, C, H, W) in mm/h: half dry, up to some 100 mm/h, a corner missing."""
    generator = np.random.default_rng(seed)
    *lead, height, width = shape
    coarse = generator.lognormal(1.0, 1.5, (*lead, -(-height // 4), -(-width // 4)))
    coarse[generator.random(coarse.shape) < 0.5] = 0.0
    rain = coarse.repeat(4, axis=-2).repeat(4, axis=-1)[..., :height, :width].astype(np.float32)
    rain[..., -2:, :2] = np.nan
    return rain


def random_covariates(
    inputs: "Inputs", shape: tuple[int, ...], lead_steps: int, *, seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return random covariates for rain of `shape`: 0 to 1 in network units, a corner missing.

    They are converted to the unit of each channel.
    """
    generator = np.random.default_rng(seed)
    batch, input_steps, _, *grid = shape
    covariates = {}
    for name, channels, steps in (("past", inputs.past, input_steps), ("future", inputs.future, lead_steps)):
        if channels:
            scaled = generator.random((batch, steps, len(channels), *grid), np.float32)
            maps = [transform.inverse(scaled[:, :, number]) for number, (_, transform) in enumerate(channels)]
            covariates[name] = np.stack(maps, axis=2).astype(np.float32)
            covariates[name][..., :2, -2:] = np.nan
    return covariates


def describe(
    checkpoint: assembly.Checkpoint,
    forecaster: "NetworkForecaster",
    lead_steps: int,
    *,
    size: tuple[int, int] | None,
    smallest: int,
) -> dict[str, str]:
    """Return the metadata that a user of the file needs, as text."""
    info = checkpoint.info
    y, x = (str(n) for n in size) if size else ("y", "x")
    inputs = forecaster.inputs
    told = "distinguished from no rain" if inputs.observed else "treated as no rain"
    covariates: dict[str, str] = {}
    for name, channels, steps in (
        ("past", inputs.past, forecaster.input_steps),
        ("future", inputs.future, lead_steps),
    ):
        if channels:
            covariates[f"input_{name}"] = f"{name} (batch, {steps}, {len(channels)}, {y}, {x}) float32"
            covariates[f"{name}_channels"] = ", ".join(channel for channel, _ in channels)
    if covariates:
        covariates["channel_units"] = "each its own, NaN where missing; static channels repeated at each step"
        covariates["channel_config"] = json.dumps(assembly.declared_channels(checkpoint))
    return {
        "title": "Precipitation nowcast",
        "raincast_version": __version__,
        "checkpoint_sha256": checkpoint.sha256,
        "network": checkpoint.network,
        "head": str(forecaster.head),
        "transform": str(forecaster.transform),
        "input": f"rain_rate (batch, {forecaster.input_steps}, 1, {y}, {x}) float32",
        **covariates,
        "output": f"rain_rate_forecast (batch, {lead_steps}, 1, {y}, {x}) float32",
        "axes": "batch, time, channel, y, x; frames from old to new",
        "grid": f"{y} x {x} pixels only" if size else f"any, from {smallest} x {smallest} pixels up",
        "units": "mm h-1",
        "missing": f"NaN, {told}; the forecast has none: mask pixels that were never observed",
        "step_minutes": f"{forecaster.step_minutes:g}",
        "input_steps": str(forecaster.input_steps),
        "lead_steps": str(lead_steps),
        "channels": ", ".join(["rain", *(name for name, _ in inputs.past)]),  # observed is derived from rain
        "grid_spacing": ", ".join(f"{spacing:g}" for spacing in info["grid_spacing"]),
        "max_missing": str(checkpoint.config["data"]["max_missing"]),
        "cell_methods": str(info["archive"]["cell_methods"]),
    }


def _apart(a: Any, b: Any) -> npt.NDArray[np.float64]:
    # in float64, in which a difference of infinities or NaN cannot become 0
    return np.asarray(np.abs(np.asarray(a, dtype=np.float64) - b))


def _scale(cfg: DictConfig, checkpoint: assembly.Checkpoint) -> tuple[float, float]:
    """Return the step in minutes and pixel size in km of a physical network's file.

    Raises ValueError if the size of the grid or of its pixels is not stated.
    """
    if cfg.size is None:
        raise ValueError("size=null: a file of this network is for one grid. Give its pixels: size=[256,256].")
    spacing = checkpoint.info["grid_spacing"]
    pixel_km = cfg.pixel_km or (spacing[0] / 1000.0 if spacing and spacing[0] > METRES else None)
    if pixel_km is None:
        raise ValueError("pixel_km=null: the checkpoint does not state the pixel size. Give it: pixel_km=1.")
    return float(cfg.step_minutes or checkpoint.info["step_minutes"]), float(pixel_km)


def _path(cfg: DictConfig) -> Path:
    if cfg.format not in SUFFIXES:
        raise ValueError(f"format={cfg.format}: choose one of {', '.join(SUFFIXES)}.")
    suffix = SUFFIXES[cfg.format]
    path = Path(cfg.paths.run_dir) / f"network{suffix}" if cfg.path is None else Path(cfg.path)
    if path.suffix != suffix:
        raise ValueError(
            f"path={path}: format={cfg.format} is written to a {suffix} file. Use path={path.with_suffix(suffix)}"
        )
    if path.exists() and not cfg.overwrite:
        raise FileExistsError(f"{path} exists. Choose another path, delete it, or allow it with overwrite=true.")
    return path


def _check_packages(fmt: str) -> None:
    absent = [name for name in PACKAGES[fmt] if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(
            f"format={fmt} needs {', '.join(PACKAGES[fmt])}: pip install -e '.[export]' "
            f"(missing: {', '.join(absent)}), or use format=torch."
        )


def _size(stated: Any) -> tuple[int, int] | None:
    if stated is None:
        return None
    pixels = list(stated) if hasattr(stated, "__len__") and not isinstance(stated, str) else [stated]
    if len(pixels) != 2 or not all(isinstance(n, int) and n >= 1 for n in pixels):
        raise ValueError(f"size={stated}: give the pixels along y and x, size=[256,256], or null for any grid.")
    return pixels[0], pixels[1]


def _tell(path: Path, metadata: dict[str, str], difference: Difference, grids: list[tuple[int, int]]) -> None:
    log.info("%s  (%.1f MB)", report.short(path), path.stat().st_size / 1e6)
    told = ("input", "input_past", "past_channels", "input_future", "future_channels", "output", "grid", "units")
    for name in (*told, "missing"):
        if name in metadata:
            log.info("  %-15s %s", name, metadata[name])
    sizes = " and ".join(f"{y}×{x}" for y, x in grids)
    of = "random maps" if difference.apart is None else "the event in the box, maps"
    log.info("difference from the network, on %s of %s pixels: %s", of, sizes, difference)
