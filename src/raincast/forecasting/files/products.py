"""Products of a forecast: depths, onset of rain, and rates with the distribution of the observation."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.schema import ACCUMULATION_MINUTES, CRS, LEAD_TIME, RAIN, STEP_MINUTES, X, Y

Rain = npt.NDArray[np.float32]

ONSET = "time_to_onset"
MATCHED = "rain_rate_matched"


def amount_name(minutes: float) -> str:
    """The name of the variable of depths over so many minutes: rain_amount_60min."""
    return f"rain_amount_{minutes:g}min"


def with_amounts(dataset: xr.Dataset, minutes: Sequence[float]) -> xr.Dataset:
    """Add the depth (mm) over each of `minutes` before the valid time, (lead, y, x).

    It is missing at shorter leads. ValueError if a period is no multiple of the step, or the rates are means over
    another period than the step.
    """
    step = float(dataset.attrs[STEP_MINUTES])
    rain = dataset[RAIN].values
    covered = float(dataset.attrs.get(ACCUMULATION_MINUTES, step))
    if len(minutes) and abs(covered - step) > 1e-3:
        raise ValueError(
            f"products.accumulations: the rates are means over {covered:g} min, a frame each {step:g} min: they "
            "do not add up to depths. Leave products.accumulations out."
        )
    for span in minutes:
        count = round(span / step)
        if count < 1 or abs(count * step - span) > 1e-6 or count > len(rain):
            raise ValueError(
                f"products.accumulations: {span:g} min is no multiple of the step of {step:g} min up to "
                f"{len(rain) * step:g} min. Choose others, or a larger lead_steps."
            )
        depth = np.full(rain.shape, np.nan, np.float32)
        for lead in range(count - 1, len(rain)):
            depth[lead] = rain[lead - count + 1 : lead + 1].sum(axis=0) * (step / 60.0)
        attrs = {
            "standard_name": "thickness_of_rainfall_amount",
            "long_name": f"rain in the {span:g} min before the valid time",
            "units": "mm",
            "cell_methods": "time: sum",
            "comment": "each rate holds for the step that ends at its valid time; missing at shorter lead times",
            "grid_mapping": CRS,
        }
        dataset = dataset.assign({amount_name(span): ((LEAD_TIME, Y, X), depth, attrs)})
    return dataset


def with_onset(dataset: xr.Dataset, threshold: float, newest: Rain) -> xr.Dataset:
    """Add the minutes until the rate is at least `threshold` mm/h, (y, x).

    0 where `newest`, the last observation (H, W), reaches it already; missing where the forecast never does.
    """
    if not threshold > 0:
        raise ValueError(f"products.onset={threshold}: give a rain rate in mm/h above 0.")
    step = float(dataset.attrs[STEP_MINUTES])
    reached = np.concatenate([newest[None] >= threshold, dataset[RAIN].values >= threshold])
    minutes = np.where(reached.any(axis=0), reached.argmax(axis=0) * step, np.nan).astype(np.float32)
    attrs = {
        "long_name": f"time from init_time until the rain rate is at least {threshold:g} mm h-1",
        "units": "minutes",
        "threshold_mm_h": float(threshold),
        "comment": "0: it rains already; missing: not within the forecast, or not observed (see quality_flag)",
        "grid_mapping": CRS,
    }
    return dataset.assign({ONSET: ((Y, X), minutes, attrs)})


def with_matched(dataset: xr.Dataset, newest: Rain) -> xr.Dataset:
    """Add rates with the distribution of `newest`, the last observation (H, W) in mm/h.

    Probability matching (Ebert 2001): the wettest pixel gets the highest rate that was observed, and so on down.
    A network's rates grow smooth with lead time; these do not. Dry pixels stay dry.
    """
    rain = dataset[RAIN].values
    known = np.isfinite(rain[0])
    target = np.sort(np.nan_to_num(newest[known], nan=0.0))
    matched = np.full(rain.shape, np.nan, np.float32)
    for lead, frame in enumerate(rain):
        rates = frame[known]
        ranked = np.empty_like(rates)
        ranked[np.argsort(rates, kind="stable")] = target
        matched[lead, known] = np.where(rates > 0, ranked, 0.0)
    # no standard name, so that programs find one rain rate only
    attrs = {
        "long_name": "rain rate with the distribution of the newest observation",
        "units": "mm h-1",
        "cell_methods": dataset[RAIN].attrs["cell_methods"],
        "grid_mapping": CRS,
    }
    return dataset.assign({MATCHED: ((LEAD_TIME, Y, X), matched, attrs)})
