"""Scores of validation, and how far ahead of the baselines a network is, against sums by hand."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from running import server

from raincast.metrics import contingency, error_sums
from raincast.metrics.categorical import hss
from raincast.metrics.continuous import rmse
from raincast.training.skill import RainScores, better, score_names, useful_lead, validation_scores

NAN = math.nan


def test_a_network_that_is_its_baseline_has_no_skill() -> None:
    rain = RainScores((0.5, 5.0), 3)
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(4, 3, 1, 8, 8, generator=generator) * 10 for _ in range(2))
    rain.update(pred, target, torch.ones_like(pred, dtype=torch.bool))
    scores = rain.compute()
    named = validation_scores(scores, {"same": scores}, thresholds=(0.5, 5.0), step_minutes=5.0)
    assert list(named) == score_names(["same"], thresholds=(0.5, 5.0), lead_steps=3, step_minutes=5.0)[1:]
    for name in ("skill_csi_0.5mm", "skill_csi_5mm", "ahead_5mm", "useful_lead_5mm", "skill_mse"):
        assert named[f"val/{name}_same"] == 0
    assert named["val/csi_5mm"] == pytest.approx(float(scores["csi"][1].mean()))
    assert named["lead/csi_5mm_010min"] == float(scores["csi"][1, 1])


def test_skill_is_the_share_of_what_was_left_to_gain() -> None:
    own = {"csi": [[0.8, 0.5, NAN]], "hss": [[1.0] * 3], "pod": [[1.0] * 3], "far": [[0.0] * 3],
           "frequency_bias": [[2.0, 0.5, 1.0]], "mae": [1.0] * 3, "rmse": [1.0, 2.0, NAN]}  # fmt: skip
    other = {"csi": torch.tensor([[0.6, 0.75, 0.1]]), "rmse": torch.tensor([2.0, 2.0, 2.0])}
    named = validation_scores(
        {name: torch.tensor(values) for name, values in own.items()},
        {"flow": other}, thresholds=(1.0,), step_minutes=5.0,
    )  # fmt: skip
    # (0.8 − 0.6) / 0.4 = 0.5 and (0.5 − 0.75) / 0.25 = −1; the third lead is undefined
    assert named["val/skill_csi_1mm_flow"] == pytest.approx((0.5 - 1) / 2)
    assert named["val/ahead_1mm_flow"] == 0.5 and named["val/useful_lead_1mm_flow"] == 5.0
    assert named["val/skill_mse_flow"] == pytest.approx((1 - 0.25 + 0) / 2)
    assert named["val/bias_1mm"] == pytest.approx(3.5 / 3)
    assert named["val/bias_error_1mm"] == pytest.approx((0.5 + 0.5 + 0) / 3)  # twice is as far off as half


@pytest.mark.parametrize(
    ("own", "minutes"),
    [
        ([0.6, 0.6, 0.6], 30.0),  # to the end
        ([0.6, 0.6, 0.5], 20.0),  # level is not ahead
        ([0.4, 0.6, 0.6], 0.0),
        ([0.6, NAN, 0.6], 30.0),
        ([0.6, 0.6, NAN], 20.0),
        ([NAN, NAN, NAN], NAN),
    ],
)
def test_useful_lead_ends_where_the_baseline_is_reached(own: list[float], minutes: float) -> None:
    np.testing.assert_equal(useful_lead(torch.tensor(own), torch.full((3,), 0.5), 10.0), minutes)


def test_every_logged_score_has_a_direction_but_the_bias() -> None:
    names = score_names(["persistence"], thresholds=(0.5, 10.0), lead_steps=2, step_minutes=7.5)
    assert "lead/csi_10mm_7.5min" in names and "lead/csi_10mm_015min" in names
    assert [name for name in names if better(name) is None] == ["val/bias_0.5mm", "val/bias_10mm"]
    lower = {name.split("_")[0] for name in names if better(name) == "min"}
    assert lower == {"val/loss", "val/mae", "val/rmse", "val/far", "val/bias"}


THRESHOLDS = (0.5, 2.0)
RATIOS = ("csi", "pod", "far", "frequency_bias", "hss", "ets", "f1")
MEANS = ("mean_error", "mae", "rmse", "correlation", "uncentred_correlation")


def fields(num: int = 4, leads: int = 3):
    g = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(num, leads, 1, 8, 8, generator=g) ** 3 * 6 for _ in range(2))
    return pred, target, torch.rand(pred.shape, generator=g) > 0.2


def test_batches_equal_the_whole():
    pred, target, mask = fields()
    whole, parts = RainScores(THRESHOLDS, 3), RainScores(THRESHOLDS, 3)
    whole.update(pred, target, mask)
    for cut in (slice(0, 1), slice(1, 4)):  # of unequal size: means of ratios would differ
        parts.update(pred[cut], target[cut], mask[cut])
    torch.testing.assert_close(parts.compute(), whole.compute())


def test_scores_are_ratios_of_pooled_sums():
    pred, target, mask = fields()
    metric = RainScores(THRESHOLDS, 3)
    metric.update(pred, target, mask)
    got = metric.compute()
    counts = type(c := contingency(pred, target, mask, THRESHOLDS))(*(part.sum(0) for part in c))
    torch.testing.assert_close(got["hss"], hss(counts))
    torch.testing.assert_close(got["hits"], counts.hits)
    sums = type(e := error_sums(pred, target, mask))(*(part.sum(0) for part in e))
    torch.testing.assert_close(got["rmse"], rmse(sums))
    assert all(got[name].shape == (2, 3) and got[name].dtype == torch.float64 for name in RATIOS)
    assert all(got[name].shape == (3,) and got[name].dtype == torch.float64 for name in MEANS)
    assert got["hits"].dtype == got["count"].dtype == torch.int64


def test_perfect_forecast():
    _, target, mask = fields()
    metric = RainScores(THRESHOLDS, 3)
    metric.update(target, target, mask)
    got = metric.compute()
    assert all((got[name] == 1).all() for name in ("csi", "pod", "frequency_bias", "hss", "ets", "f1"))
    assert all((got[name] == 0).all() for name in ("far", "mae", "rmse"))


def test_nothing_seen_is_nan_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = RainScores(THRESHOLDS, 3).compute()
    assert all(got[name].isnan().all() for name in RATIOS + MEANS)
    assert not got["hits"].any()


def test_counts_beyond_float32_stay_exact():
    metric = RainScores([0.5], 1)
    metric.hits += 2**24  # the last whole number after which float32 skips one
    rain = torch.ones(1, 1, 1, 1, 1)
    metric.half().update(rain, rain, rain.bool())
    assert int(metric.compute()["hits"]) == 2**24 + 1


def test_forecasts_with_gradients_are_counted_as_those_without():
    pred, target, mask = fields()
    attached = pred.clone().requires_grad_()
    plain = contingency(pred, target, mask, THRESHOLDS), error_sums(pred, target, mask)
    other = contingency(attached, target, mask, THRESHOLDS), error_sums(attached, target, mask)
    for sums, same in zip(plain, other, strict=True):
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(sums, same, strict=True))


def test_reset_forgets():
    metric = RainScores(THRESHOLDS, 3)
    metric.update(*fields())
    metric.compute()
    metric.reset()
    assert metric.compute()["count"].sum() == 0


def test_wrong_number_of_leads_is_refused():
    with pytest.raises(ValueError, match=r"Expected 4 lead times \(num_leads\), found 3"):
        RainScores(THRESHOLDS, 4).update(*fields())


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = RainScores(THRESHOLDS, 3)
    if rank == 0:  # the other rank has seen nothing
        for batch in zip(*(part.split(2) for part in fields()), strict=True):
            metric.update(*batch)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path):
    server()  # its processes have torch loaded
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="forkserver")
    metric = RainScores(THRESHOLDS, 3)
    metric.update(*fields())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), metric.compute())
