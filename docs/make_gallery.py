"""Run the commands whose pictures and pages gallery.md shows, as a user would type them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from raincast.api import open_sample
from raincast.synthetic import build_builtin_archive
from raincast.system.paths import sample_path
from raincast.version import __version__

SMALL = ["data.eval_stride=6", "baselines=[persistence,extrapolation]"]


def make_gallery(folder: Path) -> None:
    """Create pictures and pages in `folder`, once per version; remove the folder to create them again."""
    stamp = folder / "made"
    if stamp.is_file() and stamp.read_text() == __version__:
        return
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True)
    places = work / "places.csv"
    places.write_text("name,lat,lon\nZürich,47.38,8.54\nLausanne,46.52,6.63\n", encoding="utf-8")
    sample = str(sample_path())
    open_sample().isel(time=slice(0, 5)).to_netcdf(work / "newest.nc")
    _run(work, "forecast", "folder=forecast", "pictures=true", f"places={places}")
    _run(work, "ingest", f"inspect={sample}", "report=inspect.html")
    any_age = ["live.max_age_minutes=null", "live.keep_hours=null"]
    live = ["watch=newest.nc", "live.once=true", *any_age, "live.output=live", "site=site", f"places={places}"]
    _run(work, "forecast", *live, "animation=false")
    build_builtin_archive(work / "storms", num_days=3, frames_per_day=48, size=96)
    _run(work, "evaluate", "data.archive=storms", *SMALL, "metrics=full", "hydra.run.dir=evaluation")
    for name, made in {
        "forecast.png": "forecast/observed.png",
        "forecast.gif": next((work / "forecast").glob("*.gif")),
        "inspect.html": "inspect.html",
        "report.html": "evaluation/report.html",
    }.items():
        shutil.copy(work / made, folder / name)
    shutil.copytree(work / "site", folder / "site")
    shutil.rmtree(work)
    stamp.write_text(__version__)


def _run(work: Path, command: str, *overrides: str) -> None:
    code = f"from raincast.cli import {command}; {command}()"
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides], cwd=work, env=os.environ, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command} {' '.join(overrides)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
