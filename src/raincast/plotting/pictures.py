"""Maps of forecasts as files.

Everything is drawn on separate objects, never on pyplot's global state. Pictures may therefore be drawn in
threads, in loops of thousands, and on machines without a screen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from raincast import schema
from raincast.plotting import rain_image
from raincast.plotting.animation import forecast_animation
from raincast.plotting.map_lines import Graticule, coast_lines
from raincast.plotting.rain_image import LINE_COLOUR, RAIN_BOUNDARIES, MapView, Rain
from raincast.schema import Grid

__all__ = ["forecast_animation", "forecast_picture"]

# Okabe and Ito (2008), without yellow, which is invisible on white: hues that colour-blind people can distinguish
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CURVE_MARKERS = "osD^vPX"
DOTS_PER_INCH = 120


def forecast_picture(
    observed: Rain | None,
    forecasts: Mapping[str, Rain],
    *,
    grid: Grid,
    init_time: np.datetime64,
    step_minutes: float,
    path: str | Path,
    leads_minutes: Sequence[float] | None = None,
    title: str = "Precipitation nowcast",
    graticule: bool = True,
    credit: str = "",
) -> Path:
    """Draw forecasts below the observation as a PNG: a row per forecaster, a column per lead time, north up.

    `observed` and each forecast are (lead, y, x) in mm/h, NaN for missing, the first lead one step after
    `init_time`; `observed` may be shorter. `leads_minutes` defaults to at most four evenly spread ones. The axes
    are the grid's projection in km (degrees for lat/lon), with coasts, borders and, if `graticule` is set,
    meridians and parallels. The maps end where nothing was observed. `credit` names the data provider. Returns the
    path.
    """
    rows = ({} if observed is None else {"observed": observed}) | dict(forecasts)
    rain_image.check_frames(rows, grid)
    rows, grid = rain_image.cropped(rows, grid)
    num_leads = max(len(rain) for rain in rows.values())
    leads = _lead_numbers(leads_minutes, num_leads, step_minutes)
    view = MapView.of(grid)
    lines = Graticule.of(view) if graticule else None
    figure, panels = _panels(view, num_rows=len(rows), num_columns=len(leads))
    for (name, rain), row in zip(rows.items(), panels, strict=True):
        row[0].set_ylabel(f"{name}\n{view.axis_labels[1]}", fontsize=9)
        for lead, panel in zip(leads, row, strict=True):
            frame = rain[lead - 1] if lead <= len(rain) else np.full(grid.shape, np.nan, np.float32)
            image = _draw_map(panel, frame, view, lines)
    for lead, panel in zip(leads, panels[0], strict=True):
        valid = rain_image.utc_text(init_time + lead * schema.step_timedelta(step_minutes))
        panel.set_title(f"+{lead * step_minutes:g} min\n{valid}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel(view.axis_labels[0], fontsize=8)
    _add_colour_bar(figure, panels, image)
    figure.suptitle(f"{title} · init time {rain_image.utc_text(init_time)}", fontsize=11, fontweight="bold")
    if credit:
        figure.supxlabel(credit, fontsize=7, color="#4a545c", x=0.01, ha="left")
    return save(figure, path)


def _lead_numbers(minutes: Sequence[float] | None, num_leads: int, step_minutes: float) -> list[int]:
    """Return lead numbers, 1 for one step: those of `minutes`, or at most four, spread evenly up to the last."""
    if minutes is None:
        count = min(4, num_leads)
        return [int(num_leads * (k + 1) / count + 0.5) for k in range(count)]
    leads = [round(m / step_minutes) for m in minutes]
    for lead, wanted in zip(leads, minutes, strict=True):
        if not 1 <= lead <= num_leads or abs(lead * step_minutes - wanted) > 1e-6:
            raise ValueError(
                f"There is no lead time of {wanted:g} min. Choose multiples of the step of {step_minutes:g} "
                f"min from {step_minutes:g} to {num_leads * step_minutes:g}."
            )
    if not leads:
        raise ValueError("leads_minutes is empty. Give at least one lead time, or leave it out.")
    return leads


def _panels(view: MapView, *, num_rows: int, num_columns: int) -> tuple[Figure, npt.NDArray[np.object_]]:
    ratio = view.height_per_width
    # panels of about the same area whatever the shape of the map
    width = float(np.clip(2.5 / np.sqrt(ratio), 1.5, 4.5))
    height = float(np.clip(width * ratio, 1.0, 5.0))
    size = (1.9 + max(width * num_columns, 2.5), 1.0 + (height + 0.1) * num_rows)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    return figure, panels


def draw_graticule(panel: Axes, lines: Graticule) -> None:
    """Draw thin lines over the map, with labels at its lower and left edges, away from the rain."""
    for degrees in (lines.lon, lines.lat):
        levels = rain_image.graticule_levels(degrees)
        if levels.size:
            panel.contour(
                lines.x, lines.y, degrees, levels=levels, colors=LINE_COLOUR, linewidths=0.5, linestyles="solid"
            )
    for label in lines.labels():
        _edge_label(panel, label.x, label.y, label.text, (0, 3) if label.at_bottom else (2, 0))


def _edge_label(panel: Axes, x: float, y: float, text: str, offset: tuple[float, float]) -> None:
    halo = [withStroke(linewidth=2, foreground="white", alpha=0.8)]
    panel.annotate(
        text,
        (x, y),
        offset,
        textcoords="offset points",
        ha="left" if offset[0] else "center",
        va="center" if offset[0] else "bottom",
        fontsize=6,
        color="#4a545c",
        path_effects=halo,
    )


def _draw_map(panel: Axes, rain: Rain, view: MapView, graticule: Graticule | None) -> AxesImage:
    colours, norm = rain_image.rain_colours()
    shown = view.north_up(rain)
    # with more pixels than the figure has dots, small showers would fall between them
    finest = view.fit(2 * DOTS_PER_INCH * 3)
    if shown.shape[0] > finest[0] or shown.shape[1] > finest[1]:
        shown = rain_image.resample(shown, *finest)
    panel.set_facecolor(rain_image.MISSING_COLOUR)
    panel.patch.set(hatch="/////", edgecolor=rain_image.HATCH_COLOUR, linewidth=0)
    image = panel.imshow(
        shown,
        cmap=colours,
        norm=norm,
        extent=view.extent,
        origin="upper",
        interpolation="nearest",
        aspect=view.y_stretch,
    )
    panel.tick_params(labelsize=7, length=2)
    panel.locator_params(nbins=5)
    draw_coasts(panel, view)
    if graticule is not None:
        draw_graticule(panel, graticule)
    return image


def draw_coasts(panel: Axes, view: MapView) -> None:
    """Draw coasts and borders over a map, within its extent."""
    lines = LineCollection(list(coast_lines(view)), colors=rain_image.COAST_COLOUR, linewidths=0.6)
    panel.add_collection(lines, autolim=False)
    panel.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top))


def _add_colour_bar(figure: Figure, panels: npt.NDArray[np.object_], image: AxesImage) -> None:
    bar = figure.colorbar(image, ax=panels, extend="max", aspect=28, pad=0.015, shrink=0.95)
    bar.set_ticks(list(RAIN_BOUNDARIES), labels=[f"{b:g}" for b in RAIN_BOUNDARIES])
    bar.set_label("rain rate (mm/h), hatched: missing", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as a PNG; its folder is created if necessary."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(figure, path)
    return path


def write_png(figure: Figure, file: Path | BinaryIO) -> None:
    """Write `figure` as a PNG at `DOTS_PER_INCH`."""
    figure.dpi = DOTS_PER_INCH
    # figure.savefig would draw everything twice, first without a picture, to lay it out
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(file)
