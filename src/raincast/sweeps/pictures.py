"""Pictures of a sweep as PNG: its course, the runs' curves, what mattered, where in the space it is good."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raincast.plotting.pictures import CURVE_COLOURS, DOTS_PER_INCH

if TYPE_CHECKING:
    from raincast.sweeps.page import SweepResult, TrialRow

BLUE, ORANGE = CURVE_COLOURS[:2]
GREY = "#b4bcc4"
MOST_CURVES, MOST_PARAMS, COLUMNS, FEW_VALUES = 5, 12, 4, 6


def pictures(result: "SweepResult") -> dict[str, bytes]:
    """Each picture by what it shows; none where there is nothing to show."""
    makers: dict[str, tuple[bool, Callable[[SweepResult], Figure]]] = {
        "The course of the sweep": (any(map(_height, result.rows)), _course),
        "Goals against each other": (len(result.goals) > 1 and bool(result.best), _fronts),
        "Validation curves, the best trials coloured": (any(row.curve for row in result.rows), _curves),
        "Importance of each parameter": (any(result.importance.values()), _importance),
        "Parameters": (any(map(_height, result.rows)) and bool(result.param_names()), _params),
    }
    return {title: _png(make(result)) for title, (shown, make) in makers.items() if shown}


def _height(row: "TrialRow") -> list[float]:
    """The first goal of a trial, or of a pruned one where it ended; empty without any."""
    if row.values:
        return [row.values[0]]
    return [row.curve[max(row.curve)]] if row.curve else []


def _points(axes: Axes, result: "SweepResult", x: Callable[["TrialRow"], Any]) -> None:
    """First goal over `x`: filled where complete, hollow where pruned or failed, the best ringed."""
    for row in result.rows:
        height = _height(row)
        if not height:
            continue
        whole = row.state == "complete"
        axes.plot([x(row)], height, "o", ms=5, mfc=BLUE if whole else "none", mec=BLUE if whole else GREY, mew=1)
        if row.number == next(iter(result.best), None):
            axes.plot([x(row)], height, "o", ms=11, mfc="none", mec=ORANGE, mew=1.8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _course(result: "SweepResult") -> Figure:
    figure, (axes,) = _figure(9.0, 3.4, 1)
    _points(axes, result, lambda row: row.number)
    steps: list[tuple[int, float]] = []
    for row in result.rows:
        if row.values and (not steps or _better(result, row.values[0], steps[-1][1])):
            steps.append((row.number, row.values[0]))
    if steps:
        steps.append((max(row.number for row in result.rows), steps[-1][1]))
        axes.step(*zip(*steps, strict=True), where="post", color=ORANGE, lw=1.4, label="best so far")
        axes.legend(fontsize=8)
    axes.set_xlabel("trial (hollow: pruned or failed, at its last validation)", fontsize=9)
    axes.set_ylabel(result.goals[0], fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _better(result: "SweepResult", one: float, other: float) -> bool:
    return one > other if result.larger_is_better[0] else one < other


def _fronts(result: "SweepResult") -> Figure:
    others = range(1, len(result.goals))
    figure, panels = _figure(4.3 * len(others), 3.8, len(others))
    for goal, axes in zip(others, panels, strict=True):
        for row in result.rows:
            if row.values:
                best = row.number in result.best
                axes.plot(row.values[goal], row.values[0], "o", ms=6, color=ORANGE if best else GREY)
                if best:
                    axes.annotate(str(row.number), (row.values[goal], row.values[0]), (4, 3),
                                  textcoords="offset points", fontsize=8)  # fmt: skip
        better = "→" if result.larger_is_better[goal] else "←"
        axes.set_xlabel(f"{result.goals[goal]}  (better {better})", fontsize=9)
        axes.set_ylabel(f"{result.goals[0]}  (better {'↑' if result.larger_is_better[0] else '↓'})", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    return figure


def _curves(result: "SweepResult") -> Figure:
    figure, (axes,) = _figure(9.0, 3.8, 1)
    best = list(result.best)[:MOST_CURVES]
    for row in result.rows:
        if row.curve and row.number not in best:
            style = "-" if row.state == "complete" else "--"
            axes.plot(list(row.curve), list(row.curve.values()), style, color=GREY, lw=0.9, marker=".", ms=3)
    for number, colour in zip(best, CURVE_COLOURS, strict=False):
        row = result.row(number)
        axes.plot(list(row.curve), list(row.curve.values()), color=colour, lw=1.8, marker="o", ms=4,
                  label=f"trial {number}")  # fmt: skip
    if best:
        axes.legend(fontsize=8)
    axes.set_xlabel("validation (dashed: ended early)", fontsize=9)
    axes.set_ylabel(result.goals[0], fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _importance(result: "SweepResult") -> Figure:
    found = {goal: shares for goal, shares in result.importance.items() if shares}
    names = sorted(result.param_names(), key=lambda name: next(iter(found.values())).get(name, 0.0))
    figure, (axes,) = _figure(9.0, 1.0 + 0.22 * len(names) * len(found) + 0.12 * len(names), 1)
    height = 0.8 / len(found)
    for index, (goal, shares) in enumerate(found.items()):
        places = [place + height * (len(found) / 2 - index - 0.5) for place in range(len(names))]
        colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
        axes.barh(places, [shares.get(name, 0.0) for name in names], height, color=colour, label=goal)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("share of what tells the best trials from the others (PED-ANOVA)", fontsize=9)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)  # within, it would lie on bars
    axes.tick_params(labelsize=8)
    return figure


def _params(result: "SweepResult") -> Figure:
    names = result.param_names()[:MOST_PARAMS]
    columns = min(COLUMNS, len(names))
    figure, panels = _figure(3.3 * columns, 2.8 * math.ceil(len(names) / columns), columns, len(names))
    for name, axes in zip(names, panels, strict=True):
        values = [row.params[name] for row in result.rows if name in row.params]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        texts = [] if numbers else list(dict.fromkeys(map(str, values)))
        _points(axes, result, functools.partial(_place, name=name, texts=texts))
        if not numbers:
            axes.set_xticks(range(len(texts)), [text if len(text) < 22 else f"{text[:20]}…" for text in texts])
        elif name in result.log_params:
            axes.set_xscale("log")
        elif len(set(values)) <= FEW_VALUES:
            axes.set_xticks(sorted(set(values)))
        axes.set_xlabel(name, fontsize=8)
        axes.set_ylabel(result.goals[0], fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


def _place(row: "TrialRow", *, name: str, texts: list[str]) -> float:
    if name not in row.params:
        return math.nan
    value = row.params[name]
    return texts.index(str(value)) if texts else float(value)


def _figure(width: float, height: float, columns: int, panels: int | None = None) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    number = panels or columns
    rows = math.ceil(number / columns)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(number)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
