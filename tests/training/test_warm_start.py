"""Beginning with another network's weights: what fits is taken, what not is listed."""

import logging
from pathlib import Path

import pytest
import torch
from running import TINY, compose_config

from raincast import assembly
from raincast.commands import resuming
from raincast.models import PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.training.warm_start import warm_start

STAGES = [{"conv_channels": 4, "hidden_channels": 8}]


def pyramid(in_channels: int = 1, out_channels: int = 1) -> PyramidEncoderForecaster:
    return PyramidEncoderForecaster(in_channels, out_channels, stages=STAGES, head_channels=4)


def test_the_same_network_is_taken_whole_whatever_its_steps() -> None:
    old, new = pyramid(), pyramid()
    done = warm_start(new, old.state_dict())
    assert len(done.loaded) == len(old.state_dict()) and done.num_loaded == done.num_values
    assert not (done.partly or done.other_shape or done.new or done.unused)
    x = torch.rand(1, 5, 1, 16, 16)
    assert torch.equal(old(x, 7), new(x, 7))


@pytest.mark.parametrize("patch", [1, 2])
def test_a_further_channel_changes_nothing_to_begin_with(patch: int) -> None:
    def stacked(channels: int) -> torch.nn.Module:
        return StackedEncoderForecaster(
            channels, patch=patch, hidden_channels=(4, 4), input_kernel=3, state_kernel=3
        )

    old, new = stacked(2), stacked(3)
    done = warm_start(new, old.state_dict(), old_channels=["rain", "wind"], channels=["rain", "observed", "wind"])
    assert done.partly == ["encoder.0.input_weight (kept rain, wind; 0 for observed)"]
    x = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(new(x, 2), old(x[:, :, [0, 2]], 2), rtol=1e-5, atol=1e-6)
    back = stacked(2)
    done = warm_start(back, new.state_dict(), old_channels=["rain", "observed", "wind"], channels=["wind", "rain"])
    assert done.partly == ["encoder.0.input_weight (kept wind, rain; without observed)"]
    torch.testing.assert_close(back(x[:, :, [2, 0]], 2), old(x[:, :, [0, 2]], 2), rtol=1e-5, atol=1e-6)


def test_other_outputs_start_anew_and_are_named() -> None:
    old, new = pyramid(), pyramid(out_channels=7)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    done = warm_start(new, {**old.state_dict(), "gone": torch.zeros(1)})
    text = str(done)
    assert len(done.other_shape) == 2 and "7×4×" in text and "not loaded, of another shape: " in text
    assert done.unused == ["gone"] and "left in the checkpoint: gone" in text
    assert 0 < done.num_loaded < done.num_values
    for entry in done.other_shape:
        name = entry.split()[0]
        assert torch.equal(before[name], new.state_dict()[name])


def test_a_network_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="No weight of the checkpoint fits this network"):
        warm_start(pyramid(), {"other.weight": torch.zeros(3)})


def test_a_run_begins_with_another_s_weights(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other lead times and channels, and what a person is told."""
    last = tiny_run / "checkpoints" / "last.ckpt"
    cfg = compose_config("train", tmp_path, *TINY, f"data.archive={tiny_archive}", f"warm_start={last}",
                         "data.lead_steps=5", "transform=log")  # fmt: skip
    old = assembly.read_checkpoint(last)
    net = assembly.network(dict(cfg.model), num_channels=1)
    with caplog.at_level(logging.INFO):
        resuming.warm_start(cfg, net, {"channels": [{"name": "rain", "role": "target"}], "step_minutes": 10.0})
    assert all(torch.equal(value, old.state[f"network.{name}"]) for name, value in net.state_dict().items())
    assert "100.0% of all" in caplog.text and "another transform" in caplog.text
    assert "learned on steps of 5 minutes; here they are 10" in caplog.text
    cfg.checkpoint = str(last)
    with pytest.raises(ValueError, match="checkpoint= resumes a run, warm_start= starts one"):
        resuming.find(cfg)
