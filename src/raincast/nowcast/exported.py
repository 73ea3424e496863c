"""A network as `export.py` writes it, ONNX or torch.export, as what a `Nowcaster` takes. Lightning stays out."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raincast.nowcast.fit import Trained
from raincast.nowcast.gaps import Rain

SUFFIXES = (".onnx", ".pt2")


class ExportedForecaster:
    """The network in a file, with what its metadata say of it; on the CPU.

    It gives as many steps as it was exported with, or fewer, and no probabilities between 0 and 1: its file holds
    the rates alone.
    """

    name = "network"

    def __init__(self, path: str | Path) -> None:
        """FileNotFoundError or ValueError for what is no such file."""
        self.path = Path(path)
        self._run, self.metadata = _opened(self.path)
        try:
            self.input_steps = int(self.metadata["input_steps"])
            self.lead_steps = int(self.metadata["lead_steps"])
            self.step_minutes = float(self.metadata["step_minutes"])
            channels, self._grid = self.metadata["channels"], self.metadata["grid"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} was not written by export.py: it does not state {error}.") from error
        if channels != "rain":
            raise ValueError(f"{path} takes {channels}, the input has rain alone.")
        numbers = [int(number) for number in re.findall(r"\d+", self._grid)]
        self._fixed = tuple(numbers) if "only" in self._grid else None
        self.stride = 1 if self._fixed else numbers[0] - 1  # it takes grids from stride + 1 pixels up

    @property
    def trained(self) -> Trained:
        """What the network was trained on; of gaps its file says nothing."""
        spacing = tuple(float(n) for n in self.metadata.get("grid_spacing", "").split(", ") if n)
        return Trained(
            spacing, self.metadata.get("cell_methods", "unknown"), int(self.metadata.get("max_missing", "0"))
        )

    @property
    def provenance(self) -> dict[str, str]:
        """Where its forecasts come from, as global attributes."""
        known = ("raincast_version", "checkpoint_sha256", "network", "head", "transform")
        return {key: self.metadata[key] for key in known if key in self.metadata} | {
            "exported_network": str(self.path),
            "exported_network_sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
        }

    def forecast(self, rain: Rain, num_steps: int) -> Rain:
        """As the `Forecaster` protocol says; ValueError for what the file is not for."""
        B, T, C, H, W = rain.shape
        if self.input_steps != T or C != 1:
            raise ValueError(f"{self.path} takes {self.input_steps} frames of rain, found {T} of {C} channels.")
        if num_steps > self.lead_steps:
            raise ValueError(
                f"lead_steps={num_steps}: {self.path} gives {self.lead_steps}. Ask for fewer, or export the "
                f"network with lead_steps={num_steps}."
            )
        if self._fixed not in (None, (H, W)):
            raise ValueError(f"{self.path} is for {self._grid}, the input has {H} x {W}: export it without size=…")
        padded = np.full((B, T, C, max(H, self.stride + 1), max(W, self.stride + 1)), np.nan, np.float32)
        padded[..., :H, :W] = rain
        rates: Rain = self._run(padded)[0][:, :num_steps, :, :H, :W]
        return rates

    def forecast_with_exceedance(
        self, rain: Rain, num_steps: int, thresholds: Sequence[float], **_: Any
    ) -> tuple[Rain, Rain]:
        """Rates, and whether they reach each of `thresholds`, 0 or 1: (B, num_steps, K, H, W)."""
        rates = self.forecast(rain, num_steps)
        reached = [(rates >= threshold).astype(np.float32) for threshold in thresholds]
        return rates, np.concatenate(reached, axis=2) if reached else rates[:, :, :0]

    def exceedance(self, rain: Rain, num_steps: int, thresholds: Sequence[float]) -> Rain:
        """Whether the rates reach `thresholds`."""
        return self.forecast_with_exceedance(rain, num_steps, thresholds)[1]


def _opened(path: Path) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported network {path}. Write one with: python export.py")
    from raincast import export

    try:
        return export.read_onnx(path) if path.suffix == ".onnx" else export.read_torch(path)
    except ImportError as error:
        raise ValueError(f'{path} needs the package onnxruntime: pip install -e ".[export]"') from error
    except Exception as error:  # each of the two runtimes has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no exported network, or damaged: {reason}") from error
