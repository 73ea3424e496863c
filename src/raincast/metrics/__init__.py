"""Scores as additive sums first and ratios last. Rain rates in mm/h.

For DataArrays: `csi(forecast, observed, threshold=1)` and the others of `arrays`. For tensors (B, T, C, H, W):
the sums and formulas of `categorical`, `continuous`, `spatial` …
"""

from raincast.metrics.arrays import (
    correlation,
    csi,
    ets,
    far,
    frequency_bias,
    fss,
    hss,
    mae,
    mean_error,
    pod,
    rmse,
)
from raincast.metrics.categorical import Contingency, contingency
from raincast.metrics.continuous import ErrorSums, error_sums

__all__ = [
    "Contingency",
    "ErrorSums",
    "contingency",
    "correlation",
    "csi",
    "error_sums",
    "ets",
    "far",
    "frequency_bias",
    "fss",
    "hss",
    "mae",
    "mean_error",
    "pod",
    "rmse",
]
