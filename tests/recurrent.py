"""Builds recurrent layers and states for tests, and compares a layer with its equations."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

F64 = torch.float64
Layer = TypeVar("Layer", bound=nn.Module)


def moved(layer: Layer) -> Layer:
    """The layer in float64, with every parameter away from its start."""
    torch.manual_seed(1)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return layer


def random_state(count: int, hidden: int = 3, hw: tuple[int, int] = (5, 7)) -> tuple[Tensor, ...]:
    """`count` tensors (2, hidden, *hw)."""
    g = torch.Generator().manual_seed(2)
    return tuple(torch.randn(2, hidden, *hw, dtype=F64, generator=g) for _ in range(count))


def assert_equals(
    layer: nn.Module, definition: Callable, state: tuple[Tensor, ...] | None, steps: int, count: int
):
    """Compare outputs, last states and all gradients with `definition(layer, x, state, steps)`."""
    x = torch.randn(2, steps, 2, 5, 7, dtype=F64, requires_grad=True)
    got, last = layer(x, state)
    want, want_last = definition(layer, x, state or (torch.zeros(2, 3, 5, 7, dtype=F64),) * count, steps)
    torch.testing.assert_close((got, last), (want, want_last))
    probes = [torch.randn_like(part) for part in (got, *last)]
    mine, theirs = (
        torch.autograd.grad(
            sum((part * probe).sum() for part, probe in zip(parts, probes, strict=True)), [x, *layer.parameters()]
        )
        for parts in ((got, *last), (want, *want_last))
    )
    torch.testing.assert_close(mine, theirs)
