"""The report of a sweep: table, page, and the command that trains the winner again."""

import logging
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raincast.sweeps.goals import Goal
from raincast.sweeps.page import SweepResult, TrialRow, lines, write_sweep_page, write_table
from raincast.sweeps.pictures import pictures
from raincast.sweeps.study import DEFAULT, REASON, RETRY_OF, SURPLUS, TRIED_AGAIN, Sweep
from raincast.system.progress import short
from raincast.system.shell import as_typed

log = logging.getLogger(__name__)

SEEDS = "1,2,3,4,5"
"""Seeds for training the winner again, other than the 0 with which it won."""
TABLE, PAGE = "trials.csv", "sweep.html"
HARMLESS_KEY = re.compile(r"\+{0,2}(?!hydra)[A-Za-z_][\w.\[\]/@*]*=")
CODE = ("_target_", "_partial_", "${")
MOST_BEST = 5
"""Number of best trials of a study with one goal; with several goals, all trials on the Pareto front count."""


def write_report(sweep: Sweep, folder: Path, *, storage: str, page: bool) -> SweepResult:
    """Write trials.csv and, with `page`, sweep.html into `folder`; `storage` is shown, so it has no password."""
    found = result(sweep, again_command, facts=[("study", storage)])
    write_table(found, folder / TABLE)
    if page:
        write_sweep_page(found, pictures(sweep), folder / PAGE)
    return found


def say_at_end(found: SweepResult, folder: Path) -> None:
    """Log the best trials, the files and, once no other worker has a trial, what to type next."""
    log.info("\n%s\ntable  %s\npage   %s", lines(found), *(short(folder / name) for name in (TABLE, PAGE)))
    if found.best and not any(row.state == "running" for row in found.rows):
        command = found.row(found.best[0]).command
        log.info("\nNext, train the winner again over several seeds:\n  %s", command)


def again_command(overrides: Sequence[str]) -> str:
    """Return the command that trains a trial again, over several seeds."""
    kept = [override for override in overrides if not override.startswith("seed=")]
    return " ".join([as_typed("python train.py -m"), *map(shlex.quote, kept), f"seed={SEEDS}"])


def result(
    sweep: Sweep, command: Callable[[Sequence[str]], str], facts: Sequence[tuple[str, str]] = ()
) -> SweepResult:
    """Return the results of the study; `command` turns a trial's overrides into the command that repeats it."""
    trials = [t for t in sweep.study.get_trials(deepcopy=False) if not t.user_attrs.get(SURPLUS)]
    return SweepResult(
        name=sweep.study.study_name,
        goals=[goal.score for goal in sweep.goals],
        rows=[_row(trial, sweep, command) for trial in trials],
        best=[trial.number for trial in best_trials(sweep.study, sweep.goals)],
        facts=[("goals", ", ".join(f"{goal.score} ({goal.want})" for goal in sweep.goals)), *facts],
    )


def _row(trial: FrozenTrial, sweep: Sweep, command: Callable[[Sequence[str]], str]) -> TrialRow:
    attrs = trial.user_attrs
    notes = ["the config's own values" if attrs.get(DEFAULT) else "", attrs.get(REASON, "")]
    if attrs.get(TRIED_AGAIN):
        notes.append("tried again")
    if RETRY_OF in attrs:
        notes.append(f"trial {attrs[RETRY_OF]} again")
    overrides = attrs.get("overrides")
    if overrides is not None and not _are_harmless(overrides, sweep.fixed):
        overrides = None
        notes.append("its overrides are not this sweep's: no command is shown")
    return TrialRow(
        number=trial.number,
        state={"fail": "failed", "waiting": "to be run"}.get(trial.state.name.lower(), trial.state.name.lower()),
        params=trial.params,
        values=trial.values if trial.state == TrialState.COMPLETE else (),
        epochs=attrs.get("epochs"),
        seconds=attrs.get("seconds"),
        note="; ".join(filter(None, notes)),
        run_dir=attrs.get("run_dir", ""),
        command="" if overrides is None else command(overrides),
    )


def _are_harmless(overrides: Any, fixed: frozenset[str]) -> bool:
    """Whether a trial's overrides may be typed: a study may come from others, and a `_target_` is a program.

    Those of this worker, and plain values of keys that are not Hydra's own.
    """
    return isinstance(overrides, list) and all(
        isinstance(one, str)
        and (one in fixed or (HARMLESS_KEY.match(one) is not None and not any(word in one for word in CODE)))
        for one in overrides
    )


def best_trials(study: optuna.Study, goals: Sequence[Goal]) -> list[FrozenTrial]:
    """Return the best few trials of one goal, or the Pareto front of several; the best in the first goal leads."""
    if len(goals) > 1:
        found = study.best_trials
    else:
        found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ordered = sorted(found, key=lambda trial: trial.values[0], reverse=goals[0].want == "max")
    return ordered if len(goals) > 1 else ordered[:MOST_BEST]
