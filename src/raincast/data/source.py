"""Archives as sources of samples: each at the step of the samples, with channels on its own grid."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.archive import Archive
from raincast.archive.rates import CODE_MM_H, MISSING_CODE, nearest_codes
from raincast.data.channels import Site
from raincast.data.channels.carried import Carried, Layout
from raincast.data.channels.declared import BoundChannels, Channels
from raincast.data.windows import SPLITS, Split, SplitWindows, frame_slots, split_windows
from raincast.schema import Meaning

log = logging.getLogger(__name__)

LONGEST_BESIDE_MOMENTARY = 15.0
"""Longest means, in minutes, that may be mixed with momentary rates: the steps of radar composites."""
Frames = npt.NDArray[np.int16] | npt.NDArray[np.float32]
"""Frames as returned by `Archive.read_stored`."""


@dataclass(frozen=True, eq=False)
class Source:
    """Windows of `input_steps` + `lead_steps` steps, each of `every` frames of the archive.

    Means over the archive's step are averaged, ignoring missing frames if at least half are observed. Of momentary
    rates the last one of each step is taken. Slots and starts count the archive's own steps: a window may begin at
    any of them.
    """

    archive: Archive
    input_steps: int
    lead_steps: int
    every: int = 1
    channels: BoundChannels | None = None
    """The covariates."""

    @classmethod
    def at_step(
        cls,
        archive: Archive,
        step_minutes: float,
        *,
        input_steps: int,
        lead_steps: int,
        channels: BoundChannels | None = None,
    ) -> "Source":
        """Return a source with samples of `step_minutes`. Raises ValueError if the step does not divide it."""
        every = round(step_minutes / archive.step_minutes)
        if every < 1 or abs(every * archive.step_minutes - step_minutes) > 1e-6:
            raise ValueError(
                f"{archive.path} has a step of {archive.step_minutes:g} min, and {step_minutes:g} min, the step "
                "of data.archive, is not a multiple of it. Leave it out of data.more, or make it data.archive."
            )
        return cls(archive, input_steps, lead_steps, every, channels)

    @property
    def meaning(self) -> Meaning:
        """Return what the samples' rates are over time: means over the archive's step become means over theirs."""
        own = self.archive.meaning
        over_step = own.is_averaged and own.minutes == self.archive.step_minutes
        return replace(own, minutes=self.every * self.archive.step_minutes) if over_step else own

    @cached_property
    def _means(self) -> bool:
        """Return True if the rates are means over exactly the step, so that they can be averaged."""
        return self.archive.meaning.same_as(Meaning("mean", self.archive.step_minutes))

    def _span(self, num_steps: int) -> int:
        """Return the number of the archive's steps, first to last frame, that `num_steps` steps are made of."""
        return num_steps * self.every if self._means else (num_steps - 1) * self.every + 1

    @property
    def num_slots(self) -> int:
        """Return the number of the archive's steps that a window covers."""
        return self._span(self.input_steps + self.lead_steps)

    def split(self, split: Split, max_missing: int, *, needed: Sequence[str] = SPLITS) -> SplitWindows:
        """Return the windows of each split; `max_missing` counts the archive's frames.

        Raises ValueError if one of the `needed` splits has no window.
        """
        return split_windows(
            self.archive.times,
            self.archive.step,
            self.num_slots,
            split,
            identity=self.archive.identity,
            input_steps=self._span(self.input_steps),
            max_missing=max_missing,
            needed=needed,
        )

    def newest(self, start: int) -> np.datetime64:
        """Return the time of the newest input frame of the window that begins in slot `start`."""
        slot = start + self._span(self.input_steps) - 1
        newest: np.datetime64 = self.archive.times[0] + slot * self.archive.step
        return newest

    def step_times(self, start: int) -> npt.NDArray[np.datetime64]:
        """Return the valid times of the window's frames, (T,)."""
        steps = np.arange(1 - self.input_steps, self.lead_steps + 1)
        times: npt.NDArray[np.datetime64] = self.newest(start) + steps * (self.every * self.archive.step)
        return times

    def layouts(self) -> dict[str, Layout]:
        """Return the layouts of the windows' covariates."""
        return {} if self.channels is None else self.channels.layouts(self.step_times(0), self.input_steps)

    def carry_channels(self, start: int, y: slice, x: slice, layouts: Mapping[str, Layout]) -> dict[str, Carried]:
        """Return the window's covariates as stored, without static channels."""
        if self.channels is None:
            return {}
        return self.channels.carry(self.step_times(start), self.input_steps, y, x, layouts)

    def read(self, start: int, y: slice, x: slice, *, out: Frames) -> npt.NDArray[np.bool_]:
        """Read the frames of a window into `out`; return the mask (T,) of frames that the archive lacks.

        `out` is (T, H, W), codes for int16, else mm/h; it may be a view with any strides.
        """
        numbers = self._numbers[start : start + self.num_slots]
        absent: npt.NDArray[np.bool_] = numbers < 0
        if self.every == 1 and not absent.any():
            self._read_archive(numbers, y, x, out)
            return absent
        there = np.empty((numbers.size - int(absent.sum()), *out.shape[1:]), out.dtype)
        self._read_archive(numbers[~absent], y, x, there)
        frames = np.full(
            (numbers.size, *out.shape[1:]), MISSING_CODE if out.dtype == np.int16 else np.nan, out.dtype
        )
        frames[~absent] = there
        if self.every == 1 or not self._means:
            out[...] = frames[:: self.every]
            absent = absent[:: self.every]
        else:
            out[...] = _means(frames, self.every)
            absent = np.all(absent.reshape(-1, self.every), axis=1)
        return absent

    def _read_archive(self, numbers: npt.NDArray[np.int64], y: slice, x: slice, out: Any) -> None:
        """Read consecutive frames of the archive; slots without a frame in between do not matter."""
        if out.dtype == np.int16:
            self.archive.read_codes(int(numbers[0]), numbers.size, y=y, x=x, out=out)
        else:
            out[...] = self.archive.read(int(numbers[0]), numbers.size, y=y, x=x)

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int64]:
        """Return the frame number of each slot, −1 for none."""
        slots = frame_slots(self.archive.times, self.archive.step)
        numbers = np.full(int(slots[-1]) + 1, -1, np.int64)
        numbers[slots] = np.arange(slots.size)
        return numbers


def _means(frames: Frames, every: int) -> Frames:
    """Average groups of `every` frames over observed values; missing if fewer than half are observed."""
    coded = frames.dtype == np.int16
    groups = frames.reshape(-1, every, *frames.shape[1:])
    observed = groups >= 0 if coded else np.isfinite(groups)
    count = observed.sum(axis=1)
    sums = np.where(observed, groups, 0).sum(axis=1, dtype=np.float64)
    means = sums / np.maximum(count, 1)
    seen = 2 * count >= every
    if coded:
        return nearest_codes(np.where(seen, means * CODE_MM_H, np.nan))
    return np.where(seen, means, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Extra:
    """A further archive to train on, whose places are drawn `weight` times as often as by their rain alone.

    With `all`, all its windows are trained on, not only those that the split assigns to train. `channels`
    overrides arguments of channels for its grid, {NAME: {path: …}}.
    """

    archive: str
    weight: float = 1.0
    all: bool = False
    channels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a weight of 0 or less."""
        if not self.weight > 0:
            raise ValueError(f"data.more: weight={self.weight} of {self.archive} must be over 0.")


def open_sources(
    archive: Archive, more: Sequence[Extra], channels: Channels, *, input_steps: int, lead_steps: int
) -> list[Source]:
    """Return `archive` and the further ones as sources at its step. Raises ValueError if one does not fit."""
    archives = [(archive, {}), *((Archive.open(extra.archive), extra.channels) for extra in more)]
    sources = [
        Source.at_step(
            found,
            archive.step_minutes,
            input_steps=input_steps,
            lead_steps=lead_steps,
            channels=_bound(channels, found, others),
        )
        for found, others in archives
    ]
    for source in sources[1:]:
        _check_meaning(sources[0], source)
    return sources


def _check_meaning(first: Source, other: Source) -> None:
    """Raise ValueError if the rates cover different periods; only warn if momentary rates meet short means."""
    periods = [source.meaning.minutes or 0.0 for source in (first, other)]
    if abs(periods[0] - periods[1]) < 1e-3:
        return
    said = f"{first.archive.path} gives {first.meaning}, {other.archive.path} of data.more {other.meaning}"
    if 0.0 not in periods or max(periods) > LONGEST_BESIDE_MOMENTARY:
        raise ValueError(
            f"{said}. A network can learn only one: leave it out of data.more, or use archives of one kind."
        )
    log.warning("%s: the network learns from both as if they were the same.", said)


def _bound(channels: Channels, archive: Archive, others: Mapping[str, Mapping[str, Any]]) -> BoundChannels | None:
    """Bind the channels to the grid of `archive`, with its overrides; None if no channel is read from files."""
    if unknown := [name for name in others if name not in channels.declared]:
        there = ", ".join(channels.declared) or "none"
        raise ValueError(
            f"data.more: channels {', '.join(unknown)} of {archive.path} are not declared; declared are: {there}."
        )
    if not channels.read_any:
        return None
    declared: dict[str, Any] = {**channels.declared}
    own = {name: replace(channel, **others.get(name, {})) for name, channel in declared.items()}
    return Channels(own).bind(Site.of(archive))
