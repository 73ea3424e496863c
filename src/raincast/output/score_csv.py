"""Scores as comma-separated values: a row a number, for spreadsheets and for R."""

from pathlib import Path

import pandas as pd
import xarray as xr

from raincast.schema import LEAD_TIME

COLUMNS = ("forecaster", "score", "threshold", LEAD_TIME)
"""Always there, and first; other dimensions that a score has follow."""
KEPT_BY = "sum_", "hourly_"
"""What sums by event and by hour begin with: scores.nc has them, with all else to make scores anew."""


def score_frame(scores: xr.Dataset) -> pd.DataFrame:
    """The scores as rows: forecaster, score, threshold (mm/h), lead_time (minutes) …, value; NaN is undefined."""
    rows = []
    for name, values in scores.data_vars.items():
        if "forecaster" not in values.dims or str(name).startswith(KEPT_BY):
            continue
        plain = values.reset_coords(drop=True).rename("value").to_dataframe().reset_index()
        rows.append(plain.assign(score=str(name)))
    frame = pd.concat(rows, ignore_index=True)
    first = [column for column in COLUMNS if column in frame]
    others = [column for column in frame if column not in (*COLUMNS, "value")]
    return frame[[*first, *others, "value"]]


def write_csv(scores: xr.Dataset, path: Path) -> Path:
    """scores.csv: 6 digits, empty where a dimension is not the score's, "nan" where the score is undefined."""
    frame = score_frame(scores)
    text = frame["value"].map(lambda value: "nan" if pd.isna(value) else f"{value:.6g}")
    frame.assign(value=text).to_csv(path, index=False, lineterminator="\n")
    return path
