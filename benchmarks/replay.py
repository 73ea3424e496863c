"""A day of radar, replayed at high speed into the folder that a watcher watches, with everything that goes wrong.

    python benchmarks/replay.py --archive data/smhi [--start 2015-07-28] [--hours 24] [--seed 0]

Each frame becomes a file that arrives a minute or so after its time, on a clock that runs as fast as the watcher.
By a seed, some files are removed, delayed (by minutes or by an hour), damaged (some are sent again later, whole),
doubled under another name, written in two pieces, or hold the image of the step before. In the middle of it the
watcher is stopped and another one goes on. Then every forecast that was due has to be there and no other, each
equal to what the network says of the true frames that had come, and the status has to add up. Memory is reported.

The network is untrained unless `--checkpoint` names one: what is tested is the watcher.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr
from hydra import compose, initialize_config_dir
from timing import write_json
from untrained import write_checkpoint

from raincast import assembly, schema
from raincast.archive import Archive
from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.forecasting import forecast_name
from raincast.forecasting.gaps import on_times
from raincast.live import Settings, Watcher
from raincast.live.clock import seconds_of, time_of

POLL_S, SETTLE_S, MAX_AGE_MINUTES = 15.0, 20.0, 20.0
USUAL_DELAY_S = (60.0, 100.0)
MARGIN_S = 150.0
"""No delay ends so close to the age limit that the moment of a look decides."""
SHARES = {"removed": 0.04, "delayed": 0.08, "damaged": 0.05, "doubled": 0.08, "in_pieces": 0.1, "frozen": 0.02}


@dataclass(frozen=True)
class Delivery:
    """Bytes that are there under a name from `at` on; `good`: a whole file with the true frame of `time`."""

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
        """When the first whole file of each frame is there."""
        at: dict[np.datetime64, float] = {}
        for delivery in self.deliveries:
            if delivery.good:
                at[delivery.time] = min(delivery.at, at.get(delivery.time, np.inf))
        return at


def plan(
    times: Sequence[np.datetime64], files: Sequence[bytes], frozen: Sequence[bytes | None], seed: int
) -> Plan:
    """A delivery or more for most of the frames; `frozen[i]` is the image before under the time of `i`."""
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
        # what nobody saw before cannot be told to be old
        if kind == "frozen" and (still is None or str(kinds[number - 1]) not in ("usual", "in_pieces", "doubled")):
            kind = "usual"
        fates[kind].append(frame)
        if kind == "delayed":
            limit = 60.0 * MAX_AGE_MINUTES
            delay = (
                rng.uniform(300, limit - MARGIN_S) if rng.random() < 0.5 else rng.uniform(limit + MARGIN_S, 7200)
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
    """A file cut short, without its head, or with noise in place of its content."""
    how = rng.integers(3)
    if how == 0:
        return whole[: int(rng.integers(0, len(whole) - 1))]
    if how == 1:
        return bytes(512) + whole[512:]
    return rng.bytes(len(whole))


class ReplayClock:
    """Time that passes when somebody waits; files arrive as it does. At `stop_at` it asks the watcher to stop."""

    def __init__(self, start: float, folder: Path, deliveries: Sequence[Delivery]) -> None:
        self.time, self.folder = start, folder
        self.waiting = list(deliveries)[::-1]
        self.stop_at: float | None = None
        self.memory: list[int] = []

    def now(self) -> float:
        """The time of the replay."""
        return self.time

    def wait(self, seconds: float, stop: Event) -> None:
        """Let it pass, and put what arrives into the folder, as a transfer does: under its name, at once."""
        self.time += seconds
        while self.waiting and self.waiting[-1].at <= self.time:
            delivery = self.waiting.pop()
            (self.folder / delivery.name).write_bytes(delivery.content)
        if self.stop_at is not None and self.time >= self.stop_at:
            self.stop_at = None
            stop.set()
        self.memory.append(resident_bytes())


class Noting:
    """A pipeline that notes which frames each of its forecasts was made of: the times of those it did not have.

    It keeps no frame, so that the memory is the watcher's: those that are there have to be the true ones, which is
    looked at at once (`wrong`).
    """

    def __init__(self, pipeline: Any, truth: xr.Dataset) -> None:
        self._pipeline, self._truth = pipeline, truth
        self.inputs: dict[np.datetime64, tuple[np.datetime64, ...]] = {}
        self.wrong: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """All else as it is."""
        return getattr(self._pipeline, name)

    def __call__(self, frames: xr.Dataset) -> xr.Dataset:
        """The forecast."""
        times = frames[schema.TIME].values.astype("datetime64[ns]")
        forecast: xr.Dataset = self._pipeline(frames)
        assert times[-1] not in self.inputs, f"{times[-1]} was forecast twice"
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
        """The rates of the forecast from `init_time` once more, of the true frames."""
        wanted = self._pipeline.wanted_times(self._truth[schema.TIME].values, init_time)
        there = np.intersect1d(np.setdiff1d(wanted, self.inputs[init_time]), self._truth[schema.TIME].values)
        frames = on_times(self._truth.sel(time=there), wanted, self._pipeline.step_minutes)
        return self._pipeline(frames)[schema.RAIN].values


@dataclass
class Outcome:
    """What a replay ended with; `problems` is empty where all went as it should."""

    problems: list[str] = field(default_factory=list)
    num_due: int = 0
    num_forecasts: int = 0
    with_gaps: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    skill: Any = None


def replay(truth: xr.Dataset, pipeline: Any, reader: Any, folder: Path, *, seed: int = 0) -> Outcome:
    """Replay the frames of `truth` into `folder`/incoming, watch them, and compare everything with the plan."""
    times = list(truth[schema.TIME].values.astype("datetime64[ns]"))
    incoming, output = folder / "incoming", folder / "forecasts"
    incoming.mkdir(parents=True)
    files, frozen = as_files(truth, folder)
    planned = plan(times, files, frozen, seed)
    start, end = seconds_of(times[0]) - POLL_S, seconds_of(times[-1]) + 3 * 3600.0
    clock = ReplayClock(start, incoming, planned.deliveries)
    noting = Noting(pipeline, truth)
    settings = Settings(
        output=output, until=str(time_of(end).astype("datetime64[s]")), poll_s=POLL_S, settle_s=SETTLE_S,
        max_age_minutes=MAX_AGE_MINUTES, keep_hours=None,
    )  # fmt: skip
    clock.stop_at = (start + end) / 2
    codes = [Watcher(incoming, reader, noting, settings, clock=clock).run()]
    watcher = Watcher(incoming, reader, noting, settings, clock=clock)
    codes.append(watcher.run())
    status = json.loads((output / "status.json").read_text(encoding="utf-8"))
    outcome = compare(planned, noting, output, status)
    expected = [0, 3 if watcher.intake.num_bad else 0]
    if codes != expected:
        outcome.problems.append(
            f"exit codes {codes} instead of {expected}: stopped, then ended with corrupt files"
        )
    outcome.memory_mib = [m / 2**20 for m in clock.memory]
    return outcome


def compare(planned: Plan, noting: Noting, output: Path, status: dict[str, Any]) -> Outcome:
    """Forecasts, inputs and status of a replay against what was planned."""
    whole = planned.whole_at()
    ready = {t: at + SETTLE_S + 2 * POLL_S for t, at in whole.items()}
    due = {t for t, at in ready.items() if at <= seconds_of(t) + 60.0 * MAX_AGE_MINUTES}
    made = {path.name.removesuffix(".nc") for path in output.glob("forecast_*.nc")}
    problems = [
        f"{forecast_name(t)} was due and is not there" for t in sorted(due) if forecast_name(t) not in made
    ]
    problems += [f"{name} was not due and is there" for name in sorted(made - {forecast_name(t) for t in due})]
    problems += noting.wrong
    for init_time, absent in noting.inputs.items():
        made_at = whole.get(init_time, -np.inf)
        problems += [
            f"{forecast_name(init_time)} lacks the frame of {time}, which had come"
            for time in absent
            if whole.get(time, np.inf) + SETTLE_S + 2 * POLL_S < made_at
        ]
        expected = noting.again(init_time)
        with xr.open_dataset(output / f"{forecast_name(init_time)}.nc", decode_timedelta=True) as file:
            if not np.allclose(file[schema.RAIN].values, np.minimum(expected, 327), atol=0.0101, equal_nan=True):
                problems.append(f"{forecast_name(init_time)} is not what the network says of its frames")
    counts = Counter(status["counts"])
    never_whole = [t for t in planned.fates["damaged"] if t not in whole]
    expected_counts = {
        "forecast": len(due),
        "repeated": len(planned.fates["doubled"]),
        "frozen": len(planned.fates["frozen"]),
        "stale": len(whole) - len(due),
    }
    for name, number in expected_counts.items():
        if counts[name] != number:
            problems.append(f"the status counts {counts[name]} {name}, there were {number}")
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
    )


def as_files(truth: xr.Dataset, folder: Path) -> tuple[list[bytes], list[bytes | None]]:
    """Each frame as a netCDF file; and where it rains, the image before under its time."""
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
    """With checksums: what is damaged in the middle is found out too."""
    path = folder / "frame.nc"
    frame = frame.drop_vars(schema.MISSING_TIMES, errors="ignore")
    frame.to_netcdf(path, engine="netcdf4", encoding={schema.RAIN: {"zlib": True, "fletcher32": True}})
    content = path.read_bytes()
    path.unlink()
    return content


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * 4096


def flat(memory_mib: Sequence[float]) -> tuple[float, float]:
    """Mean resident memory of the second and of the last quarter: the first holds what is loaded on first use."""
    quarter = len(memory_mib) // 4
    return float(np.mean(memory_mib[quarter : 2 * quarter])), float(np.mean(memory_mib[-quarter:]))


def main() -> int:
    """Replay a part of an archive, print what came of it; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description="Replay radar files into a watched folder.")
    parser.add_argument("--archive", type=Path, required=True, help="data/smhi")
    parser.add_argument("--start", default="2015-07-28", help="UTC time of the first frame")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
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
        outcome = replay(truth, pipeline, assembly.make(reader_config()), folder / "replay", seed=arguments.seed)
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
    """What `source=auto` is."""
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("forecast").source


if __name__ == "__main__":
    sys.exit(main())
