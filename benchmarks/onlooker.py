"""Who looks at a watcher's page and asks its `/health` while a replay goes on, and finds what is not right."""

import json
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from raincast import schema
from raincast.forecasting import forecast_name
from raincast.forecasting.files.locations import Location
from raincast.live import Site
from raincast.live.outlook import RAIN_FROM
from raincast.live.serve import Server
from raincast.live.settings import seconds_of, time_of
from raincast.plotting.rain_image import rain_classes

PAGE_LAG_S = 60.0
"""For so long the page may lack a forecast that is there, once it can be written."""


def places_in(grid: schema.Grid) -> list[Location]:
    """Nine places across a grid, at the middles of pixels, by their row and column."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True)
    rows, columns = (np.linspace(0.15, 0.85, 3) * size for size in grid.shape)
    return [
        Location(f"{int(row)},{int(column)}", to_degrees.transform(grid.x[int(column)], grid.y[int(row)]))
        for row in rows
        for column in columns
    ]


class NotingSite(Site):
    """Notes when each forecast was on the page, by the replay's clock."""

    def __init__(self, folder: Path, clock: Any, **settings: Any) -> None:
        super().__init__(folder, coastlines=False, **settings)
        self.clock, self.at = clock, dict[np.datetime64, float]()

    def update(self, forecast: xr.Dataset, *arguments: Any, **keywords: Any) -> None:
        """As it is, and the time."""
        super().update(forecast, *arguments, **keywords)
        self.at.setdefault(forecast[schema.INIT_TIME].values.astype("datetime64[ns]")[()], self.clock.true_time())


@dataclass
class Onlooker:
    """Looks at the page of `site` and the forecasts in `output` after each step of the clock.

    `visible[t]` is (earliest, latest): true seconds since 1970 between which the watcher can first see the frame
    of `t`. `snapshots`: a folder for copies of the page at moments of interest.
    """

    site: Path
    output: Path
    truth: xr.Dataset
    visible: dict[np.datetime64, tuple[float, float]]
    clock: Any
    stale_minutes: float
    snapshots: Path | None = None
    problems: list[str] = field(default_factory=list)
    num_checked: int = 0
    health: dict[str, Counter[str]] = field(default_factory=dict)
    """trouble → how often /health said what."""
    largest_bytes: int = 0
    _seen: Any = None
    _lag_since: float | None = None

    def __enter__(self) -> "Onlooker":
        """Serve the folder."""
        self.site.mkdir(parents=True, exist_ok=True)
        self._server = Server(self.site, port=0, stale_minutes=self.stale_minutes, now=self.clock.now)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """No more."""
        self._server.shutdown()
        self._server.server_close()

    def look(self, trouble: str) -> None:
        """Once: health, and the page if it is another than at the last look."""
        newest = max((path.name for path in self.output.glob("forecast_*.nc")), default=None)
        self._ask_health(trouble, newest)
        script = self.site / "forecast.js"
        if not script.exists():
            return
        key = script.stat().st_mtime_ns
        said = json.loads(script.read_text("utf-8").removeprefix("raincastForecast(").removesuffix(");\n"))
        init_time = np.datetime64(said["init_time"].removesuffix("Z"), "ns")
        self._compare_newest(init_time, newest, trouble)
        if key != self._seen:
            self._seen = key
            self.num_checked += 1
            self._check(said, init_time)
            size = sum(path.stat().st_size for path in self.site.rglob("*") if path.is_file())
            self.largest_bytes = max(self.largest_bytes, size)

    def _ask_health(self, trouble: str, newest: str | None) -> None:
        connection = HTTPConnection(*self._server.server_address[:2], timeout=30)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        state = json.loads(answer.read())
        connection.close()
        word = f"{answer.status} {state['status']}"
        self.health.setdefault(trouble, Counter())[word] += 1
        if (answer.status == 200) != (state["status"] == "ok"):
            self.problems.append(f"/health says {word}")
        if newest is not None and "init_time" in state:
            age_s = self.clock.now() - seconds_of(np.datetime64(state["init_time"].removesuffix("Z"), "s"))
            good = -2 * 60 * float(self.truth.attrs[schema.STEP_MINUTES]) <= age_s <= 60 * self.stale_minutes
            if good != (answer.status == 200):
                self.problems.append(f"/health says {word} of a frame that is {age_s:.0f} s old")
        self._snap(word, trouble)

    def _compare_newest(self, init_time: np.datetime64, newest: str | None, trouble: str) -> None:
        now = self.clock.true_time()
        if newest is None or newest == f"{forecast_name(init_time)}.nc" or trouble == "full":
            self._lag_since = None
            return
        self._lag_since = self._lag_since or now
        if now - self._lag_since > PAGE_LAG_S and self.clock.time_is_right():
            self.problems.append(f"{newest} is there, and for {PAGE_LAG_S:g} s the page shows {init_time}")
            self._lag_since = now

    def _check(self, said: dict[str, Any], init_time: np.datetime64) -> None:
        def wrong(what: str) -> None:
            self.problems.append(f"page of {init_time}: {what}")

        for frame in said["page"]["frames"]:
            names = [frame["rate"], *frame.get("chance", {}).values()]
            for name in filter(None, names):
                if not (self.site / name).is_file():
                    wrong(f"{name} is not there")
            if frame["lead_minutes"] is None:
                self._check_observed(np.datetime64(frame["time"].removesuffix("Z"), "ns"), frame["rate"], wrong)
        with xr.open_dataset(self.output / f"{forecast_name(init_time)}.nc", decode_timedelta=True) as file:
            rain = file[schema.RAIN].values
        self._check_map(said["page"]["frames"][-1]["rate"], rain[-1], wrong)
        for place in said["places"]:
            row, column = map(int, place["name"].split(","))
            self._check_place(place, rain[:, row, column], self._truth(init_time)[row, column], wrong)

    def _truth(self, time: np.datetime64) -> np.ndarray:
        return np.asarray(self.truth[schema.RAIN].sel(time=time).values)

    def _check_observed(self, time: np.datetime64, name: str | None, wrong: Any) -> None:
        earliest, latest = self.visible.get(time, (np.inf, np.inf))
        now = self.clock.true_time()
        if name is None and latest < now - PAGE_LAG_S:
            wrong(f"the frame of {time} came, and is not shown")
        if name is not None and earliest > now:
            wrong(f"the frame of {time} is shown, and had not come")
        if name is not None and time in self.truth[schema.TIME].values:
            self._check_map(name, self._truth(time), wrong)

    def _check_map(self, name: str, rain: np.ndarray, wrong: Any) -> None:
        """Each pixel of the grid has its class at its place on the map: the map is north up."""
        with Image.open(self.site / name) as image:
            classes = np.asarray(image)
        grid = schema.grid_of(self.truth)
        north_up = rain[:: 1 if grid.y[0] > grid.y[-1] else -1, :: 1 if grid.x[0] < grid.x[-1] else -1]
        at = [
            ((np.arange(n) + 0.5) * size / n).astype(int)
            for n, size in zip(rain.shape, classes.shape, strict=True)
        ]
        if not np.array_equal(classes[np.ix_(*at)], rain_classes(north_up)):
            wrong(f"{name} is another map")

    @staticmethod
    def _check_place(place: dict[str, Any], rates: np.ndarray, observed: float, wrong: Any) -> None:
        told = [np.nan if rate is None else rate for rate in (place["observed_mm_h"], *place["rate_mm_h"])]
        known = np.array([observed, *rates])
        if not np.allclose(told, known, atol=1e-3, equal_nan=True):
            wrong(f"the rates at {place['name']} are others")
        wet = known >= RAIN_FROM - 1e-9
        state = "rain" if wet.any() else "unknown" if np.isnan(known).any() else "dry"
        if place["state"] != state:
            wrong(f"{place['name']} is called {place['state']}, and is {state}")

    def _snap(self, word: str, trouble: str) -> None:
        """A copy of the page the first time that the monitor says `word` within `trouble`."""
        if self.snapshots is None or not (self.site / "forecast.js").exists():
            return
        folder = self.snapshots / f"{trouble}_{word}".replace(" ", "_")
        if not folder.exists() and sum(self.health[trouble].values()) > 10:
            shutil.copytree(self.site, folder)
            (folder / "now.txt").write_text(str(time_of(self.clock.now())), encoding="utf-8")
