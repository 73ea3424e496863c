import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from running import server

from raincast.metrics import contingency, error_sums
from raincast.metrics.categorical import hss
from raincast.metrics.continuous import rmse
from raincast.training.skill import RainScores

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
