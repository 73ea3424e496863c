"""Maps of an event for the page: the observation next to each forecast, with one slider for the lead time.

The frames of a forecaster are one tall image, which the slider moves behind a window of one frame. Colours are
palette indices, one per rain class, as in the animations.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import contourpy
import numpy as np
from PIL import Image

from raincast import schema
from raincast.plotting import rain_image
from raincast.plotting.map_lines import Graticule, seen_lines
from raincast.plotting.page import Block, render
from raincast.plotting.rain_image import (
    DRY_COLOUR,
    MISSING_CLASS,
    MISSING_COLOUR,
    RAIN_BOUNDARIES,
    RAIN_COLOURS,
    MapView,
    Rain,
    utc_text,
)
from raincast.schema import Grid

LONGEST_SIDE = 420  # pixels of a map: three events of six forecasters stay within a few megabytes
_SVG_SIDE = 400.0
_WIDEST, _HIGHEST = 276, 360  # on the page: four maps in a row
_BAR_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, eq=False)
class EventMaps:
    """One window of an event: (lead, y, x) in mm/h, NaN for missing; lead 0 is one step after `init_time`.

    `last_seen` is the newest input frame, (y, x). `title` and `note` name the event and why it was chosen;
    `credit` names the data provider.
    """

    title: str
    note: str
    grid: Grid
    init_time: np.datetime64
    step_minutes: float
    last_seen: Rain
    observed: Rain
    forecasts: Mapping[str, Rain]
    credit: str = ""

    @cached_property
    def labels(self) -> list[str]:
        """Label of each slider position; the newest input frame comes first."""
        step = schema.step_timedelta(self.step_minutes)
        return [f"newest input, {utc_text(self.init_time)}"] + [
            f"+{k * self.step_minutes:g} min, valid {utc_text(self.init_time + k * step)}"
            for k in range(1, len(self.observed) + 1)
        ]

    def block(self) -> Block:
        """Return the maps and their slider, which starts at the middle lead time."""
        start = (len(self.labels) + 1) // 2
        rows = {"observed": self.observed} | dict(self.forecasts)
        whole = {name: np.concatenate([self.last_seen[None], rain]) for name, rain in rows.items()}
        frames, grid = rain_image.cropped(whole, self.grid)
        view = MapView.of(grid)
        return render(
            "event_maps.html",
            title=self.title,
            note=self.note,
            credit=self.credit,
            labels=self.labels,
            labels_json=json.dumps(self.labels, ensure_ascii=False),
            start=start,
            shift=f"{-100 * start / len(self.labels):.4f}",
            width=round(min(_WIDEST, _HIGHEST / view.height_per_width)),
            ratio=f"{view.height_per_width:.5f}",
            shapes=_shapes(view, self.title),
            maps=[{"name": name, "image": sprite(rain, view)} for name, rain in frames.items()],
        )


def sprite(frames: Rain, view: MapView) -> bytes:
    """Render (n, y, x) in mm/h as one PNG with the frames stacked vertically, north up; missing is transparent."""
    shown = view.north_up(frames)
    height, width = view.fit(LONGEST_SIDE)
    if max(shown.shape[1:]) > LONGEST_SIDE:
        shown = np.stack([rain_image.resample(frame, height, width) for frame in shown])
    image = Image.fromarray(rain_image.rain_classes(shown.reshape(-1, shown.shape[-1])))
    colours = (DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR)
    image.putpalette([int(colour[k : k + 2], 16) for colour in colours for k in (1, 3, 5)])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, transparency=MISSING_CLASS)
    return buffer.getvalue()


def legend() -> Block:
    """Return the legend: colours and their rates."""
    steps = [(f"{rate:g}", colour) for rate, colour in zip(RAIN_BOUNDARIES, RAIN_COLOURS, strict=True)]
    steps = [(f"below {RAIN_BOUNDARIES[0]:g}", DRY_COLOUR), *steps]
    return render("legend.html", steps=steps, hatch=rain_image.HATCH_COLOUR, missing=MISSING_COLOUR)


def _shapes(view: MapView, title: str) -> dict[str, Any]:
    """Return coasts, meridians and parallels with labels, and a scale bar in km, as SVG over the maps."""
    width, height = _SVG_SIDE, _SVG_SIDE * view.height_per_width
    graticule = Graticule.of(view)

    def placed(x: Any, y: Any) -> tuple[Any, Any]:
        return (
            (x - view.left) / (view.right - view.left) * width,
            (view.top - y) / (view.top - view.bottom) * height,
        )

    lines = [("coast", _points(*placed(*line.T))) for line in seen_lines(view)]
    for degrees in (graticule.lon, graticule.lat):
        if not np.isfinite(degrees).any():
            continue
        contours: Any = contourpy.contour_generator(
            graticule.x, graticule.y, np.ma.masked_invalid(degrees), line_type="Separate"
        )
        for level in rain_image.graticule_levels(degrees):
            lines += [("degrees", _points(*placed(*line.T))) for line in contours.lines(float(level))]
    texts = []
    for label in graticule.labels():
        x, y = placed(label.x, label.y)
        at = (x, y - 4, "middle") if label.at_bottom else (3, y + 4, "start")
        texts.append(_text(label.text, *at))
    bar = None if view.geographic else _scale_bar(width / (view.right - view.left), width)
    if bar is not None:
        texts.append(_text(f"{bar['km']} km", bar["x"] + bar["length"] / 2, bar["y"] + 16, "middle"))
    name = hashlib.sha256(title.encode()).hexdigest()[:8]  # a page has several events
    return {
        "id": f"shapes-{name}",
        "width": f"{width:g}",
        "height": f"{height:.2f}",
        "lines": lines,
        "texts": texts,
        "bar": bar,
    }


def _points(x: Any, y: Any) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))


def _text(text: str, x: float, y: float, anchor: str) -> dict[str, str]:
    return {"text": text, "x": f"{x:.1f}", "y": f"{y:.1f}", "anchor": anchor}


def _scale_bar(per_km: float, width: float) -> dict[str, Any] | None:
    """Return the longest bar length that takes at most 30 % of the map's width."""
    fitting = [length for length in _BAR_LENGTHS if length * per_km <= 0.3 * width]
    if not fitting:
        return None
    length = round(fitting[-1] * per_km, 1)
    return {"km": fitting[-1], "x": round(width - length - 8, 1), "y": 10, "length": length}
