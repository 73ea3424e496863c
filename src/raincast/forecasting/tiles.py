"""Forecasts in overlapping tiles, blended without seams, for grids too large for one pass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.forecaster import Prediction, Query

Maps = npt.NDArray[np.float32]
Predict = Callable[[Query], Prediction]


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most `size` (y, x) pixels that share `overlap` pixels; both are multiples of `stride`.

    Every tile begins at a multiple of the network's stride, so that its coarse pixels are those of the whole grid.
    `apart`: each is a forecast of its own, even by a forecaster that needs the whole grid.
    """

    size: tuple[int, int]
    overlap: int
    stride: int
    apart: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for sizes and overlaps that do not fit each other."""
        if self.overlap % self.stride or any(n % self.stride for n in self.size):
            raise ValueError(
                f"Tiles of {self.size} pixels that share {self.overlap}: not multiples of {self.stride}."
            )
        if min(self.size) <= self.overlap:
            raise ValueError(f"Tiles of {self.size} pixels are no larger than their overlap of {self.overlap}.")

    def spans(self, length: int, axis: int) -> list[slice]:
        """Return the tiles along an axis of `length` pixels."""
        size = self.size[axis]
        if length <= size:
            return [slice(0, length)]
        count = -(-(length - self.overlap) // (size - self.overlap))
        starts = np.linspace(0, length - size, count) / self.stride
        firsts = [int(np.ceil(start)) * self.stride for start in starts]
        return [slice(first, min(first + size, length)) for first in firsts]

    def num_tiles(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the number of tiles along y and x."""
        return len(self.spans(shape[0], 0)), len(self.spans(shape[1], 1))

    def tiles(self, shape: tuple[int, int]) -> Iterator[tuple[slice, slice, Maps]]:
        """Yield rows, columns and weights (h, w) of each tile of a grid; the weights of a pixel add up to 1.

        They are 0 within three eighths of the overlap from a tile's edge, where a network is worst.
        """
        rows, columns = (self.spans(length, axis) for axis, length in enumerate(shape))
        x_weights = _weights(columns, shape[1], self.overlap)
        for y, wy in zip(rows, _weights(rows, shape[0], self.overlap), strict=True):
            for x, wx in zip(columns, x_weights, strict=True):
                yield y, x, (wy[:, None] * wx).astype(np.float32)


def in_tiles(predict: Predict, query: Query, tiling: Tiling) -> Prediction:
    """Predict tile by tile: memory holds the whole prediction and the work of one tile.

    Where tiles overlap, their predictions are averaged (`Tiling.tiles`). Raises ValueError for members: those of
    two tiles are unrelated.
    """
    if query.members:
        raise ValueError("Members cannot be forecast in tiles: allow more with memory_gib=…, or crop the input.")
    H, W = query.rain.shape[-2:]
    whole: dict[str, Maps] = {}
    done: list[tuple[str, ...]] = []
    for y, x, weight in tiling.tiles((H, W)):
        tile = predict(query.crop(y, x))
        done.append(tile.done)
        parts = {"rates": tile.rates, "probabilities": tile.probabilities, "uncalibrated": tile.uncalibrated}
        for name, part in parts.items():
            if part is not None:
                if name not in whole:
                    whole[name] = np.zeros((*part.shape[:-2], H, W), np.float32)
                whole[name][..., y, x] += part * weight
    for name in whole.keys() - {"rates"}:
        np.clip(whole[name], 0, 1, out=whole[name])  # the weights add up to 1 up to rounding
    methods = tuple(", ".join(dict.fromkeys(ways)) for ways in zip(*done, strict=True))
    return Prediction(**whole, thresholds=query.thresholds if "probabilities" in whole else (), done=methods)


def _weights(spans: list[slice], length: int, overlap: int) -> list[npt.NDArray[np.float64]]:
    """Return the weights of each tile along one axis; they add up to 1 everywhere."""
    raw = []
    total = np.zeros(length)
    for span in spans:
        pixels = np.arange(span.start, span.stop) + 0.5
        weight = np.ones(pixels.size)
        if span.start > 0:
            weight *= _ramp(pixels - span.start, overlap)
        if span.stop < length:
            weight *= _ramp(span.stop - pixels, overlap)
        raw.append(weight)
        total[span] += weight
    return [weight / total[span] for weight, span in zip(raw, spans, strict=True)]


def _ramp(distance: npt.NDArray[np.float64], overlap: int) -> npt.NDArray[np.float64]:
    """Return 0 up to three eighths of the overlap, 1 from five eighths on, linear in between."""
    ramp: npt.NDArray[np.float64] = np.clip((distance - 3 / 8 * overlap) / max(overlap / 4, 1.0), 0.0, 1.0)
    return ramp
