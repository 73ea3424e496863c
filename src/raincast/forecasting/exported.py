"""A network in a file written by `export.py`, ONNX or torch.export, as a `Forecaster`; Lightning is not needed."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raincast.forecaster import NETWORK, Covariates, Gives, Prediction, Query, Rain
from raincast.forecasting.fit import Trained, check_step

SUFFIXES = (".onnx", ".pt2")


class ExportedForecaster:
    """A network in a file, described by its metadata; it runs on the CPU.

    It forecasts as many steps as it was exported with, or fewer, and rates only: the file holds no probabilities.
    """

    name = "network"
    gives = Gives()

    def __init__(self, path: str | Path) -> None:
        """Open `path`; raises FileNotFoundError or ValueError if it is not an exported network."""
        self.path = Path(path)
        self._run, self.metadata = _opened(self.path)
        try:
            self.input_steps = int(self.metadata["input_steps"])
            self.lead_steps = int(self.metadata["lead_steps"])
            self.step_minutes = float(self.metadata["step_minutes"])
            self._grid = self.metadata["grid"]
            self.channels: Mapping[str, Any] = json.loads(self.metadata.get("channel_config", "{}"))
            """Files of its covariates in training, as in `data.channels`."""
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} was not written by export.py: its metadata lack {error}.") from error
        groups = {name: self.metadata.get(f"{name}_channels", "") for name in ("past", "future")}
        self._groups = {name: listed.split(", ") for name, listed in groups.items() if listed}
        numbers = [int(number) for number in re.findall(r"\d+", self._grid)]
        self._fixed = tuple(numbers) if "only" in self._grid else None
        self.stride = 1 if self._fixed else numbers[0] - 1  # it takes grids of at least stride + 1 pixels

    @property
    def trained(self) -> Trained:
        """The data that the network was trained on."""
        spacing = tuple(float(n) for n in self.metadata.get("grid_spacing", "").split(", ") if n)
        return Trained(
            input_steps=self.input_steps,
            lead_steps=self.lead_steps,
            step_minutes=self.step_minutes,
            grid_spacing=spacing,
            cell_methods=self.metadata.get("cell_methods", "unknown"),
            max_missing=int(self.metadata.get("max_missing", "0")),
        )

    @property
    def provenance(self) -> dict[str, str]:
        """Origin of its forecasts, as global attributes."""
        known = ("raincast_version", "checkpoint_sha256", "network", "head", "transform")
        return {key: self.metadata[key] for key in known if key in self.metadata} | {
            "exported_network": str(self.path),
            "exported_network_sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
        }

    def predict(self, query: Query) -> Prediction:
        """Return rates only.

        Raises ValueError for a step, frames, lead times, grid or covariates unknown to the file.
        """
        check_step(query.step_minutes, self.step_minutes, "the query")
        rates = query.at_lead_times(self._rates(query.rain, query.num_steps, query.covariates))
        return Prediction(rates, done=(NETWORK,) * len(rates))

    def _rates(self, rain: Rain, num_steps: int, covariates: Covariates) -> Rain:
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
        given = [rain, *(self._group(covariates, name) for name in self._groups)]
        steps = [T, T, self.lead_steps]
        padded = [self._padded(maps, count) for maps, count in zip(given, steps, strict=False)]
        rates: Rain = self._run(*padded)[0]
        return rates[:, :num_steps, :, :H, :W]

    def _group(self, covariates: Covariates, name: str) -> Rain:
        """Return the covariates of group `name`, past or future."""
        found = covariates[name].shape[2] if name in covariates else "none"
        if found != len(self._groups[name]):
            raise ValueError(
                f"{self.path} takes {len(self._groups[name])} channels of {name} besides the rain "
                f"({', '.join(self._groups[name])}), found {found}: give the covariates {name}."
            )
        return covariates[name]

    def _padded(self, maps: Rain, num_steps: int) -> Rain:
        """Pad with missing values to `num_steps` steps, and to the smallest grid that the file takes."""
        B, T, C, H, W = maps.shape
        padded = np.full((B, num_steps, C, max(H, self.stride + 1), max(W, self.stride + 1)), np.nan, np.float32)
        padded[:, :T, :, :H, :W] = maps
        return padded


def _opened(path: Path) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported network {path}. Write one with: python export.py")
    from raincast import export

    try:
        return export.read_onnx(path) if path.suffix == ".onnx" else export.read_torch(path)
    except ImportError as error:
        raise ValueError(f'{path} needs the package onnxruntime: pip install -e ".[export]"') from error
    except Exception as error:  # each of the two runtimes has its own errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not an exported network, or it is damaged: {reason}") from error
