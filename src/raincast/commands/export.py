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


def run(cfg: DictConfig) -> Path:
    """Write the network of `cfg.checkpoint` to `cfg.path`, and compare the file with the network.

    Raises RuntimeError if they differ by more than `TOLERANCE`; the file is then not kept.
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
        if not difference.scaled <= TOLERANCE:
            raise RuntimeError(
                f"The {cfg.format} file gives a different forecast from the network's: {difference}, allowed is "
                f"{TOLERANCE:g}. It was not kept. Try another format= or another version of the exporter."
            )
    _tell(path, metadata, difference, grids)
    return path


@dataclass(frozen=True)
class Difference:
    """Largest difference between forecasts of a file and of its network, on the transform's scale and in mm/h.

    `highest` is the highest rate (mm/h) that was forecast.
    """

    scaled: float
    rate: float
    highest: float

    def __str__(self) -> str:
        """Return the difference as one line."""
        return f"{self.scaled:.1e} of the network's scale, {self.rate:.1e} mm/h of up to {self.highest:.1f} mm/h"


def compare(
    run_file: "Callable[..., Arrays]",
    forecaster: "NetworkForecaster",
    lead_steps: int,
    grids: list[tuple[int, int]],
    physical_scale: tuple[float, float] | None = None,
) -> Difference:
    """Return the largest difference between file and network for random maps on grids of (y, x) pixels.

    It is computed on the transform's scale, since a transform may jump from 0 to its lowest rate in mm/h.
    """
    from raincast.forecaster import Query
    from raincast.transforms import LogScaling

    found = []
    for number, (height, width) in enumerate(grids, start=1):
        shape = (number, forecaster.input_steps, 1, height, width)
        rain = random_rain(shape, seed=number)
        covariates = random_covariates(forecaster.inputs, shape, lead_steps, seed=number)
        minutes, km = physical_scale or (forecaster.step_minutes, None)
        query = Query.for_steps(rain, lead_steps, step_minutes=minutes, pixel_km=km, covariates=covariates)
        by_network = forecaster.predict(query).rates
        (by_file,) = run_file(rain, *covariates.values())
        scale = forecaster.transform.forward if physical_scale is None else LogScaling().forward
        found.append(
            Difference(
                _largest(scale(by_file), scale(by_network)), _largest(by_file, by_network), float(by_network.max())
            )
        )
    return Difference(*(max(getattr(d, name) for d in found) for name in ("scaled", "rate", "highest")))


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


def _largest(a: Any, b: Any) -> float:
    # in float64, in which a difference of infinities or NaN cannot become 0
    return float(np.abs(np.asarray(a, dtype=np.float64) - b).max())


def _scale(cfg: DictConfig, checkpoint: assembly.Checkpoint) -> tuple[float, float]:
    """Return the step in minutes and pixel size in km of a physical network's file.

    Raises ValueError for a format or size in which it cannot be written.
    """
    if cfg.format != "torch":
        raise ValueError(
            "format=onnx: an ONNX file of this network differs from it by more than is allowed. Use format=torch."
        )
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
    log.info("largest difference from the network, on random maps of %s pixels: %s", sizes, difference)
