"""How a network's arithmetic is carried out: compiled, recomputed, in which precision. Not what it computes."""

import functools
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from raincast.training.averaging import AveragedWeights
from raincast.training.heap import keep_freed_memory

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def units(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that a network calls one by one: its children, and those in its lists."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(True for _ in child.parameters()):
            yield child


def prepare(network: nn.Module, *, compile: str | None, recompute: bool, tf32: bool) -> None:
    """Make `network` run so; ValueError for a mode that torch.compile does not know."""
    if compile is not None and compile not in COMPILE_MODES:
        raise ValueError(f"compile={compile} is no mode of torch.compile: null, {', '.join(COMPILE_MODES)}.")
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if recompute:
        for unit in units(network):
            # of the instance: the names of the weights stay what they are
            unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
    if compile is not None:
        network.compile(mode=compile)


def recomputes(network: nn.Module) -> int:
    """How many units of `network` compute their activations again in the backward."""
    forwards = (getattr(unit, "forward", None) for unit in units(network))
    return sum(isinstance(forward, functools.partial) and forward.func is checkpoint for forward in forwards)


def used(trainer: L.Trainer, network: nn.Module) -> dict[str, Any]:
    """What is in force, read back from the Trainer and the network; None where there is nothing to say."""
    plugin = trainer.precision_plugin
    scaler = getattr(plugin, "scaler", None)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
    averaged = [callback for callback in callbacks if isinstance(callback, AveragedWeights)]
    parts = list(units(network))
    return {
        "accelerator": type(trainer.accelerator).__name__,
        "strategy": type(trainer.strategy).__name__,
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": str(plugin.precision),
        "loss_scale": None if scaler is None else scaler.get_scale(),
        "tf32": torch.backends.cudnn.allow_tf32 if torch.cuda.is_available() else None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "ema": averaged[0].decay if averaged else None,
        "compiled": network._compiled_call_impl is not None,
        "recompute": f"{recomputes(network)} of {len(parts)} layers",
    }
