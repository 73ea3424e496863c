"""Programs that take turns, a few steps each, so that a slow minute of the machine affects all of them."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

WARM_UP = 2
"""Number of turns that do not count, while kernels, memory and, on a GPU, clocks settle."""


class Turns(Callback):
    """Train `steps` steps per turn, time them, and wait for the others; end the process after `turns`.

    `folder` is shared by all; this is number `number` of `of`, the same for all processes of a run. A turn is
    timed from the start of a step to the start of the step after it, with loading, callbacks and logging, in
    wall-clock and CPU seconds. Writes NUMBER-RANK.json.
    """

    def __init__(self, folder: str, *, number: int, of: int, turns: int, steps: int) -> None:
        self.folder = Path(folder)
        self.number, self.of = number, of
        self.turns, self.steps = turns, steps
        self.rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._count = 0
        self._seconds: list[float] = []
        self._waits: list[float] = []
        self._worked: list[float] = []
        self._working = self._waited = self._began = self._ready = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin a step: its batch is available."""
        self.begin_step()

    def on_train_batch_end(self, *_: Any) -> None:
        """End a step: the next batch is requested."""
        self.end_step()

    def begin_step(self) -> None:
        """End the previous step, including everything after it, and the turn if it was the last."""
        self._waited += time.perf_counter() - self._ready
        if self._count % self.steps == 0:
            if self._count:
                self._end_turn()
            self._await_turn()
        self._count += 1

    def end_step(self) -> None:
        """Wait for the GPU, whose work belongs to this turn."""
        if torch.cuda.is_available() and self._count % self.steps == 0:
            torch.cuda.synchronize()
        self._ready = time.perf_counter()

    def _end_turn(self) -> None:
        self._seconds.append(time.perf_counter() - self._began)
        self._worked.append(time.process_time() - self._working)
        self._waits.append(self._waited)
        done = len(self._seconds)
        if done == WARM_UP + self.turns:
            self._write()
        if self.rank == 0:
            _write_turn(self.folder, (done - 1) * self.of + self.number + 1)
        if done == WARM_UP + self.turns:
            os._exit(0)  # work after training is not measured

    def _await_turn(self) -> None:
        mine = len(self._seconds) * self.of + self.number
        while _read_turn(self.folder) != mine:
            time.sleep(0.002)
        self._waited, self._working = 0.0, time.process_time()
        self._began = self._ready = time.perf_counter()

    def _write(self) -> None:
        on_gpu = torch.cuda.is_available()
        held = torch.cuda.max_memory_allocated() if on_gpu else 1024 * _peak_kib()
        result = {
            "seconds": [seconds / self.steps for seconds in self._seconds[WARM_UP:]],
            "processor": [worked / self.steps for worked in self._worked[WARM_UP:]],
            "waiting": [waited / self.steps for waited in self._waits[WARM_UP:]],
            "memory_mib": held / 2**20,
        }
        (self.folder / f"{self.number}-{self.rank}.json").write_text(json.dumps(result), encoding="utf-8")


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read_turn(folder: Path) -> int:
    try:
        return int((folder / "turn").read_text())
    except (FileNotFoundError, ValueError):  # nobody has begun
        return 0


def _write_turn(folder: Path, turn: int) -> None:
    partial = folder / "turn.partial"
    partial.write_text(str(turn))
    partial.replace(folder / "turn")
