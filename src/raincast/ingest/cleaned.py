"""A reader whose frames are as an ingest would take them over."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from raincast import schema
from raincast.ingest.quality import Quality
from raincast.ingest.readers import ALL, Head, Reader


@dataclass(frozen=True)
class Cleaned:
    """The frames of `reader` within the limits of `quality`: what has no archive between it and the network."""

    reader: Reader
    quality: Quality

    def recognises(self, path: Path) -> bool:
        """As the reader does."""
        return self.reader.recognises(path)

    def scan(self, path: Path) -> Head:
        """As the reader does."""
        return self.reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Frames as the reader gives them, with what `Quality.clean` makes of their rates."""
        dataset = self.reader.read(path, frames, step_minutes=step_minutes)
        rain = dataset[schema.RAIN]
        clean = np.stack([self.quality.clean(frame)[0] for frame in rain.values])
        return dataset.assign({schema.RAIN: rain.copy(data=clean)})
