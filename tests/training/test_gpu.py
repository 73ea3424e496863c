"""What only a GPU can show; skipped, with the reason, where there is none."""

from pathlib import Path

import pytest
import torch
from running import TINY, compose_config

from raincast.commands.train import train


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_trains_on_a_gpu(tiny_archive: Path, tmp_path: Path) -> None:
    overrides = [o for o in TINY if not o.startswith("trainer.accelerator")]
    gpu = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", f"data.archive={tiny_archive}"]
    result = train(compose_config("train", tmp_path, *overrides, *gpu))
    assert result.last.is_file()
    assert all(w.dtype == torch.float32 for w in torch.load(result.last, weights_only=True)["state_dict"].values())
