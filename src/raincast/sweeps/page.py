"""The results of a sweep: a table of its trials, one HTML page, and lines for the terminal."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raincast.plotting import page
from raincast.system.files import atomic


@dataclass(frozen=True)
class TrialRow:
    """One trial; `values` has one per goal and is empty without a result."""

    number: int
    state: str
    params: Mapping[str, Any]
    values: Sequence[float] = ()
    epochs: int | None = None
    seconds: float | None = None
    note: str = ""
    run_dir: str = ""
    command: str = ""


@dataclass(frozen=True)
class SweepResult:
    """All trials of a study in the order of their numbers.

    `goals` are the goals' labels. `best` are the numbers of the best trials, the winner first: those that no other
    trial beats in every goal or, with one goal, the best few.
    """

    name: str
    goals: Sequence[str]
    rows: Sequence[TrialRow]
    best: Sequence[int]
    facts: Sequence[tuple[str, str]] = ()

    def row(self, number: int) -> TrialRow:
        """Return the trial with this number."""
        return next(row for row in self.rows if row.number == number)

    def param_names(self) -> list[str]:
        """Return the names of all parameters of all trials."""
        return list(dict.fromkeys(name for row in self.rows for name in row.params))


def write_table(result: SweepResult, path: Path) -> Path:
    """Write all trials as CSV, atomically."""
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = result.param_names()
        writer.writerow(
            ["trial", "state", *result.goals, *names, "epochs", "seconds", "note", "run_dir", "command"]
        )
        for row in result.rows:
            values: list[Any] = list(row.values) or [""] * len(result.goals)
            params = [row.params.get(name, "") for name in names]
            last = [row.epochs, row.seconds, row.note, row.run_dir, row.command]
            writer.writerow([row.number, row.state, *values, *params, *last])
    return path


def write_sweep_page(result: SweepResult, pictures: Mapping[str, bytes], path: Path) -> Path:
    """Write one HTML file: settings and results, the winner's command, `pictures` (PNG by title), all trials."""
    return page.write_page(path, title=f"The sweep {result.name}", sections=_sections(result, pictures))


def _sections(result: SweepResult, pictures: Mapping[str, bytes]) -> Iterator[page.Section]:
    yield page.Section("Overview", [page.Facts([*result.facts, *_counts(result, pictures)])])
    if result.best:
        front = len(result.goals) > 1
        title = "Best trials: no other is better in every goal" if front else "Best trials"
        best = [_cells(result, result.row(number)) for number in result.best]
        yield page.Section(title, [page.Table.of(best)])
        winner = result.row(result.best[0])
        first = f" by {result.goals[0]}" if front else ""
        again = f"Train the winner{first}, trial {winner.number}, again over several seeds"
        yield page.Section(again, [page.Command(winner.command)])
    for title, png in pictures.items():
        yield page.Section(title, [page.Picture(png, title)])
    yield page.Section("All trials", [page.Table.of([_cells(result, row) for row in result.rows])])


def _counts(result: SweepResult, pictures: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    states = [row.state for row in result.rows]
    yield (
        "trials",
        ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))) or "none",
    )
    if not any(title.startswith("Importance") for title in pictures):
        yield "importance", "of the parameters: needs four or more complete trials with different values"
    hours = sum(row.seconds or 0.0 for row in result.rows) / 3600
    yield "time of all trials", f"{hours:.2f} h"


def _cells(result: SweepResult, row: TrialRow) -> dict[str, str]:
    values = dict(zip(result.goals, map(short, row.values), strict=False))
    cells = {"trial": str(row.number), "state": row.state, **{goal: values.get(goal, "") for goal in result.goals}}
    seconds = "" if row.seconds is None else f"{row.seconds:.0f} s"
    cells |= {"epochs": "" if row.epochs is None else str(row.epochs), "time": seconds}
    cells |= {name: short(row.params[name]) if name in row.params else "" for name in result.param_names()}
    return cells | {"note": row.note}


def short(value: Any) -> str:
    """Format a parameter or score in a few characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def lines(result: SweepResult, most: int = 5) -> str:
    """Return lines on the best trials for a terminal."""
    told = [dict(_counts(result, {}))["trials"]]
    for number in list(result.best)[:most]:
        row = result.row(number)
        values = "  ".join(f"{goal} {short(v)}" for goal, v in zip(result.goals, row.values, strict=True))
        told.append(f"  trial {number}  {values}  " + ", ".join(f"{k} {short(v)}" for k, v in row.params.items()))
    return "\n".join(told)
