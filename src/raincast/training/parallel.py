"""Training on processes that share the weights out (FSDP); for copies in each (DDP) nothing of ours is needed."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from raincast.training.execution import units
from raincast.training.module import NowcastModule


class Sharded(ModelParallelStrategy):
    """Every process holds its share of weights, gradients and optimiser state; checkpoints are whole."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """All processes share; Lightning would let only nodes do so."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class ShardedModule(NowcastModule):
    """The module that `Sharded` trains: its network's parts are whole while they compute."""

    def configure_model(self) -> None:
        """Lightning calls this on every process once they know each other, and again for each further stage."""
        if not any(self._shared()):
            shard(self.network, self.device_mesh["data_parallel"])  # type: ignore[index]

    def on_validation_start(self) -> None:
        """Whole for all of validation: who has a window less would leave the others waiting for its share."""
        super().on_validation_start()
        for part in self._shared():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def on_validation_end(self) -> None:
        """Shared out again."""
        super().on_validation_end()
        for part in self._shared():
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()

    def _shared(self) -> Iterator[FSDPModule]:
        return (part for part in self.network.modules() if isinstance(part, FSDPModule))


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Share the weights of each unit of `network`, and of what is left, out over the processes of `mesh`."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # shares are cut along the first axis
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for unit in units(network):
        fully_shard(unit, **options)
    fully_shard(network, **options)
