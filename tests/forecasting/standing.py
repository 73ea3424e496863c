"""A network that is none: what tests of everything around it stand on."""

from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecaster import Gives, Prediction, Query
from raincast.forecasting import ForecastPipeline
from raincast.forecasting.fit import Trained


class Standing:
    """The newest frame stays, missing pixels are dry; keeps the rain that it was asked about."""

    name = "standing"
    gives = Gives()

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(self, query: Query) -> Prediction:
        self.seen.append(query.rain)
        newest = np.nan_to_num(query.rain[:, -1:], nan=0.0)
        return Prediction(newest.repeat(len(query.lead_minutes), axis=1), done=("network",) * len(newest))


def pipeline(**settings: Any) -> ForecastPipeline:
    trained = Trained(
        input_steps=4,
        lead_steps=6,
        step_minutes=5.0,
        grid_spacing=(1000.0, 1000.0),
        cell_methods="time: point",
        max_missing=1,
    )
    return ForecastPipeline(Standing(), trained, **settings)


def moving(num_times: int = 4, height: int = 48, width: int = 64, *, speed: int = 2) -> xr.Dataset:
    """Blots of rain that move to the east by `speed` pixels a step; nobody looks at the two lowest rows."""
    generator = np.random.default_rng(3)
    wide = np.kron(generator.gamma(0.4, 6.0, (height // 8, width // 8 + 16)), np.ones((8, 8)))
    wide[wide < 2] = 0
    frames = [wide[:height, 64 - speed * n : 64 - speed * n + width] for n in range(num_times)]
    rain = np.stack(frames).astype(np.float32)
    rain[:, -2:] = np.nan
    dataset = schema.mock_archive(num_times, height, width)
    times = dataset["time"].values
    return schema.rain_dataset(
        rain, times, schema.mock_grid(height, width), step_minutes=5.0, cell_methods="time: point"
    )
