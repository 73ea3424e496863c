"""A `Place` in an archive → a sample of tensors."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raincast.archive import Archive
from raincast.data.sampler import Place


class Sample(TypedDict):
    """What the network sees and what it should have said, in mm/h with NaN for missing.

    input (T_in, C, H, W), target (T_out, C, H, W), target_mask (the same, bool: True where observed);
    time: UTC of the newest input frame in seconds since 1970; y, x: top-left pixel within the archive.
    """

    input: Tensor
    target: Tensor
    target_mask: Tensor
    time: int
    y: int
    x: int


class WindowDataset(Dataset[Sample]):
    """Windows of an archive, indexed by `Place`."""

    def __init__(self, archive: Archive, *, input_steps: int, lead_steps: int) -> None:
        self.archive = archive
        self.input_steps = input_steps
        self.lead_steps = lead_steps

    def __getitem__(self, place: Place) -> Sample:
        """Read one window."""
        frames = self.archive.read(
            place.start,
            self.input_steps + self.lead_steps,
            y=slice(place.y, place.y + place.height),
            x=slice(place.x, place.x + place.width),
        )
        rain = torch.from_numpy(orient(frames, place.orientation)).unsqueeze(1)
        target = rain[self.input_steps :]
        newest = self.archive.times[place.start + self.input_steps - 1]
        return Sample(
            input=rain[: self.input_steps],
            target=target,
            target_mask=torch.isfinite(target),
            time=int(newest.astype("datetime64[s]").astype(np.int64)),
            y=place.y,
            x=place.x,
        )


def orient(frames: npt.NDArray[np.float32], orientation: int) -> npt.NDArray[np.float32]:
    """Frames (T, H, W) mirrored (odd numbers) and turned by orientation // 2 quarter turns.

    Frames that are not square keep their shape: they are turned by half turns only.
    """
    quarters = orientation // 2
    if frames.shape[1] != frames.shape[2]:
        quarters = 2 * (quarters % 2)
    turned = np.rot90(frames, quarters, axes=(1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if orientation % 2 else turned)
