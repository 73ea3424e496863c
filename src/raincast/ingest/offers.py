"""The frames that files offer, as arrays: a year of frames takes megabytes, not a Python object each."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast import schema

Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, eq=False)
class Offers:
    """Frames by time, quality, file, then place in the file: of those with the same time the first is preferred.

    `times` (N,) are valid times in ns, `files` (N,) number the files in the order they were given, `indices`
    (N,) the frames within their file.
    """

    times: Times
    files: npt.NDArray[np.intp]
    indices: npt.NDArray[np.intp]

    @classmethod
    def of_files(cls, times: dict[int, Times], quality: dict[int, float] | None = None) -> "Offers":
        """All frames of files, by their number; at least one frame. A `quality` that is not given is 0."""
        files = np.concatenate([np.full(of_file.size, file) for file, of_file in times.items()])
        indices = np.concatenate([np.arange(of_file.size) for of_file in times.values()])
        joined = np.concatenate(list(times.values())).astype("datetime64[ns]")
        of_file = quality or {}
        worse = np.concatenate([np.full(own.size, -of_file.get(file, 0.0)) for file, own in times.items()])
        order = np.lexsort((indices, files, worse, joined))
        return cls(joined[order], files[order].astype(np.intp), indices[order].astype(np.intp))

    @classmethod
    def joined(cls, one: "Offers", other: "Offers") -> "Offers":
        """Both, in the order of time; of the same time those of `one` come first."""
        times, files, indices = (
            np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("times", "files", "indices")
        )
        order = np.argsort(times, kind="stable")
        return cls(times[order], files[order], indices[order])

    def __len__(self) -> int:
        """Number of frames, repeated times included."""
        return int(self.times.size)

    def take(self, which: npt.NDArray[np.bool_] | slice) -> "Offers":
        """Some of them, in the same order."""
        return Offers(self.times[which], self.files[which], self.indices[which])

    def split_by_step(self, step_minutes: float, start: np.datetime64 | None) -> tuple["Offers", "Offers"]:
        """Those on the step, and those off it: counted from `start`, or where that is None by the commonest."""
        step = schema.step_timedelta(step_minutes).astype(np.int64)
        phases = self.times.astype(np.int64) % step
        if start is not None:
            phase = start.astype("datetime64[ns]").astype(np.int64) % step
        else:
            values, counts = np.unique(phases, return_counts=True)
            phase = values[counts.argmax()]
        return self.take(phases == phase), self.take(phases != phase)

    def repeats(self) -> npt.NDArray[np.bool_]:
        """Which have the time of the one before."""
        repeats = np.zeros(len(self), bool)
        repeats[1:] = self.times[1:] == self.times[:-1]
        return repeats

    def by_day(self) -> list[tuple[np.datetime64, "Offers"]]:
        """UTC days that have frames, and their frames."""
        days, starts = np.unique(self.times.astype("datetime64[D]"), return_index=True)
        bounds = [*starts, len(self)]
        return [(day, self.take(slice(bounds[i], bounds[i + 1]))) for i, day in enumerate(days)]
