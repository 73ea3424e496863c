"""SEVIR HDF5: vertically integrated liquid (VIL) of some 20,000 storms and random places in the USA.

Layout (M. Veillette, S. Samsi, C. Mattioli 2020, NeurIPS; tutorial and display code of eie-sevir): `vil` (event,
y from south to north, x, 49 frames) uint8 and `id` (event,). CATALOG.csv has the time and place of each event.

**Nominal times and place.** Events overlap in time and lie anywhere, but an archive has one grid and each time
only once. Dropping events that collide would lose most of SEVIR, and one archive per event would make 20,000
archives. Therefore each event gets eight nominal hours, in the order of the catalog's true times, from 2100 on:
three events per day, with frames from 03:55, 11:55 and 19:55. Windows never cross events, because hours without
frames separate them. A day contains whole events, so data/split=blocks splits by event, and an embargo of up to
235 min costs nothing. The slot depends only on the catalog, not on the ingested files. The grid has 1 km pixels
around the origin of SEVIR's projection. The attribute `sevir_events` of each day has the true times and places.
With `event`, only that event is read, at its true times and place.

**Nominal rates.** VIL is not rain at the ground. SEVIR defines code → kg/m². Then the liquid is spread evenly over
a column of `depth_m`, M = 1000·VIL/depth in g/m³; M = 0.00344·Z^(4/7) (D. Greene and R. Clark 1972, Mon. Wea. Rev.
100, 548-552); Z = a·R^b. With 5000 m, 200 and 1.6 this is R = 3.10·VIL^1.094: SEVIR's thresholds 16, 74, 133, 160,
181 and 219 are 0.40, 2.3, 12.3, 26.4, 47.6 and 138 mm/h. Codes from 247 on exceed 300 mm/h, ingest's max_rate.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import open_hdf5
from raincast.ingest.readers import ALL, Head, hdf5_has, naming
from raincast.ingest.readers.common.axes import grid_between
from raincast.projection import crs_in_metres
from raincast.schema import MOMENTARY, Grid
from raincast.transforms import ZR

CORNERS = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")
COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "proj", *CORNERS)
MAX_EVENTS = 150_000  # of eight nominal hours from 2100 on reach 2236; datetime64[ns] ends in 2262


@dataclass(frozen=True)
class Event:
    """A row of the catalog. `slot` is its rank in true time; `offsets` are minutes from `time`."""

    slot: int
    name: str
    file: tuple[str, int]
    time: np.datetime64
    offsets: tuple[float, ...]
    proj: str
    corners: tuple[float, float, float, float]


@lru_cache(maxsize=2)
def events_by_name(catalog: Path, size: int, changed: int) -> dict[str, tuple[Event, ...]]:
    """Return the VIL events of a catalog by id; `size` and `changed` (its modification time) are cache keys.

    Slots follow true time, then id, file and index.
    """
    with catalog.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{catalog} is not SEVIR's catalog: it has no column {', '.join(missing)}")
        names = ("time_utc", "id", "file_name", "file_index")
        entries = {tuple(str(row[name]) for name in names): row for row in rows if row["img_type"] == "vil"}
    if len(entries) > MAX_EVENTS:
        raise ValueError(f"{catalog} lists {len(entries)} events: raincast reads at most {MAX_EVENTS}")
    found: dict[str, tuple[Event, ...]] = {}
    for slot, key in enumerate(sorted(entries)):
        event = _event(catalog, slot, entries[key])
        found[event.name] = (*found.get(event.name, ()), event)
    return found


def _event(catalog: Path, slot: int, row: Mapping[str, str]) -> Event:
    try:
        south, west, north, east = (float(row[name]) for name in CORNERS)
        return Event(
            slot=slot,
            name=row["id"],
            file=(Path(row["file_name"]).name, int(float(row["file_index"]))),
            time=np.datetime64(row["time_utc"].strip(), "ns"),
            offsets=tuple(float(text) for text in row["minute_offsets"].split(":")),
            proj=row["proj"].strip(),
            corners=(south, west, north, east),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{catalog}: the row of {row.get('id')} cannot be read: {error}") from error


FORMAT = "SEVIR HDF5"
CATALOG = "CATALOG.csv"
LEVELS_ABOVE = 4  # folders to search for the catalog, upwards from data/vil/2019
STEP_MINUTES = 5.0
FIRST_SLOT = np.datetime64("2100-01-01T03:55", "ns")  # far from the true years, 2017 to 2019
EVENTS_A_DAY = 3
SLOT = np.timedelta64(24 // EVENTS_A_DAY, "h")
MISSING = 255
MAX_EVENT_BYTES, MAX_EVENTS = 2**26, 10**5  # SEVIR has 20,000 events of 7 MB: more means a damaged header
PROJ4 = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere"
PIXEL = 1000.0  # m


@dataclass(frozen=True)
class SEVIR:
    """Reads VIL as nominal rates in mm/h, event by event; conf/source/sevir.yaml documents the arguments."""

    catalog: str | None = None
    event: str | None = None
    depth_m: float = 5000.0
    zr_a: float = 200.0
    zr_b: float = 1.6
    source: str = "SEVIR VIL"

    def __post_init__(self) -> None:
        """Raise ValueError for a column without depth or an invalid Z-R relation."""
        if self.depth_m <= 0:
            raise ValueError(f"source.depth_m={self.depth_m} must be the height of a column, e.g. 5000.")
        _ = ZR(self.zr_a, self.zr_b)

    def recognises(self, path: Path) -> bool:
        """Return True for HDF5 with a four-dimensional `vil` and event ids."""
        return hdf5_has(path, lambda file: "id" in file and getattr(file.get("vil"), "ndim", 0) == 4)

    def scan(self, path: Path) -> Head:
        """Return the times and grid of all events in the catalog; no times if `event` is in another file."""
        with self._open(path) as (vil, events):
            times = [self._times(event, vil.shape[3]) for event in events.values()]
            joined = np.concatenate([*times, np.array([], "datetime64[ns]")])
            return Head(joined, self._grid(events, vil.shape[1:3]), STEP_MINUTES, MOMENTARY)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames`, counted over the events that `scan` lists; only these are loaded."""
        with self._open(path) as (vil, events):
            length = vil.shape[3]
            start, stop, _ = frames.indices(len(events) * length)
            table = self._rate_of_codes()
            rates, times, used = [], [], []
            for number, (place, event) in enumerate(events.items()):
                own = slice(max(start - number * length, 0), min(stop - number * length, length))
                if own.start < own.stop:
                    codes = np.moveaxis(vil[place, :, :, own], -1, 0)
                    rates.append(table[codes])
                    times.append(self._times(event, length)[own])
                    used.append(event)
            rain = np.concatenate([*rates, np.empty((0, *vil.shape[1:3]), np.float32)])
            return schema.rain_dataset(
                rain[:: frames.step or 1],
                np.concatenate([*times, np.array([], "datetime64[ns]")])[:: frames.step or 1],
                self._grid(events, vil.shape[1:3]),
                step_minutes=STEP_MINUTES,
                cell_methods=MOMENTARY.cell_methods,
                attrs=self._attrs(self._neighbours(path, used)),
            )

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[Any, dict[int, Event]]]:
        """Yield the codes, still on disk, and the selected events by their index in the file."""
        with naming(path, FORMAT), open_hdf5(path) as file:
            absent = [name for name in ("vil", "id") if name not in file]
            if absent:
                raise ValueError(f"it holds no {', '.join(absent)}; found: {', '.join(file) or 'nothing'}")
            vil, ids = file["vil"], file["id"]
            if vil.ndim != 4 or vil.dtype != np.uint8:
                raise ValueError(f"vil is {vil.dtype} {vil.shape}, not uint8 (event, y, x, frame)")
            if ids.shape != vil.shape[:1] or vil.shape[0] > MAX_EVENTS or ids.dtype.itemsize > 256:
                raise ValueError(f"id is {ids.dtype} {ids.shape}, not a name for each of {vil.shape[0]} events")
            if not 0 < np.prod(vil.shape[1:], dtype=object) <= MAX_EVENT_BYTES:
                raise ValueError(f"vil is {vil.shape}: no event is larger than {MAX_EVENT_BYTES} bytes")
            names = [name.decode("ascii") if isinstance(name, bytes) else str(name) for name in ids[()]]
            yield vil, self._choose(path, names)

    def _choose(self, path: Path, names: list[str]) -> dict[int, Event]:
        """Return the catalog entries of the events by index; events that it does not list are left out."""
        known = events_by_name(*self._catalog(path))
        chosen: dict[int, Event] = {}
        for number, name in enumerate(names):
            rows = known.get(name, ())
            if len(rows) > 1:  # some ids are in SEVIR more than once
                rows = tuple(row for row in rows if row.file == (path.name, number))
            if rows and self.event in (None, name):
                chosen[number] = rows[0]
        if names and not any(name in known for name in names):
            raise ValueError(
                f"the catalog lists none of its {len(names)} events ({names[0]} …): set source.catalog={CATALOG}"
            )
        return chosen

    def _catalog(self, path: Path) -> tuple[Path, int, int]:
        """Return the catalog, configured or found beside or above `path`, with its size and modification time."""
        if self.catalog is not None:
            found = Path(self.catalog).expanduser()
        else:
            folders = path.absolute().parents[: LEVELS_ABOVE + 1]
            found = next((f / CATALOG for f in folders if (f / CATALOG).is_file()), Path(CATALOG))
        if not found.is_file():
            raise ValueError(
                f"the times and places of its events are in SEVIR's {CATALOG}, which was not found "
                f"{'beside or above it' if self.catalog is None else f'at {found}'}. "
                f"Set source.catalog=PATH/{CATALOG}"
            )
        status = found.stat()
        return found, status.st_size, status.st_mtime_ns

    def _times(self, event: Event, number: int) -> npt.NDArray[np.datetime64]:
        """Return the times of an event's frames. SEVIR fills gaps with duplicates: it repeats frame and time."""
        if len(event.offsets) != number:
            raise ValueError(f"the catalog has {len(event.offsets)} minute_offsets of {event.name}, not {number}")
        offsets = np.array(event.offsets)
        start = event.time
        if self.event is None:
            start, offsets = _start(event), STEP_MINUTES * np.rint((offsets - offsets[0]) / STEP_MINUTES)
        times: npt.NDArray[np.datetime64] = start + np.rint(offsets * 60e9).astype("timedelta64[ns]")
        return times

    def _grid(self, events: Mapping[int, Event], shape: tuple[int, int]) -> Grid:
        if self.event is None or not events:
            return _nominal_grid(shape)
        event = next(iter(events.values()))
        south, west, north, east = event.corners
        grid = grid_between(
            event.proj, (("LL", west, south), ("UR", east, north)), ((shape[0], 0.0), (shape[1], 0.0))
        )
        return Grid(y=grid.y[::-1], x=grid.x, crs_wkt=grid.crs_wkt)

    def _rate_of_codes(self) -> npt.NDArray[np.float32]:
        """Return the rate of each code in mm/h, (256,)."""
        water = 1000.0 * vil_of_codes() / self.depth_m  # g/m³
        with np.errstate(divide="ignore"):  # no liquid is −∞ dBZ, which becomes 0 mm/h
            dbz = 10.0 * 7.0 / 4.0 * np.log10(water / 3.44e-3)
        rates: npt.NDArray[np.float32] = ZR(self.zr_a, self.zr_b).to_rate(dbz).astype(np.float32)
        return rates

    def _neighbours(self, path: Path, used: list[Event]) -> list[Event]:
        """Return all events on the days of `used`, because the first frame of a day sets its file's attributes."""
        if self.event is not None:
            return used
        days = {event.slot // EVENTS_A_DAY for event in used}
        known = events_by_name(*self._catalog(path)).values()
        found = [event for rows in known for event in rows if event.slot // EVENTS_A_DAY in days]
        return sorted(found, key=lambda event: event.slot)

    def _attrs(self, events: list[Event]) -> dict[str, Any]:
        place = "" if self.event else "Times and place are nominal: sevir_events has the true ones. "
        listed = [
            {
                "start": str(_start(event).astype("datetime64[s]")),
                "id": event.name,
                "time_utc": str(event.time.astype("datetime64[s]")),
                "proj": event.proj,
                **dict(zip(CORNERS, event.corners, strict=True)),
            }
            for event in events
        ]
        return {
            "source": self.source,
            "title": "SEVIR",
            "comment": f"{place}Rates are nominal, from VIL: not rain at the ground.",
            "vil_depth_m": self.depth_m,
            "zr_a": self.zr_a,
            "zr_b": self.zr_b,
            "sevir_events": json.dumps(listed),
        }


def _start(event: Event) -> np.datetime64:
    """Return the nominal time of an event's first frame."""
    return FIRST_SLOT + event.slot * SLOT


def vil_of_codes() -> npt.NDArray[np.float64]:
    """Return VIL in kg/m² of the codes 0 to 255, NaN for missing.

    SEVIR's tutorial prints exp(X − 83.9)/38.9, which would be 1e-30 where the linear part ends at 0.18. The
    correct formula is exp((X − 83.9)/38.9).
    """
    codes = np.arange(256, dtype=np.float64)
    vil = np.where(codes <= 18, (codes - 2.0) / 90.66, np.exp((codes - 83.9) / 38.9))
    vil[codes <= 5] = 0.0
    vil[MISSING] = np.nan
    return vil


@lru_cache(maxsize=4)
def _nominal_grid(shape: tuple[int, int]) -> Grid:
    """Return a grid of 1 km pixels centred on the origin of SEVIR's projection, from south and west."""
    y, x = (PIXEL * (np.arange(number, dtype=np.float64) - 0.5 * (number - 1)) for number in shape)
    return Grid(y=y, x=x, crs_wkt=crs_in_metres(PROJ4)[0])
