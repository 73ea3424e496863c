"""The memory of a training step and of a forecast: the estimate of `raincast summary`, and measurements.

    python benchmarks/memory.py [--out outputs/benchmarks/memory.json] [--only TEXT]
    python benchmarks/memory.py --tables       the tables of docs/memory.md, only estimates

Each case runs in a process of its own, as Lightning runs a step: forward pass, loss, gradients of the previous
step set to None, backward pass, clipping by the norm of the gradients, AdamW; then, in another process, a forecast
without gradients at the same sizes. On a CPU three things are measured:

- allocated: the peak bytes of tensors and of the convolutions' work space, from the allocations and releases that
  torch.profiler records in the first two steps, plus the parameters and the batch, which existed before;
- resident: the increase of the process's peak resident memory (VmHWM of /proc/self/status, Linux) in three steps
  over its resident memory before the network is built, after a step of a tiny network has loaded all code. With
  MALLOC_MMAP_THRESHOLD_=131072, so that glibc returns freed blocks to the system;
- resident, default malloc: the same without that setting: glibc then keeps freed blocks of up to 32 MiB for
  later, and not all of them can be reused.

On a GPU: torch.cuda.max_memory_allocated over three steps, minus what was allocated before, with the estimate for
a GPU. Needs the project to be installed.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import raincast
from raincast import assembly
from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.commands.summary import summarise

NARROW_2015 = "model=convlstm_2015 model.hidden_channels=[32,32] batch_size=4 height=96"
CASES = [
    "experiment=convlstm",
    "experiment=convlstm batch_size=32",
    "experiment=convlstm height=256 batch_size=4",
    "experiment=convlstm input_steps=12 lead_steps=24",
    "model=convlstm batch_size=1 height=128",
    "model=convlstm batch_size=2 height=128",
    "model=convlstm model.patch=2 batch_size=4 height=128",
    "model=convlstm model.patch=4 batch_size=8 height=128",
    f"{NARROW_2015} model.patch=4",
    f"{NARROW_2015} model.patch=2",
    f"{NARROW_2015} model.patch=1 batch_size=1",
    f"{NARROW_2015} model.patch=2 model.input_kernel=3 model.state_kernel=3",
    "model=convlstm_2015 batch_size=2 height=64",
    "model=convlstm_2017 batch_size=2 height=120",
    "model=trajgru_2017 batch_size=1 height=120",
    "model=predrnn model.hidden_channels=32 batch_size=2 height=64",
    "model=predrnn model.hidden_channels=64 batch_size=4 height=96",
]
"""Overrides of `raincast summary`; if a key occurs twice, the later one counts."""

WARM_UP = "model=convlstm_2015 model.hidden_channels=[16] batch_size=1 height=16 input_steps=2 lead_steps=2"
STEPS = 3

STRIDES = (
    "model.stages=[{conv_channels:16,hidden_channels:64,stride:%d,down_kernel:5},"
    "{conv_channels:64,hidden_channels:96,stride:2,down_kernel:4},"
    "{conv_channels:96,hidden_channels:96,stride:2,down_kernel:4}]"
)
TABLES = {
    "model=convlstm device=cpu": {
        "default": "",
        "`batch_size=4`": "batch_size=4",
        "`height=64`": "height=64",
        "`height=256`": "height=256",
        "`input_steps=12`": "input_steps=12",
        "`lead_steps=24`": "lead_steps=24",
        "`model.patch=2`": "model.patch=2",
        "`model.patch=4`": "model.patch=4",
        "first stride 4": STRIDES % 4,
        "`model.cell.recompute=true`": "model.cell.recompute=true",
    },
    "model=convlstm_2015 device=cpu": {
        "default": "",
        "`model.patch=2`": "model.patch=2",
        "`model.patch=8`": "model.patch=8",
        "kernels of 3": "model.input_kernel=3 model.state_kernel=3",
        "`model.hidden_channels=[64,32,32]`": "model.hidden_channels=[64,32,32]",
        "`model.cell.recompute=true`": "model.cell.recompute=true",
    },
}
"""Rows of docs/memory.md: common overrides, and the change in each row."""

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's initial threshold; if it is set explicitly, it no longer grows with freed blocks."""


def config(case: str) -> DictConfig:
    """Return the config of `raincast summary` with the overrides of a case."""
    overrides = {override.partition("=")[0]: override for override in case.split()}
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("summary", overrides=list(overrides.values()))


class Run:
    """A network of a config with everything that a step of it needs, on `device`."""

    def __init__(self, cfg: DictConfig, device: str) -> None:
        self.cfg = cfg
        model: Any = OmegaConf.to_container(cfg.model, resolve=True)
        self.head = assembly.head(cfg)
        self.network: nn.Module = assembly.network(model, num_channels=self.head.num_channels).to(device)
        self.loss = assembly.make(cfg.loss, _partial_=True)(transform=assembly.make(cfg.transform)).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        B, H, W = cfg.batch_size, cfg.height, cfg.width
        self.rain = torch.rand(B, cfg.input_steps, 1, H, W, device=device)
        self.target = torch.rand(B, cfg.lead_steps, 1, H, W, device=device)
        self.mask = torch.ones(B, cfg.lead_steps, 1, H, W, dtype=torch.bool, device=device)

    def forward(self) -> Tensor:
        """Return the loss; its inputs live on only in the graph."""
        output = self.network(self.rain.clone(), self.cfg.lead_steps)
        loss: Tensor = self.loss(self.head.prediction(output), self.target.clone(), self.mask)
        return loss

    def step(self) -> None:
        """Run one training step."""
        loss = self.forward()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def forecast(self) -> None:
        """Run one forward pass without gradients."""
        self.network.eval()
        self.network(self.rain.clone(), self.cfg.lead_steps)

    def held_bytes(self, *, training: bool) -> int:
        """Return the bytes of the tensors that exist before the first step."""
        held = [*self.network.parameters(), *self.network.buffers(), self.rain]
        return sum(t.nbytes for t in held + ([self.target, self.mask] if training else []))


def status_bytes(key: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no line {key}: resident memory can only be measured on Linux.")


def allocated_peak(work: Callable[[], None], times: int) -> int:
    """Return the peak sum of the CPU allocations of `work`, run `times` times."""
    from torch.profiler import ProfilerActivity, profile

    # releases of earlier allocations are not recorded
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(times):
            work()
    results: Any = profiler.profiler
    memory = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(case: str, mode: str, device: str) -> dict[str, int]:
    """Run in a fresh process; return bytes."""
    torch.manual_seed(0)
    small = Run(config(WARM_UP), device)
    small.step()
    small.forecast()
    del small
    gc.collect()
    training = mode == "step"
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run = Run(config(case), device)
        for _ in range(STEPS):
            run.step() if training else run.forecast()
        return {"allocated": torch.cuda.max_memory_allocated() - before}
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    run = Run(config(case), device)
    work = run.step if training else run.forecast
    for _ in range(STEPS):
        work()
    resident = status_bytes("VmHWM") - before
    del run, work
    gc.collect()
    fresh = Run(config(case), device)
    held = fresh.held_bytes(training=training)
    return {
        "resident": resident,
        "allocated": held + allocated_peak(fresh.step if training else fresh.forecast, times=2),
    }


def compare(case: str, device: str) -> dict[str, Any]:
    """Return estimate and measurements of one case in bytes, for a training step and for a forecast."""
    summary, _ = summarise(config(f"{case} device={device}"))
    found: dict[str, Any] = {"case": case, "parameters": summary.parameters}
    estimates = {"step": summary.training_peak_bytes, "forecast": summary.forecast_peak_bytes}
    for mode, estimate in estimates.items():
        measured = measured_apart(case, mode, device, GIVE_BACK)
        if device == "cpu":
            measured["resident_default"] = measured_apart(case, mode, device, {})["resident"]
        ratios = {f"{key}_ratio": round(estimate / value, 3) for key, value in measured.items()}
        found[mode] = {"estimated": estimate, **measured, **ratios}
    return found


def measured_apart(case: str, mode: str, device: str, environment: dict[str, str]) -> dict[str, int]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", mode, "--case", case, "--device", device]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if ran.returncode:
        raise RuntimeError(f"{case}: {ran.stderr[-2000:]}")
    measured: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return measured


def markdown_table(shared: str, rows: dict[str, str]) -> str:
    """Return a table of estimates for `shared` with the overrides of each row."""
    lines = [
        f"`raincast summary {shared} …`",
        "",
        "| | parameters | GFLOP per step | activations, MiB | step, MiB | forecast, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for label, overrides in rows.items():
        s, _ = summarise(config(f"{shared} {overrides}"))
        sizes = (s.activation_bytes, s.training_peak_bytes, s.forecast_peak_bytes)
        cells = [f"{s.parameters:,}", f"{s.training_step_flops / 1e9:,.0f}", *(f"{n / 2**20:,.0f}" for n in sizes)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def circumstances(device: str) -> dict[str, Any]:
    """Return machine, versions and date."""
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "raincast": raincast.__version__,
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table in MiB, with the ratio of estimate to measurement."""
    table = Table("case", box=None, header_style="bold")
    for header in ("", "estimated", "allocated", "ratio", "resident", "ratio", "default malloc", "ratio"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        for mode in ("step", "forecast"):
            values = row[mode]
            cells = [f"{values['estimated'] / 2**20:.1f}"]
            for key in ("allocated", "resident", "resident_default"):
                cells += [f"{values[key] / 2**20:.1f}", f"{values[f'{key}_ratio']:.2f}"] if key in values else []
            table.add_row(row["case"] if mode == "step" else "", mode, *cells)
    return table


def main() -> None:
    """Measure all cases, print them and write them as JSON."""
    parser = argparse.ArgumentParser(description="Estimated and measured memory of training steps.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/memory.json"))
    parser.add_argument("--only", default="", help="cases that contain this text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/memory.md")
    parser.add_argument("--measure", choices=("step", "forecast"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.case, arguments.measure, arguments.device)) + "\n")
        return
    if arguments.tables:
        sys.stdout.write("\n\n".join(markdown_table(*table) for table in TABLES.items()) + "\n")
        return
    console = Console(width=150)
    rows = []
    for case in (c for c in CASES if arguments.only in c):
        rows.append(compare(case, arguments.device))
        console.print(as_table(rows[-1:]))
    result = {**circumstances(arguments.device), "unit": "bytes", "cases": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    console.print(
        as_table(rows), {k: v for k, v in result.items() if k != "cases"}, str(arguments.out), sep="\n\n"
    )


if __name__ == "__main__":
    main()
