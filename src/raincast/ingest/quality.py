"""Which rates an archive takes over: missing, too small, too large, specks, static clutter."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.archive import MAX_RATE
from raincast.archive.codes import bands
from raincast.ingest.clutter import Clutter

ALL = slice(None), slice(None)


@dataclass(frozen=True)
class Quality:
    """Rates over `max_rate` mm/h become `max_rate`; rates below `min_rate` mm/h become 0 (0: none do).

    Hail and clutter make reflectivities that a Z-R relation turns into thousands of mm/h. Rain areas of fewer
    than `speck_pixels` pixels become 0, see `drop_specks`; pixels of `clutter` become missing. All of it is done
    on the service's own pixels.
    """

    max_rate: float = 300.0
    min_rate: float = 0.0
    speck_pixels: int = 0
    clutter: Clutter | None = None

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
        if not isinstance(self.speck_pixels, int) or self.speck_pixels < 0:
            raise ValueError(
                f"speck_pixels={self.speck_pixels} must be a whole number from 0 (off): smaller areas of rain go."
            )

    def clean(
        self, rain: npt.NDArray[np.float32], window: tuple[slice, slice] = ALL
    ) -> tuple[npt.NDArray[np.float32], int]:
        """`rain` in mm/h (H, W) within the limits, and the number of capped pixels.

        Negative and infinite values are missing (NaN). `window` says which part of the service's image it is.
        """
        clean = np.empty(rain.shape, np.float32)
        clutter = None if self.clutter is None else self.clutter.mask[window]
        num_capped = 0
        for rows in bands(rain.shape):
            rates = clean[rows]
            rates[...] = rain[rows]
            rates[~((rates >= 0) & (rates < np.inf))] = np.nan
            if clutter is not None:
                rates[clutter[rows]] = np.nan
            num_capped += int((rates > self.max_rate).sum())
            np.minimum(rates, np.float32(self.max_rate), out=rates)
            if self.min_rate:
                rates[rates < self.min_rate] = 0.0
        if self.speck_pixels > 1:
            drop_specks(clean, self.speck_pixels)
        return clean, num_capped


def drop_specks(rain: npt.NDArray[np.float32], num_pixels: int) -> None:
    """Set areas of fewer than `num_pixels` pixels with rain to 0 in `rain` (H, W), in place.

    Pixels with rain are of one area if they touch, if only at a corner. An area that touches a missing pixel or
    the image's edge may be larger than what is seen of it: it stays.
    """
    from scipy import ndimage

    touching = np.ones((3, 3), bool)
    areas, num_areas = ndimage.label(rain > 0, structure=touching)
    if not num_areas:
        return
    small = np.bincount(areas.ravel(), minlength=num_areas + 1) < num_pixels
    small[0] = False  # no rain is no area
    beside_missing = ndimage.binary_dilation(np.isnan(rain), structure=touching)
    small[np.unique(areas[beside_missing])] = False
    for edge in (areas[0], areas[-1], areas[:, 0], areas[:, -1]):
        small[edge] = False
    rain[small[areas]] = 0.0
