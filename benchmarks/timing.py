"""Timing for benchmarks: everything in one process, interleaved, medians."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

GPU_SECONDS = 0.02
"""Duration of one measurement on a GPU, for which a function is repeated: waiting for a GPU costs microseconds."""


def medians(
    ways: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each way. They take turns, so that a slow minute of the machine affects all.

    With `time.process_time` as `clock` they are CPU seconds of this process, whatever else runs.
    """

    def seconds(way: Callable[[], Any], calls: int) -> float:
        synchronise()
        start = clock()
        for _ in range(calls):
            way()
        synchronise()
        return (clock() - start) / calls

    for _ in range(warm_up):
        for way in ways.values():
            way()
    calls = dict.fromkeys(ways, 1)
    if torch.cuda.is_available():
        calls = {name: max(1, round(GPU_SECONDS / seconds(way, 1))) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(way, calls[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def synchronise() -> None:
    """Wait until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Return what figures depend on: machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write results with the machine on which they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
