"""Static clutter: pixels that echo whatever the weather, found in an archive's own statistics."""

import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.schema import WET_SHARE, Grid, X, Y

log = logging.getLogger(__name__)

MUCH = 0.05
"""Mountains, masts and wind farms are a few pixels in a hundred: more is weather, of too short an archive."""


@dataclass(frozen=True)
class Clutter:
    """Pixels that were wet in more than `share` of the frames that observed them, from the file `maps`.

    `maps` is what `ingest.py inspect=ARCHIVE` wrote, of an archive on the service's own grid: clutter is of the
    radar's pixels, before they are cropped or averaged. The choice is a file of its own so that every frame of
    an archive, of whichever day and process, loses the same pixels.
    """

    maps: Path
    share: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a share that is none, and a file that holds no such map."""
        if not 0 < self.share < 1:
            raise ValueError(f"clutter_share={self.share} must be between 0 and 1: a share of the frames.")
        _load(self.maps)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where there is clutter, (H, W) of the service's images."""
        return _mask(self.maps, self.share)

    @property
    def identity(self) -> str:
        """A short hash of the mask: the same pixels are the same clutter, wherever the file lies."""
        return hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()[:16]

    def check(self, grid: Grid) -> None:
        """ValueError where the maps are of another grid than the service's; a warning where much is clutter."""
        share, own = _load(self.maps)
        if not own.same_as(grid):
            raise ValueError(
                f"clutter_maps={self.maps} is on a grid of {own.shape}, the files on one of {grid.shape} or "
                "elsewhere. Inspect an archive that was made of the service's whole images: grid.crop=null "
                "grid.coarsen=1"
            )
        lost = self.mask.sum() / max(1, np.isfinite(share).sum())
        log.info("Clutter: %.2f %% of the pixels ever observed are missing in every frame", 100 * lost)
        if lost > MUCH:
            log.warning(
                "clutter_share=%g of clutter_maps=%s takes %.0f %% of the pixels for clutter. The archive "
                "inspected is short or wet: inspect one of some weeks, or raise clutter_share.",
                self.share,
                self.maps,
                100 * lost,
            )


@functools.cache
def _mask(maps: Path, share: float) -> npt.NDArray[np.bool_]:
    return _load(maps)[0] > share  # never observed is NaN, and no clutter


@functools.cache
def _load(maps: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """The share of wet frames, (H, W), and its grid."""
    if not maps.is_file():
        raise FileNotFoundError(
            f"There is no file clutter_maps={maps}. Write one: python ingest.py inspect=ARCHIVE"
        )
    try:
        with xr.open_dataset(maps, engine="netcdf4", chunks=None) as dataset:
            y, x = (dataset[axis].values.astype(np.float64) for axis in (Y, X))
            grid = Grid(y=y, x=x, crs_wkt=str(schema.find_crs_wkt(dataset, WET_SHARE)))
            return dataset[WET_SHARE].transpose(Y, X).values, grid
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"clutter_maps={maps} has no {WET_SHARE} on (y, x): {error}. Take the .nc file that "
            "python ingest.py inspect=ARCHIVE writes."
        ) from error
