"""What a forecaster says of a batch of windows: rates, and members or probabilities where it has them."""

import logging
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raincast.data.dataset import Sample
from raincast.forecaster import Beside, Forecaster, beside_rain, forecast_windows
from raincast.metrics.probabilistic import exceedance_share

log = logging.getLogger(__name__)

_SILENT: weakref.WeakSet[Any] = weakref.WeakSet()
"""Forecasters that could not state the probabilities they were asked for: they are not asked again."""


class Answer(NamedTuple):
    """mm/h, finite."""

    rain: Tensor
    """(B, T, 1, H, W)"""
    members: Tensor | None = None
    """(B, T, M, H, W)"""
    chances: Tensor | None = None
    """(B, T, K thresholds, H, W): probabilities that they are reached"""
    uncalibrated: Tensor | None = None
    """the same before their calibration, where there is one"""

    def window(self, row: int) -> "Answer":
        """One window's, B = 1."""
        rain, *others = (None if part is None else part[row : row + 1] for part in self)
        assert rain is not None
        return Answer(rain, *others)


def ask(forecaster: Forecaster, batch: Sample, lead_steps: int, thresholds: Sequence[float]) -> Answer:
    """Ask once. `thresholds` are those of the probabilities; without any, members and probabilities stay out."""
    rain = batch["input"].cpu().numpy()
    beside = {name: values.cpu().numpy() for name, values in beside_rain(batch).items()}
    ensemble = getattr(forecaster, "ensemble", None)
    if thresholds and ensemble is not None:
        drawn = ensemble(rain, lead_steps)
        members = torch.from_numpy(drawn)
        mean = torch.from_numpy(drawn.mean(axis=2, keepdims=True))  # as the forecast of an ensemble is defined
        return Answer(mean, members, exceedance_share(members, thresholds))
    if thresholds and getattr(forecaster, "probabilistic", False) and forecaster not in _SILENT:
        try:
            return _with_chances(forecaster, rain, lead_steps, thresholds, beside)
        except ValueError as error:  # a threshold it cannot tell from its end, or that it is not calibrated at
            log.warning("No probabilities of %s are scored: %s", forecaster.name, error)
            _SILENT.add(forecaster)
    times = np.asarray(batch["time"]).astype("datetime64[s]")
    y, x = (np.asarray(batch[axis]).tolist() for axis in ("y", "x"))
    rates = forecast_windows(forecaster, rain, lead_steps, times=times, y=y, x=x, beside=beside)
    return Answer(torch.from_numpy(rates))


def _with_chances(network: Any, rain: Any, lead_steps: int, thresholds: Sequence[float], beside: Beside) -> Answer:
    rates, stated = network.forecast_with_exceedance(rain, lead_steps, thresholds, beside=beside, calibrated=False)
    if network.calibration is None:
        return Answer(torch.from_numpy(rates), None, torch.from_numpy(stated))
    calibrated = torch.from_numpy(network.calibration.apply(stated, thresholds))
    return Answer(torch.from_numpy(rates), None, calibrated, torch.from_numpy(stated))
