"""Scores of DataArrays: the same formulas, for xarray objects with named dimensions.

`forecast` and `observed` are rain rates in mm/h with the same coordinates; a pixel that is NaN in either is left
out. Scores are computed over all dimensions except those in `keep` (such as "lead_time"), from sums over all
pixels.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from raincast.metrics import categorical, continuous, spatial
from raincast.metrics.categorical import Contingency
from raincast.metrics.continuous import ErrorSums

Dims = str | Sequence[Hashable]


def csi(forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()) -> xr.DataArray:
    """Critical success index of "at least `threshold` mm/h": hits / (hits + misses + false alarms).

    NaN where the event was neither observed nor forecast. Raises ValueError or TypeError if the two do not match.
    """
    return _categorical(categorical.csi, "critical success index", forecast, observed, threshold, keep)


def pod(forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()) -> xr.DataArray:
    """Probability of detection: hits / (hits + misses); NaN where no event was observed."""
    return _categorical(categorical.pod, "probability of detection", forecast, observed, threshold, keep)


def far(forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()) -> xr.DataArray:
    """False alarm ratio: false alarms / (hits + false alarms); NaN where no event was forecast."""
    return _categorical(categorical.far, "false alarm ratio", forecast, observed, threshold, keep)


def frequency_bias(
    forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()
) -> xr.DataArray:
    """Forecast events / observed events; NaN where none was observed."""
    return _categorical(categorical.frequency_bias, "frequency bias", forecast, observed, threshold, keep)


def hss(forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()) -> xr.DataArray:
    """Heidke skill score: skill relative to a random forecast."""
    return _categorical(categorical.hss, "Heidke skill score", forecast, observed, threshold, keep)


def ets(forecast: xr.DataArray, observed: xr.DataArray, *, threshold: float, keep: Dims = ()) -> xr.DataArray:
    """Equitable threat score: CSI without the hits expected by chance."""
    return _categorical(categorical.ets, "equitable threat score", forecast, observed, threshold, keep)


def mean_error(forecast: xr.DataArray, observed: xr.DataArray, *, keep: Dims = ()) -> xr.DataArray:
    """Mean of forecast − observation, in mm/h."""
    return _continuous(continuous.mean_error, "mean error", forecast, observed, keep)


def mae(forecast: xr.DataArray, observed: xr.DataArray, *, keep: Dims = ()) -> xr.DataArray:
    """Mean absolute error, in mm/h."""
    return _continuous(continuous.mae, "mean absolute error", forecast, observed, keep)


def rmse(forecast: xr.DataArray, observed: xr.DataArray, *, keep: Dims = ()) -> xr.DataArray:
    """Root mean squared error, in mm/h."""
    return _continuous(continuous.rmse, "root mean squared error", forecast, observed, keep)


def correlation(forecast: xr.DataArray, observed: xr.DataArray, *, keep: Dims = ()) -> xr.DataArray:
    """Pearson's correlation; NaN where either is constant."""
    return _continuous(continuous.correlation, "correlation", forecast, observed, keep, units="1")


def fss(
    forecast: xr.DataArray,
    observed: xr.DataArray,
    *,
    threshold: float,
    box: int,
    keep: Dims = (),
    boundary: str = "zero",
) -> xr.DataArray:
    """Fractions skill score of "at least `threshold` mm/h" in boxes of `box` × `box` pixels (Roberts, Lean 2008).

    Both have the dimensions y and x, which cannot be kept. With `boundary="zero"` pixels outside the grid count as
    dry, as in pysteps; with "inside" boxes that reach beyond the grid are left out, as in the package scores.
    """
    forecast, observed, kept = _together(forecast, observed, keep)
    if not {"y", "x"} <= set(forecast.dims) or {"y", "x"} & set(kept):
        raise ValueError(f"fss needs the dimensions y and x, and does not keep them; there are {forecast.dims}.")
    frames = [dim for dim in forecast.dims if dim not in ("y", "x")]
    known = (abs(forecast) < np.inf) & (abs(observed) < np.inf)
    height, width = forecast.sizes["y"], forecast.sizes["x"]
    said, came, counted = (
        array.transpose(*frames, "y", "x").values.reshape(-1, 1, 1, height, width)
        for array in (forecast, observed, known)
    )
    sums = spatial.fraction_sums(
        torch.from_numpy(np.nan_to_num(said.astype(np.float32))),
        torch.from_numpy(np.nan_to_num(came.astype(np.float32))),
        torch.from_numpy(counted),
        [threshold],
        [box],
        boundary=boundary,
    )
    shape = [forecast.sizes[dim] for dim in frames]
    total = [
        xr.DataArray(part.numpy().reshape(shape), dims=frames).sum([d for d in frames if d not in kept])
        for part in sums
    ]
    return _scored(spatial.fss, spatial.FractionSums, total, forecast, kept, "fractions skill score", "1")


def _categorical(
    formula: Callable[[Contingency], Tensor],
    long_name: str,
    forecast: xr.DataArray,
    observed: xr.DataArray,
    threshold: float,
    keep: Dims,
) -> xr.DataArray:
    forecast, observed, kept = _together(forecast, observed, keep)
    known = (abs(forecast) < np.inf) & (abs(observed) < np.inf)
    says, came = forecast >= threshold, observed >= threshold
    over = [dim for dim in forecast.dims if dim not in kept]
    tables = (says & came, ~says & came, says & ~came, ~says & ~came)
    counts = [(part & known).astype(np.int64).sum(over) for part in tables]
    return _scored(formula, Contingency, counts, forecast, kept, long_name, "1").assign_attrs(threshold=threshold)


def _continuous(
    formula: Callable[[ErrorSums], Tensor],
    long_name: str,
    forecast: xr.DataArray,
    observed: xr.DataArray,
    keep: Dims,
    units: str = "mm h-1",
) -> xr.DataArray:
    forecast, observed, kept = _together(forecast, observed, keep)
    known = (abs(forecast) < np.inf) & (abs(observed) < np.inf)
    said, came = (array.where(known, 0.0).astype(np.float64) for array in (forecast, observed))
    error = said - came
    over = [dim for dim in forecast.dims if dim not in kept]
    parts = (known.astype(np.int64), error, abs(error), error**2, said, came, said**2, came**2, said * came)
    return _scored(formula, ErrorSums, [part.sum(over) for part in parts], forecast, kept, long_name, units)


def _together(
    forecast: xr.DataArray, observed: xr.DataArray, keep: Dims
) -> tuple[xr.DataArray, xr.DataArray, list[Hashable]]:
    """Return both arrays on the same dimensions and coordinates, and the dimensions to keep."""
    given: dict[str, Any] = {"forecast": forecast, "observed": observed}
    for name, array in given.items():
        if isinstance(array, xr.Dataset):
            raise TypeError(f"{name} is a Dataset: pass one variable of it, such as dataset['rain_rate'].")
        if not isinstance(array, xr.DataArray):
            raise TypeError(f"{name} is a {type(array).__name__}: pass a DataArray with named dimensions.")
    if set(forecast.dims) != set(observed.dims):
        raise ValueError(
            f"forecast has the dimensions {forecast.dims}, observed {observed.dims}: they must be the same."
        )
    try:
        forecast, observed = xr.align(forecast, observed, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(
            f"forecast and observed have other coordinates: select the same times and pixels of both. {error}"
        ) from error
    kept: list[Hashable] = [keep] if isinstance(keep, str) else list(keep)
    if missing := [dim for dim in kept if dim not in forecast.dims]:
        raise ValueError(f"keep={kept}: {missing} is none of the dimensions {forecast.dims}.")
    return forecast, observed.transpose(*forecast.dims), kept


def _scored(
    formula: Callable[[Any], Tensor],
    sums: type[Any],
    parts: Sequence[xr.DataArray],
    like: xr.DataArray,
    kept: Sequence[Hashable],
    long_name: str,
    units: str,
) -> xr.DataArray:
    parts = [part.transpose(*kept) for part in parts]
    values = formula(sums(*(torch.as_tensor(np.asarray(part.values)) for part in parts))).numpy()
    coords = {name: coord for name, coord in like.coords.items() if set(coord.dims) <= set(kept) and coord.dims}
    return xr.DataArray(values, dims=list(kept), coords=coords, attrs={"long_name": long_name, "units": units})
