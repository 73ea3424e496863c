"""The table of `convlstm.py`, and a summary in a few lines."""

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

COLUMNS = [  # heading, and what is divided by what of which figures
    ("step / floor", "step_s", "raincast", "floor"),
    ("forward / floor", "forward_s", "raincast", "floor"),
    ("plain / step", "step_s", "plain", "raincast"),
    ("plain / forward", "forward_s", "plain", "raincast"),
    ("keras / step", "step_s", "keras", "raincast"),
    ("open / step", "step_s", "open", "raincast"),
    ("recompute / step", "step_s", "recompute", "raincast"),
    ("kept / plain", "kept_bytes", "raincast", "plain"),
    ("kept, recomputed", "kept_bytes", "recompute", "plain"),
    ("no Triton / step", "step_s", "no_triton", "raincast"),
    ("no Triton / forward", "forward_s", "no_triton", "raincast"),
    ("graph / step", "step_s", "graphed", "raincast"),
    ("compiled / step", "step_s", "compiled", "raincast"),
    ("compiled / forward", "forward_s", "compiled", "raincast"),
    ("peak / plain", "peak_bytes", "raincast", "plain"),
    ("peak, recomputed", "peak_bytes", "recompute", "plain"),
]

LINES = [  # of layers: median and worst
    ("training step over floor", "step_s", "raincast", "floor"),
    ("forward over floor", "forward_s", "raincast", "floor"),
    ("plain over raincast, step", "step_s", "plain", "raincast"),
    ("plain over raincast, forward", "forward_s", "plain", "raincast"),
    ("Keras over raincast, step", "step_s", "keras", "raincast"),
    ("without Triton over with it, step", "step_s", "no_triton", "raincast"),
]


def show(rows: list[Row], calls: dict[str, float]) -> None:
    """Print one table, every ratio in the direction of the targets; columns without measurements are left out."""
    columns = [column for column in COLUMNS if any(ratio(row, *column[1:]) is not None for row in rows)]
    table = Table(title="ConvLSTM: seconds and ratios (medians, interleaved)")
    table.add_column("case", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    table.add_column("floor, ms", justify="right")
    for heading, *_ in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        found = (ratio(row, *column[1:]) for column in columns)
        cells = ("" if value is None else f"{value:.2f}" for value in found)
        table.add_row(row["case"], row["precision"], f"{1e3 * row['step_s']['floor']:.2f}", *cells)
    console = Console(width=90 + 10 * len(columns))
    console.print(table)
    layers = [row for row in rows if "kept_bytes" in row]
    for precision in dict.fromkeys(row["precision"] for row in layers):
        of_one = [row for row in layers if row["precision"] == precision]
        for name, *which in LINES:
            _line(console, f"{name}, {precision} layers", of_one, which)
        if "peak_bytes" in of_one[0]:
            batch_4 = [row for row in of_one if row["batch"] == 4]
            _line(console, f"plain over raincast, step, {precision} layers of batch 4", batch_4, LINES[2][1:])
    half = {row["case"]: row for row in rows if row["precision"] == "bfloat16"}
    pairs = [(row, half[row["case"]]) for row in layers if row["precision"] == "float32" and row["case"] in half]
    for key, name in (("step_s", "training step"), ("forward_s", "forward")):
        ratios = [full[key]["raincast"] / low[key]["raincast"] for full, low in pairs]
        if ratios:
            console.print(
                f"float32 over bfloat16, {name}: {', '.join(f'{value:.2f}' for value in ratios)}; "
                f"median {statistics.median(ratios):.2f}"
            )
    console.print("first call: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in calls.items()))


def ratio(row: Row, figures: str, over: str, under: str) -> float | None:
    """Return a ratio, or None if either value is missing. "plain" is the better of its two memory layouts."""
    values = dict(row.get(figures, {}))
    if "plain_first" in values:
        values["plain"] = min(values["plain"], values["plain_first"])
    return values[over] / values[under] if over in values and under in values else None


def _line(console: Console, name: str, rows: list[Row], which: Any) -> None:
    ratios = [value for row in rows if (value := ratio(row, *which)) is not None]
    if ratios:
        worst = max(ratios) if which[-1] == "floor" else min(ratios)
        console.print(f"{name}: median {statistics.median(ratios):.2f}, worst {worst:.2f}")
