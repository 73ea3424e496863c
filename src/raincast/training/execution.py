"""Execution of a network: compilation, recomputation, precision, averaged weights, shards.

None changes its function. Replicas (DDP) need no code of ours.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from raincast.system.heap import keep_freed_memory
from raincast.training.module import NowcastModule

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def units(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that a network calls one by one: its children with parameters, and those in its lists."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(True for _ in child.parameters()):
            yield child


def prepare(network: nn.Module, *, compile: str | None, recompute: bool, tf32: bool) -> None:
    """Apply these settings to `network`; raises ValueError for an unknown mode of torch.compile."""
    if compile is not None and compile not in COMPILE_MODES:
        raise ValueError(f"compile={compile} is not a mode of torch.compile: null, {', '.join(COMPILE_MODES)}.")
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if recompute:
        for unit in units(network):
            # set on the instance, so that the names of the weights do not change
            unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
    if compile is not None:
        network.compile(mode=compile)


def recomputes(network: nn.Module) -> int:
    """Return how many units of `network` recompute their activations in the backward pass."""
    forwards = (getattr(unit, "forward", None) for unit in units(network))
    return sum(isinstance(forward, functools.partial) and forward.func is checkpoint for forward in forwards)


def used(trainer: L.Trainer, network: nn.Module) -> dict[str, Any]:
    """Return the settings in force, read from the Trainer and the network; None if one does not apply."""
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


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights, used for validation, checkpoints and the final network.

    After step n (from 1) the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that the initial weights
    are forgotten however short the run is. Checkpoints hold the average as `state_dict` and, separately, the
    weights with which training continues.
    """

    def __init__(self, decay: float) -> None:
        """Raise ValueError unless 0 < decay < 1."""
        if not 0 < decay < 1:
            raise ValueError(
                f"ema={decay} is the share that the average keeps per step: above 0 and below 1 (0.999)."
            )
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Move the average to the weights' device: Lightning creates it before it moves them to a GPU.

        It would stay in main memory, and every step would copy all weights there. The count of steps does stay:
        reading it from a GPU would wait for the GPU.
        """
        assert self._average_model is not None
        self._average_model.module.to(module.device)

    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)
        kept = min(self.decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():  # all tensors of a list have one dtype
            torch._foreach_lerp_(list(averages), list(weights), 1.0 - kept)
        else:  # a count, such as that of batch norm
            torch._foreach_copy_(list(averages), list(weights))


class Sharded(ModelParallelStrategy):
    """Every process holds its shard of weights, gradients and optimiser state (FSDP).

    Checkpoints hold the whole state.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning would shard only over nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class ShardedModule(NowcastModule):
    """The module trained by `Sharded`: layers are gathered while they compute."""

    def configure_model(self) -> None:
        """Shard the network.

        Lightning calls this on every process once they are connected, and again at each stage.
        """
        if not any(self._shared()):
            _shard(self.network, self.device_mesh["data_parallel"])  # type: ignore[index]

    def on_validation_start(self) -> None:
        """Gather all weights for validation.

        A process with fewer windows would otherwise leave the others waiting for its shard.
        """
        super().on_validation_start()
        for part in self._shared():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def on_validation_end(self) -> None:
        """Shard the weights again."""
        super().on_validation_end()
        for part in self._shared():
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()

    def _shared(self) -> Iterator[FSDPModule]:
        return (part for part in self.network.modules() if isinstance(part, FSDPModule))


def _shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights of each unit of `network`, and the remaining ones, over the processes of `mesh`."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # shards are cut along the first axis
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for unit in units(network):
        fully_shard(unit, **options)
    fully_shard(network, **options)
