"""Conversion of windows to queries, and the predictions that scoring needs."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from raincast.data.dataset import Sample
from raincast.evaluation.metrics import Scoring
from raincast.forecaster import Forecaster, Prediction, Query, Rain, ThresholdError
from raincast.models.inputs import covariates_of
from raincast.schema import Grid

log = logging.getLogger(__name__)


def query_of(
    batch: Sample,
    *,
    lead_steps: int,
    step_minutes: float,
    grid: Grid | None = None,
    pixel_km: float | None = None,
    thresholds: Sequence[float] = (),
    members: bool = False,
) -> Query:
    """Return the query of a batch of windows that were cut from `grid`."""
    return Query.for_steps(
        batch["input"].cpu().numpy(),
        lead_steps,
        step_minutes=step_minutes,
        times=np.asarray(batch["time"]).astype("datetime64[s]"),
        grid=grid,
        y=np.asarray(batch["y"]).tolist(),
        x=np.asarray(batch["x"]).tolist(),
        pixel_km=pixel_km,
        covariates={name: values.cpu().numpy() for name, values in covariates_of(batch).items()},
        members=members,
        thresholds=thresholds,
        uncalibrated=True,
    )


class Scored:
    """A forecaster with its scoring queries, which ask for members and probabilities if it gives them.

    After a `ThresholdError` they ask for rates only.
    """

    def __init__(
        self, forecaster: Forecaster, scoring: Scoring, *, lead_steps: int, grid: Grid | None = None
    ) -> None:
        self.forecaster = forecaster
        self.scoring = scoring
        self.lead_steps = lead_steps
        self.grid = grid
        self._probabilities = scoring.metrics.probabilities

    def predict(self, batch: Sample) -> Prediction:
        """Return the prediction of a batch of windows; raises ValueError if a shape is wrong."""
        gives = self.forecaster.gives
        query = query_of(
            batch,
            lead_steps=self.lead_steps,
            step_minutes=self.scoring.step_minutes,
            grid=self.grid,
            pixel_km=self.scoring.pixel_km,
            members=gives.members and self._probabilities,
            thresholds=self.scoring.metrics.thresholds if gives.probabilities and self._probabilities else (),
        )
        try:
            prediction = self.forecaster.predict(query)
        except ThresholdError as error:
            log.warning("Probabilities of %s are not scored: %s", self.forecaster.name, error)
            self._probabilities = False
            return self.predict(batch)
        prediction.check(query, self.forecaster.name)
        return prediction


def rates_by_name(
    forecasters: Iterable[Forecaster], sample: Sample, *, lead_steps: int, step_minutes: float, grid: Grid
) -> dict[str, Rain]:
    """Return the rates of one window by forecaster name, (L, H, W) in mm/h; NaN where nothing was observed."""
    batch: Any = default_collate([sample])
    query = query_of(batch, lead_steps=lead_steps, step_minutes=step_minutes, grid=grid)
    never = np.isnan(query.rain[0, :, 0]).all(axis=0)
    rates = {forecaster.name: forecaster.predict(query).rates[0, :, 0] for forecaster in forecasters}
    return {name: np.where(never, np.float32(np.nan), maps) for name, maps in rates.items()}
