"""A network that is none: what tests of everything around it stand on."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting import Nowcaster
from raincast.forecasting.fit import Trained


class Standing:
    """The newest frame stays, missing pixels are dry; counts how often it was asked."""

    name = "standing"
    input_steps = 4
    lead_steps = 6
    step_minutes = 5.0

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def forecast_with_exceedance(
        self, rain: np.ndarray, num_steps: int, thresholds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(rain)
        newest = np.nan_to_num(rain[:, -1:], nan=0.0)
        rates = newest.repeat(num_steps, axis=1)
        return rates, np.concatenate([rates >= t for t in thresholds], 2).astype(np.float32) if thresholds else (
            rates[:, :, :0]
        )


def nowcaster(**settings: object) -> Nowcaster:
    trained = Trained(grid_spacing=(1000.0, 1000.0), cell_methods="time: point", max_missing=1)
    return Nowcaster(Standing(), trained, **settings)  # type: ignore[arg-type]


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
