"""Scores as comma-separated values: a row a number, for spreadsheets and for R."""

from pathlib import Path

import pandas as pd
import xarray as xr

from raincast.schema import LEAD_TIME

COLUMNS = ("forecaster", "score", "threshold", LEAD_TIME)
"""Always there, and first; other dimensions that a score has follow."""
NUMBERS = ("value", "low", "high")
NO_SCORE = ("sum_", "hourly_"), ("_interval", "_better")
"""How names begin and end that have no rows of their own: sums by event and hour are for scores.nc."""


def score_frame(scores: xr.Dataset) -> pd.DataFrame:
    """The scores as rows: forecaster, score, threshold (mm/h), lead_time (minutes) …, value, low, high.

    `low` and `high` are the ends of the score's interval, where it has one; NaN is undefined.
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
    """scores.csv: 6 digits, empty where a dimension is not the score's, "nan" where the score is undefined."""
    frame = score_frame(scores)
    ends = {column: frame[column].map(_text).replace("nan", "") for column in NUMBERS[1:] if column in frame}
    frame.assign(value=frame["value"].map(_text), **ends).to_csv(path, index=False, lineterminator="\n")
    return path


def _text(value: float) -> str:
    return "nan" if pd.isna(value) else f"{value:.6g}"
