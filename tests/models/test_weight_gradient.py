"""The gradient of weights by the C kernel, against PyTorch's in float64."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raincast.models.fast import compiled, weight_gradient
from raincast.models.fast.convolution import Conv2d, ConvTranspose2d
from raincast.models.fast.kernel import Kernel

LESS = {"AVX2": ("-mavx2", "-mfma"), "no vectors": ("-march=x86-64",)}
"""What gcc compiles for processors that have less than this one."""


@pytest.fixture(params=["this processor", "AVX2"])
def kernel(request, nothing_loaded, monkeypatch) -> weight_gradient._Kernel:
    """The compiled kernel, for this processor and for one with the vectors before."""
    if request.param != "this processor":
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            pytest.skip("needs a processor with AVX2")
        compile_for(request.param, monkeypatch)
    found = weight_gradient._kernel()
    if found is None or not found.takes(64):
        pytest.skip("needs a C compiler, and a processor with AVX2")
    return found


def compile_for(processor: str, monkeypatch) -> None:
    others = [flag for flag in compiled.FLAGS if not flag.startswith("-m")]
    monkeypatch.setattr(compiled, "FLAGS", [*others, *LESS[processor]])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def expected(d_rows: Tensor, rows: Tensor, size: int, **geometry: int) -> tuple[Tensor, Tensor]:
    """By autograd in float64."""
    weight = torch.zeros(d_rows.shape[-1], rows.shape[-1], size, size, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(d_rows.shape[-1], dtype=torch.float64, requires_grad=True)
    image, d_image = (t.double().flatten(0, -4).permute(0, 3, 1, 2) for t in (rows, d_rows))
    result = F.conv2d(image, weight, bias, **geometry)
    return torch.autograd.grad(result, (weight, bias), d_image)


def assert_near(found: Tensor | None, reference: Tensor) -> None:
    assert found is not None and found.dtype == torch.float32
    assert found.shape == reference.shape
    assert ((found.double() - reference).abs() <= 2e-6 * reference.abs().max()).all()


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (5, 7), (16, 16), (3, 200)], ids=str)
def test_it_is_the_gradient(kernel, size, grid):
    """Grids under a panel, of several images a panel, and of lines longer than one."""
    d_rows, rows = normal(3, 2, *grid, 64), normal(3, 2, *grid, 7)
    want, want_bias = expected(d_rows, rows, size, padding=size // 2)
    d_weight, d_bias = weight_gradient.weight_gradient(d_rows, rows, size, bias=True)
    assert_near(d_weight, want)
    assert_near(d_bias, want_bias)
    assert d_weight.is_contiguous(memory_format=torch.channels_last)
    assert weight_gradient.weight_gradient(d_rows, rows, size, bias=False)[1] is None


@pytest.mark.parametrize("channels", [*range(1, 15), 64])
@pytest.mark.parametrize("outputs", [64, 80, 96, 112, 256])
def test_any_width(kernel, outputs, channels):
    d_rows, rows = normal(2, 6, 5, outputs), normal(2, 6, 5, channels)
    assert_near(
        weight_gradient.weight_gradient(d_rows, rows, 3, bias=True)[0], expected(d_rows, rows, 3, padding=1)[0]
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 50])
@pytest.mark.usefixtures("num_threads")
def test_it_does_not_depend_on_how_many_threads_work(kernel, threads):
    d_rows, rows = normal(2, 16, 12, 192), normal(2, 16, 12, 10)
    found = []
    for number in (1, threads):
        torch.set_num_threads(number)
        found.append(weight_gradient.weight_gradient(d_rows, rows, 3, bias=True))
    for one, many in zip(*found, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, 1), (4, 2, 1), (5, 2, 2), (5, 3, 1), (2, 2, 0), (1, 2, 0), (7, 5, 1)]
)
@pytest.mark.parametrize("grid", [(12, 12), (30, 47)], ids=str)
def test_strides(kernel, size, stride, padding, grid):
    """Also where the last pixels are seen by none."""
    rows = normal(2, *grid, 6)
    H, W = ((extent + 2 * padding - size) // stride + 1 for extent in grid)
    d_rows = normal(2, H, W, 64)
    want, want_bias = expected(d_rows, rows, size, stride=stride, padding=padding)
    found, found_bias = weight_gradient.weight_gradient(
        d_rows, rows, size, stride=stride, padding=padding, bias=True
    )
    assert_near(found, want)
    assert_near(found_bias, want_bias)


def test_nothing_is_lost_in_long_sums(kernel):
    """It sums up panels one by one."""
    d_rows, rows = normal(12, 96, 96, 64), normal(12, 96, 96, 3)
    want, want_bias = expected(d_rows, rows, 3, padding=1)
    for found, right in zip(
        weight_gradient.weight_gradient(d_rows, rows, 3, bias=True), (want, want_bias), strict=True
    ):
        assert ((found - right).abs() <= 1e-6 * right.abs().max()).all()


def test_nan_stays_with_what_it_touches(kernel):
    """In a corner it is seen by four of nine weights, at one output and channel."""
    for tensor in ("d_rows", "rows"):
        d_rows, rows = normal(1, 5, 4, 64), normal(1, 5, 4, 3)
        (d_rows if tensor == "d_rows" else rows)[0, 0, 0, 1] = torch.nan
        d_weight, _ = weight_gradient.weight_gradient(d_rows, rows, 3, bias=False)
        touched = d_weight.isnan()
        assert touched.sum() == 4 * (3 if tensor == "d_rows" else 64)
        assert (touched[1] if tensor == "d_rows" else touched[:, 1]).sum() == touched.sum()


def test_rows_that_do_not_lie_in_a_row(kernel):
    d_rows, rows = normal(2, 64, 6, 5).permute(0, 2, 3, 1), normal(2, 6, 10, 4)[:, :, ::2]
    assert_near(
        weight_gradient.weight_gradient(d_rows, rows, 3, bias=False)[0], expected(d_rows, rows, 3, padding=1)[0]
    )


def test_what_it_does_not_take(kernel):
    rows = normal(2, 4, 4, 3)
    for d_rows in (normal(2, 4, 4, 65), normal(2, 4, 4, 4), normal(2, 4, 4, 64).double(), normal(0, 4, 4, 64)):
        assert weight_gradient.weight_gradient(d_rows, rows.to(d_rows.dtype), 3, bias=False) is None
    meta = torch.empty(2, 4, 4, 64, device="meta")
    assert weight_gradient.weight_gradient(meta, rows.to("meta"), 3, bias=False) is None


def test_without_vectors_it_is_left_to_pytorch(nothing_loaded, monkeypatch):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs a compiler for x86-64")
    compile_for("no vectors", monkeypatch)
    found = weight_gradient._kernel()
    if found is None:
        pytest.skip("needs a C compiler")
    d_rows, rows = normal(2, 4, 4, 64), normal(2, 4, 4, 3)
    assert not found.takes(64) and weight_gradient.weight_gradient(d_rows, rows, 3, bias=True) is None
    convolution = Kernel(torch.zeros(64, 3, 3, 3), (2, 4, 4))
    assert_near(convolution.gradients(d_rows, rows, bias=True)[0], expected(d_rows, rows, 3, padding=1)[0])


def test_it_can_be_switched_off(nothing_loaded, monkeypatch):
    monkeypatch.setenv("RAINCAST_KERNELS", "0")
    assert weight_gradient.weight_gradient(normal(2, 4, 4, 64), normal(2, 4, 4, 3), 3, bias=True) is None


# --- the convolutions between the layers ----------------------------------------------------------------------------

MODULES = {
    "keeps the size": (Conv2d, torch.nn.Conv2d, (6, 64, 3, 1, 1)),
    "down": (Conv2d, torch.nn.Conv2d, (6, 64, 4, 2, 1)),
    "up": (ConvTranspose2d, torch.nn.ConvTranspose2d, (64, 6, 4, 2, 1)),
    "up, odd": (ConvTranspose2d, torch.nn.ConvTranspose2d, (64, 6, 3, 2, 1, 1)),
    "narrow": (Conv2d, torch.nn.Conv2d, (6, 5, 3, 1, 1)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format], ids=str)
def test_modules_give_what_pytorchs_give(kernel, name, bias, memory):
    ours, theirs, arguments = MODULES[name]
    module, reference = ours(*arguments, bias=bias), theirs(*arguments, bias=bias).double()
    reference.load_state_dict(module.state_dict())
    x = normal(3, arguments[0], 8, 12).contiguous(memory_format=memory).requires_grad_()
    result, wanted = module(x), reference(x.double())
    torch.testing.assert_close(result, wanted.float())
    assert "_Convolution" in type(result.grad_fn).__name__
    d_result = normal(*result.shape)
    found = torch.autograd.grad(result, [x, *module.parameters()], d_result)
    want = torch.autograd.grad(wanted, [x, *reference.parameters()], d_result.double())
    for got, right in zip(found, want, strict=True):
        assert ((got - right).abs() <= 2e-6 * right.abs().max()).all()


def test_modules_give_only_the_gradients_that_are_wanted(kernel):
    module, x = Conv2d(6, 64, 3, padding=1), normal(2, 6, 8, 8)
    module.bias.requires_grad_(False)
    module(x).sum().backward()
    assert module.weight.grad is not None and module.bias.grad is None
    module.weight.requires_grad_(False)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("module", [Conv2d(3, 64, 3, padding=1), ConvTranspose2d(64, 3, 4, 2, 1)])
def test_who_watches_sees_pytorchs(module):
    x = normal(1, module.in_channels, 8, 8)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert module(x).grad_fn is None
    exported = torch.export.export(module, (x,))
    assert not any("_Convolution" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), module(x))


def test_an_output_size_is_pytorchs_to_work_out():
    module, x = ConvTranspose2d(64, 3, 3, 2, 1), normal(1, 64, 4, 4)
    assert module(x, [8, 8]).shape[-2:] == (8, 8)


@pytest.mark.parametrize("module", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("other", [{"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}], ids=str)
def test_what_the_kernel_does_not_know_is_refused(module, other):
    with pytest.raises(TypeError):
        module(64, 64, 3, **other)
