"""What goes wrong on purpose, in a process that a test starts: `+callbacks.fail._target_=failing.Failing`."""

from typing import Any

import lightning as L


class Failing(L.Callback):
    """The second process fails in its second step, when the first already waits for it."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 1:
            raise RuntimeError("the reason")
