"""Time of a forecast from file to file: raincast's networks, pysteps' extrapolation and 20 members of STEPS.

    python benchmarks/forecast.py [--files 'shared/radar/knmi/*/*.h5'] [--rounds 3] [--only TEXT]

The input is the KNMI composite (765 × 700 pixels), 5 frames of 5 min → 12; without its files the built-in archive
at that size (732²). A round runs each method once, in a process of its own on two threads: imports and loading;
the first forecast; and a second one, split into reading the input, making the forecast, and writing the netCDF
file. Figures are medians over the rounds, so that a slow minute of the machine affects all methods; STEPS runs
once, in the first round only. CPU seconds (user + system, all threads) are given in addition to wall-clock
seconds: on a machine with other work they are comparable. Peak memory is the process's resident memory, imports
included. Finally the command is timed as a user types it, from start to end. `box` is the bundled network; the
others are untrained, which costs the same.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
INPUT_STEPS, LEAD_STEPS, SIZE, THREADS = 5, 12, 732, 2
NETWORKS = {
    "convlstm_small": ["experiment=convlstm"],
    "convlstm": ["model=convlstm"],
}
"""Networks of the types in the literature."""
BOX = "box"
BASELINES = ("extrapolation", "steps")
ONCE = ("steps",)
"""Methods that take minutes: run in the first round only, without a second forecast."""
PARTS = ("read", "make", "write")


def clocks() -> tuple[float, float]:
    """Return wall-clock seconds, and CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.time(), used.ru_utime + used.ru_stime


class Stopwatch:
    """Wall-clock and CPU seconds, by part."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = clocks()

    def lap(self, part: str) -> None:
        """Assign the time since the last lap to `part`."""
        now = clocks()
        self.wall[part], self.cpu[part] = (round(b - a, 3) for a, b in zip(self._last, now, strict=True))
        self._last = now


def measure(way: str, files: str, checkpoint: str, began: float) -> dict[str, Any]:
    """Run in a fresh process: start-up, a first forecast and, if the method is fast, a second one."""
    make_forecast = prepare(way, files, checkpoint)
    started, cpu = clocks()
    runs = []
    for number in range(1 if way in ONCE else 2):
        with tempfile.TemporaryDirectory() as folder:
            watch = Stopwatch()
            make_forecast(watch, Path(folder), number)
        runs.append({"wall": watch.wall, "cpu": watch.cpu})
    ready, cpu_ready = started - began, cpu
    return {
        "start_s": {"wall": round(ready, 3), "cpu": round(cpu_ready, 3)},
        "first": runs[0],
        "second": runs[-1],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def prepare(way: str, files: str, checkpoint: str) -> Callable[[Stopwatch, Path, int], None]:
    """Load everything once, and return a function that forecasts from file to file."""
    from hydra import compose, initialize_config_dir

    from raincast import assembly
    from raincast.cli import HYDRA_VERSION_BASE, conf_dir

    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        reader = assembly.make(compose("forecast").source)
    return _network(way, files, checkpoint, reader) if way not in BASELINES else _baseline(way, files, reader)


def _network(way: str, files: str, checkpoint: str, reader: Any) -> Callable[[Stopwatch, Path, int], None]:
    from raincast import assembly
    from raincast.forecasting import open_series, write_outputs

    precision = "bf16" if way.endswith("bf16") else "float32"
    pipeline = assembly.pipeline(
        assembly.read_checkpoint(checkpoint), device="cpu", precision=precision, lead_steps=LEAD_STEPS
    )

    def run(watch: Stopwatch, folder: Path, number: int) -> None:
        frames = pipeline.frames(open_series(files, reader), "latest", source=files)
        watch.lap("read")
        forecast = pipeline(frames)
        watch.lap("make")
        write_outputs(forecast, frames, folder)
        watch.lap("write")

    return run


def _baseline(way: str, files: str, reader: Any) -> Callable[[Stopwatch, Path, int], None]:
    from raincast.baselines import Extrapolation, Steps
    from raincast.forecaster import Query
    from raincast.forecasting import open_series
    from raincast.forecasting.files.dataset import forecast_dataset
    from raincast.forecasting.files.netcdf import write_forecast
    from raincast.schema import grid_of

    forecaster = Extrapolation() if way == "extrapolation" else Steps(num_members=20)

    def run(watch: Stopwatch, folder: Path, number: int) -> None:
        series = open_series(files, reader)
        frames = series.read(series.times[-INPUT_STEPS:])
        watch.lap("read")
        shown = frames["rain_rate"].values[None, :, None]
        query = Query.for_steps(shown, LEAD_STEPS, step_minutes=5.0, grid=grid_of(frames))
        rain = forecaster.predict(query).rates[0, :, 0]
        watch.lap("make")
        dataset = forecast_dataset(
            rain, init_time=frames["time"].values[-1], step_minutes=5.0, grid=grid_of(frames),
            cell_methods=str(frames["rain_rate"].attrs["cell_methods"]), attrs={},
        )  # fmt: skip
        write_forecast(dataset, folder / "forecast.nc")
        watch.lap("write")

    return run


def apart(way: str, files: str, checkpoint: Path) -> dict[str, Any]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--files", files, "--checkpoint", str(checkpoint)]
    ran = subprocess.run(
        [*command, "--began", str(time.time())], capture_output=True, text=True, env=environment(), cwd=REPO
    )
    if ran.returncode:
        raise RuntimeError(f"{way}: {ran.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return measured


def command(files: str, checkpoint: Path, *overrides: str) -> dict[str, float]:
    """Time `python forecast.py` from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        subprocess.run(
            [
                sys.executable, str(REPO / "forecast.py"), f"checkpoint={checkpoint}", f"input='{files}'",
                "device=cpu", f"hydra.run.dir={folder}", *overrides,
            ],
            check=True, capture_output=True, env=environment(), cwd=REPO,
        )  # fmt: skip
        wall, after = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2)}


def environment() -> dict[str, str]:
    """Return an environment with two threads, whatever the shell sets."""
    return os.environ | {"OMP_NUM_THREADS": str(THREADS)}


def input_files(pattern: str | None, folder: Path) -> tuple[str, str]:
    """Return the input and its description: KNMI's files if they exist, or the built-in archive at that size."""
    if pattern is not None:
        return pattern, pattern
    from raincast.synthetic import build_builtin_archive

    build_builtin_archive(folder / "archive", num_days=1, frames_per_day=8, size=SIZE)
    return str(folder / "archive"), f"the built-in archive, {SIZE} × {SIZE}"


def merged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the rounds of one method."""

    def middle(get: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(get(found) for found in rounds), 3)

    def split(which: str, clock: str) -> dict[str, float]:
        parts = {part: middle(lambda found, part=part: found[which][clock][part]) for part in PARTS}  # type: ignore[misc]
        return {**parts, "total": round(sum(parts.values()), 3)}

    return {
        "rounds": len(rounds),
        "start": {
            "wall": middle(lambda found: found["start_s"]["wall"]),
            "cpu": middle(lambda f: f["start_s"]["cpu"]),
        },
        "first": {clock: split("first", clock) for clock in ("wall", "cpu")},
        "second": {clock: split("second", clock) for clock in ("wall", "cpu")},
        "peak_mib": middle(lambda found: found["peak_mib"]),
    }


def as_table(ways: dict[str, Any]) -> str:
    """Return Markdown, in seconds; the ratio is of CPU seconds to extrapolation's."""
    lines = [
        "| | start | read | make | write | from file to file | / extrapolation | peak, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    reference = ways.get("extrapolation", {}).get("second", {}).get("cpu", {}).get("total")
    for name, found in ways.items():
        cpu, wall = found["second"]["cpu"], found["second"]["wall"]
        cells = [f"{cpu[p]:.2f} ({wall[p]:.2f})" for p in (*PARTS, "total")]
        start = f"{found['start']['cpu']:.1f} ({found['start']['wall']:.1f})"
        ratio = f"{cpu['total'] / reference:.2f}" if reference else ""
        lines.append(f"| {name} | {start} | {' | '.join(cells)} | {ratio} | {found['peak_mib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all methods in turn, print a table and write JSON."""
    parser = argparse.ArgumentParser(description="Forecasts from file to file.")
    parser.add_argument("--files", help="radar files, a quoted pattern; default: the built-in archive")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="ways whose name contains this text, and extrapolation")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/forecast.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", default="", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.measure, arguments.files, arguments.checkpoint, arguments.began)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    from timing import write_json
    from untrained import write_checkpoint

    networks = [f"{name}{suffix}" for name in (BOX, *NETWORKS) for suffix in ("", " bf16")]
    ways = [way for way in (*networks, *BASELINES) if arguments.only in way or way == "extrapolation"]
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, what = input_files(arguments.files, folder)
        steps = {"input_steps": INPUT_STEPS, "lead_steps": LEAD_STEPS}
        checkpoints = {n: folder / f"{n}.ckpt" for n in NETWORKS} | {BOX: Path(BOX)}
        sizes = {n: write_checkpoint(checkpoints[n], NETWORKS[n], **steps) for n in NETWORKS}
        rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        commands: dict[str, list[dict[str, float]]] = {"animation=false": [], "animation=gif": []}
        for number in range(arguments.rounds):
            for way in ways:
                if number == 0 or way not in ONCE:
                    rounds[way].append(apart(way, files, checkpoints.get(way.removesuffix(" bf16"), Path())))
            for override, found_commands in commands.items():
                found_commands.append(command(files, checkpoints[BOX], override))
    results = {way: merged(found) for way, found in rounds.items()}
    seconds = {
        f"forecast.py {override}": {c: statistics.median(f[c] for f in found) for c in ("wall", "cpu")}
        for override, found in commands.items()
    }
    content = {
        "input": what,
        "steps": [INPUT_STEPS, LEAD_STEPS],
        "threads": THREADS,
        "load": {"before": load_before, "after": os.getloadavg()},
        "parameters": sizes,
        "ways": results,
        "command": seconds,
    }
    write_json(arguments.out, content)
    sys.stdout.write(f"{what}, {INPUT_STEPS} → {LEAD_STEPS}; CPU seconds (wall clock)\n\n")
    sys.stdout.write(as_table(results) + "\n\n" + json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
