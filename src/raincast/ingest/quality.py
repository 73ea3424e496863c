"""Which rates an archive takes over: missing, too small, too large."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.archive import MAX_RATE
from raincast.archive.codes import bands


@dataclass(frozen=True)
class Quality:
    """Rates over `max_rate` mm/h become `max_rate`; rates below `min_rate` mm/h become 0 (0: none do).

    Hail and clutter make reflectivities that a Z-R relation turns into thousands of mm/h.
    """

    max_rate: float = 300.0
    min_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse limits that the archive cannot hold."""
        if not 0 < self.max_rate <= MAX_RATE:
            raise ValueError(
                f"max_rate={self.max_rate} mm/h must be over 0 and at most {MAX_RATE}, the largest rate "
                "that an archive's int16 code holds."
            )
        if not 0 <= self.min_rate < self.max_rate:
            raise ValueError(
                f"min_rate={self.min_rate} mm/h must be at least 0 (off) and below max_rate={self.max_rate}."
            )

    def clean(self, rain: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
        """`rain` in mm/h (any shape) within the limits, and the number of capped pixels.

        Negative and infinite values are missing (NaN).
        """
        clean = np.empty(rain.shape, np.float32)
        num_capped = 0
        for rows in bands(rain.shape):
            rates = clean[rows]
            rates[...] = rain[rows]
            rates[~((rates >= 0) & (rates < np.inf))] = np.nan
            num_capped += int((rates > self.max_rate).sum())
            np.minimum(rates, np.float32(self.max_rate), out=rates)
            if self.min_rate:
                rates[rates < self.min_rate] = 0.0
        return clean, num_capped
