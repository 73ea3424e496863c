"""Convolutions over rows: a matrix product does what PyTorch's convolution does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raincast.models import kernel
from raincast.models.kernel import Kernel


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture(params=[True, False], ids=["product", "convolution"])
def as_product(request, monkeypatch) -> bool:
    monkeypatch.setattr(kernel, "LARGE", 0 if request.param else 10**12)
    monkeypatch.setattr(kernel, "PIXELS_RATIO", 0)
    return request.param


@pytest.mark.parametrize("steps", [(), (3,)], ids=["a step", "steps"])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(4, 6), (1, 1), (2, 1)], ids=str)
def test_values_and_gradients_are_those_of_conv2d(as_product, steps, size, grid):
    weight, bias = normal(8, 3, size, size).requires_grad_(), normal(8).requires_grad_()
    rows, d_rows = normal(*steps, 2, *grid, 3).requires_grad_(), normal(*steps, 2, *grid, 8)
    image = rows.reshape(-1, *grid, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(image, weight, bias, padding=size // 2).permute(0, 2, 3, 1).reshape(d_rows.shape)
    of_rows, of_weight, of_bias = torch.autograd.grad(expected, (rows, weight, bias), d_rows)

    with torch.no_grad():
        convolution = Kernel(weight, 2 * grid[0] * grid[1])
        assert convolution.as_product == as_product
        found = convolution.convolve(rows, bias)
        without_bias = convolution.convolve(rows, None)
        d_weight, d_bias = convolution.gradients(d_rows, rows, bias=True)
        d_input = convolution.gradient_of_rows(d_rows, rows)
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **near)
    torch.testing.assert_close(without_bias, expected - bias, **near)
    torch.testing.assert_close(d_weight, of_weight, **near)
    torch.testing.assert_close(d_bias, of_bias, **near)
    torch.testing.assert_close(d_input, of_rows, **near)
    assert convolution.gradients(d_rows, rows, bias=False)[1] is None


def test_the_first_maps_are_the_first_of_all(as_product):
    convolution, rows = Kernel(normal(8, 3, 3, 3), 30), normal(2, 5, 3, 3)
    torch.testing.assert_close(
        convolution.first(6).convolve(rows, None), convolution.convolve(rows, None)[..., :6]
    )


@pytest.mark.parametrize(
    ("outputs", "channels", "size", "pixels", "product"),
    [
        (768, 192, 5, 64, True),  # the 2017 network's second level at 120 pixels a side
        (768, 192, 5, 1024, False),  # at its own 480: 4800 values a map are not 16 times 1024
        (256, 64, 5, 64, False),  # 410 thousand values stay in a core's cache
    ],
)
def test_only_large_kernels_on_tiny_grids_are_products(outputs, channels, size, pixels, product):
    assert Kernel(torch.empty(outputs, channels, size, size), pixels).as_product == product


def test_half_precision_and_other_devices_are_convolved():
    assert not Kernel(torch.empty(768, 192, 5, 5, dtype=torch.bfloat16), 64).as_product
    assert not Kernel(torch.empty(768, 192, 5, 5, device="meta"), 64).as_product
