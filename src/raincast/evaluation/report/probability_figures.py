"""Figures of probabilities and ensembles: reliability, ROC, rank histograms."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raincast.evaluation.report.score_figures import (
    GUIDE_COLOUR,
    MOST_COLUMNS,
    OBSERVED_COLOUR,
    look,
    panel_grid,
    spaced,
    tidy,
    with_legend,
)

Floats = npt.NDArray[np.float64]


def reliability_diagram(
    curves: Mapping[str, Mapping[str, tuple[Floats, Floats, Floats]]], *, looks: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Plot observed frequency against forecast probability, and below it how often each was forecast.

    `curves` maps panel titles to names to (mean forecast probability, observed frequency, count) by bin; `looks`
    holds the style of each name.
    """
    columns = min(MOST_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(1.0 + 3.6 * columns, 0.6 + 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    spaced(figure)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3.2, 1] * rows}
    )
    used = []
    for place, (title, panel) in enumerate(curves.items()):
        row, column = divmod(place, columns)
        upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
        used += [upper, lower]
        upper.plot([0, 1], [0, 1], color=GUIDE_COLOUR, linewidth=0.8, linestyle="--")
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
        lower.set_xlabel("forecast probability", fontsize=8)
        tidy(upper)
        tidy(lower)
    for axis in set(grid.ravel()) - set(used):
        axis.set_axis_off()
    return with_legend(figure, [grid[0, 0]])


def roc_diagram(
    curves: Mapping[str, Mapping[str, tuple[Floats, Floats, float]]], *, numbers: Mapping[str, int]
) -> Figure:
    """Plot POD against false alarm rate for warnings at each probability; one panel per title of `curves`.

    Each panel maps names to (false alarm rate, probability of detection, area). `numbers` are the forecasters'
    numbers, which set their colours.
    """
    figure, axes = panel_grid(len(curves), height=3.5)
    for (title, panel), axis in zip(curves.items(), axes, strict=True):
        axis.plot([0, 1], [0, 1], color=GUIDE_COLOUR, linewidth=0.8, linestyle="--")
        for row, (name, (pofd, pod, area)) in enumerate(panel.items()):
            style = look(numbers[name])
            axis.plot(pofd, pod, label=name, markersize=4, linewidth=1.4, clip_on=False, **style)
            said = f"area {area:.3f}" if np.isfinite(area) else "undefined"
            axis.text(0.97, 0.04 + 0.07 * row, said, color=style["color"], fontsize=8, ha="right")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_aspect("equal")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("false alarms / non-events (POFD)", fontsize=8)
        axis.set_ylabel("POD", fontsize=8)
        tidy(axis)
    return with_legend(figure, axes)


def rank_histograms(counts: Mapping[str, Floats], *, numbers: Mapping[str, int], unit: str = "pixels") -> Figure:
    """Plot the rank of the observation among the members, one panel per ensemble; a calibrated one is flat (line).

    `counts` are by rank, in `unit`; `numbers` are the forecasters' numbers, which set their colours.
    """
    figure, axes = panel_grid(len(counts), height=2.4)
    for (name, count), axis in zip(counts.items(), axes, strict=True):
        axis.bar(np.arange(count.size), count / count.sum(), color=look(numbers[name])["color"], width=0.9)
        axis.axhline(1 / count.size, color=OBSERVED_COLOUR, linestyle="--", linewidth=1)
        axis.set_title(f"{name}, {count.size - 1} members", fontsize=10)
        axis.set_xlabel("members below the observation", fontsize=8)
        axis.set_ylabel(f"share of {unit}", fontsize=8)
        tidy(axis)
    return figure
