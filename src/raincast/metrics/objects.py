"""SAL: structure, amplitude and location of rain areas, compared with the observation.

Wernli et al. 2008, doi 10.1175/2008MWR2415.1, as pysteps computes it: objects are found by its cell detection
(Feldmann et al. 2021) above a fifteenth of the 95th percentile of the wet pixels.
"""

import contextlib
import importlib.util
import io
import math
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

FACTOR, QUANTILE = 0.067, 0.95
"""The threshold of objects, as in Wernli et al. 2009."""


class SalSums(NamedTuple):
    """Sums over frames, each (B, T); they merge by addition."""

    frames: Tensor
    """int64: frames with rain on both sides; the others have no S, A and L"""
    structure: Tensor
    amplitude: Tensor
    location: Tensor
    structure_size: Tensor
    """of |S|: errors to either side do not cancel"""
    amplitude_size: Tensor


def require() -> None:
    """Raise ValueError if scikit-image is missing, which pysteps needs to find objects."""
    if importlib.util.find_spec("skimage") is None:
        raise ValueError('metrics.sal=true needs scikit-image to find rain areas: pip install "raincast[linda]".')


def sal_sums(
    pred: Float[Tensor, "b t 1 h w"], target: Float[Tensor, "b t 1 h w"], mask: Bool[Tensor, "b t 1 h w"]
) -> SalSums:
    """Return the sums for rates in mm/h, computed on the CPU; pixels where `mask` is False count as dry."""
    fields = [torch.where(mask, rain, 0.0)[:, :, 0].double().cpu().numpy() for rain in (pred, target)]
    B, T = fields[0].shape[:2]
    sums = np.zeros((5, B, T))
    frames = np.zeros((B, T), np.int64)
    for row, step in np.ndindex(B, T):
        found = _sal(fields[0][row, step], fields[1][row, step])
        if found is not None:
            structure, amplitude, location = found
            frames[row, step] = 1
            sums[:, row, step] = structure, amplitude, location, abs(structure), abs(amplitude)
    return SalSums(*(torch.from_numpy(values).to(pred.device) for values in (frames, *sums)))


def _sal(pred: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Return (S, A, L) of a frame; None if either side has no rain or no object."""
    if any(field.max() <= field.min() for field in (pred, target)):
        return None
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):  # pysteps greets when it is imported
        warnings.simplefilter("ignore")  # of means over objects that there are none of: they end in NaN
        from pysteps.verification.salscores import sal

        found = tuple(float(part) for part in sal(pred, target, FACTOR, QUANTILE))
    return (found[0], found[1], found[2]) if all(map(math.isfinite, found)) else None


def structure(sums: SalSums) -> Tensor:
    """Mean S, −2 to 2: above 0 the areas are too large or too flat."""
    return _mean(sums.structure, sums)


def amplitude(sums: SalSums) -> Tensor:
    """Mean A, −2 to 2: above 0 there is too much rain."""
    return _mean(sums.amplitude, sums)


def location(sums: SalSums) -> Tensor:
    """Mean L, 0 to 2."""
    return _mean(sums.location, sums)


def structure_size(sums: SalSums) -> Tensor:
    """Mean |S|."""
    return _mean(sums.structure_size, sums)


def amplitude_size(sums: SalSums) -> Tensor:
    """Mean |A|."""
    return _mean(sums.amplitude_size, sums)


def _mean(total: Tensor, sums: SalSums) -> Tensor:
    return total / sums.frames  # NaN where there are none
