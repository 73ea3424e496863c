"""Provenance of a run: versions, commit, hash of the code, machine, and peak memory."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from raincast.version import __version__

PACKAGES = ("torch", "lightning", "numpy", "xarray", "netCDF4", "hydra-core", "pysteps", "wandb")
CHECKOUT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit of the running checkout, with "-dirty" if it was changed; "unknown" for a wheel."""
    return _git("describe", "--always", "--dirty", "--abbrev=12") or "unknown"


@functools.cache
def code_hash(*packages: str) -> str:
    """Return the SHA-256 of the source of these packages or modules of raincast, or of all of it."""
    digest = hashlib.sha256()
    for root in [CHECKOUT / name for name in packages] or [CHECKOUT]:
        for file in sorted(root.rglob("*.py")) or [root.with_suffix(".py")]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def peak_memory_gib() -> float:
    """Return the peak memory of this process since its start, in GiB."""
    import resource  # not on Windows, where the rest of this module works

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def versions() -> dict[str, str]:
    """Return the versions of raincast, Python and the packages that can change a result."""
    found = {"raincast": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return host, system, processor, usable cores, and the memory in GiB if known."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
