"""Let the kernel kill each command for want of memory, run it again, and compare with a run in one go.

    sudo python benchmarks/out_of_memory.py [--only training ingest …] [--shares 0.5 0.8 0.95]

Each command first runs without a limit; its peak of anonymous memory is noted. Then it runs in a control group
that may use only a share of that peak, so that the kernel ends one of its processes, and again without a limit. A
command may survive, because it adapts to the memory that there is or tries a worker's task again; then its result
counts too. Needs root and Linux's control groups (version 1 or 2).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from raincast import schema

REPO = Path(__file__).resolve().parents[1]
ROOT = Path("/sys/fs/cgroup")
VERSION_2 = (ROOT / "cgroup.controllers").exists()
LEFT = ("wall_seconds", "cpu_seconds_per_window")
"""Variables that differ from run to run."""
NETWORK = (
    "experiment=convlstm logger=csv baselines=[persistence] data.input_steps=3 data.lead_steps=3 data.crop=64 "
    "data.samples_per_epoch=32 data.batch_size=4 data.num_workers=1 trainer.accelerator=cpu trainer.max_epochs=2 "
    "callbacks.last.every_n_train_steps=3 callbacks.pictures.every_n_epochs=0 resume=auto "
    "model.stages=[{conv_channels:4,hidden_channels:8}] model.head_channels=4"
)


@dataclass(frozen=True)
class Outcome:
    """How one run ended: exit code, processes killed by the kernel, processes left, peak in bytes, last line."""

    code: int
    killed: int
    orphans: int
    peak: int
    said: str


class Group:
    """A control group of this process's own."""

    def __init__(self, limit: int | None) -> None:
        above = ROOT if VERSION_2 else ROOT / "memory"
        self.folder = above / f"raincast_{os.getpid()}_{time.monotonic_ns()}"
        self.folder.mkdir()
        if limit is not None:
            name = "memory.max" if VERSION_2 else "memory.limit_in_bytes"
            (self.folder / name).write_text(str(limit))

    def processes(self) -> list[int]:
        """Return the processes in it."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def number(self, file: str, key: str) -> int:
        """Return one of the numbers that the kernel keeps."""
        rows = dict(line.split() for line in (self.folder / file).read_text().splitlines())
        return int(rows[key])

    def run(self, command: Sequence[str], folder: Path) -> Outcome:
        """Run a command in it, and remove it."""
        join = f'echo $$ > {self.folder}/cgroup.procs; exec "$@"'
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        log = folder / "said.txt"
        peak = 0
        with log.open("w") as out:
            process = subprocess.Popen(
                ["sh", "-c", join, "sh", *command], cwd=folder, stdout=out, stderr=out, env=environment
            )
            while process.poll() is None:
                peak = max(peak, self.number("memory.stat", "anon" if VERSION_2 else "total_rss"))
                time.sleep(0.02)
        # a worker of PyTorch looks for its parent every five seconds
        deadline = time.monotonic() + 15.0
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for one in left:
            os.kill(one, 9)
        killed = self.number("memory.events" if VERSION_2 else "memory.oom_control", "oom_kill")
        time.sleep(0.2)
        self.folder.rmdir()
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return Outcome(process.returncode, killed, len(left), peak, lines[-1] if lines else "")


def commands(folder: Path, shared: Path) -> dict[str, list[str]]:
    """Return the commands, which write into `folder`."""
    checkpoint = f"checkpoint={shared}/run/checkpoints/best.ckpt"
    frames, archive = f"{shared}/frames", f"{shared}/archive"
    live = "live.once=true live.max_age_minutes=null live.keep_hours=null live.settle_s=0 coastlines=false"
    text = {
        "ingest": f"ingest.py files={frames} archive={folder}/out workers=2",
        "training": f"train.py {NETWORK} data.archive={archive} paths.run_dir={folder}/run",
        "evaluation": f"evaluate.py {checkpoint} data.archive={archive} "
        f"baselines=[persistence,extrapolation,sprog] workers=2 device=cpu paths.run_dir={folder}/run "
        f"unfinished={folder}/sums",
        "forecast": f"forecast.py input={frames} members=20 animation=false folder={folder}/out",
        "hindcast": f"forecast.py {checkpoint} input={frames} init_time=/ folder={folder}/out workers=2 "
        "animation=false device=cpu",
        "watcher": f"forecast.py {checkpoint} watch={frames} live.output={folder}/out {live} animation=false",
    }
    return {name: [sys.executable, *line.split()] for name, line in text.items()}


def prepare(shared: Path) -> None:
    """Write frames, an archive and a trained network that all commands use."""
    frames = schema.mock_archive(36, 256, 256, start="2026-01-01T11:00", seed=1).drop_vars(schema.MISSING_TIMES)
    (shared / "frames").mkdir()
    for number in range(36):
        time_text = str(frames["time"].values[number])[:16].replace(":", "")
        frames.isel(time=[number]).to_netcdf(shared / "frames" / f"{time_text}.nc", engine="netcdf4")
    three = xr.concat(
        [schema.mock_archive(24, 128, 128, start=f"2026-01-0{day}T11:00", seed=day) for day in (1, 2, 3)],
        dim="time", data_vars="minimal",
    ).drop_vars(schema.MISSING_TIMES)  # fmt: skip
    three.to_netcdf(shared / "three.nc", engine="netcdf4")
    lines = (
        f"ingest.py files={shared}/three.nc archive={shared}/archive",
        f"train.py {NETWORK} data.archive={shared}/archive paths.run_dir={shared}/run",
    )
    for line in lines:
        subprocess.run([sys.executable, *_placed(line.split())], cwd=shared, check=True, capture_output=True)


def _placed(command: list[str]) -> list[str]:
    return [str(REPO / part) if part.endswith(".py") and "=" not in part else part for part in command]


def results(folder: Path) -> dict[str, Any]:
    """Return all that a command left, but for when and in how long."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.nc")):
        if not path.name.startswith("references_"):
            with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as file:
                found[path.name] = file.load().drop_vars(LEFT, errors="ignore").drop_attrs()
    for path in folder.rglob("last.ckpt"):
        found[path.name] = torch.load(path, weights_only=True)["state_dict"]
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs left the same."""
    if one.keys() != other.keys():
        return False
    for name, value in one.items():
        if isinstance(value, xr.Dataset):
            if not value.identical(other[name]):
                return False
        elif any(not torch.equal(weights, other[name][key]) for key, weights in value.items()):
            return False
    return True


def main() -> None:
    """Run all commands, print a line for each limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.7, 0.85, 0.95])
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/out_of_memory.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(temporary) / "shared"
        shared.mkdir()
        prepare(shared)
        for name in commands(shared, shared):
            if options.only and name not in options.only:
                continue
            whole = Path(temporary) / name
            whole.mkdir()
            reference = Group(None).run(_placed(commands(whole, shared)[name]), whole)
            if reference.code != 0:
                raise SystemExit(f"{name} fails without a limit: {reference.said}")
            expected = results(whole)
            print(f"{name}: peak {reference.peak / 2**20:.0f} MiB, {len(expected)} results", flush=True)  # noqa: T201
            for share in options.shares:
                folder = Path(temporary) / f"{name}_{share}"
                folder.mkdir()
                command = _placed(commands(folder, shared)[name])
                limited = Group(int(share * reference.peak)).run(command, folder)
                again = limited if limited.code == 0 else Group(None).run(command, folder)
                equal = again.code == 0 and same(expected, results(folder))
                rows.append({"command": name, "share": share, "equal": equal} | vars(limited))
                result = "the same" if equal else f"DIFFERENT ({again.code}: {again.said})"
                ended = f"exit code {limited.code}, {limited.killed} killed, {limited.orphans} left behind"
                print(f"  {share:4.0%}: {ended}; {result}; said: {limited.said[:150]}", flush=True)  # noqa: T201
                shutil.rmtree(folder)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
