"""How a network is computed: each key takes effect, and what is in force is read back and logged."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from checking import rates_of
from running import TINY, compose_config

from raincast import assembly
from raincast.commands import report
from raincast.commands.train import TrainResult, train
from raincast.models import ConvLSTM, PyramidEncoderForecaster
from raincast.models.layers.convgru import ConvGRU
from raincast.models.predrnn import PredRNN
from raincast.training import execution
from raincast.training.execution import AveragedWeights
from raincast.training.module import NowcastModule

STAGES = [{"conv_channels": 4, "hidden_channels": 8}]
WET = ["metrics.thresholds=[0.01,0.1,1]", "metrics.goal=val/csi_0.01mm"]  # so that a short run has scores


def run(archive: Path, folder: Path, *overrides: str) -> TrainResult:
    few = ["data.samples_per_epoch=16", "trainer.max_epochs=1", *WET]
    return train(compose_config("train", folder, *TINY, *few, f"data.archive={archive}", *overrides))


@pytest.fixture(autouse=True)
def no_scores_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows training is not what is looked at here."""
    monkeypatch.setattr(report, "after_training", lambda *_, **__: None)


@pytest.fixture(scope="module")
def plain(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with nothing switched on."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "after_training", lambda *_, **__: None)
        run(tiny_archive, folder)
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged(folder: Path) -> dict[str, Any]:
    """What the run says it used."""
    return yaml.safe_load((folder / "csv" / "version_0" / "hparams.yaml").read_text())["used"]


def watch(monkeypatch: pytest.MonkeyPatch, what: str, look: Any) -> list[Any]:
    """What `look(module, trainer)` gives in each call of the hook `what`."""
    seen: list[Any] = []

    def hook(self: NowcastModule, *_: Any) -> None:
        seen.append(look(self, self.trainer))

    monkeypatch.setattr(NowcastModule, what, hook)
    return seen


def test_the_plain_run_says_what_it_is(plain: Path) -> None:
    expected = {
        "precision": "32-true",
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 1.0,
        "compiled": False,
        "recompute": "0 of 5 layers",
        "strategy": "SingleDeviceStrategy",
        "processes": 1,
    }
    assert expected.items() <= logged(plain).items() and logged(plain)["ema"] is None


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen = []
    forward = ConvLSTM.forward

    def watched(self: ConvLSTM, *args: Any) -> Any:
        result = forward(self, *args)
        seen.extend([result[0].dtype, result[1][1].dtype])
        return result

    monkeypatch.setattr(ConvLSTM, "forward", watched)
    result = run(tiny_archive, tmp_path, f"trainer.precision={precision}")
    # a CPU has no float16 that is worth it: Lightning takes bfloat16, and that is what has to be logged
    assert logged(tmp_path)["precision"] == "bf16-mixed"
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}, "cells are sums over all steps"
    assert {w.dtype for w in weights(result.last).values()} == {torch.float32}


def test_float16_scales_its_loss(tiny_archive: Path, tmp_path: Path, plain: Path) -> None:
    """On a CPU by hand, with the plugin that Lightning takes on a GPU: small gradients are not lost."""
    plugin = (
        "+trainer.plugins=[{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu, "
        "scaler: {_target_: torch.amp.GradScaler, device: cpu, init_scale: 1024.0}}]"
    )
    result = run(tiny_archive, tmp_path / "half", plugin, "trainer.precision=null")
    assert logged(tmp_path / "half")["precision"] == "16-mixed"
    assert logged(tmp_path / "half")["loss_scale"] == 1024.0
    expected = weights(plain / "checkpoints" / "last.ckpt")
    start = assembly.network(assembly.read_checkpoint(result.last).config["model"]).state_dict()
    for name, found in weights(result.last).items():
        assert found.isfinite().all()
        moved = (expected[name] - start[name.removeprefix("network.")]).abs().mean() + 1e-3
        assert (found - expected[name]).abs().mean() < moved, name


def test_accumulated_batches_are_one_large_one(tiny_archive: Path, tmp_path: Path) -> None:
    exact = "trainer.precision=64-true"
    whole = run(tiny_archive, tmp_path / "whole", exact, "data.batch_size=8")
    parts = run(tiny_archive, tmp_path / "parts", exact, "data.batch_size=4", "trainer.accumulate_grad_batches=2")
    assert logged(tmp_path / "parts")["accumulate_grad_batches"] == 2
    steps = [torch.load(r.last, weights_only=True)["global_step"] for r in (whole, parts)]
    assert steps == [2, 2]
    for name, expected in weights(whole.last).items():
        torch.testing.assert_close(weights(parts.last)[name], expected, rtol=0, atol=1e-12, msg=name)


def test_the_gradient_is_clipped(tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = watch(
        monkeypatch,
        "on_train_batch_end",
        lambda module, _: float(torch.nn.utils.get_total_norm([p.grad for p in module.network.parameters()])),
    )
    run(tiny_archive, tmp_path / "free", "trainer.gradient_clip_val=null")
    free, norms[:] = [*norms], []
    limit = min(free) / 2
    run(tiny_archive, tmp_path / "clipped", f"trainer.gradient_clip_val={limit}")
    assert norms == pytest.approx([limit] * 4, rel=1e-3)
    assert logged(tmp_path / "clipped")["gradient_clip_val"] == limit


def test_averaged_weights_are_validated_kept_and_loaded(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = watch(
        monkeypatch,
        "on_before_zero_grad",
        lambda module, trainer: (
            trainer.global_step,
            {n: p.detach().clone() for n, p in module.named_parameters()},
        ),
    )
    result = run(tiny_archive, tmp_path, "ema=0.3", "trainer.max_epochs=2", "data.eval_stride=6")
    assert logged(tmp_path)["ema"] == 0.3
    # weights before each step; those after the last stand in the checkpoint
    raw = torch.load(result.last, weights_only=True)
    each = [own for step, own in steps if step >= 1] + [raw["current_model_state"]]
    assert len(each) == 8
    average = each[0]
    for n, own in enumerate(each[1:], 1):
        kept = min(0.3, (1 + n) / (10 + n))  # the definition
        average = {name: kept * average[name] + (1 - kept) * own[name] for name in average}
    assert any(not torch.allclose(average[name], each[-1][name], rtol=1e-3) for name in average)
    for name, expected in average.items():
        torch.testing.assert_close(raw["state_dict"][name], expected, msg=name)
    # what was validated is what the checkpoint forecasts with
    forecaster = assembly.forecaster_of(assembly.read_checkpoint(result.last), device="cpu")
    config = compose_config(
        "train", tmp_path / "again", *TINY, f"data.archive={tiny_archive}", "data.eval_stride=6"
    )
    errors = [
        np.abs(rates_of(forecaster, batch["input"].numpy(), 3) - batch["target"].numpy()).ravel()
        for batch in assembly.datamodule(config, tiny_archive).eval_batches("val")
    ]
    assert result.metrics["val/mae"] == pytest.approx(np.nanmean(np.concatenate(errors)), rel=1e-5)
    found = forecaster.network.state_dict()
    assert all(torch.equal(found[n.removeprefix("network.")], raw["state_dict"][n]) for n in average)


def test_a_run_with_averaged_weights_goes_on(tiny_archive: Path, tmp_path: Path) -> None:
    """In float64, to the last bit: neither the average nor what is read again may be rounded to float32."""
    averaged = ["ema=0.9", "trainer.precision=64-true", "trainer.max_epochs=2"]
    whole = run(tiny_archive, tmp_path / "whole", *averaged)
    raw = torch.load(whole.last, weights_only=True)
    cut = compose_config(
        "train", tmp_path / "cut", *TINY, *WET, "data.samples_per_epoch=16", f"data.archive={tiny_archive}",
        *averaged,
    )  # fmt: skip

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    original = assembly.callbacks
    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(assembly, "callbacks", lambda cfg: [*original(cfg), Stop()])
        train(cut)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = run(tiny_archive, tmp_path / "on", *averaged, f"checkpoint={last}")
    found = torch.load(resumed.last, weights_only=True)
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(found[state][name], raw[state][name]) for name in raw[state])
        assert all(v.dtype == torch.float64 for name, v in found[state].items() if name.startswith("network."))


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema={decay} .*0\.999"):
        AveragedWeights(decay)


def test_sharing_and_averaging_weights_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ema=0\.9 .*trainer=fsdp"):
        assembly.is_sharded(compose_config("train", tmp_path, "trainer=fsdp", "ema=0.9"))


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "convlstm": PyramidEncoderForecaster(stages=STAGES, patch=2),
        "convgru": PyramidEncoderForecaster(stages=STAGES, patch=2, cell=ConvGRU),
        "predrnn": PredRNN(hidden_channels=4, num_layers=2, input_kernel=3, state_kernel=3),
    }


def gradients(network: torch.nn.Module, rain: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    network(rain, 3).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("name", ["convlstm", "convgru", "predrnn"])
def test_recomputing_keeps_less_and_changes_nothing(name: str) -> None:
    network, rain = networks()[name], torch.rand(2, 4, 1, 32, 32)
    kept = {}

    def measure(key: str) -> list[torch.Tensor]:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(rain, 3)
        kept[key] = sum(storages.values())
        return gradients(network, rain)

    expected = measure("all")
    execution.prepare(network, compile=None, recompute=True, tf32=True)
    units = [*execution.units(network)]
    assert execution.recomputes(network) == len(units) > 1
    found = measure("little")
    assert kept["little"] < 0.6 * kept["all"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_recomputing_is_logged_and_gives_the_same_run(tiny_archive: Path, tmp_path: Path, plain: Path) -> None:
    again = run(tiny_archive, tmp_path, "recompute=true")
    assert logged(tmp_path)["recompute"] == "5 of 5 layers"
    expected, found = weights(plain / "checkpoints" / "last.ckpt"), weights(again.last)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_the_network_is_compiled(
    tiny_archive: Path, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend that keeps what it gets: to translate it takes a minute, and is torch's affair."""
    graphs, asked = [], []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.nn.Module.compile

    def by_hand(self: torch.nn.Module, **options: Any) -> None:
        asked.append(options)
        compiled(self, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", by_hand)
    result = run(tiny_archive, tmp_path, "compile=default")
    assert asked == [{"mode": "default"}] and graphs, "the network ran through what was compiled"
    assert logged(tmp_path)["compiled"] is True
    expected = weights(plain / "checkpoints" / "last.ckpt")
    for name, found in weights(result.last).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_an_unknown_way_to_compile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile=fast is not a mode .*reduce-overhead"):
        execution.prepare(torch.nn.Identity(), compile="fast", recompute=False, tf32=True)
