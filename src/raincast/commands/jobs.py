"""The folder of a run; for several runs of one command (`-m`) the outcome of each, and a table at the end."""

import errno
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from raincast.system.lock import make_folder, own_folder
from raincast.system.paths import as_typed

log = logging.getLogger(__name__)

OUTCOME = "job.json"
SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR,
)  # fmt: skip
"""File errors that a user can resolve: no space, no permission, no such name."""


def one_of_several() -> bool:
    """Return True if this run is one of several started by one command."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def note(result: Any = None, *, error: str | None = None) -> None:
    """Record the outcome of this job in its folder: a number, if the command returns one, or why it failed."""
    hydra = HydraConfig.get()
    outcome = {
        "job": hydra.job.num,
        "overrides": OmegaConf.to_container(hydra.overrides.task),
        "result": float(result) if isinstance(result, int | float) else None,
        "error": error,
    }
    path = Path(hydra.runtime.output_dir) / OUTCOME
    path.write_text(json.dumps(outcome, indent=1), encoding="utf-8")


class OwnFolder(Callback):
    """Give a run that is named by the time a folder of its own: with a suffix if another run has taken it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder before Hydra writes anything into it."""
        _made(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder of several runs."""
        _made(config, "sweep")


def _made(config: DictConfig, kind: str) -> None:
    """Make the folder; an error becomes one line, where Hydra would end with a traceback."""
    try:
        _own(config, kind)
    except OSError as error:
        raise SystemExit(
            f"Error: {said(error)}. A run writes its files there: choose another folder with paths.output_dir=…"
        ) from error


def _own(config: DictConfig, kind: str) -> None:
    HydraConfig.instance().set_config(config)  # the folder may follow from ${hydra:…}
    key, path = f"hydra.{kind}.dir", Path(config.hydra[kind].dir)
    given = any(override.startswith(f"{key}=") for override in config.hydra.overrides.hydra)
    if given or not re.fullmatch(r"\d\d-\d\d-\d\d", path.name):
        make_folder(path)  # the folder of a name, or of the same earlier command
        return
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra[kind].dir = str(own_folder(path))
        # jobs compose their configs again, from the overrides
        config.hydra.overrides.hydra.append(f"{key}='{config.hydra[kind].dir}'")


class JobTable(Callback):
    """Log one table of all jobs once the last has ended; exits with code 1 if one of them failed.

    It reads what the jobs recorded in their folders, so it works with any launcher.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the time: older outcomes belong to another command."""
        self._began = time.time()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Log the table."""
        if "sweep" in config:  # its workers have a table of trials
            return
        folder = Path(config.hydra.sweep.dir)
        jobs = [
            {**json.loads(path.read_text(encoding="utf-8")), "folder": path.parent}
            for path in folder.rglob(OUTCOME)
            if path.stat().st_mtime >= self._began - 1
        ]
        if not jobs:
            return
        jobs.sort(key=lambda job: job["job"])
        log.info("\n%s", _table(jobs, OmegaConf.select(config, "metrics.goal")))
        if failed := sum(job["error"] is not None for job in jobs):
            log.error("%d of %d jobs failed.", failed, len(jobs))
            raise SystemExit(1)


def said(error: BaseException | None) -> str:
    """Return an error as one message: for a file error, the reason and the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {os.fsdecode(error.filename)}"
    return as_typed(str(error))


class Formatter(logging.Formatter):
    """A log formatter that names commands as this user types them."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        return as_typed(super().format(record))


def _table(jobs: list[dict[str, Any]], goal: str | None) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # common overrides do not distinguish the jobs
    common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    scored = goal is not None and any(job["result"] is not None for job in jobs)
    table = Table("job", "overrides", goal if scored and goal else "outcome", "folder", box=SIMPLE_HEAD)
    for job in jobs:
        own = " ".join(override for override in job["overrides"] if override not in common)
        value = f"{job['result']:.4f}" if scored and job["result"] is not None else "done"
        outcome = f"failed: {job['error']}" if job["error"] is not None else value
        table.add_row(*(Text(str(cell)) for cell in (job["job"], own, outcome, job["folder"])))
    console = Console(width=120)
    with console.capture() as text:
        console.print(table)
    return text.get()
