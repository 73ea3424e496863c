"""What a network is asked first and later, and which frames one that reads its own forecasts is given."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TINY, compose_config

from raincast import assembly
from raincast.commands.train import train
from raincast.models import PyramidEncoderForecaster
from raincast.models.predrnn import PredRNN
from raincast.training.curriculum import Approach, Constant, Curriculum, GrowingLead, Linear, Sampling
from raincast.transforms import DbzScaling

SCALE = DbzScaling(a=58.53, b=1.56)
PREDRNN = [
    "model=predrnn",
    "model.patch=8",
    "model.hidden_channels=4",
    "model.num_layers=2",
    "model.input_kernel=3",
    "model.state_kernel=3",
]
WITHOUT = [override for override in TINY if not override.startswith(("model.", "experiment="))]


def small() -> PredRNN:
    return PredRNN(1, patch=2, hidden_channels=4, num_layers=2, input_kernel=3, state_kernel=3)


def test_schedules_are_the_published_ones() -> None:
    falling = Linear(first=1.0, last=0.0, begin=0, end=50_000)
    for step in (0, 1, 25_000, 49_999, 50_000, 80_000):
        assert falling(step) == pytest.approx(max(0.0, 1.0 - 2e-5 * step), abs=1e-12)
    rising = Approach(first=0.5, begin=25_000, end=50_000, scale=5000)
    assert [rising(step) for step in (0, 24_999, 50_000, 60_000)] == [0.5, 0.5, 1.0, 1.0]
    assert rising(30_000) == pytest.approx(1 - 0.5 * math.exp(-1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(1.5), r"value=1\.5 is a probability, from 0 to 1"),
        (lambda: Linear(1.0, -0.1, 0, 10), r"last=-0\.1 is a probability"),
        (lambda: Linear(1.0, 0.0, 10, 10), r"begin=10 and end=10 are optimiser steps"),
        (lambda: Approach(0.5, 0, 10, 0), r"scale=0 must be above 0"),
        (lambda: GrowingLead(0), r"curriculum\.lead\.first=0: give a whole number of at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_lead_time_grows_to_that_of_the_data() -> None:
    lead = GrowingLead(first=2, by=3, every_n_epochs=2)
    assert [lead.steps(epoch, 9) for epoch in range(8)] == [2, 2, 5, 5, 8, 8, 9, 9]
    batch = {name: torch.zeros(1, 9, 1) for name in ("target", "target_mask", "future", "input")}
    cut = Curriculum(lead).shorten(batch, 2)
    assert {name: value.shape[1] for name, value in cut.items()} == {
        "target": 5, "target_mask": 5, "future": 5, "input": 9
    }  # fmt: skip
    assert Curriculum().shorten(batch, 0) is batch


def test_reading_its_own_forecasts_behind_the_input_is_what_it_does_in_use() -> None:
    net = small()
    x, truth = torch.rand(2, 4, 1, 6, 7), torch.rand(2, 3, 1, 6, 7)
    use = torch.tensor([[True] * 3 + [False] * 2] * 2)
    unrolled = net.unroll(x, truth, use)
    assert unrolled.shape == (2, 6, 1, 6, 7)
    torch.testing.assert_close(unrolled[:, -3:], net(x, 3), rtol=0, atol=1e-6)


def test_true_frames_are_read_as_if_they_were_input() -> None:
    net = small()
    x, truth = torch.rand(1, 3, 1, 8, 8), torch.rand(1, 3, 1, 8, 8)
    unrolled = net.unroll(x, truth, torch.ones(1, 4, dtype=torch.bool))
    for steps in (1, 2, 3):  # the forecast of one step after each length of truth
        given = torch.cat([x, truth[:, : steps - 1]], dim=1)
        torch.testing.assert_close(unrolled[:, 1 + steps], net(given, 1)[:, 0], rtol=0, atol=1e-6)
    own = net.unroll(x, truth, torch.zeros(1, 4, dtype=torch.bool))
    torch.testing.assert_close(own, net(x[:, :1], 5), rtol=0, atol=1e-6)


def test_where_nobody_looked_its_own_forecast_is_read() -> None:
    net = small()
    x, truth = torch.rand(1, 2, 1, 4, 4), torch.rand(1, 3, 1, 4, 4)
    missing = torch.full_like(truth, torch.nan)
    always = torch.ones(1, 3, dtype=torch.bool)
    found = net.unroll(x, missing, always)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, -3:], net(x, 3), rtol=0, atol=1e-6)
    truth[..., :2, :] = torch.nan
    assert net.unroll(x, truth, always).isfinite().all()


def test_frames_are_drawn_with_their_probabilities() -> None:
    sampling = Sampling(Constant(0.25), Linear(1.0, 0.0, 0, 10))
    torch.manual_seed(1)
    drawn = sampling.draw(5, 4000, 3, 4, torch.device("cpu"))
    assert drawn.shape == (4000, 5)
    # five standard deviations of the mean of 4000 draws, at most 0.5 / √4000 each
    torch.testing.assert_close(drawn.float().mean(0), torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5]), rtol=0, atol=0.04)


@pytest.mark.parametrize("context_loss", [False, True])
def test_the_loss_compares_each_forecast_with_its_frame(context_loss: bool) -> None:
    sampling = Sampling(Constant(1.0), Constant(0.0), context_loss)
    rain = torch.rand(2, 7, 1, 4, 4) * 10
    rain[0, 2, 0, 0, 0] = rain[1, 5, 0, 1, 1] = torch.nan
    batch = {"input": rain[:, :4], "target": rain[:, 4:], "target_mask": rain[:, 4:].isfinite()}
    frames = SCALE.forward(batch["input"].nan_to_num(0.0))
    output, target, mask = sampling.answer(small(), SCALE, frames, batch, 0)
    compared = rain[:, 1:] if context_loss else rain[:, 4:]
    assert output.shape == target.shape == mask.shape == compared.shape
    assert torch.equal(mask, compared.isfinite())
    torch.testing.assert_close(target, SCALE.forward(compared), equal_nan=True)


def test_a_network_that_reads_no_forecast_is_refused(tmp_path: Path) -> None:
    net = PyramidEncoderForecaster(1, 1, stages=[{"conv_channels": 4, "hidden_channels": 4}], head_channels=4)
    cfg = compose_config("train", tmp_path, *TINY, "curriculum=scheduled_sampling")
    curriculum: Curriculum = assembly.make(cfg.curriculum)
    with pytest.raises(
        ValueError, match=r"PyramidEncoderForecaster reads no forecast of its own\. Take model=predrnn"
    ):
        curriculum.check(net)
    curriculum.check(small())
    assembly.make(compose_config("train", tmp_path, *TINY, "curriculum=growing_lead").curriculum).check(net)


@pytest.mark.usefixtures("undrawn")
def test_a_run_by_curriculum_trains_and_says_what_is_asked(tiny_archive: Path, tmp_path: Path) -> None:
    """Both at once; the steps' numbers make the schedule move within the run."""
    overrides = [
        "experiment=convlstm",
        *WITHOUT,
        *PREDRNN,
        f"data.archive={tiny_archive}",
        "data.eval_stride=12",
        "curriculum=reverse_scheduled_sampling",
        "curriculum.sampling.context.begin=2",
        "curriculum.sampling.context.end=100",
        "curriculum.sampling.forecast.begin=0",
        "curriculum.sampling.forecast.end=10",
        "+curriculum.lead={_target_:raincast.training.curriculum.GrowingLead,first:2}",
    ]
    result = train(compose_config("train", tmp_path, *overrides))
    assert result.metrics["train/lead_steps"] == 3.0  # of the second epoch
    assert result.metrics["train/truth_forecast"] < 0.3
    assert 0.5 < result.metrics["train/truth_context"] < 1.0
    assert result.scores is not None and result.scores.sizes["lead_time"] == 3
