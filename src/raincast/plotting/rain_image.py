"""Common parts of rain maps, still or animated: colours, north-up pixels in km or degrees, and a graticule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from PIL import Image

from raincast.schema import Grid

Rain = npt.NDArray[np.float32]
Lines = npt.NDArray[np.float64]

RAIN_BOUNDARIES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
"""Class boundaries in mm/h; rates below the first are dry, rates from the last up have the last colour."""
RAIN_COLOURS = (
    "#d0e9fa",
    "#a7d5f2",
    "#78bfec",
    "#4da6e5",
    "#398bdd",
    "#6e61cf",
    "#8e35a3",
    "#8a0f66",
    "#670c41",
    "#3e071c",
)
"""Each colour is darker than the one before: readable with any colour vision, and in grey print."""
DRY_COLOUR, MISSING_COLOUR, HATCH_COLOUR, LINE_COLOUR = "#ffffff", "#e6e6e6", "#c6c6c6", "#9aa4ad"
COAST_COLOUR = "#4d5961"
DRY_CLASS, MISSING_CLASS = 0, len(RAIN_BOUNDARIES) + 1

_GRATICULE_DEGREES = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30)


def rain_colours() -> tuple[Colormap, BoundaryNorm]:
    """Return the colour map and norm for rates in mm/h; NaN is transparent and shows what is below."""
    colours = ListedColormap(RAIN_COLOURS[:-1], name="rain").with_extremes(
        under=DRY_COLOUR, over=RAIN_COLOURS[-1], bad="#00000000"
    )
    return colours, BoundaryNorm(RAIN_BOUNDARIES, len(RAIN_BOUNDARIES) - 1)


def rain_classes(rain: Rain) -> npt.NDArray[np.uint8]:
    """Return class numbers of the same shape: 0 for dry, k from boundary k - 1 up, `MISSING_CLASS` for NaN."""
    # both in float32: a float64 rate of 0.1 would lie below the float32 boundary
    classes = np.digitize(np.asarray(rain, np.float32), np.array(RAIN_BOUNDARIES, np.float32)).astype(np.uint8)
    classes[np.isnan(rain)] = MISSING_CLASS
    return classes


@dataclass(frozen=True)
class MapView:
    """The view of a grid on a map: north up, east to the right, in km of its projection or in degrees.

    `left`, `right`, `bottom` and `top` are the outer edges of the outer pixels. `y_stretch` is the length on Earth
    of a unit of y relative to a unit of x: 1 except for lat/lon grids.
    """

    left: float
    right: float
    bottom: float
    top: float
    y_stretch: float
    geographic: bool
    flip_y: bool
    flip_x: bool
    crs_wkt: str

    @classmethod
    def of(cls, grid: Grid) -> "MapView":
        """Return the view of the whole of `grid`."""
        from pyproj import CRS

        geographic = CRS.from_wkt(grid.crs_wkt).is_geographic
        unit = 1.0 if geographic else 1000.0
        bottom, top = _edges(grid.y / unit, grid.x / unit)
        left, right = _edges(grid.x / unit, grid.y / unit)
        # not below 0.2: a true map near a pole would be extremely narrow
        middle = np.cos(np.radians((bottom + top) / 2))
        return cls(
            left=left,
            right=right,
            bottom=bottom,
            top=top,
            y_stretch=1.0 / max(0.2, float(middle)) if geographic else 1.0,
            geographic=geographic,
            flip_y=bool(grid.y[-1] >= grid.y[0]),  # row 0 becomes the northernmost
            flip_x=bool(grid.x[-1] < grid.x[0]),
            crs_wkt=grid.crs_wkt,
        )

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top), in matplotlib's order."""
        return self.left, self.right, self.bottom, self.top

    @property
    def height_per_width(self) -> float:
        """Aspect ratio of the map as drawn, height divided by width."""
        return (self.top - self.bottom) * self.y_stretch / (self.right - self.left)

    @property
    def width_km(self) -> float:
        """Width of the map in km, along its middle."""
        width = self.right - self.left
        return width * 111.195 / self.y_stretch if self.geographic else width

    @property
    def axis_labels(self) -> tuple[str, str]:
        """Labels of the x and y axes."""
        return ("longitude (°)", "latitude (°)") if self.geographic else ("x (km)", "y (km)")

    def north_up(self, rain: Rain) -> Rain:
        """Return (…, H, W) with the first row northernmost and the first column westernmost."""
        rain = rain[..., ::-1, :] if self.flip_y else rain
        return rain[..., ::-1] if self.flip_x else rain

    def fit(self, longest: int) -> tuple[int, int]:
        """Return (height, width) in square pixels of a picture of the map with the longer side `longest`."""
        ratio = self.height_per_width
        height, width = (longest, longest / ratio) if ratio >= 1 else (longest * ratio, longest)
        return max(1, round(height)), max(1, round(width))

    def lonlat(self, height: int, width: int) -> tuple[Lines, Lines]:
        """Return longitude and latitude in degrees, (height, width), from corner to corner of the map.

        They are NaN off the Earth. Longitudes continue across the date line instead of jumping.
        """
        from pyproj import CRS, Transformer

        unit = 1.0 if self.geographic else 1000.0
        x, y = np.meshgrid(
            np.linspace(self.left, self.right, width) * unit,
            np.linspace(self.top, self.bottom, height) * unit,
        )
        crs = CRS.from_wkt(self.crs_wkt)
        to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(x, y)
        off_earth = ~(np.isfinite(lon) & np.isfinite(lat))
        lon, lat = np.where(off_earth, np.nan, lon), np.where(off_earth, np.nan, lat)
        middle = lon[height // 2, width // 2]
        return (lon - middle + 180.0) % 360.0 - 180.0 + middle, lat


def _edges(centres: Lines, other: Lines) -> tuple[float, float]:
    """Return the outer edges of the outer pixels, ascending; a single pixel is taken to be square."""
    known = centres if centres.size > 1 else other
    half = float(abs(known[-1] - known[0]) / (known.size - 1)) / 2 if known.size > 1 else 0.5
    return float(centres.min()) - half, float(centres.max()) + half


def resample(rain: Rain, height: int, width: int) -> Rain:
    """Resample rates (H, W) to (height, width): the mean over the pixels covered, or the nearest pixel.

    Missing pixels do not count; the result is NaN where more than half of the covered area is missing.
    """
    if rain.shape == (height, width):
        return rain
    if height >= rain.shape[0] and width >= rain.shape[1]:
        # each pixel unchanged: the mean of one value may differ by rounding and change its class
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(np.intp)
            for new, old in zip((height, width), rain.shape, strict=True)
        )
        return rain[np.ix_(rows, columns)].astype(np.float32)
    present = np.isfinite(rain)
    sums = _box(np.where(present, rain, 0.0), height, width)
    share = _box(present, height, width)
    means = sums / np.maximum(share, 1e-6)
    return np.where(share >= 0.5, means, np.nan).astype(np.float32)


def _box(values: npt.NDArray[Any], height: int, width: int) -> Rain:
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def graticule_levels(degrees: Lines) -> Lines:
    """Return round meridians or parallels between the smallest and the largest of `degrees`: two to about five."""
    if not np.isfinite(degrees).any():
        return np.empty(0)
    low, high = float(np.nanmin(degrees)), float(np.nanmax(degrees))
    step = next((s for s in _GRATICULE_DEGREES if (high - low) / s <= 5), _GRATICULE_DEGREES[-1])
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def graticule_pixels(view: MapView, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the meridians and parallels in a picture of (height, width) pixels."""
    on_line = np.zeros((height, width), dtype=bool)
    for degrees in view.lonlat(height, width):
        if not np.isfinite(degrees).all():
            continue
        between = np.digitize(degrees, graticule_levels(degrees))
        on_line[1:] |= between[1:] != between[:-1]
        on_line[:, 1:] |= between[:, 1:] != between[:, :-1]
    return on_line


def cropped(rows: Mapping[str, Rain], grid: Grid) -> tuple[dict[str, Rain], Grid]:
    """Crop `rows` (frame, y, x) and `grid` to the extent that any frame of any row observed.

    A margin of a twentieth of that extent stays on each side. If nothing was observed, nothing is cropped.
    """
    seen = np.zeros(grid.shape, np.bool_)
    for rain in rows.values():
        seen |= np.isfinite(rain).any(axis=0)
    y, x = extent_of(seen)
    kept = {name: rain[:, y, x] for name, rain in rows.items()}
    return kept, grid.crop(y.start, x.start, y.stop - y.start, x.stop - x.start)


def extent_of(seen: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns that contain all of `seen` (y, x), with a margin of a twentieth."""
    if not seen.any():
        return slice(0, seen.shape[0]), slice(0, seen.shape[1])
    return _span(np.asarray(seen.any(axis=1))), _span(np.asarray(seen.any(axis=0)))


def _span(seen: npt.NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(seen)
    margin = -(-(places[-1] + 1 - places[0]) // 20)
    return slice(max(0, int(places[0] - margin)), min(seen.size, int(places[-1] + 1 + margin)))


def credit(attrs: Mapping[str, Any]) -> str:
    """Return the data provider and licence, as the attributes of an archive or a forecast state them."""
    origin = next((str(attrs[key]) for key in ("institution", "input_source", "source") if attrs.get(key)), "")
    licence = str(attrs.get("license") or attrs.get("licence") or "")
    said = f"{origin} ({licence})" if origin and licence else origin or licence
    return f"Data: {said if len(said) <= 100 else f'{said[:99]}…'}" if said else ""


def check_frames(rows: Mapping[str, Rain], grid: Grid) -> None:
    """Raise ValueError unless there is something to draw, and everything is (frame, y, x) on `grid`."""
    if not rows:
        raise ValueError("There is nothing to draw: pass at least one forecast, or the observation.")
    for name, rain in rows.items():
        if rain.ndim != 3 or len(rain) == 0 or rain.shape[1:] != grid.shape:
            raise ValueError(
                f"'{name}' has shape {rain.shape}, the grid {grid.shape}: pass (frame, y, x) with at least "
                "one frame, and the grid of its own pixels."
            )


def valid_text(time: np.datetime64, time_zone: str | None = None) -> str:
    """Format a time in UTC and, in parentheses, local time: 2026-01-31 12:05 UTC (13:05 CET).

    Raises ValueError for an unknown time zone.
    """
    if time_zone is None:
        return utc_text(time)
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"time_zone={time_zone}: give one such as Europe/Amsterdam, or null.") from error
    seconds = int(time.astype("datetime64[s]").astype(np.int64))
    local = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
    return f"{utc_text(time)} ({local:%H:%M %Z})"


def utc_text(time: np.datetime64) -> str:
    """Format a time for forecasters: 2026-01-31 12:05 UTC."""
    return str(np.datetime_as_string(time, unit="m")).replace("T", " ") + " UTC"
