"""Tables of scores for the terminal and for text files.

`scores` is the Dataset of the evaluation: `csi`, `pod`, `far`, `frequency_bias` and `hss` with dimensions
(forecaster, threshold, lead_time), `mae` and `rmse` in mm/h with (forecaster, lead_time); NaN means undefined.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raincast.evaluation.intervals import events_text, lead_mean, verdict
from raincast.metrics.registry import SCORES
from raincast.schema import LEAD_TIME

UNDEFINED = "–"


SUMMARY = ("csi", "pod", "far", "frequency_bias", "hss", "mae", "rmse")
"""Scores of the table of means, in this order."""


def lead_minutes(scores: xr.Dataset) -> npt.NDArray[np.float64]:
    """Return the lead times of `scores` in minutes, whether stored as minutes or as timedelta64."""
    leads = scores[LEAD_TIME].values
    if np.issubdtype(leads.dtype, np.timedelta64):
        leads = leads / np.timedelta64(1, "m")
    return np.asarray(leads, dtype=np.float64)


def score_table(scores: xr.Dataset, *, threshold: float, score: str = "csi", max_columns: int = 12) -> Table:
    """Tabulate one score at one threshold (mm/h): a row per forecaster, a column per lead time, the best in bold.

    More lead times than `max_columns` are thinned evenly; the first and the last are kept.
    """
    values = _at_threshold(scores, score, threshold)
    minutes = lead_minutes(scores)
    kept = np.unique(np.linspace(0, minutes.size - 1, min(minutes.size, max_columns)).round()).astype(int)
    title = f"{SCORES[score].heading} at ≥ {threshold:g} mm/h, by lead time in minutes"
    table = _empty_table(title, ["forecaster"], [f"+{minutes[k]:g}" for k in kept])
    columns = [_best_bold(values[:, k], score) for k in kept]
    for row, name in enumerate(scores["forecaster"].values):
        table.add_row(str(name), *(column[row] for column in columns))
    return table


def summary_table(scores: xr.Dataset) -> Table:
    """Tabulate means over lead times: a row per threshold and forecaster, a column per score.

    The best forecaster of each threshold is bold in each column. Lead times at which a score is undefined do not
    count. MAE and RMSE are over all pixels, so they repeat for each threshold.
    """
    names = [name for name in SUMMARY if name in scores]
    table = _empty_table("Means over lead times", ["threshold", "forecaster"], [SCORES[n].heading for n in names])
    for threshold in scores["threshold"].values:
        columns = [_best_bold(lead_mean(_at_threshold(scores, name, threshold)), name) for name in names]
        for row, forecaster in enumerate(scores["forecaster"].values):
            label = f"≥ {threshold:g} mm/h" if row == 0 else ""
            table.add_row(label, str(forecaster), *(column[row] for column in columns))
        table.add_section()
    return table


def difference_table(scores: xr.Dataset, *, score: str = "csi") -> Table:
    """Tabulate differences between the first forecaster and each other one, means over lead times.

    `scores` has intervals. The table says "better" or "worse" only if the interval of the difference excludes 0;
    with too few events it says so.
    """
    first, *others = (str(name) for name in scores["forecaster"].values)
    confidence = float(scores.attrs["confidence"])
    title = f"{first} minus the others: {SCORES[score].heading}, mean over lead times, {events_text(scores)}"
    columns = ["difference", f"{100 * confidence:g} % interval", first]
    table = _empty_table(title, ["threshold", "compared with"], columns)
    means = scores[f"{score}_mean"]
    for threshold in scores["threshold"].values:
        for row, other in enumerate(others):
            pair = {"forecaster": first, "reference": other, "threshold": threshold}
            low, high = scores[f"{score}_mean_difference_interval"].sel(pair).values
            at = means.sel(threshold=threshold)
            cells = difference_cells(float(at.sel(forecaster=first) - at.sel(forecaster=other)), low, high)
            label = f"≥ {threshold:g} mm/h" if row == 0 else ""
            table.add_row(label, other, *cells, verdict(scores, other, threshold, score=score))
        table.add_section()
    return table


def difference_cells(difference: float, low: float, high: float) -> tuple[str, str]:
    """Return a difference and its interval as text, with signs."""

    def signed(value: float) -> str:
        return f"{value:+.3f}" if np.isfinite(value) else UNDEFINED

    return signed(difference), f"{signed(low)} to {signed(high)}" if np.isfinite(low) else UNDEFINED


def best_of(values: npt.NDArray[np.float64], badness: Callable[[Any], Any]) -> tuple[list[str], str | None]:
    """Return the values as text, and the text of the best; None if all are alike or at most one is defined."""
    texts = [f"{value:.3f}" if np.isfinite(value) else UNDEFINED for value in values]
    defined = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        bad = np.where(defined, badness(values), np.nan)
    known = [text for text, own in zip(texts, bad, strict=True) if np.isfinite(own)]
    return texts, None if len(set(known)) < 2 else texts[int(np.nanargmin(bad))]


def table_text(table: Table) -> str:
    """Format the table as plain text, without colours or escape codes, for logs and files."""
    console = Console(
        file=io.StringIO(),
        width=240,  # wider than any table here: nothing wraps
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"


def _at_threshold(scores: xr.Dataset, score: str, threshold: float) -> npt.NDArray[np.float64]:
    """Return (forecaster, lead) values of `score`, which need not have thresholds."""
    if score not in scores or score not in SUMMARY:
        raise ValueError(f"No score '{score}'. Choose one of: {', '.join(n for n in SUMMARY if n in scores)}.")
    values = scores[score]
    if "threshold" in values.dims:
        thresholds = scores["threshold"].values.astype(np.float64)
        at = np.flatnonzero(np.isclose(thresholds, threshold))
        if at.size == 0:
            listed = ", ".join(f"{t:g}" for t in thresholds)
            raise ValueError(
                f"No scores at a threshold of {threshold:g} mm/h. Choose one of {listed}, or evaluate at it."
            )
        values = values.isel(threshold=int(at[0]))
    return values.transpose("forecaster", LEAD_TIME).values.astype(np.float64)


def _empty_table(title: str, labels: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for label in labels:
        table.add_column(label, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _best_bold(values: npt.NDArray[np.float64], score: str) -> list[Text]:
    """Format one column; the best is bold, with all that round to the same, unless all do or it is alone."""
    texts, best = best_of(values, SCORES[score].badness)
    return [Text(text, style="bold" if text == best else "") for text in texts]


COLUMNS = ("forecaster", "score", "threshold", LEAD_TIME)
"""The first columns; further dimensions of a score follow."""
NUMBERS = ("value", "low", "high")
NO_SCORE = ("sum_", "hourly_"), ("_interval", "_better")
"""Prefixes and suffixes of variables without rows of their own; sums by event and hour stay in scores.nc."""


def score_frame(scores: xr.Dataset) -> pd.DataFrame:
    """Return scores as rows: forecaster, score, threshold (mm/h), lead_time (minutes) …, value, low, high.

    `low` and `high` are the ends of the score's interval, if it has one; NaN means undefined.
    """
    rows = []
    for name in map(str, scores.data_vars):
        if "forecaster" not in scores[name].dims or name.startswith(NO_SCORE[0]) or name.endswith(NO_SCORE[1]):
            continue
        values = {"value": scores[name]}
        if f"{name}_interval" in scores:
            low, high = scores[f"{name}_interval"]
            values |= {"low": low, "high": high}
        plain = xr.Dataset({key: array.reset_coords(drop=True) for key, array in values.items()})
        rows.append(plain.drop_vars("bound", errors="ignore").to_dataframe().reset_index().assign(score=name))
    frame = pd.concat(rows, ignore_index=True)
    last = [column for column in NUMBERS if column in frame]
    first = [column for column in COLUMNS if column in frame]
    others = [column for column in frame if column not in (*COLUMNS, *NUMBERS)]
    return frame[[*first, *others, *last]]


def write_csv(scores: xr.Dataset, path: Path) -> Path:
    """Write scores.csv with 6 digits; empty for dimensions that a score lacks, "nan" if undefined."""
    frame = score_frame(scores)
    ends = {column: frame[column].map(_text).replace("nan", "") for column in NUMBERS[1:] if column in frame}
    frame.assign(value=frame["value"].map(_text), **ends).to_csv(path, index=False, lineterminator="\n")
    return path


def _text(value: float) -> str:
    return "nan" if pd.isna(value) else f"{value:.6g}"
