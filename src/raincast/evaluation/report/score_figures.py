"""Figures of scores for the page and for papers: curves, performance, spectra, scores by event.

`scores` is the Dataset of an evaluation. A forecaster has the same colour, marker and dashes in every figure.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raincast.evaluation.report.tables import lead_minutes
from raincast.plotting.page import Picture
from raincast.plotting.pictures import CURVE_COLOURS, CURVE_MARKERS, save
from raincast.schema import LEAD_TIME

OBSERVED_COLOUR = "#555555"
GUIDE_COLOUR = "#8b969f"
GRID_COLOUR = "#dddddd"
MOST_COLUMNS = 3


def shown(figure: Figure, alt: str, note: str = "") -> Picture:
    """Return a figure as a picture for a page, below a note."""
    return Picture(svg(figure), alt, note)


def svg(figure: Figure) -> bytes:
    """Render the figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # figure.savefig would draw everything twice, first without a picture, to lay it out
    canvas: Any = FigureCanvasSVG(figure)
    with rc_context({"svg.hashsalt": "raincast"}):
        canvas.print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def look(number: int) -> dict[str, Any]:
    """Return the style of forecaster `number`."""
    return {
        "color": CURVE_COLOURS[number % len(CURVE_COLOURS)],
        "marker": CURVE_MARKERS[number % len(CURVE_MARKERS)],
        # with more forecasters than colours, the next round is dashed
        "linestyle": ("-", "--", ":")[number // len(CURVE_COLOURS) % 3],
    }


def panel_grid(num_panels: int, *, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Return a figure with `num_panels` panels in rows, each `height` inches high."""
    columns = 4 if num_panels == 4 else min(MOST_COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(1.0 + 3.6 * columns, 0.8 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    spaced(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[num_panels:]:
        unused.set_axis_off()
    return figure, axes[:num_panels]


def spaced(figure: Figure) -> None:
    """Set the space between panels."""
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.06, wspace=0.04)


def tidy(axis: Axes) -> None:
    """Set a thin grid, small labels, and no frame at the top and right."""
    axis.grid(color=GRID_COLOUR, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def with_legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """Put the legend of the first of `axes` below the figure, for all of them."""
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False
    )
    return figure


_WAVELENGTHS = [digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5)]  # km


def lead_curves(
    scores: xr.Dataset,
    panels: Mapping[str, xr.DataArray],
    *,
    bands: Mapping[str, tuple[xr.DataArray, xr.DataArray]] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Figure:
    """Plot curves against lead time; one panel per title of `panels`, each (forecaster, lead_time).

    `bands` are ends of intervals by the same titles, drawn as shades. `numbers` are the forecasters' numbers,
    which set their styles if not all are drawn.
    """
    figure, axes = panel_grid(len(panels))
    minutes = lead_minutes(scores)
    for (title, values), axis in zip(panels.items(), axes, strict=True):
        values = values.transpose("forecaster", LEAD_TIME)
        for place, name in enumerate(map(str, values["forecaster"].values)):
            number = numbers[name] if numbers else place
            axis.plot(minutes, values.values[place], label=name, markersize=4, linewidth=1.6, **look(number))
            if bands and title in bands:
                low, high = (end.sel(forecaster=name).values for end in bands[title])
                axis.fill_between(minutes, low, high, color=look(number)["color"], alpha=0.15, linewidth=0)
        if not np.isfinite(values.values).any():
            axis.text(0.5, 0.5, "undefined:\nno event", transform=axis.transAxes, ha="center", va="center")
        elif np.nanmin(values.values) >= 0:
            axis.set_ylim(bottom=0.0)
        axis.set_xlim(0.0, float(minutes.max()) * 1.04)
        axis.set_xlabel("lead time (min)", fontsize=8)
        axis.set_title(title, fontsize=10)
        tidy(axis)
    return with_legend(figure, axes)


def csi_plot(scores: xr.Dataset, path: str | Path) -> Path:
    """Write CSI against lead time as a PNG: one panel per threshold, one line per forecaster.

    `scores` has `csi` with dimensions (forecaster, threshold, lead_time), NaN where undefined, and `lead_time` in
    minutes or as timedelta64.
    """
    csi = scores["csi"]
    panels = {
        f"CSI, rain ≥ {threshold:g} mm/h": csi.sel(threshold=threshold) for threshold in csi["threshold"].values
    }
    return save(lead_curves(scores, panels), path)


def performance_diagram(scores: xr.Dataset, thresholds: Sequence[float]) -> Figure:
    """Plot POD against success ratio (Roebber 2009): a panel per threshold, a line of lead times per forecaster.

    The large marker is the first lead time. Curved lines have equal CSI, straight ones equal bias.
    """
    figure, axes = panel_grid(len(thresholds), height=3.5)
    for threshold, axis in zip(thresholds, axes, strict=True):
        _performance_lines(axis)
        chosen = scores.sel(threshold=threshold)
        pod, success = chosen["pod"], 1 - chosen["far"]
        for number, name in enumerate(scores["forecaster"].values):
            x, y = success.sel(forecaster=name).values, pod.sel(forecaster=name).values
            style = look(number)
            axis.plot(x, y, label=str(name), markersize=3.5, linewidth=1.2, clip_on=False, **style)
            axis.plot(x[:1], y[:1], color=style["color"], marker=style["marker"], markersize=9, clip_on=False)
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_aspect("equal")
        axis.set_title(f"rain ≥ {threshold:g} mm/h", fontsize=10)
        axis.set_xlabel("success ratio (1 − FAR)", fontsize=8)
        axis.set_ylabel("POD", fontsize=8)
        axis.tick_params(labelsize=7)
    return with_legend(figure, axes)


def _performance_lines(axis: Axes) -> None:
    ratio = np.linspace(0.005, 1, 200)
    x, y = np.meshgrid(ratio, ratio)
    csi = 1 / (1 / x + 1 / y - 1)
    lines = axis.contour(x, y, csi, levels=np.arange(0.1, 1, 0.1), colors="#b8c1c8", linewidths=0.7)
    axis.clabel(lines, fmt="%.1f", fontsize=6)
    for bias in (0.25, 0.5, 1, 2, 4):
        axis.plot([0, 1], [0, bias], color="#b8c1c8", linewidth=0.7, linestyle="--")
        end = (1.0, bias) if bias <= 1 else (1 / bias, 1.0)
        at = (end[0] * 0.93, end[1] * 0.93)
        axis.text(*at, f"{bias:g}", fontsize=6, color="#5a6772", ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip


def sharp_leads(scores: xr.Dataset) -> list[int]:
    """Return the indices of the lead times of the spectra: the middle and the last."""
    num_leads = scores.sizes[LEAD_TIME]
    return sorted({max(0, round(share * num_leads) - 1) for share in (0.5, 1.0)})


def spectra(
    scores: xr.Dataset, leads: Sequence[int], *, prefix: str = "", numbers: Mapping[str, int] | None = None
) -> Figure:
    """Plot power against wavelength at lead indices `leads`, and the effective resolution.

    `scores` has `spectrum` and `observed_spectrum` by (forecaster, wavelength, lead_time), with `prefix`.
    `numbers` are the forecasters' numbers, which set their styles if not all are drawn.
    """
    resolution = f"{prefix}effective_resolution"
    looks = {
        str(name): look(numbers[str(name)] if numbers else place)
        for place, name in enumerate(scores["forecaster"].values)
    }
    minutes = lead_minutes(scores)
    km = scores["wavelength"].values
    shown = np.isfinite(km) & (km > 0)
    figure, axes = panel_grid(len(leads) + (resolution in scores))
    for lead, axis in zip(leads, axes, strict=False):
        at = scores.isel({LEAD_TIME: lead})
        observed = at[f"{prefix}observed_spectrum"].isel(forecaster=0).values
        axis.plot(km[shown], observed[shown], color=OBSERVED_COLOUR, linewidth=2.4, label="observed")
        for name, style in looks.items():
            power = at[f"{prefix}spectrum"].sel(forecaster=name).values
            axis.plot(km[shown], power[shown], linewidth=1.4, label=name, **(style | {"marker": ""}))
        axis.set(xscale="log", yscale="log")
        axis.invert_xaxis()  # fine detail to the right, as in the literature
        low, high = km[shown].min(), km[shown].max()
        axis.set_xticks([at for at in _WAVELENGTHS if low <= at <= high], minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("wavelength (km)", fontsize=8)
        axis.set_ylabel("power (mm² h⁻²)", fontsize=8)
        axis.set_title(f"+{minutes[lead]:g} min", fontsize=10)
        tidy(axis)
    if resolution in scores:
        axis = axes[len(leads)]
        for name, style in looks.items():
            values = scores[resolution].sel(forecaster=name).values
            axis.plot(minutes, values, markersize=4, linewidth=1.6, **style)
        axis.set(xlabel="lead time (min)", title="effective resolution (km)", ylim=(0, None))
        axis.title.set_fontsize(10)
        axis.xaxis.label.set_fontsize(8)
        tidy(axis)
    return with_legend(figure, axes[:1])


def dot_panels(
    scores: Mapping[str, xr.DataArray],
    dim: str,
    *,
    ratios: Collection[str] = (),
    support: npt.NDArray[np.float64] | None = None,
    unit: str = "",
) -> Figure:
    """Plot scores (forecaster, `dim`) by title, one above the other, as dots at each label of `dim`.

    `ratios` lists the titles of scores that are best at 1. `support`, with the same labels, is the lowest panel.
    """
    first = next(iter(scores.values()))
    labels = [str(label) for label in first[dim].values]
    width = float(np.clip(1.5 + 0.34 * len(labels), 6.0, 12.6))
    heights = [2.9] + [1.9] * (len(scores) - 1) + [1.0] * (support is not None)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    number = first.sizes["forecaster"]
    at = np.arange(len(labels))
    for axis, (title, values) in zip(axes, scores.items(), strict=False):
        values = values.transpose("forecaster", dim)
        for k, name in enumerate(values["forecaster"].values):
            style = look(k) | {"linestyle": ""}
            shift = 0.5 * ((k + 0.5) / number - 0.5)  # next to each other, so that none is hidden
            axis.plot(at + shift, values.values[k], label=str(name), markersize=5, clip_on=False, **style)
        if title in ratios:
            axis.axhline(1, color=OBSERVED_COLOUR, linestyle="--", linewidth=1)
        if np.isfinite(values.values).any() and np.nanmin(values.values) >= 0:
            axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
    if support is not None:
        axes[-1].bar(at, support, color="#9aa4ad", width=0.7)
        axes[-1].set_ylabel(unit, fontsize=8)
    every = max(1, len(labels) // 24)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 3 else {}
    axes[-1].set_xticks(at[::every], labels[::every], fontsize=7, **turned)
    for axis in axes:
        tidy(axis)
    return with_legend(figure, list(axes[:1]))
