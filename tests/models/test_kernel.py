"""Convolutions over rows: with packed kernels and without, they do what PyTorch's convolution does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raincast.models.fast import kernel
from raincast.models.fast.kernel import Kernel


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[True, False], ids=["packed", "as it is"])
def packs(request, monkeypatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("needs a PyTorch with oneDNN")
    monkeypatch.setattr(kernel, "LARGE", 0 if request.param else 10**12)
    return request.param


@pytest.mark.parametrize("steps", [(), (3,)], ids=["a step", "steps"])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(4, 6), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_those_of_conv2d(packs, dtype, steps, size, grid):
    weight, bias = normal(8, 3, size, size).requires_grad_(), normal(8).requires_grad_()
    rows, d_rows = normal(*steps, 2, *grid, 3).requires_grad_(), normal(*steps, 2, *grid, 8)
    image = rows.reshape(-1, *grid, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(image, weight, bias, padding=size // 2).permute(0, 2, 3, 1).reshape(d_rows.shape)
    of_rows, of_weight, of_bias = torch.autograd.grad(expected, (rows, weight, bias), d_rows)

    with torch.no_grad():
        weight, bias, rows, d_rows = (tensor.to(dtype) for tensor in (weight, bias, rows, d_rows))
        convolution = Kernel(weight, (2, *grid))
        assert convolution.packs == (packs and dtype == torch.float32)  # oneDNN has no float64
        found = convolution.convolve(rows, bias)
        without_bias = convolution.convolve(rows, None)
        d_weight, d_bias = convolution.gradients(d_rows, rows, bias=True)
        d_input = convolution.gradient_of_rows(d_rows, rows)
    near = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    pairs = (
        (found, expected),
        (without_bias, expected - bias),
        (d_weight, of_weight),
        (d_bias, of_bias),
        (d_input, of_rows),
    )
    for value, reference in pairs:
        torch.testing.assert_close(value, reference.to(dtype), **near)
    assert convolution.gradients(d_rows, rows, bias=False)[1] is None


def test_packed_once_for_all_steps(packs):
    convolution = Kernel(normal(8, 3, 3, 3, dtype=torch.float32), (2, 4, 4))
    rows = normal(5, 2, 4, 4, 3, dtype=torch.float32)
    together = convolution.convolve(rows, None)
    for step, expected in zip(rows, together, strict=True):
        torch.testing.assert_close(convolution.convolve(step, None), expected)
    assert ("_packed" in vars(convolution)) == packs  # the cached layout
    assert "_packed_back" not in vars(convolution)


def test_the_first_maps_are_the_first_of_all(packs):
    convolution, rows = Kernel(normal(8, 3, 3, 3), (2, 5, 3)), normal(2, 5, 3, 3)
    torch.testing.assert_close(
        convolution.first(6).convolve(rows, None), convolution.convolve(rows, None)[..., :6]
    )


@pytest.mark.parametrize(
    ("outputs", "channels", "size", "side", "heavy"),
    [
        (768, 192, 5, 32, True),  # the 2017 network's second level, as published
        (256, 64, 5, 96, False),  # its first: 1600 values a map are not 4 times 96²
        (64, 16, 3, 4, False),  # few values, whatever the grid
    ],
)
def test_a_kernel_is_heavy_beside_what_it_gives_a_step(outputs, channels, size, side, heavy):
    assert Kernel(torch.empty(outputs, channels, size, size), (1, side, side)).heavy == heavy


@pytest.mark.usefixtures("packs")
def test_what_watches_sees_plain_convolutions():
    weight, rows = normal(8, 3, 3, 3, dtype=torch.float32), normal(2, 4, 4, 3, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        Kernel(weight, (2, 4, 4)).convolve(rows, None)
    assert counter.get_total_flops() == 2 * 8 * 3 * 9 * 2 * 16


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize("step", [(0, 4, 4), (2, 4, 4)], ids=["empty batch", "another device"])
def test_what_onednn_does_not_take_is_not_packed(step):
    device = "meta" if step[0] else "cpu"
    assert not Kernel(torch.empty(8, 3, 3, 3, device=device), step).packs


def test_without_onednn_it_is_not_packed(packs, monkeypatch):
    weight = normal(8, 3, 3, 3, dtype=torch.float32)
    assert Kernel(weight, (2, 4, 4)).packs == packs
    monkeypatch.setattr(kernel, "_NEEDED", ("an operation that a later PyTorch has renamed",))
    assert not Kernel(weight, (2, 4, 4)).packs
