"""The study that workers share: nobody takes what another has, the dead are noticed; its goals and pictures."""

import io
import math
import socket
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from PIL import Image

from raincast.sweeps.report import best_trials, importances, pictures, result
from raincast.sweeps.study import WORKER, Sweep, counts, without_password
from raincast.sweeps.trials import Goal, check_goals

SPACE = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "width": CategoricalDistribution([8, 16])}
ONE, TWO = [Goal("csi")], [Goal("csi"), Goal("latency_ms", "min")]


def worker(folder: Path, goals: list[Goal] = ONE, *, budget: int = 4, **settings: Any) -> Sweep:
    storage = str(settings.pop("storage", folder / "study.journal"))
    return Sweep(storage, "s", goals, folder=folder, budget=budget, **settings)


def states(sweep: Sweep) -> list[str]:
    return [trial.state.name for trial in sweep.study.get_trials(deepcopy=False) if counts(trial)]


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///{}/study.db"])
def test_workers_share_a_budget(storage: str, tmp_path: Path) -> None:
    where = storage.format(tmp_path) if "://" in storage else tmp_path / storage
    one, two = (worker(tmp_path, storage=where, budget=3) for _ in range(2))
    with one.at_work(), two.at_work():
        taken = [sweep.next(SPACE) for sweep in (one, two, one, two)]
    assert [trial and trial.number for trial in taken] == [0, 1, 2, None]
    # the same study with a larger budget goes on
    again = worker(tmp_path, storage=where, budget=4).next(SPACE)
    assert again is not None and again.number == 3


def test_who_asks_at_the_same_moment_for_the_last_trial_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = worker(tmp_path, budget=1), worker(tmp_path, budget=1)
    look, first = two.num_counted, True

    def looked_before_the_other_asked(below: int | None = None) -> int:
        nonlocal first
        if first:
            first = False
            assert one.next(SPACE) is not None
            return 0
        return look(below)

    monkeypatch.setattr(two, "num_counted", looked_before_the_other_asked)
    assert two.next(SPACE) is None
    assert states(one) == ["RUNNING"]
    assert len(result(one, " ".join).rows) == 1


def test_the_trial_of_a_killed_worker_is_tried_again_and_then_fails(tmp_path: Path) -> None:
    tried = []
    for _ in range(2):  # its retry dies, too
        dead = worker(tmp_path, budget=2)
        with dead.at_work():
            trial = dead.next(SPACE)
        assert trial is not None
        tried.append(trial)
        # a process that is killed leaves the file of its lock, unlocked
        (tmp_path / "workers" / f"{dead.worker}.lock").touch()
        other = worker(tmp_path, budget=2)
        assert other.recover() == [trial.number]
        assert other.recover() == []
    assert tried[0].params == tried[1].params
    assert states(other) == ["FAIL"]  # of the budget's two; the first was another's turn
    rows = result(other, " ".join).rows
    assert [row.note for row in rows] == [
        "its worker was killed; tried again",
        "its worker was killed; trial 0 again",
    ]
    assert other.next(SPACE) is not None
    assert other.next(SPACE) is None


def test_a_living_worker_keeps_its_trial(tmp_path: Path) -> None:
    one = worker(tmp_path)
    with one.at_work():
        assert one.next(SPACE) is not None
        assert worker(tmp_path).recover() == []


@pytest.mark.parametrize(("silent_minutes", "dead"), [(1, False), (7, True)])
def test_a_worker_elsewhere_is_dead_when_it_is_silent(
    silent_minutes: float, dead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = worker(tmp_path, dead_after_minutes=5)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert elsewhere.next(SPACE) is not None
    monkeypatch.undo()
    elsewhere.study.set_user_attr(f"{WORKER} {elsewhere.worker}", time.time() - 60 * silent_minutes)
    assert worker(tmp_path).recover() == ([0] if dead else [])


def test_with_several_goals_curves_are_pruned_beside_the_study(tmp_path: Path) -> None:
    """Optuna's pruners refuse studies of several goals; the first goal's curves are in a study of their own."""
    sweep = worker(tmp_path, TWO, budget=6)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    asked = []
    for height in (0.5, 0.1):
        trial = sweep.next(SPACE)
        assert trial is not None
        curve = sweep.curve(trial)
        study = optuna.load_study(study_name=curve.study, storage=sweep.study._storage, pruner=pruner)
        reporting = optuna.trial.Trial(study, curve.trial_id)
        reporting.report(height, step=0)
        asked.append(reporting.should_prune())
        if asked[-1]:
            sweep.prune(trial)
        else:
            sweep.complete(trial, [height, 3.0])
    assert asked == [False, True]
    assert states(sweep) == ["COMPLETE", "PRUNED"]
    assert [trial.state.name for trial in sweep.curves.get_trials()] == ["COMPLETE", "PRUNED"]
    assert [trial.intermediate_values for trial in sweep.curves.get_trials()] == [{0: 0.5}, {0: 0.1}]


def test_the_best_of_several_goals_are_those_that_none_beats(tmp_path: Path) -> None:
    sweep = worker(tmp_path, TWO, budget=9)
    for values in ([0.4, 5.0], [0.5, 9.0], [0.3, 6.0], [0.5, 8.0]):
        trial = sweep.next(SPACE)
        assert trial is not None
        sweep.complete(trial, values)
    # trial 2 is beaten by 0 in both, 1 by 3 in the latency
    assert [trial.number for trial in best_trials(sweep.study, TWO)] == [3, 0]


def test_what_decides_is_the_most_important(tmp_path: Path) -> None:
    sweep = worker(tmp_path, budget=30, sampler=optuna.samplers.RandomSampler(seed=1))
    while (trial := sweep.next(SPACE)) is not None:
        sweep.complete(trial, [trial.params["lr"]])
    axes = importances(sweep.study, 0, target_name="the first goal")
    names = [label.get_text() for label in axes.get_yticklabels()]
    found = dict(zip(names, [bar.get_width() for bar in axes.patches], strict=True))
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["lr"] > 0.9
    assert best_trials(sweep.study, ONE)[0].params["lr"] == max(t.params["lr"] for t in sweep.study.trials)


def test_a_study_of_other_goals_or_choices_is_refused(tmp_path: Path) -> None:
    first = worker(tmp_path)
    assert first.agree("a: 1", SPACE) is None
    assert worker(tmp_path).agree("a: 1", SPACE | {"lr": FloatDistribution(1e-5, 1.0)}) is None
    assert worker(tmp_path).agree("a: 2", SPACE) == "a: 1"
    with pytest.raises(ValueError, match=r"width had .*8, 16.* cannot become .*8, 32.*sweep\.study=NAME"):
        worker(tmp_path).agree("a: 1", {"width": CategoricalDistribution([8, 32])})
    with pytest.raises(ValueError, match=r"The study s has 1 goals \(maximize\), sweep\.goals has 2"):
        worker(tmp_path, TWO)


def test_who_gives_up_a_trial_that_is_over_changes_nothing(tmp_path: Path) -> None:
    sweep = worker(tmp_path)
    trial = sweep.next(SPACE)
    assert trial is not None
    running = sweep.study.get_trials()[0]
    sweep.complete(trial, [0.5])
    assert not sweep.give_up(running, "too late")
    assert sweep.study.get_trials(states=(TrialState.COMPLETE,))[0].user_attrs.keys() == {WORKER}
    assert states(sweep) == ["COMPLETE"]


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert without_password("a/study.journal") == "a/study.journal"
    assert without_password("sqlite:///x.db") == "sqlite:///x.db"


def test_a_score_is_told_as_it_is() -> None:
    assert Goal("val/csi_1mm").value({"val/csi_1mm": 0.25}) == 0.25
    assert Goal("val/csi_1mm").direction == "maximize"
    assert Goal("latency_ms", "min").direction == "minimize"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"val/mae": 1.0}, r"val/csi_1mm is not logged; there are val/mae"), ({"val/csi_1mm": math.nan}, "is nan")],
)
def test_a_score_that_is_not_there_is_answered(metrics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goal("val/csi_1mm").value(metrics)


def test_bad_goals_are_answered() -> None:
    with pytest.raises(ValueError, match=r"want=most of val/csi_1mm; there are max, min"):
        Goal("val/csi_1mm", "most")
    with pytest.raises(ValueError, match="each once"):
        check_goals([Goal("a"), Goal("a")], prunes=False)
    with pytest.raises(ValueError, match=r"Put a score first, or set sweep\.pruner=null"):
        check_goals([Goal("latency_ms", "min"), Goal("a")], prunes=True)
    check_goals([Goal("latency_ms", "min"), Goal("a")], prunes=False)


NAMED_SPACE = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "model": CategoricalDistribution(["convlstm_small", "predrnn"]),
}


def sweep(folder, num_trials: int, *goals: str) -> Sweep:
    made = Sweep(
        str(folder / "study.journal"), "a", [Goal(goal) for goal in goals], folder=folder, budget=num_trials,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    for number in range(num_trials):
        trial = made.next(NAMED_SPACE)
        assert trial is not None
        curve = made.curve(trial)
        study = optuna.load_study(study_name=curve.study, storage=made.curves._storage)
        optuna.trial.Trial(study, curve.trial_id).report(0.1 * number, step=0)
        made.complete(trial, [0.1 * number] * len(goals))
    return made


@pytest.mark.parametrize("goals", [["val/csi_1mm"], [f"val/csi_{mm}mm" for mm in (1, 2, 5, 10)]])
def test_a_sweep_is_drawn(tmp_path, goals):
    before = dict(matplotlib.rcParams)
    found = pictures(sweep(tmp_path, 5, *goals))
    own = {f"Goals against each other: {goal} and {goals[0]}" for goal in goals[1:]}
    importances = {"Importance of each parameter" + (f" for {goal}" if len(goals) > 1 else "") for goal in goals}
    assert set(found) == {"The course of the sweep", "Validation curves", "Parameters"} | own | importances
    for png in found.values():
        with Image.open(io.BytesIO(png)) as image:
            assert np.asarray(image.convert("L")).std() > 0
    assert dict(matplotlib.rcParams) == before, "Optuna's style stays with its pictures"


def test_what_there_is_nothing_to_show_of_is_left_out(tmp_path):
    assert pictures(sweep(tmp_path, 0, "val/csi_1mm")) == {}
    assert "Importance of each parameter" not in pictures(sweep(tmp_path / "two", 2, "val/csi_1mm"))
