"""A report on an archive's contents: lines for a terminal, one self-contained HTML page, a map file."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.archive.statistics import WET_MM_H, Gap, Statistics
from raincast.plotting import page
from raincast.plotting.archive_pictures import class_names, pictures
from raincast.plotting.rain_image import MapView, utc_text
from raincast.schema import CRS, WET_SHARE, Grid, X, Y

MOST_GAPS, MOST_MONTHS = 10, 24
ORIGIN = ("source", "institution", "title", "license", "licence", "references", "raincast_version")


@dataclass(frozen=True)
class Section:
    """A heading and the rows below it: name and value."""

    title: str
    rows: Sequence[tuple[str, str]]


def sections(statistics: Statistics) -> list[Section]:
    """Return all sections except the pictures."""
    return [
        Section("Times", list(_times(statistics))),
        Section("Gaps", list(_gaps(statistics.gaps, statistics.archive.step_minutes))),
        Section("Coverage", list(_coverage(statistics))),
        Section("Rain", list(_rain(statistics))),
        Section(f"Wet share by month (> {WET_MM_H:g} mm/h, of observed pixels)", list(_months(statistics))),
        Section("Rates (mm/h, of observed pixels)", list(_classes(statistics))),
        Section("Grid", list(_grid(statistics.archive.grid))),
        Section("Source and settings", list(_settings(statistics.archive.attrs))),
    ]


def _times(statistics: Statistics) -> Iterator[tuple[str, str]]:
    archive = statistics.archive
    yield "first", utc_text(archive.times[0])
    yield "last", utc_text(archive.times[-1])
    yield "step", f"{archive.step_minutes:g} min"
    yield "frames", f"{archive.num_times} in {len(archive.parts)} file{'s' * (len(archive.parts) > 1)}"
    missing = statistics.num_missing
    yield "missing", f"{missing} of {statistics.num_due} due ({_percent(missing / statistics.num_due)})"


def _gaps(gaps: Sequence[Gap], step_minutes: float) -> Iterator[tuple[str, str]]:
    yield "number", f"{len(gaps)}" + (f", the longest {MOST_GAPS}:" if len(gaps) > MOST_GAPS else "")
    for gap in gaps[:MOST_GAPS]:
        length = _length(gap.num_missing * step_minutes)
        yield f"after {utc_text(gap.after)}", f"{gap.num_missing} frames ({length})"


def _length(minutes: float) -> str:
    for size, unit in ((1440.0, "days"), (60.0, "h")):
        if minutes >= 2 * size:
            return f"{minutes / size:.1f} {unit}"
    return f"{minutes:g} min"


def _coverage(statistics: Statistics) -> Iterator[tuple[str, str]]:
    seen = statistics.observed_frames > 0
    yield "ever observed", f"{_percent(seen.mean())} of {seen.shape[0]} × {seen.shape[1]} pixels"
    share = statistics.frame_coverage
    yield "of a frame", f"{_percent(share.mean())} on average ({_percent(share.min())} to {_percent(share.max())})"
    least = int(share.argmin())
    yield "least in", utc_text(statistics.archive.times[least])


def _rain(statistics: Statistics) -> Iterator[tuple[str, str]]:
    observed = int(statistics.observed_pixels.sum())
    if not observed:
        yield "nothing", "no pixel was observed in any frame"
        return
    wet = statistics.wet_pixels.sum() / observed
    by_frame = statistics.frame_wet_share
    low, high = np.nanmin(by_frame), np.nanmax(by_frame)
    yield f"wet (> {WET_MM_H:g} mm/h)", f"{_percent(wet)} (frames: {_percent(low)} to {_percent(high)})"
    yield "mean", f"{statistics.rain_sum.sum() / observed:.3f} mm/h"
    yield "largest", f"{statistics.largest:.2f} mm/h in {utc_text(statistics.largest_time)}"
    capped = statistics.num_capped
    yield "capped pixels", "not recorded" if capped is None else f"{capped}"
    means = statistics.archive.rain_attrs.get("cell_methods", "not stated")
    yield (
        "rates are",
        {"time: mean": "means over the step that ends at the time", "time: point": "momentary"}.get(
            str(means), str(means)
        ),
    )


def _months(statistics: Statistics) -> Iterator[tuple[str, str]]:
    months, wet, num_frames = statistics.wet_share_by("M")
    for month, share, num in zip(months, wet, num_frames, strict=True):
        yield str(month), f"{_percent(share):>6} in {num} frames"


def _classes(statistics: Statistics) -> Iterator[tuple[str, str]]:
    total = max(1, int(statistics.class_counts.sum()))
    for name, count in zip(class_names(), statistics.class_counts, strict=True):
        yield name, f"{100 * count / total:8.4f} %  {count:>15,} pixels"


def _grid(grid: Grid) -> Iterator[tuple[str, str]]:
    from pyproj import CRS as ProjCRS

    crs = ProjCRS.from_wkt(grid.crs_wkt)
    view = MapView.of(grid)
    unit = "°" if view.geographic else "km"
    height, width = grid.shape
    pixel = (view.top - view.bottom) / height, (view.right - view.left) / width
    yield "pixels (y × x)", f"{height} × {width} of {pixel[0]:g} × {pixel[1]:g} {unit}"
    axis_unit = "°" if view.geographic else "m"
    yield "y, first to last", f"{grid.y[0]:g} to {grid.y[-1]:g} {axis_unit}"
    yield "x, first to last", f"{grid.x[0]:g} to {grid.x[-1]:g} {axis_unit}"
    lon, lat = view.lonlat(2, 2)
    names = (("north-west", "north-east"), ("south-west", "south-east"))
    for (row, column), name in np.ndenumerate(np.array(names)):
        yield f"{name} corner", f"{lon[row, column]:.4f}° E, {lat[row, column]:.4f}° N"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # proj4 cannot express everything; the archive's WKT can
        text = crs.to_proj4()
    yield "projection", text.replace(" +no_defs", "").replace(" +type=crs", "") or crs.name


def _settings(attrs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ORIGIN:
        if name in attrs:
            yield name, str(attrs[name])
    try:
        settings = json.loads(attrs.get(schema.SETTINGS, ""))
    except ValueError:
        yield "settings", "not recorded"
        return
    for key, value in _flat(settings):
        yield key.replace("source.readers.", "source."), json.dumps(value, ensure_ascii=False)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key != "_target_" or not prefix.startswith("source.readers."):
            yield prefix + key, value


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %" if share < 0.9995 or share == 1 else "> 99.9 %"


def text(told: Sequence[Section]) -> str:
    """Return lines for a terminal."""
    lines = []
    for section in told:
        rows = section.rows
        if len(rows) > MOST_MONTHS and "month" in section.title:
            rows = [("…", f"{len(rows) - MOST_MONTHS} earlier ones in the page"), *rows[-MOST_MONTHS:]]
        rows = [row for row in rows if not row[0].startswith("source.") or row[0].endswith("_target_")]
        width = max((len(name) for name, _ in rows), default=0)
        lines += ["", section.title, *(f"  {name:<{width}}  {value}" for name, value in rows)]
    return "\n".join(lines[1:])


def write_page(statistics: Statistics, told: Sequence[Section], path: Path) -> Path:
    """Write one HTML file that contains its pictures and needs neither network nor other files."""
    name = statistics.archive.path.resolve().name
    figures = [page.Section(title, [page.Picture(png, title)]) for title, png in pictures(statistics).items()]
    tables = [page.Section(section.title, [page.Facts(section.rows)]) for section in told]
    return page.write_page(path, title=f"The archive {name}", sections=[*figures, *tables])


def write_maps(statistics: Statistics, path: Path) -> Path:
    """Write mean rain, wet share and number of frames per pixel as CF netCDF.

    Other programs can draw it, and `ingest` takes static clutter from it.
    """
    fields = {
        "mean_rain_rate": (
            statistics.mean_rain.astype(np.float32),
            "mean rain rate of the observed frames",
            "mm h-1",
        ),
        WET_SHARE: (
            statistics.wet_share.astype(np.float32),
            f"share of the observed frames above {WET_MM_H:g} mm/h",
            "1",
        ),
        "observed_frames": (statistics.observed_frames, "number of frames that observed the pixel", "1"),
    }
    archive = statistics.archive
    dataset = xr.Dataset(
        {
            name: (
                (Y, X),
                values,
                {"long_name": long_name, "units": units, "grid_mapping": CRS},
            )
            for name, (values, long_name, units) in fields.items()
        },
        coords=archive.grid.to_coords(),
        attrs={
            "Conventions": schema.CONVENTIONS,
            "title": f"statistics of {archive.num_times} frames from {archive.times[0]} to {archive.times[-1]}",
            "num_frames": np.int32(archive.num_times),
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    coding: dict[Any, Any] = {name: {"zlib": True, "complevel": 3} for name in fields}
    coding |= {axis: {"_FillValue": None} for axis in (Y, X)}
    dataset.to_netcdf(path, engine="netcdf4", encoding=coding)
    return path
