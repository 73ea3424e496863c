"""Replay a day of radar at high speed into the folder of a watcher, with everything that can go wrong.

    python benchmarks/replay.py --archive data/smhi [--start 2015-07-28] [--hours 24] [--seed 0]

Each frame becomes a file that arrives about a minute after its time, on a clock that runs as fast as the watcher.
Depending on a seed, some files are removed, delayed (by minutes or by an hour), damaged (some are sent again
later, undamaged), duplicated under another name, written in two pieces, or contain the image of the previous step.
In the middle the watcher is stopped and another one continues. For some minutes each, the folder is gone, the
clock is an hour behind or ahead, and with `--small-disk` (a small file system: `mount -t tmpfs -o size=64m none
FOLDER`) the disk is full.

At the end every due forecast must exist and no other, each equal to the network's forecast from the true frames
that had come, and the status must be consistent. Each new state of the page is compared with forecasts and frames,
and `/health` is queried at each step of the clock. The clock counts the time that the work takes, so that
deadlines are real. Memory is reported.

The network is untrained unless `--checkpoint` names one, as the watcher is under test.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr
from hydra import compose, initialize_config_dir
from onlooker import NotingSite, Onlooker, places_in
from timing import write_json
from untrained import write_checkpoint

from raincast import assembly, schema
from raincast.archive import Archive
from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.forecasting import forecast_name
from raincast.forecasting.gaps import on_times
from raincast.live import Settings, Watcher
from raincast.live.settings import seconds_of, time_of

POLL_S, SETTLE_S, MAX_AGE_MINUTES = 15.0, 20.0, 20.0
USUAL_DELAY_S = (60.0, 100.0)
WORK_S = 30.0
"""Longest time in seconds for the work of one check of the folder."""
MARGIN_S = 150.0
"""No delay ends so close to the age limit that the moment of a check decides."""
MAX_DELAY_S = 7200.0
"""Longest delay of a file; half as long after that the replay ends."""
SHARES = {"removed": 0.04, "delayed": 0.08, "damaged": 0.05, "doubled": 0.08, "in_pieces": 0.1, "frozen": 0.02}


GONE, FULL, BEHIND, AHEAD = "folder gone", "full", "clock behind", "clock ahead"
CLOCK_ERROR_S = {BEHIND: -3600.0, AHEAD: 3600.0}


@dataclass(frozen=True)
class Trouble:
    """A fault of the machine between two true times, in seconds since 1970."""

    kind: str
    start: float
    end: float


def troubles_of(start: float, end: float, *, with_full_disk: bool) -> list[Trouble]:
    """Return two faults of each kind between `start` and `end`, none in the middle, when the watcher stops."""
    kinds = {GONE: 600.0, BEHIND: 900.0, AHEAD: 600.0} | ({FULL: 360.0} if with_full_disk else {})
    places = np.concatenate([np.linspace(0.1, 0.4, len(kinds)), np.linspace(0.55, 0.8, len(kinds))])
    return [
        Trouble(kind, at := start + place * (end - start), at + kinds[kind])
        for kind, place in zip([*kinds] * 2, places, strict=True)
    ]


@dataclass(frozen=True)
class Delivery:
    """A file content available under a name from `at` on.

    `good` means a complete file with the true frame of `time`.
    """

    at: float
    name: str
    content: bytes
    time: np.datetime64
    good: bool


@dataclass
class Plan:
    """What arrives when, and what was done to which frames."""

    deliveries: list[Delivery]
    fates: dict[str, list[np.datetime64]]

    def whole_at(self) -> dict[np.datetime64, float]:
        """Return when the first complete file of each frame is available."""
        at: dict[np.datetime64, float] = {}
        for delivery in self.deliveries:
            if delivery.good:
                at[delivery.time] = min(delivery.at, at.get(delivery.time, np.inf))
        return at

    def between(
        self, troubles: Sequence[Trouble], kinds: Sequence[str]
    ) -> dict[np.datetime64, tuple[float, float]]:
        """Return the earliest and latest time at which a watcher finishes each frame, given `kinds` of faults."""
        return {
            time: _hindered(at, [t for t in troubles if t.kind in kinds]) for time, at in self.whole_at().items()
        }


def _hindered(at: float, troubles: Sequence[Trouble]) -> tuple[float, float]:
    earliest, latest = at + SETTLE_S, at + SETTLE_S + 2 * POLL_S + WORK_S
    for trouble in troubles:
        if trouble.start <= earliest < trouble.end:
            earliest = trouble.end
        if trouble.start <= latest and at < trouble.end:
            # a forecast that failed waits twice as long each time
            again = trouble.end - at + 2 * POLL_S if trouble.kind == FULL else 0.0
            latest = max(latest, trouble.end + SETTLE_S + 2 * POLL_S + WORK_S + max(0.0, again))
    return earliest, latest


def plan(
    times: Sequence[np.datetime64], files: Sequence[bytes], frozen: Sequence[bytes | None], seed: int
) -> Plan:
    """Plan at least one delivery for most frames; `frozen[i]` is the previous image under the time of `i`."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([*SHARES, "usual"], size=len(times), p=[*SHARES.values(), 1 - sum(SHARES.values())])
    deliveries: list[Delivery] = []
    fates: dict[str, list[np.datetime64]] = {name: [] for name in [*SHARES, "usual"]}

    def deliver(at: float, content: bytes, frame: np.datetime64, *, good: bool, suffix: str = "") -> None:
        stamp = np.datetime_as_string(frame, unit="m").replace(":", "").replace("-", "")
        deliveries.append(Delivery(at, f"radar_{stamp}{suffix}.nc", content, frame, good))

    for number, (frame, whole) in enumerate(zip(times, files, strict=True)):
        at = seconds_of(frame) + rng.uniform(*USUAL_DELAY_S)
        kind = str(kinds[number])
        still = frozen[number]
        # an image that nobody has seen before cannot be recognised as old
        if kind == "frozen" and (still is None or str(kinds[number - 1]) not in ("usual", "in_pieces", "doubled")):
            kind = "usual"
        fates[kind].append(frame)
        if kind == "delayed":
            limit = 60.0 * MAX_AGE_MINUTES
            delay = (
                rng.uniform(300, limit - MARGIN_S)
                if rng.random() < 0.5
                else rng.uniform(limit + MARGIN_S, MAX_DELAY_S)
            )
            deliver(seconds_of(frame) + delay, whole, frame, good=True)
        elif kind == "damaged":
            deliver(at, damage(whole, rng), frame, good=False)
            if rng.random() < 0.5:
                deliver(at + rng.uniform(120, 600), whole, frame, good=True)
        elif kind == "doubled":
            deliver(at, whole, frame, good=True)
            deliver(at + rng.uniform(0, 600), whole, frame, good=True, suffix="_again")
        elif kind == "in_pieces":
            deliver(at, whole[: len(whole) // 2], frame, good=False)
            deliver(at + SETTLE_S / 2, whole, frame, good=True)
        elif kind == "frozen":
            assert still is not None
            deliver(at, still, frame, good=False)
        elif kind == "usual":
            deliver(at, whole, frame, good=True)
    return Plan(sorted(deliveries, key=lambda delivery: delivery.at), fates)


def damage(whole: bytes, rng: np.random.Generator) -> bytes:
    """Return a file that is truncated, lacks its head, or has noise in place of its content."""
    how = rng.integers(3)
    if how == 0:
        return whole[: int(rng.integers(0, len(whole) - 1))]
    if how == 1:
        return bytes(512) + whole[512:]
    return rng.bytes(len(whole))


class ReplayClock:
    """A clock that advances when somebody waits; files arrive as it does.

    At `stop_at` it asks the watcher to stop.
    """

    def __init__(
        self, start: float, folder: Path, deliveries: Sequence[Delivery], troubles: Sequence[Trouble], disk: "Disk"
    ) -> None:
        self._time, self.folder, self.away = start, folder, folder.with_name("away")
        self.waiting = list(deliveries)[::-1]
        self.stop_at: float | None = None
        self.memory: list[int] = []
        self.troubles, self.disk = troubles, disk
        self.trouble: Trouble | None = None
        self.look: Callable[[str], None] = lambda _: None
        self._woke = time.perf_counter()

    def true_time(self) -> float:
        """Return the time of the replay: the time waited, plus the time that the work has taken since."""
        return self._time + time.perf_counter() - self._woke

    def now(self) -> float:
        """Return the time of the watcher's clock."""
        return self.true_time() + (CLOCK_ERROR_S.get(self.trouble.kind, 0.0) if self.trouble else 0.0)

    def time_is_right(self) -> bool:
        """Return True if the watcher's clock is right."""
        return self.trouble is None or self.trouble.kind not in CLOCK_ERROR_S

    def wait(self, seconds: float, stop: Event) -> None:
        """Advance the clock, and put arriving files into the folder atomically, as a transfer does."""
        self.look(self.trouble.kind if self.trouble else "none")
        self._time = self.true_time() + seconds
        self._woke = time.perf_counter()
        self._change(next((t for t in self.troubles if t.start <= self._time < t.end), None))
        folder = self.away if self.trouble and self.trouble.kind == GONE else self.folder
        while self.waiting and self.waiting[-1].at <= self._time:
            delivery = self.waiting.pop()
            (folder / delivery.name).write_bytes(delivery.content)
        if self.stop_at is not None and self._time >= self.stop_at:
            self.stop_at = None
            stop.set()
        self.memory.append(resident_bytes())

    def _change(self, trouble: Trouble | None) -> None:
        if trouble is self.trouble:
            return
        kinds = (self.trouble and self.trouble.kind, trouble and trouble.kind)
        self.trouble = trouble
        if kinds[0] == GONE:
            self.away.rename(self.folder)
        if kinds[0] == FULL:
            self.disk.free()
        if kinds[1] == GONE:
            self.folder.rename(self.away)
        if kinds[1] == FULL:
            self.disk.fill()


class Disk:
    """A small file system that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.filler = folder / "filler"

    def fill(self) -> None:
        """Use up all free space, to the last byte."""
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            for block in (bytes(2**16), bytes(512), bytes(1)):
                with contextlib.suppress(OSError):
                    while file.write(block):
                        pass

    def free(self) -> None:
        """Free the space again."""
        self.filler.unlink()


class Noting:
    """A pipeline that records the times of missing frames for each of its forecasts.

    It keeps no frames, so that the memory is the watcher's; existing frames are immediately compared with the true
    ones (`wrong`).
    """

    def __init__(self, pipeline: Any, truth: xr.Dataset, output: Path) -> None:
        self._pipeline, self._truth, self._output = pipeline, truth, output
        self.inputs: dict[np.datetime64, tuple[np.datetime64, ...]] = {}
        self.wrong: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else."""
        return getattr(self._pipeline, name)

    def __call__(self, frames: xr.Dataset) -> xr.Dataset:
        """Return the forecast."""
        times = frames[schema.TIME].values.astype("datetime64[ns]")
        forecast: xr.Dataset = self._pipeline(frames)
        if (self._output / f"{forecast_name(times[-1])}.nc").exists():
            self.wrong.append(f"{forecast_name(times[-1])} was made twice")
        absent = []
        for frame_time, rain in zip(times, frames[schema.RAIN].values, strict=True):
            if np.isnan(rain).all():
                absent.append(frame_time)
            elif not np.array_equal(rain, self._truth[schema.RAIN].sel(time=frame_time).values, equal_nan=True):
                self.wrong.append(
                    f"{forecast_name(times[-1])} saw another image of {frame_time} than the true one"
                )
        self.inputs[times[-1]] = tuple(absent)
        return forecast

    def again(self, init_time: np.datetime64) -> Any:
        """Return the rates of the forecast from `init_time` again, from the true frames."""
        wanted = self._pipeline.wanted_times(self._truth[schema.TIME].values, init_time)
        there = np.intersect1d(np.setdiff1d(wanted, self.inputs[init_time]), self._truth[schema.TIME].values)
        frames = on_times(self._truth.sel(time=there), wanted, self._pipeline.step_minutes)
        return self._pipeline(frames)[schema.RAIN].values


@dataclass
class Outcome:
    """The result of a replay; `problems` is empty if everything went as it should."""

    problems: list[str] = field(default_factory=list)
    num_due: int = 0
    num_forecasts: int = 0
    with_gaps: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    skill: Any = None
    pages: int = 0
    """number of page states that were compared"""
    page_bytes: int = 0
    """largest size of its folder"""
    page_s: list[float] = field(default_factory=list)
    """time from a complete file to the page, without faults"""
    health: dict[str, dict[str, int]] = field(default_factory=dict)
    missed_deadlines: int = 0


def replay(
    truth: xr.Dataset,
    pipeline: Any,
    reader: Any,
    folder: Path,
    *,
    seed: int = 0,
    disk: Disk | None = None,
    small_disk: Path | None = None,
    snapshots: Path | None = None,
) -> Outcome:
    """Replay the frames of `truth` into `folder`/incoming, watch them, and compare everything with the plan.

    Forecasts and the page go to `small_disk`, or else to `folder`; with `disk` their disk is full for a while.
    """
    times = list(truth[schema.TIME].values.astype("datetime64[ns]"))
    incoming, output, site_folder = (
        folder / "incoming",
        (small_disk or folder) / "forecasts",
        (small_disk or folder) / "site",
    )
    incoming.mkdir(parents=True)
    files, frozen = as_files(truth, folder)
    planned = plan(times, files, frozen, seed)
    start, last = seconds_of(times[0]) - POLL_S, seconds_of(times[-1])
    end = last + 1.5 * MAX_DELAY_S
    troubles = troubles_of(start, last, with_full_disk=disk is not None)
    clock = ReplayClock(start, incoming, planned.deliveries, troubles, disk or Disk(folder))
    noting = Noting(pipeline, truth, output)
    site = NotingSite(site_folder, clock, places=places_in(schema.grid_of(truth)), stale_minutes=MAX_AGE_MINUTES)
    onlooker = Onlooker(
        site_folder, output, truth, planned.between(troubles, (GONE, BEHIND)), clock, MAX_AGE_MINUTES, snapshots
    )
    clock.look = onlooker.look
    settings = Settings(
        output=output, until=str(time_of(end).astype("datetime64[s]")), poll_s=POLL_S, settle_s=SETTLE_S,
        max_age_minutes=MAX_AGE_MINUTES, keep_hours=None,
    )  # fmt: skip
    clock.stop_at = start + (last - start) / 2
    with onlooker:
        codes = [Watcher(incoming, reader, noting, settings, clock=clock, site=site).run()]
        first_site, site = site, NotingSite(site_folder, clock, places=site.places, stale_minutes=MAX_AGE_MINUTES)
        watcher = Watcher(incoming, reader, noting, settings, clock=clock, site=site)
        codes.append(watcher.run())
    status = json.loads((output / "status.json").read_text(encoding="utf-8"))
    outcome = compare(planned, noting, output, status, troubles)
    outcome.problems += onlooker.problems
    outcome.pages, outcome.page_bytes = onlooker.num_checked, onlooker.largest_bytes
    outcome.health = {trouble: dict(said) for trouble, said in onlooker.health.items()}
    whole, hindered = planned.whole_at(), planned.between(troubles, (GONE, FULL, *CLOCK_ERROR_S))
    shown = {**first_site.at, **site.at}
    outcome.page_s = [
        at - whole[t] for t, at in shown.items() if hindered.get(t) == _hindered(whole.get(t, 0), [])
    ]
    expected = [0, 3 if watcher.intake.num_bad else 0]
    if codes != expected:
        outcome.problems.append(
            f"exit codes {codes} instead of {expected}: stopped, then ended with corrupt files"
        )
    outcome.memory_mib = [m / 2**20 for m in clock.memory]
    return outcome


def compare(
    planned: Plan, noting: Noting, output: Path, status: dict[str, Any], troubles: Sequence[Trouble]
) -> Outcome:
    """Compare forecasts, inputs and status of a replay with the plan.

    If a fault ends close to a frame's age limit, its forecast may or may not exist.
    """
    whole, seen = planned.whole_at(), planned.between(troubles, (GONE, BEHIND))
    done = planned.between(troubles, (GONE, FULL, *CLOCK_ERROR_S))
    limit = {t: seconds_of(t) + 60.0 * MAX_AGE_MINUTES for t in whole}
    due = {t for t, (_, latest) in done.items() if latest <= limit[t]}
    possible = {t for t, (earliest, _) in done.items() if earliest <= limit[t]}
    made = {path.name.removesuffix(".nc") for path in output.glob("forecast_*.nc")}
    problems = [
        f"{forecast_name(t)} was due and is not there" for t in sorted(due) if forecast_name(t) not in made
    ]
    problems += [
        f"{name} was not due and is there" for name in sorted(made - {forecast_name(t) for t in possible})
    ]
    problems += noting.wrong
    for init_time, absent in noting.inputs.items():
        made_at = done[init_time][0] if init_time in done else -np.inf
        problems += [
            f"{forecast_name(init_time)} lacks the frame of {time}, which had come"
            for time in absent
            if time in seen and seen[time][1] < made_at
        ]
        expected = noting.again(init_time)
        with xr.open_dataset(output / f"{forecast_name(init_time)}.nc", decode_timedelta=True) as file:
            if not np.allclose(file[schema.RAIN].values, np.minimum(expected, 327), atol=0.0101, equal_nan=True):
                problems.append(f"{forecast_name(init_time)} is not the network's forecast from its frames")
    counts = Counter(status["counts"])
    never_whole = [t for t in planned.fates["damaged"] if t not in whole]
    expected_counts = {
        "forecast": len(made),
        "repeated": len(planned.fates["doubled"]),
        "frozen": len(planned.fates["frozen"]),
        "stale": len(whole) - len(made),
    }
    # frames that a clock running ahead calls stale are forecast once it is right
    hindered = sum(done[t] != _hindered(at, []) for t, at in whole.items())
    for name, number in expected_counts.items():
        if not 0 <= counts[name] - number <= (hindered if name == "stale" else 0):
            problems.append(f"the status counts {counts[name]} {name}, there were {number}")
    missed = status["missed_deadlines"]["count"]
    if missed > hindered:
        problems.append(f"{missed} deadlines were missed, and {hindered} frames came during faults")
    if counts["corrupt"] < len(never_whole) or status["state"] != "stopped":
        problems.append(f"{counts['corrupt']} corrupt, at least {len(never_whole)} were; state {status['state']}")
    fates = {name: len(found) for name, found in planned.fates.items()}
    return Outcome(
        problems,
        len(due),
        len(made),
        sum(map(bool, noting.inputs.values())),
        fates,
        dict(counts),
        skill=status["skill"],
        missed_deadlines=missed,
    )


def as_files(truth: xr.Dataset, folder: Path) -> tuple[list[bytes], list[bytes | None]]:
    """Write each frame as a netCDF file and, where it rains, the previous image under its time."""
    rain = truth[schema.RAIN].values
    files, frozen = [], []
    for number in range(len(rain)):
        frame = truth.isel(time=[number])
        files.append(_bytes(frame, folder))
        wet = number and (rain[number - 1] > 0).sum() >= 50
        still = frame.assign({schema.RAIN: frame[schema.RAIN].copy(data=rain[[number - 1]])})
        frozen.append(_bytes(still, folder) if wet else None)
    return files, frozen


def _bytes(frame: xr.Dataset, folder: Path) -> bytes:
    """Write with checksums, so that damage in the middle is detected, too."""
    path = folder / "frame.nc"
    frame = frame.drop_vars(schema.MISSING_TIMES, errors="ignore")
    frame.to_netcdf(path, engine="netcdf4", encoding={schema.RAIN: {"zlib": True, "fletcher32": True}})
    content = path.read_bytes()
    path.unlink()
    return content


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * 4096


def flat(memory_mib: Sequence[float]) -> tuple[float, float]:
    """Return the mean resident memory of the second and of the last quarter.

    The first includes first-use loading.
    """
    quarter = len(memory_mib) // 4
    return float(np.mean(memory_mib[quarter : 2 * quarter])), float(np.mean(memory_mib[-quarter:]))


def main() -> int:
    """Replay a part of an archive and print the result; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(description="Replay radar files into a watched folder.")
    parser.add_argument("--archive", type=Path, required=True, help="data/smhi")
    parser.add_argument("--start", default="2015-07-28", help="UTC time of the first frame")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--small-disk", type=Path, help="a small file system of its own, to be filled")
    parser.add_argument("--snapshots", type=Path, help="a folder for copies of the page during each kind of fault")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/replay.json"))
    arguments = parser.parse_args()
    archive = Archive.open(arguments.archive)
    first = int(np.searchsorted(archive.times, np.datetime64(arguments.start)))
    stop = int(
        np.searchsorted(
            archive.times, np.datetime64(arguments.start) + np.timedelta64(round(arguments.hours * 60), "m")
        )
    )
    truth = archive.to_dataset(first, stop - first)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint or folder / "untrained.ckpt"
        if arguments.checkpoint is None:
            spacing = [float(abs(axis[1] - axis[0])) for axis in (archive.grid.y, archive.grid.x)]
            write_checkpoint(
                checkpoint,
                ["experiment=convlstm"],
                input_steps=6,
                lead_steps=12,
                step_minutes=archive.step_minutes,
                grid_spacing=spacing,
            )
        pipeline = assembly.pipeline(assembly.read_checkpoint(checkpoint), device="cpu")
        start, cpu = time.perf_counter(), time.process_time()
        outcome = replay(
            truth, pipeline, assembly.make(reader_config()), folder / "replay", seed=arguments.seed,
            disk=Disk(arguments.small_disk) if arguments.small_disk else None, small_disk=arguments.small_disk,
            snapshots=arguments.snapshots,
        )  # fmt: skip
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    before, after = flat(outcome.memory_mib)
    result = {
        "archive": str(arguments.archive),
        "start": arguments.start,
        "hours": arguments.hours,
        "seed": arguments.seed,
        "frames": outcome.fates,
        "due": outcome.num_due,
        "forecasts": outcome.num_forecasts,
        "with_gaps": outcome.with_gaps,
        "counts": outcome.counts,
        "problems": outcome.problems,
        "missed_deadlines": outcome.missed_deadlines,
        "pages_compared": outcome.pages,
        "page_folder_mb": round(outcome.page_bytes / 1e6, 2),
        "file_to_page_s": {
            "median": round(float(np.median(outcome.page_s)), 1),
            "p95": round(float(np.quantile(outcome.page_s, 0.95)), 1),
            "max": round(max(outcome.page_s), 1),
        },
        "health": outcome.health,
        "wall_s": round(seconds, 1),
        "cpu_s": round(cpu_seconds, 1),
        "memory_mib": {
            "second_quarter": round(before, 1),
            "last_quarter": round(after, 1),
            "peak": round(max(outcome.memory_mib), 1),
        },
        "skill": outcome.skill,
    }
    write_json(arguments.out, result)
    shown = {key: value for key, value in result.items() if key != "skill"}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 1 if outcome.problems else 0


def reader_config() -> Any:
    """Return the config of `source=auto`."""
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("forecast").source


if __name__ == "__main__":
    sys.exit(main())
