"""Quality control of rates before they are archived: limits, specks and static clutter."""

import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import MAX_RATE
from raincast.archive.packing import warn_once
from raincast.archive.rates import bands, find_absurd
from raincast.ingest.readers import ALL, Head, Reader
from raincast.schema import WET_SHARE, Grid, X, Y

log = logging.getLogger(__name__)


MUCH = 0.05
"""Clutter above this share is suspicious: mountains, masts and wind farms are a few percent of the pixels."""


@dataclass(frozen=True)
class Clutter:
    """Static clutter: pixels that were wet in more than `share` of the frames that observed them.

    `maps` is the file that `ingest.py inspect=ARCHIVE` wrote for an archive on the service's own grid, because
    clutter belongs to the radar's pixels before they are cropped or averaged. A separate file makes sure that
    every frame of an archive loses the same pixels, whichever day and process it belongs to.
    """

    maps: Path
    share: float = 0.9

    def __post_init__(self) -> None:
        """Raise ValueError for a share outside (0, 1) or a file without this map."""
        if not 0 < self.share < 1:
            raise ValueError(f"clutter_share={self.share} must be between 0 and 1: a share of the frames.")
        _load(self.maps)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the mask of clutter, (H, W) of the service's images."""
        return _mask(self.maps, self.share)

    @property
    def identity(self) -> str:
        """Return a short hash of the mask, which does not depend on the file's path."""
        return hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()[:16]

    def check(self, grid: Grid) -> None:
        """Raise ValueError if the maps are on another grid than the service's; warn if there is much clutter."""
        share, own = _load(self.maps)
        if not own.same_as(grid):
            raise ValueError(
                f"clutter_maps={self.maps} is on a grid of {own.shape}, the files on another of {grid.shape}. "
                "Inspect an archive that was made from the service's whole images: grid.crop=null grid.coarsen=1"
            )
        lost = self.mask.sum() / max(1, np.isfinite(share).sum())
        log.info("Clutter: %.2f %% of the pixels ever observed are missing in every frame", 100 * lost)
        if lost > MUCH:
            log.warning(
                "clutter_share=%g of clutter_maps=%s takes %.0f %% of the pixels for clutter. The archive "
                "inspected is too short or too wet: inspect one of several weeks, or raise clutter_share.",
                self.share,
                self.maps,
                100 * lost,
            )


@functools.cache
def _mask(maps: Path, share: float) -> npt.NDArray[np.bool_]:
    return _load(maps)[0] > share  # False for NaN: a pixel never observed is not clutter


@functools.cache
def _load(maps: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """Return the share of wet frames, (H, W), and its grid."""
    if not maps.is_file():
        raise FileNotFoundError(
            f"There is no file clutter_maps={maps}. Write one: python ingest.py inspect=ARCHIVE"
        )
    try:
        with xr.open_dataset(maps, engine="netcdf4", chunks=None) as dataset:
            return dataset[WET_SHARE].transpose(Y, X).values, schema.grid_of(dataset, WET_SHARE)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"clutter_maps={maps} has no {WET_SHARE} on (y, x): {error}. Take the .nc file that "
            "python ingest.py inspect=ARCHIVE writes."
        ) from error


EVERYWHERE = slice(None), slice(None)


@dataclass(frozen=True)
class Quality:
    """Limits on rates: those above `max_rate` mm/h become `max_rate`, those below `min_rate` become 0 (0: off).

    A Z-R relation turns the reflectivity of hail and clutter into thousands of mm/h. Rain areas of fewer than
    `speck_pixels` pixels become 0, see `drop_specks`; pixels of `clutter` become missing. All of this is done on
    the service's own pixels.
    """

    max_rate: float = 300.0
    min_rate: float = 0.0
    speck_pixels: int = 0
    clutter: Clutter | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for limits that the archive cannot represent."""
        if not 0 < self.max_rate <= MAX_RATE:
            raise ValueError(
                f"max_rate={self.max_rate} mm/h must be over 0 and at most {MAX_RATE}, the largest rate "
                "that an archive's int16 codes can represent."
            )
        if not 0 <= self.min_rate < self.max_rate:
            raise ValueError(
                f"min_rate={self.min_rate} mm/h must be at least 0 (off) and below max_rate={self.max_rate}."
            )
        if not isinstance(self.speck_pixels, int) or self.speck_pixels < 0:
            raise ValueError(
                f"speck_pixels={self.speck_pixels} must be a whole number from 0 (off): smaller areas become 0."
            )

    def clean(
        self, rain: npt.NDArray[np.float32], window: tuple[slice, slice] = EVERYWHERE
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Return `rain` (H, W) in mm/h within the limits, and the number of capped pixels.

        Values that cannot be rain (`archive.rates`) become missing (NaN). `window` is the part of the service's
        image that `rain` covers.
        """
        clean = np.empty(rain.shape, np.float32)
        clutter = None if self.clutter is None else self.clutter.mask[window]
        num_capped = 0
        for rows in bands(rain.shape):
            rates = clean[rows]
            rates[...] = rain[rows]
            rates[find_absurd(rates)] = np.nan
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
    """Set rain areas of fewer than `num_pixels` pixels to 0 in `rain` (H, W), in place.

    Wet pixels that touch, even at a corner, belong to one area. An area that touches a missing pixel or the edge
    of the image is kept, because it may extend further.
    """
    from scipy import ndimage

    touching = np.ones((3, 3), bool)
    areas, num_areas = ndimage.label(rain > 0, structure=touching)
    if not num_areas:
        return
    small = np.bincount(areas.ravel(), minlength=num_areas + 1) < num_pixels
    small[0] = False  # label 0 is the dry background
    beside_missing = ndimage.binary_dilation(np.isnan(rain), structure=touching)
    small[np.unique(areas[beside_missing])] = False
    for edge in (areas[0], areas[-1], areas[:, 0], areas[:, -1]):
        small[edge] = False
    rain[small[areas]] = 0.0


MOST_CAPPED, FEW_PIXELS = 1e-3, 10
"""Share of pixels above `max_rate` from which a warning is due. Hail and clutter of OPERA reach 1e-5."""


def warn_capped(num_capped: int, num_pixels: int, max_rate: float, what: str) -> None:
    """Warn once if rain does not explain how many pixels were capped: a wrong unit or scale, a code of missing."""
    if num_capped > max(FEW_PIXELS, MOST_CAPPED * num_pixels):
        warn_once(
            f"More than {MOST_CAPPED:.1%} of the pixels of {what} exceed max_rate={max_rate:g} mm/h and are set "
            "to it, which rain does not explain: check unit, scale and code of missing pixels of the files"
        )


@dataclass(frozen=True)
class Cleaned:
    """A reader whose frames are cleaned by `quality`, for files that go to a network without an archive."""

    reader: Reader
    quality: Quality

    def recognises(self, path: Path) -> bool:
        """Delegate to the reader."""
        return self.reader.recognises(path)

    def scan(self, path: Path) -> Head:
        """Delegate to the reader."""
        return self.reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read frames with the reader and clean their rates with `Quality.clean`."""
        dataset = self.reader.read(path, frames, step_minutes=step_minutes)
        rain = dataset[schema.RAIN]
        cleaned = [self.quality.clean(frame) for frame in rain.values]
        for _, num_capped in cleaned:
            warn_capped(num_capped, rain[0].size, self.quality.max_rate, "a frame")
        return dataset.assign({schema.RAIN: rain.copy(data=np.stack([clean for clean, _ in cleaned]))})
