"""Maps of an event for the page: the observation next to each forecast, with one slider for the lead time.

The frames of a forecaster are one tall picture, which the slider moves behind a window of one frame. Colours are
palette numbers, one per class of rain, as in the animations.
"""

import html
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
from raincast.plotting.coastlines import seen_lines
from raincast.plotting.graticule import Graticule
from raincast.plotting.page import data_uri
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
_WIDEST, _HIGHEST = 276, 360  # on the page: four maps beside each other
_BAR_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

STYLE = """
.maps { display: flex; flex-wrap: wrap; gap: 12px; } .maps figure { flex: 0 0 auto; }
.map { position: relative; overflow: hidden; border: 1px solid #8b969f;
  background: repeating-linear-gradient(135deg, #c6c6c6 0 1px, #e6e6e6 1px 8px); }
.map img { position: absolute; left: 0; top: 0; width: 100%; max-width: none; image-rendering: pixelated; }
.map svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.map svg polyline { fill: none; stroke: #5a6772; stroke-width: .8; stroke-opacity: .45; }
.map svg .coast { stroke: #4d5961; stroke-width: 1; stroke-opacity: .9; }
.map svg text { font: 11px sans-serif; fill: #3a444c; stroke: #fff; stroke-width: 2.5px; paint-order: stroke; }
.player { display: flex; gap: 12px; align-items: center; margin: .5em 0; flex-wrap: wrap; }
.player input { flex: 1 1 240px; max-width: 520px; } .player output { font-variant-numeric: tabular-nums; }
.player button { font: inherit; min-width: 5em; }
.legend { display: flex; flex-wrap: wrap; margin: .6em 0; font-size: .85em; align-items: end; }
.legend span { display: inline-block; text-align: left; width: 44px; }
.legend i { display: block; height: 14px; border: solid #8b969f; border-width: 1px 0; }
.legend b { font-weight: normal; margin-right: 10px; }
"""

SCRIPT = """
for (const event of document.querySelectorAll(".event")) {
  const slider = event.querySelector("input"), said = event.querySelector("output");
  const button = event.querySelector("button"), frames = event.querySelectorAll(".map img");
  const labels = JSON.parse(slider.dataset.labels);
  const show = () => {
    const k = Number(slider.value);
    for (const frame of frames) frame.style.transform = `translateY(${-100 * k / labels.length}%)`;
    said.textContent = labels[k];
    slider.setAttribute("aria-valuetext", labels[k]);
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "stop";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % labels.length; show(); }, 600);
  });
  button.hidden = false;
  show();
}
"""


@dataclass(frozen=True, eq=False)
class EventMaps:
    """One window of an event: (lead, y, x) in mm/h, NaN for missing; lead 0 is one step after `init_time`.

    `last_seen` is the newest input, (y, x). `title` and `note` name the event and why it was chosen.
    """

    title: str
    note: str
    grid: Grid
    init_time: np.datetime64
    step_minutes: float
    last_seen: Rain
    observed: Rain
    forecasts: Mapping[str, Rain]

    @cached_property
    def labels(self) -> list[str]:
        """The label of each position of the slider; the newest input is the first."""
        step = schema.step_timedelta(self.step_minutes)
        return [f"newest input, {utc_text(self.init_time)}"] + [
            f"+{k * self.step_minutes:g} min, valid {utc_text(self.init_time + k * step)}"
            for k in range(1, len(self.observed) + 1)
        ]

    def to_html(self) -> str:
        """The maps and their slider, which starts at the middle lead time."""
        view = MapView.of(self.grid)
        start = (len(self.labels) + 1) // 2
        over = _overlay(view)
        maps = "".join(
            self._map(name, rain, view, over, start)
            for name, rain in ({"observed": self.observed} | dict(self.forecasts)).items()
        )
        labels = html.escape(json.dumps(self.labels, ensure_ascii=False))
        return (
            f'<section class="event"><h3>{html.escape(self.title)}</h3><p>{html.escape(self.note)}</p>'
            f'<div class="player"><button type="button" hidden>play</button>'
            f'<input type="range" min="0" max="{len(self.labels) - 1}" value="{start}" step="1" '
            f'aria-label="lead time" data-labels="{labels}">'
            f"<output>{html.escape(self.labels[start])}</output></div>"
            f'<div class="maps">{maps}</div></section>'
        )

    def _map(self, name: str, rain: Rain, view: MapView, over: str, start: int) -> str:
        frames = np.concatenate([self.last_seen[None], rain])
        width = round(min(_WIDEST, _HIGHEST / view.height_per_width))
        said = html.escape(f"map of the rain rate, {name}")
        shift = f"translateY({-100 * start / len(frames):.4f}%)"
        return (
            f'<figure><figcaption>{html.escape(name)}</figcaption><div class="map" role="img" aria-label="{said}" '
            f'style="width:{width}px;aspect-ratio:1/{view.height_per_width:.5f}">'
            f'<img alt="" src="{data_uri(sprite(frames, view))}" '
            f'style="height:{100 * len(frames)}%;transform:{shift}">{over}</div></figure>'
        )


def sprite(frames: Rain, view: MapView) -> bytes:
    """(n, y, x) mm/h as one PNG with the frames stacked vertically, north up; missing is transparent."""
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


def legend() -> str:
    """The legend: colours and their rates."""
    hatch = f"repeating-linear-gradient(135deg, {rain_image.HATCH_COLOUR} 0 1px, {MISSING_COLOUR} 1px 8px)"
    steps = [(f"{rate:g}", colour) for rate, colour in zip(RAIN_BOUNDARIES, RAIN_COLOURS, strict=True)]
    steps = [(f"below {RAIN_BOUNDARIES[0]:g}", DRY_COLOUR), *steps]
    return (
        '<div class="legend"><b>rain rate from … mm/h:</b>'
        + "".join(f'<span{_wide(text)}><i style="background:{colour}"></i>{text}</span>' for text, colour in steps)
        + f'<span style="width:70px;margin-left:14px"><i style="background:{hatch}"></i>missing</span></div>'
    )


def _wide(text: str) -> str:
    return ' style="width:70px"' if len(text) > 5 else ""


def _overlay(view: MapView) -> str:
    """Meridians and parallels with their degrees, and a scale bar in km, as SVG over a map."""
    width, height = _SVG_SIDE, _SVG_SIDE * view.height_per_width
    lines = Graticule.of(view)

    def placed(x: Any, y: Any) -> tuple[Any, Any]:
        return (
            (x - view.left) / (view.right - view.left) * width,
            (view.top - y) / (view.top - view.bottom) * height,
        )

    drawn = [_polyline("coast", *placed(*line.T)) for line in seen_lines(view)]
    for degrees in (lines.lon, lines.lat):
        if not np.isfinite(degrees).any():
            continue
        contours: Any = contourpy.contour_generator(
            lines.x, lines.y, np.ma.masked_invalid(degrees), line_type="Separate"
        )
        for level in rain_image.graticule_levels(degrees):
            drawn += [_polyline("degrees", *placed(*line.T)) for line in contours.lines(float(level))]
    for label in lines.labels():
        x, y = placed(label.x, label.y)
        at = f'x="{x:.1f}" y="{y - 4:.1f}" text-anchor="middle"' if label.at_bottom else f'x="3" y="{y + 4:.1f}"'
        drawn.append(f"<text {at}>{label.text}</text>")
    if not view.geographic:
        drawn.append(_scale_bar(width / (view.right - view.left), width))
    return f'<svg viewBox="0 0 {width:g} {height:.2f}" aria-hidden="true">{"".join(drawn)}</svg>'


def _polyline(kind: str, x: Any, y: Any) -> str:
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _scale_bar(per_km: float, width: float) -> str:
    fitting = [length for length in _BAR_LENGTHS if length * per_km <= 0.3 * width]
    if not fitting:
        return ""
    length = fitting[-1] * per_km
    left, top = width - length - 8, 10
    return (
        f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="3" fill="#1d2730" stroke="#fff"/>'
        f'<text x="{left + length / 2:.1f}" y="{top + 16}" text-anchor="middle">{fitting[-1]} km</text>'
    )
