"""The live page and `forecast.json`: files in a folder, which need no server program.

`index.html` never changes. It regularly loads `forecast.js`, which holds `forecast.json` and further data for the
page, because browsers let a page on a disk load scripts, but not data. Maps are palette PNGs in `maps/`.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.colors import to_rgb
from PIL import Image

from raincast import schema
from raincast.forecasting.files.dataset import lead_minutes_of
from raincast.forecasting.files.locations import Location
from raincast.live.outlook import Located, outlook, utc
from raincast.live.settings import seconds_of
from raincast.plotting import rain_image
from raincast.plotting.map_lines import coast_pixels
from raincast.plotting.rain_image import MapView
from raincast.schema import EXCEEDANCE, INIT_TIME, RAIN, THRESHOLD, TIME, Grid
from raincast.system.files import atomic, write_text

Maps = npt.NDArray[np.float32]

MAPS = "maps"
FORECAST, NEWEST = "forecast.nc", ".newest.npz"
"""The forecast, and the observation at its init_time, for `raincast serve`."""
SCRIPT = "forecast.js"
LONGEST = 640
"""Number of pixels of the longer side of a map."""
FORECASTS_KEPT = 2
"""The newest forecast and the one before, which an open page shows until it reloads."""
PAST_MINUTES = 60
CHANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Boundaries of the classes of probabilities, drawn in the colours of the rates."""
CLEAR, COAST = 0, rain_image.MISSING_CLASS + 1
"""Palette indices of dry pixels and of coasts."""


class Site:
    """The files in `folder`, updated with each forecast.

    `places` are listed with their forecasts. Maps of the observations of the last `hours` are kept. The page's
    header turns red when the newest frame is older than `stale_minutes` (None: never).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        places: Sequence[Location] = (),
        hours: float = 3.0,
        stale_minutes: float | None = 20.0,
        title: str = "Rain",
        coastlines: bool = True,
    ) -> None:
        if not hours > 0:
            raise ValueError(f"site_hours={hours} has to be above 0.")
        self.folder = Path(folder)
        self.places, self.hours, self.stale_minutes = list(places), hours, stale_minutes
        self.title, self.coastlines = title, coastlines
        self._canvas: _Canvas | None = None
        self.shown = self._shown_before()
        """Init time of the forecast shown on the page, in seconds since 1970; None without a forecast."""

    def update(
        self, forecast: xr.Dataset, past: Mapping[np.datetime64, Maps], *, file: Path, skill: dict[str, Any] | None
    ) -> None:
        """Show `forecast`, stored in `file`, and the frames `past` (H, W) in mm/h by time, up to its init_time.

        Each file is written atomically, `forecast.js` last, so that all files that it names exist.
        """
        grid = schema.grid_of(forecast)
        if self._canvas is None or not self._canvas.grid.same_as(grid):
            self._canvas = _Canvas(grid, self.places, coastlines=self.coastlines)
        init_time: Any = forecast[INIT_TIME].values.astype("datetime64[ns]")[()]
        content = outlook(forecast, past[init_time], self._canvas.located)
        step = schema.step_timedelta(content["step_minutes"])
        page = {
            "title": self.title,
            "stale_minutes": self.stale_minutes,
            "size": list(self._canvas.shape),
            "dots": self._canvas.dots,
            "frames": [*self._observed(init_time, step, past), *self._leads(forecast)],
            "scale": {"rate": list(rain_image.RAIN_BOUNDARIES), "chance": list(CHANCES)},
            "colours": list(rain_image.RAIN_COLOURS),
            "credit": rain_image.credit(forecast.attrs),
            "skill": skill,
        }
        with atomic(self.folder / NEWEST) as partial, partial.open("wb") as out:
            np.savez_compressed(out, time=init_time, rain=past[init_time])
        with atomic(self.folder / FORECAST) as partial:
            _link(file, partial)
        write_text(self.folder / "index.html", files("raincast.live").joinpath("page.html").read_text("utf-8"))
        text = json.dumps(content, allow_nan=False)
        write_text(self.folder / "forecast.json", text + "\n")
        # a script, but its text stays data: nothing in it can end the script
        both = json.dumps(content | {"page": page}, allow_nan=False).replace("<", "\\u003c")
        write_text(self.folder / SCRIPT, f"raincastForecast({both});\n")
        self.shown = seconds_of(init_time)
        self._forget(init_time)

    def _shown_before(self) -> float | None:
        """Return the init time that an earlier run left on the page, in seconds since 1970; None without one."""
        try:
            text = (self.folder / SCRIPT).read_text(encoding="utf-8")
            said = json.loads(text.removeprefix("raincastForecast(").removesuffix(");\n"))
            return seconds_of(np.datetime64(str(said["init_time"]).removesuffix("Z"), "s"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _observed(
        self, init_time: np.datetime64, step: np.timedelta64, past: Mapping[np.datetime64, Maps]
    ) -> list[dict[str, Any]]:
        """Return the frames of the last hour, from the first observed one; missing frames have no map."""
        num_steps = int(np.timedelta64(PAST_MINUTES, "m") / step)
        times = [init_time - number * step for number in range(num_steps, -1, -1)]
        shown = [
            {"time": utc(time), "lead_minutes": None, "rate": self._draw(time, past.get(time))} for time in times
        ]
        first = next((number for number, frame in enumerate(shown) if frame["rate"]), len(shown) - 1)
        return shown[first:]

    def _draw(self, time: np.datetime64, rain: Maps | None) -> str | None:
        path = f"{MAPS}/observed_{_stamp(time)}.png"
        if rain is None:
            return path if (self.folder / path).exists() else None
        assert self._canvas is not None
        return self._save(path, self._canvas.rates(rain))

    def _leads(self, forecast: xr.Dataset) -> list[dict[str, Any]]:
        assert self._canvas is not None
        stamp, frames = _stamp(forecast[INIT_TIME].values), []
        thresholds = forecast[THRESHOLD].values if EXCEEDANCE in forecast else ()
        for number, (lead, time) in enumerate(zip(lead_minutes_of(forecast), forecast[TIME].values, strict=True)):
            name = f"{MAPS}/forecast_{stamp}_{lead:03g}"
            frame: dict[str, Any] = {"time": utc(time), "lead_minutes": lead}
            frame["rate"] = self._save(f"{name}.png", self._canvas.rates(forecast[RAIN].values[number]))
            frame["chance"] = {
                f"{threshold:g}": self._save(
                    f"{name}_p{threshold:g}.png", self._canvas.chances(forecast[EXCEEDANCE].values[number, place])
                )
                for place, threshold in enumerate(thresholds)
            }
            frames.append(frame)
        return frames

    def _save(self, name: str, classes: npt.NDArray[np.uint8]) -> str:
        content = BytesIO()
        image = Image.fromarray(classes)
        image.putpalette(_PALETTE)
        image.save(content, "PNG", transparency=CLEAR, bits=4, optimize=True)
        with atomic(self.folder / name) as partial:
            partial.write_bytes(content.getvalue())
        return name

    def _forget(self, init_time: np.datetime64) -> None:
        """Remove maps of old observations, and of all forecasts but the newest two."""
        oldest = _stamp(init_time - np.timedelta64(round(60 * self.hours), "m"))
        maps = self.folder / MAPS
        old = [path for path in maps.glob("observed_*.png") if path.name.split("_")[1] < f"{oldest}.png"]
        forecasts = list(maps.glob("forecast_*_*.png"))
        stay = sorted({path.name.split("_")[1] for path in forecasts})[-FORECASTS_KEPT:]
        old += [path for path in forecasts if path.name.split("_")[1] not in stay]
        for path in old:
            path.unlink(missing_ok=True)


class _Canvas:
    """Properties common to all maps of a grid: size, coasts, positions of places."""

    def __init__(self, grid: Grid, places: Sequence[Location], *, coastlines: bool) -> None:
        self.grid = grid
        self.view = MapView.of(grid)
        self.shape = self.view.fit(LONGEST)
        self.located = [Located.of(place, grid) for place in places]
        self.dots = [self._dot(located) for located in self.located]
        self.coast = np.zeros(self.shape, np.bool_)
        if coastlines:
            self.coast = coast_pixels(self.view, *self.shape)

    def rates(self, rain: Maps) -> npt.NDArray[np.uint8]:
        """Return a map of palette indices for rates in mm/h, (H, W)."""
        return self._with_coasts(rain_image.rain_classes(self._fit(rain)))

    def chances(self, probability: Maps) -> npt.NDArray[np.uint8]:
        """Return a map of palette indices for probabilities, (H, W)."""
        values = self._fit(probability)
        classes = np.digitize(values, np.array(CHANCES, np.float32)).astype(np.uint8)
        classes[np.isnan(values)] = rain_image.MISSING_CLASS
        return self._with_coasts(classes)

    def _fit(self, values: Maps) -> Maps:
        return rain_image.resample(self.view.north_up(values), *self.shape)

    def _with_coasts(self, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        classes[self.coast] = COAST
        return classes

    def _dot(self, located: Located) -> list[float] | None:
        """Return the position of a place on the map, as fractions of width and height from the upper left."""
        from pyproj import Transformer

        if located.pixels is None:
            return None
        x, y = Transformer.from_crs("EPSG:4326", self.grid.crs_wkt, always_xy=True).transform(
            *located.place.middle
        )
        view, unit = self.view, 1.0 if self.view.geographic else 1000.0
        across = (x / unit - view.left) / (view.right - view.left)
        down = (view.top - y / unit) / (view.top - view.bottom)
        return [round(float(across), 4), round(float(down), 4)]


def _link(file: Path, partial: Path) -> None:
    try:
        os.link(file, partial)
    except OSError:  # on another disk, or a system without links
        shutil.copyfile(file, partial)


def _stamp(time: Any) -> str:
    return np.datetime_as_string(np.datetime64(time, "s"), unit="m").replace("-", "").replace(":", "")


_COLOURS = ("#ffffff", *rain_image.RAIN_COLOURS, "#9a9a9a", "#5d6a73")
_PALETTE = [round(255 * part) for colour in _COLOURS for part in to_rgb(colour)]
