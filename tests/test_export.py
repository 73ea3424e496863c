"""Exported files: what they compute is what the network computes, and they say what they are for."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import rates_of
from omegaconf import DictConfig
from running import compose_config
from torch import nn

import raincast
from raincast import assembly, export, schema
from raincast.archive import Archive
from raincast.commands import export as command
from raincast.export.onnx_operators import REWRITTEN
from raincast.models import ConvLSTM, PyramidEncoderForecaster, StackedEncoderForecaster, persistence
from raincast.models.heads import RateHead
from raincast.models.inputs import Inputs, predict_rates
from raincast.models.lagrangian import log_rate
from raincast.models.optical_flow import smooth
from raincast.models.sprog import sprog
from raincast.transforms import DbzScaling, LinearScaling, LogScaling

STAGES = [{"conv_channels": 3, "hidden_channels": 4, "stride": 2}]


def pyramid() -> PyramidEncoderForecaster:
    return PyramidEncoderForecaster(stages=STAGES, patch=2)


def stacked() -> StackedEncoderForecaster:
    return StackedEncoderForecaster(patch=3, hidden_channels=[4], input_kernel=3, state_kernel=3)


def seeded(network: nn.Module) -> nn.Module:
    """Untrained, with nothing left at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def assert_near(found, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected.detach(), rtol=tolerance, atol=tolerance)


def stream(layer: ConvLSTM, run, tolerance: float, *grids: tuple[int, int]) -> None:
    """Two calls of the file, the second from the state of the first, are one call of the layer."""
    for number, grid in enumerate(grids, start=1):
        x = torch.rand(number, 2, layer.in_channels, *grid)
        expected, (hidden, cell) = layer(x)
        state = np.zeros((number, layer.hidden_channels, *grid), np.float32)
        first, *state = run(x[:, :1].numpy(), state, state)
        second, *state = run(x[:, 1:].numpy(), *state)
        assert_near(np.concatenate([first, second], axis=1), expected, tolerance)
        assert_near(state[0], hidden, tolerance)
        assert_near(state[1], cell, tolerance)


def test_a_layer_streams_from_either_file(tmp_path: Path) -> None:
    layer = seeded(ConvLSTM(2, 4))
    traced = export.trace_layer(layer)
    program, _ = export.read_torch(export.write_torch(traced, tmp_path / "layer.pt2"))
    stream(layer, program, 1e-6, (5, 7), (9, 4), (2, 2))
    run, _ = export.read_onnx(export.write_onnx(traced, tmp_path / "layer.onnx"))
    stream(layer, run, 1e-4, (5, 7), (9, 4), (2, 2))
    assert layer.training and layer.bias.requires_grad, "the layer is left as it was"


@pytest.mark.parametrize("made", [pyramid, stacked])
def test_a_program_equals_its_network_on_any_grid(made) -> None:
    network = seeded(made())
    smallest = network.stride + 1
    traced = export.trace_network(network, input_steps=1, lead_steps=2)
    run = traced.program.module()
    # of both remainders, the traced one first
    for grid in (traced.program.example_inputs[0][0].shape[-2:], (smallest, smallest), (24, 12), (13, 30)):
        for batch in (1, 3):
            frames = torch.rand(batch, 1, 1, *grid)
            assert_near(run(frames), network(frames, 2), 1e-6)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.zeros(1, 1, 1, 24, 1))


def test_the_onnx_of_a_network_gives_its_outputs(tmp_path: Path) -> None:
    """On a stated grid, which is faster to write; on free ones it is the command that is tested."""
    network = seeded(stacked())
    traced = export.trace_network(network, input_steps=1, lead_steps=2, size=(10, 8))
    run, metadata = export.read_onnx(export.write_onnx(traced, tmp_path / "n.onnx", {"units": "1"}))
    assert metadata == {"units": "1"}
    for batch in (1, 3):
        frames = torch.rand(batch, 1, 1, 10, 8)
        assert_near(run(frames.numpy())[0], network(frames, 2), 1e-4)


class Advection(nn.Module):
    """The parts of LagrangianForecaster that have operators which ONNX lacks, on frames in mm/h."""

    def forward(self, frames: torch.Tensor, num_steps: int) -> torch.Tensor:
        rain = frames[:, :, 0]
        seen, one = torch.ones_like(rain), torch.ones_like(rain[:, 0, 0, 0])
        steps = torch.stack([one * step for step in range(1, num_steps + 1)], dim=1)
        scale = {"step_minutes": 5.0 * one, "pixel_km": one}
        field = sprog(log_rate(rain), seen[:, 0], steps, **scale, longest=num_steps).field[:, :, None]
        thresholds = torch.tensor(persistence.THRESHOLDS).log()[:, None, None]
        logits = persistence.corrected(list((field - thresholds).unbind(1)), rain, seen, one)
        return torch.cat([field, smooth(rain, steps), torch.stack(list(logits), dim=1)], dim=2)


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_fourier_transforms_as_products_with_matrices(size: tuple[int, int]) -> None:
    aten = torch.ops.aten
    fields = torch.rand(2, 3, *size)
    spectrum = torch.fft.rfft2(fields)
    torch.testing.assert_close(REWRITTEN[aten.fft_rfft2.default](fields), spectrum, rtol=0.0, atol=1e-5)
    spectrum = spectrum + torch.rand(spectrum.shape[-1])  # not that of a real map at wavenumbers 0 and w / 2
    back = REWRITTEN[aten.fft_irfft2.default](spectrum, size)
    torch.testing.assert_close(back, torch.fft.irfft2(spectrum, size), rtol=0.0, atol=1e-6)
    for side in size:
        for name in ("fftfreq", "rfftfreq"):
            made = REWRITTEN[getattr(aten, f"fft_{name}").default](side, dtype=torch.float32)
            torch.testing.assert_close(made, getattr(torch.fft, name)(side))


def test_the_onnx_of_what_moves_rain_gives_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra export)")
    # two thresholds in place of 13, for time
    monkeypatch.setattr(persistence, "THRESHOLDS", (0.1, 1.0))
    monkeypatch.setattr(persistence, "CLASSES", (0.1, 0.3, 1.0))
    size = (20, 21)
    traced = export.trace_network(Advection(), input_steps=3, lead_steps=2, size=size)
    run, _ = export.read_onnx(export.write_onnx(traced, tmp_path / "n.onnx"))
    for batch in (1, 2):
        rain = torch.as_tensor(command.random_rain((batch, 3, 1, *size), seed=batch)).nan_to_num(0.0)
        with torch.no_grad():
            expected = Advection()(rain, 2)
        assert expected.std() > 1.0
        assert_near(run(rain.numpy())[0], expected, 1e-4)


def test_the_box_is_a_program_for_one_grid_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fewer turns of the loops that a program writes out, in the network and in its program: half the time
    loops = ("optical_flow.ITERATIONS", "distribution.NEWTON_STEPS", "distribution.BISECTIONS")
    for loop, turns in (("optical_flow.LEVELS", 2), *((loop, 1) for loop in loops)):
        monkeypatch.setattr(f"raincast.models.{loop}", turns)
    # the command reads the bytes that it wrote, to compare them, and the forecaster reads them again
    read, programs = export.read_torch, {}

    def read_once(path: Path) -> Any:
        content = path.read_bytes()
        if content not in programs:
            programs[content] = read(path)
        return programs[content]

    monkeypatch.setattr(export, "read_torch", read_once)
    given = ["size=[24,32]", "pixel_km=1", "lead_steps=1", f"path={tmp_path}/box.pt2"]
    with pytest.raises(ValueError, match="format=torch"):
        command.run(compose_config("export", tmp_path / "a", *given[:-1], "format=onnx"))
    with pytest.raises(ValueError, match="pixel_km=1"):
        command.run(compose_config("export", tmp_path / "b", "format=torch", "size=[24,32]"))
    path = command.run(compose_config("export", tmp_path / "c", "format=torch", *given))
    frames = schema.mock_archive(4, 24, 32)
    exported = raincast.load_forecaster(path)
    assert len(programs) == 1
    by_file = exported(frames)[schema.RAIN].values
    by_network = raincast.load_forecaster(lead_steps=1)(frames)[schema.RAIN].values
    np.testing.assert_allclose(by_file, by_network, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="24 x 32 pixels only"):
        exported(schema.mock_archive(4, 16, 32))


@pytest.mark.parametrize("grid", [(4, 6), (5, 6)])
def test_a_network_for_one_grid_asks_for_it(grid: tuple[int, int]) -> None:
    """The first happens to be that of the trace."""

    def cell(*channels: int, **kernels: int) -> ConvLSTM:
        return ConvLSTM(*channels, **kernels, peephole="pixel", size=grid)

    network = StackedEncoderForecaster(patch=2, hidden_channels=[2], input_kernel=3, state_kernel=3, cell=cell)
    with pytest.raises(ValueError, match=r"(?s)cannot be left open.*size=\[y,x\]"):
        export.trace_network(network, input_steps=1, lead_steps=1)
    size = (2 * grid[0], 2 * grid[1])
    traced = export.trace_network(network, input_steps=1, lead_steps=1, size=size)
    frames = torch.rand(3, 1, 1, *size)
    torch.testing.assert_close(traced.program.module()(frames), network(frames, 1))


def config(tiny_run: Path, tmp_path: Path, *overrides: str) -> DictConfig:
    return compose_config("export", tmp_path / "run", f"checkpoint={tiny_run}/checkpoints/last.ckpt", *overrides)


def test_the_command_writes_onnx_that_forecasts_without_raincast(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    caplog.set_level("INFO", logger="raincast")
    path = command.run(config(tiny_run, tmp_path, f"path={tmp_path}/new/rain.onnx", "lead_steps=2"))
    assert [p.name for p in path.parent.iterdir()] == ["rain.onnx"]
    assert str(export.__file__).rpartition("/")[0].encode() not in path.read_bytes()
    assert "largest difference from the network" in caplog.text
    session = onnxruntime.InferenceSession(path)
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("rain_rate", ["batch", 3, 1, "y", "x"])
    assert (answer.name, answer.shape) == ("rain_rate_forecast", ["batch", 2, 1, "y", "x"])
    said = session.get_modelmeta().custom_metadata_map
    checkpoint = assembly.read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    assert said["checkpoint_sha256"] == checkpoint.sha256
    assert (said["step_minutes"], said["input_steps"], said["lead_steps"]) == ("5", "3", "2")
    assert (said["units"], said["channels"], said["grid_spacing"]) == ("mm h-1", "rain", "1000, 1000")
    forecaster = assembly.forecaster_of(checkpoint, device="cpu")
    stride = forecaster.network.stride
    assert said["grid"] == f"any, from {stride + 1} x {stride + 1} pixels up"
    archive = Archive.open(tiny_archive)
    frames = np.stack([archive.read(first, 3)[:, None] for first in range(0, archive.num_times - 3, 9)])
    for rain in (frames[:1], frames[:, ..., : stride + 1, 2:], frames[..., 9:, 3:]):
        (found,) = session.run(None, {"rain_rate": rain})
        expected = rates_of(forecaster, rain, 2)
        assert np.isnan(rain).any() and expected.max() > 0.2, "a forecast of no rain shows nothing"
        # on the scale of the network: the transform leaps from 0 to its lowest rate
        scale = forecaster.transform.forward
        np.testing.assert_allclose(scale(found), scale(expected), rtol=1e-4, atol=1e-4)


def test_the_command_writes_a_program_for_one_grid(tiny_run: Path, tmp_path: Path) -> None:
    wanted = ["format=torch", "size=[20,28]"]
    path = command.run(config(tiny_run, tmp_path, *wanted))
    assert path == tmp_path / "run" / "network.pt2"
    run, said = export.read_torch(path)
    assert (said["grid"], said["lead_steps"]) == ("20 x 28 pixels only", "3")
    rain = command.random_rain((2, 3, 1, 20, 28), seed=5)
    forecaster = assembly.forecaster_of(
        assembly.read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), device="cpu"
    )
    np.testing.assert_allclose(run(rain)[0], rates_of(forecaster, rain, 3), rtol=1e-4)
    with pytest.raises(FileExistsError, match=r"network\.pt2 exists.*overwrite=true"):
        command.run(config(tiny_run, tmp_path, *wanted))


def test_a_file_that_differs_is_not_kept(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt2").write_text("the one before")
    monkeypatch.setattr(export, "trace_forecast", lambda *_, **__: None)
    monkeypatch.setattr(export, "write_torch", lambda _, path, __: path.write_text("wrong"))
    monkeypatch.setattr(export, "read_torch", lambda _: (lambda rain: (np.full_like(rain, 9.0),), {}))
    with pytest.raises(RuntimeError, match="different forecast from the network"):
        command.run(config(tiny_run, tmp_path, "format=torch", f"path={tmp_path}/a.pt2", "overwrite=true"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt2", "run"]
    assert (tmp_path / "a.pt2").read_text() == "the one before"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("format=tflite", "format=tflite: choose one of onnx, torch"),
        ("path=rain.pt2", r"format=onnx is written to a \.onnx file\. Use path=rain\.onnx"),
        ("size=256", r"size=256: .*size=\[256,256\]"),
        ("size=[0,4]", r"size=\[0, 4\]"),
        ("lead_steps=0", "lead_steps=0"),
    ],
)
def test_what_cannot_be_written_is_answered(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        command.run(config(tmp_path, tmp_path, override))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else found(name, *a)
    )
    with pytest.raises(
        ValueError,
        match=r"needs onnx, onnxscript, onnxruntime: pip install -e '\.\[export\]'.*missing: onnxscript",
    ):
        command.run(config(tmp_path, tmp_path))
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        command.run(config(tmp_path, tmp_path, "format=torch"))


def test_a_mask_channel_sees_what_was_missing() -> None:
    """And takes the padding of odd sizes for missing, as the network's own."""
    torch.manual_seed(0)
    made = PyramidEncoderForecaster(in_channels=2, stages=[{"conv_channels": 4, "hidden_channels": 4}])
    seen = Inputs(observed=True)
    traced = export.trace_forecast(made, RateHead(), DbzScaling(), input_steps=2, lead_steps=2, inputs=seen)
    rain = torch.rand(1, 2, 1, 9, 7) * 20
    rain[0, 0, 0, 2:4] = torch.nan
    with torch.no_grad():
        expected = predict_rates(made, RateHead(), DbzScaling(), rain, 2, inputs=seen)
        torch.testing.assert_close(traced.program.module()(rain), expected, atol=1e-6, rtol=1e-5)
        dry = predict_rates(made, RateHead(), DbzScaling(), rain.nan_to_num(), 2, inputs=seen)
    assert not torch.allclose(expected, dry, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_that_sees_channels_takes_them_in_their_own_units(suffix: str, tmp_path: Path) -> None:
    """On a grid that is padded, with the rain's mask, and missing values in every input."""
    torch.manual_seed(0)
    cape, height = ("cape", LinearScaling(300.0, 500.0)), ("height", LogScaling())
    seen = Inputs(observed=True, past=(cape, height), future=(cape,))
    made = seeded(PyramidEncoderForecaster(in_channels=4, future_channels=1, stages=STAGES))
    size = (9, 7)
    traced = export.trace_forecast(
        made, RateHead(), DbzScaling(), input_steps=2, lead_steps=2, inputs=seen, size=size
    )
    write, read = (
        (export.write_onnx, export.read_onnx) if suffix == ".onnx" else (export.write_torch, export.read_torch)
    )
    run, _ = read(write(traced, tmp_path / f"a{suffix}"))
    rain, past, future = torch.rand(1, 2, 1, *size) * 20, torch.rand(1, 2, 2, *size), torch.rand(1, 2, 1, *size)
    past, future = past * torch.tensor([1000.0, 100.0])[:, None, None], future * 1000
    for number, maps in enumerate((rain, past, future)):
        maps[0, 0, 0, 2 : 4 + number] = torch.nan
    with torch.no_grad():
        covariates = {"past": past, "future": future}
        expected = predict_rates(made, RateHead(), DbzScaling(), rain, 2, inputs=seen, covariates=covariates)
    scale = DbzScaling().forward
    assert_near(scale(torch.as_tensor(run(rain.numpy(), past.numpy(), future.numpy())[0])), scale(expected), 1e-4)
    other = run(rain.numpy(), past.numpy(), future.numpy() + 200)[0]
    assert np.abs(other - expected.numpy()).max() > 1e-3, "what is known in advance matters"
