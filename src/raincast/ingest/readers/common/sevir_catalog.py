"""SEVIR's CATALOG.csv: time, place and nominal slot of each event."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

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
        entries = {_key(row): row for row in rows if row["img_type"] == "vil"}
    if len(entries) > MAX_EVENTS:
        raise ValueError(f"{catalog} lists {len(entries)} events: raincast reads at most {MAX_EVENTS}")
    found: dict[str, tuple[Event, ...]] = {}
    for slot, key in enumerate(sorted(entries)):
        event = _event(catalog, slot, entries[key])
        found[event.name] = (*found.get(event.name, ()), event)
    return found


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("time_utc", "id", "file_name", "file_index"))


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
