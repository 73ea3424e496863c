"""How fast the ConvLSTM is, against its bare convolutions, its plain definition and Keras.

    python benchmarks/convlstm.py [--quick] [--device cuda] [--json FILE]       a quarter of an hour on two cores

Everything in one run, interleaved, medians of `--repeats` (seven). "floor" is the convolutions alone (floor.py); a
training step is forward and backward. Keep the machine quiet: a second process on the same cores makes every
figure worthless. Keras is compared if it is installed (pip install keras).
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
import torch.nn.functional as F
from floor import Convolution, convolutions, floor
from rich.console import Console
from rich.table import Table
from timing import medians, write_json
from torch import Tensor, nn

from raincast.models import ConvLSTM, PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.models import kernel as kernels

STEPS = 10
LAYERS = [  # batch, width, kernel, size
    (1, 32, 3, 32),
    (4, 32, 3, 64),
    (1, 32, 5, 128),
    (4, 32, 5, 64),
    (1, 128, 3, 32),
    (4, 128, 3, 32),
    (1, 128, 3, 64),
    (1, 128, 5, 32),
]
QUICK = LAYERS[:2]

Way = Callable[[], Any]


def layer_row(
    batch: int, width: int, kernel: int, size: int, dtype: torch.dtype, args: argparse.Namespace
) -> dict[str, Any]:
    """One shape: a layer in the middle of a network, whose input wants a gradient."""
    device = args.device
    torch.manual_seed(0)
    arguments = {"input_kernel": kernel, "state_kernel": kernel, "peephole": "none"}
    layers = {
        "raincast": ConvLSTM(width, width, **arguments),
        "recompute": ConvLSTM(width, width, recompute=True, **arguments),
        "plain": ConvLSTM(width, width, fast=False, **arguments),
    }
    layers = {name: layer.to(device, dtype) for name, layer in layers.items()}
    # each gets its tensors as its own layers hand them on: raincast with channels last, plain as (B, T, C, H, W)
    ours = torch.randn(STEPS, batch, size, size, width, device=device, dtype=dtype).permute(1, 0, 4, 2, 3)
    inputs = {"raincast": ours, "recompute": ours, "plain": ours.contiguous()}
    steps: dict[str, Way] = {}
    forwards: dict[str, Way] = {}
    for name, layer in layers.items():
        steps[name] = _training(lambda x, layer=layer: layer(x)[0], inputs[name])
        forwards[name] = _inference(lambda x, layer=layer: layer(x)[0], inputs[name])
    keras = _keras_layer(width, kernel, device) if dtype == torch.float32 else None
    if keras is not None:
        rows = ours.permute(0, 1, 3, 4, 2).contiguous()
        keras(rows)
        steps["keras"], forwards["keras"] = _training(keras, rows), _inference(keras, rows)
    x_part = Convolution((4 * width, width, kernel, kernel), batch, width, size, size, STEPS, padding=kernel // 2)
    h_part = Convolution(
        (4 * width, width, kernel, kernel), batch, width, size, size, STEPS - 1, padding=kernel // 2
    )
    for ways, backward in ((steps, True), (forwards, False)):
        ways["floor"] = floor([x_part, h_part], backward=backward, dtype=dtype, device=device)
    row: dict[str, Any] = {"case": f"{batch}×{width}×{size}², {kernel}×{kernel}", "precision": _name(dtype)}
    row["step_s"] = medians(steps, repeats=args.repeats)
    row["forward_s"] = medians(forwards, repeats=args.repeats)
    row["kept_bytes"] = {name: kept(layer, inputs[name]) for name, layer in layers.items()}
    return row


def network_row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A whole network: its training step and forward over its floor; `open` over a plain one."""
    torch.manual_seed(0)
    rival: nn.Module | None = None
    if name == "2015":  # Moving MNIST: 64², patch 4, 10 → 10
        network: nn.Module = StackedEncoderForecaster()
        frames, lead = torch.rand(4, 10, 1, 64, 64), 10
    elif name.startswith("2017"):  # published: 480 pixels a side
        size = int(name.split()[1])
        network = PyramidEncoderForecaster(stages=stages_2017(), head_channels=8)
        frames, lead = torch.rand(1, 5, 1, size, size), 10
    else:
        network = PyramidEncoderForecaster(stages=STAGES_OPEN, head_channels=16)
        frames, lead = torch.rand(2, 10, 1, 64, 64), 10
        rival = OpenNetwork()
    network, frames = network.to(args.device), frames.to(args.device)
    steps = {"raincast": _training(lambda x: network(x, lead), frames, wants=False)}
    forwards = {"raincast": _inference(lambda x: network(x, lead), frames)}
    if rival is not None:
        rival = rival.to(args.device)
        steps["open"] = _training(lambda x: rival(x, lead), frames, wants=False)
        forwards["open"] = _inference(lambda x: rival(x, lead), frames)
    parts = convolutions(network, forwards["raincast"], first_gradient=False)
    for ways, backward in ((steps, True), (forwards, False)):
        ways["floor"] = floor(parts, backward=backward, dtype=torch.float32, device=args.device)
    return {
        "case": f"network {name}",
        "precision": "float32",
        "step_s": medians(steps, repeats=args.repeats, warm_up=1),
        "forward_s": medians(forwards, repeats=args.repeats, warm_up=1),
    }


def stages_2017() -> list[dict[str, int]]:
    """The stages of `model=convlstm_2017`."""
    import yaml

    config = Path(__file__).parents[1] / "conf" / "model" / "convlstm_2017.yaml"
    stages: list[dict[str, int]] = yaml.safe_load(config.read_text(encoding="utf-8"))["stages"]
    return stages


STAGES_OPEN = [
    {"conv_channels": 16, "hidden_channels": 64, "stride": 1, "input_kernel": 5, "state_kernel": 5},
    {
        "conv_channels": 64,
        "hidden_channels": 96,
        "stride": 2,
        "input_kernel": 5,
        "state_kernel": 5,
        "up_channels": 96,
    },
    {"conv_channels": 96, "hidden_channels": 96, "stride": 2, "input_kernel": 5, "state_kernel": 5},
]
"""1→16 k3, RNN 64; s2, RNN 96; s2, RNN 96; kernels 5."""


class PlainCell(nn.Module):
    """A ConvLSTM as it is commonly written: one convolution on [input, state] at each step."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, 5, padding=2)

    def forward(
        self, xs: list[Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Steps as a list."""
        if state is None:
            zeros = xs[0].new_zeros(xs[0].shape[0], self.hidden, *xs[0].shape[2:])
            state = (zeros, zeros)
        h, c = state
        outputs = []
        for x in xs:
            i, f, z, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return outputs, (h, c)


class OpenNetwork(nn.Module):
    """The kind of encoder-forecaster found in open repositories, for the sizes of `STAGES_OPEN`.

    Its coarsest forecaster layer reads frames of zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(96, 96, 3, 2, 1)]
        )
        self.encoder = nn.ModuleList([PlainCell(16, 64), PlainCell(64, 96), PlainCell(96, 96)])
        self.forecaster = nn.ModuleList([PlainCell(96, 64), PlainCell(96, 96), PlainCell(96, 96)])
        self.up = nn.ModuleList(
            [nn.Conv2d(64, 16, 3, 1, 1), nn.ConvTranspose2d(96, 96, 4, 2, 1), nn.ConvTranspose2d(96, 96, 4, 2, 1)]
        )
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, frames: Tensor, num_steps: int) -> Tensor:
        """(B, T, 1, H, W) → (B, num_steps, 1, H, W)."""
        xs = list(frames.unbind(1))
        states = []
        for down, cell in zip(self.down, self.encoder, strict=True):
            xs, state = cell([F.leaky_relu(down(x), 0.2) for x in xs], None)
            states.append(state)
        xs = [torch.zeros_like(xs[0])] * num_steps
        for up, cell, state in zip(reversed(self.up), reversed(self.forecaster), reversed(states), strict=True):
            xs, _ = cell(xs, state)
            xs = [F.leaky_relu(up(x), 0.2) for x in xs]
        return torch.stack([self.head(x) for x in xs], 1)


def kept(layer: nn.Module, x: Tensor) -> int:
    """Bytes that the forward keeps for the backward, each storage once; parameters do not count."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(x)
    del output
    return sum(storages.values())


def first_call(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the first forward and backward of a layer in new processes, without and with a cache."""
    code = (
        "import time, torch; from raincast.models import ConvLSTM; x = torch.rand(1, 3, 8, 16, 16)\n"
        "start = time.perf_counter(); ConvLSTM(8, 8)(x)[0].sum().backward(); a = time.perf_counter() - start\n"
        "start = time.perf_counter(); ConvLSTM(8, 8)(x[..., :9])[0].sum().backward()\n"
        "print(a, time.perf_counter() - start)"
    )
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty cache", "cached"):
            environment = {**os.environ, "RAINCAST_CACHE": cache}
            out = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            found[name], found["another size"] = map(float, out.stdout.split())
    return found


def _training(call: Callable[[Tensor], Tensor], x: Tensor, *, wants: bool = True) -> Way:
    x = x.detach().requires_grad_(wants)
    gradient: Tensor | None = None

    def step() -> None:
        nonlocal gradient
        output = call(x)
        if gradient is None:
            gradient = torch.randn_like(output)  # in the layout of the output
        x.grad = None
        output.backward(gradient)

    return step


def _inference(call: Callable[[Tensor], Tensor], x: Tensor) -> Way:
    def forward() -> None:
        with torch.no_grad():
            call(x.detach())

    return forward


def _keras_layer(width: int, kernel: int, device: str) -> Callable[[Tensor], Tensor] | None:
    try:
        import keras
    except ImportError:
        return None
    with keras.device(device):
        layer: Callable[[Tensor], Tensor] = keras.layers.ConvLSTM2D(
            width, kernel, padding="same", return_sequences=True, data_format="channels_last"
        )
    return layer


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fast_bfloat16(device: str) -> bool:
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def show(rows: list[dict[str, Any]], calls: dict[str, float]) -> None:
    """One table, every ratio in the sense of the targets."""
    table = Table(title="ConvLSTM: seconds and ratios (medians, interleaved)")
    for heading in (
        *("case", "precision", "floor s", "step / floor", "forward / floor", "plain / step", "plain / forward"),
        *("keras / step", "open / step", "recompute / step", "kept / plain", "kept, recomputed"),
    ):
        table.add_column(heading, justify="left" if heading in ("case", "precision") else "right")
    for row in rows:
        step, forward, memory = row["step_s"], row["forward_s"], row.get("kept_bytes", {})
        table.add_row(
            row["case"],
            row["precision"],
            f"{step['floor']:.3f}",
            _ratio(step, "raincast", "floor"),
            _ratio(forward, "raincast", "floor"),
            _ratio(step, "plain", "raincast"),
            _ratio(forward, "plain", "raincast"),
            _ratio(step, "keras", "raincast"),
            _ratio(step, "open", "raincast"),
            _ratio(step, "recompute", "raincast"),
            _ratio(memory, "raincast", "plain"),
            _ratio(memory, "recompute", "plain"),
        )
    console = Console(width=180)
    console.print(table)
    layers = [row for row in rows if "kept_bytes" in row and row["precision"] == "float32"]
    for name, key, over, under in (
        ("training step over floor", "step_s", "raincast", "floor"),
        ("forward over floor", "forward_s", "raincast", "floor"),
        ("plain over raincast, step", "step_s", "plain", "raincast"),
        ("plain over raincast, forward", "forward_s", "plain", "raincast"),
        ("Keras over raincast, step", "step_s", "keras", "raincast"),
    ):
        ratios = [row[key][over] / row[key][under] for row in layers if over in row[key]]
        if ratios:
            console.print(f"{name}, float32 layers: median {statistics.median(ratios):.2f}, worst "
                          f"{max(ratios) if under == 'floor' else min(ratios):.2f}")  # fmt: skip
    half = {row["case"]: row for row in rows if row["precision"] == "bfloat16"}
    pairs = [(row, half[row["case"]]) for row in layers if row["case"] in half]
    for key, name in (("step_s", "training step"), ("forward_s", "forward")):
        ratios = [full[key]["raincast"] / low[key]["raincast"] for full, low in pairs]
        if ratios:
            console.print(f"float32 over bfloat16, {name}: " + ", ".join(f"{ratio:.2f}" for ratio in ratios)
                          + f"; median {statistics.median(ratios):.2f}")  # fmt: skip
    console.print("first call: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in calls.items()))


def _ratio(values: dict[str, float], over: str, under: str) -> str:
    return f"{values[over] / values[under]:.2f}" if over in values and under in values else ""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two shapes, no whole networks")
    parser.add_argument("--layers", action="store_true", help="all shapes, no whole networks")
    parser.add_argument("--networks", action="store_true", help="whole networks only")
    parser.add_argument("--unpacked", action="store_true", help="large kernels are laid out anew at each step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/convlstm.json"))
    args = parser.parse_args()
    if args.unpacked:
        kernels.LARGE = sys.maxsize
    start = time.perf_counter()
    precisions = [torch.float32, *([torch.bfloat16] if _fast_bfloat16(args.device) else [])]
    calls = first_call(args)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        # a long run that is stopped keeps what it measured
        write_json(args.json, {"rows": rows, "first_call_s": calls, "repeats": args.repeats})
        Console(stderr=True).print(f"{time.perf_counter() - start:.0f} s: {row['case']}, {row['precision']}")
        gc.collect()

    for shape in [] if args.networks else QUICK if args.quick else LAYERS:
        for dtype in precisions:  # of one shape one after the other, since they are compared
            add(layer_row(*shape, dtype, args))
    if not args.quick and not args.layers:
        for name in ("2015", "2017 120", "2017 240", "2017 480", "open"):
            add(network_row(name, args))
    show(rows, calls)
    seconds = time.perf_counter() - start
    write_json(args.json, {"rows": rows, "first_call_s": calls, "repeats": args.repeats, "wall_s": seconds})
    Console().print(f"{seconds:.0f} s; figures in {args.json}")


if __name__ == "__main__":
    main()
