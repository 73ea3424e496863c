"""The forecast at places for other programs: the content of `forecast.json`. docs/live.md has the schema."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import MEMBERS, QUALITY, QUALITY_ATTRS, lead_minutes_of
from raincast.forecasting.files.locations import Location, Pixels, pixels_of
from raincast.forecasting.files.places import at_place
from raincast.forecasting.files.products import AMOUNT, QUANTILES
from raincast.schema import EXCEEDANCE, INIT_TIME, RAIN, THRESHOLD, TIME, Grid

VERSION = 1
RAIN_FROM = 0.1
"""Lowest rate in mm/h that counts as rain."""
RAIN_NOW, DRY, UNKNOWN, OUTSIDE = "rain", "dry", "unknown", "outside"


@dataclass(frozen=True, eq=False)
class Located:
    """A place and its pixels in a grid; None if it lies outside."""

    place: Location
    pixels: Pixels | None

    @classmethod
    def of(cls, place: Location, grid: Grid) -> "Located":
        """Find the pixels of `place` in `grid`."""
        return cls(place, pixels_of(place, grid))


def outlook(
    forecast: xr.Dataset,
    newest: npt.NDArray[np.float32] | None,
    places: Sequence[Located],
    *,
    rain_from: float = RAIN_FROM,
) -> dict[str, Any]:
    """Return the content of forecast.json. `newest` is the observation at init_time, (H, W) in mm/h, if known.

    A place is dry only if all its values are known and below `rain_from` mm/h. Unknown values are null.
    """
    thresholds = [float(t) for t in forecast[THRESHOLD].values] if EXCEEDANCE in forecast else []
    return {
        "version": VERSION,
        "init_time": utc(forecast[INIT_TIME].values),
        "step_minutes": float(forecast.attrs[schema.STEP_MINUTES]),
        "lead_minutes": lead_minutes_of(forecast),
        "valid_times": [utc(time) for time in forecast[TIME].values],
        "rain_from_mm_h": rain_from,
        "thresholds_mm_h": thresholds,
        "method": forecast.attrs.get("forecast_method"),
        "missing_input_frames": forecast.attrs.get("missing_input_frames"),
        "source": forecast.attrs.get("input_source"),
        "checkpoint_sha256": forecast.attrs.get("checkpoint_sha256"),
        "places": [_at(forecast, newest, located, thresholds, rain_from) for located in places],
    }


def _at(
    forecast: xr.Dataset,
    newest: npt.NDArray[np.float32] | None,
    located: Located,
    thresholds: Sequence[float],
    rain_from: float,
) -> dict[str, Any]:
    lon, lat = located.place.middle
    said: dict[str, Any] = {"name": located.place.name, "lon": round(lon, 5), "lat": round(lat, 5)}
    if located.pixels is None:
        return said | {"state": OUTSIDE}
    window, weights = (located.pixels.y, located.pixels.x), located.pixels.weights
    observed = None if newest is None else _mean(newest[window], weights)
    rates = [_mean(frame[window], weights) for frame in forecast[RAIN].values]
    probabilities = {
        f"{threshold:g}": [_mean(frame[window], weights) for frame in forecast[EXCEEDANCE].values[:, number]]
        for number, threshold in enumerate(thresholds)
    }
    quality = [
        _words(np.bitwise_or.reduce(flags[window][weights > 0]))
        for flags in (forecast[QUALITY].values if QUALITY in forecast else ())
    ]
    valid = [utc(forecast[INIT_TIME].values), *(utc(time) for time in forecast[TIME].values)]
    first = 1 if newest is None else 0
    minutes = [0.0, *lead_minutes_of(forecast)]
    return (
        said
        | _timeline([observed, *rates][first:], minutes[first:], valid[first:], rain_from)
        | {"chance": _chance(probabilities, rain_from)}
        | {"observed_mm_h": observed, "rate_mm_h": rates, "probability": probabilities, "quality": quality}
        | ({"members": _members(forecast, newest, located.pixels, rain_from)} if MEMBERS in forecast else {})
    )


def _members(
    forecast: xr.Dataset, newest: npt.NDArray[np.float32] | None, pixels: Pixels, rain_from: float
) -> dict[str, Any]:
    """Return statistics over members of the mean rate over a place; null if unknown or not within the forecast."""
    said = at_place(forecast, pixels, newest, rain_from)
    assert said.members is not None and said.spells is not None
    percent = [f"{100 * share:g}" for share in QUANTILES]
    amounts = [f"{amount:g}" for amount in forecast[AMOUNT].values] if AMOUNT in forecast else []
    return {
        "number": said.members.shape[1],
        "known": _plain(said.known),
        "begins_in_minutes": dict(zip(percent, _plain(said.spells.onset), strict=True)),
        "ends_in_minutes": dict(zip(percent, _plain(said.spells.end), strict=True)),
        "with_rain": _plain(said.spells.begins),
        "with_rain_at_the_end": _plain(said.spells.goes_on),
        "probability_of_mm": {
            f"{span:g}": dict(zip(amounts, _plain(shares.T), strict=True)) for span, shares in said.reached.items()
        },
    }


def _plain(values: Any) -> Any:
    """Convert to numbers or lists of them, with None for NaN."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return round(float(values), 3) if np.isfinite(values) else None


def _timeline(
    rates: Sequence[float | None], minutes: Sequence[float], valid: Sequence[str], rain_from: float
) -> dict[str, Any]:
    """Return when it rains; `rates` (mm/h) are at the times `valid`, `minutes` after init_time."""
    wet = [None if rate is None else rate >= rain_from for rate in rates]
    begins = next((number for number, is_wet in enumerate(wet) if is_wet), None)
    if begins is None:
        return {
            "state": DRY if all(is_wet is False for is_wet in wet) else UNKNOWN,
            "rain_in_minutes": None,
            "rain_from": None,
            "rain_until_minutes": None,
            "rain_until": None,
        }
    # an unknown value does not end the rain
    after = next((number for number in range(begins + 1, len(wet)) if wet[number] is not True), None)
    ends = after if after is not None and wet[after] is False else None
    return {
        "state": RAIN_NOW,
        "rain_in_minutes": minutes[begins],
        "rain_from": valid[begins],
        "rain_until_minutes": None if ends is None else minutes[ends],
        "rain_until": None if ends is None else valid[ends],
    }


def _chance(probabilities: Mapping[str, Sequence[float | None]], rain_from: float) -> float | None:
    """Return the largest probability, over lead times, of the lowest threshold that counts as rain."""
    meant = [threshold for threshold in probabilities if float(threshold) >= rain_from]
    known = [value for value in probabilities[min(meant, key=float)] if value is not None] if meant else []
    return max(known, default=None)


def _mean(values: npt.NDArray[np.floating], weights: npt.NDArray[np.float64]) -> float | None:
    """Return the weighted mean of the known part; None if nothing is known."""
    known = np.where(np.isfinite(values), weights, 0.0)
    total = known.sum()
    return round(float((np.nan_to_num(values) * known).sum() / total), 3) if total > 0 else None


def _words(flags: Any) -> list[str]:
    meanings = str(QUALITY_ATTRS["flag_meanings"]).split()
    masks: Any = QUALITY_ATTRS["flag_masks"]
    return [word for word, mask in zip(meanings, masks, strict=True) if int(flags) & int(mask)]


def utc(time: Any) -> str:
    """Format a time as 2026-01-31T12:05:00Z."""
    return f"{np.datetime_as_string(np.datetime64(time, 's'), unit='s')}Z"
