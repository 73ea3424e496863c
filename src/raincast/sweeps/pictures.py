"""Pictures of a sweep as PNG, drawn by Optuna."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import optuna
from optuna.trial import TrialState

from raincast.plotting.pictures import DOTS_PER_INCH
from raincast.sweeps.study import CURVE, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PARAMS = 8
FEWEST_FOR_IMPORTANCE = 4

log = logging.getLogger(__name__)


def pictures(sweep: Sweep) -> Mapping[str, bytes]:
    """Return each picture by its title; those that have nothing to show are left out."""
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
