"""Pictures of a sweep are drawn by Optuna, from the study."""

import io

import matplotlib
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from PIL import Image

from raincast.sweeps.report import pictures
from raincast.sweeps.study import Sweep
from raincast.sweeps.trials import Goal

SPACE = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "model": CategoricalDistribution(["convlstm_small", "predrnn"]),
}


def sweep(folder, num_trials: int, *goals: str) -> Sweep:
    made = Sweep(
        str(folder / "study.journal"), "a", [Goal(goal) for goal in goals], folder=folder, budget=num_trials,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    for number in range(num_trials):
        trial = made.next(SPACE)
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
