"""Verification of live forecasts: each observation is compared with the earlier forecasts for its time.

Persistence, extrapolation and, on grids that are not too large, S-PROG are made at the same time from the same
frames, and scored on the same pixels as the published forecast. Counts are kept by hour of valid time, so that the
scores of the last hours follow from a sum.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from raincast import schema
from raincast.archive import CODE_MM_H, MAX_RATE, MISSING_CODE, nearest_codes
from raincast.baselines import Extrapolation, Persistence, SProg
from raincast.forecaster import Query
from raincast.forecasting import forecast_name
from raincast.live.settings import seconds_of
from raincast.metrics import categorical
from raincast.metrics.categorical import Contingency
from raincast.schema import LEAD_TIME, RAIN, X, Y
from raincast.system.files import atomic

log = logging.getLogger(__name__)

METHODS = ("forecast", "persistence", "extrapolation", "sprog")
RATIOS: dict[str, Callable[[Contingency], torch.Tensor]] = {
    "csi": categorical.csi,
    "pod": categorical.pod,
    "far": categorical.far,
    "frequency_bias": categorical.frequency_bias,
}
HOUR_S = 3600
Counts = npt.NDArray[np.int64]
"""(method, lead, threshold, 4): hits, misses, false alarms, correct negatives"""


class Verification:
    """Score the forecasts in the folder `forecasts` as observations arrive.

    The forecasts of the reference methods are kept in its hidden folder `.references` until their last valid time
    has passed. S-PROG is one of them on grids of at most `sprog_pixels` pixels. `checkpoint` is the hash of the
    network whose forecasts are scored.
    """

    def __init__(
        self,
        forecasts: Path,
        *,
        step_minutes: float,
        lead_steps: int,
        thresholds: tuple[float, ...],
        hours: float,
        checkpoint: str,
        sprog_pixels: int = 1_000_000,
    ) -> None:
        categorical.check_thresholds(thresholds)
        self.forecasts = forecasts
        self.references = forecasts / ".references"
        self.step = schema.step_timedelta(step_minutes)
        self.step_minutes = step_minutes
        self.lead_steps = lead_steps
        self.thresholds = thresholds
        self.hours = hours
        self.checkpoint = checkpoint
        self.sprog_pixels = sprog_pixels
        self.persistence, self.moving = Persistence(), (Extrapolation(), SProg())
        self.counts: dict[int, Counts] = {}
        self.scored: dict[int, int] = {}
        """Number of forecasts compared with each valid time (seconds since 1970)."""

    def remember(self, init_time: np.datetime64, past: npt.NDArray[np.float32]) -> None:
        """Make and store the reference forecasts from `init_time`; `past` is (T, H, W) in mm/h."""
        rain, step_minutes = past[None, :, None], self.step_minutes
        # one map of persistence serves for all lead times
        made = [self.persistence.predict(Query.for_steps(rain, 1, step_minutes=step_minutes))]
        query = Query.for_steps(rain, self.lead_steps, step_minutes=step_minutes)
        moving = self.moving if past[0].size <= self.sprog_pixels else self.moving[:1]
        made += [method.predict(query) for method in moving]
        rates = np.concatenate([prediction.rates[0, :, 0] for prediction in made])
        codes = nearest_codes(np.minimum(rates, MAX_RATE))
        rates = np.where(codes == MISSING_CODE, np.nan, codes * CODE_MM_H)
        dataset = xr.Dataset({RAIN: ((LEAD_TIME, Y, X), rates)})
        encoding = {
            "dtype": "int16", "scale_factor": CODE_MM_H, "_FillValue": np.int16(MISSING_CODE),
            "chunksizes": (1, *past.shape[1:]), "compression": "zstd", "complevel": 1, "shuffle": True,
        }  # fmt: skip
        with atomic(self._reference(init_time), sole=True) as partial:
            dataset.to_netcdf(partial, engine="netcdf4", format="NETCDF4", encoding={RAIN: encoding})

    def remembers(self, init_time: np.datetime64) -> bool:
        """Return True if the reference forecasts from `init_time` are stored."""
        return self._reference(init_time).exists()

    def has_scored(self, time: np.datetime64) -> bool:
        """Return True if the observation of `time` was compared before."""
        return int(seconds_of(time)) in self.scored

    def observe(self, time: np.datetime64, rain: npt.NDArray[np.float32]) -> int:
        """Compare all forecasts for `time` with the observation (H, W) in mm/h, once; return their number."""
        found: dict[int, Counts] = {}
        for lead in range(1, self.lead_steps + 1):
            said = self._said(time - lead * self.step, lead)
            if said is not None and said.shape[1:] == rain.shape:
                found[lead] = self._count(said, rain)
        if found:
            hour = int(seconds_of(time)) // HOUR_S
            if hour not in self.counts:
                shape = (len(METHODS), self.lead_steps, len(self.thresholds), 4)
                self.counts[hour] = np.zeros(shape, np.int64)
            for lead, counts in found.items():
                self.counts[hour][: len(counts), lead - 1] += counts
        self.scored[int(seconds_of(time))] = len(found)
        return len(found)

    def forget(self, newest: np.datetime64) -> None:
        """Drop counts older than the rolling hours, and reference forecasts whose valid times have passed."""
        first = seconds_of(newest) - self.hours * HOUR_S
        self.counts = {hour: c for hour, c in self.counts.items() if (hour + 1) * HOUR_S > first}
        self.scored = {time: n for time, n in self.scored.items() if time > first - HOUR_S}
        # twice the length, because observations may be late
        oldest = self._reference(newest - 2 * self.lead_steps * self.step).name
        for path in self.references.glob("references_*.nc"):
            if path.name < oldest:
                path.unlink(missing_ok=True)

    def begin_anew(self) -> None:
        """Drop the reference forecasts, which are for another grid; the counts stay."""
        for path in self.references.glob("references_*.nc"):
            path.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """Return the rolling scores for the status file; None where there was nothing to score."""
        leads = [self.step_minutes * lead for lead in range(1, self.lead_steps + 1)]
        total = sum(
            self.counts.values(), np.zeros((len(METHODS), self.lead_steps, len(self.thresholds), 4), np.int64)
        )
        table: dict[str, Any] = {
            "hours": self.hours,
            "observations": sum(n > 0 for n in self.scored.values()),
            "comparisons": sum(self.scored.values()),
            "lead_minutes": leads,
            "threshold_mm_h": list(self.thresholds),
        }
        for name, ratio in RATIOS.items():
            table[name] = {method: _rows(ratio(_contingency(total[m]))) for m, method in enumerate(METHODS)}
        table["mean_csi"] = {
            method: _rows(categorical.csi(_contingency(total[m])).nanmean(1)) for m, method in enumerate(METHODS)
        }
        return table

    def to_state(self) -> dict[str, Any]:
        """Return the counts, and the settings they depend on, as plain data."""
        return {
            "checkpoint": self.checkpoint,
            "thresholds": list(self.thresholds),
            "lead_steps": self.lead_steps,
            "counts": {str(hour): counts.tolist() for hour, counts in self.counts.items()},
            "scored": {str(time): number for time, number in self.scored.items()},
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore the counts of an earlier run with the same network, thresholds and lead times."""
        same = ("checkpoint", "thresholds", "lead_steps")
        if any(state.get(key) != self.to_state()[key] for key in same):
            log.warning("The rolling scores start again: network, thresholds or lead times have changed.")
            return
        self.counts = {int(hour): np.array(counts, np.int64) for hour, counts in state["counts"].items()}
        self.scored = {int(time): int(number) for time, number in state["scored"].items()}

    def _reference(self, init_time: np.datetime64) -> Path:
        return self.references / f"{forecast_name(init_time).replace('forecast', 'references')}.nc"

    def _said(self, init_time: np.datetime64, lead: int) -> npt.NDArray[np.float32] | None:
        """Return the forecasts of `METHODS`, (3 or, with S-PROG, 4, H, W) in mm/h; None if any is missing."""
        published = self.forecasts / f"{forecast_name(init_time)}.nc"
        if not (published.exists() and self.remembers(init_time)):
            return None
        try:
            with _open(published) as file:
                if file.attrs.get("checkpoint_sha256") != self.checkpoint or file.sizes[LEAD_TIME] < lead:
                    return None
                forecast = file[RAIN][lead - 1].values
            with _open(self._reference(init_time)) as file:
                numbers = [0, *range(lead, file.sizes[LEAD_TIME], self.lead_steps)]
                references = file[RAIN][numbers].values
        except (OSError, ValueError, KeyError, IndexError) as error:
            log.warning("Not scored: %s cannot be read (%s).", published.name, error)
            return None
        return np.concatenate([forecast[None], references])

    def _count(self, said: npt.NDArray[np.float32], rain: npt.NDArray[np.float32]) -> Counts:
        """Return counts (method, threshold, 4) over the pixels that were observed and forecast."""
        mask = np.isfinite(rain) & np.isfinite(said[0])
        pred = torch.from_numpy(said)[:, None, None]
        target = torch.from_numpy(rain).expand_as(pred)
        table = categorical.contingency(pred, target, torch.from_numpy(mask).expand_as(pred), self.thresholds)
        counts: Counts = torch.stack([count[..., 0] for count in table], dim=-1).numpy()
        return counts


def _open(path: Path) -> xr.Dataset:
    return xr.open_dataset(path, engine="netcdf4", chunks=None, decode_times=False)


def _contingency(counts: Counts) -> Contingency:
    """Convert counts (lead, threshold, 4) to tables of (threshold, lead)."""
    return Contingency(*torch.from_numpy(counts).movedim(-1, 0).transpose(-1, -2))


def _rows(values: torch.Tensor) -> Any:
    """Convert to lists, with None for undefined values, as JSON has no NaN."""
    if values.ndim > 1:
        return [_rows(row) for row in values]
    return [None if value != value else round(value, 4) for value in values.tolist()]
