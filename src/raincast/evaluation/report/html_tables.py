"""HTML tables of scores: means over lead times with intervals, and comparisons of forecasters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.evaluation.intervals import verdict
from raincast.evaluation.report.tables import best_of, difference_cells
from raincast.metrics.registry import SCORES
from raincast.plotting.page import Cell, Table
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]
Badness = Callable[[Floats], Floats]
COLUMNS = (
    *("csi", "pod", "far", "frequency_bias", "hss", "ets", "f1"),
    *("mean_error", "mae", "rmse", "correlation", "uncentred_correlation", "balanced_mse", "balanced_mae"),
    *("crps", "fair_crps", "spread_error_ratio", "brier", "brier_reliability", "brier_resolution", "roc_area"),
    *("onset_csi", "fss", "effective_resolution", "sal_abs_structure", "sal_abs_amplitude", "sal_location"),
)
"""Scores that have a column, in this order."""


@dataclass(frozen=True, eq=False)
class Column:
    """One score of all forecasters: means over lead times and ends of intervals, (forecaster,)."""

    heading: str
    badness: Badness
    means: Floats
    low: Floats | None = None
    high: Floats | None = None

    @classmethod
    def of(cls, scores: xr.Dataset, name: str, *, heading: str = "", **at: float) -> "Column":
        """Return the column of score `name` at those coordinates of `at` that it has."""
        score = SCORES[name]
        values = scores[name]
        chosen = {dim: value for dim, value in at.items() if dim in values.dims}
        means = values.sel(chosen).mean(LEAD_TIME)  # skips undefined lead times
        ends: list[Floats | None] = [None, None]
        if f"{name}_mean_interval" in scores:
            ends = list(scores[f"{name}_mean_interval"].sel(chosen).values)
        return cls(heading or score.heading, score.badness, means.values.astype(np.float64), *ends)

    def cells(self) -> list[Cell]:
        """Return one cell per forecaster; the best is bold, with all that round to the same, unless all do."""
        texts, best = best_of(self.means, self.badness)
        return [Cell(text, self._interval(k), text == best) for k, text in enumerate(texts)]

    def _interval(self, k: int) -> str:
        if self.low is None or self.high is None or not np.isfinite([self.low[k], self.high[k]]).all():
            return ""
        return f"{self.low[k]:.3f} to {self.high[k]:.3f}"


def by_threshold(scores: xr.Dataset, name: str) -> list[Column]:
    """Return one column per threshold."""
    heading = SCORES[name].label
    return [
        Column.of(scores, name, heading=f"{heading} ≥ {t:g} mm/h", threshold=t) for t in scores["threshold"].values
    ]


def at_threshold(scores: xr.Dataset, threshold: float) -> list[Column]:
    """Return one column per score other than CSI; scores by scale have one column per scale."""
    columns = []
    for name in COLUMNS:
        if name == "csi" or name not in scores:
            continue
        if "scale" in scores[name].dims:
            columns += [
                Column.of(scores, name, heading=f"FSS {scale:g} km", threshold=threshold, scale=scale)
                for scale in scores["scale"].values
            ]
        else:
            columns.append(Column.of(scores, name, threshold=threshold))
    return columns


def score_table(scores: xr.Dataset, columns: Sequence[Column]) -> Table:
    """Return a table with one row per forecaster."""
    cells = [column.cells() for column in columns]
    names = map(str, scores["forecaster"].values)
    rows = [[Cell(name), *(column[k] for column in cells)] for k, name in enumerate(names)]
    return Table(["forecaster", *(column.heading for column in columns)], rows)


def difference_tables(scores: xr.Dataset, threshold: float) -> list[Table]:
    """Return tables of the CSI of the first forecaster minus each other one; empty without intervals or rivals.

    They say "better" or "worse" only if the interval of the difference excludes 0, otherwise the reason.
    """
    if "csi_mean_difference_interval" not in scores or scores.sizes["forecaster"] < 2:
        return []
    first, *others = (str(name) for name in scores["forecaster"].values)
    means = scores["csi_mean"].sel(threshold=threshold)
    rows = []
    for other in others:
        pair = {"forecaster": first, "reference": other, "threshold": threshold}
        low, high = scores["csi_mean_difference_interval"].sel(pair).values
        cells = difference_cells(float(means.sel(forecaster=first) - means.sel(forecaster=other)), low, high)
        said = (other, *(cell.replace("-", "−") for cell in cells), verdict(scores, other, threshold))
        rows.append([Cell(text) for text in said])
    percent = f"{100 * float(scores.attrs['confidence']):g} % interval"
    return [Table([f"{first} minus", "difference of CSI", percent, f"{first} is"], rows)]
