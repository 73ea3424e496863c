"""What a sweep leaves and says: its table, its page, and the command that trains the winner again."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raincast.commands import report

if TYPE_CHECKING:
    from raincast.sweeps.page import SweepResult
    from raincast.sweeps.study import Sweep

log = logging.getLogger(__name__)

SEEDS = "1,2,3,4,5"
"""Of the command that trains the winner again: others than the 0 that it won with."""
TABLE, PAGE = "trials.csv", "sweep.html"


def write_report(sweep: "Sweep", folder: Path, *, storage: str, page: bool) -> "SweepResult":
    """trials.csv, and with `page` sweep.html, into `folder`; `storage` is shown, so it has no password."""
    from raincast.sweeps.page import write_sweep_page, write_table
    from raincast.sweeps.results import result

    found = result(sweep, again_command, facts=[("study", storage)])
    write_table(found, folder / TABLE)
    if page:
        write_sweep_page(found, folder / PAGE)
    return found


def say_at_end(found: "SweepResult", folder: Path) -> None:
    """The best trials, the files, and, once no other worker has a trial, what to type next."""
    from raincast.sweeps.page import lines

    log.info("\n%s\ntable  %s\npage   %s", lines(found), *(report.short(folder / name) for name in (TABLE, PAGE)))
    if found.best and not any(row.state == "running" for row in found.rows):
        command = found.row(found.best[0]).command
        log.info("\nNext, train the winner again over several seeds:\n  %s", command)


def again_command(overrides: Sequence[str]) -> str:
    """The command that trains a trial again, over several seeds."""
    kept = [override for override in overrides if not override.startswith("seed=")]
    return " ".join(["python train.py -m", *map(shlex.quote, kept), f"seed={SEEDS}"])
