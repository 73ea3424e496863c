"""Exported files: what they compute is what the network computes, and they say what they are for."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checking import rates_of
from omegaconf import DictConfig
from running import compose_config
from torch import nn

import raincast
from raincast import assembly, export, schema
from raincast.archive import Archive
from raincast.commands import export as command
from raincast.export.files import REWRITTEN
from raincast.forecaster import Query
from raincast.models import ConvLSTM, PyramidEncoderForecaster, StackedEncoderForecaster, optical_flow
from raincast.models.heads import RateHead
from raincast.models.inputs import Inputs, predict_rates
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


SIZE = (48, 56)


def test_the_box_is_written_for_one_grid_and_scale_in_both_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one trace, with fewer turns of the loops that a program writes out, in the network and in its program."""
    turns = {"optical_flow.LEVELS": 2, "optical_flow.ITERATIONS": 1}
    for loop, number in (turns | {"distribution.NEWTON_STEPS": 2, "distribution.BISECTIONS": 6}).items():
        monkeypatch.setattr(f"raincast.models.{loop}", number)
    traced, trace = [], export.trace_forecast

    def trace_once(*given: Any, **options: Any) -> export.Traced:
        traced.append(traced[0] if traced else trace(*given, **options))
        return traced[-1]

    monkeypatch.setattr(export, "trace_forecast", trace_once)
    # the command reads the bytes that it wrote, to compare them, and the forecaster reads them again
    monkeypatch.setattr(export, "read_torch", read_once := ReadOnce(export.read_torch))
    event = raincast.open_sample().isel(time=slice(9, 13), y=slice(125, 173), x=slice(275, 331))
    expected = raincast.load_forecaster(lead_steps=2)(event)[schema.RAIN].values
    assert (expected > 1.0).any()
    given = [f"size=[{SIZE[0]},{SIZE[1]}]", "pixel_km=1", "lead_steps=2"]
    for fmt, name in (("torch", "box.pt2"), ("onnx", "box.onnx")):
        if fmt == "onnx" and importlib.util.find_spec("onnxruntime") is None:
            pytest.skip("onnxruntime is not installed (the extra export)")
        path = command.run(
            compose_config("export", tmp_path / fmt, *given, f"format={fmt}", f"path={tmp_path}/{name}")
        )
        if fmt == "torch":
            exported = raincast.load_forecaster(path)
            assert len(read_once.read) == 1
            by_file = exported(event)[schema.RAIN].values
            with pytest.raises(ValueError, match="48 x 56 pixels only"):
                exported(schema.mock_archive(4, 16, 32))
        else:
            run, said = export.read_onnx(path)
            assert (said["grid"], said["grid_spacing"]) == ("48 x 56 pixels only", "1000, 1000")
            rain = event[schema.RAIN].values[None, :, None].astype(np.float32)
            by_file = run(rain)[0][0, :, 0]
            both = run(np.concatenate([rain, np.flip(rain, -1)]))[0]
            assert command.Apart.of(both[:1, :, 0], by_file[None]).within(command.LEAST)
        apart = command.Apart.of(by_file, expected.reshape(by_file.shape))
        assert apart.within(command.LEAST), f"{fmt}: {apart}"


class ReadOnce:
    """Reads files of the same content once."""

    def __init__(self, function: Callable[[Path], Any]) -> None:
        self.function = function
        self.read: dict[bytes, Any] = {}

    def __call__(self, path: Path) -> Any:
        content = path.read_bytes()
        if content not in self.read:
            self.read[content] = self.function(path)
        return self.read[content]


def test_a_physical_network_needs_a_grid_and_a_pixel_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pixel_km=1"):
        command.run(compose_config("export", tmp_path / "a", "size=[24,32]"))
    with pytest.raises(ValueError, match="one grid"):
        command.run(compose_config("export", tmp_path / "b", "pixel_km=1"))


@pytest.mark.parametrize("wrong", ["nothing", "a weight", "an operator", "a NaN"])
def test_the_file_of_a_physical_network_may_differ_as_much_as_rounding(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = assembly.forecaster_of(assembly.read_checkpoint("box"), device="cpu")
    file = copy.deepcopy(box)
    if wrong == "a weight":
        with torch.no_grad():
            file.network.core.pixelwise.weight.mul_(1.05)

    def finer(flow: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=True)

    def run(rain: np.ndarray) -> tuple[np.ndarray]:
        with monkeypatch.context() as patched:
            if wrong == "an operator":
                patched.setattr(optical_flow, "_finer", finer)
            query = Query.for_steps(rain * np.float32(1 + 1e-7), 6, step_minutes=5.0, pixel_km=1.0)
            rates = file.predict(query).rates
        if wrong == "a NaN":
            rates[0, 0, 0, 0, 0] = np.nan
        return (rates,)

    difference = command.compare(run, box, 6, [SIZE], (5.0, 1.0))
    assert difference.small == (wrong == "nothing"), str(difference)


def test_a_small_grid_gets_the_most_rain_of_the_event_and_a_large_one_mirrors_it() -> None:
    small, large = (command.real_rain(4, grid, number=1) for grid in (SIZE, (500, 460)))
    assert small.shape == (1, 4, 1, *SIZE) and large.shape == (1, 4, 1, 500, 460)
    assert (small >= 0.1).mean() > 0.5 > (large >= 0.1).mean() > 0.0
    np.testing.assert_array_equal(large[..., 448:490, :], np.flip(large[..., 406:448, :], -2))
    for rain in (small, large):
        assert np.isnan(rain[..., -2:, :2]).all() and np.isfinite(rain).mean() > 0.9


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
    assert "difference from the network, on random maps" in caplog.text
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
