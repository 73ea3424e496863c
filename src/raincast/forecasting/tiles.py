"""Grids too large for one pass: overlapping tiles, blended so that no seam shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Maps = npt.NDArray[np.float32]
Run = Callable[[Maps], Sequence[Maps]]
"""Frames (T, H, W) → arrays that end in (H, W)."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most `size`, (y, x) pixels, that share `overlap` pixels; both multiples of `stride`.

    Every tile begins at a multiple of the network's stride, so that its coarse pixels are those of the whole grid.
    """

    size: tuple[int, int]
    overlap: int
    stride: int

    def __post_init__(self) -> None:
        """Refuse tiles that do not get on."""
        if self.overlap % self.stride or any(n % self.stride for n in self.size):
            raise ValueError(
                f"Tiles of {self.size} pixels that share {self.overlap}: not multiples of {self.stride}."
            )
        if min(self.size) <= self.overlap:
            raise ValueError(f"Tiles of {self.size} pixels are no larger than their overlap of {self.overlap}.")

    def spans(self, length: int, axis: int) -> list[slice]:
        """Where tiles begin and end along an axis of `length` pixels."""
        size = self.size[axis]
        if length <= size:
            return [slice(0, length)]
        count = -(-(length - self.overlap) // (size - self.overlap))
        starts = np.linspace(0, length - size, count) / self.stride
        firsts = [int(np.ceil(start)) * self.stride for start in starts]
        return [slice(first, min(first + size, length)) for first in firsts]

    def num_tiles(self, shape: tuple[int, int]) -> tuple[int, int]:
        """How many along y and x."""
        return len(self.spans(shape[0], 0)), len(self.spans(shape[1], 1))


def in_tiles(run: Run, rain: Maps, tiling: Tiling) -> list[Maps]:
    """As `run(rain)`, tile by tile: in memory are the whole answer and what one tile takes.

    Where tiles overlap their answers are averaged, with weights that add up to 1 and are 0 up to three eighths of
    the overlap from a tile's edge: what a network says of its edge is its worst.
    """
    H, W = rain.shape[-2:]
    rows, columns = tiling.spans(H, 0), tiling.spans(W, 1)
    y_weights, x_weights = _weights(rows, H, tiling.overlap), _weights(columns, W, tiling.overlap)
    whole: list[Maps] = []
    for y, wy in zip(rows, y_weights, strict=True):
        for x, wx in zip(columns, x_weights, strict=True):
            weight = (wy[:, None] * wx).astype(np.float32)
            for number, part in enumerate(run(rain[..., y, x])):
                if number == len(whole):
                    whole.append(np.zeros((*part.shape[:-2], H, W), np.float32))
                whole[number][..., y, x] += part * weight
    return whole


def _weights(spans: list[slice], length: int, overlap: int) -> list[npt.NDArray[np.float64]]:
    """Of each tile along one axis: they add up to 1 everywhere."""
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
    """0 up to three eighths of the overlap, 1 from five eighths on."""
    ramp: npt.NDArray[np.float64] = np.clip((distance - 3 / 8 * overlap) / max(overlap / 4, 1.0), 0.0, 1.0)
    return ramp
