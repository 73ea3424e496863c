"""Channels on their way to the device: encoded as stored, decoded there.

A field is carried as those of its own frames that a window needs, each once, in the numbers of its file; scaling
them and taking means in time is left to the device. Static maps are there already: a sample says where it lies.
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
"""What travels as it is stored, beside float32; values of other types become float32 when they are read."""


class Carried(TypedDict):
    """A channel on its way: `frames` (K, H, W), codes or float32, and what makes values at T times of them.

    packing (K, 4) float64: scale, offset and two codes for missing (NaN: none) of each frame of codes. first (T,)
    int64: the frame of each time, −1 where there is none; without it, K is T. second (T,) int64 and share (T,)
    float32: the value is (1 − share) · first + share · second, the same frame twice where the share is 0.
    """

    frames: npt.NDArray[Any]
    packing: NotRequired[npt.NDArray[np.float64]]
    first: NotRequired[npt.NDArray[np.int64]]
    second: NotRequired[npt.NDArray[np.int64]]
    share: NotRequired[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Layout:
    """What is alike of a field in all samples of a batch: the most frames, their type, whether means are taken."""

    num_frames: int
    dtype: np.dtype[Any]
    means: bool

    def joined(self, other: "Layout") -> "Layout":
        """For the samples of both."""
        same = self.dtype == other.dtype
        return Layout(
            max(self.num_frames, other.num_frames),
            self.dtype if same else np.dtype(np.float32),
            self.means or other.means,
        )


@runtime_checkable
class Carrier(Protocol):
    """A channel on one grid that is carried as it is stored."""

    def layout(self, times: Times) -> Layout:
        """For all windows that last as long as `times`."""

    def carry(self, times: Times, y: slice, x: slice, layout: Layout) -> Carried:
        """The window at `times`, in this layout or a wider one."""


def values_of(carried: Mapping[str, Tensor]) -> Float[Tensor, "b t h w"]:
    """A batch of `Carried` → values in the channel's unit, NaN where there is none, on the device where it is."""
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
    """Codes → scale · code + offset, NaN where they say missing: the nearest float32, as it is done in float64."""
    codes = frames.to(torch.float64)
    scale, offset, *fills = packing[..., None, None].unbind(-3)
    values = (codes * scale).add_(offset).to(torch.float32)
    for fill in fills:
        values.masked_fill_(codes == fill, torch.nan)
    return values


class StaticMaps:
    """The static channels (S, H, W) of each of several archives: on a device once, and cut out there."""

    def __init__(self, maps: Sequence[Values]) -> None:
        self.maps = maps
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def cut(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "b s h w"]:
        """The maps of a batch of `Stored`, turned as its rain is."""
        y, x, source, orientation = (batch[name] for name in ("y", "x", "source", "orientation"))
        pixels, widths, firsts = self._on(y.device)
        height, width = batch["frames"].shape[-2:]
        rows, columns = _origins(orientation, height, width)
        rows, columns = rows + y[:, None, None], columns + x[:, None, None]
        # of all archives in one row, so that nothing has to be asked of the device
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
    """Of each pixel that `dataset.orient` gives, the row and the column that it comes from: (B, H, W) each."""
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
    """What a vector's x and y components become when maps are turned by so many quarters, then mirrored: (2, 2).

    One number of a row is not 0: 1 or −1. `signs` are the directions in which x and y grow with the column and the
    row: (1, −1) where the first row is the northernmost.
    """
    column, row = np.diag(signs).astype(np.float32)
    for _ in range(quarters % 4):
        # what lay at (row, column) lies at (−column, row) after np.rot90
        column, row = row, -column
    return np.stack([(-column if mirrored else column) * signs[0], row * signs[1]])


def turn_vectors(maps: Tensor, pairs: Sequence[tuple[int, int]], turn: Float[Tensor, "b 2 2"]) -> None:
    """Turn the vectors of maps (B, …, C, H, W) by `vector_turn`, in place; `pairs`: the channels of x and y."""
    wide = (-1, *(1 for _ in range(maps.ndim - 2)))
    swapped = (turn[:, 0, 0] == 0).reshape(wide)
    # each row has one number that is not 0: a product with both would spread what is missing of one component
    x_sign, y_sign = (part.reshape(wide) for part in turn.sum(dim=-1).unbind(-1))
    for x, y in pairs:
        u, v = maps[..., x, :, :], maps[..., y, :, :]
        turned = torch.where(swapped, v, u) * x_sign, torch.where(swapped, u, v) * y_sign
        maps[..., x, :, :], maps[..., y, :, :] = turned
