"""Read samples at a `Place` in an archive: codes as stored until the batch is on its device, then mm/h."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NotRequired, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from raincast.data.channels.carried import Layout, StaticMaps, turn_vectors, values_of, vector_turn
from raincast.data.sampler import Place, TrainSampler
from raincast.data.source import Source

CODES_PER_MM_H = 100.0
Maps = TypeVar("Maps", bound=npt.NDArray[Any])


class Stored(TypedDict):
    """A window as stored: frames (T, H, W), int16 codes, or mm/h in float32 for archives without codes.

    filled (T,) bool: True if the archive has no frame; gain: factor on the rain; time: UTC of the newest input
    frame in seconds since 1970; y, x: top-left pixel within the archive; orientation: the orientation of the
    frames, see `orient`; source: the number of the archive. With channels, also channels: the encoded values of
    each by name (`carried.Carried`), and turn (2, 2) if some are vectors (`carried.vector_turn`).
    """

    frames: Tensor
    filled: Tensor
    gain: float
    time: int
    y: int
    x: int
    orientation: int
    source: int
    channels: NotRequired[Mapping[str, Mapping[str, Tensor]]]
    turn: NotRequired[Tensor]


class Sample(TypedDict):
    """Input and target in mm/h, NaN for missing.

    input (T_in, C, H, W), target (T_out, C, H, W), target_mask (the same, bool: True where observed); filled
    (T_in + T_out,) bool: True if the archive has no frame; scale (2,): the time step in minutes and the pixel size
    in km; time, y, x, source as in `Stored`. With channels, also past (T_in, P, H, W), with static channels
    repeated after the others, and future (T_out, F, H, W), in the channels' units.
    """

    input: Tensor
    target: Tensor
    target_mask: Tensor
    filled: Tensor
    scale: Tensor
    time: int
    y: int
    x: int
    source: int
    past: NotRequired[Tensor]
    future: NotRequired[Tensor]


class StoredRows(list[Stored]):
    """Windows whose frames are rows of one tensor (B, T, H, W)."""

    def __init__(self, frames: Tensor, rows: Iterable[Stored]) -> None:
        super().__init__(rows)
        self.frames = frames


def collate(rows: StoredRows) -> Stored:
    """Collate windows like torch's `default_collate`, but without copying the frames."""
    others = [{name: value for name, value in row.items() if name != "frames"} for row in rows]
    batch: Any = {"frames": rows.frames, **default_collate(others)}
    stored: Stored = batch
    return stored


class WindowDataset(Dataset[Stored]):
    """Windows of one or several archives, indexed by `Place`.

    A missing input frame repeats the frame before (or is missing if there is none); a missing target frame stays
    missing.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.input_steps = sources[0].input_steps
        self.num_steps = self.input_steps + sources[0].lead_steps
        self.scales = torch.tensor(
            [[source.every * source.archive.step_minutes, source.archive.grid.pixel_km] for source in sources]
        )
        self.coded = all(source.archive.coded for source in sources)  # all frames of a batch have one dtype
        bound = sources[0].channels
        self.channels = None if bound is None else bound.channels
        self.layouts: dict[str, Layout] = {}
        for source in sources:
            for name, layout in source.layouts().items():
                self.layouts[name] = layout.joined(self.layouts.get(name, layout))

    def __getstate__(self) -> dict[str, Any]:
        """Leave device tensors out of the pickle: loading processes do not decode."""
        return {name: value for name, value in self.__dict__.items() if name != "_static"}

    def __getitem__(self, place: Place) -> Stored:
        """Read one window as stored."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> "StoredRows":
        """Read the windows of a batch, all of one size, each into its row."""
        height, width = places[0].height, places[0].width
        shape = (len(places), self.num_steps, height, width)
        frames = _memory_for(shape, torch.int16 if self.coded else torch.float32)
        return StoredRows(frames, [self._read(place, row) for place, row in zip(places, frames, strict=True)])

    def batch(self, places: Sequence[Place]) -> Stored:
        """Return the windows of a batch, (B, T, H, W)."""
        return collate(self.__getitems__(places))

    def _read(self, place: Place, frames: Tensor) -> Stored:
        """Read one window into `frames` (T, H, W)."""
        source = self.sources[place.source]
        y, x = slice(place.y, place.y + place.height), slice(place.x, place.x + place.width)
        upright = unturned(frames.numpy(), place.orientation)
        filled = source.read(place.start, y, x, out=upright)
        for step in range(1, self.input_steps):
            if filled[step]:
                upright[step] = upright[step - 1]
        stored = Stored(
            frames=frames,
            filled=torch.from_numpy(filled),
            gain=place.gain,
            time=int(source.newest(place.start).astype("datetime64[s]").astype(np.int64)),
            y=place.y,
            x=place.x,
            orientation=place.orientation,
            source=place.source,
        )
        if self.channels is not None:
            self._add_channels(stored, source, place, y, x)
        return stored

    def _add_channels(self, stored: Stored, source: Source, place: Place, y: slice, x: slice) -> None:
        """Add channels oriented like the rain. Vectors are rotated on the device, after decoding to one unit."""
        assert self.channels is not None
        carried: dict[str, Any] = source.carry_channels(place.start, y, x, self.layouts)
        stored["channels"] = {
            name: {
                key: torch.from_numpy(orient(part, place.orientation) if key == "frames" else part)
                for key, part in parts.items()
            }
            for name, parts in carried.items()
        }
        if any(self.channels.pairs.values()):
            grid = source.archive.grid
            quarters, mirrored = _turns(place.orientation, square=place.height == place.width)
            signs = (_direction(grid.x), _direction(grid.y))
            stored["turn"] = torch.from_numpy(vector_turn(quarters, mirrored=mirrored, signs=signs))

    def sample(self, place: Place) -> Sample:
        """Read one window in mm/h."""
        stored: Any = self[place]
        batch: Any = self.decode(default_collate([stored]))
        one: Any = {name: value[0] for name, value in batch.items()}
        one.update({name: stored[name] for name in ("time", "y", "x", "source")})
        sample: Sample = one
        return sample

    def decode(self, batch: Stored) -> Sample:
        """Decode a stored batch (B, T, H, W) to mm/h (B, T, 1, H, W) on its device."""
        frames = batch["frames"]
        if frames.dtype == torch.int16:
            # a quotient is rounded only once: code 50 is exactly 0.5 mm/h and reaches that threshold
            rain = frames / CODES_PER_MM_H
            # NaN for negative codes, much faster on a CPU than torch.where
            torch.nn.functional.threshold(rain, -0.5 / CODES_PER_MM_H, torch.nan, inplace=True)
        else:
            rain = frames.clone()
        gain = torch.as_tensor(batch["gain"], dtype=rain.dtype, device=rain.device)
        rain = rain.mul_(gain[:, None, None, None]).unsqueeze(2)
        target = rain[:, self.input_steps :]
        sample = Sample(
            input=rain[:, : self.input_steps],
            target=target,
            target_mask=target.isnan().logical_not_(),  # rates are never infinite
            filled=batch["filled"],
            scale=self.scales.to(rain.device)[torch.as_tensor(batch["source"], device=rain.device)],
            time=batch["time"],
            y=batch["y"],
            x=batch["x"],
            source=batch["source"],
        )
        if self.channels is not None:
            self._decode_channels(batch, sample)
        return sample

    def _decode_channels(self, batch: Any, sample: Sample) -> None:
        """Add past and future to the sample, in the channels' units."""
        assert self.channels is not None
        names, pairs = self.channels, self.channels.pairs
        values = {name: values_of(carried) for name, carried in batch["channels"].items()}
        groups: dict[str, Tensor] = {}
        if names.past:
            groups["past"] = torch.stack([values[name][:, : self.input_steps] for name in names.past], dim=2)
        if names.future:
            groups["future"] = torch.stack([values[name][:, self.input_steps :] for name in names.future], dim=2)
        if names.static:
            groups["static"] = self._static.cut(batch)[:, None]
        for name, maps in groups.items():
            if pairs[name]:
                turn_vectors(maps, pairs[name], batch["turn"])
        if names.future:
            sample["future"] = groups["future"]
        past = [groups[name] for name in ("past", "static") if name in groups]
        sample["past"] = torch.cat([part.expand(-1, self.input_steps, -1, -1, -1) for part in past], dim=2)

    @cached_property
    def _static(self) -> StaticMaps:
        bound = [source.channels for source in self.sources]
        return StaticMaps([channels.static_maps() for channels in bound if channels is not None])


def _direction(axis: npt.NDArray[np.float64]) -> float:
    return 1.0 if axis.size < 2 or axis[1] > axis[0] else -1.0


def _turns(orientation: int, *, square: bool) -> tuple[int, bool]:
    """Return the number of quarter turns, and whether mirroring follows."""
    quarters = orientation // 2
    return quarters if square else 2 * (quarters % 2), orientation % 2 == 1


def _memory_for(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor; in a loading process in shared memory, as torch's collate does."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage: Any = torch.UntypedStorage
    shared = storage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(shared).view(shape)


def orient(frames: Maps, orientation: int) -> Maps:
    """Rotate frames (…, H, W) by orientation // 2 quarter turns, and mirror them if orientation is odd.

    Frames that are not square keep their shape: they are rotated by half turns only.
    """
    quarters, mirrored = _turns(orientation, square=frames.shape[-2] == frames.shape[-1])
    turned: Any = np.rot90(frames, quarters, axes=(-2, -1))
    oriented: Any = np.ascontiguousarray(turned[..., ::-1] if mirrored else turned)
    return oriented  # type: ignore[no-any-return]


def unturned(oriented: Maps, orientation: int) -> Maps:
    """Return a view of frames from `orient` in their original orientation."""
    quarters, mirrored = _turns(orientation, square=oriented.shape[-2] == oriented.shape[-1])
    upright: Any = np.rot90(oriented[..., ::-1] if mirrored else oriented, -quarters, axes=(-2, -1))
    return upright  # type: ignore[no-any-return]


class ResumableLoader(DataLoader[Stored]):
    """Batches of a `TrainSampler`, which draws an epoch from (seed, epoch) alone.

    The state is the epoch and the number of its samples that all ranks together have trained on. On resuming, the
    same epoch is drawn again and these samples are skipped. No worker state is needed, and a run may resume with
    another number of workers or ranks, or another batch size. `num_done` returns this rank's number of finished
    batches.
    """

    sampler: TrainSampler
    num_done: Callable[[], int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which Lightning puts into checkpoints."""
        assert self.num_done is not None and self.batch_size is not None
        return {
            "epoch": self.sampler.epoch,
            "num_samples": self.num_done() * self.batch_size * self.sampler.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume in that epoch and skip the samples that were trained on."""
        assert self.batch_size is not None
        whole = len(self) * self.batch_size * self.sampler.world_size
        epoch, num_samples = state["epoch"], state["num_samples"]
        self.sampler.go_on(*((epoch, num_samples) if num_samples < whole else (epoch + 1, 0)))
