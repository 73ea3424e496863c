"""Checks whether frames suit a forecaster: their step, quantity and pixels."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.archive.packing import warn_once
from raincast.projection import is_geographic
from raincast.schema import Grid

log = logging.getLogger(__name__)

PIXEL_TOLERANCE = 0.05
"""Relative difference allowed between pixel sizes: the scale of a projection varies by as much."""
MOST_LEAD_HOURS = 24
"""Far beyond the skill of radar: a longer lead time is a slip that would compute for hours."""
METRES_PER_DEGREE = 111_195.0

PIXELS_KM, STEPS_MINUTES, LEADS_MINUTES = (1.0, 2.0), (2.0, 15.0), (2.0, 90.0)
"""Ranges on which the bundled weights were trained."""


@dataclass(frozen=True)
class Trained:
    """The data that a forecaster was trained on, or is made for.

    It takes `input_steps` frames, `step_minutes` apart, and forecasts `lead_steps` by default. `grid_spacing` is
    the pixel size (y, x) in metres or degrees, empty if unknown. `cell_methods` is that of its rates;
    `max_missing` is the largest number of frames missing from its training windows. A `physical` forecaster takes
    any step and pixels: `step_minutes` and `lead_steps` then follow the last input, while the longest lead time
    stays the same.
    """

    input_steps: int
    lead_steps: int
    step_minutes: float
    grid_spacing: tuple[float, ...] = ()
    cell_methods: str = "unknown"
    max_missing: int = 0
    physical: bool = False

    @classmethod
    def of(cls, info: Mapping[str, Any], max_missing: int, *, physical: bool = False) -> "Trained":
        """Read the description in a checkpoint."""
        return cls(
            input_steps=info["input_steps"],
            lead_steps=info["lead_steps"],
            step_minutes=info["step_minutes"],
            grid_spacing=tuple(float(n) for n in info["grid_spacing"]),
            cell_methods=str(info["archive"]["cell_methods"]),
            max_missing=max_missing,
            physical=physical,
        )

    def at_step(self, found: float, source: str) -> "Trained":
        """Adapt to frames `found` minutes apart; raises ValueError if the forecaster does not take that step."""
        if not self.physical:
            check_step(found, self.step_minutes, source)
            return self
        if abs(found - self.step_minutes) <= 1e-6:
            return self
        lead_steps = max(1, round(self.lead_steps * self.step_minutes / found))
        return replace(self, step_minutes=found, lead_steps=lead_steps)

    def compare(
        self, frames: xr.Dataset, grid: Grid, *, other_grid: bool, lead_steps: int | None = None
    ) -> dict[str, Any]:
        """Return how `frames` and a forecast of `lead_steps` differ from training, as attributes of the forecast.

        Raises ValueError for other pixels unless `other_grid`, and for absurd lead times.
        """
        attrs: dict[str, Any] = {}
        if lead_steps is not None and lead_steps > self.lead_steps:
            check_lead(lead_steps, self.step_minutes)
        if self.physical:
            found = (grid.pixel_km, self.step_minutes, self.step_minutes * (lead_steps or self.lead_steps))
            if beyond := list(_beyond(*found)):
                attrs["outside_trained_range"] = "; ".join(beyond)
                warn_once(f"Outside of what the network was trained on: {'; '.join(beyond)}. Expect less skill")
        spacing = pixel_size(grid, like=self.grid_spacing)
        if spacing and not np.allclose(spacing, self.grid_spacing, rtol=PIXEL_TOLERANCE):
            theirs, ours = (" × ".join(f"{n:g}" for n in size) for size in (spacing, self.grid_spacing))
            if not (other_grid or self.physical):
                unit = "degrees" if is_geographic(grid.crs_wkt) else "metres"
                raise ValueError(
                    f"The network was trained on pixels of {ours} (y × x), the input has {theirs}, in {unit}. "
                    "Allow it with other_grid=true, or bring the input to that grid (python ingest.py … "
                    "grid.coarsen=N or grid.reproject=…)."
                )
            attrs |= {"trained_on_pixels": ours, "input_pixels": theirs}
        methods = str(frames[schema.RAIN].attrs.get("cell_methods", "unknown"))
        if "unknown" not in (methods, self.cell_methods) and ("mean" in methods) != ("mean" in self.cell_methods):
            attrs["trained_on_cell_methods"] = self.cell_methods
        meaning = schema.meaning_of(methods, frames.attrs, self.step_minutes)
        if meaning.attrs(self.step_minutes):
            warn_once(
                f"The input holds {meaning}, one frame every {self.step_minutes:g} min, and so does the forecast: "
                f"see {schema.ACCUMULATION_MINUTES} in its file"
            )
        return attrs


def check_lead(lead_steps: int, step_minutes: float) -> None:
    """Raise ValueError for lead times above `MOST_LEAD_HOURS`."""
    if (hours := lead_steps * step_minutes / 60) > MOST_LEAD_HOURS:
        raise ValueError(
            f"lead_steps={lead_steps} of {step_minutes:g} min are {hours:,.0f} hours: ask for at most "
            f"{MOST_LEAD_HOURS} hours ({int(MOST_LEAD_HOURS * 60 // step_minutes)}). Radar alone has no "
            "skill after a few hours."
        )


def _beyond(pixel_km: float, step_minutes: float, last_lead: float) -> Iterator[str]:
    """Yield each quantity outside the range on which the bundled weights were trained."""
    for name, value, (least, most), unit in (
        ("pixels", pixel_km, PIXELS_KM, "km"),
        ("a time step", step_minutes, STEPS_MINUTES, "min"),
        ("a lead time", last_lead, LEADS_MINUTES, "min"),
    ):
        if not 0.9 * least <= value <= 1.15 * most:
            yield f"{name} of {value:.3g} {unit} ({least:g} to {most:g} {unit})"


def pixel_size(grid: Grid, *, like: tuple[float, ...]) -> tuple[float, float] | None:
    """Return the pixel size (y, x) in the unit of `like`, metres or degrees; None if they cannot be compared."""
    if len(like) != 2 or min(like) <= 0 or min(grid.shape) < 2:
        return None
    y, x = (float(abs(axis[-1] - axis[0]) / (axis.size - 1)) for axis in (grid.y, grid.x))
    from pyproj import CRS

    if min(like) > 5 and CRS.from_wkt(grid.crs_wkt).is_geographic:  # no radar has pixels of five degrees
        middle = np.radians(float(grid.y.mean()))
        return y * METRES_PER_DEGREE, x * METRES_PER_DEGREE * float(np.cos(middle))
    return y, x


def check_step(found: float, trained: float, source: str) -> None:
    """Raise ValueError if the frames have a different step from the network's."""
    if abs(found - trained) > 1e-6:
        raise ValueError(
            f"The network was trained on steps of {trained:g} min, {source} has {found:g} min. Take input of "
            f"{trained:g} min, or train a network on {found:g} min."
        )


def as_rain(frames: xr.Dataset) -> xr.Dataset:
    """Convert the rain of `frames` to mm/h under its usual name; raises ValueError if there is no rain rate."""
    name = schema.find_rain_variable(frames)
    factor = schema.mm_h_per(frames[name].attrs["units"])
    if name == schema.RAIN and factor == 1.0:
        return frames
    rain = frames[name] * np.float32(factor)
    rain.attrs = frames[name].attrs | {"units": schema.RAIN_ATTRS["units"]}
    mapping = frames[name].encoding.get("grid_mapping")
    if mapping and "grid_mapping" not in rain.attrs:
        rain.attrs["grid_mapping"] = mapping
    return frames.drop_vars(name).assign({schema.RAIN: rain})


def parse_init_time(text: str | np.datetime64) -> np.datetime64:
    """Parse a time in UTC; raises ValueError for anything else."""
    try:
        return schema.parse_utc(text)
    except ValueError as error:
        raise ValueError(f"init_time={text}: write latest or 2010-08-26T06:00 (UTC).") from error
