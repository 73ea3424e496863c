"""Scores as figures of the evaluation's page and of papers: curves, performance, reliability, spectra, by event.

`scores` is the Dataset of an evaluation. A forecaster has the same colour, marker and dash in every figure.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raincast.output.pictures import CURVE_COLOURS, CURVE_MARKERS
from raincast.output.tables import lead_minutes
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]

OBSERVED_COLOUR = "#555555"
GRID_COLOUR = "#dddddd"
MOST_COLUMNS = 3
_WAVELENGTHS = [digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5)]  # km


def svg(figure: Figure) -> bytes:
    """The figure as SVG: sharp at any size, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "raincast"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def look(number: int) -> dict[str, Any]:
    """How forecaster `number` is drawn."""
    return {
        "color": CURVE_COLOURS[number % len(CURVE_COLOURS)],
        "marker": CURVE_MARKERS[number % len(CURVE_MARKERS)],
        # more forecasters than colours: the next round is dashed
        "linestyle": ("-", "--", ":")[number // len(CURVE_COLOURS) % 3],
    }


def lead_curves(
    scores: xr.Dataset,
    panels: Mapping[str, xr.DataArray],
    *,
    bands: Mapping[str, tuple[xr.DataArray, xr.DataArray]] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Figure:
    """Curves against lead time: a panel a title of `panels`, each (forecaster, lead_time).

    `bands` are ends of intervals by the same titles, drawn as shades. `numbers` say how forecasters look where
    not all are drawn.
    """
    figure, axes = _figure(len(panels))
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
        _tidy(axis)
    return _with_legend(figure, axes)


def performance_diagram(scores: xr.Dataset, thresholds: Sequence[float]) -> Figure:
    """POD against success ratio (Roebber 2009): a panel a threshold, a line a forecaster over its lead times.

    The large marker is the first lead time. Curved lines are of equal CSI, straight ones of equal bias.
    """
    figure, axes = _figure(len(thresholds), height=3.5)
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
    return _with_legend(figure, axes)


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


def reliability_diagram(
    curves: Mapping[str, Mapping[str, tuple[Floats, Floats, Floats]]], *, looks: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Observed frequency against stated probability, and how often each was stated below it.

    `curves` are titles of panels → names → (mean stated probability, observed frequency, number) by bin; `looks`
    say how each name is drawn.
    """
    columns = min(MOST_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(1.0 + 3.6 * columns, 0.6 + 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    _layout(figure)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3.2, 1] * rows}
    )
    used = []
    for place, (title, panel) in enumerate(curves.items()):
        row, column = divmod(place, columns)
        upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
        used += [upper, lower]
        upper.plot([0, 1], [0, 1], color="#8b969f", linewidth=0.8, linestyle="--")
        for name, (stated, observed, number) in panel.items():
            style = dict(looks[name])
            known = np.isfinite(stated) & np.isfinite(observed)
            upper.plot(stated[known], observed[known], label=name, markersize=4, linewidth=1.4, **style)
            lower.plot(stated[known], number[known], markersize=3, linewidth=1, **style)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.set_title(title, fontsize=10)
        upper.set_ylabel("observed frequency", fontsize=8)
        lower.set_yscale("log")
        lower.set_ylabel("pixels", fontsize=8)
        lower.set_xlabel("stated probability", fontsize=8)
        _tidy(upper)
        _tidy(lower)
    for axis in set(grid.ravel()) - set(used):
        axis.set_axis_off()
    return _with_legend(figure, [grid[0, 0]])


def spectra(scores: xr.Dataset, leads: Sequence[int]) -> Figure:
    """Power against wavelength at lead numbers `leads`, and the share of the observed power against both.

    `scores` has `spectrum`, `observed_spectrum` and `spectrum_ratio` by (forecaster, wavelength, lead_time).
    """
    minutes = lead_minutes(scores)
    km = scores["wavelength"].values
    shown = np.isfinite(km) & (km > 0)
    figure, axes = _figure(len(leads) + ("effective_resolution" in scores))
    for lead, axis in zip(leads, axes, strict=False):
        at = scores.isel({LEAD_TIME: lead})
        observed = at["observed_spectrum"].isel(forecaster=0).values
        axis.plot(km[shown], observed[shown], color=OBSERVED_COLOUR, linewidth=2.4, label="observed")
        for number, name in enumerate(scores["forecaster"].values):
            style = look(number) | {"marker": ""}
            power = at["spectrum"].sel(forecaster=name).values
            axis.plot(km[shown], power[shown], linewidth=1.4, label=str(name), **style)
        axis.set(xscale="log", yscale="log")
        axis.invert_xaxis()  # fine detail to the right, as in the literature
        low, high = km[shown].min(), km[shown].max()
        axis.set_xticks([at for at in _WAVELENGTHS if low <= at <= high], minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("wavelength (km)", fontsize=8)
        axis.set_ylabel("power (mm² h⁻²)", fontsize=8)
        axis.set_title(f"+{minutes[lead]:g} min", fontsize=10)
        _tidy(axis)
    if "effective_resolution" in scores:
        axis = axes[len(leads)]
        for number, name in enumerate(scores["forecaster"].values):
            values = scores["effective_resolution"].sel(forecaster=name).values
            axis.plot(minutes, values, markersize=4, linewidth=1.6, **look(number))
        axis.set(xlabel="lead time (min)", title="effective resolution (km)", ylim=(0, None))
        axis.title.set_fontsize(10)
        axis.xaxis.label.set_fontsize(8)
        _tidy(axis)
    return _with_legend(figure, axes[:1])


def rank_histograms(counts: Mapping[str, Floats], *, numbers: Mapping[str, int]) -> Figure:
    """Where the observation falls among the members: a panel an ensemble; flat (the line) is right.

    `counts` are by rank, `numbers` the forecasters' places, for their colours.
    """
    figure, axes = _figure(len(counts), height=2.4)
    for (name, count), axis in zip(counts.items(), axes, strict=True):
        axis.bar(np.arange(count.size), count / count.sum(), color=look(numbers[name])["color"], width=0.9)
        axis.axhline(1 / count.size, color=OBSERVED_COLOUR, linestyle="--", linewidth=1)
        axis.set_title(f"{name}, {count.size - 1} members", fontsize=10)
        axis.set_xlabel("members below the observation", fontsize=8)
        axis.set_ylabel("share of pixels", fontsize=8)
        _tidy(axis)
    return figure


def dots(
    values: xr.DataArray, dim: str, *, title: str, support: npt.NDArray[np.float64] | None = None, unit: str = ""
) -> Figure:
    """One score (forecaster, `dim`) as dots, a place a label of `dim`; below it `support`, by the same labels."""
    labels = [str(label) for label in values[dim].values]
    width = float(np.clip(1.5 + 0.34 * len(labels), 6.0, 12.6))
    figure = Figure(figsize=(width, 3.9 if support is not None else 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    rows = 1 if support is None else 2
    panels = figure.subplots(rows, 1, squeeze=False, sharex=True, height_ratios=[3, 1][:rows])[:, 0]
    values = values.transpose("forecaster", dim)
    number = values.sizes["forecaster"]
    at = np.arange(len(labels))
    for k, name in enumerate(values["forecaster"].values):
        style = look(k) | {"linestyle": ""}
        shift = 0.5 * ((k + 0.5) / number - 0.5)  # beside each other, or they hide each other
        panels[0].plot(at + shift, values.values[k], label=str(name), markersize=5, clip_on=False, **style)
    if np.isfinite(values.values).any() and np.nanmin(values.values) >= 0:
        panels[0].set_ylim(bottom=0)
    panels[0].set_title(title, fontsize=10)
    if support is not None:
        panels[1].bar(at, support, color="#9aa4ad", width=0.7)
        panels[1].set_ylabel(unit, fontsize=8)
    every = max(1, len(labels) // 24)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 3 else {}
    panels[-1].set_xticks(at[::every], labels[::every], fontsize=7, **turned)
    for panel in panels:
        _tidy(panel)
    return _with_legend(figure, list(panels[:1]))


def _figure(num_panels: int, *, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    columns = 4 if num_panels == 4 else min(MOST_COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(1.0 + 3.6 * columns, 0.8 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    _layout(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[num_panels:]:
        unused.set_axis_off()
    return figure, axes[:num_panels]


def _layout(figure: Figure) -> None:
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.06, wspace=0.04)


def _tidy(axis: Axes) -> None:
    axis.grid(color=GRID_COLOUR, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def _with_legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False
    )
    return figure
