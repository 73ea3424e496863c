"""The windows of a Dataset of frames, for scoring without an archive on disk."""

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr

from raincast import schema
from raincast.data.dataset import Sample
from raincast.data.windows import frame_slots, window_starts


def newest_frames(frames: xr.Dataset, *, input_steps: int, lead_steps: int, every: int = 1) -> list[int]:
    """Return the indices of the newest input frames of every `every`-th window without missing frames.

    Raises ValueError if there is none.
    """
    times, step_minutes = frames[schema.TIME].values, schema.find_step_minutes(frames)
    step, num_frames = schema.step_timedelta(step_minutes), input_steps + lead_steps
    starts = window_starts(times, step, num_frames)[::every]
    if not starts.size:
        first, last = np.datetime_as_string(times[[0, -1]], unit="m")
        raise ValueError(
            f"No {num_frames} consecutive frames ({input_steps} to forecast from, {lead_steps} to compare with), "
            f"{step_minutes:g} min apart, are among the {times.size} from {first} to {last} UTC: lower "
            "lead_steps, or give more frames."
        )
    return [int(n) for n in np.searchsorted(frame_slots(times, step), starts) + input_steps - 1]


def windows_of(frames: xr.Dataset, newest: list[int], *, input_steps: int, lead_steps: int) -> Iterator[Sample]:
    """Yield the windows around the frames `newest` (ascending), each a batch of one; every frame is read once."""
    rain, times = frames[schema.RAIN].transpose(schema.TIME, schema.Y, schema.X), frames[schema.TIME].values
    scale = torch.tensor([[schema.find_step_minutes(frames), schema.grid_of(frames).pixel_km]])
    read: dict[int, torch.Tensor] = {}
    for last in newest:
        wanted = range(last + 1 - input_steps, last + 1 + lead_steps)
        read = {number: frame for number, frame in read.items() if number in wanted}
        fresh = slice(max(read, default=wanted[0] - 1) + 1, wanted[-1] + 1)
        values = np.asarray(rain[fresh].values, np.float32)
        read |= {fresh.start + k: torch.from_numpy(frame) for k, frame in enumerate(values)}
        window = torch.stack([read[number] for number in wanted])[None, :, None]
        target = window[:, input_steps:]
        yield Sample(
            input=window[:, :input_steps],
            target=target,
            target_mask=~target.isnan(),
            filled=torch.zeros((1, len(wanted)), dtype=torch.bool),
            scale=scale,
            time=torch.tensor([int(times[last].astype("datetime64[s]").astype(np.int64))]),  # type: ignore[typeddict-item]  # as in a batch
            y=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
            x=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
            source=torch.zeros(1, dtype=torch.int64),  # type: ignore[typeddict-item]
        )
