"""A `Place` in an archive → a sample: as stored until the batch is on its device, then tensors in mm/h."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raincast.data.sampler import Place
from raincast.data.source import Frames, Source

CODES_PER_MM_H = 100.0


class Stored(TypedDict):
    """A window as it lies on disk: frames (T, H, W), int16 codes or, of foreign archives, mm/h in float32.

    filled (T,) bool: True where the archive has no frame; gain: factor on the rain; time: UTC of the newest input
    frame in seconds since 1970; y, x: top-left pixel within the archive.
    """

    frames: Tensor
    filled: Tensor
    gain: float
    time: int
    y: int
    x: int


class Sample(TypedDict):
    """What the network sees and what it should have said, in mm/h with NaN for missing.

    input (T_in, C, H, W), target (T_out, C, H, W), target_mask (the same, bool: True where observed); filled
    (T_in + T_out,) bool: True where the archive has no frame; time, y, x as in `Stored`.
    """

    input: Tensor
    target: Tensor
    target_mask: Tensor
    filled: Tensor
    time: int
    y: int
    x: int


class WindowDataset(Dataset[Stored]):
    """Windows of one or several archives, indexed by `Place`.

    Of missing frames those of the input repeat the frame before (missing, where there is none); those of the
    target are missing.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.input_steps = sources[0].input_steps
        self.coded = all(source.archive.coded for source in sources)  # a batch holds one kind

    def __getitem__(self, place: Place) -> Stored:
        """Read one window, as it is stored."""
        source = self.sources[place.source]
        y, x = slice(place.y, place.y + place.height), slice(place.x, place.x + place.width)
        frames, filled = source.read(place.start, y, x, coded=self.coded)
        for step in range(1, self.input_steps):
            if filled[step]:
                frames[step] = frames[step - 1]
        return Stored(
            frames=torch.from_numpy(orient(frames, place.orientation)),
            filled=torch.from_numpy(filled),
            gain=place.gain,
            time=int(source.newest(place.start).astype("datetime64[s]").astype(np.int64)),
            y=place.y,
            x=place.x,
        )

    def sample(self, place: Place) -> Sample:
        """Read one window, in mm/h."""
        stored: dict[str, Any] = {**self[place]}
        batch: Any = {name: torch.as_tensor(value)[None] for name, value in stored.items()}
        one: Any = {name: value[0] for name, value in self.decode(batch).items()}  # type: ignore[index]
        one.update({name: stored[name] for name in ("time", "y", "x")})
        sample: Sample = one
        return sample

    def decode(self, batch: Stored) -> Sample:
        """A batch as stored, (B, T, H, W) → in mm/h, (B, T, 1, H, W), on the device where it is."""
        frames = batch["frames"]
        rain = frames.to(torch.float32)
        if frames.dtype == torch.int16:
            # the quotient is rounded once: 50 codes are exactly 0.5 mm/h, and at that threshold
            rain = torch.where(frames < 0, torch.nan, rain / CODES_PER_MM_H)
        gain = torch.as_tensor(batch["gain"], dtype=rain.dtype, device=rain.device)
        rain = (rain * gain[:, None, None, None]).unsqueeze(2)
        target = rain[:, self.input_steps :]
        return Sample(
            input=rain[:, : self.input_steps],
            target=target,
            target_mask=torch.isfinite(target),
            filled=batch["filled"],
            time=batch["time"],
            y=batch["y"],
            x=batch["x"],
        )


def orient(frames: Frames, orientation: int) -> Frames:
    """Frames (T, H, W) mirrored (odd numbers) and turned by orientation // 2 quarter turns.

    Frames that are not square keep their shape: they are turned by half turns only.
    """
    quarters = orientation // 2
    if frames.shape[1] != frames.shape[2]:
        quarters = 2 * (quarters % 2)
    turned: Any = np.rot90(frames, quarters, axes=(1, 2))
    turned = np.ascontiguousarray(turned[:, :, ::-1] if orientation % 2 else turned)
    oriented: Frames = turned
    return oriented
