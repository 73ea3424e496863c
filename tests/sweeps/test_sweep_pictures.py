"""What the pictures of a sweep have to show is not hidden by something else in them."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from raincast.plotting.pictures import CURVE_COLOURS
from raincast.sweeps.page import SweepResult, TrialRow
from raincast.sweeps.pictures import pictures


@pytest.mark.parametrize("num_params", [1, 5])
@pytest.mark.parametrize("goals", [["val/csi_1mm"], ["val/csi_1mm", "val/rmse"]])
def test_no_bar_of_an_importance_is_covered(num_params: int, goals: list[str]) -> None:
    names = [f"optimizer.number_{k}" for k in range(num_params)]
    rows = [TrialRow(n, "complete", dict.fromkeys(names, 0.1 * n), [0.1 * n] * len(goals)) for n in range(4)]
    shares = {goal: dict.fromkeys(names, 1.0) for goal in goals}
    result = SweepResult("a", goals, [True] * len(goals), rows, [3], shares)
    with Image.open(io.BytesIO(pictures(result)["Importance of each parameter"])) as picture:
        image = np.asarray(picture.convert("RGB")).astype(float) / 255
    for colour in CURVE_COLOURS[: len(goals)]:
        drawn = (np.abs(image - to_rgb(colour)) < 0.01).all(axis=-1)
        lengths = drawn.sum(axis=1)[drawn.sum(axis=1) > image.shape[1] / 4]
        assert lengths.size > 10 * num_params
        assert np.ptp(lengths) <= 1  # equal shares: whole bars are equally long
