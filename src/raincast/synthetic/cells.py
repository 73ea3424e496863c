"""Convective cells in a field of rain."""

from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.synthetic.weather import Floats, Weather


class Cells:
    """Convective cells: born where the field is high and in the afternoon, they grow fast, widen and fade."""

    BLOBS = 3  # to a cell: storms are not round

    def __init__(self, weather: Weather, torus: int, step_hours: float, rng: np.random.Generator) -> None:
        self.weather, self.torus, self.step_hours, self.rng = weather, torus, step_hours, rng
        self.own_motion = rng.normal(0, 4, (1, 2))  # storms leave the steering flow a little, all alike
        self.table = np.empty((0, 6 + 2 * self.BLOBS))
        """A row a cell: y, x (km), age, life (h), strength, width (km), offsets of its blobs (km)."""

    def step(self, velocity: Floats, field: Floats, hours: float) -> None:
        """Move and age all cells, remove the dead, let new ones be born."""
        cells = self.table
        cells[:, :2] += (self._at(velocity, cells).T + self.own_motion) * self.step_hours
        cells[:, :2] %= self.torus
        cells[:, 2] += self.step_hours
        self.table = np.concatenate([cells[cells[:, 2] < cells[:, 3]], self._births(field, hours)])

    def _at(self, values: Floats, cells: npt.NDArray[np.float64]) -> Floats:
        rows, columns = (cells[:, :2].T % self.torus).astype(np.intp)
        return values[..., rows, columns]

    def _births(self, field: Floats, hours: float) -> npt.NDArray[np.float64]:
        day_course = 1 + 0.6 * np.cos(2 * np.pi * (hours - 15) / 24)
        per_hour = (0.1 + 0.9 * self.weather.convective) * day_course * 26 * (self.torus / 256) ** 2
        rng, count = self.rng, self.rng.poisson(4 * per_hour * self.step_hours)
        cells = np.empty((count, self.table.shape[1]))
        cells[:, :2] = rng.uniform(0, self.torus, (count, 2))
        cells[:, 2] = 0
        cells[:, 3] = rng.uniform(0.5, 1.4, count)
        cells[:, 4] = rng.uniform(0.8, 2.4, count)
        cells[:, 5] = rng.uniform(1.8, 3.8, count)
        cells[:, 6:] = rng.normal(0, 1.3, (count, 2 * self.BLOBS)) * cells[:, 5:6]
        # of four tries about one lives: mostly where the field is high already
        odds = 1 / (1 + np.exp(2 - 2 * self._at(field, cells)))
        return np.asarray(cells[rng.uniform(size=count) < odds])

    def draw(self, window: slice) -> Floats:
        """What the cells add to the field in the window, (size, size)."""
        y, x, age, life, strength, width = self.table[:, :6].T
        phase = age / life
        # quick growth, slow decay: the maximum, 1, is at 0.4 of the life
        vigour = strength * np.sin(np.pi * phase**0.75) ** 2
        spread = width * (0.7 + 0.6 * phase)
        total = np.zeros((window.stop - window.start,) * 2, np.float32)
        for blob in range(self.BLOBS):
            dy, dx = self.table[:, 6 + 2 * blob], self.table[:, 7 + 2 * blob]
            rows, columns = self._bell(y + dy, spread, window), self._bell(x + dx, spread, window)
            total += (rows * (vigour / (1 + 0.5 * blob))[:, None]).T.astype(np.float32) @ columns.astype(
                np.float32
            )
        return total

    def _bell(self, centre: Any, spread: Any, window: slice) -> npt.NDArray[np.float64]:
        distance = np.arange(window.start, window.stop) - centre[:, None]
        distance = (distance + self.torus / 2) % self.torus - self.torus / 2
        return np.asarray(np.exp(-0.5 * (distance / spread[:, None]) ** 2))
