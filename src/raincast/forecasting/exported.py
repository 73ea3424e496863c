"""A network as `export.py` writes it, ONNX or torch.export, as what a `Nowcaster` takes. Lightning stays out."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raincast.forecaster import Beside
from raincast.forecasting.fit import Trained
from raincast.forecasting.gaps import Rain

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
            self._grid = self.metadata["grid"]
            self.channels: Mapping[str, Any] = json.loads(self.metadata.get("channel_config", "{}"))
            """Where what it sees beside the rain lay in training, as `data.channels` said it."""
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} was not written by export.py: it does not state {error}.") from error
        groups = {name: self.metadata.get(f"{name}_channels", "") for name in ("past", "future")}
        self._beside = {name: listed.split(", ") for name, listed in groups.items() if listed}
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

    def forecast(self, rain: Rain, num_steps: int, *, beside: Beside | None = None) -> Rain:
        """As the `Forecaster` protocol says; ValueError for what the file is not for, or lacks beside the rain."""
        _, T, C, H, W = rain.shape
        if self.input_steps != T or C != 1:
            raise ValueError(f"{self.path} takes {self.input_steps} frames of rain, found {T} of {C} channels.")
        if num_steps > self.lead_steps:
            raise ValueError(
                f"lead_steps={num_steps}: {self.path} gives {self.lead_steps}. Ask for fewer, or export the "
                f"network with lead_steps={num_steps}."
            )
        if self._fixed not in (None, (H, W)):
            raise ValueError(f"{self.path} is for {self._grid}, the input has {H} x {W}: export it without size=…")
        given = [rain, *(self._group(beside or {}, name) for name in self._beside)]
        steps = [T, T, self.lead_steps]
        padded = [self._padded(maps, count) for maps, count in zip(given, steps, strict=False)]
        rates: Rain = self._run(*padded)[0]
        return rates[:, :num_steps, :, :H, :W]

    def _group(self, beside: Beside, name: str) -> Rain:
        """The channels past or future."""
        found = beside[name].shape[2] if name in beside else "none"
        if found != len(self._beside[name]):
            raise ValueError(
                f"{self.path} sees {len(self._beside[name])} channels of {name} beside the rain "
                f"({', '.join(self._beside[name])}), found {found}."
            )
        return beside[name]

    def _padded(self, maps: Rain, num_steps: int) -> Rain:
        """Filled with missing to so many steps, and to the smallest grid that the file takes."""
        B, T, C, H, W = maps.shape
        padded = np.full((B, num_steps, C, max(H, self.stride + 1), max(W, self.stride + 1)), np.nan, np.float32)
        padded[:, :T, :, :H, :W] = maps
        return padded

    def forecast_with_exceedance(
        self, rain: Rain, num_steps: int, thresholds: Sequence[float], *, beside: Beside | None = None
    ) -> tuple[Rain, Rain]:
        """Rates, and whether they reach each of `thresholds`, 0 or 1: (B, num_steps, K, H, W)."""
        rates = self.forecast(rain, num_steps, beside=beside)
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
