"""A loader that goes on in the middle of an epoch."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from raincast.data.dataset import Stored
from raincast.data.sampler import TrainSampler


class ResumableLoader(DataLoader[Stored]):
    """Batches of a `TrainSampler`, which draws an epoch from (seed, epoch) alone.

    Its state is how many samples of which epoch were trained on, by all ranks together: what is drawn again is
    what was drawn, and those are left out. No state of a worker is needed, and a run may go on with another number
    of workers, of ranks, or another batch size. `num_done` says how many batches of this rank are done.
    """

    sampler: TrainSampler
    num_done: Callable[[], int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain data; Lightning puts it into checkpoints."""
        assert self.num_done is not None and self.batch_size is not None
        return {
            "epoch": self.sampler.epoch,
            "num_samples": self.num_done() * self.batch_size * self.sampler.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out, in that epoch, what was trained on."""
        assert self.batch_size is not None
        whole = len(self) * self.batch_size * self.sampler.world_size
        epoch, num_samples = state["epoch"], state["num_samples"]
        self.sampler.go_on(*((epoch, num_samples) if num_samples < whole else (epoch + 1, 0)))
