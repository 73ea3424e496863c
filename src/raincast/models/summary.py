"""What a network costs before it is run: layers, shapes, parameters, FLOPs, and the memory of a training step.

Nothing is computed. The network runs once with gradients and once without on PyTorch's meta device, whose
tensors have a shape and no values. A `_Ledger` sees each tensor's storage come and go, so that memory is the
sum of what lives at a time, whatever the network is made of.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(pred, target, mask)` on (B, T, C, H, W), as in `raincast.losses`."""

BLOCK = 16
"""Channels that oneDNN keeps side by side (AVX-512): its copies of narrower outputs are that wide."""

_META = torch.device("meta")
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerSummary:
    """One layer: a module with parameters of its own, or without children.

    `output_shape` is (B·T, C, H, W) behind a convolution and (B, T, C, H, W) behind a recurrent layer (its hidden
    states). `flops` are those of its forward pass, for the whole batch and all steps. `kept_bytes` is what its
    forward pass in training leaves allocated: its output, and what its backward pass will need.
    """

    name: str
    kind: str
    output_shape: _Shape
    parameters: int
    flops: int
    kept_bytes: int


@dataclass(frozen=True)
class NetworkSummary:
    """A network at given sizes. FLOPs count a multiplication and an addition as two, and only those of
    convolutions and matrix products: what is point-wise moves memory rather than computes.

    `activation_bytes` is what lies there between the forward and the backward pass beside the parameters, the
    optimiser's state and the batch. `training_peak_bytes` is the most that exists at a time within a step after
    the first, parameters and optimiser state included; `forecast_peak_bytes` the same for a forward pass without
    gradients, at the same batch size. Not in them: the interpreter and its libraries, work space of cuDNN, the
    batches that loading processes hold ready, and what an allocator keeps for later.
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
    """What `network(frames, lead_steps)` with frames (batch_size, input_steps, C, height, width) costs.

    The network is not touched, and may be on the meta device itself. C is its `in_channels`, 1 where it has
    none. `loss`, a module or a function without tensors of its own, is by default the mean squared error.
    `optimizer_slots` are the numbers that the optimiser keeps for each weight: 2 for Adam, 1 for SGD with
    momentum. With `device="cpu"` the copies that oneDNN makes of what it convolves are counted; what cuDNN takes
    is not known beforehand. ValueError for sizes below 1.
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
    criterion: Loss = _squared_error if loss is None else _loss_on_meta(loss)
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
        step.forward_peak + gradients,  # those of the step before are there until the forward pass is over
        step.backward_peak,
        2 * gradients,  # the optimiser works on one more copy where it takes all weights at once
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
        # targets are not needed for a forecast
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
) -> int:
    """What a forecast of one sample allocates at most at a time, beyond the network's weights."""
    net = _on_meta(network).eval()
    batch = _batch(net, batch_size=1, input_steps=input_steps, lead_steps=lead_steps, height=height, width=width)
    return _nbytes(batch[2:]) + _forecast(net, batch, blocked=device == "cpu")[0]


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
    """A copy without values; through the memo of deepcopy, so that none are copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        like = torch.empty_like(parameter, device=_META)
        memo[id(parameter)] = nn.Parameter(like, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=_META)
    return copy.deepcopy(module, memo)


def _loss_on_meta(loss: Loss) -> Loss:
    return _on_meta(loss) if isinstance(loss, nn.Module) else loss


def _squared_error(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, pred - target, 0.0).square().mean()


def _batch(
    net: nn.Module, *, batch_size: int, input_steps: int, lead_steps: int, height: int, width: int
) -> tuple[Tensor, ...]:
    """Target, target mask, input and, if the network reads it, what is known in advance of a batch."""
    channels, known = int(getattr(net, "in_channels", 1)), int(getattr(net, "future_channels", 0))
    target = (batch_size, lead_steps, 1, height, width)
    return (
        torch.empty(target, device=_META),
        torch.empty(target, dtype=torch.bool, device=_META),
        torch.empty(batch_size, input_steps, channels, height, width, device=_META),
        *(torch.empty(batch_size, lead_steps, known, height, width, device=_META) for _ in range(known > 0)),
    )


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, from their making to their end.

    `live` is what exists now and `peak` the most there was, both without what was there before. On a CPU
    (`blocked`) the work space of a convolution counts while it runs.
    """

    def __init__(self, *, blocked: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocked = blocked
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; storages of its outputs that are not known yet are new."""
        for tensor in tree_iter((args, kwargs)):
            # what an operation is given and nobody made here was there before
            if isinstance(tensor, Tensor):
                self._follow(tensor, nbytes=0)
        made = _laid_out(func, args, func(*args, **(kwargs or {})))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor, nbytes=tensor.untyped_storage().nbytes())
        work = _work_space(func, args, made) if self.blocked else 0
        self.peak = max(self.peak, self.live + work)
        return made

    def _follow(self, tensor: Tensor, *, nbytes: int) -> None:
        # a storage keeps one Python object as long as it lives, also where only autograd holds it
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += nbytes
            weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def _laid_out(func: Any, args: Sequence[Any], made: Any) -> Any:
    """A convolution's result in the layout that it has on a CPU or GPU: the meta device leaves that out."""
    if func is not torch.ops.aten.convolution.default or made.device != _META:
        return made
    last = _channels_last(args[0]) or _channels_last(args[1])
    return made.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _work_space(func: Any, args: Sequence[Any], made: Any) -> int:
    """Bytes that oneDNN allocates beside the result, found by watching its allocations (AVX-512).

    Where input or kernel lie with channels last, it copies what lies otherwise, and the kernel once, backward
    twice. Else it convolves copies of its own layout: forward those of input, kernel and output, then of the
    output beside the result; a transposed convolution holds its output twice more; backward those of the input
    and of the output's gradient.
    """
    if func is torch.ops.aten.convolution.default:
        x, weight, transposed = args[0], args[1], args[6]
        if _channels_last(x) or _channels_last(weight):
            return _copied(x) + _copied(weight) + int(weight.nbytes)
        inner = _blocked(made)
        if transposed:
            return max(_read(x) + inner, 2 * inner)
        return max(_read(x) + int(weight.nbytes) + inner - int(made.nbytes), inner)
    if func is torch.ops.aten.convolution_backward.default:
        gradient, x, weight = args[:3]
        if _channels_last(x) or _channels_last(weight):
            return _copied(x) + _copied(gradient) + _copied(weight) + 2 * int(weight.nbytes)
        return _read(x) + _blocked(gradient)
    return 0


def _channels_last(x: Tensor) -> bool:
    # a 1×1 kernel lies both ways, and is taken for the other
    several = x.ndim == 4 and x.shape[-1] * x.shape[-2] > 1
    return several and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _copied(x: Tensor) -> int:
    return 0 if _channels_last(x) else x.nbytes


def _read(x: Tensor) -> int:
    # an input narrower than a block is not widened
    return x.nbytes if x.shape[1] < BLOCK else _blocked(x)


def _blocked(x: Tensor) -> int:
    """Bytes of (N, C, H, W) with C filled up to whole blocks."""
    channels = x.shape[1]
    return x.nbytes // channels * (-(-channels // BLOCK) * BLOCK)


@dataclass(frozen=True)
class _Step:
    """Bytes beside parameters, optimiser state and batch: after the forward pass, and at most during each."""

    kept: int
    forward_peak: int
    backward_peak: int


def _forecast(net: nn.Module, batch: Sequence[Tensor], *, blocked: bool) -> tuple[int, int]:
    """Peak bytes and FLOPs of a forward pass without gradients."""
    num_steps = batch[0].shape[1]
    ledger = _Ledger(blocked=blocked)
    with torch.no_grad(), ledger, FlopCounterMode(display=False) as flops:
        _run(net, batch, num_steps)
    return ledger.peak, flops.get_total_flops()


def _run(net: nn.Module, batch: Sequence[Tensor], num_steps: int) -> Tensor:
    frames, *known = (tensor.clone() for tensor in batch[2:])
    output: Tensor = net(frames, num_steps, *known)
    return output


def _training_step(
    net: nn.Module, loss: Loss, batch: Sequence[Tensor], *, blocked: bool
) -> tuple[_Step, int, tuple[LayerSummary, ...]]:
    target, mask = batch[:2]
    ledger = _Ledger(blocked=blocked)
    with ledger, FlopCounterMode(display=False) as flops, _watched(net, flops, ledger) as layers:
        # the clones stand for what the transform makes of the batch
        value = loss(_run(net, batch, target.shape[1]), target.clone(), mask)
        kept, forward_peak = ledger.live, ledger.peak
        ledger.peak = 0
        torch.autograd.backward(value)
        return _Step(kept, forward_peak, ledger.peak), flops.get_total_flops(), tuple(layers.values())


@contextlib.contextmanager
def _watched(net: nn.Module, flops: FlopCounterMode, ledger: _Ledger) -> Iterator[dict[str, LayerSummary]]:
    """The layers of `net`, filled in while it runs forward."""
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
    """The outermost modules with parameters of their own, and those without children."""
    children = list(module.named_children())
    if not children or next(module.parameters(recurse=False), None) is not None:
        yield name or type(module).__name__, module
        return
    for child_name, child in children:
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def _first_tensor(output: Any) -> Tensor:
    return next(tensor for tensor in tree_iter(output) if isinstance(tensor, Tensor))
