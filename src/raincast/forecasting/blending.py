"""Members of a nowcast and a weather model in one forecast, by pysteps' STEPS blending.

Cascades of both are weighted by the skill that each has at its scale and lead time (Bowler et al. 2006, Quart. J.
R. Meteor. Soc. 132, 2127-2155; Imhoff et al. 2023, Quart. J. R. Meteor. Soc. 149, 1335-1364): that of the model is
its correlation with the newest frame, which decays to a climatology; that of the nowcast follows from the rain's
own persistence.

A model that is right but for a few kilometres is wrong twice at each pixel. So its fields are displaced first, for
each member in another way: by the displacement that fits the newest frame best, which is forgotten with time, and
by a random one that grows. Amounts are corrected in the same way.
"""

import logging
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast import schema
from raincast.baselines.evolution import DRY_RATE, DRY_THRESHOLD, from_decibels, to_decibels
from raincast.baselines.motion import quiet
from raincast.forecaster import Rain
from raincast.forecasting.gaps import Past
from raincast.forecasting.motion import MOTION_PIXELS, coarse_motion
from raincast.forecasting.weather_model import Times, WeatherModel
from raincast.schema import Grid
from raincast.system.provenance import versions

log = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

HOURS = 6.0
"""Length of a blended forecast by default."""
LEVELS = 6
"""Number of cascade levels."""
LEAST_KNOWN = 0.05
"""Share of the grid that the nowcast must cover. At lead times below it the members are the model's."""

FOLLOW_HOURS = 2.0
"""Time after which 63 % of the members with a dry nowcast follow the model."""
LONG_HOURS, GROWS_FROM_HOURS = 5.0, 2.0
"""In forecasts of at least the first length, the model's weight grows from the second time on, to 1 at the end."""

SEARCH_KM, LIKELY_KM = 40.0, 25.0
"""Largest displacement of the model that is tried, and its likely size."""
SMOOTH_KM = 3.0
LEAST_FIT, LEAST_GAIN = 0.5, 0.05
"""Least correlation of a displaced field with the newest frame, and least gain by the displacement."""
MOST_AMOUNT = 2.0
"""Largest correction factor of amounts; the smallest is its inverse."""
FORGOTTEN_HOURS = 6.0
"""Time after which a correction has decayed to 1/e."""
SPREAD_KM, SPREAD_KM_PER_HOUR = 4.0, 1.0
"""Standard deviation of the random displacement along y and x, and its growth."""


@dataclass(frozen=True, eq=False)
class Blended:
    """A blended forecast: members (L, M, H, W) in mm/h, pixels covered by the model (H, W), file attributes."""

    members: Rain
    modelled: Mask
    attrs: dict[str, Any] = field(default_factory=dict)


class Blending:
    """Blending of members with `model`. The same `seed` gives the same forecast."""

    def __init__(self, model: WeatherModel, *, seed: int = 0) -> None:
        self.model, self.corrected, self.seed = model, model.settings.corrected, seed

    def __call__(
        self, past: Past, nowcast: Rain, known: Mask, grid: Grid, *, step_minutes: float, num_members: int
    ) -> Blended:
        """Blend `nowcast` (L, M, H, W) in mm/h from the newest of the frames `past`, with M = 1 for rates alone.

        `known` (L, H, W) marks pixels whose nowcast follows from observations. Raises ValueError if the model has
        more members than `num_members`, and the errors of `WeatherModel.forecast`.
        """
        step = schema.step_timedelta(step_minutes)
        times: Times = past.times[-1].astype("datetime64[ns]") + step * np.arange(len(nowcast) + 1)
        pad = int(np.ceil((SEARCH_KM + 2 * _spread_km(HOURS, 0.0)) / grid.pixel_km)) if self.corrected else 0
        observed = np.isfinite(past.rain).any(axis=0)
        needed = np.pad(observed, pad)
        found = self.model.forecast(times, _padded(grid, pad), needed)
        if len(found.rates) > num_members:
            raise ValueError(
                f"The model has {len(found.rates)} members, more than members={num_members}: give "
                f"members={len(found.rates)}, or fewer of the model."
            )
        inner = (slice(pad, pad + grid.shape[0]), slice(pad, pad + grid.shape[1]))
        modelled: Mask = np.asarray(np.isfinite(found.rates[..., *inner]).all(axis=(0, 1)))
        newest = past.newest()
        fields, said = self._fields(found.rates, newest, pad, grid, step_minutes, num_members)
        members = blend_members(
            past,
            nowcast,
            known,
            fields,
            step_minutes=step_minutes,
            pixel_km=grid.pixel_km,
            seed=self.seed,
        )
        members[:, :, ~modelled] = np.where(known[:, None, ~modelled], members[:, :, ~modelled], np.nan)
        names = ", ".join(found.files[:4]) + (f" and {len(found.files) - 4} more" if len(found.files) > 4 else "")
        attrs = {
            "blending": f"pysteps {versions()['pysteps']}, blending.steps with an external nowcast: {num_members} "
            f"members, of which {nowcast.shape[1]} of the nowcast and {len(found.rates)} of the model",
            "nwp_run_time": f"{np.datetime_as_string(found.run_time, unit='m')}Z",
            "nwp_variable": found.variable,
            "nwp_files": names,
            **said,
        }
        return Blended(members, modelled, attrs)

    def _fields(
        self, model: Rain, newest: Rain, pad: int, grid: Grid, step_minutes: float, num_members: int
    ) -> tuple[Rain, dict[str, Any]]:
        """Return the members' model fields (M or N, L + 1, H, W), 0 for missing, and attributes."""
        height, width = grid.shape
        inner = model[:, :, pad : pad + height, pad : pad + width]
        if not self.corrected:
            return np.nan_to_num(inner), {"nwp_correction": "none"}
        generator = np.random.default_rng(self.seed)
        drawn = generator.standard_normal((num_members, 2))
        errors = [error_of(newest, own[0], grid.pixel_km) for own in inner]
        made = np.empty((num_members, *inner.shape[1:]), np.float32)
        for member in range(num_members):
            number = member * len(model) // num_members
            error = errors[number]
            for lead in range(inner.shape[1]):
                moved, factor = error.at(lead * step_minutes / 60.0, drawn[member])
                dy, dx = np.clip(np.rint(moved / grid.pixel_km), -pad, pad).astype(int)
                whole = model[number, lead]
                values = whole[pad - dy : pad - dy + height, pad - dx : pad - dx + width]
                values = np.where(np.isfinite(values), values, np.nan_to_num(inner[number, lead]))
                made[member, lead] = values * np.float32(factor)
        said = "; ".join(str(error) for error in errors[:4])
        return made, {"nwp_correction": f"at init_time {said}; it fades with {FORGOTTEN_HOURS:g} h"}


@dataclass(frozen=True, eq=False)
class ModelError:
    """Displacement (y, x) in km along rows and columns, and factor, that fit the model to the observation."""

    displacement: Floats
    factor: float
    fit: float
    """correlation of the displaced field with the observation; NaN if none was found"""

    def at(self, hours: float, drawn: Floats) -> tuple[Floats, float]:
        """Return a member's displacement in km and factor at a lead time; `drawn` (2,) is normally distributed."""
        left = float(np.exp(-hours / FORGOTTEN_HOURS))
        spread = _spread_km(hours, float(np.hypot(*self.displacement)))
        return left * self.displacement + spread * drawn, self.factor**left

    def __str__(self) -> str:
        """Describe the correction, for the forecast file."""
        if not np.isfinite(self.fit):
            return "none found"
        y, x = self.displacement
        return f"{y:.0f} km along rows, {x:.0f} km along columns, amounts × {self.factor:.2f} (fit {self.fit:.2f})"


NO_ERROR = ModelError(np.zeros(2), 1.0, np.nan)


def _spread_km(hours: float, displacement_km: float) -> float:
    """Return the standard deviation of the displacement: the forgotten part of the correction becomes spread."""
    forgotten = 1.0 - float(np.exp(-hours / FORGOTTEN_HOURS))
    return SPREAD_KM + SPREAD_KM_PER_HOUR * hours + forgotten * displacement_km


def error_of(newest: Rain, model: Rain, pixel_km: float) -> ModelError:
    """Estimate the displacement and factor that fit `model` (H, W) in mm/h to `newest`, NaN for missing.

    The displacement maximises the correlation of smoothed decibels over the observed pixels; small displacements
    are preferred.
    """
    from scipy.ndimage import gaussian_filter

    observed = np.isfinite(newest)
    if not observed.any():
        return NO_ERROR
    rates = np.where(observed, newest, 0.0)
    seen, said = (
        gaussian_filter(to_decibels(maps).astype(np.float64), SMOOTH_KM / pixel_km)
        for maps in (rates, np.nan_to_num(model))
    )
    seen = np.where(observed, seen - seen[observed].mean(), 0.0)
    said = said - said.mean()
    if not (seen.std() > 0 and said.std() > 0):
        return NO_ERROR
    most = min(round(SEARCH_KM / pixel_km), *(length // 2 for length in newest.shape))
    correlation = _correlations(seen, said, observed, most)
    distance = np.hypot(*np.mgrid[-most : most + 1, -most : most + 1]) * pixel_km
    best = np.unravel_index((correlation * np.exp(-0.5 * (distance / LIKELY_KM) ** 2)).argmax(), correlation.shape)
    fit, still = float(correlation[best]), float(correlation[most, most])
    if fit < LEAST_FIT:
        return NO_ERROR
    moved = np.array(best, np.float64) - most if fit >= still + LEAST_GAIN else np.zeros(2)
    both, theirs = _displaced(rates, observed, model, moved.astype(int))
    factor = (both + 0.02) / (theirs + 0.02)  # of drizzle no ratio is made
    return ModelError(moved * pixel_km, float(np.clip(factor, 1 / MOST_AMOUNT, MOST_AMOUNT)), fit)


def _displaced(rates: Rain, observed: Mask, model: Rain, moved: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Return the mean rates of the observation and the displaced model, where both are known."""
    own = tuple(slice(max(0, by), min(size, size + by)) for by, size in zip(moved, model.shape, strict=True))
    other = tuple(slice(max(0, -by), min(size, size - by)) for by, size in zip(moved, model.shape, strict=True))
    known = observed[own] & np.isfinite(model[other])
    if not known.any():
        return 0.0, 0.0
    return float(rates[own][known].mean()), float(model[other][known].mean())


def _correlations(seen: Floats, said: Floats, observed: Mask, most: int) -> Floats:
    """Return correlations of anomalies, (2·most + 1)², for displacements of `said` by up to `most` pixels."""
    from scipy.signal import fftconvolve

    def over(one: Floats, other: Floats) -> Floats:
        whole: Floats = fftconvolve(one, other[::-1, ::-1], mode="full")
        row, column = other.shape[0] - 1, other.shape[1] - 1
        return whole[row - most : row + most + 1, column - most : column + most + 1]

    energy = over(observed.astype(np.float64), said**2)
    return np.asarray(over(seen, said) / np.sqrt(np.maximum(energy, 1e-9) * (seen**2).sum()))


def blend_members(
    past: Past, nowcast: Rain, known: Mask, model: Rain, *, step_minutes: float, pixel_km: float, seed: int = 0
) -> Rain:
    """Blend a nowcast (L, M or 1, H, W) and model fields (N, L + 1, H, W), both in mm/h, to (L, M, H, W).

    `model[:, 0]` is valid at the newest of the frames `past`. The nowcast counts where it is `known` (L, H, W).
    A single nowcast gets noise from pysteps; M is then N. Where less than `LEAST_KNOWN` of the grid is known, the
    members are those of the model. A member whose nowcast is dry has no cascade to blend: it stays dry, or follows
    the model from some lead time on, early in some members and late in others (`FOLLOW_HOURS`).
    """
    leads, num_nowcasts, height, width = nowcast.shape
    num_members = max(num_nowcasts, len(model))
    there = past.rain[~past.absent][-3:]
    frames = there if len(there) > 1 else np.repeat(there, 2, axis=0)  # pysteps needs two
    noisy = num_nowcasts == 1 and bool((nowcast >= DRY_RATE).any()) and not past.dry
    decibels = np.empty((num_nowcasts, leads + 1, height, width), np.float32)
    decibels[:, 0] = to_decibels(np.nan_to_num(frames[-1]))
    alone = known.mean(axis=(1, 2)) < LEAST_KNOWN
    for lead in range(leads):
        decibels[:, lead + 1] = to_decibels(nowcast[lead])
        if not alone[lead]:
            decibels[:, lead + 1][:, ~known[lead]] = np.nan
    made = np.empty((leads, num_members, height, width), np.float32)
    done = iter(range(leads))

    def keep(fields: Floats) -> None:
        made[next(done)] = from_decibels(fields.reshape(num_members, height, width))

    motion = _motion(frames)
    init_time = datetime.fromtimestamp(past.times[-1].astype("datetime64[s]").astype(int), UTC)
    with quiet(), np.errstate(all="ignore"), tempfile.TemporaryDirectory() as skill:
        from pysteps.blending.steps import forecast

        forecast(
            to_decibels(frames).astype(np.float64),
            to_decibels(model),
            motion,
            # only noise is moved by it
            np.broadcast_to(motion, (len(model), leads + 1, *motion.shape)),
            leads,
            step_minutes,
            init_time.replace(tzinfo=None),
            num_members,
            precip_nowcast=decibels,
            nowcasting_method="external_nowcast",
            n_cascade_levels=LEVELS,
            precip_thr=DRY_THRESHOLD,
            kmperpixel=pixel_km,
            noise_method="nonparametric" if noisy else None,
            vel_pert_method=None,
            mask_method=None,
            ar_order=min(2, len(frames) - 1),
            timestep_start_full_nwp_weight=_alone_from(leads, step_minutes),
            callback=keep,
            return_output=False,
            seed=seed,
            outdir_path_skill=skill,
        )
    own = np.arange(num_members) * len(model) // num_members
    patience = np.random.default_rng(seed).permutation((np.arange(num_members) + 0.5) / num_members)
    for lead in range(leads):
        if alone[lead]:
            made[lead] = model[own, lead + 1]
            continue
        follows = patience < 1.0 - np.exp(-(lead + 1) * step_minutes / 60.0 / FOLLOW_HOURS)
        dry = ~(nowcast[lead][:, known[lead]] >= DRY_RATE).any(axis=1)
        for member in np.flatnonzero(np.broadcast_to(dry, num_members)):
            theirs = model[own[member], lead + 1]
            made[lead, member] = np.where(known[lead] & ~follows[member], 0.0, theirs)
    return made


def _alone_from(leads: int, step_minutes: float) -> int | None:
    """Return the step at which the model's weight begins to grow to 1; None for short forecasts."""
    if leads * step_minutes < 60 * LONG_HOURS:
        return None
    return round(60 * GROWS_FROM_HOURS / step_minutes)


def _motion(frames: Rain) -> Floats:
    """Return the motion (2, H, W) in pixels per step; 0 if there is nothing to track."""
    motion, size = coarse_motion(frames, MOTION_PIXELS)
    height, width = frames.shape[1:]
    if motion is None:
        return np.zeros((2, height, width))
    return (size * motion).repeat(size, axis=1).repeat(size, axis=2)[:, :height, :width]


def _padded(grid: Grid, pad: int) -> Grid:
    def longer(axis: Floats) -> Floats:
        step = (axis[-1] - axis[0]) / max(1, axis.size - 1)
        return np.asarray(axis[0] + step * np.arange(-pad, axis.size + pad))

    return Grid(longer(grid.y), longer(grid.x), grid.crs_wkt)
