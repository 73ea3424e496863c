"""Cost of a network without running it: layers, shapes, parameters, FLOPs, memory of a training step.

Nothing is computed. The network runs once with and once without gradients on PyTorch's meta device, whose tensors
have a shape but no values. A `Ledger` sees each tensor's storage come and go, so memory is the sum of what exists
at a time, whatever the network consists of.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from raincast.models.frames import PhysicalNetwork
from raincast.models.size.ledger import META, Ledger

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(pred, target, mask)` on (B, T, C, H, W), as in `raincast.losses`."""

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerSummary:
    """One layer: a module with parameters of its own, or without children.

    `output_shape` is (B·T, C, H, W) after a convolution and (B, T, C, H, W) after a recurrent layer (its hidden
    states). `flops` are those of its forward pass, for the whole batch and all steps. `kept_bytes` is the memory
    that its forward pass in training leaves allocated: its output and the tensors stored for the backward pass.
    """

    name: str
    kind: str
    output_shape: _Shape
    parameters: int
    flops: int
    kept_bytes: int


@dataclass(frozen=True)
class NetworkSummary:
    """Cost of a network at given sizes.

    FLOPs count a multiplication and an addition as two, and only those of convolutions and matrix products:
    point-wise operations are limited by memory.

    `activation_bytes` is the memory between forward and backward pass, without parameters, optimiser state and
    batch. `training_peak_bytes` is the largest amount at any time within a step after the first, with parameters
    and optimiser state; `forecast_peak_bytes` is the same for a forward pass without gradients at the same batch
    size. Not included: the interpreter and its libraries, cuDNN's work space, batches that loader processes hold
    ready, and memory that an allocator keeps for later.
    """

    batch_size: int
    input_steps: int
    lead_steps: int
    height: int
    width: int
    layers: tuple[LayerSummary, ...]
    parameters: int
    forward_flops: int
    training_step_flops: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    activation_bytes: int
    training_peak_bytes: int
    forecast_peak_bytes: int


def summarise(
    network: nn.Module,
    *,
    batch_size: int,
    input_steps: int,
    lead_steps: int,
    height: int,
    width: int,
    loss: Loss | None = None,
    optimizer_slots: int = 2,
    device: Literal["cpu", "cuda"] = "cpu",
) -> NetworkSummary:
    """Estimate the cost of `network(frames, lead_steps)` with frames (batch_size, input_steps, C, height, width).

    The network is not changed, and may be on the meta device itself. C is its `in_channels`, 1 if it has none.
    `loss`, a module or a function without tensors of its own, is the mean squared error by default.
    `optimizer_slots` is how many numbers the optimiser stores per weight: 2 for Adam, 1 for SGD with momentum.
    With `device="cpu"` oneDNN's copies of tensors that it convolves are counted; cuDNN's work space is not known
    in advance. Raises ValueError for sizes below 1.
    """
    sizes = {
        "batch_size": batch_size,
        "input_steps": input_steps,
        "lead_steps": lead_steps,
        "height": height,
        "width": width,
    }
    _check(sizes, optimizer_slots, device)
    net = _on_meta(network)
    criterion: Loss = loss or _squared_error
    if isinstance(loss, nn.Module):
        criterion = _on_meta(loss)
    batch = _batch(net, **sizes)
    weights = list(net.parameters())
    trained = [p for p in weights if p.requires_grad]
    resident = _nbytes([*weights, *net.buffers()])
    gradients = _nbytes(trained)
    state = optimizer_slots * gradients
    blocked = device == "cpu"

    forecast, forward_flops = _forecast(net.eval(), batch, blocked=blocked)
    step, step_flops, layers = _training_step(net.train(), criterion, batch, blocked=blocked)
    peak = max(
        step.forward_peak + gradients,  # the previous step's gradients exist until the forward pass ends
        step.backward_peak,
        2 * gradients,  # the optimiser uses another copy when it updates all weights at once
    )
    batch_bytes = _nbytes(batch)
    return NetworkSummary(
        **sizes,
        layers=layers,
        parameters=sum(p.numel() for p in weights),
        forward_flops=forward_flops,
        training_step_flops=step_flops,
        parameter_bytes=_nbytes(weights),
        gradient_bytes=gradients,
        optimizer_bytes=state,
        batch_bytes=batch_bytes,
        activation_bytes=step.kept,
        training_peak_bytes=resident + state + batch_bytes + peak,
        # a forecast needs no targets
        forecast_peak_bytes=resident + _nbytes(batch[2:]) + forecast,
    )


def forecast_bytes(
    network: nn.Module,
    *,
    input_steps: int,
    lead_steps: int,
    height: int,
    width: int,
    device: Literal["cpu", "cuda"] = "cpu",
    **further: Any,
) -> int:
    """Return the peak bytes that a forecast of one sample allocates, without the network's weights.

    `further` are keyword arguments of the network.
    """
    net = _on_meta(network).eval()
    batch = _batch(net, batch_size=1, input_steps=input_steps, lead_steps=lead_steps, height=height, width=width)
    return _nbytes(batch[2:]) + _forecast(net, batch, blocked=device == "cpu", **further)[0]


def _check(sizes: Mapping[str, int], optimizer_slots: int, device: str) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size}: give a whole number, at least 1.")
    if not isinstance(optimizer_slots, int) or optimizer_slots < 0:
        raise ValueError(
            f"optimizer_slots={optimizer_slots}: 2 for Adam, 1 for SGD with momentum, 0 for SGD without."
        )
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: take cpu or cuda.")


def _on_meta(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device; the memo of deepcopy prevents values from being copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        like = torch.empty_like(parameter, device=META)
        memo[id(parameter)] = nn.Parameter(like, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=META)
    return copy.deepcopy(module, memo)


def _squared_error(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, pred - target, 0.0).square().mean()


def _batch(
    net: nn.Module, *, batch_size: int, input_steps: int, lead_steps: int, height: int, width: int
) -> tuple[Tensor, ...]:
    """Return target, target mask, input and, if the network reads them, the channels known in advance."""
    channels, known = int(getattr(net, "in_channels", 1)), int(getattr(net, "future_channels", 0))
    target = (batch_size, lead_steps, 1, height, width)
    return (
        torch.empty(target, device=META),
        torch.empty(target, dtype=torch.bool, device=META),
        torch.empty(batch_size, input_steps, channels, height, width, device=META),
        *(torch.empty(batch_size, lead_steps, known, height, width, device=META) for _ in range(known > 0)),
        *(torch.empty(batch_size, 2, device=META) for _ in range(isinstance(net, PhysicalNetwork))),
    )


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class _Step:
    """Bytes without parameters, optimiser state and batch: after the forward pass, and the peak of each pass."""

    kept: int
    forward_peak: int
    backward_peak: int


def _forecast(net: nn.Module, batch: Sequence[Tensor], *, blocked: bool, **further: Any) -> tuple[int, int]:
    """Return peak bytes and FLOPs of a forward pass without gradients."""
    num_steps = batch[0].shape[1]
    ledger = Ledger(blocked=blocked)
    with torch.no_grad(), ledger, FlopCounterMode(display=False) as flops:
        _run(net, batch, num_steps, **further)
    return ledger.peak, flops.get_total_flops()


def _run(net: nn.Module, batch: Sequence[Tensor], num_steps: int, **further: Any) -> Tensor:
    frames, *known = (tensor.clone() for tensor in batch[2:])
    output: Tensor = net(frames, num_steps, *known, **further)
    return output


def _training_step(
    net: nn.Module, loss: Loss, batch: Sequence[Tensor], *, blocked: bool
) -> tuple[_Step, int, tuple[LayerSummary, ...]]:
    target, mask = batch[:2]
    ledger = Ledger(blocked=blocked)
    with ledger, FlopCounterMode(display=False) as flops, _watched(net, flops, ledger) as layers:
        # the clones stand for the outputs of the transform
        value = loss(_run(net, batch, target.shape[1]), target.clone(), mask)
        kept, forward_peak = ledger.live, ledger.peak
        ledger.peak = 0
        torch.autograd.backward(value)
        return _Step(kept, forward_peak, ledger.peak), flops.get_total_flops(), tuple(layers.values())


@contextlib.contextmanager
def _watched(net: nn.Module, flops: FlopCounterMode, ledger: Ledger) -> Iterator[dict[str, LayerSummary]]:
    """Collect the layers of `net` while it runs forward."""
    layers: dict[str, LayerSummary] = {}
    before: dict[str, tuple[int, int]] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            before[name] = flops.get_total_flops(), ledger.live

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            started, lived = before.pop(name)
            earlier = layers.get(name)  # a layer may run more than once
            layers[name] = LayerSummary(
                name=name,
                kind=type(module).__name__,
                output_shape=tuple(_first_tensor(output).shape),
                parameters=sum(p.numel() for p in module.parameters()),
                flops=flops.get_total_flops() - started + (earlier.flops if earlier else 0),
                kept_bytes=ledger.live - lived + (earlier.kept_bytes if earlier else 0),
            )

        return hook

    handles = []
    for name, module in _layers(net):
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules that have parameters of their own or no children."""
    children = list(module.named_children())
    if not children or next(module.parameters(recurse=False), None) is not None:
        yield name or type(module).__name__, module
        return
    for child_name, child in children:
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def _first_tensor(output: Any) -> Tensor:
    return next(tensor for tensor in tree_iter(output) if isinstance(tensor, Tensor))
