"""Windows of a Dataset without an archive on disk, queries of windows, and the predictions that scoring needs."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.data import default_collate

from raincast import schema
from raincast.data.dataset import Sample
from raincast.data.windows import frame_slots, window_starts
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


def newest_frames(frames: xr.Dataset, *, input_steps: int, lead_steps: int, every: int = 1) -> list[int]:
    """Return the indices of the newest input frames of every `every`-th window without missing frames.

    Raises ValueError if there is none.
    """
    times, step_minutes = frames[schema.TIME].values, schema.find_step_minutes(frames)
    step, num_frames = schema.step_timedelta(step_minutes), input_steps + lead_steps
    starts = window_starts(times, step, num_frames)[::every]
    if not starts.size:
        first, last = np.datetime_as_string(times[[0, -1]], unit="m")
        raise ValueError(
            f"No {num_frames} consecutive frames ({input_steps} to forecast from, {lead_steps} to compare with), "
            f"{step_minutes:g} min apart, are among the {times.size} from {first} to {last} UTC: lower "
            "lead_steps, or give more frames."
        )
    return [int(n) for n in np.searchsorted(frame_slots(times, step), starts) + input_steps - 1]


def windows_of(frames: xr.Dataset, newest: list[int], *, input_steps: int, lead_steps: int) -> Iterator[Sample]:
    """Yield the windows around the frames `newest` (ascending), each a batch of one; every frame is read once."""
    rain, times = frames[schema.RAIN].transpose(schema.TIME, schema.Y, schema.X), frames[schema.TIME].values
    scale = torch.tensor([[schema.find_step_minutes(frames), schema.grid_of(frames).pixel_km]])
    read: dict[int, torch.Tensor] = {}
    for last in newest:
        wanted = range(last + 1 - input_steps, last + 1 + lead_steps)
        read = {number: frame for number, frame in read.items() if number in wanted}
        fresh = slice(max(read, default=wanted[0] - 1) + 1, wanted[-1] + 1)
        values = np.asarray(rain[fresh].values, np.float32)
        read |= {fresh.start + k: torch.from_numpy(frame) for k, frame in enumerate(values)}
        window = torch.stack([read[number] for number in wanted])[None, :, None]
        target = window[:, input_steps:]
        yield Sample(
            input=window[:, :input_steps],
            target=target,
            target_mask=~target.isnan(),
            filled=torch.zeros((1, len(wanted)), dtype=torch.bool),
            scale=scale,
            time=torch.tensor([int(times[last].astype("datetime64[s]").astype(np.int64))]),  # type: ignore[typeddict-item]  # as in a batch
            y=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
            x=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
            source=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
        )
