"""Training on processes that each hold a shard of the weights (FSDP); replicas (DDP) need no code of ours."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from raincast.training.execution import units
from raincast.training.module import NowcastModule


class Sharded(ModelParallelStrategy):
    """Every process holds its shard of weights, gradients and optimiser state.

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
            shard(self.network, self.device_mesh["data_parallel"])  # type: ignore[index]

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


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights of each unit of `network`, and the remaining ones, over the processes of `mesh`."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # shards are cut along the first axis
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for unit in units(network):
        fully_shard(unit, **options)
    fully_shard(network, **options)
