"""The kernels for a GPU against plain PyTorch: on a GPU (`-m gpu`), else on the CPU under Triton's interpreter.

The interpreter has to be chosen before Triton is imported: these tests then run in a process of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from raincast.models import ConvLSTM
from raincast.models.fast import gates
from raincast.models.fast.loading import FirstUse

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds; alone: pip install triton (200 MB)")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
KINDS = ["none", "channel", "pixel"]
CASES = [
    (torch.float32, (1, 1, 1, 1)),
    (torch.float32, (2, 5, 3, 33)),
    (torch.float32, (1, 7, 9, 24)),
    (torch.bfloat16, (3, 1, 7, 64)),
    (torch.float16, (1, 5, 3, 5)),
]
"""Precision of the rows, and (B, H, W, width)."""


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_under_the_interpreter():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-rs",
        "-m",
        "",
        __file__,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout[-3000:] + ran.stderr[-1000:]


def on_a_device(test: Callable[..., None]) -> Callable[..., None]:
    """Runs under the interpreter, and on a GPU."""
    if INTERPRETED:
        return test
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(without(test))


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (2 * torch.randn(shape, generator=generator)).to(DEVICE, dtype)


def table(kind: str, shape: tuple[int, int, int, int]) -> Tensor | None:
    _, H, W, width = shape
    return None if kind == "none" else rows(*((H, W) if kind == "pixel" else (1, 1)), 3, width, seed=1)


def compared(name: str, tensors: dict[str, Tensor | None]) -> None:
    """Both on copies; every tensor has to be the same, those that are read too."""
    from raincast.models.fast import gates_triton

    found, expected = ({key: None if t is None else t.clone() for key, t in tensors.items()} for _ in range(2))
    getattr(gates_triton, name)(**found)
    getattr(gates, name).__wrapped__(**expected)
    for key, want in expected.items():
        if want is None:
            continue
        got = found[key]
        if key == "dpeephole":
            got, want = got.sum(0), want.sum(0)
        short = want.dtype in (torch.bfloat16, torch.float16)
        # short rows may be rounded the other way where float32 lies between two of them
        tolerance = 1.01 * torch.finfo(want.dtype).eps if short else 3e-6
        near_0 = tolerance * max(1.0, want.abs().max().item())
        torch.testing.assert_close(got, want, rtol=tolerance, atol=near_0, msg=lambda m, key=key: f"{key}: {m}")


@on_a_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_a_step_forward(dtype, kind, shape):
    *grid, width = shape
    wide, row = (*grid, 4 * width), (*grid, width)
    for has_b, has_old, kept in (
        (False, False, "gates"),
        (True, True, "gates"),
        (False, True, "out_gate"),
        (True, False, "none"),
    ):
        compared(
            "forward",
            {
                "a": rows(*wide, dtype=dtype),
                "b": rows(*wide, dtype=dtype, seed=2) if has_b else None,
                "old": rows(*row, seed=3) if has_old else None,
                "peephole": table(kind, shape),
                "gates": torch.zeros(wide, dtype=dtype, device=DEVICE) if kept == "gates" else None,
                "out_gate": torch.zeros(row, dtype=dtype, device=DEVICE) if kept == "out_gate" else None,
                "cell": torch.zeros(row, device=DEVICE),
                "hidden": torch.zeros(row, dtype=dtype, device=DEVICE),
            },
        )


@on_a_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_gates_and_cells_anew(dtype, kind, shape):
    *grid, width = shape
    row = (*grid, width)
    for has_b, has_old in ((False, False), (False, True), (True, True)):
        old = rows(*row, seed=3) if has_old else None
        written = {
            "gates": torch.zeros(*grid, 4 * width, dtype=dtype, device=DEVICE),
            "cell": torch.zeros(row, device=DEVICE),
        }
        read = {
            "a": rows(*grid, 3 * width, dtype=dtype),
            "b": rows(*grid, 3 * width, dtype=dtype, seed=2) if has_b else None,
            "old": old,
            "peephole": table(kind, shape),
            "out_gate": rows(*row, dtype=dtype, seed=4),
        }
        compared("regate", read | written)
        compared("recell", {"gates": rows(*grid, 4 * width, dtype=dtype), "old": old, "cell": written["cell"]})


@on_a_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_a_step_backward(dtype, kind, shape):
    *grid, width = shape
    row = (*grid, width)
    for has_old, has_out, has_next in (
        (False, True, False),
        (False, False, True),
        (True, True, True),
        (True, False, False),
    ):
        compared(
            "backward",
            {
                "gates": rows(*grid, 4 * width, dtype=dtype).sigmoid(),
                "old": rows(*row, seed=3) if has_old else None,
                "cell": rows(*row, seed=4),
                "dh_out": rows(*row, dtype=dtype, seed=5) if has_out else None,
                "dh_next": rows(*row, dtype=dtype, seed=6) if has_next else None,
                "peephole": table(kind, shape),
                "dcell": rows(*row, seed=7),
                # fewer tables than tiles: each is added to several times
                "dpeephole": rows(2, 3, width, seed=8).double() if kind == "channel" else None,
                "dgates": torch.zeros(*grid, 4 * width, dtype=dtype, device=DEVICE),
            },
        )


@on_a_device
def test_the_gates_may_lie_where_the_convolution_wrote():
    from raincast.models.fast import gates_triton

    a, b, old = rows(2, 6, 7, 4 * 40), rows(2, 6, 7, 4 * 40, seed=1), rows(2, 6, 7, 40, seed=2)
    found, expected = [], []
    for run, results, kept in ((gates_triton.forward, found, a), (gates.forward.__wrapped__, expected, None)):
        kept = torch.empty_like(a) if kept is None else kept.clone()
        first = kept if results is found else a
        cell, hidden = torch.empty_like(old), torch.empty_like(old)
        run(a=first, b=b, old=old, peephole=None, gates=kept, out_gate=None, cell=cell, hidden=hidden)
        results += [kept, cell, hidden]
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=3e-6)


@on_a_device
def test_large_and_undefined_values():
    from raincast.models.fast import gates_triton

    values = torch.tensor(
        [0, 1e-30, 1e-4, 0.6249, 0.625, 5, 20, 87, 89, 1e30, torch.inf, torch.nan], device=DEVICE
    )
    a = torch.cat([values, -values]).repeat_interleave(4)[:, None, None, None].repeat(1, 1, 1, 4)
    cell, hidden = (torch.empty(len(a), 1, 1, 1, device=DEVICE) for _ in range(2))
    kept = torch.empty_like(a)
    gates_triton.forward(a=a, b=None, old=None, peephole=None, gates=kept, out_gate=None, cell=cell, hidden=hidden)
    exact = a.double()
    expected = torch.cat([exact[..., :2].sigmoid(), exact[..., 2:3].tanh(), exact[..., 3:].sigmoid()], dim=-1)
    torch.testing.assert_close(kept, expected.float(), rtol=2e-6, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(
        cell, (expected[..., :1] * expected[..., 2:3]).float(), rtol=4e-6, atol=1e-37, equal_nan=True
    )


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The names of the kernels that ran, here in the place of C."""
    from raincast.models.fast import gates_triton

    calls: list[str] = []

    def counting(name: str) -> Callable[..., None]:
        def kernel(**tensors: Tensor | None) -> None:
            calls.append(name)
            getattr(gates_triton, name)(**tensors)

        kernel.__name__ = name
        return kernel

    kernels = SimpleNamespace(**{name: counting(name) for name in ("forward", "regate", "recell", "backward")})
    monkeypatch.delenv("RAINCAST_KERNELS", raising=False)
    monkeypatch.setattr(gates, "GPUS", (DEVICE,))
    monkeypatch.setattr(gates, "on_gpus", FirstUse())
    monkeypatch.setattr(gates, "gpu_kernels", lambda: kernels)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return calls


def gradients(layer: ConvLSTM, x: Tensor, *, defined: bool = False) -> dict[str, Tensor]:
    out, (_, cell) = layer.definition(x, None, x.shape[1]) if defined else layer(x)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(x)
    total = (out * probe).sum() + cell.sum()
    names, leaves = zip(*layer.named_parameters(), ("x", x), strict=True)
    return {"out": out, "cell": cell, **dict(zip(names, torch.autograd.grad(total, leaves), strict=True))}


@on_a_device
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    # on a GPU cuDNN's own algorithms round otherwise than the definition in float64
    ("dtype", "bound"),
    [(torch.float32, 1e-5 if INTERPRETED else 5e-5), (torch.bfloat16, 0.04), (torch.float16, 0.005)],
)
def test_a_layer_equals_the_definition(counted, caplog, dtype, bound, kind, recompute):
    torch.manual_seed(0)
    layer = ConvLSTM(2, 5, peephole=kind, size=(6, 5) if kind == "pixel" else None, recompute=recompute)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    layer, x = layer.to(DEVICE, dtype), torch.randn(2, 6, 2, 6, 5).to(DEVICE, dtype).requires_grad_()
    found = gradients(layer, x)
    assert set(counted) == {"forward", "regate" if recompute else "recell", "backward"} and not caplog.records
    again = gradients(layer, x)
    expected = gradients(layer.double(), x.detach().double().requires_grad_(), defined=True)
    for name, want in expected.items():
        assert (found[name] - want).abs().max() < bound * want.abs().max(), name
        if name == "peephole":
            assert torch.equal(found[name], again[name]), "a sum has one order"


@on_a_device
@pytest.mark.skipif(INTERPRETED, reason="graphs are of a GPU")
def test_a_captured_layer_gives_the_same(counted):
    layer = ConvLSTM(2, 8).to(DEVICE)
    x = torch.randn(2, 4, 2, 8, 8, device=DEVICE)
    with torch.no_grad():
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)[0]
        assert counted
        x.normal_()
        graph.replay()
        torch.testing.assert_close(out, layer(x)[0], rtol=1e-5, atol=1e-5)
