"""Speed of the ConvLSTM, compared with its bare convolutions, its plain definition and Keras.

    python benchmarks/convlstm.py [--quick] [--device cuda] [--json FILE]       a quarter of an hour on two cores

Everything runs interleaved in one process; figures are medians of `--repeats` (seven). "floor" is the convolutions
alone (floor.py); a training step is forward and backward pass. Keep the machine quiet: a second process on the
same cores makes all figures worthless. Keras is compared if it is installed (pip install keras).

On a GPU float32 is measured with and without TF32, and bfloat16 as well, for whole networks too. "plain" is the
faster of the definition with channels-last and channels-first weights. Further columns are the same without
Triton, as a CUDA graph, compiled (`--compile`: a minute or more per row), and the peak memory of a training step.
Steps follow each other as in training, without waiting for the GPU in between.
"""

import argparse
import copy
import gc
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from convlstm_table import show
from floor import Convolution, convolutions, floor
from gpu import Precision, graphed, peak_bytes, precisions, without_triton
from rich.console import Console
from rivals import OpenNetwork, keras_layer
from timing import medians, write_json
from torch import Tensor, nn

from raincast.models import ConvLSTM, PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.models.fast import gates
from raincast.models.fast import kernel as kernels
from raincast.system.heap import keep_freed_memory

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
    batch: int, width: int, kernel: int, size: int, precision: Precision, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure one shape: a layer in the middle of a network, so that its input needs a gradient."""
    device, dtype = args.device, precision.dtype
    on_gpu = device != "cpu"
    precision.choose()
    torch.manual_seed(0)
    arguments = {"input_kernel": kernel, "state_kernel": kernel, "peephole": "none"}
    layers = {
        "raincast": ConvLSTM(width, width, **arguments),
        "recompute": ConvLSTM(width, width, recompute=True, **arguments),
        "plain": ConvLSTM(width, width, fast=False, **arguments),
    }
    if on_gpu:  # the layers' weights are channels last, which convolutions follow
        layers["plain_first"] = copy.deepcopy(layers["plain"])
        for parameter in layers["plain_first"].parameters():
            parameter.data = parameter.data.contiguous()
    layers = {name: layer.to(device, dtype) for name, layer in layers.items()}
    # each gets its tensors as its own layers pass them on: raincast channels last, plain as (B, T, C, H, W)
    ours = torch.randn(STEPS, batch, size, size, width, device=device, dtype=dtype).permute(1, 0, 4, 2, 3)
    theirs = ours.contiguous()
    inputs = {"raincast": ours, "recompute": ours, "plain": theirs, "plain_first": theirs}
    steps: dict[str, Way] = {}
    forwards: dict[str, Way] = {}
    for name, layer in layers.items():
        steps[name] = _training(lambda x, layer=layer: layer(x)[0], inputs[name])
        forwards[name] = _inference(lambda x, layer=layer: layer(x)[0], inputs[name])
    if on_gpu:
        for ways in (steps, forwards):
            ways["no_triton"] = without_triton(ways["raincast"])
        if captured := graphed(layers["raincast"], ours):
            steps["graphed"] = _training(captured, ours)
        if args.compile:
            compiled = torch.compile(layers["raincast"], mode="reduce-overhead")
            steps["compiled"] = _training(lambda x: compiled(x)[0], ours)
            forwards["compiled"] = _inference(lambda x: compiled(x)[0], ours)
    if dtype == torch.float32:
        rows = ours.permute(0, 1, 3, 4, 2).contiguous()
        if keras := keras_layer(kernel, rows):
            steps["keras"], forwards["keras"] = _training(keras, rows), _inference(keras, rows)
    x_part = Convolution((4 * width, width, kernel, kernel), batch, width, size, size, STEPS, padding=kernel // 2)
    h_part = Convolution(
        (4 * width, width, kernel, kernel), batch, width, size, size, STEPS - 1, padding=kernel // 2
    )
    for ways, backward in ((steps, True), (forwards, False)):
        ways["floor"] = floor([x_part, h_part], backward=backward, dtype=dtype, device=device)
    row: dict[str, Any] = {"case": f"{batch}×{width}×{size}², {kernel}×{kernel}", "precision": precision.name}
    row["batch"] = batch
    row["step_s"] = medians(steps, repeats=args.repeats)
    row["forward_s"] = medians(forwards, repeats=args.repeats)
    row["kept_bytes"] = {name: kept(layer, inputs[name]) for name, layer in layers.items()}
    if on_gpu:
        row["peak_bytes"] = {name: peak_bytes(steps[name]) for name in layers}
    return row


def network_row(name: str, precision: Precision, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a whole network: its training step and forward pass over its floor; `open` over a plain one."""
    on_gpu = args.device != "cpu"
    precision.choose()
    torch.manual_seed(0)
    rival: nn.Module | None = None
    if name == "2015":  # Moving MNIST: 64², patch 4, 10 → 10
        network: nn.Module = StackedEncoderForecaster()
        frames, lead = torch.rand(4, 10, 1, 64, 64), 10
    elif name.startswith("2017"):  # published: 480 pixels per side
        size = int(name.split()[1])
        network = PyramidEncoderForecaster(stages=stages_2017(), head_channels=8)
        frames, lead = torch.rand(1, 5, 1, size, size), 10
    else:
        network = PyramidEncoderForecaster(stages=STAGES_OPEN, head_channels=16)
        frames, lead = torch.rand(2, 10, 1, 64, 64), 10
        rival = OpenNetwork()
    network, frames = network.to(args.device, precision.dtype), frames.to(args.device, precision.dtype)
    steps = {"raincast": _training(lambda x: network(x, lead), frames, wants=False)}
    forwards = {"raincast": _inference(lambda x: network(x, lead), frames)}
    if rival is not None:
        rival = rival.to(args.device, precision.dtype)
        steps["open"] = _training(lambda x: rival(x, lead), frames, wants=False)
        forwards["open"] = _inference(lambda x: rival(x, lead), frames)
    if on_gpu:
        plain = _by_definition(network)
        steps["plain"] = _training(lambda x: plain(x, lead), frames, wants=False)
        forwards["plain"] = _inference(lambda x: plain(x, lead), frames)
        for ways in (steps, forwards):
            ways["no_triton"] = without_triton(ways["raincast"])
    parts = convolutions(network, forwards["raincast"], first_gradient=False)
    for ways, backward in ((steps, True), (forwards, False)):
        ways["floor"] = floor(parts, backward=backward, dtype=precision.dtype, device=args.device)
    peaks = {"peak_bytes": {way: peak_bytes(steps[way]) for way in ("raincast", "plain")}} if on_gpu else {}
    return {
        "case": f"network {name}",
        "precision": precision.name,
        "batch": len(frames),
        **peaks,
        "step_s": medians(steps, repeats=args.repeats, warm_up=1),
        "forward_s": medians(forwards, repeats=args.repeats, warm_up=1),
    }


def _by_definition(network: nn.Module) -> nn.Module:
    """Return a copy whose ConvLSTMs use their definition."""
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, ConvLSTM):
            layer.fast = False
    return plain


def stages_2017() -> list[dict[str, int]]:
    """Return the stages of `model=convlstm_2017`."""
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


def kept(layer: nn.Module, x: Tensor) -> int:
    """Return the bytes that the forward pass stores for the backward pass, without parameters."""
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
    """Return the seconds of a layer's first forward and backward pass in new processes, with and without cache."""
    code = (
        "import time, torch; from raincast.models import ConvLSTM\n"
        "def seconds(width):\n"
        f"    x = torch.rand(1, 3, 8, 16, width, device='{args.device}')\n"
        "    layer = ConvLSTM(8, 8).to(x.device)\n"
        "    start = time.perf_counter()\n"
        "    layer(x)[0].sum().backward()\n"
        "    layer.bias.grad.tolist()\n"  # waits for a GPU
        "    return time.perf_counter() - start\n"
        "print(seconds(16), seconds(9))"
    )
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty cache", "cached"):
            environment = {**os.environ, "RAINCAST_CACHE": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
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
            gradient = torch.randn_like(output)  # in the memory layout of the output
        x.grad = None
        output.backward(gradient)

    return step


def _inference(call: Callable[[Tensor], Tensor], x: Tensor) -> Way:
    def forward() -> None:
        with torch.no_grad():
            call(x.detach())

    return forward


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two shapes, no whole networks")
    parser.add_argument("--layers", action="store_true", help="all shapes, no whole networks")
    parser.add_argument("--networks", action="store_true", help="whole networks only")
    parser.add_argument("--unpacked", action="store_true", help="large kernels are rearranged at each step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="on a GPU: torch.compile, too")
    parser.add_argument("--tuned", action="store_true", help="let cuDNN measure which algorithm is fastest")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no row begins after this many minutes")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/convlstm.json"))
    args = parser.parse_args()
    if args.unpacked:
        kernels.LARGE = sys.maxsize
    torch.backends.cudnn.benchmark = args.tuned
    keep_freed_memory()  # for all candidates, as train.py does
    start = time.perf_counter()
    measured = precisions(args.device)
    calls = first_call(args)
    rows: list[dict[str, Any]] = []

    def circumstances() -> dict[str, Any]:
        return {
            "first_call_s": calls,
            "repeats": args.repeats,
            "cudnn_benchmark": args.tuned,
            "triton": args.device != "cpu" and gates.gpu_kernels() is not None and not gates.on_gpus.failed,
        }

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        # so that a long run that is stopped keeps its results
        write_json(args.json, {"rows": rows, **circumstances()})
        Console(stderr=True).print(f"{time.perf_counter() - start:.0f} s: {row['case']}, {row['precision']}")
        gc.collect()

    # the precisions of one shape run one after the other, since they are compared
    shapes = [] if args.networks else QUICK if args.quick else LAYERS
    tasks = [partial(layer_row, *shape, precision, args) for shape in shapes for precision in measured]
    names = [] if args.quick or args.layers else ["2015", "2017 120", "2017 240", "2017 480", "open"]
    of_networks = measured if args.device != "cpu" else measured[:1]
    tasks += [partial(network_row, name, precision, args) for name in names for precision in of_networks]
    for number, task in enumerate(tasks):
        if time.perf_counter() - start > 60 * args.minutes:
            Console(stderr=True).print(f"{args.minutes:g} min are over: {len(tasks) - number} rows left out")
            break
        add(task())
    show(rows, calls)
    if args.device != "cpu":
        Console().print("Triton: " + ("used" if circumstances()["triton"] else "NOT used, see above"))
    seconds = time.perf_counter() - start
    write_json(args.json, {"rows": rows, **circumstances(), "wall_s": seconds})
    Console().print(f"{seconds:.0f} s; figures in {args.json}")


if __name__ == "__main__":
    main()
