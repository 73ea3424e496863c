"""Optuna studies from strangers: their values become overrides of trainings, their names become paths."""

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from raincast.sweeps.report import again_command, result
from raincast.sweeps.study import WORKER, Sweep, values_of
from raincast.sweeps.trials import Goal

SPACE: dict[str, BaseDistribution] = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "model": CategoricalDistribution(["convlstm", "trajgru"]),
}
GOOD: dict[str, Any] = {"optimizer.lr": 1e-2, "model": "convlstm"}


@pytest.fixture(params=["study.journal", "sqlite:///{}/study.db"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sweep, Path]:
    """A sweep on a study that a stranger has made."""
    storage = request.param.format(tmp_path) if "://" in request.param else str(tmp_path / request.param)
    return Sweep(storage, "s", [Goal("csi")], folder=tmp_path / "sweep", budget=9), tmp_path


def plant(
    sweep: Sweep,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution] | None = None,
    *,
    state: TrialState = TrialState.WAITING,
    **attrs: Any,
) -> None:
    """A trial with any values, put into the storage past Optuna's own checks."""
    began = None if state == TrialState.WAITING else datetime.now(UTC).replace(tzinfo=None)
    trial = optuna.trial.FrozenTrial(
        number=-1, trial_id=-1, state=state, value=1.0 if state == TrialState.COMPLETE else None,
        datetime_start=began, datetime_complete=began if state.is_finished() else None, params=params,
        distributions=distributions or {key: CategoricalDistribution([value]) for key, value in params.items()},
        user_attrs=attrs.pop("user_attrs", {}), system_attrs=attrs, intermediate_values={},
    )  # fmt: skip
    sweep.study._storage.create_new_trial(sweep.study._study_id, template_trial=trial)


@pytest.mark.parametrize(
    "params",
    [
        GOOD | {"+callbacks.x._target_": "os.system"},
        GOOD | {"hydra.searchpath": "[file:///tmp]"},
        GOOD | {"optimizer.lr": "1e-2 +callbacks.x={_target_:os.system}"},
        GOOD | {"model": "convlstm,{_target_:os.system}"},
        GOOD | {"optimizer.lr": "${oc.create:{_target_:os.system}}"},
        GOOD | {"optimizer.lr": float("inf")},
        {"optimizer.lr": 1e-2},
    ],
)
def test_a_waiting_trial_gives_no_other_values_than_those_of_the_space(
    params: dict[str, Any], study: tuple[Sweep, Path]
) -> None:
    """Where the values that it has would become overrides of a training."""
    sweep, _ = study
    plant(sweep, params)
    with pytest.raises(ValueError, match=r"sweep\.space|incompatible|distribution"):
        trial = sweep.next({key: value for key, value in SPACE.items() if key in params})
        assert trial is not None
        values_of(trial.params, SPACE)


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_a_trial_that_is_asked_for_has_values_of_the_space(study: tuple[Sweep, Path]) -> None:
    """As `enqueue_trial` leaves it: Optuna warns of a value out of range, and takes it."""
    sweep, _ = study
    plant(sweep, {}, fixed_params={"optimizer.lr": 5.0, "model": "trajgru"})
    trial = sweep.next(SPACE)
    assert trial is not None
    with pytest.raises(ValueError, match=r"optimizer\.lr=5\.0 is not in sweep\.space"):
        values_of(trial.params, SPACE)


def test_the_values_of_an_honest_trial_are_taken(study: tuple[Sweep, Path]) -> None:
    sweep, _ = study
    sweep.begin_with(GOOD, SPACE)
    for _ in range(2):
        trial = sweep.next(SPACE)
        assert trial is not None and values_of(trial.params, SPACE) == trial.params


@pytest.mark.parametrize("worker", ["{}/victim", "../../victim", {}, {"id": "12345678"}, "x" * 300, 7])
def test_the_name_of_a_worker_is_no_path(worker: Any, study: tuple[Sweep, Path]) -> None:
    """A lock is opened by it, which would empty any file whose name ends in .lock."""
    sweep, folder = study
    (folder / "sweep" / "workers").mkdir(parents=True)
    victim = folder / "victim.lock"
    victim.write_text("mine")
    if isinstance(worker, str):
        worker = {"id": worker.format(folder), "host": socket.gethostname(), "began": 0.0}
    plant(sweep, {}, state=TrialState.RUNNING, user_attrs={WORKER: worker})
    assert sweep.recover() == [] and victim.read_text() == "mine"


@pytest.mark.parametrize(
    "overrides",
    [
        ["+callbacks.x._target_=os.system"],
        ["+callbacks.x={_target_:os.system}"],
        ["hydra.searchpath=[file:///tmp]"],
        ["--config-dir=/tmp"],
        ["optimizer.lr=${oc.env:HOME}"],
        "rm -rf",
        [1],
    ],
)
def test_no_command_is_shown_that_would_run_code(overrides: Any, study: tuple[Sweep, Path]) -> None:
    sweep, _ = study
    plant(sweep, GOOD, state=TrialState.COMPLETE, user_attrs={"overrides": overrides})
    plant(sweep, GOOD, state=TrialState.COMPLETE, user_attrs={"overrides": ["optimizer.lr=0.01; rm -rf ~"]})
    bad, quoted = result(sweep, again_command).rows
    assert bad.command == "" and "no command" in bad.note
    assert "'optimizer.lr=0.01; rm -rf ~'" in quoted.command


def test_a_damaged_journal_or_database_is_an_error(tmp_path: Path) -> None:
    for name, content in (
        ("a.journal", b'{"op_code": 0,'),
        ("a.journal", b"[" * 100_000),
        ("a.db", b"no database"),
    ):
        path = tmp_path / name
        path.write_bytes(content + b"\n")
        storage = str(path) if name.endswith("journal") else f"sqlite:///{path}"
        with pytest.raises(Exception, match=r"."):
            Sweep(storage, "s", [Goal("csi")], folder=tmp_path, budget=1)
