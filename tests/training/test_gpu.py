"""What only a GPU can show; skipped, with the reason, where there is none."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from running import TINY, compose_config

from raincast.commands.train import train


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "more",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=16-mixed", "ema=0.9"],
        ["trainer.precision=32-true", "tf32=false", "model.cell.recompute=true"],
        ["trainer.precision=64-true", "recompute=true"],
    ],
    ids=lambda more: more[0].rpartition("=")[2],
)
def test_it_trains_on_a_gpu(tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, more) -> None:
    overrides = [o for o in TINY if not o.startswith("trainer.accelerator")]
    gpu = ["trainer.accelerator=gpu", f"data.archive={tiny_archive}", *more]
    result = train(compose_config("train", tmp_path, *overrides, *gpu))
    assert result.last.is_file()
    weights = torch.load(result.last, weights_only=True)["state_dict"]
    whole = torch.float64 if "64-true" in more[0] else torch.float32
    assert all(values.dtype == whole for name, values in weights.items() if name.startswith("network."))
    if find_spec("triton"):
        assert "plain PyTorch" not in caplog.text, "the kernels are right on this card"
