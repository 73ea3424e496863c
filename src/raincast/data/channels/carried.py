"""Encoded channels: sent to the device as stored, and decoded there.

A field is sent as the frames of its files that a window needs, each once, in the numbers of the file. The device
scales them and interpolates in time. Static maps are already on the device; a sample only has its position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from raincast.data.channels import Times, Values

CODE_DTYPES = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))
"""Dtypes that are sent as stored, as is float32; values of other types become float32 when they are read."""


class Carried(TypedDict):
    """An encoded channel: `frames` (K, H, W), codes or float32, and how to decode them to values at T times.

    packing (K, 4) float64: scale, offset and two codes for missing (NaN: none) of each frame of codes. first (T,)
    int64: the frame of each time, −1 for none; without it, K is T. second (T,) int64 and share (T,) float32: the
    value is (1 − share) · first + share · second; both are the same frame if the share is 0.
    """

    frames: npt.NDArray[Any]
    packing: NotRequired[npt.NDArray[np.float64]]
    first: NotRequired[npt.NDArray[np.int64]]
    second: NotRequired[npt.NDArray[np.int64]]
    share: NotRequired[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """Common layout of a field in a batch: maximum number of frames, dtype, and whether to interpolate in time."""

    num_frames: int
    dtype: np.dtype[Any]
    means: bool

    def joined(self, other: "Layout") -> "Layout":
        """Return a layout that fits the samples of both."""
        same = self.dtype == other.dtype
        return Layout(
            max(self.num_frames, other.num_frames),
            self.dtype if same else np.dtype(np.float32),
            self.means or other.means,
        )


@runtime_checkable
class Carrier(Protocol):
    """A channel on one grid that is encoded as stored."""

    def layout(self, times: Times) -> Layout:
        """Return the layout for all windows as long as `times`."""

    def carry(self, times: Times, y: slice, x: slice, layout: Layout) -> Carried:
        """Return the encoded window at `times` in `layout`, which may be wider than this channel's own."""


def values_of(carried: Mapping[str, Tensor]) -> Float[Tensor, "b t h w"]:
    """Decode a batch of `Carried` on its device to values in the channel's unit, NaN for missing."""
    frames = carried["frames"]
    if "packing" in carried:
        frames = unpacked(frames, carried["packing"])
    if "first" not in carried:
        return frames
    first = carried["first"]
    batch = torch.arange(len(first), device=first.device)[:, None]
    values = frames[batch, first.clamp(min=0)]
    if "share" in carried:
        share = carried["share"][:, :, None, None]
        values.mul_(1 - share).add_(frames[batch, carried["second"]].mul_(share))
    return values.masked_fill_((first < 0)[:, :, None, None], torch.nan)


def unpacked(frames: Tensor, packing: Float[Tensor, "*k 4"]) -> Float[Tensor, "*k h w"]:
    """Decode codes to scale · code + offset, NaN for missing, in float64 and rounded to the nearest float32."""
    codes = frames.to(torch.float64)
    scale, offset, *fills = packing[..., None, None].unbind(-3)
    values = (codes * scale).add_(offset).to(torch.float32)
    for fill in fills:
        values.masked_fill_(codes == fill, torch.nan)
    return values


class StaticMaps:
    """The static channels (S, H, W) of several archives, kept on the device once and cropped there."""

    def __init__(self, maps: Sequence[Values]) -> None:
        self.maps = maps
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def cut(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "b s h w"]:
        """Return the maps of a batch of `Stored`, oriented like its rain."""
        y, x, source, orientation = (batch[name] for name in ("y", "x", "source", "orientation"))
        pixels, widths, firsts = self._on(y.device)
        height, width = batch["frames"].shape[-2:]
        rows, columns = _origins(orientation, height, width)
        rows, columns = rows + y[:, None, None], columns + x[:, None, None]
        # the pixels of all archives are in one row, so that indexing needs no synchronisation with the device
        places = firsts[source][:, None, None] + rows * widths[source][:, None, None] + columns
        return pixels[:, places].transpose(0, 1)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._there:
            pixels = [torch.from_numpy(maps).flatten(1) for maps in self.maps]
            sizes = np.array([part.shape[1] for part in pixels])
            self._there[device] = (
                (pixels[0] if len(pixels) == 1 else torch.cat(pixels, dim=1)).to(device),
                torch.tensor([maps.shape[-1] for maps in self.maps], device=device),
                torch.from_numpy(np.cumsum(sizes) - sizes).to(device),
            )
        return self._there[device]


def _origins(orientation: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the source row and column of each pixel after `dataset.orient`, (B, H, W) each."""
    quarters, mirrored = orientation // 2, orientation % 2 == 1
    if height != width:
        quarters = quarters % 2 * 2
    quarters, mirrored = quarters[:, None, None], mirrored[:, None, None]
    row = torch.arange(height, device=orientation.device)[:, None]
    column = torch.arange(width, device=orientation.device)
    column = torch.where(mirrored, width - 1 - column, column)
    odd = quarters % 2 == 1
    rows, columns = torch.where(odd, column, row), torch.where(odd, row, column)
    return (
        torch.where(quarters >= 2, height - 1 - rows, rows),
        torch.where((quarters == 1) | (quarters == 2), width - 1 - columns, columns),
    )


def vector_turn(quarters: int, *, mirrored: bool, signs: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Return the matrix (2, 2) for x and y components of vectors when maps are rotated and then mirrored.

    Each row has one nonzero entry, 1 or −1. `signs` are the directions in which x and y grow with column and row:
    (1, −1) if the first row is the northernmost.
    """
    column, row = np.diag(signs).astype(np.float32)
    for _ in range(quarters % 4):
        # np.rot90 moves (row, column) to (−column, row)
        column, row = row, -column
    return np.stack([(-column if mirrored else column) * signs[0], row * signs[1]])


def turn_vectors(maps: Tensor, pairs: Sequence[tuple[int, int]], turn: Float[Tensor, "b 2 2"]) -> None:
    """Rotate the vectors of maps (B, …, C, H, W) by `vector_turn`, in place; `pairs` are channels of x and y."""
    wide = (-1, *(1 for _ in range(maps.ndim - 2)))
    swapped = (turn[:, 0, 0] == 0).reshape(wide)
    # each row has one nonzero entry; a full product would spread NaN from one component to the other
    x_sign, y_sign = (part.reshape(wide) for part in turn.sum(dim=-1).unbind(-1))
    for x, y in pairs:
        u, v = maps[..., x, :, :], maps[..., y, :, :]
        turned = torch.where(swapped, v, u) * x_sign, torch.where(swapped, u, v) * y_sign
        maps[..., x, :, :], maps[..., y, :, :] = turned
