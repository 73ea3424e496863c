"""Signals that ask a run to leave: SIGTERM, and the one that SLURM sends before the time is up."""

import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

import lightning as L

log = logging.getLogger(__name__)

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: saved, and to be started again."""


class Stopped(SystemExit):
    """Ends a run whose state is on disk."""


class StopSignals:
    """Notes that one of the signals `names` came; what is to be done waits for the end of a step.

    On SLURM, SIGUSR1 (`#SBATCH --signal=SIGUSR1@120`) also puts the job back into the queue, if `requeue`.
    """

    def __init__(self, names: Sequence[str] = ("SIGTERM", "SIGUSR1"), *, requeue: bool = True) -> None:
        unknown = [name for name in names if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no signal here. Take SIGTERM, SIGUSR1, SIGUSR2, SIGHUP.")
        self.signals = [signal.Signals[name] for name in names]
        self.requeue = requeue
        self.received: signal.Signals | None = None

    def install(self, trainer: L.Trainer) -> None:
        """Take the place of Lightning's handlers, which save in mid-step; it puts back those before its own."""
        self.received = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may

        def note(number: int, _: Any) -> None:
            first, self.received = self.received is None, signal.Signals(number)
            launcher: Any = trainer.strategy.launcher
            if first and hasattr(launcher, "kill"):
                launcher.kill(number)  # the processes of the other ranks, on this machine

        for number in self.signals:
            signal.signal(number, note)

    def put_back(self) -> None:
        """Ask SLURM to start this job again, where it was SLURM that asked it to leave."""
        if self.received is not signal.SIGUSR1 or not self.requeue or "SLURM_JOB_ID" not in os.environ:
            return
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        command = shutil.which("scontrol")
        if command is None:
            log.warning("There is no scontrol here, so job %s is not put back into the queue.", job)
            return
        asked = subprocess.run([command, "requeue", job], capture_output=True, text=True, check=False)
        if asked.returncode:
            log.warning("scontrol requeue %s failed: %s", job, asked.stderr.strip())
        else:
            log.info("Job %s is put back into the queue.", job)
