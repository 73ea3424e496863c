"""Pictures of an archive as PNG: maps of rain and coverage, months and days, rate classes."""

import io
import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from raincast.archive.statistics import RATE_EDGES, WET_MM_H, Statistics
from raincast.plotting.map_lines import Graticule
from raincast.plotting.pictures import CURVE_COLOURS, DOTS_PER_INCH, draw_coasts, draw_graticule, write_png
from raincast.plotting.rain_image import MISSING_COLOUR, MapView, Rain, credit, extent_of, resample

BLUE, ORANGE = CURVE_COLOURS[:2]
FEW_DAYS = 3
LONGEST_SIDE = 800  # pixels of a map: a page of three maps stays under a megabyte


def pictures(statistics: Statistics) -> dict[str, bytes]:
    """Return each picture by its title."""
    makers: dict[str, Callable[[Statistics], Figure]] = {
        "Where it rained, and what was observed": _maps,
        "When it rained, and which frames are there": _days,
        "How hard it rained": _classes,
    }
    return {title: _png(make(statistics)) for title, make in makers.items()}


def _maps(statistics: Statistics) -> Figure:
    """Draw mean rate, wet share and share of frames that observed each pixel, north up."""
    num_times = statistics.archive.num_times
    # one after the other: each is hundreds of megabytes on the largest grids
    fields: dict[str, tuple[Callable[[], Rain], str, float | None]] = {
        "mean rain rate (mm/h)": (lambda: statistics.mean_rain.astype(np.float32), "YlGnBu", None),
        f"share of frames with > {WET_MM_H:g} mm/h": (
            lambda: statistics.wet_share.astype(np.float32),
            "YlGnBu",
            None,
        ),
        "share of frames that observed": (
            lambda: (statistics.observed_frames / num_times).astype(np.float32),
            "cividis",
            1.0,
        ),
    }
    y, x = extent_of(statistics.observed_frames > 0)
    grid = statistics.archive.grid
    view = MapView.of(grid.crop(y.start, x.start, y.stop - y.start, x.stop - x.start))
    lines = Graticule.of(view)
    height = float(np.clip(3.6 * view.height_per_width, 1.6, 6.5))
    figure, panels = _figure(13.0, height + 1.0, columns=3)
    for (title, (field, colours, top)), panel in zip(fields.items(), panels, strict=True):
        shown = _fit(view.north_up(field()[y, x]), view)
        panel.set_facecolor(MISSING_COLOUR)
        image = panel.imshow(
            shown,
            cmap=colours,
            vmin=0.0,
            vmax=top or _top(shown),
            extent=view.extent,
            interpolation="nearest",
            aspect=view.y_stretch,
        )
        draw_coasts(panel, view)
        draw_graticule(panel, lines)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(view.axis_labels[0], fontsize=8)
        panel.tick_params(labelsize=7)
        figure.colorbar(image, ax=panel, shrink=0.85, pad=0.02, extend="neither" if top else "max")
    panels[0].set_ylabel(view.axis_labels[1], fontsize=8)
    if said := credit(statistics.archive.attrs):
        figure.supxlabel(said, fontsize=7, color="#4a545c", x=0.01, ha="left")
    return figure


def _fit(values: Rain, view: MapView) -> Rain:
    height, width = view.fit(LONGEST_SIDE)
    return resample(values, height, width) if values.shape > (height, width) else values


def _top(values: Rain) -> float:
    """Return the end of the colour scale, so that a few pixels of clutter do not make all others pale."""
    known = values[np.isfinite(values)]
    return max(float(np.quantile(known, 0.995)), 1e-3) if known.size else 1.0


def _days(statistics: Statistics) -> Figure:
    """Draw the wet share by month and by day, and the frames of each day."""
    figure, panels = _figure(13.0, 3.2, columns=3)
    months, wet, _ = statistics.wet_share_by("M")
    names = [str(month) for month in months]
    panels[0].bar(np.arange(len(names)), 100 * wet, color=BLUE, width=0.8)
    ticks = np.unique(np.linspace(0, len(names) - 1, min(12, len(names))).round().astype(int))
    panels[0].set_xticks(ticks, [names[tick] for tick in ticks], rotation=45, ha="right", fontsize=7)
    panels[0].set_ylabel(f"% of observed pixels > {WET_MM_H:g} mm/h", fontsize=8)
    panels[0].set_title("wet share by month", fontsize=10)
    days, wet, num_frames = statistics.wet_share_by("D")
    full = np.timedelta64(1, "D") / statistics.archive.step
    for panel, values, colour, title in (
        (panels[1], 100 * wet, BLUE, "wet share by day (%)"),
        (panels[2], 100 * num_frames / full, ORANGE, "frames by day (% of a full day)"),
    ):
        # bars of whole days: a missing day stays empty
        panel.bar(
            days.astype("datetime64[s]"), values, width=np.timedelta64(86400, "s"), align="edge", color=colour
        )
        if days.size <= FEW_DAYS:  # dates below bars, not hours along one bar
            panel.set_xticks(days.astype("datetime64[s]") + np.timedelta64(43200, "s"), list(map(str, days)))
            panel.set_xlim(days[0] - np.timedelta64(1, "D"), days[-1] + np.timedelta64(2, "D"))
        else:
            locator = AutoDateLocator(minticks=2, maxticks=7)  # type: ignore[no-untyped-call]
            panel.xaxis.set_major_locator(locator)
            panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        panel.set_title(title, fontsize=10)
    for panel in panels:
        _tidy(panel)
    return figure


def _classes(statistics: Statistics) -> Figure:
    """Draw the share of observed pixels in each rate class, on a logarithmic axis."""
    figure, (panel,) = _figure(8.0, 3.0, columns=1)
    share = 100 * statistics.class_counts / max(1, statistics.class_counts.sum())
    panel.bar(np.arange(share.size), share, color=BLUE, width=0.9)
    panel.set_yscale("log")
    panel.set_xticks(np.arange(share.size), class_names(), fontsize=7)
    panel.set_ylabel("% of observed pixels", fontsize=8)
    panel.set_xlabel("rain rate (mm/h), upper ends included", fontsize=8)
    _tidy(panel)
    return figure


def class_names() -> list[str]:
    """Return the names of the rate classes."""
    between = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(RATE_EDGES)]
    return ["dry", *between, f"> {RATE_EDGES[-1]:g}"]


def _figure(width: float, height: float, *, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels: npt.NDArray[np.object_] = figure.subplots(1, columns, squeeze=False)
    return figure, list(panels[0])


def _tidy(panel: Axes) -> None:
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    write_png(figure, buffer)
    return buffer.getvalue()
