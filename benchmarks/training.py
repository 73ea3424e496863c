"""Speed of training: windows per second, waiting for data, memory; processes; precisions; Lightning's share.

Each way is a run of `train.py` of its own, on the built-in archive, compared with a bare loop of the same work.
All exist at the same time and take turns, a few steps each. On a CPU a process has one core and one thread. On a
GPU float32, TF32, bfloat16 and compiled take turns on the first one, and two processes are measured if there are
two GPUs.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.table import Table
from timing import write_json
from turns import Turns

REPO = Path(__file__).resolve().parents[1]
COMMON = ["baselines=[]", "logger=csv", "data.num_workers=0", "trainer.max_epochs=1000", "data.eval_stride=50"]
BARE, ONE, TWO = "bare loop", "1 process", "2 processes"


@dataclass(frozen=True)
class Way:
    """A run: its overrides besides the common ones, and its number of processes."""

    name: str
    overrides: tuple[str, ...] = ()
    processes: int = 1


def ways() -> list[Way]:
    """Return the runs to measure on this machine."""
    two = Way(TWO, ("trainer=ddp", "trainer.devices=2"), processes=2)
    bf16 = "trainer.precision=bf16-mixed"
    if not torch.cuda.is_available():
        slow = ("trainer.accelerator=cpu",)
        found = [Way(BARE, slow), Way(ONE, slow), Way("1 process, bf16", (*slow, bf16))]
        both = Way(two.name, (*two.overrides, *slow), processes=2)
        return [*found, both] if len(os.sched_getaffinity(0)) > 1 else found
    found = [
        Way(BARE),
        Way(ONE),
        Way("1 process, float32", ("tf32=false",)),
        Way("1 process, bf16", (bf16,)),
        Way("1 process, bf16, compiled", (bf16, "compile=default")),
        Way("1 process, bf16, recomputed", (bf16, "recompute=true")),
    ]
    return [*found, two] if torch.cuda.device_count() > 1 else found


def start(way: Way, number: int, args: argparse.Namespace, folder: Path, of: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run, each on a core of its own."""
    turns = {"folder": folder, "number": number, "of": of, "turns": args.turns, "steps": args.steps}
    callback = [f"+callbacks.turns.{key}={value}" for key, value in turns.items()]
    overrides = [*args.overrides, *COMMON, *way.overrides, "+callbacks.turns._target_=turns.Turns", *callback]
    script = [str(Path(__file__)), "--bare"] if way.name == BARE else [str(REPO / "train.py")]
    cores, port = sorted(os.sched_getaffinity(0)), str(_free_port())
    started = []
    for rank in range(way.processes):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO / "benchmarks"), _python_path()])}
        if not torch.cuda.is_available():
            environment["OMP_NUM_THREADS"] = "1"
        if way.processes > 1:
            environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(way.processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        core = [] if torch.cuda.is_available() else ["taskset", "-c", str(cores[rank])]
        run_dir = f"hydra.run.dir={folder}/run{number}-{rank}"
        command = [*core, sys.executable, *script, *overrides, run_dir]
        with (folder / f"{number}-{rank}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=args.folder))
    return started


def measure(found: list[Way], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one row per way, from the medians of its turns."""
    running = [
        process for number, way in enumerate(found) for process in start(way, number, args, folder, len(found))
    ]
    try:
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                logs = "\n".join(log.read_text()[-2000:] for log in sorted(folder.glob("*.log")))
                raise RuntimeError(f"A run failed:\n{logs}")
            time.sleep(0.5)
    finally:
        for process in running:
            process.kill()
    return [row(way, number, folder, args.batch) for number, way in enumerate(found)]


def row(way: Way, number: int, folder: Path, batch: int) -> dict[str, Any]:
    """Return the measurements of a run's processes; the slowest one sets the time of a step."""
    each = [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(way.processes)]
    steps = [max(of_all) for of_all in zip(*(one["seconds"] for one in each), strict=True)]
    step = statistics.median(steps)
    processor = [max(of_all) for of_all in zip(*(one["processor"] for one in each), strict=True)]
    return {
        "run": way.name,
        "windows/s": way.processes * batch / step,
        "step, ms": 1e3 * step,
        "of the CPU, ms": 1e3 * statistics.median(processor),
        "waiting": statistics.median(w / s for w, s in zip(each[0]["waiting"], each[0]["seconds"], strict=True)),
        "memory, MiB": max(one["memory_mib"] for one in each),
        "steps": steps,
        "processor": processor,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians of the ratios of neighbouring turns; also of CPU time, which other programs disturb less."""
    asked = {"Lightning over bare loop": (ONE, BARE, 1.0), "2 processes over 1, windows/s": (ONE, TWO, 2.0)}
    found = {}
    for name, (above, below, factor) in asked.items():
        for time_of, what in (("steps", ""), ("processor", ", by the CPU's time")):
            of = {row["run"]: row[time_of] for row in rows}
            if above in of and below in of:
                pairs = [factor * a / b for a, b in zip(of[above], of[below], strict=True)]
                found[name + what] = statistics.median(pairs)
    return found


def bare(overrides: list[str]) -> None:
    """Run a training step in a plain loop: load, decode, forward, loss, backward, clip, optimise."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from raincast import assembly
    from raincast.cli import HYDRA_VERSION_BASE, conf_dir
    from raincast.training import execution

    plain = [override for override in overrides if not override.startswith("hydra.")]
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=[*plain, "paths.run_dir=."])
    turns: Turns = assembly.make(cfg.callbacks.turns)
    data = assembly.datamodule(cfg, assembly.archive_path(cfg))
    head, model = assembly.head(cfg), OmegaConf.to_container(cfg.model, resolve=True)
    info = assembly.metadata(cfg, data)
    inputs = assembly.inputs_of(info["channels"])
    network = assembly.network(model, num_channels=head.num_channels, inputs=inputs)  # type: ignore[arg-type]
    execution.prepare(network, compile=cfg.compile, recompute=cfg.recompute, tf32=cfg.tf32)
    module: Any = assembly.module(cfg, network, head, info)
    module.log = lambda *_, **__: None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    data.setup("fit")
    loader = data.train_dataloader()
    optimizer, schedule = module.optimizer_factory(network.parameters(), 10_000)
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        for number, stored in enumerate(loader):
            batch = data.dataset.decode(move_data_to_device(stored, device))
            turns.begin_step()
            loss = module.training_step(batch, number)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
            turns.end_step()
        epoch += 1


def show(rows: list[dict[str, Any]], found: dict[str, float]) -> None:
    """Print one table, and the ratios."""
    table = Table(title="Training, medians of turns")
    names = [name for name in rows[0] if name not in ("steps", "processor")]
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    for values in rows:
        cells = [f"{values[name]:.1%}" if name == "waiting" else f"{values[name]:.3g}" for name in names[1:]]
        table.add_row(values["run"], *cells)
    Console().print(table)
    for name, value in found.items():
        Console().print(f"{name}: {value:.3f}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _python_path() -> str:
    return os.pathsep.join([str(REPO / "src"), os.environ.get("PYTHONPATH", "")])


def main() -> None:
    """Run all, print and write."""
    if "--bare" in sys.argv:
        bare([argument for argument in sys.argv[1:] if argument != "--bare"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of each turn")
    parser.add_argument("--batch", type=int, default=8, help="windows per step, in each process")
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of data/builtin, made if missing")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/training.json"))
    parser.add_argument("--runs", default="", help="only these names of the table, separated by commas")
    parser.add_argument("overrides", nargs="*", help="of train.py, after --; by default experiment=convlstm")
    args = parser.parse_args()
    args.overrides = [*(args.overrides or ["experiment=convlstm"]), f"data.batch_size={args.batch}"]
    found = [way for way in ways() if not args.runs or way.name in args.runs.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(found, args, Path(temporary))
    asked = ratios(rows)
    show(rows, asked)
    write_json(args.json, {"overrides": args.overrides, "rows": rows, "ratios": asked})


if __name__ == "__main__":
    main()
