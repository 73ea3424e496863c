"""Real files → archives: one `ingest.py` command per folder, its cost, and its result against known figures.

For each event of a folder of radar files (`--radar`, or RAINCAST_RADAR) the command runs in a process of its own.
Then the archive is read: the wet share of the observed pixels, its range over the frames, the maximum, the share
of pixels without data.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import write_json

from raincast.archive import Archive

ROOT = Path(__file__).resolve().parent.parent
EVENTS = {
    "knmi/20100826": "knmi/20100826/**/*.h5",
    "mch/20150515": "mch/20150515/**/*.gif",
    "mch/20160711": "mch/20160711/**/*.gif",
    "mch/20170131": "mch/20170131/**/*.gif",
    "fmi/20160928": "fmi/20160928/**/*.pgm.gz",
    "fmi/20170509": "fmi/20170509/**/*.pgm.gz",
    "smhi": "smhi/openmrg_rad_8d.nc",
    "opera_cirrus/20241126": "opera_cirrus/20241126/**/*.hdf",
    "mrms/20190610": "mrms/20190610/**/*.grib2*",
}
WET_MM_H = 0.1


def run(files: str, archive: Path, workers: int) -> dict[str, float]:
    """Return the CPU seconds of the command and its workers, and the peak memory of the largest of them."""
    shutil.rmtree(archive, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        str(ROOT / "ingest.py"),
        f"files='{files}'",
        f"archive={archive}",
        f"workers={workers}",
    ]
    watched = ["/usr/bin/env", "time", "-f", "%M", *command]
    done = subprocess.run(watched, cwd=archive.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"CPU s": seconds, "peak MiB": int(done.stderr.split()[-1]) / 1024}


def figures(archive: Archive) -> dict[str, float]:
    """Return figures of the archive, read frame by frame."""
    wet, largest, absent = [], 0.0, []
    for number in range(archive.num_times):
        rain = archive.read(number, 1)
        observed = np.isfinite(rain)
        absent.append(1 - observed.mean())
        wet.append((rain[observed] > WET_MM_H).mean())
        largest = max(largest, float(np.nanmax(rain)))
    return {
        "frames": archive.num_times,
        "wet": float(np.mean(wet)),
        "least": float(np.min(wet)),
        "most": float(np.max(wet)),
        "max mm/h": largest,
        "no data": float(np.mean(absent)),
    }


def main() -> None:
    """Ingest, read, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--radar", type=Path, default=os.environ.get("RAINCAST_RADAR"))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/ingest"))
    parser.add_argument("--only", nargs="*", default=list(EVENTS), choices=list(EVENTS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/ingest.json"))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in args.only:
        archive = out / name.replace("/", "_")
        cost = run(str(args.radar.resolve() / EVENTS[name]), archive, args.workers)
        found = figures(Archive.open(archive))
        rows.append({"event": name, **found, **cost, "frames / CPU s": found["frames"] / cost["CPU s"]})
        write_json(args.json, {"rows": rows})
        Console().print(
            " ".join(f"{key}={value:.3g}" if key != "event" else str(value) for key, value in rows[-1].items())
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(v) if isinstance(v, str) else f"{v:.3g}" for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
