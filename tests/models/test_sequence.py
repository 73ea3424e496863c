"""The fast way of the ConvLSTM against its definition; `test_convlstm` holds the definition to the equations."""

import copy
import logging
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from raincast.models import ConvLSTM
from raincast.models.fast import gates, kernel, sequence
from raincast.models.fast.loading import compile_library
from raincast.system.paths import cache_folder

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


@pytest.fixture(params=["C", "PyTorch", "C and packed kernels"])
def kernels(request, monkeypatch) -> str:
    """Both ways of the point-wise half, and of the convolutions."""
    if "packed" in request.param:
        monkeypatch.setattr(kernel, "LARGE", 0)
        monkeypatch.setattr(kernel, "HEAVY_RATIO", 0)
    if request.param == "PyTorch":
        monkeypatch.setenv("RAINCAST_KERNELS", "0")
        request.getfixturevalue("nothing_loaded")
    elif not gates._kernels("F64"):
        pytest.skip("needs a C compiler")
    assert bool(gates._kernels("F64")) == request.param.startswith("C")
    return request.param


@pytest.fixture
def no_library(nothing_loaded, monkeypatch, tmp_path) -> None:
    """A process that has loaded nothing yet, with an empty cache folder."""
    monkeypatch.setenv("RAINCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAINCAST_KERNELS", raising=False)


def layer(in_channels: int = 2, hidden: int = 3, *, dtype: torch.dtype = F64, **kwargs) -> ConvLSTM:
    """A layer with every parameter away from its start."""
    torch.manual_seed(1)
    made = ConvLSTM(in_channels, hidden, **kwargs)
    fan = (in_channels + hidden) * made.state_weight.shape[-1] ** 2
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(std=fan**-0.5 if "weight" in name else 0.5)
    return made.to(dtype)


def frames(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    """(B, T, C, H, W), normally distributed, with gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=F64).to(dtype).requires_grad_()


def states(B: int, hidden: int, H: int, W: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    hidden, cell = (torch.randn(B, hidden, H, W, generator=g, dtype=F64) for _ in range(2))
    return hidden.to(dtype).requires_grad_(), cell.to(gates.cell_dtype(dtype)).requires_grad_()


def probed(outputs: tuple[Tensor, Tensor, Tensor], used: str = "outputs hidden cell") -> Tensor:
    """A random linear functional of those that are used."""
    g = torch.Generator().manual_seed(4)
    probes = [torch.randn(t.shape, generator=g, dtype=F64) for t in outputs]
    named = zip(("outputs", "hidden", "cell"), outputs, probes, strict=True)
    return sum((t.double() * probe).sum() for name, t, probe in named if name in used.split())


def everything(
    cell: ConvLSTM,
    x: Tensor | None,
    state=None,
    steps: int | None = None,
    *,
    defined=False,
    used="outputs hidden cell",
) -> dict[str, Tensor]:
    """Outputs, last states, and the gradient of all that has one."""
    steps = steps or x.shape[1]
    out, (h, c) = cell.definition(x, state, steps) if defined else cell(x, state, steps)
    h0, c0 = state or (None, None)
    leaves = {"dx": x, "dh0": h0, "dc0": c0} | {f"d {name}": p for name, p in cell.named_parameters()}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    total = probed((out, h, c), used)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if leaves else ()
    zero = (torch.zeros_like(leaf) if d is None else d for d, leaf in zip(found, leaves.values(), strict=True))
    return {"out": out, "h": h, "c": c, **dict(zip(leaves, zero, strict=True))}


def in_float64(cell: ConvLSTM, x: Tensor | None, state=None, steps: int | None = None) -> dict[str, Tensor]:
    """`everything` of the definition in float64, from the same numbers."""
    exact = copy.deepcopy(cell).double()
    x = None if x is None else x.detach().double().requires_grad_()
    state = None if state is None else tuple(t.detach().double().requires_grad_() for t in state)
    return everything(exact, x, state, steps, defined=True)


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference in each tensor by the largest value in it, the worst of all tensors."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, want in expected.items():
        got, scale = found[name].detach().double(), want.detach().abs().max().item()
        assert got.shape == want.shape and got.isfinite().all(), name
        off = (got - want).abs().max().item()
        worst = max(worst, off / scale if scale else float(off > 0))
    return worst


# --- values and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("in_channels", "with_state"), [(2, False), (2, True), (0, True)])
@pytest.mark.parametrize("peephole", ["none", "channel", "pixel"])
def test_equals_the_definition(kernels, peephole, in_channels, with_state, recompute):
    size = (5, 4) if peephole == "pixel" else None
    cell = layer(in_channels, peephole=peephole, size=size, input_kernel=5, recompute=recompute)
    x = frames(2, 6, 2, 5, 4) if in_channels else None
    state = states(2, 3, 5, 4) if with_state else None
    assert difference(everything(cell, x, state, 6), everything(cell, x, state, 6, defined=True)) < 1e-13


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_any_number_of_steps(kernels, with_state, recompute):
    """The backward goes through them in blocks, of which the last may be shorter."""
    for steps in range(1, 10):
        cell, x = layer(recompute=recompute), frames(1, steps, 2, 3, 4)
        state = states(1, 3, 3, 4) if with_state else None
        assert difference(everything(cell, x, state), everything(cell, x, state, defined=True)) < 1e-13, steps


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (7, 1), (3, 5), (8, 2)])
@pytest.mark.parametrize("peephole", ["channel", "pixel"])
def test_any_grid(kernels, hw, peephole):
    cell = layer(state_kernel=5, peephole=peephole, size=hw if peephole == "pixel" else None)
    x, state = frames(2, 3, 2, *hw), states(2, 3, *hw)
    assert difference(everything(cell, x, state), everything(cell, x, state, defined=True)) < 1e-13


@pytest.mark.parametrize(
    ("batch", "inputs", "hidden"), [(1, 1, 1), (1, 3, 17), (3, 17, 1), (1, 16, 16), (2, 1, 33)]
)
def test_any_width(kernels, batch, inputs, hidden):
    for dtype, bound in ((F64, 1e-13), (F32, 1e-5)):
        cell = layer(inputs, hidden, dtype=dtype)
        x, state = frames(batch, 2, inputs, 3, 4, dtype=dtype), states(batch, hidden, 3, 4, dtype)
        assert difference(everything(cell, x, state), in_float64(cell, x, state)) < bound


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("used", ["outputs", "hidden", "cell", "outputs cell", "hidden cell"])
def test_gradients_of_only_some_results(kernels, used, recompute):
    cell, x, state = layer(recompute=recompute), frames(2, 5, 2, 4, 4), states(2, 3, 4, 4)
    assert (
        difference(everything(cell, x, state, used=used), everything(cell, x, state, used=used, defined=True))
        < 1e-13
    )


def test_gradient_of_one_step_only():
    cell, x = layer(), frames(1, 6, 2, 4, 4)
    found = [
        torch.autograd.grad(way[0][:, 2].square().sum(), x)[0] for way in (cell(x), cell.definition(x, None, 6))
    ]
    assert not found[0][:, 3:].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("peephole", ["none", "channel", "pixel"])
def test_gradients_by_finite_differences(kernels, peephole):
    cell = layer(1, 2, input_kernel=1, peephole=peephole, size=(2, 1) if peephole == "pixel" else None)
    x, state = frames(1, 3, 1, 2, 1), states(1, 2, 2, 1)
    given = (x, *state, cell.input_weight, cell.state_weight, cell.bias, cell.peephole)
    for recompute in (False, True):
        way = partial(sequence.convlstm_sequence, num_steps=3, recompute=recompute)
        assert gradcheck(way, given, fast_mode=True)


@pytest.mark.parametrize(
    "trainable",
    [("x",), ("bias",), ("peephole",), ("hidden",), ("cell",), ("x", "state_weight"), ("input_weight", "cell")],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_only_where_they_are_wanted(trainable, recompute):
    cell, x, state = layer(recompute=recompute), frames(1, 4, 2, 3, 3), states(1, 3, 3, 3)
    for name, leaf in {"x": x, "hidden": state[0], "cell": state[1], **dict(cell.named_parameters())}.items():
        leaf.requires_grad_(name in trainable)
    found, expected = everything(cell, x, state), everything(cell, x, state, defined=True)
    assert len(found) == 3 + len(trainable)
    assert difference(found, expected) < 1e-13


def test_nothing_to_learn_keeps_no_graph():
    cell = layer().requires_grad_(False)
    assert cell(frames(1, 2, 2, 3, 3).detach())[0].grad_fn is None


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("peephole", ["none", "channel", "pixel"])
def test_float32_within_its_rounding(kernels, peephole, with_state, recompute):
    size = (9, 7) if peephole == "pixel" else None
    cell = layer(4, 17, dtype=F32, peephole=peephole, size=size, recompute=recompute)
    x, state = frames(2, 7, 4, 9, 7, dtype=F32), states(2, 17, 9, 7, F32) if with_state else None
    assert difference(everything(cell, x, state), in_float64(cell, x, state)) < 1e-5


# bfloat16 has 8 significant bits: a value is off by 2^-8 of itself at most once it is stored. Gates, hidden states and
# gradients of gates are stored at each step; over 7 steps it may add up to several of these.
BF16_BOUND = 0.02


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("peephole", ["none", "channel", "pixel"])
def test_bfloat16_layers_within_its_rounding(kernels, peephole, with_state, recompute):
    size = (9, 7) if peephole == "pixel" else None
    cell = layer(4, 17, dtype=BF16, peephole=peephole, size=size, recompute=recompute)
    x, state = frames(2, 7, 4, 9, 7, dtype=BF16), states(2, 17, 9, 7, BF16) if with_state else None
    found = everything(cell, x, state)
    assert (found["out"].dtype, found["h"].dtype, found["c"].dtype) == (BF16, BF16, F32)
    assert difference(found, in_float64(cell, x, state)) < BF16_BOUND


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_within_the_rounding_of_bfloat16(kernels, recompute):
    cell = layer(4, 17, dtype=F32, recompute=recompute)
    x, state = frames(2, 7, 4, 9, 7, dtype=F32), states(2, 17, 9, 7, F32)
    with torch.autocast("cpu", dtype=BF16):
        found = everything(cell, x, state)
    assert (found["out"].dtype, found["c"].dtype) == (BF16, F32)
    assert found["dx"].dtype == found["d bias"].dtype == F32
    assert difference(found, in_float64(cell, x, state)) < BF16_BOUND


def test_float16_takes_plain_pytorch():
    cell, x = layer(dtype=torch.float16), frames(1, 4, 2, 5, 4, dtype=torch.float16)
    assert difference(everything(cell, x), in_float64(cell, x)) < 5e-3


@pytest.mark.parametrize(("dtype", "bound"), [(F32, 1e-6), (F64, 1e-15)])
def test_sigmoid_and_tanh_of_the_kernels(dtype, bound):
    """Relative to float64 where float32 has the value at full precision, from where they vanish to where they end."""
    small = torch.logspace(-30, 0, 4001, dtype=F64)
    values = torch.cat([torch.linspace(-87, 87, 8001, dtype=F64), small, -small]).to(dtype)
    sigmoid, tanh = squashed(values)
    for got, want in ((sigmoid, values.double().sigmoid()), (tanh, values.double().tanh())):
        assert ((got.double() - want).abs() <= bound * want.abs()).all()
    ends = torch.tensor(
        [-1e30, -1e4, -100, -0.0, 0.0, 100, 1e4, 1e30, -torch.inf, torch.inf, torch.nan], dtype=dtype
    )
    sigmoid, tanh = squashed(ends)
    torch.testing.assert_close(sigmoid, ends.sigmoid(), rtol=0, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(tanh, ends.tanh(), rtol=0, atol=0, equal_nan=True)


def test_kernels_round_to_the_nearest_bfloat16():
    values = torch.linspace(-20, 20, 4001, dtype=BF16)
    for got, want in zip(squashed(values), (values.double().sigmoid(), values.double().tanh()), strict=True):
        assert ((got.double() - want).abs() <= 2.0**-8 * 1.001 * want.abs()).all()


def squashed(values: Tensor) -> tuple[Tensor, Tensor]:
    """σ and tanh of each value, as gates and candidates that `gates.forward` keeps."""
    rows = values[:, None, None, None].expand(-1, 1, 1, 4).contiguous()
    cell = torch.empty(*rows.shape[:3], 1, dtype=gates.cell_dtype(values.dtype))
    kept = torch.empty_like(rows)
    gates.forward(
        rows,
        None,
        None,
        None,
        gates=kept,
        out_gate=None,
        cell=cell,
        hidden=torch.empty_like(cell, dtype=values.dtype),
    )
    i, f, z, o = kept.flatten(0, 2).unbind(-1)
    assert torch.equal(i.nan_to_num(2), f.nan_to_num(2)) and torch.equal(i.nan_to_num(2), o.nan_to_num(2))
    return i, z


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_extreme_gates_stay_finite(kernels, dtype):
    cell, x = layer(2, 8, dtype=dtype), frames(1, 4, 2, 3, 3, dtype=dtype)
    with torch.no_grad():
        cell.bias.copy_(1e4 * torch.randn(32, generator=torch.Generator().manual_seed(6)).sign())
    found, expected = everything(cell, x), in_float64(cell, x)
    assert all(t.isfinite().all() for t in found.values())
    bound = {F64: 1e-13, F32: 1e-5, BF16: BF16_BOUND}[dtype]
    assert difference({"out": found["out"], "c": found["c"]}, {"out": expected["out"], "c": expected["c"]}) < bound


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
@pytest.mark.parametrize("where", ["x", "cell", "bias"])
def test_nan_is_not_hidden(kernels, dtype, where):
    cell, x, state = layer(dtype=dtype), frames(1, 3, 2, 7, 7, dtype=dtype), states(1, 3, 7, 7, dtype)
    with torch.no_grad():
        {"x": x[0, 1, 0], "cell": state[1][0, 0], "bias": cell.bias[None]}[where][..., 0, 0:1] = torch.nan
        found = cell(x, state)[0]
        expected = copy.deepcopy(cell).double().definition(x.double(), tuple(t.double() for t in state), 3)[0]
    assert found.isnan().any() and not found.isnan().all()
    assert torch.equal(found.isnan(), expected.isnan())


# --- memory, threads, modes -----------------------------------------------------------------------------------------


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, otherwise in memory: of (B, T, C, H, W), or of (B, C, H, W)."""
    if x.ndim == 4:
        return {name: laid.squeeze(1) for name, laid in layouts(x.unsqueeze(1)).items()}
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return {
        "transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "strided": wide[..., ::2],
        "channels last": x.movedim(-3, -1).contiguous().movedim(-1, -3),
        "time and channels last": x.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3),
    }


@pytest.mark.parametrize("name", ["transposed", "strided", "channels last", "time and channels last"])
def test_any_layout_in_memory(name):
    cell, x, state = layer(), frames(2, 3, 2, 5, 4).detach(), states(2, 3, 5, 4)
    laid = layouts(x)[name].requires_grad_()
    lying = tuple(layouts(t.detach())[name].requires_grad_() for t in state)
    assert not laid.is_contiguous() and not lying[0].is_contiguous()
    found, expected = everything(cell, laid, lying), everything(cell, x.requires_grad_(), state)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_frames_as_the_layer_below_gives_them_are_not_copied():
    below = layer()(frames(2, 3, 2, 5, 4))[0]
    assert sequence._rows(below).data_ptr() == below.data_ptr()


def test_expanded_frames_states_and_gradients():
    cell = layer()
    one, state = frames(1, 3, 1, 5, 4), states(1, 3, 5, 4)
    got = cell(one.expand(2, 3, 2, 5, 4), tuple(t.expand(2, 3, 5, 4) for t in state))
    want = cell(one.repeat(2, 1, 2, 1, 1), tuple(t.repeat(2, 1, 1, 1) for t in state))
    leaves = [one, *state, *cell.parameters()]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    sums = [
        out.sum() + h.sum() + c.sum() for out, (h, c) in (got, want)
    ]  # their gradients are one value, expanded
    torch.testing.assert_close(torch.autograd.grad(sums[0], leaves), torch.autograd.grad(sums[1], leaves))


@pytest.mark.parametrize("values_at_a_time", [1, 2**22])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_same_values_without_gradients(kernels, monkeypatch, steps, with_state, values_at_a_time):
    monkeypatch.setattr(sequence, "DRIVE_VALUES", values_at_a_time)
    cell, x, state = layer(), frames(2, steps, 2, 5, 4), states(2, 3, 5, 4) if with_state else None
    want = cell(x, state)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(cell(x, state), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("gradients", [True, False])
def test_frame_by_frame_is_the_whole(kernels, gradients):
    cell, x = layer(), frames(2, 5, 2, 4, 4)
    with torch.set_grad_enabled(gradients):
        state, outputs = None, []
        for t in range(5):
            out, state = cell(x[:, t : t + 1], state)
            outputs.append(out)
        streamed, whole = (torch.cat(outputs, 1), *state), cell(x)
        whole = (whole[0], *whole[1])
        torch.testing.assert_close(streamed, whole, rtol=1e-13, atol=1e-13)
    if gradients:
        leaves = [x, *cell.parameters()]
        each = [torch.autograd.grad(probed(way), leaves) for way in (streamed, whole)]
        torch.testing.assert_close(*each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_backward_twice_gives_the_same(kernels, recompute):
    cell, x, state = layer(recompute=recompute), frames(2, 5, 2, 4, 4), states(2, 3, 4, 4)
    out, last = cell(x, state)
    total, leaves = probed((out, *last)), [x, *state, *cell.parameters()]
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(total, leaves), strict=True))


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_any_number_of_threads(kernels, num_threads, dtype):
    # enough values for the kernels to share them out: see PARALLEL in gates.c
    cell, x = layer(1, 17, dtype=dtype, state_kernel=1), frames(1, 2, 1, 23, 22, dtype=dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(everything(cell, x))
    bound = {F64: 1e-13, F32: 1e-5, BF16: BF16_BOUND}[dtype]
    assert max(difference(found[0], {k: v.double() for k, v in other.items()}) for other in found[1:]) < bound


def test_gradients_that_come_in_are_left_as_they_are(kernels):
    """In whatever layout: the backward works in place on copies."""
    cell, x, state = layer(), frames(1, 3, 2, 4, 4), states(1, 3, 4, 4)
    out, last = cell(x, state)
    for name in layouts(out.detach()):
        given = [layouts(torch.randn_like(t))[name] for t in (out, *last)]
        before = [t.clone() for t in given]
        torch.autograd.grad((out, *last), [x, *state], given, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_an_input_changed_in_place_is_noticed():
    cell, x = layer(), layouts(frames(1, 3, 2, 4, 4).detach())["time and channels last"]
    out, _ = cell(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_refused():
    x = frames(1, 2, 2, 3, 3)
    first = torch.autograd.grad(layer()(x)[0].square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        first.sum().backward()


def test_empty_batch():
    cell, x = layer(), frames(0, 3, 2, 4, 4)
    out, _ = cell(x)
    assert out.shape == (0, 3, 3, 4, 4)
    out.sum().backward()
    assert not cell.bias.grad.any()
    with torch.no_grad():
        assert cell(x)[0].shape == (0, 3, 3, 4, 4)


def test_copies_and_checkpoints():
    cell, x = layer(), frames(1, 3, 2, 4, 4)
    twin, fresh = copy.deepcopy(cell), ConvLSTM(2, 3, fast=False).double()
    plain = ConvLSTM(2, 3).double().to(memory_format=torch.contiguous_format)
    state_dict = {name: tensor.contiguous() for name, tensor in cell.state_dict().items()}
    for other in (fresh, plain):
        other.load_state_dict(state_dict)
        torch.testing.assert_close(other(x), cell(x))
    torch.testing.assert_close(twin(x), cell(x), rtol=0, atol=0)
    assert twin.state_weight.is_contiguous(memory_format=torch.channels_last)


def test_exported_programs_hold_the_definition():
    cell, x = layer(dtype=F32), frames(1, 2, 2, 4, 4, dtype=F32).detach()
    program = torch.export.export(cell, (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.tanh.default" in called
    assert all(name.startswith("aten.") for name in called - {"<built-in function getitem>"})
    torch.testing.assert_close(program.module()(x), cell(x))


def test_who_watches_operations_sees_them():
    cell, x = layer(dtype=F32), frames(1, 2, 2, 4, 4, dtype=F32).detach()
    want = cell(x)[0]
    with FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(cell(x)[0], want)
    # 2 FLOPs a weight and pixel: 2 steps of input, 1 of state (the first starts from zeros)
    assert counter.get_total_flops() == 2 * 16 * (2 * cell.input_weight.numel() + cell.state_weight.numel())
    with FakeTensorMode():  # tensors that have a shape only: the kernels would write to memory that is not there
        assert ConvLSTM(2, 3)(torch.empty(1, 2, 2, 4, 4))[0].shape == want.shape


# --- the compiled library -------------------------------------------------------------------------------------------


def assert_right(dtype: torch.dtype = F64) -> None:
    cell, x = layer(dtype=dtype), frames(1, 3, 2, 4, 4, dtype=dtype)
    assert difference(everything(cell, x), in_float64(cell, x)) < 1e-5


@pytest.mark.parametrize("compiler", ["/nonexistent", "false"])
def test_without_a_compiler_it_says_so_once_and_is_right(no_library, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING, logger="raincast"):
        for dtype in (F64, F32, F64):
            assert_right(dtype)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "plain PyTorch" in caplog.text


def test_without_a_home_folder_it_says_so_and_is_right(no_library, monkeypatch, caplog):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("RAINCAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert_right()
    assert "home directory" in caplog.text


@pytest.fixture
def compiler(monkeypatch, tmp_path) -> Path:
    """A compiler that slowly copies a library made before, and counts its calls in the file that comes back."""
    if not gates._kernels("F64"):
        pytest.skip("needs a C compiler")
    made, calls, script = compile_library("gates.c", "RAINCAST_F64"), tmp_path / "calls", tmp_path / "cc"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo copier; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'echo "$2" >> {calls}\n'
        f'head -c 5000 {made} > "$2"; sleep 0.3; cat {made} > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return calls


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF and so on", "the first half"])
def test_a_broken_library_is_made_anew(compiler, no_library, caplog, content):
    """Half of one, as a power cut leaves it, would end the process where it is loaded."""
    library = compile_library("gates.c", "RAINCAST_F64")
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert gates._kernels("F64") and not caplog.records
    assert_right()
    assert len(compiler.read_text().split()) == 2
    gates._kernels.cache_clear()
    assert gates._kernels("F64") and len(compiler.read_text().split()) == 2  # from the cache again


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of POSIX")
@pytest.mark.parametrize("planted", ["folder", "library", "owner"])
def test_a_library_that_others_could_have_planted_is_not_loaded(compiler, no_library, caplog, planted):
    library = compile_library("gates.c", "RAINCAST_F64")
    if planted == "owner":  # in a folder that is ours, as some shared ones are
        try:
            os.chown(library, 12345, -1)
        except PermissionError:
            pytest.skip("only root gives files away")
    else:
        path = library if planted == "library" else library.parent
        path.chmod(path.stat().st_mode | 0o020)
    with caplog.at_level(logging.WARNING, logger="raincast"):
        assert not gates._kernels("F64")
    assert "other users could have written" in caplog.text and "RAINCAST_CACHE" in caplog.text
    assert_right()


def test_two_compile_at_once(compiler, no_library):
    """Each writes under a name of its own and moves it into place whole."""
    made: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: made.append(compile_library("gates.c", "RAINCAST_F64").read_bytes()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(compiler.read_text().split())) == 2
    assert len(made) == 2 and made[0] == made[1]
    assert [path.suffix for path in cache_folder().iterdir()] == [".so"]
    assert gates._kernels("F64")
