"""Common parts of score figures: panels, legend, line styles, and embedding into HTML.

A forecaster has the same colour, marker and dash pattern in every figure.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raincast.plotting.page import Picture
from raincast.plotting.pictures import CURVE_COLOURS, CURVE_MARKERS

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
