"""The report of a sweep: trials.csv, one HTML page, and the command that trains the winner again."""

import csv
import io
import logging
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from raincast.plotting import page
from raincast.plotting.pictures import DOTS_PER_INCH
from raincast.sweeps.study import CURVE, DEFAULT, REASON, RETRY_OF, SURPLUS, TRIED_AGAIN, Sweep
from raincast.sweeps.trials import Goal
from raincast.system import progress
from raincast.system.files import atomic
from raincast.system.paths import as_typed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

SEEDS = "1,2,3,4,5"
"""Seeds for training the winner again, other than the 0 with which it won."""
TABLE, PAGE = "trials.csv", "sweep.html"
HARMLESS_KEY = re.compile(r"\+{0,2}(?!hydra)[A-Za-z_][\w.\[\]/@*]*=")
CODE = ("_target_", "_partial_", "${")
MOST_BEST = 5
"""Number of best trials of a study with one goal; with several goals, all trials on the Pareto front count."""
MOST_PARAMS = 8
FEWEST_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class TrialRow:
    """One trial; `values` has one per goal and is empty without a result."""

    number: int
    state: str
    params: Mapping[str, Any]
    values: Sequence[float] = ()
    epochs: int | None = None
    seconds: float | None = None
    note: str = ""
    run_dir: str = ""
    command: str = ""


@dataclass(frozen=True)
class SweepResult:
    """All trials of a study in the order of their numbers.

    `goals` are the goals' labels. `best` are the numbers of the best trials, the winner first: those that no other
    trial beats in every goal or, with one goal, the best few.
    """

    name: str
    goals: Sequence[str]
    rows: Sequence[TrialRow]
    best: Sequence[int]
    facts: Sequence[tuple[str, str]] = ()

    def row(self, number: int) -> TrialRow:
        """Return the trial with this number."""
        return next(row for row in self.rows if row.number == number)

    def param_names(self) -> list[str]:
        """Return the names of all parameters of all trials."""
        return list(dict.fromkeys(name for row in self.rows for name in row.params))


def write_table(result: SweepResult, path: Path) -> Path:
    """Write all trials as CSV, atomically."""
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = result.param_names()
        writer.writerow(
            ["trial", "state", *result.goals, *names, "epochs", "seconds", "note", "run_dir", "command"]
        )
        for row in result.rows:
            values: list[Any] = list(row.values) or [""] * len(result.goals)
            params = [row.params.get(name, "") for name in names]
            last = [row.epochs, row.seconds, row.note, row.run_dir, row.command]
            writer.writerow([row.number, row.state, *values, *params, *last])
    return path


def write_sweep_page(result: SweepResult, pictures: Mapping[str, bytes], path: Path) -> Path:
    """Write one HTML file: settings and results, the winner's command, `pictures` (PNG by title), all trials."""
    return page.write_page(path, title=f"The sweep {result.name}", sections=_sections(result, pictures))


def _sections(result: SweepResult, pictures: Mapping[str, bytes]) -> Iterator[page.Section]:
    yield page.Section("Overview", [page.Facts([*result.facts, *_counts(result, pictures)])])
    if result.best:
        front = len(result.goals) > 1
        title = "Best trials: no other is better in every goal" if front else "Best trials"
        best = [_cells(result, result.row(number)) for number in result.best]
        yield page.Section(title, [page.Table.of(best)])
        winner = result.row(result.best[0])
        first = f" by {result.goals[0]}" if front else ""
        again = f"Train the winner{first}, trial {winner.number}, again over several seeds"
        yield page.Section(again, [page.Command(winner.command)])
    for title, png in pictures.items():
        yield page.Section(title, [page.Picture(png, title)])
    yield page.Section("All trials", [page.Table.of([_cells(result, row) for row in result.rows])])


def _counts(result: SweepResult, pictures: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    states = [row.state for row in result.rows]
    yield (
        "trials",
        ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))) or "none",
    )
    if not any(title.startswith("Importance") for title in pictures):
        yield "importance", "of the parameters: needs four or more complete trials with different values"
    hours = sum(row.seconds or 0.0 for row in result.rows) / 3600
    yield "time of all trials", f"{hours:.2f} h"


def _cells(result: SweepResult, row: TrialRow) -> dict[str, str]:
    values = dict(zip(result.goals, map(_short, row.values), strict=False))
    cells = {"trial": str(row.number), "state": row.state, **{goal: values.get(goal, "") for goal in result.goals}}
    seconds = "" if row.seconds is None else f"{row.seconds:.0f} s"
    cells |= {"epochs": "" if row.epochs is None else str(row.epochs), "time": seconds}
    cells |= {name: _short(row.params[name]) if name in row.params else "" for name in result.param_names()}
    return cells | {"note": row.note}


def _short(value: Any) -> str:
    """Format a parameter or score in a few characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def lines(result: SweepResult, most: int = 5) -> str:
    """Return lines on the best trials for a terminal."""
    told = [dict(_counts(result, {}))["trials"]]
    for number in list(result.best)[:most]:
        row = result.row(number)
        values = "  ".join(f"{goal} {_short(v)}" for goal, v in zip(result.goals, row.values, strict=True))
        told.append(f"  trial {number}  {values}  " + ", ".join(f"{k} {_short(v)}" for k, v in row.params.items()))
    return "\n".join(told)


def write_report(sweep: Sweep, folder: Path, *, storage: str, page: bool) -> SweepResult:
    """Write trials.csv and, with `page`, sweep.html into `folder`; `storage` is shown, so it has no password."""
    found = result(sweep, again_command, facts=[("study", storage)])
    write_table(found, folder / TABLE)
    if page:
        write_sweep_page(found, pictures(sweep), folder / PAGE)
    return found


def say_at_end(found: SweepResult, folder: Path) -> None:
    """Log the best trials, the files and, once no other worker has a trial, what to type next."""
    log.info(
        "\n%s\ntable  %s\npage   %s", lines(found), *(progress.short(folder / name) for name in (TABLE, PAGE))
    )
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
    notes = [str(attrs.get(DEFAULT, "")), attrs.get(REASON, "")]
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


def pictures(sweep: Sweep) -> Mapping[str, bytes]:
    """Return each picture, drawn by Optuna as PNG, by its title; those that have nothing to show are left out."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    found = {}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the functions are experimental
        for title, draw in _pictures(sweep):
            try:
                found[title] = _png(draw())
            except Exception as error:  # a missing picture must not cost the page
                log.warning("The picture %r could not be drawn: %s", title, error)
    return found


def _pictures(sweep: Sweep) -> "Iterator[tuple[str, Callable[[], Axes | np.ndarray]]]":
    from optuna.visualization import matplotlib as draw

    study, goals = sweep.study, [goal.score for goal in sweep.goals]
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    several = len(goals) > 1
    first: dict[str, Any] = {"target_name": goals[0]}
    if several:
        first["target"] = lambda trial: trial.values[0]
    if complete:
        yield "The course of the sweep", lambda: draw.plot_optimization_history(study, **first)
    for index, other in enumerate(goals[1:], start=1):
        if complete:
            title = f"Goals against each other: {other} and {goals[0]}"
            yield title, partial(_front, study, index, target_names=[other, goals[0]])
    if any(trial.intermediate_values for trial in sweep.curves.get_trials(deepcopy=False)):
        yield "Validation curves", lambda: _curves(sweep, draw.plot_intermediate_values(sweep.curves))
    for index, goal in enumerate(goals):
        if len(complete) >= FEWEST_FOR_IMPORTANCE and len({trial.values[index] for trial in complete}) > 1:
            title = "Importance of each parameter" + (f" for {goal}" if several else "")
            yield title, partial(importances, study, index, target_name=goal)
    params = list(dict.fromkeys(name for trial in complete for name in trial.params))[:MOST_PARAMS]
    if params:
        yield "Parameters", lambda: draw.plot_slice(study, params, **first)


def _front(study: optuna.Study, goal: int, **names: Any) -> "Axes":
    """Plot a goal against the first one for all trials; those on the Pareto front stand out."""
    return optuna.visualization.matplotlib.plot_pareto_front(
        study, targets=lambda trial: (trial.values[goal], trial.values[0]), **names
    )


def importances(study: optuna.Study, goal: int, *, target_name: str) -> "Axes":
    """Plot each parameter's share in separating the best trials from the others, by PED-ANOVA (Watanabe 2023)."""
    # with a target, PED-ANOVA assumes that small is good
    sign = -1.0 if study.directions[goal] == optuna.study.StudyDirection.MAXIMIZE else 1.0
    return optuna.visualization.matplotlib.plot_param_importances(
        study,
        optuna.importance.PedAnovaImportanceEvaluator(),
        target=lambda trial: sign * trial.values[goal],
        target_name=target_name,
    )


def _curves(sweep: Sweep, axes: "Axes") -> "Axes":
    """Label curves with the number of their trial, even if a separate study holds them."""
    axes.set_title("")
    axes.set_xlabel("validation")
    axes.set_ylabel(sweep.goals[0].score)
    if sweep.curves is not sweep.study:
        numbers = {t.user_attrs.get(CURVE): t.number for t in sweep.study.get_trials(deepcopy=False)}
        for line in axes.get_lines():
            number = str(line.get_label()).removeprefix("Trial")
            if number.isdigit():
                line.set_label(f"Trial{numbers.get(int(number), number)}")
    if len(axes.get_lines()) > 1:
        axes.legend(fontsize=8)
    return axes


def _png(axes: "Axes | np.ndarray") -> bytes:
    from matplotlib import pyplot

    figure: Any = np.ravel(np.asarray(axes, dtype=object))[0].figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()
