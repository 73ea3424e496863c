"""Programs that take turns, a few steps each, so that a slow minute of the machine strikes all of them."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

WARM_UP = 2
"""Turns that do not count: kernels, memory and, on a GPU, clocks settle."""


class Turns(Callback):
    """Trains `steps` steps in its turn, times them, and waits for the others; ends the process after `turns`.

    `folder` is shared by all; `number` of `of` is this one, all processes of one run alike. A turn is counted from
    the start of a step to the start of the step after it, with loading, callbacks and logging, in seconds and in
    seconds of the processor. Writes NUMBER-RANK.json.
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
        """The batch is there."""
        self.begin_step()

    def on_train_batch_end(self, *_: Any) -> None:
        """The next is asked for."""
        self.end_step()

    def begin_step(self) -> None:
        """The step before is over, with all that comes after it: the turn may be, too."""
        self._waited += time.perf_counter() - self._ready
        if self._count % self.steps == 0:
            if self._count:
                self._end_turn()
            self._await_turn()
        self._count += 1

    def end_step(self) -> None:
        """What is on the GPU is waited for: it belongs to this turn."""
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
            os._exit(0)  # what comes after training is not what is measured

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
