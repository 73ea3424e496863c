"""What training logs of its pace; that it is logged is tested with whole runs."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from raincast.training.callbacks.speed import Pace


def test_a_card_that_does_not_say_how_busy_it_is_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        """Of NVIDIA's library: no other error's child."""

    asked = []

    def not_supported(device: torch.device) -> int:
        asked.append(device)
        raise NVMLError("Not Supported")

    logged: dict[str, float] = {}
    module = L.LightningModule()
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(torch.cuda, "utilization", not_supported)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    device = torch.device("cuda", 0)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device), global_step=0, log_every_n_steps=1)
    pace = Pace()
    pace.on_train_epoch_start(trainer)
    pace.on_train_batch_start()
    pace.on_train_batch_end(trainer, module, None, {"input": torch.zeros(2)})
    pace.on_train_epoch_end(trainer, module)
    assert asked == [device]
    assert logged["train/memory_gib"] == 1.0 and "train/gpu_use" not in logged
